//! The rings of a driver: which of them a new socket goes to, which are entered, and when the
//! thread may sleep.
//!
//! The kernel caps a ring's table of direct descriptors by RLIMIT_NOFILE, so that a thread with
//! more sockets than that needs several rings. The first is the main ring: the thread sleeps in its
//! enter and nowhere else. The others are satellites. With one ring there is none, and nothing of
//! what follows costs anything.
//!
//! How a satellite ends the sleep. All satellites have the driver's eventfd registered, the same
//! that wakers write, and before the thread sleeps a read of it is in the main ring. A poll of a
//! satellite's own descriptor would not do: with DEFER_TASKRUN it never becomes readable for work
//! that only the owner's enter can run.
//!
//! Why no wake-up is lost. What happens on a satellite's socket becomes a work item in the ring's
//! list. The kernel puts it there, then, if the list was empty, raises the ring's TASKRUN flag,
//! then writes the eventfd. Before each sleep the thread enters every satellite whose flag is up,
//! and the enter takes the list: with the flag down, or raised again if it left a part behind.
//! Take an item that is still in the list when the thread has looked at the flag for the last time,
//! and the item that was put into this list when it was empty (perhaps the same one).
//! - Its flag was raised before the look: the look sees it, and the thread does not sleep. No enter
//!   can have lowered it meanwhile without taking the list, too.
//! - Its flag is raised after the look: then the eventfd is written after the look, too. Its counter
//!   keeps that until it is read, so the read ends the sleep, whether the write comes before or
//!   after the read was submitted.
//!
//! An item that was taken before its flag was raised, or its eventfd written, causes an enter or the
//! end of a sleep for nothing. Such a flag even stays up, since an enter lowers it only when there is
//! work: until the next item comes, sleeps are short (`FLAGGED_SLEEP`). A model of all but the short
//! sleeps is checked below, the real kernel in `tests/several_rings.rs`.
//!
//! Completions that need no work item (of operations that are done when they are submitted) are
//! posted within our own enters, and the completion queues are looked at after those.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use crate::operation::Operation;
use crate::ring::{Ring, RingOptions};
use crate::{Options, Placement, SocketId};

/// Index of the main ring.
pub(crate) const MAIN: u8 = 0;

/// A ring and what belongs to it alone.
pub(crate) struct Member {
    pub(crate) ring: Ring,
    /// Entries of its table that are taken, from the accept or connect to the end of the close.
    pub(crate) sockets: u32,
    /// Accepts in the kernel, each of which may take an entry.
    pub(crate) accepts: u32,
    /// Sockets that found no receive buffer, first in first out; those closed since are
    /// recognised by their id.
    pub(crate) parked: VecDeque<SocketId>,
}

/// All rings of a driver, the main one first.
pub(crate) struct Rings {
    members: Vec<Member>,
    /// Rings that were ever given an operation, counted from the first to the last of them. Those
    /// behind have nothing in the kernel and are not looked at.
    used: u8,
    sockets_max: u32,
    placement: Placement,
}

