//! Processes that Redis does not hear from: dead ones, and ones that live.

use super::*;
use crate::testing::wire::Wire;

/// Longer than any test runs.
const NEVER: Duration = Duration::from_secs(3_600);

fn with(lease: Duration, grace: Duration, server: &RedisServer) -> RedisSettings {
    RedisSettings { lease, grace, timeout: Duration::from_millis(500), ..at(server) }
}

async fn processes(watching: &RedisRegistry, expected: usize) {
    let look = async || watching.status().expect("it has one").processes;
    eventually("leases", look, expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_served_by_a_process_that_is_cut_off_from_redis_alone_stays_online() {
    let server = RedisServer::start();
    let settings = with(Duration::from_secs(1), NEVER, &server);
    let wire = Wire::start(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", wire.port());
    let through = RedisSettings { topology: RedisTopology::Single { url }, ..settings.clone() };
    let cut_off = started(&through).await;
    let watching = started(&settings).await;
    let (alice, bob, carol) =
        (record("alice", 1, 10), record("bob", 2, 20), record("carol", 3, 30));
    for session in [&alice, &bob] {
        cut_off.online(session.clone()).await.expect("online");
    }
    processes(&watching, 2).await;
    wire.cut();
    processes(&watching, 1).await;
    let (one, other) = (std::slice::from_ref(&alice), std::slice::from_ref(&bob));
    assert_eq!(sessions(&watching, "alice").await, one, "her process lives, and so does she");
    assert_eq!(watching.homes_of(&["alice"]).await, Ok(vec![vec![cut_off.home()]]));
    assert_eq!(watching.list("", 9).await, Ok(vec![alice.clone(), bob.clone()]));
    // Meanwhile somebody comes and somebody goes.
    cut_off.online(carol.clone()).await.expect("a start never fails");
    assert_eq!(cut_off.offline(&bob).await, Ok(true));
    assert_eq!(sessions(&cut_off, "alice").await, one);
    assert_eq!(sessions(&watching, "bob").await, other, "nobody can know");
    wire.heal();
    let now = [alice.clone(), carol];
    let list = async || {
        let found = watching.list("", 9).await.expect("listed");
        assert!(found.contains(&alice), "at no time is she away");
        found
    };
    eventually("what happened meanwhile is stated", list, now.to_vec()).await;
    processes(&watching, 2).await;
    let count = async || watching.count().await.expect("counted");
    eventually("and counted", count, Online { users: 2, sessions: 2 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_for_longer_than_the_grace_is_online_again_when_it_is_heard() {
    let server = RedisServer::start();
    let settings = with(Duration::from_secs(1), Duration::from_millis(500), &server);
    let wire = Wire::start(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", wire.port());
    let through = RedisSettings { topology: RedisTopology::Single { url }, ..settings.clone() };
    let cut_off = started(&through).await;
    let watching = started(&settings).await;
    let alice = record("alice", 1, 10);
    cut_off.online(alice.clone()).await.expect("online");
    wire.cut();
    let count = async || watching.count().await.expect("counted");
    eventually("she is swept away", count, Online::default()).await;
    assert_eq!(sessions(&watching, "alice").await, []);
    wire.heal();
    eventually("she is back", async || sessions(&watching, "alice").await, [alice]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_moved_from_a_process_that_died_ends_when_it_ends_where_it_is() {
    let server = RedisServer::start();
    let settings = with(Duration::from_secs(2), NEVER, &server);
    let (dying, new, watching) =
        (started(&settings).await, started(&settings).await, started(&settings).await);
    let (staying, leaving) = (record("alice", 1, 10), record("alice", 2, 20));
    for session in [&staying, &leaving] {
        dying.online(session.clone()).await.expect("online");
    }
    drop(dying);
    // The gateway lists them elsewhere, by its own clock, and one ends before the lease does.
    let [staying, leaving] = [staying, leaving].map(|mut session| {
        session.logged_in_at_ms += 5;
        session
    });
    for session in [&staying, &leaving] {
        new.online(session.clone()).await.expect("online");
    }
    assert_eq!(new.offline(&leaving).await, Ok(true));
    let alice = async || {
        let found = sessions(&watching, "alice").await;
        found.iter().map(|session| session.address.session_id).collect::<Vec<_>>()
    };
    eventually("one is left", alice, [1]).await;
    // The other ends after the lease has.
    processes(&watching, 2).await;
    assert_eq!(new.offline(&staying).await, Ok(true));
    eventually("she went", alice, Vec::<u64>::new()).await;
    let count = async || watching.count().await.expect("counted");
    eventually("nothing is left of her", count, Online::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_leaves_in_order_is_doubted_at_once_and_nobody_goes_offline() {
    let server = RedisServer::start();
    let settings = with(NEVER, NEVER, &server);
    let (leaving, staying) = (started(&settings).await, started(&settings).await);
    let (alice, bob) = (record("alice", 1, 10), record("bob", 2, 20));
    for session in [&alice, &bob] {
        leaving.online(session.clone()).await.expect("online");
    }
    processes(&staying, 2).await;
    leaving.close().await;
    processes(&staying, 1).await;
    let both = vec![alice.clone(), bob];
    assert_eq!(staying.list("", 9).await, Ok(both), "their gateways are about to list them");
    staying.online(alice.clone()).await.expect("online");
    let count = async || staying.count().await.expect("counted");
    eventually("alice is counted once", count, Online { users: 2, sessions: 2 }).await;
    assert_eq!(staying.offline(&alice).await, Ok(true));
    assert_eq!(sessions(&staying, "alice").await, []);
}

/// Every gateway was connected here once, and is no more.
struct AllLost;

impl GatewayLives for AllLost {
    fn epoch(&self, key: GatewayKey) -> Option<u64> {
        Some(u64::from(key.0))
    }

    fn find(&self, _gateway_id: &str, _gateway_epoch: u64, _shard: u16) -> GatewayLife {
        GatewayLife::Lost
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_went_with_a_process_and_its_gateway_is_offline_when_both_leases_are_over() {
    let server = RedisServer::start();
    let settings = with(Duration::from_secs(1), NEVER, &server);
    let dying = started(&settings).await;
    let watching = RedisRegistry::start(settings.clone()).expect("the address is good");
    watching.attach(Arc::new(AllLost));
    assert!(watching.connected(LONG).await, "Redis answers");
    dying.online(record("alice", 1, 10)).await.expect("online");
    processes(&watching, 2).await;
    let found = sessions(&watching, "alice").await;
    assert_eq!(found.len(), 1, "that the gateway is not connected here says nothing: {found:?}");
    drop(dying);
    let alice = async || sessions(&watching, "alice").await;
    eventually("neither process nor gateway is heard", alice, []).await;
}
