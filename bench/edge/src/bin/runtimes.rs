//! `runtimes`: the same echo work on Millrace and on other runtimes and libraries, in one run.
//!
//! Each server gets one core, the clients the other one. In a round the servers are measured one
//! after the other; rounds follow each other, so that what disturbs the machine for a while hits
//! all. Every client always has one message under way, so the figure is how many answers a second
//! one core gives, and the server's core has to be busy to its end for it to mean that.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use millrace_bench_edge::clients::{Clients, Plan, Speech};
use millrace_bench_edge::processes::{self, Process};
use millrace_bench_edge::results::{self, EchoFigure};
use millrace_bench_edge::tiers::{Gateway, Logic};
use millrace_service::cpu_time;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Echo throughput of servers on one core, in one run.
#[derive(Parser)]
struct Arguments {
    /// Only these servers; `--list` shows all.
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
    /// Only list the servers.
    #[arg(long)]
    list: bool,
    /// Connections.
    #[arg(long, default_value_t = 100)]
    connections: u32,
    /// How many of them talk; 0: all.
    #[arg(long, default_value_t = 0)]
    active: u32,
    /// Bytes of a message. Heartbeats have none.
    #[arg(long, default_value_t = 64)]
    message_bytes: usize,
    /// Rounds over all servers.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds before the measuring, and of it.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Seconds of the measuring.
    #[arg(long, default_value_t = 2.0)]
    measured: f64,
    /// The core of the server.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the clients.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Folder of Millrace's release binaries, built with the feature `glommio` of millrace-gateway
    /// for the servers on it.
    #[arg(long, default_value = "target/release")]
    binaries: PathBuf,
    /// The program with the other servers (bench/runtimes).
    #[arg(long, default_value = "target/peers/release/millrace-peers")]
    peers: PathBuf,
    /// Where the figures go.
    #[arg(long, default_value = "target/report/runtimes.json")]
    json: PathBuf,
}

