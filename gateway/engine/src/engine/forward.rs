//! Client frames on their way to logic: at once while there is credit; else they wait in their
//! connection's backlog and its receive is paused, so that TCP holds the client back. A connection
//! that is held cannot have its heartbeats answered, and would be given up by its client; so what
//! has waited for [`crate::Settings::link_credit_wait_max_ms`] is refused, and the connection is
//! read again.

use bytes::Bytes;
use millrace_protocol::{Code, command, frame::Flags, link::ClientFrame};

use super::{Engine, inbound::Incoming};
use crate::{
    Dropped, Effect, connection::Facts, effect::ConnectionId, link::Outgoing, work::Waiting,
};

/// A connection whose receive is paused, since when, and in which of its pauses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    since_ms: u64,
    pause: u32,
    id: ConnectionId,
}

impl Engine {
    pub(super) fn forward(&mut self, id: ConnectionId, frame: Incoming<'_>) {
        if self.link.is_none() {
            if frame.request_id == 0 {
                self.counters.drop_one(Dropped::LogicUnavailable);
            }
            return self.logic_unavailable(id, frame.request_id);
        }
        let frames_max = self.settings.link_backlog_frames_max as usize;
        let bytes_max = self.settings.link_backlog_bytes_max;
        let Some(connection) = self.get(id) else { return };
        let backlog_frames = connection.backlog_frames(&self.works);
        let backlog_bytes = connection.backlog_bytes(&self.works) + frame.body.len();
        if backlog_frames > 0 && (backlog_frames >= frames_max || backlog_bytes > bytes_max) {
            self.counters.drop_one(Dropped::Backlog);
            let reason = "too much of this connection waits for the service behind the gateway";
            return self.refuse(id, frame.request_id, Code::RateLimited, reason);
        }
        if !self.note_request(id, frame.request_id) {
            return;
        }
        // The gateway acknowledges a report itself, so logic sees it without a request id.
        let is_report = frame.command == command::REPORT;
        let (acknowledge, request_id) =
            if is_report { (frame.request_id, 0) } else { (0, frame.request_id) };
        let waiting = Waiting {
            frame: ClientFrame {
                session_id: id.raw(),
                command: u32::from(frame.command),
                flags: u32::from(frame.flags.bits()),
                request_id,
                body: Bytes::copy_from_slice(frame.body),
            },
            acknowledge,
            pause: 0,
        };
        if backlog_frames == 0 && self.spend_credit(frame.body.len()) {
            return self.send_to_logic(Outgoing::Frame(waiting));
        }
        self.wait_for_credit(id, waiting);
    }

    fn spend_credit(&mut self, body_bytes: usize) -> bool {
        self.link.as_mut().is_some_and(|link| link.spend(body_bytes))
    }

    fn wait_for_credit(&mut self, id: ConnectionId, mut waiting: Waiting) {
        // Only told apart from those before it, so that it may begin anew.
        let next_pause = self.counters.receive_pauses as u32;
        let Some((connection, works)) = self.parts(id) else { return };
        let present_pause = connection.pause(works);
        waiting.pause = present_pause.unwrap_or(next_pause);
        connection.push_backlog(works, waiting);
        let socket = connection.socket();
        let pause = !connection.has(Facts::PAUSED);
        connection.set(Facts::PAUSED, true);
        self.counters.backlog_frames += 1;
        if pause {
            self.counters.receive_pauses += 1;
            self.effects.push_back(Effect::PauseReceive { connection: id, socket });
        }
        if present_pause.is_none() {
            let held = Held { since_ms: self.now.monotonic_ms, pause: next_pause, id };
            self.waiting.push_back(held);
            if self.credit_wait_max_ms() > 0 {
                self.held.push_back(held);
            }
            self.forget_past_holds();
        }
    }

    /// Whether a connection is still held, and has not been read in between.
    fn is_held(&self, held: Held) -> bool {
        self.get(held.id).and_then(|c| c.pause(&self.works)) == Some(held.pause)
    }

