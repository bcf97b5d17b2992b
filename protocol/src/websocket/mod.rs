//! RFC 6455, the WebSocket protocol, for both roles: bytes in, messages out, and back.
//!
//! - [`MessageReader`] cuts a byte stream into messages and control frames
//! - [`write_frame`], [`write_header`], [`write_close`] write frames
//! - [`read_upgrade`] and its neighbours speak the HTTP/1.1 upgrade
//!
//! No extension is negotiated, so the reserved bits are always zero. What a connection *does* with
//! a ping, a close or an error (answer, flush, close the socket) is its owner's business, not done
//! here.

mod error;
mod mask;
mod reader;
mod upgrade;
mod writer;

use reader::HEADER_BYTES_MAX;

pub use error::WebSocketError;
pub use mask::unmask;
pub use reader::{CloseFrame, Limits, Message, MessageReader};
pub use upgrade::{
    Upgrade, UpgradeError, UpgradeProgress, read_upgrade, read_upgrade_response,
    write_upgrade_refusal, write_upgrade_request, write_upgrade_response,
};
pub use writer::{write_close, write_frame, write_header};

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We accepted the connection: input must be masked, output is not.
    Server,
    /// We opened the connection: input must not be masked, output is.
    Client,
}

/// What a frame is (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A later fragment of a message.
    Continuation = 0x0,
    /// UTF-8 text.
    Text = 0x1,
    /// Bytes.
    Binary = 0x2,
    /// The end of the conversation.
    Close = 0x8,
    /// Asks for a pong.
    Ping = 0x9,
    /// Answers a ping, or says "still here" unasked.
    Pong = 0xA,
}

impl Opcode {
    /// The opcode with this number; 3 to 7 and 11 to 15 are reserved.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0x0 => Some(Self::Continuation),
            0x1 => Some(Self::Text),
            0x2 => Some(Self::Binary),
            0x8 => Some(Self::Close),
            0x9 => Some(Self::Ping),
            0xA => Some(Self::Pong),
            _ => None,
        }
    }

    /// Whether this is a control frame: never fragmented, at most 125 bytes, allowed between the
    /// fragments of a message.
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Whether a close frame may carry this code (RFC 6455 section 7.4 and the IANA registry).
///
/// 1004 is reserved, 1005, 1006 and 1015 never travel, 1016 to 2999 belong to future versions,
/// 3000 to 4999 to libraries and applications.
pub const fn close_code_is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
