//! The report as one HTML file: nothing is loaded from anywhere, nothing is a script, so it opens
//! from a disk, in a mail and in ten years.
//!
//! The order is the reader's: the verdict and why, the figures people ask for first, how they were
//! distributed, how they went over time, whether the generator can be believed, and what was run.

mod charts;
mod tables;

use super::{document::Document, escape};
use crate::figures::{count, micros, significant};

const STYLE: &str = include_str!("../style.css");

/// The whole page.
pub fn html(document: &Document) -> String {
    let title = format!("{} · millrace-loadgen", document.title());
    let mut parts = vec![header(document)];
    parts.extend(charts::percentiles(document));
    parts.extend(tables::latencies(document));
    parts.extend(charts::time_lines(document));
    parts.extend(tables::stages(document));
    parts.extend(tables::thresholds(document));
    parts.extend(tables::breakpoint(document));
    parts.extend(tables::ledger(document));
    parts.extend(tables::verification(document));
    parts.push(tables::generator(document));
    parts.extend(tables::agents(document));
    parts.extend(tables::environment(document));
    parts.extend(tables::details(document));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}\n</main>\n</body>\n</html>\n",
        escape(&title),
        parts.join("\n")
    )
}

/// A part of the page with a heading.
fn section(heading: &str, content: &str) -> String {
    format!("<section>\n<h2>{}</h2>\n{content}\n</section>", escape(heading))
}

fn header(document: &Document) -> String {
    let (class, verdict) = match document.exit_code {
        _ if document.passed => ("good", "PASSED".to_owned()),
        120 => {
            ("odd", "REFUSED: the generator could not keep its own schedule (exit 120)".to_owned())
        }
        code => ("bad", format!("FAILED (exit {code})")),
    };
    let started = document.started_at_unix_ms.map(|ms| format!(" · started {}", utc(ms)));
    let description =
        document.scenario.as_ref().and_then(|scenario| scenario.description.as_deref());
    let failures: String =
        document.failures.iter().map(|text| format!("<li>{}</li>", escape(text))).collect();
    format!(
        "<header>\n<div class=\"verdict {class}\">{}</div>\n<h1>{}</h1>\n{}<p class=\"faint\">{} {}{}</p>\n{}\n\
         <div class=\"tiles\">{}</div>\n</header>",
        escape(&verdict),
        escape(document.title()),
        description.map_or(String::new(), |text| format!("<p>{}</p>", escape(text))),
        escape(&document.tool),
        escape(&document.tool_version),
        escape(&started.unwrap_or_default()),
        if failures.is_empty() {
            failures
        } else {
            format!("<ul class=\"failures\">{failures}</ul>")
        },
        tiles(document)
    )
}

/// The figures that people ask for first.
fn tiles(document: &Document) -> String {
    let mut tiles: Vec<(String, String)> = Vec::new();
    let held = document
        .windows
        .iter()
        .map(|window| window.connections)
        .max()
        .filter(|held| *held > 0)
        .unwrap_or_else(|| document.counter("logins").max(document.counter("connections")));
    tiles.push((count(held), "connections held at once".to_owned()));
    if let Some((name, latency)) =
        document.headline().and_then(|name| Some((name, document.latency_us.get(name)?)))
    {
        tiles.push((micros(latency.p99_9 as f64), format!("{name} p99.9")));
        tiles.push((micros(latency.p50 as f64), format!("{name} p50")));
    }
    for (rate, words) in [
        ("acked", "messages a second acknowledged"),
        ("received", "deliveries a second"),
        ("room_received", "room deliveries a second"),
        ("echoes", "echoes a second"),
        ("flat_out", "heartbeats a second, closed loop"),
    ] {
        if let Some(value) = document.rates.get(rate).filter(|value| **value > 0.0) {
            tiles.push((significant(*value), words.to_owned()));
        }
    }
    if document.verification.is_some() {
        tiles.push((count(document.faults()), "faults found by the verification".to_owned()));
    }
    tiles.push((count(document.counter("connections_lost")), "connections lost".to_owned()));
    let late = micros(document.generator.late_p99_us as f64);
    tiles.push((late, "generator late, p99".to_owned()));
    let tile = |(value, words): (String, String)| {
        format!(
            "<div class=\"tile\"><b>{}</b><span>{}</span></div>",
            escape(&value),
            escape(&words)
        )
    };
    tiles.into_iter().map(tile).collect()
}

/// `2026-11-22 05:31:17 UTC`.
pub(super) fn utc(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 1 March of the year 0, in eras of 400 years; the leap day ends a year then.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::{html, utc};
    use crate::output::{document::Document, samples};

    #[test]
    fn moments_are_written_as_the_calendar_has_them() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_325_477_000), "2026-11-22 05:31:17 UTC");
        assert_eq!(utc(4_107_542_399_999), "2100-02-28 23:59:59 UTC");
    }

    #[test]
    fn the_page_loads_nothing_from_anywhere_and_runs_no_script() {
        let page = html(&samples::full());
        for foreign in ["http://", "https://", "<script", "src=", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(page.contains("PASSED"));
    }

    #[test]
    fn every_part_of_a_full_run_is_on_the_page_and_an_empty_one_still_is_a_page() {
        let page = html(&samples::full());
        for part in [
            "Percentiles",
            "Over time",
            "Stages",
            "Thresholds",
            "Predicted and measured",
            "Verification",
            "Generator",
            "Agents",
            "Environment",
            "Counters",
            "delivery p99.9",
        ] {
            assert!(page.contains(part), "{part} is missing");
        }
        let empty = html(&Document::default());
        assert!(empty.contains("FAILED") && empty.ends_with("</html>\n"));
    }

    #[test]
    fn text_of_the_run_is_never_markup() {
        let mut document = samples::full();
        document.failures = vec!["<img src=x>".to_owned()];
        document.errors = vec!["</style><b>".to_owned()];
        let page = html(&document);
        assert!(!page.contains("<img") && !page.contains("</style><b>"));
    }
}
