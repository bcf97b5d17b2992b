//! What the link carries, and what a frame costs at each end: the gateway's real link threads, rings
//! and streams against the SDK's real server, over loopback in one process. Only the shard is missing;
//! a thread stands in for it that makes frames and takes frames.
//!
//! `cargo run --release -p millrace-gateway --example link-load -- [--links 2] [--link-threads 1]
//! [--seconds 2] [--body-bytes 100]`
//!
//! CPU is that of the link threads (gateway's end) and of the runtime that the server is on (logic's
//! end, where making the frames that go down is included), each for itself, from the scheduler's
//! accounting. The stand-in shards are not part of it, but use the same cores.

#![allow(clippy::print_stdout)] // The tables are what this program is for.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Parser;
use millrace_gateway::link_measuring::{self, LinkEnd};
use millrace_logic_sdk::{
    Accepted, Backend, Ended, Gateways, Inbound, Login, Refused, Server, ServerSettings, Session,
    SessionAddress,
};
use millrace_protocol::{
    frame::Flags,
    link::{
        ClientFrame, ConnectRequest, Credit, GatewayEvent, Hello, Session as ListedSession,
        SessionsComplete, gateway_event::Kind, logic_event,
    },
};
use millrace_service::cpu_time;

/// As in the processes whose ends these are.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sessions that a stand-in shard lists.
const SESSIONS: u64 = 1_000;

/// What both ends grant, and the gateway's default.
const WINDOW: Credit = Credit { frames: 65_536, bytes: 32 << 20 };

/// Frames that wait in the server for one gateway before the producer pauses.
const PRODUCED_MAX: usize = 16_384;

const COMMAND: u16 = 0x1000;

#[derive(Clone, Parser)]
struct Arguments {
    /// Links, as a gateway has one a shard.
    #[arg(long, default_value_t = 2)]
    links: usize,
    /// Threads that carry them.
    #[arg(long, default_value_t = 1)]
    link_threads: usize,
    /// Length of each measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Body of a frame.
    #[arg(long, default_value_t = 100)]
    body_bytes: usize,
    /// Only this direction, and this many frames a batch (for a profile).
    #[arg(long, value_enum, requires = "frames_per_batch")]
    only: Option<Work>,
    #[arg(long)]
    frames_per_batch: Option<usize>,
    /// Round trips on a quiet link.
    #[arg(long, default_value_t = 20_000)]
    rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Work {
    /// Frames from the gateway, which logic takes and drops.
    Up,
    /// Frames to the gateway, made as fast as they leave.
    Down,
    /// Every frame from the gateway is answered with its body.
    Both,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    println!(
        "{} links on {} threads, frames of {} bytes\n",
        arguments.links, arguments.link_threads, arguments.body_bytes
    );
    println!(
        "| direction | frames a batch | frames/s | gateway's end, µs a frame | logic's end, µs a frame |"
    );
    println!("|---|---|---|---|---|");
    for work in [Work::Up, Work::Down, Work::Both] {
        for frames_per_batch in [1, 4, 16, 64, 256] {
            let wanted = arguments.frames_per_batch.unwrap_or(frames_per_batch);
            if arguments.only.unwrap_or(work) != work || wanted != frames_per_batch {
                continue;
            }
            let logic = Logic::start(work, frames_per_batch)?;
            let result = saturate(&arguments, &logic, work, frames_per_batch)?;
            println!(
                "| {work:?} | {frames_per_batch} | {:.0} | {:.2} | {:.2} |",
                result.frames as f64 / result.took.as_secs_f64(),
                result.each_us("link-"),
                result.each_us("logic"),
            );
        }
    }
    if arguments.only.is_some() {
        return Ok(());
    }
    let logic = Logic::start(Work::Both, 1)?;
    quiet(&arguments, &logic)
}

/// The server on a thread and runtime of its own, which is the fastest for the link alone.
struct Logic {
    address: SocketAddr,
    frames: Arc<AtomicU64>,
    /// Dropping it ends the runtime.
    _stop: mpsc::SyncSender<()>,
}

impl Logic {
    fn start(work: Work, frames_per_batch: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let (stop, stopped) = mpsc::sync_channel::<()>(1);
        let (tell, told) = mpsc::sync_channel(1);
        let frames = Arc::new(AtomicU64::new(0));
        let counted = frames.clone();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            thread::spawn(move || {
                let _stopped = stopped.recv();
                let _ended = end.send(());
            });
            runtime.block_on(async move {
                let settings = ServerSettings {
                    batch_events_max: frames_per_batch,
                    window_frames_max: WINDOW.frames,
                    window_bytes_max: WINDOW.bytes,
                    ..ServerSettings::default()
                };
                let backend = |gateways| Arc::new(Echo { gateways, work, frames: counted });
                let address = "127.0.0.1:0".parse().expect("an address");
                let server = Server::bind(address, settings, backend).await.expect("it listens");
                tell.send(server.address()).expect("somebody waits");
                let _end = ended.await;
            });
        };
        thread::Builder::new().name("logic".to_owned()).spawn(body)?;
        Ok(Self { address: told.recv()?, frames, _stop: stop })
    }
}

