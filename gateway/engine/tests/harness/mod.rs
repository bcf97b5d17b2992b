//! Drives the engine by hand: a socket is a pair of buffers, logic says what the test says, time
//! is a number. For tests that pin one answer; the histories at random are in `simulator`.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{collections::BTreeMap, net::IpAddr};

use bytes::Bytes;
use millrace_engine::{
    ConnectionId, Effect, Engine, GatewayIdentity, LinkId, Now, Settings, TransportKind,
};
use millrace_protocol::{
    command,
    frame::{self, Flags, FrameReader},
    link::{
        ConnectResponse, Credit, HelloReply, LogicEvent, LoginRequest, LoginResult,
        gateway_event::Kind as Event, logic_event::Kind,
    },
    session, text,
    websocket::{Limits, Message, MessageReader, Opcode, Role, write_frame},
};
use prost::Message as _;

/// The link of all tests.
pub const LINK: LinkId = LinkId(1);
/// What a client masks with.
pub const KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// One frame that a client received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub command: u16,
    pub request_id: u32,
    pub body: Vec<u8>,
    pub json: bool,
}

impl Frame {
    pub fn error(&self) -> session::Error {
        assert_eq!(self.command, command::ERROR, "{self:?}");
        if self.json {
            serde_json::from_slice(&self.body).expect("an Error in JSON")
        } else {
            session::Error::decode(&*self.body).expect("an Error")
        }
    }
}

/// What a socket saw.
#[derive(Debug, Default)]
pub struct Socket {
    pub connection: Option<ConnectionId>,
    /// Bytes the client has not looked at.
    pub received: Vec<u8>,
    pub write_shut: bool,
    pub close_asked: bool,
    pub paused: bool,
    /// The client does not read: sends stay in flight.
    pub stuck: bool,
    pub send_in_flight: bool,
    websocket: bool,
}

/// A person at the controls of an engine.
pub struct Harness {
    pub engine: Engine,
    pub now: Now,
    pub sockets: BTreeMap<u64, Socket>,
    /// Everything that went to logic, in order.
    pub to_logic: Vec<Event>,
    /// The same on other links than [`LINK`].
    pub elsewhere: BTreeMap<LinkId, Vec<Event>>,
    next_socket: u64,
    next_sequence: BTreeMap<LinkId, u64>,
}

/// Credits that never run out in a test that is not about them.
pub const PLENTY: Credit = Credit { frames: 100_000, bytes: 100_000_000 };

impl Harness {
    pub fn new(settings: Settings) -> Self {
        let now = Now { monotonic_ms: 1_000_000, unix_ms: 1_700_000_000_000 };
        let identity = GatewayIdentity {
            gateway_id: "gateway".to_owned(),
            gateway_epoch: 7,
            shards: 1,
            lease_ms: 10_000,
            window: Credit { frames: 1000, bytes: 1_000_000 },
        };
        Self {
            engine: Engine::new(settings, 3, identity, now),
            now,
            sockets: BTreeMap::new(),
            to_logic: Vec::new(),
            elsewhere: BTreeMap::new(),
            next_socket: 1,
            next_sequence: BTreeMap::new(),
        }
    }

    /// With a link that is up and has credit.
    pub fn linked(settings: Settings) -> Self {
        let mut harness = Self::new(settings);
        harness.link_up(PLENTY);
        harness
    }

    pub fn link_up(&mut self, window: Credit) {
        self.up(LINK, window);
    }

    /// A logic that takes moves, on a link of its own.
    pub fn up(&mut self, link: LinkId, window: Credit) {
        self.up_without_reply(link);
        let reply = HelloReply { window: Some(window), takes_moves: true, ..HelloReply::default() };
        self.says(link, Kind::HelloReply(reply));
    }

    /// A link whose logic has not answered yet.
    pub fn up_without_reply(&mut self, link: LinkId) {
        self.engine.link_up(self.now, link);
        self.next_sequence.insert(link, 1);
        if link != LINK {
            self.elsewhere.entry(link).or_default();
        }
        self.settle();
    }

    /// A link ends.
    pub fn down(&mut self, link: LinkId) {
        self.engine.link_down(self.now, link);
        self.settle();
    }

    /// What went to a logic since this was last asked.
    pub fn heard(&mut self, link: LinkId) -> Vec<Event> {
        if link == LINK {
            return std::mem::take(&mut self.to_logic);
        }
        std::mem::take(self.elsewhere.entry(link).or_default())
    }

