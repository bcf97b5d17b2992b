//! The promises of the table: told once and what is right, bounded, and empty when nobody watches.

mod storm;

use millrace_logic_sdk::{GatewayKey, SessionAddress};
use millrace_protocol::{chat::UserPresence, link::Encoding};
use tokio::sync::mpsc;

use super::{Full, SubscriberId, Ticket, Told, Watchers, WatchersMax};

const MAX: WatchersMax =
    WatchersMax { subscriptions_per_session: 3, subscriptions: 5, services: 1 };

fn watchers() -> Watchers {
    Watchers::new(MAX, 1_000)
}

fn address(session_id: u64) -> SessionAddress {
    SessionAddress { gateway: GatewayKey(1), shard: 0, session_id }
}

fn names(users: &[&str]) -> Vec<String> {
    users.iter().map(|user| (*user).to_owned()).collect()
}

fn state(user_id: &str, platforms: &[&str]) -> UserPresence {
    UserPresence {
        user_id: user_id.to_owned(),
        online: !platforms.is_empty(),
        platforms: names(platforms),
    }
}

fn subscribe(watchers: &Watchers, session_id: u64, users: &[&str]) -> Result<Ticket, Full> {
    let receiver = (address(session_id), Encoding::Protobuf);
    watchers.subscribe(receiver, &names(users), false, 0)
}

/// Subscribes, and is answered that all are offline.
fn subscribe_offline(watchers: &Watchers, session_id: u64, users: &[&str]) {
    let ticket = subscribe(watchers, session_id, users).expect("there is room");
    watchers.confirm(ticket, users.iter().map(|user| state(user, &[])).collect(), |_| {});
}

/// Looks everything marked up, as one finds it, and tells; sorted.
fn tick(watchers: &Watchers, found: &[UserPresence]) -> Vec<(u64, Vec<UserPresence>)> {
    let (marked, ticket) = watchers.take_marked(100);
    let found = found.iter().filter(|f| marked.iter().any(|m| **m == *f.user_id)).cloned();
    let mut told: Told = Vec::new();
    watchers.tell(ticket, found.collect(), |news| told = news);
    let mut by_session: Vec<_> = told
        .into_iter()
        .flat_map(|(users, to)| {
            to.into_iter().map(move |(address, _)| (address.session_id, users.clone()))
        })
        .collect();
    by_session.sort_by_key(|(session_id, _)| *session_id);
    by_session
}

fn is_empty(watchers: &Watchers) -> bool {
    let table = watchers.table();
    watchers.subscriptions() == 0
        && table.subscribers.is_empty()
        && table.watched.is_empty()
        && table.marked.is_empty()
        && table.ends.is_empty()
        && table.services == 0
}

#[test]
fn only_who_watches_is_told_and_only_what_changed() {
    let watchers = watchers();
    assert!(!watchers.mark("alice"), "nobody watches");
    subscribe_offline(&watchers, 1, &["alice", "bob"]);
    subscribe_offline(&watchers, 2, &["bob"]);
    assert!(watchers.mark("alice") && watchers.mark("bob") && !watchers.mark("carol"));
    let (alice, bob) = (state("alice", &["ios"]), state("bob", &["web"]));
    let told = tick(&watchers, &[alice.clone(), bob.clone()]);
    assert_eq!(told, [(1, vec![alice.clone(), bob.clone()]), (2, vec![bob.clone()])]);
    // The same again is no news, and another platform is.
    assert!(watchers.mark("alice") && watchers.mark("alice"));
    assert_eq!(watchers.marked(), 1);
    assert_eq!(tick(&watchers, &[alice]), []);
    let both = state("alice", &["ios", "web"]);
    watchers.mark("alice");
    assert_eq!(tick(&watchers, std::slice::from_ref(&both)), [(1, vec![both])]);
}

#[test]
fn who_comes_and_goes_within_an_interval_causes_no_event() {
    let watchers = watchers();
    subscribe_offline(&watchers, 1, &["alice"]);
    for _ in 0..1_000 {
        watchers.mark("alice");
    }
    assert_eq!(watchers.marked(), 1);
    assert_eq!(tick(&watchers, &[state("alice", &[])]), []);
}

#[test]
fn a_change_between_the_look_up_and_the_answer_is_in_the_answer_or_after_it() {
    // Told meanwhile: the answer says what is newer.
    let first = watchers();
    let ticket = subscribe(&first, 1, &["alice"]).expect("room");
    first.mark("alice");
    assert_eq!(tick(&first, &[state("alice", &["ios"])]), [], "the answer will say it");
    let mut answered = Vec::new();
    first.confirm(ticket, vec![state("alice", &[])], |users| answered = users);
    assert_eq!(answered, [state("alice", &["ios"])]);
    // Told afterwards.
    let second = watchers();
    let ticket = subscribe(&second, 1, &["alice"]).expect("room");
    second.mark("alice");
    second.confirm(ticket, vec![state("alice", &[])], |users| answered = users);
    assert_eq!(answered, [state("alice", &[])]);
    let told = tick(&second, &[state("alice", &["ios"])]);
    assert_eq!(told, [(1, vec![state("alice", &["ios"])])]);
}

