//! The result of a run: collected, judged, printed for a person and written as JSON.
//!
//! The JSON has a `schema_version`; a field changes its meaning only together with it. `judge`
//! collects and judges, `text` is the summary for a person.

pub mod judge;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub use crate::health::{Generator, Rule};
use crate::{
    output::{curve::curve, document::Environment},
    windows::Sparse,
};
pub use judge::{Findings, Times};

/// Version of the JSON summary.
pub const SCHEMA_VERSION: u32 = 2;

/// One latency's distribution, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub standard_deviation: f64,
    /// Points for a plot: quantile (0 to 1), microseconds, and values up to it.
    pub curve: Vec<(f64, u64, u64)>,
}

impl Percentiles {
    /// Reads them off a histogram.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            max: histogram.max(),
            mean: histogram.mean(),
            standard_deviation: histogram.stdev(),
            curve: curve(histogram),
        }
    }
}

/// The verification's part.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    pub faults: BTreeMap<String, u64>,
    /// A few of them in words.
    pub examples: Vec<String>,
}

/// A threshold and what was observed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ThresholdResult {
    /// As it was written.
    pub condition: String,
    /// Microseconds, or a count; `null` if nothing was measured under this name.
    pub observed: Option<f64>,
    /// Whether it was met.
    pub passed: bool,
    /// What `observed` counts in: `us` or `count`.
    #[serde(default)]
    pub unit: String,
}

/// When sessions ended that the client did not end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EndingsReport {
    /// How many.
    pub count: u64,
    /// Shortest silence of the client before the end, seconds.
    pub silence_seconds_min: f64,
    /// Longest.
    pub silence_seconds_max: f64,
    /// By the code the server named.
    pub by_code: BTreeMap<String, u64>,
}

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this structure.
    pub schema_version: u32,
    /// Who wrote it.
    pub tool: String,
    /// Its version.
    pub tool_version: String,
    /// The subcommand.
    pub command: String,
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
    /// Unix time of the first connect, in milliseconds.
    #[serde(default)]
    pub started_at_unix_ms: i64,
    /// Unix time at which the first stage began, in microseconds: to lay the log of a server beside.
    #[serde(default)]
    pub load_started_at_unix_us: i64,
    /// What ran.
    #[serde(default)]
    pub scenario: Option<ScenarioReport>,
    /// The run's phases.
    #[serde(default)]
    pub phases: Vec<PhaseReport>,
    /// The stages of the load.
    #[serde(default)]
    pub stages: Vec<StageReport>,
    /// The time line.
    #[serde(default)]
    pub windows: Vec<WindowReport>,
    /// Where it broke, if that was looked for.
    #[serde(default)]
    pub breakpoint: Option<Breakpoint>,
    /// How long it took until as many sessions were up as before a storm.
    #[serde(default)]
    pub recoveries: Vec<Recovery>,
    /// The machines that shared the load; empty if it was one process.
    #[serde(default)]
    pub agents: Vec<AgentReport>,
    /// Length of the load as observed, seconds.
    pub load_seconds: f64,
    /// Per second of load: sent, acked, received, room_received, flat_out, echoes.
    pub rates: BTreeMap<String, f64>,
    /// All counters.
    pub counters: BTreeMap<String, u64>,
    /// Answers with a code other than 0, by label.
    pub refusals: BTreeMap<String, u64>,
    /// Latencies in microseconds.
    pub latency_us: BTreeMap<String, Percentiles>,
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
    histograms: Vec<(String, Histogram<u64>)>,
}

/// What ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Where it came from: `preset`, `file` or `arguments`.
    pub source: String,
    /// All of it, as a file.
    pub text: String,
}

/// A phase of the run. Times are seconds from the first connect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseReport {
    /// `ramp`, `hold`, `load`, `settle`, `verify` or `leave`.
    pub name: String,
    /// When it began.
    pub start_seconds: f64,
    /// How long it took.
    pub seconds: f64,
}

