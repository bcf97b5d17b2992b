//! What the clients of one thread share: settings, identity, randomness, records.
//!
//! Nothing here is shared between threads except the interned conversation names.

use std::{net::SocketAddr, sync::Arc};

use jsonwebtoken::{Algorithm, EncodingKey, Header};

use super::NS_PER_MS;
use crate::{
    adapter::streams::Streams,
    log::{Log, Names},
    population::{Population, Transport},
    record::Recorder,
    room::Board,
    scenario::{MqttSection, WebsocketEchoSection, plan::CustomFrame},
};

/// Different errors kept in words.
const ERRORS_MAX: usize = 10;

/// Where to connect.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The resolved address.
    pub address: SocketAddr,
    /// For the Host header.
    pub host: String,
    /// The path of the upgrade request; empty for TCP.
    pub path: String,
}

/// Makes the users' tokens.
#[derive(Clone)]
pub struct Tokens {
    header: Header,
    key: EncodingKey,
    issuer: Option<String>,
    audience: Option<String>,
}

impl Tokens {
    /// Tokens signed with a shared secret, with no more in them than they need.
    pub fn hs256(secret: &[u8]) -> Self {
        let header = Header::new(Algorithm::HS256);
        Self { header, key: EncodingKey::from_secret(secret), issuer: None, audience: None }
    }

    /// Tokens with this header, key, `iss` and `aud`.
    pub fn new(
        header: Header,
        key: EncodingKey,
        issuer: Option<String>,
        audience: Option<String>,
    ) -> Self {
        Self { header, key, issuer, audience }
    }

    /// A token for a user that expires then.
    ///
    /// # Errors
    /// The key does not fit the algorithm.
    pub fn sign(&self, user_id: &str, exp: u64) -> Result<String, jsonwebtoken::errors::Error> {
        let (iss, aud) = (self.issuer.as_deref(), self.audience.as_deref());
        jsonwebtoken::encode(&self.header, &Claims { sub: user_id, exp, iss, aud }, &self.key)
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // No secret in a log.
        f.debug_struct("Tokens").field("header", &self.header).finish_non_exhaustive()
    }
}

/// How the clients behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The TCP listener, if any user comes that way.
    pub tcp: Option<Endpoint>,
    /// The WebSocket listener, if any user comes that way.
    pub websocket: Option<Endpoint>,
    /// How the users' tokens are made.
    pub tokens: Tokens,
    /// Unix time at which the tokens expire, in seconds.
    pub tokens_expire_at_s: u64,
    /// Smallest length of a message's text.
    pub message_bytes: usize,
    /// Frames of a team's own backend, by number.
    pub custom: Vec<CustomFrame>,
    /// How a server that echoes is spoken to.
    pub websocket_echo: WebsocketEchoSection,
    /// How a broker is spoken to.
    pub mqtt: MqttSection,
    /// Users write to each other, so everybody wants to hear what is for it.
    pub has_inboxes: bool,
    /// A heartbeat answered later than this is a fault; 0: than the interval that LOGIN named, and than
    /// 5 s.
    pub heartbeat_reply_max_ns: u64,
    /// Send heartbeats; without them the server is expected to end the connection.
    pub heartbeats: bool,
    /// Logic or gateway are expected to be killed: a redelivery on a live connection is then
    /// counted and not a fault.
    pub expect_faults: bool,
    /// Come back after a lost connection.
    pub reconnect: bool,
    /// Connect, upgrade and login each take at most this long.
    pub stage_timeout_ns: u64,
    /// A message that is not answered for this long is sent again. The span doubles with every
    /// attempt and a random half of it is added, so that users who were hit together do not come
    /// again together, and a server that is behind gets less and not more to do.
    pub send_timeout_ns: u64,
    /// An unanswered message is sent again at most so often, after timeouts and lost connections
    /// taken together; then it is given up.
    pub resends_max: u32,
    /// A refused message waits this long, or as long as the refusal asks for, before it is sent
    /// again; doubled with every refusal, with a random part added …
    pub refusal_base_ns: u64,
    /// … up to this.
    pub refusal_cap_ns: u64,
    /// So many refusals, then it is given up.
    pub refusals_max: u32,
    /// A message is given up at this age, whatever the reason.
    pub send_age_max_ns: u64,
    /// At most one DELIVER_ACK per conversation in this span.
    pub ack_delay_ns: u64,
    /// A hole in a conversation that lasts this long is pulled.
    pub hole_grace_ns: u64,
    /// Reconnects wait a random part of this, doubled with every failure …
    pub reconnect_base_ns: u64,
    /// … up to this.
    pub reconnect_cap_ns: u64,
    /// A user that goes by itself comes back after a random time from here to there.
    pub away_ns: (u64, u64),
    /// So many failures in a row, then the user gives up.
    pub reconnects_max: u32,
}

