//! What every store of notices must do. [`run`] is called by the tests of each; `make` gives a bed
//! without notices each time.

use millrace_protocol::chat::Notice;

use super::{Audience, Mark, NewNotice, NoticeLimits, NoticeStore, State, Stored};

/// A place that keeps what a store has written, over several lives of it.
pub(crate) trait Bed {
    type Store;

    async fn open(&self, limits: NoticeLimits) -> Self::Store;

    async fn close(&self, store: Self::Store);

    fn notices(store: &Self::Store) -> &dyn NoticeStore;
}

const LIMITS: NoticeLimits = NoticeLimits {
    pending_per_user_max: 3,
    notices_max: 12,
    everyone_max: 1,
    kept_after_ms: 1_000,
};

/// The whole suite.
pub(crate) async fn run<B: Bed>(make: impl AsyncFn() -> B) {
    what_is_not_acknowledged_comes_again_also_after_a_restart(make().await).await;
    states_move_forward_only_and_are_counted(make().await).await;
    the_oldest_or_the_same_key_makes_way(make().await).await;
    one_row_is_for_everyone_until_each_acknowledges(make().await).await;
    an_id_is_kept_once_and_bounds_hold(make().await).await;
    what_ended_is_forgotten(make().await).await;
}

fn new(notice_id: &str, users: &[&str]) -> NewNotice {
    NewNotice {
        notice: Notice {
            notice_id: notice_id.into(),
            r#type: 7,
            body: format!("body of {notice_id}"),
            sent_at_ms: 1_000,
        },
        audience: Audience::Users(users.iter().map(|user| (*user).to_owned()).collect()),
        expires_at_ms: 10_000,
        collapse_key: String::new(),
    }
}

fn mark(notice_id: &str, user_id: &str, state: State) -> Mark {
    Mark { notice_id: notice_id.into(), user_id: user_id.into(), state, at_ms: 2_000 }
}

async fn keep(notices: &dyn NoticeStore, new: NewNotice) -> Vec<String> {
    match notices.store(new).await.expect("stored") {
        Stored::New { dropped } => dropped.into_iter().map(|mark| mark.notice_id).collect(),
        other => panic!("{other:?}"),
    }
}

async fn pending(notices: &dyn NoticeStore, user_id: &str, now_ms: i64) -> Vec<String> {
    let found = notices.pending(vec![user_id.into()], now_ms).await.expect("read");
    let ids: Vec<String> = found[0].iter().map(|notice| notice.notice_id.clone()).collect();
    assert!(ids.is_empty() || notices.may_have_pending(user_id), "{user_id} is passed over");
    ids
}

async fn counts(notices: &dyn NoticeStore, notice_id: &str) -> [u64; 4] {
    notices.states(notice_id, "", 100).await.expect("read").expect("kept").summary.counts
}

