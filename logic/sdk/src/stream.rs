//! The life of one stream around its events: the Hello, the turn of its shard, and after the end the
//! lease. What happens in between is the [`reader`](crate::reader)'s.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, TryStreamExt};
use millrace_protocol::link::{ConnectRequest, Hello, gateway_event};
use tonic::Status;

use crate::backend::{Backend, Ended};
use crate::counters::count;
use crate::hub::{Hub, Shard, Turn};
use crate::outbox::LinkStream;
use crate::reader::{Batches, End, Reader};

/// Shortest lease a gateway may ask for; below it a busy machine would lose streams by chance.
const LEASE_MS_MIN: u32 = 100;

/// Serves one stream from its first batch to the start of its lease.
pub(crate) async fn serve<B: Backend>(
    hub: Arc<Hub>,
    backend: Arc<B>,
    link: Arc<LinkStream>,
    mut inbound: impl Batches,
) {
    let (hello, first) = match first_batch(&hub, &link, &mut inbound).await {
        Ok(Some(first)) => first,
        Ok(None) => return link.end(None, &hub.counters),
        Err(status) => {
            count(&hub.counters.streams_violated, 1);
            return link.end(Some(status), &hub.counters);
        }
    };
    loop {
        let (shard, older) = match hub.register(&hello) {
            Ok(registered) => registered,
            Err(status) => {
                tracing::warn!(gateway = %hello.gateway_id, epoch = hello.gateway_epoch, %status,
                    "a gateway's stream is refused");
                count(&hub.counters.streams_superseded, 1);
                return link.end(Some(status), &hub.counters);
            }
        };
        for earlier in older {
            hub.fence(&earlier, &*backend).await;
        }
        shard.claim(&link, &hub.counters);
        let mut turn = shard.turn.lock().await;
        if turn.retired {
            continue;
        }
        if link.is_over() {
            return;
        }
        turn.streams += 1;
        let stream = turn.streams;
        let lease = lease(&hub, &hello);
        let mut reader = Reader::new(&hub, &backend, &shard, &link, lease);
        reader.open(&hello);
        // A panic in the backend costs this stream, not the sessions' ends.
        let end = AssertUnwindSafe(reader.run(first, &mut inbound)).catch_unwind().await;
        drop(reader);
        let end = end.unwrap_or_else(|_| {
            End::Violation(Status::internal("the backend failed on a frame of this stream"))
        });
        return close(&hub, &backend, &shard, &mut turn, &link, (stream, lease), end).await;
    }
}

/// Waits for the Hello. `None`: the stream ended without one.
async fn first_batch(
    hub: &Hub,
    link: &LinkStream,
    inbound: &mut impl Batches,
) -> Result<Option<(Hello, ConnectRequest)>, Status> {
    let patience = Duration::from_millis(u64::from(hub.settings.lease_ms));
    let deadline = tokio::time::sleep(patience);
    tokio::pin!(deadline);
    let mut batch = loop {
        let received = tokio::select! {
            received = inbound.try_next() => received,
            () = &mut deadline => return Err(Status::deadline_exceeded("no Hello in time")),
            () = link.changed.notified() => return Ok(None),
        };
        match received {
            Ok(Some(batch)) if batch.events.is_empty() => {}
            Ok(Some(batch)) => break batch,
            Ok(None) | Err(_) => return Ok(None),
        }
    };
    if batch.sequence != 1 {
        return Err(Status::invalid_argument("the first event must have the number 1"));
    }
    let first = batch.events.remove(0);
    let Some(gateway_event::Kind::Hello(hello)) = first.kind else {
        return Err(Status::invalid_argument("the first event must be Hello"));
    };
    if hello.gateway_id.is_empty() {
        return Err(Status::invalid_argument("Hello without a gateway_id"));
    }
    if hello.window.is_none_or(|window| window.frames == 0 || window.bytes == 0) {
        return Err(Status::invalid_argument("Hello without a window: nothing could be sent"));
    }
    batch.sequence = 2;
    Ok(Some((hello, batch)))
}

/// The lease of a stream: ours, or less if the gateway asks for less.
fn lease(hub: &Hub, hello: &Hello) -> Duration {
    let asked = if hello.lease_ms == 0 { u32::MAX } else { hello.lease_ms };
    Duration::from_millis(u64::from(hub.settings.lease_ms.min(asked).max(LEASE_MS_MIN)))
}

/// Ends the stream and starts the lease of what it leaves behind.
async fn close<B: Backend>(
    hub: &Arc<Hub>,
    backend: &Arc<B>,
    shard: &Arc<Shard>,
    turn: &mut Turn,
    link: &Arc<LinkStream>,
    (stream, lease): (u64, Duration),
    end: End,
) {
    shard.attach(None);
    hub.drained.notify_waiters();
    let status = match end {
        End::Gone => None,
        End::Silent => {
            count(&hub.counters.streams_silent, 1);
            Some(Status::deadline_exceeded("nothing was heard for the lease"))
        }
        End::Violation(ref status) => {
            count(&hub.counters.streams_violated, 1);
            Some(status.clone())
        }
    };
    let sessions = shard.sessions().len();
    tracing::info!(gateway = %shard.gateway_id, shard = shard.number, sessions,
        status = status.as_ref().map(Status::message), "a gateway's stream ended");
    link.end(status, &hub.counters);
    if hub.stopping.is_cancelled() {
        return;
    }
    if matches!(end, End::Silent) || sessions == 0 {
        if sessions > 0 {
            count(&hub.counters.leases_expired, 1);
        }
        return hub.retire(shard, turn, &**backend, Ended::Lost).await;
    }
    let (hub, backend, shard) = (Arc::clone(hub), Arc::clone(backend), Arc::clone(shard));
    let tasks = hub.tasks.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(lease) => {}
            () = hub.stopping.cancelled() => return,
        }
        let mut turn = shard.turn.lock().await;
        if turn.streams == stream && !turn.retired {
            count(&hub.counters.leases_expired, 1);
            tracing::warn!(gateway = %shard.gateway_id, shard = shard.number, sessions,
                "a gateway's lease ran out");
            hub.retire(&shard, &mut turn, &*backend, Ended::Lost).await;
        }
    });
}
