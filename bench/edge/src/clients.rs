//! Many clients on one thread and one ring: they connect, and then either talk in turns with the
//! server (one message under way each) or listen. Every byte that comes back is compared.
//!
//! It is as lean as it can be, so that a core of it keeps a core of any server busy; it knows
//! nothing of schedules, which is the load generator's business.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use millrace_protocol::{
    command,
    frame::{self, Flags, FrameReader},
    session,
    websocket::{self, Limits, Message, MessageReader, Opcode, Role},
};
use millrace_uring::{Driver, Handler, ListenerId, Options, SocketId};
use prost::Message as _;

/// What is spoken, which decides how a connection is opened and what an answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// Bytes that come back as they are.
    Raw,
    /// WebSocket messages that come back as they are.
    WebSocket,
    /// Millrace over WebSocket: a login, then heartbeats that are answered.
    Millrace,
}

/// Who connects, and where.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What is spoken.
    pub speech: Speech,
    /// The server.
    pub address: SocketAddr,
    /// How many connections; at most what one descriptor table holds.
    pub connections: u32,
    /// Bytes of a message, without framing; heartbeats have none.
    pub message_bytes: usize,
}

/// What a time of talking was like.
#[derive(Clone, Debug)]
pub struct Talk {
    /// Answers that came in the measured time.
    pub messages: u64,
    /// The measured time.
    pub took: Duration,
    /// From a send to the whole answer, in microseconds. With every connection always waiting it
    /// says how long the queue is, not how fast the server answers.
    pub round_trip_us: Histogram<u64>,
}

/// Connections that are being opened at once.
const OPENING_MAX: u32 = 256;
/// Connections that share one source address, well below the ports there are.
const CONNECTIONS_PER_SOURCE: u32 = 20_000;
const MASKING_KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
const WEBSOCKET_KEY: [u8; 16] = [7; 16];
const STALL_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Stage {
    Connecting,
    Upgrading(Vec<u8>),
    LoggingIn(Box<MessageReader>),
    Open,
}

#[derive(Debug)]
struct Station {
    socket: SocketId,
    stage: Stage,
    /// Bytes of the expected answer that have arrived.
    received: usize,
    /// When its message went out.
    sent_at_ns: u64,
    talks: bool,
}

/// What the callbacks change.
struct Crowd {
    plan: Plan,
    begin: Instant,
    now_ns: u64,
    stations: Vec<Station>,
    open: u32,
    /// What has to be sent, by station: a step of opening.
    steps: Vec<(u32, Vec<u8>)>,
    /// Stations whose message is due.
    due: Vec<u32>,
    /// What every answer must be.
    expected: Vec<u8>,
    complete: u64,
    round_trip_us: Histogram<u64>,
    failure: Option<String>,
}

/// Many clients.
pub struct Clients {
    driver: Driver,
    crowd: Crowd,
    /// What every client says.
    message: Vec<u8>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").field("plan", &self.crowd.plan).finish_non_exhaustive()
    }
}

impl Clients {
    /// Connects all of them, and returns when the last one may talk. `run` keeps the source
    /// addresses of several runs apart, so that ports of the last one may still be waiting.
    ///
    /// # Errors
    /// The ring cannot be had; a connection, an upgrade or a login fails; nothing happens for ten
    /// seconds.
    pub fn connect(plan: Plan, run: u32) -> Result<Self> {
        let descriptors = millrace_uring::raise_descriptor_limit()?;
        let options = Options {
            sockets_max: u32::try_from(descriptors.min(1 << 20))?,
            submission_entries: 2048,
            completion_entries: 16_384,
            receive_buffers: 2048,
            receive_buffer_bytes: 512,
            send_buffers_max: 32_768,
            ..Options::default()
        };
        ensure!(
            u64::from(plan.connections) < descriptors,
            "{} connections do not fit one table of {descriptors} descriptors",
            plan.connections
        );
        let (message, expected) = dialogue(plan);
        let crowd = Crowd {
            plan,
            begin: Instant::now(),
            now_ns: 0,
            stations: Vec::with_capacity(plan.connections as usize),
            open: 0,
            steps: Vec::new(),
            due: Vec::new(),
            expected,
            complete: 0,
            round_trip_us: Histogram::new_with_max(60_000_000, 3)?,
            failure: None,
        };
        let mut clients = Self { driver: Driver::new(options)?, crowd, message };
        let mut opened_last = (0, Instant::now());
        while clients.crowd.open < plan.connections {
            let begun = clients.crowd.stations.len() as u32;
            let room = OPENING_MAX.saturating_sub(begun - clients.crowd.open);
            for index in begun..plan.connections.min(begun + room) {
                clients.begin(index, run)?;
            }
            clients.step(Some(Duration::from_millis(100)))?;
            if clients.crowd.open != opened_last.0 {
                opened_last = (clients.crowd.open, Instant::now());
            }
            ensure!(
                opened_last.1.elapsed() < STALL_MAX,
                "only {} of {} connections could be opened",
                clients.crowd.open,
                plan.connections
            );
        }
        Ok(clients)
    }

