//! What every bus must do, whatever it stands on. [`run`] is called by the tests of each
//! implementation; `make` gives a bus without topics each time, which puts a record aside after
//! [`DELIVERIES_MAX`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    Bus, BusError, DEAD_LETTERS_TOPIC, DeadLetter, NewRecord, Record, Start, Subscription,
};

/// `deliveries_max` of every bus under test.
pub(crate) const DELIVERIES_MAX: u32 = 3;

/// The whole suite.
pub(crate) async fn run<B: Bus, F: Future<Output = B>>(make: impl Fn() -> F) {
    records_come_in_order_and_whole(make().await).await;
    what_is_not_acknowledged_comes_again(make().await).await;
    an_acknowledgement_only_moves_forward(make().await).await;
    each_group_reads_everything(make().await).await;
    topics_are_apart(make().await).await;
    a_newer_subscription_takes_over(Arc::new(make().await)).await;
    a_reader_waits_for_the_next_record(Arc::new(make().await)).await;
    bad_names_are_refused(make().await).await;
    anybody_may_read_again_from_an_offset_or_a_time(make().await).await;
    a_commit_moves_back_only_on_request(make().await).await;
    records_published_together_keep_their_order(make().await).await;
    concurrent_publishers_keep_the_order_of_each_key(Arc::new(make().await)).await;
    a_record_published_again_under_its_id_is_taken_once(make().await).await;
    a_record_that_no_consumer_gets_beyond_is_put_among_the_dead_letters(make().await).await;
    a_consumer_that_gets_on_is_given_everything_however_often_it_subscribes(make().await).await;
}

async fn next(subscription: &mut Box<dyn Subscription>) -> Record {
    let next = timeout(Duration::from_secs(20), subscription.next()).await;
    next.expect("a record within 20 seconds").expect("the subscription lives")
}

async fn publish<B: Bus>(bus: &B, topic: &str, payloads: impl IntoIterator<Item = &'static str>) {
    for payload in payloads {
        bus.publish(topic, "key", Bytes::from_static(payload.as_bytes())).await.expect("taken");
    }
}

async fn records_come_in_order_and_whole<B: Bus>(bus: B) {
    let payloads = [&b""[..], b"x", &[0, 255, 10, 13], &[7; 60_000]].map(Bytes::from_static);
    for (index, payload) in payloads.iter().enumerate() {
        let offset = bus.publish("t", &format!("key {index}"), payload.clone()).await;
        assert_eq!(offset, Ok(index as u64 + 1));
    }
    let mut group = bus.subscribe("t", "g").await.expect("subscribed");
    for (index, payload) in payloads.into_iter().enumerate() {
        let key = format!("key {index}");
        let record = next(&mut group).await;
        let time_ms = record.time_ms;
        assert!(time_ms > 0);
        assert_eq!(record, Record { offset: index as u64 + 1, time_ms, key, payload });
    }
}

async fn what_is_not_acknowledged_comes_again<B: Bus>(bus: B) {
    publish(&bus, "t", ["1", "2", "3", "4"]).await;
    let mut group = bus.subscribe("t", "g").await.expect("subscribed");
    for offset in 1..=3 {
        assert_eq!(next(&mut group).await.offset, offset);
    }
    group.acknowledge(2).await.expect("acknowledged");
    drop(group);
    let mut group = bus.subscribe("t", "g").await.expect("subscribed");
    assert_eq!(next(&mut group).await.offset, 3);
    assert_eq!(next(&mut group).await.offset, 4);
}

async fn an_acknowledgement_only_moves_forward<B: Bus>(bus: B) {
    publish(&bus, "t", ["1", "2", "3"]).await;
    let mut group = bus.subscribe("t", "g").await.expect("subscribed");
    assert_eq!(next(&mut group).await.offset, 1);
    assert_eq!(next(&mut group).await.offset, 2);
    group.acknowledge(2).await.expect("acknowledged");
    group.acknowledge(1).await.expect("an older one changes nothing");
    group.acknowledge(u64::MAX).await.expect("it counts as the last one read");
    drop(group);
    let mut group = bus.subscribe("t", "g").await.expect("subscribed");
    assert_eq!(next(&mut group).await.offset, 3);
}

