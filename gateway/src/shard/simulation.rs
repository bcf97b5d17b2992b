//! A whole shard, its loop, engine and rings to logic, over a simulated network and a virtual clock.
//!
//! Clients log in, send requests, beat, fall silent, leave in good order or not; bytes are cut,
//! delayed and held up; logic answers late. Then: every request of a client that stayed was answered
//! once and in order, a silent client was closed when it should be and no other, and each session
//! ended exactly once for logic. MILLRACE_SEED runs one seed more.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    future::Future,
    net::SocketAddr,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use millrace_engine::GatewayIdentity;
use millrace_protocol::{
    Code, command,
    frame::{self, Flags, HEADER_BYTES, Header},
    limits::BODY_BYTES_MAX_CEILING,
    link::{
        ConnectResponse, Credit, HelloReply, LogicEvent, LoginResult, SendFrame, gateway_event,
        logic_event,
    },
    session::{self, Login},
};
use prost::Message as _;

use super::run::{Listening, Shard, ShardPlan};
use crate::{
    config::Config,
    driver::{
        Options,
        simulated::{Client, Driver, Faults, Network},
    },
    link::{FromLink, LinkPort, OutboundBatches},
};

const CLIENTS: usize = 40;
const REQUESTS: u32 = 25;
const IDLE: Duration = Duration::from_secs(15);

/// No seed needs as many turns by far.
const TURNS_MAX: usize = 400_000;

/// Polls a future once.
fn now<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Logic, in order and late.
struct Logic {
    port: LinkPort,
    batches: OutboundBatches,
    sequence: u64,
    waiting: VecDeque<Vec<logic_event::Kind>>,
    owed: Credit,
    started: HashSet<u64>,
    ended: HashSet<u64>,
}

