//! What a report says of a run.

use super::{Findings, Generator, Report, Times};
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
    let late_p99_us = record.of(Metric::Late).value_at_quantile(0.99);
    let saturated = late_p99_us > 50_000;
    let generator = Generator { late_p99_us, saturated, ..Generator::default() };
    Report::new(Findings {
        command: "chat",
        configuration: serde_json::json!({}),
        record,
        verdict: Some(verdict),
        endings: &Endings::default(),
        errors: Vec::new(),
        times: Times { ramp_sessions: 10, ramp_seconds: 1.0, load_seconds: 10.0 },
        stages: Vec::new(),
        recoveries_us: Vec::new(),
        must_be_zero: &[(Counter::Failed, "sends were given up")],
        failures: Vec::new(),
        broken: None,
        thresholds,
        generator,
        allow_saturated: allow_late,
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
    assert_eq!(json["schema_version"], 2);
    assert_eq!(json["passed"], true);
    assert_eq!(json["latency_us"]["delivery"]["count"], 1);
    assert_eq!(json["verification"]["faults"]["lost"], 0);
    assert!(report.to_text().contains("PASSED"));
}

#[test]
fn a_fault_a_missed_threshold_and_an_unmeasured_one_each_fail_the_run() {
    let mut record = Recorder::default();
    record.record(Metric::DeliverySingle, 600_000_000);
    let missed = judge(&record, &Verdict::default(), &thresholds("delivery_p99.9<500ms"), false);
    assert_eq!(missed.exit_code, Exit::Failed as u8);
    let unmeasured = judge(&record, &Verdict::default(), &thresholds("join_p99<500ms"), false);
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
