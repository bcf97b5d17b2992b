//! The gateway's configuration: TOML sections, their defaults, and what is checked about them.
//!
//! `configs/gateway.toml` is the documentation of every key, and it is what `config default`
//! prints; a test holds it to the defaults here. Limits of connections are the engine's
//! ([`millrace_engine::Settings`]), given here with units.

use std::{net::SocketAddr, path::Path};

use millrace_engine::{Drain, Settings, SlowConsumer};
use millrace_protocol::{limits, link};
use millrace_service::{
    ByteSize, ConfigError, Duration, Invalid, config as service_config, logging::Format,
};
use millrace_uring::Options;
use serde::{Deserialize, Serialize};

use crate::{
    driver::Choice as DriverChoice,
    link::{Endpoints, LinkSettings},
};

/// The commented file that `config default` prints.
pub const DEFAULT_TOML: &str = include_str!("../../configs/gateway.toml");

/// Most shards of a process: a shard's number has 8 bits in a session id.
pub const SHARDS_MAX: usize = 256;

/// Most logic endpoints.
pub const ENDPOINTS_MAX: usize = 64;

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this process is and how it is cut into shards.
    pub gateway: GatewaySection,
    /// Where clients connect.
    pub listen: ListenSection,
    /// The limits of connections.
    pub connections: ConnectionsSection,
    /// What is particular to WebSocket.
    pub websocket: WebSocketSection,
    /// The links to the logic tier.
    pub logic: LogicSection,
    /// Rings and buffers.
    pub uring: UringSection,
    /// How the process leaves.
    pub drain: DrainSection,
    /// The administrative address.
    pub admin: AdminSection,
    /// Logs.
    pub log: LogSection,
}

/// `[gateway]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewaySection {
    /// The stable name of this gateway; empty: the host's name.
    pub id: String,
    /// Where clients reach it over WebSocket, as a URL; empty: the listening address, if that names
    /// one machine.
    pub public_websocket: String,
    /// The same over TCP, as host and port.
    pub public_tcp: String,
    /// Shards, one thread each; 0: one for each core.
    pub shards: usize,
    /// Whether each shard's thread stays on a core of its own.
    pub pin_shards: bool,
    /// What carries the connections.
    pub driver: DriverChoice,
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSection {
    /// For WebSocket; empty: none.
    pub websocket: String,
    /// For the binary protocol over TCP; empty: none.
    pub tcp: String,
    /// Connections that wait to be accepted, per shard and listener.
    pub backlog_max: u32,
    /// How long a start waits for an address that is still in use.
    pub bind_wait: Duration,
}

/// `[connections]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionsSection {
    /// Of the whole process; 0: as many as the machine allows, up to 1,048,576.
    pub connections_max: u32,
    /// From one IPv4 address or one IPv6 /64, per shard.
    pub connections_per_address_max: u32,
    /// Largest frame body.
    pub body_bytes_max: ByteSize,
    /// From the accept to a successful login.
    pub login_deadline: Duration,
    /// Without a complete frame.
    pub idle_timeout: Duration,
    /// How long a session outlives its token, for a REFRESH that comes late.
    pub token_grace: Duration,
    /// How often clients are asked to send HEARTBEAT.
    pub heartbeat_interval: Duration,
    /// For a farewell to be read.
    pub linger: Duration,
    /// Bytes that wait for one connection.
    pub send_queue_bytes_max: ByteSize,
    /// Bytes of one send.
    pub send_batch_bytes_max: ByteSize,
    /// Sends of fan-outs in one turn of a shard's loop.
    pub sends_per_turn_max: u32,
    /// Broadcasts of a shard that are under way.
    pub broadcasts_max: u32,
    /// What happens to a connection whose send queue is full.
    pub slow_consumer: SlowConsumerPolicy,
    /// Requests of one connection without an answer.
    pub requests_in_flight_max: u32,
    /// Frames of one connection.
    pub frames_per_second_max: u32,
    /// Frames at once after a pause.
    pub frames_burst_max: u32,
    /// Logins of a shard that wait for logic.
    pub logins_in_flight_max: u32,
    /// Rooms of one session.
    pub rooms_per_connection_max: u32,
    /// Rooms of a shard.
    pub rooms_max: u32,
    /// Refused frames before a connection is closed.
    pub refusals_max: u8,
    /// What a client is told to wait.
    pub retry_after: Duration,
}

