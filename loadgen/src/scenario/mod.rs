//! A scenario as a file: who the users are, what they do, in which stages, and what must hold.
//!
//! Every key has a default, unknown keys are refused, and a value that makes no sense is refused
//! with its place in the file. `presets` are the files that come with the program; `protocol` is what the
//! users speak; `plan` turns a scenario into what the engine runs. Nothing here opens a connection.

mod check;
pub mod plan;
pub mod presets;
mod protocol;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use millrace_service::{
    Duration,
    config::{self, ConfigError},
};
use serde::{Deserialize, Serialize};

pub use protocol::{MqttSection, Protocol, WebsocketEchoSection};

use crate::threshold::Threshold;

/// See the module. Times are `"250ms"`, `"10s"`, `"2m"`, `"1h"`; rates are per second over all
/// users of the run; a load factor multiplies all of them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// What it is called in reports.
    pub name: String,
    /// What it is for, in a sentence.
    pub description: String,
    /// `millrace`, `websocket_echo` or `mqtt`: what all users speak.
    pub protocol: Protocol,
    /// Users, each with one connection. 1 to 5,000,000.
    pub connections: u32,
    /// User ids are this, a hyphen and a number. Two generators at once need different ones.
    pub user_prefix: String,
    /// Seed of every random choice: who sends to whom.
    pub seed: u64,
    /// Smallest length of a message's text in bytes.
    pub message_bytes: usize,
    /// What must hold for the whole run: `delivery_latency p99.9 < 500ms`, `loss = 0`.
    pub thresholds: Vec<Threshold>,
    /// Where the system under test is. Options of the command line win.
    pub target: TargetSection,
    /// How the users' tokens are made.
    pub login: LoginSection,
    /// What only an echo over WebSocket has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket_echo: Option<WebsocketEchoSection>,
    /// What only MQTT has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<MqttSection>,
    /// How the connections come up before the first stage.
    pub connect: ConnectSection,
    /// Kinds of users; without any, one kind by both transports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub population: Vec<PopulationSection>,
    /// Messages from user to user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub single_chat: Option<SingleChat>,
    /// Messages to groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_chat: Option<GroupChat>,
    /// One live room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_broadcast: Option<RoomBroadcast>,
    /// Users who go and come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_churn: Option<PresenceChurn>,
    /// Heartbeats beyond those that the protocol wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Heartbeat>,
    /// Users who read with pauses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_reader: Option<SlowReader>,
    /// Many sessions that end at once and come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect_storm: Option<ReconnectStorm>,
    /// Users who come, log in and go, on a schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_storm: Option<LoginStorm>,
    /// Frames of a team's own backend.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub custom: Vec<Custom>,
    /// How the load goes over time. Without any: 60 s at full load.
    pub stage: Vec<Stage>,
    /// How faults are judged.
    pub verdict: VerdictSection,
    /// The generator itself: threads, and when its result is refused.
    pub generator: GeneratorSection,
}

/// `[target]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetSection {
    /// `host:port` of the gateway's TCP listener, or of an MQTT broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// `ws://host:port/path` of its WebSocket listener, or of an echo server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket: Option<String>,
    /// `http://host:port` of the logic tier, for creating groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Addresses of this machine to connect from; without any the kernel chooses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_addresses: Vec<IpAddr>,
}

/// Algorithms of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum TokenAlgorithm {
    /// A shared secret.
    #[default]
    HS256,
    /// A PEM file with an RSA key.
    RS256,
    /// A PEM file with a P-256 key.
    ES256,
    /// A PEM file with an Ed25519 key.
    EdDSA,
}

/// `[login]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoginSection {
    /// How tokens are signed.
    pub algorithm: TokenAlgorithm,
    /// File with the shared secret (HS256) or the private key in PEM (the others). Without one
    /// HS256 takes `--jwt-secret` or the development secret of `--dev-json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// `kid` of the tokens' header, for a verifier with several keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// `iss` of the tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// `aud` of the tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// How long a token is valid beyond the end of the schedule.
    pub lifetime: Duration,
}

/// `[connect]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectSection {
    /// Connections opened per second.
    pub per_second: f64,
    /// All connections stay quiet for so long before the first stage.
    pub hold: Duration,
}

/// By which door a kind of users comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// Frames on a TCP stream.
    Tcp,
    /// WebSocket.
    WebSocket,
    /// Both, in the share that `websocket_share` says.
    #[default]
    Mixed,
}

/// `[[population]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PopulationSection {
    /// What behaviours call it by.
    pub name: String,
    /// Share of all connections, 0 to 1. The last kind gets what is left over by rounding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Or so many connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// `tcp`, `websocket` or `mixed`.
    pub transport: TransportKind,
    /// With `mixed`: the share that comes by WebSocket.
    pub websocket_share: f64,
    /// Platforms named at LOGIN, with their weights: `{ ios = 2, android = 3 }`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, f64>,
    /// Send the heartbeats that the protocol wants. Without them the server ends the connection.
    pub heartbeats: bool,
    /// Come back after a lost connection.
    pub reconnects: bool,
}

