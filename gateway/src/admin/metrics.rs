//! The gateway's metrics: sums over the shards, with names and labels that never contain a user, a
//! connection or an address.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_engine::{
    ConnectionInfo, Dropped, Durations, LinkInfo, LinkPhase, Memory, Traffic, TransportKind,
};
use millrace_protocol::Code;
use millrace_service::cpu_time;
use serde_json::{Value, json};

use super::{
    exposition::{
        Kind::{Counter, Gauge, Histogram},
        Page,
    },
    process::ProcessFigures,
};
use crate::{
    link::{LinkStatus, NamesStatus},
    shard::ShardSnapshot,
    status::{Phase, Status},
};

/// How busy the shards' threads are, measured between two looks at their CPU time.
#[derive(Default)]
pub(super) struct Workers(Mutex<Vec<Worker>>);

struct Worker {
    at: Instant,
    cpu_time: Duration,
    busy_ratio: f64,
}

impl Workers {
    /// Looks at each shard's CPU time.
    pub fn measure(&self, snapshots: &[ShardSnapshot]) {
        let mut workers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, shard) in snapshots.iter().enumerate() {
            let Some(cpu_time) = cpu_time::of_thread(&shard.thread_path) else { continue };
            let at = Instant::now();
            match workers.get_mut(index) {
                Some(worker) => {
                    let busy = cpu_time.saturating_sub(worker.cpu_time).as_secs_f64();
                    let passed = at.duration_since(worker.at).as_secs_f64().max(1e-9);
                    let busy_ratio = (busy / passed).clamp(0.0, 1.0);
                    *worker = Worker { at, cpu_time, busy_ratio };
                }
                None => workers.push(Worker { at, cpu_time, busy_ratio: 0.0 }),
            }
        }
    }

    fn ratios(&self) -> Vec<f64> {
        let workers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        workers.iter().map(|worker| worker.busy_ratio).collect()
    }
}

/// The page of `/metrics`.
pub(super) fn render(status: &Status, workers: &Workers) -> String {
    let shards = status.snapshots();
    let sum = |value: fn(&ShardSnapshot) -> u64| shards.iter().map(value).sum::<u64>();
    let mut page = Page::default();
    page.metric("millrace_build_info", Gauge, "Always 1; the labels say what runs here.")
        .sample(&[("component", "gateway"), ("version", env!("CARGO_PKG_VERSION"))], 1);
    traffic(&mut page, &shards);
    refusals(&mut page, &shards);
    page.single(
        "millrace_connections_max",
        Gauge,
        "Connections this process can hold; millrace_capacity_connections says what binds.",
        status.capacity.connections(),
    );
    let mut bounds = page.metric(
        "millrace_capacity_connections",
        Gauge,
        "Connections each bound allowed at the start; the least binds. `millrace-gateway check` says \
         how to raise it.",
    );
    for bound in &status.capacity.bounds {
        bounds.sample(&[("bound", bound.by.label())], bound.connections);
    }
    page.single(
        "millrace_sessions",
        Gauge,
        "Logged-in connections.",
        sum(|shard| shard.counters.sessions),
    );
    page.single(
        "millrace_logins_total",
        Counter,
        "Logins accepted.",
        sum(|shard| shard.counters.logins),
    );
    page.single(
        "millrace_logins_in_flight",
        Gauge,
        "Logins that wait for logic.",
        sum(|shard| shard.counters.logins_in_flight),
    );
    page.single(
        "millrace_requests_in_flight",
        Gauge,
        "Requests without an answer.",
        sum(|shard| shard.counters.requests_in_flight),
    );
    page.single(
        "millrace_send_queue_bytes",
        Gauge,
        "Bytes in all send queues.",
        sum(|shard| shard.counters.send_queue_bytes),
    );
    page.single("millrace_rooms", Gauge, "Rooms, per shard counted.", sum(|s| s.counters.rooms));
    page.single(
        "millrace_room_members",
        Gauge,
        "Memberships of all rooms.",
        sum(|shard| shard.counters.room_members),
    );
    durations(&mut page, &shards);
    memory(&mut page, &shards);
    links(&mut page, status, &shards);
    carrier(&mut page, status);
    driver(&mut page, &shards);
    let draining = status.phase() == Phase::Draining;
    page.single(
        "millrace_draining",
        Gauge,
        "1 while the process sends everybody away.",
        u8::from(draining),
    );
    let connections = connections_now(&shards);
    page.single(
        "millrace_drain_remaining_connections",
        Gauge,
        "Connections still to leave; 0 when not draining.",
        if draining { connections } else { 0 },
    );
    let mut busy = page.metric(
        "millrace_worker_busy_ratio",
        Gauge,
        "Share of the last seconds that a shard's thread was on a CPU. Near 1: add shards.",
    );
    for (shard, ratio) in workers.ratios().into_iter().enumerate() {
        busy.sample(&[("worker", &format!("shard-{shard}"))], ratio);
    }
    process(&mut page, status);
    page.into_text()
}