/// What to do with a connection that reads more slowly than it is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlowConsumerPolicy {
    /// Close it.
    Close,
    /// Drop what does not fit and mark the gap.
    Drop,
}

/// `[websocket]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebSocketSection {
    /// The path of the upgrade.
    pub path: String,
    /// Origins of pages that may connect; empty: any.
    pub allowed_origins: Vec<String>,
}

/// `[logic]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogicSection {
    /// URIs of the logic processes, and names that stand for several.
    pub endpoints: Vec<String>,
    /// Links of each shard where names stand for several endpoints.
    pub endpoints_max: usize,
    /// How often a name is looked up.
    pub resolve_interval: Duration,
    /// Threads for all links.
    pub link_threads: usize,
    /// How long logic keeps our sessions after it last heard from us, and we a silent stream.
    pub lease: Duration,
    /// Longest attempt to connect.
    pub connect_timeout: Duration,
    /// First wait between attempts.
    pub reconnect_min: Duration,
    /// Longest wait between attempts.
    pub reconnect_max: Duration,
    /// Frames that logic may have under way towards a shard.
    pub window_frames_max: u64,
    /// Bytes that logic may have under way towards a shard.
    pub window_bytes_max: ByteSize,
    /// The least time between two writes of a link while its batches have company; what comes after
    /// a silence goes at once. 0: every batch goes at once.
    pub batch_interval: Duration,
    /// Batches in each ring between a shard and a link.
    pub ring_batches_max: usize,
    /// Events of one batch.
    pub batch_events_max: usize,
    /// Body bytes of one batch.
    pub batch_bytes_max: ByteSize,
    /// Largest encoded batch.
    pub message_bytes_max: ByteSize,
    /// Frames of one connection that wait for credit.
    pub backlog_frames_max: u32,
    /// Body bytes of one connection that wait for credit.
    pub backlog_bytes_max: ByteSize,
    /// How long a frame waits for credit before it is refused; 0: as long as it takes.
    pub credit_wait_max: Duration,
    /// Events that wait for a link.
    pub outbox_events_max: usize,
    /// Sessions of a shard that move from one logic to another in a second.
    pub moves_per_second_max: u32,
    /// Whether `/readyz` asks for a link that is up on every shard.
    pub required_for_ready: bool,
}

/// `[uring]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UringSection {
    /// Rings of one shard; as many of them are made as `connections_max` needs.
    pub rings_max: u8,
    /// Sockets of one ring; 0: as many as RLIMIT_NOFILE and `connections_max` allow.
    pub sockets_max: u32,
    /// Sockets of each ring kept free, so that a full table refuses nobody with a reset.
    pub accept_spare: u32,
    /// Entries of the first ring's submission queue; the completion queue has eight times as many.
    pub submission_entries: u32,
    /// Receive buffers of a shard's first ring.
    pub receive_buffers: u16,
    /// Receive buffers of each further ring.
    pub satellite_receive_buffers: u16,
    /// Size of one of them.
    pub receive_buffer_bytes: ByteSize,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainSection {
    /// The window within which SIGTERM sends everybody away.
    pub shutdown: Duration,
    /// Clients are told to leave after at least this.
    pub reconnect_after_min: Duration,
    /// Clients are told to leave after at most this.
    pub reconnect_after_max: Duration,
    /// Where to; empty: the same address.
    pub reconnect_to: String,
    /// For closing connections and the last events to logic, after the window.
    pub grace: Duration,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSection {
    /// Empty: none.
    pub listen: String,
    /// Most connections that one answer of `/connections` lists.
    pub connections_listed_max: usize,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// `auto`, `text` or `json`.
    pub format: Format,
    /// A filter.
    pub level: String,
}

impl Default for GatewaySection {
    fn default() -> Self {
        Self {
            id: String::new(),
            public_websocket: String::new(),
            public_tcp: String::new(),
            shards: 0,
            pin_shards: true,
            driver: DriverChoice::Auto,
        }
    }
}

impl Default for ListenSection {
    fn default() -> Self {
        Self {
            websocket: "0.0.0.0:8080".to_owned(),
            tcp: "0.0.0.0:8081".to_owned(),
            backlog_max: 4096,
            bind_wait: Duration::from_secs(5),
        }
    }
}

impl Default for ConnectionsSection {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            connections_max: 0,
            connections_per_address_max: settings.connections_per_address_max,
            body_bytes_max: ByteSize::from_bytes(settings.body_bytes_max.into()),
            login_deadline: Duration::from_millis(settings.login_deadline_ms.into()),
            idle_timeout: Duration::from_millis(settings.idle_timeout_ms.into()),
            token_grace: Duration::from_millis(settings.token_grace_ms.into()),
            heartbeat_interval: Duration::from_millis(settings.heartbeat_interval_ms.into()),
            linger: Duration::from_millis(settings.linger_ms.into()),
            send_queue_bytes_max: ByteSize::from_bytes(settings.send_queue_bytes_max as u64),
            send_batch_bytes_max: ByteSize::from_bytes(settings.send_batch_bytes_max as u64),
            slow_consumer: match settings.slow_consumer {
                SlowConsumer::Close => SlowConsumerPolicy::Close,
                SlowConsumer::Drop => SlowConsumerPolicy::Drop,
            },
            requests_in_flight_max: settings.requests_in_flight_max,
            frames_per_second_max: settings.frames_per_second_max,
            frames_burst_max: settings.frames_burst_max,
            logins_in_flight_max: settings.logins_in_flight_max,
            sends_per_turn_max: settings.sends_per_turn_max,
            broadcasts_max: settings.broadcasts_max,
            rooms_per_connection_max: settings.rooms_per_connection_max,
            rooms_max: settings.rooms_max,
            refusals_max: settings.refusals_max,
            retry_after: Duration::from_millis(settings.retry_after_ms.into()),
        }
    }
}