    fn begin(&mut self, index: u32, run: u32) -> Result<()> {
        let plan = self.crowd.plan;
        // 127.1.0.0 and on: an address of its own for each run, as long as 60,000 runs.
        let number = run * 8 + index / CONNECTIONS_PER_SOURCE;
        let source = Ipv4Addr::from_bits((127 << 24) + (1 << 16) + 1 + number % 65_000);
        let source = match plan.address.ip() {
            IpAddr::V4(address) if address.is_loopback() => {
                Some(SocketAddr::new(IpAddr::V4(source), 0))
            }
            _ => None,
        };
        let socket = self.driver.connect(plan.address, source, u64::from(index))?;
        self.crowd.stations.push(Station {
            socket,
            stage: Stage::Connecting,
            received: 0,
            sent_at_ns: 0,
            talks: false,
        });
        Ok(())
    }

    /// Waits for what happens, at most so long, and does what follows from it.
    fn step(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.driver.poll(timeout, &mut self.crowd)?;
        let crowd = &mut self.crowd;
        if let Some(failure) = crowd.failure.take() {
            bail!(failure);
        }
        crowd.now_ns = crowd.begin.elapsed().as_nanos() as u64;
        for (index, bytes) in crowd.steps.drain(..) {
            self.driver.send(crowd.stations[index as usize].socket, bytes);
        }
        for index in crowd.due.drain(..) {
            let station = &mut crowd.stations[index as usize];
            if station.sent_at_ns > 0 {
                let took_ns = crowd.now_ns - station.sent_at_ns;
                crowd.round_trip_us.saturating_record(took_ns / 1_000);
            }
            if self.driver.is_sending(station.socket) {
                // The answer is here before the send is known to be done: `sent` comes soon.
                station.sent_at_ns = 0;
                continue;
            }
            station.sent_at_ns = crowd.now_ns;
            let mut buffer = self.driver.take_buffer();
            buffer.extend_from_slice(&self.message);
            self.driver.send(station.socket, buffer);
        }
        Ok(())
    }

    /// The first `active` connections talk: each sends its next message when the answer to the
    /// last one is there. What happens in the warm-up is not counted; `begun` is called after it.
    ///
    /// # Errors
    /// A connection ends, or an answer is not what it must be.
    pub fn talk(
        &mut self,
        active: u32,
        warm_up: Duration,
        measured: Duration,
        begun: impl FnOnce(),
    ) -> Result<Talk> {
        for index in 0..active.min(self.crowd.plan.connections) {
            self.crowd.stations[index as usize].talks = true;
            self.crowd.due.push(index);
        }
        let end = Instant::now() + warm_up;
        self.step(Some(Duration::ZERO))?;
        while Instant::now() < end {
            self.step(Some(Duration::from_millis(10)))?;
        }
        self.crowd.round_trip_us.reset();
        let before = self.crowd.complete;
        begun();
        let begin = Instant::now();
        while begin.elapsed() < measured {
            self.step(Some(Duration::from_millis(10)))?;
        }
        Ok(Talk {
            messages: self.crowd.complete - before,
            took: begin.elapsed(),
            round_trip_us: self.crowd.round_trip_us.clone(),
        })
    }

    /// Everybody receives exactly `expected`, which is the same for all; returns when the last one
    /// has it.
    ///
    /// # Errors
    /// A connection ends, bytes are other than expected, or nothing comes for ten seconds.
    pub fn listen(&mut self, expected: Vec<u8>) -> Result<()> {
        self.crowd.expected = expected;
        let target = self.crowd.complete + u64::from(self.crowd.plan.connections);
        let mut last = (self.crowd.complete, Instant::now());
        while self.crowd.complete < target {
            self.step(Some(Duration::from_millis(100)))?;
            if self.crowd.complete != last.0 {
                last = (self.crowd.complete, Instant::now());
            }
            ensure!(
                last.1.elapsed() < STALL_MAX,
                "{} of {} members did not get the whole message",
                target - self.crowd.complete,
                self.crowd.plan.connections
            );
        }
        Ok(())
    }
}

/// What every client says, and what the answer must be.
fn dialogue(plan: Plan) -> (Vec<u8>, Vec<u8>) {
    let payload = vec![b'm'; plan.message_bytes];
    let framed = |payload: &[u8], key| {
        let mut bytes = Vec::new();
        websocket::write_frame(&mut bytes, Opcode::Binary, true, key, payload);
        bytes
    };
    match plan.speech {
        Speech::Raw => (payload.clone(), payload),
        Speech::WebSocket => (framed(&payload, Some(MASKING_KEY)), framed(&payload, None)),
        Speech::Millrace => {
            let (mut beat, mut answer) = (Vec::new(), Vec::new());
            frame::write(&mut beat, command::HEARTBEAT, Flags::NONE, 7, &[]);
            let reply = command::reply(command::HEARTBEAT);
            frame::write(&mut answer, reply, Flags::NONE, 7, &[]);
            (framed(&beat, Some(MASKING_KEY)), framed(&answer, None))
        }
    }
}

