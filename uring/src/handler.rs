//! The callbacks through which a driver tells its owner what happened.

use std::io;
use std::net::SocketAddr;

use crate::{ListenerId, SocketId};

/// Receives what happens on the sockets of a [`Driver`](crate::Driver), during
/// [`Driver::poll`](crate::Driver::poll).
///
/// The callbacks do not get the driver: they note what is to be done, and the loop does it after
/// `poll` has returned. After [`Driver::close`](crate::Driver::close) a socket's only further
/// callback is [`closed`](Handler::closed).
pub trait Handler {
    /// A client was accepted on `listener`; receiving starts by itself. An IPv4 client of an IPv6
    /// listener is shown with its IPv4 address.
    ///
    /// Returns the context that the driver keeps with the socket and hands to every later callback.
    fn accepted(&mut self, socket: SocketId, listener: ListenerId, peer: SocketAddr) -> u64;

    /// A [`Driver::connect`](crate::Driver::connect) has ended. On success receiving starts by
    /// itself; after an error the socket is still to be closed by its owner.
    fn connected(&mut self, socket: SocketId, context: u64, result: io::Result<()>);

    /// Bytes arrived, never none. The slice is the receive buffer itself, which may be changed in
    /// place (unmasking) and is gone after the callback.
    fn received(&mut self, socket: SocketId, context: u64, bytes: &mut [u8]);

    /// Nothing more will be received: `Ok` at the peer's end of stream, `Err` after a failure.
    /// At most once a socket; the socket is still to be closed by its owner.
    fn receive_ended(&mut self, socket: SocketId, context: u64, result: io::Result<()>);

    /// The one send in flight has ended: the whole buffer went out, or the connection failed.
    fn sent(&mut self, socket: SocketId, context: u64, result: io::Result<()>);

    /// The close has completed: the very last callback of this id.
    fn closed(&mut self, socket: SocketId, context: u64);

    /// A [`Waker`](crate::Waker) was used since the last call; several uses may make one call.
    fn woken(&mut self);
}

/// Hears what happens and does nothing about it: for a driver that is being dropped.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Handler for Nobody {
    fn accepted(&mut self, _: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        0
    }
    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn received(&mut self, _: SocketId, _: u64, _: &mut [u8]) {}
    fn receive_ended(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn sent(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn closed(&mut self, _: SocketId, _: u64) {}
    fn woken(&mut self) {}
}
