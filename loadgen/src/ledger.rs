//! The ledger: what a connection, a session and a message were measured to cost, each figure with
//! its source. The file `ledger.toml` beside `Cargo.toml` is part of the program.
//!
//! It computes nothing but the cost of a message at a rate; [`crate::plan`] makes machines of it.

use serde::{Deserialize, Serialize};

const TEXT: &str = include_str!("../ledger.toml");

/// How a figure came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Read from a run.
    Measured,
    /// Computed from measured figures.
    Derived,
}

impl Basis {
    /// For tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Derived => "derived",
        }
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The number, in `unit`.
    pub value: f64,
    /// B, us, 1/s, connections, or 1 for a share.
    pub unit: String,
    /// Measured or derived.
    pub basis: Basis,
    /// Page and section it comes from, and how it was derived.
    pub source: String,
}

/// What a chat message costs each process at a rate, in microseconds of one core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageCost {
    /// Messages a second through one process.
    pub per_second: f64,
    /// The gateway's part: two frames in, two out.
    pub gateway_us: f64,
    /// Logic's part, the embedded store's writer included.
    pub logic_us: f64,
    /// The generator's part, sender and receiver.
    pub generator_us: f64,
    /// Measured or derived.
    pub basis: Basis,
    /// Page and section.
    pub source: String,
}

/// See the module. A field is named after what it is per what.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "ledger.toml says what each figure is and where it comes from")]
pub struct Ledger {
    pub version: u32,
    pub machine: String,
    pub gateway_bytes_per_connection: Figure,
    pub gateway_bytes_per_connection_peak: Figure,
    pub logic_bytes_per_session: Figure,
    pub logic_bytes_per_session_peak: Figure,
    pub generator_bytes_per_connection: Figure,
    pub generator_bytes_per_connection_peak: Figure,
    pub kernel_bytes_per_connection_end: Figure,
    pub gateway_us_per_login: Figure,
    pub logic_us_per_login: Figure,
    pub generator_us_per_login: Figure,
    pub gateway_us_per_heartbeat: Figure,
    pub generator_us_per_heartbeat: Figure,
    pub gateway_us_per_room_delivery: Figure,
    pub generator_us_per_room_delivery: Figure,
    /// In ascending order of their rates; never empty.
    pub message_cost: Vec<MessageCost>,
    pub connections_per_gateway_max: Figure,
    pub connections_per_agent_max: Figure,
    pub messages_per_logic_max: Figure,
    pub ramp_per_second: Figure,
    pub port_share: Figure,
}

impl Ledger {
    /// The one this program was built with.
    pub fn built_in() -> Self {
        toml::from_str(TEXT).expect("the test reads the same file")
    }

    /// What a message costs where so many a second go through one process: between two measured
    /// points on a line over the logarithm of the rate, outside them the nearest.
    pub fn message_cost(&self, per_second: f64) -> MessageCost {
        let above = self.message_cost.iter().position(|point| point.per_second >= per_second);
        let (low, high) = match above {
            Some(0) => return self.message_cost[0].clone(),
            Some(index) => (&self.message_cost[index - 1], &self.message_cost[index]),
            None => return self.message_cost[self.message_cost.len() - 1].clone(),
        };
        if high.per_second == per_second {
            return high.clone();
        }
        let share = (per_second / low.per_second).ln() / (high.per_second / low.per_second).ln();
        let between = |from: f64, to: f64| from + (to - from) * share;
        MessageCost {
            per_second,
            gateway_us: between(low.gateway_us, high.gateway_us),
            logic_us: between(low.logic_us, high.logic_us),
            generator_us: between(low.generator_us, high.generator_us),
            basis: Basis::Derived,
            source: format!(
                "between the points at {} and {} messages a second",
                low.per_second, high.per_second
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Basis, Ledger};

    #[test]
    fn the_file_is_complete_and_every_figure_names_a_page_that_exists() {
        let ledger = Ledger::built_in();
        assert_eq!(ledger.version, 1);
        let text = super::TEXT;
        let sources: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("source = \"")).collect();
        assert!(sources.len() >= 20, "{}", sources.len());
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for source in sources {
            let page = source.split([',', ':']).next().expect("split gives one");
            assert!(root.join(page).is_file(), "{page} is no page");
        }
    }

    #[test]
    fn figures_are_positive_and_the_costs_fall_as_the_rate_grows() {
        let ledger = Ledger::built_in();
        let table: toml::Table = toml::from_str(super::TEXT).expect("TOML");
        for (name, entry) in &table {
            if let Some(value) = entry.get("value") {
                let value = value.as_float().or(value.as_integer().map(|value| value as f64));
                assert!(value.is_some_and(|value| value > 0.0), "{name}");
            }
        }
        assert!(ledger.message_cost.windows(2).all(|pair| pair[0].per_second < pair[1].per_second));
    }

    #[test]
    fn between_two_points_lies_a_derived_one_and_outside_the_nearest() {
        let ledger = Ledger::built_in();
        let (low, high) = (&ledger.message_cost[0], &ledger.message_cost[1]);
        assert_eq!(ledger.message_cost(1.0).gateway_us, low.gateway_us);
        assert_eq!(&ledger.message_cost(high.per_second), high);
        let middle = ledger.message_cost((low.per_second * high.per_second).sqrt());
        assert_eq!(middle.basis, Basis::Derived);
        assert!((middle.gateway_us - (low.gateway_us + high.gateway_us) / 2.0).abs() < 1e-9);
        let last = &ledger.message_cost[ledger.message_cost.len() - 1];
        assert_eq!(ledger.message_cost(1e9).logic_us, last.logic_us);
    }
}
