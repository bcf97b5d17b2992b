//! The session commands of a logged-in client, answered at the edge: HEARTBEAT, LOGOUT, REFRESH.
//!
//! They are always answered, also with request id 0.

use millrace_protocol::{
    Code,
    command::{self, HEARTBEAT, LOGIN, LOGOUT, REFRESH},
    frame::Flags,
    link::{self, gateway_event::Kind},
    session,
};
use prost::Message as _;

use super::{
    Engine,
    closing::Farewell,
    inbound::{Incoming, is_json},
};
use crate::{
    Dropped,
    effect::ConnectionId,
    identity::{Claims, Identity},
    link::{Home, Outgoing},
};

impl Engine {
    pub(super) fn session_command(&mut self, id: ConnectionId, frame: Incoming<'_>) {
        let request_id = frame.request_id;
        match frame.command {
            HEARTBEAT => {
                self.push_frame(id, command::reply(HEARTBEAT), Flags::NONE, request_id, b"");
            }
            LOGOUT => {
                self.push_frame(id, command::reply(LOGOUT), Flags::NONE, request_id, b"");
                self.close(id, Code::Ok.number(), Farewell::Close);
            }
            REFRESH => self.refresh(id, frame),
            LOGIN => {
                let code = Code::AlreadyLoggedIn;
                self.refuse(id, request_id, code, code.sentence());
            }
            _ => {
                let code = Code::UnknownCommand;
                self.refuse(id, request_id, code, code.sentence());
            }
        }
    }

    fn refresh(&mut self, id: ConnectionId, frame: Incoming<'_>) {
        let request_id = frame.request_id;
        let parsed = if is_json(frame) {
            serde_json::from_slice(frame.body).map_err(|error| error.to_string())
        } else {
            session::Refresh::decode(frame.body).map_err(|error| error.to_string())
        };
        let session::Refresh { token } = match parsed {
            Ok(refresh) => refresh,
            Err(reason) => return self.refuse(id, request_id, Code::BadRequest, &reason),
        };
        let outbox_events_max = self.settings.link_outbox_events_max;
        let home = self.get(id).map_or(Home::NONE, |connection| connection.home);
        match self.links.get(home) {
            Some(link) if link.waiting() < outbox_events_max => {}
            _ => return self.logic_unavailable(id, request_id),
        }
        if !self.note_request(id, request_id) {
            return;
        }
        let request = link::RefreshRequest { session_id: id.raw(), request_id, token };
        self.send_to_logic(home, Outgoing::Event(Kind::Refresh(request)));
    }

    /// Logic has decided about a newer token. A refusal leaves the session as it was.
    pub(super) fn refresh_result(&mut self, result: link::RefreshResult) {
        let id = ConnectionId::from_raw(result.session_id);
        self.catch_up(id);
        if !self.is_active(id) {
            return self.counters.drop_one(Dropped::SessionUnknown);
        }
        if result.request_id != 0 && !self.answer_request(id, result.request_id) {
            return self.counters.drop_one(Dropped::RequestUnknown);
        }
        if result.code == Code::Ok.number()
            && let Some(claims) = self.claims(id)
        {
            let expires_at_ms = result.expires_at_ms;
            self.set_claims(id, Some(Claims { expires_at_ms, ..claims }));
            self.arm_active(id);
        }
        let reply = session::RefreshReply {
            code: result.code,
            reason: result.reason,
            expires_at_ms: result.expires_at_ms,
        };
        self.push_message(id, command::reply(REFRESH), result.request_id, &reply);
    }

    /// Notes a request in flight; refuses it if there are too many.
    pub(super) fn note_request(&mut self, id: ConnectionId, request_id: u32) -> bool {
        if request_id == 0 {
            return true;
        }
        let requests_max = self.settings.requests_in_flight_max as usize;
        let Some((connection, works)) = self.parts(id) else { return false };
        if connection.requests(works) >= requests_max {
            let reason = "too many requests without an answer";
            self.refuse(id, request_id, Code::RateLimited, reason);
            return false;
        }
        connection.note_request(works, request_id);
        self.counters.requests_in_flight += 1;
        self.request_probe.begin(id.raw(), request_id, self.now.monotonic_ms);
        true
    }

    /// Notes that a request is answered now; false if it was not in flight.
    pub(super) fn answer_request(&mut self, id: ConnectionId, request_id: u32) -> bool {
        let found = self
            .parts(id)
            .is_some_and(|(connection, works)| connection.answer_request(works, request_id));
        self.counters.requests_in_flight -= u64::from(found);
        let (now_ms, durations) = (self.now.monotonic_ms, &mut self.counters.request_durations);
        self.request_probe.end(id.raw(), request_id, now_ms, durations);
        found
    }

    /// What the session was told and has claimed; `None` before LOGIN.
    pub(super) fn claims(&self, id: ConnectionId) -> Option<Claims> {
        Identity::read(self.identities.get(self.get(id)?.identity)).claims
    }

    pub(super) fn set_claims(&mut self, id: ConnectionId, claims: Option<Claims>) {
        let found = self.connections.get_mut(id.slot(), id.generation());
        let Some(connection) = found else { return };
        let peer = Identity::peer(self.identities.get(connection.identity));
        self.scratch.clear();
        Identity { peer, claims }.write(&mut self.scratch);
        self.identities.replace(&mut connection.identity, &self.scratch);
    }

    /// ERROR `logic_unavailable` with the time to wait.
    pub(super) fn logic_unavailable(&mut self, id: ConnectionId, request_id: u32) {
        let code = Code::LogicUnavailable;
        self.error(id, request_id, code, code.sentence(), self.settings.retry_after_ms);
    }
}
