//! When to send: an open-loop schedule.
//!
//! A [`Pacer`] names the moments at which messages are *meant* to be sent. It never looks at
//! replies, so a server that stalls does not slow it down: what was due meanwhile is still due,
//! and its latency is measured from the intended moment. It does not read a clock and sends
//! nothing.

/// A stretch of a schedule over which the load goes evenly from one factor of the full rate to
/// another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// How long it takes.
    pub duration_ns: u64,
    /// Factor of the full rate at its beginning.
    pub from: f64,
    /// The same at its end.
    pub to: f64,
}

impl Slope {
    /// The full rate, all the time.
    pub const fn even(duration_ns: u64) -> Self {
        Self { duration_ns, from: 1.0, to: 1.0 }
    }

    fn seconds(&self) -> f64 {
        self.duration_ns as f64 / 1e9
    }

    /// How many moments lie in it at a full rate of `per_second`.
    fn moments(&self, per_second: f64) -> f64 {
        per_second * (self.from + self.to) / 2.0 * self.seconds()
    }

    /// After how many seconds the `count`-th moment (a fraction, too) has come.
    fn seconds_of(&self, count: f64, per_second: f64) -> f64 {
        if count <= 0.0 {
            return 0.0;
        }
        let (from, to) = (self.from * per_second, self.to * per_second);
        // The rate grows by this in a second; count = from·t + growth·t²/2, solved without a
        // difference of nearly equal numbers.
        let growth = (to - from) / self.seconds().max(1e-9);
        let root = (from * from + 2.0 * growth * count).max(0.0).sqrt();
        let divisor = from + root;
        if divisor > 0.0 { 2.0 * count / divisor } else { self.seconds() }
    }
}

/// The schedule of one rate over slopes that follow each other.
///
/// Invariant: the n-th moment is where the rate, summed up since the start, reaches n + phase,
/// whatever was taken when.
#[derive(Debug, Clone)]
pub struct Pacer {
    start_ns: u64,
    per_second: f64,
    phase: f64,
    slopes: Vec<Slope>,
    /// The slope of the next moment, when it begins, and the moments before it.
    slope: usize,
    slope_start_ns: u64,
    before: f64,
    taken: u64,
    total: u64,
    until_ns: u64,
}

impl Pacer {
    /// A schedule of `per_second` moments from `start_ns` for `duration_ns`. `phase` (0 to 1)
    /// shifts it by a part of an interval, so that several pacers do not fire together. A rate
    /// of 0 has no moments.
    pub fn new(per_second: f64, start_ns: u64, duration_ns: u64, phase: f64) -> Self {
        Self::along(per_second, start_ns, &[Slope::even(duration_ns)], phase)
    }

    /// The same along slopes.
    pub fn along(per_second: f64, start_ns: u64, slopes: &[Slope], phase: f64) -> Self {
        let total: f64 = slopes.iter().map(|slope| slope.moments(per_second.max(0.0))).sum();
        Self {
            start_ns,
            per_second,
            phase: phase.clamp(0.0, 0.999),
            slopes: slopes.to_vec(),
            slope: 0,
            slope_start_ns: start_ns,
            before: 0.0,
            taken: 0,
            total: total.round() as u64,
            until_ns: u64::MAX,
        }
    }

    /// The next intended moment, or `None` when the schedule is over.
    pub fn next_ns(&self) -> Option<u64> {
        if self.taken >= self.total {
            return None;
        }
        let count = self.taken as f64 + self.phase;
        let (mut at, mut start_ns, mut before) = (self.slope, self.slope_start_ns, self.before);
        let last = self.slopes.len() - 1;
        loop {
            let slope = &self.slopes[at];
            let moments = slope.moments(self.per_second);
            if count < before + moments || at == last {
                let seconds = slope.seconds_of(count - before, self.per_second);
                let next = start_ns + (seconds * 1e9) as u64;
                return (next < self.until_ns).then_some(next);
            }
            before += moments;
            start_ns += slope.duration_ns;
            at += 1;
        }
    }

    /// Takes the next moment if it has come. Call it until it answers `None`.
    pub fn take_due(&mut self, now_ns: u64) -> Option<u64> {
        let next = self.next_ns()?;
        if next > now_ns {
            return None;
        }
        // Slopes that lie behind are not walked through again.
        let count = self.taken as f64 + self.phase;
        while self.slope + 1 < self.slopes.len() {
            let slope = self.slopes[self.slope];
            let moments = slope.moments(self.per_second);
            if count < self.before + moments {
                break;
            }
            self.before += moments;
            self.slope_start_ns += slope.duration_ns;
            self.slope += 1;
        }
        self.taken += 1;
        Some(next)
    }

