//! The result of a run: collected, judged, printed for a person and written as JSON.
//!
//! The JSON has a `schema_version`; a field changes its meaning only together with it.

use std::{collections::BTreeMap, fmt::Write as _};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    client::Endings,
    exit::Exit,
    log::FaultKind,
    record::{Counter, Metric, Recorder},
    threshold::{Measure, Threshold},
    verify::Verdict,
};

/// Version of the JSON summary.
pub const SCHEMA_VERSION: u32 = 1;

/// Counters that are also told per second of the load.
const RATES: [Counter; 6] = [
    Counter::Sent,
    Counter::Acked,
    Counter::Received,
    Counter::RoomReceived,
    Counter::FlatOut,
    Counter::Echoes,
];

/// Above this lateness of the generator itself (p99), its figures are not trusted.
pub const LATE_P99_US_MAX: u64 = 50_000;

/// One latency's distribution, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Percentiles {
    /// Values recorded.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    #[serde(rename = "p99.9")]
    pub p99_9: u64,
    /// The largest.
    pub max: u64,
    /// Points for a plot: quantile (0 to 1) and microseconds.
    pub curve: [(f64, u64); CURVE.len()],
}

/// Quantiles of [`Percentiles::curve`].
const CURVE: [f64; 12] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0];

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            max: histogram.max(),
            curve: CURVE.map(|quantile| (quantile, histogram.value_at_quantile(quantile))),
        }
    }
}

/// The verification's part.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Acknowledged messages.
    pub acked: u64,
    /// Deliveries that these should have caused.
    pub expected_deliveries: u64,
    /// Of them, found at their recipient.
    pub found_deliveries: u64,
    /// Messages stored without the sender ever hearing of it.
    pub stored_unanswered: u64,
    /// Conversations with messages of this run.
    pub conversations: u64,
    /// Missing deliveries and sequences whose user was not there to be asked.
    pub unverified: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// A few of them in words.
    pub examples: Vec<String>,
}

/// A threshold and what was observed.
#[derive(Clone, Debug, Serialize)]
pub struct ThresholdResult {
    /// As it was written.
    pub condition: String,
    /// Microseconds, or a count; `null` if nothing was measured under this name.
    pub observed: Option<f64>,
    /// Whether it was met.
    pub passed: bool,
}

/// The generator's account of itself.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Generator {
    /// Intended to handled, 99 %, microseconds.
    pub late_p99_us: u64,
    /// The largest.
    pub late_max_us: u64,
    /// CPU time of this process during the load, seconds.
    pub cpu_seconds: f64,
    /// The same in percent of one core.
    pub cpu_percent: f64,
    /// Whether it was too late for its figures to be trusted.
    pub saturated: bool,
}

/// When sessions ended that the client did not end.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EndingsReport {
    /// How many.
    pub count: u64,
    /// Shortest silence of the client before the end, seconds.
    pub silence_seconds_min: f64,
    /// Longest.
    pub silence_seconds_max: f64,
    /// By the code the server named.
    pub by_code: BTreeMap<&'static str, u64>,
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this structure.
    pub schema_version: u32,
    /// Who wrote it.
    pub tool: &'static str,
    /// Its version.
    pub tool_version: &'static str,
    /// The subcommand.
    pub command: &'static str,
    /// Whether everything was as demanded.
    pub passed: bool,
    /// The exit code of the process.
    pub exit_code: u8,
    /// Why not, in sentences.
    pub failures: Vec<String>,
    /// What was asked for.
    pub configuration: serde_json::Value,
    /// From the first connect until every session was up, seconds.
    pub ramp_seconds: f64,
    /// Sessions that came up per second of it.
    pub ramp_per_second: f64,
    /// Length of the load as observed, seconds.
    pub load_seconds: f64,
    /// Per second of load: sent, acked, received, room_received, flat_out, echoes.
    pub rates: BTreeMap<&'static str, f64>,
    /// All counters.
    pub counters: BTreeMap<&'static str, u64>,
    /// Answers with a code other than 0, by label.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Latencies in microseconds.
    pub latency_us: BTreeMap<&'static str, Percentiles>,
    /// The verification, where messages were verified.
    pub verification: Option<Verification>,
    /// Thresholds.
    pub thresholds: Vec<ThresholdResult>,
    /// The generator's account of itself.
    pub generator: Generator,
    /// Ends of sessions.
    pub endings: EndingsReport,
    /// Different errors in words.
    pub errors: Vec<String>,
    #[serde(skip)]
    histograms: Vec<(&'static str, Histogram<u64>)>,
}

