//! LOGIN: the claims go to logic, and its decision makes the session or ends the connection.
//!
//! Logic alone decides who somebody is; of several the one that has the fewest sessions. While logic is
//! away a login is refused with
//! `logic_unavailable`, which does not end the connection: the client may try again until the
//! login deadline.

use millrace_protocol::{
    Code, command,
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
    Dropped, TransportKind,
    connection::{Facts, Phase},
    effect::ConnectionId,
    identity::{Claims, Identity},
    link::{Home, Outgoing},
};

/// Longest claim that is kept with the session (device, platform): bounds what an idle session
/// weighs.
const CLAIM_BYTES_MAX: usize = 256;

impl Engine {
    pub(super) fn login(&mut self, id: ConnectionId, frame: Incoming<'_>) {
        let request_id = frame.request_id;
        let parsed = if is_json(frame) {
            serde_json::from_slice(frame.body).map_err(|error| error.to_string())
        } else {
            session::Login::decode(frame.body).map_err(|error| error.to_string())
        };
        let login = match parsed {
            Ok(login) => login,
            Err(reason) => return self.refuse(id, request_id, Code::BadRequest, &reason),
        };
        if login.device_id.len().max(login.platform.len()) > CLAIM_BYTES_MAX {
            let reason = format!("device_id and platform have at most {CLAIM_BYTES_MAX} bytes");
            return self.refuse(id, request_id, Code::BadRequest, &reason);
        }
        if self.draining.is_some() {
            let code = Code::Draining;
            return self.refuse_login(id, request_id, code.number(), code.sentence(), 0);
        }
        let is_full =
            self.counters.logins_in_flight >= u64::from(self.settings.logins_in_flight_max);
        let home = self.home_for_login(id);
        if home == Home::NONE || is_full {
            let code = Code::LogicUnavailable;
            let reason =
                if is_full { "too many logins are under way; try again" } else { code.sentence() };
            let retry_after_ms = self.settings.retry_after_ms;
            return self.refuse_login(id, request_id, code.number(), reason, retry_after_ms);
        }

        let Some((connection, works)) = self.parts(id) else { return };
        connection.phase = Phase::LoginPending;
        connection.home = home;
        connection.note_request(works, request_id);
        let transport = transport_on_link(connection.transport());
        let identity = connection.identity;
        let peer = Identity::peer(self.identities.get(identity));
        let claims = Claims {
            device_id: login.device_id.clone(),
            platform: login.platform.clone(),
            is_json: is_json(frame),
            ..Claims::default()
        };
        self.set_claims(id, Some(claims));
        let request = link::LoginRequest {
            session_id: id.raw(),
            user_id: login.user_id,
            token: login.token,
            device_id: login.device_id,
            platform: login.platform,
            client_version: login.client_version,
            timestamp_ms: login.timestamp_ms,
            nonce: login.nonce,
            resume_token: login.resume_token,
            remote_address: peer.to_string(),
            transport: transport.into(),
            encoding: encoding_on_link(is_json(frame)).into(),
        };
        self.counters.logins_in_flight += 1;
        self.login_probe.begin(id.raw(), 0, self.now.monotonic_ms);
        if let Some(link) = self.links.get_mut(home) {
            link.sessions += 1;
        }
        self.send_to_logic(home, Outgoing::Event(Kind::Login(request)));
    }