    /// Ends the schedule early: what was meant at or after this moment is not meant any more.
    pub fn end_at(&mut self, until_ns: u64) {
        self.until_ns = until_ns;
    }

    /// How many moments the whole schedule has.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// When the schedule begins.
    pub fn start_ns(&self) -> u64 {
        self.start_ns
    }
}

#[cfg(test)]
mod tests {
    use super::{Pacer, Slope};

    const SECOND: u64 = 1_000_000_000;

    fn all(mut pacer: Pacer) -> Vec<u64> {
        std::iter::from_fn(|| pacer.take_due(u64::MAX)).collect()
    }

    #[test]
    fn moments_are_evenly_spaced_and_as_many_as_promised() {
        let mut pacer = Pacer::new(1000.0, SECOND, 2 * SECOND, 0.5);
        assert_eq!(pacer.total(), 2000);
        assert_eq!(pacer.take_due(SECOND), None);
        let moments = all(pacer);
        assert_eq!(moments.len(), 2000);
        assert_eq!(moments[0], SECOND + 500_000);
        let steps = moments.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(steps.into_iter().all(|step| step.abs_diff(1_000_000) <= 1));
    }

    #[test]
    fn a_caller_that_stalls_still_owes_every_moment_at_its_intended_time() {
        let mut pacer = Pacer::new(100.0, 0, 3 * SECOND, 0.0);
        let mut before = 0;
        while pacer.take_due(SECOND - 1).is_some() {
            before += 1;
        }
        assert_eq!(before, 100);
        // Nobody asks for one second; the hundred moments of it are due at once, with their own
        // times and not with the time of the asking.
        let owed: Vec<u64> = std::iter::from_fn(|| pacer.take_due(2 * SECOND - 1)).collect();
        assert_eq!(owed.len(), 100);
        assert_eq!(owed[0], SECOND);
        assert_eq!(owed[99], SECOND + 990_000_000);
    }

    #[test]
    fn a_rate_of_zero_never_fires() {
        assert_eq!(Pacer::new(0.0, 0, SECOND, 0.0).take_due(u64::MAX), None);
    }

    #[test]
    fn a_slope_has_half_its_moments_in_the_last_three_tenths() {
        // From 0 to 1000 a second in 10 s: 5000 moments, of which t²·50 before t seconds.
        let slope = Slope { duration_ns: 10 * SECOND, from: 0.0, to: 1.0 };
        let moments = all(Pacer::along(1000.0, 7 * SECOND, &[slope], 0.0));
        assert_eq!(moments.len(), 5000);
        assert_eq!(moments[0], 7 * SECOND, "nobody waits for the first one until the end");
        assert!(moments.is_sorted());
        for seconds in [1_u64, 5, 7, 10] {
            let before = moments.partition_point(|at| *at < (7 + seconds) * SECOND) as u64;
            assert!(before.abs_diff(50 * seconds * seconds) <= 2, "{before} before {seconds} s");
        }
        let down = Slope { duration_ns: 10 * SECOND, from: 1.0, to: 0.0 };
        let moments = all(Pacer::along(1000.0, 0, &[down], 0.0));
        let first = moments.partition_point(|at| *at < SECOND) as u64;
        assert!(first.abs_diff(950) <= 2, "{first}");
        assert!(moments.last().is_some_and(|last| *last <= 10 * SECOND));
    }

    #[test]
    fn slopes_follow_each_other_without_a_seam() {
        let slopes = [
            Slope { duration_ns: 2 * SECOND, from: 0.0, to: 1.0 },
            Slope { duration_ns: 3 * SECOND, from: 1.0, to: 1.0 },
            Slope { duration_ns: SECOND, from: 0.0, to: 0.0 },
            Slope { duration_ns: SECOND, from: 5.0, to: 5.0 },
        ];
        let moments = all(Pacer::along(100.0, 0, &slopes, 0.3));
        assert_eq!(moments.len(), 100 + 300 + 500);
        assert!(moments.windows(2).all(|pair| pair[0] < pair[1]));
        let within = |from: u64, to: u64| {
            moments.iter().filter(|at| (from * SECOND..to * SECOND).contains(*at)).count()
        };
        assert_eq!((within(0, 2), within(2, 5), within(5, 6)), (100, 300, 0));
        assert_eq!(within(6, 8), 500);
    }

    #[test]
    fn a_schedule_that_is_cut_owes_nothing_from_then_on() {
        let mut pacer = Pacer::new(100.0, 0, 10 * SECOND, 0.0);
        pacer.end_at(SECOND);
        assert_eq!(all(pacer).len(), 100);
    }
}
