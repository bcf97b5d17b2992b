//! Both ways of telling members what is new give every client the same answers.

use fastrand::Rng;

use super::*;
use crate::storage::conformance::{USERS, random_write};

/// Everything that a client can see of a store, in words.
async fn seen(store: &EmbeddedStore, random: &mut Rng) -> Vec<String> {
    let mut seen = vec![format!("version {}", store.version())];
    for user in USERS {
        let since = random.u64(..store.version() + 2);
        let limit = random.usize(1..8);
        let rows = store.conversations(user, since, limit).await.unwrap();
        seen.push(format!("{user} since {since}: {rows:?}"));
        let recent = store.recent_conversations(user, since, limit).await.unwrap();
        seen.push(format!("{user} below {since}: {recent:?}"));
        let (per, conversations) = (random.usize(1..8), random.usize(1..5));
        let waiting = store.undelivered(user, since, per, conversations).await.unwrap();
        seen.push(format!("{user} as of {since}, {per} of {conversations}: {waiting:?}"));
        let all = store.conversations(user, 0, 1_000).await.unwrap();
        for row in &all.conversations {
            let id = &row.conversation_id;
            let (from, to) = (random.u64(..20), random.u64(..40));
            let newest_first = random.bool();
            let page = store.page(user, id, from, to, limit, newest_first).await.unwrap();
            seen.push(format!("{user} in {id}: {page:?}"));
        }
    }
    for group in ["g", "h", "large"] {
        let id = conversation_id::group(group);
        let filter = match random.u8(..3) {
            0 => ReceiptFilter::Everybody,
            1 => ReceiptFilter::Read,
            _ => ReceiptFilter::Unread,
        };
        let (sequence, limit) = (random.u64(..30), random.usize(1..5));
        seen.push(format!("{:?}", store.group(group).await.unwrap()));
        seen.push(format!("{:?}", store.members(&id).await.unwrap()));
        seen.push(format!("{:?}", store.group_members(group, "b", limit).await.unwrap()));
        seen.push(format!("{:?}", store.join_requests(group, "", limit).await.unwrap()));
        let receipts = store.receipts(&id, sequence, filter, "", limit, 3).await;
        seen.push(format!("{receipts:?}"));
    }
    seen
}

#[tokio::test]
async fn no_client_can_tell_by_which_rule_a_group_is_fanned_out() {
    let seed = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    // Pointers for everybody, for nobody, and groups that grow from one rule into the other.
    let beds = [bed(usize::MAX), bed(0), bed(2)];
    let mut stores = vec![];
    for bed in &beds {
        stores.push(conformance::Bed::open(bed).await);
    }
    let mut ids = 0;
    for round in 0..120 {
        let count = random.usize(1..25);
        let writes: Vec<Write> = (0..count).map(|_| random_write(&mut random, &mut ids)).collect();
        let outcomes = stores[0].commit(writes.clone()).await.unwrap();
        for store in &stores[1..] {
            assert_eq!(store.commit(writes.clone()).await.unwrap(), outcomes, "round {round}");
        }
        if round % 4 == 3 {
            let questions = random.fork();
            let expected = seen(&stores[0], &mut questions.clone()).await;
            for (index, store) in stores.iter().enumerate().skip(1) {
                let answers = seen(store, &mut questions.clone()).await;
                for (answer, expected) in answers.iter().zip(&expected) {
                    assert_eq!(answer, expected, "round {round}, store {index}");
                }
                assert_eq!(answers.len(), expected.len());
            }
        }
    }
    for store in stores {
        store.close().await.unwrap();
    }
}
