//! One suite that every [`RelationStore`] must pass, named after its promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex},
};

use millrace_protocol::Code;

use super::{Act, Acted, Relation, RelationFilter, RelationLimits, RelationStore};

/// Where stores of one kind come from: an empty one first, afterwards the same data again.
pub trait Bed: Send + Sync {
    /// The implementation under test.
    type Store: RelationStore;

    /// Opens it, after closing the one opened before.
    fn open(&self) -> impl Future<Output = Self::Store> + Send;
}

/// Makes one test of every property, each on a bed of its own.
macro_rules! relation_store_conformance_tests {
    ($bed:expr) => {
        $crate::storage::relations::conformance::relation_store_conformance_tests! { $bed;
            a_request_is_asked_and_answered_on_both_sides,
            who_asks_each_other_become_friends,
            a_block_ends_requests_keeps_friendship_and_is_seen_by_one_side,
            limits_refuse_and_change_nothing,
            devices_that_follow_versions_see_what_the_store_has,
            blockers_are_known_after_reopening,
        }
    };
    ($bed:expr; $($property:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() {
                $crate::storage::relations::conformance::$property(&$bed).await;
            }
        )+
    };
}
pub(crate) use relation_store_conformance_tests;

const LIMITS: RelationLimits = RelationLimits {
    friends_max: 2,
    incoming_max: 2,
    outgoing_max: 2,
    blocks_max: 2,
    ended_max: 4,
};

fn request(message: &str) -> Act {
    Act::Request { message: message.into() }
}

async fn act<S: RelationStore>(store: &S, user: &str, other: &str, act: Act) -> Acted {
    store.act(user, other, act, RelationLimits::default(), 7).await.unwrap()
}

async fn done<S: RelationStore>(store: &S, user: &str, other: &str, what: Act) -> (bool, bool) {
    match act(store, user, other, what.clone()).await {
        Acted::Done { own_changed, others_changed, own, others } => {
            assert_eq!(store.relation(user, other).await.unwrap(), own);
            assert_eq!(store.relation(other, user).await.unwrap(), others);
            (own_changed, others_changed)
        }
        refused => panic!("{what:?}: {refused:?}"),
    }
}

async fn refused<S: RelationStore>(store: &S, user: &str, other: &str, what: Act) -> Code {
    let before = store.relation(user, other).await.unwrap();
    match act(store, user, other, what.clone()).await {
        Acted::Refused { code, reason } => {
            assert!(!reason.is_empty());
            assert_eq!(store.relation(user, other).await.unwrap(), before);
            code
        }
        done => panic!("{what:?} was not refused: {done:?}"),
    }
}

/// Friend, blocked, incoming, outgoing.
async fn flags<S: RelationStore>(store: &S, user: &str, other: &str) -> [bool; 4] {
    let Relation { friend, blocked, incoming, outgoing, .. } =
        store.relation(user, other).await.unwrap();
    [friend, blocked, incoming, outgoing]
}

const NOTHING: [bool; 4] = [false; 4];
const FRIENDS: [bool; 4] = [true, false, false, false];
const BLOCKED: [bool; 4] = [false, true, false, false];
const INCOMING: [bool; 4] = [false, false, true, false];
const OUTGOING: [bool; 4] = [false, false, false, true];

