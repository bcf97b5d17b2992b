//! The connection: how it is made, how long anything waits for it, and what its failures mean.
//!
//! Nothing here waits without end. One question may take `attempt_timeout_ms`; a call asks again, with
//! growing pauses, until `patience_ms` is over, and is refused then. While the connection is down
//! nothing is sent at all, so that a NATS that comes back is not met by a heap of old questions. The
//! connection itself is tried again for ever, at most [`RECONNECT_PAUSE_MAX`] apart.

use std::{
    error::Error as _,
    future::Future,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event, HeaderMap,
    connection::State,
    jetstream::{
        self, Context, ErrorCode,
        context::{ContextBuilder, GetStreamError, GetStreamErrorKind, PublishErrorKind},
        message::PublishMessage,
    },
};
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};

use super::NatsBusSettings;
use crate::bus::BusError;

/// Pauses between attempts to connect.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(50);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Pauses between attempts of a call.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How often a silent connection is asked whether it lives; it is given up after three.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Commands, and notifications of one subscription of the bus, that wait in this process.
const COMMANDS_QUEUED_MAX: usize = 1_024;
const NOTIFICATIONS_QUEUED_MAX: usize = 4_096;

/// What happened since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Attempts after the first.
    pub again: AtomicU64,
    /// Calls that were refused because NATS did not answer.
    pub refused: AtomicU64,
    /// Records put aside.
    pub dead_letters: AtomicU64,
    /// Streams that were there, and had to be made again.
    pub streams_made_again: AtomicU64,
}

/// A connection with its bounds.
pub(super) struct Nats {
    pub client: Client,
    pub context: Context,
    pub settings: NatsBusSettings,
    pub counters: Counters,
    /// Whether the stream of rows was there when it was last looked for.
    pub rows_seen: AtomicBool,
}

/// Why a message was not stored.
pub(super) enum PutError {
    /// No stream takes the subject: it is gone, or JetStream is not up yet.
    NoStream,
    /// Somebody else has written since.
    Outrun,
    /// Anything else.
    Bus(BusError),
}

/// Whether a connection hears what it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    Wanted,
    Unwanted,
}

/// A connection that is made in the background and made again for ever. What a subscription gets
/// beyond `messages_queued_max` waiting messages is dropped.
///
/// # Errors
/// If an address or a file of the settings cannot be used.
pub(crate) async fn connect_client(
    settings: &NatsBusSettings,
    messages_queued_max: usize,
    echo: Echo,
) -> Result<Client, BusError> {
    let wrong = |what: &str, error: String| {
        BusError::Unavailable(format!("{what} cannot be used: {error}"))
    };
    let mut options = ConnectOptions::new();
    if !settings.credentials_file.as_os_str().is_empty() {
        let loaded = options.credentials_file(&settings.credentials_file).await;
        options = loaded.map_err(|e| wrong("the credentials file", e.to_string()))?;
    }
    if !settings.certificates_file.as_os_str().is_empty() {
        options = options.add_root_certificates(settings.certificates_file.clone());
    }
    if echo == Echo::Unwanted {
        options = options.no_echo();
    }
    let options = options
        .name("millrace-logic")
        .retry_on_initial_connect()
        .connection_timeout(settings.attempt_timeout())
        .request_timeout(Some(settings.attempt_timeout()))
        .ping_interval(PING_INTERVAL)
        .client_capacity(COMMANDS_QUEUED_MAX)
        .subscription_capacity(messages_queued_max)
        .reconnect_delay_callback(|attempts| {
            let doubled = RECONNECT_PAUSE_MIN.saturating_mul(1 << attempts.min(8));
            doubled.min(RECONNECT_PAUSE_MAX)
        })
        .event_callback(|event| async move {
            match event {
                Event::Connected => tracing::info!("connected to NATS"),
                Event::Disconnected => tracing::warn!("NATS is away; it is tried again"),
                // Notifications that were dropped are made up for by looking again, and events that
                // were are missed with notice.
                Event::SlowConsumer(_) => {}
                // One for each attempt to connect; that it is away was said.
                Event::ClientError(error) => tracing::debug!(%error, "NATS"),
                other => tracing::warn!(event = %other, "NATS"),
            }
        });
    let client = options.connect(settings.servers.clone()).await;
    client.map_err(|error| wrong("the addresses of NATS", error.to_string()))
}