fn connections_now(shards: &[ShardSnapshot]) -> u64 {
    shards
        .iter()
        .map(|shard| shard.counters.tcp.connections + shard.counters.websocket.connections)
        .sum()
}

/// Both transports with their label; each has a listener of the same name.
const TRANSPORTS: [(TransportKind, &str); 2] =
    [(TransportKind::Tcp, "tcp"), (TransportKind::WebSocket, "websocket")];

fn traffic(page: &mut Page, shards: &[ShardSnapshot]) {
    let mut per_transport = |name, kind, help: &str, value: fn(&Traffic) -> u64| {
        let mut metric = page.metric(name, kind, help);
        for (transport, label) in TRANSPORTS {
            let sum: u64 = shards.iter().map(|s| value(s.counters.traffic(transport))).sum();
            metric.sample(&[("listener", label), ("transport", label)], sum);
        }
    };
    per_transport("millrace_connections", Gauge, "Connections now.", |t| t.connections);
    per_transport(
        "millrace_connections_opened_total",
        Counter,
        "Connections accepted, refused ones included.",
        |t| t.opened,
    );
    per_transport("millrace_messages_received_total", Counter, "Whole frames from clients.", |t| {
        t.messages_in
    });
    per_transport("millrace_messages_sent_total", Counter, "Frames queued for clients.", |t| {
        t.messages_out
    });
    per_transport("millrace_received_bytes_total", Counter, "Bytes from clients.", |t| t.bytes_in);
    per_transport("millrace_sent_bytes_total", Counter, "Bytes to clients.", |t| t.bytes_out);
}

fn refusals(page: &mut Page, shards: &[ShardSnapshot]) {
    let mut per_code = |name, help: &str, value: fn(&ShardSnapshot, usize) -> u64| {
        let mut metric = page.metric(name, Counter, help);
        for code in Code::ALL {
            let index = code.number() as usize;
            let sum: u64 = shards.iter().map(|shard| value(shard, index)).sum();
            metric.sample(&[("code", code.label())], sum);
        }
    };
    per_code("millrace_connections_closed_total", "Connections ended, by why.", |shard, code| {
        shard.counters.tcp.closed[code] + shard.counters.websocket.closed[code]
    });
    per_code("millrace_refused_total", "ERROR frames to clients, by why.", |shard, code| {
        shard.counters.refused[code]
    });
    per_code("millrace_logins_refused_total", "Logins refused, by why.", |shard, code| {
        shard.counters.logins_refused[code]
    });
    per_code("millrace_sessions_ended_total", "Sessions ended, by why.", |shard, code| {
        shard.counters.sessions_ended[code]
    });
    let mut dropped = page.metric(
        "millrace_dropped_total",
        Counter,
        "Frames dropped, by why; clients that can be told were told.",
    );
    for reason in Dropped::ALL {
        let sum: u64 = shards.iter().map(|shard| shard.counters.dropped(reason)).sum();
        dropped.sample(&[("reason", reason.label())], sum);
    }
}

