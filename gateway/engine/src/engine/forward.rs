//! Client frames on their way to logic: at once while there is credit; else they wait in their
//! connection's backlog and its receive is paused, so that TCP holds the client back.

use bytes::Bytes;
use millrace_protocol::{Code, command, frame::Flags, link::ClientFrame};

use super::{Engine, inbound::Incoming};
use crate::{
    Dropped, Effect, connection::Facts, effect::ConnectionId, link::Outgoing, work::Waiting,
};

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
        };
        if backlog_frames == 0 && self.spend_credit(frame.body.len()) {
            return self.send_to_logic(Outgoing::Frame(waiting));
        }
        self.wait_for_credit(id, waiting, backlog_frames == 0);
    }

    fn spend_credit(&mut self, body_bytes: usize) -> bool {
        self.link.as_mut().is_some_and(|link| link.spend(body_bytes))
    }

    fn wait_for_credit(&mut self, id: ConnectionId, waiting: Waiting, is_first: bool) {
        let Some((connection, works)) = self.parts(id) else { return };
        connection.push_backlog(works, waiting);
        let socket = connection.socket();
        let pause = !connection.has(Facts::PAUSED);
        connection.set(Facts::PAUSED, true);
        self.counters.backlog_frames += 1;
        if pause {
            self.counters.receive_pauses += 1;
            self.effects.push_back(Effect::PauseReceive { connection: id, socket });
        }
        if is_first {
            self.waiting.push_back(id);
            self.forget_gone_waiters();
        }
    }

    /// Keeps the queue of waiting connections from growing with those that are gone.
    fn forget_gone_waiters(&mut self) {
        if self.waiting.len() > 64 + 2 * self.connections.len() as usize {
            let mut waiting = std::mem::take(&mut self.waiting);
            waiting.retain(|id| self.get(*id).is_some_and(|c| c.backlog_frames(&self.works) > 0));
            self.waiting = waiting;
        }
    }

    /// Credit has come back: one frame of each waiting connection in turn, the longest waiting
    /// first.
    pub(super) fn resume_waiting(&mut self) {
        while let Some(id) = self.waiting.front().copied() {
            let next_bytes =
                self.get(id).and_then(|connection| connection.backlog_next_bytes(&self.works));
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
                self.waiting.push_back(id);
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
