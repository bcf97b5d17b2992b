//! The registry on a real Redis: what it promises while the server and its fellows come and go.

mod doubt;
mod load;
mod outages;
mod topologies;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use millrace_logic_sdk::GatewayKey;

use super::{
    GatewayLife, GatewayLives, RedisRegistry, RedisSettings, RedisTopology, WRITERS,
    entry::{BUCKETS, Entry, bucket_of, prefix_of},
    rebuild,
};
use crate::{
    registry::{
        Online, Registry, RegistryError, SessionRecord,
        conformance::{self, record},
    },
    testing::services::redis::RedisServer,
};

/// Whatever is awaited comes sooner than this, on any machine.
const LONG: Duration = Duration::from_secs(60);

/// A gateway's lives, as tests count them: the key is the epoch.
struct Counted;

impl GatewayLives for Counted {
    fn epoch(&self, key: GatewayKey) -> Option<u64> {
        Some(u64::from(key.0))
    }

    fn find(&self, _gateway_id: &str, gateway_epoch: u64, _shard: u16) -> GatewayLife {
        GatewayLife::Here(GatewayKey(gateway_epoch as u32))
    }
}

/// Settings that notice soon and give up late.
fn settings(topology: RedisTopology) -> RedisSettings {
    static WORLDS: AtomicUsize = AtomicUsize::new(0);
    RedisSettings {
        key_prefix: format!("world-{}", WORLDS.fetch_add(1, Ordering::Relaxed)),
        timeout: Duration::from_secs(10),
        lease: LONG,
        grace: Duration::from_secs(10),
        beat_interval: Duration::from_millis(50),
        reconnect_max: Duration::from_millis(50),
        ..RedisSettings::new(topology)
    }
}

pub(super) fn at(server: &RedisServer) -> RedisSettings {
    settings(RedisTopology::Single { url: server.url() })
}

pub(super) async fn started(settings: &RedisSettings) -> RedisRegistry {
    let registry = RedisRegistry::start(settings.clone()).expect("the address is good");
    registry.attach(Arc::new(Counted));
    assert!(registry.connected(LONG).await, "Redis answers");
    registry
}

