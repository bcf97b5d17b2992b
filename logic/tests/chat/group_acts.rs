//! What clients do to groups: every member sees the same notice, nobody does what their role does
//! not allow, and settings reach the user's other devices.

use millrace_logic_sdk::testing::FakeGateway;
use millrace_protocol::{
    Code,
    chat::{
        AnnounceToGroup, AnswerJoinRequest, CreateGroup, DissolveGroup, GroupActReply, GroupById,
        GroupEvent, GroupJoinRequests, GroupJoinRequestsReply, GroupMembers, GroupMembersReply,
        GroupReply, InviteToGroup, JoinGroup, LeaveGroup, Message, MuteGroup, MuteMembers, Notice,
        PullMessages, PullReceipts, PullReceiptsReply, RemoveFromGroup, SetGroupRole,
        TransferGroup, UpdateConversation, UpdateGroup, UpdateReply,
    },
    command,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::world::{Clients, World, request_id, to_group};

async fn ask<Q, R>(gateway: &mut FakeGateway, session: u64, command: u16, question: &Q) -> R
where
    Q: prost::Message + Serialize,
    R: prost::Message + Default + DeserializeOwned,
{
    gateway.request(session, command, request_id(), question).await.decode()
}

async fn act<Q: prost::Message + Serialize>(
    gateway: &mut FakeGateway,
    session: u64,
    command: u16,
    question: &Q,
) -> GroupActReply {
    ask(gateway, session, command, question).await
}

async fn create(gateway: &mut FakeGateway, session: u64, group_id: &str, members: &[&str]) {
    let members = members.iter().map(|id| (*id).to_owned()).collect();
    let group = CreateGroup {
        group_id: group_id.into(),
        name: "the team".into(),
        members,
        ..CreateGroup::default()
    };
    let reply = act(gateway, session, command::CREATE_GROUP, &group).await;
    assert_eq!((reply.code, reply.sequence), (0, 1), "{}", reply.reason);
}

fn event(message: &Message) -> GroupEvent {
    assert_eq!((message.r#type, message.does_not_count), (8, true));
    serde_json::from_str(&message.body).expect("a GroupEvent in JSON")
}

fn update(group_id: &str) -> UpdateGroup {
    UpdateGroup { group_id: group_id.into(), ..UpdateGroup::default() }
}

#[tokio::test]
async fn every_member_sees_the_same_notice_of_every_act() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "carol"), (4, "alice")] {
        gateway.enter(session, user).await;
    }
    create(&mut gateway, 1, "team", &["bob"]).await;
    let group_id = || "team".to_owned();
    let carol = || "carol".to_owned();
    let invite = InviteToGroup { group_id: group_id(), user_ids: vec![carol()] };
    assert_eq!(act(&mut gateway, 2, command::INVITE_TO_GROUP, &invite).await.changed, 1);
    let role = SetGroupRole { group_id: group_id(), user_id: "bob".into(), role: 1 };
    act(&mut gateway, 1, command::SET_GROUP_ROLE, &role).await;
    let name = UpdateGroup { name: Some("another".into()), ..update("team") };
    act(&mut gateway, 2, command::UPDATE_GROUP, &name).await;
    let text = AnnounceToGroup { group_id: group_id(), text: "at five".into() };
    act(&mut gateway, 2, command::ANNOUNCE_TO_GROUP, &text).await;
    let mute = MuteMembers { group_id: group_id(), user_ids: vec![carol()], until_ms: i64::MAX };
    act(&mut gateway, 2, command::MUTE_MEMBERS, &mute).await;
    let all = MuteGroup { group_id: group_id(), muted: true };
    act(&mut gateway, 2, command::MUTE_GROUP, &all).await;
    let hand_over = TransferGroup { group_id: group_id(), user_id: "bob".into() };
    act(&mut gateway, 1, command::TRANSFER_GROUP, &hand_over).await;
    let leave = LeaveGroup { group_id: group_id() };
    act(&mut gateway, 1, command::LEAVE_GROUP, &leave).await;
    let away = RemoveFromGroup { group_id: group_id(), user_ids: vec![carol()] };
    act(&mut gateway, 2, command::REMOVE_FROM_GROUP, &away).await;
    let end = DissolveGroup { group_id: group_id() };
    assert_eq!(act(&mut gateway, 2, command::DISSOLVE_GROUP, &end).await.code, 0);

    let words = [
        "created",
        "added",
        "role",
        "updated",
        "announced",
        "muted",
        "group_muted",
        "transferred",
        "left",
        "removed",
        "dissolved",
    ];
    // Bob was there from the beginning to the end.
    let to_bob = gateway.delivered(2, words.len()).await;
    let heard: Vec<String> = to_bob.iter().map(|message| event(message).event).collect();
    assert_eq!(heard, words);
    assert_eq!(to_bob.iter().map(|message| message.sequence).collect::<Vec<_>>(), {
        (1..=words.len() as u64).collect::<Vec<_>>()
    });
    // Both devices of alice, until she left; carol from when she was added until removed.
    for (session, range) in [(1, 0..9), (4, 0..9), (3, 1..10)] {
        assert_eq!(gateway.delivered(session, range.len()).await, to_bob[range]);
        gateway.nothing_delivered(session).await;
    }
    let pull = PullMessages { conversation_id: "g:team".into(), ..PullMessages::default() };
    assert_eq!(gateway.pull(2, pull).await.messages, to_bob, "the history says the same");
    let seen = gateway.conversation(3, "g:team").await;
    assert_eq!((seen.quit, seen.quit_reason, seen.unread), (true, 2, 0));
    assert_eq!(gateway.conversation(1, "g:team").await.quit_reason, 1);
    assert_eq!(gateway.conversation(2, "g:team").await.quit_reason, 3);
}

