//! The frame: a fixed header of 12 bytes and a body.
//!
//! [`Header`] is the codec of the header; [`FrameReader`] cuts a byte stream (TCP) into frames.
//! Bodies are never interpreted here.

use crate::{Code, limits};

/// Size of the fixed header.
pub const HEADER_BYTES: usize = 12;

/// The protocol version this crate speaks.
pub const VERSION: u8 = 1;

/// The header's flag bits. Bits 4 to 7 are always zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// No flag set.
    pub const NONE: Self = Self(0);
    /// The body is JSON.
    pub const JSON: Self = Self(1);
    /// The body is compressed.
    pub const COMPRESSED: Self = Self(2);
    /// The sender sends this again.
    pub const RETRANSMISSION: Self = Self(4);
    /// The message is not to be stored.
    pub const NO_STORE: Self = Self(8);

    const KNOWN: u8 = 0x0F;

    /// The flags in a byte, or `None` if an unknown bit is set.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits & !Self::KNOWN == 0 { Some(Self(bits)) } else { None }
    }

    /// The byte on the wire.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of flags.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A frame's fixed header (version 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes after the header.
    pub body_length: u32,
    /// See [`Flags`].
    pub flags: Flags,
    /// See [`crate::command`].
    pub command: u16,
    /// Chosen by the sender, echoed in the reply; 0 wants no reply.
    pub request_id: u32,
}

/// Why a header was refused. Each ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Byte 4 is not 1.
    #[error("protocol version {version} is not supported; this server speaks version 1")]
    UnsupportedVersion {
        /// What byte 4 said.
        version: u8,
        /// The frame's request id, for the answer.
        request_id: u32,
    },
    /// One of the flag bits 4 to 7 is set.
    #[error("flag bits 4 to 7 must be zero, found {flags:#04x}")]
    UnknownFlags {
        /// What byte 5 said.
        flags: u8,
        /// The frame's request id, for the answer.
        request_id: u32,
    },
    /// `body_length` is above the limit.
    #[error("a body of {body_length} bytes is above the limit of {body_bytes_max}")]
    TooLarge {
        /// What the header announced.
        body_length: u32,
        /// The limit of this connection.
        body_bytes_max: u32,
        /// The frame's request id, for the answer.
        request_id: u32,
    },
}

impl HeaderError {
    /// The code of the ERROR frame.
    pub const fn code(&self) -> Code {
        match self {
            Self::UnsupportedVersion { .. } => Code::UnsupportedVersion,
            Self::UnknownFlags { .. } => Code::BadFrame,
            Self::TooLarge { .. } => Code::TooLarge,
        }
    }

    /// The request id of the refused frame.
    pub const fn request_id(&self) -> u32 {
        match self {
            Self::UnsupportedVersion { request_id, .. }
            | Self::UnknownFlags { request_id, .. }
            | Self::TooLarge { request_id, .. } => *request_id,
        }
    }
}

impl Header {
    /// Reads a header. The version is checked first, then the flags, then the length.
    pub fn decode(bytes: &[u8; HEADER_BYTES], body_bytes_max: u32) -> Result<Self, HeaderError> {
        let [l0, l1, l2, l3, version, flags, c0, c1, r0, r1, r2, r3] = *bytes;
        let request_id = u32::from_be_bytes([r0, r1, r2, r3]);
        if version != VERSION {
            return Err(HeaderError::UnsupportedVersion { version, request_id });
        }
        let Some(known) = Flags::from_bits(flags) else {
            return Err(HeaderError::UnknownFlags { flags, request_id });
        };
        let body_length = u32::from_be_bytes([l0, l1, l2, l3]);
        if body_length > body_bytes_max {
            return Err(HeaderError::TooLarge { body_length, body_bytes_max, request_id });
        }
        Ok(Self { body_length, flags: known, command: u16::from_be_bytes([c0, c1]), request_id })
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.body_length.to_be_bytes());
        bytes[4] = VERSION;
        bytes[5] = self.flags.bits();
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.request_id.to_be_bytes());
        bytes
    }
}

