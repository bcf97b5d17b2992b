//! The server's side of one WebSocket connection: upgrade, messages, ping and pong, and the
//! closing handshake (RFC 6455).
//!
//! The owner decides which upgrades are accepted and what messages mean. Pings and the peer's
//! close frame are answered here, into the connection's [`SendQueue`].

use millrace_protocol::{
    Code, limits,
    websocket::{
        Limits, Message, MessageReader, Opcode, Role, Upgrade, UpgradeError, UpgradeProgress,
        WebSocketError, read_upgrade, write_close, write_frame, write_header,
        write_upgrade_refusal, write_upgrade_response,
    },
};

use super::{Outbound, SendQueue};

/// Bytes of one pong: header and the largest control payload.
const PONG_BYTES_MAX: usize = 2 + limits::CONTROL_PAYLOAD_BYTES_MAX;

/// What one connection accepts.
#[derive(Clone, Copy, Debug)]
pub struct WebSocketSettings {
    /// Largest message, over all of its fragments. Above it: [`WebSocketError::TooLarge`].
    pub message_bytes_max: usize,
    /// A ping is not answered while more than this waits to be sent: RFC 6455 section 5.5.3 lets
    /// a pong answer the latest ping only, and a peer that never reads must not fill the queue.
    pub pong_queue_bytes_max: usize,
}

impl Default for WebSocketSettings {
    fn default() -> Self {
        Self { message_bytes_max: 16 * 1024 * 1024, pong_queue_bytes_max: 64 * 1024 }
    }
}

/// One item that arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A valid upgrade request. Decide at once: [`WebSocketInput::accept`] or
    /// [`WebSocketInput::refuse`], before more input is read.
    Upgrade(Upgrade),
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a mut [u8]),
    /// A ping. `answered` is false when too much already waited.
    Ping {
        /// Whether a pong was queued.
        answered: bool,
    },
    /// A pong.
    Pong,
    /// The peer closes, with this code if it gave one. Its close frame has been answered: call
    /// [`WebSocketInput::closed`], read no more, send what is queued, then shut the write side
    /// down.
    Close(Option<u16>),
}

/// Why the connection cannot go on. What the peer is told has not been queued yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// Before the upgrade: answer with [`WebSocketInput::refuse`].
    Upgrade(UpgradeError),
    /// After it: answer with [`WebSocketInput::close`].
    WebSocket(WebSocketError),
}

impl TransportError {
    /// The row of the product's table of codes.
    pub const fn code(&self) -> Code {
        match self {
            Self::Upgrade(error) => error.code(),
            Self::WebSocket(error) => error.code(),
        }
    }
}

impl std::fmt::Display for TransportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Upgrade(error) => error.fmt(f),
            Self::WebSocket(error) => error.fmt(f),
        }
    }
}

/// What has arrived and how far the connection has come; 16 bytes, and no buffer while nothing
/// is unfinished.
#[derive(Debug)]
pub enum WebSocketInput {
    /// The upgrade request, as far as it has arrived.
    Upgrading(Option<Box<Vec<u8>>>),
    /// Messages.
    Open(MessageReader),
    /// One of the two ends has closed; input is discarded.
    Closed,
}

impl Default for WebSocketInput {
    fn default() -> Self {
        Self::Upgrading(None)
    }
}

impl WebSocketInput {
    /// A connection whose upgrade is done, between two messages.
    pub const fn open() -> Self {
        Self::Open(MessageReader::new())
    }

    /// Whether the upgrade was accepted and nobody has closed.
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// Whether the upgrade is not decided.
    pub const fn is_upgrading(&self) -> bool {
        matches!(self, Self::Upgrading(_))
    }

    /// Bytes of memory held for what is unfinished.
    pub fn buffered_bytes(&self) -> usize {
        match self {
            Self::Upgrading(head) => head.as_ref().map_or(0, |head| head.capacity()),
            Self::Open(reader) => reader.buffered_bytes(),
            Self::Closed => 0,
        }
    }

