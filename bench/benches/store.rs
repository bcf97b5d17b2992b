//! What a commit and a question cost in the embedded store: messages of 100 bytes between random
//! users, appended in batches, each batch durable; and the questions of a client that comes back.
//!
//! `cargo bench -p millrace-bench --bench store`. Every figure includes the fdatasync of the disk
//! under the temporary directory (`TMPDIR`).

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use millrace_logic::storage::{
    Store, Target, Write, conversation_id,
    embedded::{EmbeddedStore, Options},
};
use uuid::Uuid;

const USERS: u32 = 10_000;

fn append(random: &mut fastrand::Rng, next: &mut u64) -> Write {
    message(random.u32(..USERS), next)
}

fn message(sender: u32, next: &mut u64) -> Write {
    *next += 1;
    Write::Append {
        message_id: Uuid::now_v7(),
        sender_id: user(sender),
        client_message_id: format!("{next:032x}"),
        target: Target::User(user(partner(sender))),
        kind: 1,
        body: "x".repeat(100),
        attachment: None,
        does_not_count: false,
        sent_at_ms: 1_700_000_000_000,
        extras: None,
    }
}

/// Who chats with whom: pairs, so that conversations are long enough to page.
fn partner(user: u32) -> u32 {
    user ^ 1
}

fn user(number: u32) -> String {
    format!("user{number:06}")
}

fn store(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let store = EmbeddedStore::open(Options::new(directory.path())).expect("a store");
    let mut random = fastrand::Rng::with_seed(1);
    let mut next = 0;
    // 20 messages in each of 5,000 conversations.
    for _ in 0..10 {
        for thousand in 0..USERS / 1_000 {
            let senders = thousand * 1_000..(thousand + 1) * 1_000;
            let writes = senders.map(|sender| message(sender, &mut next)).collect();
            runtime.block_on(store.commit(writes)).expect("a commit");
        }
    }

    let mut group = criterion.benchmark_group("append");
    group.sample_size(20);
    for count in [1, 100, 1_000] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{count} a commit"), |bencher| {
            bencher.iter_batched(
                || (0..count).map(|_| append(&mut random, &mut next)).collect::<Vec<_>>(),
                |writes| runtime.block_on(store.commit(writes)).expect("a commit"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("question");
    group.bench_function("newest 20 of a conversation", |bencher| {
        bencher.iter(|| {
            let one = random.u32(..USERS);
            let id = conversation_id::single(&user(one), &user(partner(one)));
            let page = runtime.block_on(store.page(&user(one), &id, 0, 0, 20, true));
            assert_eq!(black_box(page).expect("a page").messages.len(), 20);
        });
    });
    group.bench_function("undelivered, nothing new", |bencher| {
        let one = user(0);
        let id = conversation_id::single(&one, &user(1));
        let (user_id, conversation_id) = (one.clone(), id);
        let read = Write::MoveCursor { user_id, conversation_id, delivered: u64::MAX, read: 0 };
        runtime.block_on(store.commit(vec![read])).expect("a commit");
        bencher.iter(|| {
            let messages = runtime.block_on(store.undelivered(&one, u64::MAX, 20, 100));
            assert!(black_box(messages).expect("an answer").is_empty());
        });
    });
    // Somebody with a hundred chats, as most logins see it: all of them known already.
    let social = "social".to_owned();
    let mut chats = Vec::new();
    for other in 0..100 {
        let mut write = message(other, &mut next);
        if let Write::Append { target, .. } = &mut write {
            *target = Target::User(social.clone());
        }
        chats.push(write);
    }
    runtime.block_on(store.commit(chats)).expect("a commit");
    let known = (0..100).map(|other| Write::MoveCursor {
        user_id: social.clone(),
        conversation_id: conversation_id::single(&social, &user(other)),
        delivered: u64::MAX,
        read: 0,
    });
    runtime.block_on(store.commit(known.collect())).expect("a commit");
    group.bench_function("undelivered, nothing new in 100 chats", |bencher| {
        bencher.iter(|| {
            let messages = runtime.block_on(store.undelivered(&social, u64::MAX, 20, 100));
            assert!(black_box(messages).expect("an answer").is_empty());
        });
    });
    group.finish();
    runtime.block_on(store.close()).expect("the end");
}

criterion_group!(benches, store);
criterion_main!(benches);
