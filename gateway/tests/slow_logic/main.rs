//! Credits, proven with real processes: a logic tier that stops reading, one that keeps its credit
//! back, and a gateway that stops. Whoever is slow costs nobody memory, the clients that send are
//! held by TCP, the others live on, nothing is lost, and all goes on without a restart.
//!
//! The gateway is the real binary; logic (the SDK's server) and the clients live in this process.
//! At the size of a measurement:
//!
//! `MILLRACE_FLOOD_CONNECTIONS=10000 MILLRACE_STALL_S=20 cargo test --release -p millrace-gateway
//! --test slow_logic -- --nocapture --test-threads 1`

#![allow(clippy::print_stdout)] // The figures are printed with --nocapture.

mod backend;
mod clients;
#[path = "../processes/mod.rs"]
mod processes;

use std::time::{Duration, Instant};

use backend::{Behaviour, Logic};
use clients::{Flooders, Heartbeats};
use processes::{
    PATIENCE, eventually,
    gateway::{self, GatewayProcess},
};

/// Clients that must not notice that others flood.
const BYSTANDERS: usize = 20;

/// Clients of the gateway that is stopped. What has piled up for it comes all at once when it goes on, some MiB
/// a shard: shared by so many, it stays well below what a client may have in its send queue.
const SUBSCRIBERS: usize = 120;

/// When TCP takes next to nothing from all clients together for so long, they are held.
const HELD: Duration = Duration::from_millis(1_500);

/// Resident memory may vary by this without anything having been queued: the figures of a page
/// that is rendered, a thread's first allocation.
const NOISE_BYTES: u64 = 4 << 20;

/// Some fifty for each client.
const WARM_UP_REFUSALS: u64 = 5_000;

/// For the gateway's `credit_wait_max`: what waits is not refused.
const FOR_EVER: &str = "0s";

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn a_logic_that_stops_reading_slows_its_clients_and_nothing_is_lost() {
    logic_stops(Behaviour::StopReading);
}

#[test]
fn a_logic_that_gives_no_credit_slows_its_clients_and_nothing_is_lost() {
    logic_stops(Behaviour::KeepCredit);
}

fn logic_stops(behaviour: Behaviour) {
    let connections = from_environment("MILLRACE_FLOOD_CONNECTIONS", 100) as usize;
    // The kernels' probes of a window that is closed still place a few bytes for a while.
    let residue_bytes = (connections * clients::BODY_BYTES / 10) as u64;
    let stall = Duration::from_secs(from_environment("MILLRACE_STALL_S", 2));
    let logic = Logic::start();
    let gateway = GatewayProcess::start(logic.address(), FOR_EVER);
    let empty = gateway.resident_bytes();
    let bystanders = Heartbeats::start(gateway.tcp, BYSTANDERS);
    let flooders = Flooders::start(gateway.tcp, connections);
    let idle = gateway.resident_bytes();

    let (before, began) = (logic.frames(), Instant::now());
    eventually("frames arrive", || logic.frames() > before + connections as u64);
    std::thread::sleep(stall / 4);
    let rate = (logic.frames() - before) as f64 / began.elapsed().as_secs_f64();
    let flowing = gateway.resident_bytes();

    logic.behave(behaviour);
    let mut written = flooders.written_bytes();
    eventually("every client is held", || {
        std::thread::sleep(HELD);
        let before = std::mem::replace(&mut written, flooders.written_bytes());
        written - before <= residue_bytes
    });
    let taken = logic.frames();
    let (held, queued) = (gateway.resident_bytes(), gateway.metric("millrace_link_backlog_frames"));
    let pauses = gateway.metric("millrace_receive_pauses_total");
    let heartbeats = bystanders.answered();
    // Whatever happens to the clients from here on is TCP's doing.
    let (stalled, cpu) = (Instant::now(), gateway.cpu_time());
    let mut most = held;
    while stalled.elapsed() < stall {
        std::thread::sleep(Duration::from_millis(100));
        most = most.max(gateway.resident_bytes());
    }
    let busy = gateway.cpu_time() - cpu;
    assert!(busy < stalled.elapsed() / 2, "the gateway used {busy:?} of CPU to wait");
    let crept = flooders.written_bytes() - written;
    let crept_max = 2 * (connections * clients::BODY_BYTES) as u64;
    assert!(crept <= crept_max, "TCP let the clients write on: {crept} B while stalled");
    assert_eq!(logic.frames(), taken, "logic took frames while it was stalled");
    assert!(most <= held + NOISE_BYTES, "the gateway grew from {held} B to {most} B while stalled");
    eventually("heartbeats are answered during the stall", || {
        bystanders.answered() >= heartbeats + BYSTANDERS as u64
    });
    let slowest = bystanders.slowest();

    let written = flooders.written_bytes();
    let released = Instant::now();
    logic.behave(Behaviour::Work);
    eventually("the clients may write again", || {
        flooders.written_bytes() > written + residue_bytes
    });
    let resumed = released.elapsed();
    let sent = flooders.finish().frames;
    eventually("every frame arrives", || logic.frames() >= sent);
    let drained = released.elapsed();
    let (received, out_of_order) = (logic.frames(), logic.out_of_order());
    assert_eq!((received, out_of_order), (sent, 0), "frames received, and those out of order");
    assert_eq!(gateway.metric("millrace_dropped_total"), 0, "frames dropped");
    assert_eq!(gateway.metric("millrace_refused_total"), 0, "frames refused");
    let (streams, up) =
        (gateway.metric("millrace_link_streams_total"), gateway.metric("millrace_link_up"));
    assert_eq!((streams, up), (2, 2), "streams opened in all, and open");
    let alive = gateway.metric("millrace_sessions");
    assert_eq!(alive, (connections + BYSTANDERS) as u64, "sessions after the stall");
    println!(
        "{behaviour:?}: {connections} connections flooding with frames of {body} bytes, {BYSTANDERS} bystanders\n\
         gateway resident: {empty} B empty, {idle} B logged in, {flowing} B while logic took {rate:.0} frames/s, \
         {held} B when all were held, {most} B at most in the {stall:?} after ({crept} B written then), {end} B at the end\n\
         waiting in the gateway when held: {queued} frames; {pauses} receives paused\n\
         bystanders' slowest heartbeat: {slowest:?}; CPU of the gateway during the stall: {busy:?}\n\
         written again {resumed:?} after the release, {sent} frames in all, all arrived in order {drained:?} after it\n\
         CPU of the gateway: {cpu:.1?}, {each:.2} µs a frame",
        body = clients::BODY_BYTES,
        end = gateway.resident_bytes(),
        cpu = gateway.cpu_time(),
        each = gateway.cpu_time().as_secs_f64() * 1e6 / sent as f64,
    );
}

