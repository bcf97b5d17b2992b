//! Cluster, Sentinel, passwords.

use super::{load::Load, *};

/// A Cluster of three masters.
async fn cluster() -> (Vec<RedisServer>, RedisTopology) {
    let node = |_| {
        let arguments =
            ["--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        let partly = ["--cluster-require-full-coverage", "no"];
        RedisServer::start_with(&[&arguments[..], &partly[..]].concat())
    };
    let servers: Vec<RedisServer> = (0..3).map(node).collect();
    let meet = format!("CLUSTER MEET 127.0.0.1 {}", servers[0].port());
    for (server, slots) in servers.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
        assert!(server.say(&format!("CLUSTER ADDSLOTSRANGE {slots}")).starts_with("+OK"));
        if server.port() != servers[0].port() {
            assert!(server.say(&meet).starts_with("+OK"));
        }
    }
    let is_ok = |server: &RedisServer| {
        let info = server.say("CLUSTER INFO");
        ["state:ok", "known_nodes:3", "slots_ok:16384"].iter().all(|what| info.contains(what))
    };
    eventually("the cluster forms", async || servers.iter().all(is_ok), true).await;
    let urls = servers.iter().map(RedisServer::url).collect();
    (servers, RedisTopology::Cluster { urls })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_on_a_cluster_of_three() {
    let (servers, topology) = cluster().await;
    conformance::run(|| async { started(&settings(topology.clone())).await }).await;
    conformance::run_in_order(&|| async { Pair::start(&settings(topology.clone())).await }).await;
    for server in &servers {
        let used = server.say("DBSIZE");
        assert!(!used.starts_with(":0"), "every master has its share");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_of_a_cluster_that_lost_its_part_learns_it_again() {
    let (servers, topology) = cluster().await;
    let settings = settings(topology);
    let (one, other) = (started(&settings).await, started(&settings).await);
    let all: Vec<SessionRecord> =
        (0..300).map(|id| record(&format!("user-{id:03}"), id, id as i64)).collect();
    for session in &all {
        one.online(session.clone()).await.expect("online");
    }
    assert_eq!(other.list("", 1_000).await.as_ref(), Ok(&all));
    assert!(servers[1].say("FLUSHALL").starts_with("+OK"));
    let list = async || other.list("", 1_000).await.expect("listed");
    eventually("everybody is back", list, all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_slots_move_from_one_master_to_another_nobody_is_missed() {
    let (servers, topology) = cluster().await;
    // While a slot is between two masters a script of which one key is not there has to wait.
    let settings = RedisSettings { timeout: Duration::from_secs(1), ..settings(topology) };
    let pair = Arc::new(Pair::start(&settings).await);
    let mut load = Load::new(&pair, fastrand::u64(..));
    load.go_on(300).await;
    let keys = &pair.both[0].shared.keys;
    let mut moved: Vec<u32> = Vec::new();
    for user in 0..5 {
        let bucket = bucket_of(&format!("user-{user}"));
        let slot = servers[0].say(&format!("CLUSTER KEYSLOT {}", keys.entries(bucket)));
        let slot: u32 = slot.trim().trim_start_matches(':').parse().expect("a slot");
        if moved.contains(&slot) {
            continue;
        }
        moved.push(slot);
        let from = [5_461, 10_923].iter().filter(|first| slot >= **first).count();
        let (from, to) = (&servers[from], &servers[(from + 1) % 3]);
        // While it is between the two, sessions come and go.
        begin_to_move(slot, from, to);
        load.go_on(30).await;
        move_keys(slot, from, to);
        load.go_on(30).await;
        move_keys(slot, from, to);
        for server in [to, from] {
            let node = server.say(&format!("CLUSTER SETSLOT {slot} NODE {}", node_id(to)));
            assert!(node.starts_with("+OK"), "{node}");
        }
        load.go_on(30).await;
    }
    load.settles(&settings, "after slots have moved").await;
    let fresh = |registry: &RedisRegistry| registry.status().expect("it has one").rebuilds;
    assert_eq!(pair.both.each_ref().map(fresh), [0, 0], "nothing was lost on the way");
}

fn node_id(server: &RedisServer) -> String {
    server.say("CLUSTER MYID").lines().nth(1).expect("an id").trim().to_owned()
}

fn begin_to_move(slot: u32, from: &RedisServer, to: &RedisServer) {
    let importing = to.say(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", node_id(from)));
    assert!(importing.starts_with("+OK"), "{importing}");
    let migrating = from.say(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", node_id(to)));
    assert!(migrating.starts_with("+OK"), "{migrating}");
}

fn move_keys(slot: u32, from: &RedisServer, to: &RedisServer) {
    let reply = from.say(&format!("CLUSTER GETKEYSINSLOT {slot} 1000"));
    let keys = reply.lines().map(str::trim).filter(|line| line.starts_with('{'));
    for key in keys {
        let moved = from.say(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", to.port()));
        assert!(moved.starts_with("+OK") || moved.starts_with("+NOKEY"), "{moved}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_of_a_cluster_that_dies_or_stands_still_takes_nothing_but_its_part_with_it() {
    let (mut servers, topology) = cluster().await;
    let settings = RedisSettings { timeout: Duration::from_secs(1), ..settings(topology) };
    let pair = Arc::new(Pair::start(&settings).await);
    let mut load = Load::new(&pair, fastrand::u64(..));
    load.go_on(300).await;
    load.settles(&settings, "before").await;
    // One that does not hold the leases dies, then the one that does stands still.
    let keys = &pair.both[0].shared.keys;
    let place = |key: &str| {
        let slot = servers[0].say(&format!("CLUSTER KEYSLOT {key}"));
        let slot: u32 = slot.trim().trim_start_matches(':').parse().expect("a slot");
        [5_461, 10_923].iter().filter(|first| slot >= **first).count()
    };
    let leases = place(&keys.fleet());
    let places: Vec<usize> = (0..BUCKETS).map(|bucket| place(&keys.entries(bucket))).collect();
    for killed in [(leases + 1) % 3, leases] {
        // Served by the first process, and stated where nobody was killed.
        let session = (0..)
            .map(|number| record(&format!("witness-{killed}-{number}"), 2 * number, 1))
            .find(|session| places[bucket_of(&session.user_id)] != killed)
            .expect("there are enough names");
        let [first, second] = &pair.both;
        first.online(session.clone()).await.expect("online");
        match killed == leases {
            true => servers[killed].pause(),
            false => servers[killed].kill(),
        }
        load.go_on(60).await;
        let seen = async || sessions(second, &session.user_id).await;
        eventually("who is elsewhere is seen", seen, [session.clone()]).await;
        // So does a process that starts now, or has to connect anew: without a lease, if the leases are away.
        let newcomer = started(&settings).await;
        let seen = async || sessions(&newcomer, &session.user_id).await;
        eventually("who is elsewhere is seen by a newcomer", seen, [session.clone()]).await;
        load.go_on(60).await;
        assert!(first.status().is_some_and(|status| status.connected), "the rest is there");
        match killed == leases {
            true => servers[killed].go_on(),
            false => servers[killed].restart(),
        }
        first.offline(&session).await.expect("offline");
        load.settles(&settings, "after a master came back").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_by_sentinels_under_load_everybody_is_online_and_nobody_else() {
    let mut master = RedisServer::start();
    let port = master.port().to_string();
    let replica =
        RedisServer::start_with(&["--save", "", "--replicaof", &format!("127.0.0.1 {port}")]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("sentinel.conf");
    let configuration = format!(
        "sentinel monitor millrace 127.0.0.1 {port} 1\n\
         sentinel down-after-milliseconds millrace 500\n\
         sentinel failover-timeout millrace 3000\n"
    );
    std::fs::write(&file, configuration).expect("written");
    let sentinel = RedisServer::start_configured(&file, &["--sentinel"]);
    let knows = async || sentinel.say("SENTINEL REPLICAS millrace").starts_with("*1");
    eventually("the sentinel knows the replica", knows, true).await;
    let linked = async || replica.say("ROLE").contains("connected");
    eventually("the replica follows", linked, true).await;
    let topology =
        RedisTopology::Sentinel { urls: vec![sentinel.url()], master: "millrace".to_owned() };
    let settings = RedisSettings { timeout: Duration::from_millis(500), ..settings(topology) };
    let pair = Arc::new(Pair::start(&settings).await);
    let mut load = Load::new(&pair, fastrand::u64(..));
    load.go_on(200).await;
    load.settles(&settings, "before the failover").await;
    load.go_on(50).await;
    master.kill();
    let began = Instant::now();
    let takes_over = async || replica.say("ROLE").contains("master");
    while !takes_over().await {
        assert!(began.elapsed() < LONG, "the replica takes over");
        load.go_on(20).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    load.go_on(50).await;
    load.settles(&settings, "after the failover").await;
    for registry in &pair.both {
        assert!(registry.status().is_some_and(|status| status.connected));
    }
}

#[tokio::test]
async fn a_password_is_shown_to_redis_and_to_nobody_else() {
    let server = RedisServer::start_with(&["--requirepass", "open sesame", "--save", ""]);
    let wrong = RedisRegistry::start(at(&server)).expect("the address is good");
    assert!(!wrong.connected(Duration::from_millis(500)).await);
    let settings = RedisSettings { password: "open sesame".into(), ..at(&server) };
    let registry = started(&settings).await;
    assert_eq!(registry.online(record("alice", 1, 10)).await, Ok(vec![]));
    let printed = format!("{settings:?} {registry:?}");
    assert!(!printed.contains("sesame"), "{printed}");
}

#[tokio::test]
async fn an_address_that_cannot_be_understood_is_refused_at_the_start() {
    for url in ["redis://", "nonsense", "redis://x:port"] {
        let started = RedisRegistry::start(settings(RedisTopology::Single { url: url.to_owned() }));
        assert!(started.is_err(), "{url}");
    }
}
