//! Groups: one stored copy, everybody online now, everybody else later, members only.

use millrace_protocol::{
    Code,
    chat::{GroupById, GroupReply, PullMessages},
    command,
};
use serde_json::json;

use crate::world::{Clients, World, request_id, to_group};

#[tokio::test]
async fn every_member_online_or_not_gets_the_same_sequence() {
    let world = World::start().await;
    let conversation_id = world.create_group("team", &["alice", "bob", "carol"]).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let first = gateway.say_to_group(1, "team", "hello all").await;
    let second = gateway.say_to_group(2, "team", "hello alice").await;
    assert_eq!(first.conversation_id, conversation_id);
    assert_eq!((first.sequence, second.sequence), (1, 2));
    let to_bob = gateway.delivered(2, 1).await;
    assert_eq!((to_bob[0].sequence, to_bob[0].conversation_type), (1, 2));
    assert_eq!(gateway.delivered(1, 1).await[0].sequence, 2);
    // Carol comes later.
    gateway.enter(3, "carol").await;
    let to_carol = gateway.delivered(3, 2).await;
    assert!(to_carol.iter().map(|m| &*m.body).eq(["hello all", "hello alice"]));
    gateway.nothing_delivered(2).await;
}

#[tokio::test]
async fn only_members_speak_and_look() {
    let world = World::start().await;
    world.create_group("team", &["alice", "bob"]).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "mallory").await;
    gateway.enter(2, "alice").await;
    let refused = gateway.send_to(1, to_group("team", "let me in")).await;
    assert_eq!(refused.code, Code::NotPermitted.number());
    assert!(!refused.reason.is_empty());
    let unknown = gateway.send_to(1, to_group("nobody", "hello")).await;
    assert_eq!(unknown.code, Code::NotFound.number());

    let ask = |group_id: &str| GroupById { group_id: group_id.into() };
    let reply = gateway.request(1, command::GROUP_BY_ID, request_id(), &ask("team")).await;
    assert_eq!(reply.decode::<GroupReply>().code, Code::NotPermitted.number());
    let reply = gateway.request(1, command::GROUP_BY_ID, request_id(), &ask("nobody")).await;
    assert_eq!(reply.decode::<GroupReply>().code, Code::NotFound.number());
    let reply = gateway.request(2, command::GROUP_BY_ID, request_id(), &ask("team")).await;
    let group = reply.decode::<GroupReply>().group.expect("a member sees it");
    assert_eq!(group.group_id, "team");
    assert!(group.members.contains(&"bob".to_owned()));

    let pull = PullMessages { conversation_id: group.conversation_id, ..Default::default() };
    assert_eq!(gateway.pull(1, pull.clone()).await.code, Code::NotPermitted.number());
    assert_eq!(gateway.pull(2, pull).await.code, 0);
    gateway.nothing_delivered(2).await;
}

#[tokio::test]
async fn who_joins_gets_what_is_said_from_then_on_and_who_leaves_no_more() {
    let world = World::start().await;
    let conversation_id = world.create_group("team", &["alice", "bob"]).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    gateway.enter(3, "carol").await;
    gateway.say_to_group(1, "team", "before").await;
    gateway.delivered(2, 1).await;

    let body = json!({ "user_ids": ["carol"] });
    let (status, reply) = world.http("POST", "/v1/groups/team/members", body).await;
    assert_eq!((status, &reply["added"]), (200, &json!(1)), "{reply}");
    gateway.say_to_group(1, "team", "welcome").await;
    assert_eq!(gateway.delivered(3, 1).await[0].body, "welcome");
    gateway.delivered(2, 1).await;
    let carol = gateway.conversation(3, &conversation_id).await;
    assert_eq!((carol.init_sequence, carol.max_sequence, carol.quit), (1, 2, false));

    let body = json!({ "user_ids": ["bob"] });
    let (status, _) = world.http("DELETE", "/v1/groups/team/members", body).await;
    assert_eq!(status, 200);
    gateway.say_to_group(1, "team", "without bob").await;
    gateway.delivered(3, 1).await;
    gateway.nothing_delivered(2).await;
    assert!(gateway.conversation(2, &conversation_id).await.quit);
    let refused = gateway.send_to(2, to_group("team", "still here")).await;
    assert_eq!(refused.code, Code::NotPermitted.number());
    // What was said until then stays readable.
    let pull = PullMessages { conversation_id, ..Default::default() };
    assert_eq!(gateway.pull(2, pull).await.messages.len(), 2);
}
