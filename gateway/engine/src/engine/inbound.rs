//! What a client sends: from bytes to frames, and each frame to who deals with it.
//!
//! While input is read, the reader is out of the connection, so that dealing with a frame may
//! change everything else.

use millrace_protocol::{
    Code, command,
    frame::{Flags, FrameReader, Header},
    text,
    websocket::{Upgrade, UpgradeError},
};

use super::{Engine, closing::Farewell};
use crate::{
    Dropped, Now,
    connection::{Connection, Facts, Phase},
    effect::ConnectionId,
    transport::{Event, SendQueue as _, TransportError, WebSocketInput, read_frames},
    work::{ConnectionQueue, Input},
};

/// The subprotocol of binary frames.
const SUBPROTOCOL_BINARY: &str = "millrace.v1";
/// The subprotocol of JSON envelopes.
const SUBPROTOCOL_TEXT: &str = "millrace.v1.json";

/// One frame of a client, whatever form it came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming<'a> {
    pub(super) command: u16,
    pub(super) flags: Flags,
    pub(super) request_id: u32,
    pub(super) body: &'a [u8],
}

impl Engine {
    /// Bytes have arrived. They may be changed in place (unmasked).
    pub fn received(&mut self, now: Now, id: ConnectionId, bytes: &mut [u8]) {
        self.now = now;
        let Some((connection, works)) = self.parts(id) else {
            self.counters.stale_calls += 1;
            return;
        };
        let transport = connection.transport();
        let input = connection.is_open().then(|| connection.take_input(works));
        self.counters.traffic_mut(transport).bytes_in += bytes.len() as u64;
        let Some(input) = input else { return };
        let input = match input {
            Input::Tcp(mut reader) => {
                self.received_frames(id, &mut reader, bytes);
                Input::Tcp(reader)
            }
            Input::WebSocket(mut reader) => {
                self.received_websocket(id, &mut reader, bytes);
                Input::WebSocket(reader)
            }
        };
        if let Some((connection, works)) = self.parts(id)
            && connection.is_open()
        {
            connection.keep_input(works, input);
        }
    }

    fn received_frames(&mut self, id: ConnectionId, reader: &mut FrameReader, bytes: &[u8]) {
        let body_bytes_max = self.settings.body_bytes_max;
        let result = reader.read(bytes, body_bytes_max, |header, body| {
            self.binary_frame(id, header, body);
            self.is_open(id)
        });
        if let Err(error) = result {
            let reason = error.to_string();
            let farewell = Farewell::error(error.request_id(), &reason);
            self.close(id, error.code().number(), farewell);
        }
    }

    fn received_websocket(
        &mut self,
        id: ConnectionId,
        reader: &mut WebSocketInput,
        bytes: &mut [u8],
    ) {
        let settings = self.websocket;
        let mut at = 0;
        while let Some((connection, works)) = self.parts(id)
            && connection.is_open()
        {
            let before = connection.queued_bytes(works);
            let mut queue = ConnectionQueue { connection, works };
            let result = reader.read(&settings, &mut queue, &mut bytes[at..]);
            let answered = queue.queued_bytes() - before;
            self.counters.send_queue_bytes += answered as u64;
            match result {
                Err(TransportError::Upgrade(error)) => {
                    self.close(id, error.code().number(), Farewell::Http(error));
                }
                Err(TransportError::WebSocket(error)) => {
                    let reason = error.to_string();
                    self.close(id, error.code().number(), Farewell::error(0, &reason));
                }
                Ok((used, event)) => {
                    at += used;
                    match event {
                        None => break,
                        Some(Event::Upgrade(upgrade)) => self.upgrade(id, reader, &upgrade),
                        Some(Event::Text(text)) => self.text_message(id, text),
                        Some(Event::Binary(message)) => self.binary_message(id, message),
                        Some(Event::Ping { .. } | Event::Pong) => self.control_frame(id),
                        Some(Event::Close(_)) => {
                            self.close(id, Code::Ok.number(), Farewell::Nothing);
                        }
                    }
                }
            }
        }
    }

