//! Look-ups: what this process knows and what others have stated, together. Where Redis does not say,
//! what this process knows.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    sync::Arc,
    time::Instant,
};

use redis::{RedisResult, Value};
use tokio::time::timeout;

use super::{
    BUCKETS, Shared,
    connection::{Connection, garbled, timed_out},
    count,
    entry::{Entry, OwnerId, bucket_of, decode, end_of, owner_in, prefix_of},
    fleet::Standing,
};
use crate::registry::{HomeId, Online, Registry as _, RegistryError, SessionRecord};

/// Users of one call.
const USERS_PER_CALL: usize = 512;

/// See [`crate::registry::Registry::sessions_of`].
pub(super) async fn sessions_of(shared: &Shared, user_ids: &[&str]) -> Vec<Vec<SessionRecord>> {
    let mut all = Vec::with_capacity(user_ids.len());
    for user_ids in user_ids.chunks(USERS_PER_CALL) {
        let commands = user_ids.iter().map(|user_id| entries_of(shared, user_id));
        let mut replies = ask(shared, commands.collect()).await.into_iter();
        let mut degraded = 0;
        for user_id in user_ids {
            let found = match replies.next().map(|reply| reply.and_then(entries)) {
                Some(Ok(found)) => found,
                _ => {
                    degraded += 1;
                    Vec::new()
                }
            };
            // Looked at after Redis was: who moved here meanwhile is not missed.
            all.push(shared.together(shared.local.of(user_id), found));
        }
        count(&shared.counted.degraded, degraded);
    }
    all
}

/// All entries of a user.
fn entries_of(shared: &Shared, user_id: &str) -> redis::Cmd {
    let prefix = prefix_of(user_id);
    let end = end_of(prefix.clone());
    let mut command = redis::cmd("ZRANGEBYLEX");
    command
        .arg(shared.keys.entries(bucket_of(user_id)))
        .arg([b"[", &prefix[..]].concat())
        .arg([b"(", &end[..]].concat());
    command
}

/// See [`crate::registry::Registry::homes_of`].
pub(super) async fn homes_of(
    shared: &Shared,
    user_ids: &[&str],
) -> Result<Vec<Vec<HomeId>>, RegistryError> {
    let unknown = |what: &str| RegistryError::Unavailable(what.to_owned());
    let mut all = Vec::with_capacity(user_ids.len());
    for user_ids in user_ids.chunks(USERS_PER_CALL) {
        let commands = user_ids.iter().map(|user_id| entries_of(shared, user_id));
        let mut replies = ask(shared, commands.collect()).await.into_iter();
        for user_id in user_ids {
            let reply = replies.next().ok_or_else(|| unknown("Redis is away"))?;
            let reply = reply.map_err(|error| unknown(&error.to_string()))?;
            let raw: Vec<Vec<u8>> = redis::from_redis_value(reply)
                .map_err(|_| unknown("it answered something else"))?;
            let mut homes = Vec::new();
            if !shared.local.of(user_id).is_empty() {
                homes.push(shared.owner.home());
            }
            let mut owners: Vec<OwnerId> = raw.iter().filter_map(|raw| owner_in(raw)).collect();
            owners.dedup();
            owners.retain(|owner| *owner != shared.owner);
            // In doubt is good enough: to tell one too many costs little, to tell one too few a message.
            owners.retain(|owner| shared.fleet().standing(*owner) != Standing::Gone);
            homes.extend(owners.into_iter().map(OwnerId::home));
            all.push(homes);
        }
    }
    Ok(all)
}

/// See [`crate::registry::Registry::list`].
pub(super) async fn list(
    shared: &Shared,
    after: &str,
    users_max: usize,
) -> Result<Vec<SessionRecord>, RegistryError> {
    if users_max == 0 {
        return Ok(Vec::new());
    }
    let mut users: BTreeMap<Arc<str>, Vec<Entry>> = BTreeMap::new();
    if let Some((number, connection)) = shared.connection() {
        match elsewhere(shared, &connection, after, users_max).await {
            Ok(found) => users = found,
            Err(error) => {
                shared.failed(number, &error);
                count(&shared.counted.degraded, 1);
            }
        }
    } else {
        count(&shared.counted.degraded, 1);
    }
    let mut here: BTreeMap<Arc<str>, Vec<SessionRecord>> = BTreeMap::new();
    for session in shared.local.list(after, users_max).await? {
        here.entry(Arc::clone(&session.user_id)).or_default().push(session);
    }
    // Both are the first `users_max` of their side, so the first of both together are among them.
    for user_id in users.keys() {
        here.entry(Arc::clone(user_id)).or_insert_with(|| shared.local.of(user_id));
    }
    let page = here.into_iter().take(users_max).flat_map(|(user_id, sessions)| {
        shared.together(sessions, users.remove(&user_id).unwrap_or_default())
    });
    Ok(page.collect())
}

