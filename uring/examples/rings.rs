//! What several rings cost: an echo server on one core, clients on another, both on this driver.
//!
//! `rings CONNECTIONS ACTIVE RINGS fill|spread RATE SECONDS`: opens CONNECTIONS to a server with
//! RINGS, then ACTIVE of them send 64 bytes in turn, RATE messages a second in all; with RATE 0 each
//! sends its next message when the last one has come back. Prints how long connecting took, the
//! latency from the moment a message was due, and the server's CPU time and enters for each echo.

#![allow(clippy::print_stdout)]

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_uring::{Driver, Handler, ListenerId, Options, Placement, SocketId};

const MESSAGE_BYTES: usize = 64;
/// Connections being opened at a time.
const CONNECTING_MAX: usize = 256;
/// Clients that may wait for the server's accept.
const BACKLOG: u32 = 4096;
/// Connections from one source address: the kernel tries ports of one parity first, and searches through
/// all of them when those are taken, some 14,000 of the usual 28,232.
const PER_SOURCE: usize = 5_000;

#[derive(Clone)]
struct Arguments {
    connections: usize,
    active: usize,
    rings: u8,
    placement: Placement,
    rate: u64,
    seconds: u64,
}

fn arguments(words: &[String]) -> Option<Arguments> {
    let [connections, active, rings, placement, rate, seconds] = words else { return None };
    Some(Arguments {
        connections: connections.parse().ok()?,
        active: active.parse().ok()?,
        rings: rings.parse().ok()?,
        placement: match placement.as_str() {
            "fill" => Placement::Fill,
            "spread" => Placement::Spread,
            _ => return None,
        },
        rate: rate.parse().ok()?,
        seconds: seconds.parse().ok()?,
    })
}

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let usage = || io::Error::other("rings CONNECTIONS ACTIVE RINGS fill|spread RATE SECONDS");
    millrace_uring::raise_descriptor_limit()?;
    match words.split_first() {
        Some((word, rest)) if word == "client" => {
            let (address, rest) = rest.split_first().ok_or_else(usage)?;
            let address = address.parse().map_err(io::Error::other)?;
            client(address, &arguments(rest).ok_or_else(usage)?)
        }
        _ => server(&words, &arguments(&words).ok_or_else(usage)?),
    }
}

// ---------------------------------------------------------------------------- server

#[derive(Default)]
struct Echo {
    pending: Vec<Vec<u8>>,
    changed: Vec<(SocketId, u64)>,
    ended: Vec<SocketId>,
}

impl Handler for Echo {
    fn accepted(&mut self, _: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        self.pending.push(Vec::new());
        self.pending.len() as u64 - 1
    }
    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn received(&mut self, socket: SocketId, context: u64, bytes: &mut [u8]) {
        self.pending[context as usize].extend_from_slice(bytes);
        self.changed.push((socket, context));
    }
    fn receive_ended(&mut self, socket: SocketId, _: u64, _: io::Result<()>) {
        self.ended.push(socket);
    }
    fn sent(&mut self, socket: SocketId, context: u64, _: io::Result<()>) {
        if !self.pending[context as usize].is_empty() {
            self.changed.push((socket, context));
        }
    }
    fn closed(&mut self, _: SocketId, _: u64) {}
    fn woken(&mut self) {}
}

fn server(words: &[String], arguments: &Arguments) -> io::Result<()> {
    let counters: Arc<[AtomicU64; 3]> = Arc::default();
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let thread_counters = Arc::clone(&counters);
    let options = Options {
        rings: arguments.rings,
        sockets_max: millrace_uring::descriptor_limit()?.min(1 << 20) as u32,
        placement: arguments.placement,
        ..Options::default()
    };
    let made = Instant::now();
    std::thread::spawn(move || -> io::Result<()> {
        let mut driver = Driver::new(options)?;
        let (_, bound) = driver.listen((Ipv4Addr::LOCALHOST, 0).into(), BACKLOG)?;
        let task = std::fs::read_link("/proc/thread-self")?;
        sender.send((bound, task)).map_err(io::Error::other)?;
        let mut echo = Echo::default();
        let mut report = 0;
        loop {
            driver.poll(Some(Duration::from_millis(100)), &mut echo)?;
            while let Some((socket, context)) = echo.changed.pop() {
                let pending = &mut echo.pending[context as usize];
                if !pending.is_empty() && !driver.is_sending(socket) {
                    let mut buffer = driver.take_buffer();
                    std::mem::swap(&mut buffer, pending);
                    driver.send(socket, buffer);
                }
            }
            while let Some(socket) = echo.ended.pop() {
                driver.close(socket);
            }
            report += 1;
            let statistics = driver.statistics();
            thread_counters[0].store(statistics.received_bytes, Ordering::Relaxed);
            thread_counters[1].store(statistics.enters, Ordering::Relaxed);
            thread_counters[2].store(report, Ordering::Relaxed);
        }
    });
    let (bound, task): (SocketAddr, _) = receiver.recv().map_err(io::Error::other)?;
    println!("{} rings made in {:?}", arguments.rings, made.elapsed());
    let task = std::path::Path::new("/proc").join(task).join("schedstat");
    let look = || -> io::Result<(u64, [u64; 3])> {
        let text = std::fs::read_to_string(&task)?;
        let cpu = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        Ok((cpu, std::array::from_fn(|index| counters[index].load(Ordering::Relaxed))))
    };
    let mut child = Command::new("taskset")
        .args(["-c", "1"])
        .arg(std::env::current_exe()?)
        .arg("client")
        .arg(bound.to_string())
        .args(words)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    let mut start = look()?;
    for line in BufReader::new(output).lines() {
        match line?.as_str() {
            "START" => start = look()?,
            "END" => {
                let (cpu, [bytes, enters, turns]) = look()?;
                let echoes = (bytes - start.1[0]) as f64 / MESSAGE_BYTES as f64;
                println!(
                    "server: {:.2} us CPU, {:.3} enters, {:.3} turns for each of {echoes:.0} echoes",
                    (cpu - start.0) as f64 / 1e3 / echoes,
                    (enters - start.1[1]) as f64 / echoes,
                    (turns - start.1[2]) as f64 / echoes,
                );
            }
            text => println!("client: {text}"),
        }
    }
    child.wait()?;
    Ok(())
}

