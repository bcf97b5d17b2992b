//! A line a second on standard error, for logs, pipes and `--plain`.

use std::io::Write as _;

use super::sample::Sample;

pub(super) fn line(sample: &Sample) {
    let line = format!(
        "{:5.0}s {:6} up {:6}  sent {:6.0}/s  ack {:6.0}/s  deliver {:7.0}/s  echo {:6.0}/s  \
         p99 {:8.1} ms  waiting {:5}  lost {}  errors {}  late {:.1} ms  cpu {:.0} %",
        sample.seconds,
        sample.phase,
        sample.up,
        sample.sent,
        sample.acked,
        sample.received,
        sample.echoes,
        sample.p99 as f64 / 1000.0,
        sample.waiting,
        sample.lost,
        sample.refusals,
        sample.late_p99 as f64 / 1000.0,
        sample.cpu_percent,
    );
    // A closed standard error is no reason to end a run.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
