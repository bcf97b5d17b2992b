//! The tables of the page.

use std::collections::BTreeMap;

use super::section;
use crate::{
    figures::{bytes, count, micros, significant},
    output::{
        document::{Document, Predicted, Threshold},
        escape,
    },
};

/// A column: its heading, and whether it holds numbers.
type Column = (&'static str, bool);

fn table(columns: &[Column], rows: &[Vec<String>]) -> String {
    let class = |is_number: bool| if is_number { " class=\"n\"" } else { "" };
    let head: String = columns
        .iter()
        .map(|(heading, is_number)| format!("<th{}>{}</th>", class(*is_number), escape(heading)))
        .collect();
    let body: String = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(columns).map(|(cell, (_, is_number))| {
                let class = if *is_number { class(true) } else { " class=\"words\"" };
                format!("<td{class}>{cell}</td>")
            });
            format!("<tr>{}</tr>", cells.collect::<String>())
        })
        .collect();
    format!(
        "<div class=\"wide\"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
}

fn mark(is_good: bool, good: &str, bad: &str) -> String {
    let (class, text) = if is_good { ("good", good) } else { ("bad", bad) };
    format!("<span class=\"{class}\">{}</span>", escape(text))
}

pub(super) fn latencies(document: &Document) -> Option<String> {
    let us = |value: u64| escape(&micros(value as f64));
    let rows: Vec<Vec<String>> = document
        .latency_us
        .iter()
        .filter(|(_, latency)| latency.count > 0)
        .map(|(name, latency)| {
            let values = [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max];
            let mut row = vec![escape(name), count(latency.count)];
            row.extend(values.map(us));
            row
        })
        .collect();
    let columns = [
        ("latency", false),
        ("values", true),
        ("p50", true),
        ("p90", true),
        ("p99", true),
        ("p99.9", true),
        ("longest", true),
    ];
    (!rows.is_empty()).then(|| section("Latencies", &table(&columns, &rows)))
}

fn observed(threshold: &Threshold) -> String {
    match (threshold.observed, threshold.unit.as_deref()) {
        (None, _) => "nothing".to_owned(),
        (Some(value), Some("us")) => micros(value),
        (Some(value), Some(_)) => significant(value),
        // Older reports do not say the unit; a condition with a time in it compares times.
        (Some(value), None) if threshold.condition.ends_with('s') => micros(value),
        (Some(value), None) => significant(value),
    }
}

fn threshold_rows(stage: &str, thresholds: &[Threshold]) -> Vec<Vec<String>> {
    thresholds
        .iter()
        .map(|threshold| {
            vec![
                escape(&threshold.condition),
                escape(stage),
                escape(&observed(threshold)),
                mark(threshold.passed, "met", "missed"),
            ]
        })
        .collect()
}

pub(super) fn thresholds(document: &Document) -> Option<String> {
    let mut rows = threshold_rows("whole run", &document.thresholds);
    for stage in &document.stages {
        rows.extend(threshold_rows(&stage.name, &stage.thresholds));
    }
    let columns = [("condition", false), ("of", false), ("observed", true), ("", false)];
    (!rows.is_empty()).then(|| section("Thresholds", &table(&columns, &rows)))
}

pub(super) fn stages(document: &Document) -> Option<String> {
    let headline = document.headline().unwrap_or("delivery");
    let rows: Vec<Vec<String>> = document
        .stages
        .iter()
        .map(|stage| {
            let asked = match (stage.from_per_second, stage.to_per_second) {
                (Some(from), Some(to)) if from == to => format!("{}/s", significant(from)),
                (Some(from), Some(to)) => format!("{} to {}/s", significant(from), significant(to)),
                _ => String::new(),
            };
            let done =
                ["acked", "echoes", "room_acked"].iter().filter_map(|rate| stage.rates.get(*rate));
            let latency = stage.latency_us.get(headline).filter(|latency| latency.count > 0);
            let us = |value: Option<u64>| value.map_or("–".to_owned(), |us| micros(us as f64));
            vec![
                escape(&stage.name),
                escape(&stage.kind),
                format!("{} s", significant(stage.seconds)),
                asked,
                format!("{}/s", significant(done.sum())),
                us(latency.map(|latency| latency.p50)),
                us(latency.map(|latency| latency.p99_9)),
                stage.passed.map_or(String::new(), |passed| mark(passed, "passed", "failed")),
            ]
        })
        .collect();
    let columns = [
        ("stage", false),
        ("kind", false),
        ("length", true),
        ("asked", true),
        ("done", true),
        ("p50", true),
        ("p99.9", true),
        ("", false),
    ];
    (!rows.is_empty()).then(|| section("Stages", &table(&columns, &rows)))
}

