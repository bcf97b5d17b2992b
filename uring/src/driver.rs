//! The driver: what it owns, how it is made and unmade, and the loop's single step.
//!
//! The concerns of a socket's life (accept, connect, receive, send, close) are in files of their
//! own, as further `impl Driver` blocks.

use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use crate::accept::Listener;
use crate::address::RawAddress;
use crate::buffers::ReceiveBuffers;
use crate::connect::Connecting;
use crate::operation::{Kind, Operation, Tag};
use crate::ring::{Completion, Ring};
use crate::rings::{MAIN, Rings};
use crate::send::Sending;
use crate::slab::Slab;
use crate::socket::{SocketTable, Stage};
use crate::wake::Bell;
use crate::{Handler, Nobody, Options, SocketId, Statistics, Waker};

/// Completions taken out of the queue at a time.
const BATCH_MAX: usize = 256;
/// So often a poll enters a ring again on which the kernel left work behind. With 20 items an enter
/// that is 1,280 for each ring, busy or not beside others, before the owner's other duties come.
const PASSES_MAX: usize = 64;
/// A poll that has handled so many completions, of all rings, leaves the rest to the next.
const TURN_COMPLETIONS: usize = 2048;
/// So does one that has received so many bytes: only after it can the owner pause a peer who sends more
/// than is good. `tests/burst_is_one_turn.rs` holds what one flooding peer gets in to 256 KiB a poll.
const TURN_RECEIVED_BYTES: u64 = 128 * 1024;
/// A flag of work that stays up when a satellite has been entered may be one without work: the kernel
/// raised it behind the back of the enter that took the work, and only the next work lowers it. After
/// so many polls that found nothing the thread sleeps all the same, but not for long.
const FRUITLESS_POLLS: u8 = 3;
const FLAGGED_SLEEP: Duration = Duration::from_millis(1);
/// How long a dropped driver waits for the kernel to let go of its memory.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);

/// Memory that the kernel may read or write while an operation is under way. Kept together, so
/// that it can be leaked as a whole should the kernel not let go of it.
pub(crate) struct Lent {
    /// Of each ring, in order.
    pub(crate) buffers: Vec<ReceiveBuffers>,
    pub(crate) sends: Slab<Sending>,
    pub(crate) connecting: Slab<Box<Connecting>>,
    pub(crate) peers: Slab<Box<RawAddress>>,
    pub(crate) wake_count: Box<u64>,
}

/// The rings of one thread and their sockets. To be created on the thread that uses it, and not to leave it.
pub struct Driver {
    pub(crate) rings: Rings,
    pub(crate) lent: ManuallyDrop<Lent>,
    pub(crate) sockets: SocketTable,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) send_pool: Vec<Vec<u8>>,
    pub(crate) options: Options,
    pub(crate) statistics: Statistics,
    bell: Bell,
    /// The read of the eventfd is in the kernel.
    wake_armed: bool,
    /// Polls in a row that found a satellite's flag up after its enter, and nothing to do.
    fruitless: u8,
    /// The driver is being dropped: nothing is armed again.
    leaving: bool,
    batch: Vec<Completion>,
    /// The ring accepts submissions of one thread only.
    not_send: PhantomData<*const ()>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Driver")
            .field("sockets", &self.sockets.live())
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}

impl Driver {
    /// Makes the rings with their descriptor tables and receive buffers for the calling thread.
    ///
    /// # Errors
    /// `InvalidInput` with an explanation when a size is wrong or above RLIMIT_NOFILE; else what
    /// the kernel says (ENOSYS or EPERM where io_uring is blocked, ENOMEM, EMFILE).
    pub fn new(options: Options) -> io::Result<Self> {
        options.check()?;
        let bell = Bell::new()?;
        let rings = Rings::new(&options, bell.eventfd())?;
        let mut buffers = Vec::with_capacity(usize::from(options.rings));
        for (member, index) in rings.members().iter().zip(0u8..) {
            let (count, bytes) = (options.receive_buffers_of(index), options.receive_buffer_bytes);
            // SAFETY: the buffers live in `lent`, which is dropped only after the last completion.
            buffers.push(unsafe { ReceiveBuffers::new(&member.ring, count, bytes) }?);
        }
        let lent = Lent {
            buffers,
            sends: Slab::new(),
            connecting: Slab::new(),
            peers: Slab::new(),
            wake_count: Box::new(0),
        };
        Ok(Self {
            rings,
            lent: ManuallyDrop::new(lent),
            sockets: SocketTable::new(),
            listeners: Vec::new(),
            send_pool: Vec::new(),
            options,
            statistics: Statistics::default(),
            bell,
            wake_armed: false,
            fruitless: 0,
            leaving: false,
            batch: Vec::with_capacity(BATCH_MAX),
            not_send: PhantomData,
        })
    }

