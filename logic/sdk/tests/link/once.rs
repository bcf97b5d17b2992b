//! Every session that starts ends exactly once, whatever happens in between.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use millrace_logic_sdk::testing::{FakeGateway, FakeGatewaySettings, listed_session};
use millrace_logic_sdk::{Encoding, Server, SessionAddress};
use millrace_protocol::Code;

use crate::recorder::{Told, connect, serve, short_lease};

struct Shard {
    gateway: FakeGateway,
    sessions: HashSet<u64>,
}

async fn open(server: &Server, epoch: u64, shard: u32, sessions: HashSet<u64>) -> Shard {
    let listed = |id: &u64| listed_session(*id, &format!("user-{id}"), Encoding::Protobuf);
    let settings = FakeGatewaySettings {
        gateway_epoch: epoch,
        shard,
        sessions: sessions.iter().map(listed).collect(),
        ..Default::default()
    };
    Shard { gateway: connect(server, settings).await, sessions }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_session_that_starts_ends_exactly_once() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (server, recorder) = serve(short_lease()).await;
    let (mut epoch, mut next_id) = (1, 0);
    let mut shards = Vec::new();
    for number in 0..2 {
        shards.push(open(&server, epoch, number, HashSet::new()).await);
    }
    for _ in 0..300 {
        let number = random.usize(..2);
        let shard = &mut shards[number];
        match random.u32(..100) {
            0..60 => {
                next_id += 1;
                let user = format!("user-{next_id}");
                assert_eq!(shard.gateway.login_as(next_id, &user, "good").await.code, 0);
                shard.sessions.insert(next_id);
            }
            60..85 => {
                if let Some(id) = random.choice(shard.sessions.clone()) {
                    shard.sessions.remove(&id);
                    shard.gateway.end_session(id, Code::PeerGone).await;
                }
            }
            85..96 => {
                // The link breaks, a login or two are lost with it, some sessions end meanwhile.
                next_id += 1;
                let user = format!("user-{next_id}");
                let lost = millrace_logic_sdk::testing::login_request(
                    next_id,
                    &user,
                    "good",
                    "",
                    "",
                    Encoding::Protobuf,
                );
                shard.gateway.send_login(lost).await;
                let kept = shard.sessions.iter().copied().filter(|_| random.u8(..4) > 0).collect();
                shards[number] = open(&server, epoch, number as u32, kept).await;
            }
            96..98 => {
                // Away for longer than the lease.
                let kept = shard.sessions.clone();
                let gone = FakeGatewaySettings { gateway_id: "gone".into(), ..Default::default() };
                let placeholder = connect(&server, gone).await;
                std::mem::replace(&mut shard.gateway, placeholder).kill();
                tokio::time::sleep(Duration::from_millis(800)).await;
                shards[number] = open(&server, epoch, number as u32, kept).await;
            }
            _ => {
                // The whole gateway starts again: nobody is left.
                epoch += 1;
                for number in 0..2 {
                    shards[number as usize] = open(&server, epoch, number, HashSet::new()).await;
                }
            }
        }
    }
    drop(shards);
    let balance = |told: &[Told]| {
        let mut open: HashMap<SessionAddress, i64> = HashMap::new();
        for told in told {
            match told {
                Told::Started(address, _) => *open.entry(*address).or_default() += 1,
                Told::Ended(address, _, _) => *open.entry(*address).or_default() -= 1,
                _ => {}
            }
            // At no time is an address taken twice, or given back without being taken.
            assert!(open.values().all(|sessions| (0..=1).contains(sessions)), "seed {seed}");
        }
        open.values().sum::<i64>()
    };
    recorder.wait_for("every end", |told| balance(told) == 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(balance(&recorder.told()), 0, "seed {seed}");
    assert!(recorder.told().len() > 200, "seed {seed}: hardly anything happened");
}
