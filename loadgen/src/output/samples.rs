//! A run with something in every part, for the tests of the renderers.

use serde_json::{Value, json};

use super::{curve::curve, document::Document};
use crate::record::histogram;

fn latency(scale: u64, count: u64) -> Value {
    let mut values = histogram();
    // A body and a long tail.
    for n in 0..count {
        let tail = if n % 1000 == 999 {
            40
        } else if n % 100 == 99 {
            8
        } else {
            1
        };
        values.saturating_record(scale * tail + n % 97 * scale / 50 + 1);
    }
    json!({
        "count": values.len(), "p50": values.value_at_quantile(0.5), "p90": values.value_at_quantile(0.9),
        "p99": values.value_at_quantile(0.99), "p99.9": values.value_at_quantile(0.999), "max": values.max(),
        "mean": values.mean(), "standard_deviation": values.stdev(), "curve": curve(&values),
    })
}

/// One that was well, and one that was lost.
fn agents() -> Value {
    json!([
            {"address": "10.0.0.11:7000", "connections": 500, "share": 0.5, "per_second": 500.0, "clock_offset_us": -1_234.5,
             "clock_uncertainty_us": 81.0, "clock_offset_end_us": -1_230.0, "clock_uncertainty_end_us": 90.0, "clock_drift_us": 4.5,
             "ramp_seconds": 9.8, "environment": null, "lost": null,
             "generator": {"late_p99_us": 170, "late_max_us": 960, "cpu_seconds": 5.0, "cpu_percent": 10.0, "saturated": false}},
            {"address": "10.0.0.12:7000", "connections": 500, "share": 0.5, "per_second": 500.0, "clock_offset_us": 0.5,
             "clock_uncertainty_us": 80.0, "generator": null, "lost": "it closed the connection"}])
}

/// Sixty seconds of chat in three stages, passed.
pub fn full_json() -> Value {
    let windows: Vec<Value> = (0..60)
        .map(|second| {
            let rate = if second < 10 { 0 } else if second < 30 { (second - 10) * 50 } else { 1000 };
            json!({
                "start_seconds": second, "seconds": 1.0, "phase": if second < 10 { "ramp" } else { "load" }, "stage": null,
                "target_per_second": rate, "connections": (second + 1).min(10) * 100,
                "counters": {"intended": rate, "acked": rate, "received": rate, "logins": if second < 10 { 100 } else { 0 }},
                "errors": if second == 40 { 3 } else { 0 },
                "latency_us": if rate > 0 { json!({"delivery": latency(1500 + rate, rate.max(1))}) } else { json!({}) },
                "late_p99_us": 120 + second, "late_max_us": 900 + second, "cpu_percent": 20.0,
            })
        })
        .collect();
    let condition =
        |text: &str| json!({"condition": text, "observed": 61_000.0, "unit": "us", "passed": true});
    let stage = |name: &str, kind: &str, start: u32, seconds: u32| {
        json!({"name": name, "kind": kind, "start_seconds": start, "seconds": seconds, "from_per_second": 0.0,
               "to_per_second": 1000.0, "rates": {"acked": 700.0}, "latency_us": {"delivery": latency(1800, 4000)},
               "late_p99_us": 100, "thresholds": [condition("delivery p99 < 200ms")], "passed": true})
    };
    json!({
        "schema_version": 2, "tool": "millrace-loadgen", "tool_version": "0.1.0", "command": "run",
        "passed": true, "exit_code": 0, "failures": [],
        "configuration": {"connections": 1000, "threads": 2}, "started_at_unix_ms": 1_795_325_477_000_i64,
        "scenario": {"name": "steady", "description": "A steady load", "source": "preset", "text": "name = \"steady\"\n"},
        "ramp_seconds": 10.0, "ramp_per_second": 100.0, "load_seconds": 50.0,
        "rates": {"sent": 800.0, "acked": 800.0, "received": 800.0},
        "counters": {"connections": 1000, "logins": 1000, "acked": 40_000, "connections_lost": 0, "resent": 12},
        "refusals": {"rate_limited": 3},
        "latency_us": {"delivery": latency(2000, 40_000), "delivery_single": latency(1900, 30_000), "delivery_group": latency(2500, 10_000),
                       "ack_single": latency(1700, 30_000), "service": latency(1500, 40_000), "connect": latency(90, 1000),
                       "login": latency(700, 1000), "heartbeat": latency(400, 5000)},
        "verification": {"acked": 40_000, "expected_deliveries": 60_000, "found_deliveries": 60_000, "stored_unanswered": 0,
                         "conversations": 900, "unverified": 0, "faults": {"lost": 0, "duplicated": 0, "out_of_order": 0}, "examples": []},
        "thresholds": [condition("delivery p99.9 < 500ms")],
        "generator": {"late_p99_us": 170, "late_max_us": 960, "cpu_seconds": 10.0, "cpu_percent": 20.0, "saturated": false,
                      "late_sends": 0, "reasons": [], "rules": [{"name": "late p99", "limit": 50_000.0, "observed": 170.0, "unit": "us", "broken": false}]},
        "endings": {"count": 0, "silence_seconds_min": 0.0, "silence_seconds_max": 0.0, "by_code": {}}, "errors": ["connect: timed out"],
        "phases": [{"name": "ramp", "start_seconds": 0.0, "seconds": 10.0}, {"name": "load", "start_seconds": 10.0, "seconds": 50.0}],
        "stages": [stage("warm up", "ramp", 10, 20), stage("steady", "steady", 30, 30)],
        "windows": windows, "breakpoint": null,
        "recoveries": [{"event": "reconnect_storm", "start_seconds": 40.0, "sessions": 500, "recovered_seconds": 2.5}],
        "agents": agents(),
        "environment": {"kernel": "6.18.44", "processor": "AMD EPYC", "cores": 2, "memory_bytes": 25_000_000_000_u64,
                        "descriptors": 20_000, "load_before": 0.2, "nice": -10, "sysctls": {"net.core.somaxconn": "4096"}},
        "predicted": [{"name": "generator memory a connection", "unit": "B", "predicted": 257.0, "measured": 301.5, "basis": "measured",
                       "source": "docs/measurements/million.md"}],
    })
}

/// The same, read.
pub fn full() -> Document {
    Document::parse(&full_json().to_string()).expect("a report")
}
