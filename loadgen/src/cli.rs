//! The arguments, with the help that teaches them. Nothing is checked here that needs the system.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    addresses::{Addresses, parse_addresses},
    agents::arguments::{AgentArguments, AgentsArguments},
    compare::CompareArguments,
    doctor::DoctorArguments,
    live::View,
    observe::Observed,
    output::{OutputArguments, ReportArguments},
    plan::PlanArguments,
    scenario::Protocol,
    target::Target,
    threshold::Threshold,
};

const EXAMPLES: &str = "\
Examples:
  Half a minute of everything, against a development server whose ready line is in ready.json:
    millrace-loadgen run smoke --dev-json ready.json

  How much does it take? The load grows step by step until a message in a thousand is too late:
    millrace-loadgen run breakpoint --dev-json ready.json --json report.json

  Can this machine open 200,000 connections, and how many machines would ten million take?
    millrace-loadgen doctor --connections 200k --to gateway.example:9000
    millrace-loadgen plan --connections 10M --messages-per-second 50k

  A report to look at, and whether it got slower since the last one:
    millrace-loadgen run steady --dev-json ready.json --out today
    millrace-loadgen compare yesterday/report.json today/report.json --fail-on 'p99.9 > +5%'

  The same kind of load for a broker or an echo server of somebody else:
    millrace-loadgen run mqtt --tcp 127.0.0.1:1883
    millrace-loadgen run websocket-echo --websocket ws://127.0.0.1:9001/

  More than one machine can make: `millrace-loadgen agent --listen 10.0.0.11:7000` on each, and
    millrace-loadgen run steady --dev-json ready.json --agents 10.0.0.11:7000,10.0.0.12:7000

  A scenario of your own, from a preset:
    millrace-loadgen scenario show steady > mine.toml
    millrace-loadgen scenario check mine.toml && millrace-loadgen run mine.toml --dev-json ready.json

  The same by arguments: a first run against a development server whose ready line is in ready.json:
    millrace-loadgen chat --dev-json ready.json --connections 1000 --duration 20s

  18,000 users, half of them by WebSocket, with a limit on the latency:
    millrace-loadgen chat --dev-json ready.json --connections 18000 --single-rate 5000 \\
        --group-rate 200 --group-size 20 --duration 60s --threshold 'delivery_p99.9<500ms'

  While somebody kills the logic process: retries and redeliveries are expected, losses are not:
    millrace-loadgen chat --dev-json ready.json --connections 18000 --expect-faults \\
        --threshold connections_lost=0

  A room of 10,000 members with 15 messages a second: 150,000 deliveries a second:
    millrace-loadgen fanout --dev-json ready.json --connections 10001 --websocket-share 1 --rate 15

  How many heartbeats a second does the edge answer, in a closed loop over 100 connections?
    millrace-loadgen idle --dev-json ready.json --connections 100 --flat-out 100 --threads 1

  How long does the server keep a client that says nothing?
    millrace-loadgen idle --dev-json ready.json --connections 10000 --silent \\
        --closed-between 15s..16s

Exit codes:
    0  everything arrived as promised, every threshold was met
   99  a threshold was missed, or a message was lost, duplicated or out of order
  104  the arguments or the scenario make no sense
  105  the run was aborted, or an agent was lost
  120  the generator could not keep its own schedule: its figures say nothing
  121  the run could not begin (descriptors, ports, unreachable target)";

/// Opens real connections to a Millrace gateway, drives chat on an open-loop schedule, and
/// verifies that every acknowledged message reaches every recipient, once and in order.
///
/// Latencies are measured from the moment a message was meant to be sent, so a server that stalls
/// cannot hide it by slowing the generator down.
#[derive(Debug, Parser)]
#[command(name = "millrace-loadgen", version, after_long_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A scenario: a file of yours, or a preset by its name.
    Run(RunArguments),
    /// Looks at scenarios without running them.
    #[command(subcommand)]
    Scenario(ScenarioCommand),
    /// Single and group chat with verification of every message.
    Chat(ChatArguments),
    /// Connections that log in and do nothing but heartbeats, or not even these.
    Idle(IdleArguments),
    /// One live room: how many deliveries a second, and how late.
    Fanout(FanoutArguments),
    /// WebSocket echo against any server that sends messages back.
    Echo(EchoArguments),
    /// Check this machine, and print what mends it.
    Doctor(DoctorArguments),
    /// Which machines a load takes, from measured figures.
    Plan(PlanArguments),
    /// Two finished runs side by side.
    Compare(CompareArguments),
    /// Draw a finished run again from its JSON.
    Report(ReportArguments),
    /// Wait for a share of a load that several machines make.
    Agent(AgentArguments),
}