fn durations(page: &mut Page, shards: &[ShardSnapshot]) {
    let sum = |of: fn(&ShardSnapshot) -> &Durations| {
        let mut sum = Durations::default();
        for durations in shards.iter().map(of) {
            let buckets = sum.buckets.iter_mut().zip(durations.buckets);
            buckets.for_each(|(sum, count)| *sum += count);
            sum.sum_ms += durations.sum_ms;
        }
        sum
    };
    page.metric(
        "millrace_logic_call_duration_seconds",
        Histogram,
        "From a client's login or request to logic's answer, the wait for credit included; a sample.",
    )
    .durations(&[("method", "login")], &sum(|shard| &shard.counters.login_durations))
    .durations(&[("method", "request")], &sum(|shard| &shard.counters.request_durations));
    page.metric(
        "millrace_delivery_duration_seconds",
        Histogram,
        "From a frame's arrival from logic until its client's kernel queue has taken it; a sample. \
         Growing: the shard or the client is slow.",
    )
    .durations(&[], &sum(|shard| &shard.counters.delivery_durations));
}

fn memory(page: &mut Page, shards: &[ShardSnapshot]) {
    let mut metric = page.metric(
        "millrace_memory_bytes",
        Gauge,
        "What the shards hold, by part. Beside it in process_resident_memory_bytes: the driver's tables and buffers, code, and what the allocator keeps.",
    );
    for (part, (label, _)) in Memory::default().parts().into_iter().enumerate() {
        let sum: u64 = shards.iter().map(|shard| shard.memory.parts()[part].1).sum();
        metric.sample(&[("part", label)], sum);
    }
}

fn links(page: &mut Page, status: &Status, shards: &[ShardSnapshot]) {
    let links = status.links().iter().map(|link| link.snapshot());
    // A place that leads nowhere is nobody's link.
    let links: Vec<_> = links.filter(|link| !link.endpoint.is_empty()).collect();
    let mut per_link = |name, kind, help: &str, value: fn(&crate::LinkStatusSnapshot) -> u64| {
        let mut metric = page.metric(name, kind, help);
        for link in &links {
            let shard = link.shard.to_string();
            let endpoint = super::redact(&link.endpoint);
            metric.sample(&[("shard", &shard), ("endpoint", &endpoint)], value(link));
        }
    };
    per_link("millrace_link_up", Gauge, "1 while logic answers on this link.", |l| l.up.into());
    per_link("millrace_link_streams_total", Counter, "Streams that came up.", |l| l.streams);
    per_link(
        "millrace_link_failures_total",
        Counter,
        "Streams and attempts that failed. The log says why; is logic running?",
        |l| l.failures,
    );
    per_link("millrace_link_sent_batches_total", Counter, "Batches to logic.", |l| l.batches_sent);
    per_link("millrace_link_sent_events_total", Counter, "Events to logic.", |l| l.events_sent);
    per_link("millrace_link_received_batches_total", Counter, "Batches from logic.", |l| {
        l.batches_received
    });
    per_link("millrace_link_received_events_total", Counter, "Events from logic.", |l| {
        l.events_received
    });
    endpoints(page, &status.names);
    let mut per_home = |name, help: &str, value: fn(&LinkInfo) -> u64| {
        let mut metric = page.metric(name, Gauge, help);
        for link in &links {
            let shard = link.shard.to_string();
            let endpoint = super::redact(&link.endpoint);
            let of_shard = shards.get(usize::from(link.shard)).map_or(&[][..], |s| &s.links);
            let info = of_shard.iter().find(|info| info.id.0 == link.place);
            metric.sample(&[("shard", &shard), ("endpoint", &endpoint)], info.map_or(0, value));
        }
    };
    per_home("millrace_link_sessions", "Sessions at home on this link, logins included.", |l| {
        u64::from(l.sessions)
    });
    per_home("millrace_link_leaving", "1 while its logic leaves and its sessions move.", |l| {
        u64::from(l.phase == LinkPhase::Leaving)
    });
    let sum = |value: fn(&ShardSnapshot) -> u64| shards.iter().map(value).sum::<u64>();
    page.single(
        "millrace_sessions_moved_total",
        Counter,
        "Sessions moved from one logic to another while both were there.",
        sum(|shard| shard.counters.sessions_moved),
    );
    page.single(
        "millrace_sessions_taken_in_total",
        Counter,
        "Sessions without a home, as after a lost link, that a logic has taken in.",
        sum(|shard| shard.counters.sessions_taken_in),
    );
    page.single(
        "millrace_sessions_homeless",
        Gauge,
        "Sessions that no logic has. More than 0 for long: no logic answers.",
        sum(|shard| shard.counters.sessions_homeless),
    );
    page.single(
        "millrace_link_outbox_events",
        Gauge,
        "Events that wait for a link.",
        sum(|shard| shard.counters.link_outbox_events),
    );
    page.single(
        "millrace_link_backlog_frames",
        Gauge,
        "Client frames that wait for credit from logic.",
        sum(|shard| shard.counters.backlog_frames),
    );
    page.single(
        "millrace_receive_pauses_total",
        Counter,
        "Times a connection was held back for want of credit. Growing: logic is too slow.",
        sum(|shard| shard.counters.receive_pauses),
    );
    page.single(
        "millrace_link_sequence_gaps_total",
        Counter,
        "Batches from logic with an unexpected number. Anything but 0 is a bug in logic.",
        sum(|shard| shard.counters.link_sequence_gaps),
    );
}

