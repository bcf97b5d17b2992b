//! Keeps the connection and the lease, and looks whether Redis still knows what it acknowledged.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use redis::{RedisError, RedisResult, Value};
use tokio::time::sleep;

use super::{
    BUCKETS, Shared,
    connection::{Connection, Connector, call, garbled, has_no_script},
    count,
    entry::OwnerId,
    fleet::Lease,
    superseded,
};

/// The first pause between two attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// How long a lease that has ended is remembered, in leases.
const REMEMBERED_LEASES: u32 = 60;

/// What the next beat has to know of the one before.
#[derive(Default)]
struct Pulse {
    last: Option<Instant>,
}

/// Connects, again and again, for ever; while connected, beats.
pub(super) async fn run(shared: Arc<Shared>, connector: Connector) {
    let mut number = 0;
    let mut pulse = Pulse::default();
    loop {
        number += 1;
        let connection = connect(&shared, &connector, number, &mut pulse).await;
        shared.connection.send_replace(Some((number, connection.clone())));
        tracing::info!(owner = ?shared.owner, "the registry's Redis answers");
        if let Err(error) = keep(&shared, &connection, number, &mut pulse).await {
            // A cluster is not given up elsewhere.
            if shared.connection.send_replace(None).is_some() {
                shared.away(&error);
            }
        }
    }
}

