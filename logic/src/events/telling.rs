//! The numbers of a node's events, by subject. No I/O.
//!
//! A listener trusts that a number never comes twice. A subject that was forgotten, because nothing
//! was told on it for long and its place was needed, therefore goes on above every number this node
//! has given: numbers are counted over all subjects when a subject begins.

use std::{collections::HashMap, sync::Arc};

/// Pulses after which a subject on which nothing was told may make way for another one. By then its
/// listeners were told of its last event many times.
const IDLE_PULSES: u64 = 60;

/// See the module.
#[derive(Debug)]
pub(super) struct Telling {
    subjects: HashMap<Arc<str>, Told>,
    subjects_max: usize,
    /// Events over all subjects.
    total: u64,
    pulses: u64,
    pub closed: bool,
}

#[derive(Debug)]
struct Told {
    /// Number of the newest event.
    newest: u64,
    /// When, in pulses.
    at: u64,
}

/// The number of an event, and whether its subject begins with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub subject: Arc<str>,
    pub number: u64,
    pub begins: bool,
}

impl Telling {
    pub fn new(subjects_max: usize) -> Self {
        Self { subjects: HashMap::new(), subjects_max, total: 0, pulses: 0, closed: false }
    }

    /// Numbers an event; nothing if there is no place for its subject.
    pub fn tell(&mut self, subject: &str) -> Option<Number> {
        let at = self.pulses;
        if let Some((name, told)) = self.subjects.get_key_value(subject) {
            let number = Number { subject: name.clone(), number: told.newest + 1, begins: false };
            self.subjects.insert(number.subject.clone(), Told { newest: number.number, at });
            self.total += 1;
            return Some(number);
        }
        if self.subjects.len() >= self.subjects_max && !self.forget_one() {
            return None;
        }
        self.total += 1;
        let subject: Arc<str> = subject.into();
        self.subjects.insert(subject.clone(), Told { newest: self.total, at });
        Some(Number { subject, number: self.total, begins: true })
    }

    /// Each subject with the number that its next event will have.
    pub fn pulse(&mut self) -> Vec<(Arc<str>, u64)> {
        self.pulses += 1;
        self.subjects.iter().map(|(subject, told)| (subject.clone(), told.newest + 1)).collect()
    }

    fn forget_one(&mut self) -> bool {
        let idle = self.subjects.iter().min_by_key(|(_, told)| told.at);
        let idle = idle.filter(|(_, told)| self.pulses >= told.at + IDLE_PULSES);
        let Some(subject) = idle.map(|(subject, _)| subject.clone()) else { return false };
        self.subjects.remove(&subject);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_that_was_forgotten_goes_on_above_all_its_numbers() {
        let mut telling = Telling::new(2);
        let number = |subject: &str, number, begins| {
            Some(Number { subject: subject.into(), number, begins })
        };
        assert_eq!(telling.tell("a"), number("a", 1, true));
        for expected in 2..=10 {
            assert_eq!(telling.tell("a"), number("a", expected, false));
        }
        assert_eq!(telling.tell("b"), number("b", 11, true));
        assert_eq!(telling.tell("c"), None, "neither was idle for long");
        for _ in 0..IDLE_PULSES {
            telling.pulse();
            telling.tell("b").expect("known");
        }
        assert_eq!(telling.tell("c"), number("c", 12 + IDLE_PULSES, true), "in a's place");
        assert_eq!(telling.tell("a"), None, "b and c were in use");
        for _ in 0..IDLE_PULSES {
            telling.pulse();
        }
        let again = telling.tell("a").expect("a place");
        assert!(again.begins && again.number > 10, "{again:?}");
        assert_eq!(telling.pulse().len(), 2);
    }
}
