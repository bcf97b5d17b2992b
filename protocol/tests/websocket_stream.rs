//! Properties of the WebSocket reader and writer over random streams: the pieces a stream comes in
//! never matter, another implementation (tungstenite) sees the same messages in both directions,
//! and garbage is refused, never a panic. proptest prints the failing case and its seed.

use std::io::{self, Read, Write};

use millrace_protocol::websocket::{
    Limits, Message, MessageReader, Opcode, Role, WebSocketError, write_close, write_frame,
};
use proptest::prelude::*;
use tungstenite::protocol::{Role as OracleRole, WebSocket, WebSocketConfig};

const LIMITS: Limits = Limits { message_bytes_max: 200_000 };

/// One item as an owned value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl Item {
    fn from(message: Message<'_>) -> Self {
        match message {
            Message::Text(text) => Self::Text(text.to_owned()),
            Message::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Message::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Message::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Message::Close(close) => {
                Self::Close(close.map(|close| (close.code, close.reason.to_owned())))
            }
        }
    }
}

/// What a stream came to: the items before its end or its first error.
type Outcome = (Vec<Item>, Option<WebSocketError>);

/// Feeds the stream in pieces of the given lengths, again and again.
fn read_in_pieces(role: Role, stream: &[u8], pieces: &[usize]) -> Outcome {
    let mut reader = MessageReader::new();
    let mut items = Vec::new();
    let mut rest = stream;
    let mut lengths = pieces.iter().cycle();
    while !rest.is_empty() {
        let length = (*lengths.next().expect("at least one piece")).clamp(1, rest.len());
        let (piece, after) = rest.split_at(length);
        rest = after;
        let mut piece = piece.to_vec();
        let mut used = 0;
        loop {
            match reader.read(role, &LIMITS, &mut piece[used..]) {
                Err(error) => return (items, Some(error)),
                Ok((taken, item)) => {
                    used += taken;
                    match item {
                        Some(item) => items.push(Item::from(item)),
                        None => break,
                    }
                }
            }
        }
        assert_eq!(used, piece.len(), "a read that ends with None has used its input");
        if !reader.is_partial() {
            assert_eq!(reader.buffered_bytes(), 0, "no memory is kept at a message boundary");
        }
    }
    (items, None)
}

/// A message as it is written: its item, and where it is cut into fragments, with a ping between
/// them or not.
#[derive(Clone, Debug)]
struct Written {
    item: Item,
    cuts: Vec<(usize, bool)>,
}

fn written() -> impl Strategy<Value = Written> {
    let control = || proptest::collection::vec(any::<u8>(), 0..=125);
    let item = prop_oneof![
        4 => ".{0,60}".prop_map(Item::Text),
        1 => "[aé漢🦀]{0,3000}".prop_map(Item::Text),
        4 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Item::Binary),
        1 => (0_usize..80_000).prop_map(|length| Item::Binary(vec![0xA5; length])),
        1 => control().prop_map(Item::Ping),
        1 => control().prop_map(Item::Pong),
    ];
    let cuts = proptest::collection::vec((0_usize..200, any::<bool>()), 0..5);
    (item, cuts).prop_map(|(item, cuts)| Written { item, cuts })
}

/// Writes the messages and says which items a reader must see.
fn write_all(role_of_writer: Role, messages: &[Written], out: &mut Vec<u8>) -> Vec<Item> {
    let mut expected = Vec::new();
    let mut key = [7_u8, 77, 177, 250];
    let mut mask = || {
        key = key.map(|byte| byte.wrapping_mul(17).wrapping_add(31));
        (role_of_writer == Role::Client).then_some(key)
    };
    for Written { item, cuts } in messages {
        let (opcode, payload) = match item {
            Item::Text(text) => (Opcode::Text, text.as_bytes()),
            Item::Binary(bytes) => (Opcode::Binary, bytes.as_slice()),
            Item::Ping(bytes) => (Opcode::Ping, bytes.as_slice()),
            Item::Pong(bytes) => (Opcode::Pong, bytes.as_slice()),
            Item::Close(_) => unreachable!("not generated here"),
        };
        let (mut opcode, mut payload) = (opcode, payload);
        if !opcode.is_control() {
            for (length, ping_after) in cuts {
                let (fragment, rest) = payload.split_at((*length).min(payload.len()));
                write_frame(out, opcode, false, mask(), fragment);
                (opcode, payload) = (Opcode::Continuation, rest);
                if *ping_after {
                    write_frame(out, Opcode::Ping, true, mask(), b"between");
                    expected.push(Item::Ping(b"between".to_vec()));
                }
            }
        }
        write_frame(out, opcode, true, mask(), payload);
        expected.push(item.clone());
    }
    write_close(out, mask(), 3001, "gone");
    expected.push(Item::Close(Some((3001, "gone".to_owned()))));
    expected
}

