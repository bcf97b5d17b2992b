//! One suite that every [`AttachmentStore`] must pass, named after its promises.

use std::future::Future;

use super::{AttachmentRow, AttachmentState, AttachmentStore, Referred, Usage};

/// Where stores of one kind come from: an empty one first, afterwards the same data again.
pub trait Bed: Send + Sync {
    /// The implementation under test.
    type Store: AttachmentStore;

    /// Opens it, after closing the one opened before.
    fn open(&self) -> impl Future<Output = Self::Store> + Send;
}

/// Makes one test of every property, each on a bed of its own.
macro_rules! attachment_store_conformance_tests {
    ($bed:expr) => {
        $crate::storage::attachments::conformance::attachment_store_conformance_tests! { $bed;
            an_upload_becomes_a_file_once,
            quotas_hold_and_are_given_back,
            references_are_bounded_and_keep_a_file,
            what_nobody_refers_to_is_listed_by_age,
        }
    };
    ($bed:expr; $($property:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() {
                $crate::storage::attachments::conformance::$property(&$bed).await;
            }
        )+
    };
}
pub(crate) use attachment_store_conformance_tests;

const QUOTA: Usage = Usage { files: 3, bytes: 1_000 };

fn row(attachment_id: &str, size: u64, created_at_ms: i64) -> AttachmentRow {
    AttachmentRow {
        attachment_id: attachment_id.into(),
        owner_id: "alice".into(),
        name: "a.png".into(),
        kind: "image/png".into(),
        size,
        created_at_ms,
        ..AttachmentRow::default()
    }
}

async fn complete<S: AttachmentStore>(store: &S, row: AttachmentRow) {
    let attachment_id = row.attachment_id.clone();
    assert!(store.create(row, Usage { files: 99, bytes: 9_999 }).await.unwrap());
    assert!(store.complete(&attachment_id, "hash").await.unwrap());
}

async fn unreferred<S: AttachmentStore>(store: &S, before_ms: i64, limit: usize) -> Vec<String> {
    let (mut found, mut after) = (vec![], (0, String::new()));
    loop {
        let rows = store.unreferred((after.0, &after.1), before_ms, limit).await.unwrap();
        assert!(rows.len() <= limit);
        let Some(last) = rows.last() else { return found };
        after = (last.created_at_ms, last.attachment_id.clone());
        found.extend(rows.into_iter().map(|row| row.attachment_id));
    }
}

pub async fn an_upload_becomes_a_file_once(bed: &impl Bed) {
    let store = bed.open().await;
    assert_eq!(store.attachment("x").await.unwrap(), None);
    assert!(store.create(row("x", 10, 5), QUOTA).await.unwrap());
    assert!(store.received("x", 4).await.unwrap());
    drop(store);
    let store = bed.open().await;
    let found = store.attachment("x").await.unwrap().unwrap();
    assert_eq!(found, AttachmentRow { received: 4, ..row("x", 10, 5) });
    assert_eq!(store.refer("x", "c", 9).await.unwrap(), Referred::Missing, "not complete");
    assert!(store.complete("x", "hash").await.unwrap());
    assert!(!store.complete("x", "other").await.unwrap(), "complete already");
    assert!(!store.received("x", 5).await.unwrap());
    let found = store.attachment("x").await.unwrap().unwrap();
    let state = AttachmentState::Complete;
    let wanted = AttachmentRow { received: 10, state, sha256: "hash".into(), ..row("x", 10, 5) };
    assert_eq!(found, wanted);
    assert!(!store.received("y", 5).await.unwrap() && !store.complete("y", "").await.unwrap());
}