/// How long the parts of a run took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Sessions of the ramp.
    pub ramp_sessions: u32,
    /// From the first connect to the last of them.
    pub ramp_seconds: f64,
    /// Length of the load.
    pub load_seconds: f64,
    /// CPU time of this process during the load.
    pub cpu_seconds: f64,
}

/// Everything a run has to say.
pub struct Findings<'a> {
    /// The subcommand.
    pub command: &'static str,
    /// What was asked for.
    pub configuration: serde_json::Value,
    /// Latencies and counters of all threads.
    pub record: &'a Recorder,
    /// The verification, where messages were verified.
    pub verdict: Option<&'a Verdict>,
    /// Ends of sessions.
    pub endings: &'a Endings,
    /// Different errors in words.
    pub errors: Vec<String>,
    /// How long it took.
    pub times: Times,
    /// Counters that must be 0, with the reason in words.
    pub must_be_zero: &'a [(Counter, &'static str)],
    /// Failures that only the scenario knows.
    pub failures: Vec<String>,
    /// Conditions for success.
    pub thresholds: &'a [Threshold],
    /// Judge even if the generator was late.
    pub allow_late: bool,
}

impl Report {
    /// Collects and judges.
    pub fn new(findings: Findings<'_>) -> Self {
        let record = findings.record;
        let Times { ramp_sessions, ramp_seconds, load_seconds, cpu_seconds } = findings.times;
        let histograms = histograms(record);
        let late = record.of(Metric::Late);
        let late_p99_us = late.value_at_quantile(0.99);
        let generator = Generator {
            late_p99_us,
            late_max_us: late.max(),
            cpu_seconds,
            cpu_percent: 100.0 * cpu_seconds / load_seconds.max(0.001),
            saturated: late_p99_us > LATE_P99_US_MAX,
        };
        let counters =
            Counter::ALL.iter().map(|counter| (counter.label(), record.counters.get(*counter)));
        let rate = |counter: Counter| record.counters.get(counter) as f64 / load_seconds.max(0.001);
        let mut report = Self {
            schema_version: SCHEMA_VERSION,
            tool: "millrace-loadgen",
            tool_version: env!("CARGO_PKG_VERSION"),
            command: findings.command,
            passed: false,
            exit_code: 0,
            failures: findings.failures,
            configuration: findings.configuration,
            ramp_seconds,
            ramp_per_second: f64::from(ramp_sessions) / ramp_seconds.max(0.001),
            load_seconds,
            rates: RATES.map(|counter| (counter.label(), rate(counter))).into(),
            counters: counters.collect(),
            refusals: record.counters.codes().collect(),
            latency_us: histograms
                .iter()
                .filter(|(_, histogram)| !histogram.is_empty())
                .map(|(name, histogram)| (*name, Percentiles::of(histogram)))
                .collect(),
            verification: findings.verdict.map(verification),
            thresholds: Vec::new(),
            generator,
            endings: endings(findings.endings),
            errors: findings.errors,
            histograms,
        };
        report.judge(findings.must_be_zero, findings.thresholds, findings.allow_late);
        report
    }