async fn what_is_not_acknowledged_comes_again_also_after_a_restart<B: Bed>(bed: B) {
    let store = bed.open(LIMITS).await;
    let notices = B::notices(&store);
    assert!(notices.is_empty() && !notices.may_have_pending("ann"));
    keep(notices, new("n1", &["ann", "bob", "ann"])).await;
    keep(notices, new("n2", &["ann"])).await;
    let found = notices.pending(vec!["bob".into(), "ann".into(), "cid".into()], 5_000).await;
    let found = found.expect("read");
    assert_eq!(found[0].len(), 1);
    let n1 = &found[0][0];
    assert_eq!(
        (&*n1.notice_id, n1.r#type, &*n1.body, n1.sent_at_ms),
        ("n1", 7, "body of n1", 1_000)
    );
    assert_eq!((found[1].len(), found[2].len()), (2, 0));
    let acked = notices.mark(vec![mark("n1", "ann", State::Acked)]).await.expect("marked");
    assert_eq!(acked, [mark("n1", "ann", State::Acked)]);
    bed.close(store).await;
    let store = bed.open(LIMITS).await;
    let notices = B::notices(&store);
    assert!(!notices.is_empty());
    assert_eq!(pending(notices, "ann", 5_000).await, ["n2"]);
    assert_eq!(pending(notices, "bob", 5_000).await, ["n1"]);
    assert_eq!(pending(notices, "bob", 10_000).await, [""; 0], "it has ended");
    assert!(!notices.may_have_pending("an"), "another user");
    assert_eq!(counts(notices, "n1").await, [1, 0, 1, 0]);
    bed.close(store).await;
}

async fn states_move_forward_only_and_are_counted<B: Bed>(bed: B) {
    let store = bed.open(LIMITS).await;
    let notices = B::notices(&store);
    keep(notices, new("n", &["ann", "bob", "cid"])).await;
    use State::{Acked, Delivered, Stored};
    let marks = vec![
        mark("n", "ann", Delivered),
        mark("n", "ann", Delivered),
        mark("n", "bob", Acked),
        mark("n", "bob", Delivered),
        mark("n", "ann", Stored),
        mark("n", "dan", Acked),
        mark("other", "ann", Acked),
    ];
    let changed = notices.mark(marks).await.expect("marked");
    assert_eq!(changed, [mark("n", "ann", Delivered), mark("n", "bob", Acked)]);
    assert_eq!(counts(notices, "n").await, [1, 1, 1, 0]);
    let page = notices.states("n", "", 2).await.expect("read").expect("kept");
    let states: Vec<_> = page.marks.iter().map(|m| (&*m.user_id, m.state)).collect();
    assert_eq!((states, page.complete), (vec![("ann", Delivered), ("bob", Acked)], false));
    let page = notices.states("n", "bob", 2).await.expect("read").expect("kept");
    let states: Vec<_> = page.marks.iter().map(|m| (&*m.user_id, m.state)).collect();
    assert_eq!((states, page.complete), (vec![("cid", Stored)], true));
    assert_eq!(notices.states("other", "", 2).await.expect("read"), None);
    bed.close(store).await;
}

async fn the_oldest_or_the_same_key_makes_way<B: Bed>(bed: B) {
    let store = bed.open(LIMITS).await;
    let notices = B::notices(&store);
    for (id, key) in [("n1", "k"), ("n2", ""), ("n3", "")] {
        let new = NewNotice { collapse_key: key.into(), ..new(id, &["ann"]) };
        assert_eq!(keep(notices, new).await, [""; 0]);
    }
    let collapsing = NewNotice { collapse_key: "k".into(), ..new("n4", &["ann", "bob"]) };
    assert_eq!(keep(notices, collapsing).await, ["n1"]);
    assert_eq!(pending(notices, "ann", 5_000).await, ["n2", "n3", "n4"]);
    assert_eq!(keep(notices, new("n5", &["ann"])).await, ["n2"], "three wait at most");
    assert_eq!(pending(notices, "ann", 5_000).await, ["n3", "n4", "n5"]);
    assert_eq!(pending(notices, "bob", 5_000).await, ["n4"]);
    assert_eq!(counts(notices, "n1").await, [0, 0, 0, 1]);
    // Whoever had it on the screen when it was dropped has seen it all the same.
    let late = notices.mark(vec![mark("n1", "ann", State::Acked)]).await.expect("marked");
    assert_eq!(late.len(), 1);
    assert_eq!(counts(notices, "n1").await, [0, 0, 1, 0]);
    bed.close(store).await;
}

async fn one_row_is_for_everyone_until_each_acknowledges<B: Bed>(bed: B) {
    let store = bed.open(LIMITS).await;
    let notices = B::notices(&store);
    keep(notices, NewNotice { audience: Audience::Everyone, ..new("all", &[]) }).await;
    let second = NewNotice { audience: Audience::Everyone, ..new("more", &[]) };
    assert!(matches!(notices.store(second).await, Ok(Stored::Full(_))), "one is kept at once");
    notices.mark(vec![mark("all", "bob", State::Acked)]).await.expect("marked");
    bed.close(store).await;
    let store = bed.open(LIMITS).await;
    let notices = B::notices(&store);
    assert_eq!(pending(notices, "ann", 5_000).await, ["all"]);
    assert_eq!(pending(notices, "bob", 5_000).await, [""; 0]);
    assert_eq!(pending(notices, "ann", 10_000).await, [""; 0], "it has ended");
    assert_eq!(counts(notices, "all").await, [0, 0, 1, 0]);
    let later =
        NewNotice { audience: Audience::Everyone, expires_at_ms: 30_000, ..new("later", &[]) };
    let later = NewNotice { notice: Notice { sent_at_ms: 20_000, ..later.notice }, ..later };
    keep(notices, later).await;
    assert_eq!(pending(notices, "bob", 20_000).await, ["later"]);
    // One that was live has acknowledgements alone.
    keep(notices, NewNotice { audience: Audience::Live, ..new("room", &[]) }).await;
    assert!(!pending(notices, "cid", 5_000).await.contains(&"room".to_owned()));
    notices.mark(vec![mark("room", "cid", State::Acked)]).await.expect("marked");
    assert_eq!(counts(notices, "room").await, [0, 0, 1, 0]);
    bed.close(store).await;
}

async fn an_id_is_kept_once_and_bounds_hold<B: Bed>(bed: B) {
    let store = bed.open(LIMITS).await;
    let notices = B::notices(&store);
    keep(notices, new("n0", &["ann"])).await;
    notices.mark(vec![mark("n0", "ann", State::Acked)]).await.expect("marked");
    match notices.store(new("n0", &["ann", "bob"])).await.expect("answered") {
        Stored::Duplicate(summary) => assert_eq!(summary.counts, [0, 0, 1, 0]),
        other => panic!("{other:?}"),
    }
    assert_eq!(pending(notices, "bob", 5_000).await, [""; 0]);
    for n in 1..12 {
        keep(notices, new(&format!("n{n}"), &["ann"])).await;
    }
    assert!(matches!(notices.store(new("n12", &["ann"])).await, Ok(Stored::Full(_))));
    bed.close(store).await;
}

async fn what_ended_is_forgotten<B: Bed>(bed: B) {
    let store = bed.open(LIMITS).await;
    let notices = B::notices(&store);
    let users: Vec<String> = (0..2_500).map(|n| format!("user{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    keep(notices, new("many", &users)).await;
    keep(notices, NewNotice { expires_at_ms: 50_000, ..new("later", &["ann"]) }).await;
    assert!(!notices.expire(10_999).await.expect("done"), "its states can be read a while longer");
    let mut rounds = 0;
    while notices.expire(11_000).await.expect("done") {
        rounds += 1;
    }
    assert!(rounds >= 3, "a bounded part at a time: {rounds}");
    assert_eq!(notices.states("many", "", 1).await.expect("read"), None);
    assert!(!notices.may_have_pending("nobody at all"));
    assert_eq!(pending(notices, "ann", 20_000).await, ["later"]);
    while notices.expire(51_000).await.expect("done") {}
    assert!(notices.is_empty() && !notices.may_have_pending("ann"));
    bed.close(store).await;
}
