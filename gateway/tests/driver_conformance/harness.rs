//! A driver with a handler that keeps a ledger, and checks with every callback that it may come.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use millrace_gateway::driver::{Driver, Handler, ListenerId, Options, SocketId};

use crate::worlds::{Client, World};

/// No healthy machine needs as long, however busy.
const PATIENCE: Duration = Duration::from_secs(100);

/// Small sizes, so that tests run side by side.
pub fn small() -> Options {
    Options {
        sockets_max: 512,
        submission_entries: 256,
        completion_entries: 1024,
        receive_buffers: 64,
        receive_buffer_bytes: 2048,
        accept_spare: 4,
        ..Options::default()
    }
}

/// What is known of a socket.
#[derive(Debug, Default)]
pub struct Life {
    pub context: u64,
    /// Everything that was received and not taken.
    pub received: Vec<u8>,
    /// How receiving ended.
    pub ended: Option<Result<(), io::ErrorKind>>,
    /// Sends that were asked for, that succeeded, and that failed.
    pub sends: u64,
    pub sent: u64,
    pub send_failed: u64,
    pub is_closing: bool,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub lives: HashMap<SocketId, Life>,
    known: HashSet<SocketId>,
    next_context: u64,
    /// In order.
    pub accepted: Vec<(SocketId, ListenerId, SocketAddr)>,
    pub closed: Vec<SocketId>,
    pub woken: u64,
}

impl Ledger {
    fn life(&mut self, socket: SocketId, context: u64) -> &mut Life {
        let life = self.lives.get_mut(&socket).expect("only living sockets are called");
        assert_eq!(life.context, context, "the context of another socket");
        assert!(!life.is_closing, "after close only closed follows");
        life
    }
}

impl Handler for Ledger {
    fn accepted(&mut self, socket: SocketId, listener: ListenerId, peer: SocketAddr) -> u64 {
        assert!(self.known.insert(socket), "an id is never used again");
        self.next_context += 1;
        self.lives.insert(socket, Life { context: self.next_context, ..Life::default() });
        self.accepted.push((socket, listener, peer));
        self.next_context
    }

    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {
        panic!("nobody connects here");
    }

    fn received(&mut self, socket: SocketId, context: u64, bytes: &mut [u8]) {
        assert!(!bytes.is_empty());
        let life = self.life(socket, context);
        assert!(life.ended.is_none(), "nothing is received after the end");
        life.received.extend_from_slice(bytes);
        // The buffer may be changed in place.
        bytes.fill(0);
    }

    fn receive_ended(&mut self, socket: SocketId, context: u64, result: io::Result<()>) {
        let life = self.life(socket, context);
        assert!(life.ended.is_none(), "the end comes once");
        life.ended = Some(result.map_err(|error| error.kind()));
    }

    fn sent(&mut self, socket: SocketId, context: u64, result: io::Result<()>) {
        let life = self.life(socket, context);
        match result {
            Ok(()) => life.sent += 1,
            Err(_) => life.send_failed += 1,
        }
        assert!(life.sent + life.send_failed <= life.sends, "a send is reported once");
    }

    fn closed(&mut self, socket: SocketId, context: u64) {
        let life = self.lives.remove(&socket).expect("a close is reported once");
        assert!(life.is_closing && life.context == context);
        self.closed.push(socket);
    }

    fn woken(&mut self) {
        self.woken += 1;
    }
}

/// One world with one driver in it.
pub struct Bench<W: World> {
    pub driver: W::Driver,
    pub ledger: Ledger,
    pub random: fastrand::Rng,
    pub world: W,
    deadline: Instant,
}

impl<W: World> Bench<W> {
    pub fn new(options: Options) -> Self {
        // The same without being told; MILLRACE_SEED=random looks for what that one does not show.
        let seed = match std::env::var("MILLRACE_SEED").as_deref() {
            Ok("random") => fastrand::u64(..),
            Ok(text) => text.parse().expect("MILLRACE_SEED is a number, or random"),
            Err(_) => 1,
        };
        eprintln!("MILLRACE_SEED={seed}");
        let world = W::new(seed);
        let driver = world.driver(options);
        let random = fastrand::Rng::with_seed(seed);
        let deadline = Instant::now() + PATIENCE;
        Self { driver, ledger: Ledger::default(), random, world, deadline }
    }

    pub fn listen(&mut self, backlog: u32) -> SocketAddr {
        self.driver.listen("127.0.0.1:0".parse().unwrap(), backlog).unwrap().1
    }

    /// One poll that does not wait long.
    #[track_caller]
    pub fn turn(&mut self) {
        self.poll(Some(Duration::from_millis(2)));
    }

    #[track_caller]
    pub fn poll(&mut self, timeout: Option<Duration>) -> usize {
        assert!(Instant::now() < self.deadline, "this does not end: {:?}", self.ledger);
        self.driver.poll(timeout, &mut self.ledger).unwrap()
    }

    /// Turns until this holds.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        while !holds(self) {
            assert!(Instant::now() < self.deadline, "never happened: {what}: {:?}", self.ledger);
            self.turn();
        }
    }

    /// A client, and its socket at the driver.
    #[track_caller]
    pub fn connect(&mut self, address: SocketAddr) -> (W::Client, SocketId) {
        let before = self.ledger.accepted.len();
        let client = self.world.connect(address).unwrap();
        self.until("the accept", |bench| bench.ledger.accepted.len() > before);
        (client, self.ledger.accepted[before].0)
    }

    pub fn life(&mut self, id: SocketId) -> &mut Life {
        self.ledger.lives.get_mut(&id).expect("it lives")
    }

    pub fn send(&mut self, id: SocketId, bytes: Vec<u8>) {
        if let Some(life) = self.ledger.lives.get_mut(&id)
            && !life.is_closing
        {
            life.sends += 1;
        }
        self.driver.send(id, bytes);
    }

    pub fn close(&mut self, id: SocketId) {
        if let Some(life) = self.ledger.lives.get_mut(&id) {
            life.is_closing = true;
        }
        self.driver.close(id);
    }

    #[track_caller]
    pub fn close_and_wait(&mut self, id: SocketId) {
        self.close(id);
        self.until("the close", |bench| bench.ledger.closed.contains(&id));
    }

    /// Reads exactly so many bytes while the driver works.
    #[track_caller]
    pub fn read(&mut self, client: &mut W::Client, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        self.until("the bytes", |_| {
            let mut bytes = vec![0; (length - all.len()).min(65_536)];
            match client.read(&mut bytes) {
                Ok(0) => panic!("the end after {} of {length} bytes", all.len()),
                Ok(read) => all.extend_from_slice(&bytes[..read]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
            }
            all.len() == length
        });
        all
    }

    /// Reads until the end of stream or a reset; whether it was the former.
    #[track_caller]
    pub fn read_to_end(&mut self, client: &mut W::Client) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        let mut is_end = None;
        self.until("the end", |_| {
            let mut bytes = vec![0; 65_536];
            match client.read(&mut bytes) {
                Ok(0) => is_end = Some(true),
                Ok(read) => all.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => is_end = Some(false),
            }
            is_end.is_some()
        });
        (all, is_end == Some(true))
    }

    /// Writes all of it while the driver works.
    #[track_caller]
    pub fn write(&mut self, client: &mut W::Client, mut bytes: &[u8]) {
        self.until("the writing", |_| {
            match client.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
            }
            bytes.is_empty()
        });
    }
}

/// Bytes in which a loss, a repetition or a change of order shows.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 253) as u8).collect()
}