struct Echo {
    gateways: Gateways,
    work: Work,
    /// Frames taken.
    frames: Arc<AtomicU64>,
}

impl Backend for Echo {
    async fn login(&self, login: Login) -> Result<Accepted, Refused> {
        Ok(Accepted { user_id: login.user_id, ..Accepted::default() })
    }

    fn session_started(&self, _session: Arc<Session>) {}

    async fn refresh(&self, _session: Arc<Session>, _token: String) -> Result<i64, Refused> {
        Ok(0)
    }

    async fn frames(&self, frames: Vec<Inbound>) {
        self.frames.fetch_add(frames.len() as u64, Ordering::Relaxed);
        if self.work == Work::Both {
            let mut batch = self.gateways.batch();
            for inbound in &frames {
                batch.reply(inbound, inbound.body.clone());
            }
        }
    }

    fn session_ended(&self, _session: Arc<Session>, _ended: Ended) {}

    /// A gateway has come: with [`Work::Down`] it is sent frames for ever. Its sessions say how
    /// long they are to be.
    fn sessions_replayed(&self, started: Vec<Arc<Session>>, _kept: Vec<Arc<Session>>) {
        if self.work != Work::Down {
            return;
        }
        let Some(first) = started.first() else { return };
        let body = first.state.clone();
        let addresses: Vec<SessionAddress> =
            started.iter().map(|session| session.address).collect();
        let gateways = self.gateways.clone();
        tokio::spawn(produce(gateways, addresses, body));
    }
}

/// Sends frames, one session each, as long as few enough wait.
async fn produce(gateways: Gateways, addresses: Vec<SessionAddress>, body: Bytes) {
    let mut next = addresses.iter().cycle();
    let shard = addresses[0].gateway;
    loop {
        let waiting = gateways
            .gateways()
            .iter()
            .find(|status| status.key == shard)
            .map(|status| if status.connected { status.outbox_frames } else { usize::MAX });
        match waiting {
            None => return,
            Some(frames) if frames < PRODUCED_MAX => {
                let mut batch = gateways.batch();
                for address in next.by_ref().take(1_024) {
                    // A body of its own for each, as messages have.
                    let body = Bytes::copy_from_slice(&body);
                    batch.send(&[*address], COMMAND, Flags::NONE, body);
                }
            }
            Some(_) => {}
        }
        tokio::task::yield_now().await;
    }
}

/// What one measurement came to.
struct Measured {
    frames: u64,
    took: Duration,
    /// CPU by thread name.
    threads: Vec<(String, Duration)>,
}

impl Measured {
    /// CPU a frame of the threads whose name begins so.
    fn each_us(&self, name: &str) -> f64 {
        let ours = self.threads.iter().filter(|(thread, _)| thread.starts_with(name));
        let total: Duration = ours.map(|(_, time)| *time).sum();
        total.as_secs_f64() * 1e6 / self.frames as f64
    }
}