#[tokio::test]
async fn each_refusal_has_its_own_code_in_the_reply() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "mallory")] {
        gateway.enter(session, user).await;
    }
    create(&mut gateway, 1, "team", &["bob"]).await;
    let rename = UpdateGroup { name: Some("mine".into()), ..update("team") };
    let expect = |reply: GroupActReply, code: Code| {
        assert_eq!(reply.code, code.number(), "{}", reply.reason);
        assert!(!reply.reason.is_empty());
    };
    expect(act(&mut gateway, 2, command::UPDATE_GROUP, &rename).await, Code::RoleTooLow);
    expect(act(&mut gateway, 3, command::UPDATE_GROUP, &rename).await, Code::NotPermitted);
    let unknown = UpdateGroup { name: Some("x".into()), ..update("nobody") };
    expect(act(&mut gateway, 1, command::UPDATE_GROUP, &unknown).await, Code::NotFound);
    let join = JoinGroup { group_id: "team".into(), message: String::new() };
    expect(act(&mut gateway, 3, command::JOIN_GROUP, &join).await, Code::NotPermitted);
    let role = SetGroupRole { group_id: "team".into(), user_id: "bob".into(), role: 7 };
    expect(act(&mut gateway, 1, command::SET_GROUP_ROLE, &role).await, Code::BadRequest);
    let again = CreateGroup { group_id: "team".into(), ..CreateGroup::default() };
    expect(act(&mut gateway, 3, command::CREATE_GROUP, &again).await, Code::AlreadyExists);
    let max = UpdateGroup { members_max: Some(2), ..update("team") };
    assert_eq!(act(&mut gateway, 1, command::UPDATE_GROUP, &max).await.code, 0);
    let invite = InviteToGroup { group_id: "team".into(), user_ids: vec!["dan".into()] };
    expect(act(&mut gateway, 1, command::INVITE_TO_GROUP, &invite).await, Code::OverCapacity);
    let mute =
        MuteMembers { group_id: "team".into(), user_ids: vec!["bob".into()], until_ms: i64::MAX };
    assert_eq!(act(&mut gateway, 1, command::MUTE_MEMBERS, &mute).await.code, 0);
    let refused = gateway.send_to(2, to_group("team", "let me speak")).await;
    assert_eq!(refused.code, Code::Muted.number(), "{}", refused.reason);
    let unmute = MuteMembers { until_ms: 0, ..mute };
    assert_eq!(act(&mut gateway, 1, command::MUTE_MEMBERS, &unmute).await.changed, 1);
    gateway.say_to_group(2, "team", "thank you").await;
    // Pages are for members and, of requests, for administrators.
    let members = GroupMembers { group_id: "team".into(), ..GroupMembers::default() };
    let page: GroupMembersReply = ask(&mut gateway, 2, command::GROUP_MEMBERS, &members).await;
    let shown: Vec<_> = page.members.iter().map(|m| (&m.user_id[..], m.role)).collect();
    assert_eq!(
        (&shown[..], page.complete, page.member_count),
        (&[("alice", 2), ("bob", 0)][..], true, 2)
    );
    let page: GroupMembersReply = ask(&mut gateway, 3, command::GROUP_MEMBERS, &members).await;
    assert_eq!(page.code, Code::NotPermitted.number());
    let requests = GroupJoinRequests { group_id: "team".into(), ..GroupJoinRequests::default() };
    let page: GroupJoinRequestsReply =
        ask(&mut gateway, 2, command::GROUP_JOIN_REQUESTS, &requests).await;
    assert_eq!(page.code, Code::RoleTooLow.number());
}