impl Default for WebSocketSection {
    fn default() -> Self {
        let settings = Settings::default();
        Self { path: settings.websocket_path, allowed_origins: settings.allowed_origins }
    }
}

impl Default for LogicSection {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            endpoints: vec!["http://127.0.0.1:9700".to_owned()],
            endpoints_max: 32,
            resolve_interval: Duration::from_secs(5),
            link_threads: 1,
            lease: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(1),
            window_frames_max: 65_536,
            window_bytes_max: ByteSize::from_mib(32),
            batch_interval: Duration::from_millis(1),
            ring_batches_max: 64,
            batch_events_max: settings.link_batch_events_max,
            batch_bytes_max: ByteSize::from_bytes(settings.link_batch_bytes_max as u64),
            message_bytes_max: ByteSize::from_mib(36),
            backlog_frames_max: settings.link_backlog_frames_max,
            backlog_bytes_max: ByteSize::from_bytes(settings.link_backlog_bytes_max as u64),
            credit_wait_max: Duration::from_millis(u64::from(settings.link_credit_wait_max_ms)),
            outbox_events_max: settings.link_outbox_events_max,
            moves_per_second_max: settings.link_moves_per_second_max,
            required_for_ready: true,
        }
    }
}

impl Default for UringSection {
    fn default() -> Self {
        Self {
            rings_max: 64,
            sockets_max: 0,
            accept_spare: 64,
            submission_entries: 2048,
            receive_buffers: 256,
            satellite_receive_buffers: 64,
            receive_buffer_bytes: ByteSize::from_kib(2),
        }
    }
}

impl Default for DrainSection {
    fn default() -> Self {
        Self {
            shutdown: Duration::from_secs(10),
            reconnect_after_min: Duration::from_millis(100),
            reconnect_after_max: Duration::from_secs(3),
            reconnect_to: String::new(),
            grace: Duration::from_secs(5),
        }
    }
}

impl Default for AdminSection {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9600".to_owned(), connections_listed_max: 1_000 }
    }
}

impl Default for LogSection {
    fn default() -> Self {
        Self { format: Format::Auto, level: "info".to_owned() }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// One line with the place in the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        service_config::load_checked(path, Self::check)
    }