/// CPU used between two looks, by thread name; threads that ended meanwhile are left out.
fn used(before: &[(String, Duration)]) -> Vec<(String, Duration)> {
    let sum = |threads: &[(String, Duration)], name: &str| -> Duration {
        threads.iter().filter(|(thread, _)| thread == name).map(|(_, time)| *time).sum()
    };
    let after = cpu_time::of_threads(None);
    let mut names: Vec<_> = after.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    names.dedup();
    let time = |name: String| {
        let used = sum(&after, &name).saturating_sub(sum(before, &name));
        (name, used)
    };
    names.into_iter().map(time).collect()
}

/// As many frames as go, for the time of a measurement.
fn saturate(
    arguments: &Arguments,
    logic: &Logic,
    work: Work,
    frames_per_batch: usize,
) -> Result<Measured, Box<dyn std::error::Error>> {
    let uri = format!("http://{}", logic.address);
    let stop = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let ready = Arc::new(Barrier::new(arguments.links + 1));
    let mut shards = Vec::new();
    // Each end is used by the thread it was made for.
    let ends = link_measuring::start(&uri, arguments.links, arguments.link_threads, 64)?;
    for (number, end) in ends.into_iter().enumerate() {
        let (stop, received, ready) = (stop.clone(), received.clone(), ready.clone());
        let body_bytes = arguments.body_bytes;
        let run = move || {
            let mut shard = StandIn::open(end, number, body_bytes);
            shard.wants_replies = work == Work::Both;
            ready.wait();
            while !stop.load(Ordering::Relaxed) {
                let moved = shard.turn(if work == Work::Down { 0 } else { frames_per_batch });
                received.fetch_add(moved, Ordering::Relaxed);
            }
        };
        shards.push(thread::Builder::new().name(format!("shard-{number}")).spawn(run)?);
    }
    ready.wait();
    let count = || match work {
        Work::Up => logic.frames.load(Ordering::Relaxed),
        Work::Down | Work::Both => received.load(Ordering::Relaxed),
    };
    thread::sleep(Duration::from_millis(300));
    let (began, frames_before, before) = (Instant::now(), count(), cpu_time::of_threads(None));
    thread::sleep(Duration::from_secs(arguments.seconds));
    let (took, frames, threads) = (began.elapsed(), count() - frames_before, used(&before));
    stop.store(true, Ordering::Relaxed);
    for shard in shards {
        shard.join().map_err(|_| "a stand-in shard failed")?;
    }
    Ok(Measured { frames, took, threads })
}

/// One frame at a time on a link that has nothing else to do.
fn quiet(arguments: &Arguments, logic: &Logic) -> Result<(), Box<dyn std::error::Error>> {
    let uri = format!("http://{}", logic.address);
    let mut ends = link_measuring::start(&uri, 1, 1, 64)?;
    let mut shard = StandIn::open(ends.pop().ok_or("one link")?, 0, arguments.body_bytes);
    let mut waits = Vec::with_capacity(arguments.rounds as usize);
    let before = cpu_time::of_threads(None);
    for _ in 0..arguments.rounds {
        let began = Instant::now();
        shard.send(1);
        while shard.take() == 0 {
            shard.end.wait(Duration::from_secs(1));
        }
        waits.push(began.elapsed());
    }
    let threads = used(&before);
    waits.sort();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let measured = Measured { frames: waits.len() as u64, took: waits.iter().sum(), threads };
    println!(
        "\none frame at a time: round trip p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs; CPU a round: gateway's end \
         {:.1} µs, logic's end {:.1} µs",
        at(0.5),
        at(0.99),
        at(0.999),
        measured.each_us("link-"),
        measured.each_us("logic"),
    );
    Ok(())
}

/// A thread that behaves towards its link as a shard does.
struct StandIn {
    end: LinkEnd,
    sequence: u64,
    /// Frames sent so far.
    sent: u64,
    credit: Credit,
    owed: Credit,
    body: Bytes,
    wants_replies: bool,
}

/// Gateway ids are not to meet again: the sessions of an earlier one would have to end first.
static GATEWAYS: Mutex<u64> = Mutex::new(0);