#[test]
fn what_a_stopped_logic_keeps_waiting_is_refused_and_told_and_its_clients_are_read_on() {
    let logic = Logic::start();
    let gateway = GatewayProcess::start(logic.address(), "1s");
    let bystanders = Heartbeats::start(gateway.tcp, BYSTANDERS);
    let flooders = Flooders::start(gateway.tcp, 100);
    let shed = || gateway.metric("millrace_dropped_total");
    eventually("frames arrive", || logic.frames() > 100);
    logic.behave(Behaviour::StopReading);
    eventually("frames that wait are refused", || shed() > 0);
    let taken = logic.frames();
    // Again and again: who was refused writes on, and is held and refused again. In the first rounds the
    // gateway's buffers reach the size in which they stay (5 MB for a hundred clients, then flat for 145,000
    // refusals); what it grows after those is what the refused would leave behind.
    eventually("each client was refused many times", || shed() >= WARM_UP_REFUSALS);
    let before = gateway.resident_bytes();
    eventually("clients are read again and refused again", || shed() >= 3 * WARM_UP_REFUSALS);
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown <= NOISE_BYTES, "the gateway grew by {grown} B while it refused");
    assert_eq!(logic.frames(), taken, "logic took frames while it was stopped");
    let heartbeats = bystanders.answered();
    eventually("heartbeats are answered", || bystanders.answered() > heartbeats);

    logic.behave(Behaviour::Work);
    eventually("frames arrive again", || logic.frames() > taken + 100);
    let flooded = flooders.finish();
    eventually("every frame arrives or was refused", || logic.frames() + shed() >= flooded.frames);
    assert_eq!(logic.frames() + shed(), flooded.frames, "each is either logic's or refused");
    assert_eq!(logic.backwards(), 0, "the order of those that were not refused");
    let silent = flooded.told.iter().filter(|told| **told == 0).count();
    assert_eq!(silent, 0, "clients that were refused something and not told");
    assert_eq!(gateway.metric("millrace_sessions"), 100 + BYSTANDERS as u64, "sessions after it");
}

#[test]
fn a_gateway_that_stops_fills_nobody_and_goes_on_with_its_sessions() {
    let logic = Logic::start();
    let gateway = GatewayProcess::start(logic.address(), FOR_EVER);
    let subscribers = Heartbeats::start(gateway.tcp, SUBSCRIBERS);
    eventually("logic knows the sessions", || logic.sessions() == SUBSCRIBERS);
    gateway.pause();
    let mut most = 0;
    let mut pushed = 0_u64;
    // Four times what the outboxes hold, so that they would overflow if nothing bounded them.
    while pushed < 4 * backend::OUTBOX_BYTES_MAX as u64 * u64::from(gateway::SHARDS) {
        pushed += logic.send_to_all(&[7; 4096]);
        most = most.max(logic.outbox_bytes());
    }
    let resident = logic.frames_skipped();
    gateway.resume();
    assert!(
        most <= backend::OUTBOX_BYTES_MAX * gateway::SHARDS as usize,
        "{most} B waited in logic for a gateway that did not read"
    );
    assert!(resident > 0, "what did not fit was not counted");
    eventually("the links are up again", || {
        gateway.metric("millrace_link_up") == u64::from(gateway::SHARDS)
    });
    let before = subscribers.frames();
    eventually("logic reaches every client again", || {
        logic.send_to_all(&[9; 16]);
        subscribers.frames() >= before + SUBSCRIBERS as u64
    });
    assert_eq!(gateway.metric("millrace_sessions"), SUBSCRIBERS as u64, "sessions after the pause");
    println!("{pushed} B sent to a stopped gateway, at most {most} B waited");
}
