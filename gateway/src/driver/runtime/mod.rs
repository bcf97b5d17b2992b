//! The driver for sockets of an async runtime: everything about it that is not the runtime's.
//!
//! The runtime lives inside [`RuntimeDriver`] and runs only while the driver is polled: a poll is
//! one `run` of "until something has happened, the bell rings, or the time is up". Each socket has
//! one task, which sends and receives; each listener has one, which accepts. Tasks note what
//! happens in [`shared::Shared`], and the poll hands it to the handler when the runtime has
//! returned. What the owner asks for between two polls is noted there, too; the next poll wakes
//! the tasks concerned, because runtimes like to be touched only from the inside.
//!
//! An idle socket owns no buffer: its task takes one from a pool when there is something to read.
//! When the pool is empty, sockets stand in line, and the bytes stay in the kernel.

mod driver;
mod shared;
mod tasks;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

pub use driver::RuntimeDriver;

use super::Wake;

/// A runtime of one thread.
pub trait Runtime: Sized + 'static {
    /// A connection.
    type Socket: Socket;
    /// A listener.
    type Listener: 'static;
    /// What ends a `run` from other threads.
    type Bell: Bell;

    /// Starts a runtime for about this many sockets.
    fn new(sockets_max: u32) -> io::Result<Self>;

    /// Runs tasks until `main` has ended. May be called again and again; tasks stay.
    fn run<T>(&mut self, main: impl Future<Output = T>) -> T;

    /// Starts a task. Inside of `run` only, like everything below.
    fn spawn(task: impl Future<Output = ()> + 'static);

    /// Ends after this time, or a little later.
    fn sleep(time: Duration) -> impl Future<Output = ()>;

    /// Listens with SO_REUSEPORT.
    fn listen(address: SocketAddr, backlog: u32) -> io::Result<(Self::Listener, SocketAddr)>;

    /// Accepts one client. May be dropped at any time.
    fn accept(
        listener: &Self::Listener,
    ) -> impl Future<Output = io::Result<(Self::Socket, SocketAddr)>>;
}

/// A connection of a runtime. Dropping it closes it, whatever is under way.
pub trait Socket: Unpin + 'static {
    /// Receives into the empty buffer, up to its capacity; 0 is the end of stream. While it
    /// waits, it keeps nothing of the buffer.
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>>;

    /// Sends some of the bytes from `offset` on. While it waits it may have taken the bytes, and
    /// gives them back when it is ready.
    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut Vec<u8>,
        offset: usize,
    ) -> Poll<io::Result<usize>>;

    /// Ends the sending side.
    fn shutdown_write(&mut self);
}

/// A doorbell: [`millrace_uring::Bell`] describes the methods of the same names.
pub trait Bell: Sized + 'static {
    /// Rings it from other threads.
    type Waker: Wake;

    /// A new one.
    fn new() -> io::Result<Self>;

    /// Something that rings it.
    fn waker(&self) -> Self::Waker;

    /// To be called before a wait: `false` means that it rang already, and nothing may wait.
    fn fall_asleep(&self) -> bool;

    /// To be called after every wait: whether it rang since the last call.
    fn look(&self) -> bool;

    /// A task that calls `rung` whenever a ring is to end a wait.
    fn watch(&self, rung: Rc<dyn Fn()>) -> io::Result<impl Future<Output = ()> + 'static>;
}
