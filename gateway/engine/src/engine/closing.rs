//! How a connection ends: it is told why, its queue is sent, its write side is shut down, what
//! still arrives is discarded until the peer's end or the linger, and then the socket is closed.
//! So the farewell is not destroyed by a reset.

use millrace_protocol::{
    Code, command, session,
    websocket::{UpgradeError, write_close, write_upgrade_refusal},
};

use super::Engine;
use crate::{
    Effect, Now,
    arena::Record,
    connection::{Facts, Phase},
    effect::ConnectionId,
    link::Home,
};

/// What a connection is told when it ends. On WebSocket a close frame follows, except after
/// [`Farewell::Nothing`]; before the upgrade it is an HTTP response instead.
#[derive(Clone, Copy, Debug)]
pub(super) enum Farewell<'a> {
    /// Nothing: the peer has gone, or was answered already.
    Nothing,
    /// That the connection ends in good order.
    Close,
    /// An ERROR frame.
    Error { request_id: u32, reason: &'a str, retry_after_ms: u32 },
    /// A KICK frame.
    Kick { reason: &'a str },
    /// The refusal of an upgrade.
    Http(UpgradeError),
}

impl<'a> Farewell<'a> {
    /// An ERROR frame without a time to wait.
    pub(super) const fn error(request_id: u32, reason: &'a str) -> Self {
        Self::Error { request_id, reason, retry_after_ms: 0 }
    }
}

impl Engine {
    /// Nothing more will be received: the peer's end (FIN), or an error.
    pub fn receive_ended(&mut self, now: Now, id: ConnectionId) {
        self.now = now;
        let Some(connection) = self.get_mut(id) else {
            self.counters.stale_calls += 1;
            return;
        };
        connection.set(Facts::RECEIVE_ENDED, true);
        self.close(id, Code::PeerGone.number(), Farewell::Nothing);
        self.settle(id);
    }

    /// Ends a connection that is open; one that ends already is left alone.
    ///
    /// `code` may be a number that the table does not know, when logic said so.
    pub(super) fn close(&mut self, id: ConnectionId, code: u32, farewell: Farewell<'_>) {
        let known = Code::from_number(code).unwrap_or(Code::Kicked);
        let Some((connection, works)) = self.parts(id) else { return };
        let phase = match connection.phase {
            Phase::Closing | Phase::Closed => return,
            phase => phase,
        };
        connection.phase = Phase::Closing;
        connection.code = known;
        connection.discard_input(works);
        let socket = connection.socket();
        let resume = connection.has(Facts::PAUSED);
        connection.set(Facts::PAUSED, false);
        connection.set(Facts::GAP, false);
        let is_receiving = !connection.has(Facts::RECEIVE_ENDED);
        if resume && is_receiving {
            self.effects.push_back(Effect::ResumeReceive { connection: id, socket });
        }

        if phase == Phase::LoginPending {
            let home = self.leave_home(id);
            self.abandoned_logins.insert(id, (code, home));
        }
        if phase == Phase::Active {
            self.end_session(id, code, known);
        }
        self.forget_work(id, phase);

        self.say_farewell(id, code, known, farewell);
        let linger = u64::from(self.settings.linger_ms);
        self.timers.arm(id.slot(), self.now.monotonic_ms + linger);
        self.settle(id);
    }

    /// Takes a session out of the books and tells the logic it is at home with. While there is none,
    /// nobody is to be told: it is missing in the next list.
    fn end_session(&mut self, id: ConnectionId, code: u32, known: Code) {
        self.counters.sessions -= 1;
        self.counters.sessions_ended[known as usize] += 1;
        let rooms = self.get(id).map_or(Record::NONE, |connection| connection.rooms);
        let held = self.memberships.of(rooms).len();
        for last in (0..held).rev() {
            self.leave_room_at(id, last);
        }
        self.set_claims(id, None);
        let home = self.leave_home(id);
        if home == Home::NONE {
            self.counters.sessions_homeless -= 1;
        }
        self.tell_session_ended(home, id, code);
    }

    /// Lets go of requests and backlog: the end of the connection is their answer.
    fn forget_work(&mut self, id: ConnectionId, phase: Phase) {
        let Some((connection, works)) = self.parts(id) else { return };
        let requests = connection.take_requests(works).len() as u64;
        let mut frames = 0;
        while connection.pop_backlog(works).is_some() {
            frames += 1;
        }
        self.counters.backlog_frames -= frames;
        // Before the login, the only one is LOGIN itself, which is not counted.
        if phase == Phase::Active {
            self.counters.requests_in_flight -= requests;
        }
    }

    fn say_farewell(&mut self, id: ConnectionId, code: u32, known: Code, farewell: Farewell<'_>) {
        let Some(connection) = self.get_mut(id) else { return };
        let is_upgrading = connection.has(Facts::UPGRADING);
        let is_websocket = connection.has(Facts::WEBSOCKET);
        match farewell {
            Farewell::Nothing => return,
            Farewell::Http(error) => {
                self.push_bytes(id, |out| write_upgrade_refusal(out, &error));
                return;
            }
            _ if is_upgrading => {
                let error = UpgradeError::Refused(known);
                self.push_bytes(id, |out| write_upgrade_refusal(out, &error));
                return;
            }
            Farewell::Close => {}
            Farewell::Error { request_id, reason, retry_after_ms } => {
                let error = session::Error { code, reason: reason.to_owned(), retry_after_ms };
                self.counters.refused[known as usize] += 1;
                self.push_message(id, command::ERROR, request_id, &error);
            }
            Farewell::Kick { reason } => {
                let kick = session::Kick { code, reason: reason.to_owned() };
                self.push_message(id, command::KICK, 0, &kick);
            }
        }
        if is_websocket {
            let close_code = known.websocket_close_code();
            self.push_bytes(id, |out| write_close(out, None, close_code, known.label()));
        }
    }

    /// Asks the owner to close the socket; whatever waits is given up.
    pub(super) fn emit_close(&mut self, id: ConnectionId) {
        let Some((connection, works)) = self.parts(id) else { return };
        if connection.phase == Phase::Closed {
            return;
        }
        connection.phase = Phase::Closed;
        let socket = connection.socket();
        let discarded = connection.clear_queue(works) as u64;
        self.counters.send_queue_bytes -= discarded;
        self.timers.cancel(id.slot());
        self.effects.push_back(Effect::Close { connection: id, socket });
    }
}
