//! Mends what Redis says: states lost buckets anew, and removes what processes that are gone left.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use redis::{RedisResult, Value};
use tokio::time::sleep;

use super::{
    BUCKETS, Shared, WRITERS,
    connection::{Connection, call, garbled, timed_out},
    count,
    entry::{OwnerId, bucket_of, decode, prefix_in},
};

/// Entries read in one go.
const PAGE: usize = 1_000;

/// How long one process has the sweeping to itself.
const SWEEP_MS: u64 = 60_000;

/// Buckets read at the same time, so that a master that stands still does not hold up the others.
const LOOKS_AT_ONCE: usize = 16;

/// A full queue is looked at again after this time.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// After a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// States lost buckets anew, for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut connected = shared.connection.subscribe();
    loop {
        shared.lost.notified().await;
        // Losing one, Redis has mostly lost all: they come together.
        sleep(FULL_PAUSE).await;
        let Ok(Some((number, connection))) =
            connected.wait_for(Option::is_some).await.map(|found| found.clone())
        else {
            return;
        };
        let is_lost = |bucket: &super::Bucket| bucket.is_lost.swap(false, Ordering::AcqRel);
        let lost: Vec<bool> = shared.buckets.iter().map(is_lost).collect();
        let buckets = lost.iter().filter(|lost| **lost).count();
        if buckets == 0 {
            continue;
        }
        let began = Instant::now();
        let mut users = 0;
        for part in 0..shared.local.parts() {
            for user_id in shared.local.users_of_part(part) {
                if lost[bucket_of(&user_id)] {
                    add(&shared, &user_id).await;
                    users += 1;
                }
            }
        }
        // Now what Redis still says under our name and is over: whoever is put in is stated as is.
        let looks = (0..BUCKETS).filter(|bucket| lost[*bucket]).map(|bucket| {
            let (shared, connection) = (&shared, &connection);
            async move {
                // Once the connection is dead every further try is in vain.
                let found = match is_over(shared, number) {
                    true => Err(timed_out()),
                    false => leftovers(shared, connection, bucket).await,
                };
                found.map_err(|error| {
                    tracing::debug!(%error, bucket, "a bucket was not read; this is tried again");
                    shared.lose(bucket);
                })
            }
        });
        let looked = futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        let failed = looked.filter(|found| std::future::ready(found.is_err())).count().await;
        if failed > 0 {
            sleep(PAUSE).await;
        }
        count(&shared.counted.rebuilds, 1);
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(buckets, users, seconds, "lost presence was handed over to be stated anew");
    }
}

/// Whether this connection was given up meanwhile.
fn is_over(shared: &Shared, number: u64) -> bool {
    shared.connection().is_none_or(|(current, _)| current != number)
}

/// Has a user stated as soon as there is room.
async fn add(shared: &Shared, user_id: &Arc<str>) {
    while !shared.queues[bucket_of(user_id) % WRITERS].add(user_id, None) {
        sleep(FULL_PAUSE).await;
    }
}

/// Has the users stated of whom Redis says something under our name that is not so.
async fn leftovers(shared: &Shared, connection: &Connection, bucket: usize) -> RedisResult<()> {
    let mut after = None;
    loop {
        let page = page(shared, connection, bucket, after).await?;
        for entry in page.iter().filter_map(|entry| decode(entry)) {
            if entry.owner != shared.owner {
                continue;
            }
            // What is known here is known before it is stated, so what is not is over.
            let is_known = shared.local.of(&entry.user_id).iter().any(|session| {
                session.address.session_id == entry.session_id
                    && session.logged_in_at_ms == entry.logged_in_at_ms
            });
            if !is_known {
                add(shared, &entry.user_id).await;
            }
        }
        match page.into_iter().next_back() {
            Some(last) => after = Some(last),
            None => return Ok(()),
        }
    }
}

