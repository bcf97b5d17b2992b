//! What the chat domain counts, as Prometheus sees it.
//!
//! Counters and histograms live here; gauges of queues and tables are read when somebody scrapes.
//! No label holds a user, a connection or an address.

use std::sync::atomic::{AtomicU64, Ordering};

use millrace_logic_sdk::{CountersSnapshot, GatewayStatus};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry as MetricsRegistry,
};

use crate::{bus::BusCounts, registry::RegistryStatus, storage::StoreFigures};

/// Bucket edges of every duration of Millrace, in seconds.
const SECONDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct CodeLabel {
    pub code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct QueueLabel {
    pub queue: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ProviderLabel {
    pub provider: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct TransportLabel {
    pub transport: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// Everything counted. Cheap to update from any thread.
pub struct Metrics {
    registry: MetricsRegistry,
    pub(crate) frames_received: Counter,
    pub(crate) refused: Family<CodeLabel, Counter>,
    pub(crate) logins: Family<CodeLabel, Counter>,
    pub(crate) messages_stored: Counter,
    pub(crate) message_duplicates: Counter,
    pub(crate) messages_revoked: Counter,
    pub(crate) messages_deleted: Counter,
    pub(crate) messages_forwarded: Counter,
    pub(crate) messages_expired: Counter,
    pub(crate) messages_live: Counter,
    pub(crate) texts_blocked: Counter,
    pub(crate) texts_masked: Counter,
    pub(crate) texts_flagged: Counter,
    pub(crate) findings_dropped: Counter,
    pub(crate) deliveries: Counter,
    pub(crate) receipts: Counter,
    pub(crate) commits: Counter,
    pub(crate) commits_failed: Counter,
    pub(crate) commit_seconds: Histogram,
    pub(crate) commit_writes: Histogram,
    pub(crate) send_seconds: Histogram,
    pub(crate) catch_ups: Counter,
    pub(crate) catch_up_messages: Counter,
    pub(crate) catch_ups_failed: Counter,
    pub(crate) room_messages: Counter,
    pub(crate) broadcasts: Counter,
    pub(crate) reports_published: Counter,
    pub(crate) notices_stored: Counter,
    pub(crate) notices_pushed: Counter,
    pub(crate) notices_acked: Counter,
    pub(crate) notices_dropped: Counter,
    pub(crate) offline_pushed: Family<ProviderLabel, Counter>,
    pub(crate) offline_collapsed: Counter,
    pub(crate) offline_spared: Counter,
    pub(crate) offline_retried: Counter,
    pub(crate) offline_failed: Counter,
    pub(crate) offline_overflowed: Counter,
    pub(crate) offline_tokens_gone: Counter,
    pub(crate) reports_dropped: Counter,
    pub(crate) reports_delayed: Counter,
    bus_dead_letters: Counter,
    bus_again: Counter,
    bus_refused: Counter,
    bus_topics_made_again: Counter,
    pub(crate) presence_failed: Counter,
    pub(crate) kicked: Counter,
    registry_connected: Gauge,
    registry_processes: Gauge,
    registry_degraded: Counter,
    registry_calls_failed: Counter,
    registry_rebuilds: Counter,
    registry_fenced: Counter,
    pub(crate) peer_events_heard: Counter,
    pub(crate) peer_events_missed: Counter,
    pub(crate) peer_events_told: Counter,
    pub(crate) peer_events_dropped: Counter,
    pub(crate) peer_gaps: Counter,
    pub(crate) peer_messages_held: Gauge,
    pub(crate) presence_events: Counter,
    pub(crate) presence_streams_ended: Counter,
    pub(crate) presence_subscriptions: Gauge,
    pub(crate) paced_buckets: Gauge,
    pub(crate) streams_opened: Counter,
    pub(crate) streams_overflowed: Counter,
    pub(crate) streams_silent: Counter,
    pub(crate) streams_violated: Counter,
    pub(crate) leases_expired: Counter,
    pub(crate) sessions_ended: Counter,
    pub(crate) requests_unanswered: Counter,
    pub(crate) events_skipped: Counter,
    pub(crate) frames_unsendable: Counter,
    pub(crate) gateway_shards: Gauge,
    pub(crate) outbox_frames: Gauge,
    pub(crate) outbox_bytes: Gauge,
    pub(crate) sessions: Family<TransportLabel, Gauge>,
    pub(crate) users: Gauge,
    pub(crate) search_messages: Gauge,
    pub(crate) search_bytes: Gauge,
    pub(crate) search_lag_seconds: Gauge<f64, AtomicU64>,
    pub(crate) search_notes_dropped: Counter,
    store_connections: Gauge,
    store_connections_max: Gauge,
    store_connection_waits: Counter,
    store_connects_failed: Counter,
    store_retries: Counter,
    store_given_up: Counter,
    pub(crate) word_rules: Gauge,
    pub(crate) word_reloads: Counter,
    pub(crate) word_reloads_failed: Counter,
    pub(crate) queued: Family<QueueLabel, Gauge>,
    pub(crate) queued_max: Family<QueueLabel, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = MetricsRegistry::with_prefix("millrace");
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "The version that runs", build);
        let seconds = || Histogram::new(SECONDS);
        let metrics = Self {
            registry: MetricsRegistry::default(),
            frames_received: Counter::default(),
            refused: Family::default(),
            logins: Family::default(),
            messages_stored: Counter::default(),
            message_duplicates: Counter::default(),
            messages_revoked: Counter::default(),
            messages_deleted: Counter::default(),
            messages_forwarded: Counter::default(),
            messages_expired: Counter::default(),
            messages_live: Counter::default(),
            texts_blocked: Counter::default(),
            texts_masked: Counter::default(),
            texts_flagged: Counter::default(),
            findings_dropped: Counter::default(),
            deliveries: Counter::default(),
            receipts: Counter::default(),
            commits: Counter::default(),
            commits_failed: Counter::default(),
            commit_seconds: seconds(),
            commit_writes: Histogram::new([1.0, 4.0, 16.0, 64.0, 256.0, 1_000.0]),
            send_seconds: seconds(),
            catch_ups: Counter::default(),
            catch_up_messages: Counter::default(),
            catch_ups_failed: Counter::default(),
            room_messages: Counter::default(),
            broadcasts: Counter::default(),
            reports_published: Counter::default(),
            notices_stored: Counter::default(),
            notices_pushed: Counter::default(),
            notices_acked: Counter::default(),
            notices_dropped: Counter::default(),
            offline_pushed: Family::default(),
            offline_collapsed: Counter::default(),
            offline_spared: Counter::default(),
            offline_retried: Counter::default(),
            offline_failed: Counter::default(),
            offline_overflowed: Counter::default(),
            offline_tokens_gone: Counter::default(),
            reports_dropped: Counter::default(),
            reports_delayed: Counter::default(),
            bus_dead_letters: Counter::default(),
            bus_again: Counter::default(),
            bus_refused: Counter::default(),
            bus_topics_made_again: Counter::default(),
            presence_failed: Counter::default(),
            kicked: Counter::default(),
            registry_connected: Gauge::default(),
            registry_processes: Gauge::default(),
            registry_degraded: Counter::default(),
            registry_calls_failed: Counter::default(),
            registry_rebuilds: Counter::default(),
            registry_fenced: Counter::default(),
            peer_events_heard: Counter::default(),
            peer_events_missed: Counter::default(),
            peer_events_told: Counter::default(),
            peer_events_dropped: Counter::default(),
            peer_gaps: Counter::default(),
            peer_messages_held: Gauge::default(),
            presence_events: Counter::default(),
            presence_streams_ended: Counter::default(),
            presence_subscriptions: Gauge::default(),
            paced_buckets: Gauge::default(),
            streams_opened: Counter::default(),
            streams_overflowed: Counter::default(),
            streams_silent: Counter::default(),
            streams_violated: Counter::default(),
            leases_expired: Counter::default(),
            sessions_ended: Counter::default(),
            requests_unanswered: Counter::default(),
            events_skipped: Counter::default(),
            frames_unsendable: Counter::default(),
            gateway_shards: Gauge::default(),
            outbox_frames: Gauge::default(),
            outbox_bytes: Gauge::default(),
            sessions: Family::default(),
            users: Gauge::default(),
            search_messages: Gauge::default(),
            search_bytes: Gauge::default(),
            search_lag_seconds: Gauge::default(),
            search_notes_dropped: Counter::default(),
            store_connections: Gauge::default(),
            store_connections_max: Gauge::default(),
            store_connection_waits: Counter::default(),
            store_connects_failed: Counter::default(),
            store_retries: Counter::default(),
            store_given_up: Counter::default(),
            word_rules: Gauge::default(),
            word_reloads: Counter::default(),
            word_reloads_failed: Counter::default(),
            queued: Family::default(),
            queued_max: Family::default(),
        };
        metrics.register(registry)
    }
}

impl Metrics {
    fn register(mut self, mut registry: MetricsRegistry) -> Self {
        let logic = registry.sub_registry_with_prefix("logic");
        macro_rules! register {
            ($($name:literal, $help:literal, $metric:ident;)+) => {
                $(logic.register($name, $help, self.$metric.clone());)+
            };
        }
        register! {
            "frames_received", "Frames from clients", frames_received;
            "refused", "Requests answered with an ERROR or a code other than 0", refused;
            "logins", "Logins by outcome", logins;
            "messages_stored", "Messages stored durably", messages_stored;
            "message_duplicates",
                "Messages that were stored before; clients retry when replies are slow",
                message_duplicates;
            "messages_revoked", "Messages taken back", messages_revoked;
            "messages_deleted", "Messages hidden from one user", messages_deleted;
            "messages_forwarded", "Messages stored as copies of others", messages_forwarded;
            "messages_expired", "Messages erased because their time was over", messages_expired;
            "messages_live", "Messages handed out without being stored", messages_live;
            "texts_blocked", "Texts refused because of the list of words", texts_blocked;
            "texts_masked", "Texts in which words of the list were masked", texts_masked;
            "texts_flagged", "Texts let through with words of the list in them", texts_flagged;
            "findings_dropped",
                "Findings of the list of words that the bus did not take; its subscribers are too slow, or gone",
                findings_dropped;
            "deliveries", "Messages pushed, counted per session", deliveries;
            "receipts", "Receipts pushed, counted per session", receipts;
            "commits", "Durable commits", commits;
            "commits_failed",
                "Commits that the store refused; look at its disk, nothing of them was acknowledged",
                commits_failed;
            "commit_duration_seconds", "From handing a batch of writes to the store until it was durable", commit_seconds;
            "commit_writes", "Writes of one batch handed to the store", commit_writes;
            "send_duration_seconds",
                "From taking a message off the link to handing out its reply and deliveries",
                send_seconds;
            "catch_ups", "Sessions whose undelivered messages were pushed", catch_ups;
            "catch_up_messages", "Messages pushed by catch-ups", catch_up_messages;
            "catch_ups_failed", "Sessions closed because their catch-up failed", catch_ups_failed;
            "room_messages", "Messages to live rooms handed to the gateways", room_messages;
            "broadcasts", "Notices to everybody handed to the gateways", broadcasts;
            "notices_stored", "Notices that services pushed", notices_stored;
            "notices_pushed", "Notices to users, counted per session", notices_pushed;
            "notices_acked", "Notices acknowledged by a user", notices_acked;
            "notices_dropped",
                "Notices that made way for newer ones before their user acknowledged them",
                notices_dropped;
            "offline_pushed", "Notes that a provider took for devices that were offline", offline_pushed;
            "offline_collapsed", "Missed messages whose place a later one took", offline_collapsed;
            "offline_spared",
                "Users who were not told: online meanwhile, read elsewhere, or do-not-disturb",
                offline_spared;
            "offline_retried", "Notes that a provider did not take at first", offline_retried;
            "offline_failed",
                "Notes that were refused or given up; the log says by whom and why", offline_failed;
            "offline_overflowed",
                "Missed messages nobody was told of because too many waited; look at the providers",
                offline_overflowed;
            "offline_tokens_gone", "Tokens forgotten because they reach nothing", offline_tokens_gone;
            "reports_published", "Reports put on the bus", reports_published;
            "reports_dropped",
                "Reports that the bus did not take: a topic too many, or no space until the end",
                reports_dropped;
            "reports_delayed",
                "Times that reports waited because the bus took none; look at its disk",
                reports_delayed;
            "bus_dead_letters",
                "Records no consumer got beyond, put on the topic dead_letters; look at its consumers",
                bus_dead_letters;
            "bus_again", "Questions to the bus's servers that were asked again; look at them", bus_again;
            "bus_refused",
                "Calls that the bus's servers did not answer within bus.nats.patience; look at them",
                bus_refused;
            "bus_topics_made_again",
                "Topics whose stream had gone with its records; who deleted it?", bus_topics_made_again;
            "presence_failed", "Presence changes that the registry did not take", presence_failed;
            "registry_connected", "1 while the shared registry answers; 0 where there is none", registry_connected;
            "registry_processes", "Logic processes that share the registry", registry_processes;
            "registry_degraded",
                "Answers about presence from what this process knows alone, because the shared registry was away",
                registry_degraded;
            "registry_calls_failed", "Calls to the shared registry that failed", registry_calls_failed;
            "registry_rebuilds",
                "Times that the shared registry had lost presence and was told again", registry_rebuilds;
            "registry_fenced",
                "Sessions not taken as online because their gateway has a newer life", registry_fenced;
            "kicked", "Sessions ended by the device policy or an administrator", kicked;
            "peer_events_heard", "Events heard of other logic processes", peer_events_heard;
            "peer_events_missed", "Times that events of other logic processes were lost, and every session was caught up", peer_events_missed;
            "peer_events_told", "Events told to other logic processes", peer_events_told;
            "peer_events_dropped", "Events not told to other logic processes because too many waited; they notice, and read the store", peer_events_dropped;
            "peer_gaps", "Messages whose predecessor another process had stored did not come in time, so that their receivers were caught up", peer_gaps;
            "presence_events", "Presence events pushed, counted per session", presence_events;
            "presence_streams_ended",
                "Streams of presence ended because a service read them too slowly",
                presence_streams_ended;
            "presence_subscriptions", "Subscriptions to users' presence", presence_subscriptions;
            "peer_messages_held", "Messages that wait for an earlier one that another logic process has stored", peer_messages_held;
            "paced_buckets",
                "Users, by kind of request, whose rate is in use; limits.paced_buckets_max bounds them",
                paced_buckets;
            "streams_opened", "Streams of gateway shards since the start", streams_opened;
            "streams_overflowed",
                "Streams ended because a gateway took less than was sent to it", streams_overflowed;
            "streams_silent", "Streams ended because nothing was heard for the lease",
                streams_silent;
            "streams_violated", "Streams ended because a gateway broke the contract",
                streams_violated;
            "leases_expired", "Gateway shards that were given up with their sessions",
                leases_expired;
            "sessions_ended", "Sessions that ended", sessions_ended;
            "requests_unanswered", "Requests that this server forgot to answer; its fault",
                requests_unanswered;
            "events_skipped",
                "Events for gateways that were away; their sessions are caught up when they return",
                events_skipped;
            "frames_unsendable", "Frames that were too large for the link", frames_unsendable;
            "gateway_shards", "Gateway shards with an open stream", gateway_shards;
            "outbox_frames", "Events waiting for gateways", outbox_frames;
            "outbox_bytes", "The same in bytes", outbox_bytes;
            "sessions", "Sessions of the connected gateways", sessions;
            "users", "Users with a session", users;
            "search_messages", "Messages that a search can find", search_messages;
            "search_bytes", "Files of the search index", search_bytes;
            "search_lag_seconds",
                "For how long the oldest message that a search cannot find yet has waited", search_lag_seconds;
            "search_notes_dropped",
                "Messages that came faster than they are indexed; the index reads them from the store later",
                search_notes_dropped;
            "store_connections", "Connections to the database in use", store_connections;
            "store_connections_max", "Connections to the database at most", store_connections_max;
            "store_connection_waits",
                "Times that all connections to the database were in use", store_connection_waits;
            "store_connects_failed", "Connections to the database that were not made",
                store_connects_failed;
            "store_retries",
                "Commits and questions that were tried again: the database was away, or somebody was faster",
                store_retries;
            "store_given_up",
                "Commits and questions that did not work in time; their callers were told logic_unavailable",
                store_given_up;
            "word_rules", "Rules of the list of words in force", word_rules;
            "word_reloads", "The list of words was read again and taken", word_reloads;
            "word_reloads_failed",
                "The list of words was read again and not taken; the log says why", word_reloads_failed;
            "queued", "What waits in a queue", queued;
            "queued_max", "How much a queue holds; full queues push back", queued_max;
        }
        self.registry = registry;
        self
    }

    /// Takes over what the SDK has counted, and how its gateways are.
    pub(crate) fn take_link(&self, counted: &CountersSnapshot, gateways: &[GatewayStatus]) {
        let take = |counter: &Counter, value| counter.inner().store(value, Ordering::Relaxed);
        take(&self.streams_opened, counted.streams_opened);
        take(&self.streams_overflowed, counted.streams_overflowed);
        take(&self.streams_silent, counted.streams_silent);
        take(&self.streams_violated, counted.streams_violated);
        take(&self.leases_expired, counted.leases_expired);
        take(&self.sessions_ended, counted.sessions_ended);
        take(&self.requests_unanswered, counted.requests_unanswered);
        take(&self.events_skipped, counted.events_skipped);
        take(&self.frames_unsendable, counted.frames_unsendable);
        let connected = gateways.iter().filter(|gateway| gateway.connected).count();
        self.gateway_shards.set(connected as i64);
        self.outbox_frames.set(gateways.iter().map(|g| g.outbox_frames as i64).sum());
        self.outbox_bytes.set(gateways.iter().map(|g| g.outbox_bytes as i64).sum());
    }

    /// Takes over how a registry fares that is shared with others.
    pub(crate) fn take_registry(&self, status: &RegistryStatus) {
        let take = |counter: &Counter, value| counter.inner().store(value, Ordering::Relaxed);
        self.registry_connected.set(i64::from(status.connected));
        self.registry_processes.set(status.processes as i64);
        take(&self.registry_degraded, status.degraded);
        take(&self.registry_calls_failed, status.calls_failed);
        take(&self.registry_rebuilds, status.rebuilds);
        take(&self.registry_fenced, status.fenced);
        let queue = QueueLabel { queue: "registry" };
        self.queued.get_or_create(&queue).set(status.users_waiting as i64);
    }

    /// Takes over what a store on a server says of itself.
    pub(crate) fn take_store(&self, store: &StoreFigures) {
        let take = |counter: &Counter, value| counter.inner().store(value, Ordering::Relaxed);
        self.store_connections.set(store.connections_in_use as i64);
        self.store_connections_max.set(store.connections_max as i64);
        take(&self.store_connection_waits, store.connection_waits);
        take(&self.store_connects_failed, store.connects_failed);
        take(&self.store_retries, store.retries);
        take(&self.store_given_up, store.given_up);
    }

    /// Takes over what the bus has counted.
    pub(crate) fn take_bus(&self, counted: BusCounts) {
        let take = |counter: &Counter, value| counter.inner().store(value, Ordering::Relaxed);
        take(&self.bus_dead_letters, counted.dead_letters);
        take(&self.bus_again, counted.again);
        take(&self.bus_refused, counted.refused);
        take(&self.bus_topics_made_again, counted.made_again);
    }

    /// The exposition, in the OpenMetrics text format.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String fails only when a metric itself does, which ours do not.
        if encode(&mut text, &self.registry).is_err() {
            tracing::error!("the metrics could not be encoded");
        }
        text
    }
}
