//! A handler that writes down what happened, for tests that own the driver themselves.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use millrace_uring::{Driver, Handler, ListenerId, SocketId};

#[derive(Debug)]
pub enum Event {
    Accepted(SocketId, ListenerId, SocketAddr),
    Connected(SocketId, u64, io::Result<()>),
    Received(SocketId, Vec<u8>),
    ReceiveEnded(SocketId, io::Result<()>),
    Sent(SocketId, io::Result<()>),
    Closed(SocketId, u64),
    Woken,
}

/// Context that a [`Recorder`] gives to every accepted socket.
pub const ACCEPTED_CONTEXT: u64 = 4711;

#[derive(Debug, Default)]
pub struct Recorder {
    pub events: Vec<Event>,
}

impl Handler for Recorder {
    fn accepted(&mut self, socket: SocketId, listener: ListenerId, peer: SocketAddr) -> u64 {
        self.events.push(Event::Accepted(socket, listener, peer));
        ACCEPTED_CONTEXT
    }
    fn connected(&mut self, socket: SocketId, context: u64, result: io::Result<()>) {
        self.events.push(Event::Connected(socket, context, result));
    }
    fn received(&mut self, socket: SocketId, _: u64, bytes: &mut [u8]) {
        self.events.push(Event::Received(socket, bytes.to_vec()));
    }
    fn receive_ended(&mut self, socket: SocketId, _: u64, result: io::Result<()>) {
        self.events.push(Event::ReceiveEnded(socket, result));
    }
    fn sent(&mut self, socket: SocketId, _: u64, result: io::Result<()>) {
        self.events.push(Event::Sent(socket, result));
    }
    fn closed(&mut self, socket: SocketId, context: u64) {
        self.events.push(Event::Closed(socket, context));
    }
    fn woken(&mut self) {
        self.events.push(Event::Woken);
    }
}

impl Recorder {
    /// Polls until an event is found and hands out what `pick` makes of it; the event and those
    /// before it are forgotten. Panics when it takes longer than any healthy machine needs.
    pub fn wait<T>(
        &mut self,
        driver: &mut Driver,
        what: &str,
        mut pick: impl FnMut(&Event) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self
                .events
                .iter()
                .enumerate()
                .find_map(|(index, event)| pick(event).map(|picked| (index, picked)));
            if let Some((index, picked)) = found {
                self.events.drain(..=index);
                return picked;
            }
            assert!(Instant::now() < deadline, "{what} did not come; {:?}", self.events);
            driver.poll(Some(Duration::from_millis(50)), self).unwrap();
        }
    }

    pub fn wait_accepted(&mut self, driver: &mut Driver) -> (SocketId, ListenerId, SocketAddr) {
        self.wait(driver, "an accept", |event| match event {
            Event::Accepted(socket, listener, peer) => Some((*socket, *listener, *peer)),
            _ => None,
        })
    }

    pub fn wait_closed(&mut self, driver: &mut Driver, id: SocketId) -> u64 {
        self.wait(driver, "the close", |event| match event {
            Event::Closed(socket, context) if *socket == id => Some(*context),
            _ => None,
        })
    }

    pub fn wait_connected(&mut self, driver: &mut Driver, id: SocketId) -> Result<(), i32> {
        self.wait(driver, "the connection", |event| match event {
            Event::Connected(socket, _, result) if *socket == id => Some(match result {
                Ok(()) => Ok(()),
                Err(error) => Err(error.raw_os_error().unwrap_or(0)),
            }),
            _ => None,
        })
    }

    /// Polls for a while without expecting anything.
    pub fn idle(&mut self, driver: &mut Driver, polls: usize) {
        for _ in 0..polls {
            driver.poll(Some(Duration::from_millis(5)), self).unwrap();
        }
    }

    /// All bytes received on a socket so far; forgets them.
    pub fn take_received(&mut self, id: SocketId) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.events.retain(|event| match event {
            Event::Received(socket, received) if *socket == id => {
                bytes.extend_from_slice(received);
                false
            }
            _ => true,
        });
        bytes
    }
}
