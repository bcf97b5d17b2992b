//! Connections to Redis: a single server, the master that Sentinels name, or a Cluster. One connection
//! carries all calls, many at a time. It knows the scripts; what they are for is not known here.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::future::join_all;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    Pipeline, RedisError, RedisResult, Script, ServerErrorKind, Value,
    aio::MultiplexedConnection,
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use tokio::time::timeout;

use super::{
    RedisSettings,
    silence::{Silence, slot_of},
};
#[cfg(feature = "planted-faults")]
use crate::planted_faults::{Fault, is_planted};

/// Where Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisTopology {
    /// One server: `redis://[user:password@]host[:port][/database]`.
    Single {
        /// Its address.
        url: String,
    },
    /// The master that Sentinels name.
    Sentinel {
        /// The Sentinels, `redis://[user@]host[:port][/database]`. User and database of the first
        /// are those of the master; Sentinels are asked without a password.
        urls: Vec<String>,
        /// The name of the master.
        master: String,
    },
    /// A Cluster.
    Cluster {
        /// Some of its nodes, `redis://[user:password@]host[:port]`; the others are found.
        urls: Vec<String>,
    },
}

/// The scripts; see the files.
pub(super) struct Scripts {
    pub put: Script,
    pub drop: Script,
    pub beat: Script,
}

/// The text of the script that states sessions.
pub(super) const PUT: &str = include_str!("put.lua");

impl Default for Scripts {
    fn default() -> Self {
        #[cfg(feature = "planted-faults")]
        if is_planted(Fault::Fencing) {
            return Self::with_put(&super::unfenced::put());
        }
        Self::with_put(PUT)
    }
}

impl Scripts {
    pub(super) fn with_put(put: &str) -> Self {
        Self {
            put: Script::new(put),
            drop: Script::new(include_str!("drop.lua")),
            beat: Script::new(include_str!("beat.lua")),
        }
    }
}

/// Opens connections, one after the other.
pub(super) struct Connector {
    source: Source,
    timeout: Duration,
}

enum Source {
    Single(Client),
    // Boxed, as it is much larger than the others.
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
    Cluster(ClusterClient),
}

impl Connector {
    /// Connects to nothing yet.
    pub(super) fn new(settings: &RedisSettings) -> RedisResult<Self> {
        let timeout = settings.timeout;
        let password = Some(settings.password.0.as_str()).filter(|password| !password.is_empty());
        let known = |url: &String| -> RedisResult<ConnectionInfo> {
            let info = url.as_str().into_connection_info()?;
            let Some(password) = password else { return Ok(info) };
            let redis = info.redis_settings().clone().set_password(password);
            Ok(info.set_redis_settings(redis))
        };
        let all = |urls: &[String]| urls.iter().map(known).collect::<RedisResult<Vec<_>>>();
        let source = match &settings.topology {
            RedisTopology::Single { url } => Source::Single(Client::open(known(url)?)?),
            RedisTopology::Sentinel { urls, master } => {
                let infos = all(urls)?;
                let addresses: Vec<ConnectionAddr> =
                    infos.iter().map(|info| info.addr().clone()).collect();
                let mut builder =
                    SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?;
                if let Some(first) = infos.first().map(|info| info.redis_settings()) {
                    if let Some(name) = first.username() {
                        builder = builder.set_client_to_redis_username(name);
                    }
                    if let Some(password) = first.password() {
                        builder = builder.set_client_to_redis_password(password);
                    }
                    builder = builder.set_client_to_redis_db(first.db());
                }
                Source::Sentinel(Box::new(tokio::sync::Mutex::new(builder.build()?)))
            }
            RedisTopology::Cluster { urls } => Source::Cluster(
                ClusterClient::builder(all(urls)?)
                    // While a master that was not connected stands still, each look-up of its slots is
                    // answered with MOVED, and the client connects to every master again, during which all
                    // calls wait. Two of that have to fit into the patience of one call.
                    .connection_timeout(timeout / 4)
                    .response_timeout(timeout)
                    // A call that failed is made again by who made it, with what is true then.
                    .retries(2)
                    .build()?,
            ),
        };
        Ok(Self { source, timeout })
    }

    /// A connection that has answered and knows the scripts.
    pub(super) async fn connect(&self, scripts: &Scripts) -> RedisResult<Connection> {
        let config = || {
            AsyncConnectionConfig::new()
                .set_connection_timeout(Some(self.timeout))
                .set_response_timeout(Some(self.timeout))
        };
        let connecting = async {
            let mut connection = match &self.source {
                Source::Single(client) => Connection::Single(
                    client.get_multiplexed_async_connection_with_config(&config()).await?,
                ),
                Source::Sentinel(client) => Connection::Single(
                    client.lock().await.get_async_connection_with_config(&config()).await?,
                ),
                Source::Cluster(client) => {
                    let mut connection = client.get_async_connection().await?;
                    let slots = redis::cmd("CLUSTER").arg("SLOTS").to_owned();
                    let slots: Value = slots.query_async(&mut connection).await?;
                    let silence = Arc::new(Mutex::new(Silence::new(&slots)));
                    Connection::Cluster(connection, self.timeout * 3 / 4, silence)
                }
            };
            connection.load(scripts).await?;
            Ok(connection)
        };
        // Each step has its own bound; a failover may take several of them.
        match timeout(self.timeout * 5, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(timed_out()),
        }
    }
}

