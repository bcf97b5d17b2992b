//! The bell that other threads ring to end a driver's wait.
//!
//! One atomic with three values makes the bell cheap: the eventfd is written only when the driver
//! sleeps, and once for any number of rings.
//!
//! Why no wake-up is lost. Every change is a read-modify-write of one atomic, so all of them have
//! one order. Let a ring R be given after its thread has put its data in place:
//! - R finds AWAKE or RUNG: the driver is between two sleeps. Its next attempt to sleep comes later
//!   in the order and finds RUNG, thus fails; its next look finds RUNG, too, and reports.
//! - R finds ASLEEP: R writes the eventfd, whose read is always in the ring, so the enter returns,
//!   and the look that follows finds RUNG and reports.
//! - R finds RUNG after somebody else's ring found ASLEEP: that thread's write ends the sleep.
//!
//! In each case the look that takes the RUNG away is ordered after R and acquires what R released,
//! so the handler sees the data. A write that arrives late, after the look, ends a later
//! wait for nothing; that does no harm.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::sys;

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const RUNG: u8 = 2;

struct Shared {
    state: AtomicU8,
    eventfd: OwnedFd,
}

/// Wakes a driver from any thread. Cloning is cheap.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Waker").finish_non_exhaustive()
    }
}

impl Waker {
    /// Makes the driver's current or next poll return soon and call
    /// [`Handler::woken`](crate::Handler::woken). One atomic swap; a system call only if the driver
    /// sleeps. Does nothing when the driver is gone. Safe to call in a signal handler.
    pub fn wake(&self) {
        if self.shared.state.swap(RUNG, Ordering::AcqRel) == ASLEEP {
            sys::eventfd_add(&self.shared.eventfd);
        }
    }
}

/// The driver's side of its wakers.
pub(crate) struct Bell {
    shared: Arc<Shared>,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let shared = Shared { state: AtomicU8::new(AWAKE), eventfd: sys::eventfd()? };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    pub(crate) fn eventfd(&self) -> RawFd {
        self.shared.eventfd.as_raw_fd()
    }

    /// Ends the read of the eventfd, wake-up or not.
    pub(crate) fn end_read(&self) {
        sys::eventfd_add(&self.shared.eventfd);
    }

    /// To be called before a wait: `false` means that the bell rang already and nothing may sleep.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.shared
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// To be called after every enter: whether the bell rang since the last call.
    pub(crate) fn look(&self) -> bool {
        self.shared.state.swap(AWAKE, Ordering::AcqRel) == RUNG
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_before_sleep_forbids_the_sleep_and_is_reported_once() {
        let bell = Bell::new().unwrap();
        bell.waker().wake();
        bell.waker().wake();
        assert!(!bell.fall_asleep());
        assert!(bell.look());
        assert!(!bell.look());
        assert!(bell.fall_asleep());
    }
}
