//! Order under load: many senders at once, and every member sees the same messages under the same
//! gapless sequence, each once.

use std::collections::{BTreeMap, HashMap};

use millrace_logic_sdk::testing::FakeGateway;
use millrace_protocol::{
    chat::{Deliver, SendReply},
    command,
};

use crate::world::{Clients, World, to_group, to_user};

const GATEWAYS: usize = 3;
const USERS_PER_GATEWAY: usize = 6;
const MESSAGES_PER_USER: usize = 60;

/// What one session saw: (conversation, sequence) → client message id, in the order it came.
type Seen = Vec<(String, u64, String)>;

fn user(gateway: usize, session: usize) -> String {
    format!("user-{}", gateway * USERS_PER_GATEWAY + session)
}

async fn drive(mut gateway: FakeGateway, index: usize, seed: u64) -> Vec<(String, Seen)> {
    let mut random = fastrand::Rng::with_seed(seed ^ index as u64);
    let users = GATEWAYS * USERS_PER_GATEWAY;
    let mut sent: HashMap<(u64, u32), String> = HashMap::new();
    for n in 0..MESSAGES_PER_USER {
        for session in 0..USERS_PER_GATEWAY {
            let session_id = session as u64 + 1;
            let message = if random.bool() {
                to_group("all", "x")
            } else {
                to_user(&format!("user-{}", random.usize(..users)), "x")
            };
            let request_id = (n + 1) as u32;
            sent.insert((session_id, request_id), message.client_message_id.clone());
            gateway.send_message(session_id, command::SEND_MESSAGE, request_id, &message).await;
            if random.u8(..8) == 0 {
                gateway.read_for(std::time::Duration::from_millis(1)).await;
            }
        }
    }
    // Everything under way arrives within this quiet time; the checks below count exactly.
    gateway.read_for(std::time::Duration::from_millis(2_500)).await;
    let mut all = Vec::new();
    for session in 0..USERS_PER_GATEWAY {
        let session_id = session as u64 + 1;
        let mut seen = Vec::new();
        while gateway.inbox(session_id) > 0 {
            let frame = gateway.next_frame(session_id).await.expect("it is there");
            if frame.command == command::DELIVER {
                let messages = frame.decode::<Deliver>().messages;
                seen.extend(
                    messages
                        .into_iter()
                        .map(|m| (m.conversation_id, m.sequence, m.client_message_id)),
                );
            } else if frame.command == command::reply(command::SEND_MESSAGE) {
                let reply: SendReply = frame.decode();
                assert_eq!(reply.code, 0, "{}", reply.reason);
                let id = sent.remove(&(session_id, frame.request_id)).expect("answered once");
                seen.push((reply.conversation_id, reply.sequence, id));
            }
        }
        all.push((user(index, session), seen));
    }
    assert!(sent.is_empty(), "{} messages were not answered in time", sent.len());
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_sees_the_same_gapless_order_whoever_sends_at_once() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let world = World::start_with(|config| config.limits.messages_burst_max = 10_000).await;
    let users: Vec<String> =
        (0..GATEWAYS * USERS_PER_GATEWAY).map(|n| format!("user-{n}")).collect();
    let members: Vec<&str> = users.iter().map(String::as_str).collect();
    let group = world.create_group("all", &members).await;
    let mut gateways = Vec::new();
    for index in 0..GATEWAYS {
        let mut gateway = world.gateway(&format!("gateway-{index}")).await;
        for session in 0..USERS_PER_GATEWAY {
            gateway.enter(session as u64 + 1, &user(index, session)).await;
        }
        gateways.push(gateway);
    }
    let running: Vec<_> = gateways
        .into_iter()
        .enumerate()
        .map(|(index, gateway)| tokio::spawn(drive(gateway, index, seed)))
        .collect();
    let mut sessions = Vec::new();
    for driven in running {
        sessions.extend(driven.await.expect("driven to the end"));
    }

    // The truth: what all sessions together say about each (conversation, sequence).
    let mut truth: BTreeMap<(String, u64), String> = BTreeMap::new();
    for (user, seen) in &sessions {
        let mut newest: HashMap<&str, u64> = HashMap::new();
        for (conversation_id, sequence, id) in seen {
            // A reply and the deliveries around it come in the order of the sequences, each once.
            let newest = newest.entry(conversation_id).or_default();
            assert!(sequence > newest, "seed {seed}: {user} saw {sequence} after {newest}");
            *newest = *sequence;
            let key = (conversation_id.clone(), *sequence);
            let known = truth.entry(key).or_insert_with(|| id.clone());
            assert_eq!(known, id, "seed {seed}: two messages under one sequence");
        }
    }
    let total = GATEWAYS * USERS_PER_GATEWAY * MESSAGES_PER_USER;
    assert_eq!(truth.len(), total, "seed {seed}");
    let mut newest: HashMap<&str, u64> = HashMap::new();
    for (conversation_id, sequence) in truth.keys() {
        let newest = newest.entry(conversation_id).or_default();
        assert_eq!(*sequence, *newest + 1, "seed {seed}: a gap in {conversation_id}");
        *newest = *sequence;
    }
    // Everybody saw everything of the group.
    for (user, seen) in &sessions {
        let of_group = seen.iter().filter(|(id, ..)| *id == group).count() as u64;
        assert_eq!(of_group, newest[&*group], "seed {seed}: {user} missed messages");
    }
}
