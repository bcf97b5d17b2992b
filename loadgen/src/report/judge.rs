//! Collects what a run recorded, and judges it.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::{
    EndingsReport, Percentiles, Report, SCHEMA_VERSION, StageReport, ThresholdResult, Verification,
};
use crate::{
    client::Endings,
    exit::Exit,
    health::Generator,
    log::FaultKind,
    record::{Counter, Counters, Metric, Recorder, histogram},
    threshold::{Measure, Threshold},
    verify::Verdict,
    windows::Part,
};

/// Counters that are also told per second of the load.
const RATES: [Counter; 8] = [
    Counter::Sent,
    Counter::Acked,
    Counter::Received,
    Counter::RoomReceived,
    Counter::FlatOut,
    Counter::Echoes,
    Counter::Called,
    Counter::CustomReplies,
];

/// How long the parts of a run took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Sessions of the ramp.
    pub ramp_sessions: u32,
    /// From the first connect to the last of them.
    pub ramp_seconds: f64,
    /// Length of the load.
    pub load_seconds: f64,
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
    /// The stages, already judged.
    pub stages: Vec<StageReport>,
    /// How long storms took to pass, in microseconds.
    pub recoveries_us: Vec<u64>,
    /// Counters that must be 0, with the reason in words.
    pub must_be_zero: &'a [(Counter, &'static str)],
    /// Failures that only the scenario knows.
    pub failures: Vec<String>,
    /// The run did not come to its end, and ends like this.
    pub broken: Option<Exit>,
    /// Conditions for success.
    pub thresholds: &'a [Threshold],
    /// The generator's account of itself.
    pub generator: Generator,
    /// Judge even if the generator was late.
    pub allow_saturated: bool,
}

/// What thresholds are compared with.
pub struct Measured {
    /// Latencies by name.
    pub histograms: Vec<(String, Histogram<u64>)>,
    counts: BTreeMap<String, u64>,
}

impl Measured {
    /// All of a run.
    pub fn of_run(record: &Recorder, verdict: Option<&Verdict>, recoveries_us: &[u64]) -> Self {
        let each = Metric::ALL.iter().map(|metric| record.of(*metric).clone()).collect();
        let mut measured = Self::new(each, &record.counters);
        let mut recovery = histogram();
        recoveries_us.iter().for_each(|us| recovery.saturating_record((*us).max(1)));
        measured.histograms.push(("recovery".to_owned(), recovery));
        for kind in verdict.map_or(&[][..], |_| FaultKind::ALL) {
            let count = verdict.map_or(0, |verdict| verdict.faults.count(*kind));
            measured.counts.insert(kind.label().to_owned(), count);
        }
        measured
    }

    /// A part of a run. Faults are known of the whole only.
    pub fn of_part(part: &Part) -> Self {
        Self::new(part.histograms(), &part.total().counters)
    }

    /// Every metric, and the two that people ask for first: single and group together.
    fn new(each: Vec<Histogram<u64>>, counters: &Counters) -> Self {
        let mut all: Vec<_> = Metric::ALL
            .iter()
            .zip(each)
            .map(|(metric, histogram)| (metric.label().to_owned(), histogram))
            .collect();
        for (name, one, two) in [
            ("ack", Metric::AckSingle, Metric::AckGroup),
            ("delivery", Metric::DeliverySingle, Metric::DeliveryGroup),
        ] {
            let mut sum = all[one as usize].1.clone();
            sum.add(&all[two as usize].1).expect("all histograms have the same bounds");
            all.push((name.to_owned(), sum));
        }
        let counts =
            Counter::ALL.iter().map(|one| (one.label().to_owned(), counters.get(*one))).collect();
        Self { histograms: all, counts }
    }

    /// Compares with a threshold. What was not measured cannot have been met.
    pub fn compare(&self, threshold: &Threshold) -> ThresholdResult {
        let (observed, unit) = match &threshold.measure {
            Measure::Latency { name, percentile } => {
                let known = self.histograms.iter();
                let found = known
                    .filter(|(known, histogram)| known == name && !histogram.is_empty())
                    .map(|(_, histogram)| histogram.value_at_percentile(*percentile) as f64)
                    .next();
                (found, "us")
            }
            Measure::Count(name) => {
                let parts = Measure::parts(name).into_iter();
                let counts: Option<Vec<u64>> =
                    parts.map(|part| self.counts.get(part).copied()).collect();
                (counts.map(|counts| counts.iter().sum::<u64>() as f64), "count")
            }
        };
        let passed = observed.is_some_and(|observed| threshold.holds(observed));
        let (condition, unit) = (threshold.text.clone(), unit.to_owned());
        ThresholdResult { condition, observed, passed, unit }
    }

