//! The configuration of the logic process: its TOML file, its secrets, and how the file's sections
//! become the settings of the parts.
//!
//! Nothing is opened or bound here. `configs/logic.toml` shows every key with its default; a test
//! holds the two together.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use millrace_logic_sdk::ServerSettings;
use millrace_service::{ByteSize, ConfigError, Duration, Invalid, config, logging};
use serde::{Deserialize, Serialize};

mod audit;
mod bus;
mod bus_nats;
mod login;
mod messages;
mod notices;
mod paces;
mod peers;
mod presence;
mod push;
mod registry;
mod replay;
mod rooms;
mod search;
mod sessions;

pub use audit::AuditFile;
pub use bus::{Bus, BusKind};
pub use bus_nats::BusNats;
pub use login::{Jwks, Login, LoginHttp, LoginMethod};
pub use messages::{Messages, Words};
pub use notices::Notices;
pub use paces::Paces;
pub use peers::{Peers, PeersKind};
pub use presence::Presence;
pub use push::{Push, PushApns, PushFcm, PushWebhook};
pub use registry::{RedisMode, Registry, RegistryKind, RegistryRedis};
pub use replay::{Check as ReplayCheck, Replay};
pub use rooms::Rooms;
pub use search::Search;
pub use sessions::{SessionClass, Sessions, SessionsFull};

use crate::chat::ChatSettings;

mod attachments;
mod friends;
mod store;
mod users;

pub use attachments::{Attachments, FileStore};
pub use friends::{Friends, MaySee, MayWrite};
pub use store::{Store, StoreKind, StorePostgres};
pub use users::{Registration, SigningAlgorithm, Users};

/// Shortest `login.jwt_secret`: HS256 needs a key of at least the size of its hash (RFC 7518,
/// section 3.2).
pub const JWT_SECRET_BYTES_MIN: usize = 32;

/// Shortest `api.token`.
pub const API_TOKEN_BYTES_MIN: usize = 16;

/// Most threads.
pub const THREADS_MAX: usize = 256;

/// The commented file with every default.
pub const DEFAULT_TOML: &str = include_str!("../../configs/logic.toml");

/// Everything the process is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Worker threads; 1 runs everything on one, 0 takes one a core.
    pub threads: usize,
    /// How long a shutdown may take.
    pub shutdown_timeout: Duration,
    /// Where gateways connect.
    pub link: Link,
    /// HTTP for business services.
    pub http: Door,
    /// gRPC for business services.
    pub grpc: Door,
    /// Metrics and health.
    pub admin: Door,
    /// The administrative API of both doors.
    pub api: Api,
    /// Where messages are kept.
    pub store: Store,
    /// Who is online.
    pub registry: Registry,
    /// Who may come in.
    pub login: Login,
    /// Users with a password.
    pub users: Users,
    /// Friends, blocks, and who may write to whom.
    pub friends: Friends,
    /// Files that messages refer to.
    pub attachments: Attachments,
    /// How many sessions a user may have.
    pub sessions: Sessions,
    /// Requests that were seen before.
    pub replay: Replay,
    /// Full-text search.
    pub search: Search,
    /// Who is told when who comes and goes.
    pub presence: Presence,
    /// How often one user may ask, by kind of request.
    pub paces: Paces,
    /// Rates, queues and sizes.
    pub limits: Limits,
    /// Receipts.
    pub receipts: Receipts,
    /// What a login pushes.
    pub catch_up: CatchUp,
    /// Topics of business services.
    pub bus: Bus,
    /// The other logic processes of the fleet.
    pub peers: Peers,
    /// Notices of business services.
    pub notices: Notices,
    /// What messages may be, and what may become of them.
    pub messages: Messages,
    /// Words that are not let through.
    pub words: Words,
    /// How devices that are offline are reached.
    pub push: Push,
    /// Rooms that services make.
    pub rooms: Rooms,
    /// The line for each administrative act.
    pub audit: AuditFile,
    /// Log lines.
    pub log: Log,
}