    fn judge(
        &mut self,
        must_be_zero: &[(Counter, &'static str)],
        thresholds: &[Threshold],
        allow_late: bool,
    ) {
        let faults = self.verification.iter().flat_map(|part| &part.faults);
        let faults: Vec<String> = faults
            .filter(|(_, count)| **count > 0)
            .map(|(kind, count)| format!("{kind}: {count}"))
            .collect();
        self.failures.extend(faults);
        for (counter, reason) in must_be_zero {
            let count = self.counters.get(counter.label()).copied().unwrap_or(0);
            if count > 0 {
                self.failures.push(format!("{}: {count} ({reason})", counter.label()));
            }
        }
        let is_faulty = !self.failures.is_empty();
        self.thresholds = thresholds.iter().map(|threshold| self.compare(threshold)).collect();
        for result in self.thresholds.iter().filter(|result| !result.passed) {
            let observed = result.observed.map_or("nothing".to_owned(), |value| value.to_string());
            self.failures.push(format!("threshold {} missed: {observed}", result.condition));
        }
        let untrusted = self.generator.saturated && !allow_late;
        if untrusted {
            self.failures.push(format!(
                "the generator itself was late (p99 {} ms): the latencies say nothing about the \
                 server; use more threads or cores, or --allow-late",
                self.generator.late_p99_us / 1000
            ));
        }
        let exit = if is_faulty {
            Exit::Failed
        } else if untrusted {
            Exit::Saturated
        } else if !self.failures.is_empty() {
            Exit::Failed
        } else {
            Exit::Ok
        };
        self.exit_code = exit as u8;
        self.passed = exit == Exit::Ok;
    }

    fn compare(&self, threshold: &Threshold) -> ThresholdResult {
        let observed = match &threshold.measure {
            Measure::Latency { name, percentile } => self
                .histograms
                .iter()
                .find(|(known, histogram)| known == name && !histogram.is_empty())
                .map(|(_, histogram)| histogram.value_at_percentile(*percentile) as f64),
            Measure::Count(name) => {
                let faults = self.verification.as_ref().map(|part| &part.faults);
                let fault = faults.and_then(|faults| faults.get(name.as_str()));
                fault.or(self.counters.get(name.as_str())).map(|count| *count as f64)
            }
        };
        // What was not measured cannot have been met.
        let passed = observed.is_some_and(|observed| threshold.holds(observed));
        ThresholdResult { condition: threshold.text.clone(), observed, passed }
    }

    /// The summary for a person.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let count = |counter: Counter| self.counters.get(counter.label()).copied().unwrap_or(0);
        writeln!(
            out,
            "\n{:<17} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "latency, ms", "count", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, _) in &self.histograms {
            if let Some(p) = self.latency_us.get(name) {
                let ms = |us: u64| us as f64 / 1000.0;
                writeln!(
                    out,
                    "{name:<17} {:>9} {:>10.3} {:>10.3} {:>10.3} {:>10.3} {:>10.3}",
                    p.count,
                    ms(p.p50),
                    ms(p.p90),
                    ms(p.p99),
                    ms(p.p99_9),
                    ms(p.max)
                )?;
            }
        }
        writeln!(
            out,
            "\nconnections  {} opened, {} logins, {} reconnects, {} lost, {} gave up",
            count(Counter::Connections),
            count(Counter::Logins),
            count(Counter::Reconnects),
            count(Counter::ConnectionsLost),
            count(Counter::GaveUp)
        )?;
        writeln!(
            out,
            "ramp         {:.1} s, {:.0} sessions a second",
            self.ramp_seconds, self.ramp_per_second
        )?;
        if count(Counter::Churned) > 0 {
            writeln!(
                out,
                "churn        {} went by themselves, {} came back",
                count(Counter::Churned),
                count(Counter::Reconnects)
            )?;
        }
        if count(Counter::FlatOut) > 0 {
            let rate = self.rates.get(Counter::FlatOut.label()).copied().unwrap_or(0.0);
            writeln!(out, "flat out     {} heartbeats ({rate:.0}/s)", count(Counter::FlatOut))?;
        }
        if count(Counter::RoomJoins) > 0 {
            writeln!(
                out,
                "room         {} joins, {} messages published ({} acknowledged, {} refused, {} \
                 unsent), {} arrivals ({:.0}/s)",
                count(Counter::RoomJoins),
                count(Counter::RoomSent),
                count(Counter::RoomAcked),
                count(Counter::RoomRefused),
                count(Counter::RoomUnsent),
                count(Counter::RoomReceived),
                self.rates.get(Counter::RoomReceived.label()).copied().unwrap_or(0.0)
            )?;
        }
        if let Some(verification) = &self.verification {
            writeln!(
                out,
                "messages     {} intended, {} sent, {} resent ({} timeouts, {} refusals), \
                 {} acknowledged ({} as duplicate), {} failed, {} unanswered",
                count(Counter::Intended),
                count(Counter::Sent),
                count(Counter::Resent),
                count(Counter::SendTimeouts),
                count(Counter::SendRefusals),
                count(Counter::Acked),
                count(Counter::AckedDuplicate),
                count(Counter::Failed),
                count(Counter::Unanswered)
            )?;
            writeln!(
                out,
                "deliveries   {} of {} arrived, {} of them pulled; {} redelivered",
                verification.found_deliveries,
                verification.expected_deliveries,
                count(Counter::Pulled),
                count(Counter::Redelivered)
            )?;
            let faults = verification.faults.iter().map(|(kind, count)| format!("{kind} {count}"));
            writeln!(out, "verified     {}", faults.collect::<Vec<_>>().join(", "))?;
            for example in &verification.examples {
                writeln!(out, "             {example}")?;
            }
        }
        if count(Counter::Echoes) > 0 {
            let rate = self.rates.get(Counter::Echoes.label()).copied().unwrap_or(0.0);
            writeln!(out, "echoes       {} ({rate:.0}/s)", count(Counter::Echoes))?;
        }
        if self.endings.count > 0 {
            let by_code =
                self.endings.by_code.iter().map(|(code, count)| format!("{code} {count}"));
            writeln!(
                out,
                "ended        {} by the server, after {:.2} to {:.2} s of silence: {}",
                self.endings.count,
                self.endings.silence_seconds_min,
                self.endings.silence_seconds_max,
                by_code.collect::<Vec<_>>().join(", ")
            )?;
        }
        if !self.refusals.is_empty() {
            let refusals = self.refusals.iter().map(|(code, count)| format!("{code} {count}"));
            writeln!(out, "refusals     {}", refusals.collect::<Vec<_>>().join(", "))?;
        }
        for error in &self.errors {
            writeln!(out, "error        {error}")?;
        }
        let generator = &self.generator;
        writeln!(
            out,
            "generator    late p99 {:.1} ms, max {:.1} ms; CPU {:.0} % of a core over {:.1} s",
            generator.late_p99_us as f64 / 1000.0,
            generator.late_max_us as f64 / 1000.0,
            generator.cpu_percent,
            self.load_seconds
        )?;
        for result in &self.thresholds {
            let mark = if result.passed { "met" } else { "MISSED" };
            let observed = result.observed.map_or("nothing".to_owned(), |value| value.to_string());
            writeln!(out, "threshold    {} {mark} (observed {observed})", result.condition)?;
        }
        if self.passed {
            writeln!(out, "PASSED")
        } else {
            writeln!(out, "FAILED (exit {})", self.exit_code)?;
            self.failures.iter().try_for_each(|failure| writeln!(out, "  {failure}"))
        }
    }
}

/// Every metric, and the two that people ask for first: single and group together.
fn histograms(record: &Recorder) -> Vec<(&'static str, Histogram<u64>)> {
    let mut all: Vec<_> =
        Metric::ALL.iter().map(|metric| (metric.label(), record.of(*metric).clone())).collect();
    all.push(("ack", record.merged(&[Metric::AckSingle, Metric::AckGroup])));
    all.push(("delivery", record.merged(&[Metric::DeliverySingle, Metric::DeliveryGroup])));
    all
}

fn verification(verdict: &Verdict) -> Verification {
    let faults =
        FaultKind::ALL.iter().map(|kind| (kind.label(), verdict.faults.count(*kind))).collect();
    let examples = verdict.faults.examples().iter();
    Verification {
        acked: verdict.acked,
        expected_deliveries: verdict.expected,
        found_deliveries: verdict.found,
        stored_unanswered: verdict.stored_unanswered,
        conversations: verdict.conversations,
        unverified: verdict.unverified,
        faults,
        examples: examples.map(|(kind, text)| format!("{}: {text}", kind.label())).collect(),
    }
}

fn endings(endings: &Endings) -> EndingsReport {
    EndingsReport {
        count: endings.count,
        silence_seconds_min: endings.silence_ns_min as f64 / 1e9,
        silence_seconds_max: endings.silence_ns_max as f64 / 1e9,
        by_code: endings.by_label.iter().copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Findings, Report, Times};
    use crate::{
        client::Endings,
        exit::Exit,
        log::FaultKind,
        record::{Counter, Metric, Recorder},
        threshold::Threshold,
        verify::Verdict,
    };

    fn judge(
        record: &Recorder,
        verdict: &Verdict,
        thresholds: &[Threshold],
        allow_late: bool,
    ) -> Report {
        Report::new(Findings {
            command: "chat",
            configuration: serde_json::json!({}),
            record,
            verdict: Some(verdict),
            endings: &Endings::default(),
            errors: Vec::new(),
            times: Times {
                ramp_sessions: 10,
                ramp_seconds: 1.0,
                load_seconds: 10.0,
                cpu_seconds: 1.0,
            },
            must_be_zero: &[(Counter::Failed, "sends were given up")],
            failures: Vec::new(),
            thresholds,
            allow_late,
        })
    }

    fn thresholds(text: &str) -> Vec<Threshold> {
        vec![text.parse().expect("a threshold")]
    }

    #[test]
    fn a_good_run_passes_and_says_so_in_json() {
        let mut record = Recorder::default();
        record.record(Metric::DeliverySingle, 3_000_000);
        record.record(Metric::Late, 100_000);
        let conditions = thresholds("delivery_p99.9<500ms");
        let report = judge(&record, &Verdict::default(), &conditions, false);
        assert_eq!(report.exit_code, Exit::Ok as u8, "{:?}", report.failures);
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["schema_version"], 1);
        assert_eq!(json["passed"], true);
        assert_eq!(json["latency_us"]["delivery"]["count"], 1);
        assert_eq!(json["verification"]["faults"]["lost"], 0);
        assert!(report.to_text().contains("PASSED"));
    }