    /// Checks what the types cannot: ranges and relations.
    ///
    /// # Errors
    /// The first key whose value makes no sense.
    pub fn check(&self) -> Result<(), Invalid> {
        let require = |holds: bool, key: &str, message: &str| {
            if holds { Ok(()) } else { Err(Invalid::new(key, message)) }
        };
        require(self.gateway.shards <= SHARDS_MAX, "gateway.shards", "must be at most 256")?;
        self.addresses()?;
        require(
            !(self.listen.websocket.is_empty() && self.listen.tcp.is_empty()),
            "listen.websocket",
            "at least one of websocket and tcp must have an address",
        )?;
        require(self.listen.backlog_max > 0, "listen.backlog_max", "must be at least 1")?;
        self.check_connections(require)?;
        self.check_logic(require)?;
        let uring = &self.uring;
        require(
            uring.submission_entries.is_power_of_two() && uring.submission_entries <= 4096,
            "uring.submission_entries",
            "must be a power of two, at most 4096",
        )?;
        for (key, value) in [
            ("uring.receive_buffers", uring.receive_buffers),
            ("uring.satellite_receive_buffers", uring.satellite_receive_buffers),
        ] {
            require(
                value.is_power_of_two() && value <= 1 << 15,
                key,
                "must be a power of two, at most 32768",
            )?;
        }
        require(uring.rings_max > 0, "uring.rings_max", "must be between 1 and 255")?;
        require(
            (256..=1 << 20).contains(&uring.receive_buffer_bytes.as_bytes()),
            "uring.receive_buffer_bytes",
            "must be between 256B and 1MiB",
        )?;
        require(
            uring.sockets_max == 0 || uring.sockets_max > uring.accept_spare,
            "uring.sockets_max",
            "must be more than uring.accept_spare",
        )?;
        let drain = &self.drain;
        require(
            drain.reconnect_after_min <= drain.reconnect_after_max,
            "drain.reconnect_after_min",
            "must not be above reconnect_after_max",
        )?;
        require(
            drain.shutdown <= Duration::from_secs(86_400),
            "drain.shutdown",
            "must be at most 24h",
        )
    }

    fn check_connections(
        &self,
        require: impl Fn(bool, &str, &str) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        let connections = &self.connections;
        let ceiling = u64::from(limits::BODY_BYTES_MAX_CEILING);
        require(
            (1..=ceiling).contains(&connections.body_bytes_max.as_bytes()),
            "connections.body_bytes_max",
            "must be between 1B and 16MiB",
        )?;
        for (key, value) in [
            ("connections.login_deadline", connections.login_deadline),
            ("connections.idle_timeout", connections.idle_timeout),
            ("connections.heartbeat_interval", connections.heartbeat_interval),
        ] {
            require(
                (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&value),
                key,
                "must be between 100ms and 24h",
            )?;
        }
        require(
            connections.heartbeat_interval < connections.idle_timeout,
            "connections.heartbeat_interval",
            "must be below idle_timeout, else every client is idle",
        )?;
        require(
            connections.token_grace <= Duration::from_secs(86_400),
            "connections.token_grace",
            "must be at most 24h",
        )?;
        require(
            connections.linger <= Duration::from_secs(60),
            "connections.linger",
            "must be at most 1m",
        )?;
        let sends_max = 1 << 30;
        for (key, value) in [
            ("connections.send_queue_bytes_max", connections.send_queue_bytes_max),
            ("connections.send_batch_bytes_max", connections.send_batch_bytes_max),
        ] {
            let value = value.as_bytes();
            require((1024..=sends_max).contains(&value), key, "must be between 1KiB and 1GiB")?;
        }
        for (key, value) in [
            ("connections.connections_per_address_max", connections.connections_per_address_max),
            ("connections.requests_in_flight_max", connections.requests_in_flight_max),
            ("connections.frames_per_second_max", connections.frames_per_second_max),
            ("connections.frames_burst_max", connections.frames_burst_max),
            ("connections.logins_in_flight_max", connections.logins_in_flight_max),
            ("connections.sends_per_turn_max", connections.sends_per_turn_max),
            ("connections.broadcasts_max", connections.broadcasts_max),
        ] {
            require(value > 0, key, "must be at least 1")?;
        }
        require(self.websocket.path.starts_with('/'), "websocket.path", "must begin with a slash")
    }