/// `[link]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// This process's name towards the gateways and the other logic processes; empty: the host's.
    pub logic_id: String,
    /// How long the sessions of a gateway outlive its stream, and how long a stream may be silent.
    pub lease: Duration,
    /// Frames a gateway shard may have under way here.
    pub window_frames_max: u64,
    /// The same in bytes.
    pub window_bytes_max: ByteSize,
    /// Events waiting for one gateway shard; above, its stream is ended and starts again.
    pub outbox_frames_max: usize,
    /// The same in bytes.
    pub outbox_bytes_max: ByteSize,
    /// How long a shutdown gives the gateways to move the sessions to other logic processes.
    pub hand_over_max: Duration,
    /// Logins of one stream decided at once.
    pub logins_max: usize,
}

/// `[http]`, `[grpc]`, `[admin]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Door {
    /// The address to listen on; empty closes the door.
    pub listen: Listen,
}

/// An address, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen(pub Option<SocketAddr>);

/// `[api]`
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// What callers present as `Authorization: Bearer …`.
    pub token: String,
    /// A file that holds it instead.
    pub token_file: PathBuf,
    /// Calls served at once, over both doors; one more is refused with `over_capacity`.
    pub calls_in_flight_max: usize,
    /// Largest body of an HTTP call.
    pub body_bytes_max: ByteSize,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// See [`ChatSettings::frames_per_second_max`].
    pub frames_per_second_max: u32,
    /// See [`ChatSettings::frames_burst_max`].
    pub frames_burst_max: u32,
    /// See [`ChatSettings::messages_per_second_max`].
    pub messages_per_second_max: u32,
    /// See [`ChatSettings::messages_burst_max`].
    pub messages_burst_max: u32,
    /// See [`ServerSettings::rooms_max`].
    pub rooms_max: usize,
    /// See [`ServerSettings::room_members_max`].
    pub room_members_max: u64,
    /// See [`ServerSettings::rooms_per_session_max`].
    pub rooms_per_session_max: usize,
    /// See [`ChatSettings::room_messages_per_second_max`].
    pub room_messages_per_second_max: u32,
    /// See [`ChatSettings::room_messages_burst_max`].
    pub room_messages_burst_max: u32,
    /// See [`ChatSettings::room_body_bytes_max`].
    pub room_body_bytes_max: ByteSize,
    /// See [`ChatSettings::broadcasts_per_second_max`].
    pub broadcasts_per_second_max: u32,
    /// See [`ChatSettings::broadcasts_burst_max`].
    pub broadcasts_burst_max: u32,
    /// See [`ChatSettings::reply_bytes_max`].
    pub reply_bytes_max: ByteSize,
    /// See [`ChatSettings::writes_queued_max`].
    pub writes_queued_max: usize,
    /// See [`ChatSettings::commit_writes_max`].
    pub commit_writes_max: usize,
    /// See [`ChatSettings::commits_in_flight_max`].
    pub commits_in_flight_max: usize,
    /// See [`ChatSettings::cursor_delay`].
    pub cursor_delay: Duration,
    /// See [`ChatSettings::commit_interval`].
    pub commit_interval: Duration,
    /// See [`ChatSettings::reads_queued_max`].
    pub reads_queued_max: usize,
    /// See [`ChatSettings::reads_in_flight_max`].
    pub reads_in_flight_max: usize,
    /// See [`ChatSettings::reports_queued_max`].
    pub reports_queued_max: usize,
    /// See [`ChatSettings::retry_after`].
    pub retry_after: Duration,
}

/// `[receipts]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Receipts {
    /// See [`ChatSettings::receipt_interval`].
    pub interval: Duration,
    /// See [`ChatSettings::receipt_members_max`].
    pub members_max: usize,
    /// See [`ChatSettings::receipts_pending_max`].
    pub pending_max: usize,
}

