//! A Redis that loses everything, or something, or stands still; processes that end or stand still.

use super::{load::Load, *};

/// Short enough that an outage is noticed while a test waits.
fn hasty(server: &RedisServer) -> RedisSettings {
    RedisSettings { timeout: Duration::from_millis(300), ..at(server) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_flushall_under_load_everybody_is_online_again_and_nobody_else() {
    let server = RedisServer::start();
    let settings = at(&server);
    let pair = Arc::new(Pair::start(&settings).await);
    let mut load = Load::new(&pair, fastrand::u64(..));
    load.go_on(200).await;
    for _ in 0..5 {
        load.go_on(50).await;
        assert!(server.say("FLUSHALL").starts_with("+OK"));
        load.go_on(50).await;
    }
    load.settles(&settings, "after FLUSHALL under load").await;
    // And at rest: nothing is said that would show the loss.
    assert!(server.say("FLUSHALL").starts_with("+OK"));
    load.settles(&settings, "after FLUSHALL at rest").await;
    let rebuilds = |registry: &RedisRegistry| registry.status().expect("it has one").rebuilds;
    assert!(pair.both.iter().all(|registry| rebuilds(registry) > 0));
    // And then it is over: nothing is stated for ever again.
    let mut before = Vec::new();
    let no_more = async || {
        let now = pair.both.iter().map(rebuilds).collect::<Vec<_>>();
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::mem::replace(&mut before, now.clone()) == now
    };
    eventually("it is over", no_more, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_was_killed_and_comes_back_empty_learns_everything_again() {
    let mut server = RedisServer::start();
    let settings = hasty(&server);
    let pair = Arc::new(Pair::start(&settings).await);
    let mut load = Load::new(&pair, fastrand::u64(..));
    for _ in 0..3 {
        load.go_on(150).await;
        server.kill();
        load.go_on(150).await;
        server.restart();
        load.go_on(20).await;
        load.settles(&settings, "after a kill and a restart").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_back_with_an_old_snapshot_neither_misses_nor_invents_anybody() {
    let mut server = RedisServer::start_with(&["--save", "3600 1", "--appendonly", "no"]);
    let settings = hasty(&server);
    let pair = Arc::new(Pair::start(&settings).await);
    let mut load = Load::new(&pair, fastrand::u64(..));
    load.go_on(200).await;
    load.settles(&settings, "before the snapshot").await;
    assert!(server.say("SAVE").starts_with("+OK"));
    load.go_on(150).await;
    load.settles(&settings, "after the snapshot").await;
    server.restart();
    assert!(server.folder().join("dump.rdb").exists(), "it did come back with something");
    load.settles(&settings, "after a restart from an old snapshot").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_stands_still_each_process_answers_what_it_knows_and_no_lease_ends() {
    let server = RedisServer::start();
    let lease = Duration::from_secs(2);
    let settings = RedisSettings { lease, ..hasty(&server) };
    let pair = Pair::start(&settings).await;
    let (here, there) = (record("alice", 0, 10), record("bob", 1, 20));
    let gone = record("carol", 0, 30);
    for session in [&here, &there, &gone] {
        pair.online(session.clone()).await.expect("online");
    }
    let [first, second] = &pair.both;
    eventually("alice is stated", async || sessions(second, "alice").await.len(), 1).await;
    eventually("bob is stated", async || sessions(first, "bob").await.len(), 1).await;
    server.pause();
    let paused = Instant::now();
    // Nothing fails, and nothing waits for longer than a call may take.
    let device = record("alice", 2, 40);
    assert_eq!(first.online(device.clone()).await, Ok(vec![here.clone()]));
    assert_eq!(first.offline(&gone).await, Ok(true));
    let alice = [here.clone(), device.clone()];
    assert_eq!(sessions(first, "alice").await, alice);
    assert_eq!(sessions(first, "carol").await, []);
    assert_eq!(sessions(first, "bob").await, [], "served elsewhere, so not known");
    assert_eq!(sessions(second, "bob").await, std::slice::from_ref(&there));
    assert_eq!(first.list("", 9).await, Ok(alice.to_vec()));
    let homes = first.homes_of(&["alice"]).await;
    assert!(matches!(homes, Err(RegistryError::Unavailable(_))), "who else serves her: {homes:?}");
    assert_eq!(first.count().await, Ok(Online { users: 1, sessions: 2 }));
    let away = async || [first, second].map(|one| one.status().expect("it has one").connected);
    eventually("the outage is noticed", away, [false, false]).await;
    let began = Instant::now();
    for id in 0..100 {
        first.online(record("dora", 4 + id * 2, 50)).await.expect("online");
    }
    assert!(began.elapsed() < settings.timeout * 50, "nobody waits for what is known to be away");
    assert!(first.status().is_some_and(|status| status.degraded > 0 && status.users_waiting > 0));
    tokio::time::sleep((lease * 3).saturating_sub(paused.elapsed())).await;
    server.go_on();
    // The first to come back finds nobody's lease ended.
    for registry in [second, first] {
        assert!(registry.connected(LONG).await);
        assert!(sessions(registry, "alice").await.contains(&here), "she was there all the time");
        assert!(sessions(registry, "bob").await.contains(&there), "he was there all the time");
    }
    eventually("what came meanwhile", async || sessions(second, "alice").await, alice).await;
    eventually("who left meanwhile", async || sessions(second, "carol").await, []).await;
    eventually("all of dora", async || sessions(second, "dora").await.len(), 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_changes_than_may_wait_are_made_good_all_the_same() {
    let server = RedisServer::start();
    let settings = RedisSettings { users_waiting_max: 16, ..hasty(&server) };
    let pair = Arc::new(Pair::start(&settings).await);
    let mut load = Load::new(&pair, fastrand::u64(..));
    load.go_on(300).await;
    load.settles(&settings, "before the outage").await;
    server.pause();
    for _ in 0..3 {
        load.go_on(300).await;
    }
    let waiting = pair.both[0].status().expect("it has one").users_waiting;
    assert!(waiting <= 16 + WRITERS, "{waiting} wait");
    server.go_on();
    load.settles(&settings, "after the outage").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_that_died_had_stated_goes_after_its_lease_and_the_grace() {
    let server = RedisServer::start();
    let (lease, grace) = (Duration::from_secs(2), Duration::from_millis(500));
    let settings = RedisSettings { lease, grace, ..at(&server) };
    let (ending, staying) = (started(&settings).await, started(&settings).await);
    let both = record("alice", 1, 10);
    let alone = record("bob", 2, 20);
    for session in [&both, &alone] {
        ending.online(session.clone()).await.expect("online");
    }
    assert_eq!(sessions(&staying, "bob").await, [alone]);
    drop(ending);
    // The gateway lists its session to the other.
    staying.online(both.clone()).await.expect("online");
    eventually("bob went", async || sessions(&staying, "bob").await, []).await;
    assert_eq!(sessions(&staying, "alice").await, [both]);
    let one = Online { users: 1, sessions: 1 };
    let count = async || staying.count().await.expect("counted");
    eventually("his entry is removed", count, one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_taken_for_dead_states_everything_again() {
    let server = RedisServer::start();
    let settings = at(&server);
    let (paused, other) = (started(&settings).await, started(&settings).await);
    let session = record("alice", 1, 10);
    paused.online(session.clone()).await.expect("online");
    // What the other does when the lease is over.
    let (_, connection) = other.shared.connection().expect("connected");
    let gone = [paused.shared.owner];
    let swept = rebuild::sweep_once(&other.shared, &connection, &gone).await;
    assert_eq!(swept.expect("swept"), Some(1));
    eventually("she is back", async || sessions(&other, "alice").await, [session]).await;
}

#[tokio::test]
async fn it_starts_without_redis_and_says_what_it_knows() {
    let mut server = RedisServer::start();
    let settings = hasty(&server);
    server.kill();
    let registry = RedisRegistry::start(settings.clone()).expect("the address is good");
    registry.attach(Arc::new(Counted));
    let session = record("alice", 1, 10);
    assert_eq!(registry.online(session.clone()).await, Ok(vec![]));
    assert_eq!(sessions(&registry, "alice").await, std::slice::from_ref(&session));
    assert!(registry.status().is_some_and(|status| !status.connected && status.degraded >= 2));
    server.restart();
    let watching = started(&settings).await;
    eventually("it was told", async || sessions(&watching, "alice").await, [session]).await;
}

/// CPU seconds that a process has spent.
fn cpu_s(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    // After the name, which may hold anything, in ticks of 10 ms: user at 11, system at 12.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = [11, 12].map(|at| fields[at].parse::<f64>().expect("a number"));
    (ticks[0] + ticks[1]) / 100.0
}

/// Run it by itself, in release: `cargo test --release -p millrace-logic --lib -- --ignored --nocapture
/// how_long_it_takes_to_state`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn how_long_it_takes_to_state_200_000_sessions_and_to_state_them_again() {
    const SESSIONS: u64 = 200_000;
    let server = RedisServer::start();
    let settings = at(&server);
    let registry = Arc::new(started(&settings).await);
    let began = Instant::now();
    let lane = |lane: u64| {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move {
            for id in (lane..SESSIONS).step_by(512) {
                registry.online(record(&format!("user-{id}"), id, 1)).await.expect("online");
            }
        })
    };
    for lane in (0..512).map(lane).collect::<Vec<_>>() {
        lane.await.expect("no panic");
    }
    let rate = |began: Instant| SESSIONS as f64 / began.elapsed().as_secs_f64();
    println!("stated: {:.0} sessions/s", rate(began));
    let watching = started(&settings).await;
    let count = async || watching.count().await.expect("counted").sessions;
    assert_eq!(count().await as u64, SESSIONS);
    let users: Vec<String> = (0..SESSIONS).map(|id| format!("user-{id}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let spent = |what: &str, before: [f64; 2], began: Instant| {
        let (seconds, now) = (began.elapsed().as_secs_f64(), [cpu_s("self"), cpu_s(&server.pid())]);
        let [here, redis] = [0, 1].map(|at| (now[at] - before[at]) * 1e6 / SESSIONS as f64);
        let rate = SESSIONS as f64 / seconds;
        println!("{what}: {rate:.0} users/s, CPU {here:.2} µs a user here, {redis:.2} µs in Redis");
    };
    for at_once in [1, 50, 500] {
        let (before, began) = ([cpu_s("self"), cpu_s(&server.pid())], Instant::now());
        for users in users.chunks(at_once) {
            let found = watching.sessions_of(users).await.expect("looked up");
            assert!(found.iter().all(|sessions| sessions.len() == 1));
        }
        spent(&format!("sessions of {at_once} at once, one call at a time"), before, began);
        let (before, began) = ([cpu_s("self"), cpu_s(&server.pid())], Instant::now());
        for users in users.chunks(at_once) {
            let found = watching.homes_of(users).await.expect("looked up");
            assert!(found.iter().all(|homes| homes.len() == 1));
        }
        spent(&format!("homes of {at_once} at once, one call at a time"), before, began);
    }
    let bytes = server.say("INFO memory");
    let used = bytes.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("it says");
    let used: f64 = used.trim().parse().expect("a number");
    println!("Redis: {:.0} bytes a session", used / SESSIONS as f64);
    let began = Instant::now();
    assert!(server.say("FLUSHALL").starts_with("+OK"));
    eventually("all are stated again", count, SESSIONS as usize).await;
    println!("stated again after FLUSHALL: {:.0} sessions/s", rate(began));
}