/// Where the system under test is.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Target")]
pub struct TargetArguments {
    /// TCP listener of the gateway, or of an MQTT broker.
    #[arg(long, value_name = "HOST:PORT")]
    pub tcp: Option<String>,
    /// WebSocket listener of the gateway, or of a server that echoes.
    #[arg(long, value_name = "ws://HOST:PORT/PATH")]
    pub websocket: Option<String>,
    /// HTTP API of the logic tier, for creating groups.
    #[arg(long, value_name = "http://HOST:PORT")]
    pub http: Option<String>,
    /// HS256 secret with which the users' tokens are signed.
    #[arg(long, value_name = "SECRET")]
    pub jwt_secret: Option<String>,
    /// Bearer token of the HTTP API.
    #[arg(long, value_name = "TOKEN")]
    pub api_token: Option<String>,
    /// Addresses of this machine to connect from, by turns: A,B,C or FIRST-LAST. Each has its own
    /// ephemeral ports to each destination; `doctor` says how many it takes.
    #[arg(long, value_name = "LIST", value_parser = parse_addresses)]
    pub source_addresses: Option<Addresses>,
    /// Take what is not given above from the ready line of `millrace dev --json`; `-` reads it
    /// from standard input.
    #[arg(long, value_name = "FILE")]
    pub dev_json: Option<PathBuf>,
}

/// Who connects, and how fast.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connections")]
pub struct CrowdArguments {
    /// Users, each with one connection.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    pub connections: u32,
    /// Share of them that come by WebSocket, 0 to 1; the others come by TCP.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub websocket_share: f64,
    /// Connections opened per second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 3000.0)]
    pub ramp_rate: f64,
    /// Generator threads, each with as many rings as its connections need.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// User ids are this, a hyphen and a number. Two generators at once need different ones.
    #[arg(long, value_name = "PREFIX", default_value = "load")]
    pub user_prefix: String,
    /// Seed of every random choice: who sends to whom.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// What comes out.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Result")]
pub struct ResultArguments {
    /// Files.
    #[command(flatten)]
    pub output: OutputArguments,
    /// A condition for success, repeatable: `delivery_latency p99.9 < 500ms` or shorter
    /// `delivery_p99.9<500ms`, `ack_max<=2s`, `loss=0`, `connections_lost=0`. Latencies: connect, upgrade, login, arrival, return, heartbeat, ack,
    /// ack_single, ack_group, ack_room, delivery (single and group), delivery_single,
    /// delivery_group, delivery_offline, delivery_slow, delivery_room, join, service,
    /// service_delivery, custom, recovery, late, echo. Counts: loss, duplicates, disorder, gaps,
    /// every kind of fault and every counter of the JSON summary.
    #[arg(long, value_name = "CONDITION")]
    pub threshold: Vec<Threshold>,
    /// A server to look at while the run goes on, repeatable: gateway=, logic= or both= and its
    /// process id, or the URL of its metrics as in gateway=http://127.0.0.1:9600/metrics. Its memory
    /// and processor stand in the report beside what the ledger predicts.
    #[arg(long, value_name = "TIER=PLACE")]
    pub observe: Vec<Observed>,
    /// Show nothing while the run goes on.
    #[arg(long)]
    pub quiet: bool,
    /// Print a line every second instead of the view that fills the terminal. So it is anyway
    /// where standard input, output or error is no terminal.
    #[arg(long)]
    pub plain: bool,
}

impl ResultArguments {
    /// How the run is shown.
    pub fn view(&self) -> View {
        View::choose(self.quiet, self.plain)
    }
}

/// `run`
#[derive(Debug, Clone, Args)]
pub struct RunArguments {
    /// A scenario file in TOML, or a preset: smoke, ramp, steady, spike, soak, storm, breakpoint,
    /// million, websocket-echo, mqtt. `scenario show PRESET` prints a preset, to be changed and kept.
    #[arg(value_name = "FILE|PRESET")]
    pub scenario: String,
    /// Where.
    #[command(flatten)]
    pub target: TargetArguments,
    /// What the users speak, instead of what the scenario says: the same load for another server. The
    /// server is --websocket for an echo, --tcp for MQTT.
    #[arg(long, value_name = "NAME", help_heading = "Changes to the scenario")]
    pub protocol: Option<Protocol>,
    /// So many connections instead of the scenario's. Kinds of users that are given by count stay.
    #[arg(long, value_name = "N", help_heading = "Changes to the scenario")]
    pub connections: Option<u32>,
    /// Multiplies every rate of messages.
    #[arg(
        long,
        value_name = "FACTOR",
        default_value_t = 1.0,
        help_heading = "Changes to the scenario"
    )]
    pub load: f64,
    /// Multiplies the length of every stage, and the moment of a storm.
    #[arg(
        long,
        value_name = "FACTOR",
        default_value_t = 1.0,
        help_heading = "Changes to the scenario"
    )]
    pub time: f64,
    /// Connections opened per second, instead of the scenario's.
    #[arg(long, value_name = "PER_SECOND", help_heading = "Changes to the scenario")]
    pub ramp_rate: Option<f64>,
    /// Generator threads, instead of the scenario's.
    #[arg(long, value_name = "N", help_heading = "Changes to the scenario")]
    pub threads: Option<u32>,
    /// User ids are this, a hyphen and a number. Two generators at once need different ones.
    #[arg(long, value_name = "PREFIX", help_heading = "Changes to the scenario")]
    pub user_prefix: Option<String>,
    /// Seed of every random choice: who sends to whom.
    #[arg(long, value_name = "N", help_heading = "Changes to the scenario")]
    pub seed: Option<u64>,
    /// Lost connections, failed sends and redeliveries are counted and not held against the run.
    #[arg(long, help_heading = "Changes to the scenario")]
    pub expect_faults: bool,
    /// Give a verdict even if the generator was late or had no core left.
    #[arg(long, help_heading = "Changes to the scenario")]
    pub allow_late: bool,
    /// Who makes the load.
    #[command(flatten)]
    pub agents: AgentsArguments,
    /// What comes out.
    #[command(flatten)]
    pub result: ResultArguments,
}

