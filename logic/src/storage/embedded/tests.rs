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