/// `[single_chat]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SingleChat {
    /// Messages per second.
    pub per_second: f64,
    /// Who sends; without a name everybody who is there from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub population: Option<String>,
    /// So many users do not follow the schedule: each sends its next message when the last one is
    /// acknowledged. That gives a throughput, but no honest latency: a server that stalls stalls
    /// the measuring, too.
    pub closed_loop: u32,
}

/// `[group_chat]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupChat {
    /// Messages per second, over all groups.
    pub per_second: f64,
    /// Whose users form groups; without a name everybody who is there from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub population: Option<String>,
    /// Members of each group.
    pub group_size: u32,
    /// How many groups; by default one for each message a second, as far as there are users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<u32>,
}

/// `[room_broadcast]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoomBroadcast {
    /// Messages to the room per second, each to all other members.
    pub per_second: f64,
    /// Whose users are members; without a name everybody who is there from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub population: Option<String>,
    /// How many of them; by default all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,
}

/// `[presence_churn]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PresenceChurn {
    /// Share of the users that go in a minute and come back: 0.01 is 1 %. A third goes by LOGOUT, a
    /// third by a close frame, a third without a word.
    pub share_per_minute: f64,
    /// Whose users; without a name everybody who is there from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub population: Option<String>,
    /// They stay away for at least so long …
    pub away_min: Duration,
    /// … and at most so long.
    pub away_max: Duration,
}

/// `[heartbeat]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heartbeat {
    /// Heartbeats per second on top of those that the protocol wants.
    pub per_second: f64,
    /// Whose; without a name everybody who is there from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub population: Option<String>,
    /// So many users send their next heartbeat as soon as the last one is answered: a throughput,
    /// but no honest latency.
    pub closed_loop: u32,
}

/// `[slow_reader]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlowReader {
    /// Whose users read slowly.
    pub population: String,
    /// In every ten seconds they do not read for so long.
    pub pause: Duration,
}

/// `[reconnect_storm]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReconnectStorm {
    /// Share of the users whose connections end, 0 to 1.
    pub share: f64,
    /// So long after the load began.
    pub at: Duration,
    /// They end within this span.
    pub within: Duration,
    /// Each comes back after a random part of this: what a client's jitter would be.
    pub back_within: Duration,
}

/// `[login_storm]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoginStorm {
    /// Users who come per second: connect, upgrade and login, timed from the intended moment.
    pub per_second: f64,
    /// Whose users. They are not there from the start.
    pub population: String,
    /// How long each stays.
    pub stay: Duration,
}

/// `[[custom]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Custom {
    /// Number of the command, 0x0100 to 0x7FFF.
    pub command: u16,
    /// Frames per second.
    pub per_second: f64,
    /// Who sends; without a name everybody who is there from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub population: Option<String>,
    /// The body as text; `{user}` becomes the sender's id, `{number}` a number that differs in
    /// every frame of the sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Or the body as hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_hex: Option<String>,
    /// A reply is awaited and timed. Without one the frame is only written.
    pub reply: bool,
}

/// How the load goes within a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StageKind {
    /// Evenly from `from` to `to`.
    Ramp,
    /// `load`, all the time.
    #[default]
    Steady,
    /// The same, meant to be short and high.
    Spike,
    /// The same, meant to be long.
    Soak,
    /// `steps` steps from `from` to `to`, each `duration` long, until one misses a threshold.
    Breakpoint,
}

/// `[[stage]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stage {
    /// What it is called in reports; by default its kind.
    pub name: String,
    /// `ramp`, `steady`, `spike`, `soak` or `breakpoint`.
    pub kind: StageKind,
    /// How long it takes; of a breakpoint search: each step.
    pub duration: Duration,
    /// Factor of every rate: steady, spike, soak.
    pub load: f64,
    /// Factor at the beginning: ramp, breakpoint.
    pub from: f64,
    /// Factor at the end: ramp, breakpoint.
    pub to: f64,
    /// Steps of a breakpoint search.
    pub steps: u32,
    /// What must hold for what was meant in this stage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<Threshold>,
}

/// `[verdict]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerdictSection {
    /// Somebody kills logic or gateway, or the scenario hurts itself: lost connections, failed sends
    /// and redeliveries are counted and not held against the run. Lost, misordered and missing
    /// messages always are.
    pub expect_faults: bool,
    /// Wait at most so long after the last stage for what is on its way. 0: 15 s, or 60 s with
    /// `expect_faults`.
    pub settle: Duration,
    /// A heartbeat that is answered later than this is a fault. 0: the heartbeat interval that the
    /// server named at LOGIN, at least 5 s.
    pub heartbeat_reply_max: Duration,
    /// With users that send no heartbeats: each connection must be ended within this span of
    /// silence, from the first time to the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_between: Option<(Duration, Duration)>,
}

