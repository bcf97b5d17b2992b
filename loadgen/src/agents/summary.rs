//! What an agent says of its part when a run is over, and how the parts become one report.

use serde::{Deserialize, Serialize};

use millrace_protocol::Code;

use crate::{
    client::Endings,
    engine::Course,
    health::Generator,
    log::{FaultKind, Faults},
    output::document::Environment,
    record::Recorder,
    report::{EndingsReport, Recovery, Verification, judge},
    verify::Verdict,
};

/// Largest summary that is read.
const BYTES_MAX: usize = 1024 * 1024;

/// See the module. The histograms are not in it: they were streamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// The generator's account of itself.
    pub generator: Generator,
    /// From the common start of the ramp until the last session was up.
    pub ramp_seconds: f64,
    /// What the verification found.
    pub verification: Verification,
    /// Users who were not there to be asked.
    pub users_unasked: u64,
    /// Ends of sessions.
    pub endings: EndingsReport,
    /// Different errors in words.
    pub errors: Vec<String>,
    /// How storms passed.
    pub recoveries: Vec<Recovery>,
    /// The machine.
    pub environment: Environment,
}

impl Summary {
    /// Of a run that came to its end.
    pub(crate) fn new(
        course: &Course,
        (_, endings, errors): &(Recorder, Endings, Vec<String>),
        generator: Generator,
        environment: Environment,
    ) -> Self {
        Self {
            generator,
            ramp_seconds: course.ramp_seconds,
            verification: judge::verification(&course.verdict),
            users_unasked: course.verdict.users_unasked,
            endings: judge::endings(endings),
            errors: errors.clone(),
            recoveries: course.recoveries.clone(),
            environment,
        }
    }

    /// As it travels.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a summary has only string keys")
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > BYTES_MAX {
            return Err(format!("a summary of {} bytes", text.len()));
        }
        serde_json::from_str(text).map_err(|error| format!("no summary: {error}"))
    }
}

fn verdict(summary: &Summary) -> Verdict {
    let part = &summary.verification;
    let mut faults = Faults::default();
    for kind in FaultKind::ALL {
        let label = format!("{}: ", kind.label());
        let mut examples = part.examples.iter().filter_map(|text| text.strip_prefix(&label));
        let count = part.faults.get(kind.label()).copied().unwrap_or(0);
        faults.add_many(*kind, count, &mut examples);
    }
    Verdict {
        faults,
        acked: part.acked,
        expected: part.expected_deliveries,
        found: part.found_deliveries,
        stored_unanswered: part.stored_unanswered,
        conversations: part.conversations,
        unverified: part.unverified,
        users_unasked: summary.users_unasked,
    }
}

fn endings(report: &EndingsReport) -> Endings {
    // Labels are of a closed set; one of another build, which there is none, would count as none.
    let label = |name: &str| Code::ALL.iter().map(|code| code.label()).find(|known| *known == name);
    let ns = |seconds: f64| (seconds * 1e9).round() as u64;
    Endings {
        count: report.count,
        silence_ns_min: ns(report.silence_seconds_min),
        silence_ns_max: ns(report.silence_seconds_max),
        by_label: report
            .by_code
            .iter()
            .map(|(name, count)| (label(name).unwrap_or("none"), *count))
            .collect(),
    }
}

/// All parts in one.
#[derive(Default)]
pub struct Merged {
    /// What the verification found.
    pub verdict: Verdict,
    /// Ends of sessions.
    pub endings: Endings,
    /// Different errors in words.
    pub errors: Vec<String>,
    /// A storm is over when it is for everybody.
    pub recoveries: Vec<Recovery>,
    /// Until the last session of all was up.
    pub ramp_seconds: f64,
}

impl Merged {
    /// Adds an agent's part.
    pub fn add(&mut self, summary: &Summary) {
        self.verdict.merge(&verdict(summary));
        self.endings.merge(&endings(&summary.endings));
        self.ramp_seconds = self.ramp_seconds.max(summary.ramp_seconds);
        for error in &summary.errors {
            if !self.errors.contains(error) {
                self.errors.push(error.clone());
            }
        }
        for (index, theirs) in summary.recoveries.iter().enumerate() {
            let Some(ours) = self.recoveries.get_mut(index) else {
                self.recoveries.push(theirs.clone());
                continue;
            };
            ours.sessions += theirs.sessions;
            let both = ours.recovered_seconds.zip(theirs.recovered_seconds);
            ours.recovered_seconds = both.map(|(ours, theirs)| ours.max(theirs));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Merged, Summary};
    use crate::{
        client::Endings,
        health::Generator,
        log::{EXAMPLES_MAX, FaultKind},
        output::document::Environment,
        report::{Recovery, judge},
        verify::Verdict,
    };

    fn summary(lost: u64, recovered_seconds: Option<f64>) -> Summary {
        let mut verdict =
            Verdict { acked: 10, expected: 20, found: 20 - lost, ..Verdict::default() };
        (0..lost).for_each(|number| {
            verdict.faults.add(FaultKind::Lost, || format!("message {number}"));
        });
        let mut endings = Endings::default();
        endings.add(1_500_000_000 + lost, "none");
        let event = "reconnect_storm".to_owned();
        Summary {
            generator: Generator::default(),
            ramp_seconds: lost as f64,
            verification: judge::verification(&verdict),
            users_unasked: 1,
            endings: judge::endings(&endings),
            errors: vec!["connect: refused".to_owned(), format!("error {lost}")],
            recoveries: vec![Recovery {
                event,
                start_seconds: 1.0,
                sessions: 5,
                recovered_seconds,
            }],
            environment: Environment::default(),
        }
    }

    #[test]
    fn parts_that_travelled_become_one_and_no_fault_is_forgotten() {
        let mut merged = Merged::default();
        for part in [summary(0, Some(1.0)), summary(7, Some(3.0))] {
            merged.add(&Summary::parse(&part.to_json()).expect("its own words"));
        }
        let verdict = &merged.verdict;
        assert_eq!((verdict.acked, verdict.expected, verdict.found), (20, 40, 33));
        assert_eq!((verdict.faults.count(FaultKind::Lost), verdict.users_unasked), (7, 2));
        assert_eq!(verdict.faults.examples().len(), EXAMPLES_MAX);
        assert_eq!(verdict.faults.examples()[0].1, "message 0");
        assert_eq!((merged.endings.count, merged.endings.silence_ns_max), (2, 1_500_000_007));
        assert_eq!(merged.endings.by_label, [("none", 2)]);
        assert_eq!(merged.errors, ["connect: refused", "error 0", "error 7"]);
        assert_eq!(merged.recoveries[0].sessions, 10);
        assert_eq!(merged.recoveries[0].recovered_seconds, Some(3.0));
        assert!((merged.ramp_seconds - 7.0).abs() < 1e-9);
        merged.add(&summary(0, None));
        assert_eq!(merged.recoveries[0].recovered_seconds, None, "somebody did not come back");
        assert!(Summary::parse("{}").is_err() && Summary::parse(&"x".repeat(2_000_000)).is_err());
    }
}
