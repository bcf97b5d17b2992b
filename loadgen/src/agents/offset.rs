//! How far apart two clocks are, measured by messages that go to and fro, as NTP does it.
//!
//! Of several round trips the shortest tells most: the true offset lies within half of it, whatever the
//! two ways have to do with each other. Nothing is sent here, and no clock is read.

/// One round trip, evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Their clock less ours.
    pub offset_ns: i64,
    /// On the way, both ways together.
    pub round_trip_ns: u64,
}

impl Sample {
    /// From the four moments: sent by our clock, come and answered by theirs, back by ours.
    pub fn new(sent_ns: i64, came_ns: i64, went_ns: i64, back_ns: i64) -> Self {
        let there = i128::from(came_ns) - i128::from(sent_ns);
        let back = i128::from(went_ns) - i128::from(back_ns);
        let on_the_way = there - back;
        Self {
            offset_ns: i64::try_from((there + back) / 2).unwrap_or(i64::MAX),
            round_trip_ns: u64::try_from(on_the_way.max(0)).unwrap_or(u64::MAX),
        }
    }

    /// The better of two.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if other.round_trip_ns < self.round_trip_ns { other } else { self }
    }

    /// The offset in microseconds.
    pub fn offset_us(&self) -> f64 {
        self.offset_ns as f64 / 1e3
    }

    /// The true offset is within this of it.
    pub fn uncertainty_us(&self) -> f64 {
        self.round_trip_ns as f64 / 2e3
    }
}

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    fn the_true_offset_lies_within_half_of_the_round_trip() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..10_000 {
            let truth = random.i64(-4_000_000_000_000..4_000_000_000_000);
            let (there, stay, back) =
                (random.i64(0..50_000_000), random.i64(0..9_000_000), random.i64(0..50_000_000));
            let sent = 1_800_000_000_000_000_000_i64 + random.i64(0..1_000_000_000);
            let came = sent + there + truth;
            let went = came + stay;
            let sample = Sample::new(sent, came, went, went - truth + back);
            assert_eq!(sample.round_trip_ns, (there + back) as u64, "seed {seed}");
            let off = (sample.offset_ns - truth).unsigned_abs();
            assert!(off <= sample.round_trip_ns / 2 + 1, "{off} {sample:?}, seed {seed}");
        }
    }

    #[test]
    fn the_shortest_round_trip_is_believed_and_nonsense_does_no_harm() {
        let (slow, fast) = (Sample::new(0, 900, 900, 1000), Sample::new(0, 205, 205, 10));
        assert_eq!(slow.or(fast), fast);
        assert_eq!(fast.or(slow), fast);
        assert_eq!((fast.offset_ns, fast.uncertainty_us()), (200, 0.005));
        let absurd = Sample::new(i64::MIN, i64::MAX, i64::MAX, i64::MIN);
        assert_eq!((absurd.offset_ns, absurd.round_trip_ns), (i64::MAX, 0));
        assert_eq!(Sample::new(10, 0, 100, 20).round_trip_ns, 0, "a clock that went on meanwhile");
    }
}