    /// A bell for other threads: ends the current or next wait of [`poll`](Self::poll).
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.bell.waker()
    }

    /// How many sockets there are, from their accept or connect to the end of their close.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.sockets.live() as usize
    }

    /// The counters as of now.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let sum = |counter: fn(&Ring) -> u64| -> u64 {
            self.rings.members().iter().map(|member| counter(&member.ring)).sum()
        };
        Statistics {
            submissions_overflowed: sum(Ring::overflowed),
            enters: sum(Ring::enters),
            ..self.statistics
        }
    }

    /// How many rings there are.
    #[must_use]
    pub fn rings(&self) -> usize {
        self.rings.members().len()
    }

    /// Takes a slot for a socket that is in the table of `ring`, or will be.
    pub(crate) fn insert_socket(&mut self, ring: u8, stage: Stage, context: u64) -> SocketId {
        self.rings.member(ring).sockets += 1;
        self.sockets.insert(ring, stage, context)
    }

    /// Replaces the context that callbacks get with the socket. A dead id is ignored.
    pub fn set_context(&mut self, socket: SocketId, context: u64) {
        if let Some(socket) = self.sockets.get_mut(socket) {
            socket.context = context;
        }
    }

    /// Submits what was asked for, waits for something to happen, and hands it to the handler.
    ///
    /// `timeout` bounds the wait: `None` waits until something happens, zero not at all. With one
    /// ring it is one system call, unless the submission queue overflowed; with several, one for
    /// each ring that has something to do, and one to wait. What the kernel leaves behind (since Linux
    /// 6.14 an enter does 20 items of deferred work) is one more for every 20, up to a bound. Returns
    /// the number of completions handled; 0 after a timeout or a mere wake-up.
    ///
    /// # Errors
    /// What io_uring_enter(2) says about a ring as a whole; the driver is of no use then. Time
    /// running out, signals and a kernel short of memory are no errors.
    pub fn poll(
        &mut self,
        timeout: Option<Duration>,
        handler: &mut impl Handler,
    ) -> io::Result<usize> {
        self.arm_parked();
        let retry = self.arm_accepts();
        let timeout = match (timeout, retry) {
            (Some(timeout), Some(retry)) => Some(timeout.min(retry)),
            (timeout, retry) => timeout.or(retry),
        };
        let is_alone = self.rings.is_main_alone();
        self.rings.enter_satellites()?;
        let is_quiet = timeout != Some(Duration::ZERO) && self.rings.are_satellites_quiet();
        let is_flagged = is_quiet && self.rings.is_satellite_flagged();
        let timeout = match is_flagged {
            true => Some(timeout.unwrap_or(FLAGGED_SLEEP).min(FLAGGED_SLEEP)),
            false => timeout,
        };
        if is_alone || is_quiet {
            // Satellites write the eventfd all the time while there is much to do. So with them it
            // is read only when nothing else would end the wait.
            self.arm_wake();
        }
        self.rings.main().flush_overflow()?;
        // No sleep while there is something to do: completions left from last time, submissions
        // the kernel did not take, or sockets that wait for a buffer behind those just armed.
        let main = self.rings.member(MAIN);
        let may_sleep = is_quiet
            && (!is_flagged || self.fruitless >= FRUITLESS_POLLS)
            && main.parked.is_empty()
            && !main.ring.is_overflowing()
            && !main.ring.is_ready()
            && self.bell.fall_asleep();
        let entered = match is_alone || may_sleep || main.ring.needs_enter() {
            true => main.ring.enter(u32::from(may_sleep), timeout).map(drop),
            false => Ok(()),
        };
        let rung = self.bell.look();
        entered?;
        let mut handled = 0;
        let received_before = self.statistics.received_bytes;
        for _ in 0..PASSES_MAX {
            let before = handled;
            for ring in 0..self.rings.used() {
                handled += self.dispatch_ready(ring, handler);
            }
            // A flag without work behind it would keep us here for good.
            if handled == before
                || handled >= TURN_COMPLETIONS
                || self.statistics.received_bytes - received_before >= TURN_RECEIVED_BYTES
                || !self.rings.enter_for_what_is_left()?
            {
                break;
            }
        }
        self.fruitless = match is_flagged && handled == 0 {
            true => self.fruitless.saturating_add(1),
            false => 0,
        };
        if rung {
            self.statistics.woken += 1;
            handler.woken();
        }
        Ok(handled)
    }

    fn arm_wake(&mut self) {
        if self.wake_armed || self.leaving {
            return;
        }
        self.wake_armed = true;
        let place = std::ptr::from_mut(&mut *self.lent.wake_count);
        let tag = Tag::new(Kind::Wake, 0, 0);
        // SAFETY: the place is boxed in `lent`, used by this read alone (one at a time), and stays
        // until its completion.
        let operation = unsafe { Operation::read_counter(tag, self.bell.eventfd(), place) };
        self.rings.push(MAIN, operation);
    }

    /// Handles what is in a completion queue, at most as much as it holds, so that a busy ring
    /// does not keep the loop from its other duties.
    fn dispatch_ready(&mut self, ring: u8, handler: &mut impl Handler) -> usize {
        let most = self.options.completions_of(ring) as usize;
        let queue = &mut self.rings.member(ring).ring;
        if queue.is_completion_overflowing() {
            self.statistics.completions_overflowed += 1;
        }
        if !queue.is_ready() {
            return 0;
        }
        let mut handled = 0;
        let mut batch = std::mem::take(&mut self.batch);
        while handled < most {
            self.rings.member(ring).ring.reap(&mut batch, BATCH_MAX);
            if batch.is_empty() {
                break;
            }
            handled += batch.len();
            for completion in batch.drain(..) {
                self.dispatch(ring, completion, handler);
            }
        }
        self.batch = batch;
        handled
    }

    fn dispatch(&mut self, ring: u8, completion: Completion, handler: &mut impl Handler) {
        let tag = Tag::unpack(completion.user_data).expect("every operation carries a tag");
        match tag.kind {
            Kind::Wake => self.wake_armed = false,
            Kind::Accept => self.on_accept(ring, tag, completion),
            Kind::Peer => self.on_peer(tag, completion, handler),
            Kind::Connect => self.on_connect(tag, completion, handler),
            Kind::Receive => self.on_receive(ring, tag, completion, handler),
            Kind::Send => self.on_send(tag, completion, handler),
            Kind::Shutdown => self.on_shutdown(tag),
            Kind::Close => self.on_close(tag, completion, handler),
            Kind::CancelReceive | Kind::CancelSend | Kind::CancelConnect => {
                self.on_cancel_failed(tag)
            }
            // That ring had no such accept, or has none any more.
            Kind::CancelAccept => {}
            // A socket option that could not be set: TCP_NODELAY or a late choice of port. The
            // connection works without.
            Kind::Option => {}
        }
    }

    /// Lets go of everything and waits, for a bounded time, until the kernel has, too.
    fn leave(&mut self) -> io::Result<bool> {
        let deadline = Instant::now() + DROP_WAIT_MAX;
        self.leaving = true;
        self.stop_accepting();
        self.bell.end_read();
        while Instant::now() < deadline {
            // Again in every round: the last accepts may still complete.
            for id in self.sockets.ids() {
                self.close(id);
            }
            if self.sockets.live() == 0 && !self.wake_armed && self.is_accept_idle() {
                return Ok(true);
            }
            self.poll(Some(Duration::from_millis(20)), &mut Nobody)?;
        }
        Ok(false)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if matches!(self.leave(), Ok(true)) {
            // SAFETY: it is dropped here only, and no operation is in the kernel any more, so that
            // nobody uses this memory; the ring uses it only for operations.
            unsafe { ManuallyDrop::drop(&mut self.lent) };
        }
        // Otherwise it leaks, which is safe: the kernel may still write to it.
    }
}
