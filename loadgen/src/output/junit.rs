//! The verdict as JUnit XML, which every CI shows: a test case for each threshold, each kind of
//! fault, each stage, and the generator's own honesty.

use super::{
    document::{Document, Threshold},
    escape,
};

struct Case {
    class: &'static str,
    name: String,
    failure: Option<String>,
}

/// The whole file.
pub fn junit(document: &Document) -> String {
    let cases = cases(document);
    let failed = cases.iter().filter(|case| case.failure.is_some()).count();
    let seconds = document.ramp_seconds + document.load_seconds;
    let suite = format!("{} {}", document.tool, document.title());
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites tests=\"{0}\" failures=\"{failed}\" errors=\"0\" time=\"{seconds:.3}\">\n\
         <testsuite name=\"{1}\" tests=\"{0}\" failures=\"{failed}\" errors=\"0\" skipped=\"0\" time=\"{seconds:.3}\">\n",
        cases.len(),
        escape(&suite)
    );
    for case in cases {
        out.push_str(&format!(
            "<testcase classname=\"millrace-loadgen.{}\" name=\"{}\" time=\"0\"",
            case.class,
            escape(&case.name)
        ));
        match case.failure {
            None => out.push_str("/>\n"),
            Some(text) => {
                out.push_str(&format!("><failure message=\"{}\"/></testcase>\n", escape(&text)));
            }
        }
    }
    out.push_str("</testsuite>\n</testsuites>\n");
    out
}

fn cases(document: &Document) -> Vec<Case> {
    let mut cases = Vec::new();
    let threshold = |stage: Option<&str>, threshold: &Threshold| Case {
        class: "thresholds",
        name: match stage {
            Some(stage) => format!("{} in {stage}", threshold.condition),
            None => threshold.condition.clone(),
        },
        failure: (!threshold.passed).then(|| {
            let observed = threshold.observed.map_or("nothing".to_owned(), |value| {
                let unit = threshold.unit.as_deref().filter(|unit| *unit == "us").unwrap_or("");
                format!("{value}{unit}")
            });
            format!("observed {observed}")
        }),
    };
    cases.extend(document.thresholds.iter().map(|one| threshold(None, one)));
    for stage in &document.stages {
        cases.extend(stage.thresholds.iter().map(|one| threshold(Some(&stage.name), one)));
    }
    for (kind, found) in document.verification.iter().flat_map(|part| &part.faults) {
        let failure = (*found > 0).then(|| format!("{found} found"));
        cases.push(Case { class: "verification", name: format!("no {kind}"), failure });
    }
    let generator = &document.generator;
    let reasons = if generator.reasons.is_empty() {
        format!("late p99 {} us", generator.late_p99_us)
    } else {
        generator.reasons.join("; ")
    };
    cases.push(Case {
        class: "generator",
        name: "kept its own schedule".to_owned(),
        failure: generator.saturated.then_some(reasons),
    });
    // What failed in words is partly told above; here is all of it.
    let why = document.failures.join("; ");
    cases.push(Case {
        class: "run",
        name: "passed".to_owned(),
        failure: (!document.passed).then(|| format!("exit {}: {why}", document.exit_code)),
    });
    cases
}

#[cfg(test)]
mod tests {
    use super::junit;
    use crate::output::samples;

    #[test]
    fn a_good_run_has_a_case_for_each_promise_and_no_failure() {
        let document = samples::full();
        let text = junit(&document);
        let faults = document.verification.as_ref().map_or(0, |part| part.faults.len());
        let stages: usize = document.stages.iter().map(|stage| stage.thresholds.len()).sum();
        let cases = document.thresholds.len() + stages + faults + 2;
        assert_eq!(text.matches("<testcase ").count(), cases);
        assert!(text.contains(&format!("tests=\"{cases}\" failures=\"0\"")), "{text}");
        assert!(!text.contains("<failure"));
    }

    #[test]
    fn what_failed_is_named_and_foreign_text_stays_text() {
        let mut document = samples::full();
        document.passed = false;
        document.exit_code = 99;
        document.failures = vec!["threshold a<b & \"c\" missed".to_owned()];
        document.thresholds[0].passed = false;
        document.generator.saturated = true;
        *document.verification.as_mut().expect("is there").faults.get_mut("lost").expect("kind") =
            3;
        let text = junit(&document);
        assert_eq!(text.matches("<failure").count(), 4, "{text}");
        assert!(text.contains("a&lt;b &amp; &quot;c&quot;") && text.contains("3 found"), "{text}");
        assert!(text.contains("failures=\"4\""), "{text}");
    }
}
