//! The registry of many logic processes, on Redis or what speaks its protocol.
//!
//! # Who says what
//! Each logic process keeps what it serves itself in a [`MemoryRegistry`], and states it in Redis for
//! the others. It alone writes what is under its own name (its *owner id*, new with each start), so
//! what one says late never hurts what another has said since: a session that moved from one logic to
//! another is known twice for a moment, and shown once. What is stated is always a user's whole
//! present state, never a change, so it can be said again, after anything, with no harm.
//!
//! # Fences
//! - *Gateway epoch*: what belongs to an earlier life of a gateway is refused and removed (`put.lua`,
//!   within a bucket), and left out of every answer once this process has met the newer life
//! - *Session*: an end names the session's address and login time; another session there stays
//! - *Owner and sequence*: calls of one owner are numbered, and one that a broken connection left
//!   behind is refused once a newer one was taken
//! - *Lease and grace*: what an owner stated counts while it renews its lease (`beat.lua`), on a clock
//!   that stands still while Redis does, and for a grace after that, in which it is in doubt: an
//!   owner that is cut off from Redis alone serves its users as ever ([`fleet`])
//! - *Taken over*: what an owner in doubt stated of a session is removed once the gateway has told
//!   another of it ([`superseded`]), and does not count when the gateway is gone as well
//!
//! # When Redis has lost something
//! Everything (`FLUSHALL`, a new machine) or the latest (a replica that took over, a restart from an
//! old snapshot): the number of this owner's last call is then smaller than what was acknowledged.
//! Each call sees that, and a look at every bucket once a second. Then the bucket is stated anew from
//! what this process serves, which is what its gateways listed, and what Redis still says of sessions
//! that are over is removed (`rebuild`).
//!
//! # While Redis is away
//! Nobody is disconnected, nothing fails, nothing waits longer than one `timeout`. Answers are then
//! what this process knows itself: presence, the list of sessions, the device policy and the choice of
//! whom to kick leave out sessions that only other logic processes serve. What changes meanwhile is
//! stated afterwards. A device policy that could not count a session elsewhere does not count it until
//! its user logs in again.
//!
//! # Redis Cluster
//! Each act is one script in one hash slot: see [`entry`]. A bucket whose master is away is answered
//! from here, the others as ever, and any master that answers is enough to connect: without the one
//! that has the leases nobody's lease runs out. Set `maxmemory-policy noeviction`: an evicted key is presence lost,
//! and noticed only where the numbers of calls went with it.

