//! `fan-out`: one message to every member of a room, through the real gateway on one core; the
//! receivers and the logic that publishes have the other one.
//!
//! Beside it the same from `plain-ring`, which copies a message to every socket and does nothing
//! else: what is between the two is the engine.
//!
//! The next publication follows when every member has the last one whole, so nothing can be
//! coalesced but what is published at once: one message for the uncoalesced figure.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use millrace_bench_edge::clients::{Clients, Plan, Speech};
use millrace_bench_edge::processes::{self, Process};
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
    /// Which servers.
    #[arg(long, value_delimiter = ',', default_value = "gateway,plain-ring")]
    servers: Vec<Server>,
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Server {
    Gateway,
    PlainRing,
}

impl Server {
    const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::PlainRing => "plain-ring",
        }
    }
}

/// A running server, and how one publishes there.
struct Publisher {
    process: Process,
    address: SocketAddr,
    way: Way,
    /// Messages published so far; each is another one, so that none can be lost or doubled unseen.
    number: u64,
}

enum Way {
    Logic(Logic, SocketAddr),
    /// A client whose text messages go to everybody else.
    Client(TcpStream),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.server_core != arguments.client_core, "gateway and receivers need two cores");
    processes::stay_on_core(arguments.client_core)?;
    let mut figures = Vec::new();
    let mut run = std::process::id() % 4096;
    eprintln!("server      members  at once  deliveries/s  server  receivers");
    for _ in 0..arguments.rounds {
        for &members in &arguments.members {
            for &server in &arguments.servers {
                run += 1;
                let measured = measure(&arguments, server, members, run)
                    .with_context(|| format!("{} with {members} members", server.name()))?;
                for figure in &measured {
                    eprintln!(
                        "{:10} {members:8} {:8} {:13.0} {:6.0}% {:9.0}%",
                        figure.server,
                        figure.published_at_once,
                        figure.deliveries_per_second,
                        100.0 * figure.server_core,
                        100.0 * figure.client_core
                    );
                }
                figures.extend(measured);
            }
        }
    }
    results::add(&arguments.json, figures)
}

/// One server with one room, for each number of messages at once.
fn measure(
    arguments: &Arguments,
    server: Server,
    members: u32,
    run: u32,
) -> Result<Vec<FanOutFigure>> {
    let folder = tempfile::tempdir()?;
    let mut publisher = Publisher::start(arguments, server, folder.path())?;
    let plan = Plan {
        speech: match server {
            Server::Gateway => Speech::Millrace,
            Server::PlainRing => Speech::WebSocket,
        },
        address: publisher.address,
        connections: members,
        message_bytes: 0,
    };
    let mut receivers = Clients::connect(plan, run)?;
    publisher.wait_for(members)?;
    let mut figures = Vec::new();
    for &at_once in &arguments.at_once {
        // Once without the clock.
        receivers.listen(publisher.publish(arguments, at_once)?)?;
        let (begin, before) = (Instant::now(), cpu_time::of_process(None).unwrap_or_default());
        let server_before = publisher.process.cpu();
        let mut deliveries = 0;
        while begin.elapsed().as_secs_f64() < arguments.measured {
            receivers.listen(publisher.publish(arguments, at_once)?)?;
            deliveries += u64::from(at_once) * u64::from(members);
        }
        let took = begin.elapsed().as_secs_f64();
        let core = |before, after: Option<Duration>| {
            after.unwrap_or_default().saturating_sub(before).as_secs_f64() / took
        };
        figures.push(FanOutFigure {
            server: server.name().to_owned(),
            members,
            published_at_once: at_once,
            deliveries_per_second: deliveries as f64 / took,
            server_core: core(server_before, Some(publisher.process.cpu())),
            client_core: core(before, cpu_time::of_process(None)),
        });
    }
    Ok(figures)
}

impl Publisher {
    fn start(arguments: &Arguments, server: Server, folder: &Path) -> Result<Self> {
        let core = arguments.server_core;
        if server == Server::Gateway {
            let logic = Logic::start(arguments.client_core, true)?;
            let binary = arguments.binaries.join("millrace-gateway");
            let driver = arguments.driver.as_deref();
            let gateway = Gateway::start(&binary, core, logic.address, folder, driver)?;
            let way = Way::Logic(logic, gateway.admin);
            let (process, address) = (gateway.process, gateway.websocket);
            return Ok(Self { process, address, way, number: 0 });
        }
        let address = processes::free_address()?;
        let mut command = Command::new(arguments.binaries.join("plain-ring"));
        command.arg(address.to_string());
        let mut process = Process::start(command, Some(core), &folder.join("log"))?;
        process.wait_for_port(address)?;
        let mut client = TcpStream::connect(address)?;
        client.set_nodelay(true)?;
        let mut request = Vec::new();
        websocket::write_upgrade_request(&mut request, "localhost", "/", None, &[7; 16]);
        client.write_all(&request)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        Ok(Self { process, address, way: Way::Client(client), number: 0 })
    }

    /// Waits until everybody is in the room.
    fn wait_for(&self, members: u32) -> Result<()> {
        let Way::Logic(logic, admin) = &self.way else { return Ok(()) };
        let begin = Instant::now();
        while logic.members() < u64::from(members)
            || processes::metric(*admin, "millrace_room_members")? < f64::from(members)
        {
            ensure!(begin.elapsed() < Duration::from_secs(10), "not everybody joined the room");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Publishes so many messages; what every member is to receive.
    fn publish(&mut self, arguments: &Arguments, at_once: u32) -> Result<Vec<u8>> {
        let numbers = self.number + 1..=self.number + u64::from(at_once);
        self.number += u64::from(at_once);
        let mut expected = Vec::new();
        match &mut self.way {
            Way::Logic(logic, _) => {
                let messages: Vec<_> =
                    numbers.map(|number| room_message(number, arguments.message_bytes)).collect();
                for message in &messages {
                    let mut bytes = Vec::new();
                    let body = message.encode_to_vec();
                    frame::write(&mut bytes, command::ROOM_MESSAGE, Flags::NONE, 0, &body);
                    websocket::write_frame(&mut expected, Opcode::Binary, true, None, &bytes);
                }
                logic.publish(command::ROOM_MESSAGE, &messages);
            }
            Way::Client(client) => {
                let mut bytes = Vec::new();
                for number in numbers {
                    let width = arguments.message_bytes.clamp(16, 120) - 2;
                    let payload = format!("{number:0width$}");
                    let key = Some([1, 2, 3, 4]);
                    websocket::write_frame(&mut bytes, Opcode::Text, true, key, payload.as_bytes());
                    let payload = payload.as_bytes();
                    websocket::write_frame(&mut expected, Opcode::Binary, true, None, payload);
                }
                client.write_all(&bytes)?;
            }
        }
        Ok(expected)
    }
}

/// A message that has so many bytes on the wire, framing included.
fn room_message(number: u64, message_bytes: usize) -> RoomMessage {
    let mut message = RoomMessage { body: format!("{number:012}"), ..RoomMessage::default() };
    message.room_id = ROOM.to_owned();
    let framing = 2 + frame::HEADER_BYTES;
    while framing + message.encoded_len() < message_bytes {
        message.body.push('m');
    }
    message
}