    fn check_logic(
        &self,
        require: impl Fn(bool, &str, &str) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        let logic = &self.logic;
        require(
            (1..=ENDPOINTS_MAX).contains(&logic.endpoints.len()),
            "logic.endpoints",
            "must name between 1 and 64 endpoints",
        )?;
        let endpoints = self.logic_endpoints()?;
        require(
            (1..=ENDPOINTS_MAX).contains(&logic.endpoints_max),
            "logic.endpoints_max",
            "must be between 1 and 64",
        )?;
        require(
            endpoints.names.is_empty() || endpoints.fixed.len() < logic.endpoints_max,
            "logic.endpoints_max",
            "must be more than the URIs of logic.endpoints, else names get no link",
        )?;
        require(
            (Duration::from_millis(100)..=Duration::from_secs(3_600))
                .contains(&logic.resolve_interval),
            "logic.resolve_interval",
            "must be between 100ms and 1h",
        )?;
        require(
            (1..=64).contains(&logic.link_threads),
            "logic.link_threads",
            "must be between 1 and 64",
        )?;
        require(
            (Duration::from_millis(300)..=Duration::from_secs(3_600)).contains(&logic.lease),
            "logic.lease",
            "must be between 300ms and 1h",
        )?;
        require(
            !logic.connect_timeout.as_std().is_zero(),
            "logic.connect_timeout",
            "must be at least 1ms",
        )?;
        require(
            !logic.reconnect_min.as_std().is_zero() && logic.reconnect_min <= logic.reconnect_max,
            "logic.reconnect_min",
            "must be at least 1ms and not above reconnect_max",
        )?;
        require(
            logic.batch_interval <= Duration::from_millis(100),
            "logic.batch_interval",
            "must be at most 100ms",
        )?;
        require(
            (1..=65_536).contains(&logic.ring_batches_max),
            "logic.ring_batches_max",
            "must be between 1 and 65536",
        )?;
        require(logic.batch_events_max > 0, "logic.batch_events_max", "must be at least 1")?;
        require(logic.window_frames_max > 0, "logic.window_frames_max", "must be at least 1")?;
        // One whole frame must fit into everything it passes through.
        let body = self.connections.body_bytes_max;
        require(
            logic.window_bytes_max >= body,
            "logic.window_bytes_max",
            "must be at least connections.body_bytes_max",
        )?;
        require(
            logic.backlog_bytes_max >= body,
            "logic.backlog_bytes_max",
            "must be at least connections.body_bytes_max",
        )?;
        let batch = logic.batch_bytes_max.as_bytes() + body.as_bytes() + 1024 * 1024;
        require(
            (batch..=1 << 30).contains(&logic.message_bytes_max.as_bytes()),
            "logic.message_bytes_max",
            "must be at least batch_bytes_max + connections.body_bytes_max + 1MiB, at most 1GiB",
        )
    }

    /// The addresses of `[listen]` and `[admin]`; `None` where the text is empty.
    ///
    /// # Errors
    /// The key whose text is not an address.
    pub fn addresses(&self) -> Result<ConfiguredAddresses, Invalid> {
        let parse = |key: &str, text: &str| {
            if text.is_empty() {
                return Ok(None);
            }
            text.parse::<SocketAddr>().map(Some).map_err(|_| {
                let example = "an address with its port, such as \"0.0.0.0:8080\" or \"[::]:8080\"";
                Invalid::new(key, format!("{text:?} is not {example}"))
            })
        };
        Ok(ConfiguredAddresses {
            websocket: parse("listen.websocket", &self.listen.websocket)?,
            tcp: parse("listen.tcp", &self.listen.tcp)?,
            admin: parse("admin.listen", &self.admin.listen)?,
        })
    }

    /// The rings of one shard.
    pub(crate) fn driver_options(&self, rings: u8, sockets_per_ring: u32) -> Options {
        let uring = &self.uring;
        Options {
            rings,
            sockets_max: sockets_per_ring,
            submission_entries: uring.submission_entries,
            completion_entries: uring.submission_entries * 8,
            receive_buffers: uring.receive_buffers,
            satellite_receive_buffers: uring.satellite_receive_buffers,
            receive_buffer_bytes: uring.receive_buffer_bytes.as_bytes_u32(),
            accept_spare: uring.accept_spare,
            ..Options::default()
        }
    }

