//! Paths of the protocol crate alone: frames, WebSocket, batches of the link.

use std::hint::black_box;

use bytes::Bytes;
use millrace_protocol::{
    command,
    frame::{self, Flags, FrameReader},
    limits,
    link::{ClientFrame, ConnectRequest, GatewayEvent, gateway_event::Kind},
    websocket::{
        Limits, Message, MessageReader, Opcode, Role, UpgradeProgress, read_upgrade, unmask,
        write_frame, write_upgrade_request, write_upgrade_response,
    },
};
use prost::Message as _;

use crate::HotPath;

const KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
const BODY: [u8; 64] = [7; 64];
/// Frames of one batch on the link.
pub(crate) const BATCH_FRAMES: u64 = 64;

pub(crate) fn frame_decode() -> HotPath {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, command::SEND_MESSAGE, Flags::NONE, 7, &BODY);
    let mut reader = FrameReader::new();
    HotPath::new("one whole frame with a body of 64 bytes", 1, move |times| {
        for _ in 0..times {
            let read =
                reader.read(black_box(&bytes), limits::BODY_BYTES_MAX_DEFAULT, |header, body| {
                    black_box((header, body));
                    true
                });
            read.expect("a valid frame");
        }
    })
}

pub(crate) fn frame_encode() -> HotPath {
    let mut bytes = Vec::with_capacity(256);
    HotPath::new("one frame with a body of 64 bytes", 1, move |times| {
        for _ in 0..times {
            bytes.clear();
            frame::write(&mut bytes, black_box(command::SEND_MESSAGE), Flags::NONE, 7, &BODY);
            black_box(&bytes);
        }
    })
}

pub(crate) fn websocket_unmask() -> HotPath {
    let mut bytes = vec![3; 1024];
    HotPath::new("1,024 bytes", 1, move |times| {
        for _ in 0..times {
            unmask(black_box(&mut bytes), black_box(KEY), 0);
        }
    })
}

pub(crate) fn websocket_parse() -> HotPath {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, Opcode::Binary, true, Some(KEY), &BODY);
    let mut reader = MessageReader::new();
    let limits = Limits { message_bytes_max: 64 * 1024 };
    HotPath::new("one masked message of 64 bytes, unmasked in place", 1, move |times| {
        for _ in 0..times {
            // Unmasking twice gives the masked bytes again, which are as good a payload as others.
            let read = reader.read(Role::Server, &limits, black_box(&mut bytes));
            let (_, message) = read.expect("a valid message");
            assert!(matches!(black_box(message), Some(Message::Binary(_))));
        }
    })
}

pub(crate) fn websocket_upgrade() -> HotPath {
    let mut request = Vec::new();
    write_upgrade_request(&mut request, "localhost:8080", "/ws", Some("millrace.v1"), &[7; 16]);
    let mut response = Vec::with_capacity(512);
    HotPath::new("one request read and answered", 1, move |times| {
        for _ in 0..times {
            let progress = read_upgrade(black_box(&request)).expect("a valid request");
            let UpgradeProgress::Complete { upgrade, .. } = progress else {
                unreachable!("the request is whole")
            };
            response.clear();
            write_upgrade_response(&mut response, &upgrade, Some("millrace.v1"));
            black_box(&response);
        }
    })
}

fn batch() -> ConnectRequest {
    let body = Bytes::copy_from_slice(&BODY);
    let event = |number: u64| {
        let frame = ClientFrame {
            session_id: (1 << 24) + number,
            command: u32::from(command::SEND_MESSAGE),
            flags: 0,
            request_id: 1 + number as u32,
            body: body.clone(),
        };
        GatewayEvent { kind: Some(Kind::Frame(frame)) }
    };
    ConnectRequest {
        sequence: 1,
        credit: None,
        events: (0..BATCH_FRAMES).map(event).collect(),
        state: None,
    }
}

pub(crate) fn link_encode() -> HotPath {
    let batch = batch();
    let mut bytes = Vec::with_capacity(16 * 1024);
    HotPath::new("a frame of a batch of 64, with a body of 64 bytes", BATCH_FRAMES, move |times| {
        for _ in 0..times {
            bytes.clear();
            black_box(&batch).encode(&mut bytes).expect("a vector grows");
            black_box(&bytes);
        }
    })
}

pub(crate) fn link_decode() -> HotPath {
    let bytes = Bytes::from(batch().encode_to_vec());
    HotPath::new("a frame of a batch of 64, with a body of 64 bytes", BATCH_FRAMES, move |times| {
        for _ in 0..times {
            let batch = ConnectRequest::decode(black_box(bytes.clone())).expect("a valid batch");
            black_box(batch);
        }
    })
}
