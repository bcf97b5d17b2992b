//! What a client is sent: encoding for its form, the budget of its queue, and the send itself.
//!
//! There are three forms: frames (TCP), frames in binary messages, envelopes in text messages. A
//! client is answered in the form it spoke last, as far as the body allows it.

use bytes::Bytes;
use millrace_protocol::{
    Code, command,
    frame::{self, Flags, HEADER_BYTES},
    session, text,
    websocket::{Opcode, write_header},
};

use super::{Engine, closing::Farewell, inbound::wants_json};
use crate::{
    Dropped, Now, SlowConsumer,
    connection::{Connection, Facts, Phase},
    effect::ConnectionId,
    transport::SendQueue as _,
    work::{ConnectionQueue, SharedId, Works},
};

/// What WebSocket and the envelope add to a body, at most.
const FORM_BYTES_MAX: usize = 96;

/// How far ERROR frames may exceed a queue whose policy is to drop.
const ERROR_RESERVE_BYTES: usize = 64 * 1024;

/// One of the three forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Tcp,
    Binary,
    Text,
}

/// The form for a body, or `None` if the client's form cannot carry it.
fn form(connection: &Connection, is_json: bool) -> Option<Form> {
    if !connection.has(Facts::WEBSOCKET) {
        Some(Form::Tcp)
    } else if connection.has(Facts::TEXT) && is_json {
        Some(Form::Text)
    } else if connection.has(Facts::TEXT_ONLY) {
        None
    } else {
        Some(Form::Binary)
    }
}

/// One frame for many receivers, encoded at most once for each form: as it goes over the wire,
/// because the header of a WebSocket message of a server depends on its length alone.
///
/// Whoever made it hands it to [`Self::release`] in the end.
#[derive(Debug)]
pub(super) struct Shared {
    command: u16,
    flags: Flags,
    body: Bytes,
    /// By [`Form`].
    wires: [Option<SharedId>; 3],
}

impl Shared {
    pub(super) const fn new(command: u16, flags: Flags, body: Bytes) -> Self {
        Self { command, flags, body, wires: [None; 3] }
    }

    /// Whether the body is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    fn is_json(&self) -> bool {
        self.flags.contains(Flags::JSON) || self.body.is_empty()
    }

    pub(super) const fn command(&self) -> u16 {
        self.command
    }

    /// The encoded frame for a connection, or `None` if its form cannot carry the body.
    pub(super) fn wire_for(
        &mut self,
        connection: &Connection,
        works: &mut Works,
    ) -> Option<SharedId> {
        Some(self.wire(form(connection, self.is_json())?, works))
    }

    fn wire(&mut self, form: Form, works: &mut Works) -> SharedId {
        let Self { command, flags, body, wires } = self;
        *wires[form as usize].get_or_insert_with(|| {
            let mut out = Vec::with_capacity(body.len() + FORM_BYTES_MAX);
            write_form(&mut out, form, *command, *flags, 0, body);
            works.share(Bytes::from(out))
        })
    }

    /// The fan-out is over; what was encoded stays as long as somebody waits for it.
    pub(super) fn release(self, works: &mut Works) {
        for wire in self.wires.into_iter().flatten() {
            works.release(wire);
        }
    }
}

/// Writes a frame as it goes over the wire.
fn write_form(
    out: &mut Vec<u8>,
    form: Form,
    command: u16,
    flags: Flags,
    request_id: u32,
    body: &[u8],
) {
    match form {
        Form::Tcp => frame::write(out, command, flags, request_id, body),
        Form::Binary => {
            write_header(out, Opcode::Binary, HEADER_BYTES + body.len());
            frame::write(out, command, flags, request_id, body);
        }
        Form::Text => {
            let mut envelope = Vec::new();
            text::write(&mut envelope, command, request_id, body);
            write_header(out, Opcode::Text, envelope.len());
            out.extend_from_slice(&envelope);
        }
    }
}

impl Engine {
    // --- sending ---------------------------------------------------------------------------------