    /// The percentiles of what was recorded.
    pub fn percentiles(&self) -> BTreeMap<String, Percentiles> {
        let recorded = self.histograms.iter().filter(|(_, histogram)| !histogram.is_empty());
        recorded.map(|(name, histogram)| (name.clone(), Percentiles::of(histogram))).collect()
    }
}

/// Per second of so many seconds.
pub fn rates(counters: &Counters, seconds: f64) -> BTreeMap<String, f64> {
    let rate = |counter: Counter| counters.get(counter) as f64 / seconds.max(0.001);
    RATES.map(|counter| (counter.label().to_owned(), rate(counter))).into()
}

impl Report {
    /// Collects and judges.
    pub fn new(findings: Findings<'_>) -> Self {
        let record = findings.record;
        let Times { ramp_sessions, ramp_seconds, load_seconds } = findings.times;
        let measured = Measured::of_run(record, findings.verdict, &findings.recoveries_us);
        let all = Counter::ALL.iter();
        let counters = all.map(|one| (one.label().to_owned(), record.counters.get(*one)));
        let refusals = record.counters.codes().map(|(code, count)| (code.to_owned(), count));
        let mut report = Self {
            schema_version: SCHEMA_VERSION,
            tool: "millrace-loadgen".to_owned(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            command: findings.command.to_owned(),
            passed: false,
            exit_code: 0,
            failures: findings.failures,
            configuration: findings.configuration,
            ramp_seconds,
            ramp_per_second: f64::from(ramp_sessions) / ramp_seconds.max(0.001),
            started_at_unix_ms: 0,
            load_started_at_unix_us: 0,
            scenario: None,
            phases: Vec::new(),
            stages: findings.stages,
            windows: Vec::new(),
            breakpoint: None,
            recoveries: Vec::new(),
            agents: Vec::new(),
            load_seconds,
            rates: rates(&record.counters, load_seconds),
            counters: counters.collect(),
            refusals: refusals.collect(),
            latency_us: measured.percentiles(),
            verification: findings.verdict.map(verification),
            thresholds: findings.thresholds.iter().map(|one| measured.compare(one)).collect(),
            generator: findings.generator,
            endings: endings(findings.endings),
            errors: findings.errors,
            histograms: measured.histograms,
        };
        report.judge(findings.must_be_zero, findings.allow_saturated);
        if let Some(exit) = findings.broken {
            (report.exit_code, report.passed) = (exit as u8, false);
        }
        report
    }

    fn judge(&mut self, must_be_zero: &[(Counter, &'static str)], allow_saturated: bool) {
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
        // A step of a search may miss its thresholds: that is what is looked for.
        let judged = self.stages.iter().filter(|stage| stage.kind != "step");
        let of_stages = judged.flat_map(|stage| {
            stage.thresholds.iter().map(move |result| (format!("stage {}: ", stage.name), result))
        });
        let of_run = self.thresholds.iter().map(|result| (String::new(), result));
        let missed: Vec<String> = of_run
            .chain(of_stages)
            .filter(|(_, result)| !result.passed)
            .map(|(place, result)| {
                let observed =
                    result.observed.map_or("nothing".to_owned(), |seen| seen.to_string());
                format!("{place}threshold {} missed: {observed}", result.condition)
            })
            .collect();
        self.failures.extend(missed);
        let untrusted = self.generator.saturated && !allow_saturated;
        if untrusted {
            self.failures.push(format!(
                "refused: {}; the latencies say nothing about the server. Use more threads, cores or \
                 machines, or --allow-late",
                self.generator.reasons.join("; ")
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

    /// The whole histogram of a latency, in microseconds, while the run is still in memory.
    pub fn histogram(&self, name: &str) -> Option<&Histogram<u64>> {
        self.histograms.iter().find(|(known, _)| known == name).map(|(_, histogram)| histogram)
    }
}

pub(crate) fn verification(verdict: &Verdict) -> Verification {
    let faults = FaultKind::ALL
        .iter()
        .map(|kind| (kind.label().to_owned(), verdict.faults.count(*kind)))
        .collect();
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

pub(crate) fn endings(endings: &Endings) -> EndingsReport {
    EndingsReport {
        count: endings.count,
        silence_seconds_min: endings.silence_ns_min as f64 / 1e9,
        silence_seconds_max: endings.silence_ns_max as f64 / 1e9,
        by_code: endings
            .by_label
            .iter()
            .map(|(code, count)| ((*code).to_owned(), *count))
            .collect(),
    }
}
