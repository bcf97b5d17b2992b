//! What every registry must do, whatever it stands on. [`run`] is called by the tests of each
//! implementation; `make` gives an empty registry each time.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use millrace_logic_sdk::{GatewayKey, SessionAddress};

use super::{Online, Registry, SessionRecord};

/// A session of a user on gateway 1.
pub(crate) fn record(user_id: &str, session_id: u64, logged_in_at_ms: i64) -> SessionRecord {
    SessionRecord {
        user_id: user_id.into(),
        address: SessionAddress { gateway: GatewayKey(1), shard: 0, session_id },
        gateway_id: "gateway-a".into(),
        device_id: format!("device-{session_id}").into(),
        platform: "ios".into(),
        logged_in_at_ms,
    }
}

/// The whole suite.
pub(crate) async fn run<R: Registry, F: Future<Output = R>>(make: impl Fn() -> F) {
    run_in_order(&make).await;
    concurrent_logins_of_one_user_are_all_kept(Arc::new(make().await)).await;
}

/// What holds also where the calls of one test are made at different processes, one after the other.
pub(crate) async fn run_in_order<R: Registry, F: Future<Output = R>>(make: &impl Fn() -> F) {
    a_session_is_found_until_its_end(make().await).await;
    saying_a_thing_twice_changes_nothing(make().await).await;
    a_late_end_spares_a_newer_session(make().await).await;
    a_late_start_spares_a_newer_session(make().await).await;
    many_users_are_looked_up_in_the_order_asked(make().await).await;
    pages_hold_every_session_once(make().await).await;
    ids_of_any_text_are_told_apart(make().await).await;
    it_agrees_with_a_plain_table(make().await).await;
}

async fn sessions<R: Registry>(registry: &R, user_id: &str) -> Vec<SessionRecord> {
    registry.sessions_of(&[user_id]).await.expect("looked up").remove(0)
}

async fn a_session_is_found_until_its_end<R: Registry>(registry: R) {
    let (first, second) = (record("a", 1, 10), record("a", 2, 20));
    assert_eq!(registry.online(first.clone()).await, Ok(vec![]));
    assert_eq!(registry.online(second.clone()).await, Ok(vec![first.clone()]));
    assert_eq!(sessions(&registry, "a").await, [first.clone(), second.clone()]);
    assert_eq!(registry.count().await, Ok(Online { users: 1, sessions: 2 }));
    assert_eq!(registry.offline(&first).await, Ok(true));
    assert_eq!(sessions(&registry, "a").await, std::slice::from_ref(&second));
    assert_eq!(registry.offline(&second).await, Ok(true));
    assert_eq!(registry.count().await, Ok(Online::default()));
}

async fn saying_a_thing_twice_changes_nothing<R: Registry>(registry: R) {
    let session = record("a", 1, 10);
    assert_eq!(registry.online(session.clone()).await, Ok(vec![]));
    assert_eq!(registry.online(session.clone()).await, Ok(vec![]));
    assert_eq!(registry.count().await, Ok(Online { users: 1, sessions: 1 }));
    assert_eq!(registry.offline(&session).await, Ok(true));
    assert_eq!(registry.offline(&session).await, Ok(false));
    assert_eq!(registry.count().await, Ok(Online::default()));
}

async fn a_late_end_spares_a_newer_session<R: Registry>(registry: R) {
    let (old, new) = (record("a", 1, 10), record("a", 1, 20));
    registry.online(old.clone()).await.expect("online");
    assert_eq!(registry.online(new.clone()).await, Ok(vec![]), "it took the old one's place");
    assert_eq!(registry.offline(&old).await, Ok(false));
    assert_eq!(sessions(&registry, "a").await, std::slice::from_ref(&new));
    let mut elsewhere = new.clone();
    elsewhere.address.gateway = GatewayKey(2);
    assert_eq!(registry.offline(&elsewhere).await, Ok(false), "another life of the gateway");
    assert_eq!(registry.count().await, Ok(Online { users: 1, sessions: 1 }));
}