    /// What the engine of one of `shards` is told.
    pub(crate) fn engine_settings(&self, connections_max: u32) -> Settings {
        let connections = &self.connections;
        Settings {
            connections_max,
            connections_per_address_max: connections.connections_per_address_max,
            body_bytes_max: connections.body_bytes_max.as_bytes_u32(),
            login_deadline_ms: connections.login_deadline.as_millis_u32(),
            idle_timeout_ms: connections.idle_timeout.as_millis_u32(),
            token_grace_ms: connections.token_grace.as_millis_u32(),
            heartbeat_interval_ms: connections.heartbeat_interval.as_millis_u32(),
            linger_ms: connections.linger.as_millis_u32(),
            send_queue_bytes_max: connections.send_queue_bytes_max.as_usize(),
            send_batch_bytes_max: connections.send_batch_bytes_max.as_usize(),
            slow_consumer: match connections.slow_consumer {
                SlowConsumerPolicy::Close => SlowConsumer::Close,
                SlowConsumerPolicy::Drop => SlowConsumer::Drop,
            },
            requests_in_flight_max: connections.requests_in_flight_max,
            frames_per_second_max: connections.frames_per_second_max,
            frames_burst_max: connections.frames_burst_max,
            logins_in_flight_max: connections.logins_in_flight_max,
            sends_per_turn_max: connections.sends_per_turn_max,
            broadcasts_max: connections.broadcasts_max,
            rooms_per_connection_max: connections.rooms_per_connection_max,
            rooms_max: connections.rooms_max,
            refusals_max: connections.refusals_max,
            retry_after_ms: connections.retry_after.as_millis_u32(),
            link_backlog_frames_max: self.logic.backlog_frames_max,
            link_backlog_bytes_max: self.logic.backlog_bytes_max.as_usize(),
            link_credit_wait_max_ms: self.logic.credit_wait_max.as_millis_u32(),
            link_outbox_events_max: self.logic.outbox_events_max,
            link_batch_events_max: self.logic.batch_events_max,
            link_batch_bytes_max: self.logic.batch_bytes_max.as_usize(),
            link_moves_per_second_max: self.logic.moves_per_second_max,
            websocket_path: self.websocket.path.clone(),
            allowed_origins: self.websocket.allowed_origins.clone(),
        }
    }

    /// How a shard leaves within `drain.shutdown`: GOAWAY is spread over what the last client's own
    /// time to leave does not need.
    pub(crate) fn shutdown_drain(&self) -> Drain {
        let window = self.drain.shutdown.as_millis_u32();
        let max = self.drain.reconnect_after_max.as_millis_u32().min(window / 2);
        Drain {
            spread_ms: window - max,
            reconnect_after_ms_min: self.drain.reconnect_after_min.as_millis_u32().min(max),
            reconnect_after_ms_max: max,
            reconnect_to: self.drain.reconnect_to.clone(),
        }
    }

    /// What logic may have under way towards a shard.
    pub(crate) fn window(&self) -> link::Credit {
        link::Credit {
            frames: self.logic.window_frames_max,
            bytes: self.logic.window_bytes_max.as_bytes(),
        }
    }

    /// What logic is told of this gateway: where clients reach it, and how many it can hold. A
    /// listener on all addresses names none, so there the configuration has to.
    pub(crate) fn announced(
        &self,
        websocket: Option<SocketAddr>,
        tcp: Option<SocketAddr>,
        connections_per_shard: u32,
    ) -> link::GatewayState {
        let path = &self.websocket.path;
        let own = |address: Option<SocketAddr>| address.filter(|a| !a.ip().is_unspecified());
        let websocket_address = match &*self.gateway.public_websocket {
            "" => own(websocket).map_or_else(String::new, |a| format!("ws://{a}{path}")),
            public => public.to_owned(),
        };
        let tcp_address = match &*self.gateway.public_tcp {
            "" => own(tcp).map_or_else(String::new, |a| a.to_string()),
            public => public.to_owned(),
        };
        let connections_max = u64::from(connections_per_shard);
        link::GatewayState { websocket_address, tcp_address, connections_max, draining: false }
    }

    /// The logic processes, each once.
    ///
    /// # Errors
    /// The entry that is neither a URI nor a name.
    pub(crate) fn logic_endpoints(&self) -> Result<Endpoints, Invalid> {
        Endpoints::read(&self.logic.endpoints, &self.link_settings())
            .map_err(|message| Invalid::new("logic.endpoints", message))
    }