/// Appends a whole frame to `out`.
///
/// # Panics
/// If the body is above [`limits::BODY_BYTES_MAX_CEILING`]; that is our mistake, never a peer's.
pub fn write(out: &mut Vec<u8>, command: u16, flags: Flags, request_id: u32, body: &[u8]) {
    assert!(
        body.len() <= limits::BODY_BYTES_MAX_CEILING as usize,
        "a frame body above the ceiling"
    );
    let header = Header { body_length: body.len() as u32, flags, command, request_id };
    out.reserve(HEADER_BYTES + body.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(body);
}

/// Cuts a byte stream into frames. Between frames it owns no buffer: 8 bytes when idle.
///
/// Invariant: `partial` is `None` exactly when the stream stands at a frame boundary.
#[derive(Debug, Default)]
pub struct FrameReader {
    #[expect(clippy::box_collection, reason = "8 bytes instead of 24 in every idle connection")]
    partial: Option<Box<Vec<u8>>>,
}

impl FrameReader {
    /// A reader at the start of a stream.
    pub const fn new() -> Self {
        Self { partial: None }
    }

    /// Whether bytes of an unfinished frame are held.
    pub const fn is_partial(&self) -> bool {
        self.partial.is_some()
    }

    /// Bytes held for an unfinished frame.
    pub fn buffered_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.len())
    }

    /// Reads `input` and calls `on_frame` for every complete frame, in order, without copying
    /// those that lie whole within `input`. `on_frame` returns `false` to stop; the rest of the
    /// input is then discarded, which is right only when the connection is about to end.
    ///
    /// # Errors
    /// The first header that is refused; the stream cannot be continued after it.
    pub fn read(
        &mut self,
        mut input: &[u8],
        body_bytes_max: u32,
        mut on_frame: impl FnMut(Header, &[u8]) -> bool,
    ) -> Result<(), HeaderError> {
        if let Some(mut partial) = self.partial.take() {
            take_until(&mut partial, &mut input, HEADER_BYTES);
            let Some((bytes, _)) = partial.split_first_chunk::<HEADER_BYTES>() else {
                self.partial = Some(partial);
                return Ok(());
            };
            let header = Header::decode(bytes, body_bytes_max)?;
            let whole = HEADER_BYTES + header.body_length as usize;
            take_until(&mut partial, &mut input, whole);
            if partial.len() < whole {
                self.partial = Some(partial);
                return Ok(());
            }
            if !on_frame(header, &partial[HEADER_BYTES..]) {
                return Ok(());
            }
        }
        while let Some((bytes, rest)) = input.split_first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(bytes, body_bytes_max)?;
            let Some((body, rest)) = rest.split_at_checked(header.body_length as usize) else {
                break;
            };
            input = rest;
            if !on_frame(header, body) {
                return Ok(());
            }
        }
        if !input.is_empty() {
            self.partial = Some(Box::new(input.to_vec()));
        }
        Ok(())
    }
}

/// Moves bytes from `input` to `partial` until it holds `want`, or the input is used up.
fn take_until(partial: &mut Vec<u8>, input: &mut &[u8], want: usize) {
    let missing = want.saturating_sub(partial.len()).min(input.len());
    let (head, rest) = input.split_at(missing);
    partial.extend_from_slice(head);
    *input = rest;
}

#[cfg(test)]
mod tests {
    use super::{Flags, FrameReader, HEADER_BYTES, Header, HeaderError, write};

    #[test]
    fn a_header_survives_a_round_trip() {
        let header = Header { body_length: 7, flags: Flags::JSON, command: 0x0201, request_id: 9 };
        assert_eq!(header.encode(), [0, 0, 0, 7, 1, 1, 2, 1, 0, 0, 0, 9]);
        assert_eq!(Header::decode(&header.encode(), 7), Ok(header));
    }

    #[test]
    fn refusals_come_in_the_order_version_flags_length() {
        let mut bytes = [0xFF; HEADER_BYTES];
        let refuse = |bytes: &[u8; HEADER_BYTES]| Header::decode(bytes, 100).expect_err("refused");
        assert!(matches!(refuse(&bytes), HeaderError::UnsupportedVersion { version: 255, .. }));
        bytes[4] = 1;
        assert!(matches!(refuse(&bytes), HeaderError::UnknownFlags { flags: 255, .. }));
        bytes[5] = 0;
        assert!(matches!(refuse(&bytes), HeaderError::TooLarge { body_length: u32::MAX, .. }));
    }

    #[test]
    fn frames_arrive_whole_however_the_stream_is_split() {
        let mut stream = Vec::new();
        write(&mut stream, 1, Flags::NONE, 1, b"");
        write(&mut stream, 2, Flags::JSON, 2, b"hello");
        write(&mut stream, 3, Flags::NONE, 3, &[7; 300]);
        for step in 1..=stream.len() {
            let mut reader = FrameReader::new();
            let mut seen = Vec::new();
            for chunk in stream.chunks(step) {
                reader
                    .read(chunk, 1000, |header, body| {
                        seen.push((header.command, body.to_vec()));
                        true
                    })
                    .expect("valid frames");
            }
            assert_eq!(seen, [(1, vec![]), (2, b"hello".to_vec()), (3, vec![7; 300])]);
            assert!(!reader.is_partial());
        }
    }
}