// ---------------------------------------------------------------------------- clients

#[derive(Default)]
struct Clients {
    connected: Vec<SocketId>,
    failed: usize,
    /// Those whose message has come back.
    back: VecDeque<SocketId>,
    latencies_us: Vec<u32>,
    began: Option<Instant>,
    records: bool,
}

impl Handler for Clients {
    fn accepted(&mut self, _: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        0
    }
    fn connected(&mut self, socket: SocketId, _: u64, result: io::Result<()>) {
        match result {
            Ok(()) => self.connected.push(socket),
            Err(_) => self.failed += 1,
        }
    }
    fn received(&mut self, socket: SocketId, _: u64, bytes: &mut [u8]) {
        let Some(began) = self.began else { return };
        let now = began.elapsed().as_nanos() as u64;
        for message in bytes.chunks_exact(MESSAGE_BYTES) {
            let due = u64::from_le_bytes(message[..8].try_into().unwrap_or_default());
            if self.records {
                self.latencies_us.push((now.saturating_sub(due) / 1_000) as u32);
            }
        }
        self.back.push_back(socket);
    }
    fn receive_ended(&mut self, _: SocketId, _: u64, _: io::Result<()>) {
        self.failed += 1;
    }
    fn sent(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn closed(&mut self, _: SocketId, _: u64) {}
    fn woken(&mut self) {}
}

fn client(address: SocketAddr, arguments: &Arguments) -> io::Result<()> {
    let sockets_max = millrace_uring::descriptor_limit()?.min(1 << 20) as u32;
    let rings = arguments.connections.div_ceil(sockets_max as usize - 64);
    let mut driver = Driver::new(Options {
        rings: u8::try_from(rings).map_err(io::Error::other)?,
        sockets_max,
        receive_buffers: 1024,
        accept_spare: 0,
        ..Options::default()
    })?;
    let mut clients = Clients::default();
    let began = Instant::now();
    let mut started = 0;
    while clients.connected.len() < arguments.connections {
        while started < arguments.connections
            && started - clients.connected.len() - clients.failed < CONNECTING_MAX
        {
            let source = Ipv4Addr::new(127, 0, 1, 1 + (started / PER_SOURCE) as u8);
            driver.connect(address, Some((source, 0).into()), 0)?;
            started += 1;
        }
        driver.poll(Some(Duration::from_millis(100)), &mut clients)?;
        if clients.failed > 0 {
            return Err(io::Error::other(format!("{} connects failed", clients.failed)));
        }
    }
    let took = began.elapsed();
    println!(
        "{} connections in {took:.2?}, {:.0} a second",
        arguments.connections,
        arguments.connections as f64 / took.as_secs_f64()
    );
    // The active ones are spread over all, and thus over the server's rings.
    let step = arguments.connections / arguments.active;
    let active: Vec<SocketId> =
        clients.connected.iter().step_by(step).take(arguments.active).copied().collect();
    std::thread::sleep(Duration::from_millis(500));
    println!("START");
    let began = Instant::now();
    clients.began = Some(began);
    let end = began + Duration::from_secs(arguments.seconds);
    let warm = began + Duration::from_secs(arguments.seconds / 5);
    let (mut sent, mut skipped) = (0u64, 0u64);
    let send = |driver: &mut Driver, socket: SocketId, due: u64| {
        let mut buffer = driver.take_buffer();
        buffer.resize(MESSAGE_BYTES, 0);
        buffer[..8].copy_from_slice(&due.to_le_bytes());
        driver.send(socket, buffer);
    };
    if arguments.rate == 0 {
        clients.back.extend(active.iter().copied());
    }
    loop {
        let now = Instant::now();
        clients.records = now >= warm;
        if now >= end {
            break;
        }
        let mut timeout = Duration::from_millis(10);
        if arguments.rate == 0 {
            let due = began.elapsed().as_nanos() as u64;
            for socket in std::mem::take(&mut clients.back) {
                send(&mut driver, socket, due);
                sent += 1;
            }
        } else {
            clients.back.clear();
            let passed = (now - began).as_nanos() as u64;
            let due_count = u128::from(passed) * u128::from(arguments.rate) / 1_000_000_000;
            while u128::from(sent) < due_count {
                let socket = active[sent as usize % active.len()];
                let due = (u128::from(sent) * 1_000_000_000 / u128::from(arguments.rate)) as u64;
                if driver.is_sending(socket) {
                    skipped += 1;
                } else {
                    send(&mut driver, socket, due);
                }
                sent += 1;
            }
            timeout = Duration::from_micros(200);
        }
        driver.poll(Some(timeout), &mut clients)?;
    }
    println!("END");
    let mut latencies = std::mem::take(&mut clients.latencies_us);
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = ((latencies.len() as f64 * share) as usize).min(latencies.len() - 1);
        f64::from(latencies[index]) / 1e3
    };
    println!(
        "{:.0} echoes a second ({skipped} not sent), latency ms: p50 {:.3}, p99 {:.3}, p99.9 {:.3}, \
         max {:.3}",
        sent as f64 / arguments.seconds as f64,
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
    // The kernel clears up faster than we could close so many.
    std::process::exit(0)
}
