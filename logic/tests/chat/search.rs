//! SEARCH_MESSAGES: a user finds what that user may see, and nothing else.

use std::time::{Duration, Instant};

use millrace_logic::search::terms::Wanted;
use millrace_logic_sdk::testing::FakeGateway;
use millrace_protocol::{
    Code,
    chat::{Delete, Message, PullMessages, Revoke, SearchMessages, SearchReply, SendReply},
    command,
};
use serde_json::json;

use crate::world::{Clients, World, request_id, to_group, to_user};

const PATIENCE: Duration = Duration::from_secs(60);

fn text(text: &str) -> SearchMessages {
    SearchMessages { text: text.into(), ..SearchMessages::default() }
}

async fn search(gateway: &mut FakeGateway, session: u64, question: &SearchMessages) -> SearchReply {
    gateway.request(session, command::SEARCH_MESSAGES, request_id(), question).await.decode()
}

/// Asks until so many are found.
async fn found(
    gateway: &mut FakeGateway,
    session: u64,
    question: &SearchMessages,
    count: usize,
) -> Vec<Message> {
    let begun = Instant::now();
    loop {
        let reply = search(gateway, session, question).await;
        assert_eq!(reply.code, 0, "{}", reply.reason);
        if reply.messages.len() == count && !reply.behind {
            return reply.messages;
        }
        assert!(begun.elapsed() < PATIENCE, "{question:?}: {reply:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_user_finds_own_conversations_in_any_script_and_nobody_elses() {
    let mut world = World::start().await;
    world.create_group("team", &["alice", "bob"]).await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "carol")] {
        gateway.enter(session, user).await;
    }
    gateway.say(1, "bob", "明天下午三点在北京大学开会").await;
    gateway.say_to_group(2, "team", "The meeting is in 北京").await;
    gateway.say(2, "carol", "I told nobody about 北京").await;
    let both = found(&mut gateway, 1, &text("北京"), 2).await;
    assert_eq!((&both[0].body[..], both[1].sequence), ("The meeting is in 北京", 1));
    assert_eq!(found(&mut gateway, 2, &text("北京"), 3).await.len(), 3);
    assert_eq!(found(&mut gateway, 3, &text("北京"), 1).await[0].sender_id, "bob");
    assert_eq!(found(&mut gateway, 1, &text("MEET"), 1).await[0].conversation_id, "g:team");
    found(&mut gateway, 1, &text("北大"), 0).await;
    // By sender, type, time and conversation.
    let by_bob = SearchMessages { sender_id: "bob".into(), ..SearchMessages::default() };
    assert_eq!(found(&mut gateway, 1, &by_bob, 1).await[0].conversation_id, "g:team");
    let pictures = SearchMessages { types: vec![3], ..SearchMessages::default() };
    found(&mut gateway, 1, &pictures, 0).await;
    let later = SearchMessages { from_ms: i64::MAX, ..text("北京") };
    found(&mut gateway, 1, &later, 0).await;
    let in_team = SearchMessages { conversation_id: "g:team".into(), ..text("北京") };
    found(&mut gateway, 1, &in_team, 1).await;
    let reply = search(&mut gateway, 3, &in_team).await;
    assert_eq!(reply.code, Code::NotPermitted.number());
    // Who comes later does not find what was said before; who left, nothing of what came after.
    let body = json!({ "user_ids": ["carol"] });
    assert_eq!(world.http("POST", "/v1/groups/team/members", body).await.0, 200);
    gateway.say_to_group(1, "team", "北京, the second").await;
    let after = found(&mut gateway, 3, &in_team, 1).await;
    assert_eq!(after[0].body, "北京, the second");
    // Over HTTP, for a user.
    let path = "/v1/users/carol/search";
    let (status, reply) = world.http("POST", path, json!({ "text": "北京" })).await;
    assert_eq!((status, reply["messages"].as_array().map(Vec::len)), (200, Some(2)), "{reply}");
    // Nothing to look for, and too much.
    for nothing in ["?!", &"x".repeat(257)] {
        assert_eq!(search(&mut gateway, 1, &text(nothing)).await.code, Code::BadRequest.number());
    }
    // It is there after a restart.
    drop(gateway);
    world.restart().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    found(&mut gateway, 1, &text("北京"), 3).await;
    world.stop().await;
}

#[tokio::test]
async fn pages_go_on_where_the_one_before_ended() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    for n in 0..45 {
        gateway.say(1, "bob", &format!("number {n}")).await;
    }
    found(&mut gateway, 1, &SearchMessages { limit: 50, ..text("number") }, 45).await;
    let (mut all, mut before) = (vec![], 0);
    loop {
        let question = SearchMessages { limit: 10, before, ..text("number") };
        let page = search(&mut gateway, 1, &question).await;
        all.extend(page.messages.iter().map(|message| message.sequence));
        if page.complete {
            break;
        }
        assert_eq!(page.messages.len(), 10);
        before = page.next;
    }
    assert_eq!(all, (1..=45).rev().collect::<Vec<u64>>());
}