    /// Moves what waits for a connection to `out`, up to
    /// [`crate::Settings::send_batch_bytes_max`] or one larger piece, and notes that a send is
    /// under way until [`Self::sent`]. Returns whether there was anything.
    pub fn take_send(&mut self, id: ConnectionId, out: &mut Vec<u8>) -> bool {
        let batch_bytes_max = self.settings.send_batch_bytes_max;
        let Some((connection, works)) = self.parts(id) else { return false };
        connection.set(Facts::SEND_SCHEDULED, false);
        if connection.has(Facts::SENDING) || connection.phase == Phase::Closed {
            return false;
        }
        let before = out.len();
        if !connection.take_queue(works, out, batch_bytes_max) {
            return false;
        }
        connection.set(Facts::SENDING, true);
        let taken = (out.len() - before) as u64;
        let transport = connection.transport();
        self.counters.send_queue_bytes -= taken;
        self.counters.traffic_mut(transport).bytes_out += taken;
        true
    }

    /// The send under way is done; `ok` is false if it failed, which ends the connection.
    pub fn sent(&mut self, now: Now, id: ConnectionId, ok: bool) {
        self.now = now;
        let Some((connection, works)) = self.parts(id) else {
            self.counters.stale_calls += 1;
            return;
        };
        connection.set(Facts::SENDING, false);
        let all_is_out = connection.queued_bytes(works) == 0;
        let has_gap = connection.has(Facts::GAP) && all_is_out;
        if !ok {
            self.close(id, Code::PeerGone.number(), Farewell::Nothing);
            return self.emit_close(id);
        }
        if has_gap && let Some(connection) = self.get_mut(id) {
            connection.set(Facts::GAP, false);
            let code = Code::SlowConsumer;
            self.error(id, 0, code, "messages were dropped here; pull what is missing", 0);
        }
        if all_is_out {
            let (now_ms, durations) = (now.monotonic_ms, &mut self.counters.delivery_durations);
            self.delivery_probe.end(id.raw(), 0, now_ms, durations);
        }
        self.settle(id);
    }

    // --- queueing --------------------------------------------------------------------------------

    /// Queues bytes that are not subject to the budget: handshakes and farewells.
    pub(super) fn push_bytes(&mut self, id: ConnectionId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(connection) = self.get(id) else { return };
        if connection.phase == Phase::Closed {
            return;
        }
        let queued = self.measured(id, write);
        self.counters.send_queue_bytes += queued;
        self.settle(id);
    }

    /// Queues an ERROR frame, unless the connection has been told already that it ends.
    pub(super) fn error(
        &mut self,
        id: ConnectionId,
        request_id: u32,
        code: Code,
        reason: &str,
        retry_after_ms: u32,
    ) {
        if !self.is_open(id) {
            return;
        }
        self.counters.refused[code as usize] += 1;
        let error =
            session::Error { code: code.number(), reason: reason.to_owned(), retry_after_ms };
        self.push_message(id, command::ERROR, request_id, &error);
    }

    /// Queues a message of the session, in the client's encoding.
    pub(super) fn push_message<M>(
        &mut self,
        id: ConnectionId,
        command: u16,
        request_id: u32,
        message: &M,
    ) where
        M: prost::Message + serde::Serialize,
    {
        let Some(connection) = self.get(id) else { return };
        let is_json = wants_json(connection);
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        let flags = if is_json {
            serde_json::to_writer(&mut body, message).expect("our messages have a JSON form");
            Flags::JSON
        } else {
            message.encode(&mut body).expect("a Vec grows");
            Flags::NONE
        };
        self.push_frame(id, command, flags, request_id, &body);
        self.scratch = body;
    }

