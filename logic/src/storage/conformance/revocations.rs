//! What every [`Revocations`] keeps to.

use crate::storage::{KeptSession, Revocation, Revocations};

pub fn revocation(issued_before_ms: i64, kept: Option<u64>) -> Revocation {
    let kept = kept.map(|session_id| KeptSession {
        gateway_id: "gateway".to_owned(),
        session_id,
        logged_in_at_ms: -1,
    });
    Revocation { issued_before_ms, kept }
}

/// Runs the suite on an empty one.
pub async fn run(revocations: &impl Revocations) {
    who_never_logged_out_has_none(revocations).await;
    the_later_moment_stays_with_what_it_kept(revocations).await;
    ids_that_begin_alike_are_different_users(revocations).await;
    concurrent_ones_leave_the_latest(revocations).await;
    only_old_ones_are_forgotten(revocations).await;
}

async fn who_never_logged_out_has_none(revocations: &impl Revocations) {
    assert!(!revocations.may_have("alice"));
    assert_eq!(revocations.of("alice").await.expect("read"), None);
}

async fn the_later_moment_stays_with_what_it_kept(revocations: &impl Revocations) {
    let first = revocation(1_000, Some(u64::MAX));
    assert_eq!(revocations.revoke("alice", first.clone()).await.expect("stored"), first);
    assert!(revocations.may_have("alice"));
    let earlier = revocations.revoke("alice", revocation(999, None)).await;
    assert_eq!(earlier.expect("answered"), first);
    assert_eq!(revocations.of("alice").await.expect("read"), Some(first));
    let later = revocation(1_001, None);
    assert_eq!(revocations.revoke("alice", later.clone()).await.expect("stored"), later);
    assert_eq!(revocations.of("alice").await.expect("read"), Some(later));
}

async fn ids_that_begin_alike_are_different_users(revocations: &impl Revocations) {
    for (user_id, moment) in [("al", 5), ("alice2", 6), ("\u{10ffff}", 7), (&"x".repeat(128), 8)] {
        revocations.revoke(user_id, revocation(moment, None)).await.expect("stored");
        let found = revocations.of(user_id).await.expect("read").expect("there");
        assert_eq!(found.issued_before_ms, moment, "{user_id}");
    }
    assert_eq!(revocations.of("alic").await.expect("read"), None);
}

async fn concurrent_ones_leave_the_latest(revocations: &impl Revocations) {
    let all = (1..=20).map(|moment| revocations.revoke("busy", revocation(moment, None)));
    futures::future::join_all(all).await;
    let found = revocations.of("busy").await.expect("read");
    assert_eq!(found, Some(revocation(20, None)));
}

async fn only_old_ones_are_forgotten(revocations: &impl Revocations) {
    for number in 0..300 {
        let moment = if number % 2 == 0 { 50_000 } else { 60_000 };
        let user_id = format!("user-{number}");
        revocations.revoke(&user_id, revocation(moment, None)).await.expect("stored");
    }
    let forgotten = revocations.forget_before(60_000).await.expect("done");
    // Those of the tests above are older, too.
    assert_eq!(forgotten, 150 + 6);
    for number in 0..300 {
        let found = revocations.of(&format!("user-{number}")).await.expect("read");
        assert_eq!(found.is_some(), number % 2 == 1, "{number}");
    }
    assert_eq!(revocations.forget_before(60_000).await.expect("done"), 0);
    assert_eq!(revocations.of("alice").await.expect("read"), None);
    revocations.revoke("alice", revocation(70_000, None)).await.expect("stored");
    assert!(revocations.of("alice").await.expect("read").is_some());
}
