//! What an event between logics costs: one process tells at a steady rate, another one hears.
//!
//! ```text
//! cargo build --release -p millrace-logic --example events_rate
//! nats-server --addr 127.0.0.1 --port 4299 &
//! target/release/examples/events_rate hear --nats nats://127.0.0.1:4299 &
//! target/release/examples/events_rate tell --nats nats://127.0.0.1:4299 --rate 50000
//! ```
//! Each prints a line of JSON with its own CPU time an event; that of the server is in `/proc`. The
//! schedule is open: an event that is told late counts as late.
#![expect(clippy::print_stdout, reason = "the result is what it is for")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, BytesMut};
use clap::{Parser, ValueEnum};
use millrace_logic::{
    bus::NatsBusSettings,
    events::{Events as _, EventsError, Heard, NatsEvents, NatsEventsSettings},
};
use millrace_service::cpu_time;
use tokio::time::{Instant, sleep_until, timeout};

/// Between bunches of events, as of a logic that commits this often.
const TICK: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Tell,
    Hear,
}

#[derive(Parser)]
struct Arguments {
    role: Role,
    #[arg(long, default_value = "nats://127.0.0.1:4222")]
    nats: String,
    /// Events a second.
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bytes of an event, at least 8.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments = Arguments::parse();
    let name = if arguments.role == Role::Tell { "teller" } else { "hearer" };
    let nats = NatsBusSettings { servers: vec![arguments.nats.clone()], ..Default::default() };
    let settings = NatsEventsSettings::of(name);
    let events = NatsEvents::connect(&nats, settings).await.expect("an address that can be used");
    match arguments.role {
        Role::Tell => tell(&events, &arguments).await,
        Role::Hear => hear(&events).await,
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn cpu() -> Duration {
    cpu_time::of_process(None).expect("/proc is there")
}

async fn tell(events: &NatsEvents, arguments: &Arguments) {
    let (mut dropped, mut told) = (0_u64, 0_u64);
    // Until the connection is there.
    let _ear = events.listen("warm-up").await;
    let (began, cpu_began) = (Instant::now(), cpu());
    let began_ns = now_ns();
    let ticks = arguments.seconds * 1_000;
    for tick in 0..ticks {
        sleep_until(began + TICK * tick as u32).await;
        let due = arguments.rate * (tick + 1) / 1_000;
        while told + dropped < due {
            let mut payload = BytesMut::with_capacity(arguments.bytes.max(8));
            // When it should have been told.
            payload.put_u64(began_ns + tick * TICK.as_nanos() as u64);
            payload.resize(arguments.bytes.max(8), 7);
            match events.tell_node("hearer", payload.freeze()) {
                Ok(()) => told += 1,
                Err(EventsError::Full) => dropped += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    let (took, used) = (began.elapsed(), cpu() - cpu_began);
    events.close().await;
    println!(
        "{{\"told\": {told}, \"dropped\": {dropped}, \"events_per_second\": {:.0}, \"cpu_us_per_event\": {:.2}}}",
        told as f64 / took.as_secs_f64(),
        used.as_secs_f64() * 1e6 / told.max(1) as f64,
    );
}

/// Hears until nothing came for five seconds.
async fn hear(events: &NatsEvents) {
    let mut listener = events.listen_own().await.expect("listens");
    let mut late_us = Vec::new();
    let (mut missed, mut cpu_began) = (0_u64, None);
    let mut cpu_ended = cpu();
    let patience = |begun: bool| Duration::from_secs(if begun { 5 } else { 600 });
    while let Ok(Some(heard)) = timeout(patience(cpu_began.is_some()), listener.next()).await {
        let cpu_now = cpu_began.get_or_insert_with(cpu);
        match heard {
            Heard::Missed(_) => missed += 1,
            Heard::Event(event) => {
                let due: [u8; 8] = event.payload[..8].try_into().expect("eight bytes");
                late_us.push(now_ns().saturating_sub(u64::from_be_bytes(due)) / 1_000);
                if late_us.len().is_multiple_of(1_000) {
                    cpu_ended = cpu().max(*cpu_now);
                }
            }
        }
    }
    let used = cpu_ended.saturating_sub(cpu_began.unwrap_or(cpu_ended));
    let count = late_us.len();
    late_us.sort_unstable();
    let at = |share: f64| late_us.get((count as f64 * share) as usize).copied().unwrap_or(0);
    println!(
        "{{\"heard\": {count}, \"missed\": {missed}, \"cpu_us_per_event\": {:.2}, \"late_us_p50\": {}, \"p99\": {}, \"p99.9\": {}}}",
        used.as_secs_f64() * 1e6 / count.max(1) as f64,
        at(0.5),
        at(0.99),
        at(0.999),
    );
}