    /// Queues one frame for one connection.
    pub(super) fn push_frame(
        &mut self,
        id: ConnectionId,
        command: u16,
        flags: Flags,
        request_id: u32,
        body: &[u8],
    ) {
        let Some(connection) = self.get(id) else { return };
        if connection.phase == Phase::Closed {
            return;
        }
        let is_json = flags.contains(Flags::JSON) || body.is_empty();
        let Some(form) = form(connection, is_json) else {
            return self.cannot_carry(id, request_id);
        };
        if !self.fits(id, HEADER_BYTES + body.len() + FORM_BYTES_MAX, command) {
            if request_id != 0 && command != command::ERROR {
                // A request is answered in any case: if not with its reply, then with why not.
                let code = Code::SlowConsumer;
                self.error(id, request_id, code, code.sentence(), 0);
            }
            return;
        }
        let queued = self.measured(id, |out| {
            write_form(out, form, command, flags, request_id, body);
        });
        self.queued(id, queued);
    }

    /// Queues a frame that many connections share.
    pub(super) fn push_shared(&mut self, id: ConnectionId, shared: &mut Shared) {
        let command = shared.command;
        let Some((connection, works)) = self.parts(id) else { return };
        match shared.wire_for(connection, works) {
            Some(wire) => self.push_wire(id, wire, command),
            None => self.cannot_carry(id, 0),
        }
    }

    /// Queues what many connections share; its send is deferred.
    pub(super) fn push_wire(&mut self, id: ConnectionId, wire: SharedId, command: u16) {
        let Some((connection, works)) = self.parts(id) else { return };
        let bytes = works.wire(wire).len();
        if !connection.work.is_none() && !self.fits(id, bytes, command) {
            return;
        }
        let Some((connection, works)) = self.parts(id) else { return };
        connection.push_shared(works, wire);
        let transport = connection.transport();
        self.counters.send_queue_bytes += bytes as u64;
        self.counters.traffic_mut(transport).messages_out += 1;
        self.defer_send(id);
    }

    /// Lets `write` put whole frames into a connection's queue; returns how many bytes they are.
    fn measured(&mut self, id: ConnectionId, write: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let Some((connection, works)) = self.parts(id) else { return 0 };
        let mut queue = ConnectionQueue { connection, works };
        let mut bytes = 0;
        queue.push_with(|out| {
            let before = out.len();
            write(out);
            bytes = (out.len() - before) as u64;
        });
        bytes
    }

    fn queued(&mut self, id: ConnectionId, bytes: u64) {
        let Some(connection) = self.get(id) else { return };
        let transport = connection.transport();
        self.counters.send_queue_bytes += bytes;
        self.counters.traffic_mut(transport).messages_out += 1;
        self.settle(id);
    }

    /// A protobuf body for a connection that speaks JSON only: logic's mistake.
    pub(super) fn cannot_carry(&mut self, id: ConnectionId, request_id: u32) {
        self.counters.drop_one(Dropped::Encoding);
        let code = Code::Internal;
        self.error(id, request_id, code, "the answer has no JSON form", 0);
    }

    /// Whether a frame may be queued. If not, the policy has been carried out.
    fn fits(&mut self, id: ConnectionId, bytes: usize, command: u16) -> bool {
        let bytes_max = self.settings.send_queue_bytes_max;
        let policy = self.settings.slow_consumer;
        let Some((connection, works)) = self.parts(id) else { return false };
        let queued = connection.queued_bytes(works);
        let waiting = queued + bytes;
        // What is said while closing is not subject to the budget.
        if !connection.is_open() || queued == 0 || waiting <= bytes_max {
            return true;
        }
        match policy {
            SlowConsumer::Drop if command == command::ERROR => {
                if waiting <= bytes_max + ERROR_RESERVE_BYTES {
                    return true;
                }
            }
            SlowConsumer::Drop => {
                connection.set(Facts::GAP, true);
                self.counters.drop_one(Dropped::SlowConsumer);
                return false;
            }
            SlowConsumer::Close => {}
        }
        let discarded = connection.clear_queue(works) as u64;
        self.counters.drop_one(Dropped::SlowConsumer);
        self.counters.send_queue_bytes -= discarded;
        let code = Code::SlowConsumer;
        self.close(id, code.number(), Farewell::error(0, code.sentence()));
        false
    }
}