async fn each_group_reads_everything<B: Bus>(bus: B) {
    publish(&bus, "t", ["1", "2"]).await;
    let mut first = bus.subscribe("t", "first").await.expect("subscribed");
    let mut second = bus.subscribe("t", "second").await.expect("subscribed");
    for group in [&mut first, &mut second] {
        assert_eq!(next(group).await.offset, 1);
        assert_eq!(next(group).await.offset, 2);
    }
    first.acknowledge(2).await.expect("acknowledged");
    drop(second);
    let mut second = bus.subscribe("t", "second").await.expect("subscribed");
    assert_eq!(next(&mut second).await.offset, 1, "the first group's progress is its own");
}

async fn topics_are_apart<B: Bus>(bus: B) {
    publish(&bus, "a", ["of a"]).await;
    publish(&bus, "b", ["of b"]).await;
    let mut group = bus.subscribe("b", "g").await.expect("subscribed");
    assert_eq!(next(&mut group).await.payload, "of b");
    let more = timeout(Duration::from_millis(20), group.next()).await;
    assert!(more.is_err(), "there is nothing else: {more:?}");
}

async fn a_newer_subscription_takes_over<B: Bus>(bus: Arc<B>) {
    let mut old = bus.subscribe("t", "g").await.expect("subscribed");
    let waiting = tokio::spawn(async move { (old.next().await, old.acknowledge(1).await) });
    tokio::task::yield_now().await;
    let mut new = bus.subscribe("t", "g").await.expect("subscribed");
    publish(&*bus, "t", ["1"]).await;
    let over = timeout(Duration::from_secs(20), waiting).await.expect("it ends").expect("no panic");
    assert_eq!(over, (Err(BusError::Superseded), Err(BusError::Superseded)));
    assert_eq!(next(&mut new).await.offset, 1);
}

async fn a_reader_waits_for_the_next_record<B: Bus>(bus: Arc<B>) {
    let mut group = bus.subscribe("t", "g").await.expect("subscribed");
    for offset in 1..=100 {
        let publisher = Arc::clone(&bus);
        let publishing = tokio::spawn(async move { publish(&*publisher, "t", ["x"]).await });
        assert_eq!(next(&mut group).await.offset, offset);
        publishing.await.expect("published");
    }
    // A wait that is given up loses nothing.
    let waited = timeout(Duration::from_millis(5), group.next()).await;
    assert!(waited.is_err());
    publish(&*bus, "t", ["last"]).await;
    assert_eq!(next(&mut group).await.payload, "last");
}

async fn bad_names_are_refused<B: Bus>(bus: B) {
    for name in ["", " ", "a b", "a/b", "a*", "ä", "a\n", &"x".repeat(129)] {
        let published = bus.publish(name, "key", Bytes::new()).await;
        assert!(matches!(published, Err(BusError::BadName(_))), "{name:?}");
        for (topic, group) in [(name, "g"), ("t", name)] {
            let subscribed = bus.subscribe(topic, group).await.err();
            assert!(matches!(subscribed, Some(BusError::BadName(_))), "{name:?}");
        }
    }
    let longest = "x".repeat(128);
    assert_eq!(bus.publish(&longest, "", Bytes::new()).await, Ok(1));
}