    pub fn link_down(&mut self) {
        self.engine.link_down(self.now, LINK);
        self.settle();
    }

    /// Lets time pass in steps, as the owner of an engine would.
    pub fn wait(&mut self, ms: u64) {
        let end = self.now.monotonic_ms + ms;
        while self.now.monotonic_ms < end {
            let due = self.engine.next_deadline_ms().unwrap_or(end).min(end);
            let step = due.saturating_sub(self.now.monotonic_ms).max(1);
            self.now.monotonic_ms += step;
            self.now.unix_ms += step as i64;
            self.engine.tick(self.now);
            self.settle();
        }
    }

    /// One turn of an owner's loop, without the link.
    pub fn turn(&mut self) {
        self.engine.tick(self.now);
        while let Some(effect) = self.engine.poll_effect() {
            self.perform(effect);
        }
    }

    /// Carries out what the engine asks for until it asks for nothing.
    pub fn settle(&mut self) {
        loop {
            let mut idle = true;
            if self.engine.is_fanning_out() {
                idle = false;
                self.turn();
            }
            while let Some(effect) = self.engine.poll_effect() {
                idle = false;
                self.perform(effect);
            }
            while let Some(batch) = self.engine.take_link_batch(LINK) {
                idle = false;
                self.to_logic.extend(batch.events.into_iter().filter_map(|event| event.kind));
            }
            for (link, heard) in &mut self.elsewhere {
                while let Some(batch) = self.engine.take_link_batch(*link) {
                    idle = false;
                    heard.extend(batch.events.into_iter().filter_map(|event| event.kind));
                }
            }
            if idle {
                return;
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send { connection, socket } => {
                let Some(socket) = self.sockets.get_mut(&socket) else { return };
                assert!(!socket.close_asked && !socket.write_shut, "nothing follows the end");
                assert!(!socket.send_in_flight, "one send at a time");
                let mut out = Vec::new();
                if self.engine.take_send(connection, &mut out) {
                    socket.received.extend_from_slice(&out);
                    socket.send_in_flight = socket.stuck;
                    if !socket.stuck {
                        self.engine.sent(self.now, connection, true);
                    }
                }
            }
            Effect::ShutdownWrite { socket, .. } => {
                let socket = self.sockets.entry(socket).or_default();
                assert!(!socket.write_shut);
                socket.write_shut = true;
            }
            Effect::Close { connection, socket } => {
                let socket = self.sockets.entry(socket).or_default();
                assert!(!socket.close_asked, "closed once");
                socket.close_asked = true;
                self.engine.closed(self.now, connection);
            }
            Effect::PauseReceive { socket, .. } => {
                let socket = self.sockets.entry(socket).or_default();
                assert!(!std::mem::replace(&mut socket.paused, true));
            }
            Effect::ResumeReceive { socket, .. } => {
                let socket = self.sockets.entry(socket).or_default();
                assert!(std::mem::replace(&mut socket.paused, false));
            }
        }
    }

    // --- clients --------------------------------------------------------------------------------

    pub fn connect_from(&mut self, transport: TransportKind, peer: &str) -> u64 {
        let socket = self.next_socket;
        self.next_socket += 1;
        let peer: IpAddr = peer.parse().expect("an address");
        let connection = self.engine.accepted(self.now, socket, transport, peer);
        let entry = self.sockets.entry(socket).or_default();
        entry.connection = Some(connection);
        entry.websocket = transport == TransportKind::WebSocket;
        self.settle();
        socket
    }

    pub fn tcp(&mut self) -> u64 {
        self.connect_from(TransportKind::Tcp, "192.0.2.1")
    }

    /// A WebSocket whose upgrade is done.
    pub fn websocket(&mut self, subprotocol: Option<&str>) -> u64 {
        let socket = self.connect_from(TransportKind::WebSocket, "192.0.2.1");
        self.upgrade(socket, "/ws", subprotocol);
        let received = std::mem::take(&mut self.socket(socket).received);
        assert!(received.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&received));
        socket
    }

    pub fn upgrade(&mut self, socket: u64, path: &str, subprotocol: Option<&str>) {
        let mut request = Vec::new();
        millrace_protocol::websocket::write_upgrade_request(
            &mut request,
            "localhost",
            path,
            subprotocol,
            &[7; 16],
        );
        self.bytes(socket, &request);
    }

