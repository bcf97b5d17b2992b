//! Thresholds: `delivery_latency p99.9 < 500ms`, `loss = 0`, or shorter `delivery_p99.9<500ms`,
//! `pulled=0`, `login_max<=2s`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    cli::parse_duration,
    log::FaultKind,
    record::{Counter, Metric},
};

/// Latencies that are made of others, or come from the run as a whole.
const MADE: [&str; 3] = ["ack", "delivery", "recovery"];

/// Counts that are made of others.
const SUMS: [(&str, &[&str]); 4] = [
    ("loss", &["lost", "room_lost"]),
    ("duplicates", &["duplicated", "stored_twice", "room_duplicated"]),
    ("disorder", &["out_of_order", "room_out_of_order"]),
    ("gaps", &["gap", "sequence_reused", "wrong_sequence"]),
];

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Measure {
    /// A percentile (0 to 100; 100 is the maximum) of a latency, compared in microseconds.
    Latency {
        /// The metric's label.
        name: String,
        /// The percentile.
        percentile: f64,
    },
    /// A counter or a kind of fault.
    Count(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Below,
    AtMost,
    Above,
    AtLeast,
    Equal,
}

/// One condition that the run must meet.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// As it was written.
    pub text: String,
    /// What is compared.
    pub measure: Measure,
    comparison: Comparison,
    /// Microseconds for a latency.
    limit: f64,
}

const COMPARISONS: [(&str, Comparison); 5] = [
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("<", Comparison::Below),
    (">", Comparison::Above),
    ("=", Comparison::Equal),
];

/// Reads `p99.9`, `p(99.9)` or `max`.
fn percentile(text: &str) -> Option<f64> {
    if text == "max" {
        return Some(100.0);
    }
    let digits = text.strip_prefix('p')?;
    let digits = digits.strip_prefix('(').and_then(|d| d.strip_suffix(')')).unwrap_or(digits);
    digits.parse().ok().filter(|percentile| (0.0..=100.0).contains(percentile))
}

fn latencies() -> impl Iterator<Item = &'static str> {
    Metric::ALL.iter().map(|metric| metric.label()).chain(MADE)
}

fn counts() -> impl Iterator<Item = &'static str> {
    let faults = FaultKind::ALL.iter().map(|kind| kind.label());
    let sums = SUMS.iter().map(|(name, _)| *name);
    sums.chain(faults).chain(Counter::ALL.iter().map(|counter| counter.label()))
}

impl Measure {
    /// The counters and kinds of faults that a count is made of.
    pub fn parts(name: &str) -> Vec<&str> {
        let sum = SUMS.iter().find(|(known, _)| *known == name);
        sum.map_or_else(|| vec![name], |(_, parts)| parts.to_vec())
    }
}

