//! What a logic tier implements: [`Backend`], and the values its calls carry.
//!
//! Nothing here knows what a command means; that is the backend's business.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use millrace_protocol::frame::Flags;
use millrace_protocol::link::{Encoding, SendFrame, Transport, logic_event::Kind};
use millrace_protocol::{Code, command, session as session_messages};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::counters::count;
use crate::encode;
use crate::hub::Hub;
use crate::outbox::{Entry, LinkStream};
use crate::session::{Session, SessionAddress};

/// A client asks to log in.
#[derive(Clone, Debug)]
pub struct Login {
    /// Who the client claims to be. Unverified; may be empty.
    pub user_id: String,
    /// The proof.
    pub token: String,
    /// Chosen by the client and kept across restarts of the app.
    pub device_id: String,
    /// `ios`, `android`, `web`, `desktop`, or a name of the team's own.
    pub platform: String,
    /// The client's version.
    pub client_version: String,
    /// The client's clock, milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Chosen by the client.
    pub nonce: String,
    /// From the client's previous login.
    pub resume_token: String,
    /// The client's address as the gateway saw it.
    pub remote_address: String,
    /// How the client is connected.
    pub transport: Transport,
    /// How the client wants its bodies.
    pub encoding: Encoding,
    /// Where the session will be if it is accepted.
    pub address: SessionAddress,
}

impl Login {
    /// The client's address without its port, if the gateway sent one that can be read.
    pub fn remote_ip(&self) -> Option<IpAddr> {
        let text = self.remote_address.as_str();
        text.parse().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|a| a.ip()))
    }
}

/// A login is accepted.
#[derive(Clone, Debug, Default)]
pub struct Accepted {
    /// The verified user.
    pub user_id: String,
    /// How often the client shall be heard; 0: the gateway's default.
    pub heartbeat_interval_ms: u32,
    /// When the gateway gives a silent client up; 0: the gateway's default.
    pub idle_timeout_ms: u32,
    /// When the token expires, milliseconds since 1970; 0: never.
    pub expires_at_ms: i64,
    /// What the client shall show at its next login.
    pub resume_token: String,
    /// Kept by the gateway and given back when it lists its sessions.
    pub state: Bytes,
}

/// Something is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct Refused {
    /// Why, for programs.
    pub code: Code,
    /// Why, for a person.
    pub reason: String,
    /// When a retry may help, in milliseconds; 0: not at all, or at any time.
    pub retry_after_ms: u32,
}

impl Refused {
    /// A refusal without advice when to try again.
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), retry_after_ms: 0 }
    }

    /// With advice when to try again.
    #[must_use]
    pub fn retry_after(mut self, retry_after_ms: u32) -> Self {
        self.retry_after_ms = retry_after_ms;
        self
    }
}

impl From<Code> for Refused {
    /// With the code's own sentence.
    fn from(code: Code) -> Self {
        Self::new(code, code.sentence())
    }
}

/// Why a session is not here any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its connection ended, for this reason.
    Over(Code),
    /// Another logic process has it from now on. Nobody goes offline by this.
    Moved,
    /// Its gateway does not list it any more, or was not heard of for the lease: it has ended, or
    /// another logic process has taken it in since. A registry shared with others takes an entry out
    /// only if it still names this process.
    Lost,
}

impl Ended {
    /// The code it ended with, as far as that is known: `peer_gone` if it was lost, `ok` if it moved.
    pub const fn code(self) -> Code {
        match self {
            Self::Over(code) => code,
            Self::Moved => Code::Ok,
            Self::Lost => Code::PeerGone,
        }
    }
}

/// A logic tier. The calls about one gateway shard come one after another; those of different
/// shards come at the same time.
pub trait Backend: Send + Sync + 'static {
    /// Decides about a login. It may wait (for a key server, say); up to
    /// [`logins_max`](crate::ServerSettings::logins_max) of a stream are decided at the same time.
    /// The future is dropped when the stream ends: the gateway lets the client try again.
    fn login(&self, login: Login) -> impl Future<Output = Result<Accepted, Refused>> + Send;

    /// The session exists from now on. The answer to its login is queued already, so whatever is
    /// sent from here arrives after it; no frame of the session comes before this call.
    fn session_started(&self, session: Arc<Session>);

    /// The client shows a newer token: until when is it good, in milliseconds since 1970 (0: for
    /// ever)? After a yes, further calls carry a session with the new `expires_at_ms`.
    fn refresh(
        &self,
        session: Arc<Session>,
        token: String,
    ) -> impl Future<Output = Result<i64, Refused>> + Send;

    /// Frames of one stream, of many sessions, in the order received. Return soon; to wait here is
    /// the back-pressure: the stream reads nothing meanwhile, and the gateway stops reading from its
    /// clients when the credit is used up. Each frame is answered through itself, now or later. The
    /// future is always run to its end.
    fn frames(&self, frames: Vec<Inbound>) -> impl Future<Output = ()> + Send;

    /// The session is not here any more. Exactly once for each that started or moved here, after its
    /// last frame here, and never about a newer session at the same address.
    fn session_ended(&self, session: Arc<Session>, ended: Ended);

    /// These sessions were at home with another logic process, and are here from now on: their clients
    /// have noticed nothing and are online as before. The other process was told, or is gone. What it
    /// sent and they have not acknowledged may be under way or lost; send it again, as for a session
    /// that was listed. By itself it does what [`Backend::sessions_replayed`] does for those.
    fn sessions_moved_here(&self, sessions: Vec<Arc<Session>>) {
        self.sessions_replayed(sessions, Vec::new());
    }

    /// These sessions were kept while their gateway's stream was away; what was sent to them
    /// meanwhile is lost. Nothing can be sent to them until this returns;
    /// [`Backend::sessions_replayed`] follows at once. Whoever must keep deliveries in order holds
    /// them back from here on until what was lost is caught up.
    fn sessions_returning(&self, _kept: &[Arc<Session>]) {}

    /// A gateway shard connected and listed its sessions: these live on. Those unknown here come as
    /// `started`: this process is younger than they are; treat each as if it had just started. Those
    /// known come as `kept`: what was sent while the stream was away is lost; send it again.
    fn sessions_replayed(&self, started: Vec<Arc<Session>>, kept: Vec<Arc<Session>>);
}