#[tokio::test]
async fn a_request_to_join_reaches_those_who_decide_and_the_answer_who_asked() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "carol"), (4, "dan")] {
        gateway.enter(session, user).await;
    }
    create(&mut gateway, 1, "team", &["bob"]).await;
    let rule = UpdateGroup { join_rule: Some(2), ..update("team") };
    act(&mut gateway, 1, command::UPDATE_GROUP, &rule).await;
    let join = JoinGroup { group_id: "team".into(), message: "it is me".into() };
    for session in [3, 4] {
        let reply = act(&mut gateway, session, command::JOIN_GROUP, &join).await;
        assert_eq!((reply.code, reply.changed, reply.waiting), (0, 0, 1));
        let notice: Notice = gateway.next_of(1, command::NOTICE).await.decode();
        assert_eq!(notice.r#type, 2001);
        assert!(notice.body.contains("\"team\""), "{}", notice.body);
    }
    let requests = GroupJoinRequests { group_id: "team".into(), ..GroupJoinRequests::default() };
    let page: GroupJoinRequestsReply =
        ask(&mut gateway, 1, command::GROUP_JOIN_REQUESTS, &requests).await;
    let asked: Vec<_> = page.requests.iter().map(|r| (&r.user_id[..], &r.message[..])).collect();
    assert_eq!(asked, [("carol", "it is me"), ("dan", "it is me")]);
    let answer = |user: &str, accept| AnswerJoinRequest {
        group_id: "team".into(),
        user_id: user.into(),
        accept,
    };
    let yes = act(&mut gateway, 1, command::ANSWER_JOIN_REQUEST, &answer("carol", true)).await;
    assert_eq!(yes.changed, 1);
    assert_eq!(event(&gateway.delivered(3, 1).await[0]).user_ids, ["carol"]);
    act(&mut gateway, 1, command::ANSWER_JOIN_REQUEST, &answer("dan", false)).await;
    let notice: Notice = gateway.next_of(4, command::NOTICE).await.decode();
    assert_eq!(notice.r#type, 2002);
    gateway.nothing_delivered(4).await;
}

#[tokio::test]
async fn who_has_read_is_told_on_request() {
    let world = World::start().await;
    world.create_group("team", &["alice", "bob", "carol"]).await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "mallory")] {
        gateway.enter(session, user).await;
    }
    let sent = gateway.say_to_group(1, "team", "who reads this?").await;
    let read = millrace_protocol::chat::Read {
        conversation_id: sent.conversation_id.clone(),
        sequence: sent.sequence,
    };
    gateway.request(2, command::READ, request_id(), &read).await;
    let pull = |filter| PullReceipts {
        conversation_id: sent.conversation_id.clone(),
        sequence: sent.sequence,
        filter,
        ..PullReceipts::default()
    };
    for (filter, expected) in [(1, vec!["bob"]), (2, vec!["alice", "carol"])] {
        let page: PullReceiptsReply =
            ask(&mut gateway, 1, command::PULL_RECEIPTS, &pull(filter)).await;
        let users: Vec<_> = page.receipts.iter().map(|r| &r.user_id[..]).collect();
        assert_eq!((users, page.complete, page.member_count), (expected, true, 3));
    }
    let page: PullReceiptsReply = ask(&mut gateway, 3, command::PULL_RECEIPTS, &pull(0)).await;
    assert_eq!(page.code, Code::NotPermitted.number());
    let page: PullReceiptsReply = ask(&mut gateway, 1, command::PULL_RECEIPTS, &pull(9)).await;
    assert_eq!(page.code, Code::BadRequest.number());
}

#[tokio::test]
async fn a_setting_reaches_the_users_other_devices_and_leaves_the_others_alone() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "alice"), (3, "bob")] {
        gateway.enter(session, user).await;
    }
    let sent = gateway.say(1, "bob", "hello").await;
    let update = UpdateConversation {
        conversation_id: sent.conversation_id.clone(),
        pinned: Some(true),
        ..UpdateConversation::default()
    };
    let quiet = UpdateConversation { do_not_disturb: Some(true), pinned: None, ..update.clone() };
    for update in [&quiet, &update] {
        let reply: UpdateReply = ask(&mut gateway, 1, command::UPDATE_CONVERSATION, update).await;
        assert_eq!(reply.code, 0);
        let told: UpdateConversation =
            gateway.next_of(2, command::UPDATE_CONVERSATION).await.decode();
        assert_eq!(told, *update);
    }
    let seen = gateway.conversation(2, &sent.conversation_id).await;
    assert_eq!((seen.pinned, seen.do_not_disturb, seen.hidden), (true, true, false));
    // The first form of this message says "off" by saying nothing.
    let off = UpdateConversation { do_not_disturb: None, ..quiet };
    let _: UpdateReply = ask(&mut gateway, 1, command::UPDATE_CONVERSATION, &off).await;
    let seen = gateway.conversation(2, &sent.conversation_id).await;
    assert_eq!((seen.pinned, seen.do_not_disturb), (true, false));
    assert!(!gateway.conversation(3, &sent.conversation_id).await.pinned);
}

#[tokio::test]
async fn a_group_tells_a_bounded_part_of_its_members() {
    let world = World::start().await;
    let many: Vec<String> = (0..700).map(|n| format!("user-{n:04}")).collect();
    let body = serde_json::json!({ "group_id": "big", "members": many, "members_max": 1000 });
    assert_eq!(world.http("POST", "/v1/groups", body).await.0, 200);
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "user-0699").await;
    let ask_group = GroupById { group_id: "big".into() };
    let reply: GroupReply = ask(&mut gateway, 1, command::GROUP_BY_ID, &ask_group).await;
    let group = reply.group.expect("a member sees it");
    assert_eq!((group.members.len(), group.member_count), (500, 700));
    let (status, found) = world.http("GET", "/v1/groups/big", serde_json::Value::Null).await;
    assert_eq!((status, &found["member_count"]), (200, &serde_json::json!(700)));
}
