//! A finished run as its JSON has it: what every renderer and `compare` read. They know nothing of
//! the run itself, so a report can be drawn from a file of last month.
//!
//! Unknown keys are ignored and missing ones are empty: an older file draws what it has.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{exit::RunError, ledger::Basis, report::AgentReport};

/// The newest version of the schema that this program reads.
pub const SCHEMA_VERSION_MAX: u32 = 2;
/// A report is some megabytes; more is another file.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// See the module.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "docs/loadgen-report.schema.json describes each key")]
pub struct Document {
    pub schema_version: u32,
    pub tool: String,
    pub tool_version: String,
    pub command: String,
    pub passed: bool,
    pub exit_code: u8,
    pub failures: Vec<String>,
    pub configuration: serde_json::Value,
    pub ramp_seconds: f64,
    pub ramp_per_second: f64,
    pub load_seconds: f64,
    pub rates: BTreeMap<String, f64>,
    pub counters: BTreeMap<String, u64>,
    pub refusals: BTreeMap<String, u64>,
    pub latency_us: BTreeMap<String, Latency>,
    pub verification: Option<Verification>,
    pub thresholds: Vec<Threshold>,
    pub generator: Generator,
    pub endings: Endings,
    pub errors: Vec<String>,
    pub started_at_unix_ms: Option<i64>,
    pub scenario: Option<Scenario>,
    pub phases: Vec<Phase>,
    pub stages: Vec<Stage>,
    pub windows: Vec<Window>,
    pub breakpoint: Option<Breakpoint>,
    pub recoveries: Vec<Recovery>,
    pub agents: Vec<AgentReport>,
    pub environment: Option<Environment>,
    pub predicted: Vec<Predicted>,
}

/// One latency's distribution, in microseconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Latency {
    pub count: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    #[serde(rename = "p99.9")]
    pub p99_9: u64,
    pub max: u64,
    pub mean: f64,
    pub standard_deviation: f64,
    pub curve: Vec<Point>,
}

/// A point of a percentile curve.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(from = "serde_json::Value")]
pub struct Point {
    /// 0 to 1.
    pub quantile: f64,
    /// Microseconds.
    pub us: f64,
    /// Values up to it; reports before version 2 do not say.
    pub count: Option<u64>,
}

impl From<serde_json::Value> for Point {
    fn from(value: serde_json::Value) -> Self {
        let number = |index: usize| value.get(index).and_then(serde_json::Value::as_f64);
        Self {
            quantile: number(0).unwrap_or(0.0),
            us: number(1).unwrap_or(0.0),
            count: value.get(2).and_then(serde_json::Value::as_u64),
        }
    }
}

/// The verification's part.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Verification {
    pub acked: u64,
    pub expected_deliveries: u64,
    pub found_deliveries: u64,
    pub stored_unanswered: u64,
    pub conversations: u64,
    pub unverified: u64,
    pub faults: BTreeMap<String, u64>,
    pub examples: Vec<String>,
}

/// A threshold and what was observed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Threshold {
    pub condition: String,
    pub observed: Option<f64>,
    pub unit: Option<String>,
    pub passed: bool,
}

/// The generator's account of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Generator {
    pub late_p99_us: u64,
    pub late_max_us: u64,
    pub late_sends: Option<u64>,
    pub cpu_seconds: f64,
    pub cpu_percent: f64,
    pub busiest_thread_cpu_percent: Option<f64>,
    pub waited_percent: Option<f64>,
    pub saturated: bool,
    pub reasons: Vec<String>,
    pub rules: Vec<Rule>,
}

/// A limit that the generator set itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Rule {
    pub name: String,
    pub limit: f64,
    pub observed: f64,
    pub unit: String,
    pub broken: bool,
}

/// When sessions ended that the client did not end.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Endings {
    pub count: u64,
    pub silence_seconds_min: f64,
    pub silence_seconds_max: f64,
    pub by_code: BTreeMap<String, u64>,
}

/// Which scenario ran.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Scenario {
    pub name: String,
    pub description: Option<String>,
    pub source: Option<String>,
    pub text: Option<String>,
}

/// A part of the run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Phase {
    pub name: String,
    pub start_seconds: f64,
    pub seconds: f64,
}

/// A stage of the load.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Stage {
    pub name: String,
    pub kind: String,
    pub start_seconds: f64,
    pub seconds: f64,
    pub from_per_second: Option<f64>,
    pub to_per_second: Option<f64>,
    pub counters: BTreeMap<String, u64>,
    pub rates: BTreeMap<String, f64>,
    pub latency_us: BTreeMap<String, Latency>,
    pub late_p99_us: u64,
    pub thresholds: Vec<Threshold>,
    pub passed: Option<bool>,
}

/// A second of the run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Window {
    pub start_seconds: f64,
    pub seconds: f64,
    pub phase: String,
    pub target_per_second: Option<f64>,
    pub connections: u64,
    pub counters: BTreeMap<String, u64>,
    pub errors: u64,
    pub latency_us: BTreeMap<String, Latency>,
    pub late_p99_us: u64,
    pub late_max_us: u64,
    pub cpu_percent: f64,
}