/// `scenario`
#[derive(Debug, Clone, Subcommand)]
pub enum ScenarioCommand {
    /// Checks files: exit 0 if all are good, 104 with the place of the first mistake if not.
    Check {
        /// Scenario files, or names of presets.
        #[arg(value_name = "FILE|PRESET", required = true)]
        scenarios: Vec<String>,
    },
    /// Prints the file of a preset, or of a scenario with every key and its value.
    Show {
        /// A preset, or a file.
        #[arg(value_name = "PRESET|FILE")]
        scenario: String,
        /// Every key with its value, whether it was given or not.
        #[arg(long)]
        all: bool,
    },
    /// Names the presets and what they are for.
    List,
}

/// `chat`
#[derive(Debug, Clone, Args)]
pub struct ChatArguments {
    /// Where.
    #[command(flatten)]
    pub target: TargetArguments,
    /// Who.
    #[command(flatten)]
    pub crowd: CrowdArguments,
    /// Single-chat messages per second, over all users.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 500.0, help_heading = "Load")]
    pub single_rate: f64,
    /// Group messages per second, over all groups.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 20.0, help_heading = "Load")]
    pub group_rate: f64,
    /// Members of each group.
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Load")]
    pub group_size: u32,
    /// Groups to create; by default one for each group message a second, as far as there are
    /// users (a user is in one group at most).
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub groups: Option<u32>,
    /// Members of a live room, the first users; 0: no room. Every one of them joins after every
    /// login. One of them, who never goes away, publishes.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Load")]
    pub room_size: u32,
    /// Messages to the room per second, each to all other members.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1.0, help_heading = "Load")]
    pub room_rate: f64,
    /// Share of the users that end their session by themselves in a minute and come back (0.01 is
    /// 1 %; at most 60, everybody every second): a third by LOGOUT, a third by a WebSocket close frame, a third without a word. What is sent
    /// to them meanwhile must reach them afterwards; its latency is `delivery_offline`.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, help_heading = "Load")]
    pub churn_per_minute: f64,
    /// How long they stay away.
    #[arg(long, value_name = "FROM..TO", default_value = "500ms..5s", value_parser = parse_span, help_heading = "Load")]
    pub churn_away: (Duration, Duration),
    /// Closed loop: so many users (0: none) do not follow the schedule; each sends its next
    /// single-chat message when the last one is acknowledged. That gives a throughput; its latency
    /// is no honest one, since a server that stalls stalls the measuring, too.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Load")]
    pub closed_loop: u32,
    /// Length of the schedule.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration, help_heading = "Load")]
    pub duration: Duration,
    /// Smallest length of a message's text in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 100, help_heading = "Load")]
    pub message_bytes: usize,
    /// Keep all connections idle for so long before the load, for memory readings.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration, help_heading = "Load")]
    pub hold: Duration,
    /// Wait at most so long after the load for what is on its way; it ends as soon as all is
    /// there. Default 15s, with --expect-faults 60s.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub settle: Option<Duration>,
    /// Logic or gateway will be killed: lost connections, failed sends and redeliveries are then
    /// counted and not held against the run. Lost, duplicated-in-store, misordered and missing
    /// messages always are.
    #[arg(long, help_heading = "Verdict")]
    pub expect_faults: bool,
    /// Give a verdict even if the generator was late (late_p99 above 50 ms).
    #[arg(long, help_heading = "Verdict")]
    pub allow_late: bool,
    /// Records (acknowledgements and arrivals, 24 bytes each) kept for the verification; the run
    /// is aborted above it.
    #[arg(long, value_name = "N", default_value_t = 50_000_000, help_heading = "Verdict")]
    pub records_max: u64,
    /// What comes out.
    #[command(flatten)]
    pub result: ResultArguments,
}