/// `[catch_up]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CatchUp {
    /// See [`ChatSettings::catch_up_messages_max`].
    pub messages_max: usize,
    /// See [`ChatSettings::catch_up_conversations_max`].
    pub conversations_max: usize,
    /// See [`ChatSettings::catch_ups_in_flight_max`].
    pub in_flight_max: usize,
    /// See [`ChatSettings::catch_up_held_max`].
    pub held_max: usize,
    /// See [`ChatSettings::catch_up_held_bytes_max`].
    pub held_bytes_max: ByteSize,
    /// See [`ChatSettings::catch_up_burst_bytes_max`].
    pub burst_bytes_max: ByteSize,
    /// See [`ChatSettings::catch_up_pause`].
    pub pause: Duration,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A level, or a filter such as `warn,millrace_logic=debug`.
    pub level: String,
    /// How lines look.
    pub format: logging::Format,
}

/// The resolved secrets. Prints as nothing, so that no log holds them.
#[derive(Clone, PartialEq)]
pub struct Secrets {
    /// At least [`JWT_SECRET_BYTES_MIN`] bytes; empty only if tokens are verified without it.
    pub jwt_secret: String,
    /// What the service that verifies tokens is shown; empty: nothing.
    pub login_http_token: String,
    /// At least [`API_TOKEN_BYTES_MIN`] bytes; empty only if no door needs it.
    pub api_token: String,
    /// What signs calls of the push webhook; empty only if there is none.
    pub push_webhook_secret: String,
    /// What the registry's Redis is shown; empty: nothing.
    pub redis_password: String,
    /// Where the database is; empty if the store is on none.
    pub store_url: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threads: 0,
            shutdown_timeout: Duration::from_secs(10),
            link: Link::default(),
            http: Door { listen: Listen(Some(SocketAddr::from(([127, 0, 0, 1], 9710)))) },
            grpc: Door::default(),
            admin: Door { listen: Listen(Some(SocketAddr::from(([127, 0, 0, 1], 9701)))) },
            api: Api::default(),
            store: Store::default(),
            registry: Registry::default(),
            login: Login::default(),
            users: Users::default(),
            friends: Friends::default(),
            attachments: Attachments::default(),
            sessions: Sessions::default(),
            replay: Replay::default(),
            search: Search::default(),
            presence: Presence::default(),
            paces: Paces::default(),
            limits: Limits::default(),
            receipts: Receipts::default(),
            catch_up: CatchUp::default(),
            bus: Bus::default(),
            peers: Peers::default(),
            notices: Notices::default(),
            messages: Messages::default(),
            words: Words::default(),
            push: Push::default(),
            rooms: Rooms::default(),
            audit: AuditFile::default(),
            log: Log::default(),
        }
    }
}

impl Default for Link {
    fn default() -> Self {
        let server = ServerSettings::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9700)),
            logic_id: String::new(),
            lease: Duration::from_millis(u64::from(server.lease_ms)),
            window_frames_max: server.window_frames_max,
            window_bytes_max: ByteSize::from_bytes(server.window_bytes_max),
            outbox_frames_max: server.outbox_frames_max,
            hand_over_max: Duration::from_millis(server.hand_over_ms_max.into()),
            outbox_bytes_max: ByteSize::from_bytes(server.outbox_bytes_max as u64),
            logins_max: server.logins_max,
        }
    }
}

