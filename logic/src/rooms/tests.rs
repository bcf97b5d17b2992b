//! The directory over the embedded store: what it answers, before and after a restart.

use std::sync::Arc;

use super::{RoomDirectory, RoomError, RoomLimits, RoomSettings, RoomTable};
use crate::storage::{
    Store as _,
    embedded::{EmbeddedStore, Options},
};

const LIMITS: RoomLimits = RoomLimits {
    rooms_max: 3,
    accounts_per_room_max: 4,
    accounts_max: 6,
    rooms_per_account_max: 2,
};

async fn open(folder: &tempfile::TempDir) -> (EmbeddedStore, RoomDirectory) {
    let options = Options { free_bytes_min: 0, ..Options::new(folder.path()) };
    let store = EmbeddedStore::open(options).expect("opened");
    let rooms = Arc::new(RoomTable::open(&store).await.expect("opened"));
    let directory = RoomDirectory::open(rooms, LIMITS).await.expect("read");
    (store, directory)
}

fn room(closed: bool, members_max: u64) -> RoomSettings {
    RoomSettings { name: "a room".into(), members_max, closed, created_at_ms: 7 }
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_and_accounts_are_found_again_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, directory) = open(&folder).await;
    directory.create("r", room(true, 3), &ids(&["bob", "ann", "ann"])).await.expect("made");
    directory.create("open", room(false, 5), &[]).await.expect("made");
    directory.create("gone", room(true, 0), &ids(&["ann"])).await.expect("made");
    assert_eq!(directory.add("r", &ids(&["cid", "ann"])).await.expect("added"), ["cid"]);
    assert_eq!(directory.take("r", &ids(&["bob", "dan"])).await.expect("taken"), ["bob"]);
    directory.remove("gone").await.expect("removed");
    store.close().await.expect("closed");
    let (_store, directory) = open(&folder).await;
    assert_eq!(directory.get("r"), Some((room(true, 3), 2)));
    assert_eq!(directory.get("gone"), None);
    assert_eq!(directory.accounts("r", "", 9), [Arc::from("ann"), Arc::from("cid")]);
    assert_eq!(directory.accounts("r", "ann", 9), [Arc::from("cid")]);
    assert_eq!(directory.rooms_of("ann"), [Arc::from("r")]);
    assert!(directory.rooms_of("bob").is_empty());
    assert!(directory.may_join("r", "ann") && !directory.may_join("r", "bob"));
    assert!(directory.may_join("open", "bob") && directory.may_join("nobody made it", "bob"));
    assert_eq!((directory.sessions_max("open"), directory.sessions_max("r")), (Some(5), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bound_refuses_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_store, directory) = open(&folder).await;
    let full = |result: Result<_, RoomError>| matches!(result, Err(RoomError::Full(_)));
    directory.create("r", room(true, 2), &ids(&["ann"])).await.expect("made");
    let taken = directory.create("r", room(false, 0), &[]).await;
    assert!(matches!(taken, Err(RoomError::AlreadyExists)));
    assert!(full(directory.add("r", &ids(&["bob", "cid"])).await.map(drop)), "its own limit");
    assert_eq!(directory.accounts("r", "", 9), [Arc::from("ann")]);
    let five = ids(&["1", "2", "3", "4", "5"]);
    assert!(full(directory.create("s", room(false, 0), &five).await), "the server's limit");
    directory.create("s", room(false, 0), &ids(&["ann", "2", "3", "4"])).await.expect("made");
    assert!(full(directory.create("t", room(false, 0), &ids(&["ann"])).await), "ann is in two");
    assert!(full(directory.create("t", room(false, 0), &ids(&["5", "6"])).await), "over all");
    directory.create("t", room(false, 0), &ids(&["5"])).await.expect("made");
    assert!(full(directory.create("u", room(false, 0), &[]).await), "three rooms");
    directory.remove("s").await.expect("removed");
    directory.create("u", room(false, 0), &ids(&["ann", "6"])).await.expect("there is room again");
    let unknown = directory.add("s", &ids(&["ann"])).await;
    assert!(matches!(unknown, Err(RoomError::NotFound)));
}
