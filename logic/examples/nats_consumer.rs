//! A business service that consumes what clients REPORT, straight from NATS.
//!
//! ```text
//! cargo run -p millrace-logic --example nats_consumer -- \
//!     --nats nats://127.0.0.1:4222 --topic clicks --consumer counting
//! ```
//!
//! Why from NATS and not through Millrace's API (`examples/topic_consumer.py`)? A team that runs NATS
//! already has its clients, its accounts and its dashboards; several copies of the service share one
//! durable consumer, so the work spreads over them; and it goes on while every logic is down. What it
//! gives up is the strict order across copies: two copies may deal with two records of one key at
//! the same time. Whoever needs the order runs one copy, or uses the API, which gives a consumer's
//! records to one reader at a time.
//!
//! What to copy from here: a durable consumer with explicit acknowledgements; each record dealt with
//! *before* it is acknowledged, in a way that bears being done twice (`Nats-Msg-Id` tells copies
//! apart); a record that fails is given back with a growing delay; after so many deliveries it is put
//! aside where somebody will look, and only then ended; and whatever fails on the way, everything is
//! opened anew: NATS may have been away, or the stream deleted, and with it the consumer.
#![expect(clippy::print_stdout, reason = "what it reads is what it prints")]

use std::time::Duration;

use async_nats::jetstream::{
    self, AckKind, Message,
    consumer::{AckPolicy, pull},
};
use clap::Parser;
use futures::StreamExt as _;

/// Deliveries of one record before it is put aside.
const DELIVERIES_MAX: i64 = 5;

/// How often NATS says, while it has no record for us, that it still has our request; without, it is
/// asked anew.
const HEARTBEAT: Duration = Duration::from_secs(2);
const PULL: Duration = Duration::from_secs(30);

/// Between attempts.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Parser)]
struct Arguments {
    /// Any server of the cluster.
    #[arg(long, default_value = "nats://127.0.0.1:4222")]
    nats: String,
    /// `bus.nats.prefix` of the fleet.
    #[arg(long, default_value = "millrace")]
    prefix: String,
    /// The destination of the reports.
    #[arg(long)]
    topic: String,
    /// The service's name: its copies share it, and nobody else does.
    #[arg(long)]
    consumer: String,
    /// How long a record may take, in seconds, before NATS gives it to another copy.
    #[arg(long, default_value_t = 30)]
    ack_wait_s: u64,
    /// End after so many records; 0 goes on for ever.
    #[arg(long, default_value_t = 0)]
    records: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), async_nats::Error> {
    let arguments = Arguments::parse();
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect();
    let jetstream = jetstream::new(client.connect(&arguments.nats).await?);
    let mut done = 0;
    loop {
        match consume(&jetstream, &arguments, &mut done).await {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("{error}; opening it again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Deals with records until as many as wanted are done, or something fails.
async fn consume(
    jetstream: &jetstream::Context,
    arguments: &Arguments,
    done: &mut u64,
) -> Result<(), async_nats::Error> {
    // Made with the first report. A dot is no character of a stream's name.
    let name = format!("{}_topic_{}", arguments.prefix, arguments.topic.replace('.', "="));
    let stream = jetstream.get_stream(&name).await?;
    let config = pull::Config {
        durable_name: Some(arguments.consumer.clone()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(arguments.ack_wait_s),
        // Nothing is given up in silence: the end is ours to decide, below.
        max_deliver: -1,
        ..pull::Config::default()
    };
    let consumer = stream.get_or_create_consumer(&arguments.consumer, config).await?;
    let mut messages = consumer.stream().heartbeat(HEARTBEAT).expires(PULL).messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let deliveries = message.info().map_or(1, |info| info.delivered);
        match deal_with(&message) {
            // Waits until NATS has it: an acknowledgement that is lost is a record dealt with twice.
            Ok(()) => message.double_ack().await?,
            Err(reason) if deliveries >= DELIVERIES_MAX => {
                put_aside(jetstream, arguments, &message, &reason).await?;
                message.double_ack_with(AckKind::Term).await?;
            }
            Err(reason) => {
                eprintln!("delivery {deliveries} failed: {reason}");
                let delay = Duration::from_millis(200 * 2_u64.pow(deliveries.clamp(0, 10) as u32));
                message.ack_with(AckKind::Nak(Some(delay))).await?;
                continue;
            }
        }
        *done += 1;
        if *done == arguments.records {
            return Ok(());
        }
    }
    Err("the stream of records ended".into())
}

/// What your service does. Do it so that twice is the same as once.
fn deal_with(message: &Message) -> Result<(), String> {
    let header = |name: &str| -> String {
        let headers = message.headers.as_ref();
        headers.and_then(|headers| headers.get(name)).map(ToString::to_string).unwrap_or_default()
    };
    let sequence = message.info().map_or(0, |info| info.stream_sequence);
    // Of a key, every byte but printable ASCII is %XX.
    let (key, id) = (header("Millrace-Key"), header("Nats-Msg-Id"));
    let payload = std::str::from_utf8(&message.payload).map_err(|_| "no UTF-8".to_owned())?;
    println!("{sequence} {key} {id} {payload}");
    Ok(())
}

/// Keeps a copy of a record that nobody can deal with, with the reason, for a human.
async fn put_aside(
    jetstream: &jetstream::Context,
    arguments: &Arguments,
    message: &Message,
    reason: &str,
) -> Result<(), async_nats::Error> {
    let subject = format!("{}-failed.{}", arguments.prefix, arguments.consumer);
    let stream = jetstream::stream::Config {
        name: format!("{}-failed_{}", arguments.prefix, arguments.consumer),
        subjects: vec![subject.clone()],
        max_bytes: 64 << 20,
        ..jetstream::stream::Config::default()
    };
    jetstream.get_or_create_stream(stream).await?;
    let mut headers = message.headers.clone().unwrap_or_default();
    headers.insert("Failed", reason.replace(['\r', '\n'], " "));
    eprintln!("put aside in {subject}: {reason}");
    jetstream.publish_with_headers(subject, headers, message.payload.clone()).await?.await?;
    Ok(())
}
