//! What a session has missed: after a login, after its link was down, after logic restarted.

use millrace_logic_sdk::{
    Encoding,
    testing::{FakeGatewaySettings, listed_session},
};
use millrace_protocol::{
    chat::{Deliver, DeliverAck, PullMessages},
    command,
};

use crate::world::{Clients, World, to_user};

#[tokio::test]
async fn a_login_pushes_the_newest_twenty_of_each_conversation_and_the_rest_is_pulled() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "carol").await;
    let mut conversation_id = String::new();
    for n in 1..=50 {
        conversation_id = gateway.say(1, "bob", &format!("{n}")).await.conversation_id;
    }
    gateway.say(2, "bob", "from carol").await;
    gateway.enter(3, "bob").await;
    let got = gateway.delivered(3, 21).await;
    let from_alice: Vec<u64> =
        got.iter().filter(|m| m.conversation_id == conversation_id).map(|m| m.sequence).collect();
    assert!(from_alice.iter().copied().eq(31..=50), "{from_alice:?}");
    gateway.nothing_delivered(3).await;
    let pull = PullMessages { conversation_id, to_sequence: 30, limit: 100, ..Default::default() };
    let page = gateway.pull(3, pull).await;
    assert!(page.complete && page.messages.iter().map(|m| m.sequence).eq(1..=30));
}

#[tokio::test]
async fn a_long_backlog_is_pushed_in_bursts_and_live_messages_follow_it() {
    let world = World::start_with(|config| {
        config.catch_up.burst_bytes_max = millrace_service::ByteSize::from_bytes(4_096);
        config.catch_up.pause = millrace_service::Duration::from_millis(50);
    })
    .await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let text = "x".repeat(1_500);
    for _ in 0..20 {
        gateway.say(1, "bob", &text).await;
    }
    gateway.enter(2, "bob").await;
    // While the backlog is on its way, the conversation goes on.
    for _ in 0..20 {
        gateway.say(1, "bob", "live").await;
    }
    let got = gateway.delivered(2, 40).await;
    assert!(got.iter().map(|m| m.sequence).eq(1..=40), "{got:?}");
    gateway.nothing_delivered(2).await;
}

#[tokio::test]
async fn more_live_messages_than_are_held_back_are_read_from_the_store() {
    let world = World::start_with(|config| {
        config.catch_up.held_max = 2;
        config.catch_up.messages_max = 100;
        config.catch_up.burst_bytes_max = millrace_service::ByteSize::from_bytes(4_096);
        config.catch_up.pause = millrace_service::Duration::from_millis(30);
    })
    .await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let text = "x".repeat(4_000);
    for _ in 0..5 {
        gateway.say(1, "bob", &text).await;
    }
    gateway.enter(2, "bob").await;
    for _ in 0..10 {
        gateway.say(1, "bob", "live").await;
    }
    // The catch-up had to begin again, so some come twice; none is missing, and each round is in
    // order.
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 15 {
        for message in gateway.delivered_next(2).await {
            seen.insert(message.sequence);
        }
    }
    assert!(seen.into_iter().eq(1..=15));
}

#[tokio::test]
async fn a_link_that_comes_back_brings_what_was_not_acknowledged_once() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let conversation_id = gateway.say(1, "bob", "one").await.conversation_id;
    gateway.say(1, "bob", "two").await;
    gateway.delivered(2, 2).await;
    gateway.acknowledge(2, &conversation_id, 1).await;
    gateway.kill();

    // Meanwhile somebody on another gateway goes on talking.
    let mut other = world.gateway("b").await;
    other.enter(9, "alice").await;
    other.say(9, "bob", "three").await;

    let sessions = vec![
        listed_session(1, "alice", Encoding::Protobuf),
        listed_session(2, "bob", Encoding::Protobuf),
    ];
    let settings = FakeGatewaySettings { sessions, ..Default::default() };
    let mut gateway = world.gateway_with(settings).await;
    let got = gateway.delivered(2, 2).await;
    assert!(got.iter().map(|m| &*m.body).eq(["two", "three"]), "{got:?}");
    gateway.nothing_delivered(2).await;
    other.say(9, "bob", "four").await;
    assert_eq!(gateway.delivered(2, 1).await[0].body, "four");
}

#[tokio::test]
async fn logic_that_restarts_brings_what_was_not_acknowledged_once() {
    let mut world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let conversation_id = gateway.say(1, "bob", "one").await.conversation_id;
    gateway.say(1, "bob", "two").await;
    gateway.delivered(2, 2).await;
    gateway.acknowledge(2, &conversation_id, 1).await;
    world.restart().await;
    assert!(gateway.ended().await.code() == tonic::Code::Ok, "logic left well");

    let sessions = vec![
        listed_session(1, "alice", Encoding::Protobuf),
        listed_session(2, "bob", Encoding::Json),
    ];
    let settings = FakeGatewaySettings { sessions, ..Default::default() };
    let mut gateway = world.gateway_with(settings).await;
    assert_eq!(gateway.delivered(2, 1).await[0].body, "two");
    gateway.nothing_delivered(2).await;
    let reply = gateway.send_to(1, to_user("bob", "three")).await;
    assert_eq!(reply.sequence, 3);
    assert_eq!(gateway.delivered(2, 1).await[0].body, "three");
    gateway.nothing_delivered(2).await;
}

/// Bob logs in again and again while alice talks without a pause. Whatever the moment, each of his
/// sessions sees one unbroken run of the conversation, nothing twice, up to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_amid_traffic_sees_one_unbroken_run() {
    const MESSAGES: u64 = 600;
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let world = World::start_with(|config| config.limits.messages_burst_max = 10_000).await;
    let mut talking = world.gateway("talking").await;
    talking.enter(1, "alice").await;
    let talker = tokio::spawn(async move {
        for n in 1..=MESSAGES {
            assert_eq!(talking.say(1, "bob", &format!("{n}")).await.sequence, n);
        }
        talking
    });
    let mut listening = world.gateway("listening").await;
    let mut sessions = Vec::new();
    while !talker.is_finished() {
        // More than the policy allows at once, so the oldest leaves now and then.
        let session_id = sessions.len() as u64 + 1;
        if session_id <= 12 {
            listening
                .enter_as(
                    session_id,
                    "bob",
                    &format!("d{session_id}"),
                    &format!("p{session_id}"),
                    Encoding::Protobuf,
                )
                .await;
            sessions.push(session_id);
        }
        listening.read_for(std::time::Duration::from_millis(random.u64(1..40))).await;
        // Now and then one of them acknowledges, which moves the cursor for all.
        if random.bool() {
            let conversation_id = "s:5:alice:bob".to_owned();
            let ack = DeliverAck { conversation_id, sequence: random.u64(1..MESSAGES) };
            listening.send_message(session_id.min(12), command::DELIVER_ACK, 0, &ack).await;
        }
    }
    talker.await.expect("alice could talk");
    listening.read_for(std::time::Duration::from_millis(1_500)).await;
    for session_id in sessions {
        let mut seen = Vec::new();
        while listening.inbox(session_id) > 0 {
            let frame = listening.next_frame(session_id).await.expect("it is there");
            if frame.command == command::DELIVER {
                seen.extend(frame.decode::<Deliver>().messages.iter().map(|m| m.sequence));
            }
        }
        let unbroken = seen.windows(2).all(|pair| pair[1] == pair[0] + 1);
        assert!(unbroken, "seed {seed}: session {session_id} saw {seen:?}");
        assert!(
            seen.last().is_none_or(|last| *last == MESSAGES),
            "seed {seed}: session {session_id} missed the end: {seen:?}"
        );
    }
}