/// See [`crate::registry::Registry::count`]. Those whose process is gone count until they are removed.
pub(super) async fn count_online(shared: &Shared) -> Result<Online, RegistryError> {
    let here = shared.local.count().await?;
    let commands = (0..BUCKETS).flat_map(|bucket| {
        let mut sessions = redis::cmd("ZCARD");
        sessions.arg(shared.keys.entries(bucket));
        let mut users = redis::cmd("HGET");
        users.arg(shared.keys.owners(bucket)).arg("users");
        [sessions, users]
    });
    let replies = ask(shared, commands.collect()).await;
    let mut sums = [0_usize; 2];
    let mut failed = replies.is_empty();
    for (index, reply) in replies.into_iter().enumerate() {
        match reply.map(redis::from_redis_value::<Option<usize>>) {
            Ok(Ok(found)) => sums[index % 2] += found.unwrap_or(0),
            _ => failed = true,
        }
    }
    if failed {
        count(&shared.counted.degraded, 1);
        return Ok(here);
    }
    Ok(Online { sessions: sums[0], users: sums[1] })
}

/// Runs look-ups; empty where Redis is away or too many are under way.
async fn ask(shared: &Shared, commands: Vec<redis::Cmd>) -> Vec<RedisResult<Value>> {
    let Some((number, connection)) = shared.connection() else { return Vec::new() };
    let (began, limit) = (Instant::now(), shared.settings.timeout);
    let replies = match timeout(limit, shared.reads.acquire()).await {
        // The semaphore is never closed.
        Ok(_place) => connection.run_each(commands, limit.saturating_sub(began.elapsed())).await,
        Err(_) => vec![Err(timed_out())],
    };
    if let Some(error) = replies.iter().find_map(|reply| reply.as_ref().err()) {
        shared.failed(number, error);
    }
    replies
}

fn entries(reply: Value) -> RedisResult<Vec<Entry>> {
    let raw: Vec<Vec<u8>> = redis::from_redis_value(reply).map_err(|_| garbled())?;
    Ok(raw.iter().filter_map(|entry| decode(entry)).collect())
}

/// One bucket, read in order.
#[derive(Default)]
struct Reading {
    entries: VecDeque<Entry>,
    after: Option<Vec<u8>>,
    is_done: bool,
}

/// What others state of the first users after `after`: the buckets merged, each read as far as needed.
async fn elsewhere(
    shared: &Shared,
    connection: &Connection,
    after: &str,
    users_max: usize,
) -> RedisResult<BTreeMap<Arc<str>, Vec<Entry>>> {
    let mut buckets: Vec<Reading> = (0..BUCKETS).map(|_| Reading::default()).collect();
    // Twice its share of the page; who is wrong is asked again.
    let share = users_max.saturating_mul(2) / BUCKETS + 8;
    let all: Vec<usize> = (0..BUCKETS).collect();
    read(shared, connection, &mut buckets, &all, after, share).await?;
    let mut fronts = BinaryHeap::new();
    for (bucket, reading) in buckets.iter().enumerate() {
        if let Some(entry) = reading.entries.front() {
            fronts.push(Reverse((Arc::clone(&entry.user_id), bucket)));
        }
    }
    let mut users: BTreeMap<Arc<str>, Vec<Entry>> = BTreeMap::new();
    while let Some(Reverse((_, bucket))) = fronts.pop() {
        let Some(entry) = buckets[bucket].entries.pop_front() else { continue };
        let counts = entry.owner != shared.owner && shared.seen(entry.clone()).is_some();
        if counts {
            if users.len() == users_max && !users.contains_key(&entry.user_id) {
                break;
            }
            users.entry(Arc::clone(&entry.user_id)).or_default().push(entry);
        }
        if buckets[bucket].entries.is_empty() && !buckets[bucket].is_done {
            read(shared, connection, &mut buckets, &[bucket], after, share.max(64)).await?;
        }
        if let Some(next) = buckets[bucket].entries.front() {
            fronts.push(Reverse((Arc::clone(&next.user_id), bucket)));
        }
    }
    Ok(users)
}

/// Reads on in some buckets.
async fn read(
    shared: &Shared,
    connection: &Connection,
    buckets: &mut [Reading],
    wanted: &[usize],
    after: &str,
    entries_max: usize,
) -> RedisResult<()> {
    let start = [b"[", &end_of(prefix_of(after))[..]].concat();
    let commands = wanted.iter().map(|bucket| {
        let from = match &buckets[*bucket].after {
            None => start.clone(),
            Some(last) => [b"(", &last[..]].concat(),
        };
        let mut command = redis::cmd("ZRANGEBYLEX");
        command.arg(shared.keys.entries(*bucket)).arg(from).arg("+");
        command.arg("LIMIT").arg(0).arg(entries_max);
        command
    });
    let replies = connection.run_each(commands.collect(), shared.settings.timeout).await;
    for (bucket, reply) in wanted.iter().zip(replies) {
        let raw: Vec<Vec<u8>> = redis::from_redis_value(reply?).map_err(|_| garbled())?;
        let reading = &mut buckets[*bucket];
        reading.is_done = raw.len() < entries_max;
        reading.entries.extend(raw.iter().filter_map(|entry| decode(entry)));
        // A page of nothing that can be read is passed over with the next.
        if let Some(last) = raw.into_iter().next_back() {
            reading.after = Some(last);
        }
    }
    Ok(())
}
