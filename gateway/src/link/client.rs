//! Keeps one stream to one logic endpoint alive for one shard.
//!
//! Connect, open the stream, pass batches on until it ends or falls silent, tell the shard, wait
//! with full jitter, again. The shard learns of a link as soon as the HTTP/2 connection stands, and
//! the stream is opened with the shard's Hello: a server may well wait for that before it answers.
//!
//! It decides nothing about sessions or requests; the engine does, when it hears of the end.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use millrace_protocol::link::{
    ConnectRequest, ConnectResponse, GatewayState, link_service_client::LinkServiceClient,
    logic_event,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};

use super::{
    FromLink,
    outbound::OutboundStream,
    port::{LinkPort, ShardGone},
    target::Target,
};

/// How long a task whose shard has left waits for logic to end the stream as well.
const FAREWELL: Duration = Duration::from_millis(500);

/// Times and sizes of every link of a process.
#[derive(Clone, Debug)]
pub(crate) struct LinkSettings {
    /// Our side of the lease: silence for as long ends a stream. Logic may shorten it with
    /// `HelloReply.lease_ms`.
    pub lease: Duration,
    /// Longest attempt to connect.
    pub connect_timeout: Duration,
    /// First wait between attempts; it doubles up to `reconnect_max`, and the actual wait is
    /// anything between 0 and it.
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    /// The least time between two writes of a stream while its batches have company; see
    /// [`OutboundStream`].
    pub batch_interval: Duration,
    /// Batches in the ring from the shard to a stream.
    pub batches_max: usize,
    /// Largest encoded batch in either direction, in bytes. A larger one ends the stream.
    pub message_bytes_max: usize,
}

/// What the administrative side knows of one link. Written by its task, read by anyone.
#[derive(Debug)]
pub(crate) struct LinkStatus {
    /// The shard's number.
    pub shard: u8,
    /// The link's place in its shard, which is the engine's id of it.
    pub place: u8,
    /// The endpoint, as configured or as an address of a name; empty while the place leads nowhere.
    endpoint: Mutex<Arc<str>>,
    /// The link is at its endpoint, or may be: nobody else gets its place.
    holds_place: AtomicBool,
    up: AtomicBool,
    /// The logic that answered last, in its present life.
    logic: Mutex<Option<Life>>,
    streams: AtomicU64,
    failures: AtomicU64,
    batches_sent: AtomicU64,
    events_sent: AtomicU64,
    batches_received: AtomicU64,
    events_received: AtomicU64,
    last_error: Mutex<Option<String>>,
    /// What logic is told of this gateway; set once, before the links start.
    announced: OnceLock<GatewayState>,
    draining: AtomicBool,
}

/// One life of a logic process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Life {
    logic_id: String,
    epoch: u64,
}

/// What is known of one link at one moment.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LinkStatusSnapshot {
    /// The shard's number.
    pub shard: u8,
    /// The link's place in its shard.
    pub place: u8,
    /// The endpoint, as configured or as an address of a name; empty while the place leads nowhere.
    pub endpoint: String,
    /// Whether logic has answered Hello on a stream that is still open.
    pub up: bool,
    /// Streams that came up.
    pub streams: u64,
    /// Attempts and streams that failed.
    pub failures: u64,
    /// Batches sent, heartbeats included.
    pub batches_sent: u64,
    /// Events in them.
    pub events_sent: u64,
    /// Batches received, heartbeats included.
    pub batches_received: u64,
    /// Events in them.
    pub events_received: u64,
    /// Why the last failure was one.
    pub last_error: Option<String>,
}

