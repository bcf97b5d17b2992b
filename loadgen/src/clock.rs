//! The one clock of a run: nanoseconds since its start, the same for every thread, so that a
//! message's way from one thread to another can be measured.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// See the module. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    unix_ns_at_start: i64,
}

impl Clock {
    /// A clock that starts now. A second is taken off, so that 0 can mean "never".
    pub fn start() -> Self {
        Self::start_wrong_by(0)
    }

    /// The same with a wall clock that is so many nanoseconds ahead of the machine's: what a test of
    /// several machines needs on one.
    pub fn start_wrong_by(ahead_ns: i64) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let start = Instant::now().checked_sub(Duration::from_secs(1));
        Self {
            start: start.unwrap_or_else(Instant::now),
            unix_ns_at_start: unix.as_nanos() as i64 - 1_000_000_000 + ahead_ns,
        }
    }

    /// Nanoseconds of the run.
    pub fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Unix time of nanosecond 0, in milliseconds.
    pub fn unix_ms_at_start(&self) -> i64 {
        self.unix_ns_at_start.div_euclid(1_000_000)
    }
    /// Unix time now, in nanoseconds. It goes on evenly, whatever is done to the machine's clock after
    /// the start of the run.
    pub fn unix_ns(&self) -> i64 {
        self.unix_ns_at_start + self.now_ns() as i64
    }

    /// The nanosecond of the run that has this Unix time; 0 if it lies before the run.
    pub fn at_unix_ns(&self, unix_ns: i64) -> u64 {
        u64::try_from(unix_ns.saturating_sub(self.unix_ns_at_start)).unwrap_or(0)
    }

    /// Unix time at a nanosecond of the run.
    pub fn unix_ns_at(&self, now_ns: u64) -> i64 {
        self.unix_ns_at_start + now_ns as i64
    }
}