    #[test]
    fn a_fault_a_missed_threshold_and_an_unmeasured_one_each_fail_the_run() {
        let mut record = Recorder::default();
        record.record(Metric::DeliverySingle, 600_000_000);
        let missed =
            judge(&record, &Verdict::default(), &thresholds("delivery_p99.9<500ms"), false);
        assert_eq!(missed.exit_code, Exit::Failed as u8);
        let unmeasured =
            judge(&record, &Verdict::default(), &thresholds("delivrey_p99<500ms"), false);
        assert_eq!(unmeasured.exit_code, Exit::Failed as u8);

        let mut verdict = Verdict::default();
        verdict.faults.add(FaultKind::Lost, || "an example".into());
        let lost = judge(&record, &verdict, &[], false);
        assert_eq!(lost.exit_code, Exit::Failed as u8);
        assert!(lost.to_text().contains("lost: an example"));

        record.counters.add(Counter::Failed);
        assert_eq!(judge(&record, &Verdict::default(), &[], false).exit_code, Exit::Failed as u8);
    }

    #[test]
    fn a_late_generator_gives_no_verdict_on_latency_but_still_one_on_faults() {
        let mut record = Recorder::default();
        record.record(Metric::Late, 80_000_000);
        let late = judge(&record, &Verdict::default(), &[], false);
        assert_eq!(late.exit_code, Exit::Saturated as u8);
        assert_eq!(judge(&record, &Verdict::default(), &[], true).exit_code, Exit::Ok as u8);
        let mut verdict = Verdict::default();
        verdict.faults.add(FaultKind::Lost, String::new);
        assert_eq!(judge(&record, &verdict, &[], false).exit_code, Exit::Failed as u8);
    }
}