pub async fn a_request_is_asked_and_answered_on_both_sides(bed: &impl Bed) {
    let store = bed.open().await;
    assert_eq!(done(&store, "a", "b", request("hello")).await, (true, true));
    assert_eq!(
        (flags(&store, "a", "b").await, flags(&store, "b", "a").await),
        (OUTGOING, INCOMING)
    );
    assert_eq!(store.relation("b", "a").await.unwrap().message, "hello");
    assert_eq!(done(&store, "a", "b", request("hello")).await, (false, false), "asked already");
    assert_eq!(done(&store, "a", "b", request("hello?")).await, (true, true), "another word");
    for (what, code) in [
        (Act::Accept, Code::NotFound),
        (Act::Reject, Code::NotFound),
        (Act::Remove, Code::NotFound),
    ] {
        assert_eq!(refused(&store, "a", "b", what).await, code, "the other's to answer");
    }
    assert_eq!(done(&store, "b", "a", Act::Reject).await, (true, true));
    assert_eq!((flags(&store, "a", "b").await, flags(&store, "b", "a").await), (NOTHING, NOTHING));
    assert_eq!(refused(&store, "b", "a", Act::Accept).await, Code::NotFound);
    done(&store, "a", "b", request("please")).await;
    done(&store, "a", "b", Act::Cancel).await;
    assert_eq!(refused(&store, "a", "b", Act::Cancel).await, Code::NotFound);
    done(&store, "a", "b", request("please")).await;
    drop(store);
    let store = bed.open().await;
    done(&store, "b", "a", Act::Accept).await;
    assert_eq!((flags(&store, "a", "b").await, flags(&store, "b", "a").await), (FRIENDS, FRIENDS));
    let relation = store.relation("a", "b").await.unwrap();
    assert_eq!((relation.friends_since_ms, &*relation.message), (7, ""));
    assert_eq!(refused(&store, "a", "b", request("")).await, Code::AlreadyExists);
    done(&store, "b", "a", Act::Remove).await;
    assert_eq!((flags(&store, "a", "b").await, flags(&store, "b", "a").await), (NOTHING, NOTHING));
}

pub async fn who_asks_each_other_become_friends(bed: &impl Bed) {
    let store = bed.open().await;
    done(&store, "a", "b", request("hi")).await;
    done(&store, "b", "a", request("hi, too")).await;
    assert_eq!((flags(&store, "a", "b").await, flags(&store, "b", "a").await), (FRIENDS, FRIENDS));
}

pub async fn a_block_ends_requests_keeps_friendship_and_is_seen_by_one_side(bed: &impl Bed) {
    let store = bed.open().await;
    done(&store, "a", "b", request("hi")).await;
    assert_eq!(done(&store, "b", "a", Act::Block).await, (true, true));
    assert_eq!((flags(&store, "a", "b").await, flags(&store, "b", "a").await), (NOTHING, BLOCKED));
    assert_eq!(done(&store, "b", "a", Act::Block).await, (false, false));
    assert_eq!(refused(&store, "a", "b", request("why")).await, Code::Blocked);
    assert_eq!(refused(&store, "b", "a", request("oh")).await, Code::BadRequest);
    assert_eq!(done(&store, "b", "a", Act::Unblock).await, (true, false));
    assert_eq!(done(&store, "b", "a", Act::Unblock).await, (false, false));
    done(&store, "a", "b", request("again")).await;
    done(&store, "b", "a", Act::Accept).await;
    assert_eq!(done(&store, "a", "b", Act::Block).await, (true, false), "b is not told");
    assert_eq!(flags(&store, "a", "b").await, [true, true, false, false]);
    assert_eq!(flags(&store, "b", "a").await, FRIENDS);
    done(&store, "a", "b", Act::Unblock).await;
    assert_eq!(flags(&store, "a", "b").await, FRIENDS);
}

pub async fn limits_refuse_and_change_nothing(bed: &impl Bed) {
    let store = bed.open().await;
    let act =
        |user: &'static str, other: &'static str, act: Act| store.act(user, other, act, LIMITS, 7);
    let over = |acted: Acted| matches!(acted, Acted::Refused { code: Code::OverCapacity, .. });
    for other in ["b", "c"] {
        assert!(!over(act("a", other, request("")).await.unwrap()));
    }
    assert!(over(act("a", "d", request("")).await.unwrap()), "two open requests");
    assert!(!over(act("d", "c", request("")).await.unwrap()));
    assert!(over(act("e", "c", request("")).await.unwrap()), "c has been asked twice");
    assert_eq!(flags(&store, "e", "c").await, NOTHING);
    for other in ["b", "c"] {
        assert!(!over(act(other, "a", Act::Accept).await.unwrap()));
    }
    assert!(!over(act("a", "d", request("")).await.unwrap()), "answered ones do not count");
    assert!(over(act("d", "a", Act::Accept).await.unwrap()), "a has two friends");
    assert_eq!(flags(&store, "d", "a").await, INCOMING, "the request stays");
    assert!(!over(act("a", "c", Act::Remove).await.unwrap()));
    assert!(!over(act("d", "a", Act::Accept).await.unwrap()));
    for other in ["x", "y"] {
        assert!(!over(act("a", other, Act::Block).await.unwrap()));
    }
    assert!(over(act("a", "z", Act::Block).await.unwrap()));
    assert!(!over(act("a", "x", Act::Block).await.unwrap()), "blocked already");
}