impl Default for Door {
    fn default() -> Self {
        Self { listen: Listen(None) }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            token: String::new(),
            token_file: PathBuf::new(),
            calls_in_flight_max: 256,
            body_bytes_max: ByteSize::from_mib(1),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let chat = ChatSettings::default();
        Self {
            frames_per_second_max: chat.frames_per_second_max,
            frames_burst_max: chat.frames_burst_max,
            messages_per_second_max: chat.messages_per_second_max,
            messages_burst_max: chat.messages_burst_max,
            rooms_max: ServerSettings::default().rooms_max,
            room_members_max: ServerSettings::default().room_members_max,
            rooms_per_session_max: ServerSettings::default().rooms_per_session_max,
            room_messages_per_second_max: chat.room_messages_per_second_max,
            room_messages_burst_max: chat.room_messages_burst_max,
            room_body_bytes_max: ByteSize::from_bytes(chat.room_body_bytes_max as u64),
            broadcasts_per_second_max: chat.broadcasts_per_second_max,
            broadcasts_burst_max: chat.broadcasts_burst_max,
            reply_bytes_max: ByteSize::from_bytes(chat.reply_bytes_max as u64),
            writes_queued_max: chat.writes_queued_max,
            commit_writes_max: chat.commit_writes_max,
            commits_in_flight_max: chat.commits_in_flight_max,
            cursor_delay: Duration::from_millis(chat.cursor_delay.as_millis() as u64),
            commit_interval: Duration::from_millis(chat.commit_interval.as_millis() as u64),
            reads_queued_max: chat.reads_queued_max,
            reads_in_flight_max: chat.reads_in_flight_max,
            reports_queued_max: chat.reports_queued_max,
            retry_after: Duration::from_millis(chat.retry_after.as_millis() as u64),
        }
    }
}

impl Default for Receipts {
    fn default() -> Self {
        let chat = ChatSettings::default();
        Self {
            interval: Duration::from_millis(chat.receipt_interval.as_millis() as u64),
            members_max: chat.receipt_members_max,
            pending_max: chat.receipts_pending_max,
        }
    }
}

impl Default for CatchUp {
    fn default() -> Self {
        let chat = ChatSettings::default();
        Self {
            messages_max: chat.catch_up_messages_max,
            conversations_max: chat.catch_up_conversations_max,
            in_flight_max: chat.catch_ups_in_flight_max,
            held_max: chat.catch_up_held_max,
            held_bytes_max: ByteSize::from_bytes(chat.catch_up_held_bytes_max as u64),
            burst_bytes_max: ByteSize::from_bytes(chat.catch_up_burst_bytes_max as u64),
            pause: Duration::from_millis(chat.catch_up_pause.as_millis() as u64),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: logging::Format::default() }
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let parsed = text.parse().map_err(|_| {
            format!("{text:?} is not an address such as \"127.0.0.1:9710\", or \"\" for none")
        })?;
        Ok(Self(Some(parsed)))
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.0.map(|address| address.to_string()).unwrap_or_default()
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("token_file", &self.token_file).finish_non_exhaustive()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// One line that names the place; see [`ConfigError`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        config::load_checked(path, Self::check)
    }

