//! One user with one connection: a good client of the protocol as a state machine without I/O.
//!
//! The owner tells it what happened ([`Client::connected`], [`Client::received`],
//! [`Client::ended`], [`Client::tick`]) and asks afterwards for bytes ([`Client::take_output`]),
//! for a wish ([`Client::take_wish`]) and for the next deadline ([`Client::deadline_ns`]). It
//! reads no clock: every call carries the nanoseconds since the start of the run.
//!
//! - `session`: connect, login, heartbeat, the ends of a connection and the way back
//! - `chat`: sending, acknowledging, gaps and pulls
//! - `room`: the live room
//! - `wire`, `outbox`, `conversation`, `text`, `context`: what these two stand on

mod away;
mod chat;
mod context;
mod conversation;
mod custom;
mod outbox;
mod room;
mod session;
mod text;
mod user;
mod wire;

use std::net::SocketAddr;

use millrace_protocol::{Code, command, frame::Flags};

pub use away::Manner;
pub use context::{Context, Endings, Endpoint, Settings, Tokens};
pub use outbox::OUTBOX_MAX;
pub use text::Text;

use conversation::Conversation;
use outbox::Outbox;
use wire::Wire;

use crate::{
    log::{Key, Unanswered},
    population::{Target, Transport},
    record::Counter,
    room::Seat,
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
    /// A range of a conversation, for the client itself or for the verifier.
    Pull {
        conversation: u32,
        from: u64,
        to: u64,
        verifies: bool,
    },
    /// The room.
    Join,
    /// A frame of a team's own backend.
    Custom {
        intended_ns: u64,
    },
    /// A message to the room.
    Publish {
        number: u32,
        intended_ns: u64,
    },
}

/// What the client does to the scenario's counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No connection yet, or waiting to come back after a lost one.
    Waiting,
    /// No connection, and none wanted before somebody calls.
    Absent,
    /// Waiting to come back after having gone by itself.
    Away,
    /// A connection is being made.
    Connecting,
    /// The session is up.
    Ready,
    /// Between LOGOUT and the end of the connection.
    Leaving,
    /// No connection, and none wanted.
    Done,
}

/// What a user owns only while something is going on: an idle one has none of it.
#[derive(Debug)]
struct Busy {
    wish: Option<Wish>,
    pending: Vec<Pending>,
    outbox: Outbox,
    /// A lower bound of the next moment at which the outbox has something to do.
    outbox_due_ns: u64,
    /// GOAWAY: when to leave, and the end of the window.
    leave: Option<(u64, u64)>,
    /// GOAWAY: where to go instead.
    elsewhere: Option<SocketAddr>,
    retry_after_ns: u64,
    /// When a refused JOIN_ROOM is sent again.
    join_due_ns: u64,
}

impl Default for Busy {
    fn default() -> Self {
        Self {
            wish: None,
            pending: Vec::new(),
            outbox: Outbox::default(),
            outbox_due_ns: u64::MAX,
            leave: None,
            elsewhere: None,
            retry_after_ns: 0,
            join_due_ns: u64::MAX,
        }
    }
}

impl Busy {
    fn is_over(&self) -> bool {
        self.wish.is_none()
            && self.pending.is_empty()
            && self.outbox.len() == 0
            && self.leave.is_none()
            && self.elsewhere.is_none()
            && self.retry_after_ns == 0
            && self.join_due_ns == u64::MAX
    }
}

/// See the module. Small, since a run may have a million of them.
#[derive(Debug)]
pub struct Client {
    user: u32,
    next_request_id: u32,
    next_counter: u32,
    heartbeat_interval_ms: u32,
    idle_timeout_ms: u32,
    failures: u32,
    transport: Transport,
    stage: Stage,
    was_ready: bool,
    /// It went by itself and has not come back yet.
    away: bool,
    /// The code of the last frame that could be a reason for the end of the connection.
    end_reason: Option<Code>,
    stage_since_ns: u64,
    /// Waiting: when to connect. LoggingIn: when to send LOGIN again. Ready: the next heartbeat.
    due_ns: u64,
    /// Before a session: when it was wanted. Ready: when the heartbeat that waits
    /// for its answer was written; 0: none does.
    mark_ns: u64,
    last_received_ns: u64,
    last_written_ns: u64,
    wire: Wire,
    output: Vec<u8>,
    conversations: Vec<Conversation>,
    busy: Option<Box<Busy>>,
    /// The stay in the room, if this user is a member.
    seat: Option<Box<Seat>>,
    /// Boxed, since most servers give none.
    #[expect(clippy::box_collection, reason = "8 bytes instead of 16 in every idle user")]
    resume_token: Option<Box<String>>,
}

