//! The promises of the table: held back while catching up, never twice, never missed.

use std::sync::Arc;

use bytes::Bytes;
use millrace_logic_sdk::{GatewayKey, Session, SessionAddress};
use millrace_protocol::{
    chat::Message,
    link::{Encoding, Transport},
};

use super::{Finished, HeldMax, Lifecycle, Online, Pushed, Rates};
use crate::chat::{
    paces::{Paced, PacedRates, Paces, RequestClass},
    rate::Rate,
};

fn table() -> Online {
    let rate = Rate { per_second_max: 0, burst_max: 2 };
    let paced = PacedRates::all(rate);
    let frames = Rate { burst_max: 10, ..rate };
    let held_max = HeldMax { messages: 3, bytes: 1_000 };
    Online::new(Rates { frames, messages: rate }, held_max, Paces::new(paced, 100))
}

pub(in crate::chat) fn session(session_id: u64, user_id: &str) -> Arc<Session> {
    Arc::new(Session {
        address: SessionAddress { gateway: GatewayKey(1), shard: 0, session_id },
        gateway_id: "gateway".into(),
        user_id: user_id.into(),
        device_id: "".into(),
        platform: "".into(),
        transport: Transport::Tcp,
        encoding: Encoding::Protobuf,
        logged_in_at_ms: 0,
        expires_at_ms: 0,
        state: Bytes::new(),
    })
}

fn message(sequence: u64) -> Message {
    Message { conversation_id: "c".into(), sequence, ..Message::default() }
}

/// Hands out one message to bob; the session ids that get it now.
fn hand_out(online: &Online, sequence: u64, except: Option<SessionAddress>) -> Vec<u64> {
    let mut receivers = Vec::new();
    let mut deliveries = online.deliveries();
    let version = sequence;
    deliveries.targets(&message(sequence), version, &["bob".into()], except, &mut receivers);
    deliveries.done(version);
    receivers.into_iter().map(|(address, _)| address.session_id).collect()
}

/// Hands out one message of another process, before which others may still come.
fn late(online: &Online, sequence: u64) -> Vec<u64> {
    let mut receivers = Vec::new();
    let mut deliveries = online.deliveries();
    deliveries.targets(&message(sequence), 0, &["bob".into()], None, &mut receivers);
    receivers.into_iter().map(|(address, _)| address.session_id).collect()
}

fn pushed(as_of: u64, highest: Option<u64>) -> Pushed {
    Pushed { as_of, highest: highest.map(|h| ("c".to_owned(), h)).into_iter().collect() }
}

/// Ends a catch-up; what it came to, and the held sequences that were sent.
fn finish(online: &Online, session: &Session, round: u64, pushed: Pushed) -> (Finished, Vec<u64>) {
    let mut sent = Vec::new();
    let finished = online.finish_catch_up(session, round, pushed, |held| {
        sent.extend(held.iter().map(|m| m.sequence));
    });
    (finished, sent)
}

#[test]
fn a_session_gets_nothing_before_it_is_caught_up_and_then_what_was_held() {
    let online = table();
    let bob = session(1, "bob");
    online.start(bob.clone(), false);
    let (next, round) = online.next_catch_up().unwrap();
    assert_eq!(next.address, bob.address);
    assert!(hand_out(&online, 3, None).is_empty());
    assert!(hand_out(&online, 4, None).is_empty());
    // The store was read up to 3: the push had 1 to 3, and 4 was held.
    assert_eq!(finish(&online, &bob, round, pushed(3, Some(3))), (Finished::Live, vec![4]));
    assert_eq!(hand_out(&online, 5, None), [1]);
    assert_eq!(hand_out(&online, 6, Some(bob.address)), [0_u64; 0]);
}

#[test]
fn a_commit_that_the_push_has_read_is_not_handed_out_again() {
    let online = table();
    let bob = session(1, "bob");
    online.start(bob.clone(), false);
    let (_, round) = online.next_catch_up().unwrap();
    // 1 to 3 are durable, read and pushed before the third stage has handed any of them out.
    assert_eq!(finish(&online, &bob, round, pushed(3, Some(3))), (Finished::Live, vec![]));
    for sequence in 1..=3 {
        assert!(hand_out(&online, sequence, None).is_empty());
    }
    assert_eq!(hand_out(&online, 4, None), [1]);
}

#[test]
fn a_commit_that_the_push_left_out_because_another_device_has_it_is_handed_out() {
    let online = table();
    let bob = session(1, "bob");
    online.start(bob.clone(), false);
    let (_, round) = online.next_catch_up().unwrap();
    // The store was read up to 3, but the user's cursor had passed everything.
    assert_eq!(finish(&online, &bob, round, pushed(3, None)), (Finished::Live, vec![]));
    assert_eq!(hand_out(&online, 3, None), [1]);
}

#[test]
fn too_much_held_begins_the_catch_up_again() {
    let online = table();
    let bob = session(1, "bob");
    online.start(bob.clone(), false);
    let (_, round) = online.next_catch_up().unwrap();
    for sequence in 1..=4 {
        hand_out(&online, sequence, None);
    }
    assert_eq!(finish(&online, &bob, round, pushed(0, None)), (Finished::Again, vec![]));
    let round = online.begin_catch_up(&bob).unwrap();
    let large = Message { body: "x".repeat(2_000), ..message(5) };
    let mut none = Vec::new();
    online.deliveries().targets(&large, 5, &["bob".into()], None, &mut none);
    assert_eq!(finish(&online, &bob, round, pushed(4, Some(4))), (Finished::Again, vec![]));
    let round = online.begin_catch_up(&bob).unwrap();
    assert_eq!(finish(&online, &bob, round, pushed(5, Some(5))), (Finished::Live, vec![]));
}