/// `idle`
#[derive(Debug, Clone, Args)]
pub struct IdleArguments {
    /// Where.
    #[command(flatten)]
    pub target: TargetArguments,
    /// Who.
    #[command(flatten)]
    pub crowd: CrowdArguments,
    /// How long to stay.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Send no heartbeats, and report when the server ended each connection, counted from the
    /// last frame it got.
    #[arg(long)]
    pub silent: bool,
    /// Closed loop: so many users (0: none) send their next heartbeat as soon as the last one is
    /// answered. That gives the throughput of the edge, in `rates.flat_out`; its latency is
    /// no honest one.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "silent")]
    pub flat_out: u32,
    /// With --silent: every connection must be ended within this span of silence, as in 15s..16s.
    #[arg(long, value_name = "FROM..TO", value_parser = parse_span, requires = "silent")]
    pub closed_between: Option<(Duration, Duration)>,
    /// What comes out.
    #[command(flatten)]
    pub result: ResultArguments,
}

/// `fanout`
#[derive(Debug, Clone, Args)]
pub struct FanoutArguments {
    /// Where.
    #[command(flatten)]
    pub target: TargetArguments,
    /// Who: everybody is a member of the room, and one of them publishes.
    #[command(flatten)]
    pub crowd: CrowdArguments,
    /// Messages to the room per second; each goes to all other members. The logic tier bounds it
    /// (limits.room_messages_per_second_max); what it refuses fails the run.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 10.0)]
    pub rate: f64,
    /// Length of the schedule.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Smallest length of a message's text in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub message_bytes: usize,
    /// Give a verdict even if the generator was late (late_p99 above 50 ms).
    #[arg(long)]
    pub allow_late: bool,
    /// What comes out.
    #[command(flatten)]
    pub result: ResultArguments,
}

impl FanoutArguments {
    /// The same as a `chat` that is nothing but its room.
    pub fn as_chat(&self) -> ChatArguments {
        ChatArguments {
            target: self.target.clone(),
            crowd: self.crowd.clone(),
            single_rate: 0.0,
            group_rate: 0.0,
            group_size: 0,
            groups: None,
            room_size: self.crowd.connections,
            room_rate: self.rate,
            churn_per_minute: 0.0,
            churn_away: (Duration::ZERO, Duration::ZERO),
            closed_loop: 0,
            duration: self.duration,
            message_bytes: self.message_bytes,
            hold: Duration::ZERO,
            settle: None,
            expect_faults: false,
            allow_late: self.allow_late,
            records_max: 50_000_000,
            result: self.result.clone(),
        }
    }
}

