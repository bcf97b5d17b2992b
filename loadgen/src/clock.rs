//! The one clock of a run: nanoseconds since its start, the same for every thread, so that a
//! message's way from one thread to another can be measured.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// See the module. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    unix_ms_at_start: i64,
}

impl Clock {
    /// A clock that starts now. A second is taken off, so that 0 can mean "never".
    pub fn start() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let start = Instant::now().checked_sub(Duration::from_secs(1));
        Self {
            start: start.unwrap_or_else(Instant::now),
            unix_ms_at_start: unix.as_millis() as i64 - 1000,
        }
    }

    /// Nanoseconds of the run.
    pub fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Unix time of nanosecond 0, in milliseconds.
    pub fn unix_ms_at_start(&self) -> i64 {
        self.unix_ms_at_start
    }
}