/// A stage of the load: what was meant in it, whenever it arrived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageReport {
    /// Its name.
    pub name: String,
    /// `ramp`, `steady`, `spike`, `soak` or `step`.
    pub kind: String,
    /// When it began, from the first connect.
    pub start_seconds: f64,
    /// How long it took.
    pub seconds: f64,
    /// Factor of every rate at its beginning.
    pub load_from: f64,
    /// The same at its end.
    pub load_to: f64,
    /// What all schedules together asked for at its beginning, per second.
    pub from_per_second: f64,
    /// The same at its end.
    pub to_per_second: f64,
    /// What the counters grew by in it; those that did not are left out.
    pub counters: BTreeMap<String, u64>,
    /// Per second of it: sent, acked, received, …
    pub rates: BTreeMap<String, f64>,
    /// Latencies in microseconds.
    pub latency_us: BTreeMap<String, Percentiles>,
    /// The generator's own lateness, 99 %.
    pub late_p99_us: u64,
    /// The largest.
    pub late_max_us: u64,
    /// Its thresholds.
    pub thresholds: Vec<ThresholdResult>,
    /// Whether all of them were met.
    pub passed: bool,
}

/// One window of the time line: latencies of what was meant in it, counters of what happened in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowReport {
    /// When it began, from the first connect.
    pub start_seconds: f64,
    /// Its length.
    pub seconds: f64,
    /// The phase in which it began.
    pub phase: String,
    /// The stage, within the load.
    pub stage: Option<String>,
    /// What the schedules asked for in its middle, per second.
    pub target_per_second: Option<f64>,
    /// Sessions that were up at its end.
    pub connections: u64,
    /// What the counters grew by; those that did not are left out.
    pub counters: BTreeMap<String, u64>,
    /// Refusals, lost connections, failed sends and the like.
    pub errors: u64,
    /// Latencies in microseconds.
    pub latency_us: BTreeMap<String, WindowPercentiles>,
    /// The generator's own lateness, 99 %.
    pub late_p99_us: u64,
    /// The largest.
    pub late_max_us: u64,
    /// CPU of the generator, in percent of one core; 0 outside of the load.
    pub cpu_percent: f64,
    /// The whole histograms, by the metric's label.
    #[serde(skip)]
    pub histograms: Vec<(String, Sparse)>,
}

/// One latency's distribution within a window, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowPercentiles {
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
}

impl WindowPercentiles {
    /// Reads them off a histogram.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

/// What a search for the breakpoint found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Breakpoint {
    /// The highest load factor of a step that held; 0: none did.
    pub held_load: f64,
    /// What its schedules asked for, per second.
    pub held_per_second: f64,
    /// The load factor of the step that did not; `null`: all did.
    pub broke_load: Option<f64>,
    /// What its schedules asked for.
    pub broke_per_second: Option<f64>,
    /// Which condition it missed.
    pub why: Option<String>,
}

/// How a storm ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recovery {
    /// `reconnect_storm`.
    pub event: String,
    /// When it began, from the start of the load.
    pub start_seconds: f64,
    /// Sessions that were gone at the worst moment.
    pub sessions: u64,
    /// From its beginning until as many sessions were up as before; `null`: never.
    pub recovered_seconds: Option<f64>,
}

/// A machine's part in a run of several.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentReport {
    /// Where the coordinator reached it.
    pub address: String,
    /// Its users.
    pub connections: u32,
    /// Of all users, 0 to 1.
    pub share: f64,
    /// What its schedules asked for at full load, per second.
    pub per_second: f64,
    /// Its clock less the coordinator's before the run, microseconds.
    pub clock_offset_us: f64,
    /// The offset is right within this: half of the shortest round trip.
    pub clock_uncertainty_us: f64,
    /// The same after the run; `null`: it was not there to be asked.
    pub clock_offset_end_us: Option<f64>,
    /// As above.
    pub clock_uncertainty_end_us: Option<f64>,
    /// What the offset grew by in the run.
    pub clock_drift_us: Option<f64>,
    /// From the common start of the ramp until its last session was up, seconds.
    pub ramp_seconds: Option<f64>,
    /// Its generator's account of itself; `null`: it gave none.
    pub generator: Option<Generator>,
    /// The machine; `null` as above.
    pub environment: Option<Environment>,
    /// How it was lost, if it was.
    pub lost: Option<String>,
}