    /// Whether the values make sense together. The secrets are looked at by [`Config::secrets`].
    ///
    /// # Errors
    /// The first key that does not.
    pub fn check(&self) -> Result<(), Invalid> {
        let positive = |key: &str, value: usize| match value {
            0 => Err(Invalid::new(key, "must be at least 1")),
            _ => Ok(()),
        };
        if self.threads > THREADS_MAX {
            return Err(Invalid::new("threads", format!("must be at most {THREADS_MAX}")));
        }
        if self.link.lease.as_millis() < 1_000 {
            return Err(Invalid::new("link.lease", "must be at least 1s"));
        }
        if self.logic_id().is_empty() {
            let reason = "is empty, and this host has no name to take instead";
            return Err(Invalid::new("link.logic_id", reason));
        }
        positive("link.window_frames_max", self.link.window_frames_max as usize)?;
        if self.link.window_bytes_max.as_bytes() < 1024 * 1024 {
            return Err(Invalid::new("link.window_bytes_max", "must be at least 1MiB"));
        }
        positive("link.outbox_frames_max", self.link.outbox_frames_max)?;
        if self.link.outbox_bytes_max.as_bytes() < 1024 * 1024 {
            return Err(Invalid::new("link.outbox_bytes_max", "must be at least 1MiB"));
        }
        positive("link.logins_max", self.link.logins_max)?;
        self.registry.check()?;
        self.login.check()?;
        self.sessions.check()?;
        self.replay.check()?;
        self.search.check()?;
        self.presence.check()?;
        self.paces.check()?;
        let limits = &self.limits;
        for (key, value) in [
            ("api.calls_in_flight_max", self.api.calls_in_flight_max),
            ("api.body_bytes_max", self.api.body_bytes_max.as_usize()),
            ("limits.frames_per_second_max", limits.frames_per_second_max as usize),
            ("limits.frames_burst_max", limits.frames_burst_max as usize),
            ("limits.messages_per_second_max", limits.messages_per_second_max as usize),
            ("limits.messages_burst_max", limits.messages_burst_max as usize),
            ("limits.writes_queued_max", limits.writes_queued_max),
            ("limits.commit_writes_max", limits.commit_writes_max),
            ("limits.commits_in_flight_max", limits.commits_in_flight_max),
            ("limits.reads_queued_max", limits.reads_queued_max),
            ("limits.reads_in_flight_max", limits.reads_in_flight_max),
            ("limits.reports_queued_max", limits.reports_queued_max),
            ("receipts.pending_max", self.receipts.pending_max),
            ("catch_up.messages_max", self.catch_up.messages_max),
            ("catch_up.conversations_max", self.catch_up.conversations_max),
            ("catch_up.in_flight_max", self.catch_up.in_flight_max),
            ("catch_up.held_max", self.catch_up.held_max),
        ] {
            positive(key, value)?;
        }
        self.bus.check(self.peers.kind == PeersKind::Nats)?;
        self.peers.check()?;
        self.notices.check()?;
        self.push.check()?;
        if limits.reply_bytes_max.as_bytes() < 1024 {
            return Err(Invalid::new("limits.reply_bytes_max", "must be at least 1KiB"));
        }
        self.users.check()?;
        self.friends.check()?;
        self.attachments.check()?;
        self.messages.check()?;
        self.words.check()?;
        self.store.check()?;
        if self.store.kind == StoreKind::Postgres && self.search.enabled && cfg!(feature = "search")
        {
            // An index of one process would not hear of the messages of others.
            let reason = "full-text search is not there with store.kind = \"postgres\" yet: set \
                          search.enabled = false, or keep the embedded store";
            return Err(Invalid::new("search.enabled", reason));
        }
        Ok(())
    }

    /// The secrets: from the environment (`MILLRACE_LOGIN__JWT_SECRET`, `MILLRACE_API__TOKEN`,
    /// `MILLRACE_LOGIN__HTTP__TOKEN`),
    /// else from the files named, else from the configuration itself.
    ///
    /// # Errors
    /// When one that is needed is missing, unreadable or too short: a process that anybody can log
    /// in to must not start.
    pub fn secrets(&self) -> Result<Secrets, Invalid> {
        self.secrets_from(|name| std::env::var(name).ok())
    }

