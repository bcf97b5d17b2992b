//! Who is online, for clients and for services: asked once, or told from now on.

use std::time::Duration;

use millrace_logic_sdk::{
    Encoding,
    testing::{FakeGateway, Frame},
};
use millrace_protocol::{
    Code,
    chat::{
        Presence, PresenceReply, QueryPresence, SubscribePresence, UnsubscribePresence,
        UserPresence,
    },
    command,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::world::{Clients, QUIET, TOKEN, World, request_id};

fn ids(user_ids: &[&str]) -> Vec<String> {
    user_ids.iter().map(|id| (*id).to_owned()).collect()
}

fn state(user_id: &str, platforms: &[&str]) -> UserPresence {
    let online = !platforms.is_empty();
    UserPresence { user_id: user_id.into(), online, platforms: ids(platforms) }
}

async fn query(gateway: &mut FakeGateway, session_id: u64, user_ids: &[&str]) -> PresenceReply {
    let query = QueryPresence { user_ids: ids(user_ids) };
    gateway.request(session_id, command::QUERY_PRESENCE, request_id(), &query).await.decode()
}

async fn try_subscribe(
    gateway: &mut FakeGateway,
    session_id: u64,
    user_ids: &[&str],
) -> Result<PresenceReply, Code> {
    let wanted = SubscribePresence { user_ids: ids(user_ids), replace: false };
    let frame =
        gateway.request(session_id, command::SUBSCRIBE_PRESENCE, request_id(), &wanted).await;
    frame.error().map_or_else(|| Ok(frame.decode()), Err)
}

async fn subscribe(gateway: &mut FakeGateway, session_id: u64, user_ids: &[&str]) -> PresenceReply {
    try_subscribe(gateway, session_id, user_ids).await.expect("no failure of the server")
}

async fn event(gateway: &mut FakeGateway, session_id: u64) -> Vec<UserPresence> {
    let frame: Frame = gateway.next_of(session_id, command::PRESENCE).await;
    frame.decode::<Presence>().users
}

/// Waits until a user is seen as described; the registry hears of a session soon, not at once.
async fn until_seen(gateway: &mut FakeGateway, session_id: u64, expected: &UserPresence) {
    for _ in 0..500 {
        let found = query(gateway, session_id, &[&expected.user_id]).await;
        if found.users == [expected.clone()] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never seen as {expected:?}");
}

fn unpaced(config: &mut millrace_logic::Config) {
    config.paces.presence_per_second_max = 100_000;
    config.paces.presence_burst_max = 100_000;
    config.presence.interval = millrace_service::Duration::from_millis(50);
}

#[tokio::test]
async fn many_users_are_asked_for_at_once_and_answered_in_order() {
    let world = World::start_with(unpaced).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter_as(1, "alice", "a", "ios", Encoding::Protobuf).await;
    gateway.enter_as(2, "bob", "b", "web", Encoding::Json).await;
    gateway.enter_as(3, "bob", "c", "ios", Encoding::Protobuf).await;
    until_seen(&mut gateway, 1, &state("bob", &["ios", "web"])).await;
    let reply = query(&mut gateway, 1, &["carol", "bob", "alice", "bob"]).await;
    let expected = [state("carol", &[]), state("bob", &["ios", "web"]), state("alice", &["ios"])];
    assert_eq!((reply.code, &*reply.users), (0, &expected[..]));
    // A client that speaks JSON is answered in JSON.
    assert_eq!(query(&mut gateway, 2, &["alice"]).await.users, [state("alice", &["ios"])]);
    for (wrong, what) in [
        (vec![], "none"),
        (vec!["".to_owned()], "an empty one"),
        (vec!["u".repeat(129)], "a long one"),
        ((0..201).map(|n| n.to_string()).collect(), "too many"),
    ] {
        let query = QueryPresence { user_ids: wrong };
        let frame = gateway.request(1, command::QUERY_PRESENCE, request_id(), &query).await;
        let reply: PresenceReply = frame.decode();
        assert_eq!(reply.code, Code::BadRequest.number(), "{what}");
        assert!(!reply.reason.is_empty());
    }
    let (status, reply) =
        world.http("POST", "/v1/presence/query", json!({"user_ids": ["bob", "nobody"]})).await;
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["users"][0]["platforms"], json!(["ios", "web"]));
    assert_eq!(reply["users"][1]["online"], json!(false));
}

#[tokio::test]
async fn subscribers_are_told_who_comes_and_goes_and_others_are_not() {
    let world = World::start_with(unpaced).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter_as(2, "bystander", "b", "", Encoding::Protobuf).await;
    gateway.enter_as(3, "json", "j", "", Encoding::Json).await;
    for session_id in [1, 3] {
        let reply = subscribe(&mut gateway, session_id, &["bob", "carol"]).await;
        assert_eq!((reply.code, &*reply.reason, reply.subscriptions), (0, "", 2));
        assert_eq!(reply.subscribed_for_ms, 600_000);
        assert_eq!(reply.users, [state("bob", &[]), state("carol", &[])]);
    }
    let mut other = world.gateway("b").await;
    other.enter_as(1, "bob", "phone", "ios", Encoding::Protobuf).await;
    for session_id in [1, 3] {
        assert_eq!(event(&mut gateway, session_id).await, [state("bob", &["ios"])]);
    }
    other.enter_as(2, "bob", "laptop", "web", Encoding::Protobuf).await;
    assert_eq!(event(&mut gateway, 1).await, [state("bob", &["ios", "web"])]);
    other.end_session(1, Code::Ok).await;
    assert_eq!(event(&mut gateway, 1).await, [state("bob", &["web"])]);
    other.end_session(2, Code::Ok).await;
    assert_eq!(event(&mut gateway, 1).await, [state("bob", &[])]);

    let unwanted = UnsubscribePresence { user_ids: ids(&["bob"]) };
    let frame = gateway.request(1, command::UNSUBSCRIBE_PRESENCE, request_id(), &unwanted).await;
    assert_eq!(frame.decode::<PresenceReply>().subscriptions, 1);
    gateway.read_for(QUIET).await;
    while gateway.inbox(1) > 0 {
        gateway.next_frame(1).await;
    }
    other.enter(3, "bob").await;
    gateway.next_of(3, command::PRESENCE).await;
    gateway.read_for(QUIET).await;
    assert_eq!((gateway.inbox(1), gateway.inbox(2)), (0, 0));
}

#[tokio::test]
async fn subscriptions_are_bounded_end_in_time_and_with_their_session() {
    let world = World::start_with(|config| {
        unpaced(config);
        config.presence.subscriptions_per_session_max = 2;
        config.presence.subscriptions_max = 3;
        config.presence.subscribed_for = millrace_service::Duration::from_secs(1);
    })
    .await;
    let mut gateway = world.gateway("a").await;
    for session_id in 1..=3 {
        gateway.enter(session_id, &format!("user-{session_id}")).await;
    }
    let refused = subscribe(&mut gateway, 1, &["a", "b", "c"]).await;
    assert_eq!(refused.code, Code::OverCapacity.number());
    assert!(!refused.reason.is_empty());
    assert_eq!(subscribe(&mut gateway, 1, &["a", "b"]).await.subscriptions, 2);
    let full = try_subscribe(&mut gateway, 2, &["c", "d"]).await;
    assert_eq!(full, Err(Code::OverCapacity));
    // A session that ends gives back what it had.
    gateway.end_session(1, Code::Ok).await;
    assert_eq!(subscribe(&mut gateway, 2, &["c", "d"]).await.subscriptions, 2);
    // And what is not renewed ends: then there is room, and nothing is told.
    for attempt in 0.. {
        match try_subscribe(&mut gateway, 3, &["e", "f"]).await {
            Ok(reply) => {
                assert_eq!(reply.subscriptions, 2);
                break;
            }
            Err(code) => assert_eq!(code, Code::OverCapacity),
        }
        assert!(attempt < 500, "the subscriptions of before do not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads server-sent events.
async fn next_event(stream: &mut BufReader<TcpStream>) -> Value {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("the stream lives");
        assert!(!line.is_empty(), "the stream ended");
        if let Some(data) = line.strip_prefix("data: ") {
            return serde_json::from_str(data).expect("JSON");
        }
    }
}

#[tokio::test]
async fn a_service_watches_over_http_until_logic_leaves() {
    let mut world = World::start_with(unpaced).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter_as(1, "bob", "b", "ios", Encoding::Protobuf).await;
    until_seen(&mut gateway, 1, &state("bob", &["ios"])).await;
    let address = world.logic().http_address().expect("the door is open");
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!(
        "GET /v1/presence/watch?user_id=alice&user_id=bob HTTP/1.1\r\nhost: test\r\n\
         authorization: Bearer {TOKEN}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut stream = BufReader::new(stream);
    let first = next_event(&mut stream).await;
    assert_eq!(first["users"][0]["user_id"], "alice");
    assert_eq!(first["users"][0]["online"], json!(false));
    assert_eq!(first["users"][1]["platforms"], json!(["ios"]));
    gateway.enter_as(2, "alice", "a", "web", Encoding::Protobuf).await;
    let second = next_event(&mut stream).await;
    assert_eq!(second["users"].as_array().expect("users").len(), 1);
    assert_eq!(second["users"][0]["platforms"], json!(["web"]));
    drop(gateway);
    world.stop().await;
    let mut rest = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
    let ended = tokio::time::timeout(Duration::from_secs(60), end).await;
    assert!(ended.is_ok(), "the stream outlives logic");
}

#[tokio::test]
async fn watching_needs_the_token_and_users_to_watch() {
    let world = World::start().await;
    let address = world.logic().http_address().expect("the door is open");
    let get = |token| crate::world::http(address, "GET", "/v1/presence/watch", token, "");
    assert_eq!(get(None).await.0, 401);
    assert_eq!(get(Some(TOKEN)).await.0, 400);
}

#[tokio::test]
async fn sessions_are_listed_by_pages_and_ended_one_by_one() {
    let world = World::start_with(unpaced).await;
    let mut gateway = world.gateway("a").await;
    for (session_id, user_id, platform) in
        [(1, "alice", "ios"), (2, "alice", "web"), (3, "bob", "ios"), (4, "carol", "ios")]
    {
        let device = format!("device-{session_id}");
        gateway.enter_as(session_id, user_id, &device, platform, Encoding::Protobuf).await;
    }
    until_seen(&mut gateway, 1, &state("carol", &["ios"])).await;
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let path = format!("/v1/sessions?limit=2&after_user_id={after}");
        let (status, page) = world.http("GET", &path, json!(null)).await;
        assert_eq!((status, &page["sessions_online"]), (200, &json!("4")), "{page}");
        for session in page["sessions"].as_array().expect("sessions") {
            seen.push(session["device_id"].as_str().expect("a device").to_owned());
        }
        after = page["next_after_user_id"].as_str().expect("a user").to_owned();
        if after.is_empty() {
            break;
        }
    }
    seen.sort();
    assert_eq!(seen, ["device-1", "device-2", "device-3", "device-4"]);

    let kick = |body| world.http("POST", "/v1/users/alice/sessions/kick", body);
    let (_, reply) = kick(json!({"platform": "ios", "device_id": "device-2"})).await;
    assert_eq!(reply["sessions"], json!(0));
    let (_, reply) = kick(json!({"platform": "web", "reason": "not from there"})).await;
    assert_eq!(reply["sessions"], json!(1));
    let close = gateway.next_close().await.expect("the stream lives");
    assert_eq!((close.session_id, close.code), (2, Code::Kicked.number()));
    assert_eq!(close.reason, "not from there");
    let (_, reply) = kick(json!({"session_id": "1", "gateway_id": "elsewhere"})).await;
    assert_eq!(reply["sessions"], json!(0));
    let (_, reply) = kick(json!({"session_id": "1", "gateway_id": "a"})).await;
    assert_eq!(reply["sessions"], json!(1));
}