/// Waits until something is so; fails with what was found last.
async fn eventually<T, F, V>(what: &str, mut look: F, expected: V)
where
    T: PartialEq<V> + std::fmt::Debug,
    V: std::fmt::Debug,
    F: AsyncFnMut() -> T,
{
    let began = Instant::now();
    loop {
        let found = look().await;
        if found == expected {
            return;
        }
        assert!(began.elapsed() < LONG, "{what}: {found:#?}, not {expected:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn sessions(registry: &impl Registry, user_id: &str) -> Vec<SessionRecord> {
    registry.sessions_of(&[user_id]).await.expect("it always answers").remove(0)
}

/// Two processes that share a Redis. Sessions belong to one by their id; questions go to either.
struct Pair {
    both: [RedisRegistry; 2],
    asked: AtomicUsize,
}

impl Pair {
    async fn start(settings: &RedisSettings) -> Self {
        let both = [started(settings).await, started(settings).await];
        Self { both, asked: AtomicUsize::new(0) }
    }

    fn of(&self, session: &SessionRecord) -> &RedisRegistry {
        &self.both[session.address.session_id as usize % 2]
    }

    fn either(&self) -> &RedisRegistry {
        &self.both[self.asked.fetch_add(1, Ordering::Relaxed) % 2]
    }
}

#[async_trait]
impl Registry for Pair {
    async fn online(&self, session: SessionRecord) -> Result<Vec<SessionRecord>, RegistryError> {
        self.of(&session).online(session).await
    }

    async fn offline(&self, session: &SessionRecord) -> Result<bool, RegistryError> {
        self.of(session).offline(session).await
    }

    async fn sessions_of(
        &self,
        user_ids: &[&str],
    ) -> Result<Vec<Vec<SessionRecord>>, RegistryError> {
        self.either().sessions_of(user_ids).await
    }

    async fn list(
        &self,
        after: &str,
        users_max: usize,
    ) -> Result<Vec<SessionRecord>, RegistryError> {
        self.either().list(after, users_max).await
    }

    async fn count(&self) -> Result<Online, RegistryError> {
        self.either().count().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_of_a_registry() {
    let server = RedisServer::start();
    conformance::run(|| async { started(&at(&server)).await }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_keep_the_contract_together() {
    let server = RedisServer::start();
    conformance::run_in_order(&|| async { Pair::start(&at(&server)).await }).await;
}

#[tokio::test]
async fn of_two_logins_at_once_at_two_processes_at_least_one_sees_the_other() {
    let server = RedisServer::start();
    let pair = Pair::start(&at(&server)).await;
    for user in 0..200 {
        let user = format!("user-{user}");
        let (one, other) =
            tokio::join!(pair.online(record(&user, 1, 1)), pair.online(record(&user, 2, 2)),);
        let seen = [one.expect("online").len(), other.expect("online").len()];
        assert!(seen.contains(&1), "{user}: a device policy would have missed it: {seen:?}");
    }
}

#[tokio::test]
async fn a_login_is_told_the_gateway_of_before_whichever_process_served_it() {
    let server = RedisServer::start();
    let settings = at(&server);
    let (first, second) = (started(&settings).await, started(&settings).await);
    let mut here = record("alice", 1, 10);
    here.gateway_id = "gateway-b".into();
    assert_eq!(first.online(here.clone()).await, Ok(vec![]));
    let there = record("alice", 2, 20);
    assert_eq!(second.online(there.clone()).await, Ok(vec![here.clone()]));
    assert_eq!(sessions(&first, "alice").await, [here.clone(), there.clone()]);
    assert_eq!(first.offline(&here).await, Ok(true));
    assert_eq!(sessions(&second, "alice").await, [there]);
}

#[tokio::test]
async fn a_session_that_moves_from_one_process_to_another_is_never_away_and_shown_once() {
    let server = RedisServer::start();
    let settings = at(&server);
    let (old, new) = (started(&settings).await, started(&settings).await);
    let watching = started(&settings).await;
    let session = record("alice", 1, 10);
    old.online(session.clone()).await.expect("online");
    new.online(session.clone()).await.expect("online");
    assert_eq!(sessions(&watching, "alice").await, std::slice::from_ref(&session));
    // What the old one says late hurts nobody.
    old.offline(&session).await.expect("offline");
    assert_eq!(sessions(&watching, "alice").await, std::slice::from_ref(&session));
    old.online(session.clone()).await.expect("online");
    old.offline(&session).await.expect("offline");
    assert_eq!(sessions(&watching, "alice").await, std::slice::from_ref(&session));
    assert_eq!(sessions(&old, "alice").await, [session]);
}

#[tokio::test]
async fn the_homes_of_a_user_are_the_processes_that_serve_it_and_a_move_replaces_one_by_the_other()
{
    let server = RedisServer::start();
    let settings = at(&server);
    let (old, new) = (started(&settings).await, started(&settings).await);
    let watching = started(&settings).await;
    assert!(old.home() != new.home() && new.home() != watching.home());
    let session = record("alice", 1, 10);
    old.online(session.clone()).await.expect("online");
    old.online(record("bob", 2, 20)).await.expect("online");
    new.online(record("bob", 3, 30)).await.expect("online");
    let homes = async |registry: &RedisRegistry| {
        let found = registry.homes_of(&["alice", "nobody", "bob"]).await.expect("looked up");
        let [alice, nobody, mut bob] = <[_; 3]>::try_from(found).expect("three were asked for");
        assert_eq!(nobody, []);
        let first = bob[0];
        bob.sort_unstable();
        let mut both = [old.home(), new.home()];
        both.sort_unstable();
        assert_eq!(bob, both);
        (alice, first)
    };
    assert_eq!(homes(&watching).await.0, [old.home()]);
    assert_eq!(homes(&old).await, (vec![old.home()], old.home()));
    assert_eq!(homes(&new).await, (vec![old.home()], new.home()), "this process is named first");
    new.online(session.clone()).await.expect("online");
    assert!(homes(&watching).await.0.contains(&new.home()));
    old.offline(&session).await.expect("it is told that the session moved");
    assert_eq!(homes(&watching).await.0, [new.home()]);
    old.offline(&session).await.expect("said again");
    assert_eq!(homes(&watching).await.0, [new.home()]);
}

#[tokio::test]
async fn an_earlier_life_of_a_gateway_is_refused_and_what_is_left_of_it_goes() {
    let server = RedisServer::start();
    let settings = at(&server);
    let (late, current) = (started(&settings).await, started(&settings).await);
    let watching = started(&settings).await;
    let mut earlier = record("alice", 1, 10);
    earlier.address.gateway = GatewayKey(7);
    let mut newer = record("alice", 1, 20);
    newer.address.gateway = GatewayKey(8);
    assert_eq!(late.online(earlier.clone()).await, Ok(vec![]));
    assert_eq!(current.online(newer.clone()).await, Ok(vec![]), "the earlier life is over");
    assert_eq!(sessions(&watching, "alice").await, std::slice::from_ref(&newer));
    // Said again, and another session of that life.
    assert_eq!(late.online(earlier.clone()).await, Ok(vec![newer.clone()]));
    let mut another = record("alice", 2, 30);
    another.address.gateway = GatewayKey(7);
    assert_eq!(late.online(another).await, Ok(vec![newer.clone()]));
    for registry in [&late, &current, &watching] {
        assert_eq!(sessions(registry, "alice").await, std::slice::from_ref(&newer));
    }
    assert_eq!(late.status().map(|status| status.fenced), Some(2));
    assert_eq!(late.offline(&earlier).await, Ok(false), "it was not online");
    assert_eq!(watching.count().await, Ok(Online { users: 1, sessions: 1 }));
    // Another gateway's epochs are its own.
    let mut elsewhere = record("alice", 3, 40);
    elsewhere.address.gateway = GatewayKey(7);
    elsewhere.gateway_id = "gateway-b".into();
    assert_eq!(late.online(elsewhere.clone()).await, Ok(vec![newer.clone()]));
    assert_eq!(sessions(&watching, "alice").await, [newer, elsewhere]);
}

#[tokio::test]
async fn a_call_that_comes_late_changes_nothing() {
    let server = RedisServer::start();
    let settings = at(&server);
    let registry = started(&settings).await;
    let session = record("alice", 1, 10);
    registry.online(session.clone()).await.expect("online");
    registry.offline(&session).await.expect("offline");
    // The first call, arriving again after the second.
    let shared = &registry.shared;
    let bucket = bucket_of("alice");
    let (entries, owners) = (shared.keys.entries(bucket), shared.keys.owners(bucket));
    let epoch = shared.keys.epoch(bucket, "gateway-a");
    let mut again = super::connection::call(&shared.scripts.put, &[&entries, &owners, &epoch]);
    again.arg(&shared.owner.0[..]).arg(1).arg(1_000).arg(1);
    again.arg("gateway-a").arg(&1_u64.to_be_bytes()[..]);
    let entry = Entry::new(&session, shared.owner, 1).encode();
    again.arg(prefix_of("alice")).arg(1).arg(entry);
    let (_, connection) = shared.connection().expect("connected");
    let reply = connection.run_each(vec![again], LONG).await.remove(0).expect("it ran");
    assert_eq!(reply, redis::Value::Array(vec![redis::Value::Int(2)]));
    let watching = started(&settings).await;
    assert_eq!(sessions(&watching, "alice").await, []);
    assert_eq!(watching.count().await, Ok(Online::default()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_hold_everybody_once_whoever_serves_them() {
    let server = RedisServer::start();
    let settings = at(&server);
    let pair = Pair::start(&settings).await;
    let watching = started(&settings).await;
    let mut expected = Vec::new();
    // Far more than the first look at a bucket takes.
    for id in 0..6_000_u64 {
        expected.push(record(&format!("user-{:04}", id / 2), id, id as i64));
    }
    let logins = expected.chunks(500).map(|chunk| async {
        futures::future::join_all(chunk.iter().cloned().map(|one| pair.online(one))).await
    });
    for login in futures::future::join_all(logins).await.into_iter().flatten() {
        login.expect("online");
    }
    for users_max in [1_usize, 700, 5_000] {
        let (mut listed, mut after) = (Vec::new(), String::new());
        let pages_max = if users_max == 1 { 5 } else { usize::MAX };
        for _ in 0..pages_max {
            let page = watching.list(&after, users_max).await.expect("listed");
            let Some(last) = page.last() else { break };
            after = last.user_id.to_string();
            listed.extend(page);
        }
        assert_eq!(listed[..], expected[..listed.len()], "{users_max} users a page");
        assert_eq!(listed.len(), if users_max == 1 { 10 } else { expected.len() });
    }
    assert_eq!(watching.count().await, Ok(Online { users: 3_000, sessions: 6_000 }));
}

#[test]
fn every_bucket_has_one_writer() {
    assert_eq!(BUCKETS % WRITERS, 0);
}
