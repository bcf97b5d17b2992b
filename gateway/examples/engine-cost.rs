//! What the engine alone costs: bytes of an idle session against the process's resident memory,
//! and nanoseconds of a heartbeat, a room's message and a broadcast. No socket, no kernel.
//!
//! `cargo run --release -p millrace-gateway --example engine-cost -- [SESSIONS] [ROOM_MEMBERS]`
#![expect(clippy::print_stdout, reason = "the figures are its product")]

use std::{net::Ipv4Addr, time::Instant};

use millrace_engine::{
    ConnectionId, Effect, Engine, GatewayIdentity, LinkId, Now, Settings, TransportKind,
};
use millrace_protocol::{
    command,
    frame::{self, Flags},
    link::{
        BroadcastFrame, ConnectResponse, Credit, HelloReply, LogicEvent, LoginResult, RoomFrame,
        RoomMembership, logic_event::Kind,
    },
    session,
    websocket::{Opcode, write_frame, write_upgrade_request},
};
use prost::Message as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LINK: LinkId = LinkId(0);
const MASK: [u8; 4] = [1, 2, 3, 4];

/// The owner of an engine whose sends are done at once.
struct Owner {
    engine: Engine,
    now: Now,
    sequence: u64,
    buffer: Vec<u8>,
    sends: u64,
    bytes: u64,
}

impl Owner {
    fn settle(&mut self) {
        loop {
            while let Some(effect) = self.engine.poll_effect() {
                if let Effect::Send { connection, .. } = effect {
                    self.buffer.clear();
                    if self.engine.take_send(connection, &mut self.buffer) {
                        self.sends += 1;
                        self.bytes += self.buffer.len() as u64;
                        self.engine.sent(self.now, connection, true);
                    }
                }
            }
            if self.engine.take_link_batch(LINK).is_none() {
                return;
            }
        }
    }

    fn logic(&mut self, kind: Kind) {
        let events = vec![LogicEvent { kind: Some(kind) }];
        let batch = ConnectResponse { sequence: self.sequence, credit: None, events };
        self.sequence += 1;
        self.engine.from_logic(self.now, LINK, batch);
    }

