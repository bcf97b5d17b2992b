//! The WebSocket stream in both roles: any bytes, any pieces; the pieces never matter, messages
//! keep the limit, memory keeps to what arrived.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_protocol::websocket::{Limits, Message, MessageReader, Role, WebSocketError};

const LIMITS: Limits = Limits { message_bytes_max: 300 };

#[derive(Debug, PartialEq)]
enum Item {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

fn read(
    role: Role,
    stream: &[u8],
    mut piece_length: impl FnMut() -> usize,
) -> (Vec<Item>, Option<WebSocketError>, bool) {
    let mut reader = MessageReader::new();
    let mut items = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(piece_length().clamp(1, rest.len()));
        rest = after;
        let mut piece = piece.to_vec();
        let mut used = 0;
        loop {
            let (taken, message) = match reader.read(role, &LIMITS, &mut piece[used..]) {
                Ok(step) => step,
                Err(error) => {
                    assert!(matches!(error.close_code(), 1002 | 1007 | 1009));
                    return (items, Some(error), false);
                }
            };
            used += taken;
            let Some(message) = message else { break };
            items.push(match message {
                Message::Text(text) => Item::Text(text.to_owned()),
                Message::Binary(bytes) => Item::Binary(bytes.to_vec()),
                Message::Ping(bytes) => Item::Ping(bytes.to_vec()),
                Message::Pong(bytes) => Item::Pong(bytes.to_vec()),
                Message::Close(close) => {
                    Item::Close(close.map(|close| (close.code, close.reason.to_owned())))
                }
            });
            match items.last() {
                Some(Item::Text(text)) => assert!(text.len() <= LIMITS.message_bytes_max),
                Some(Item::Binary(bytes)) => assert!(bytes.len() <= LIMITS.message_bytes_max),
                Some(Item::Ping(bytes) | Item::Pong(bytes)) => assert!(bytes.len() <= 125),
                _ => {}
            }
        }
        assert_eq!(used, piece.len());
        assert!(reader.is_partial() || reader.buffered_bytes() == 0);
        assert!(reader.buffered_bytes() <= 2 * LIMITS.message_bytes_max + 512);
    }
    (items, None, reader.is_partial())
}

fuzz_target!(|data: &[u8]| {
    let Some((&seed, stream)) = data.split_first() else { return };
    let role = if seed & 1 == 0 { Role::Server } else { Role::Client };
    let whole = read(role, stream, || usize::MAX);
    let mut state = u64::from(seed) + 1;
    let in_pieces = read(role, stream, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 59) as usize
    });
    assert_eq!(whole, in_pieces);
    assert_eq!(whole, read(role, stream, || 1));
});