impl Settings {
    /// The behaviour of a good client, with the protocol's times.
    pub fn new(jwt_secret: &str, tokens_expire_at_s: u64) -> Self {
        Self {
            tcp: None,
            websocket: None,
            tokens: Tokens::hs256(jwt_secret.as_bytes()),
            tokens_expire_at_s,
            message_bytes: 100,
            custom: Vec::new(),
            websocket_echo: WebsocketEchoSection::default(),
            mqtt: MqttSection::default(),
            has_inboxes: true,
            heartbeat_reply_max_ns: 0,
            heartbeats: true,
            expect_faults: false,
            reconnect: true,
            stage_timeout_ns: 15_000 * NS_PER_MS,
            send_timeout_ns: 15_000 * NS_PER_MS,
            resends_max: 3,
            refusal_base_ns: 500 * NS_PER_MS,
            refusal_cap_ns: 16_000 * NS_PER_MS,
            refusals_max: 10,
            send_age_max_ns: 120_000 * NS_PER_MS,
            ack_delay_ns: 200 * NS_PER_MS,
            hole_grace_ns: 1_000 * NS_PER_MS,
            reconnect_base_ns: 500 * NS_PER_MS,
            reconnect_cap_ns: 20_000 * NS_PER_MS,
            away_ns: (500 * NS_PER_MS, 5_000 * NS_PER_MS),
            reconnects_max: 20,
        }
    }

    /// The listener of a transport.
    pub fn endpoint(&self, transport: Transport) -> Option<&Endpoint> {
        match transport {
            Transport::Tcp => self.tcp.as_ref(),
            Transport::WebSocket => self.websocket.as_ref(),
        }
    }
}

/// How connections ended, for the scenarios that wait for the server to end them.
#[derive(Clone, Debug, Default)]
pub struct Endings {
    /// How many sessions ended.
    pub count: u64,
    /// Shortest span from the client's last frame to the end.
    pub silence_ns_min: u64,
    /// Longest one.
    pub silence_ns_max: u64,
    /// By the label of the code that the server named, or `none`.
    pub by_label: Vec<(&'static str, u64)>,
}

impl Endings {
    /// Notes the end of a session.
    pub fn add(&mut self, silence_ns: u64, label: &'static str) {
        self.silence_ns_min =
            if self.count == 0 { silence_ns } else { self.silence_ns_min.min(silence_ns) };
        self.silence_ns_max = self.silence_ns_max.max(silence_ns);
        self.count += 1;
        self.add_label(label, 1);
    }

    fn add_label(&mut self, label: &'static str, by: u64) {
        match self.by_label.iter_mut().find(|(known, _)| *known == label) {
            Some((_, count)) => *count += by,
            None => self.by_label.push((label, by)),
        }
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        self.silence_ns_min = if self.count == 0 {
            other.silence_ns_min
        } else {
            self.silence_ns_min.min(other.silence_ns_min)
        };
        self.silence_ns_max = self.silence_ns_max.max(other.silence_ns_max);
        self.count += other.count;
        for (label, count) in &other.by_label {
            self.add_label(label, *count);
        }
    }
}

/// See the module.
pub struct Context {
    /// How the clients behave.
    pub settings: Arc<Settings>,
    /// Who they are.
    pub population: Arc<Population>,
    /// Numbers for conversations.
    pub names: Names,
    /// Seeded.
    pub random: fastrand::Rng,
    /// Latencies and counters.
    pub record: Recorder,
    /// For the verifier.
    pub log: Log,
    /// Ends of sessions.
    pub endings: Endings,
    /// Users below this index send their next heartbeat as soon as the last one is answered.
    pub flat_out_below: u32,
    /// Working memory.
    pub(crate) scratch: Vec<u8>,
    /// The room, shared with the other threads.
    pub board: Arc<Board>,
    /// The streams of messages at somebody else's server, shared with the other threads.
    pub streams: Arc<Streams>,
    /// Members in the room.
    pub seats: u64,
    /// PULL_MESSAGES on their way.
    pub pulls_outstanding: u64,
    /// The verifier is at work: no message is written any more, not even again.
    pub is_verifying: bool,
    /// The first few errors in words, each once; the counters have the numbers.
    pub errors: Vec<String>,
    /// Unix time of nanosecond 0 of the run, in milliseconds.
    unix_ms_at_start: i64,
}

#[derive(serde::Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

impl Context {
    /// A fresh context for one thread.
    pub fn new(
        settings: Arc<Settings>,
        population: Arc<Population>,
        names: Names,
        board: Arc<Board>,
        seed: u64,
        unix_ms_at_start: i64,
    ) -> Self {
        Self {
            settings,
            population,
            names,
            random: fastrand::Rng::with_seed(seed),
            record: Recorder::default(),
            log: Log::default(),
            endings: Endings::default(),
            flat_out_below: 0,
            scratch: Vec::new(),
            board,
            streams: Arc::default(),
            seats: 0,
            pulls_outstanding: 0,
            is_verifying: false,
            errors: Vec::new(),
            unix_ms_at_start,
        }
    }

    /// Keeps an error in words, unless it is known or there are many already.
    pub fn note_error(&mut self, error: String) {
        if self.errors.len() < ERRORS_MAX && !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// A token for a user.
    pub fn token(&self, user_id: &str) -> String {
        let exp = self.settings.tokens_expire_at_s;
        self.settings.tokens.sign(user_id, exp).expect("the key was tried before the run")
    }

    /// Unix time in milliseconds at a moment of the run.
    pub fn unix_ms(&self, now_ns: u64) -> i64 {
        self.unix_ms_at_start + (now_ns / NS_PER_MS) as i64
    }
}
