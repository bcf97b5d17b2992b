//! One user with one connection: a good client of the protocol as a state machine without I/O.
//!
//! The owner tells it what happened ([`Client::connected`], [`Client::received`],
//! [`Client::ended`], [`Client::tick`]) and asks afterwards for bytes ([`Client::take_output`]),
//! for a wish ([`Client::take_wish`]) and for the next deadline ([`Client::deadline_ns`]). It
//! reads no clock: every call carries the nanoseconds since the start of the run.
//!
//! - `session`: connect, login, heartbeat, the ends of a connection and the way back
//! - `chat`: sending, acknowledging, gaps and pulls
//! - `wire`, `outbox`, `conversation`, `text`, `context`: what these two stand on

mod chat;
mod context;
mod conversation;
mod outbox;
mod session;
mod text;
mod wire;

use std::net::SocketAddr;

use millrace_protocol::{Code, frame::Flags};

pub use context::{Context, Endings, Endpoint, Settings};
pub use outbox::OUTBOX_MAX;
pub use text::Text;

use conversation::Conversation;
use outbox::Outbox;
use wire::Wire;

use crate::{
    log::{Key, Unanswered},
    record::Counter,
    scenario::{Target, Transport},
};

/// Nanoseconds in a millisecond.
pub const NS_PER_MS: u64 = 1_000_000;

/// Unwritten output above which a client stops adding frames and waits for the socket.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// What the client wants done with its connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// Open one to this address.
    Connect(SocketAddr),
    /// Write the farewell, if any, and close.
    Close {
        /// The last bytes.
        farewell: Vec<u8>,
    },
}

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No connection; the next attempt is due at `until_ns` (never: `u64::MAX`).
    Waiting,
    /// The TCP connection is being made.
    Connecting,
    /// The upgrade request is out.
    Upgrading,
    /// LOGIN is out, or is to be sent again at `until_ns`.
    LoggingIn,
    /// The session is up.
    Ready,
    /// LOGOUT is out.
    LoggingOut,
    /// No connection, and none wanted.
    Done,
}

/// A request whose reply is awaited.
#[derive(Debug, Clone, Copy)]
struct Pending {
    request_id: u32,
    sent_ns: u64,
    what: Request,
}

#[derive(Debug, Clone, Copy)]
enum Request {
    Login,
    /// The message with this number.
    Send(u32),
    /// An earlier attempt of a message that another attempt has had acknowledged.
    Acknowledged {
        counter: u32,
        conversation: u32,
        sequence: u64,
    },
    /// A range of a conversation.
    Pull {
        conversation: u32,
        to: u64,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    user: u32,
    transport: Transport,
    stage: Stage,
    stage_since_ns: u64,
    /// Waiting: when to connect. LoggingIn: when to send LOGIN again.
    until_ns: u64,
    wire: Wire,
    output: Vec<u8>,
    wish: Option<Wish>,
    next_request_id: u32,
    next_counter: u32,
    pending: Vec<Pending>,
    outbox: Outbox,
    /// A lower bound of the next moment at which the outbox has something to do.
    outbox_due_ns: u64,
    conversations: Vec<Conversation>,
    heartbeat_due_ns: u64,
    heartbeat_sent_ns: u64,
    heartbeat_interval_ns: u64,
    idle_timeout_ns: u64,
    last_received_ns: u64,
    last_written_ns: u64,
    /// GOAWAY: when to leave, and the end of the window.
    leave: Option<(u64, u64)>,
    /// GOAWAY: where to go instead.
    elsewhere: Option<SocketAddr>,
    /// The code of the last frame that could be a reason for the end of the connection.
    end_reason: Option<Code>,
    retry_after_ns: u64,
    failures: u32,
    was_ready: bool,
    resume_token: String,
}

impl Client {
    /// A user that has not connected yet.
    pub fn new(user: u32, transport: Transport) -> Self {
        Self {
            user,
            transport,
            stage: Stage::Waiting,
            stage_since_ns: 0,
            until_ns: u64::MAX,
            wire: Wire::Closed,
            output: Vec::new(),
            wish: None,
            next_request_id: 1,
            next_counter: 1,
            pending: Vec::new(),
            outbox: Outbox::default(),
            outbox_due_ns: u64::MAX,
            conversations: Vec::new(),
            heartbeat_due_ns: u64::MAX,
            heartbeat_sent_ns: 0,
            heartbeat_interval_ns: 5_000 * NS_PER_MS,
            idle_timeout_ns: 15_000 * NS_PER_MS,
            last_received_ns: 0,
            last_written_ns: 0,
            leave: None,
            elsewhere: None,
            end_reason: None,
            retry_after_ns: 0,
            failures: 0,
            was_ready: false,
            resume_token: String::new(),
        }
    }

