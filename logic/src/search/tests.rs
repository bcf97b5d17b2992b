//! The index finds what a look at every message finds, whatever happens to it meanwhile.

#![cfg(feature = "search")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    full_text::{FullText, Options},
    terms::Wanted,
    *,
};
use crate::storage::{
    Actor, MemberRange, Outcome, Store as _, Target, Write, conversation_id, embedded,
};

/// Long enough for a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

fn store(folder: &Path) -> Arc<embedded::EmbeddedStore> {
    let options =
        embedded::Options { free_bytes_min: 0, ..embedded::Options::new(folder.join("data")) };
    Arc::new(embedded::EmbeddedStore::open(options).unwrap())
}

fn options(folder: &Path) -> Options {
    Options { commit_interval: Duration::from_millis(20), ..Options::new(folder.join("search")) }
}

fn to(sender: &str, user: &str, id: usize, body: &str) -> Write {
    Write::Append {
        message_id: Uuid::now_v7(),
        sender_id: sender.into(),
        client_message_id: id.to_string(),
        target: Target::User(user.into()),
        kind: 1 + id as u32 % 3,
        body: body.into(),
        attachment: None,
        does_not_count: false,
        sent_at_ms: 1_000 * id as i64 + 1,
        extras: None,
    }
}

/// Stores messages and notes those that `noted` takes.
async fn say(
    store: &embedded::EmbeddedStore,
    index: Option<&FullText>,
    writes: Vec<Write>,
) -> Vec<(chat::Message, u64)> {
    let outcomes = store.commit(writes).await.unwrap();
    outcomes
        .into_iter()
        .map(|outcome| {
            let Outcome::Appended { message, version, .. } = outcome else { panic!("{outcome:?}") };
            if let Some(index) = index {
                index.stored(&message, version);
            }
            (message, version)
        })
        .collect()
}

/// All of a conversation.
fn whole(conversation_id: &str) -> MemberRange {
    MemberRange { conversation_id: conversation_id.to_owned(), after: 0, up_to: u64::MAX }
}

fn query(text: &str, conversation_ids: &[&str]) -> Query {
    Query {
        conversations: conversation_ids.iter().map(|id| whole(id)).collect(),
        text: text.into(),
        limit: 100,
        ..Query::default()
    }
}

async fn found(index: &FullText, query: Query) -> Vec<(String, u64)> {
    let hits = index.search(query).await.unwrap();
    assert!(hits.is_sorted_by(|one, next| one.order > next.order), "newest first: {hits:?}");
    hits.into_iter().map(|hit| (hit.conversation_id, hit.sequence)).collect()
}

