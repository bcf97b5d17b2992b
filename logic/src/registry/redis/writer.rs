//! States users in Redis, batch by batch. While one batch is under way the next gathers, so that
//! batches grow with load. Each writer has buckets of its own: of one user, and of one bucket, there is
//! never more than one call under way.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use redis::{RedisResult, Value};
use tokio::time::sleep;

use super::{
    Shared, WRITERS,
    connection::{Connection, call, garbled, has_no_script},
    count,
    entry::{Entry, bucket_of, decode, prefix_of},
    queue::Waiting,
};

/// How long a bucket remembers the newest epoch of a gateway after it was first stated there: longer
/// than any process can be late.
const EPOCH_REMEMBERED_MS: u64 = 24 * 3_600_000;

/// The first pause after a failure, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// One call: the users of one bucket.
struct Call {
    bucket: usize,
    sequence: u64,
    /// What Redis had acknowledged of the bucket before.
    acknowledged: u64,
    users: Vec<User>,
}

/// A user to be stated, and who waits for it.
type User = (Arc<str>, Waiting);

/// States what is put into one queue, for ever.
pub(super) async fn run(shared: Arc<Shared>, number: usize) {
    let queue = &shared.queues[number];
    let mut connected = shared.connection.subscribe();
    let mut pause = PAUSE_MIN;
    loop {
        // The sender lives in `shared`.
        let found = connected.wait_for(Option::is_some).await;
        let Ok(Some((connection_number, connection))) = found.map(|found| found.clone()) else {
            return;
        };
        let users = queue.take(shared.settings.users_per_batch_max.max(1));
        if users.is_empty() {
            queue.wake.notified().await;
            continue;
        }
        if state(&shared, &connection, connection_number, users).await {
            pause = PAUSE_MIN;
        } else {
            // Who comes meanwhile may be of a master that answers.
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                () = queue.wake.notified() => {}
            }
        }
    }
}

/// States these users. Those that were not stated are put back; false if there were any.
async fn state(shared: &Shared, connection: &Connection, number: u64, users: Vec<User>) -> bool {
    let mut buckets: HashMap<usize, Vec<User>> = HashMap::new();
    for (user_id, waiting) in users {
        buckets.entry(bucket_of(&user_id)).or_default().push((user_id, waiting));
    }
    let mut calls = Vec::with_capacity(buckets.len());
    let mut commands = Vec::with_capacity(buckets.len());
    for (bucket, users) in buckets {
        debug_assert_eq!(bucket / WRITERS * WRITERS + bucket % WRITERS, bucket);
        let known = &shared.buckets[bucket];
        let call = Call {
            bucket,
            sequence: known.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            acknowledged: known.acknowledged.load(Ordering::Acquire),
            users,
        };
        commands.push(command(shared, &call));
        calls.push(call);
    }
    let replies = connection.run_each(commands, shared.settings.timeout).await;
    let mut all = true;
    let mut told = false;
    for (call, reply) in calls.into_iter().zip(replies) {
        let reply = reply.and_then(read);
        match reply {
            Ok(Reply::Done { stored, found, refused }) => {
                done(shared, call, stored, found, refused)
            }
            Ok(Reply::Late { stored }) => {
                // Somebody was faster with this number, which only we ourselves can have been.
                shared.buckets[call.bucket].sequence.fetch_max(stored, Ordering::Relaxed);
                put_back(shared, call);
                all = false;
            }
            Err(error) => {
                put_back(shared, call);
                all = false;
                if has_no_script(&error) {
                    let mut connection = connection.clone();
                    // If this fails, so will the next call, and say so.
                    let _loaded = connection.load(&shared.scripts).await;
                } else if !told {
                    shared.failed(number, &error);
                    told = true;
                }
            }
        }
    }
    all
}

