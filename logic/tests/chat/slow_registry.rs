//! A registry that takes its time, as one in another machine: many users are told of at once, each of
//! them in order.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use millrace_logic::{
    chat::ChatSettings,
    registry::{
        MemoryRegistry, MemoryRegistrySettings, Online, Registry, RegistryError, SessionRecord,
    },
};
use millrace_logic_sdk::ServerSettings;
use millrace_protocol::Code;

use crate::{store_faults::Bench, world::Clients};

struct Slow {
    inner: MemoryRegistry,
    users_under_way: Mutex<HashSet<Arc<str>>>,
    most: AtomicUsize,
    calls: AtomicUsize,
    at_the_same_time: AtomicUsize,
}

impl Slow {
    async fn slowly<T>(&self, user_id: &Arc<str>, act: impl Future<Output = T>) -> T {
        {
            let mut users = self.users_under_way.lock().expect("no panic");
            if !users.insert(Arc::clone(user_id)) {
                self.at_the_same_time.fetch_add(1, Ordering::Relaxed);
            }
            self.most.fetch_max(users.len(), Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_micros(fastrand::u64(500..4_000))).await;
        let done = act.await;
        self.users_under_way.lock().expect("no panic").remove(user_id);
        self.calls.fetch_add(1, Ordering::Relaxed);
        done
    }
}

#[async_trait]
impl Registry for Slow {
    async fn online(&self, session: SessionRecord) -> Result<Vec<SessionRecord>, RegistryError> {
        let user_id = Arc::clone(&session.user_id);
        self.slowly(&user_id, self.inner.online(session)).await
    }

    async fn offline(&self, session: &SessionRecord) -> Result<bool, RegistryError> {
        self.slowly(&session.user_id, self.inner.offline(session)).await
    }

    async fn sessions_of(
        &self,
        user_ids: &[&str],
    ) -> Result<Vec<Vec<SessionRecord>>, RegistryError> {
        self.inner.sessions_of(user_ids).await
    }

    async fn list(
        &self,
        after: &str,
        users_max: usize,
    ) -> Result<Vec<SessionRecord>, RegistryError> {
        self.inner.list(after, users_max).await
    }

    async fn count(&self) -> Result<Online, RegistryError> {
        self.inner.count().await
    }

    fn in_flight_max(&self) -> usize {
        64
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_users_are_told_of_at_once_and_each_of_them_in_order() {
    const USERS: u64 = 40;
    const ROUNDS: u64 = 5;
    let registry = Arc::new(Slow {
        inner: MemoryRegistry::new(MemoryRegistrySettings::default()),
        users_under_way: Mutex::default(),
        most: AtomicUsize::new(0),
        calls: AtomicUsize::new(0),
        at_the_same_time: AtomicUsize::new(0),
    });
    let settings = ChatSettings::default();
    let bench =
        Bench::start_with(settings, ServerSettings::default(), 1_000, registry.clone()).await;
    let mut gateway = bench.gateway().await;
    let session_id = |round: u64, user: u64| round * USERS + user + 1;
    for round in 0..ROUNDS {
        for user in 0..USERS {
            gateway.enter(session_id(round, user), &format!("user-{user}")).await;
        }
        // All but the last end again, before anybody can have been told of all of them.
        if round + 1 < ROUNDS {
            for user in 0..USERS {
                gateway.end_session(session_id(round, user), Code::Ok).await;
            }
        }
    }
    let calls = (USERS * (2 * ROUNDS - 1)) as usize;
    for _ in 0..3_000 {
        if registry.calls.load(Ordering::Relaxed) == calls {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let list = registry.list("", 1_000).await.expect("listed");
    let mut left: Vec<u64> = list.iter().map(|session| session.address.session_id).collect();
    left.sort_unstable();
    let expected: Vec<u64> = (0..USERS).map(|user| session_id(ROUNDS - 1, user)).collect();
    assert_eq!(left, expected, "an end never overtakes its start");
    assert_eq!(registry.at_the_same_time.load(Ordering::Relaxed), 0);
    assert!(registry.most.load(Ordering::Relaxed) > 1, "users do not wait for each other");
}
