//! What the driver reports, handed to the engine. Socket ids and connection ids are each other's
//! context, so no table is needed here.

use std::{io, net::SocketAddr};

use millrace_engine::{ConnectionId, Engine, TransportKind};

use super::clock::Clock;
use crate::driver::{Handler, ListenerId, SocketId, Time};

pub(super) struct Events<'a, T> {
    pub engine: &'a mut Engine,
    pub clock: &'a mut Clock<T>,
    /// Which listener takes WebSocket connections; the other one takes TCP.
    pub websocket: Option<ListenerId>,
}

impl<T: Time> Handler for Events<'_, T> {
    fn accepted(&mut self, socket: SocketId, listener: ListenerId, peer: SocketAddr) -> u64 {
        let transport = if self.websocket == Some(listener) {
            TransportKind::WebSocket
        } else {
            TransportKind::Tcp
        };
        self.engine.accepted(self.clock.now(), socket.raw(), transport, peer.ip()).raw()
    }

    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {
        debug_assert!(false, "a shard never connects");
    }

    fn received(&mut self, _: SocketId, context: u64, bytes: &mut [u8]) {
        self.engine.received(self.clock.now(), ConnectionId::from_raw(context), bytes);
    }

    fn receive_ended(&mut self, _: SocketId, context: u64, _: io::Result<()>) {
        self.engine.receive_ended(self.clock.now(), ConnectionId::from_raw(context));
    }

    fn sent(&mut self, _: SocketId, context: u64, result: io::Result<()>) {
        self.engine.sent(self.clock.now(), ConnectionId::from_raw(context), result.is_ok());
    }

    fn closed(&mut self, _: SocketId, context: u64) {
        self.engine.closed(self.clock.now(), ConnectionId::from_raw(context));
    }

    fn woken(&mut self) {}
}