/// How a server is started.
#[derive(Clone, Copy)]
enum Kind {
    /// The real gateway, on a driver if named.
    Gateway(Option<&'static str>),
    /// The example that has the gateway's driver and codec, on a driver if named.
    WebSocketEcho(Option<&'static str>),
    PlainRing,
    Peer,
}

const SERVERS: &[(&str, Kind, Speech)] = &[
    ("gateway-heartbeat", Kind::Gateway(None), Speech::Millrace),
    ("gateway-heartbeat-monoio", Kind::Gateway(Some("monoio_io_uring")), Speech::Millrace),
    ("gateway-heartbeat-epoll", Kind::Gateway(Some("epoll")), Speech::Millrace),
    ("gateway-heartbeat-glommio", Kind::Gateway(Some("glommio")), Speech::Millrace),
    ("websocket-echo", Kind::WebSocketEcho(None), Speech::WebSocket),
    ("websocket-echo-monoio", Kind::WebSocketEcho(Some("monoio_io_uring")), Speech::WebSocket),
    ("websocket-echo-epoll", Kind::WebSocketEcho(Some("epoll")), Speech::WebSocket),
    ("websocket-echo-glommio", Kind::WebSocketEcho(Some("glommio")), Speech::WebSocket),
    ("plain-ring", Kind::PlainRing, Speech::WebSocket),
    ("tokio-tungstenite", Kind::Peer, Speech::WebSocket),
    ("tokio-tungstenite-4k", Kind::Peer, Speech::WebSocket),
    ("fastwebsockets", Kind::Peer, Speech::WebSocket),
    ("tokio-websockets", Kind::Peer, Speech::WebSocket),
    ("sockudo-ws", Kind::Peer, Speech::WebSocket),
    ("tokio-raw", Kind::Peer, Speech::Raw),
    ("monoio-uring-raw", Kind::Peer, Speech::Raw),
    ("monoio-epoll-raw", Kind::Peer, Speech::Raw),
    ("glommio-raw", Kind::Peer, Speech::Raw),
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let known = |name: &String| SERVERS.iter().any(|(server, ..)| server == name);
    if let Some(unknown) = arguments.servers.iter().find(|name| !known(name)) {
        bail!("there is no server {unknown}; --list shows all");
    }
    if arguments.list {
        SERVERS.iter().for_each(|(name, ..)| eprintln!("{name}"));
        return Ok(());
    }
    ensure!(arguments.server_core != arguments.client_core, "server and clients need two cores");
    processes::stay_on_core(arguments.client_core)?;
    // What is started inherits it, and not every server raises its own.
    millrace_uring::raise_descriptor_limit()?;
    let logic = Logic::start(arguments.client_core, false)?;
    let mut figures = Vec::new();
    // So that the ports of an earlier run do not matter.
    let mut run = std::process::id() % 4096;
    eprintln!(
        "round server                      messages/s  server  client  p50 µs  p99 µs  idle B"
    );
    for round in 1..=arguments.rounds {
        for (name, kind, speech) in SERVERS {
            if !arguments.servers.is_empty() && !arguments.servers.contains(&(*name).to_owned()) {
                continue;
            }
            run += 1;
            let figure = measure(&arguments, &logic, name, *kind, *speech, round, run)
                .with_context(|| format!("{name}, round {round}"))?;
            eprintln!(
                "{round:5} {name:25} {:12.0} {:6.0}% {:6.0}% {:7} {:7} {:7.0}",
                figure.messages_per_second,
                100.0 * figure.server_core,
                100.0 * figure.client_core,
                figure.round_trip_p50_us,
                figure.round_trip_p99_us,
                figure.idle_bytes,
            );
            figures.push(figure);
        }
    }
    results::add(&arguments.json, figures)
}

fn measure(
    arguments: &Arguments,
    logic: &Logic,
    name: &str,
    kind: Kind,
    speech: Speech,
    round: u32,
    run: u32,
) -> Result<EchoFigure> {
    let folder = tempfile::tempdir()?;
    let (mut process, address) = start(arguments, logic, name, kind, folder.path())?;
    let resident_before = process.resident_bytes();
    let plan = Plan {
        speech,
        address,
        connections: arguments.connections,
        message_bytes: arguments.message_bytes,
    };
    let mut clients = Clients::connect(plan, run)?;
    // What connecting left to do, and what the allocator gives back late.
    std::thread::sleep(Duration::from_millis(300));
    let idle = process.resident_bytes().saturating_sub(resident_before);
    let active = match arguments.active {
        0 => arguments.connections,
        active => active,
    };
    let mut before = None;
    let talk = clients.talk(
        active,
        Duration::from_secs_f64(arguments.warm_up),
        Duration::from_secs_f64(arguments.measured),
        || before = Some((Instant::now(), process.cpu(), cpu_time::of_process(None))),
    )?;
    let (begin, server_before, client_before) = before.context("the warm-up has not ended")?;
    let took = begin.elapsed().as_secs_f64();
    let server_cpu = process.cpu().saturating_sub(server_before).as_secs_f64();
    let client_cpu = cpu_time::of_process(None).unwrap_or_default();
    let client_cpu = client_cpu.saturating_sub(client_before.unwrap_or_default()).as_secs_f64();
    ensure!(process.ended()?.is_none(), "the server ended");
    Ok(EchoFigure {
        server: name.to_owned(),
        connections: arguments.connections,
        active,
        round,
        messages_per_second: talk.messages as f64 / talk.took.as_secs_f64(),
        round_trip_p50_us: talk.round_trip_us.value_at_quantile(0.5),
        round_trip_p99_us: talk.round_trip_us.value_at_quantile(0.99),
        server_core: server_cpu / took,
        client_core: client_cpu / took,
        idle_bytes: idle as f64 / f64::from(arguments.connections),
    })
}

fn start(
    arguments: &Arguments,
    logic: &Logic,
    name: &str,
    kind: Kind,
    folder: &Path,
) -> Result<(Process, SocketAddr)> {
    let core = arguments.server_core;
    if let Kind::Gateway(driver) = kind {
        let binary = arguments.binaries.join("millrace-gateway");
        let gateway = Gateway::start(&binary, core, logic.address, folder, driver)?;
        return Ok((gateway.process, gateway.websocket));
    }
    let address = processes::free_address()?;
    let mut command = match kind {
        Kind::WebSocketEcho(_) => Command::new(arguments.binaries.join("examples/websocket-echo")),
        Kind::PlainRing => Command::new(arguments.binaries.join("plain-ring")),
        _ => Command::new(&arguments.peers),
    };
    if matches!(kind, Kind::Peer) {
        command.arg(name);
    }
    command.arg(address.to_string());
    if let Kind::WebSocketEcho(Some(driver)) = kind {
        command.arg("--driver").arg(driver);
    }
    let mut process = Process::start(command, Some(core), &folder.join("log"))?;
    process.wait_for_port(address)?;
    Ok((process, address))
}
