//! What only the log on a disk does: bounds, age, restarts, a full disk.

use std::sync::Arc;

use bytes::Bytes;

use super::{EmbeddedBus, EmbeddedBusSettings, now_ms};
use crate::{
    bus::{Bus, BusError, NewRecord, Start, conformance},
    storage::{
        Store as _,
        embedded::{EmbeddedStore, Options},
    },
};

struct Opened {
    bus: EmbeddedBus,
    store: EmbeddedStore,
    folder: Arc<tempfile::TempDir>,
}

fn open(folder: &Arc<tempfile::TempDir>, settings: EmbeddedBusSettings) -> Opened {
    let options = Options { free_bytes_min: 0, ..Options::new(folder.path()) };
    let store = EmbeddedStore::open(options).expect("opened");
    let bus = EmbeddedBus::open(&store, settings).expect("opened");
    Opened { bus, store, folder: folder.clone() }
}

fn new(settings: EmbeddedBusSettings) -> Opened {
    open(&Arc::new(tempfile::tempdir().expect("a folder")), settings)
}

async fn publish(bus: &EmbeddedBus, topic: &str, bytes: usize) -> Result<u64, BusError> {
    bus.publish(topic, "", Bytes::from(vec![7; bytes])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_of_a_bus() {
    conformance::run(|| async {
        let deliveries_max = conformance::DELIVERIES_MAX;
        let settings = EmbeddedBusSettings { deliveries_max, ..EmbeddedBusSettings::default() };
        let Opened { bus, store, folder } = new(settings);
        // The suite knows the bus alone; the process of the test ends soon.
        std::mem::forget((store, folder));
        bus
    })
    .await;
}

#[tokio::test]
async fn records_and_committed_offsets_outlive_the_process() {
    let Opened { bus, store, folder } = new(EmbeddedBusSettings::default());
    for _ in 0..5 {
        publish(&bus, "t", 10).await.expect("taken");
    }
    bus.commit("t", "c", 3, false).await.expect("committed");
    bus.close().await.expect("closed");
    store.close().await.expect("closed");
    let Opened { bus, store: _store, folder: _folder } =
        open(&folder, EmbeddedBusSettings::default());
    let mut consumer = bus.subscribe("t", "c").await.expect("subscribed");
    assert_eq!(consumer.next().await.expect("a record").offset, 4);
    assert_eq!(consumer.next().await.expect("a record").offset, 5);
    assert_eq!(publish(&bus, "t", 10).await, Ok(6));
    assert_eq!(consumer.next().await.expect("a record").offset, 6);
}

#[tokio::test]
async fn a_topic_keeps_its_newest_records_up_to_its_size() {
    let settings = EmbeddedBusSettings { topic_bytes_max: 1_000, ..Default::default() };
    let Opened { bus, store: _store, folder: _folder } = new(settings);
    for offset in 1..=20 {
        assert_eq!(publish(&bus, "t", 100).await, Ok(offset));
    }
    publish(&bus, "other", 100).await.expect("taken");
    let page = bus.read("t", Start::Offset(0), 100, usize::MAX).await.expect("read");
    let kept = page.records.len() as u64;
    assert!((5..10).contains(&kept), "{kept}");
    assert_eq!(page.first_offset, 21 - kept);
    assert_eq!(page.records.last().map(|r| r.offset), Some(20));
    assert_eq!(bus.dropped(), 20 - kept);
    assert_eq!(publish(&bus, "t", 5_000).await, Ok(21), "the newest stays, however large");
    let page = bus.read("t", Start::Offset(0), 100, usize::MAX).await.expect("read");
    assert_eq!((page.first_offset, page.records.len()), (21, 1));
}

#[tokio::test]
async fn what_is_older_than_the_retention_goes_and_offsets_go_on() {
    let settings = EmbeddedBusSettings { retention_ms: 1_000, ..Default::default() };
    let Opened { bus, store: _store, folder: _folder } = new(settings);
    let record = NewRecord {
        topic: "t".into(),
        key: String::new(),
        payload: Bytes::new(),
        id: String::new(),
    };
    let outcomes = bus.publish_all(vec![record; 2_500]).await;
    assert_eq!(outcomes.last(), Some(&Ok(2_500)));
    assert_eq!(bus.expire(now_ms() - 60_000).await, Ok(0));
    assert_eq!(bus.expire(now_ms() + 60_000).await, Ok(2_500));
    assert_eq!(bus.topics().await.expect("listed")[0].bytes, 0);
    assert_eq!(publish(&bus, "t", 1).await, Ok(2_501));
    let page = bus.read("t", Start::Offset(1), 10, 1_000).await.expect("read");
    assert_eq!((page.first_offset, page.records[0].offset), (2_501, 2_501));
}

#[tokio::test]
async fn one_topic_or_consumer_too_many_is_refused_and_the_others_go_on() {
    let settings = EmbeddedBusSettings {
        topics_max: 2,
        consumers_per_topic_max: 1,
        ..EmbeddedBusSettings::default()
    };
    let Opened { bus, store: _store, folder: _folder } = new(settings);
    assert_eq!(publish(&bus, "a", 1).await, Ok(1));
    assert_eq!(publish(&bus, "b", 1).await, Ok(1));
    assert!(matches!(publish(&bus, "c", 1).await, Err(BusError::TooMany(_))));
    assert_eq!(publish(&bus, "a", 1).await, Ok(2));
    assert_eq!(bus.commit("a", "one", 1, false).await, Ok(1));
    assert!(matches!(bus.commit("a", "two", 1, false).await, Err(BusError::TooMany(_))));
    assert!(matches!(bus.subscribe("c", "one").await.err(), Some(BusError::TooMany(_))));
    assert_eq!(bus.commit("a", "one", 2, false).await, Ok(2));
}

#[tokio::test]
async fn a_full_disk_refuses_records_and_forgets_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options { free_bytes_min: u64::MAX, ..Options::new(folder.path()) };
    let store = EmbeddedStore::open(options).expect("opened");
    let bus = EmbeddedBus::open(&store, EmbeddedBusSettings::default()).expect("opened");
    assert!(matches!(publish(&bus, "t", 1).await, Err(BusError::Full(_))));
    assert_eq!(bus.topics().await.expect("listed"), []);
}