/// What a search has to find: everything that pulling shows this user, looked at one by one.
async fn pulled(gateway: &mut FakeGateway, session: u64, wanted: &Wanted) -> Vec<(String, u64)> {
    let mut fitting = vec![];
    for conversation in gateway.conversations(session, 0).await.conversations {
        let pull = PullMessages {
            conversation_id: conversation.conversation_id.clone(),
            limit: 100,
            ..PullMessages::default()
        };
        let page = gateway.pull(session, pull).await;
        assert!(page.complete, "few enough for one page");
        let fits = |message: &&Message| {
            message.state == 0 && message.r#type == 1 && wanted.fits(&message.body)
        };
        let place = |message: &Message| (conversation.conversation_id.clone(), message.sequence);
        fitting.extend(page.messages.iter().filter(fits).map(place));
    }
    fitting.sort();
    fitting
}

/// All pages of a search.
async fn searched(gateway: &mut FakeGateway, session: u64, words: &str) -> Vec<(String, u64)> {
    let (mut all, mut before) = (vec![], 0);
    loop {
        let page =
            search(gateway, session, &SearchMessages { limit: 7, before, ..text(words) }).await;
        assert_eq!(page.code, 0, "{}", page.reason);
        let place = |message: Message| (message.conversation_id, message.sequence);
        all.extend(page.messages.into_iter().map(place));
        if page.complete {
            all.sort();
            return all;
        }
        before = page.next;
    }
}

#[tokio::test]
async fn a_search_finds_exactly_what_pulling_shows_whatever_was_done_before() {
    let seed = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let world = World::start_with(|config| {
        config.paces.pulls_per_second_max = 100_000;
        config.paces.pulls_burst_max = 100_000;
        config.limits.frames_per_second_max = 100_000;
        config.limits.frames_burst_max = 100_000;
        config.limits.messages_per_second_max = 100_000;
        config.limits.messages_burst_max = 100_000;
        config.search.commit_interval = millrace_service::Duration::from_millis(20);
        // So few that some are dropped, and read from the store.
        config.search.notes_queued_max = 3;
    })
    .await;
    let users = ["ann", "bob", "carol", "dan"];
    world.create_group("g", &users[..2]).await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in (1..).zip(users) {
        gateway.enter(session, user).await;
    }
    let words = ["天地", "地人", "abc", "abd", "b"];
    search(&mut gateway, 1, &text("x")).await;
    let mut said: Vec<SendReply> = vec![];
    for _ in 0..3 {
        for _ in 0..25 {
            let (session, other) = (random.u64(1..5), users[random.usize(..4)]);
            let body = format!("{} {}", words[random.usize(..5)], words[random.usize(..5)]);
            match random.u8(..10) {
                kind @ 0..7 => {
                    let message =
                        if kind < 4 { to_user(other, &body) } else { to_group("g", &body) };
                    let reply = gateway.send_to(session, message).await;
                    // Who is no member of the group is refused.
                    if reply.code == 0 {
                        said.push(reply);
                    }
                }
                7 if !said.is_empty() => {
                    let old = &said[random.usize(..said.len())];
                    let (conversation_id, sequence) = (old.conversation_id.clone(), old.sequence);
                    let revoke = Revoke { conversation_id, sequence };
                    gateway.request(session, command::REVOKE, request_id(), &revoke).await;
                }
                8 if !said.is_empty() => {
                    let old = &said[random.usize(..said.len())];
                    let (conversation_id, sequence) = (old.conversation_id.clone(), old.sequence);
                    let delete = Delete { conversation_id, sequences: vec![sequence] };
                    gateway.request(session, command::DELETE, request_id(), &delete).await;
                }
                _ => {
                    let method = if random.bool() { "POST" } else { "DELETE" };
                    let body = json!({ "user_ids": [other] });
                    assert_eq!(world.http(method, "/v1/groups/g/members", body).await.0, 200);
                }
            }
        }
        for question in ["天", "地人", "ab", "abc abd", "b 天地"] {
            let wanted = Wanted::new(question).expect("words");
            for session in 1..5 {
                let expected = pulled(&mut gateway, session, &wanted).await;
                let begun = Instant::now();
                loop {
                    let found = searched(&mut gateway, session, question).await;
                    if found == expected {
                        break;
                    }
                    assert!(
                        found.iter().all(|place| expected.contains(place)),
                        "{question}: {found:?}"
                    );
                    assert!(begun.elapsed() < PATIENCE, "{question}: {found:?}, not {expected:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}
