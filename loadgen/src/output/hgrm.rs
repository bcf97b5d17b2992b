//! Percentile distributions as `.hgrm` text, the format of wrk2 and of HdrHistogram's plotter:
//! milliseconds, percentile, values up to it, 1/(1-percentile).

use std::fmt::Write as _;

use super::document::Latency;

/// The file of one latency; `None` if the report has no counts for it (before version 2).
pub fn hgrm(latency: &Latency) -> Option<String> {
    if latency.count == 0 || latency.curve.is_empty() {
        return None;
    }
    let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    for point in &latency.curve {
        let (value, percentile, count) = (point.us / 1000.0, point.quantile, point.count?);
        let written = if percentile < 1.0 {
            writeln!(
                out,
                "{value:12.3} {percentile:2.12} {count:10} {:14.2}",
                1.0 / (1.0 - percentile)
            )
        } else {
            writeln!(out, "{value:12.3} {percentile:2.12} {count:10}")
        };
        written.expect("writing to a string does not fail");
    }
    writeln!(
        out,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n#[Max     = {:12.3}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]",
        latency.mean / 1000.0,
        latency.standard_deviation / 1000.0,
        latency.max as f64 / 1000.0,
        latency.count,
        // Of every histogram of this program: 1 µs to ten minutes, three digits.
        20,
        2048
    )
    .expect("writing to a string does not fail");
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::hgrm;
    use crate::output::samples;

    #[test]
    fn the_file_has_the_columns_that_plotters_read() {
        let document = samples::full();
        let text = hgrm(&document.latency_us["delivery"]).expect("counts");
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("       Value     Percentile TotalCount 1/(1-Percentile)"));
        let rows: Vec<Vec<f64>> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                line.split_whitespace().map(|word| word.parse().expect("a number")).collect()
            })
            .collect();
        assert!(rows.len() > 50, "{}", rows.len());
        assert!(rows.windows(2).all(|pair| pair[0][1] < pair[1][1] && pair[0][2] <= pair[1][2]));
        let last = rows.last().expect("rows");
        assert_eq!((last[1], last.len()), (1.0, 3));
        assert_eq!(last[2] as u64, document.latency_us["delivery"].count);
        assert!(text.contains("#[Mean    ="));
    }

    #[test]
    fn a_report_without_counts_gives_no_file_instead_of_a_guess() {
        let mut latency = samples::full().latency_us["delivery"].clone();
        latency.curve.iter_mut().for_each(|point| point.count = None);
        assert_eq!(hgrm(&latency), None);
    }
}