/// `[generator]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct GeneratorSection {
    /// Threads, each with as many rings as its connections need. 1 to 256.
    pub threads: u32,
    /// The result is refused if more than 1 % of the moments of the schedule were later than this …
    pub late_p99_max: Duration,
    /// … or more than 0.1 % later than this, in the whole run or in any stage of it …
    pub late_p999_max: Duration,
    /// … or if the busiest thread used more than this share of a core (not with a closed loop) …
    pub cpu_max: f64,
    /// … or if a thread had work and no core for more than this share of the load.
    pub waited_max: f64,
    /// Give a verdict all the same.
    pub allow_saturated: bool,
    /// Length of a window of the time line.
    pub window: Duration,
    /// Windows of a part of the run; a longer schedule gets longer windows.
    pub windows_max: u32,
    /// Records (acknowledgements and arrivals, 24 bytes each) kept for the verification; the run is
    /// aborted above it.
    pub records_max: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: "scenario".to_owned(),
            description: String::new(),
            protocol: Protocol::Millrace,
            connections: 1000,
            user_prefix: "load".to_owned(),
            seed: 1,
            message_bytes: 100,
            thresholds: Vec::new(),
            target: TargetSection::default(),
            login: LoginSection::default(),
            websocket_echo: None,
            mqtt: None,
            connect: ConnectSection::default(),
            population: Vec::new(),
            single_chat: None,
            group_chat: None,
            room_broadcast: None,
            presence_churn: None,
            heartbeat: None,
            slow_reader: None,
            reconnect_storm: None,
            login_storm: None,
            custom: Vec::new(),
            stage: Vec::new(),
            verdict: VerdictSection::default(),
            generator: GeneratorSection::default(),
        }
    }
}

impl Default for LoginSection {
    fn default() -> Self {
        Self {
            algorithm: TokenAlgorithm::HS256,
            key_file: None,
            key_id: None,
            issuer: None,
            audience: None,
            lifetime: Duration::from_secs(24 * 3600),
        }
    }
}

impl Default for ConnectSection {
    fn default() -> Self {
        Self { per_second: 3000.0, hold: Duration::default() }
    }
}

impl Default for PopulationSection {
    fn default() -> Self {
        Self {
            name: String::new(),
            share: None,
            count: None,
            transport: TransportKind::Mixed,
            websocket_share: 0.5,
            devices: BTreeMap::new(),
            heartbeats: true,
            reconnects: true,
        }
    }
}

impl Default for GroupChat {
    fn default() -> Self {
        Self { per_second: 0.0, population: None, group_size: 20, groups: None }
    }
}

impl Default for PresenceChurn {
    fn default() -> Self {
        Self {
            share_per_minute: 0.0,
            population: None,
            away_min: Duration::from_millis(500),
            away_max: Duration::from_secs(5),
        }
    }
}

impl Default for SlowReader {
    fn default() -> Self {
        Self { population: String::new(), pause: Duration::from_secs(5) }
    }
}

impl Default for ReconnectStorm {
    fn default() -> Self {
        Self {
            share: 0.5,
            at: Duration::from_secs(10),
            within: Duration::from_secs(1),
            back_within: Duration::from_secs(2),
        }
    }
}

impl Default for LoginStorm {
    fn default() -> Self {
        Self { per_second: 0.0, population: String::new(), stay: Duration::from_secs(1) }
    }
}

impl Default for Custom {
    fn default() -> Self {
        Self {
            command: 0,
            per_second: 0.0,
            population: None,
            body: None,
            body_hex: None,
            reply: true,
        }
    }
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: StageKind::Steady,
            duration: Duration::from_secs(60),
            load: 1.0,
            from: 0.0,
            to: 1.0,
            steps: 10,
            thresholds: Vec::new(),
        }
    }
}

impl Default for GeneratorSection {
    fn default() -> Self {
        Self {
            threads: 2,
            late_p99_max: Duration::from_millis(50),
            late_p999_max: Duration::from_millis(500),
            cpu_max: 0.98,
            waited_max: 0.4,
            allow_saturated: false,
            window: Duration::from_secs(1),
            windows_max: 7_200,
            records_max: 50_000_000,
        }
    }
}

impl Scenario {
    /// Reads a scenario from a text that is called `name` in errors, and checks it.
    ///
    /// # Errors
    /// The place, the key, and what is wrong with it.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        config::parse_checked(text, name, Self::check)
    }

    /// The scenario as a file with every key.
    pub fn to_toml(&self) -> String {
        config::to_toml(self)
    }

    /// The stages, with the one that stands for none given.
    pub fn stages(&self) -> Vec<Stage> {
        if self.stage.is_empty() { vec![Stage::default()] } else { self.stage.clone() }
    }
}