impl LinkStatus {
    pub(crate) fn new(shard: u8, place: u8) -> Self {
        Self {
            shard,
            place,
            endpoint: Mutex::new("".into()),
            holds_place: AtomicBool::new(false),
            up: AtomicBool::new(false),
            logic: Mutex::new(None),
            streams: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            batches_sent: AtomicU64::new(0),
            events_sent: AtomicU64::new(0),
            batches_received: AtomicU64::new(0),
            events_received: AtomicU64::new(0),
            last_error: Mutex::new(None),
            announced: OnceLock::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// The endpoint; empty while the place leads nowhere.
    pub fn endpoint(&self) -> Arc<str> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The place leads there from now on. Figures are an endpoint's, so they begin anew with another.
    pub(crate) fn leads_to(&self, uri: &Arc<str>) {
        let mut endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        if *endpoint == *uri {
            return;
        }
        *endpoint = uri.clone();
        for figure in [
            &self.streams,
            &self.failures,
            &self.batches_sent,
            &self.events_sent,
            &self.batches_received,
            &self.events_received,
        ] {
            figure.store(0, Ordering::Relaxed);
        }
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.logic.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The logic that answered last.
    fn logic(&self) -> Option<Life> {
        self.logic.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another link of this shard that is up with the logic that this one was up with. It takes one
    /// stream from each shard, so each of the two would end the other's again and again.
    fn twin(&self, links: &[Arc<Self>]) -> Option<Arc<str>> {
        let logic = self.logic()?;
        let is_twin = |other: &&Arc<Self>| {
            other.shard == self.shard
                && other.place != self.place
                && other.is_up()
                && other.logic().as_ref() == Some(&logic)
        };
        links.iter().find(is_twin).map(|other| other.endpoint())
    }

    /// Said before the link looks where its place leads to.
    pub(super) fn hold_place(&self) {
        self.holds_place.store(true, Ordering::SeqCst);
    }

    /// The place leads nowhere, and the link has ended. Returns the endpoint that it had.
    pub(super) fn let_go_of_place(&self) -> Arc<str> {
        let mut endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        let had = std::mem::replace(&mut *endpoint, "".into());
        drop(endpoint);
        self.holds_place.store(false, Ordering::SeqCst);
        had
    }

    /// Whether the link is at its endpoint, or may be.
    pub(super) fn holds_its_place(&self) -> bool {
        self.holds_place.load(Ordering::SeqCst)
    }

    /// Says what logic shall be told of this gateway; the first word counts.
    pub fn announce(&self, state: GatewayState) {
        let _again = self.announced.set(state);
    }

    /// The gateway takes no clients any more.
    pub fn drains(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether it was said that the gateway takes no clients any more.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// What logic is to be told now.
    pub(super) fn state(&self) -> GatewayState {
        let announced = self.announced.get().cloned().unwrap_or_default();
        GatewayState { draining: self.is_draining(), ..announced }
    }

    /// Whether logic has answered Hello on a stream that is still open.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// The numbers at this moment.
    pub fn snapshot(&self) -> LinkStatusSnapshot {
        let last_error = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        LinkStatusSnapshot {
            shard: self.shard,
            place: self.place,
            endpoint: self.endpoint().to_string(),
            up: self.is_up(),
            streams: self.streams.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            batches_sent: self.batches_sent.load(Ordering::Relaxed),
            events_sent: self.events_sent.load(Ordering::Relaxed),
            batches_received: self.batches_received.load(Ordering::Relaxed),
            events_received: self.events_received.load(Ordering::Relaxed),
            last_error,
        }
    }

    pub(super) fn sent(&self, batch: &ConnectRequest) {
        self.batches_sent.fetch_add(1, Ordering::Relaxed);
        self.events_sent.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
    }

    fn received(&self, batch: &ConnectResponse) {
        self.batches_received.fetch_add(1, Ordering::Relaxed);
        self.events_received.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
    }

    fn came_up(&self, logic: Life) {
        *self.logic.lock().unwrap_or_else(PoisonError::into_inner) = Some(logic);
        self.up.store(true, Ordering::Relaxed);
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    fn went_down(&self, error: Option<String>) {
        self.up.store(false, Ordering::Relaxed);
        if error.is_some() {
            self.failures.fetch_add(1, Ordering::Relaxed);
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
        }
    }
}

/// Why a stream ended, or did not begin.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the shard has left")]
    ShardGone,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("logic ended the stream: {0}")]
    Status(String),
    #[error("logic ended the stream in good order")]
    EndOfStream,
    #[error("logic was silent for {0:?}")]
    Silent(Duration),
    #[error("logic did not begin with HelloReply")]
    NoHelloReply,
}

impl From<ShardGone> for Ended {
    fn from(_: ShardGone) -> Self {
        Self::ShardGone
    }
}

/// Serves one link until its shard leaves. Where it leads to may change, and is looked at between two
/// streams: one that works is never ended for it.
pub(super) async fn run(
    mut port: LinkPort,
    mut targets: watch::Receiver<Option<Target>>,
    settings: LinkSettings,
    status: Arc<LinkStatus>,
    links: Arc<[Arc<LinkStatus>]>,
) {
    let mut attempt = 0;
    let mut has_twin = false;
    loop {
        status.hold_place();
        let target = targets.borrow_and_update().clone();
        let Some(Target { uri, endpoint }) = target else {
            let had = status.let_go_of_place();
            if !had.is_empty() {
                tracing::info!(
                    shard = status.shard,
                    endpoint = %had,
                    "given up: the link has ended, and its name has this address no more"
                );
            }
            attempt = 0;
            tokio::select! {
                changed = targets.changed() => if changed.is_err() {
                    // Whoever could name another is gone.
                    return port.abandoned().await;
                },
                () = port.abandoned() => return,
            }
            continue;
        };
        status.leads_to(&uri);
        if let Some(twin) = status.twin(&links) {
            if !std::mem::replace(&mut has_twin, true) {
                tracing::warn!(
                    shard = status.shard,
                    endpoint = %uri,
                    %twin,
                    "both endpoints are one logic process, which takes one stream from each shard: this \
                     link waits while the other is up; take one of them out of logic.endpoints"
                );
            }
            tokio::select! {
                () = sleep(settings.reconnect_max) => {}
                Ok(()) = targets.changed() => {}
                () = port.abandoned() => return,
            }
            continue;
        }
        has_twin = false;
        let opened_before = status.streams.load(Ordering::Relaxed);
        let ended = one_stream(&mut port, &endpoint, &settings, &status).await;
        let was_up = status.streams.load(Ordering::Relaxed) != opened_before;
        if matches!(ended, Ended::ShardGone) {
            status.went_down(None);
            return;
        }
        status.went_down(Some(ended.to_string()));
        if was_up {
            attempt = 0;
            tracing::warn!(
                shard = status.shard,
                endpoint = %uri,
                reason = %ended,
                "link lost"
            );
        } else if attempt == 0 {
            tracing::warn!(
                shard = status.shard,
                endpoint = %uri,
                reason = %ended,
                "no link yet"
            );
        }
        let wait = backoff(attempt, settings.reconnect_min, settings.reconnect_max);
        attempt = attempt.saturating_add(1);
        tokio::select! {
            () = sleep(wait) => {}
            // Of a place that leads where it always led nobody can say more.
            Ok(()) = targets.changed() => attempt = 0,
            () = port.abandoned() => return,
        }
    }
}

/// Connects, and carries batches until the stream ends. The shard has heard of its end when this
/// returns.
async fn one_stream(
    port: &mut LinkPort,
    endpoint: &Endpoint,
    settings: &LinkSettings,
    status: &Arc<LinkStatus>,
) -> Ended {
    let connected = tokio::select! {
        connected = timeout(settings.connect_timeout, endpoint.connect()) => connected,
        () = port.abandoned() => return Ended::ShardGone,
    };
    let channel = match connected {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Ended::Connect(causes(&error)),
        Err(_) => return Ended::Connect(format!("no answer in {:?}", settings.connect_timeout)),
    };
    let (outbound, mut batches) = port.stream(settings.batches_max);
    if let Err(gone) = port.deliver(FromLink::Up(outbound)).await {
        return gone.into();
    }
    // The shard's Hello opens the stream: a server may well wait for it before it answers.
    let is_wanted = tokio::select! {
        is_wanted = batches.wait() => is_wanted,
        () = port.abandoned() => false,
    };
    let ended = if is_wanted {
        let stream = OutboundStream::new(batches, status.clone(), settings.batch_interval);
        match carry(port, channel, stream, settings, status).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    } else {
        Ended::ShardGone
    };
    match port.deliver(FromLink::Down).await {
        Ok(()) => ended,
        Err(gone) => gone.into(),
    }
}

/// Carries batches from logic to the shard; only an end returns.
async fn carry(
    port: &mut LinkPort,
    channel: Channel,
    stream: OutboundStream,
    settings: &LinkSettings,
    status: &Arc<LinkStatus>,
) -> Result<std::convert::Infallible, Ended> {
    let mut lease = settings.lease;
    let mut client = LinkServiceClient::new(channel)
        .max_decoding_message_size(settings.message_bytes_max)
        .max_encoding_message_size(settings.message_bytes_max);
    let opened = tokio::select! {
        opened = timeout(lease, client.connect(stream)) => opened,
        () = port.abandoned() => return Err(Ended::ShardGone),
    };
    let mut inbound = opened
        .map_err(|_| Ended::Silent(lease))?
        .map_err(|status| Ended::Status(describe(&status)))?
        .into_inner();
    let mut heard_hello = false;
    let mut farewell: Option<Instant> = None;
    // One timer for the stream, looked at when it fires, and none for each batch.
    let mut heard = Instant::now();
    let silence = sleep(lease);
    tokio::pin!(silence);
    loop {
        let received = tokio::select! {
            biased;
            received = inbound.message() => received,
            () = port.abandoned(), if farewell.is_none() => {
                farewell = Some(Instant::now() + FAREWELL);
                continue;
            }
            () = until(farewell) => return Err(Ended::ShardGone),
            () = &mut silence => {
                if heard.elapsed() >= lease {
                    return Err(Ended::Silent(lease));
                }
                silence.as_mut().reset(heard + lease);
                continue;
            }
        };
        let batch = match received {
            Err(status) => return Err(Ended::Status(describe(&status))),
            Ok(None) => return Err(Ended::EndOfStream),
            Ok(Some(batch)) => batch,
        };
        status.received(&batch);
        if !heard_hello {
            let first = batch.events.first().and_then(|event| event.kind.as_ref());
            let Some(logic_event::Kind::HelloReply(reply)) = first else {
                return Err(Ended::NoHelloReply);
            };
            heard_hello = true;
            if reply.lease_ms != 0 {
                lease = lease.min(Duration::from_millis(reply.lease_ms.into()));
                silence.as_mut().reset(Instant::now() + lease);
            }
            let logic_id = reply.logic_id.clone();
            status.came_up(Life { logic_id, epoch: reply.logic_epoch });
            tracing::info!(
                shard = status.shard,
                endpoint = %status.endpoint(),
                logic_id = %reply.logic_id,
                logic_epoch = reply.logic_epoch,
                "link up"
            );
        }
        if farewell.is_none() {
            port.deliver(FromLink::Batch(batch)).await?;
        }
        // While the shard had no room nobody listened: that time is not logic's.
        heard = Instant::now();
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Full jitter: anything between 0 and the bound, which doubles with each attempt.
fn backoff(attempt: u32, min: Duration, max: Duration) -> Duration {
    let bound = min.saturating_mul(1_u32.checked_shl(attempt.min(30)).unwrap_or(u32::MAX)).min(max);
    Duration::from_micros(fastrand::u64(0..=bound.as_micros().min(u64::MAX.into()) as u64))
}

fn describe(status: &tonic::Status) -> String {
    match status.message() {
        "" => format!("{:?}", status.code()),
        message => format!("{:?}: {message}", status.code()),
    }
}

/// An error and what is behind it, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::backoff;

    #[test]
    fn waits_are_spread_over_everything_below_a_growing_bound() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        for attempt in [0, 1, 5, 6, 40, u32::MAX] {
            let bound = match attempt {
                0 => Duration::from_millis(100),
                1 => Duration::from_millis(200),
                5 => Duration::from_millis(3_200),
                _ => max,
            };
            let waits: Vec<_> = (0..2_000).map(|_| backoff(attempt, min, max)).collect();
            assert!(waits.iter().all(|wait| *wait <= bound));
            assert!(waits.iter().any(|wait| *wait < bound / 4), "attempt {attempt}");
            assert!(waits.iter().any(|wait| *wait > bound / 4 * 3), "attempt {attempt}");
        }
    }
}
