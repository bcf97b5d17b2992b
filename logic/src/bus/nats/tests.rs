//! The bus on a real NATS server, which dies, stands still, and loses its streams.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream;
use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::{NatsBus, NatsBusSettings};
use crate::{
    bus::{Bus, BusError, NewRecord, Record, Start, conformance},
    testing::services::nats::NatsServer,
};

/// Longer than anything here takes on a machine that does much else.
const LONG: Duration = Duration::from_secs(120);

fn settings(server: &NatsServer) -> NatsBusSettings {
    NatsBusSettings {
        servers: vec![server.url()],
        attempt_timeout_ms: 1_000,
        patience_ms: 60_000,
        ..NatsBusSettings::default()
    }
}

async fn connect(settings: NatsBusSettings) -> NatsBus {
    NatsBus::connect(settings).await.expect("the settings can be used")
}

/// A hand on the server beside the bus.
async fn by_hand(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.expect("connected"))
}

fn record(topic: &str, key: &str, id: &str) -> NewRecord {
    let payload = Bytes::copy_from_slice(id.as_bytes());
    NewRecord { topic: topic.to_owned(), key: key.to_owned(), payload, id: id.to_owned() }
}

async fn all(bus: &NatsBus, topic: &str) -> Vec<Record> {
    let mut records = Vec::new();
    let mut from = 0;
    loop {
        let page = bus.read(topic, Start::Offset(from), 1_000, 1 << 20).await.expect("read");
        let Some(last) = page.records.last() else { return records };
        from = last.offset + 1;
        records.extend(page.records);
    }
}