/// A connection of the oracle: reads from memory, remembers what is written.
struct Memory<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl Read for Memory<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for Memory<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the oracle makes of a stream: the items, and whether it refused the stream.
fn oracle_reads(role: Role, stream: &[u8]) -> (Vec<Item>, bool) {
    let role = match role {
        Role::Server => OracleRole::Server,
        Role::Client => OracleRole::Client,
    };
    let config = WebSocketConfig::default().max_message_size(Some(LIMITS.message_bytes_max));
    let memory = Memory { input: stream, output: Vec::new() };
    let mut oracle = WebSocket::from_raw_socket(memory, role, Some(config));
    let mut items = Vec::new();
    loop {
        items.push(match oracle.read() {
            Ok(tungstenite::Message::Text(text)) => Item::Text(text.as_str().to_owned()),
            Ok(tungstenite::Message::Binary(bytes)) => Item::Binary(bytes.to_vec()),
            Ok(tungstenite::Message::Ping(bytes)) => Item::Ping(bytes.to_vec()),
            Ok(tungstenite::Message::Pong(bytes)) => Item::Pong(bytes.to_vec()),
            Ok(tungstenite::Message::Close(close)) => {
                items.push(Item::Close(
                    close.map(|close| (close.code.into(), close.reason.as_str().to_owned())),
                ));
                return (items, false);
            }
            Ok(tungstenite::Message::Frame(_)) => unreachable!("never read"),
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return (items, false);
            }
            Err(_) => return (items, true),
        });
    }
}

/// A frame that may be wrong in any of the ways a header can be.
#[derive(Clone, Debug)]
struct Raw {
    first: u8,
    masked: bool,
    payload: Vec<u8>,
}

fn raw_frame() -> impl Strategy<Value = Raw> {
    // Close frames are left out: the two implementations differ in what follows one.
    let opcode = prop_oneof![
        8 => Just(0_u8), 6 => Just(1), 6 => Just(2), 4 => Just(9), 4 => Just(10), 1 => 3_u8..8,
        1 => 11_u8..16
    ];
    let fin = prop_oneof![3 => Just(0x80_u8), 2 => Just(0)];
    let reserved = prop_oneof![40 => Just(0_u8), 1 => (1_u8..8).prop_map(|bits| bits << 4)];
    let payload = prop_oneof![
        6 => "[a-zé漢🦀]{0,40}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..140),
        // Pieces of one character: whole only together.
        3 => prop_oneof![
            Just(vec![0xF0]), Just(vec![0x9F, 0xA6]), Just(vec![0x80]), Just(vec![0xED, 0xA0]),
            Just(vec![0xC3]), Just(vec![0xA9]), Just(vec![])
        ],
    ];
    let masked = prop_oneof![60 => Just(true), 1 => Just(false)];
    (fin, reserved, opcode, masked, payload).prop_map(|(fin, reserved, opcode, masked, payload)| {
        Raw { first: fin | reserved | opcode, masked, payload }
    })
}