impl Logic {
    fn new(mut port: LinkPort) -> Self {
        let (outbound, batches) = port.stream(64);
        let Poll::Ready(Ok(())) = now(port.deliver(FromLink::Up(outbound))) else {
            panic!("the ring has room")
        };
        Self {
            port,
            batches,
            sequence: 1,
            waiting: VecDeque::new(),
            owed: Credit::default(),
            started: HashSet::new(),
            ended: HashSet::new(),
        }
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(batch)) = self.batches.poll_take(&mut context) {
            let kinds = batch.events.into_iter().filter_map(|event| event.kind);
            let answers: Vec<_> = kinds.filter_map(|kind| self.answer(kind)).collect();
            self.waiting.push_back(answers);
        }
        // One at least, so that nobody waits for ever while the clock leaps.
        let answers = random.usize(1..4);
        for kinds in self.waiting.drain(..answers.min(self.waiting.len())).collect::<Vec<_>>() {
            let sequence = self.sequence;
            self.sequence += kinds.len() as u64;
            let events = kinds.into_iter().map(|kind| LogicEvent { kind: Some(kind) }).collect();
            let credit = Some(std::mem::take(&mut self.owed));
            let batch = FromLink::Batch(ConnectResponse { sequence, credit, events });
            assert!(now(self.port.deliver(batch)).is_ready(), "the ring has room");
        }
    }

    fn answer(&mut self, kind: gateway_event::Kind) -> Option<logic_event::Kind> {
        use gateway_event::Kind;
        match kind {
            Kind::Hello(_) => Some(logic_event::Kind::HelloReply(HelloReply {
                logic_id: "simulated".to_owned(),
                logic_epoch: 1,
                lease_ms: 10_000,
                window: Some(Credit { frames: 50, bytes: 64 * 1024 }),
                takes_moves: true,
            })),
            Kind::Login(login) => {
                assert!(self.started.insert(login.session_id), "a session starts once");
                Some(logic_event::Kind::LoginResult(LoginResult {
                    session_id: login.session_id,
                    user_id: login.user_id,
                    ..Default::default()
                }))
            }
            Kind::Frame(frame) => {
                self.owed.frames += 1;
                self.owed.bytes += frame.body.len() as u64;
                Some(logic_event::Kind::SendFrame(SendFrame {
                    session_ids: vec![frame.session_id],
                    command: u32::from(command::reply(frame.command as u16)),
                    flags: frame.flags & 1,
                    request_id: frame.request_id,
                    body: frame.body,
                }))
            }
            Kind::SessionEnded(ended) => {
                assert!(self.started.contains(&ended.session_id), "only what has started ends");
                assert!(self.ended.insert(ended.session_id), "a session ends once");
                None
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Stays until it has every answer, then leaves in good order.
    Stays,
    /// Falls silent after its answers, and is to be closed.
    Silent,
    /// Breaks off in the middle.
    Breaks,
}

struct Talker {
    client: Option<Client>,
    fate: Fate,
    output: Vec<u8>,
    input: Vec<u8>,
    logged_in: bool,
    asked: u32,
    answered: u32,
    beats: u32,
    beats_answered: u32,
    last_sent: Duration,
    closed_for: Option<u32>,
    bodies: HashMap<u32, Vec<u8>>,
}

impl Talker {
    fn new(client: Client, fate: Fate, number: usize) -> Self {
        let login = Login {
            user_id: format!("user-{number}"),
            token: "good".to_owned(),
            device_id: "d".to_owned(),
            platform: "test".to_owned(),
            ..Default::default()
        };
        let mut output = Vec::new();
        frame::write(&mut output, command::LOGIN, Flags::NONE, 1, &login.encode_to_vec());
        Self {
            client: Some(client),
            fate,
            output,
            input: Vec::new(),
            logged_in: false,
            asked: 0,
            answered: 0,
            beats: 0,
            beats_answered: 0,
            last_sent: Duration::ZERO,
            closed_for: None,
            bodies: HashMap::new(),
        }
    }

    fn step(&mut self, now: Duration, random: &mut fastrand::Rng) {
        if self.client.is_none() {
            return;
        }
        self.read(random);
        if self.logged_in && self.output.is_empty() {
            self.speak(now, random);
        }
        let Some(client) = &mut self.client else { return };
        if !self.output.is_empty() {
            let length = random.usize(1..=self.output.len());
            if let Ok(written) = client.write(&self.output[..length]) {
                self.output.drain(..written);
                self.last_sent = now;
            }
        }
    }

    fn speak(&mut self, now: Duration, random: &mut fastrand::Rng) {
        let is_done = self.asked == REQUESTS && self.answered == REQUESTS;
        match self.fate {
            Fate::Stays if is_done && self.beats_answered == self.beats => {
                // Leaves: the reply and the end come, and are read before it lets go.
                frame::write(&mut self.output, command::LOGOUT, Flags::NONE, 3, b"");
                self.fate = Fate::Silent;
                self.closed_for = Some(0);
                return;
            }
            Fate::Silent if is_done || self.closed_for.is_some() => return,
            Fate::Breaks if self.answered > REQUESTS / 2 => {
                if let Some(client) = self.client.take()
                    && random.bool()
                {
                    client.reset();
                }
                return;
            }
            _ => {}
        }
        if self.asked < REQUESTS && random.bool() {
            self.asked += 1;
            let request_id = 100 + self.asked;
            let body: Vec<u8> = (0..random.usize(0..6_000)).map(|_| random.u8(..)).collect();
            frame::write(&mut self.output, command::SEND_MESSAGE, Flags::NONE, request_id, &body);
            self.bodies.insert(request_id, body);
        } else if now - self.last_sent > Duration::from_secs(1) {
            self.beats += 1;
            frame::write(&mut self.output, command::HEARTBEAT, Flags::NONE, 2, b"");
        }
    }

    fn read(&mut self, random: &mut fastrand::Rng) {
        let mut bytes = vec![0; random.usize(1..20_000)];
        loop {
            let Some(client) = &mut self.client else { return };
            match client.read(&mut bytes) {
                Ok(0) => {
                    // What came before the end counts.
                    self.client = None;
                    break;
                }
                Ok(length) => self.input.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("a client that broke nothing: {error}"),
            }
        }
        while let Some((head, rest)) = self.input.split_first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(head, BODY_BYTES_MAX_CEILING).expect("a header");
            let Some(body) = rest.get(..header.body_length as usize) else { break };
            let body = body.to_vec();
            self.take(header.command, header.request_id, &body);
            self.input.drain(..HEADER_BYTES + header.body_length as usize);
        }
    }

    fn take(&mut self, command: u16, request_id: u32, body: &[u8]) {
        if command == command::reply(command::LOGIN) {
            let reply = session::LoginReply::decode(body).expect("a LoginReply");
            assert_eq!(reply.code, 0, "{reply:?}");
            assert!(!std::mem::replace(&mut self.logged_in, true), "one reply to a login");
        } else if command == command::reply(command::SEND_MESSAGE) {
            self.answered += 1;
            assert_eq!(request_id, 100 + self.answered, "each answer once, in order");
            assert!(self.bodies.remove(&request_id).is_some_and(|asked| asked == body));
        } else if command == command::reply(command::HEARTBEAT) {
            self.beats_answered += 1;
        } else if command == command::reply(command::LOGOUT) {
            assert_eq!(request_id, 3);
        } else {
            assert_eq!(command, command::ERROR, "nothing else is sent");
            let error = session::Error::decode(body).expect("an Error");
            assert_eq!(self.closed_for, None, "one farewell");
            self.closed_for = Some(error.code);
        }
    }
}

fn simulate(seed: u64) {
    eprintln!("MILLRACE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let network =
        Network::new(seed, if seed.is_multiple_of(4) { Faults::none() } else { Faults::many() });
    let options = Options { sockets_max: 64, accept_spare: 4, ..Options::default() };
    let config = Config::default();
    let plan = ShardPlan {
        shard: 0,
        settings: config.engine_settings(64),
        identity: GatewayIdentity {
            gateway_id: "simulated".to_owned(),
            gateway_epoch: 1,
            shards: 1,
            lease_ms: 10_000,
            window: Credit { frames: 50, bytes: 64 * 1024 },
        },
        driver: options.clone(),
        websocket: None,
        tcp: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        backlog_max: 256,
        core: None,
        links: 1,
        ring_batches_max: 1_024,
        published: Default::default(),
    };
    let driver = Driver::on(&network, options);
    let (mut shard, listening) = Shard::new(driver, plan).expect("a shard");
    let Listening { tcp, mut ports, .. } = listening;
    let address = tcp.expect("it listens");
    let mut logic = Logic::new(ports.remove(0));
    // Clients that come before the link is up are refused, which is not what is asked here.
    for _ in 0..50 {
        shard.turn().expect("a turn");
        logic.step(&mut random);
    }
    let mut talkers: Vec<Talker> = Vec::new();
    let mut turns = 0;
    loop {
        turns += 1;
        assert!(turns < TURNS_MAX, "this does not end");
        if talkers.len() < CLIENTS && random.u32(0..4) == 0 {
            let fate = [Fate::Stays, Fate::Silent, Fate::Breaks][random.usize(0..3)];
            let client = network.connect(address).expect("the backlog has room");
            talkers.push(Talker::new(client, fate, talkers.len()));
        }
        for talker in &mut talkers {
            let was_open = talker.client.is_some();
            talker.step(network.elapsed(), &mut random);
            if was_open && talker.client.is_none() && talker.closed_for == Some(idle()) {
                let silence = network.elapsed() - talker.last_sent;
                // Bytes are under way for a moment before the silence begins, and the end as well.
                let fair = IDLE - Duration::from_millis(50)..IDLE + Duration::from_millis(1_500);
                assert!(fair.contains(&silence), "closed after {silence:?}");
            }
        }
        logic.step(&mut random);
        if talkers.len() == CLIENTS && talkers.iter().all(|talker| talker.client.is_none()) {
            break;
        }
        shard.turn().expect("a turn");
    }
    for _ in 0..400 {
        shard.turn().expect("a turn");
        logic.step(&mut random);
    }
    for talker in &talkers {
        match talker.fate {
            Fate::Breaks => {}
            // Those who stayed became silent after their farewell.
            _ => {
                assert_eq!((talker.asked, talker.answered), (REQUESTS, REQUESTS));
                assert_eq!(talker.beats, talker.beats_answered);
                let codes = [Some(0), Some(idle())];
                assert!(codes.contains(&talker.closed_for), "{:?}", talker.closed_for);
            }
        }
    }
    assert!(shard.engine.is_empty(), "nothing is left behind");
    assert_eq!(crate::driver::Driver::sockets(&shard.driver), 0);
    assert_eq!(logic.started.len(), CLIENTS);
    assert_eq!(logic.started, logic.ended, "each session that started has ended");
}

fn idle() -> u32 {
    Code::IdleTimeout.number()
}

#[test]
fn a_shard_keeps_its_promises_over_a_bad_network() {
    for seed in 0..12 {
        simulate(seed);
    }
    if let Some(seed) = std::env::var("MILLRACE_SEED").ok().and_then(|text| text.parse().ok()) {
        simulate(seed);
    }
}