    fn secrets_from(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Secrets, Invalid> {
        let jwt_secret = secret(
            environment("MILLRACE_LOGIN__JWT_SECRET"),
            &self.login.jwt_secret_file,
            &self.login.jwt_secret,
        )
        .map_err(|error| Invalid::new("login.jwt_secret_file", error.to_string()))?;
        let jwt_needed = self.login.method == LoginMethod::Secret;
        if (jwt_needed || !jwt_secret.is_empty()) && jwt_secret.len() < JWT_SECRET_BYTES_MIN {
            let found = jwt_secret.len();
            return Err(Invalid::new(
                "login.jwt_secret",
                format!(
                    "a secret of at least {JWT_SECRET_BYTES_MIN} bytes is needed, this has {found}"
                ),
            ));
        }
        let login_http_token = secret(
            environment("MILLRACE_LOGIN__HTTP__TOKEN"),
            &self.login.http.token_file,
            &self.login.http.token,
        )
        .map_err(|error| Invalid::new("login.http.token_file", error.to_string()))?;
        let api_token =
            secret(environment("MILLRACE_API__TOKEN"), &self.api.token_file, &self.api.token)
                .map_err(|error| Invalid::new("api.token_file", error.to_string()))?;
        let needed = self.http.listen.0.is_some() || self.grpc.listen.0.is_some();
        if (needed || !api_token.is_empty()) && api_token.len() < API_TOKEN_BYTES_MIN {
            let found = api_token.len();
            return Err(Invalid::new(
                "api.token",
                format!(
                    "a token of at least {API_TOKEN_BYTES_MIN} bytes is needed, this has {found}"
                ),
            ));
        }
        let push_webhook_secret = secret(
            environment("MILLRACE_PUSH__WEBHOOK__SECRET"),
            &self.push.webhook.secret_file,
            &self.push.webhook.secret,
        )
        .map_err(|error| Invalid::new("push.webhook.secret_file", error.to_string()))?;
        let found = push_webhook_secret.len();
        if !self.push.webhook.url.is_empty() && found < push::WEBHOOK_SECRET_BYTES_MIN {
            let min = push::WEBHOOK_SECRET_BYTES_MIN;
            let reason = format!("a secret of at least {min} bytes is needed, this has {found}");
            return Err(Invalid::new("push.webhook.secret", reason));
        }
        let redis_password = secret(
            environment("MILLRACE_REGISTRY__REDIS__PASSWORD"),
            &self.registry.redis.password_file,
            &self.registry.redis.password,
        )
        .map_err(|error| Invalid::new("registry.redis.password_file", error.to_string()))?;
        let store_url = self.store_url_from(environment)?;
        Ok(Secrets {
            jwt_secret,
            login_http_token,
            api_token,
            push_webhook_secret,
            redis_password,
            store_url,
        })
    }

    /// Where the database is, if the store is on one: from the environment
    /// (`MILLRACE_STORE__POSTGRES__URL`), else from the file named, else from the configuration.
    ///
    /// # Errors
    /// When it is needed and missing, or unreadable.
    pub fn store_url(&self) -> Result<String, Invalid> {
        self.store_url_from(|name| std::env::var(name).ok())
    }

    fn store_url_from(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<String, Invalid> {
        if self.store.kind != StoreKind::Postgres {
            return Ok(String::new());
        }
        let StorePostgres { url, url_file, .. } = &self.store.postgres;
        let url = secret(environment("MILLRACE_STORE__POSTGRES__URL"), url_file, url)
            .map_err(|error| Invalid::new("store.postgres.url_file", error.to_string()))?;
        if url.is_empty() {
            let reason = "store.kind = \"postgres\" needs it";
            return Err(Invalid::new("store.postgres.url", reason));
        }
        Ok(url)
    }

    /// Worker threads to start, with 0 resolved.
    pub fn worker_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// The name of this process; empty where neither the file nor the host has one.
    pub fn logic_id(&self) -> String {
        match self.link.logic_id.as_str() {
            "" => millrace_service::host::name().unwrap_or_default(),
            named => named.to_owned(),
        }
    }

    /// Settings of the link's server.
    pub fn server_settings(&self) -> ServerSettings {
        ServerSettings {
            logic_id: self.logic_id(),
            lease_ms: self.link.lease.as_millis_u32(),
            window_frames_max: self.link.window_frames_max,
            window_bytes_max: self.link.window_bytes_max.as_bytes(),
            outbox_frames_max: self.link.outbox_frames_max,
            hand_over_ms_max: self.link.hand_over_max.as_millis_u32(),
            outbox_bytes_max: self.link.outbox_bytes_max.as_usize(),
            logins_max: self.link.logins_max,
            rooms_max: self.limits.rooms_max,
            room_members_max: self.limits.room_members_max,
            rooms_per_session_max: self.limits.rooms_per_session_max,
            retry_after_ms: self.limits.retry_after.as_millis_u32(),
            shares_gateways: self.peers.kind == PeersKind::Nats,
            ..ServerSettings::default()
        }
    }

    /// Settings of the chat domain.
    pub fn chat_settings(&self) -> ChatSettings {
        let Limits { reply_bytes_max, retry_after, .. } = self.limits;
        let limits = &self.limits;
        let mut settings = ChatSettings {
            writes_queued_max: limits.writes_queued_max,
            commit_writes_max: limits.commit_writes_max,
            commits_in_flight_max: limits.commits_in_flight_max,
            cursor_delay: limits.cursor_delay.as_std(),
            commit_interval: limits.commit_interval.as_std(),
            reads_queued_max: limits.reads_queued_max,
            reads_in_flight_max: limits.reads_in_flight_max,
            catch_ups_in_flight_max: self.catch_up.in_flight_max,
            catch_up_messages_max: self.catch_up.messages_max,
            catch_up_conversations_max: self.catch_up.conversations_max,
            catch_up_burst_bytes_max: self.catch_up.burst_bytes_max.as_usize(),
            catch_up_pause: self.catch_up.pause.as_std(),
            catch_up_held_max: self.catch_up.held_max,
            catch_up_held_bytes_max: self.catch_up.held_bytes_max.as_usize(),
            reports_queued_max: limits.reports_queued_max,
            frames_per_second_max: limits.frames_per_second_max,
            frames_burst_max: limits.frames_burst_max,
            messages_per_second_max: limits.messages_per_second_max,
            messages_burst_max: limits.messages_burst_max,
            room_messages_per_second_max: limits.room_messages_per_second_max,
            room_messages_burst_max: limits.room_messages_burst_max,
            rooms_paced_max: limits.rooms_max,
            room_body_bytes_max: limits.room_body_bytes_max.as_usize(),
            broadcasts_per_second_max: limits.broadcasts_per_second_max,
            broadcasts_burst_max: limits.broadcasts_burst_max,
            receipt_interval: self.receipts.interval.as_std(),
            receipt_members_max: self.receipts.members_max,
            receipts_pending_max: self.receipts.pending_max,
            reply_bytes_max: reply_bytes_max.as_usize(),
            retry_after: retry_after.as_std(),
            messages: self.messages.settings(),
            sessions: self.sessions.policy(),
            ..ChatSettings::default()
        };
        self.replay.set(&mut settings);
        self.presence.set(&mut settings);
        self.paces.set(&mut settings);
        self.bus.apply(&mut settings);
        self.peers.apply(&mut settings);
        self.notices.apply(&mut settings);
        settings
    }
}

/// Environment before file before value. The end of a file's last line is not part of a secret.
fn secret(environment: Option<String>, file: &Path, value: &str) -> io::Result<String> {
    if let Some(value) = environment {
        return Ok(value);
    }
    if file.as_os_str().is_empty() {
        return Ok(value.to_owned());
    }
    let text = fs::read_to_string(file)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Config, DEFAULT_TOML, Listen};
    use millrace_service::config::parse;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn refusal(text: &str) -> String {
        parse::<Config>(text, "logic.toml").expect_err("refused").to_string()
    }

    #[test]
    fn the_printed_file_holds_every_default() {
        let config: Config = parse(DEFAULT_TOML, "logic.toml").expect("valid");
        assert_eq!(config, Config::default());
        assert!(config.check().is_ok());
        // Every key of every section is shown.
        let shown: toml::Table = DEFAULT_TOML.parse().expect("TOML");
        let all: toml::Table = toml::Table::try_from(Config::default()).expect("a table");
        for (section, value) in &all {
            let Some(keys) = value.as_table() else {
                assert!(shown.contains_key(section), "{section} is not shown");
                continue;
            };
            for key in keys.keys() {
                assert!(shown[section].get(key).is_some(), "{section}.{key} is not shown");
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let refused = refusal("[limits]\nframes_per_secnd_max = 3\n");
        assert!(refused.starts_with("logic.toml:2:1: unknown key"), "{refused}");
        assert!(refused.contains("did you mean `frames_per_second_max`"), "{refused}");
    }

    #[test]
    fn a_process_without_a_name_of_its_own_has_that_of_its_host() {
        let mut config = Config::default();
        let host = millrace_service::host::name().expect("this machine has a name");
        assert_eq!((config.logic_id(), config.server_settings().logic_id), (host.clone(), host));
        config.link.logic_id = "logic-2".to_owned();
        assert_eq!(config.server_settings().logic_id, "logic-2");
    }

    #[test]
    fn a_process_without_a_good_secret_does_not_start() {
        let mut config = Config::default();
        let none = |_: &str| None;
        assert_eq!(config.secrets_from(none).expect_err("no secret").key, "login.jwt_secret");
        config.login.jwt_secret = SECRET[1..].to_owned();
        assert_eq!(config.secrets_from(none).expect_err("short").key, "login.jwt_secret");
        config.login.jwt_secret = SECRET.to_owned();
        assert_eq!(config.secrets_from(none).expect_err("no token").key, "api.token");
        config.http.listen = Listen(None);
        assert_eq!(config.secrets_from(none).expect("no door").jwt_secret, SECRET);
        config.api.token = "short".to_owned();
        assert_eq!(config.secrets_from(none).expect_err("short token").key, "api.token");
    }

    #[test]
    fn environment_comes_before_file_and_file_before_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        std::fs::write(&file, format!("{SECRET}-file\n")).expect("written");
        let mut config = Config::default();
        config.login.jwt_secret = format!("{SECRET}-value");
        config.api.token = SECRET.to_owned();
        config.login.jwt_secret_file = file;
        let none = |_: &str| None;
        assert_eq!(config.secrets_from(none).expect("good").jwt_secret, format!("{SECRET}-file"));
        let given = |name: &str| {
            (name == "MILLRACE_LOGIN__JWT_SECRET").then(|| format!("{SECRET}-environment"))
        };
        let secrets = config.secrets_from(given).expect("good");
        assert_eq!(secrets.jwt_secret, format!("{SECRET}-environment"));
        config.login.jwt_secret_file = "/nonexistent/secret".into();
        assert_eq!(config.secrets_from(none).expect_err("missing").key, "login.jwt_secret_file");
    }

    #[test]
    fn a_way_to_verify_tokens_needs_its_key_and_not_the_secret_of_another() {
        let refused = |text: &str| parse::<Config>(text, "logic.toml").expect("TOML").check();
        for (method, missing) in [
            ("public_key", "login.public_key_file"),
            ("jwks", "login.jwks.url"),
            ("http", "login.http.url"),
        ] {
            let refused = refused(&format!("[login]\nmethod = \"{method}\"\n"));
            assert_eq!(refused.expect_err("nothing to verify with").key, missing);
        }
        let mut config = Config::default();
        config.http.listen = Listen(None);
        config.login.method = super::LoginMethod::Jwks;
        assert!(config.secrets_from(|_| None).is_ok());
        config.login.jwt_secret = "short".to_owned();
        assert_eq!(config.secrets_from(|_| None).expect_err("short").key, "login.jwt_secret");
    }

    #[test]
    fn secrets_are_never_printed() {
        let mut config = Config::default();
        config.login.jwt_secret = SECRET.to_owned();
        config.api.token = SECRET.to_owned();
        config.login.http.token = SECRET.to_owned();
        config.registry.redis.password = SECRET.to_owned();
        let printed = format!("{config:?} {:?}", config.secrets_from(|_| None));
        assert!(!printed.contains(SECRET), "{printed}");
    }
}
