//! A bounded pool of connections, and what went wrong on one of them.
//!
//! A connection serves one transaction at a time and goes back only if that ended well; one that was
//! given up half-way (a timeout, an error of the network) is closed. Nothing lives in a session
//! between transactions, so that PgBouncer may give every transaction another server connection:
//! statements are sent with their types, unnamed (Parse, Bind, Execute and Sync in one message), and
//! settings are `SET LOCAL`.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_postgres::{
    Client, Config, NoTls, Row,
    error::SqlState,
    types::{ToSql, Type},
};

use crate::storage::{StoreError, StoreFigures};

/// What a statement is given.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Why something was not done.
#[derive(Debug)]
pub enum Failure {
    /// Trying again would end the same.
    Final(StoreError),
    /// Trying again may help: the connection was lost, somebody else was faster. `is_known`: the
    /// server has said that nothing of it was done.
    Again { error: StoreError, is_known: bool },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(said) = error.as_db_error() else {
            // Between us and the server, unless a value does not fit its column.
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            let reason = format!("{error}{}", cause.unwrap_or_default());
            return Self::Again { error: StoreError::Unavailable(reason), is_known: false };
        };
        let code = said.code();
        let reason = format!("{} ({})", said.message(), code.code());
        let class = code.code().get(..2).unwrap_or_default();
        if *code == SqlState::DISK_FULL {
            return Self::Final(StoreError::Full(reason));
        }
        let is_going = class == "08" || class == "57" && *code != SqlState::QUERY_CANCELED;
        // Deadlocks and serialization failures, waits for a lock or a statement that were too long, a
        // transaction that idled, too many connections, and keys that somebody else took first.
        let is_passing = is_going
            || class == "40"
            || class == "53"
            || [
                SqlState::UNIQUE_VIOLATION,
                SqlState::LOCK_NOT_AVAILABLE,
                SqlState::QUERY_CANCELED,
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                SqlState::IN_FAILED_SQL_TRANSACTION,
            ]
            .contains(code);
        if is_passing {
            let is_known = !is_going && *code != SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN;
            return Self::Again { error: StoreError::Unavailable(reason), is_known };
        }
        Self::Final(StoreError::Failed(format!("the database refused: {reason}")))
    }
}

impl Failure {
    /// The server has said that nothing was done.
    pub fn is_known(&self) -> bool {
        !matches!(self, Self::Again { is_known: false, .. })
    }

    /// What the caller is told when there are no more attempts.
    pub fn into_error(self) -> StoreError {
        match self {
            Self::Final(error) | Self::Again { error, .. } => error,
        }
    }
}

/// What the pools of a store have counted.
#[derive(Default)]
pub struct Counted {
    waits: AtomicU64,
    connects_failed: AtomicU64,
    retries: AtomicU64,
    given_up: AtomicU64,
}

impl Counted {
    /// Something is tried again.
    pub fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Something was tried often enough, and its caller is told.
    pub fn give_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module.
pub struct Pool {
    config: Config,
    connections_max: usize,
    /// Shared by all pools of a store.
    pub counted: Arc<Counted>,
    idle: Mutex<Vec<Client>>,
    permits: Arc<Semaphore>,
    wait: Duration,
}

impl Pool {
    /// At most `connections_max` at once; who wants one more waits for at most `wait`, which is also
    /// how long connecting may take.
    pub fn new(
        config: Config,
        connections_max: usize,
        wait: Duration,
        counted: Arc<Counted>,
    ) -> Arc<Self> {
        let connections_max = connections_max.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(connections_max));
        Arc::new(Self { config, connections_max, counted, idle: Mutex::default(), permits, wait })
    }

    /// What some pools of one store say to an operator.
    pub fn figures(pools: &[&Self]) -> StoreFigures {
        let mut figures = StoreFigures::default();
        for pool in pools {
            figures.connections_max += pool.connections_max;
            figures.connections_in_use +=
                pool.connections_max.saturating_sub(pool.permits.available_permits());
        }
        if let Some(Counted { waits, connects_failed, retries, given_up }) =
            pools.first().map(|pool| &*pool.counted)
        {
            figures.connection_waits = waits.load(Ordering::Relaxed);
            figures.connects_failed = connects_failed.load(Ordering::Relaxed);
            figures.retries = retries.load(Ordering::Relaxed);
            figures.given_up = given_up.load(Ordering::Relaxed);
        }
        figures
    }

    /// A connection for one transaction.
    pub async fn session(self: &Arc<Self>) -> Result<Session, Failure> {
        let away = |reason: String| Failure::Again {
            error: StoreError::Unavailable(reason),
            is_known: true,
        };
        if self.permits.available_permits() == 0 {
            self.counted.waits.fetch_add(1, Ordering::Relaxed);
        }
        let permit = match timeout(self.wait, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(StoreError::Closed.into()),
            Err(_) => return Err(away("all connections are busy".into())),
        };
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(client) if client.is_closed() => {}
                Some(client) => return Ok(Session::new(client, permit, self.clone())),
                None => break,
            }
        }
        let connected = timeout(self.wait, self.config.connect(NoTls)).await;
        if !matches!(connected, Ok(Ok(_))) {
            self.counted.connects_failed.fetch_add(1, Ordering::Relaxed);
        }
        match connected {
            Ok(Ok((client, connection))) => {
                // Ends with the client, or with the connection.
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection to the database ended");
                    }
                });
                Ok(Session::new(client, permit, self.clone()))
            }
            Ok(Err(error)) => match Failure::from(error) {
                Failure::Again { error, .. } => Err(Failure::Again { error, is_known: true }),
                refused => Err(refused),
            },
            Err(_) => Err(away("connecting took too long".into())),
        }
    }

    /// Closes what idles: what happened to one connection has probably happened to the others.
    pub fn forget_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Nobody has closed it.
    pub fn is_open(&self) -> bool {
        !self.permits.is_closed()
    }

    /// Closes what idles; who wants a connection later is told [`StoreError::Closed`].
    pub fn close(&self) {
        self.permits.close();
        self.forget_idle();
    }
}

/// A connection on loan. Dropped, it is closed; see [`Session::give_back`].
pub struct Session {
    client: Client,
    _permit: OwnedSemaphorePermit,
    pool: Arc<Pool>,
}

impl Session {
    fn new(client: Client, permit: OwnedSemaphorePermit, pool: Arc<Pool>) -> Self {
        Self { client, _permit: permit, pool }
    }

    /// Statements without parameters and answers.
    pub async fn run(&self, sql: &str) -> Result<(), Failure> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// One statement. It is sent when this is first polled, so that several which are awaited together
    /// cost one round trip.
    pub async fn rows(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Failure> {
        Ok(self.client.query_typed(sql, params).await?)
    }

    /// Keeps the connection for others; its transaction has ended.
    pub fn give_back(self) {
        if self.pool.is_open() && !self.client.is_closed() {
            self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.client);
        }
    }
}
