//! What all events must do, whatever carries them. `make` gives two nodes, `one` and `other`, of a fleet
//! of their own each time.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use tokio::time::timeout;

use super::{Event, Events, EventsError, Heard, Listener};

/// The whole suite.
pub(crate) async fn run<E: Events, F: Future<Output = (E, E)>>(make: impl Fn() -> F) {
    every_listener_of_every_node_hears_in_the_order_told(make().await).await;
    nobody_hears_itself(make().await).await;
    subjects_are_apart(make().await).await;
    what_is_for_one_node_is_heard_by_it_alone(make().await).await;
    nothing_from_before_is_heard(make().await).await;
    a_listener_that_is_gone_holds_up_nobody(make().await).await;
    a_wait_that_is_given_up_loses_nothing(make().await).await;
    bad_subjects_are_refused(make().await).await;
    who_has_closed_tells_nothing_more(make().await).await;
}

/// The next event. That something from before was missed is no failure.
async fn event(listener: &mut Box<dyn Listener>) -> Event {
    loop {
        let next = timeout(Duration::from_secs(60), listener.next());
        match next.await.expect("within a minute").expect("it goes on") {
            Heard::Event(event) => return event,
            Heard::Missed(_) => {}
        }
    }
}

fn text(event: &Event) -> (String, String) {
    (event.node.to_string(), String::from_utf8_lossy(&event.payload).into_owned())
}

async fn every_listener_of_every_node_hears_in_the_order_told<E: Events>((one, other): (E, E)) {
    const EVENTS: usize = 500;
    assert_eq!((one.node(), other.node()), ("one", "other"));
    let mut listeners = vec![
        (one.listen("s").await.expect("listens"), "other"),
        (other.listen("s").await.expect("listens"), "one"),
        (other.listen("s").await.expect("listens"), "one"),
    ];
    for number in 0..EVENTS {
        one.tell("s", Bytes::from(number.to_string())).expect("told");
        other.tell("s", Bytes::from(number.to_string())).expect("told");
    }
    for (listener, teller) in &mut listeners {
        let mut heard = Vec::new();
        while heard.len() < EVENTS {
            let next = timeout(Duration::from_secs(60), listener.next()).await;
            match next.expect("within a minute").expect("it goes on") {
                Heard::Event(event) => heard.push(text(&event)),
                Heard::Missed(of) => panic!("nothing was lost of {of:?}, after {}", heard.len()),
            }
        }
        let told = (0..EVENTS).map(|number| ((*teller).to_owned(), number.to_string()));
        assert_eq!(heard, told.collect::<Vec<_>>());
    }
}

async fn nobody_hears_itself<E: Events>((one, other): (E, E)) {
    let mut listeners = [
        (one.listen("s").await.expect("listens"), "of other"),
        (other.listen("s").await.expect("listens"), "of one"),
    ];
    one.tell("s", Bytes::from_static(b"of one")).expect("told");
    // Once this is heard, it has gone by.
    assert_eq!(event(&mut listeners[1].0).await.payload, "of one");
    other.tell("s", Bytes::from_static(b"of other")).expect("told");
    one.tell("s", Bytes::from_static(b"of one")).expect("told");
    for (listener, payload) in &mut listeners {
        assert_eq!(event(listener).await.payload, *payload);
    }
    assert_eq!((one.counts().heard, other.counts().heard), (1, 2));
}

async fn subjects_are_apart<E: Events>((one, other): (E, E)) {
    let mut listener = other.listen("a.b").await.expect("listens");
    for subject in ["a", "a.b.c", "a-b", "a_b", "b"] {
        one.tell(subject, Bytes::from_static(b"elsewhere")).expect("told");
    }
    one.tell("a.b", Bytes::from_static(b"here")).expect("told");
    assert_eq!(event(&mut listener).await.payload, "here");
}

async fn what_is_for_one_node_is_heard_by_it_alone<E: Events>((one, other): (E, E)) {
    let mut listeners = [
        (one.listen_own().await.expect("listens"), "for one"),
        (other.listen_own().await.expect("listens"), "for other"),
    ];
    for _ in 0..10 {
        one.tell_node("other", Bytes::from_static(b"for other")).expect("told");
        other.tell_node("one", Bytes::from_static(b"for one")).expect("told");
        one.tell_node("nobody", Bytes::from_static(b"for nobody")).expect("told");
    }
    for (listener, payload) in &mut listeners {
        for _ in 0..10 {
            assert_eq!(event(listener).await.payload, *payload);
        }
    }
    let counts = one.counts();
    assert_eq!((counts.told, counts.dropped, counts.heard, counts.missed), (20, 0, 10, 0));
}

async fn who_has_closed_tells_nothing_more<E: Events>((one, other): (E, E)) {
    let mut listener = other.listen("s").await.expect("listens");
    let mut own_ear = one.listen("s").await.expect("listens");
    one.tell("s", Bytes::from_static(b"last")).expect("told");
    one.close().await;
    one.close().await;
    assert_eq!(event(&mut listener).await.payload, "last");
    assert_eq!(one.tell("s", Bytes::new()), Err(EventsError::Closed));
    other.tell("s", Bytes::from_static(b"on")).expect("told");
    assert_eq!(event(&mut own_ear).await.payload, "on", "it may still listen");
}

async fn nothing_from_before_is_heard<E: Events>((one, other): (E, E)) {
    one.tell("s", Bytes::from_static(b"before")).expect("told");
    // Once this is heard, the other one has gone by, too.
    let mut first = other.listen("t").await.expect("listens");
    one.tell("t", Bytes::new()).expect("told");
    event(&mut first).await;
    let mut listener = other.listen("s").await.expect("listens");
    one.tell("s", Bytes::from_static(b"after")).expect("told");
    assert_eq!(event(&mut listener).await.payload, "after");
}

async fn a_listener_that_is_gone_holds_up_nobody<E: Events>((one, other): (E, E)) {
    let gone = other.listen("s").await.expect("listens");
    let mut listener = other.listen("s").await.expect("listens");
    drop(gone);
    for number in 0..100 {
        one.tell("s", Bytes::from(number.to_string())).expect("told");
        assert_eq!(event(&mut listener).await.payload, number.to_string());
    }
}

async fn a_wait_that_is_given_up_loses_nothing<E: Events>((one, other): (E, E)) {
    let mut listener = other.listen("s").await.expect("listens");
    for number in 0..50 {
        let given_up = timeout(Duration::from_millis(1), listener.next()).await;
        assert!(given_up.is_err(), "{given_up:?}");
        one.tell("s", Bytes::from(number.to_string())).expect("told");
        assert_eq!(event(&mut listener).await.payload, number.to_string());
    }
}

async fn bad_subjects_are_refused<E: Events>((one, _): (E, E)) {
    for subject in ["", " ", "a b", "a*", ">", "ä", "a\n", &"x".repeat(129)] {
        let told = one.tell(subject, Bytes::new());
        assert!(matches!(told, Err(EventsError::BadSubject(_))), "{subject:?}");
        let listens = one.listen(subject).await.err();
        assert!(matches!(listens, Some(EventsError::BadSubject(_))), "{subject:?}");
    }
    assert_eq!(one.tell(&"x".repeat(128), Bytes::new()), Ok(()));
}
