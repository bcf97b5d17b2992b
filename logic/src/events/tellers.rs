//! Whether every event of every teller was heard: by the numbers of its events, by its pulses, and by
//! its silence. No I/O; time comes in as an argument.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::frame::Frame;

/// Tellers that are remembered; of one more, the one that was silent for longest is forgotten, and counts
/// as missed when it speaks again.
pub(super) const TELLERS_MAX: usize = 4_096;

/// What was heard on one subject, by teller's life.
#[derive(Debug, Default)]
pub(super) struct Tellers {
    tellers: HashMap<u128, Teller>,
}

#[derive(Debug)]
struct Teller {
    node: Arc<str>,
    /// The newest number heard, or counted as missed.
    heard: u64,
    /// When it was last heard of.
    spoke: Instant,
}

/// What a frame says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Events before this frame were missed.
    pub missed: bool,
    /// So many of its events, the first ones, are old.
    pub old: usize,
    pub node: Arc<str>,
}

impl Tellers {
    /// Notes a frame.
    pub fn hear(&mut self, frame: &Frame, now: Instant) -> Verdict {
        if !self.tellers.contains_key(&frame.life) && self.tellers.len() >= TELLERS_MAX {
            let silent = self.tellers.iter().min_by_key(|(_, teller)| teller.spoke);
            if let Some(life) = silent.map(|(life, _)| *life) {
                self.tellers.remove(&life);
            }
        }
        let teller = self.tellers.entry(frame.life).or_insert_with(|| Teller {
            node: frame.node.clone(),
            // Nothing that was told before is missed if nothing was told before.
            heard: if frame.begins { frame.first.saturating_sub(1) } else { 0 },
            spoke: now,
        });
        teller.spoke = now;
        let missed = frame.first > teller.heard.saturating_add(1);
        let old = teller.heard.saturating_add(1).saturating_sub(frame.first);
        let old = usize::try_from(old).unwrap_or(usize::MAX).min(frame.events.len());
        let newest = (frame.first + frame.events.len() as u64).saturating_sub(1);
        teller.heard = teller.heard.max(newest);
        let node = teller.node.clone();
        if frame.leaves {
            self.tellers.remove(&frame.life);
        }
        Verdict { missed, old, node }
    }

    /// Those who were not heard of for so long; they are forgotten.
    pub fn fell_silent(&mut self, silence: Duration, now: Instant) -> Vec<Arc<str>> {
        let mut silent = Vec::new();
        self.tellers.retain(|_, teller| {
            let speaks = now.saturating_duration_since(teller.spoke) <= silence;
            if !speaks {
                silent.push(teller.node.clone());
            }
            speaks
        });
        silent
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frame(life: u128, first: u64, events: usize) -> Frame {
        let events = vec![Bytes::new(); events];
        Frame { life, node: "n".into(), first, begins: false, leaves: false, events }
    }

    fn begins(life: u128, first: u64, events: usize) -> Frame {
        Frame { begins: true, ..frame(life, first, events) }
    }

    fn verdict(missed: bool, old: usize) -> Verdict {
        Verdict { missed, old, node: "n".into() }
    }

    #[test]
    fn a_gap_is_known_by_the_next_event_or_by_the_pulse() {
        let (mut tellers, now) = (Tellers::default(), Instant::now());
        assert_eq!(tellers.hear(&begins(1, 1, 2), now), verdict(false, 0));
        assert_eq!(tellers.hear(&frame(1, 4, 1), now), verdict(true, 0), "3 is missing");
        assert_eq!(tellers.hear(&frame(1, 4, 1), now), verdict(false, 1));
        assert_eq!(tellers.hear(&frame(1, 3, 3), now), verdict(false, 2), "5 is new");
        assert_eq!(tellers.hear(&frame(1, 6, 0), now), verdict(false, 0), "a pulse");
        assert_eq!(tellers.hear(&frame(1, 7, 0), now), verdict(true, 0), "6 is missing");
        assert_eq!(tellers.hear(&frame(1, 7, 0), now), verdict(false, 0), "said once");
        assert_eq!(tellers.hear(&frame(1, 6, 1), now), verdict(false, 1), "not heard after that");
        assert_eq!(tellers.hear(&frame(1, 7, 1), now), verdict(false, 0));
        assert_eq!(tellers.hear(&frame(2, 7, 1), now), verdict(true, 0), "it spoke before");
        assert_eq!(tellers.hear(&begins(3, 70, 1), now), verdict(false, 0), "elsewhere only");
        assert_eq!(tellers.hear(&begins(3, 90, 1), now), verdict(true, 0), "it forgot, we did not");
    }

    #[test]
    fn who_falls_silent_is_missed_once_and_who_left_is_not() {
        let (mut tellers, began) = (Tellers::default(), Instant::now());
        let second = Duration::from_secs(1);
        tellers.hear(&begins(1, 1, 1), began);
        tellers.hear(&begins(2, 1, 1), began);
        tellers.hear(&begins(3, 1, 1), began + second);
        tellers.hear(&Frame { leaves: true, ..frame(2, 2, 0) }, began);
        let (nobody, one): (Vec<Arc<str>>, Vec<Arc<str>>) = (vec![], vec!["n".into()]);
        assert_eq!(tellers.fell_silent(second, began + second), nobody);
        assert_eq!(tellers.fell_silent(second, began + second * 2), one);
        assert_eq!(tellers.fell_silent(second, began + second * 2), nobody);
        assert_eq!(tellers.hear(&frame(1, 2, 1), began + second * 3), verdict(true, 0));
        assert_eq!(tellers.hear(&frame(3, 2, 1), began + second * 3), verdict(false, 0));
    }

    #[test]
    fn more_tellers_than_are_remembered_cost_a_notice_and_no_memory() {
        let (mut tellers, began) = (Tellers::default(), Instant::now());
        for life in 0..TELLERS_MAX as u128 + 10 {
            let at = began + Duration::from_millis(life as u64);
            assert_eq!(tellers.hear(&begins(life, 1, 1), at), verdict(false, 0));
        }
        assert_eq!(tellers.tellers.len(), TELLERS_MAX);
        let later = began + Duration::from_secs(60);
        assert_eq!(tellers.hear(&frame(0, 2, 1), later), verdict(true, 0));
        assert_eq!(tellers.hear(&frame(TELLERS_MAX as u128, 2, 1), later), verdict(false, 0));
    }
}
