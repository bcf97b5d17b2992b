//! Clients on plain sockets: those that flood, and those that only send heartbeats.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use millrace_protocol::{
    Code, command,
    frame::{self, Flags, FrameReader, HEADER_BYTES, Header},
    limits::BODY_BYTES_MAX_CEILING,
    session::{Error, Login, LoginReply},
};
use prost::Message;

use super::PATIENCE;

/// What a flooding client sends, its number included.
pub const BODY_BYTES: usize = 1_000;

/// A command that is logic's alone.
const FLOOD: u16 = 0x1000;

const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(300);

/// Connects and logs in.
fn log_in(gateway: SocketAddr, user: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.set_nodelay(true).expect("set");
    let login = Login { user_id: user.to_owned(), token: "any".to_owned(), ..Login::default() };
    let mut bytes = Vec::new();
    frame::write(&mut bytes, command::LOGIN, Flags::NONE, 1, &login.encode_to_vec());
    stream.write_all(&bytes).expect("written");
    let (header, body) = receive(&mut stream).expect("a reply");
    assert_eq!(header.command, command::reply(command::LOGIN));
    assert_eq!(LoginReply::decode(&body[..]).expect("a LoginReply").code, 0);
    stream
}

fn receive(stream: &mut TcpStream) -> Option<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let header = Header::decode(&header, BODY_BYTES_MAX_CEILING).expect("a header");
    let mut body = vec![0; header.body_length as usize];
    stream.read_exact(&mut body).ok()?;
    Some((header, body))
}

/// Clients that write as much as TCP takes.
pub struct Flooders {
    written_bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Flooded>,
}

/// What came of a flood.
pub struct Flooded {
    /// Whole frames written.
    pub frames: u64,
    /// For each client, how often it was told `rate_limited`.
    pub told: Vec<u64>,
}

impl Flooders {
    pub fn start(gateway: SocketAddr, connections: usize) -> Self {
        let written_bytes = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let streams: Vec<_> =
            (0..connections).map(|number| log_in(gateway, &format!("flooder-{number}"))).collect();
        let (written, stopped) = (written_bytes.clone(), stop.clone());
        let thread = thread::spawn(move || flood(streams, &written, &stopped));
        Self { written_bytes, stop, thread }
    }

    /// Bytes that TCP has taken from all of them.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Ends the flood with whole frames. The connections stay.
    pub fn finish(self) -> Flooded {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the flood did not fail")
    }
}

struct Flooder {
    stream: TcpStream,
    frames: u64,
    /// The frame that is being written, and how much of it is.
    bytes: Vec<u8>,
    at: usize,
    /// What came meanwhile, and how many refusals that were.
    inbound: FrameReader,
    told: u64,
}

/// Writes until told to stop. Leaks the sockets, so that nothing ends with the flood.
fn flood(streams: Vec<TcpStream>, written: &AtomicU64, stop: &AtomicBool) -> Flooded {
    let flooder = |stream: TcpStream| {
        // Small, so that ten thousand of them do not fill the kernel instead.
        rustix::net::sockopt::set_socket_send_buffer_size(&stream, 8 << 10).expect("set");
        stream.set_nonblocking(true).expect("set");
        let (bytes, inbound) = (Vec::new(), FrameReader::new());
        Flooder { stream, frames: 0, bytes, at: 0, inbound, told: 0 }
    };
    let mut flooders: Vec<_> = streams.into_iter().map(flooder).collect();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let (mut progress, mut unfinished) = (0, 0);
        for flooder in &mut flooders {
            progress += flooder.write(stopping);
            unfinished += usize::from(flooder.at < flooder.bytes.len());
        }
        written.fetch_add(progress, Ordering::Relaxed);
        if stopping && unfinished == 0 {
            break;
        }
        if progress == 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    flooders.iter_mut().for_each(Flooder::listen);
    let frames = flooders.iter().map(|flooder| flooder.frames).sum();
    let told = flooders.iter().map(|flooder| flooder.told).collect();
    std::mem::forget(flooders);
    Flooded { frames, told }
}

impl Flooder {
    /// Reads what the gateway said.
    fn listen(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = self.stream.read(&mut bytes) {
            let read =
                self.inbound.read(&bytes[..length], BODY_BYTES_MAX_CEILING, |header, body| {
                    assert_eq!(
                        header.command,
                        command::ERROR,
                        "the gateway refuses and says nothing else"
                    );
                    let error = Error::decode(body).expect("an Error");
                    assert_eq!(Code::from_number(error.code), Some(Code::RateLimited));
                    assert!(error.retry_after_ms > 0 && !error.reason.is_empty(), "{error:?}");
                    self.told += 1;
                    true
                });
            read.expect("the gateway writes frames");
        }
    }

    /// Writes a few frames, or as much as TCP takes; when stopping, only what is begun.
    fn write(&mut self, stopping: bool) -> u64 {
        let mut written = 0;
        for _ in 0..8 {
            if self.at == self.bytes.len() {
                if stopping {
                    break;
                }
                self.frames += 1;
                let mut body = [0; BODY_BYTES];
                body[..8].copy_from_slice(&self.frames.to_be_bytes());
                self.bytes.clear();
                self.at = 0;
                frame::write(&mut self.bytes, FLOOD, Flags::NONE, 0, &body);
            }
            match self.stream.write(&self.bytes[self.at..]) {
                Ok(bytes) => {
                    self.at += bytes;
                    written += bytes as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("a flooding client lost its connection: {error}"),
            }
        }
        written
    }
}

/// Clients that send a heartbeat now and then and note how long its answer took.
pub struct Heartbeats {
    answered: Arc<AtomicU64>,
    frames: Arc<AtomicU64>,
    slowest_us: Arc<AtomicU64>,
}

impl Heartbeats {
    /// Logs `clients` in; they end with the process.
    pub fn start(gateway: SocketAddr, clients: usize) -> Self {
        let heartbeats =
            Self { answered: Arc::default(), frames: Arc::default(), slowest_us: Arc::default() };
        for number in 0..clients {
            let stream = log_in(gateway, &format!("bystander-{number}"));
            let (answered, frames) = (heartbeats.answered.clone(), heartbeats.frames.clone());
            let slowest_us = heartbeats.slowest_us.clone();
            thread::spawn(move || beat(stream, &answered, &frames, &slowest_us));
        }
        heartbeats
    }

    /// Heartbeats answered, of all of them.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Frames that logic sent to them.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// The longest wait for an answer so far.
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.slowest_us.load(Ordering::Relaxed))
    }
}

/// Ends with the connection, that is with the gateway.
fn beat(mut stream: TcpStream, answered: &AtomicU64, frames: &AtomicU64, slowest_us: &AtomicU64) {
    let mut heartbeat = Vec::new();
    frame::write(&mut heartbeat, command::HEARTBEAT, Flags::NONE, 7, b"");
    loop {
        let sent = Instant::now();
        if stream.write_all(&heartbeat).is_err() {
            return;
        }
        loop {
            let Some((header, _)) = receive(&mut stream) else { return };
            if header.command == command::reply(command::HEARTBEAT) {
                break;
            }
            frames.fetch_add(1, Ordering::Relaxed);
        }
        slowest_us.fetch_max(sent.elapsed().as_micros() as u64, Ordering::Relaxed);
        answered.fetch_add(1, Ordering::Relaxed);
        thread::sleep(HEARTBEAT_INTERVAL);
    }
}
