//! One ring: its submission queue with the overflow behind it, the enter, and the reaping.
//!
//! It does not know what the operations mean.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, cqueue, squeue};

use crate::operation::Operation;
use crate::sys::{self, RingName};

/// Most threads the kernel may start for what it cannot do without blocking (shutdowns).
const WORKERS_MAX: u32 = 2;

/// What the kernel reports about one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) user_data: u64,
    pub(crate) result: i32,
    flags: u32,
}

impl Completion {
    /// Whether the operation goes on and will complete again.
    pub(crate) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The receive buffer that was used, which is ours until given back.
    pub(crate) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// The sizes of one ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingOptions {
    pub(crate) submissions: u32,
    pub(crate) completions: u32,
    /// Entries of the descriptor table.
    pub(crate) descriptors: u32,
}

/// A submission and completion queue pair with its registered descriptor table.
pub(crate) struct Ring {
    ring: IoUring,
    name: RingName,
    /// Submissions that found the queue full, in order. Bounded by the operations the sockets may
    /// have in the kernel: four each.
    overflow: VecDeque<squeue::Entry>,
    overflowed: u64,
    enters: u64,
}

impl Ring {
    /// Makes a ring for this thread with an empty table of descriptors.
    pub(crate) fn new(options: &RingOptions) -> io::Result<Self> {
        let ring = build(options, true).or_else(|error| {
            // Before Linux 6.6 the flag is unknown.
            if error.raw_os_error() == Some(libc::EINVAL) {
                build(options, false)
            } else {
                Err(error)
            }
        })?;
        let descriptors = options.descriptors;
        assert!(ring.params().is_feature_nodrop(), "kernels with DEFER_TASKRUN drop no completion");
        ring.submitter().register_files_sparse(descriptors).map_err(|error| {
            let text = format!("a table of {descriptors} direct descriptors: {error}");
            io::Error::new(error.kind(), text)
        })?;
        // Only a bound on threads that rarely exist, so a refusal does not matter.
        let mut workers = [WORKERS_MAX; 2];
        let _ = ring.submitter().register_iowq_max_workers(&mut workers);
        let descriptor = ring.as_raw_fd();
        // A thread has 16 places for registered rings; without one the descriptor does it.
        let name = sys::register_ring(descriptor)
            .map_or(RingName::Descriptor(descriptor), RingName::Registered);
        Ok(Self { ring, name, overflow: VecDeque::new(), overflowed: 0, enters: 0 })
    }

    /// The library's view, to register buffers.
    pub(crate) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    /// Queues an operation. Never fails and never calls the kernel: when the queue is full, the
    /// operation waits in the overflow, behind those that wait already.
    pub(crate) fn push(&mut self, operation: Operation) {
        if !self.overflow.is_empty() || !self.push_now(&operation.0) {
            self.overflowed += 1;
            self.overflow.push_back(operation.0);
        }
    }

    fn push_now(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: an `Operation` is built only with memory that stays valid until its completion,
        // by the promise of its unsafe constructors; the overflow holds nothing but operations.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn refill(&mut self) {
        while let Some(entry) = self.overflow.pop_front() {
            if !self.push_now(&entry) {
                self.overflow.push_front(entry);
                return;
            }
        }
    }

    /// Moves the overflow into the queue, submitting full queues on the way.
    pub(crate) fn flush_overflow(&mut self) -> io::Result<()> {
        self.refill();
        while !self.overflow.is_empty() {
            let submitted = self.enter(0, Some(Duration::ZERO))?;
            self.refill();
            if submitted == 0 {
                // The kernel wants its completions reaped first; the rest goes with the next poll.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether submissions still wait behind a full queue.
    pub(crate) fn is_overflowing(&self) -> bool {
        !self.overflow.is_empty()
    }

    /// Whether an enter has something to do besides waiting: submissions, deferred work, or
    /// completions the kernel holds back.
    pub(crate) fn needs_enter(&mut self) -> bool {
        self.has_submissions() || self.has_work_left()
    }

    /// Whether submissions wait for an enter, or completions that the kernel holds back.
    pub(crate) fn has_submissions(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.cq_overflow()
    }

    /// Whether the kernel left deferred work behind, or has put some there since.
    pub(crate) fn has_work_left(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    /// Submits everything queued and waits for `wait` completions, at most for `timeout`. Returns
    /// how many submissions the kernel took.
    pub(crate) fn enter(&mut self, wait: u32, timeout: Option<Duration>) -> io::Result<u32> {
        let queued = u32::try_from(self.ring.submission().len()).expect("the queue is small");
        let timeout = if wait == 0 { None } else { timeout };
        self.enters += 1;
        match sys::enter(self.name, queued, wait, timeout) {
            Ok(submitted) => Ok(submitted),
            Err(error) => match error.raw_os_error() {
                // The time is over; a signal came; the kernel is short of memory or wants its
                // completions reaped first. What was not submitted stays queued.
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(0),
                _ => Err(error),
            },
        }
    }

    /// Whether completions are there to be reaped.
    pub(crate) fn is_ready(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Moves up to `most` completions into `batch`.
    pub(crate) fn reap(&mut self, batch: &mut Vec<Completion>, most: usize) {
        batch.extend(self.ring.completion().take(most).map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }));
    }

    /// Whether the kernel holds completions back because the queue is full.
    pub(crate) fn is_completion_overflowing(&mut self) -> bool {
        self.ring.submission().cq_overflow()
    }

    pub(crate) fn overflowed(&self) -> u64 {
        self.overflowed
    }

    pub(crate) fn enters(&self) -> u64 {
        self.enters
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let RingName::Registered(index) = self.name {
            // Otherwise the thread would keep the ring and all its sockets until its own end.
            let result = sys::unregister_ring(self.ring.as_raw_fd(), index);
            debug_assert!(result.is_ok(), "the index is the one we were given: {result:?}");
        }
    }
}

fn build(options: &RingOptions, without_array: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_taskrun_flag()
        .setup_cqsize(options.completions)
        .dontfork();
    if without_array {
        builder.setup_no_sqarray();
    }
    builder.build(options.submissions)
}