    /// Logic has decided.
    pub(super) fn login_result(&mut self, home: Home, result: link::LoginResult) {
        let id = ConnectionId::from_raw(result.session_id);
        let asked = self.abandoned_logins.get(&id).map(|(_, asked)| *asked);
        let asked = asked.or_else(|| {
            let pending = self.get(id).filter(|c| c.phase == Phase::LoginPending)?;
            Some(pending.home)
        });
        if asked.is_some_and(|asked| asked != home) {
            return self.counters.drop_one(Dropped::LinkContract);
        }
        let (now_ms, durations) = (self.now.monotonic_ms, &mut self.counters.login_durations);
        self.login_probe.end(id.raw(), 0, now_ms, durations);
        if let Some((why, _)) = self.abandoned_logins.remove(&id) {
            self.counters.logins_in_flight -= 1;
            if result.code == Code::Ok.number() {
                // The client is gone already: logic must not be left with a session of nobody.
                self.tell_session_ended(home, id, why);
            }
            return;
        }
        let now = self.now;
        let defaults = (self.settings.heartbeat_interval_ms, self.settings.idle_timeout_ms);
        let pending = self.parts(id).filter(|(c, _)| c.phase == Phase::LoginPending);
        let Some((connection, works)) = pending else {
            self.counters.drop_one(Dropped::SessionUnknown);
            return;
        };
        let request_id = connection.take_requests(works).first().copied().unwrap_or(0);
        self.counters.logins_in_flight -= 1;
        if result.code != Code::Ok.number() {
            let sentence = Code::from_number(result.code).unwrap_or(Code::Kicked).sentence();
            let reason = if result.reason.is_empty() { sentence } else { &result.reason };
            let retry_after_ms = result.retry_after_ms;
            return self.refuse_login(id, request_id, result.code, reason, retry_after_ms);
        }

        let latest_broadcast = self.fan_outs.latest();
        let Some(connection) = self.get_mut(id) else { return };
        let or = |value, default| if value == 0 { default } else { value };
        let heartbeat_interval_ms = or(result.heartbeat_interval_ms, defaults.0);
        let idle_timeout_ms = or(result.idle_timeout_ms, defaults.1);
        connection.phase = Phase::Active;
        connection.broadcasts_seen = latest_broadcast;
        connection.refusals = 0;
        connection.note_received(now);
        let claims = Claims {
            user_id: result.user_id,
            logged_in_at_ms: now.unix_ms,
            expires_at_ms: result.expires_at_ms,
            idle_timeout_ms,
            state: result.state,
            ..self.claims(id).unwrap_or_default()
        };
        self.set_claims(id, Some(claims));
        let reply = session::LoginReply {
            code: Code::Ok.number(),
            reason: String::new(),
            session_id: id.raw(),
            server_time_ms: now.unix_ms,
            heartbeat_interval_ms,
            idle_timeout_ms,
            body_bytes_max: self.settings.body_bytes_max,
            resume_token: result.resume_token,
        };
        self.counters.logins += 1;
        self.counters.sessions += 1;
        self.push_message(id, command::reply(command::LOGIN), request_id, &reply);
        self.arm_active(id);
    }

    /// Says no: LoginReply, then ERROR with the same code, then the end; but `logic_unavailable`
    /// lets the client try again.
    pub(super) fn refuse_login(
        &mut self,
        id: ConnectionId,
        request_id: u32,
        code: u32,
        reason: &str,
        retry_after_ms: u32,
    ) {
        let known = Code::from_number(code).unwrap_or(Code::Kicked);
        self.counters.logins_refused[known as usize] += 1;
        // First back to where another LOGIN is possible, so that an end of the connection from
        // here on does not wait for a result that has arrived.
        self.leave_home(id);
        let Some(connection) = self.get_mut(id) else { return };
        connection.phase = Phase::AwaitingLogin;
        self.set_claims(id, None);
        let reply = session::LoginReply {
            code,
            reason: reason.to_owned(),
            server_time_ms: self.now.unix_ms,
            ..session::LoginReply::default()
        };
        self.push_message(id, command::reply(command::LOGIN), request_id, &reply);
        if code == Code::LogicUnavailable.number() {
            self.error(id, request_id, known, reason, retry_after_ms);
        } else {
            self.close(id, code, Farewell::Error { request_id, reason, retry_after_ms });
        }
    }

    /// The link is gone: nobody decides any more.
    pub(super) fn fail_login(&mut self, id: ConnectionId) {
        let Some((connection, works)) = self.parts(id) else { return };
        let request_id = connection.take_requests(works).first().copied().unwrap_or(0);
        self.counters.logins_in_flight -= 1;
        let code = Code::LogicUnavailable;
        let retry_after_ms = self.settings.retry_after_ms;
        self.refuse_login(id, request_id, code.number(), code.sentence(), retry_after_ms);
    }

    /// How this session wants its bodies.
    pub(super) fn encoding_is_json(&self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(|connection| connection.has(Facts::JSON))
    }
}

pub(super) const fn transport_on_link(transport: TransportKind) -> link::Transport {
    match transport {
        TransportKind::Tcp => link::Transport::Tcp,
        TransportKind::WebSocket => link::Transport::Websocket,
    }
}

pub(super) const fn encoding_on_link(is_json: bool) -> link::Encoding {
    if is_json { link::Encoding::Json } else { link::Encoding::Protobuf }
}