    fn upgrade(&mut self, id: ConnectionId, reader: &mut WebSocketInput, upgrade: &Upgrade) {
        let origins = &self.settings.allowed_origins;
        let refusal = if upgrade.path != self.settings.websocket_path {
            Some(UpgradeError::Path)
        } else if let Some(origin) = &upgrade.origin
            && !origins.is_empty()
            && !origins.contains(origin)
        {
            Some(UpgradeError::Origin)
        } else {
            None
        };
        if let Some(error) = refusal {
            return self.close(id, error.code().number(), Farewell::Http(error));
        }
        let subprotocol = upgrade.subprotocols.iter().find_map(|offer| match offer.as_str() {
            SUBPROTOCOL_BINARY => Some((SUBPROTOCOL_BINARY, Facts::BINARY_ONLY)),
            SUBPROTOCOL_TEXT => Some((SUBPROTOCOL_TEXT, Facts::TEXT_ONLY)),
            _ => None,
        });
        let Some((connection, works)) = self.parts(id) else { return };
        connection.set(Facts::UPGRADING, false);
        if let Some((_, only)) = subprotocol {
            connection.set(only, true);
            connection.set(Facts::TEXT, only == Facts::TEXT_ONLY);
            connection.set(Facts::JSON, only == Facts::TEXT_ONLY);
        }
        let before = connection.queued_bytes(works);
        let mut queue = ConnectionQueue { connection, works };
        reader.accept(&mut queue, upgrade, subprotocol.map(|(name, _)| name));
        let queued = queue.queued_bytes() - before;
        self.counters.send_queue_bytes += queued as u64;
        self.settle(id);
    }

    fn binary_message(&mut self, id: ConnectionId, message: &[u8]) {
        if self.get(id).is_some_and(|connection| connection.has(Facts::TEXT_ONLY)) {
            let reason = "the subprotocol millrace.v1.json has text messages only";
            return self.close(id, Code::BadFrame.number(), Farewell::error(0, reason));
        }
        let result = read_frames(message, self.settings.body_bytes_max, |header, body| {
            self.binary_frame(id, header, body);
            self.is_open(id)
        });
        if let Err(error) = result {
            let reason = error.to_string();
            let farewell = Farewell::error(error.request_id(), &reason);
            self.close(id, error.code().number(), farewell);
        }
    }

    fn binary_frame(&mut self, id: ConnectionId, header: Header, body: &[u8]) {
        if let Some(connection) = self.get_mut(id) {
            connection.set(Facts::TEXT, false);
        }
        let Header { flags, command, request_id, .. } = header;
        self.incoming(id, Incoming { command, flags, request_id, body });
    }

    fn text_message(&mut self, id: ConnectionId, message: &str) {
        let Some(connection) = self.get_mut(id) else { return };
        if connection.has(Facts::BINARY_ONLY) {
            let reason = "the subprotocol millrace.v1 has binary messages only";
            return self.close(id, Code::BadFrame.number(), Farewell::error(0, reason));
        }
        connection.set(Facts::TEXT, true);
        let envelope = match text::parse(message) {
            Ok(envelope) => envelope,
            Err(error) if error.code() == Code::UnknownCommand => {
                if !self.admit_frame(id, error.request_id(), Flags::JSON) {
                    return;
                }
                let code =
                    if self.is_active(id) { Code::UnknownCommand } else { Code::NotLoggedIn };
                return self.refuse(id, error.request_id(), code, code.sentence());
            }
            Err(error) => {
                let reason = error.to_string();
                let farewell = Farewell::error(error.request_id(), &reason);
                return self.close(id, error.code().number(), farewell);
            }
        };
        let body = envelope.body.as_bytes();
        if body.len() > self.settings.body_bytes_max as usize {
            let farewell = Farewell::error(envelope.request_id, Code::TooLarge.sentence());
            return self.close(id, Code::TooLarge.number(), farewell);
        }
        let command = match envelope.is_reply {
            true => command::reply(envelope.command),
            false => envelope.command,
        };
        let (flags, request_id) = (envelope.flags, envelope.request_id);
        self.incoming(id, Incoming { command, flags, request_id, body });
    }