impl std::str::FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = COMPARISONS.iter().find_map(|(sign, comparison)| {
            text.split_once(sign).map(|(left, right)| (left.trim(), right.trim(), *comparison))
        });
        let Some((left, right, comparison)) = found else {
            return Err(format!("{text}: write MEASURE<LIMIT, as in delivery_p99.9<500ms"));
        };
        let split = left.split_once(char::is_whitespace).or_else(|| left.rsplit_once('_'));
        let (name, percentile) = match split {
            Some((name, tail)) => (name, percentile(tail.trim())),
            None => (left, None),
        };
        let name = name.strip_suffix("_latency").unwrap_or(name);
        let (measure, limit) = match percentile {
            Some(percentile) => {
                if !latencies().any(|known| known == name) {
                    let known: Vec<_> = latencies().collect();
                    return Err(format!(
                        "{text}: no latency is called {name}; there are {}",
                        known.join(", ")
                    ));
                }
                let limit = parse_duration(right)?.as_secs_f64() * 1e6;
                (Measure::Latency { name: name.to_owned(), percentile }, limit)
            }
            None => {
                if !counts().any(|known| known == left) {
                    let known: Vec<_> = counts().collect();
                    return Err(format!(
                        "{text}: write LATENCY pNN < TIME, as in delivery_latency p99.9 < 500ms, or \
                         COUNT = NUMBER with one of {}",
                        known.join(", ")
                    ));
                }
                let limit =
                    right.parse().map_err(|_| format!("{text}: {right} is not a number"))?;
                (Measure::Count(left.to_owned()), limit)
            }
        };
        Ok(Self { text: text.to_owned(), measure, comparison, limit })
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl Threshold {
    /// Whether it is about faults, which are found when all records are there, or about recovery: no
    /// stage knows of them.
    pub fn is_of_the_whole_run(&self) -> bool {
        match &self.measure {
            Measure::Latency { name, .. } => name == "recovery",
            Measure::Count(name) => {
                let is_counter = |part: &&str| Counter::ALL.iter().any(|one| one.label() == *part);
                !Measure::parts(name).iter().all(is_counter)
            }
        }
    }

    /// The limit of a latency, in nanoseconds.
    pub fn latency_limit_ns(&self) -> Option<u64> {
        matches!(self.measure, Measure::Latency { .. }).then_some((self.limit * 1000.0) as u64)
    }

    /// Whether the observed value meets the condition.
    pub fn holds(&self, observed: f64) -> bool {
        match self.comparison {
            Comparison::Below => observed < self.limit,
            Comparison::AtMost => observed <= self.limit,
            Comparison::Above => observed > self.limit,
            Comparison::AtLeast => observed >= self.limit,
            Comparison::Equal => observed == self.limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Measure, Threshold};

    fn parse(text: &str) -> Threshold {
        text.parse().expect(text)
    }

    #[test]
    fn latencies_are_compared_in_microseconds() {
        let threshold = parse("delivery_p99.9<500ms");
        let measure = Measure::Latency { name: "delivery".into(), percentile: 99.9 };
        assert_eq!(threshold.measure, measure);
        assert!(threshold.holds(499_999.0) && !threshold.holds(500_000.0));
        let threshold = parse("ack_single_max <= 2s");
        let measure = Measure::Latency { name: "ack_single".into(), percentile: 100.0 };
        assert_eq!(threshold.measure, measure);
        assert!(threshold.holds(2_000_000.0) && !threshold.holds(2_000_001.0));
    }

    #[test]
    fn counts_are_compared_as_numbers() {
        assert_eq!(parse("connections_lost=0").measure, Measure::Count("connections_lost".into()));
        assert!(parse("pulled=0").holds(0.0) && !parse("pulled=0").holds(1.0));
        assert!(parse("reconnects>=10").holds(10.0));
    }

    #[test]
    fn both_ways_of_writing_mean_the_same() {
        for (long, short) in [
            ("delivery_latency p99.9 < 500ms", "delivery_p99.9<500ms"),
            ("login_latency max <= 2s", "login_max<=2s"),
            ("ack p(99)<1s", "ack_p99<1s"),
            ("service_delivery p50 < 1ms", "service_delivery_p50<1ms"),
        ] {
            let (long, short) = (parse(long), parse(short));
            assert_eq!((long.measure, long.limit), (short.measure, short.limit));
        }
        assert_eq!(parse("loss = 0").measure, Measure::Count("loss".into()));
        assert_eq!(Measure::parts("loss"), ["lost", "room_lost"]);
        assert_eq!(Measure::parts("pulled"), ["pulled"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["delivery", "delivrey_p99<500ms", "puled=0", "delivery p101 < 1s", "loss < 1s"]
        {
            let error = text.parse::<Threshold>().expect_err(text);
            assert!(error.contains(text), "{error}");
        }
        let error = "delivrey p99 < 1s".parse::<Threshold>().expect_err("a slip");
        assert!(error.contains("delivery_single"), "it names what there is: {error}");
        for text in ["", "delivery", "delivery_p99<fast", "pulled<", "delivery_p99=10 apples"] {
            assert!(text.parse::<Threshold>().is_err(), "{text}");
        }
    }
}
