//! A group of 100,000 members: made in batches, told to all who are online, looked at in pages, and
//! quiet about who has read what.

use millrace_protocol::{
    Code,
    chat::{
        GroupById, GroupMembers, GroupMembersReply, GroupReply, InviteToGroup, PullReceipts,
        PullReceiptsReply,
    },
    command,
};
use serde_json::json;

use crate::world::{Clients, World, request_id};

const MEMBERS: usize = 100_000;
const BATCH: usize = 10_000;
const ONLINE: usize = 40;

fn member(n: usize) -> String {
    format!("m{n:05}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_a_hundred_thousand_works() {
    let world = World::start().await;
    let batch = |from: usize| (from..from + BATCH).map(member).collect::<Vec<_>>();
    let body =
        json!({ "group_id": "big", "name": "big", "members": batch(0), "members_max": MEMBERS });
    let (status, reply) = world.http("POST", "/v1/groups", body).await;
    assert_eq!(status, 200, "{reply}");
    for from in (BATCH..MEMBERS).step_by(BATCH) {
        let body = json!({ "user_ids": batch(from) });
        let (status, reply) = world.http("POST", "/v1/groups/big/members", body).await;
        assert_eq!((status, &reply["added"]), (200, &json!(BATCH)), "{reply}");
    }
    let mut gateway = world.gateway("a").await;
    let online: Vec<usize> = (0..ONLINE).map(|n| n * MEMBERS / ONLINE).collect();
    for (session, n) in online.iter().enumerate() {
        gateway.enter(session as u64 + 1, &member(*n)).await;
    }

    // One send, everybody online gets it.
    let sent = gateway.say_to_group(1, "big", "hello, all of you").await;
    assert_eq!(sent.sequence, 1);
    for session in 2..=ONLINE as u64 {
        let messages = gateway.delivered(session, 1).await;
        assert_eq!((messages[0].sequence, &messages[0].body[..]), (1, "hello, all of you"));
        gateway.acknowledge(session, &sent.conversation_id, 1).await;
    }
    // Who was away finds it.
    gateway.enter(1_000, &member(7)).await;
    assert_eq!(gateway.delivered(1_000, 1).await[0].sequence, 1);

    // Nobody is told of the others' cursors; who asks gets a page.
    gateway.read_for(std::time::Duration::from_millis(600)).await;
    for session in 1..=ONLINE as u64 {
        while gateway.inbox(session) > 0 {
            let frame = gateway.next_frame(session).await.expect("it is there");
            assert_ne!(frame.command, command::RECEIPT, "a receipt in a large group");
        }
    }
    let pull = PullReceipts {
        conversation_id: sent.conversation_id.clone(),
        sequence: 1,
        ..PullReceipts::default()
    };
    let frame = gateway.request(1, command::PULL_RECEIPTS, request_id(), &pull).await;
    let page: PullReceiptsReply = frame.decode();
    assert_eq!((page.receipts.len(), page.member_count as usize), (100, MEMBERS));
    assert!(!page.complete);

    // What it tells of itself is bounded, and all members come in pages.
    let ask = GroupById { group_id: "big".into() };
    let frame = gateway.request(1, command::GROUP_BY_ID, request_id(), &ask).await;
    let group = frame.decode::<GroupReply>().group.expect("a member sees it");
    assert_eq!((group.members.len(), group.member_count as usize), (500, MEMBERS));
    let behind = GroupMembers {
        group_id: "big".into(),
        after_user_id: member(MEMBERS - 3),
        ..GroupMembers::default()
    };
    let frame = gateway.request(1, command::GROUP_MEMBERS, request_id(), &behind).await;
    let page: GroupMembersReply = frame.decode();
    assert_eq!(page.members.len(), 2);
    assert!(page.complete);

    // It is full.
    let body = json!({ "user_ids": ["one-too-many"] });
    let (status, refused) = world.http("POST", "/v1/groups/big/members", body).await;
    assert_eq!((status, &refused["code"]), (503, &json!(Code::OverCapacity.number())));
    let invite = InviteToGroup { group_id: "big".into(), user_ids: vec!["another".into()] };
    let frame = gateway.request(1, command::INVITE_TO_GROUP, request_id(), &invite).await;
    let reply: millrace_protocol::chat::GroupActReply = frame.decode();
    assert_eq!(reply.code, Code::OverCapacity.number());
    let (status, _) = world.http("DELETE", "/v1/groups/big", json!({})).await;
    assert_eq!(status, 200);
}