/// Which logic processes are known, and how well the names are that stand for some of them.
fn endpoints(page: &mut Page, names: &NamesStatus) {
    let read = |value: &AtomicUsize| value.load(Ordering::Relaxed);
    page.metric(
        "millrace_link_endpoints",
        Gauge,
        "Logic endpoints: configured or named by a name server now, and kept because their links live \
         though they are named no more.",
    )
    .sample(&[("state", "named")], names.endpoints_fixed + read(&names.endpoints_named))
    .sample(&[("state", "kept")], read(&names.endpoints_kept));
    page.single(
        "millrace_link_endpoints_without_place",
        Gauge,
        "Addresses of names that have no link. More than 0: raise logic.endpoints_max.",
        read(&names.endpoints_without_place),
    );
    let mut lookups = page.metric(
        "millrace_link_name_lookups_total",
        Counter,
        "Lookups of names of logic.endpoints. Failing: what a name had is kept; the log says why.",
    );
    for known in &names.names {
        let name = known.name.to_string();
        for (result, count) in [("addresses", &known.answered), ("failed", &known.failed)] {
            let count = count.load(Ordering::Relaxed);
            lookups.sample(&[("name", &name), ("result", result)], count);
        }
    }
    let mut age = page.metric(
        "millrace_link_name_age_seconds",
        Gauge,
        "How old the last answer with addresses is. Far above logic.resolve_interval: the name server \
         does not answer.",
    );
    for known in &names.names {
        age.sample(&[("name", &known.name.to_string())], known.age().as_secs_f64());
    }
}

fn carrier(page: &mut Page, status: &Status) {
    let Some((driver, is_fallback)) = status.driver() else { return };
    page.metric("millrace_driver", Gauge, "Always 1; the label says what carries the connections.")
        .sample(&[("name", driver.name())], 1);
    page.single(
        "millrace_driver_fallbacks_total",
        Counter,
        "1 if io_uring was wanted and refused: slower, and RLIMIT_NOFILE bounds all shards together.",
        u8::from(is_fallback),
    );
}