    /// The name that logic knows this gateway by.
    pub(crate) fn gateway_id(&self) -> String {
        if !self.gateway.id.is_empty() {
            return self.gateway.id.clone();
        }
        millrace_service::host::name().unwrap_or_else(|| "gateway".to_owned())
    }

    pub(crate) fn link_settings(&self) -> LinkSettings {
        LinkSettings {
            lease: self.logic.lease.as_std(),
            connect_timeout: self.logic.connect_timeout.as_std(),
            reconnect_min: self.logic.reconnect_min.as_std(),
            reconnect_max: self.logic.reconnect_max.as_std(),
            batch_interval: self.logic.batch_interval.as_std(),
            batches_max: self.logic.ring_batches_max,
            message_bytes_max: self.logic.message_bytes_max.as_usize(),
        }
    }
}

/// Addresses as configured; a port 0 is not chosen yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfiguredAddresses {
    /// For WebSocket.
    pub websocket: Option<SocketAddr>,
    /// For TCP.
    pub tcp: Option<SocketAddr>,
    /// For administration.
    pub admin: Option<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use millrace_service::{Duration, config::parse};

    use super::{Config, DEFAULT_TOML};

    #[test]
    fn the_commented_file_says_exactly_the_defaults() {
        let written: Config = parse(DEFAULT_TOML, "gateway.toml").expect("valid");
        assert_eq!(written, Config::default());
        written.check().expect("the defaults make sense");
    }

    #[test]
    fn the_commented_file_documents_every_key() {
        let defaults = toml::Table::try_from(Config::default()).expect("serialised");
        let mut section = String::new();
        let mut commented = false;
        let mut documented = Vec::new();
        for line in DEFAULT_TOML.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']').to_owned();
            } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#'))
            {
                assert!(commented, "{section}.{key} has no comment above it");
                documented.push(format!("{section}.{key}"));
            }
            commented = line.starts_with('#');
        }
        for (section, keys) in &defaults {
            for key in keys.as_table().expect("a section").keys() {
                let name = format!("{section}.{key}");
                assert!(documented.contains(&name), "{name} is not in the file");
            }
        }
    }

    #[test]
    fn a_misspelt_key_is_refused_with_its_place_and_the_right_one() {
        let text = "[connections]\nidle_timout = \"15s\"\n";
        let error = parse::<Config>(text, "gateway.toml").expect_err("refused").to_string();
        assert_eq!(
            error,
            "gateway.toml:2:1: unknown key `idle_timout`; did you mean `idle_timeout`?"
        );
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_key() {
        fn refused(change: impl FnOnce(&mut Config)) -> String {
            let mut config = Config::default();
            change(&mut config);
            config.check().expect_err("refused").key
        }
        assert_eq!(refused(|c| c.listen.tcp = "8081".to_owned()), "listen.tcp");
        assert_eq!(refused(|c| c.logic.endpoints.clear()), "logic.endpoints");
        assert_eq!(
            refused(|c| c.logic.endpoints = vec!["https://logic:9700".to_owned()]),
            "logic.endpoints"
        );
        assert_eq!(
            refused(|c| c.logic.endpoints = vec!["dns:logic".to_owned()]),
            "logic.endpoints"
        );
        assert_eq!(refused(|c| c.logic.endpoints_max = 65), "logic.endpoints_max");
        assert_eq!(
            refused(|c| {
                c.logic.endpoints.push("dns:logic:9700".to_owned());
                c.logic.endpoints_max = 1;
            }),
            "logic.endpoints_max"
        );
        assert_eq!(
            refused(|c| c.logic.resolve_interval = Duration::from_millis(99)),
            "logic.resolve_interval"
        );
        assert_eq!(
            refused(|c| c.connections.heartbeat_interval = Duration::from_secs(15)),
            "connections.heartbeat_interval"
        );
        assert_eq!(
            refused(|c| {
                c.listen.tcp.clear();
                c.listen.websocket.clear();
            }),
            "listen.websocket"
        );
        assert_eq!(refused(|c| c.websocket.path = "ws".to_owned()), "websocket.path");
        assert_eq!(
            refused(|c| c.connections.body_bytes_max = millrace_service::ByteSize::from_mib(17)),
            "connections.body_bytes_max"
        );
    }
}
