//! The shard's clock: read at most once a loop, and only if something happened.

use std::time::{Instant, UNIX_EPOCH};

use millrace_engine::Now;

use crate::driver::Time;

/// How often the wall clock is looked at; between two looks it runs with the monotonic one.
const WALL_CLOCK_MS: u64 = 1_000;

pub(super) struct Clock<T> {
    time: T,
    start: Instant,
    now: Now,
    is_stale: bool,
    /// What to add to the monotonic time for the time since 1970.
    unix_offset_ms: i64,
    wall_clock_due_ms: u64,
}

impl<T: Time> Clock<T> {
    pub fn start(time: T) -> Self {
        let mut clock = Self {
            start: time.now(),
            time,
            now: Now { monotonic_ms: 0, unix_ms: 0 },
            is_stale: true,
            unix_offset_ms: 0,
            wall_clock_due_ms: 0,
        };
        clock.now();
        clock
    }

    /// Makes the next [`Self::now`] read the clock. To be called before a wait.
    pub fn expire(&mut self) {
        self.is_stale = true;
    }

    /// The moment of this turn of the loop.
    pub fn now(&mut self) -> Now {
        if self.is_stale {
            self.is_stale = false;
            let monotonic_ms = self.time.now().duration_since(self.start).as_millis() as u64;
            if monotonic_ms >= self.wall_clock_due_ms {
                let unix = self.time.wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.unix_offset_ms = unix.as_millis() as i64 - monotonic_ms as i64;
                self.wall_clock_due_ms = monotonic_ms + WALL_CLOCK_MS;
            }
            let unix_ms = monotonic_ms as i64 + self.unix_offset_ms;
            self.now = Now { monotonic_ms, unix_ms };
        }
        self.now
    }
}
