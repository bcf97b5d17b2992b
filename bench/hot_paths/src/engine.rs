//! Paths through the gateway's engine: from a client's bytes to a batch for logic or to the bytes
//! of an answer, and from logic's batch to the bytes of many connections. Sockets are not in it.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use millrace_engine::{
    ConnectionId, Effect, Engine, GatewayIdentity, LinkId, Now, Settings, TransportKind,
};
use millrace_protocol::{
    command,
    frame::{self, Flags},
    link::{
        ConnectResponse, Credit, HelloReply, LogicEvent, LoginResult, RoomFrame, RoomMembership,
        SendFrame, logic_event::Kind,
    },
    session,
    websocket::{Opcode, write_frame, write_upgrade_request},
};
use prost::Message as _;

use crate::HotPath;
use crate::protocol::BATCH_FRAMES;

const LINK: LinkId = LinkId(1);
const KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
const BODY: [u8; 64] = [7; 64];
const IDLE_TIMEOUT_MS: u32 = 15_000;
const ROOM_MEMBERS: u64 = 1_000;
/// Connections among which a session is looked up.
const SESSIONS_LOOKED_UP: u32 = 2_000;

/// An engine whose clients are logged-in WebSocket connections and always take what they are sent.
struct World {
    engine: Engine,
    now: Now,
    connections: Vec<ConnectionId>,
    sequence: u64,
    /// What the driver would send; emptied before each send.
    out: Vec<u8>,
}

impl World {
    fn new(connections: u32) -> Self {
        let now = Now { monotonic_ms: 1_000_000, unix_ms: 1_700_000_000_000 };
        let identity = GatewayIdentity {
            gateway_id: "gateway".to_owned(),
            gateway_epoch: 7,
            shards: 1,
            lease_ms: 10_000,
            window: Credit { frames: 65_536, bytes: 32 << 20 },
        };
        // Rates are kept, but never reached: a refusal is not the path that is measured.
        let settings = Settings {
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            frames_per_second_max: u32::MAX,
            frames_burst_max: u32::MAX,
            ..Settings::default()
        };
        let engine = Engine::new(settings, 0, identity, now);
        let mut world = Self { engine, now, connections: Vec::new(), sequence: 1, out: Vec::new() };
        world.engine.link_up(now, LINK);
        world.carry_out();
        let window = Some(Credit { frames: u64::MAX, bytes: u64::MAX });
        world.logic(vec![Kind::HelloReply(HelloReply { window, ..HelloReply::default() })]);
        for number in 0..connections {
            world.log_in(number);
        }
        world
    }

    fn log_in(&mut self, number: u32) {
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let socket = u64::from(number);
        let id = self.engine.accepted(self.now, socket, TransportKind::WebSocket, peer);
        let mut bytes = Vec::new();
        write_upgrade_request(&mut bytes, "localhost", "/ws", Some("millrace.v1"), &[7; 16]);
        self.engine.received(self.now, id, &mut bytes);
        let user_id = format!("user-{number:08}");
        let login = session::Login {
            user_id: user_id.clone(),
            token: "token".to_owned(),
            device_id: "device-1".to_owned(),
            platform: "bench".to_owned(),
            ..session::Login::default()
        };
        self.engine.received(self.now, id, &mut message(command::LOGIN, 1, &login.encode_to_vec()));
        self.carry_out();
        let session_id = id.raw();
        let result = LoginResult { session_id, user_id, ..LoginResult::default() };
        self.logic(vec![Kind::LoginResult(result)]);
        self.connections.push(id);
    }

    /// Logic says something, and its consequences are carried out. Returns how many sends it took.
    fn logic(&mut self, events: Vec<Kind>) -> u64 {
        let sequence = self.sequence;
        self.sequence += events.len() as u64;
        let events = events.into_iter().map(|kind| LogicEvent { kind: Some(kind) }).collect();
        let batch = ConnectResponse { sequence, credit: None, events };
        self.engine.from_logic(self.now, LINK, batch);
        self.carry_out()
    }

    /// What a shard's loop does after each event. Returns how many sends it took.
    fn carry_out(&mut self) -> u64 {
        let mut sends = 0;
        loop {
            while let Some(effect) = self.engine.poll_effect() {
                if let Effect::Send { connection, .. } = effect {
                    self.out.clear();
                    if self.engine.take_send(connection, &mut self.out) {
                        black_box(&self.out);
                        self.engine.sent(self.now, connection, true);
                        sends += 1;
                    }
                }
            }
            if !self.engine.is_fanning_out() {
                break;
            }
            // The next turn of the loop.
            self.engine.tick(self.now);
        }
        while let Some(batch) = self.engine.take_link_batch(LINK) {
            black_box(batch);
        }
        sends
    }
}

/// A client's frame in a masked WebSocket message.
fn message(command: u16, request_id: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::write(&mut frame, command, Flags::NONE, request_id, body);
    let mut bytes = Vec::new();
    write_frame(&mut bytes, Opcode::Binary, true, Some(KEY), &frame);
    bytes
}