    pub fn socket(&mut self, socket: u64) -> &mut Socket {
        self.sockets.get_mut(&socket).expect("a socket of this test")
    }

    pub fn id(&self, socket: u64) -> ConnectionId {
        self.sockets[&socket].connection.expect("was accepted")
    }

    /// A client that was stuck reads again.
    pub fn unstick(&mut self, socket: u64) {
        let id = self.id(socket);
        let entry = self.socket(socket);
        entry.stuck = false;
        assert!(std::mem::take(&mut entry.send_in_flight));
        self.engine.sent(self.now, id, true);
        self.settle();
    }

    /// The client sends raw bytes.
    pub fn bytes(&mut self, socket: u64, bytes: &[u8]) {
        let id = self.id(socket);
        self.engine.received(self.now, id, &mut bytes.to_vec());
        self.settle();
    }

    /// The client sends a frame: plain on TCP, in a binary message on WebSocket.
    pub fn frame(&mut self, socket: u64, command: u16, request_id: u32, body: &[u8]) {
        self.flagged(socket, command, Flags::NONE, request_id, body);
    }

    pub fn flagged(
        &mut self,
        socket: u64,
        command: u16,
        flags: Flags,
        request_id: u32,
        body: &[u8],
    ) {
        let mut frame = Vec::new();
        frame::write(&mut frame, command, flags, request_id, body);
        if self.socket(socket).websocket {
            self.message(socket, Opcode::Binary, &frame);
        } else {
            self.bytes(socket, &frame);
        }
    }

