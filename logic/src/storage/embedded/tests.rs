//! Properties of the embedded store alone: its directory, its lock, its bounds, and what is left
//! after kill -9. What every store promises is in the
//! conformance suite.

use uuid::Uuid;

use super::*;
use crate::storage::{Target, conformance};

/// Options for small tests: no free space is demanded of a temporary directory.
pub fn options(directory: &std::path::Path) -> Options {
    Options { free_bytes_min: 0, ..Options::new(directory) }
}

fn append(sender: &str, user: &str, id: &str) -> Write {
    Write::Append {
        message_id: Uuid::now_v7(),
        sender_id: sender.into(),
        client_message_id: id.into(),
        target: Target::User(user.into()),
        kind: 1,
        body: format!("body of {id}"),
        attachment: None,
        does_not_count: false,
        sent_at_ms: 1,
        extras: None,
    }
}

#[tokio::test]
async fn a_second_opener_is_refused_until_the_first_closes() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(options(directory.path())).unwrap();
    let error = EmbeddedStore::open(options(directory.path())).err().unwrap();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
    assert!(error.to_string().contains("in use by another process"), "{error}");
    store.close().await.unwrap();
    assert!(matches!(store.commit(vec![append("a", "b", "1")]).await, Err(StoreError::Closed)));
    assert!(matches!(store.members("g:x").await, Err(StoreError::Closed)));
    assert!(matches!(store.close().await, Err(StoreError::Closed)));
    EmbeddedStore::open(options(directory.path())).unwrap().close().await.unwrap();
}

struct Directory {
    directory: tempfile::TempDir,
    fan_out_members_max: usize,
}

impl conformance::Bed for Directory {
    type Store = EmbeddedStore;

    async fn open(&self) -> EmbeddedStore {
        let fan_out_members_max = self.fan_out_members_max;
        let options = Options { fan_out_members_max, ..options(self.directory.path()) };
        EmbeddedStore::open(options).unwrap()
    }
}

fn bed(fan_out_members_max: usize) -> Directory {
    Directory { directory: tempfile::tempdir().unwrap(), fan_out_members_max }
}

mod pointers {
    use super::*;
    conformance::conformance_tests!(bed(500));
}

/// The same promises where some groups are too large for pointers, and become so in the middle.
mod cursors {
    use super::*;
    conformance::conformance_tests!(bed(2));
}

mod crash;
mod fan_out;

#[tokio::test]
async fn a_directory_of_something_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("letter.txt"), "dear").unwrap();
    let error = EmbeddedStore::open(options(directory.path())).err().unwrap();
    assert!(matches!(error, StoreError::Format { .. }), "{error}");
    assert!(error.to_string().contains("letter.txt"), "{error}");
    assert!(!directory.path().join("data").exists());

    let directory = tempfile::tempdir().unwrap();
    EmbeddedStore::open(options(directory.path())).unwrap().close().await.unwrap();
    let format = directory.path().join("FORMAT");
    std::fs::write(&format, "millrace embedded store 2\n").unwrap();
    let error = EmbeddedStore::open(options(directory.path())).err().unwrap();
    assert!(error.to_string().contains("store 2"), "{error}");
    std::fs::write(&format, "millrace embedded store 3\n").unwrap();
    EmbeddedStore::open(options(directory.path())).unwrap().close().await.unwrap();
}