impl StandIn {
    /// Says Hello, lists the sessions, and returns when logic has answered.
    fn open(end: LinkEnd, number: usize, body_bytes: usize) -> Self {
        let body = Bytes::from(vec![7; body_bytes]);
        let none = Credit::default();
        let mut this =
            Self { end, sequence: 1, sent: 0, credit: none, owed: none, body, wants_replies: true };
        let life = {
            let mut gateways = GATEWAYS.lock().expect("lock");
            *gateways += 1;
            *gateways
        };
        let hello = Kind::Hello(Hello {
            gateway_id: format!("measured-{life}"),
            gateway_epoch: 1,
            shard: number as u32,
            shards: 1,
            lease_ms: 10_000,
            window: Some(WINDOW),
            moves: false,
        });
        let session = |session_id| {
            Kind::Session(ListedSession {
                session_id,
                user_id: format!("user-{session_id}"),
                state: this.body.clone(),
                ..ListedSession::default()
            })
        };
        let complete = Kind::SessionsComplete(SessionsComplete { sessions: SESSIONS });
        let kinds = [hello].into_iter().chain((1..=SESSIONS).map(session)).chain([complete]);
        let events: Vec<_> = kinds.map(|kind| GatewayEvent { kind: Some(kind) }).collect();
        while !this.end.is_up() {
            this.take();
            this.end.wait(Duration::from_millis(100));
        }
        this.offer(events);
        while this.credit.frames == 0 {
            this.take();
            this.end.wait(Duration::from_millis(100));
        }
        this
    }

    /// Takes what came, sends what may go, sleeps if there was nothing to do. Returns the frames
    /// that came.
    fn turn(&mut self, frames_per_batch: usize) -> u64 {
        let taken = self.take();
        let mut sent = false;
        while frames_per_batch > 0
            && self.credit.frames >= frames_per_batch as u64
            && self.credit.bytes >= (frames_per_batch * self.body.len()) as u64
            && self.end.has_room()
        {
            self.send(frames_per_batch);
            sent = true;
        }
        if self.owed.frames >= WINDOW.frames / 4 && self.end.has_room() {
            self.offer(Vec::new());
            sent = true;
        }
        if taken == 0 && !sent {
            self.end.wait(Duration::from_millis(100));
        }
        taken
    }

    fn send(&mut self, frames: usize) {
        let frame = |number: u64| {
            let frame = ClientFrame {
                session_id: 1 + number % SESSIONS,
                command: u32::from(COMMAND),
                request_id: if self.wants_replies { 1 + (number as u32 >> 1) } else { 0 },
                // A copy, as the engine makes one out of its receive buffer.
                body: Bytes::copy_from_slice(&self.body),
                ..ClientFrame::default()
            };
            GatewayEvent { kind: Some(Kind::Frame(frame)) }
        };
        let events = (self.sent..self.sent + frames as u64).map(frame).collect();
        self.sent += frames as u64;
        self.credit.frames -= frames as u64;
        self.credit.bytes -= (frames * self.body.len()) as u64;
        self.offer(events);
    }

    fn offer(&mut self, events: Vec<GatewayEvent>) {
        let credit = Some(std::mem::take(&mut self.owed)).filter(|credit| credit.frames > 0);
        let sequence = self.sequence;
        self.sequence += events.len() as u64;
        let sent = self.end.send(ConnectRequest { sequence, credit, events, state: None });
        sent.expect("the link is up and there was room");
    }

    /// Everything that has come; returns how many frames it was.
    fn take(&mut self) -> u64 {
        let mut frames = 0;
        while let Some(batch) = self.end.take() {
            if let Some(credit) = batch.credit {
                self.credit.frames += credit.frames;
                self.credit.bytes += credit.bytes;
            }
            for event in batch.events {
                match event.kind {
                    Some(logic_event::Kind::HelloReply(reply)) => {
                        self.credit = reply.window.unwrap_or_default();
                    }
                    Some(logic_event::Kind::SendFrame(frame)) => {
                        frames += 1;
                        self.owed.frames += 1;
                        self.owed.bytes += frame.body.len() as u64;
                    }
                    _ => {}
                }
            }
        }
        frames
    }
}