fn write_raw(frame: &Raw, masked: bool, out: &mut Vec<u8>) {
    let length = frame.payload.len();
    let mask_bit = if masked { 0x80 } else { 0 };
    out.push(frame.first);
    if length < 126 {
        out.push(mask_bit | length as u8);
    } else {
        out.push(mask_bit | 126);
        out.extend_from_slice(&(length as u16).to_be_bytes());
    }
    let key = [0x11, 0x22, 0x33, 0x44];
    if masked {
        out.extend_from_slice(&key);
    }
    let byte = |(index, byte): (usize, &u8)| if masked { byte ^ key[index % 4] } else { *byte };
    out.extend(frame.payload.iter().enumerate().map(byte));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_split_of_a_stream_gives_the_messages_that_were_written(
        messages in proptest::collection::vec(written(), 0..6),
        pieces in proptest::collection::vec(
            prop_oneof![1_usize..16, 1_usize..2000, Just(usize::MAX)], 1..8),
        from_client in any::<bool>(),
    ) {
        let (writer, reader) =
            if from_client { (Role::Client, Role::Server) } else { (Role::Server, Role::Client) };
        let mut stream = Vec::new();
        let expected = write_all(writer, &messages, &mut stream);
        prop_assert_eq!(read_in_pieces(reader, &stream, &pieces), (expected, None));
    }

    #[test]
    fn the_oracle_reads_what_we_write(
        messages in proptest::collection::vec(written(), 0..6),
        from_client in any::<bool>(),
    ) {
        let (writer, reader) =
            if from_client { (Role::Client, Role::Server) } else { (Role::Server, Role::Client) };
        let mut stream = Vec::new();
        let expected = write_all(writer, &messages, &mut stream);
        prop_assert_eq!(oracle_reads(reader, &stream), (expected, false));
    }

    #[test]
    fn we_read_what_the_oracle_writes(
        messages in proptest::collection::vec(written(), 0..6),
        pieces in proptest::collection::vec(1_usize..500, 1..8),
        from_client in any::<bool>(),
    ) {
        let (oracle_role, reader) = if from_client {
            (OracleRole::Client, Role::Server)
        } else {
            (OracleRole::Server, Role::Client)
        };
        let memory = Memory { input: &[], output: Vec::new() };
        let mut oracle = WebSocket::from_raw_socket(memory, oracle_role, None);
        let mut expected = Vec::new();
        for Written { item, .. } in messages {
            let message = match &item {
                Item::Text(text) => tungstenite::Message::text(text.clone()),
                Item::Binary(bytes) => tungstenite::Message::binary(bytes.clone()),
                Item::Ping(bytes) => tungstenite::Message::Ping(bytes.clone().into()),
                Item::Pong(bytes) => tungstenite::Message::Pong(bytes.clone().into()),
                Item::Close(_) => unreachable!("not generated here"),
            };
            oracle.send(message).expect("memory takes everything");
            expected.push(item);
        }
        let stream = oracle.get_ref().output.clone();
        prop_assert_eq!(read_in_pieces(reader, &stream, &pieces), (expected, None));
    }

    #[test]
    fn we_refuse_what_the_oracle_refuses_and_nothing_else(
        frames in proptest::collection::vec(raw_frame(), 1..8),
        pieces in proptest::collection::vec(1_usize..60, 1..8),
    ) {
        let mut stream = Vec::new();
        for frame in &frames {
            write_raw(frame, frame.masked, &mut stream);
        }
        let (items, error) = read_in_pieces(Role::Server, &stream, &pieces);
        let (oracle_items, oracle_refused) = oracle_reads(Role::Server, &stream);
        prop_assert_eq!(error.is_some(), oracle_refused, "{:?}", error);
        prop_assert_eq!(items, oracle_items);
    }

    #[test]
    fn garbage_is_the_same_garbage_in_every_split_and_never_a_panic(
        stream in proptest::collection::vec(any::<u8>(), 0..400),
        first in prop_oneof![Just(0x81_u8), Just(0x82), Just(0x01), Just(0x89), any::<u8>()],
        pieces in proptest::collection::vec(1_usize..40, 1..8),
        server in any::<bool>(),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let mut stream = stream;
        stream.insert(0, first);
        prop_assert_eq!(
            read_in_pieces(role, &stream, &pieces),
            read_in_pieces(role, &stream, &[usize::MAX]),
        );
    }
}

#[test]
fn a_length_above_the_limit_is_refused_before_a_byte_is_stored() {
    let mut reader = MessageReader::new();
    let mut header = vec![0x82, 0xFF, 0, 0, 0, 0, 0x40, 0, 0, 0];
    let error = reader.read(Role::Server, &LIMITS, &mut header).expect_err("too large");
    assert_eq!(error, WebSocketError::TooLarge { bytes: 1 << 30, bytes_max: 200_000 });
    assert_eq!(error.close_code(), 1009);
}

#[test]
fn memory_grows_with_what_arrives_and_not_with_what_was_announced() {
    let limits = Limits { message_bytes_max: 16 << 20 };
    let mut reader = MessageReader::new();
    let mut input = vec![0x82, 0xFF, 0, 0, 0, 0, 0x01, 0, 0, 0, 1, 2, 3, 4];
    input.extend_from_slice(&[0; 1000]);
    let length = input.len();
    let (used, item) = reader.read(Role::Server, &limits, &mut input).expect("valid so far");
    assert_eq!((used, item), (length, None));
    assert!(reader.is_partial());
    assert!(reader.buffered_bytes() < 3000, "{} bytes are held", reader.buffered_bytes());
}

#[test]
fn text_in_pieces_is_refused_at_the_first_byte_that_cannot_be_mended() {
    // Autobahn 6.4: "κόσμε", then F4 90 80 80, which is above U+10FFFF.
    let text = b"\xCE\xBA\xE1\xBD\xB9\xCF\x83\xCE\xBC\xCE\xB5\xF4\x90\x80\x80edited";
    let mut stream = Vec::new();
    write_frame(&mut stream, Opcode::Text, true, Some([9, 8, 7, 6]), text);
    let bad = stream.len() - text.len() + 12;
    let mut reader = MessageReader::new();
    for (index, byte) in stream.iter().enumerate() {
        match reader.read(Role::Server, &LIMITS, &mut [*byte]) {
            Ok((1, None)) => assert!(index < bad, "byte {index} should have been refused"),
            Err(WebSocketError::NotUtf8) => {
                assert_eq!(index, bad);
                return;
            }
            other => panic!("byte {index}: {other:?}"),
        }
    }
    panic!("never refused");
}

#[test]
fn an_idle_reader_is_eight_bytes() {
    assert_eq!(size_of::<MessageReader>(), 8);
}