async fn anybody_may_read_again_from_an_offset_or_a_time<B: Bus>(bus: B) {
    let from_start = bus.read("t", Start::Offset(0), 10, 1_000).await;
    assert_eq!(from_start, Err(BusError::NotFound));
    publish(&bus, "t", ["1", "2", "3"]).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    publish(&bus, "t", ["4", "5"]).await;
    let payloads = |page: super::Page| -> Vec<String> {
        page.records.iter().map(|r| String::from_utf8_lossy(&r.payload).into_owned()).collect()
    };
    let read = async |from, records_max, bytes_max| {
        bus.read("t", from, records_max, bytes_max).await.expect("read")
    };
    let all = read(Start::Offset(0), 10, 1_000).await;
    assert_eq!((all.first_offset, all.end_offset), (1, 6));
    let since = all.records[3].time_ms;
    assert!(since > all.records[2].time_ms);
    assert_eq!(payloads(all), ["1", "2", "3", "4", "5"]);
    assert_eq!(payloads(read(Start::Offset(2), 2, 1_000).await), ["2", "3"]);
    assert_eq!(payloads(read(Start::Offset(3), 10, 0).await), ["3"], "one at least");
    assert_eq!(payloads(read(Start::Offset(6), 10, 1_000).await), [""; 0]);
    assert_eq!(payloads(read(Start::TimeMs(since), 10, 1_000).await), ["4", "5"]);
    assert_eq!(payloads(read(Start::TimeMs(0), 10, 1_000).await).len(), 5);
    assert_eq!(payloads(read(Start::TimeMs(i64::MAX), 10, 1_000).await), [""; 0]);
}

async fn a_commit_moves_back_only_on_request<B: Bus>(bus: B) {
    publish(&bus, "t", ["1", "2", "3"]).await;
    assert_eq!(bus.commit("t", "c", 2, false).await, Ok(2));
    assert_eq!(bus.commit("t", "c", 1, false).await, Ok(2));
    assert_eq!(bus.commit("t", "c", 99, false).await, Ok(3), "the newest record is the last");
    assert_eq!(bus.commit("t", "c", 1, true).await, Ok(1));
    let mut consumer = bus.subscribe("t", "c").await.expect("subscribed");
    assert_eq!(next(&mut consumer).await.offset, 2);
    let topics = bus.topics().await.expect("listed");
    assert_eq!(topics.len(), 1);
    assert_eq!((topics[0].first_offset, topics[0].end_offset), (1, 4));
    assert_eq!(topics[0].consumers, [("c".to_owned(), 1)]);
}

async fn records_published_together_keep_their_order<B: Bus>(bus: B) {
    let record = |topic: &str, payload: &'static str| NewRecord {
        topic: topic.to_owned(),
        key: String::new(),
        payload: Bytes::from_static(payload.as_bytes()),
        id: String::new(),
    };
    let records =
        vec![record("a", "1"), record("b", "2"), record("no name", "3"), record("a", "4")];
    let outcomes = bus.publish_all(records).await;
    assert!(matches!(outcomes[2], Err(BusError::BadName(_))));
    assert_eq!((&outcomes[0], &outcomes[1], &outcomes[3]), (&Ok(1), &Ok(1), &Ok(2)));
    let page = bus.read("a", Start::Offset(1), 10, 1_000).await.expect("read");
    assert_eq!(page.records.iter().map(|r| &r.payload[..]).collect::<Vec<_>>(), [b"1", b"4"]);
}

async fn concurrent_publishers_keep_the_order_of_each_key<B: Bus>(bus: Arc<B>) {
    const PUBLISHERS: usize = 8;
    const RECORDS: usize = 50;
    let publishing = (0..PUBLISHERS).map(|publisher| {
        let bus = Arc::clone(&bus);
        tokio::spawn(async move {
            for record in 0..RECORDS {
                let payload = Bytes::from(record.to_string());
                bus.publish("t", &publisher.to_string(), payload).await.expect("taken");
            }
        })
    });
    let publishing: Vec<_> = publishing.collect();
    let mut group = bus.subscribe("t", "g").await.expect("subscribed");
    let mut expected = [0; PUBLISHERS];
    for offset in 1..=PUBLISHERS * RECORDS {
        let record = next(&mut group).await;
        assert_eq!(record.offset, offset as u64);
        let publisher: usize = record.key.parse().expect("a number");
        assert_eq!(record.payload, expected[publisher].to_string());
        expected[publisher] += 1;
    }
    for publisher in publishing {
        publisher.await.expect("no panic");
    }
}

