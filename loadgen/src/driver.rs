//! How: one thread's loop over the io_uring driver.
//!
//! It performs what a [`Fleet`] asks for (connect, send, close) and reports what happened. Which
//! bytes travel, and when, is the fleet's business.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

pub use millrace_uring::Options;
use millrace_uring::{Driver, Handler, ListenerId, SocketId};

use crate::clock::Clock;

/// What a fleet wants done.
#[derive(Debug)]
pub enum Action {
    /// Open a connection for this station; a station has at most one.
    Connect {
        /// The station.
        index: u32,
        /// Where to.
        address: SocketAddr,
        /// From where; `None`: the kernel chooses.
        source: Option<IpAddr>,
    },
    /// The station has output.
    Send {
        /// The station.
        index: u32,
    },
    /// Stop reading.
    Pause {
        /// The station.
        index: u32,
    },
    /// Read again.
    Resume {
        /// The station.
        index: u32,
    },
    /// Write the farewell, if any, and close.
    Close {
        /// The station.
        index: u32,
        /// The last bytes.
        farewell: Vec<u8>,
    },
}

/// The state machines of one thread's connections ("stations"), numbered from 0.
pub trait Fleet {
    /// Timers, schedules and commands: called before every wait.
    fn advance(&mut self, now_ns: u64);
    /// When [`Fleet::advance`] is wanted next.
    fn wake_ns(&self) -> u64;
    /// The next thing to do.
    fn poll_action(&mut self) -> Option<Action>;
    /// A connection stands, or could not be made.
    fn connected(&mut self, now_ns: u64, index: u32, result: io::Result<()>);
    /// Bytes arrived.
    fn received(&mut self, now_ns: u64, index: u32, bytes: &mut [u8]);
    /// The connection is over.
    fn ended(&mut self, now_ns: u64, index: u32);
    /// Whether the station has bytes to write.
    fn has_output(&self, index: u32) -> bool;
    /// Those bytes.
    fn take_output(&mut self, now_ns: u64, index: u32) -> Vec<u8>;
    /// Whether the thread may end.
    fn is_finished(&self) -> bool;
}

/// Never sleep longer, so that the fleet sees the run's phase in time.
const SLEEP_NS_MAX: u64 = 20_000_000;
/// Never sleep shorter: waking up for every single message of a fast schedule would cost more
/// CPU than the messages. The lateness this adds is measured like any other.
const SLEEP_NS_MIN: u64 = 500_000;

/// A station's connection. `attempt` tells callbacks of an earlier connection apart.
#[derive(Clone, Copy, Default)]
struct Link {
    socket: Option<SocketId>,
    attempt: u32,
}

struct Links<'a, F> {
    clock: Clock,
    fleet: &'a mut F,
    links: Vec<Link>,
    /// Sockets to close after the poll: their station has let go of them.
    to_close: Vec<SocketId>,
    /// Stations whose send has completed.
    sent: Vec<u32>,
}

fn context_of(index: u32, attempt: u32) -> u64 {
    u64::from(index) << 32 | u64::from(attempt)
}

impl<F: Fleet> Links<'_, F> {
    /// The station of a callback, unless the station has moved on to another connection.
    fn current(&self, context: u64) -> Option<u32> {
        let (index, attempt) = ((context >> 32) as u32, context as u32);
        let link = self.links.get(index as usize)?;
        (link.attempt == attempt && link.socket.is_some()).then_some(index)
    }
}