#[test]
fn a_late_answer_to_a_subscription_that_ended_spoils_no_newer_one() {
    let watchers = watchers();
    let first = subscribe(&watchers, 1, &["alice"]).expect("room");
    // Found offline; then the session ends, alice comes, and another session subscribes.
    watchers.forget(SubscriberId::Session(address(1)));
    assert!(!watchers.mark("alice"), "nobody watches");
    let second = subscribe(&watchers, 2, &["alice"]).expect("room");
    watchers.confirm(first, vec![state("alice", &[])], |_| {});
    let mut answered = Vec::new();
    watchers.confirm(second, vec![state("alice", &["ios"])], |users| answered = users);
    assert_eq!(answered, [state("alice", &["ios"])]);
}

#[test]
fn a_late_look_up_spoils_no_newer_subscription() {
    let watchers = watchers();
    subscribe_offline(&watchers, 1, &["alice"]);
    watchers.mark("alice");
    let (_, ticket) = watchers.take_marked(10);
    // Found offline; then all leave, alice comes, and another session subscribes.
    watchers.forget(SubscriberId::Session(address(1)));
    let second = subscribe(&watchers, 2, &["alice"]).expect("room");
    watchers.confirm(second, vec![state("alice", &["ios"])], |_| {});
    let stale = state("alice", &["web"]);
    watchers.tell(ticket, vec![stale], |told| assert!(told.is_empty(), "{told:?}"));
}

#[test]
fn above_a_bound_a_subscription_is_refused_and_nothing_changes() {
    let watchers = watchers();
    subscribe_offline(&watchers, 1, &["a", "b", "a"]);
    assert_eq!(watchers.subscriptions(), 2);
    assert_eq!(subscribe(&watchers, 1, &["c", "d"]), Err(Full::Subscriber));
    // Those it has do not count twice.
    assert!(subscribe(&watchers, 1, &["a", "b", "c"]).is_ok());
    assert_eq!(subscribe(&watchers, 2, &["a", "b", "c"]), Err(Full::All));
    assert_eq!((watchers.subscriptions(), watchers.subscriptions_of(address(2))), (3, 0));
    assert!(subscribe(&watchers, 2, &["a", "b"]).is_ok());
    let receiver = (address(2), Encoding::Json);
    // What a replacement gives back is room for it.
    assert!(watchers.subscribe(receiver, &names(&["x", "b"]), true, 0).is_ok());
    assert_eq!(watchers.subscriptions(), 5);
    assert!(!watchers.mark("y") && watchers.mark("x"));
    let too_many = watchers.subscribe(receiver, &names(&["1", "2", "3", "4"]), true, 0);
    assert_eq!(too_many, Err(Full::Subscriber));
    assert_eq!(watchers.subscriptions_of(address(2)), 2);
}

#[test]
fn who_leaves_is_told_nothing_and_leaves_nothing_behind() {
    let watchers = watchers();
    subscribe_offline(&watchers, 1, &["alice", "bob"]);
    subscribe_offline(&watchers, 2, &["alice"]);
    watchers.mark("alice");
    watchers.forget(SubscriberId::Session(address(1)));
    let alice = state("alice", &["ios"]);
    assert_eq!(tick(&watchers, std::slice::from_ref(&alice)), [(2, vec![alice])]);
    assert_eq!(watchers.unsubscribe(address(2), &names(&["bob"])), 1);
    watchers.mark("alice");
    assert_eq!(watchers.unsubscribe(address(2), &[]), 0);
    assert_eq!(tick(&watchers, &[state("alice", &[])]), []);
    assert!(is_empty(&watchers));
    watchers.confirm(Ticket(1), vec![state("alice", &[])], |users| assert_eq!(users.len(), 1));
    assert!(is_empty(&watchers));
}

#[test]
fn what_is_not_renewed_ends() {
    let watchers = watchers();
    subscribe_offline(&watchers, 1, &["alice"]);
    subscribe_offline(&watchers, 2, &["alice"]);
    assert_eq!(watchers.expire(999), Some(1_000));
    let receiver = (address(2), Encoding::Protobuf);
    for _ in 0..1_000 {
        watchers.subscribe(receiver, &names(&["alice"]), false, 600).expect("renewed");
    }
    assert_eq!(watchers.table().ends.len(), 2);
    assert_eq!(watchers.expire(1_000), Some(1_600));
    assert_eq!((watchers.subscriptions_of(address(1)), watchers.subscriptions()), (0, 1));
    assert_eq!(watchers.expire(1_600), None);
    assert!(is_empty(&watchers));
}

#[test]
fn a_stream_that_does_not_keep_up_is_ended() {
    let watchers = watchers();
    let (events, mut received) = mpsc::channel(1);
    let (_, ticket) = watchers.subscribe_service(events.clone(), &names(&["alice"])).expect("room");
    let second = watchers.subscribe_service(events, &names(&["alice"]));
    assert_eq!(second, Err(Full::Subscriber));
    watchers.confirm(ticket, vec![state("alice", &[])], |_| {});
    let tell = |platforms: &[&str]| {
        watchers.mark("alice");
        let (_, ticket) = watchers.take_marked(10);
        watchers.tell(ticket, vec![state("alice", platforms)], |_| {})
    };
    assert_eq!(tell(&["ios"]), 0);
    assert_eq!(tell(&[]), 1);
    assert_eq!(received.try_recv(), Ok(vec![state("alice", &["ios"])]));
    assert_eq!(received.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    assert!(is_empty(&watchers));
}
