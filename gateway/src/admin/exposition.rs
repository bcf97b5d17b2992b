//! Writes the Prometheus text format, version 0.0.4. It knows no metric.

use std::fmt::{Display, Write};

use millrace_engine::Durations;

/// What a metric is.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in buckets; see [`Metric::durations`].
    Histogram,
}

/// A page of metrics in the making.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

/// One metric of a page; its samples follow.
pub(super) struct Metric<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Page {
    /// Begins a metric. `help` is one line.
    pub fn metric(&mut self, name: &'static str, kind: Kind, help: &str) -> Metric<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Metric { page: self, name }
    }

    /// A metric of a single sample.
    pub fn single(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Display) {
        self.metric(name, kind, help).sample(&[], value);
    }

    pub fn into_text(self) -> String {
        self.text
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.text.write_fmt(arguments).expect("a String takes everything");
    }
}

impl Metric<'_> {
    /// A histogram in seconds under these labels.
    pub fn durations(&mut self, labels: &[(&str, &str)], durations: &Durations) -> &mut Self {
        let name = self.name;
        let mut sample = |suffix: &str, labels: &[(&str, &str)], value: &dyn Display| {
            let mut metric = Metric { page: self.page, name };
            metric.suffixed(suffix, labels, value);
        };
        let mut below = 0;
        for (index, count) in durations.buckets.iter().enumerate() {
            below += count;
            let bound = Durations::BOUNDS_MS.get(index);
            let bound = bound.map_or("+Inf".to_owned(), |ms| (*ms as f64 / 1e3).to_string());
            sample("_bucket", &[labels, &[("le", &bound)]].concat(), &below);
        }
        sample("_sum", labels, &(durations.sum_ms as f64 / 1e3));
        sample("_count", labels, &below);
        self
    }

    /// One sample with its labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.suffixed("", labels, &value);
        self
    }

    fn suffixed(&mut self, suffix: &str, labels: &[(&str, &str)], value: &dyn Display) {
        let name = self.name;
        self.page.write(format_args!("{name}{suffix}"));
        for (index, (label, text)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.page.write(format_args!("{open}{label}=\"{text}\""));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        self.page.write(format_args!("{close} {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use millrace_engine::Durations;

    use super::{Kind, Page};

    #[test]
    fn a_histogram_counts_everything_at_or_below_a_bound() {
        let mut page = Page::default();
        let mut durations = Durations { sum_ms: 9_003, ..Durations::default() };
        (durations.buckets[0], durations.buckets[2], durations.buckets[12]) = (2, 1, 1);
        page.metric("t_seconds", Kind::Histogram, "Time.")
            .durations(&[("method", "x")], &durations);
        let text = page.into_text();
        for line in [
            "# TYPE t_seconds histogram",
            "t_seconds_bucket{method=\"x\",le=\"0.001\"} 2",
            "t_seconds_bucket{method=\"x\",le=\"0.002\"} 2",
            "t_seconds_bucket{method=\"x\",le=\"0.005\"} 3",
            "t_seconds_bucket{method=\"x\",le=\"5\"} 3",
            "t_seconds_bucket{method=\"x\",le=\"+Inf\"} 4",
            "t_seconds_sum{method=\"x\"} 9.003",
            "t_seconds_count{method=\"x\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page::default();
        page.single("a_total", Kind::Counter, "How many.", 3);
        page.metric("b", Kind::Gauge, "What.")
            .sample(&[("x", "1"), ("y", "a\"b\\c\nd")], 0.5)
            .sample(&[("x", "2")], 7);
        let expected = "# HELP a_total How many.\n# TYPE a_total counter\na_total 3\n\
             # HELP b What.\n# TYPE b gauge\nb{x=\"1\",y=\"a\\\"b\\\\c\\nd\"} 0.5\nb{x=\"2\"} 7\n";
        assert_eq!(page.into_text(), expected);
    }
}