async fn a_record_published_again_under_its_id_is_taken_once<B: Bus>(bus: B) {
    let record = |topic: &str, id: &str| NewRecord {
        topic: topic.to_owned(),
        key: "k".to_owned(),
        payload: Bytes::copy_from_slice(id.as_bytes()),
        id: id.to_owned(),
    };
    let first = bus.publish_all(vec![record("t", "a"), record("t", "b")]).await;
    assert_eq!(first, [Ok(1), Ok(2)]);
    // As after an answer that was lost: the same once more, and what came after it.
    let again = bus.publish_all(vec![record("t", "a"), record("t", "b"), record("t", "c")]).await;
    assert_eq!(again, [Ok(1), Ok(2), Ok(3)]);
    let twice_at_once = bus.publish_all(vec![record("t", "d"), record("t", "d")]).await;
    assert_eq!(twice_at_once, [Ok(4), Ok(4)]);
    assert_eq!(bus.publish_all(vec![record("u", "a")]).await, [Ok(1)], "of another topic");
    let without = bus.publish_all(vec![record("t", ""), record("t", "")]).await;
    assert_eq!(without, [Ok(5), Ok(6)], "records without an id are all taken");
    let page = bus.read("t", Start::Offset(1), 10, 1_000).await.expect("read");
    let ids: Vec<_> = page.records.iter().map(|r| &r.payload[..]).collect();
    assert_eq!(ids, [&b"a"[..], b"b", b"c", b"d", b"", b""]);
}

async fn a_record_that_no_consumer_gets_beyond_is_put_among_the_dead_letters<B: Bus>(bus: B) {
    publish(&bus, "t", ["1", "poison", "3"]).await;
    let mut group = bus.subscribe("t", "g").await.expect("subscribed");
    assert_eq!(next(&mut group).await.offset, 1);
    group.acknowledge(1).await.expect("acknowledged");
    drop(group);
    for delivery in 1..=DELIVERIES_MAX {
        let mut group = bus.subscribe("t", "g").await.expect("subscribed");
        assert_eq!(next(&mut group).await.payload, "poison", "delivery {delivery}");
        assert_eq!(next(&mut group).await.offset, 3);
    }
    let nothing = bus.read(DEAD_LETTERS_TOPIC, Start::Offset(1), 10, 1_000).await;
    assert_eq!(nothing, Err(BusError::NotFound), "not before it was tried often enough");
    let mut group = bus.subscribe("t", "g").await.expect("subscribed");
    assert_eq!(next(&mut group).await.offset, 3, "it does not hold up what is behind it");
    drop(group);
    assert_eq!(bus.commit("t", "g", 0, false).await, Ok(2), "it is passed over for good");
    let mut other = bus.subscribe("t", "other").await.expect("subscribed");
    for offset in 1..=3 {
        assert_eq!(next(&mut other).await.offset, offset, "the topic keeps it");
    }
    let page = bus.read(DEAD_LETTERS_TOPIC, Start::Offset(1), 10, 1_000).await.expect("read");
    let letters: Vec<DeadLetter> = page
        .records
        .iter()
        .map(|record| serde_json::from_slice(&record.payload).expect("a dead letter"))
        .collect();
    let expected = DeadLetter {
        topic: "t".to_owned(),
        consumer: "g".to_owned(),
        offset: 2,
        time_ms: letters[0].time_ms,
        key: "key".to_owned(),
        deliveries: DELIVERIES_MAX,
        payload_base64: Some("cG9pc29u".to_owned()),
    };
    assert_eq!(letters, [expected]);
    assert_eq!(page.records[0].key, "key");
}

async fn a_consumer_that_gets_on_is_given_everything_however_often_it_subscribes<B: Bus>(bus: B) {
    publish(&bus, "t", ["1", "2", "3", "4", "5", "6", "7", "8"]).await;
    for offset in 1..=8 {
        let mut group = bus.subscribe("t", "g").await.expect("subscribed");
        assert_eq!(next(&mut group).await.offset, offset);
        group.acknowledge(offset).await.expect("acknowledged");
    }
    assert_eq!(bus.topics().await.expect("listed").len(), 1, "there is no dead letter");
}