/// Searches until the answer is this one.
async fn until(index: &FullText, query: Query, expected: &[(&str, u64)]) {
    let expected: Vec<_> = expected.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect();
    let begun = Instant::now();
    loop {
        let answer = found(index, query.clone()).await;
        if answer == expected && !index.is_behind() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{query:?}: {answer:?} instead of {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_before_the_first_search_is_found_and_what_comes_after_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let index = FullText::start(options(folder.path()), store.clone()).unwrap();
    let id = conversation_id::single("ann", "bob");
    let texts = ["明天下午开会", "Meet me tomorrow", "好的，北京见", "tomorrow it is"];
    let writes = texts.iter().enumerate().map(|(n, text)| to("ann", "bob", n, text)).collect();
    say(&store, Some(&index), writes).await;
    assert!(!folder.path().join("search").exists(), "nobody has searched, so there is no index");
    until(&index, query("下午", &[&id]), &[(&id, 1)]).await;
    until(&index, query("TOMORR", &[&id]), &[(&id, 4), (&id, 2)]).await;
    say(&store, Some(&index), vec![to("bob", "ann", 9, "北京烤鸭")]).await;
    until(&index, query("北京", &[&id]), &[(&id, 5), (&id, 3)]).await;
    until(&index, query("", &[&id]), &[(&id, 5), (&id, 4), (&id, 3), (&id, 2), (&id, 1)]).await;
    // Filters, one by one and together.
    let bobs = Query { sender_id: "bob".into(), ..query("", &[&id]) };
    assert_eq!(found(&index, bobs).await, [(id.clone(), 5)]);
    let of_type = Query { types: vec![2], ..query("", &[&id]) };
    assert_eq!(found(&index, of_type).await, [(id.clone(), 2)]);
    let timed = Query { from_ms: 1_001, to_ms: 3_001, ..query("", &[&id]) };
    assert_eq!(found(&index, timed).await, [(id.clone(), 3), (id.clone(), 2)]);
    let other = query("北京", &["s:3:ann:dan"]);
    assert_eq!(found(&index, other).await, [], "another conversation is not searched");
    // What one member may see of it.
    let range = MemberRange { after: 1, up_to: 3, ..whole(&id) };
    let ranged = Query { conversations: vec![range], ..query("", &[&id]) };
    assert_eq!(found(&index, ranged).await, [(id.clone(), 3), (id.clone(), 2)]);
    // Pages.
    let first = index.search(Query { limit: 2, ..query("", &[&id]) }).await.unwrap();
    let next = Query { before: first[1].order, ..query("", &[&id]) };
    assert_eq!(found(&index, next).await, [(id.clone(), 3), (id.clone(), 2), (id.clone(), 1)]);
    // What was erased is gone.
    index.erased(&id, 5, store.version());
    until(&index, query("北京", &[&id]), &[(&id, 3)]).await;
    index.close().await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notes_that_were_dropped_are_read_from_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let narrow = Options { notes_queued_max: 1, ..options(folder.path()) };
    let index = FullText::start(narrow, store.clone()).unwrap();
    let id = conversation_id::single("ann", "bob");
    until(&index, query("x", &[&id]), &[]).await;
    for batch in 0..20 {
        let writes =
            (0..50).map(|n| to("ann", "bob", batch * 50 + n, &format!("w{n} x"))).collect();
        say(&store, Some(&index), writes).await;
    }
    let expected: Vec<(&str, u64)> = (1..=1_000).rev().map(|n| (&id[..], n)).take(100).collect();
    until(&index, query("x", &[&id]), &expected).await;
    let sevens: Vec<(&str, u64)> = (0..20).rev().map(|batch| (&id[..], batch * 50 + 8)).collect();
    until(&index, query("w7 x", &[&id]), &sevens).await;
    index.close().await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_behind_torn_or_gone_mends_itself() {
    let folder = tempfile::tempdir().unwrap();
    let id = conversation_id::single("ann", "bob");
    let begin = |store: &Arc<embedded::EmbeddedStore>| {
        FullText::start(options(folder.path()), store.clone()).unwrap()
    };
    let all = |count: u64| (1..=count).rev().map(|n| (&id[..], n)).collect::<Vec<_>>();
    let store = store(folder.path());
    let index = begin(&store);
    until(&index, query("x", &[&id]), &[]).await;
    say(&store, Some(&index), vec![to("ann", "bob", 1, "x one")]).await;
    until(&index, query("x", &[&id]), &all(1)).await;
    index.close().await;
    // Stored while there was no index.
    say(&store, None, vec![to("ann", "bob", 2, "x two"), to("bob", "ann", 3, "x three")]).await;
    let index = begin(&store);
    until(&index, query("x", &[&id]), &all(3)).await;
    index.close().await;
    // Erased while there was no index: its terms are gone from it, too.
    let revoke = Write::Revoke {
        actor: Actor::Service,
        conversation_id: id.clone(),
        sequence: 2,
        at_ms: 9_000,
        limit_ms: 0,
    };
    store.commit(vec![revoke]).await.unwrap();
    let index = begin(&store);
    until(&index, query("x", &[&id]), &[(&id, 3), (&id, 1)]).await;
    assert_eq!(index.status().messages, 2);
    index.close().await;
    // Damaged.
    std::fs::write(folder.path().join("search/meta.json"), "{").unwrap();
    let index = begin(&store);
    until(&index, query("x", &[&id]), &[(&id, 3), (&id, 1)]).await;
    index.close().await;
    for file in std::fs::read_dir(folder.path().join("search")).unwrap() {
        let path = file.unwrap().path();
        if path
            .extension()
            .is_some_and(|ending| ["idx", "term", "fast"].iter().any(|e| ending == *e))
        {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
    let index = begin(&store);
    until(&index, query("x", &[&id]), &[(&id, 3), (&id, 1)]).await;
    index.close().await;
    // Deleted: the next search begins it again.
    std::fs::remove_dir_all(folder.path().join("search")).unwrap();
    say(&store, None, vec![to("ann", "bob", 4, "x four")]).await;
    let index = begin(&store);
    until(&index, query("x", &[&id]), &[(&id, 4), (&id, 3), (&id, 1)]).await;
    // Dropped, as when the process ends at once.
    drop(index);
    let begun = Instant::now();
    while Arc::strong_count(&store) > 1 {
        assert!(begun.elapsed() < PATIENCE, "the thread does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let index = begin(&store);
    say(&store, Some(&index), vec![to("ann", "bob", 5, "x five")]).await;
    until(&index, query("x", &[&id]), &[(&id, 5), (&id, 4), (&id, 3), (&id, 1)]).await;
    index.close().await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_texts_are_found_as_by_a_look_at_every_message() {
    let seed = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let small = Options { notes_queued_max: 40, ..options(folder.path()) };
    let index = FullText::start(small, store.clone()).unwrap();
    let alphabet: Vec<char> = "ab c天地人 开".chars().collect();
    let text = |random: &mut fastrand::Rng, longest: usize| -> String {
        let count = random.usize(1..longest);
        (0..count).map(|_| alphabet[random.usize(..alphabet.len())]).collect()
    };
    let users = ["ann", "bob", "carol"];
    let mut said: Vec<(chat::Message, u64)> = vec![];
    for round in 0..12 {
        let count = random.usize(1..60);
        let writes = (0..count)
            .map(|n| {
                let (sender, user) = (random.usize(..3), random.usize(..3));
                to(users[sender], users[user], round * 100 + n, &text(&mut random, 12))
            })
            .collect();
        said.extend(say(&store, Some(&index), writes).await);
        let ids: Vec<String> = users
            .iter()
            .map(|user| conversation_id::single("ann", user))
            .filter(|_| random.u8(..4) > 0)
            .collect();
        let asked = Query {
            conversations: ids.iter().map(|id| whole(id)).collect(),
            text: if random.u8(..5) == 0 { String::new() } else { text(&mut random, 5) },
            sender_id: if random.bool() { String::new() } else { users[random.usize(..3)].into() },
            types: if random.bool() { vec![] } else { vec![1, 3] },
            limit: 1_000,
            ..Query::default()
        };
        let wanted = Wanted::new(&asked.text);
        let mut expected: Vec<(&chat::Message, u64)> = said
            .iter()
            .filter(|(message, _)| {
                ids.contains(&message.conversation_id)
                    && wanted.as_ref().is_none_or(|wanted| wanted.fits(&message.body))
                    && (asked.sender_id.is_empty() || asked.sender_id == message.sender_id)
                    && (asked.types.is_empty() || asked.types.contains(&message.r#type))
            })
            .map(|(message, version)| (message, *version))
            .collect();
        expected.sort_by_key(|(_, version)| std::cmp::Reverse(*version));
        let begun = Instant::now();
        loop {
            // The index may offer more than fits, and must offer all that does.
            let hits = index.search(asked.clone()).await.unwrap();
            let fitting: Vec<(&chat::Message, u64)> = hits
                .iter()
                .map(|hit| {
                    let is = |message: &chat::Message| {
                        message.conversation_id == hit.conversation_id
                            && message.sequence == hit.sequence
                    };
                    let (message, version) =
                        said.iter().find(|(message, _)| is(message)).expect("it was said");
                    assert_eq!(*version, hit.order);
                    (message, *version)
                })
                .filter(|(message, _)| {
                    wanted.as_ref().is_none_or(|wanted| wanted.fits(&message.body))
                })
                .collect();
            if fitting == expected {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "round {round}: {asked:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    index.close().await;
    store.close().await.unwrap();
}
