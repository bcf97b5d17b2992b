//! What a peer can do wrong in WebSocket framing, and the close code it is told.

use crate::Code;

/// Why a WebSocket stream was refused. Each ends the connection: the stream cannot be continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebSocketError {
    /// One of the reserved bits is set (RFC 6455 section 5.2).
    #[error("reserved bits are set and no extension was negotiated")]
    ReservedBits,
    /// Opcodes 3 to 7 and 11 to 15.
    #[error("opcode {opcode:#x} is reserved")]
    UnknownOpcode {
        /// What the frame said.
        opcode: u8,
    },
    /// A client's frame without a mask (section 5.1).
    #[error("a client's frames must be masked")]
    Unmasked,
    /// A server's frame with a mask (section 5.1).
    #[error("a server's frames must not be masked")]
    Masked,
    /// A control frame in fragments (section 5.5).
    #[error("control frames must not be fragmented")]
    ControlFragmented,
    /// A control frame above 125 bytes (section 5.5).
    #[error("control frames carry at most 125 bytes")]
    ControlTooLong,
    /// A length not in its shortest form, or with the highest of 64 bits set (section 5.2).
    #[error("the payload length is not in its shortest form")]
    BadLength,
    /// A continuation frame outside a fragmented message (section 5.4).
    #[error("a continuation frame without a message to continue")]
    UnexpectedContinuation,
    /// A new message inside a fragmented one (section 5.4).
    #[error("a new message began before the fragmented one was complete")]
    MessageInterrupted,
    /// A close frame whose payload is a single byte (section 5.5.1).
    #[error("a close frame's payload is empty or at least two bytes")]
    ShortClosePayload,
    /// A close code that must not travel (section 7.4).
    #[error("{code} is not a valid close code")]
    BadCloseCode {
        /// What the frame said.
        code: u16,
    },
    /// A text message or a close reason that is not UTF-8 (section 8.1).
    #[error("text is not valid UTF-8")]
    NotUtf8,
    /// A message above the limit; known from the frame's header, before anything is stored.
    #[error("a message of {bytes} bytes is above the limit of {bytes_max}")]
    TooLarge {
        /// Bytes of the message so far, with the frame that was announced.
        bytes: u64,
        /// The limit.
        bytes_max: usize,
    },
}

impl WebSocketError {
    /// The close code of RFC 6455 section 7.4.1.
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::NotUtf8 => 1007,
            Self::TooLarge { .. } => 1009,
            _ => 1002,
        }
    }

    /// The row of the product's table of codes.
    pub const fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } => Code::TooLarge,
            _ => Code::BadFrame,
        }
    }
}