fn driver(page: &mut Page, shards: &[ShardSnapshot]) {
    let sum = |value: fn(&ShardSnapshot) -> u64| shards.iter().map(value).sum::<u64>();
    page.single(
        "millrace_uring_cq_overflow_total",
        Counter,
        "Times a completion queue overflowed into the kernel's list.",
        sum(|shard| shard.driver.completions_overflowed),
    );
    page.single(
        "millrace_uring_receive_starved_total",
        Counter,
        "Receives that found no free buffer and waited. Growing fast: raise uring.receive_buffers.",
        sum(|shard| shard.driver.receive_starved),
    );
    page.single(
        "millrace_uring_accept_paused_total",
        Counter,
        "Times accepting paused because a ring was full. Raise RLIMIT_NOFILE or add gateways.",
        sum(|shard| shard.driver.accept_paused),
    );
    page.single(
        "millrace_uring_accept_failed_total",
        Counter,
        "Accepts that the kernel failed.",
        sum(|shard| shard.driver.accept_failed),
    );
    page.single(
        "millrace_uring_completions_stale_total",
        Counter,
        "Completions of an earlier socket of a slot. Anything but 0 is a bug.",
        sum(|shard| shard.driver.completions_stale),
    );
    page.single(
        "millrace_uring_enters_total",
        Counter,
        "System calls of the rings.",
        sum(|shard| shard.driver.enters),
    );
    page.single(
        "millrace_uring_receives_total",
        Counter,
        "Receives that brought bytes.",
        sum(|shard| shard.driver.receives),
    );
    page.single(
        "millrace_uring_sends_total",
        Counter,
        "Sends that went out whole; several frames to one client share one.",
        sum(|shard| shard.driver.sends),
    );
    page.single(
        "millrace_shard_loops_total",
        Counter,
        "Turns of the shards' loops.",
        sum(|shard| shard.loops),
    );
    page.single(
        "millrace_shard_woken_total",
        Counter,
        "Turns that another thread asked for: a link, or an operator.",
        sum(|shard| shard.driver.woken),
    );
    page.single(
        "millrace_uring_sockets",
        Gauge,
        "Sockets of the rings.",
        sum(|shard| shard.sockets as u64),
    );
}

fn process(page: &mut Page, status: &Status) {
    let figures = ProcessFigures::read();
    let mut gauge = |name, help: &str, value: Option<u64>| {
        if let Some(value) = value {
            page.single(name, Gauge, help, value);
        }
    };
    gauge("process_resident_memory_bytes", "Resident memory.", figures.resident_bytes);
    gauge("process_virtual_memory_bytes", "Virtual memory.", figures.virtual_bytes);
    gauge("process_threads", "Threads.", figures.threads);
    gauge(
        "process_open_fds",
        "Descriptors; clients' sockets are among them unless millrace_driver is io_uring.",
        figures.open_descriptors,
    );
    let limit = millrace_uring::descriptor_limit().ok();
    gauge("process_max_fds", "RLIMIT_NOFILE, which also bounds each ring.", limit);
    if let Some(seconds) = figures.cpu_seconds {
        let help = "CPU time in user and kernel mode.";
        page.single("process_cpu_seconds_total", Counter, help, seconds);
    }
    page.single(
        "process_start_time_seconds",
        Gauge,
        "When the process started, since 1970.",
        status.started_unix_seconds,
    );
}

/// One row of `/connections`.
pub(super) fn connection(info: &ConnectionInfo, links: &[Arc<LinkStatus>]) -> Value {
    let home = info.link.and_then(|at| {
        links.iter().find(|link| link.shard == info.id.shard() && link.place == at.0)
    });
    let transport = match info.transport {
        TransportKind::Tcp => "tcp",
        TransportKind::WebSocket => "websocket",
    };
    json!({
        // As a text: JavaScript's numbers end at 53 bits.
        "session_id": info.id.raw().to_string(),
        "shard": info.id.shard(),
        "transport": transport,
        "peer": info.peer.to_string(),
        "user_id": info.user_id,
        "device_id": info.device_id,
        "platform": info.platform,
        "logged_in_at_ms": info.logged_in_at_ms,
        "silence_ms": info.silence_ms,
        "send_queue_bytes": info.send_queue_bytes,
        "is_closing": info.is_closing,
        "logic": home.map(|link| super::redact(&link.endpoint())),
    })
}
