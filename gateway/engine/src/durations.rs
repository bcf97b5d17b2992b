//! How long things take, by following one of a kind at a time: when it is over, the next. So a figure
//! costs a comparison an event and nothing a connection; it is a sample, not a count of all.
//!
//! The engine's clock stands still during a turn of its owner's loop, and counts milliseconds.

/// Durations in milliseconds, sorted into buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many ended up at or below each bound of [`Self::BOUNDS_MS`] and above the one before;
    /// the last one is above all bounds.
    pub buckets: [u64; Self::BOUNDS_MS.len() + 1],
    /// All of them together, in milliseconds.
    pub sum_ms: u64,
}

impl Durations {
    /// Upper bounds of the buckets.
    pub const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];

    fn note(&mut self, ms: u64) {
        let bucket = Self::BOUNDS_MS.partition_point(|bound| *bound < ms);
        self.buckets[bucket] += 1;
        self.sum_ms += ms;
    }
}

/// What has not ended after this is given up: its connection may be gone.
const FOLLOWED_MS_MAX: u64 = 10_000;

/// Follows one thing at a time.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// Which, and since when.
    followed: Option<((u64, u32), u64)>,
}

impl Probe {
    /// Something begins. It is followed, unless something else is.
    pub(crate) fn begin(&mut self, connection: u64, request_id: u32, now_ms: u64) {
        let is_free = self.followed.is_none_or(|(_, since)| now_ms > since + FOLLOWED_MS_MAX);
        if is_free {
            self.followed = Some(((connection, request_id), now_ms));
        }
    }

    /// Something ends. If it is what is followed, its time is noted.
    pub(crate) fn end(
        &mut self,
        connection: u64,
        request_id: u32,
        now_ms: u64,
        durations: &mut Durations,
    ) {
        if let Some((followed, since)) = self.followed
            && followed == (connection, request_id)
        {
            durations.note(now_ms.saturating_sub(since));
            self.followed = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Durations, FOLLOWED_MS_MAX, Probe};

    #[test]
    fn one_thing_is_followed_from_its_beginning_to_its_end() {
        let (mut probe, mut durations) = (Probe::default(), Durations::default());
        probe.begin(1, 7, 100);
        probe.begin(2, 7, 101);
        probe.end(2, 7, 103, &mut durations);
        assert_eq!(durations, Durations::default(), "another one's end");
        probe.end(1, 7, 105, &mut durations);
        probe.end(1, 7, 109, &mut durations);
        let mut expected = Durations { sum_ms: 5, ..Durations::default() };
        expected.buckets[2] = 1;
        assert_eq!(durations, expected);
    }

    #[test]
    fn what_never_ends_is_given_up() {
        let (mut probe, mut durations) = (Probe::default(), Durations::default());
        probe.begin(1, 7, 0);
        probe.begin(2, 8, FOLLOWED_MS_MAX + 1);
        probe.end(2, 8, FOLLOWED_MS_MAX + 7_001, &mut durations);
        assert_eq!(durations.sum_ms, 7_000);
        assert_eq!(durations.buckets.last(), Some(&1));
    }
}