pub(super) fn breakpoint(document: &Document) -> Option<String> {
    let mut content = String::new();
    if let Some(point) = &document.breakpoint {
        let rate = |value: Option<f64>| {
            value.map_or("nothing".to_owned(), |value| format!("{}/s", significant(value)))
        };
        content.push_str(&format!(
            "<p>Held at {}; broke at {}{}.</p>",
            escape(&rate(point.held_per_second)),
            escape(&rate(point.broke_per_second)),
            point.why.as_ref().map_or(String::new(), |why| format!(": {}", escape(why)))
        ));
    }
    let rows: Vec<Vec<String>> = document
        .recoveries
        .iter()
        .map(|recovery| {
            vec![
                escape(&recovery.event),
                format!("{} s", significant(recovery.start_seconds)),
                count(recovery.sessions),
                recovery.recovered_seconds.map_or("not within the run".to_owned(), |seconds| {
                    format!("{} s", significant(seconds))
                }),
            ]
        })
        .collect();
    if !rows.is_empty() {
        content.push_str(&table(
            &[("event", false), ("at", true), ("sessions", true), ("everybody back after", true)],
            &rows,
        ));
    }
    (!content.is_empty()).then(|| section("Limits and recoveries", &content))
}

fn predicted_value(row: &Predicted, value: f64) -> String {
    match row.unit.as_str() {
        "B" => bytes(value),
        "percent" => format!("{} %", significant(value)),
        "1/s" => format!("{}/s", significant(value)),
        _ => significant(value),
    }
}

pub(super) fn ledger(document: &Document) -> Option<String> {
    let rows: Vec<Vec<String>> = document
        .predicted
        .iter()
        .map(|row| {
            let ratio = row
                .measured
                .filter(|_| row.predicted > 0.0)
                .map(|measured| measured / row.predicted);
            vec![
                escape(&row.name),
                escape(&predicted_value(row, row.predicted)),
                row.measured.map_or("–".to_owned(), |value| escape(&predicted_value(row, value))),
                ratio.map_or("–".to_owned(), |ratio| format!("{:.2}", ratio)),
                row.basis.map_or("", |basis| basis.label()).to_owned(),
                escape(&row.source),
            ]
        })
        .collect();
    let columns = [
        ("", false),
        ("predicted", true),
        ("measured", true),
        ("ratio", true),
        ("prediction is", false),
        ("from", false),
    ];
    let caption = "<p class=\"faint\">What the ledger of this build says for this load, beside what this run had. \
        The ledger's machine is another one: look for a ratio that is far from the others.</p>";
    (!rows.is_empty())
        .then(|| section("Predicted and measured", &format!("{caption}{}", table(&columns, &rows))))
}

pub(super) fn verification(document: &Document) -> Option<String> {
    let part = document.verification.as_ref()?;
    let summary = format!(
        "<p>{} messages acknowledged, {} of {} deliveries found, in {} conversations; {} unverified.</p>",
        count(part.acked),
        count(part.found_deliveries),
        count(part.expected_deliveries),
        count(part.conversations),
        count(part.unverified)
    );
    let rows: Vec<Vec<String>> = part
        .faults
        .iter()
        .map(|(kind, found)| vec![escape(kind), count(*found), mark(*found == 0, "none", "found")])
        .collect();
    let examples: String =
        part.examples.iter().map(|text| format!("<li>{}</li>", escape(text))).collect();
    let examples = if examples.is_empty() {
        examples
    } else {
        format!("<ul class=\"failures\">{examples}</ul>")
    };
    let columns = [("fault", false), ("count", true), ("", false)];
    Some(section("Verification", &format!("{summary}{}{examples}", table(&columns, &rows))))
}

/// The machines that shared the load.
pub(super) fn agents(document: &Document) -> Option<String> {
    let ms = |us: f64| format!("{:+.3} ms", us / 1e3);
    let rows: Vec<Vec<String>> = document
        .agents
        .iter()
        .map(|agent| {
            let generator = agent.generator.as_ref();
            let (is_good, words) = match (&agent.lost, generator) {
                (Some(_), _) => (false, "lost"),
                (None, Some(generator)) if generator.saturated => (false, "late"),
                (None, Some(_)) => (true, "well"),
                (None, None) => (false, "stopped"),
            };
            let offset =
                format!("{} ± {:.3}", ms(agent.clock_offset_us), agent.clock_uncertainty_us / 1e3);
            vec![
                escape(&agent.address),
                format!(
                    "{} ({} %)",
                    count(agent.connections.into()),
                    significant(100.0 * agent.share)
                ),
                format!("{}/s", significant(agent.per_second)),
                escape(&offset),
                agent.clock_drift_us.map_or("–".to_owned(), |drift| escape(&ms(drift))),
                generator.map_or("–".to_owned(), |one| escape(&micros(one.late_p99_us as f64))),
                generator
                    .map_or("–".to_owned(), |one| format!("{} %", significant(one.cpu_percent))),
                mark(is_good, words, words),
            ]
        })
        .collect();
    let columns = [
        ("agent", false),
        ("connections", true),
        ("asked", true),
        ("clock ahead", true),
        ("drift", true),
        ("late, p99", true),
        ("processor", true),
        ("", false),
    ];
    let lost = document.agents.iter().filter_map(|agent| {
        let lost = agent.lost.as_ref()?;
        Some(format!("<li>{}: {}</li>", escape(&agent.address), escape(lost)))
    });
    let lost: String = lost.collect();
    let lost = if lost.is_empty() { lost } else { format!("<ul class=\"failures\">{lost}</ul>") };
    (!rows.is_empty()).then(|| section("Agents", &format!("{}{lost}", table(&columns, &rows))))
}