    /// A ping or a pong: activity, and bounded by the same rate as frames.
    fn control_frame(&mut self, id: ConnectionId) {
        if self.take_token(id) {
            self.settle(id);
        } else {
            self.counters.drop_one(Dropped::RateLimited);
            self.refuse(id, 0, Code::RateLimited, Code::RateLimited.sentence());
        }
    }

    fn take_token(&mut self, id: ConnectionId) -> bool {
        let now = self.now;
        let per_second = self.settings.frames_per_second_max;
        let burst = self.settings.frames_burst_max;
        self.get_mut(id).is_some_and(|connection| {
            let taken = connection.take_token(now, per_second, burst);
            connection.note_received(now);
            taken
        })
    }

    /// What every complete frame goes through first: counted, noted as activity, held against
    /// the rate.
    fn admit_frame(&mut self, id: ConnectionId, request_id: u32, flags: Flags) -> bool {
        let Some(connection) = self.get_mut(id) else { return false };
        if connection.phase == Phase::AwaitingLogin {
            connection.set(Facts::JSON, flags.contains(Flags::JSON));
        }
        let transport = connection.transport();
        self.counters.traffic_mut(transport).messages_in += 1;
        if self.take_token(id) {
            return true;
        }
        self.counters.drop_one(Dropped::RateLimited);
        self.refuse(id, request_id, Code::RateLimited, Code::RateLimited.sentence());
        false
    }

    fn incoming(&mut self, id: ConnectionId, frame: Incoming<'_>) {
        if !self.admit_frame(id, frame.request_id, frame.flags) {
            return;
        }
        if frame.flags.contains(Flags::COMPRESSED) {
            let reason = "compression was not negotiated";
            return self.refuse(id, frame.request_id, Code::BadRequest, reason);
        }
        let Some(phase) = self.get(id).map(|connection| connection.phase) else { return };
        let is_login = frame.command == command::LOGIN;
        match phase {
            Phase::AwaitingLogin if is_login => self.login(id, frame),
            Phase::LoginPending if is_login => {
                let reason = "a login is under way on this connection";
                self.refuse(id, frame.request_id, Code::AlreadyLoggedIn, reason);
            }
            Phase::AwaitingLogin | Phase::LoginPending => {
                let code = Code::NotLoggedIn;
                self.refuse(id, frame.request_id, code, code.sentence());
            }
            Phase::Active if command::is_session_command(frame.command) => {
                self.session_command(id, frame);
            }
            Phase::Active if command::is_reply(frame.command) => {
                let code = Code::UnknownCommand;
                self.refuse(id, frame.request_id, code, code.sentence());
            }
            Phase::Active => self.forward(id, frame),
            Phase::Closing | Phase::Closed => {}
        }
    }

    /// Refuses a frame; too many refusals end the connection.
    pub(super) fn refuse(&mut self, id: ConnectionId, request_id: u32, code: Code, reason: &str) {
        let refusals_max = self.settings.refusals_max;
        let retry_after_ms = match code {
            Code::RateLimited => self.settings.retry_after_ms,
            _ => 0,
        };
        let Some(connection) = self.get_mut(id).filter(|connection| connection.is_open()) else {
            return;
        };
        let is_too_many = connection.refusals >= refusals_max;
        connection.refusals = connection.refusals.saturating_add(1);
        if is_too_many {
            let farewell = Farewell::Error { request_id, reason, retry_after_ms };
            self.close(id, code.number(), farewell);
        } else {
            self.error(id, request_id, code, reason, retry_after_ms);
        }
    }
}

/// Which encoding a body has.
pub(super) fn is_json(frame: Incoming<'_>) -> bool {
    frame.flags.contains(Flags::JSON)
}

/// Whether a connection is to be answered in JSON.
pub(super) fn wants_json(connection: &Connection) -> bool {
    connection.has(Facts::JSON) || connection.has(Facts::TEXT)
}
