//! The arguments of `plan`.

use std::time::Duration;

use clap::Args;

use super::{Demand, Machine, Plan, Supply, plan};
use crate::{
    cli::parse_duration,
    exit::RunError,
    figures::{parse_bytes, parse_count, parse_rate},
    ledger::Ledger,
};

const EXAMPLES: &str = "\
Examples:
  Ten million connections and 50,000 messages a second:
    millrace-loadgen plan --connections 10M --messages-per-second 50k

  A live event: a room of 200,000 among half a million, one message a second, on small machines:
    millrace-loadgen plan --connections 500k --room-members 200k --room-messages-per-second 1 \\
        --gateway-cores 4 --gateway-memory 8GiB

  The same for a script:
    millrace-loadgen plan --connections 500k --json | jq '.tiers[] | {name, count}'

Then, on each agent, let the doctor check the machine:
    millrace-loadgen doctor --connections 1M --to gateway.example:9000 --source-addresses 10.0.0.2-10.0.0.21";

/// Computes agents, source addresses, ports, memory, and the gateways and logics to provision,
/// from the figures that this build was measured with (each is listed with its source).
///
/// A plan goes beyond nothing that was observed: no process gets more connections or messages a
/// second than one ever held. What it cannot know stands under "supposed".
#[derive(Debug, Clone, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PlanArguments {
    /// Connections, each a logged-in session: 10M, 250k, 1,000,000.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub connections: u64,
    /// Single-chat messages a second, over all users.
    #[arg(long, value_name = "PER_SECOND", default_value = "0", value_parser = parse_rate)]
    pub messages_per_second: f64,
    /// Group messages a second, over all groups.
    #[arg(long, value_name = "PER_SECOND", default_value = "0", value_parser = parse_rate)]
    pub group_messages_per_second: f64,
    /// Members of each group.
    #[arg(long, value_name = "N", default_value = "20", value_parser = parse_count)]
    pub group_size: u64,
    /// Members of a live room.
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_count)]
    pub room_members: u64,
    /// Messages to the room a second.
    #[arg(long, value_name = "PER_SECOND", default_value = "0", value_parser = parse_rate)]
    pub room_messages_per_second: f64,
    /// Between two heartbeats of a connection.
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = parse_duration)]
    pub heartbeat: Duration,
    /// Everybody connects within this time.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub ramp: Duration,
    /// Share of the connections that go and come back in a minute; 0.01 is 1 %.
    #[arg(long, value_name = "SHARE", default_value = "0.01", value_parser = parse_rate)]
    pub churn_per_minute: f64,
    /// Cores of an agent's machine.
    #[arg(long, value_name = "N", default_value_t = 8.0, help_heading = "Machines")]
    pub agent_cores: f64,
    /// Memory of an agent's machine.
    #[arg(long, value_name = "BYTES", default_value = "16GiB", value_parser = parse_bytes, help_heading = "Machines")]
    pub agent_memory: u64,
    /// Cores of a gateway's machine.
    #[arg(long, value_name = "N", default_value_t = 8.0, help_heading = "Machines")]
    pub gateway_cores: f64,
    /// Memory of a gateway's machine.
    #[arg(long, value_name = "BYTES", default_value = "16GiB", value_parser = parse_bytes, help_heading = "Machines")]
    pub gateway_memory: u64,
    /// Cores of a logic's machine.
    #[arg(long, value_name = "N", default_value_t = 8.0, help_heading = "Machines")]
    pub logic_cores: f64,
    /// Memory of a logic's machine.
    #[arg(long, value_name = "BYTES", default_value = "16GiB", value_parser = parse_bytes, help_heading = "Machines")]
    pub logic_memory: u64,
    /// Share of a machine's cores and memory to use, 0 to 1; the rest is for what goes wrong.
    #[arg(long, value_name = "SHARE", default_value_t = 0.6, help_heading = "Machines")]
    pub utilization: f64,
    /// Ephemeral ports of an address, as net.ipv4.ip_local_port_range has them.
    #[arg(long, value_name = "FROM-TO", default_value = "32768-60999", value_parser = parse_ports, help_heading = "Machines")]
    pub ports: u32,
    /// Addresses and ports that an agent connects to, by default one for each gateway. One load
    /// balancer's address is 1.
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "Machines")]
    pub destinations: Option<u64>,
    /// Write the plan as JSON.
    #[arg(long)]
    pub json: bool,
}