/// A frame from a client. Dropping it gives its credit back to the gateway; a request dropped
/// without an answer is refused with `internal`, because silence would leave the client waiting.
pub struct Inbound {
    /// Who sent it.
    pub session: Arc<Session>,
    /// What it is; 0x0100 or above.
    pub command: u16,
    /// The header's flags.
    pub flags: Flags,
    /// To be echoed in the reply; 0: the client wants none.
    pub request_id: u32,
    /// JSON if `flags` has it, else what the client and the backend agreed on.
    pub body: Bytes,
    pub(crate) link: Arc<LinkStream>,
    pub(crate) hub: Arc<Hub>,
    /// What the frame used of the gateway's credit.
    pub(crate) credit_bytes: u64,
    pub(crate) answered: AtomicBool,
}

impl Inbound {
    /// Answers the request; nothing happens if none is wanted. The body is JSON if the request was.
    /// The answer is lost if the stream the request came on is gone: the gateway has answered for
    /// us then.
    pub fn reply(&self, body: Bytes) {
        if let Some(entry) = self.reply_entry(body) {
            self.link.push([entry], &self.hub.counters);
        }
    }

    /// Answers the request with a message, in the encoding the request had.
    pub fn reply_message<M: Message + Serialize>(&self, message: &M) {
        if let Some(entry) = self.reply_message_entry(message) {
            self.link.push([entry], &self.hub.counters);
        }
    }

    /// Refuses the frame: an ERROR frame with its request id (0 if it has none).
    pub fn refuse(&self, code: Code, reason: &str, retry_after_ms: u32) {
        let entry = self.refuse_entry(code, reason, retry_after_ms);
        self.link.push([entry], &self.hub.counters);
    }

    /// Reads the body, as JSON or protobuf by the frame's flag.
    ///
    /// # Errors
    /// `bad_request` with a sentence that says what is wrong.
    pub fn decode<M: Message + Default + DeserializeOwned>(&self) -> Result<M, Refused> {
        encode::decode(&self.body, self.flags)
    }

    pub(crate) fn reply_entry(&self, body: Bytes) -> Option<Entry> {
        self.answered.store(true, Ordering::Relaxed);
        (self.request_id != 0).then(|| self.entry(command::reply(self.command), body))
    }

    pub(crate) fn reply_message_entry<M: Message + Serialize>(&self, message: &M) -> Option<Entry> {
        match encode::message(message, self.encoding()) {
            Ok(body) => self.reply_entry(body),
            Err(error) => {
                count(&self.hub.counters.frames_unsendable, 1);
                tracing::error!(%error, command = self.command, "a reply cannot be sent");
                Some(self.refuse_entry(Code::Internal, "the reply cannot be sent", 0))
            }
        }
    }

    pub(crate) fn refuse_entry(&self, code: Code, reason: &str, retry_after_ms: u32) -> Entry {
        self.answered.store(true, Ordering::Relaxed);
        let error =
            session_messages::Error { code: code.number(), reason: reason.into(), retry_after_ms };
        // The message is three plain fields: it always encodes.
        let body = encode::message(&error, self.encoding()).unwrap_or_default();
        self.entry(command::ERROR, body)
    }

    pub(crate) fn link(&self) -> &Arc<LinkStream> {
        &self.link
    }

    fn encoding(&self) -> Encoding {
        if self.flags.contains(Flags::JSON) { Encoding::Json } else { Encoding::Protobuf }
    }

    fn entry(&self, command: u16, body: Bytes) -> Entry {
        let json = if self.flags.contains(Flags::JSON) { Flags::JSON } else { Flags::NONE };
        Entry::new(Kind::SendFrame(SendFrame {
            session_ids: vec![self.session.address.session_id],
            command: u32::from(command),
            flags: u32::from(json.bits()),
            request_id: self.request_id,
            body,
        }))
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        if self.request_id != 0 && !*self.answered.get_mut() {
            count(&self.hub.counters.requests_unanswered, 1);
            self.refuse(Code::Internal, Code::Internal.sentence(), 0);
        }
        self.link.return_credit(1, self.credit_bytes);
    }
}

impl std::fmt::Debug for Inbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbound")
            .field("session", &self.session.address)
            .field("command", &format_args!("{:#06x}", self.command))
            .field("request_id", &self.request_id)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}