pub(super) fn generator(document: &Document) -> String {
    let generator = &document.generator;
    let summary = format!(
        "<p>{}</p>",
        mark(
            !generator.saturated,
            "It kept its schedule; its figures can be believed.",
            "It did not keep its schedule; its latencies say nothing about the server."
        )
    );
    let reasons: String =
        generator.reasons.iter().map(|text| format!("<li>{}</li>", escape(text))).collect();
    let reasons =
        if reasons.is_empty() { reasons } else { format!("<ul class=\"failures\">{reasons}</ul>") };
    let mut rows = vec![
        vec![
            "late, p99".to_owned(),
            escape(&micros(generator.late_p99_us as f64)),
            String::new(),
            String::new(),
        ],
        vec![
            "late, longest".to_owned(),
            escape(&micros(generator.late_max_us as f64)),
            String::new(),
            String::new(),
        ],
        vec![
            "processor, % of a core".to_owned(),
            significant(generator.cpu_percent),
            String::new(),
            String::new(),
        ],
    ];
    if let Some(sends) = generator.late_sends {
        rows.push(vec!["late sends".to_owned(), count(sends), String::new(), String::new()]);
    }
    for rule in &generator.rules {
        let value = |value: f64| {
            if rule.unit == "us" {
                escape(&micros(value))
            } else {
                format!("{} %", significant(value))
            }
        };
        rows.push(vec![
            escape(&rule.name),
            value(rule.observed),
            value(rule.limit),
            mark(!rule.broken, "kept", "broken"),
        ]);
    }
    let columns = [("", false), ("observed", true), ("limit", true), ("", false)];
    section("Generator", &format!("{summary}{reasons}{}", table(&columns, &rows)))
}

pub(super) fn environment(document: &Document) -> Option<String> {
    let environment = document.environment.as_ref()?;
    let mut rows: Vec<Vec<String>> = [
        ("processor", format!("{} × {}", environment.cores, environment.processor)),
        ("memory", bytes(environment.memory_bytes as f64)),
        ("kernel", environment.kernel.clone()),
        ("descriptors (RLIMIT_NOFILE)", count(environment.descriptors)),
        ("load average before the run", format!("{:.2}", environment.load_before)),
        ("the generator's nice value", environment.nice.to_string()),
        ("program", format!("{} {}", document.tool, document.tool_version)),
    ]
    .map(|(name, value)| vec![escape(name), escape(&value)])
    .into();
    rows.extend(environment.sysctls.iter().map(|(name, value)| vec![escape(name), escape(value)]));
    Some(section("Environment", &table(&[("", false), ("", false)], &rows)))
}

fn numbers(map: &BTreeMap<String, u64>) -> String {
    let rows: Vec<Vec<String>> = map
        .iter()
        .filter(|(_, value)| **value > 0)
        .map(|(name, value)| vec![escape(name), count(*value)])
        .collect();
    if rows.is_empty() { String::new() } else { table(&[("", false), ("", true)], &rows) }
}

fn fold(summary: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<details><summary>{}</summary>{content}</details>", escape(summary))
}

pub(super) fn details(document: &Document) -> Option<String> {
    let errors: String =
        document.errors.iter().map(|text| format!("<li>{}</li>", escape(text))).collect();
    let errors =
        if errors.is_empty() { errors } else { format!("<ul class=\"failures\">{errors}</ul>") };
    let scenario =
        document.scenario.as_ref().and_then(|scenario| scenario.text.as_deref()).unwrap_or("");
    let scenario = if scenario.is_empty() {
        String::new()
    } else {
        format!("<pre>{}</pre>", escape(scenario))
    };
    let configuration = if document.configuration.is_null() {
        String::new()
    } else {
        let text = serde_json::to_string_pretty(&document.configuration).expect("a value");
        format!("<pre>{}</pre>", escape(&text))
    };
    let parts = [
        fold("Scenario", &scenario),
        fold("Configuration", &configuration),
        fold("Counters", &numbers(&document.counters)),
        fold("Refusals by code", &numbers(&document.refusals)),
        fold(
            "Ends of sessions that the server ended, by code",
            &numbers(&document.endings.by_code),
        ),
        fold("Errors in words", &errors),
    ];
    let content = parts.concat();
    (!content.is_empty()).then(|| section("What was run, and what was counted", &content))
}