    /// Reads at most one item from `input`: how many bytes were used, and the item if one is
    /// complete. Call it with the rest of the input until there is no item; that last call also
    /// frees the buffer of a message that came in pieces.
    ///
    /// # Errors
    /// What the peer did wrong; nothing more can be read.
    pub fn read<'a>(
        &'a mut self,
        settings: &WebSocketSettings,
        outbound: &mut impl SendQueue,
        input: &'a mut [u8],
    ) -> Result<(usize, Option<Event<'a>>), TransportError> {
        match self {
            Self::Upgrading(head) => {
                let (used, upgrade) = read_head(head, input).map_err(TransportError::Upgrade)?;
                Ok((used, upgrade.map(Event::Upgrade)))
            }
            Self::Open(reader) => {
                let limits = Limits { message_bytes_max: settings.message_bytes_max };
                let (used, message) =
                    reader.read(Role::Server, &limits, input).map_err(TransportError::WebSocket)?;
                Ok((used, message.map(|message| answer(message, settings, outbound))))
            }
            Self::Closed => Ok((input.len(), None)),
        }
    }

    /// Accepts the upgrade: queues the response; messages follow.
    pub fn accept(
        &mut self,
        outbound: &mut impl SendQueue,
        upgrade: &Upgrade,
        subprotocol: Option<&str>,
    ) {
        outbound.push_with(|out| write_upgrade_response(out, upgrade, subprotocol));
        *self = Self::Open(MessageReader::new());
    }

    /// Refuses the upgrade: queues the HTTP response. Flush, then shut the write side down.
    pub fn refuse(&mut self, outbound: &mut impl SendQueue, error: &UpgradeError) {
        outbound.push_with(|out| write_upgrade_refusal(out, error));
        *self = Self::Closed;
    }

    /// Closes from our side: queues a close frame if the connection is open. Flush, then shut the
    /// write side down.
    pub fn close(&mut self, outbound: &mut impl SendQueue, code: u16, reason: &str) {
        if self.is_open() {
            outbound.push_with(|out| write_close(out, None, code, reason));
        }
        *self = Self::Closed;
    }

    /// The peer's close has been read and answered; what follows is discarded.
    pub fn closed(&mut self) {
        *self = Self::Closed;
    }
}

/// Answers a ping or a close, and passes on what it was.
fn answer<'a>(
    message: Message<'a>,
    settings: &WebSocketSettings,
    outbound: &mut impl SendQueue,
) -> Event<'a> {
    match message {
        Message::Text(text) => Event::Text(text),
        Message::Binary(bytes) => Event::Binary(bytes),
        Message::Pong(_) => Event::Pong,
        Message::Ping(payload) => {
            let waiting = outbound.queued_bytes() + PONG_BYTES_MAX;
            let answered = waiting <= settings.pong_queue_bytes_max;
            if answered {
                outbound.push_with(|out| write_frame(out, Opcode::Pong, true, None, payload));
            }
            Event::Ping { answered }
        }
        Message::Close(close) => {
            let code = close.map(|close| close.code);
            // RFC 6455 section 5.5.1: the answer typically echoes the status code.
            outbound.push_with(|out| match code {
                Some(code) => write_close(out, None, code, ""),
                None => write_frame(out, Opcode::Close, true, None, b""),
            });
            Event::Close(code)
        }
    }
}

/// Collects the request head and reads it once it is whole.
#[expect(clippy::box_collection, reason = "the enum it lives in is to stay at 16 bytes")]
fn read_head(
    held: &mut Option<Box<Vec<u8>>>,
    input: &[u8],
) -> Result<(usize, Option<Upgrade>), UpgradeError> {
    let Some(head) = held else {
        return match read_upgrade(input)? {
            UpgradeProgress::Complete { consumed, upgrade } => Ok((consumed, Some(upgrade))),
            UpgradeProgress::Incomplete if input.is_empty() => Ok((0, None)),
            UpgradeProgress::Incomplete => {
                *held = Some(Box::new(input.to_vec()));
                Ok((input.len(), None))
            }
        };
    };
    let before = head.len();
    let room = limits::UPGRADE_REQUEST_BYTES_MAX.saturating_sub(before);
    head.extend_from_slice(&input[..input.len().min(room)]);
    // A head that comes byte by byte is only parsed where it can be complete: at a line feed.
    // So a slow peer cannot make the parser run over the same bytes thousands of times.
    if head.len() < limits::UPGRADE_REQUEST_BYTES_MAX && !head[before..].contains(&b'\n') {
        return Ok((input.len(), None));
    }
    match read_upgrade(head)? {
        UpgradeProgress::Complete { consumed, upgrade } => {
            *held = None;
            Ok((consumed - before, Some(upgrade)))
        }
        UpgradeProgress::Incomplete => Ok((input.len(), None)),
    }
}

