//! A histogram as the points of its percentile curve: at the steps of HdrHistogram's own plots, and
//! at the quantiles that people name.

use hdrhistogram::Histogram;

/// Steps for each halving of what is left, as wrk2 and HdrHistogram print them.
const STEPS: u32 = 5;
/// Always among the points.
const NAMED: [f64; 14] =
    [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999, 0.999999, 1.0];

/// Quantile (0 to 1), value, and how many values lie at or below it; ascending.
pub fn curve(histogram: &Histogram<u64>) -> Vec<(f64, u64, u64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let mut quantiles: Vec<f64> =
        histogram.iter_quantiles(STEPS).map(|step| step.quantile_iterated_to()).collect();
    quantiles.extend(NAMED);
    quantiles.sort_by(f64::total_cmp);
    quantiles.dedup_by(|one, two| (*one - *two).abs() < 1e-12);
    // One walk over the values for all quantiles: a report has many curves.
    let total = histogram.len();
    let mut recorded = histogram.iter_recorded();
    let (mut value, mut below, mut points) = (0, 0, Vec::with_capacity(quantiles.len()));
    for quantile in quantiles {
        let wanted = ((quantile * total as f64).ceil() as u64).clamp(1, total);
        while below < wanted {
            let Some(step) = recorded.next() else { break };
            (value, below) = (step.value_iterated_to(), below + step.count_at_value());
        }
        let shown = if quantile == 0.0 { histogram.lowest_equivalent(value) } else { value };
        points.push((quantile, shown, below));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::curve;
    use crate::record::histogram;

    #[test]
    fn the_curve_has_the_named_quantiles_and_says_how_many_values_lie_below() {
        let mut values = histogram();
        (1..=1000).for_each(|value| values.saturating_record(value));
        let points = curve(&values);
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        for (quantile, value) in [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1000)] {
            let point = points.iter().find(|point| (point.0 - quantile).abs() < 1e-12);
            assert_eq!(point.map(|point| (point.1, point.2)), Some((value, value)), "{quantile}");
        }
        assert!(curve(&histogram()).is_empty());
    }

    #[test]
    fn every_point_is_what_the_histogram_says_of_its_quantile() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for count in [1, 2, 7, 1000, 30_000] {
            let mut values = histogram();
            (0..count).for_each(|_| values.saturating_record(1 << random.u32(0..29)));
            (0..count).for_each(|_| values.saturating_record(random.u64(1..100_000_000)));
            for (quantile, value, below) in curve(&values) {
                assert_eq!(value, values.value_at_quantile(quantile), "seed {seed}, {quantile}");
                assert_eq!(below, values.count_between(0, value), "seed {seed}, {quantile}");
            }
        }
    }
}
