//! `compare`: two finished runs side by side, and conditions on the difference.
//!
//! It reads their JSON and judges nothing else: whether a run was good by itself is in its own
//! verdict. A run that its own generator spoilt compares with nothing.

use std::{fmt::Write as _, path::PathBuf, str::FromStr};

use clap::Args;
use serde::Serialize;

use crate::{
    cli::parse_duration,
    exit::{Exit, RunError},
    figures::{micros, significant},
    output::document::Document,
};

const EXAMPLES: &str = "\
Conditions:
  p99.9 > +5%                   the latency people wait for (delivery; else room, echo, …) grew by more than 5 %
  delivery_room p99 > +20ms     a named latency grew by more than 20 ms
  arrival max > +50%
  rate acked < -3%              a rate a second fell by more than 3 %
  resent > +100                 a counter, or a kind of fault, grew by more than 100
  generator cpu_percent > +10%  generator: cpu_percent, late_p99_us, late_max_us

Examples:
  Did last night's build get slower?
    millrace-loadgen compare yesterday.json today.json --fail-on 'p99.9 > +5%' \\
        --fail-on 'rate acked < -3%' --fail-on 'lost > +0'

  Only look:
    millrace-loadgen compare a.json b.json

Exit codes: 0 no condition holds, 99 one does (or its figure is in neither run), 104 bad arguments,
120 the generator spoilt one of the runs";

/// Puts two runs side by side, and fails if a condition on the difference holds.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CompareArguments {
    /// The report to compare with: the one before.
    #[arg(value_name = "BEFORE.json")]
    pub before: PathBuf,
    /// The report to judge: the one after.
    #[arg(value_name = "AFTER.json")]
    pub after: PathBuf,
    /// A difference that fails, repeatable: 'p99.9 > +5%'.
    #[arg(long, value_name = "CONDITION")]
    pub fail_on: Vec<Condition>,
    /// Compare runs even if the generator spoilt one of them.
    #[arg(long)]
    pub allow_late: bool,
    /// Write the comparison as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What is looked at in both runs.
#[derive(Clone, Debug, PartialEq)]
enum Subject {
    /// A quantile of a latency; `None`: the one people look at first.
    Latency(Option<String>, f64),
    /// A rate a second.
    Rate(String),
    /// The generator's account of itself.
    Generator(String),
    /// A counter or a kind of fault.
    Count(String),
}

/// By how much.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    /// Share of the run before: 0.05 is 5 %.
    Share(f64),
    /// In the figure's own unit; microseconds for a latency.
    Absolute(f64),
}

/// A difference that fails the comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    subject: Subject,
    /// Whether it fails above the amount; else below.
    above: bool,
    amount: Amount,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = "write MEASURE > +AMOUNT or MEASURE < -AMOUNT, as in 'p99.9 > +5%'";
        let bad = |what: &str| format!("{text}: {what}; {hint}");
        let (at, sign) = text
            .char_indices()
            .find(|(_, character)| matches!(character, '<' | '>'))
            .ok_or_else(|| bad("there is no > or <"))?;
        let above = sign == '>';
        let subject = subject(text[..at].trim()).map_err(|error| bad(&error))?;
        let amount = text[at + 1..].trim();
        // Without a sign one could take 5% for "5 % of it".
        let (is_positive, digits) = match (amount.strip_prefix('+'), amount.strip_prefix('-')) {
            (Some(digits), _) => (true, digits.trim()),
            (_, Some(digits)) => (false, digits.trim()),
            _ => return Err(bad("the amount needs a sign, + or -")),
        };
        let factor = if is_positive { 1.0 } else { -1.0 };
        let number = |digits: &str| {
            let number = digits.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            number.ok_or_else(|| bad(&format!("{digits} is no number")))
        };
        let amount = match (digits.strip_suffix('%'), &subject) {
            (Some(digits), _) => Amount::Share(number(digits)? / 100.0 * factor),
            (None, Subject::Latency(..)) => {
                if digits.ends_with(|c: char| c.is_ascii_digit()) {
                    return Err(bad("an amount of time needs a unit: ms, us or s"));
                }
                let time = parse_duration(digits).map_err(|error| bad(&error))?;
                Amount::Absolute(time.as_secs_f64() * 1e6 * factor)
            }
            (None, _) => Amount::Absolute(number(digits)? * factor),
        };
        Ok(Self { text: text.trim().to_owned(), subject, above, amount })
    }
}