async fn a_late_start_spares_a_newer_session<R: Registry>(registry: R) {
    let (old, new) = (record("a", 1, 10), record("a", 1, 20));
    registry.online(new.clone()).await.expect("online");
    assert_eq!(registry.online(old).await, Ok(vec![]));
    assert_eq!(sessions(&registry, "a").await, [new]);
}

async fn many_users_are_looked_up_in_the_order_asked<R: Registry>(registry: R) {
    for (id, user) in ["a", "b", "c"].into_iter().enumerate() {
        registry.online(record(user, id as u64, id as i64)).await.expect("online");
    }
    let found = registry.sessions_of(&["c", "nobody", "a", "c"]).await.expect("looked up");
    let users: Vec<Vec<&str>> =
        found.iter().map(|list| list.iter().map(|s| &*s.user_id).collect()).collect();
    assert_eq!(users, [vec!["c"], vec![], vec!["a"], vec!["c"]]);
    assert_eq!(registry.sessions_of(&[]).await, Ok(vec![]));
}

async fn pages_hold_every_session_once<R: Registry>(registry: R) {
    let mut expected = Vec::new();
    for id in 0..50 {
        let session = record(&format!("user-{:02}", id / 2), id, id as i64);
        registry.online(session.clone()).await.expect("online");
        expected.push(session);
    }
    let (mut listed, mut after) = (Vec::new(), String::new());
    loop {
        let page = registry.list(&after, 7).await.expect("listed");
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 14, "seven users of two sessions");
        after = last.user_id.to_string();
        listed.extend(page);
    }
    assert_eq!(listed, expected);
    assert_eq!(registry.list("", 0).await, Ok(vec![]));
}

async fn ids_of_any_text_are_told_apart<R: Registry>(registry: R) {
    let users = ["", " ", "a", "a:b", "a b", "a\u{0}b", "ä", "{a}", "a*", "A"];
    for (id, user) in users.into_iter().enumerate() {
        registry.online(record(user, id as u64, 1)).await.expect("online");
    }
    for (id, user) in users.into_iter().enumerate() {
        assert_eq!(sessions(&registry, user).await, [record(user, id as u64, 1)], "{user:?}");
    }
}

async fn it_agrees_with_a_plain_table<R: Registry>(registry: R) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut table: BTreeMap<(String, u64), SessionRecord> = BTreeMap::new();
    for now_ms in 0..2_000 {
        let (user, id) = (format!("user-{}", random.u8(..5)), random.u64(..6));
        let key = (user.clone(), id);
        if random.bool() {
            let session = record(&user, id, now_ms);
            table.insert(key, session.clone());
            let mut others: Vec<_> = table.values().filter(|s| *s.user_id == *user).collect();
            others.retain(|other| other.address != session.address);
            others.sort_by_key(|other| other.logged_in_at_ms);
            let others: Vec<_> = others.into_iter().cloned().collect();
            assert_eq!(registry.online(session).await, Ok(others), "seed {seed}");
        } else {
            let old = random.bool();
            let known = table.get(&key).cloned();
            let mut session = known.clone().unwrap_or_else(|| record(&user, id, 0));
            session.logged_in_at_ms -= i64::from(old);
            let expected = known.is_some() && !old;
            if expected {
                table.remove(&key);
            }
            assert_eq!(registry.offline(&session).await, Ok(expected), "seed {seed}");
        }
    }
    let count = registry.count().await.expect("counted");
    assert_eq!(count.sessions, table.len(), "seed {seed}");
}

async fn concurrent_logins_of_one_user_are_all_kept<R: Registry>(registry: Arc<R>) {
    let logins = (0..32).map(|id| {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move { registry.online(record("a", id, id as i64)).await })
    });
    let mut seen = Vec::new();
    for login in logins.collect::<Vec<_>>() {
        seen.push(login.await.expect("no panic").expect("online").len());
    }
    // Each sees those before it: in whatever order they came, the counts are 0 to 31.
    seen.sort_unstable();
    assert_eq!(seen, (0..32).collect::<Vec<_>>());
    assert_eq!(sessions(&*registry, "a").await.len(), 32);
}