mod connection;
mod entry;
mod fleet;
mod keeper;
mod queue;
mod reader;
mod rebuild;
mod silence;
mod superseded;
#[cfg(any(test, feature = "planted-faults"))]
mod unfenced;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use millrace_logic_sdk::{GatewayKey, Gateways};
use tokio::{
    sync::{Notify, Semaphore, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

pub use connection::RedisTopology;

use self::{
    connection::{Connection, Connector, Scripts},
    entry::{BUCKETS, Entry, Keys, OwnerId, bucket_of},
    fleet::{Fleet, Standing},
    queue::Queue,
    superseded::Superseded,
};
use super::{
    HomeId, MemoryRegistry, MemoryRegistrySettings, Online, Registry, RegistryError,
    RegistryStatus, SessionRecord,
};

/// Writers, each with its share of the buckets; so many calls that state something are under way.
const WRITERS: usize = 8;

/// Lives of gateways that only others are connected to and that have a key here. Full: all of them get
/// new ones.
const STRANGERS_MAX: usize = 65_536;

/// Bounds and times of a [`RedisRegistry`].
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Where Redis is.
    pub topology: RedisTopology,
    /// The password of the servers; empty: none. Default none.
    pub password: Password,
    /// What all keys begin with, within their hash tag. Default `millrace`.
    pub key_prefix: String,
    /// How long one call may take; after it the answer is what is known here. Default 1 s.
    pub timeout: Duration,
    /// How long a process that does not renew its lease is taken to live. Default 10 s.
    pub lease: Duration,
    /// How long what a process stated counts after its lease has ended: it may be cut off from Redis
    /// alone. Default 30 s.
    pub grace: Duration,
    /// How often the lease is renewed, and Redis is looked at for what it lost. Default 1 s.
    pub beat_interval: Duration,
    /// The longest pause between two attempts to connect. Default 1 s.
    pub reconnect_max: Duration,
    /// Users that may wait to be stated. One more: its whole bucket is stated anew later. As many entries
    /// of sessions that moved here are remembered until their last process is dead or has spoken;
    /// one more counts until that process is gone. Default 262,144.
    pub users_waiting_max: usize,
    /// Users stated in one go, by each of eight writers. Default 256.
    pub users_per_batch_max: usize,
    /// Look-ups under way. One more waits, at most `timeout`, and is then answered from what is known
    /// here. Default 1,024.
    pub reads_in_flight_max: usize,
    /// Sessions told to the registry at the same time. Default 512.
    pub sessions_in_flight_max: usize,
    /// Bounds of what is kept here.
    pub memory: MemoryRegistrySettings,
}

/// A password, which is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Password(String);

impl From<&str> for Password {
    fn from(password: &str) -> Self {
        Self(password.to_owned())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

impl RedisSettings {
    /// The defaults.
    pub fn new(topology: RedisTopology) -> Self {
        Self {
            topology,
            password: Password::default(),
            key_prefix: "millrace".to_owned(),
            timeout: Duration::from_secs(1),
            lease: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            beat_interval: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(1),
            users_waiting_max: 262_144,
            users_per_batch_max: 256,
            reads_in_flight_max: 1_024,
            sessions_in_flight_max: 512,
            memory: MemoryRegistrySettings::default(),
        }
    }
}

/// Where a life of a gateway shard is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayLife {
    /// It is, or was lately, connected to this process.
    Here(GatewayKey),
    /// This process knows nothing of it.
    Elsewhere,
    /// It was connected to this process, and its lease here has run out.
    Lost,
    /// A newer life of the gateway has connected to this process.
    Over,
}

/// What this process knows of the lives of gateways. Addresses name a life by a key that means nothing
/// in another process; what is shared names it by gateway, epoch and shard.
pub trait GatewayLives: Send + Sync + 'static {
    /// The epoch of the life that has this key; `None` when it is over.
    fn epoch(&self, key: GatewayKey) -> Option<u64>;

    /// The life of a shard.
    fn find(&self, gateway_id: &str, gateway_epoch: u64, shard: u16) -> GatewayLife;
}

impl GatewayLives for Gateways {
    fn epoch(&self, key: GatewayKey) -> Option<u64> {
        self.epoch_of(key)
    }

    fn find(&self, gateway_id: &str, gateway_epoch: u64, shard: u16) -> GatewayLife {
        if let Some(key) = self.key_of(gateway_id, gateway_epoch, shard) {
            return GatewayLife::Here(key);
        }
        match self.newest_life_of(gateway_id) {
            Some((newest, _)) if newest > gateway_epoch => GatewayLife::Over,
            Some((newest, false)) if newest == gateway_epoch => GatewayLife::Lost,
            _ => GatewayLife::Elsewhere,
        }
    }
}

/// See the module.
pub struct RedisRegistry {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// What the registry and its tasks share.
struct Shared {
    settings: RedisSettings,
    owner: OwnerId,
    keys: Keys,
    scripts: Scripts,
    /// What this process serves.
    local: MemoryRegistry,
    lives: OnceLock<Arc<dyn GatewayLives>>,
    strangers: Mutex<Strangers>,
    queues: Vec<Queue>,
    buckets: Vec<Bucket>,
    /// Some bucket is to be stated anew.
    lost: Notify,
    /// The connection, and its number; `None` while Redis is away.
    connection: watch::Sender<Option<(u64, Connection)>>,
    fleet: Mutex<Fleet>,
    superseded: Superseded,
    /// Owners that are gone were seen.
    gone: Notify,
    reads: Semaphore,
    counted: Counted,
}

/// Keys of lives that are not connected here.
#[derive(Default)]
struct Strangers {
    /// Keys given so far, counted from the top; the SDK counts from the bottom.
    given: u32,
    keys: HashMap<(Arc<str>, u64, u16), GatewayKey>,
}

/// What is known of one bucket.
#[derive(Default)]
struct Bucket {
    /// The number of the last call. Only its writer changes it.
    sequence: AtomicU64,
    /// The highest number that Redis has acknowledged and must still know.
    acknowledged: AtomicU64,
    /// What Redis says of it may be wrong.
    is_lost: AtomicBool,
}

#[derive(Default)]
struct Counted {
    degraded: AtomicU64,
    calls_failed: AtomicU64,
    rebuilds: AtomicU64,
    fenced: AtomicU64,
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

impl fmt::Debug for RedisRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRegistry")
            .field("owner", &self.shared.owner)
            .field("topology", &self.shared.settings.topology)
            .finish_non_exhaustive()
    }
}

impl RedisRegistry {
    /// Starts it, whether Redis answers or not. Must be called within a tokio runtime. Until
    /// [`RedisRegistry::attach`] nothing is stated.
    ///
    /// # Errors
    /// A sentence about the addresses, if they cannot be understood.
    pub fn start(settings: RedisSettings) -> Result<Self, String> {
        let connector = Connector::new(&settings).map_err(|error| error.to_string())?;
        let queue_max = settings.users_waiting_max.div_ceil(WRITERS).max(1);
        let shared = Arc::new(Shared {
            owner: OwnerId::random(),
            keys: Keys::new(&settings.key_prefix),
            scripts: Scripts::default(),
            local: MemoryRegistry::new(settings.memory.clone()),
            lives: OnceLock::new(),
            strangers: Mutex::default(),
            queues: (0..WRITERS).map(|_| Queue::new(queue_max)).collect(),
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            lost: Notify::new(),
            connection: watch::Sender::new(None),
            fleet: Mutex::new(Fleet::new(settings.lease, settings.grace)),
            superseded: Superseded::new(settings.users_waiting_max),
            gone: Notify::new(),
            reads: Semaphore::new(settings.reads_in_flight_max.max(1)),
            counted: Counted::default(),
            settings,
        });
        let mut tasks = vec![
            tokio::spawn(keeper::run(Arc::clone(&shared), connector)),
            tokio::spawn(rebuild::run(Arc::clone(&shared))),
            tokio::spawn(rebuild::sweep(Arc::clone(&shared))),
        ];
        tasks.extend((0..WRITERS).map(|n| tokio::spawn(writer::run(Arc::clone(&shared), n))));
        Ok(Self { shared, tasks: Mutex::new(tasks) })
    }

    /// Says where the lives of gateways are known. Only the first call counts.
    pub fn attach(&self, lives: Arc<dyn GatewayLives>) {
        // One that came second changes nothing, as said.
        let _first = self.shared.lives.set(lives);
    }

    /// Waits until Redis answers, or for this long. Says whether it does.
    pub async fn connected(&self, time: Duration) -> bool {
        let mut connection = self.shared.connection.subscribe();
        let found = connection.wait_for(Option::is_some);
        matches!(timeout(time, found).await, Ok(Ok(_)))
    }

    fn take_tasks(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// States a user's sessions and returns what others state; `None` when Redis does not say.
    async fn state(&self, user_id: &Arc<str>) -> Option<Vec<Entry>> {
        let shared = &self.shared;
        if shared.connection().is_none() {
            shared.enqueue(user_id, None);
            count(&shared.counted.degraded, 1);
            return None;
        }
        let (waiter, answer) = oneshot::channel();
        shared.enqueue(user_id, Some(waiter));
        let answer = timeout(shared.settings.timeout, answer).await;
        let found = answer.ok().and_then(Result::ok);
        if found.is_none() {
            count(&shared.counted.degraded, 1);
        }
        found
    }
}

impl Drop for RedisRegistry {
    fn drop(&mut self) {
        self.take_tasks().iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Registry for RedisRegistry {
    async fn online(&self, session: SessionRecord) -> Result<Vec<SessionRecord>, RegistryError> {
        let shared = &self.shared;
        let others = shared.local.online(session.clone()).await?;
        let Some(found) = self.state(&session.user_id).await else { return Ok(others) };
        shared.take_over(&session, &found);
        let mut others = shared.together(others, found);
        others.retain(|other| other.address != session.address);
        Ok(others)
    }

    async fn offline(&self, session: &SessionRecord) -> Result<bool, RegistryError> {
        let was_online = self.shared.local.offline(session).await?;
        if was_online {
            // Waited for, so that no more ends are under way than starts may be.
            self.state(&session.user_id).await;
        }
        Ok(was_online)
    }

    async fn sessions_of(
        &self,
        user_ids: &[&str],
    ) -> Result<Vec<Vec<SessionRecord>>, RegistryError> {
        Ok(reader::sessions_of(&self.shared, user_ids).await)
    }

    async fn homes_of(&self, user_ids: &[&str]) -> Result<Vec<Vec<HomeId>>, RegistryError> {
        reader::homes_of(&self.shared, user_ids).await
    }

    fn home(&self) -> HomeId {
        self.shared.owner.home()
    }

    async fn list(
        &self,
        after: &str,
        users_max: usize,
    ) -> Result<Vec<SessionRecord>, RegistryError> {
        reader::list(&self.shared, after, users_max).await
    }

    async fn count(&self) -> Result<Online, RegistryError> {
        reader::count_online(&self.shared).await
    }

    async fn close(&self) {
        for task in self.take_tasks() {
            task.abort();
            // So that nothing beats after the last word.
            let _ended = task.await;
        }
        if let Some((_, connection)) = self.shared.connection()
            && let Err(error) = keeper::leave(&self.shared, &connection).await
        {
            tracing::info!(%error, "the registry was not told that this process leaves");
        }
    }

    fn in_flight_max(&self) -> usize {
        self.shared.settings.sessions_in_flight_max
    }

    fn status(&self) -> Option<RegistryStatus> {
        let shared = &self.shared;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Some(RegistryStatus {
            connected: shared.connection().is_some(),
            processes: shared.fleet().live(),
            users_waiting: shared.queues.iter().map(Queue::len).sum(),
            degraded: read(&shared.counted.degraded),
            calls_failed: read(&shared.counted.calls_failed),
            rebuilds: read(&shared.counted.rebuilds),
            fenced: read(&shared.counted.fenced),
        })
    }
}

impl Shared {
    /// The connection, while Redis answers.
    fn connection(&self) -> Option<(u64, Connection)> {
        self.connection.borrow().clone()
    }

    /// A call on connection `number` failed. A single server is then away until the keeper has reached
    /// it again; a cluster looks after its own connections.
    fn failed(&self, number: u64, error: &redis::RedisError) {
        count(&self.counted.calls_failed, 1);
        if !connection::is_broken(error) {
            return tracing::warn!(%error, "a call to the registry's Redis failed");
        }
        let broken = self.connection.send_if_modified(|connection| {
            let is_it = connection
                .as_ref()
                .is_some_and(|(known, connection)| *known == number && !connection.is_cluster());
            if is_it {
                *connection = None;
            }
            is_it
        });
        if broken {
            self.away(error);
        }
    }

    /// Redis is away from now on.
    fn away(&self, error: &redis::RedisError) {
        tracing::warn!(
            %error,
            "the registry's Redis is away: until it is back, presence is what this process knows"
        );
        self.queues.iter().for_each(Queue::release);
    }

    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        // Whole after each statement, so a panic elsewhere spoils nothing.
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn epoch(&self, key: GatewayKey) -> Option<u64> {
        self.lives.get()?.epoch(key)
    }

    /// Has a user stated; where there is no room, its whole bucket, later.
    fn enqueue(&self, user_id: &Arc<str>, waiter: Option<queue::Waiter>) {
        if !self.queue_of(user_id).add(user_id, waiter) {
            self.lose(bucket_of(user_id));
        }
    }

    /// Where a user waits to be stated.
    fn queue_of(&self, user_id: &str) -> &Queue {
        &self.queues[bucket_of(user_id) % WRITERS]
    }

    /// Has a bucket stated anew.
    fn lose(&self, bucket: usize) {
        self.buckets[bucket].is_lost.store(true, Ordering::Release);
        self.lost.notify_one();
    }

    /// Remembers what others say of a session that has come here.
    fn take_over(&self, session: &SessionRecord, found: &[Entry]) {
        let Some(epoch) = self.epoch(session.address.gateway) else { return };
        for entry in found.iter().filter(|entry| entry.is_of(session, epoch)) {
            let now = self.fleet().clock();
            self.superseded.add(entry, now);
        }
    }

    /// Where the session of an entry is, in the words of this process; `None` if it does not count.
    fn seen(&self, entry: Entry) -> Option<SessionRecord> {
        if entry.owner == self.owner {
            return None;
        }
        let standing = self.fleet().standing(entry.owner);
        if standing == Standing::Gone {
            return None;
        }
        let life = self.lives.get().map_or(GatewayLife::Elsewhere, |lives| {
            lives.find(&entry.gateway_id, entry.gateway_epoch, entry.shard)
        });
        let gateway = match life {
            GatewayLife::Here(key) => key,
            GatewayLife::Over => return None,
            // Neither of the two that could say so says that it is online.
            GatewayLife::Lost if standing == Standing::InDoubt => return None,
            GatewayLife::Lost | GatewayLife::Elsewhere => {
                let name = (Arc::clone(&entry.gateway_id), entry.gateway_epoch, entry.shard);
                self.strangers.lock().unwrap_or_else(PoisonError::into_inner).key(name)
            }
        };
        Some(entry.record(gateway))
    }

    /// A user's sessions here and elsewhere, each once, by login time. Of one that both know, what is
    /// known here counts.
    fn together(&self, here: Vec<SessionRecord>, entries: Vec<Entry>) -> Vec<SessionRecord> {
        let mut sessions = here;
        for entry in entries {
            let Some(found) = self.seen(entry) else { continue };
            if sessions.iter().all(|known| known.address != found.address) {
                sessions.push(found);
            }
        }
        sessions.sort_by_key(|session| session.logged_in_at_ms);
        sessions
    }
}

impl Strangers {
    fn key(&mut self, name: (Arc<str>, u64, u16)) -> GatewayKey {
        if let Some(key) = self.keys.get(&name) {
            return *key;
        }
        if self.keys.len() >= STRANGERS_MAX {
            self.keys.clear();
        }
        // Two billion of them do not come in the life of a process; if they do, they begin again.
        self.given = (self.given + 1) % (1 << 31);
        let key = GatewayKey(u32::MAX - self.given);
        self.keys.insert(name, key);
        key
    }
}
