//! When users who read slowly on purpose stop reading and go on: each pauses once in ten seconds,
//! all of them evenly spread. Nothing is paused here.

use std::collections::VecDeque;

/// From one pause of a user to its next one.
const CYCLE_NS: u64 = 10_000_000_000;

/// What is due for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Stop reading.
    Pause(u32),
    /// Go on.
    Resume(u32),
}

/// The slow readers of one thread.
#[derive(Debug, Default)]
pub struct SlowReaders {
    /// When, who and for how long: ordered, since all have the same cycle.
    pauses: VecDeque<(u64, u32, u64)>,
    resumes: VecDeque<(u64, u32)>,
}

impl SlowReaders {
    /// Users by their place in the thread, each with the length of its pause.
    pub fn new(users: &[(u32, u64)], start_ns: u64) -> Self {
        let step_ns = CYCLE_NS / users.len().max(1) as u64;
        let pauses = users.iter().enumerate();
        let pauses = pauses.map(|(number, (index, pause_ns))| {
            (start_ns + number as u64 * step_ns, *index, *pause_ns)
        });
        Self { pauses: pauses.collect(), resumes: VecDeque::new() }
    }

    /// The next thing that is due. All pauses are of one length in a run, so that those who paused
    /// first go on first.
    pub fn take_due(&mut self, now_ns: u64) -> Option<Turn> {
        if self.resumes.front().is_some_and(|(at_ns, _)| *at_ns <= now_ns) {
            return self.resumes.pop_front().map(|(_, index)| Turn::Resume(index));
        }
        self.pauses.front().filter(|(at_ns, ..)| *at_ns <= now_ns)?;
        let (at_ns, index, pause_ns) = self.pauses.pop_front()?;
        self.resumes.push_back((at_ns + pause_ns, index));
        self.pauses.push_back((at_ns + CYCLE_NS, index, pause_ns));
        Some(Turn::Pause(index))
    }

    /// Nobody pauses any more; who is to go on now.
    pub fn finish(&mut self) -> Option<u32> {
        self.pauses.clear();
        self.resumes.pop_front().map(|(_, index)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::{SlowReaders, Turn};

    #[test]
    fn everybody_pauses_once_in_a_cycle_for_as_long_as_asked() {
        let second = 1_000_000_000;
        let mut readers = SlowReaders::new(&[(3, 4 * second), (7, 4 * second)], 0);
        let mut turns = Vec::new();
        for now in 0..=20 {
            while let Some(turn) = readers.take_due(now * second) {
                turns.push((now, turn));
            }
        }
        let expected = [
            (0, Turn::Pause(3)),
            (4, Turn::Resume(3)),
            (5, Turn::Pause(7)),
            (9, Turn::Resume(7)),
            (10, Turn::Pause(3)),
            (14, Turn::Resume(3)),
            (15, Turn::Pause(7)),
            (19, Turn::Resume(7)),
            (20, Turn::Pause(3)),
        ];
        assert_eq!(turns, expected);
        assert_eq!((readers.finish(), readers.finish()), (Some(3), None));
        assert_eq!(readers.take_due(u64::MAX), None);
    }
}
