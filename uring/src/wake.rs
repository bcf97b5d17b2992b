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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::sys;

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const RUNG: u8 = 2;

/// The atomic operations the bell needs, so that a model checker can stand in for the machine.
trait Atomic {
    fn swap(&self, value: u8) -> u8;
    fn replace(&self, current: u8, value: u8) -> bool;
}

impl Atomic for AtomicU8 {
    fn swap(&self, value: u8) -> u8 {
        AtomicU8::swap(self, value, Ordering::AcqRel)
    }

    fn replace(&self, current: u8, value: u8) -> bool {
        self.compare_exchange(current, value, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Rings; `true` means that the ringer has to end the sleep.
fn ring(state: &impl Atomic) -> bool {
    state.swap(RUNG) == ASLEEP
}

/// To be called before a sleep; `false` forbids it.
fn fall_asleep(state: &impl Atomic) -> bool {
    state.replace(AWAKE, ASLEEP)
}

/// To be called after a sleep, slept or not: whether the bell rang since the last look.
fn look(state: &impl Atomic) -> bool {
    state.swap(AWAKE) == RUNG
}

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
        if ring(&self.shared.state) {
            sys::eventfd_add(&self.shared.eventfd);
        }
    }
}

/// The driver's side of its wakers. Drivers that wait in something else than a ring use it, too:
/// they wait for the eventfd ([`AsFd`]) to become readable, and read it then.
pub struct Bell {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Bell").finish_non_exhaustive()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.eventfd.as_fd()
    }
}

impl Bell {
    /// A bell with an eventfd of its own.
    ///
    /// # Errors
    /// What eventfd(2) says.
    pub fn new() -> io::Result<Self> {
        let shared = Shared { state: AtomicU8::new(AWAKE), eventfd: sys::eventfd()? };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Something that rings it, for other threads.
    #[must_use]
    pub fn waker(&self) -> Waker {
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
    #[must_use]
    pub fn fall_asleep(&self) -> bool {
        fall_asleep(&self.shared.state)
    }

    /// To be called after every enter: whether the bell rang since the last call.
    #[must_use]
    pub fn look(&self) -> bool {
        look(&self.shared.state)
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

    impl Atomic for loom::sync::atomic::AtomicU8 {
        fn swap(&self, value: u8) -> u8 {
            self.swap(value, Ordering::AcqRel)
        }

        fn replace(&self, current: u8, value: u8) -> bool {
            self.compare_exchange(current, value, Ordering::AcqRel, Ordering::Acquire).is_ok()
        }
    }

    /// Interleavings of two ringers with a driver that sleeps whenever it may; a lost wake-up, or
    /// data that the bell does not make visible, would be a deadlock. Bounded to two preemptions a
    /// run, which takes a second or so; without the bound it passes, too, but takes five minutes.
    #[test]
    fn no_wake_up_is_lost_however_threads_interleave() {
        use loom::sync::atomic::{AtomicU8, AtomicUsize};
        use loom::sync::{Arc, Notify};

        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let state = Arc::new(AtomicU8::new(AWAKE));
            let eventfd = Arc::new(Notify::new());
            let data: Arc<[AtomicUsize; 2]> = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
            let ringers: Vec<_> = (0..2)
                .map(|index| {
                    let (state, eventfd, data) = (state.clone(), eventfd.clone(), data.clone());
                    loom::thread::spawn(move || {
                        // Relaxed: only the bell makes it visible.
                        data[index].store(1, Ordering::Relaxed);
                        if ring(&*state) {
                            eventfd.notify();
                        }
                    })
                })
                .collect();
            let mut seen = 0;
            while seen < 2 {
                if fall_asleep(&*state) {
                    eventfd.wait();
                }
                if look(&*state) {
                    seen = data.iter().map(|piece| piece.load(Ordering::Relaxed)).sum();
                }
            }
            for ringer in ringers {
                ringer.join().unwrap();
            }
        });
    }
}