    /// The client sends a WebSocket message.
    pub fn message(&mut self, socket: u64, opcode: Opcode, payload: &[u8]) {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, opcode, true, Some(KEY), payload);
        self.bytes(socket, &bytes);
    }

    pub fn end(&mut self, socket: u64) {
        let id = self.id(socket);
        self.engine.receive_ended(self.now, id);
        self.settle();
    }

    /// The frames a client has received since the last call, and the code of a close frame.
    pub fn read(&mut self, socket: u64) -> (Vec<Frame>, Option<u16>) {
        let socket = self.socket(socket);
        let mut received = std::mem::take(&mut socket.received);
        let mut frames = Vec::new();
        let mut close = None;
        if !socket.websocket {
            frames_in(&received, &mut frames);
            return (frames, None);
        }
        let mut reader = MessageReader::new();
        let limits = Limits { message_bytes_max: 1 << 24 };
        let mut at = 0;
        loop {
            let (used, message) =
                reader.read(Role::Client, &limits, &mut received[at..]).expect("valid");
            at += used;
            match message {
                None => break,
                Some(Message::Binary(message)) => frames_in(message, &mut frames),
                Some(Message::Text(message)) => {
                    let envelope = text::parse(message).expect("an envelope");
                    let command = match envelope.is_reply {
                        true => command::reply(envelope.command),
                        false => envelope.command,
                    };
                    let body = envelope.body.as_bytes().to_vec();
                    let request_id = envelope.request_id;
                    frames.push(Frame { command, request_id, body, json: true });
                }
                Some(Message::Close(frame)) => close = frame.map(|frame| frame.code),
                Some(Message::Ping(_) | Message::Pong(_)) => {}
            }
        }
        (frames, close)
    }

    /// The only frame received since the last call.
    pub fn read_one(&mut self, socket: u64) -> Frame {
        let (mut frames, _) = self.read(socket);
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.remove(0)
    }

    /// Sends LOGIN; returns what logic was asked.
    pub fn ask_login(&mut self, socket: u64, user_id: &str) -> LoginRequest {
        let login = session::Login {
            user_id: user_id.to_owned(),
            token: "token".to_owned(),
            device_id: "device".to_owned(),
            platform: "test".to_owned(),
            ..session::Login::default()
        };
        self.to_logic.clear();
        self.frame(socket, command::LOGIN, 1, &login.encode_to_vec());
        match &self.to_logic[..] {
            [Event::Login(request)] => request.clone(),
            other => panic!("expected a login, found {other:?}"),
        }
    }

    /// Logs in; returns the session's id.
    pub fn login(&mut self, socket: u64, user_id: &str) -> u64 {
        let session_id = self.ask_login(socket, user_id).session_id;
        self.accept_login(session_id, user_id);
        let reply = self.read_one(socket);
        assert_eq!((reply.command, reply.request_id), (command::reply(command::LOGIN), 1));
        session_id
    }

    /// Logs in over text messages; returns the session's id.
    pub fn login_text(&mut self, socket: u64, user_id: &str) -> u64 {
        let login = session::Login { user_id: user_id.to_owned(), ..session::Login::default() };
        let body = serde_json::to_vec(&login).expect("JSON");
        let mut envelope = Vec::new();
        text::write(&mut envelope, command::LOGIN, 1, &body);
        self.message(socket, Opcode::Text, &envelope);
        let session_id = self.id(socket).raw();
        self.accept_login(session_id, user_id);
        let reply = self.read_one(socket);
        assert_eq!((reply.command, reply.request_id), (command::reply(command::LOGIN), 1));
        session_id
    }

    pub fn accept_login(&mut self, session_id: u64, user_id: &str) {
        let user_id = user_id.to_owned();
        self.logic(Kind::LoginResult(LoginResult {
            session_id,
            user_id,
            state: Bytes::from_static(b"state"),
            ..LoginResult::default()
        }));
    }

    /// Logic says something.
    pub fn logic(&mut self, kind: Kind) {
        self.says(LINK, kind);
    }

    /// A logic says something.
    pub fn says(&mut self, link: LinkId, kind: Kind) {
        self.tell_on(link, vec![kind]);
        self.settle();
    }

    /// The first things that logic says on a stream; nothing is carried out yet.
    pub fn tell_first(&mut self, kinds: Vec<Kind>) {
        self.next_sequence.insert(LINK, 1);
        self.tell(kinds);
    }

    /// Logic says several things at once, and nothing is carried out yet.
    pub fn tell(&mut self, kinds: Vec<Kind>) {
        self.tell_on(LINK, kinds);
    }

    fn tell_on(&mut self, link: LinkId, kinds: Vec<Kind>) {
        let events: Vec<_> =
            kinds.into_iter().map(|kind| LogicEvent { kind: Some(kind) }).collect();
        let next = self.next_sequence.entry(link).or_insert(1);
        let sequence = *next;
        *next += events.len() as u64;
        let batch = ConnectResponse { sequence, credit: None, events };
        self.engine.from_logic(self.now, link, batch);
    }

    pub fn credit(&mut self, frames: u64, bytes: u64) {
        let credit = Some(Credit { frames, bytes });
        let batch = ConnectResponse { sequence: 0, credit, events: Vec::new() };
        self.engine.from_logic(self.now, LINK, batch);
        self.settle();
    }

    /// Ends of sessions that logic has heard of since `to_logic` was last cleared.
    pub fn sessions_ended(&self) -> Vec<(u64, u32)> {
        let ended = self.to_logic.iter().filter_map(|event| match event {
            Event::SessionEnded(ended) => Some((ended.session_id, ended.code)),
            _ => None,
        });
        ended.collect()
    }

    /// Ends everything and checks that nothing is left.
    pub fn finish(mut self) {
        let sockets: Vec<u64> = self.sockets.keys().copied().collect();
        for socket in sockets {
            if !self.socket(socket).close_asked {
                self.end(socket);
            }
        }
        self.wait(5_000);
        self.link_down();
        for link in self.elsewhere.keys().copied().collect::<Vec<_>>() {
            self.down(link);
        }
        assert!(self.engine.is_at_rest(), "something is left: {:?}", self.engine.counters());
        assert_gauges_are_zero(self.engine.counters());
    }
}

pub fn assert_gauges_are_zero(counters: &millrace_engine::Counters) {
    let gauges = [
        counters.tcp.connections,
        counters.websocket.connections,
        counters.sessions,
        counters.requests_in_flight,
        counters.logins_in_flight,
        counters.backlog_frames,
        counters.send_queue_bytes,
        counters.rooms,
        counters.room_members,
        counters.link_outbox_events,
        counters.sessions_homeless,
    ];
    assert_eq!(gauges, [0; 11], "{counters:?}");
}

fn frames_in(bytes: &[u8], frames: &mut Vec<Frame>) {
    let mut reader = FrameReader::new();
    reader
        .read(bytes, 1 << 24, |header, body| {
            frames.push(Frame {
                command: header.command,
                request_id: header.request_id,
                body: body.to_vec(),
                json: header.flags.contains(Flags::JSON),
            });
            true
        })
        .expect("valid frames");
    assert!(!reader.is_partial(), "the stream ends inside a frame");
}