impl Nats {
    /// Begins to connect; whether NATS is there is seen by the first call.
    pub async fn connect(settings: NatsBusSettings) -> Result<Self, BusError> {
        let client = connect_client(&settings, NOTIFICATIONS_QUEUED_MAX, Echo::Wanted).await?;
        let context = ContextBuilder::new()
            .timeout(settings.attempt_timeout())
            .ack_timeout(settings.attempt_timeout())
            .max_ack_inflight(settings.publishes_in_flight_max.max(1))
            .backpressure_on_inflight(true)
            .build(client.clone());
        let (counters, rows_seen) = (Counters::default(), AtomicBool::new(false));
        Ok(Self { client, context, settings, counters, rows_seen })
    }

    /// Asks, again if NATS does not answer, until it does or patience is over. What is asked must
    /// bear being asked twice.
    pub async fn patiently<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, BusError>
    where
        F: Future<Output = Result<T, BusError>>,
    {
        let deadline = Instant::now() + self.settings.patience();
        let mut pause = PAUSE_MIN;
        loop {
            let outcome = match self.client.connection_state() {
                State::Connected => timeout_at(deadline, attempt()).await.unwrap_or_else(|_| {
                    Err(BusError::Unavailable("NATS gave no answer in time".to_owned()))
                }),
                _ => Err(BusError::Unavailable("there is no connection to NATS".to_owned())),
            };
            let Err(BusError::Unavailable(reason)) = outcome else { return outcome };
            if Instant::now() + pause >= deadline {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                return Err(BusError::Unavailable(reason));
            }
            self.counters.again.fetch_add(1, Ordering::Relaxed);
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Has a stream store a message, and waits until it says so. Returns its sequence there.
    pub async fn put(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<u64, PutError> {
        let message = PublishMessage::build().payload(payload).headers(headers);
        let stored = match self.context.send_publish(subject, message).await {
            Ok(under_way) => under_way.await,
            Err(error) => Err(error),
        };
        let error = match stored {
            Ok(acknowledged) => return Ok(acknowledged.sequence),
            Err(error) => error,
        };
        Err(match error.kind() {
            PublishErrorKind::StreamNotFound => PutError::NoStream,
            PublishErrorKind::WrongLastSequence => PutError::Outrun,
            PublishErrorKind::MaxPayloadExceeded => {
                PutError::Bus(BusError::TooLarge(error.to_string()))
            }
            _ => {
                let cause = error.source().and_then(|cause| cause.downcast_ref());
                PutError::Bus(match cause {
                    Some(cause) => of_jetstream(cause),
                    None => BusError::Unavailable(error.to_string()),
                })
            }
        })
    }
}

/// Whether there is no such stream.
pub(super) fn is_missing(error: &GetStreamError) -> bool {
    match error.kind() {
        GetStreamErrorKind::JetStream(cause) => cause.error_code() == ErrorCode::STREAM_NOT_FOUND,
        _ => false,
    }
}

/// What an answer of JetStream means for a caller.
pub(super) fn of_jetstream(error: &jetstream::Error) -> BusError {
    match error.error_code() {
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES => BusError::Full(format!("NATS says: {error}")),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => BusError::TooLarge(error.to_string()),
        ErrorCode::MAXIMUM_STREAMS_LIMIT => BusError::TooMany(format!("NATS says: {error}")),
        _ => BusError::Unavailable(format!("NATS says: {error}")),
    }
}

/// A failure that says nothing about what was asked.
pub(super) fn unavailable(error: impl std::fmt::Display) -> BusError {
    BusError::Unavailable(error.to_string())
}