    /// Keeps the queues of those that are held from growing with those that are no more.
    fn forget_past_holds(&mut self) {
        let most = 64 + 2 * self.connections.len() as usize;
        if self.waiting.len() > most {
            let mut waiting = std::mem::take(&mut self.waiting);
            waiting.retain(|held| self.is_held(*held));
            self.waiting = waiting;
        }
        if self.held.len() > most {
            let mut all = std::mem::take(&mut self.held);
            all.retain(|held| self.is_held(*held));
            self.held = all;
        }
    }

    /// How long a frame may wait for credit; 0: as long as it takes. A third of the idle timeout
    /// at most, so that a client hears from us while it still believes that we live.
    fn credit_wait_max_ms(&self) -> u64 {
        let third_ms = (self.settings.idle_timeout_ms / 3).max(1);
        u64::from(self.settings.link_credit_wait_max_ms.min(third_ms))
    }

    /// When the connection that is held longest is due; it may be held no more.
    pub(super) fn next_hold_ms(&self) -> Option<u64> {
        self.held.front().map(|held| held.since_ms + self.credit_wait_max_ms())
    }

    /// Refuses what has waited too long.
    pub(super) fn refuse_held(&mut self) {
        let wait_max_ms = self.credit_wait_max_ms();
        while let Some(held) = self.held.front().copied() {
            let is_held = self.is_held(held);
            if is_held && held.since_ms + wait_max_ms > self.now.monotonic_ms {
                return;
            }
            self.held.pop_front();
            if is_held {
                self.refuse_backlog(held.id);
            }
        }
    }

    /// Refuses all that waits of a connection, none of which logic has seen, and reads on.
    fn refuse_backlog(&mut self, id: ConnectionId) {
        let Some((connection, works)) = self.parts(id) else { return };
        let mut refused = Vec::new();
        while let Some(waiting) = connection.pop_backlog(works) {
            refused.push(waiting.frame.request_id.max(waiting.acknowledge));
        }
        self.counters.backlog_frames -= refused.len() as u64;
        self.counters.dropped[Dropped::CreditWait as usize] += refused.len() as u64;
        let reason = "the service behind the gateway is behind with its work; try again later";
        let (code, retry_after_ms) = (Code::RateLimited, self.settings.retry_after_ms);
        for request_id in refused.iter().copied().filter(|request_id| *request_id != 0) {
            if self.answer_request(id, request_id) {
                self.error(id, request_id, code, reason, retry_after_ms);
            }
        }
        if refused.contains(&0) {
            self.error(id, 0, code, reason, retry_after_ms);
        }
        self.resume_receive(id);
    }

    /// Credit has come back: one frame of each waiting connection in turn, the longest waiting
    /// first.
    pub(super) fn resume_waiting(&mut self) {
        while let Some(held) = self.waiting.front().copied() {
            let id = held.id;
            let next_bytes = if self.is_held(held) {
                self.get(id).and_then(|connection| connection.backlog_next_bytes(&self.works))
            } else {
                None
            };
            let Some(bytes) = next_bytes else {
                self.waiting.pop_front();
                continue;
            };
            if !self.spend_credit(bytes) {
                return;
            }
            self.waiting.pop_front();
            let Some((connection, works)) = self.parts(id) else { continue };
            let Some(waiting) = connection.pop_backlog(works) else { continue };
            let is_last = connection.backlog_frames(works) == 0;
            self.counters.backlog_frames -= 1;
            self.send_to_logic(Outgoing::Frame(waiting));
            if is_last {
                self.resume_receive(id);
            } else {
                self.waiting.push_back(held);
            }
        }
    }

    pub(super) fn resume_receive(&mut self, id: ConnectionId) {
        let now = self.now;
        let Some(connection) = self.get_mut(id) else { return };
        if !connection.has(Facts::PAUSED) {
            return;
        }
        connection.set(Facts::PAUSED, false);
        // While we did not listen, silence proved nothing.
        connection.note_received(now);
        let socket = connection.socket();
        self.effects.push_back(Effect::ResumeReceive { connection: id, socket });
    }

    /// The link has taken a report.
    pub(super) fn acknowledge(&mut self, session_id: u64, request_id: u32) {
        let id = ConnectionId::from_raw(session_id);
        if self.is_active(id) && self.answer_request(id, request_id) {
            let reply = command::reply(command::REPORT);
            self.push_frame(id, reply, Flags::NONE, request_id, b"");
        }
    }
}