/// What a search for the breaking point found.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Breakpoint {
    pub held_load: Option<f64>,
    pub held_per_second: Option<f64>,
    pub broke_load: Option<f64>,
    pub broke_per_second: Option<f64>,
    pub why: Option<String>,
}

/// How long a planned disturbance took to be over.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as above")]
pub struct Recovery {
    pub event: String,
    pub start_seconds: f64,
    pub sessions: u64,
    pub recovered_seconds: Option<f64>,
}

/// The machine that the generator ran on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the processor.
    pub processor: String,
    /// Cores that the process may use.
    pub cores: u32,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// RLIMIT_NOFILE, soft.
    pub descriptors: u64,
    /// Load average of the minute before the run.
    pub load_before: f64,
    /// The generator's nice value: below 0, it went before others on its cores.
    pub nice: i32,
    /// Settings of the kernel that matter, by name.
    pub sysctls: BTreeMap<String, String>,
}

/// A figure of the ledger beside what this run had.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Predicted {
    /// What it is.
    pub name: String,
    /// B, percent, 1/s, addresses.
    pub unit: String,
    /// What the ledger says for this load.
    pub predicted: f64,
    /// What was seen; `None`: nobody looked.
    pub measured: Option<f64>,
    /// Whether the prediction's figures were measured.
    pub basis: Option<Basis>,
    /// Where they come from, or how it was computed.
    pub source: String,
}

impl Document {
    /// Reads a report.
    ///
    /// # Errors
    /// The file cannot be read, is no report, or is of a newer version.
    pub fn read(path: &Path) -> Result<Self, RunError> {
        let bad = |what: String| RunError::bad_arguments(format!("{}: {what}", path.display()));
        let size = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?.len();
        if size > BYTES_MAX {
            return Err(bad(format!("{size} bytes are no report of this program")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        Self::parse(&text).map_err(bad)
    }

    /// Reads a report's text.
    ///
    /// # Errors
    /// A sentence, if it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document: Self =
            serde_json::from_str(text).map_err(|error| format!("no report: {error}"))?;
        if document.tool != "millrace-loadgen" {
            return Err("no report of millrace-loadgen (its key \"tool\" is missing)".to_owned());
        }
        if document.schema_version > SCHEMA_VERSION_MAX {
            return Err(format!(
                "schema_version {} is newer than this program, which reads up to {SCHEMA_VERSION_MAX}",
                document.schema_version
            ));
        }
        Ok(document)
    }

    /// The latency a reader looks at first: what people wait for, from sender to receiver.
    pub fn headline(&self) -> Option<&str> {
        const IN_ORDER: [&str; 7] =
            ["delivery", "delivery_room", "echo", "custom", "heartbeat", "arrival", "connect"];
        IN_ORDER.into_iter().find(|name| self.latency_us.contains_key(*name))
    }

    /// A counter, 0 if it is not there.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// Name of the scenario, or of the command.
    pub fn title(&self) -> &str {
        self.scenario.as_ref().map_or(&self.command, |scenario| &scenario.name)
    }

    /// All faults that the verification found.
    pub fn faults(&self) -> u64 {
        self.verification.as_ref().map_or(0, |part| part.faults.values().sum())
    }
}

impl Latency {
    /// The value at a quantile (0 to 1): the first point of the curve at or above it.
    pub fn at(&self, quantile: f64) -> Option<f64> {
        let exact = match quantile {
            0.5 => Some(self.p50),
            0.9 => Some(self.p90),
            0.99 => Some(self.p99),
            0.999 => Some(self.p99_9),
            1.0 => Some(self.max),
            _ => None,
        };
        if self.count == 0 {
            return None;
        }
        exact.map(|us| us as f64).or_else(|| {
            let at_or_above = self.curve.iter().filter(|point| point.quantile >= quantile - 1e-12);
            at_or_above.map(|point| point.us).min_by(f64::total_cmp)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Document;

    #[test]
    fn a_report_of_the_first_version_is_read_and_others_files_are_refused_in_words() {
        let text = r#"{"tool":"millrace-loadgen","schema_version":1,"passed":true,"latency_us":{"delivery":
            {"count":10,"p50":5,"p90":6,"p99":7,"p99.9":8,"max":9,"curve":[[0.0,1],[0.5,5],[0.9995,8],[1.0,9]]}}}"#;
        let document = Document::parse(text).expect("a report");
        let latency = &document.latency_us["delivery"];
        assert_eq!(
            (latency.at(0.999), latency.at(0.9991), latency.at(1.0)),
            (Some(8.0), Some(8.0), Some(9.0))
        );
        assert_eq!(document.headline(), Some("delivery"));
        assert!(Document::parse("{}").expect_err("nobody's").contains("tool"));
        assert!(Document::parse("[").is_err());
        let newer = text.replace("\"schema_version\":1", "\"schema_version\":3");
        assert!(Document::parse(&newer).expect_err("newer").contains("newer"));
    }
}
