//! Events over a real NATS server, which dies and stands still.

use tokio::time::sleep;

use super::*;
use crate::testing::services::nats::NatsServer;

/// Longer than anything here takes on a machine that does much else.
const LONG: Duration = Duration::from_secs(120);

fn nats(server: &NatsServer, prefix: &str) -> NatsBusSettings {
    NatsBusSettings {
        servers: vec![server.url()],
        prefix: prefix.to_owned(),
        ..NatsBusSettings::default()
    }
}

async fn node(server: &NatsServer, prefix: &str, node: &str) -> NatsEvents {
    // Nobody is taken for silent because the machine is busy.
    let settings = NatsEventsSettings { pulse_ms: 100, silence_ms: 60_000, ..of(node) };
    NatsEvents::connect(&nats(server, prefix), settings).await.expect("the settings can be used")
}

fn of(node: &str) -> NatsEventsSettings {
    NatsEventsSettings::of(node)
}

async fn next(listener: &mut Box<dyn Listener>) -> Heard {
    timeout(LONG, listener.next()).await.expect("in time").expect("it goes on")
}

/// Hears until the payload comes; says what was missed before.
async fn until(listener: &mut Box<dyn Listener>, payload: &str) -> Vec<Option<Arc<str>>> {
    let mut missed = Vec::new();
    loop {
        match next(listener).await {
            Heard::Missed(of) => missed.push(of),
            Heard::Event(event) if event.payload == payload => return missed,
            Heard::Event(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_keep_the_contract_of_events() {
    let server = NatsServer::start();
    let fleets = AtomicU64::new(0);
    super::super::conformance::run(|| async {
        let prefix = format!("fleet-{}", fleets.fetch_add(1, Ordering::Relaxed));
        (node(&server, &prefix, "one").await, node(&server, &prefix, "other").await)
    })
    .await;
}

/// What one listener is to make of everything it hears: a history without a silent loss.
#[derive(Default)]
struct History {
    /// By teller: the newest number heard, and whether something was missed after it.
    newest: HashMap<Arc<str>, (u64, bool)>,
    heard: u64,
    missed: u64,
}

impl History {
    fn note(&mut self, heard: Heard) {
        match heard {
            Heard::Missed(Some(node)) => {
                self.newest.entry(node).or_default().1 = true;
                self.missed += 1;
            }
            Heard::Missed(None) => {
                self.newest.values_mut().for_each(|(_, missed)| *missed = true);
                self.missed += 1;
            }
            Heard::Event(Event { node, payload }) => {
                let text = String::from_utf8_lossy(&payload);
                let number: u64 = text.parse().expect("a number of ours");
                let (newest, missed) = self.newest.entry(node.clone()).or_default();
                assert!(number > *newest, "{node}: {number} after {newest}");
                assert!(number == *newest + 1 || *missed, "{node}: {newest}, {number}, in silence");
                (*newest, *missed) = (number, false);
                self.heard += 1;
            }
        }
    }

    /// Nothing more will come.
    fn is_whole(&self, tellers: usize, told: u64) -> bool {
        let mut all = self.newest.values();
        self.newest.len() == tellers && all.all(|(newest, missed)| *newest == told || *missed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_nats_does_no_event_is_lost_in_silence_heard_twice_or_out_of_order() {
    const TELLERS: u64 = 3;
    const EVENTS: u64 = 4_000;
    let seed = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = NatsServer::start();
    let mut hearing = Vec::new();
    let mut nodes = Vec::new();
    for number in 0..TELLERS {
        let name = format!("node-{number}");
        let settings = NatsEventsSettings { pulse_ms: 100, silence_ms: 60_000, ..of(&name) };
        // A listener that is far behind misses events, too.
        let settings = NatsEventsSettings { messages_queued_max: 64, ..settings };
        let node = NatsEvents::connect(&nats(&server, "all"), settings).await;
        let node = node.expect("the settings can be used");
        let mut listener = node.listen("s").await.expect("listens");
        let seed = random.u64(..);
        hearing.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut history = History::default();
            // It does not hear itself.
            while !history.is_whole(TELLERS as usize - 1, EVENTS) {
                history.note(next(&mut listener).await);
                if random.u32(..200) == 0 {
                    sleep(Duration::from_millis(random.u64(..20))).await;
                }
            }
            history
        }));
        nodes.push(node);
    }
    let telling: Vec<_> = nodes
        .iter()
        .cloned()
        .map(|node| {
            let mut random = random.fork();
            tokio::spawn(async move {
                for number in 1..=EVENTS {
                    match node.tell("s", Bytes::from(number.to_string())) {
                        Ok(()) | Err(EventsError::Full) => {}
                        Err(error) => panic!("never: {error}"),
                    }
                    if random.u32(..20) == 0 {
                        sleep(Duration::from_millis(random.u64(..30))).await;
                    }
                }
            })
        })
        .collect();
    for _ in 0..4 {
        sleep(Duration::from_millis(random.u64(100..700))).await;
        if random.bool() {
            server.kill();
            sleep(Duration::from_millis(random.u64(..300))).await;
            server.start_again();
        } else {
            server.pause();
            sleep(Duration::from_millis(random.u64(..300))).await;
            server.go_on();
        }
    }
    for teller in telling {
        timeout(LONG, teller).await.expect("telling never waits").expect("no panic");
    }
    for hearing in hearing {
        let history = timeout(LONG, hearing).await.expect("it ends").expect("no silent loss");
        println!("heard {}, missed {} times", history.heard, history.missed);
        assert!(history.heard > 0);
    }
    let told: u64 = nodes.iter().map(|node| node.counts().told + node.counts().dropped).sum();
    assert_eq!(told, TELLERS * EVENTS);
}

#[tokio::test]
async fn who_was_cut_off_is_told_that_it_missed_and_hears_on() {
    let mut server = NatsServer::start();
    let (one, other) = (node(&server, "cut", "one").await, node(&server, "cut", "other").await);
    let mut listener = other.listen("s").await.expect("listens");
    one.tell("s", Bytes::from_static(b"1")).expect("told");
    assert_eq!(until(&mut listener, "1").await, []);
    server.kill();
    server.start_again();
    // Nobody tells anything more, and it is said all the same.
    assert_eq!(next(&mut listener).await, Heard::Missed(None));
    let telling = tokio::spawn(async move {
        // One of them arrives once both are connected again.
        loop {
            one.tell("s", Bytes::from_static(b"2")).expect("told");
            sleep(Duration::from_millis(100)).await;
        }
    });
    until(&mut listener, "2").await;
    telling.abort();
}

#[tokio::test]
async fn the_last_event_is_missed_with_notice_too() {
    let server = NatsServer::start();
    let (one, other) = (node(&server, "tail", "one").await, node(&server, "tail", "other").await);
    one.tell("s", Bytes::from_static(b"before anybody listened")).expect("told");
    // Nothing follows; the pulse alone says that there was one.
    let mut listener = other.listen("s").await.expect("listens");
    match next(&mut listener).await {
        Heard::Missed(of) => assert_eq!(of.as_deref(), Some("one")),
        // It may have been on its way for so long that it was in time.
        Heard::Event(event) => assert_eq!(event.payload, "before anybody listened"),
    }
}

#[tokio::test]
async fn who_dies_is_missed_after_its_silence_and_who_leaves_is_not() {
    let server = NatsServer::start();
    let short = |node| NatsEventsSettings { pulse_ms: 50, silence_ms: 1_000, ..of(node) };
    let connect = async |node| {
        NatsEvents::connect(&nats(&server, "end"), short(node)).await.expect("connects")
    };
    let (dies, leaves, hears) =
        (connect("dies").await, connect("leaves").await, connect("h").await);
    let mut listener = hears.listen("s").await.expect("listens");
    leaves.tell("s", Bytes::from_static(b"I leave")).expect("told");
    until(&mut listener, "I leave").await;
    leaves.close().await;
    drop(leaves);
    // A machine that does much else lets pulses come late, so it is asked who, not when.
    dies.tell("s", Bytes::from_static(b"I die")).expect("told");
    until(&mut listener, "I die").await;
    drop(dies);
    let missed = async {
        loop {
            match next(&mut listener).await {
                Heard::Missed(Some(of)) => return of,
                heard => assert_eq!(heard, Heard::Missed(None)),
            }
        }
    };
    assert_eq!(&*missed.await, "dies");
    assert!(timeout(Duration::from_millis(1_500), listener.next()).await.is_err(), "said once");
}

#[tokio::test]
async fn what_is_dropped_because_too_much_waits_is_refused_and_missed_with_notice() {
    let mut server = NatsServer::start();
    let few = NatsEventsSettings {
        events_queued_max: 8,
        pulse_ms: 100,
        silence_ms: 60_000,
        subjects_max: 1,
        ..of("one")
    };
    let one = NatsEvents::connect(&nats(&server, "few"), few).await.expect("connects");
    let other = node(&server, "few", "other").await;
    let mut listener = other.listen("s").await.expect("listens");
    one.tell("s", Bytes::from_static(b"first")).expect("told");
    until(&mut listener, "first").await;
    let one_more = one.tell("t", Bytes::new());
    assert_eq!(one_more, Err(EventsError::TooManySubjects(1)));
    server.kill();
    let mut refused = 0;
    // More than the connection and the queue hold.
    for _ in 0..200_000 {
        refused += u64::from(one.tell("s", Bytes::from_static(b"x")) == Err(EventsError::Full));
        if refused > 10 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(refused > 0 && one.counts().dropped == refused, "{refused}");
    server.start_again();
    while next(&mut listener).await != Heard::Missed(Some("one".into())) {}
    let large = Bytes::from(vec![7; EVENT_BYTES_MAX + 1]);
    assert_eq!(one.tell("s", large), Err(EventsError::TooLarge(EVENT_BYTES_MAX + 1)));
}

#[tokio::test]
async fn names_of_nodes_that_would_be_no_subject_are_refused() {
    let server = NatsServer::start();
    for name in ["", "a b", "*", &"x".repeat(124)] {
        let refused = NatsEvents::connect(&nats(&server, "names"), of(name)).await.err();
        assert!(matches!(refused, Some(BusError::BadName(_))), "{name:?}");
    }
    let longest = "x".repeat(123);
    let (listens, tells) =
        (node(&server, "names", &longest).await, node(&server, "names", "other").await);
    let mut listener = listens.listen_own().await.expect("listens");
    tells.tell_node(&longest, Bytes::from_static(b"you")).expect("told");
    assert_eq!(until(&mut listener, "you").await, []);
}