/// `p99.9`, `p(99.9)`, `delivery p99`, `delivery_p99`, `rate acked`, `generator cpu_percent`, `lost`.
fn subject(text: &str) -> Result<Subject, String> {
    if let Some(name) = text.strip_prefix("rate ") {
        return Ok(Subject::Rate(name.trim().to_owned()));
    }
    if let Some(name) = text.strip_prefix("generator ") {
        let name = name.trim();
        return match name {
            "cpu_percent" | "late_p99_us" | "late_max_us" => {
                Ok(Subject::Generator(name.to_owned()))
            }
            _ => Err(format!("the generator has no {name}")),
        };
    }
    let (name, last) = match text.rsplit_once([' ', '_']) {
        Some((name, last)) if quantile(last).is_some() => (name.trim(), last),
        _ => ("", text),
    };
    if let Some(quantile) = quantile(last) {
        let name = name.strip_suffix("_latency").unwrap_or(name);
        return Ok(Subject::Latency((!name.is_empty()).then(|| name.to_owned()), quantile));
    }
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("{text:?} is no measure"));
    }
    Ok(Subject::Count(text.to_owned()))
}

fn quantile(text: &str) -> Option<f64> {
    if text == "max" {
        return Some(1.0);
    }
    let digits = text.strip_prefix('p')?;
    let digits =
        digits.strip_prefix('(').and_then(|digits| digits.strip_suffix(')')).unwrap_or(digits);
    let percentile = digits.parse::<f64>().ok()?;
    // Rounded, so that 99.9 is 0.999 and not a neighbour of it.
    (0.0..=100.0).contains(&percentile).then(|| (percentile * 1e7).round() / 1e9)
}

impl Subject {
    fn of(&self, document: &Document, headline: Option<&str>) -> Option<f64> {
        match self {
            Self::Latency(name, quantile) => {
                document.latency_us.get(name.as_deref().or(headline)?)?.at(*quantile)
            }
            Self::Rate(name) => document.rates.get(name).copied(),
            Self::Generator(name) => Some(match name.as_str() {
                "cpu_percent" => document.generator.cpu_percent,
                "late_p99_us" => document.generator.late_p99_us as f64,
                _ => document.generator.late_max_us as f64,
            }),
            Self::Count(name) => {
                let faults = document.verification.as_ref().map(|part| &part.faults);
                let fault = faults.and_then(|faults| faults.get(name));
                fault.or_else(|| document.counters.get(name)).map(|count| *count as f64)
            }
        }
    }
}

/// A figure of both runs.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// us, 1/s, percent, or count.
    pub unit: &'static str,
    /// In the run before.
    pub before: Option<f64>,
    /// In the run after.
    pub after: Option<f64>,
    /// Change in percent of before; `None` where that is nothing.
    pub change_percent: Option<f64>,
}

/// What became of a condition.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// As it was written.
    pub condition: String,
    /// In the run before.
    pub before: Option<f64>,
    /// In the run after.
    pub after: Option<f64>,
    /// Whether it fails the comparison.
    pub failed: bool,
    /// Why, in words.
    pub finding: String,
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Version of this structure.
    pub schema_version: u32,
    /// Whether no condition holds.
    pub passed: bool,
    /// Of the process.
    pub exit_code: u8,
    /// What differs in what was run, and other reasons to doubt.
    pub remarks: Vec<String>,
    /// Figures side by side.
    pub rows: Vec<Row>,
    /// Conditions.
    pub conditions: Vec<Outcome>,
}

impl CompareArguments {
    /// The comparison as text or JSON, and the exit code.
    ///
    /// # Errors
    /// A report cannot be read.
    pub fn run(&self) -> Result<(String, u8), RunError> {
        let (before, after) = (Document::read(&self.before)?, Document::read(&self.after)?);
        let comparison = Comparison::new(&before, &after, &self.fail_on, self.allow_late);
        let text = if self.json {
            let json = serde_json::to_string_pretty(&comparison).expect("only string keys");
            format!("{json}\n")
        } else {
            comparison.to_text()
        };
        Ok((text, comparison.exit_code))
    }
}

