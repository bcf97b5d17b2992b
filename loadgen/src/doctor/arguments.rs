//! The arguments of `doctor`.

use std::net::{SocketAddr, ToSocketAddrs as _, UdpSocket};

use clap::Args;

use super::{Diagnosis, checks::Wanted, facts::Facts};
use crate::{
    addresses::{Addresses, parse_addresses},
    exit::RunError,
    figures::parse_count,
};

const EXAMPLES: &str = "\
Examples:
  Could this machine open 200,000 connections to that gateway?
    millrace-loadgen doctor --connections 200k --to gateway.example:9000

  A million from twenty source addresses, over two listeners:
    millrace-loadgen doctor --connections 1M --to 10.0.1.1:9000 --to 10.0.1.1:8080 \\
        --source-addresses 10.0.0.2-10.0.0.21

  Everything on this machine, the server as well:
    millrace-loadgen doctor --connections 1M --to 127.0.0.1:8080

  Only the commands that mend it, to look at and to run as root:
    millrace-loadgen doctor --connections 1M --to 127.0.0.1:8080 --fix

Exit codes: 0 ready (warnings are no failure), 104 bad arguments, 121 a check failed";

/// Checks this machine for a number of connections: io_uring, descriptors, ports and source
/// addresses, sysctls, conntrack, memory, cores; and prints the exact command that mends each.
///
/// It changes nothing. Run it on every agent; where the target is a loopback address it checks
/// what the server needs, too.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct DoctorArguments {
    /// Connections to open from here: 10k, 1M.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse_count)]
    pub connections: u64,
    /// A listener to connect to, repeatable. It is tried once.
    #[arg(long, value_name = "HOST:PORT")]
    pub to: Vec<String>,
    /// Addresses to connect from: A,B,C or FIRST-LAST.
    #[arg(long, value_name = "LIST", value_parser = parse_addresses)]
    pub source_addresses: Option<Addresses>,
    /// Threads of the generator.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Connections opened per second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 3000.0)]
    pub ramp_rate: f64,
    /// Print nothing but the commands.
    #[arg(long, conflicts_with = "json")]
    pub fix: bool,
    /// Write the result as JSON.
    #[arg(long)]
    pub json: bool,
}

impl DoctorArguments {
    /// Looks at this machine.
    ///
    /// # Errors
    /// The arguments make no sense.
    pub fn diagnosis(&self) -> Result<Diagnosis, RunError> {
        let bad = |message: String| RunError::bad_arguments(message);
        let connections = u32::try_from(self.connections)
            .ok()
            .filter(|connections| (1..=50_000_000).contains(connections))
            .ok_or_else(|| bad("--connections must be from 1 to 50,000,000".to_owned()))?;
        if !(self.ramp_rate > 0.0 && self.ramp_rate.is_finite()) {
            return Err(bad("--ramp-rate must be above 0".to_owned()));
        }
        let mut targets: Vec<SocketAddr> = Vec::new();
        for to in &self.to {
            let mut found = to
                .to_socket_addrs()
                .map_err(|error| bad(format!("--to {to}: {error}; write HOST:PORT")))?;
            targets.extend(found.next());
        }
        let sources = self.source_addresses.clone().unwrap_or_default().0;
        let is_local = targets.iter().any(|target| UdpSocket::bind((target.ip(), 0)).is_ok());
        let facts = Facts::of_this_machine(&targets, &sources);
        let wanted = Wanted {
            connections,
            threads: self.threads,
            ramp_per_second: self.ramp_rate,
            targets,
            sources,
            is_local,
        };
        Ok(Diagnosis::new(&wanted, &facts))
    }

    /// The result as text, commands or JSON, and the exit code.
    ///
    /// # Errors
    /// The arguments make no sense.
    pub fn run(&self) -> Result<(String, u8), RunError> {
        let diagnosis = self.diagnosis()?;
        let text = if self.json {
            let json = serde_json::to_string_pretty(&diagnosis).expect("only string keys");
            format!("{json}\n")
        } else if self.fix {
            diagnosis.to_script()
        } else {
            diagnosis.to_text()
        };
        Ok((text, diagnosis.exit_code))
    }
}