fn text(record: &Record) -> String {
    String::from_utf8_lossy(&record.payload).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_of_a_bus() {
    let server = NatsServer::start();
    let fleets = AtomicU64::new(0);
    conformance::run(|| {
        // A prefix of its own is a NATS without topics.
        let prefix = format!("fleet-{}", fleets.fetch_add(1, Ordering::Relaxed));
        let deliveries_max = conformance::DELIVERIES_MAX;
        connect(NatsBusSettings { prefix, deliveries_max, ..settings(&server) })
    })
    .await;
}

/// Publishes numbered records of several keys until told to stop, each batch again until it is
/// taken, as the reports' queue does. Returns what was acknowledged: id and offset.
async fn publish_until(
    bus: Arc<NatsBus>,
    publisher: usize,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> Vec<(String, u64)> {
    const KEYS: usize = 5;
    let mut taken = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut waiting: Vec<NewRecord> = (0..40)
            .map(|_| {
                number += 1;
                let key = format!("{publisher}/{}", number % KEYS);
                record("t", &key, &format!("{publisher}-{number}"))
            })
            .collect();
        while !waiting.is_empty() {
            let outcomes = bus.publish_all(waiting.clone()).await;
            let mut left = Vec::new();
            for (record, outcome) in waiting.into_iter().zip(outcomes) {
                match outcome {
                    Ok(offset) => {
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        taken.push((record.id, offset));
                    }
                    Err(BusError::Unavailable(_) | BusError::Full(_)) => left.push(record),
                    Err(error) => panic!("never: {error}"),
                }
            }
            waiting = left;
        }
    }
    taken
}

/// Every acknowledged record is there, at its offset, once; each key's in the order published.
fn check(acknowledged: &[(String, u64)], kept: &[Record], wanted_all: bool) {
    let mut places: HashMap<String, u64> = HashMap::new();
    let mut newest: HashMap<String, u64> = HashMap::new();
    for record in kept {
        let id = text(record);
        let twice = places.insert(id.clone(), record.offset);
        assert_eq!(twice, None, "{id} is kept twice, also at {}", record.offset);
        let number: u64 = id.split('-').nth(1).and_then(|n| n.parse().ok()).expect("our id");
        let before = newest.insert(record.key.clone(), number);
        assert!(before < Some(number), "{id} of {} stands behind {before:?}", record.key);
    }
    for (id, offset) in acknowledged {
        match places.get(id) {
            Some(place) => assert_eq!(place, offset, "{id}"),
            None => assert!(!wanted_all, "{id} was acknowledged at {offset} and is not there"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_it_loses_no_acknowledged_record_and_doubles_none() {
    let seed = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = NatsServer::start();
    let short = NatsBusSettings { patience_ms: 1_500, ..settings(&server) };
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut publishing = Vec::new();
    for publisher in 0..3 {
        // Each as a logic of its own.
        let bus = Arc::new(connect(short.clone()).await);
        let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
        publishing.push(tokio::spawn(publish_until(bus, publisher, stop, acknowledged)));
    }
    for _ in 0..6 {
        let before = acknowledged.load(Ordering::Relaxed);
        let wanted = before + random.u64(50..500);
        let waited = timeout(LONG, async {
            while acknowledged.load(Ordering::Relaxed) < wanted {
                sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("it goes on after each kill");
        server.kill();
        sleep(Duration::from_millis(random.u64(0..2_500))).await;
        server.start_again();
    }
    stop.store(true, Ordering::Relaxed);
    let mut taken = Vec::new();
    for publisher in publishing {
        taken.extend(timeout(LONG, publisher).await.expect("it ends").expect("no panic"));
    }
    let reader = connect(settings(&server)).await;
    let kept = all(&reader, "t").await;
    check(&taken, &kept, true);
    assert_eq!(kept.len(), taken.len(), "nothing is kept that was not acknowledged in the end");
    let offsets: Vec<u64> = kept.iter().map(|record| record.offset).collect();
    // They begin beyond 1 where two publishers found no stream at the same moment: see `topics`.
    let gap = offsets.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert_eq!(gap, None, "offsets have no gap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_deleted_under_load_is_made_again_and_offsets_never_come_twice() {
    let server = NatsServer::start();
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut publishing = Vec::new();
    for publisher in 0..2 {
        let bus = Arc::new(connect(settings(&server)).await);
        let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
        publishing.push(tokio::spawn(publish_until(bus, publisher, stop, acknowledged)));
    }
    let bus = connect(settings(&server)).await;
    let hand = by_hand(&server).await;
    let reach = async |count: u64| {
        let wanted = acknowledged.load(Ordering::Relaxed) + count;
        let waited = timeout(LONG, async {
            while acknowledged.load(Ordering::Relaxed) < wanted {
                sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("it goes on");
    };
    reach(300).await;
    let before = bus.read("t", Start::Offset(0), 1, 1).await.expect("read");
    let committed = bus.commit("t", "slow", before.end_offset - 1, false).await.expect("committed");
    let mut reader = bus.subscribe("t", "slow").await.expect("subscribed");
    let curious = async_nats::connect(server.url()).await.expect("connected");
    let mut listening = None;
    for deletion in 0..3 {
        if deletion == 2 {
            // Who listens to everything might answer, NATS thinks, and does not say that no stream does.
            listening = Some(curious.subscribe(">").await.expect("listens"));
            curious.flush().await.expect("NATS has it");
        }
        hand.delete_stream("millrace_topic_t").await.expect("deleted");
        reach(300).await;
    }
    drop(listening);
    stop.store(true, Ordering::Relaxed);
    let mut taken = Vec::new();
    for publisher in publishing {
        taken.extend(timeout(LONG, publisher).await.expect("it ends").expect("no panic"));
    }
    let mut offsets: Vec<u64> = taken.iter().map(|(_, offset)| *offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets.len(), taken.len(), "no offset was given twice");
    let kept = all(&bus, "t").await;
    check(&taken, &kept, false);
    let page = bus.read("t", Start::Offset(committed), 1, 1).await.expect("read");
    assert!(page.first_offset > committed + 1, "who reads on sees that there is a gap");
    // What was acknowledged in the last stream is all there, and whoever reads on gets it.
    let last: Vec<_> = taken.iter().filter(|(_, at)| *at >= page.first_offset).collect();
    assert!(last.len() >= 200, "{}", last.len());
    assert_eq!(kept.len(), last.len());
    let mut read = Vec::new();
    while read.last() != kept.last().map(|record| &record.offset) {
        let next = timeout(LONG, reader.next_some(100)).await.expect("it goes on").expect("read");
        read.extend(next.into_iter().map(|record| record.offset));
    }
    assert!(read.windows(2).all(|two| two[0] < two[1]), "in order");
    let expected: Vec<u64> = kept.iter().map(|record| record.offset).collect();
    assert_eq!(read[read.len() - expected.len()..], expected);
}

#[tokio::test]
async fn committed_offsets_outlive_the_topics_stream_and_records_the_stream_of_rows() {
    let server = NatsServer::start();
    let bus = connect(settings(&server)).await;
    let hand = by_hand(&server).await;
    for id in ["a", "b", "c"] {
        bus.publish("t", "k", Bytes::from(id)).await.expect("taken");
    }
    assert_eq!(bus.commit("t", "c", 2, false).await, Ok(2));
    hand.delete_stream("millrace_topic_t").await.expect("deleted");
    let offset = bus.publish("t", "k", Bytes::from("d")).await.expect("taken");
    assert!(offset > 3, "{offset}");
    let mut consumer = bus.subscribe("t", "c").await.expect("subscribed");
    let next = timeout(LONG, consumer.next()).await.expect("at once").expect("a record");
    assert_eq!((next.offset, text(&next)), (offset, "d".to_owned()));
    hand.delete_stream("millrace_state").await.expect("deleted");
    consumer.acknowledge(offset).await.expect("the row is written again");
    assert_eq!(bus.topics().await.expect("listed")[0].consumers, [("c".to_owned(), offset)]);
    hand.delete_stream("millrace_state").await.expect("deleted");
    let mut again = bus.subscribe("t", "c").await.expect("subscribed");
    let next = timeout(LONG, again.next()).await.expect("at once").expect("a record");
    assert_eq!(next.offset, offset, "without its row a consumer begins at the oldest");
    assert_eq!(bus.counts().made_again, 1);
}

fn is_away<T>(outcome: &Result<T, BusError>) -> bool {
    matches!(outcome, Err(BusError::Unavailable(_)))
}

/// What a call that is tried again until NATS is there returns.
async fn going_on<T>(call: impl AsyncFn() -> Result<T, BusError>) -> T {
    let trying = async {
        loop {
            let outcome = call().await;
            if !is_away(&outcome) {
                return outcome;
            }
        }
    };
    timeout(LONG, trying).await.expect("in time").expect("done")
}

#[tokio::test]
async fn while_nats_is_away_calls_are_refused_within_their_patience_and_go_on_after_it() {
    let mut server = NatsServer::start();
    let later = connect(settings(&server)).await;
    assert_eq!(later.publish_all(vec![record("t", "k", "1")]).await, [Ok(1)]);
    let bus = connect(NatsBusSettings { patience_ms: 700, ..settings(&server) }).await;
    let mut consumer = going_on(async || bus.subscribe("t", "c").await).await;
    let first = timeout(LONG, consumer.next()).await.expect("bounded");
    // A machine that does much else may try the patience of this one.
    assert!(first.as_ref().is_ok_and(|first| text(first) == "1") || is_away(&first), "{first:?}");
    let refused_all = async |what: &str| {
        let began = Instant::now();
        let calls = vec![record("t", "k", "2"), record("t", "k", "3"), record("t", "j", "4")];
        let outcomes = timeout(LONG, bus.publish_all(calls)).await.expect("bounded");
        let refused = |outcome: &Result<u64, _>| matches!(outcome, Err(BusError::Unavailable(_)));
        assert!(outcomes.iter().all(refused), "{what}: {outcomes:?}");
        let read = timeout(LONG, bus.read("t", Start::Offset(1), 1, 1)).await.expect("bounded");
        assert!(matches!(read, Err(BusError::Unavailable(_))), "{what}");
        let commit = timeout(LONG, bus.commit("t", "c", 1, false)).await.expect("bounded");
        assert!(matches!(commit, Err(BusError::Unavailable(_))), "{what}");
        let topics = timeout(LONG, bus.topics()).await.expect("bounded");
        assert!(matches!(topics, Err(BusError::Unavailable(_))), "{what}");
        began.elapsed()
    };
    server.kill();
    refused_all("killed").await;
    let next = timeout(LONG, consumer.next()).await.expect("bounded");
    assert!(matches!(next, Err(BusError::Unavailable(_))), "{next:?}");
    server.start_again();
    let stored = later.publish_all(vec![record("t", "k", "2"), record("t", "k", "3")]).await;
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    // The same subscription goes on where it was.
    let mut read = Vec::from_iter(first.ok().map(|first| text(&first)));
    while read.len() < 3 {
        match timeout(LONG, consumer.next()).await.expect("bounded") {
            Ok(record) => read.push(text(&record)),
            Err(BusError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(read, ["1", "2", "3"]);
    // Standing still, it keeps its connections and answers nothing.
    server.pause();
    refused_all("paused").await;
    server.go_on();
    let again = vec![record("t", "k", "2"), record("t", "k", "3"), record("t", "j", "4")];
    let stored = later.publish_all(again).await;
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    let kept: Vec<String> = all(&later, "t").await.iter().map(text).collect();
    assert_eq!(kept.iter().filter(|id| *id == "2").count(), 1, "{kept:?}");
    assert_eq!(
        kept.len(),
        4,
        "what was refused while it stood still, and sent again, is kept once: {kept:?}"
    );
    assert!(bus.counts().refused > 0);
}

#[tokio::test]
async fn it_starts_while_nats_is_away_and_works_once_it_is_there() {
    let mut server = NatsServer::start();
    server.kill();
    let bus = connect(settings(&server)).await;
    let publishing = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish("t", "k", Bytes::from("x")).await }
    });
    sleep(Duration::from_millis(200)).await;
    server.start_again();
    let published = timeout(LONG, publishing).await.expect("bounded").expect("no panic");
    assert_eq!(published, Ok(1));
}

#[tokio::test]
async fn of_two_processes_the_newer_subscription_goes_on() {
    let server = NatsServer::start();
    let (one, other) = (connect(settings(&server)).await, connect(settings(&server)).await);
    for id in ["1", "2", "3"] {
        one.publish("t", "k", Bytes::from(id)).await.expect("taken");
    }
    let mut old = one.subscribe("t", "c").await.expect("subscribed");
    assert_eq!(old.next().await.expect("a record").offset, 1);
    old.acknowledge(1).await.expect("acknowledged");
    let mut new = other.subscribe("t", "c").await.expect("subscribed");
    assert_eq!(new.next().await.expect("a record").offset, 2);
    assert_eq!(old.acknowledge(1).await, Err(BusError::Superseded));
    assert_eq!(old.next().await, Err(BusError::Superseded));
    new.acknowledge(2).await.expect("acknowledged");
    assert_eq!(one.commit("t", "c", 0, false).await, Ok(2));
}

#[tokio::test]
async fn one_topic_or_consumer_too_many_and_a_record_too_large_are_refused_for_good() {
    let server = NatsServer::start();
    let settings =
        NatsBusSettings { topics_max: 2, consumers_per_topic_max: 1, ..settings(&server) };
    let bus = connect(settings).await;
    let publish =
        async |topic: &str, bytes| bus.publish(topic, "", Bytes::from(vec![7; bytes])).await;
    assert_eq!(publish("a", 1).await, Ok(1));
    assert_eq!(publish("b.c", 1).await, Ok(1));
    assert!(matches!(publish("d", 1).await, Err(BusError::TooMany(_))));
    assert_eq!(publish("a", 1).await, Ok(2));
    assert_eq!(bus.commit("a", "one", 1, false).await, Ok(1));
    assert!(matches!(bus.commit("a", "two", 1, false).await, Err(BusError::TooMany(_))));
    assert!(matches!(bus.subscribe("a", "two").await.err(), Some(BusError::TooMany(_))));
    assert_eq!(bus.commit("a", "one", 2, false).await, Ok(2));
    assert!(matches!(publish("a", 2 << 20).await, Err(BusError::TooLarge(_))));
    // It holds up nothing behind it.
    let mut large = record("a", "k", "large");
    large.payload = Bytes::from(vec![7; 2 << 20]);
    let outcomes = bus.publish_all(vec![large, record("a", "k", "small")]).await;
    assert!(matches!(outcomes[..], [Err(BusError::TooLarge(_)), Ok(3)]), "{outcomes:?}");
    let topics = bus.topics().await.expect("listed");
    let names: Vec<&str> = topics.iter().map(|topic| topic.topic.as_str()).collect();
    assert_eq!(names, ["a", "b.c"]);
}

#[tokio::test]
async fn a_topic_keeps_its_newest_records_and_takes_new_limits() {
    let server = NatsServer::start();
    let bus = connect(NatsBusSettings { topic_bytes_max: 20_000, ..settings(&server) }).await;
    for _ in 0..100 {
        bus.publish("t", "k", Bytes::from(vec![7; 1_000])).await.expect("taken");
    }
    let page = bus.read("t", Start::Offset(0), 1_000, usize::MAX).await.expect("read");
    let kept = page.records.len() as u64;
    assert!((5..20).contains(&kept), "{kept}");
    assert_eq!((page.first_offset, page.end_offset), (101 - kept, 101));
    let mut consumer = bus.subscribe("t", "c").await.expect("subscribed");
    assert_eq!(consumer.next().await.expect("a record").offset, 101 - kept);
    let wider = connect(NatsBusSettings { topic_bytes_max: 50_000, ..settings(&server) }).await;
    for _ in 0..100 {
        wider.publish("t", "k", Bytes::from(vec![7; 1_000])).await.expect("taken");
    }
    let page = wider.read("t", Start::Offset(0), 1_000, usize::MAX).await.expect("read");
    assert!(page.records.len() as u64 > kept, "{}", page.records.len());
    let short = connect(NatsBusSettings { retention_ms: 200, ..settings(&server) }).await;
    short.publish("t", "k", Bytes::new()).await.expect("taken");
    let gone = timeout(LONG, async {
        while short.topics().await.expect("listed")[0].first_offset < 202 {
            sleep(Duration::from_millis(50)).await;
        }
    });
    gone.await.expect("what is older than the retention goes");
    let page = short.read("t", Start::Offset(0), 10, 1_000).await.expect("read");
    assert_eq!((page.first_offset, page.end_offset, page.records.len()), (202, 202, 0));
}

#[tokio::test]
async fn keys_of_any_characters_come_back_and_nobody_smuggles_a_header() {
    let server = NatsServer::start();
    let bus = connect(settings(&server)).await;
    let keys = ["zoë", "a b ", "100%", "x\r\nNats-Msg-Id: same\r\n", "y\r\nNats-Msg-Id: same\r\n"];
    for (place, key) in (1..).zip(keys) {
        assert_eq!(bus.publish("t", key, Bytes::new()).await, Ok(place));
    }
    let read: Vec<String> = all(&bus, "t").await.into_iter().map(|record| record.key).collect();
    assert_eq!(read, keys);
}

/// What a report service would see with the tools of NATS alone.
#[tokio::test]
async fn a_business_service_reads_a_topic_with_a_durable_consumer_of_nats() {
    use futures::StreamExt as _;
    use jetstream::consumer::{AckPolicy, pull};

    let server = NatsServer::start();
    let bus = connect(settings(&server)).await;
    for id in ["1", "2", "3"] {
        bus.publish("clicks.eu", "alice", Bytes::from(id)).await.expect("taken");
    }
    let stream = by_hand(&server).await.get_stream("millrace_topic_clicks=eu").await;
    let config = pull::Config {
        durable_name: Some("counting".to_owned()),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    };
    let consumer = stream.expect("there").get_or_create_consumer("counting", config).await;
    let consumer = consumer.expect("made");
    let mut messages = consumer.fetch().max_messages(3).messages().await.expect("asked");
    let mut seen = Vec::new();
    while let Some(message) = messages.next().await {
        let message = message.expect("a message");
        let headers = message.headers.as_ref().expect("there are");
        assert_eq!(headers.get("Millrace-Key").map(|key| key.as_str()), Some("alice"));
        seen.push(String::from_utf8_lossy(&message.payload).into_owned());
        message.double_ack().await.expect("acknowledged");
    }
    assert_eq!(seen, ["1", "2", "3"]);
}