impl<F: Fleet> Handler for Links<'_, F> {
    fn accepted(&mut self, socket: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        // A generator listens nowhere.
        self.to_close.push(socket);
        u64::MAX
    }

    fn connected(&mut self, socket: SocketId, context: u64, result: io::Result<()>) {
        match self.current(context) {
            Some(index) => self.fleet.connected(self.clock.now_ns(), index, result),
            None => self.to_close.push(socket),
        }
    }

    fn received(&mut self, _: SocketId, context: u64, bytes: &mut [u8]) {
        if let Some(index) = self.current(context) {
            self.fleet.received(self.clock.now_ns(), index, bytes);
        }
    }

    fn receive_ended(&mut self, socket: SocketId, context: u64, _: io::Result<()>) {
        match self.current(context) {
            Some(index) => self.fleet.ended(self.clock.now_ns(), index),
            None => self.to_close.push(socket),
        }
    }

    fn sent(&mut self, socket: SocketId, context: u64, result: io::Result<()>) {
        match (self.current(context), result) {
            (Some(index), Ok(())) => self.sent.push(index),
            (Some(index), Err(_)) => self.fleet.ended(self.clock.now_ns(), index),
            // The farewell is out.
            (None, _) => self.to_close.push(socket),
        }
    }

    fn closed(&mut self, _: SocketId, context: u64) {
        if let Some(index) = self.current(context) {
            self.links[index as usize].socket = None;
        }
    }

    fn woken(&mut self) {}
}

/// Runs a fleet of `stations` until it is finished.
///
/// # Errors
/// The ring could not be made, or failed for good.
pub fn run(
    clock: Clock,
    options: Options,
    stations: usize,
    fleet: &mut impl Fleet,
) -> io::Result<()> {
    let mut driver = Driver::new(options)?;
    let mut links = Links {
        clock,
        fleet,
        links: vec![Link::default(); stations],
        to_close: Vec::new(),
        sent: Vec::new(),
    };
    loop {
        links.fleet.advance(clock.now_ns());
        perform(&mut driver, &mut links);
        if links.fleet.is_finished() {
            return Ok(());
        }
        let now_ns = clock.now_ns();
        let sleep_ns = links.fleet.wake_ns().saturating_sub(now_ns);
        let sleep = Duration::from_nanos(sleep_ns.clamp(SLEEP_NS_MIN, SLEEP_NS_MAX));
        driver.poll(Some(sleep), &mut links)?;
        perform(&mut driver, &mut links);
    }
}

fn perform<F: Fleet>(driver: &mut Driver, links: &mut Links<'_, F>) {
    while let Some(index) = links.sent.pop() {
        send(driver, links, index);
    }
    while let Some(action) = links.fleet.poll_action() {
        match action {
            Action::Connect { index, address, source } => {
                connect(driver, links, index, address, source);
            }
            Action::Send { index } => send(driver, links, index),
            Action::Pause { index } => {
                if let Some(socket) = links.links[index as usize].socket {
                    driver.pause_receive(socket);
                }
            }
            Action::Resume { index } => {
                if let Some(socket) = links.links[index as usize].socket {
                    driver.resume_receive(socket);
                }
            }
            Action::Close { index, farewell } => {
                let Some(socket) = links.links[index as usize].socket.take() else { continue };
                if farewell.is_empty() || driver.is_sending(socket) {
                    driver.close(socket);
                } else {
                    driver.send(socket, farewell);
                }
            }
        }
    }
    for socket in links.to_close.drain(..) {
        driver.close(socket);
    }
}

fn connect<F: Fleet>(
    driver: &mut Driver,
    links: &mut Links<'_, F>,
    index: u32,
    address: SocketAddr,
    source: Option<IpAddr>,
) {
    let link = &mut links.links[index as usize];
    if let Some(before) = link.socket.take() {
        driver.close(before);
    }
    link.attempt = link.attempt.wrapping_add(1);
    let source = source.map(|source| SocketAddr::new(source, 0));
    match driver.connect(address, source, context_of(index, link.attempt)) {
        Ok(socket) => link.socket = Some(socket),
        Err(error) => links.fleet.connected(links.clock.now_ns(), index, Err(error)),
    }
}

fn send<F: Fleet>(driver: &mut Driver, links: &mut Links<'_, F>, index: u32) {
    let Some(socket) = links.links[index as usize].socket else { return };
    if !driver.is_sending(socket) && links.fleet.has_output(index) {
        driver.send(socket, links.fleet.take_output(links.clock.now_ns(), index));
    }
}
