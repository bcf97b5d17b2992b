//! The driver of choice: io_uring. All of it is in the `millrace_uring` crate; here it meets the
//! trait.

use std::{io, net::SocketAddr, time::Duration};

pub use millrace_uring::Driver;
use millrace_uring::{Handler, ListenerId, Options, SocketId, Statistics, Waker};

use super::RealTime;

impl super::Driver for Driver {
    type Waker = Waker;
    type Time = RealTime;

    fn new(options: Options) -> io::Result<Self> {
        Self::new(options)
    }

    fn listen(
        &mut self,
        address: SocketAddr,
        backlog: u32,
    ) -> io::Result<(ListenerId, SocketAddr)> {
        self.listen(address, backlog)
    }

    fn stop_accepting(&mut self) {
        self.stop_accepting();
    }

    fn waker(&self) -> Waker {
        self.waker()
    }

    fn poll(&mut self, timeout: Option<Duration>, handler: &mut impl Handler) -> io::Result<usize> {
        self.poll(timeout, handler)
    }

    fn take_buffer(&mut self) -> Vec<u8> {
        self.take_buffer()
    }

    fn send(&mut self, socket: SocketId, bytes: Vec<u8>) {
        self.send(socket, bytes);
    }

    fn is_sending(&self, socket: SocketId) -> bool {
        self.is_sending(socket)
    }

    fn shutdown_write(&mut self, socket: SocketId) {
        self.shutdown_write(socket);
    }

    fn close(&mut self, socket: SocketId) {
        self.close(socket);
    }

    fn pause_receive(&mut self, socket: SocketId) {
        self.pause_receive(socket);
    }

    fn resume_receive(&mut self, socket: SocketId) {
        self.resume_receive(socket);
    }

    fn set_context(&mut self, socket: SocketId, context: u64) {
        self.set_context(socket, context);
    }

    fn sockets(&self) -> usize {
        self.sockets()
    }

    fn statistics(&self) -> Statistics {
        self.statistics()
    }

    fn time(&self) -> RealTime {
        RealTime
    }
}
