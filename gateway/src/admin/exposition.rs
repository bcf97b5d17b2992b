//! Writes the Prometheus text format, version 0.0.4. It knows no metric.

use std::fmt::{Display, Write};

/// What a metric is.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
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
    /// One sample with its labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let name = self.name;
        self.page.write(format_args!("{name}"));
        for (index, (label, text)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.page.write(format_args!("{open}{label}=\"{text}\""));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        self.page.write(format_args!("{close} {value}\n"));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Page};

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
