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