impl Comparison {
    /// Compares and judges.
    pub fn new(
        before: &Document,
        after: &Document,
        fail_on: &[Condition],
        allow_late: bool,
    ) -> Self {
        let conditions: Vec<Outcome> =
            fail_on.iter().map(|condition| judge(condition, before, after)).collect();
        let spoilt = !allow_late && (before.generator.saturated || after.generator.saturated);
        let exit = if spoilt {
            Exit::Saturated
        } else if conditions.iter().any(|condition| condition.failed) {
            Exit::Failed
        } else {
            Exit::Ok
        };
        Self {
            schema_version: 1,
            passed: exit == Exit::Ok,
            exit_code: exit as u8,
            remarks: remarks(before, after),
            rows: rows(before, after),
            conditions,
        }
    }

    /// For a person.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{:<30} {:>14} {:>14} {:>10}", "", "before", "after", "change")?;
        let value = |unit: &str, value: Option<f64>| match (value, unit) {
            (None, _) => "–".to_owned(),
            (Some(value), "us") => micros(value),
            (Some(value), "1/s") => format!("{}/s", significant(value)),
            (Some(value), "percent") => format!("{} %", significant(value)),
            (Some(value), _) => significant(value),
        };
        for row in &self.rows {
            let change =
                row.change_percent.map_or(String::new(), |change| format!("{change:+.1} %"));
            writeln!(
                out,
                "{:<30} {:>14} {:>14} {change:>10}",
                row.name,
                value(row.unit, row.before),
                value(row.unit, row.after)
            )?;
        }
        if !self.remarks.is_empty() {
            writeln!(out)?;
            self.remarks.iter().try_for_each(|remark| writeln!(out, "note: {remark}"))?;
        }
        if !self.conditions.is_empty() {
            writeln!(out)?;
        }
        for outcome in &self.conditions {
            let mark = if outcome.failed { "FAIL" } else { "ok" };
            writeln!(out, "{mark:<5} {:<32} {}", outcome.condition, outcome.finding)?;
        }
        match self.exit_code {
            0 if self.conditions.is_empty() => Ok(()),
            0 => writeln!(out, "\nPASSED"),
            code => writeln!(out, "\nFAILED (exit {code})"),
        }
    }
}

fn judge(condition: &Condition, before: &Document, after: &Document) -> Outcome {
    let headline = after.headline().filter(|name| before.latency_us.contains_key(*name));
    let (was, is) = (condition.subject.of(before, headline), condition.subject.of(after, headline));
    let (failed, finding) = match (was, is) {
        (Some(was), Some(is)) => {
            let limit = match condition.amount {
                Amount::Share(share) => was * share,
                Amount::Absolute(amount) => amount,
            };
            let change = is - was;
            let failed = if condition.above { change > limit } else { change < limit };
            let show = |value: f64| match condition.subject {
                Subject::Latency(..) => micros(value),
                _ => significant(value),
            };
            let percent =
                percent(was, is).map_or(String::new(), |change| format!(" ({change:+.1} %)"));
            let of = match (&condition.subject, headline) {
                (Subject::Latency(None, _), Some(name)) => format!("{name}: "),
                _ => String::new(),
            };
            (failed, format!("{of}{} → {}{percent}", show(was), show(is)))
        }
        // What was not measured cannot have stayed the same.
        (None, None) => (true, "is in neither report".to_owned()),
        (None, Some(_)) => (true, "is not in the report before".to_owned()),
        (Some(_), None) => (true, "is not in the report after".to_owned()),
    };
    Outcome { condition: condition.text.clone(), before: was, after: is, failed, finding }
}

fn percent(before: f64, after: f64) -> Option<f64> {
    (before != 0.0).then(|| (after - before) / before * 100.0)
}

