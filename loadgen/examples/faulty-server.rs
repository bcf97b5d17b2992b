//! A chat server that does wrong on purpose, to see whether a load generator notices: it stalls, or
//! plants one fault. It prints the ready line that `--dev-json` reads, and each stall as it happened.
//!
//!     cargo run -p millrace-loadgen --example faulty-server -- --stall 2s --every 10s > ready.json &
//!     millrace-loadgen chat --dev-json ready.json --group-rate 0 --duration 20s
//!
//! It is no backend to build on: it keeps everything in memory and gives every connection a thread.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{io::Write as _, time::Duration};

use clap::Parser;
use millrace_loadgen::cli::parse_duration;
use support::{Plant, Server};

/// A chat server that does wrong on purpose.
#[derive(Debug, Parser)]
struct Arguments {
    /// What it does wrong, once: lost, duplicated, reordered, wrong-sequence, gap, stored-twice,
    /// wrong-id, misdelivered, early-idle-close, late-heartbeat; by default nothing.
    #[arg(long, value_name = "FAULT", value_parser = plant)]
    fault: Option<Plant>,
    /// To which message or heartbeat, counted from 1.
    #[arg(long, value_name = "N", default_value_t = 100)]
    at: u64,
    /// Serve nobody for so long …
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    stall: Option<Duration>,
    /// … in every such period.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    every: Duration,
}

fn plant(name: &str) -> Result<Plant, String> {
    Plant::named(name).ok_or_else(|| format!("{name} is no fault of this server; see --help"))
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let server = Server::start(arguments.fault.unwrap_or(Plant::Nothing), arguments.at);
    let ready = serde_json::json!({
        "ready": true,
        "tcp": server.tcp.to_string(),
        "websocket": format!("ws://{}/ws", server.websocket),
        "http": format!("http://{}", server.http),
        "jwt_secret": "secret",
        "api_token": "api-token",
    });
    let mut out = std::io::stdout();
    writeln!(out, "{ready}")?;
    if let Some(span) = arguments.stall {
        if span >= arguments.every {
            return Err(std::io::Error::other("--stall must be shorter than --every"));
        }
        server.stall_every(span, arguments.every);
    }
    let mut told = 0;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        for stall in &server.stalls()[told..] {
            told += 1;
            let (from, to) = (stall.from_unix_us, stall.to_unix_us);
            writeln!(out, "{}", serde_json::json!({ "stalled_unix_us": [from, to] }))?;
        }
    }
}