fn command(shared: &Shared, made: &Call) -> redis::Cmd {
    // Of each gateway the newest epoch that is stated here.
    let mut gateways: Vec<(Arc<str>, u64)> = Vec::new();
    let mut stated = Vec::with_capacity(made.users.len());
    for (user_id, _) in &made.users {
        let mut entries = Vec::new();
        for session in shared.local.of(user_id) {
            // Without an epoch its gateway's life is over, and its own end is about to be told.
            let Some(epoch) = shared.epoch(session.address.gateway) else { continue };
            match gateways.iter_mut().find(|(name, _)| *name == session.gateway_id) {
                Some((_, newest)) => *newest = epoch.max(*newest),
                None => gateways.push((Arc::clone(&session.gateway_id), epoch)),
            }
            entries.push(Entry::new(&session, shared.owner, epoch).encode());
        }
        stated.push((prefix_of(user_id), entries));
    }
    let keys = &shared.keys;
    let mut names = vec![keys.entries(made.bucket), keys.owners(made.bucket)];
    names.extend(gateways.iter().map(|(name, _)| keys.epoch(made.bucket, name)));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut command = call(&shared.scripts.put, &names);
    command
        .arg(&shared.owner.0[..])
        .arg(made.sequence)
        .arg(EPOCH_REMEMBERED_MS)
        .arg(gateways.len());
    for (name, epoch) in &gateways {
        command.arg(&**name).arg(&epoch.to_be_bytes()[..]);
    }
    for (prefix, entries) in &stated {
        command.arg(&prefix[..]).arg(entries.len());
        for entry in entries {
            command.arg(&entry[..]);
        }
    }
    command
}

enum Reply {
    /// It is stated. What others state of each user, and which entries were refused.
    Done { stored: u64, found: Vec<Vec<Entry>>, refused: Vec<Entry> },
    /// It came too late and changed nothing.
    Late { stored: u64 },
}

fn read(reply: Value) -> RedisResult<Reply> {
    let (stored, rest): (u64, Vec<Value>) = match reply {
        Value::Array(mut parts) if !parts.is_empty() => {
            let rest = parts.split_off(1);
            (redis::from_redis_value(parts.remove(0)).map_err(|_| garbled())?, rest)
        }
        _ => return Err(garbled()),
    };
    let mut rest = rest.into_iter();
    let (Some(found), Some(refused)) = (rest.next(), rest.next()) else {
        return Ok(Reply::Late { stored });
    };
    let found: Vec<Vec<Vec<u8>>> = redis::from_redis_value(found).map_err(|_| garbled())?;
    let refused: Vec<Vec<u8>> = redis::from_redis_value(refused).map_err(|_| garbled())?;
    // One that cannot be read is not ours: passed over, so that it spoils nothing else.
    let entries = |raw: Vec<Vec<u8>>| raw.iter().filter_map(|entry| decode(entry)).collect();
    Ok(Reply::Done {
        stored,
        found: found.into_iter().map(entries).collect(),
        refused: entries(refused),
    })
}

fn done(shared: &Shared, call: Call, stored: u64, found: Vec<Vec<Entry>>, refused: Vec<Entry>) {
    let bucket = &shared.buckets[call.bucket];
    bucket.acknowledged.fetch_max(call.sequence, Ordering::AcqRel);
    if stored < call.acknowledged {
        shared.lose(call.bucket);
    }
    for ((user_id, waiting), entries) in call.users.into_iter().zip(found) {
        let mut is_late = waiting.is_late;
        for waiter in waiting.waiters {
            // Who has given up waiting went on without.
            is_late |= waiter.send(entries.clone()).is_err();
        }
        if is_late {
            for session in shared.local.of(&user_id) {
                shared.take_over(&session, &entries);
            }
        }
    }
    count(&shared.counted.fenced, refused.len());
    for entry in refused {
        tracing::info!(
            user_id = %entry.user_id,
            gateway_id = %entry.gateway_id,
            "a session of an earlier life of its gateway is not online"
        );
        shared.local.remove(&entry.user_id, |session| {
            session.gateway_id == entry.gateway_id
                && session.address.shard == entry.shard
                && session.address.session_id == entry.session_id
                && session.logged_in_at_ms == entry.logged_in_at_ms
                && shared.epoch(session.address.gateway) == Some(entry.gateway_epoch)
        });
    }
}

/// Whoever waited is let go; what is to be stated waits on.
fn put_back(shared: &Shared, call: Call) {
    for (user_id, waiting) in call.users {
        drop(waiting);
        if !shared.queue_of(&user_id).put_back(&user_id) {
            shared.lose(call.bucket);
        }
    }
}