fn parse_ports(text: &str) -> Result<u32, String> {
    let bad = || format!("{text}: write FROM-TO, as in 1024-65535");
    let (from, to) = text.split_once(['-', ' ']).ok_or_else(bad)?;
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match (port(from), port(to)) {
        (Some(from), Some(to)) if from <= to => Ok(u32::from(to - from) + 1),
        _ => Err(bad()),
    }
}

impl PlanArguments {
    /// The plan, as text or JSON.
    ///
    /// # Errors
    /// The arguments make no sense, or nothing carries them.
    pub fn run(&self) -> Result<String, RunError> {
        let plan = self.plan()?;
        if self.json {
            let mut text =
                serde_json::to_string_pretty(&plan).expect("a plan has only string keys");
            text.push('\n');
            Ok(text)
        } else {
            Ok(plan.to_text())
        }
    }

    /// The plan.
    ///
    /// # Errors
    /// As [`PlanArguments::run`].
    pub fn plan(&self) -> Result<Plan, RunError> {
        let bad = |message: &str| Err(RunError::bad_arguments(message));
        if self.connections == 0 || self.destinations == Some(0) {
            return bad("--connections and --destinations must be above 0");
        }
        if self.heartbeat.is_zero() || self.ramp.is_zero() {
            return bad("--heartbeat and --ramp must be above 0");
        }
        if !(self.utilization > 0.0 && self.utilization <= 1.0) {
            return bad("--utilization must be above 0 and at most 1");
        }
        if !(0.0..=60.0).contains(&self.churn_per_minute) {
            return bad("--churn-per-minute must be between 0 and 60");
        }
        let cores = [self.agent_cores, self.gateway_cores, self.logic_cores];
        if cores.iter().any(|cores| !(*cores > 0.0 && cores.is_finite())) {
            return bad("--agent-cores, --gateway-cores and --logic-cores must be above 0");
        }
        if self.room_members > self.connections {
            return bad("--room-members must be at most --connections");
        }
        let demand = Demand {
            connections: self.connections,
            messages_per_second: self.messages_per_second,
            group_messages_per_second: self.group_messages_per_second,
            group_size: self.group_size,
            room_members: self.room_members,
            room_messages_per_second: self.room_messages_per_second,
            heartbeat_seconds: self.heartbeat.as_secs_f64(),
            ramp_seconds: self.ramp.as_secs_f64(),
            churn_per_minute: self.churn_per_minute,
        };
        let machine = |cores, memory_bytes| Machine { cores, memory_bytes };
        let supply = Supply {
            agent: machine(self.agent_cores, self.agent_memory),
            gateway: machine(self.gateway_cores, self.gateway_memory),
            logic: machine(self.logic_cores, self.logic_memory),
            utilization: self.utilization,
            ports: self.ports,
            destinations: self.destinations,
        };
        plan(&demand, &supply, &Ledger::built_in())
    }
}

#[cfg(test)]
mod tests {
    use super::parse_ports;

    #[test]
    fn a_range_of_ports_counts_both_ends() {
        assert_eq!(parse_ports("32768-60999"), Ok(28_232));
        assert_eq!(parse_ports("1024 65535"), Ok(64_512));
        for text in ["", "1024", "0-5", "9-8", "1-65536"] {
            assert!(parse_ports(text).is_err(), "{text}");
        }
    }
}
