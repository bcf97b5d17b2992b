//! Cuts a WebSocket byte stream into messages and control frames, whatever the stream's pieces.
//!
//! The common case costs nothing: a whole unfragmented frame inside the input is unmasked in place
//! and borrowed. Only what is unfinished is copied, into one box that exists while it is needed.
//! Answering (pong, close) is not done here.

use super::{Opcode, Role, WebSocketError, close_code_is_valid, unmask};
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;

/// Largest frame header: two bytes, a 64-bit length, a mask key.
pub(super) const HEADER_BYTES_MAX: usize = 14;

/// What a reader accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message, over all of its fragments.
    pub message_bytes_max: usize,
}

/// One complete item of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text message; always valid UTF-8.
    Text(&'a str),
    /// A binary message.
    Binary(&'a mut [u8]),
    /// Answer it with a pong of the same payload.
    Ping(&'a [u8]),
    /// The answer to a ping, or unasked for.
    Pong(&'a [u8]),
    /// The peer sends nothing after this. `None`: without code and reason.
    Close(Option<CloseFrame<'a>>),
}

/// The payload of a close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseFrame<'a> {
    /// A code that may travel (RFC 6455 section 7.4).
    pub code: u16,
    /// At most 123 bytes.
    pub reason: &'a str,
}

/// Reads one connection's stream. Eight bytes while nothing is unfinished.
#[derive(Debug, Default)]
pub struct MessageReader {
    unfinished: Option<Box<Unfinished>>,
}

/// What is kept between two calls.
///
/// Invariant: `message` holds the payload of the data message in progress, of all its frames so
/// far; `control` that of a control frame in progress. Both are unmasked.
#[derive(Debug)]
struct Unfinished {
    /// The first bytes of a header that has not arrived whole.
    header: [u8; HEADER_BYTES_MAX],
    header_length: u8,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// Payload bytes of `frame` that have arrived.
    frame_received: usize,
    /// Text or Binary while a message is in progress.
    kind: Option<Opcode>,
    message: Vec<u8>,
    /// Text: `message[..valid_length]` is whole, valid characters.
    valid_length: usize,
    control: [u8; CONTROL_PAYLOAD_BYTES_MAX],
    control_length: u8,
    /// `message` was handed out as a complete message; the next call lets it go.
    message_given: bool,
}

/// A frame header that passed its checks.
#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: Opcode,
    fin: bool,
    mask: Option<[u8; 4]>,
    length: usize,
}

/// What one step over the input came to.
enum Step {
    /// Nothing complete: go on if there is input.
    Onward,
    /// A whole frame at `start..end` of the step's input, unmasked.
    Borrowed { opcode: Opcode, start: usize, end: usize },
    /// A control frame, in `Unfinished::control`.
    Control { opcode: Opcode },
    /// A message, in `Unfinished::message`.
    Message { opcode: Opcode },
}

impl MessageReader {
    /// A reader at the start of a stream.
    pub const fn new() -> Self {
        Self { unfinished: None }
    }

    /// Whether the stream stands in the middle of a frame or of a fragmented message.
    pub fn is_partial(&self) -> bool {
        self.unfinished.as_ref().is_some_and(|unfinished| !unfinished.is_finished())
    }

    /// Bytes of memory held for what is unfinished.
    pub fn buffered_bytes(&self) -> usize {
        self.unfinished
            .as_ref()
            .map_or(0, |unfinished| size_of::<Unfinished>() + unfinished.message.capacity())
    }

    /// Reads at most one item. Returns how many bytes of `input` were used and, if one is
    /// complete, the item. Call it with the rest of the input until it returns `None`; that last
    /// call also frees the buffer of a message that came in pieces.
    ///
    /// The length a frame announces is held against the limit before a byte is stored, and memory
    /// grows with what arrives, to at most twice as much. Text in pieces is refused at the
    /// first byte that cannot belong to UTF-8.
    ///
    /// # Errors
    /// What the peer did wrong. The stream cannot be continued; the reader is to be dropped.
    pub fn read<'a>(
        &'a mut self,
        role: Role,
        limits: &Limits,
        input: &'a mut [u8],
    ) -> Result<(usize, Option<Message<'a>>), WebSocketError> {
        self.release();
        let mut used = 0;
        loop {
            let before = used;
            let (taken, step) = self.step(role, limits, &mut input[used..])?;
            used += taken;
            match step {
                Step::Onward if used < input.len() => {}
                Step::Onward => return Ok((used, None)),
                Step::Borrowed { opcode, start, end } => {
                    let payload = &mut input[before + start..before + end];
                    return Ok((used, Some(message(opcode, payload)?)));
                }
                Step::Control { opcode } => {
                    let unfinished = self.unfinished.as_mut().expect("a step left it there");
                    let length = usize::from(unfinished.control_length);
                    let payload = &mut unfinished.control[..length];
                    return Ok((used, Some(message(opcode, payload)?)));
                }
                Step::Message { opcode } => {
                    let unfinished = self.unfinished.as_mut().expect("a step left it there");
                    return Ok((used, Some(message(opcode, &mut unfinished.message)?)));
                }
            }
        }
    }

    /// Lets go of what the last call handed out, and of the box if nothing is in progress.
    fn release(&mut self) {
        if let Some(unfinished) = &mut self.unfinished {
            if unfinished.message_given {
                unfinished.message = Vec::new();
                unfinished.message_given = false;
            }
            if unfinished.is_finished() {
                self.unfinished = None;
            }
        }
    }

    /// Takes one frame, or a part of it.
    fn step(
        &mut self,
        role: Role,
        limits: &Limits,
        input: &mut [u8],
    ) -> Result<(usize, Step), WebSocketError> {
        let Some(unfinished) = &mut self.unfinished else {
            return self.step_at_boundary(role, limits, input);
        };
        let mut used = 0;
        let frame = match unfinished.frame {
            Some(frame) => frame,
            None => {
                let held = usize::from(unfinished.header_length);
                let fresh = input.len().min(HEADER_BYTES_MAX - held);
                unfinished.header[held..held + fresh].copy_from_slice(&input[..fresh]);
                let state = MessageState::of(unfinished);
                let parsed = parse(role, limits, state, &unfinished.header[..held + fresh])?;
                let Some((frame, header_length)) = parsed else {
                    unfinished.header_length = (held + fresh) as u8;
                    return Ok((fresh, Step::Onward));
                };
                used = header_length - held;
                unfinished.begin(frame);
                frame
            }
        };

        let fresh = (frame.length - unfinished.frame_received).min(input.len() - used);
        let payload = &mut input[used..used + fresh];
        if let Some(key) = frame.mask {
            unmask(payload, key, unfinished.frame_received);
        }
        used += fresh;
        unfinished.take_payload(frame, payload)?;
        if unfinished.frame_received < frame.length {
            return Ok((used, Step::Onward));
        }

        unfinished.frame = None;
        if frame.opcode.is_control() {
            return Ok((used, Step::Control { opcode: frame.opcode }));
        }
        if !frame.fin {
            return Ok((used, Step::Onward));
        }
        let opcode = unfinished.kind.take().expect("a data frame is part of a message");
        if opcode == Opcode::Text && unfinished.valid_length < unfinished.message.len() {
            return Err(WebSocketError::NotUtf8);
        }
        unfinished.valid_length = 0;
        unfinished.message_given = true;
        Ok((used, Step::Message { opcode }))
    }

    /// Takes one frame where nothing is unfinished: borrows it if it is whole.
    fn step_at_boundary(
        &mut self,
        role: Role,
        limits: &Limits,
        input: &mut [u8],
    ) -> Result<(usize, Step), WebSocketError> {
        if input.is_empty() {
            return Ok((0, Step::Onward));
        }
        let parsed = parse(role, limits, MessageState::NONE, input)?;
        if let Some((frame, start)) = parsed {
            // No overflow: `parse` held the length against the limit, which is a usize, or 125.
            if frame.fin && input.len() - start >= frame.length {
                let end = start + frame.length;
                if let Some(key) = frame.mask {
                    unmask(&mut input[start..end], key, 0);
                }
                return Ok((end, Step::Borrowed { opcode: frame.opcode, start, end }));
            }
        }
        self.unfinished = Some(Box::new(Unfinished::new()));
        self.step(role, limits, input)
    }
}

impl Unfinished {
    fn new() -> Self {
        Self {
            header: [0; HEADER_BYTES_MAX],
            header_length: 0,
            frame: None,
            frame_received: 0,
            kind: None,
            message: Vec::new(),
            valid_length: 0,
            control: [0; CONTROL_PAYLOAD_BYTES_MAX],
            control_length: 0,
            message_given: false,
        }
    }

    /// Nothing is in progress.
    const fn is_finished(&self) -> bool {
        self.header_length == 0 && self.frame.is_none() && self.kind.is_none()
    }

    /// A frame's header is complete.
    fn begin(&mut self, frame: Frame) {
        self.header_length = 0;
        self.frame = Some(frame);
        self.frame_received = 0;
        if frame.opcode.is_control() {
            self.control_length = 0;
        } else if frame.opcode != Opcode::Continuation {
            self.kind = Some(frame.opcode);
        }
    }

    /// Stores unmasked payload of the frame in progress.
    fn take_payload(&mut self, frame: Frame, payload: &[u8]) -> Result<(), WebSocketError> {
        self.frame_received += payload.len();
        if frame.opcode.is_control() {
            let start = usize::from(self.control_length);
            self.control[start..start + payload.len()].copy_from_slice(payload);
            self.control_length += payload.len() as u8;
            return Ok(());
        }
        let length = self.message.len() + payload.len();
        if length > self.message.capacity() {
            // At most twice what has arrived; in the last frame, no more than it can need.
            let rest = if frame.fin { frame.length - self.frame_received } else { usize::MAX };
            let capacity = (2 * length).min(length.saturating_add(rest));
            self.message.reserve_exact(capacity - self.message.len());
        }
        self.message.extend_from_slice(payload);
        if self.kind == Some(Opcode::Text) {
            // Only whole characters are behind `valid_length`, so at most three bytes are looked
            // at twice. An error with a length can never be mended by what follows.
            match simdutf8::compat::from_utf8(&self.message[self.valid_length..]) {
                Ok(_) => self.valid_length = self.message.len(),
                Err(error) if error.error_len().is_none() => {
                    self.valid_length += error.valid_up_to();
                }
                Err(_) => return Err(WebSocketError::NotUtf8),
            }
        }
        Ok(())
    }
}

/// Where the stream stands between frames.
#[derive(Clone, Copy)]
struct MessageState {
    in_message: bool,
    message_length: usize,
}

impl MessageState {
    const NONE: Self = Self { in_message: false, message_length: 0 };

    fn of(unfinished: &Unfinished) -> Self {
        Self { in_message: unfinished.kind.is_some(), message_length: unfinished.message.len() }
    }
}

/// Reads a header from the start of `bytes`: the frame and the header's length, or `None` if it
/// is not whole yet. What is wrong is refused as soon as its byte is there.
fn parse(
    role: Role,
    limits: &Limits,
    state: MessageState,
    bytes: &[u8],
) -> Result<Option<(Frame, usize)>, WebSocketError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(WebSocketError::ReservedBits);
    }
    let number = first & 0x0F;
    let Some(opcode) = Opcode::from_number(number) else {
        return Err(WebSocketError::UnknownOpcode { opcode: number });
    };
    let fin = first & 0x80 != 0;
    match opcode {
        Opcode::Continuation if !state.in_message => {
            return Err(WebSocketError::UnexpectedContinuation);
        }
        Opcode::Text | Opcode::Binary if state.in_message => {
            return Err(WebSocketError::MessageInterrupted);
        }
        _ if opcode.is_control() && !fin => return Err(WebSocketError::ControlFragmented),
        _ => {}
    }

    let Some(&second) = bytes.get(1) else { return Ok(None) };
    let masked = second & 0x80 != 0;
    match role {
        Role::Server if !masked => return Err(WebSocketError::Unmasked),
        Role::Client if masked => return Err(WebSocketError::Masked),
        _ => {}
    }
    let short = second & 0x7F;
    if opcode.is_control() && short > 125 {
        return Err(WebSocketError::ControlTooLong);
    }
    let (length, after_length) = match short {
        126 => {
            let Some((long, _)) = bytes[2..].split_first_chunk::<2>() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*long)), 4)
        }
        127 => {
            let Some((long, _)) = bytes[2..].split_first_chunk::<8>() else { return Ok(None) };
            (u64::from_be_bytes(*long), 10)
        }
        _ => (u64::from(short), 2),
    };
    let shortest = match short {
        126 => length > 125,
        127 => length > 0xFFFF && length <= i64::MAX as u64,
        _ => true,
    };
    if !shortest {
        return Err(WebSocketError::BadLength);
    }
    if !opcode.is_control() {
        let whole = (state.message_length as u64).saturating_add(length);
        if whole > limits.message_bytes_max as u64 {
            return Err(WebSocketError::TooLarge {
                bytes: whole,
                bytes_max: limits.message_bytes_max,
            });
        }
    }
    let length = length as usize;

    if !masked {
        return Ok(Some((Frame { opcode, fin, mask: None, length }, after_length)));
    }
    let Some((key, _)) = bytes[after_length..].split_first_chunk::<4>() else { return Ok(None) };
    Ok(Some((Frame { opcode, fin, mask: Some(*key), length }, after_length + 4)))
}

/// Makes the item of an opcode and its whole payload. Text that came in pieces was looked at
/// before; the second look costs less than a way around the type.
fn message(opcode: Opcode, payload: &mut [u8]) -> Result<Message<'_>, WebSocketError> {
    Ok(match opcode {
        Opcode::Text => {
            Message::Text(simdutf8::basic::from_utf8(payload).map_err(|_| WebSocketError::NotUtf8)?)
        }
        Opcode::Binary => Message::Binary(payload),
        Opcode::Ping => Message::Ping(payload),
        Opcode::Pong => Message::Pong(payload),
        Opcode::Close => Message::Close(close_frame(payload)?),
        Opcode::Continuation => unreachable!("a continuation is never handed out on its own"),
    })
}

/// The payload of a close frame: nothing, or a code and a reason.
fn close_frame(payload: &[u8]) -> Result<Option<CloseFrame<'_>>, WebSocketError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload {
            [] => Ok(None),
            _ => Err(WebSocketError::ShortClosePayload),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !close_code_is_valid(code) {
        return Err(WebSocketError::BadCloseCode { code });
    }
    let reason = simdutf8::basic::from_utf8(reason).map_err(|_| WebSocketError::NotUtf8)?;
    Ok(Some(CloseFrame { code, reason }))
}
