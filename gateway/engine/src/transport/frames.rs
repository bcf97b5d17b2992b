//! Whole frames inside a WebSocket binary message; the byte stream of TCP needs no more than
//! [`millrace_protocol::frame::FrameReader`], which the engine uses as it is.

use millrace_protocol::{
    Code,
    frame::{HEADER_BYTES, Header, HeaderError},
};

/// Why the frames of a message were refused. Each ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramesError {
    /// A header was refused.
    Header(HeaderError),
    /// The message ends inside a frame, or is empty.
    Partial,
}

impl FramesError {
    /// The code of the ERROR frame.
    pub const fn code(&self) -> Code {
        match self {
            Self::Header(error) => error.code(),
            Self::Partial => Code::BadFrame,
        }
    }

    /// The request id of the refused frame, if it could be read.
    pub const fn request_id(&self) -> u32 {
        match self {
            Self::Header(error) => error.request_id(),
            Self::Partial => 0,
        }
    }
}

impl std::fmt::Display for FramesError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header(error) => error.fmt(f),
            Self::Partial => f.write_str("a binary message holds one or more whole frames"),
        }
    }
}

/// Calls `on_frame` for every frame of `message`, in order, until it returns `false`.
///
/// # Errors
/// The first frame that is refused; those before it have been handed out.
pub fn read_frames(
    mut message: &[u8],
    body_bytes_max: u32,
    mut on_frame: impl FnMut(Header, &[u8]) -> bool,
) -> Result<(), FramesError> {
    loop {
        let Some((bytes, rest)) = message.split_first_chunk::<HEADER_BYTES>() else {
            return Err(FramesError::Partial);
        };
        let header = Header::decode(bytes, body_bytes_max).map_err(FramesError::Header)?;
        let Some((body, rest)) = rest.split_at_checked(header.body_length as usize) else {
            return Err(FramesError::Partial);
        };
        if !on_frame(header, body) || rest.is_empty() {
            return Ok(());
        }
        message = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::{FramesError, read_frames};
    use millrace_protocol::{
        Code,
        frame::{Flags, write},
    };

    #[test]
    fn a_message_holds_whole_frames_only() {
        let mut message = Vec::new();
        write(&mut message, 1, Flags::NONE, 1, b"one");
        write(&mut message, 2, Flags::NONE, 2, b"");
        let frames = |message: &[u8]| {
            let mut seen = Vec::new();
            let result = read_frames(message, 100, |header, body| {
                seen.push((header.command, body.len()));
                true
            });
            (seen, result)
        };
        assert_eq!(frames(&message), (vec![(1, 3), (2, 0)], Ok(())));
        assert_eq!(frames(&message[..26]), (vec![(1, 3)], Err(FramesError::Partial)));
        assert_eq!(frames(&message[..14]), (vec![], Err(FramesError::Partial)));
        assert_eq!(frames(b""), (vec![], Err(FramesError::Partial)));
        message[19] = 9;
        let (seen, result) = frames(&message);
        assert_eq!(seen.len(), 1);
        assert_eq!(result.expect_err("version 9").code(), Code::UnsupportedVersion);
    }
}