/// A connection over which a beat has gone: what is read with it is judged by leases of now. Of a Cluster
/// one of which any master answers.
async fn connect(
    shared: &Shared,
    connector: &Connector,
    number: u64,
    pulse: &mut Pulse,
) -> Connection {
    let mut pause = PAUSE_MIN;
    let mut quiet = false;
    loop {
        let connected = async {
            let mut connection = connector.connect(&shared.scripts).await?;
            if let Err(error) = beat(shared, &mut connection, pulse).await {
                // The master that has the leases is away: without a beat everybody is in doubt, which
                // counts, and a bucket of another master is as good as ever.
                if !connection.is_cluster() || !look(shared, &connection, number, true).await {
                    return Err(error);
                }
                tracing::warn!(%error, "the lease in the registry's Redis was not renewed");
            }
            Ok::<_, RedisError>(connection)
        };
        match connected.await {
            Ok(connection) => return connection,
            Err(error) if quiet => tracing::debug!(%error, "Redis is not reached"),
            Err(error) => {
                quiet = true;
                tracing::warn!(%error, "the registry's Redis is not reached; this is tried again");
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(shared.settings.reconnect_max).max(PAUSE_MIN);
    }
}

/// Beats until the connection is of no more use. Err if it is for a beat that failed.
async fn keep(
    shared: &Shared,
    connection: &Connection,
    number: u64,
    pulse: &mut Pulse,
) -> Result<(), RedisError> {
    let mut connection = connection.clone();
    let mut watched = shared.connection.subscribe();
    loop {
        look(shared, &connection, number, false).await;
        let given_up = |known: &Option<(u64, Connection)>| {
            known.as_ref().is_none_or(|(known, _)| *known != number)
        };
        tokio::select! {
            () = sleep(shared.settings.beat_interval) => {}
            // The sender lives in `shared`, so this ends only when it is true.
            _ = watched.wait_for(given_up) => return Ok(()),
        }
        if let Err(error) = beat(shared, &mut connection, pulse).await {
            // Of a cluster it may be one master alone that is away. Nobody's lease runs out meanwhile.
            if !connection.is_cluster() || !look(shared, &connection, number, true).await {
                return Err(error);
            }
            count(&shared.counted.calls_failed, 1);
            tracing::warn!(%error, "the lease in the registry's Redis was not renewed");
            continue;
        }
        if let Err(error) = superseded::remove(shared, &connection).await {
            tracing::debug!(%error, "what has moved here was not removed: it counts until its process is gone");
        }
    }
}

/// How far the clock of leases moves from one beat to the next at most. Two beats late is late; more
/// was Redis.
fn step_max(shared: &Shared) -> Duration {
    shared.settings.beat_interval * 2
}

fn beat_command(shared: &Shared, lease: Duration) -> redis::Cmd {
    let settings = &shared.settings;
    let remembered = settings.lease * REMEMBERED_LEASES + settings.grace;
    let mut command = call(&shared.scripts.beat, &[&shared.keys.fleet()]);
    command
        .arg(&shared.owner.0[..])
        .arg(lease.as_millis() as u64)
        .arg(step_max(shared).as_millis() as u64)
        .arg(remembered.as_millis() as u64);
    command
}

/// Ends the lease, so that the others doubt at once what this process has stated. Nothing may beat
/// after it.
pub(super) async fn leave(shared: &Shared, connection: &Connection) -> RedisResult<()> {
    once(shared, connection, beat_command(shared, Duration::ZERO)).await.map(drop)
}

/// Renews the lease and hears of the others.
async fn beat(shared: &Shared, connection: &mut Connection, pulse: &mut Pulse) -> RedisResult<()> {
    let command = beat_command(shared, shared.settings.lease);
    let mut reply = once(shared, connection, command.clone()).await;
    if reply.as_ref().is_err_and(has_no_script) {
        connection.load(&shared.scripts).await?;
        reply = once(shared, connection, command).await;
    }
    let Value::Array(parts) = reply? else { return Err(garbled()) };
    let mut parts = parts.into_iter();
    let held: i64 = number(parts.next())?;
    let mut owners = HashMap::new();
    while let Some(owner) = parts.next() {
        let left_ms: i64 = number(parts.next())?;
        let Value::BulkString(owner) = owner else { return Err(garbled()) };
        // One that is not eight bytes long is not one of ours.
        if let Some(owner) = OwnerId::read(&owner) {
            let lease = match left_ms {
                1.. => Lease::Holds,
                _ => Lease::Ended(Duration::from_millis(left_ms.unsigned_abs())),
            };
            owners.insert(owner, lease);
        }
    }
    let now = Instant::now();
    let last = pulse.last.replace(now);
    let passed = last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
    let gone = {
        let mut fleet = shared.fleet();
        fleet.update(owners, passed.min(step_max(shared)));
        !fleet.gone().is_empty()
    };
    if gone {
        shared.gone.notify_one();
    }
    // Without a lease the others took us for gone, and may have removed what we had stated.
    if held == 0 && last.is_some() {
        tracing::info!(
            "this process's lease had ended in Redis: all of its sessions are stated anew"
        );
        (0..BUCKETS).for_each(|bucket| shared.lose(bucket));
    }
    Ok(())
}

async fn once(shared: &Shared, connection: &Connection, command: redis::Cmd) -> RedisResult<Value> {
    let mut replies = connection.run_each(vec![command], shared.settings.timeout).await;
    replies.pop().unwrap_or_else(|| Err(garbled()))
}

fn number(value: Option<Value>) -> RedisResult<i64> {
    redis::from_redis_value(value.unwrap_or_default()).map_err(|_| garbled())
}

/// Asks every bucket for the number of our last call, or with `all` false every bucket that has
/// acknowledged one. One that knows a smaller number than it has acknowledged is stated anew. Says
/// whether any answered.
async fn look(shared: &Shared, connection: &Connection, number: u64, all: bool) -> bool {
    let acknowledged = |bucket: usize| shared.buckets[bucket].acknowledged.load(Ordering::Acquire);
    let asked: Vec<(usize, u64)> =
        (0..BUCKETS).map(|b| (b, acknowledged(b))).filter(|(_, known)| all || *known > 0).collect();
    let commands = asked.iter().map(|(bucket, _)| {
        let mut command = redis::cmd("HGET");
        command.arg(shared.keys.owners(*bucket)).arg(&shared.owner.0[..]);
        command
    });
    let replies = connection.run_each(commands.collect(), shared.settings.timeout).await;
    let mut lost = 0;
    let mut failed = None;
    let mut answered = false;
    for ((bucket, known), reply) in asked.into_iter().zip(replies) {
        let stored = match reply.map(redis::from_redis_value::<Option<u64>>) {
            Ok(Ok(stored)) => stored.unwrap_or(0),
            Ok(Err(_)) => 0,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        answered = true;
        if stored < known {
            // Found once: unless something was stated since, that is now all that it must know.
            let _stated_since = shared.buckets[bucket].acknowledged.compare_exchange(
                known,
                stored,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            shared.lose(bucket);
            lost += 1;
        }
    }
    if lost > 0 {
        tracing::warn!(
            buckets = lost,
            of = BUCKETS,
            "Redis has lost what it had taken; it is told again"
        );
    }
    if let Some(error) = failed {
        shared.failed(number, &error);
    }
    answered
}