/// What a device knows, kept by lists of changes alone.
#[derive(Default)]
struct Device {
    version: u64,
    relations: BTreeMap<String, Relation>,
    resets: usize,
}

impl Device {
    async fn sync<S: RelationStore>(&mut self, store: &S, user: &str, limit: usize) {
        let mut after = 0;
        loop {
            let since = self.version;
            let page =
                store.relations(user, RelationFilter::All, since, after, limit).await.unwrap();
            if page.reset {
                *self = Self { resets: self.resets + 1, ..Self::default() };
                after = 0;
                continue;
            }
            assert!(page.relations.len() <= limit);
            for relation in page.relations {
                if relation.is_ended() {
                    self.relations.remove(&relation.other_id);
                } else {
                    self.relations.insert(relation.other_id.clone(), relation);
                }
            }
            if page.next == 0 {
                self.version = page.version;
                return;
            }
            after = page.next;
        }
    }
}

pub async fn devices_that_follow_versions_see_what_the_store_has(bed: &impl Bed) {
    let seed = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(20_261_121);
    println!("MILLRACE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let store = bed.open().await;
    let limits = RelationLimits { ended_max: 2, ..RelationLimits::default() };
    let users: Vec<String> = (0..26).map(|n| format!("user{n}")).collect();
    let (mut often, mut seldom) = (Device::default(), Device::default());
    for round in 0..400 {
        let own = &users[random.usize(..2)];
        let other = &users[random.usize(2..users.len())];
        let (user, other) = if random.bool() { (own, other) } else { (other, own) };
        let what = match random.u8(..7) {
            0 => request("hi"),
            1 => Act::Accept,
            2 => Act::Reject,
            3 => Act::Cancel,
            4 => Act::Remove,
            5 => Act::Block,
            _ => Act::Unblock,
        };
        store.act(user, other, what, limits, round).await.unwrap();
        if random.u8(..4) == 0 {
            often.sync(&store, "user0", random.usize(1..5)).await;
        }
        if round % 130 == 60 {
            seldom.sync(&store, "user0", random.usize(1..5)).await;
        }
    }
    let mut expected = BTreeMap::new();
    for other in &users[1..] {
        let relation = store.relation("user0", other).await.unwrap();
        if !relation.is_ended() {
            expected.insert(other.clone(), relation);
        }
    }
    assert!(!expected.is_empty());
    let mut fresh = Device::default();
    for device in [&mut often, &mut seldom, &mut fresh] {
        device.sync(&store, "user0", 3).await;
        assert_eq!(device.relations, expected);
    }
    assert!(seldom.resets > 0, "the test does not reach what it is for");
    assert_eq!(fresh.resets, 0);
    // Every filter is the same list, filtered.
    for filter in [
        RelationFilter::Friends,
        RelationFilter::Incoming,
        RelationFilter::Outgoing,
        RelationFilter::Blocked,
    ] {
        let page = store.relations("user0", filter, 0, 0, 100).await.unwrap();
        let found: BTreeSet<_> = page.relations.iter().map(|r| r.other_id.clone()).collect();
        let wanted = expected.values().filter(|r| filter.matches(r)).map(|r| r.other_id.clone());
        assert_eq!(found, wanted.collect(), "{filter:?}");
    }
}

pub async fn blockers_are_known_after_reopening(bed: &impl Bed) {
    let store = bed.open().await;
    for (user, other, what) in [
        ("a", "b", Act::Block),
        ("c", "d", request("")),
        ("e", "f", Act::Block),
        ("e", "f", Act::Unblock),
        ("g", "h", Act::Block),
        ("g", "i", Act::Block),
        ("g", "h", Act::Unblock),
    ] {
        done(&store, user, other, what).await;
    }
    drop(store);
    let store = bed.open().await;
    let found = Arc::new(Mutex::new(vec![]));
    let into = Arc::clone(&found);
    store
        .each_blocker(Box::new(move |user| into.lock().unwrap().push(user.to_owned())))
        .await
        .unwrap();
    assert_eq!(*found.lock().unwrap(), ["a", "g"]);
}