/// One item and the queue for what is to be answered.
#[derive(Debug)]
pub struct Received<'a> {
    /// Bytes of the input that were used.
    pub used: usize,
    /// The item, if one is complete.
    pub event: Option<Event<'a>>,
    /// Where answers go; see [`WebSocketTransport::send`].
    pub outbound: &'a mut Outbound,
}

/// A whole WebSocket connection without a session: input and output together, 24 bytes.
///
/// The life of a connection: [`Self::read`] until it gives no event; [`Self::take`] whenever no
/// send is under way; after [`Event::Close`] ([`WebSocketInput::closed`]) or an error
/// ([`Self::fail`]), and once everything is sent, shut the write side down, discard input until
/// the peer's end, close.
#[derive(Debug, Default)]
pub struct WebSocketTransport {
    /// What arrives.
    pub input: WebSocketInput,
    /// What is to be sent.
    pub outbound: Outbound,
}

impl WebSocketTransport {
    /// A connection whose upgrade request has not arrived.
    pub const fn new() -> Self {
        Self { input: WebSocketInput::Upgrading(None), outbound: Outbound::new() }
    }

    /// Reads at most one item; see [`WebSocketInput::read`]. The queue comes with it, because an
    /// item borrows the input.
    ///
    /// # Errors
    /// What the peer did wrong; hand it to [`Self::fail`].
    pub fn read<'a>(
        &'a mut self,
        settings: &WebSocketSettings,
        input: &'a mut [u8],
    ) -> Result<Received<'a>, TransportError> {
        let Self { input: state, outbound } = self;
        let (used, event) = state.read(settings, outbound, input)?;
        Ok(Received { used, event, outbound })
    }

    /// Tells the peer what it did wrong, by the HTTP refusal or by a close frame with the code of
    /// RFC 6455 section 7.4.1, and closes.
    pub fn fail(&mut self, error: &TransportError) {
        match error {
            TransportError::Upgrade(error) => self.input.refuse(&mut self.outbound, error),
            TransportError::WebSocket(error) => {
                self.input.close(&mut self.outbound, error.close_code(), &error.to_string());
            }
        }
    }

    /// Queues one whole message.
    pub fn send(outbound: &mut Outbound, opcode: Opcode, payload: &[u8]) {
        outbound.push_with(|out| {
            out.reserve(10 + payload.len());
            write_header(out, opcode, payload.len());
            out.extend_from_slice(payload);
        });
    }

    /// Whether the connection is over for us: once the queue is sent, shut the write side down.
    pub const fn is_closed(&self) -> bool {
        matches!(self.input, WebSocketInput::Closed)
    }

    /// Moves queued bytes to `out`; see [`Outbound::take`].
    pub fn take(&mut self, out: &mut Vec<u8>, batch_bytes_max: usize) -> bool {
        self.outbound.take(out, batch_bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, TransportError, WebSocketSettings, WebSocketTransport};
    use millrace_protocol::websocket::{Opcode, write_close, write_frame};

    const KEY: [u8; 4] = [1, 2, 3, 4];
    const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    /// What an echo server does; returns everything it would send.
    fn echo(input: &[u8], step: usize) -> (Vec<u8>, bool) {
        let settings = WebSocketSettings { message_bytes_max: 1000, ..Default::default() };
        let mut transport = WebSocketTransport::new();
        let mut sent = Vec::new();
        for chunk in input.to_vec().chunks_mut(step) {
            let mut at = 0;
            loop {
                match transport.read(&settings, &mut chunk[at..]) {
                    Err(error) => {
                        transport.fail(&error);
                        break;
                    }
                    Ok(received) => {
                        at += received.used;
                        match received.event {
                            None => break,
                            Some(Event::Upgrade(upgrade)) => {
                                transport.input.accept(&mut transport.outbound, &upgrade, None);
                            }
                            Some(Event::Text(text)) => WebSocketTransport::send(
                                received.outbound,
                                Opcode::Text,
                                text.as_bytes(),
                            ),
                            Some(Event::Binary(bytes)) => {
                                WebSocketTransport::send(received.outbound, Opcode::Binary, bytes);
                            }
                            Some(Event::Close(_)) => transport.input.closed(),
                            Some(Event::Ping { .. } | Event::Pong) => {}
                        }
                    }
                }
            }
            transport.take(&mut sent, usize::MAX);
        }
        assert!(transport.outbound.is_empty());
        (sent, transport.is_closed())
    }

    fn after_upgrade(sent: &[u8]) -> &[u8] {
        assert!(sent.starts_with(b"HTTP/1.1 101 "));
        let end = sent.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
        &sent[end + 4..]
    }

    #[test]
    fn a_conversation_is_the_same_however_it_is_split() {
        let mut input = REQUEST.to_vec();
        write_frame(&mut input, Opcode::Text, false, Some(KEY), b"hel");
        write_frame(&mut input, Opcode::Ping, true, Some(KEY), b"p");
        write_frame(&mut input, Opcode::Continuation, true, Some(KEY), b"lo");
        write_frame(&mut input, Opcode::Binary, true, Some(KEY), &[9; 300]);
        write_close(&mut input, Some(KEY), 1000, "bye");
        write_frame(&mut input, Opcode::Text, true, Some(KEY), b"after the close");
        let mut expected = Vec::new();
        write_frame(&mut expected, Opcode::Pong, true, None, b"p");
        write_frame(&mut expected, Opcode::Text, true, None, b"hello");
        write_frame(&mut expected, Opcode::Binary, true, None, &[9; 300]);
        write_close(&mut expected, None, 1000, "");
        for step in 1..=input.len() {
            let (sent, closed) = echo(&input, step);
            assert_eq!(after_upgrade(&sent), expected, "in pieces of {step}");
            assert!(closed);
        }
    }

    #[test]
    fn a_violation_is_answered_with_the_code_of_the_rfc() {
        for (frame, code) in [
            (vec![0x81, 0x01, b'x'], 1002_u16),
            (vec![0x81, 0x81, 0, 0, 0, 0, 0xFF], 1007),
            (vec![0x82, 0xFE, 0x10, 0x00, 0, 0, 0, 0], 1009),
        ] {
            let (sent, closed) = echo(&[REQUEST, &frame].concat(), 7);
            let close = after_upgrade(&sent);
            assert_eq!((close[0], &close[2..4]), (0x88, &code.to_be_bytes()[..]));
            assert!(closed);
        }
    }

    #[test]
    fn garbage_instead_of_an_upgrade_is_answered_in_http() {
        let (sent, closed) = echo(b"\x00\x01garbage\r\n\r\n", 3);
        assert!(sent.starts_with(b"HTTP/1.1 400 "));
        assert!(closed);
        let (sent, closed) = echo(&vec![b'a'; 20_000], 100);
        assert!(sent.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&sent));
        assert!(closed);
    }

    #[test]
    fn pings_of_a_peer_that_never_reads_do_not_fill_the_queue() {
        let settings = WebSocketSettings::default();
        let mut transport = WebSocketTransport::new();
        let mut request = REQUEST.to_vec();
        let upgrade = match transport.read(&settings, &mut request) {
            Ok(super::Received { event: Some(Event::Upgrade(upgrade)), .. }) => upgrade,
            other => panic!("no upgrade: {other:?}"),
        };
        transport.input.accept(&mut transport.outbound, &upgrade, None);
        for _ in 0..10_000 {
            let mut ping = Vec::new();
            write_frame(&mut ping, Opcode::Ping, true, Some(KEY), &[1; 125]);
            let received = transport.read(&settings, &mut ping).expect("valid");
            assert!(matches!(received.event, Some(Event::Ping { .. })));
        }
        assert!(transport.outbound.queued_bytes() <= settings.pong_queue_bytes_max);
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert_eq!(size_of::<WebSocketTransport>(), 24);
        assert_eq!(WebSocketTransport::new().input.buffered_bytes(), 0);
        let error =
            TransportError::WebSocket(millrace_protocol::websocket::WebSocketError::Unmasked);
        assert_eq!(error.code(), millrace_protocol::Code::BadFrame);
    }
}