pub(crate) fn heartbeat() -> HotPath {
    let mut world = World::new(64);
    let message = message(command::HEARTBEAT, 7, &[]);
    let mut bytes = message.clone();
    let what = "a HEARTBEAT in a WebSocket message, to the bytes of its answer";
    HotPath::new(what, 1, move |times| {
        for turn in 0..times {
            let id = world.connections[turn as usize % 64];
            bytes.copy_from_slice(&message);
            world.engine.received(world.now, id, black_box(&mut bytes));
            assert_eq!(world.carry_out(), 1);
        }
    })
}

pub(crate) fn frame_in() -> HotPath {
    let mut world = World::new(BATCH_FRAMES as u32);
    let message = message(command::DELIVER_ACK, 0, &BODY);
    let mut bytes = message.clone();
    let what = "a frame for logic in a WebSocket message, to its place in a batch of 64";
    HotPath::new(what, BATCH_FRAMES, move |times| {
        for _ in 0..times {
            for turn in 0..BATCH_FRAMES as usize {
                let id = world.connections[turn];
                bytes.copy_from_slice(&message);
                world.engine.received(world.now, id, black_box(&mut bytes));
            }
            let batch = world.engine.take_link_batch(LINK).expect("frames wait for logic");
            assert_eq!(batch.events.len() as u64, BATCH_FRAMES);
            black_box(batch);
        }
    })
}

pub(crate) fn frame_out() -> HotPath {
    let mut world = World::new(BATCH_FRAMES as u32);
    let body = Bytes::copy_from_slice(&BODY);
    let frame = move |id: &ConnectionId| {
        Kind::SendFrame(SendFrame {
            session_ids: vec![id.raw()],
            command: u32::from(command::DELIVER),
            flags: 0,
            request_id: 0,
            body: body.clone(),
        })
    };
    let what = "a frame from logic, one of a batch of 64, to the bytes of its send";
    HotPath::new(what, BATCH_FRAMES, move |times| {
        for _ in 0..times {
            let events = world.connections.iter().map(&frame).collect();
            assert_eq!(world.logic(events), BATCH_FRAMES);
        }
    })
}

pub(crate) fn session_lookup() -> HotPath {
    let mut world = World::new(SESSIONS_LOOKED_UP);
    // Ids of the generation after the living one: each is looked up and not found.
    let ids = |turn: u64| {
        let slot = |at: u64| (turn * BATCH_FRAMES + at) * 7919 % u64::from(SESSIONS_LOOKED_UP);
        (0..BATCH_FRAMES).map(|at| (2 << 24) + slot(at)).collect()
    };
    let body = Bytes::copy_from_slice(&BODY);
    let what = "a session id of a SendFrame, looked up among 2,000; its session has ended";
    HotPath::new(what, BATCH_FRAMES, move |times| {
        for turn in 0..times {
            let frame = SendFrame {
                session_ids: ids(turn),
                command: u32::from(command::DELIVER),
                flags: 0,
                request_id: 0,
                body: body.clone(),
            };
            assert_eq!(world.logic(vec![Kind::SendFrame(frame)]), 0);
        }
    })
}

pub(crate) fn timer_fires() -> HotPath {
    let mut world = World::new(64);
    let message = message(command::HEARTBEAT, 0, &[]);
    let mut bytes = message.clone();
    let what = "an idle timer that fires and is armed again, and the heartbeat it has seen";
    HotPath::new(what, 64, move |times| {
        for _ in 0..times {
            // Everybody is heard in the middle of the idle time; the timers fire at its end.
            world.now.monotonic_ms += u64::from(IDLE_TIMEOUT_MS) / 2;
            for turn in 0..64 {
                let id = world.connections[turn];
                bytes.copy_from_slice(&message);
                world.engine.received(world.now, id, black_box(&mut bytes));
            }
            world.carry_out();
            world.now.monotonic_ms += u64::from(IDLE_TIMEOUT_MS) / 2;
            world.engine.tick(world.now);
            world.carry_out();
        }
        assert_eq!(world.engine.counters().sessions, 64, "nobody was silent");
    })
}

pub(crate) fn fan_out() -> HotPath {
    let mut world = World::new(ROOM_MEMBERS as u32);
    world.logic(vec![Kind::RoomMembership(RoomMembership {
        room_id: "room".to_owned(),
        join_session_ids: world.connections.iter().map(|id| id.raw()).collect(),
        leave_session_ids: Vec::new(),
    })]);
    let body = Bytes::copy_from_slice(&BODY);
    let what = "a member's share of a message to a room of 1,000, to the bytes of its send";
    HotPath::new(what, ROOM_MEMBERS, move |times| {
        for _ in 0..times {
            let frame = RoomFrame {
                room_id: "room".to_owned(),
                command: u32::from(command::ROOM_MESSAGE),
                body_protobuf: body.clone(),
                ..RoomFrame::default()
            };
            assert_eq!(world.logic(vec![Kind::RoomFrame(frame)]), ROOM_MEMBERS);
        }
    })
}
