//! When to send: an open-loop schedule.
//!
//! A [`Pacer`] names the moments at which messages are *meant* to be sent. It never looks at
//! replies, so a server that stalls does not slow it down: what was due meanwhile is still due,
//! and its latency is measured from the intended moment. It does not read a clock and sends
//! nothing.

/// An evenly spaced schedule of one rate over one span of time.
///
/// Invariant: the n-th moment is `start + (n + phase) / rate`, whatever was taken when.
#[derive(Debug, Clone)]
pub struct Pacer {
    start_ns: u64,
    interval_ns: f64,
    phase: f64,
    taken: u64,
    total: u64,
}

impl Pacer {
    /// A schedule of `per_second` moments from `start_ns` for `duration_ns`. `phase` (0 to 1)
    /// shifts it by a part of an interval, so that several pacers do not fire together. A rate
    /// of 0 has no moments.
    pub fn new(per_second: f64, start_ns: u64, duration_ns: u64, phase: f64) -> Self {
        let total = if per_second > 0.0 {
            (duration_ns as f64 / 1e9 * per_second).round() as u64
        } else {
            0
        };
        let interval_ns = if per_second > 0.0 { 1e9 / per_second } else { 0.0 };
        Self { start_ns, interval_ns, phase: phase.clamp(0.0, 0.999), taken: 0, total }
    }

    /// The next intended moment, or `None` when the schedule is over.
    pub fn next_ns(&self) -> Option<u64> {
        if self.taken >= self.total {
            return None;
        }
        let offset = (self.taken as f64 + self.phase) * self.interval_ns;
        Some(self.start_ns + offset as u64)
    }

    /// Takes the next moment if it has come. Call it until it answers `None`.
    pub fn take_due(&mut self, now_ns: u64) -> Option<u64> {
        let next = self.next_ns()?;
        if next > now_ns {
            return None;
        }
        self.taken += 1;
        Some(next)
    }

    /// How many moments the whole schedule has.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::Pacer;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn moments_are_evenly_spaced_and_as_many_as_promised() {
        let mut pacer = Pacer::new(1000.0, SECOND, 2 * SECOND, 0.5);
        assert_eq!(pacer.total(), 2000);
        assert_eq!(pacer.take_due(SECOND), None);
        let mut moments = Vec::new();
        while let Some(at) = pacer.take_due(u64::MAX) {
            moments.push(at);
        }
        assert_eq!(moments.len(), 2000);
        assert_eq!(moments[0], SECOND + 500_000);
        assert!(moments.windows(2).all(|pair| pair[1] - pair[0] == 1_000_000));
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
}