/// A connection. Cheap to clone; the clones share one socket (of each node).
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    /// And how long one call of many may take, so that a master that stands still spoils no others;
    /// and what is left alone because its master does.
    Cluster(ClusterConnection, Duration, Arc<Mutex<Silence>>),
}

impl Connection {
    /// Makes the scripts known, on every master that answers. One that comes back without them says so
    /// when it is called.
    pub(super) async fn load(&mut self, scripts: &Scripts) -> RedisResult<()> {
        let scripts = [&scripts.put, &scripts.drop, &scripts.beat];
        match self {
            Self::Single(connection) => {
                for script in scripts {
                    script.load_async(connection).await?;
                }
            }
            Self::Cluster(connection, patience, _) => {
                // It fails if any one master does not answer; the others have them then. All at once, as
                // each waits for that one.
                let patience = *patience;
                let loads = scripts.map(|script| {
                    let mut connection = connection.clone();
                    async move { timeout(patience, script.load_async(&mut connection)).await }
                });
                let _loaded = join_all(loads).await;
            }
        }
        Ok(())
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(..))
    }

    /// Runs commands, each within one slot, and answers in their order, after `limit` at the latest; each
    /// fails by itself. A single server gets them all in one go. A Cluster's masters are waited for
    /// less long, and there is no bound around all of them together: on a busy machine it would come
    /// before the answers of the masters that did answer were looked at.
    pub(super) async fn run_each(
        &self,
        commands: Vec<redis::Cmd>,
        limit: Duration,
    ) -> Vec<RedisResult<Value>> {
        let mut connection = match self {
            Self::Single(connection) => connection.clone(),
            Self::Cluster(connection, patience, silence) => {
                // Who has less time than that cannot say that a master is silent.
                let (patience, is_whole) = (limit.min(*patience), limit >= *patience);
                let calls = commands.into_iter().map(|command| {
                    let mut connection = connection.clone();
                    async move {
                        let asked = Instant::now();
                        let master = {
                            let mut silence = locked(silence);
                            let master = silence.master_of(slot_of(&command));
                            if !silence.may_ask(master, asked) {
                                return Err(timed_out());
                            }
                            master
                        };
                        let call = command.query_async::<Value>(&mut connection);
                        let reply = timeout(patience, call).await;
                        let reply = reply.unwrap_or_else(|_| Err(timed_out()));
                        match &reply {
                            Err(error) if is_broken(error) && is_whole => {
                                locked(silence).is_silent(master, asked, Instant::now());
                            }
                            Err(error) if is_broken(error) => {}
                            _ => locked(silence).answers(master, Instant::now()),
                        }
                        reply
                    }
                });
                return join_all(calls).await;
            }
        };
        let count = commands.len();
        if count == 0 {
            return Vec::new();
        }
        let mut pipeline = Pipeline::with_capacity(count);
        pipeline.ignore_errors();
        for command in commands {
            pipeline.add_command(command);
        }
        let running = pipeline.query_async::<Vec<RedisResult<Value>>>(&mut connection);
        match timeout(limit, running).await {
            Ok(Ok(replies)) if replies.len() == count => replies,
            Ok(Ok(_)) => vec![Err(garbled()); count],
            Ok(Err(error)) => vec![Err(error); count],
            Err(_) => vec![Err(timed_out()); count],
        }
    }
}

fn locked(silence: &Mutex<Silence>) -> MutexGuard<'_, Silence> {
    // Whole after each statement, so a panic elsewhere spoils nothing.
    silence.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call of a script by its hash.
pub(super) fn call(script: &Script, keys: &[&str]) -> redis::Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script.get_hash()).arg(keys.len());
    for key in keys {
        command.arg(*key);
    }
    command
}

/// Whether a server has lost its scripts: it has started anew.
pub(super) fn has_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether the connection is of no more use: the server is gone, silent, or no master any more.
pub(super) fn is_broken(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::ReadOnly
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::BusyLoading
            )
        )
}

pub(super) fn timed_out() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "it did not answer in time").into()
}

/// An answer that is none.
pub(super) fn garbled() -> RedisError {
    (ErrorKind::UnexpectedReturnType, "the answer cannot be read").into()
}