    /// Turns the loop until nothing is left to send.
    fn turn(&mut self, sends: u64) {
        while self.sends < sends {
            self.engine.tick(self.now);
            self.settle();
        }
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn masked(command: u16, request_id: u32, body: &[u8]) -> Vec<u8> {
    let (mut payload, mut message) = (Vec::new(), Vec::new());
    frame::write(&mut payload, command, Flags::NONE, request_id, body);
    write_frame(&mut message, Opcode::Binary, true, Some(MASK), &payload);
    message
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|number| number.parse().ok());
    let sessions: u32 = arguments.next().unwrap_or(100_000);
    let members = arguments.next().unwrap_or(10_000).min(sessions);
    let settings = Settings {
        connections_max: sessions,
        connections_per_address_max: sessions,
        ..Settings::default()
    };
    let window = Credit { frames: 1 << 30, bytes: 1 << 40 };
    let identity = GatewayIdentity {
        gateway_id: "cost".to_owned(),
        gateway_epoch: 1,
        shards: 1,
        lease_ms: 10_000,
        window,
    };
    let now = Now { monotonic_ms: 0, unix_ms: 1_700_000_000_000 };
    let engine = Engine::new(settings, 0, identity, now);
    let buffer = Vec::with_capacity(1 << 20);
    let mut owner = Owner { engine, now, sequence: 1, buffer, sends: 0, bytes: 0 };
    owner.engine.link_up(now, LINK);
    owner.settle();
    owner.logic(Kind::HelloReply(HelloReply { window: Some(window), ..HelloReply::default() }));

    let mut ids: Vec<ConnectionId> = Vec::with_capacity(sessions as usize);
    let before = resident_bytes();
    let mut upgrade = Vec::new();
    write_upgrade_request(&mut upgrade, "localhost", "/ws", Some("millrace.v1"), &[7; 16]);
    let start = Instant::now();
    for number in 0..sessions {
        let peer = Ipv4Addr::from(0x7F00_0000 + number / 10_000);
        let socket = u64::from(number) << 8 | 1;
        let id = owner.engine.accepted(now, socket, TransportKind::WebSocket, peer.into());
        ids.push(id);
        owner.engine.received(now, id, &mut upgrade.clone());
        let user_id = format!("user-{number:07}");
        let login = session::Login {
            token: "x".repeat(150),
            device_id: format!("{user_id}-device"),
            platform: "loadgen".to_owned(),
            user_id: user_id.clone(),
            ..session::Login::default()
        };
        let mut login = masked(command::LOGIN, 1, &login.encode_to_vec());
        owner.engine.received(now, id, &mut login);
        owner.settle();
        let expires_at_ms = now.unix_ms / 1000 * 1000 + 86_400_000;
        let session_id = id.raw();
        let result = LoginResult { session_id, user_id, expires_at_ms, ..LoginResult::default() };
        owner.logic(Kind::LoginResult(result));
        owner.settle();
    }
    let each = start.elapsed().as_nanos() as u64 / u64::from(sessions);
    let resident = resident_bytes() - before - 8 * u64::from(sessions);
    assert_eq!(owner.engine.counters().sessions, u64::from(sessions), "everybody is logged in");
    println!("{sessions} sessions, {each} ns each for accept, upgrade, login");
    for (part, bytes) in owner.engine.memory().parts() {
        println!(
            "  {part:12} {bytes:>12} B {:>7.1} B a session",
            bytes as f64 / f64::from(sessions)
        );
    }
    let total = owner.engine.memory().total();
    println!(
        "  ledger       {total:>12} B {:>7.1} B a session",
        total as f64 / f64::from(sessions)
    );
    println!(
        "  resident     {resident:>12} B {:>7.1} B a session",
        resident as f64 / f64::from(sessions)
    );

    // Heartbeats of everybody in turn: received, answered, sent.
    let heartbeat = masked(command::HEARTBEAT, 1, b"");
    let rounds = 2_000_000_u32.div_ceil(sessions);
    let mut bytes = heartbeat.clone();
    let start = Instant::now();
    for _ in 0..rounds {
        owner.now.monotonic_ms += 1_000;
        for id in &ids {
            bytes.copy_from_slice(&heartbeat);
            owner.engine.received(owner.now, *id, &mut bytes);
            owner.settle();
        }
    }
    let beats = u64::from(rounds) * u64::from(sessions);
    println!("heartbeat      {} ns", start.elapsed().as_nanos() as u64 / beats);

    // A room of members spread over the table.
    let step = (sessions / members).max(1) as usize;
    let room_id = "room".to_owned();
    let member_ids: Vec<u64> =
        ids.iter().step_by(step).take(members as usize).map(|id| id.raw()).collect();
    let members = member_ids.len() as u64;
    let start = Instant::now();
    owner.logic(Kind::RoomMembership(RoomMembership {
        room_id: room_id.clone(),
        join_session_ids: member_ids,
        leave_session_ids: Vec::new(),
    }));
    println!("join           {} ns", start.elapsed().as_nanos() as u64 / members);
    let rooms = owner.engine.memory().rooms;
    println!("  rooms        {:.1} B a member", rooms as f64 / members as f64);
    for (coalesced, rounds) in [(1, 200), (4, 200)] {
        let (sends, start) = (owner.sends, Instant::now());
        for _ in 0..rounds {
            let done = owner.sends;
            for _ in 0..coalesced {
                owner.logic(Kind::RoomFrame(RoomFrame {
                    room_id: room_id.clone(),
                    command: u32::from(command::ROOM_MESSAGE),
                    body_protobuf: vec![7; 50].into(),
                    ..RoomFrame::default()
                }));
            }
            owner.turn(done + members);
        }
        let deliveries = rounds * coalesced * members;
        println!(
            "room           {} ns a delivery, {} members, {coalesced} frames a send ({} sends)",
            start.elapsed().as_nanos() as u64 / deliveries,
            members,
            owner.sends - sends,
        );
    }
    let rounds = 20;
    let start = Instant::now();
    for _ in 0..rounds {
        let done = owner.sends;
        owner.logic(Kind::BroadcastFrame(BroadcastFrame {
            command: u32::from(command::NOTICE),
            body_protobuf: vec![7; 50].into(),
            ..BroadcastFrame::default()
        }));
        owner.turn(done + u64::from(sessions));
    }
    let deliveries = rounds * u64::from(sessions);
    println!("broadcast      {} ns a delivery", start.elapsed().as_nanos() as u64 / deliveries);
}