pub async fn quotas_hold_and_are_given_back(bed: &impl Bed) {
    let store = bed.open().await;
    assert!(store.create(row("1", 600, 1), QUOTA).await.unwrap());
    assert!(!store.create(row("2", 401, 1), QUOTA).await.unwrap(), "too many bytes");
    assert_eq!(store.attachment("2").await.unwrap(), None);
    assert!(store.create(row("2", 400, 1), QUOTA).await.unwrap());
    assert!(store.create(row("3", 0, 1), QUOTA).await.unwrap());
    assert!(!store.create(row("4", 0, 1), QUOTA).await.unwrap(), "too many files");
    let bob = AttachmentRow { owner_id: "bob".into(), ..row("5", 1_000, 1) };
    assert!(store.create(bob, QUOTA).await.unwrap(), "others have their own");
    assert_eq!(store.usage("alice").await.unwrap(), Usage { files: 3, bytes: 1_000 });
    assert!(store.begin_removal("1", false).await.unwrap().is_some());
    assert_eq!(store.usage("alice").await.unwrap().files, 3, "its bytes are still there");
    for _ in 0..2 {
        store.end_removal("1").await.unwrap();
        assert_eq!(store.usage("alice").await.unwrap(), Usage { files: 2, bytes: 400 });
    }
    assert_eq!(store.usage("nobody").await.unwrap(), Usage::default());
}

pub async fn references_are_bounded_and_keep_a_file(bed: &impl Bed) {
    let store = bed.open().await;
    complete(&store, row("x", 1, 5)).await;
    complete(&store, row("xy", 1, 5)).await;
    assert_eq!(store.refer("xy", "c9", 9).await.unwrap(), Referred::Done);
    for conversation in ["c1", "c2", "c1"] {
        assert_eq!(store.refer("x", conversation, 2).await.unwrap(), Referred::Done);
    }
    assert_eq!(store.refer("x", "c3", 2).await.unwrap(), Referred::Full);
    assert_eq!(store.references("x", 9).await.unwrap(), ["c1", "c2"]);
    assert_eq!(store.references("x", 1).await.unwrap(), ["c1"]);
    assert_eq!(store.begin_removal("x", true).await.unwrap(), None, "something refers to it");
    assert!(store.begin_removal("x", false).await.unwrap().is_some());
    assert_eq!(store.refer("x", "c1", 2).await.unwrap(), Referred::Missing);
    store.end_removal("x").await.unwrap();
    assert_eq!(store.attachment("x").await.unwrap(), None);
    assert_eq!(store.references("x", 9).await.unwrap(), [""; 0]);
    assert_eq!(store.references("xy", 9).await.unwrap(), ["c9"]);
}

pub async fn what_nobody_refers_to_is_listed_by_age(bed: &impl Bed) {
    let store = bed.open().await;
    assert!(store.create(row("uploading", 1, 10), QUOTA).await.unwrap());
    complete(&store, row("complete", 1, 20)).await;
    complete(&store, AttachmentRow { public: true, ..row("public", 1, 5) }).await;
    complete(&store, row("referred", 1, 7)).await;
    assert_eq!(unreferred(&store, 100, 9).await, ["referred", "uploading", "complete"]);
    assert_eq!(store.refer("referred", "c", 9).await.unwrap(), Referred::Done);
    assert_eq!(unreferred(&store, 100, 9).await, ["uploading", "complete"]);
    assert_eq!(unreferred(&store, 20, 9).await, ["uploading"], "before, not at");
    assert_eq!(unreferred(&store, 100, 1).await, ["uploading", "complete"], "page by page");
    // A removal that a crash cut off is found again.
    assert!(store.begin_removal("referred", false).await.unwrap().is_some());
    drop(store);
    let store = bed.open().await;
    assert_eq!(unreferred(&store, 100, 9).await, ["referred", "uploading", "complete"]);
    assert!(store.begin_removal("complete", true).await.unwrap().is_some());
    for attachment_id in ["referred", "complete", "uploading"] {
        assert!(store.begin_removal(attachment_id, true).await.unwrap().is_some());
        store.end_removal(attachment_id).await.unwrap();
    }
    assert_eq!(unreferred(&store, 100, 9).await, [""; 0]);
    assert_eq!(store.usage("alice").await.unwrap(), Usage { files: 1, bytes: 1 });
}