/// `echo`
#[derive(Debug, Clone, Args)]
pub struct EchoArguments {
    /// The echo server.
    #[arg(value_name = "ws://HOST:PORT/PATH")]
    pub url: String,
    /// Connections.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    pub connections: u32,
    /// Messages per second over all connections. 0: every connection sends its next message when
    /// the last one is back; that gives a throughput, but no honest latency.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1000.0)]
    pub rate: f64,
    /// Bytes of a message, 16 to 16777216.
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub size: u32,
    /// Send text messages instead of binary ones.
    #[arg(long)]
    pub text: bool,
    /// Length of the schedule.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Connections opened per second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 3000.0)]
    pub ramp_rate: f64,
    /// Generator threads, each with as many rings as its connections need.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Addresses of this machine to connect from, by turns: A,B,C or FIRST-LAST.
    #[arg(long, value_name = "LIST", value_parser = parse_addresses)]
    pub source_addresses: Option<Addresses>,
    /// Seed of the masking keys.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Give a verdict even if the generator was late (late_p99 above 50 ms).
    #[arg(long)]
    pub allow_late: bool,
    /// What comes out.
    #[command(flatten)]
    pub result: ResultArguments,
}

impl TargetArguments {
    /// Whether the target is on this machine, so that both ends of every connection are.
    pub fn is_this_machine(&self) -> bool {
        // The ready line is of a server here, and may have come by standard input, which is read once.
        if self.dev_json.is_some() {
            return true;
        }
        let Ok(target) = self.target() else { return false };
        let tcp = target.tcp_endpoint().ok().map(|endpoint| endpoint.address);
        let address =
            tcp.or_else(|| target.websocket_endpoint().ok().map(|endpoint| endpoint.address));
        address.is_some_and(|address| std::net::UdpSocket::bind((address.ip(), 0)).is_ok())
    }

    /// The target, with the ready line's values where arguments are missing.
    ///
    /// # Errors
    /// The ready line cannot be read.
    pub fn target(&self) -> Result<Target, crate::exit::RunError> {
        let given = Target {
            tcp: self.tcp.clone(),
            websocket: self.websocket.clone(),
            http: self.http.clone(),
            jwt_secret: self.jwt_secret.clone(),
            api_token: self.api_token.clone(),
            source_addresses: self.source_addresses.clone().unwrap_or_default().0,
        };
        match &self.dev_json {
            Some(path) => Ok(given.or(Target::from_ready_line(path)?)),
            None => Ok(given),
        }
    }
}

/// Reads `500us`, `20ms`, `1.5s`, `60`, `2m`, `1h`; a bare number is seconds.
///
/// # Errors
/// A sentence, if it is none of these.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text}: the unit must be us, ms, s, m or h")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("{text}: write a number and a unit, as in 15s"))?;
    Duration::try_from_secs_f64(number * factor).map_err(|_| format!("{text}: out of range"))
}

fn parse_span(text: &str) -> Result<(Duration, Duration), String> {
    let (from, to) = text.split_once("..").ok_or("write FROM..TO, as in 15s..16s")?;
    let (from, to) = (parse_duration(from)?, parse_duration(to)?);
    if from <= to { Ok((from, to)) } else { Err(format!("{text}: ends before it begins")) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{CommandFactory, Parser};

    use super::{Cli, Command, parse_duration, parse_span};

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        for (text, ms) in [("500us", 0.5), ("20ms", 20.0), ("1.5s", 1500.0), ("60", 60_000.0)] {
            let expected = Duration::from_secs_f64(ms / 1000.0);
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "s", "-1s", "5 apples", "1.2.3s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        let span = (Duration::from_secs(15), Duration::from_secs(16));
        assert_eq!(parse_span("15s..16s"), Ok(span));
        assert!(parse_span("16s..15s").is_err());
    }

    #[test]
    fn the_command_of_the_documentation_parses() {
        let line = "millrace-loadgen chat --tcp 127.0.0.1:1 --websocket ws://127.0.0.1:2/ws \
                    --http http://127.0.0.1:3 --jwt-secret S --api-token T --connections 18000 \
                    --websocket-share 0.5 --single-rate 5000 --group-rate 200 --group-size 20 \
                    --duration 60s --ramp-rate 3000 --message-bytes 100 --threads 2 --json out \
                    --threshold delivery_p99.9<500ms --threshold pulled=0 --expect-faults \
                    --hold 30 --user-prefix load --seed 7";
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("valid");
        let Command::Chat(chat) = cli.command else { panic!("not chat") };
        assert_eq!(chat.crowd.connections, 18_000);
        assert_eq!(chat.hold, Duration::from_secs(30));
        assert_eq!(chat.result.threshold.len(), 2);
    }
}
