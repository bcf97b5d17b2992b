//! Thresholds: `delivery_p99.9<500ms`, `pulled=0`, `login_max<=2s`.

use crate::cli::parse_duration;

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

impl std::str::FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = COMPARISONS.iter().find_map(|(sign, comparison)| {
            text.split_once(sign).map(|(left, right)| (left.trim(), right.trim(), *comparison))
        });
        let Some((left, right, comparison)) = found else {
            return Err(format!("{text}: write MEASURE<LIMIT, as in delivery_p99.9<500ms"));
        };
        let (name, percentile) = match left.rsplit_once('_') {
            Some((name, "max")) => (name, Some(100.0)),
            Some((name, tail)) => {
                let digits = tail.strip_prefix('p').and_then(|digits| digits.parse::<f64>().ok());
                (name, digits.filter(|percentile| (0.0..=100.0).contains(percentile)))
            }
            None => (left, None),
        };
        let (measure, limit) = match percentile {
            Some(percentile) => {
                let limit = parse_duration(right)?.as_secs_f64() * 1e6;
                (Measure::Latency { name: name.to_owned(), percentile }, limit)
            }
            None => {
                let limit = right.parse().map_err(|_| format!("{right} is not a number"))?;
                (Measure::Count(left.to_owned()), limit)
            }
        };
        Ok(Self { text: text.to_owned(), measure, comparison, limit })
    }
}

impl Threshold {
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
    fn nonsense_is_refused() {
        for text in ["", "delivery", "delivery_p99<fast", "pulled<", "delivery_p99=10 apples"] {
            assert!(text.parse::<Threshold>().is_err(), "{text}");
        }
    }
}