#[test]
fn a_late_result_of_an_earlier_catch_up_is_void() {
    let online = table();
    let bob = session(1, "bob");
    online.start(bob.clone(), false);
    let (_, first) = online.next_catch_up().unwrap();
    // The link breaks and comes back while the first catch-up runs.
    online.begin_catch_up(&bob);
    online.keep(bob.clone(), |_| false);
    assert!(!online.is_catching_up(&bob, first));
    assert_eq!(finish(&online, &bob, first, pushed(9, Some(9))).0, Finished::Void);
    let (_, second) = online.next_catch_up().unwrap();
    hand_out(&online, 1, None);
    assert_eq!(finish(&online, &bob, second, pushed(0, None)), (Finished::Live, vec![1]));
    assert!(online.next_catch_up().is_none());
    // And a session that has ended needs none at all.
    online.keep(bob.clone(), |_| false);
    online.end(bob.clone());
    assert!(online.next_catch_up().is_none());
    assert_eq!(finish(&online, &bob, second, pushed(0, None)).0, Finished::Void);
    assert_eq!(online.users(), 0);
}

#[test]
fn what_a_catch_up_has_pushed_is_remembered_over_those_that_follow_it() {
    let online = table();
    let bob = session(1, "bob");
    online.start(bob.clone(), false);
    let (_, round) = online.next_catch_up().unwrap();
    assert_eq!(finish(&online, &bob, round, pushed(5, Some(5))), (Finished::Live, vec![]));
    // Something else was lost, and bob has acknowledged what was pushed: nothing is pushed this time.
    online.catch_up_everybody();
    let (_, round) = online.next_catch_up().unwrap();
    assert!(late(&online, 4).is_empty());
    assert_eq!(finish(&online, &bob, round, pushed(6, None)), (Finished::Live, vec![]));
    assert!(late(&online, 5).is_empty(), "its event comes after both");
    assert_eq!(late(&online, 7), [1]);

    // The result of a round that was begun anew counts: it was pushed.
    let void = online.begin_catch_up(&bob).unwrap();
    let round = online.begin_catch_up(&bob).unwrap();
    assert_eq!(finish(&online, &bob, void, pushed(9, Some(9))).0, Finished::Void);
    assert_eq!(finish(&online, &bob, round, pushed(9, None)).0, Finished::Live);
    assert!(late(&online, 8).is_empty());

    // Over a broken link nothing is sure to have arrived.
    online.keep(bob.clone(), |_| false);
    let (_, round) = online.next_catch_up().unwrap();
    assert_eq!(finish(&online, &bob, round, pushed(10, None)).0, Finished::Live);
    assert_eq!(late(&online, 9), [1]);
}

#[test]
fn starts_and_ends_reach_the_lifecycle_task_in_order_and_once() {
    let online = table();
    let (one, two) = (session(1, "bob"), session(2, "bob"));
    online.start(one.clone(), false);
    online.start(one.clone(), false);
    online.start(two.clone(), true);
    online.end(one.clone());
    online.end(one.clone());
    let three = session(3, "ann");
    online.start(three.clone(), false);
    assert!(online.has(&three) && !online.has(&one));
    online.move_away(three.clone());
    online.move_away(three.clone());
    assert!(!online.has(&three));
    let mut order = Vec::new();
    while let Some(next) = online.next_lifecycle() {
        order.push(match next {
            Lifecycle::Started(session) => ("started", session.address.session_id),
            Lifecycle::Replayed(session) => ("replayed", session.address.session_id),
            Lifecycle::Returned(session) => ("returned", session.address.session_id),
            Lifecycle::Ended(session) => ("ended", session.address.session_id),
            Lifecycle::Moved(session) => ("moved", session.address.session_id),
        });
    }
    assert_eq!(
        order,
        [("started", 1), ("replayed", 2), ("ended", 1), ("started", 3), ("moved", 3)]
    );
    assert_eq!((online.users(), online.sessions_by_transport()), (1, (1, 0)));
}

#[test]
fn a_user_shares_one_rate_over_all_devices() {
    let online = table();
    online.start(session(1, "bob"), false);
    online.start(session(2, "bob"), false);
    online.start(session(3, "alice"), false);
    let (message, frame) = (RequestClass::Message, RequestClass::Frame);
    let pull = RequestClass::Paced(Paced::Pull);
    let mut verdicts = Vec::new();
    let frames = [
        ("bob", message),
        ("bob", frame),
        ("bob", message),
        ("bob", message),
        ("bob", pull),
        ("bob", pull),
        ("bob", pull),
        ("alice", message),
        ("ghost", message),
    ];
    online.admit(frames.into_iter(), &mut verdicts);
    let admitted: Vec<bool> = verdicts.iter().map(Result::is_ok).collect();
    assert_eq!(admitted, [true, true, true, false, true, true, false, true, true]);
    // All of them were frames, too: 7 of the 10 are used.
    let frames = [("bob", frame); 4];
    verdicts.clear();
    online.admit(frames.into_iter(), &mut verdicts);
    let admitted: Vec<bool> = verdicts.iter().map(Result::is_ok).collect();
    assert_eq!(admitted, [true, true, true, false]);
}

/// A million sessions: each byte here is a megabyte there.
#[test]
fn what_is_kept_of_each_session_stays_small() {
    assert!(size_of::<super::Entry>() <= 24, "{}", size_of::<super::Entry>());
    assert!(size_of::<super::User>() <= 56, "{}", size_of::<super::User>());
    assert!(size_of::<Session>() <= 136, "{}", size_of::<Session>());
    let record = size_of::<crate::registry::SessionRecord>();
    assert!(record <= 88, "{record}");
}