fn rows(before: &Document, after: &Document) -> Vec<Row> {
    let row = |name: String, unit: &'static str, was: Option<f64>, is: Option<f64>| Row {
        name,
        unit,
        before: was,
        after: is,
        change_percent: was.zip(is).and_then(|(was, is)| percent(was, is)),
    };
    let mut rows = Vec::new();
    let mut names: Vec<&String> = before.latency_us.keys().chain(after.latency_us.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        for (label, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
            let of = |document: &Document| document.latency_us.get(name)?.at(quantile);
            rows.push(row(format!("{name} {label}"), "us", of(before), of(after)));
        }
    }
    let mut names: Vec<&String> = before.rates.keys().chain(after.rates.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let of = |document: &Document| document.rates.get(name).copied();
        if of(before).unwrap_or(0.0) + of(after).unwrap_or(0.0) > 0.0 {
            rows.push(row(format!("rate {name}"), "1/s", of(before), of(after)));
        }
    }
    rows.push(row(
        "ramp, sessions".to_owned(),
        "1/s",
        Some(before.ramp_per_second),
        Some(after.ramp_per_second),
    ));
    for counter in ["connections_lost", "resent", "failed", "redelivered", "reconnects"] {
        let of = |document: &Document| document.counters.get(counter).map(|count| *count as f64);
        if of(before).unwrap_or(0.0) + of(after).unwrap_or(0.0) > 0.0 {
            rows.push(row(counter.to_owned(), "count", of(before), of(after)));
        }
    }
    if before.verification.is_some() || after.verification.is_some() {
        let of =
            |document: &Document| document.verification.as_ref().map(|_| document.faults() as f64);
        rows.push(row("faults".to_owned(), "count", of(before), of(after)));
    }
    let generator = |document: &Document| Some(document.generator.cpu_percent);
    rows.push(row(
        "generator cpu_percent".to_owned(),
        "percent",
        generator(before),
        generator(after),
    ));
    let late = |document: &Document| Some(document.generator.late_p99_us as f64);
    rows.push(row("generator late_p99_us".to_owned(), "us", late(before), late(after)));
    rows
}

/// Keys of the configuration that differ in every run.
const EVER_NEW: [&str; 2] = ["run", "seed"];

