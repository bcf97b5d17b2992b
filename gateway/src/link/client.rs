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
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use super::{
    FromLink,
    outbound::OutboundStream,
    port::{LinkPort, ShardGone},
};

/// HTTP/2 window of the stream and of its connection. 64 KiB, the protocol's default, costs half
/// of the throughput; credits bound what is under way, not this.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// HTTP/2 frames of a busy link; measured a quarter faster than the default of 16 KiB.
const HTTP2_FRAME_BYTES_MAX: u32 = 1024 * 1024;

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
    /// Batches in the ring from the shard to a stream.
    pub batches_max: usize,
    /// Largest encoded batch in either direction, in bytes. A larger one ends the stream.
    pub message_bytes_max: usize,
}

/// The tonic endpoint for a URI, tuned as measured.
///
/// # Errors
/// A sentence, when the URI cannot be used.
pub(crate) fn endpoint(uri: &str, settings: &LinkSettings) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(uri.to_owned())
        .map_err(|_| format!("{uri:?} is not a URI such as \"http://127.0.0.1:9700\""))?;
    match endpoint.uri().scheme_str() {
        Some("http") if endpoint.uri().host().is_some_and(|host| !host.is_empty()) => {}
        _ => return Err(format!("{uri:?} must begin with http:// and name a host")),
    }
    let ping = (settings.lease / 3).max(Duration::from_secs(1));
    Ok(endpoint
        .connect_timeout(settings.connect_timeout)
        .tcp_nodelay(true)
        .http2_adaptive_window(false)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES_MAX)
        .http2_keep_alive_interval(ping)
        .keep_alive_timeout(ping)
        .keep_alive_while_idle(true))
}

/// What the administrative side knows of one link. Written by its task, read by anyone.
#[derive(Debug)]
pub(crate) struct LinkStatus {
    /// The shard's number.
    pub shard: u8,
    /// The endpoint as configured.
    pub endpoint: String,
    up: AtomicBool,
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

/// What is known of one link at one moment.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LinkStatusSnapshot {
    /// The shard's number.
    pub shard: u8,
    /// The endpoint as configured.
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
    pub(crate) fn new(shard: u8, endpoint: String) -> Self {
        Self {
            shard,
            endpoint,
            up: AtomicBool::new(false),
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
            endpoint: self.endpoint.clone(),
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

    fn came_up(&self) {
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

/// Serves one link until its shard leaves.
pub(super) async fn run(
    mut port: LinkPort,
    endpoint: Endpoint,
    settings: LinkSettings,
    status: Arc<LinkStatus>,
) {
    let mut attempt = 0;
    loop {
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
                endpoint = %status.endpoint,
                reason = %ended,
                "link lost"
            );
        } else if attempt == 0 {
            tracing::warn!(
                shard = status.shard,
                endpoint = %status.endpoint,
                reason = %ended,
                "no link yet"
            );
        }
        let wait = backoff(attempt, settings.reconnect_min, settings.reconnect_max);
        attempt = attempt.saturating_add(1);
        tokio::select! {
            () = sleep(wait) => {}
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
    // The engine uses one link at a time. On the others it says no Hello, and as long as it does
    // not, the connection stands by without a stream.
    let is_wanted = tokio::select! {
        is_wanted = batches.wait() => is_wanted,
        () = port.abandoned() => false,
    };
    let ended = if is_wanted {
        let stream = OutboundStream::new(batches, status.clone());
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
            status.came_up();
            tracing::info!(
                shard = status.shard,
                endpoint = %status.endpoint,
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

    use super::{LinkSettings, backoff, endpoint};

    fn settings() -> LinkSettings {
        LinkSettings {
            lease: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
            batches_max: 8,
            message_bytes_max: 1 << 20,
        }
    }

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

    #[test]
    fn an_endpoint_is_a_plain_http_uri_with_a_host() {
        assert!(endpoint("http://127.0.0.1:9700", &settings()).is_ok());
        for refused in ["127.0.0.1:9700", "https://logic:9700", "", "http://"] {
            assert!(endpoint(refused, &settings()).is_err(), "{refused}");
        }
    }
}