/// Opens the store as soon as whoever had it has let it go.
async fn reopened(directory: &std::path::Path) -> EmbeddedStore {
    loop {
        match EmbeddedStore::open(options(directory)) {
            Err(StoreError::InUse(_)) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            opened => return opened.unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_orderly_stop_nothing_of_the_journal_is_put_back_into_memory() {
    const MESSAGES: usize = 4_000;
    let in_memory = |store: &EmbeddedStore| {
        let tables = store.tables.read().unwrap();
        tables.as_ref().unwrap().memtable_bytes()
    };
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(options(directory.path())).unwrap();
    let side = store.side("a_matter_of_its_own").unwrap();
    for first in (0..MESSAGES).step_by(500) {
        let writes = (first..first + 500).map(|n| {
            let mut write = append("a", "b", &n.to_string());
            if let Write::Append { body, .. } = &mut write {
                *body = "x".repeat(600);
            }
            write
        });
        store.commit(writes.collect()).await.unwrap();
    }
    let value = vec![7; 2 << 20];
    let row = value.clone();
    let put = side.write(move |rows| {
        rows.put(b"key".to_vec(), row);
        Ok(())
    });
    put.await.unwrap();
    let written = in_memory(&store);
    assert!(written > 4 << 20, "{written}");
    drop(side);

    // As after a crash: all of it is read again.
    drop(store);
    let store = reopened(directory.path()).await;
    let put_back = in_memory(&store);
    assert!(put_back > written / 2, "{put_back} of {written}");
    store.close().await.unwrap();

    let store = reopened(directory.path()).await;
    assert_eq!(in_memory(&store), 0);
    let id = conversation_id::single("a", "b");
    let newest = store.page("b", &id, 0, 0, 10, true).await.unwrap().messages;
    assert_eq!(newest[0].sequence, MESSAGES as u64);
    let side = store.side("a_matter_of_its_own").unwrap();
    assert_eq!(side.read(|rows| rows.get(b"key")).await.unwrap(), Some(value));
    let next = store.commit(vec![append("b", "a", "more")]).await.unwrap();
    let [Outcome::Appended { message, .. }] = &next[..] else { panic!("{next:?}") };
    assert_eq!(message.sequence, MESSAGES as u64 + 1, "the counters go on");
    store.close().await.unwrap();
}

/// `MILLRACE_MESSAGES=200000 cargo test --release -p millrace-logic --lib -- --ignored --nocapture after_an_orderly_stop_the_next`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, of which the figures depend on the machine"]
async fn after_an_orderly_stop_the_next_start_is_faster_than_after_a_crash() {
    let messages = std::env::var("MILLRACE_MESSAGES").map_or(200_000, |n| n.parse().unwrap());
    let (ended, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = EmbeddedStore::open(options(ended.path())).unwrap();
    for first in (0..messages).step_by(500) {
        let writes = (first..first + 500).map(|n: usize| {
            let (sender, id) = (format!("user{}", n % 5_000), n.to_string());
            append(&sender, &format!("user{}", n * 7 % 5_003), &id)
        });
        store.commit(writes.collect()).await.unwrap();
    }
    // What a crash in this moment leaves, and what an orderly stop left that emptied nothing.
    let copied = std::process::Command::new("cp")
        .args(["-a", "--sparse=always"])
        .arg(ended.path().join("."))
        .arg(crashed.path())
        .status();
    assert!(copied.unwrap().success());
    let timed = |directory: &std::path::Path| {
        let began = Instant::now();
        (EmbeddedStore::open(options(directory)).unwrap(), began.elapsed())
    };
    let began = Instant::now();
    store.close().await.unwrap();
    let closing = began.elapsed();
    let (after_a_crash, put_back) = timed(crashed.path());
    let (after_a_stop, passed_over) = timed(ended.path());
    println!(
        "{messages} messages: closing {closing:?}; starting after a crash {put_back:?}, after that {passed_over:?}"
    );
    assert_eq!(after_a_stop.version(), after_a_crash.version());
    assert!(passed_over < put_back, "{passed_over:?}, and after a crash {put_back:?}");
    after_a_crash.close().await.unwrap();
    after_a_stop.close().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_commits_and_goes_on_reading() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(options(directory.path())).unwrap();
    store.commit(vec![append("a", "b", "1")]).await.unwrap();
    store.close().await.unwrap();

    let full = Options { free_bytes_min: u64::MAX, ..options(directory.path()) };
    let store = EmbeddedStore::open(full).unwrap();
    let version = store.version();
    for _ in 0..2 {
        let error = store.commit(vec![append("a", "b", "2")]).await.unwrap_err();
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        assert_eq!(error.code(), millrace_protocol::Code::OverCapacity);
    }
    assert_eq!(store.version(), version);
    // A retry of what is stored needs no space.
    let outcomes = store.commit(vec![append("a", "b", "1")]).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Appended { duplicate: true, .. }]));
    let id = conversation_id::single("a", "b");
    assert_eq!(store.page("a", &id, 0, 0, 10, false).await.unwrap().messages.len(), 1);
    store.close().await.unwrap();

    let store = EmbeddedStore::open(options(directory.path())).unwrap();
    let outcomes = store.commit(vec![append("a", "b", "2")]).await.unwrap();
    let [Outcome::Appended { message, duplicate: false, .. }] = &outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_eq!(message.sequence, 2, "the refused commits took no sequence");
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_group_that_grew_large_needs_no_pointers() {
    let bed = bed(3);
    let store = conformance::Bed::open(&bed).await;
    let group = |members: &[&str]| Write::CreateGroup {
        group_id: "g".into(),
        name: String::new(),
        avatar: String::new(),
        members: members.iter().map(|id| (*id).to_owned()).collect(),
        members_max: 0,
        created_at_ms: 0,
    };
    let change = |add: bool, user: &str| {
        let (group_id, user_ids) = ("g".into(), vec![user.into()]);
        match add {
            true => Write::AddMembers { group_id, user_ids },
            false => Write::RemoveMembers { group_id, user_ids },
        }
    };
    let rows = |store: &EmbeddedStore| {
        let tables = store.tables.read().unwrap().clone().unwrap();
        let mut pointers = 0;
        for user in ["a", "b", "c", "d"] {
            let key = keys::user(user, "g:g", keys::UserRow::Pointer);
            let pointer: Option<rows::PointerRow> = tables.get(keys::Table::Users, &key).unwrap();
            pointers += pointer.map_or(0, |pointer| pointer.max_sequence);
        }
        pointers
    };
    store.commit(vec![group(&["a", "b", "c"])]).await.unwrap();
    store.commit(vec![conformance::to_group("a", "g", "1")]).await.unwrap();
    assert_eq!(rows(&store), 3);
    store.commit(vec![change(true, "d")]).await.unwrap();
    store.commit(vec![conformance::to_group("a", "g", "2")]).await.unwrap();
    assert_eq!(rows(&store), 3, "no pointer was written");
    let sequences = |messages: Vec<chat::Message>| {
        messages.iter().map(|message| message.sequence).collect::<Vec<_>>()
    };
    assert_eq!(sequences(store.undelivered("b", u64::MAX, 9, 9).await.unwrap()), [1, 2]);
    assert_eq!(sequences(store.undelivered("d", u64::MAX, 9, 9).await.unwrap()), [2]);
    // It has shrunk again, but the pointers stay behind.
    store.commit(vec![change(false, "d"), change(false, "c")]).await.unwrap();
    store.commit(vec![conformance::to_group("a", "g", "3")]).await.unwrap();
    assert_eq!(rows(&store), 3);
    assert_eq!(sequences(store.undelivered("b", u64::MAX, 9, 9).await.unwrap()), [1, 2, 3]);
    assert_eq!(sequences(store.undelivered("c", u64::MAX, 9, 9).await.unwrap()), [1, 2]);
    let page = store.conversations("b", 0, 9).await.unwrap();
    assert_eq!((page.conversations[0].unread, page.conversations[0].version), (3, page.version));
    store.close().await.unwrap();
}
