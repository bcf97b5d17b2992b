//! What a shard needs of the world of sockets, and the drivers that provide it.
//!
//! A [`Driver`] owns the sockets of one thread. The shard's loop is generic over it, so that the
//! same loop and the same engine run over
//!
//! - [`uring`]: io_uring itself, the default and the fastest;
//! - [`monoio`]: the monoio runtime, over epoll (the fallback where io_uring is refused) or over
//!   its own use of io_uring;
//! - `glommio`: the glommio runtime, behind the cargo feature of that name;
//! - [`simulated`]: a network in memory with a virtual clock, for tests.
//!
//! What they have in common beyond the trait is in `runtime` (for those on somebody's runtime) and
//! `kind` (their names, and the choice among them). What this module does not do: it knows no
//! protocol, no engine and no shard. `tests/driver_conformance` holds every driver to the laws.

#[cfg(feature = "glommio")]
pub mod glommio;
mod kind;
pub mod monoio;
mod runtime;
pub mod simulated;
pub mod uring;

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

pub use kind::{Choice, Fallback, Kind};
pub use millrace_uring::{Handler, ListenerId, Options, SocketId, Statistics};

/// The sockets of one thread: listens, accepts, receives, sends and closes. To be created on the
/// thread that uses it, and not to leave it.
///
/// # Laws
/// 1. A socket has at most one send at a time. It is carried on until the whole buffer is out or the
///    connection has failed, and [`Handler::sent`] says so exactly once, unless the socket was closed
///    meanwhile.
/// 2. Bytes arrive in order, none is lost or repeated, however often receiving was paused. After
///    [`close`](Self::close), [`Handler::closed`] is a socket's only further callback, comes
///    exactly once, and is the last one of its id.
/// 3. An id never names a later socket. Calls with an id that is gone, or being closed, do nothing.
/// 4. Receiving ends by itself at most once ([`Handler::receive_ended`]); sending goes on after it.
/// 5. A peer that does not read holds up its own send, and nothing else.
/// 6. Nothing is dropped when something is full: sockets that find no receive buffer wait in line,
///    accepting stops before the table is full, and clients then wait in the backlog, where
///    nobody resets them.
/// 7. A wake-up ends the current or the next wait, from any thread, and is reported by
///    [`Handler::woken`] after whatever the waking thread did before is visible.
/// 8. Callbacks are made by [`poll`](Self::poll) alone.
pub trait Driver: Sized {
    /// Ends this driver's waits from other threads.
    type Waker: Wake;
    /// Its clock: the machine's, except in a simulation.
    type Time: Time;

    /// Makes a driver for the calling thread. What a driver has no use for in the options (the
    /// sizes of rings in a driver without rings), it ignores.
    ///
    /// # Errors
    /// `InvalidInput` with an explanation when a size is wrong; else what the kernel says.
    fn new(options: Options) -> io::Result<Self>;

    /// Listens on `address` (port 0: one of the kernel's choice) with SO_REUSEPORT, so that every
    /// shard can have its own listener. Accepting starts with the next poll, and accepted sockets
    /// have TCP_NODELAY. Returns the address that was bound.
    ///
    /// # Errors
    /// What socket(2), bind(2) and listen(2) say.
    fn listen(&mut self, address: SocketAddr, backlog: u32)
    -> io::Result<(ListenerId, SocketAddr)>;

    /// Stops accepting on all listeners and closes them. Clients accepted until then are still
    /// announced; those that wait in a backlog are refused by the kernel.
    fn stop_accepting(&mut self);

    /// A bell for other threads.
    fn waker(&self) -> Self::Waker;

    /// Starts what was asked for, waits for something to happen, and hands it to the handler.
    ///
    /// `timeout` bounds the wait: `None` waits until something happens, zero not at all. Returns
    /// the number of things that happened; 0 after a timeout or a mere wake-up.
    ///
    /// # Errors
    /// What makes the driver as a whole useless.
    fn poll(&mut self, timeout: Option<Duration>, handler: &mut impl Handler) -> io::Result<usize>;

    /// An empty buffer for [`send`](Self::send), from those whose send has completed.
    fn take_buffer(&mut self) -> Vec<u8>;

    /// Sends `bytes`; [`Handler::sent`] says when all of them are in the kernel.
    ///
    /// # Panics
    /// If a send is in flight, which is a mistake of the caller.
    fn send(&mut self, socket: SocketId, bytes: Vec<u8>);

    /// Whether a send is in flight. `false` for an id that is gone.
    fn is_sending(&self, socket: SocketId) -> bool;

    /// Ends the sending side: the peer gets FIN after the bytes of the send in flight.
    fn shutdown_write(&mut self, socket: SocketId);

    /// Closes the socket: what was received but not handed over is dropped, a send in flight is
    /// ended.
    fn close(&mut self, socket: SocketId);

    /// Stops receiving, so that TCP slows the peer down. What was received already may still reach
    /// the handler; an end of stream is not noticed before
    /// [`resume_receive`](Self::resume_receive).
    fn pause_receive(&mut self, socket: SocketId);

    /// Receives again after [`pause_receive`](Self::pause_receive).
    fn resume_receive(&mut self, socket: SocketId);

    /// Replaces the context that callbacks get with the socket.
    fn set_context(&mut self, socket: SocketId, context: u64);

    /// How many sockets there are, from their accept to the end of their close.
    fn sockets(&self) -> usize;

    /// The counters as of now. What a driver cannot count stays 0.
    fn statistics(&self) -> Statistics;

    /// The clock that this driver's timeouts follow.
    fn time(&self) -> Self::Time;
}

/// What a driver takes for the time. Handed out by value, because callbacks need it while the driver
/// is at work.
pub trait Time: Clone + 'static {
    /// A moment that never goes back.
    fn now(&self) -> Instant;
    /// The wall clock at that moment.
    fn wall_clock(&self) -> SystemTime;
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealTime;

impl Time for RealTime {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Wakes a driver from any thread. Cloning is cheap.
pub trait Wake: Clone + Send + Sync + 'static {
    /// Makes the driver's current or next poll return soon and call [`Handler::woken`]. Does
    /// nothing when the driver is gone.
    fn wake(&self);
}

impl Wake for millrace_uring::Waker {
    fn wake(&self) {
        Self::wake(self);
    }
}