impl Client {
    /// A user that has not connected yet.
    pub fn new(user: u32, transport: Transport) -> Self {
        Self {
            user,
            next_request_id: 1,
            next_counter: 1,
            heartbeat_interval_ms: 5_000,
            idle_timeout_ms: 15_000,
            failures: 0,
            transport,
            stage: Stage::Waiting,
            was_ready: false,
            away: false,
            end_reason: None,
            stage_since_ns: 0,
            due_ns: u64::MAX,
            mark_ns: 0,
            last_received_ns: 0,
            last_written_ns: 0,
            wire: Wire::Closed,
            output: Vec::new(),
            conversations: Vec::new(),
            busy: None,
            seat: None,
            resume_token: None,
        }
    }

    fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Gives back what only a busy user needs. The owner calls it when it has looked after the
    /// client; forgetting it costs memory and nothing else.
    pub fn rest(&mut self) {
        if self.busy.as_ref().is_some_and(|busy| busy.is_over()) {
            self.busy = None;
        }
    }

    /// Where the client stands.
    pub fn standing(&self) -> Standing {
        match self.stage {
            Stage::Waiting if self.due_ns == u64::MAX => Standing::Absent,
            Stage::Waiting if self.away => Standing::Away,
            Stage::Waiting => Standing::Waiting,
            Stage::Connecting | Stage::Upgrading | Stage::LoggingIn => Standing::Connecting,
            Stage::Ready => Standing::Ready,
            Stage::LoggingOut => Standing::Leaving,
            Stage::Done => Standing::Done,
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

    /// Whether the user went by itself and has not come back yet.
    pub fn is_away(&self) -> bool {
        self.away
    }

    /// Whether no connection is wanted any more.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Messages not yet acknowledged.
    pub fn outstanding(&self) -> usize {
        self.busy.as_ref().map_or(0, |busy| busy.outbox.len())
    }

    /// The messages not yet acknowledged, for the verifier.
    pub fn unanswered(&self) -> impl Iterator<Item = Unanswered> {
        let entries = self.busy.iter().flat_map(|busy| busy.outbox.iter());
        entries.map(|entry| Unanswered {
            key: Key::new(self.user, entry.counter),
            target: entry.target,
        })
    }

    /// What the client wants done with its connection, once.
    pub fn take_wish(&mut self) -> Option<Wish> {
        self.busy.as_mut()?.wish.take()
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
            Stage::Waiting => self.due_ns,
            Stage::LoggingIn => stage_end.min(self.due_ns),
            Stage::Connecting | Stage::Upgrading | Stage::LoggingOut => stage_end,
            Stage::Ready => {
                let conversations = self
                    .conversations
                    .iter()
                    .flat_map(|conversation| [conversation.ack_due_ns, conversation.hole_due_ns]);
                let conversation_due =
                    conversations.filter(|due| *due > 0).min().unwrap_or(u64::MAX);
                let busy_due = self.busy.as_ref().map_or(u64::MAX, |busy| {
                    busy.outbox_due_ns
                        .min(busy.join_due_ns)
                        .min(busy.leave.map_or(u64::MAX, |(at, _)| at))
                });
                self.due_ns.min(self.idle_due_ns(cx)).min(conversation_due).min(busy_due)
            }
        }
    }

    /// Whether a heartbeat can be sent now: none waits for its answer.
    pub fn may_beat(&self) -> bool {
        self.stage == Stage::Ready && self.mark_ns == 0 && self.may_write()
    }

    /// Sends a heartbeat that was meant then, unless one waits for its answer.
    pub fn beat(&mut self, now_ns: u64, intended_ns: u64, cx: &mut Context) {
        debug_assert!(intended_ns <= now_ns, "nothing is sent before its time");
        if self.may_beat() {
            self.write(cx, command::HEARTBEAT, Flags::NONE, &[]);
            self.mark_ns = intended_ns;
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now_ns: u64, cx: &mut Context) {
        self.tick_session(now_ns, cx);
        if self.stage == Stage::Ready {
            self.tick_chat(now_ns, cx);
            self.tick_room(now_ns, cx);
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
            &mut cx.scratch,
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

    fn await_reply(&mut self, request_id: u32, sent_ns: u64, what: Request) {
        self.busy().pending.push(Pending { request_id, sent_ns, what });
    }

    fn take_pending(&mut self, request_id: u32) -> Option<Pending> {
        let pending = &mut self.busy.as_mut()?.pending;
        let index = pending.iter().position(|pending| pending.request_id == request_id)?;
        Some(pending.swap_remove(index))
    }

    /// A new message of the schedule. It is written at once, or as soon as there is a session.
    pub fn send(&mut self, now_ns: u64, cx: &mut Context, target: Target, intended_ns: u64) {
        cx.record.counters.add(Counter::Intended);
        cx.record.windows.meant(intended_ns);
        let counter = self.next_counter;
        if !self.busy().outbox.push(counter, target, intended_ns) {
            cx.record.counters.add(Counter::OutboxFull);
            return;
        }
        self.next_counter += 1;
        if self.stage == Stage::Ready {
            self.write_outbox(now_ns, cx);
        }
    }
}