fn remarks(before: &Document, after: &Document) -> Vec<String> {
    let mut remarks = Vec::new();
    for (which, document) in [("before", before), ("after", after)] {
        if document.generator.saturated {
            remarks.push(format!(
                "the generator spoilt the run {which} (late p99 {}): its figures say nothing about the server",
                micros(document.generator.late_p99_us as f64)
            ));
        } else if !document.passed {
            remarks.push(format!("the run {which} failed by itself (exit {})", document.exit_code));
        }
    }
    if before.command != after.command || before.title() != after.title() {
        remarks.push(format!(
            "different loads: {} before, {} after",
            before.title(),
            after.title()
        ));
    }
    if before.tool_version != after.tool_version {
        remarks.push(format!(
            "different programs: {} before, {} after",
            before.tool_version, after.tool_version
        ));
    }
    if let (Some(was), Some(is)) =
        (before.configuration.as_object(), after.configuration.as_object())
    {
        for (key, value) in was {
            let other = is.get(key);
            if !EVER_NEW.contains(&key.as_str()) && other != Some(value) {
                let other = other.map_or("nothing".to_owned(), ToString::to_string);
                remarks.push(format!("configuration {key}: {value} before, {other} after"));
            }
        }
    }
    if let (Some(was), Some(is)) = (&before.environment, &after.environment) {
        for (what, was, is) in [
            ("kernel", &was.kernel, &is.kernel),
            ("processor", &was.processor, &is.processor),
            ("number of cores", &was.cores.to_string(), &is.cores.to_string()),
        ] {
            if was != is {
                remarks.push(format!("different machines: {what} {was} before, {is} after"));
            }
        }
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::{Amount, Comparison, Condition, Subject};
    use crate::output::{document::Document, samples};

    fn condition(text: &str) -> Condition {
        text.parse().expect(text)
    }

    fn compared(after: &Document, conditions: &[&str]) -> Comparison {
        let conditions: Vec<_> = conditions.iter().map(|text| condition(text)).collect();
        Comparison::new(&samples::full(), after, &conditions, false)
    }

    #[test]
    fn conditions_are_read_in_the_forms_that_people_write() {
        let latency =
            |name: Option<&str>, quantile| Subject::Latency(name.map(str::to_owned), quantile);
        for (text, subject, above, amount) in [
            ("p99.9 > +5%", latency(None, 0.999), true, Amount::Share(0.05)),
            ("p(99.9)>+5%", latency(None, 0.999), true, Amount::Share(0.05)),
            (
                "delivery_latency p99 > +20ms",
                latency(Some("delivery"), 0.99),
                true,
                Amount::Absolute(20_000.0),
            ),
            ("ack_single_max>+1s", latency(Some("ack_single"), 1.0), true, Amount::Absolute(1e6)),
            ("rate acked < -3%", Subject::Rate("acked".into()), false, Amount::Share(-0.03)),
            (
                "connections_lost > +0",
                Subject::Count("connections_lost".into()),
                true,
                Amount::Absolute(0.0),
            ),
            (
                "generator cpu_percent > +10%",
                Subject::Generator("cpu_percent".into()),
                true,
                Amount::Share(0.1),
            ),
        ] {
            let read = condition(text);
            assert_eq!((read.subject, read.above, read.amount), (subject, above, amount), "{text}");
        }
        for text in [
            "",
            "p99.9",
            "p99.9 > 5%",
            "p99.9 > +5",
            "p99.9 > +x%",
            "a b c > +1",
            "generator mood > +1",
            " > +1",
        ] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_same_run_twice_passes_every_condition() {
        let comparison =
            compared(&samples::full(), &["p99.9 > +0%", "rate acked < -0%", "lost > +0"]);
        assert_eq!(comparison.exit_code, 0, "{}", comparison.to_text());
        assert!(comparison.remarks.is_empty(), "{:?}", comparison.remarks);
    }

    #[test]
    fn a_slower_run_fails_beyond_the_amount_and_passes_within_it() {
        let mut after = samples::full();
        let delivery = after.latency_us.get_mut("delivery").expect("is there");
        delivery.p99_9 = delivery.p99_9 * 108 / 100;
        assert_eq!(compared(&after, &["p99.9 > +10%"]).exit_code, 0);
        let failed = compared(&after, &["p99.9 > +5%", "rate acked < -3%"]);
        assert_eq!(failed.exit_code, 99);
        let failures: Vec<_> = failed.conditions.iter().map(|outcome| outcome.failed).collect();
        assert_eq!(failures, [true, false]);
        assert!(failed.to_text().contains("(+8.0 %)") && failed.to_text().contains("FAILED"));
        after.rates.insert("acked".to_owned(), 700.0);
        assert!(compared(&after, &["rate acked < -3%"]).conditions[0].failed);
    }

    #[test]
    fn a_fault_that_is_new_fails_and_so_does_what_nobody_measured() {
        let mut after = samples::full();
        after.verification.as_mut().expect("is there").faults.insert("lost".to_owned(), 1);
        assert_eq!(compared(&after, &["lost > +0"]).exit_code, 99);
        let comparison = compared(&samples::full(), &["delivrey p99 > +5%"]);
        assert_eq!(comparison.exit_code, 99);
        assert!(comparison.conditions[0].finding.contains("neither"));
    }

    #[test]
    fn a_run_that_its_generator_spoilt_compares_with_nothing() {
        let mut after = samples::full();
        after.generator.saturated = true;
        assert_eq!(compared(&after, &["p99.9 > +5%"]).exit_code, 120);
        let allowed = Comparison::new(&samples::full(), &after, &[], true);
        assert_eq!(allowed.exit_code, 0);
        assert!(allowed.to_text().contains("spoilt"));
    }

    #[test]
    fn different_loads_and_machines_are_said() {
        let mut after = samples::full();
        after.configuration["connections"] = 2000.into();
        after.environment.as_mut().expect("is there").cores = 8;
        let remarks = compared(&after, &[]).remarks.join("\n");
        assert!(remarks.contains("connections: 1000 before, 2000 after"), "{remarks}");
        assert!(remarks.contains("number of cores 2 before, 8 after"), "{remarks}");
    }
}