impl Rings {
    /// Makes the rings for the calling thread. Satellites signal `eventfd`.
    pub(crate) fn new(options: &Options, eventfd: RawFd) -> io::Result<Self> {
        let mut members = Vec::with_capacity(usize::from(options.rings));
        for index in 0..options.rings {
            let is_satellite = index != MAIN;
            let ring = Ring::new(&RingOptions {
                submissions: match is_satellite {
                    true => options.satellite_submission_entries,
                    false => options.submission_entries,
                },
                completions: options.completions_of(index),
                descriptors: options.sockets_max,
            })
            .map_err(|error| match index {
                MAIN => error,
                _ => {
                    let text = format!("ring {} of {}: {error}", index + 1, options.rings);
                    io::Error::new(error.kind(), text)
                }
            })?;
            if is_satellite {
                ring.submitter().register_eventfd(eventfd)?;
            }
            members.push(Member { ring, sockets: 0, accepts: 0, parked: VecDeque::new() });
        }
        Ok(Self {
            members,
            used: 1,
            sockets_max: options.sockets_max,
            placement: options.placement,
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u8 {
        u8::try_from(self.members.len()).expect("at most 255 rings")
    }

    /// How many of them, from the first, may have something in the kernel.
    pub(crate) fn used(&self) -> u8 {
        self.used
    }

    /// Whether no satellite may have anything in the kernel.
    pub(crate) fn is_main_alone(&self) -> bool {
        self.used == 1
    }

    fn satellites(&mut self) -> &mut [Member] {
        &mut self.members[1..usize::from(self.used)]
    }

    pub(crate) fn member(&mut self, ring: u8) -> &mut Member {
        &mut self.members[usize::from(ring)]
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// The main ring.
    pub(crate) fn main(&mut self) -> &mut Ring {
        &mut self.members[usize::from(MAIN)].ring
    }

    /// Queues an operation on a ring; see [`Ring::push`].
    pub(crate) fn push(&mut self, ring: u8, operation: Operation) {
        self.used = self.used.max(ring + 1);
        self.members[usize::from(ring)].ring.push(operation);
    }

    /// Free entries of a ring's table that no accept may take.
    fn room(&self, ring: u8) -> u32 {
        let member = &self.members[usize::from(ring)];
        self.sockets_max.saturating_sub(member.sockets + member.accepts)
    }

    /// The ring for a new socket, among those with more than `least` entries free.
    pub(crate) fn choose(&self, least: u32) -> Option<u8> {
        let mut roomy = (0..self.count()).filter(|ring| self.room(*ring) > least);
        match self.placement {
            Placement::Fill => roomy.next(),
            // Of those with most, the last: a satellite, so that tests meet one.
            Placement::Spread => roomy.max_by_key(|ring| self.room(*ring)),
        }
    }

    /// Submits what is queued on satellites and runs their deferred work: one enter for each of
    /// those that have any, none for the others. To be called in every turn, asleep or not; the
    /// work of a ring that is not entered stays undone, whatever the kernel has to do elsewhere.
    pub(crate) fn enter_satellites(&mut self) -> io::Result<()> {
        for member in self.satellites() {
            member.ring.flush_overflow()?;
            if member.ring.needs_enter() {
                member.ring.enter(0, None)?;
            }
        }
        Ok(())
    }

    /// Enters the rings on which the kernel left deferred work behind, the main one, too. Returns
    /// whether there were any.
    pub(crate) fn enter_for_what_is_left(&mut self) -> io::Result<bool> {
        let mut entered = false;
        for member in &mut self.members[..usize::from(self.used)] {
            if member.ring.has_work_left() {
                member.ring.enter(0, None)?;
                entered = true;
            }
        }
        Ok(entered)
    }

    /// Whether the flag of any satellite is up: work that was left behind or came since its enter, or
    /// none at all (see the head of this file).
    pub(crate) fn is_satellite_flagged(&mut self) -> bool {
        self.satellites().iter_mut().any(|member| member.ring.has_work_left())
    }

    /// Whether nothing but perhaps a flag keeps the thread from sleeping, on any satellite: completions
    /// to handle, submissions the kernel did not take, or sockets that wait for a buffer behind those
    /// just armed.
    pub(crate) fn are_satellites_quiet(&mut self) -> bool {
        self.satellites().iter_mut().all(|member| {
            member.parked.is_empty()
                && !member.ring.is_overflowing()
                && !member.ring.is_ready()
                && !member.ring.has_submissions()
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::Ordering;

    use loom::sync::atomic::{AtomicBool, AtomicUsize};
    use loom::sync::{Arc, Notify};

    /// The kernel's side and ours of one satellite, as the head of this file describes them, in all
    /// interleavings of two items with the thread; an item that is never taken would be a deadlock.
    /// Bounded to two preemptions a run; without the bound it passes, too, but takes a minute.
    #[test]
    fn no_item_of_a_satellite_is_slept_over() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let list = Arc::new(AtomicUsize::new(0));
            let flag = Arc::new(AtomicBool::new(false));
            let eventfd = Arc::new(Notify::new());
            let kernel: Vec<_> = (0..2)
                .map(|_| {
                    let (list, flag, eventfd) = (list.clone(), flag.clone(), eventfd.clone());
                    loom::thread::spawn(move || {
                        let was = list.fetch_add(1, Ordering::AcqRel);
                        if was == 0 {
                            flag.store(true, Ordering::Release);
                            eventfd.notify();
                        }
                    })
                })
                .collect();
            let mut taken = 0;
            while taken < 2 {
                if flag.load(Ordering::Acquire) {
                    // An enter: the flag first, then the list.
                    flag.store(false, Ordering::SeqCst);
                    taken += list.swap(0, Ordering::AcqRel);
                } else {
                    eventfd.wait();
                }
            }
            for thread in kernel {
                thread.join().unwrap();
            }
        });
    }
}
