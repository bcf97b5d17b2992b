//! Bytes to frames and back, for either transport, from the client's side.
//!
//! A [`Wire`] knows the upgrade, masking and control frames of a WebSocket, so that the client
//! above sees the same frames as on TCP. It gives no meaning to any command.

use millrace_protocol::{
    frame::{self, Flags, FrameReader, Header},
    limits,
    websocket::{self, Limits, Message, MessageReader, Opcode, Role},
};

use crate::population::Transport;

const SUBPROTOCOL: &str = "millrace.v1";
const LIMITS: Limits =
    Limits { message_bytes_max: limits::BODY_BYTES_MAX_CEILING as usize + frame::HEADER_BYTES };

/// What the bytes meant.
#[derive(Debug)]
pub enum Event<'a> {
    /// The upgrade was accepted.
    Upgraded,
    /// A frame.
    Frame(Header, &'a [u8]),
    /// A ping, to be answered with [`write_pong`].
    Ping(&'a [u8]),
    /// The peer's close frame, with its code.
    Close(Option<u16>),
}

/// Why the bytes cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The upgrade was refused or is no upgrade.
    #[error("upgrade: {0}")]
    Upgrade(#[from] websocket::UpgradeError),
    /// RFC 6455 was broken.
    #[error("websocket: {0}")]
    WebSocket(#[from] websocket::WebSocketError),
    /// A header was refused.
    #[error("frame: {0}")]
    Header(#[from] frame::HeaderError),
    /// A WebSocket message ended within a frame.
    #[error("a binary message held a part of a frame")]
    PartialFrame,
    /// A text message, though `millrace.v1` was negotiated.
    #[error("a text message on the binary subprotocol")]
    Text,
    /// The server accepted without the subprotocol we asked for.
    #[error("the server did not accept the subprotocol {SUBPROTOCOL}")]
    Subprotocol,
}

/// The reading side of one connection.
#[derive(Debug, Default)]
pub enum Wire {
    /// No connection.
    #[default]
    Closed,
    /// TCP.
    Tcp(FrameReader),
    /// WebSocket before the server's answer.
    Upgrading(Box<Upgrading>),
    /// WebSocket.
    WebSocket(MessageReader),
}

/// A WebSocket that waits for the server's answer.
#[derive(Debug)]
pub struct Upgrading {
    key: [u8; 16],
    head: Vec<u8>,
}

impl Wire {
    /// The codec of a fresh connection; writes the upgrade request if there is one.
    pub fn open(
        transport: Transport,
        host: &str,
        path: &str,
        random: &mut fastrand::Rng,
        out: &mut Vec<u8>,
    ) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp(FrameReader::new()),
            Transport::WebSocket => {
                let mut key = [0; 16];
                random.fill(&mut key);
                websocket::write_upgrade_request(out, host, path, Some(SUBPROTOCOL), &key);
                Self::Upgrading(Box::new(Upgrading { key, head: Vec::new() }))
            }
        }
    }

    /// Reads bytes and calls `on_event` for what is complete. It answers `false` to stop, when
    /// the connection is over.
    ///
    /// # Errors
    /// The bytes break the protocol; the connection cannot go on.
    pub fn read(
        &mut self,
        bytes: &mut [u8],
        mut on_event: impl FnMut(Event<'_>) -> bool,
    ) -> Result<(), WireError> {
        match self {
            Self::Closed => Ok(()),
            Self::Tcp(reader) => {
                let ceiling = limits::BODY_BYTES_MAX_CEILING;
                reader.read(bytes, ceiling, |header, body| on_event(Event::Frame(header, body)))?;
                Ok(())
            }
            Self::Upgrading(upgrading) => {
                let Upgrading { key, head } = upgrading.as_mut();
                head.extend_from_slice(bytes);
                let Some((used, subprotocol)) = websocket::read_upgrade_response(head, key)? else {
                    return Ok(());
                };
                if subprotocol.as_deref() != Some(SUBPROTOCOL) {
                    return Err(WireError::Subprotocol);
                }
                let mut rest = head.split_off(used);
                let mut reader = MessageReader::new();
                let result = if on_event(Event::Upgraded) {
                    read_messages(&mut reader, &mut rest, on_event)
                } else {
                    Ok(())
                };
                *self = Self::WebSocket(reader);
                result
            }
            Self::WebSocket(reader) => read_messages(reader, bytes, on_event),
        }
    }
}

/// Appends one frame, as a binary message of its own on a WebSocket (whose upgrade is complete).
/// `scratch` is working memory, so that no frame needs an allocation of its own.
#[expect(clippy::too_many_arguments, reason = "a frame's fields, and where it goes")]
pub fn write_frame(
    transport: Transport,
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    random: &mut fastrand::Rng,
    command: u16,
    flags: Flags,
    request_id: u32,
    body: &[u8],
) {
    match transport {
        Transport::Tcp => frame::write(out, command, flags, request_id, body),
        Transport::WebSocket => {
            scratch.clear();
            frame::write(scratch, command, flags, request_id, body);
            let mask = random.u32(..).to_ne_bytes();
            websocket::write_frame(out, Opcode::Binary, true, Some(mask), scratch);
        }
    }
}

/// Appends the answer to a ping.
pub fn write_pong(out: &mut Vec<u8>, random: &mut fastrand::Rng, payload: &[u8]) {
    let mask = random.u32(..).to_ne_bytes();
    websocket::write_frame(out, Opcode::Pong, true, Some(mask), payload);
}

/// A close frame, to answer the peer's.
pub fn close_frame(random: &mut fastrand::Rng, code: u16) -> Vec<u8> {
    let mut out = Vec::new();
    websocket::write_close(&mut out, Some(random.u32(..).to_ne_bytes()), code, "");
    out
}

fn read_messages(
    reader: &mut MessageReader,
    bytes: &mut [u8],
    mut on_event: impl FnMut(Event<'_>) -> bool,
) -> Result<(), WireError> {
    let mut from = 0;
    loop {
        let (used, message) = reader.read(Role::Client, &LIMITS, &mut bytes[from..])?;
        from += used;
        let Some(message) = message else { return Ok(()) };
        let go_on = match message {
            Message::Binary(payload) => read_frames(payload, &mut on_event)?,
            Message::Text(_) => return Err(WireError::Text),
            Message::Ping(payload) => on_event(Event::Ping(payload)),
            Message::Pong(_) => true,
            Message::Close(close) => on_event(Event::Close(close.map(|close| close.code))),
        };
        if !go_on {
            return Ok(());
        }
    }
}

/// The whole frames of one binary message.
fn read_frames(
    payload: &[u8],
    on_event: &mut impl FnMut(Event<'_>) -> bool,
) -> Result<bool, WireError> {
    let mut reader = FrameReader::new();
    let mut go_on = true;
    reader.read(payload, limits::BODY_BYTES_MAX_CEILING, |header, body| {
        go_on = on_event(Event::Frame(header, body));
        go_on
    })?;
    if reader.is_partial() { Err(WireError::PartialFrame) } else { Ok(go_on) }
}