    /// The index of the user.
    pub fn user(&self) -> u32 {
        self.user
    }

    /// Whether the session is up.
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// Whether no connection is wanted any more.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Whether a connection is being made.
    pub fn is_connecting(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Upgrading | Stage::LoggingIn)
    }

    /// Messages not yet acknowledged.
    pub fn outstanding(&self) -> usize {
        self.outbox.len()
    }

    /// The messages not yet acknowledged, for the verifier.
    pub fn unanswered(&self) -> impl Iterator<Item = Unanswered> {
        self.outbox.iter().map(|entry| Unanswered {
            key: Key::new(self.user, entry.counter),
            target: entry.target,
        })
    }

    /// What the client wants done with its connection, once.
    pub fn take_wish(&mut self) -> Option<Wish> {
        self.wish.take()
    }

    /// Whether there are bytes to write.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The bytes to write now.
    pub fn take_output(&mut self, now_ns: u64, cx: &mut Context) -> Vec<u8> {
        self.last_written_ns = now_ns;
        cx.record.counters.add_many(Counter::BytesOut, self.output.len() as u64);
        std::mem::take(&mut self.output)
    }

    /// When [`Client::tick`] is wanted, at the latest.
    pub fn deadline_ns(&self, cx: &Context) -> u64 {
        let stage_end = self.stage_since_ns + cx.settings.stage_timeout_ns;
        match self.stage {
            Stage::Done => u64::MAX,
            Stage::Waiting => self.until_ns,
            Stage::LoggingIn => stage_end.min(self.until_ns),
            Stage::Connecting | Stage::Upgrading | Stage::LoggingOut => stage_end,
            Stage::Ready => {
                let conversations = self
                    .conversations
                    .iter()
                    .flat_map(|conversation| [conversation.ack_due_ns, conversation.hole_due_ns]);
                let conversation_due =
                    conversations.filter(|due| *due > 0).min().unwrap_or(u64::MAX);
                let leave_due = self.leave.map_or(u64::MAX, |(at, _)| at);
                self.heartbeat_due_ns
                    .min(self.idle_due_ns(cx))
                    .min(self.outbox_due_ns)
                    .min(conversation_due)
                    .min(leave_due)
            }
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now_ns: u64, cx: &mut Context) {
        self.tick_session(now_ns, cx);
        if self.stage == Stage::Ready {
            self.tick_chat(now_ns, cx);
        }
    }

    /// Appends a frame and answers its request id.
    fn write(&mut self, cx: &mut Context, command: u16, flags: Flags, body: &[u8]) -> u32 {
        let request_id = self.next_request_id;
        self.next_request_id = self.next_request_id.checked_add(1).unwrap_or(1);
        self.write_as(cx, command, flags, request_id, body);
        request_id
    }

    /// Appends a frame with a given request id (0: no reply wanted).
    fn write_as(
        &mut self,
        cx: &mut Context,
        command: u16,
        flags: Flags,
        request_id: u32,
        body: &[u8],
    ) {
        cx.record.counters.add(Counter::FramesOut);
        wire::write_frame(
            self.transport,
            &mut self.output,
            &mut cx.random,
            command,
            flags,
            request_id,
            body,
        );
    }

    /// Whether the socket takes output fast enough for more of it.
    fn may_write(&self) -> bool {
        self.output.len() < OUTPUT_BYTES_MAX
    }

    fn take_pending(&mut self, request_id: u32) -> Option<Pending> {
        let index = self.pending.iter().position(|pending| pending.request_id == request_id)?;
        Some(self.pending.swap_remove(index))
    }

    /// A new message of the schedule. It is written at once, or as soon as there is a session.
    pub fn send(&mut self, now_ns: u64, cx: &mut Context, target: Target, intended_ns: u64) {
        cx.record.counters.add(Counter::Intended);
        let counter = self.next_counter;
        if !self.outbox.push(counter, target, intended_ns) {
            cx.record.counters.add(Counter::OutboxFull);
            return;
        }
        self.next_counter += 1;
        if self.stage == Stage::Ready {
            self.write_outbox(now_ns, cx);
        }
    }
}
