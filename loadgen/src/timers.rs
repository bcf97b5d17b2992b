//! A hashed timing wheel for one generator thread: which connection wants to be looked at when.
//!
//! It fires late by at most one slot, and may fire a connection that has since changed its mind:
//! the caller asks the connection for its deadline and arms again. It does not read a clock.

/// Width of a slot: the precision of every timeout of a client.
pub const SLOT_NS: u64 = 10_000_000;
const SLOTS: usize = 4096;

/// See the module. Arming is O(1), expiry O(fired).
#[derive(Debug)]
pub struct Timers {
    slots: Vec<Vec<u32>>,
    /// The slot of this number was the last to be expired.
    expired: u64,
    /// Per connection: the slot number it stands in, or 0. 32 bits are 497 days.
    armed: Vec<u32>,
}

impl Timers {
    /// A wheel for connections 0 to `connections` - 1, standing at `now_ns`.
    pub fn new(connections: usize, now_ns: u64) -> Self {
        Self {
            slots: vec![Vec::new(); SLOTS],
            expired: now_ns / SLOT_NS + 1,
            armed: vec![0; connections],
        }
    }

    /// Looks at `index` at `at_ns` or a little later. An earlier armed moment stays; a moment
    /// beyond the wheel's span (about 41 s) fires early and is armed again by the caller.
    pub fn arm(&mut self, index: u32, at_ns: u64) {
        let slot = (at_ns / SLOT_NS + 1).clamp(self.expired + 1, self.expired + SLOTS as u64 - 1);
        let armed = &mut self.armed[index as usize];
        if *armed != 0 && u64::from(*armed) <= slot {
            return;
        }
        *armed = slot as u32;
        self.slots[(slot % SLOTS as u64) as usize].push(index);
    }

    /// Moves the wheel to `now_ns` and appends the connections that are due.
    pub fn expire(&mut self, now_ns: u64, due: &mut Vec<u32>) {
        let current = now_ns / SLOT_NS;
        while self.expired < current {
            self.expired += 1;
            let slot = &mut self.slots[(self.expired % SLOTS as u64) as usize];
            for index in slot.drain(..) {
                // An entry that was superseded by an earlier one names another slot by now.
                let armed = &mut self.armed[index as usize];
                if u64::from(*armed) == self.expired {
                    *armed = 0;
                    due.push(index);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SLOT_NS, Timers};

    #[test]
    fn an_armed_moment_fires_once_and_never_early() {
        let mut timers = Timers::new(3, 0);
        timers.arm(0, 5 * SLOT_NS);
        timers.arm(1, 100 * SLOT_NS);
        let mut due = Vec::new();
        timers.expire(5 * SLOT_NS - 1, &mut due);
        assert!(due.is_empty());
        timers.expire(7 * SLOT_NS, &mut due);
        assert_eq!(due, [0]);
        timers.expire(99 * SLOT_NS, &mut due);
        assert_eq!(due, [0]);
        timers.expire(200 * SLOT_NS, &mut due);
        assert_eq!(due, [0, 1]);
    }

    #[test]
    fn the_earlier_of_two_moments_wins() {
        let mut timers = Timers::new(1, 0);
        timers.arm(0, 50 * SLOT_NS);
        timers.arm(0, 10 * SLOT_NS);
        timers.arm(0, 70 * SLOT_NS);
        let mut due = Vec::new();
        timers.expire(12 * SLOT_NS, &mut due);
        assert_eq!(due, [0]);
        timers.expire(80 * SLOT_NS, &mut due);
        assert_eq!(due, [0], "the superseded entry does not fire again");
    }

    #[test]
    fn a_moment_beyond_the_span_fires_early_and_can_be_armed_again() {
        let mut timers = Timers::new(1, 0);
        let far = 10_000 * SLOT_NS;
        timers.arm(0, far);
        let mut due = Vec::new();
        let mut now = 0;
        let mut fired = 0;
        while now < far + 2 * SLOT_NS {
            now += SLOT_NS;
            timers.expire(now, &mut due);
            for index in due.drain(..) {
                fired += 1;
                if now < far {
                    timers.arm(index, far);
                }
            }
        }
        assert_eq!(fired, 3, "twice to look, once for real");
    }
}
