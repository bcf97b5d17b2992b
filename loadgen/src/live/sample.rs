//! A second of a run as the views show it: the growth of the counters, the latencies of what
//! arrived meanwhile, and the generator's own state.

use std::fs;

use crate::{
    control::{Control, Snapshot, Usage},
    cpu,
    record::{Counter, Recent},
};

const SECOND_NS: u64 = 1_000_000_000;

/// See the module. Rates are a second; latencies are microseconds, 0 if there was nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Since the start of the run.
    pub seconds: f64,
    /// Where the run stands.
    pub phase: &'static str,
    /// Sessions that are up.
    pub up: u64,
    /// Users who went by themselves.
    pub away: u64,
    /// Sessions lost so far.
    pub lost: u64,
    /// Logins a second.
    pub logins: f64,
    /// Messages meant to be sent a second.
    pub intended: f64,
    /// Messages sent a second, resends included.
    pub sent: f64,
    /// Messages acknowledged a second.
    pub acked: f64,
    /// Messages delivered a second.
    pub received: f64,
    /// Room messages delivered a second.
    pub room_received: f64,
    /// Echoes a second.
    pub echoes: f64,
    /// Heartbeats answered a second.
    pub heartbeats: f64,
    /// Messages not yet acknowledged.
    pub waiting: u64,
    /// Latencies that arrived in this second.
    pub latencies: u64,
    /// Their median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
    /// The longest.
    pub max: u64,
    /// Answers with a code other than 0 so far.
    pub refusals: u64,
    /// Sends given up, shed, or not answered in time so far.
    pub failures: u64,
    /// Connects and upgrades that failed so far.
    pub connect_failures: u64,
    /// Bytes that break the protocol, so far.
    pub protocol_errors: u64,
    /// Different errors in words.
    pub errors: Vec<String>,
    /// The generator's lateness in this second, 99 %.
    pub late_p99: u64,
    /// The longest.
    pub late_max: u64,
    /// CPU of the generator in percent of a core.
    pub cpu_percent: f64,
    /// Memory of the generator.
    pub resident_bytes: u64,
}

/// Makes a sample once a second.
pub struct Tracker {
    start_ns: u64,
    due_ns: u64,
    before: Snapshot,
    before_ns: u64,
    before_cpu: f64,
}

impl Tracker {
    /// For a run that starts now.
    pub fn new(now_ns: u64) -> Self {
        Self {
            start_ns: now_ns,
            due_ns: now_ns + SECOND_NS,
            before: Snapshot::default(),
            before_ns: now_ns,
            before_cpu: cpu::seconds(),
        }
    }

    /// The last second, if one is over.
    pub fn look(&mut self, now_ns: u64, control: &Control, snapshot: &Snapshot) -> Option<Sample> {
        if now_ns < self.due_ns {
            return None;
        }
        let mut recent = Recent::default();
        control.slots.iter().for_each(|slot| slot.take_recent(&mut recent));
        let span = (now_ns - self.before_ns) as f64 / 1e9;
        let total = |counter: Counter| snapshot.counters.get(counter);
        let rate = |counter: Counter| {
            total(counter).saturating_sub(self.before.counters.get(counter)) as f64 / span
        };
        let own =
            || Usage { cpu_seconds: cpu::seconds(), resident_bytes: resident_bytes().unwrap_or(0) };
        let usage = snapshot.elsewhere.unwrap_or_else(own);
        let (latency, late) = (&recent.latency, &recent.late);
        let sample = Sample {
            seconds: (now_ns - self.start_ns) as f64 / 1e9,
            phase: control.phase().label(),
            up: snapshot.ready,
            away: snapshot.away,
            lost: total(Counter::ConnectionsLost),
            logins: rate(Counter::Logins),
            intended: rate(Counter::Intended),
            sent: rate(Counter::Sent) + rate(Counter::Resent),
            acked: rate(Counter::Acked),
            received: rate(Counter::Received),
            room_received: rate(Counter::RoomReceived),
            echoes: rate(Counter::Echoes),
            heartbeats: rate(Counter::Heartbeats),
            waiting: snapshot.outstanding,
            latencies: latency.len(),
            p50: latency.value_at_quantile(0.5),
            p90: latency.value_at_quantile(0.9),
            p99: latency.value_at_quantile(0.99),
            p99_9: latency.value_at_quantile(0.999),
            max: latency.max(),
            refusals: snapshot.counters.codes_total(),
            failures: total(Counter::Failed)
                + total(Counter::OutboxFull)
                + total(Counter::SendTimeouts),
            connect_failures: total(Counter::ConnectFailed) + total(Counter::UpgradeFailed),
            protocol_errors: total(Counter::ProtocolErrors),
            errors: snapshot.errors.clone(),
            late_p99: late.value_at_quantile(0.99),
            late_max: late.max(),
            cpu_percent: 100.0 * (usage.cpu_seconds - self.before_cpu).max(0.0) / span,
            resident_bytes: usage.resident_bytes,
        };
        self.before = snapshot.clone();
        (self.before_ns, self.before_cpu) = (now_ns, usage.cpu_seconds);
        self.due_ns += SECOND_NS;
        Some(sample)
    }
}

/// Resident memory of this process.
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::{SECOND_NS, Tracker};
    use crate::{
        control::{Control, Snapshot},
        record::{Counter, Metric, Recorder},
    };

    #[test]
    fn a_sample_has_what_grew_within_its_second_and_nothing_of_the_one_before() {
        let control = Control::new(1);
        let mut tracker = Tracker::new(0);
        let mut recorder = Recorder::default();
        let mut second = |number: u64, latency_ms: u64| {
            recorder.counters.add_many(Counter::Acked, 100 * number);
            recorder.record(Metric::DeliverySingle, latency_ms * 1_000_000);
            recorder.record(Metric::Late, 2_000_000);
            let counters = recorder.counters.clone();
            let snapshot = Snapshot { counters, ready: 7, ..Snapshot::default() };
            control.slots[0].publish(snapshot.clone(), |recent| recorder.take_recent(recent));
            assert_eq!(tracker.look(number * SECOND_NS - 1, &control, &snapshot), None);
            tracker.look(number * SECOND_NS, &control, &snapshot).expect("a second is over")
        };
        let one = second(1, 50);
        assert_eq!((one.acked.round(), one.up, one.latencies), (100.0, 7, 1));
        assert!((one.p99 as f64 / 50_000.0 - 1.0).abs() < 0.01 && one.late_max >= 1_990, "{one:?}");
        let two = second(2, 10);
        assert_eq!((two.acked.round(), two.latencies), (200.0, 1));
        assert!(two.max < 11_000 && two.resident_bytes > 0, "{two:?}");
    }
}
