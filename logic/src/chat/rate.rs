//! A token bucket: so many a second, so many at once after a quiet time. Time is an argument.

use std::time::Duration;

/// How fast and how much at once. A rate of 0 allows nothing after the burst is spent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub per_second_max: u32,
    pub burst_max: u32,
}

/// One user's bucket, in thousandths of a token, so that a slow refill is not rounded away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    millitokens: u64,
    refilled_at_ms: u64,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn full(rate: Rate, now_ms: u64) -> Self {
        Self { millitokens: u64::from(rate.burst_max) * 1_000, refilled_at_ms: now_ms }
    }

    /// Whether it has refilled, so that forgetting it changes nothing.
    pub(crate) fn is_full(&self, rate: Rate, now_ms: u64) -> bool {
        let refill = now_ms.saturating_sub(self.refilled_at_ms) * u64::from(rate.per_second_max);
        self.millitokens.saturating_add(refill) >= u64::from(rate.burst_max) * 1_000
    }

    /// Takes one token, or says how long to wait for the next.
    pub(crate) fn take(&mut self, rate: Rate, now_ms: u64) -> Result<(), Duration> {
        let passed_ms = now_ms.saturating_sub(self.refilled_at_ms);
        // tokens/s equals millitokens/ms.
        let refill = passed_ms.saturating_mul(u64::from(rate.per_second_max));
        self.millitokens =
            self.millitokens.saturating_add(refill).min(u64::from(rate.burst_max) * 1_000);
        self.refilled_at_ms = self.refilled_at_ms.max(now_ms);
        if self.millitokens >= 1_000 {
            self.millitokens -= 1_000;
            return Ok(());
        }
        let missing = 1_000 - self.millitokens;
        let wait_ms = missing.div_ceil(u64::from(rate.per_second_max.max(1)));
        Err(Duration::from_millis(wait_ms.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Bucket, Rate};
    use std::time::Duration;

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let rate = Rate { per_second_max: 10, burst_max: 3 };
        let mut bucket = Bucket::full(rate, 0);
        for _ in 0..3 {
            assert_eq!(bucket.take(rate, 0), Ok(()));
        }
        assert_eq!(bucket.take(rate, 0), Err(Duration::from_millis(100)));
        assert!(bucket.take(rate, 99).is_err());
        assert_eq!(bucket.take(rate, 100), Ok(()));
        assert!(bucket.take(rate, 100).is_err());
    }

    #[test]
    fn a_long_quiet_time_earns_no_more_than_the_burst() {
        let rate = Rate { per_second_max: 1_000, burst_max: 2 };
        let mut bucket = Bucket::full(rate, 0);
        assert_eq!(bucket.take(rate, 1_000_000), Ok(()));
        assert_eq!(bucket.take(rate, 1_000_000), Ok(()));
        assert!(bucket.take(rate, 1_000_000).is_err());
    }

    #[test]
    fn a_clock_that_steps_back_neither_refills_nor_panics() {
        let rate = Rate { per_second_max: 1, burst_max: 1 };
        let mut bucket = Bucket::full(rate, 5_000);
        assert_eq!(bucket.take(rate, 5_000), Ok(()));
        assert!(bucket.take(rate, 1_000).is_err());
        assert!(bucket.take(rate, 5_999).is_err());
        assert_eq!(bucket.take(rate, 6_000), Ok(()));
    }
}
