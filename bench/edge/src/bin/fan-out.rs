//! `fan-out`: one message to every member of a room, through the real gateway on one core; the
//! receivers and the logic that publishes have the other one.
//!
//! The next publication follows when every member has the last one whole, so nothing can be
//! coalesced but what is published at once: one message for the uncoalesced figure.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use millrace_bench_edge::clients::{Clients, Plan, Speech};
use millrace_bench_edge::processes;
use millrace_bench_edge::results::{self, FanOutFigure};
use millrace_bench_edge::tiers::{Gateway, Logic, ROOM};
use millrace_protocol::{
    chat::RoomMessage,
    command,
    frame::{self, Flags},
    websocket::{self, Opcode},
};
use millrace_service::cpu_time;
use mimalloc::MiMalloc;
use prost::Message as _;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Deliveries a second to the members of one room, on one core.
#[derive(Parser)]
struct Arguments {
    /// Members, each on a connection of its own.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    members: Vec<u32>,
    /// Messages published at once.
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    at_once: Vec<u32>,
    /// Rounds over all of these.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of the measuring, for each.
    #[arg(long, default_value_t = 2.0)]
    measured: f64,
    /// Bytes of a message on the wire, framing included.
    #[arg(long, default_value_t = 64)]
    message_bytes: usize,
    /// The core of the gateway.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the receivers.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Folder of Millrace's release binaries.
    #[arg(long, default_value = "target/release")]
    binaries: PathBuf,
    /// The gateway's driver; none: its default.
    #[arg(long)]
    driver: Option<String>,
    /// Where the figures go.
    #[arg(long, default_value = "target/report/fan-out.json")]
    json: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.server_core != arguments.client_core, "gateway and receivers need two cores");
    processes::stay_on_core(arguments.client_core)?;
    let mut figures = Vec::new();
    let mut run = std::process::id() % 4096;
    eprintln!("members  at once  deliveries/s  gateway  receivers");
    for _ in 0..arguments.rounds {
        for &members in &arguments.members {
            run += 1;
            let measured = measure(&arguments, members, run)?;
            for figure in &measured {
                eprintln!(
                    "{members:7} {:8} {:13.0} {:7.0}% {:9.0}%",
                    figure.published_at_once,
                    figure.deliveries_per_second,
                    100.0 * figure.server_core,
                    100.0 * figure.client_core
                );
            }
            figures.extend(measured);
        }
    }
    results::add(&arguments.json, figures)
}

/// One gateway with one room, for each number of messages at once.
fn measure(arguments: &Arguments, members: u32, run: u32) -> Result<Vec<FanOutFigure>> {
    let folder = tempfile::tempdir()?;
    let logic = Logic::start(arguments.client_core, true)?;
    let gateway = Gateway::start(
        &arguments.binaries.join("millrace-gateway"),
        arguments.server_core,
        logic.address,
        folder.path(),
        arguments.driver.as_deref(),
    )?;
    let plan = Plan {
        speech: Speech::Millrace,
        address: gateway.websocket,
        connections: members,
        message_bytes: 0,
    };
    let mut receivers = Clients::connect(plan, run)?;
    let begin = Instant::now();
    let joined = || {
        Ok::<_, anyhow::Error>(
            logic.members() == u64::from(members)
                && processes::metric(gateway.admin, "millrace_room_members")? as u32 == members,
        )
    };
    while !joined()? {
        ensure!(begin.elapsed() < Duration::from_secs(10), "not everybody joined the room");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut number = 0_u64;
    let mut figures = Vec::new();
    for &at_once in &arguments.at_once {
        // Once without the clock.
        publish(arguments, &logic, &mut receivers, at_once, &mut number)?;
        let (begin, before) = (Instant::now(), cpu_time::of_process(None).unwrap_or_default());
        let gateway_before = gateway.process.cpu();
        let mut deliveries = 0;
        while begin.elapsed().as_secs_f64() < arguments.measured {
            publish(arguments, &logic, &mut receivers, at_once, &mut number)?;
            deliveries += u64::from(at_once) * u64::from(members);
        }
        let took = begin.elapsed().as_secs_f64();
        let core = |before, after: Option<Duration>| {
            after.unwrap_or_default().saturating_sub(before).as_secs_f64() / took
        };
        figures.push(FanOutFigure {
            members,
            published_at_once: at_once,
            deliveries_per_second: deliveries as f64 / took,
            server_core: core(gateway_before, Some(gateway.process.cpu())),
            client_core: core(before, cpu_time::of_process(None)),
        });
    }
    Ok(figures)
}

/// Publishes so many messages at once, and waits until everybody has all of them.
fn publish(
    arguments: &Arguments,
    logic: &Logic,
    receivers: &mut Clients,
    at_once: u32,
    number: &mut u64,
) -> Result<()> {
    let (mut expected, mut messages) = (Vec::new(), Vec::new());
    for _ in 0..at_once {
        *number += 1;
        // Each message is another one, so that none can be lost or doubled unseen.
        let mut message = RoomMessage { body: format!("{number:012}"), ..RoomMessage::default() };
        message.room_id = ROOM.to_owned();
        let framing = 2 + frame::HEADER_BYTES;
        while framing + message.encoded_len() < arguments.message_bytes {
            message.body.push('m');
        }
        let mut bytes = Vec::new();
        frame::write(&mut bytes, command::ROOM_MESSAGE, Flags::NONE, 0, &message.encode_to_vec());
        websocket::write_frame(&mut expected, Opcode::Binary, true, None, &bytes);
        messages.push(message);
    }
    logic.publish(command::ROOM_MESSAGE, &messages);
    receivers.listen(expected)
}