fn login(index: u32) -> Vec<u8> {
    let login = session::Login {
        user_id: format!("user-{index:07}"),
        token: "token".to_owned(),
        device_id: "device-1".to_owned(),
        platform: "bench".to_owned(),
        ..session::Login::default()
    };
    let mut request = Vec::new();
    frame::write(&mut request, command::LOGIN, Flags::NONE, 1, &login.encode_to_vec());
    let mut bytes = Vec::new();
    websocket::write_frame(&mut bytes, Opcode::Binary, true, Some(MASKING_KEY), &request);
    bytes
}

impl Crowd {
    fn opened(&mut self, index: u32) {
        self.stations[index as usize].stage = Stage::Open;
        self.open += 1;
    }

    fn upgrade(&mut self, index: u32, head: &[u8]) -> Result<bool> {
        let Some((used, _)) = websocket::read_upgrade_response(head, &WEBSOCKET_KEY)? else {
            return Ok(false);
        };
        ensure!(used == head.len(), "the server spoke before it was spoken to");
        if self.plan.speech == Speech::Millrace {
            self.steps.push((index, login(index)));
            self.stations[index as usize].stage = Stage::LoggingIn(Box::default());
        } else {
            self.opened(index);
        }
        Ok(true)
    }

    fn logged_in(reader: &mut MessageReader, bytes: &mut [u8]) -> Result<bool> {
        let limits = Limits { message_bytes_max: 1 << 16 };
        let (used, message) = reader.read(Role::Client, &limits, bytes)?;
        let Some(message) = message else { return Ok(false) };
        let Message::Binary(message) = message else { bail!("a binary message was expected") };
        let mut answer = None;
        FrameReader::new().read(message, 1 << 16, |header, body| {
            answer = Some((header.command, session::LoginReply::decode(body)));
            true
        })?;
        let (command, reply) = answer.context("an empty message")?;
        let reply = reply?;
        ensure!(
            command == command::reply(command::LOGIN) && reply.code == 0,
            "the login was refused: {command:#06x} {reply:?}"
        );
        ensure!(used == bytes.len(), "something follows the answer to the login");
        Ok(true)
    }

    fn take(&mut self, index: u32, bytes: &mut [u8]) -> Result<()> {
        let station = &mut self.stations[index as usize];
        match &mut station.stage {
            Stage::Open => {
                let end = station.received + bytes.len();
                ensure!(
                    self.expected.get(station.received..end) == Some(&*bytes),
                    "client {index} received something else than it was to"
                );
                station.received = end;
                if end == self.expected.len() {
                    station.received = 0;
                    self.complete += 1;
                    if station.talks {
                        self.due.push(index);
                    }
                }
                Ok(())
            }
            Stage::Upgrading(head) => {
                head.extend_from_slice(bytes);
                let head = std::mem::take(head);
                if !self.upgrade(index, &head)? {
                    self.stations[index as usize].stage = Stage::Upgrading(head);
                }
                Ok(())
            }
            Stage::LoggingIn(reader) => {
                if Self::logged_in(reader, bytes)? {
                    self.opened(index);
                }
                Ok(())
            }
            Stage::Connecting => bail!("bytes before the connection stands"),
        }
    }
}

impl Handler for Crowd {
    fn accepted(&mut self, _: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        u64::MAX
    }

    fn connected(&mut self, _: SocketId, context: u64, result: io::Result<()>) {
        let index = context as u32;
        if let Err(error) = result {
            self.failure = Some(format!("client {index} cannot connect: {error}"));
        } else if self.plan.speech == Speech::Raw {
            self.opened(index);
        } else {
            let mut request = Vec::new();
            let host = self.plan.address.to_string();
            let (path, subprotocol) = match self.plan.speech {
                Speech::Millrace => ("/ws", Some("millrace.v1")),
                _ => ("/", None),
            };
            websocket::write_upgrade_request(
                &mut request,
                &host,
                path,
                subprotocol,
                &WEBSOCKET_KEY,
            );
            self.steps.push((index, request));
            self.stations[index as usize].stage = Stage::Upgrading(Vec::new());
        }
    }

    fn received(&mut self, _: SocketId, context: u64, bytes: &mut [u8]) {
        if let Err(error) = self.take(context as u32, bytes) {
            self.failure = Some(error.to_string());
        }
    }

    fn receive_ended(&mut self, _: SocketId, context: u64, result: io::Result<()>) {
        self.failure =
            Some(format!("the server ended the connection of client {context}: {result:?}"));
    }

    fn sent(&mut self, _: SocketId, context: u64, result: io::Result<()>) {
        if let Err(error) = result {
            self.failure = Some(format!("client {context} cannot send: {error}"));
            return;
        }
        // Its answer came first, and the next message has waited for this.
        let station = &self.stations[context as usize];
        if station.talks && station.sent_at_ns == 0 {
            self.due.push(context as u32);
        }
    }

    fn closed(&mut self, _: SocketId, _: u64) {}

    fn woken(&mut self) {}
}
