//! Client frames on their way to logic: at once while there is credit; else they wait in their
//! connection's backlog and its receive is paused, so that TCP holds the client back. A connection
//! that is held cannot have its heartbeats answered, and would be given up by its client; so what
//! has waited for [`crate::Settings::link_credit_wait_max_ms`] is refused, and the connection is
//! read again.

use bytes::Bytes;
use millrace_protocol::{Code, command, frame::Flags, link::ClientFrame};

use super::{Engine, inbound::Incoming};
use crate::{
    Dropped, Effect,
    connection::Facts,
    effect::ConnectionId,
    link::{Held, Home, Outgoing},
    work::Waiting,
};

impl Engine {
    pub(super) fn forward(&mut self, id: ConnectionId, frame: Incoming<'_>) {
        let Some(connection) = self.get(id) else { return };
        let home = connection.home;
        if home == Home::NONE && !self.is_home_in_sight() {
            if frame.request_id == 0 {
                self.counters.drop_one(Dropped::LogicUnavailable);
            }
            return self.logic_unavailable(id, frame.request_id);
        }
        let frames_max = self.settings.link_backlog_frames_max as usize;
        let bytes_max = self.settings.link_backlog_bytes_max;
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
        if backlog_frames == 0 && self.spend_credit(home, frame.body.len()) {
            return self.send_to_logic(home, Outgoing::Frame(waiting));
        }
        self.wait_for_credit(id, home, waiting);
    }

    fn spend_credit(&mut self, home: Home, body_bytes: usize) -> bool {
        self.links.get_mut(home).is_some_and(|link| link.spend(body_bytes))
    }

    /// Keeps a frame with its connection. Who has no home yet gets in line when it has one.
    fn wait_for_credit(&mut self, id: ConnectionId, home: Home, mut waiting: Waiting) {
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
            self.stand_in_line(home, held);
            if self.credit_wait_max_ms() > 0 {
                self.held.push_back(held);
                self.forget_past_holds();
            }
        }
    }

    /// The link gives it credit in its turn.
    fn stand_in_line(&mut self, home: Home, held: Held) {
        let most = self.holds_max();
        let Some(link) = self.links.get_mut(home) else { return };
        link.waiting_for_credit.push_back(held);
        if link.waiting_for_credit.len() > most {
            let mut waiting = std::mem::take(&mut link.waiting_for_credit);
            waiting.retain(|held| self.is_held_at(home, *held));
            if let Some(link) = self.links.get_mut(home) {
                link.waiting_for_credit = waiting;
            }
        }
    }

    /// A session that was without a home has one now: what waits of it gets in line.
    pub(super) fn stand_in_line_anew(&mut self, home: Home, id: ConnectionId) {
        let Some(pause) = self.get(id).and_then(|c| c.pause(&self.works)) else { return };
        self.stand_in_line(home, Held { since_ms: self.now.monotonic_ms, pause, id });
    }

    /// As many entries of a queue can be of those that are held no more.
    fn holds_max(&self) -> usize {
        64 + 2 * self.connections.len() as usize
    }

    fn is_held_at(&self, home: Home, held: Held) -> bool {
        self.is_held(held) && self.get(held.id).is_some_and(|c| c.home == home)
    }

    /// Whether a connection is still held, and has not been read in between.
    fn is_held(&self, held: Held) -> bool {
        self.get(held.id).and_then(|c| c.pause(&self.works)) == Some(held.pause)
    }

    /// Keeps the queue of those that are held from growing with those that are no more.
    fn forget_past_holds(&mut self) {
        if self.held.len() > self.holds_max() {
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
    pub(super) fn resume_waiting(&mut self, home: Home) {
        while let Some(link) = self.links.get_mut(home)
            && let Some(held) = link.waiting_for_credit.front().copied()
        {
            let id = held.id;
            let next_bytes = if self.is_held_at(home, held) {
                self.get(id).and_then(|connection| connection.backlog_next_bytes(&self.works))
            } else {
                None
            };
            let Some(link) = self.links.get_mut(home) else { return };
            let Some(bytes) = next_bytes else {
                link.waiting_for_credit.pop_front();
                continue;
            };
            if !link.spend(bytes) {
                return;
            }
            link.waiting_for_credit.pop_front();
            let Some((connection, works)) = self.parts(id) else { continue };
            let Some(waiting) = connection.pop_backlog(works) else { continue };
            let is_last = connection.backlog_frames(works) == 0;
            self.counters.backlog_frames -= 1;
            self.send_to_logic(home, Outgoing::Frame(waiting));
            if is_last {
                self.resume_receive(id);
            } else if let Some(link) = self.links.get_mut(home) {
                link.waiting_for_credit.push_back(held);
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