/// Entries of a bucket after this one.
async fn page(
    shared: &Shared,
    connection: &Connection,
    bucket: usize,
    after: Option<Vec<u8>>,
) -> RedisResult<Vec<Vec<u8>>> {
    let from = after.map_or_else(|| b"-".to_vec(), |last| [b"(", &last[..]].concat());
    let mut command = redis::cmd("ZRANGEBYLEX");
    command.arg(shared.keys.entries(bucket)).arg(from).arg("+").arg("LIMIT").arg(0).arg(PAGE);
    let reply = one(shared, connection, command).await?;
    redis::from_redis_value(reply).map_err(|_| garbled())
}

/// Runs one command.
pub(super) async fn one(
    shared: &Shared,
    connection: &Connection,
    command: redis::Cmd,
) -> RedisResult<Value> {
    let mut replies = connection.run_each(vec![command], shared.settings.timeout).await;
    replies.pop().unwrap_or_else(|| Err(garbled()))
}

/// Removes what owners left that are gone, for ever. One process at a time does it.
pub(super) async fn sweep(shared: Arc<Shared>) {
    loop {
        shared.gone.notified().await;
        let Some((_, connection)) = shared.connection() else { continue };
        let gone = shared.fleet().gone();
        if gone.is_empty() {
            continue;
        }
        match sweep_once(&shared, &connection, &gone).await {
            Ok(None) => {}
            Ok(Some(removed)) => {
                shared.fleet().forget(&gone);
                tracing::info!(owners = gone.len(), removed, "what they had stated is removed");
            }
            Err(error) => {
                tracing::debug!(%error, "what others left was not removed; this is tried again");
                sleep(PAUSE).await;
            }
        }
    }
}

/// How many entries were removed; `None` if another process is at it.
pub(super) async fn sweep_once(
    shared: &Shared,
    connection: &Connection,
    gone: &[OwnerId],
) -> RedisResult<Option<usize>> {
    let mut take = redis::cmd("SET");
    take.arg(shared.keys.sweep()).arg(&shared.owner.0[..]).arg("NX").arg("PX").arg(SWEEP_MS);
    if one(shared, connection, take).await? == Value::Nil {
        return Ok(None);
    }
    let swept = sweep_buckets(shared, connection, gone).await;
    let mut give = redis::cmd("DEL");
    give.arg(shared.keys.sweep());
    // If not, it is given back by its time.
    let _given = one(shared, connection, give).await;
    swept.map(Some)
}

/// Removes these entries of one bucket, and says how many were there.
pub(super) async fn remove(
    shared: &Shared,
    connection: &Connection,
    bucket: usize,
    left: &[&[u8]],
) -> RedisResult<usize> {
    if left.is_empty() {
        return Ok(0);
    }
    let (entries, owners) = (shared.keys.entries(bucket), shared.keys.owners(bucket));
    let mut drop = call(&shared.scripts.drop, &[&entries, &owners]);
    for entry in left {
        // What can be read has a prefix.
        drop.arg(prefix_in(entry).unwrap_or_default()).arg(*entry);
    }
    redis::from_redis_value(one(shared, connection, drop).await?).map_err(|_| garbled())
}

async fn sweep_buckets(
    shared: &Shared,
    connection: &Connection,
    gone: &[OwnerId],
) -> RedisResult<usize> {
    let mut removed = 0;
    for bucket in 0..BUCKETS {
        let mut after = None;
        loop {
            let page = page(shared, connection, bucket, after).await?;
            let is_left = |raw: &&Vec<u8>| decode(raw).is_some_and(|e| gone.contains(&e.owner));
            let left: Vec<&[u8]> = page.iter().filter(is_left).map(Vec::as_slice).collect();
            removed += remove(shared, connection, bucket, &left).await?;
            match page.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        let mut forget = redis::cmd("HDEL");
        forget.arg(shared.keys.owners(bucket));
        for owner in gone {
            forget.arg(&owner.0[..]);
        }
        one(shared, connection, forget).await?;
    }
    // Last: until here the next process would do all of it again.
    let mut forget = redis::cmd("HDEL");
    forget.arg(shared.keys.fleet());
    for owner in gone {
        forget.arg(&owner.0[..]);
    }
    one(shared, connection, forget).await?;
    Ok(removed)
}
