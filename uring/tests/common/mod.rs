//! A driver on a thread of its own that echoes, for tests that bring plain std clients.

#![allow(dead_code, clippy::unwrap_used)]

pub mod recorder;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use millrace_uring::{
    Driver, Handler, ListenerId, Options, Placement, SocketId, Statistics, Waker,
};

/// Bytes an echo keeps for a client before it pauses receiving from it.
const PENDING_BYTES_MAX: usize = 256 * 1024;

/// Small sizes, so that tests run side by side.
pub fn small() -> Options {
    Options {
        sockets_max: 1024,
        submission_entries: 256,
        completion_entries: 1024,
        receive_buffers: 64,
        receive_buffer_bytes: 2048,
        accept_spare: 4,
        ..Options::default()
    }
}

/// Three small rings over which even few sockets are spread.
pub fn three_rings() -> Options {
    Options {
        rings: 3,
        sockets_max: 64,
        placement: Placement::Spread,
        satellite_submission_entries: 64,
        satellite_completion_entries: 256,
        satellite_receive_buffers: 32,
        ..small()
    }
}

/// Makes a test of each function, once with one ring and once with three.
#[macro_export]
macro_rules! with_one_ring_and_three {
    ($($name:ident),+ $(,)?) => {
        mod with_one_ring {
            $(#[test] fn $name() { super::$name($crate::common::small()); })+
        }
        mod with_three_rings {
            $(#[test] fn $name() { super::$name($crate::common::three_rings()); })+
        }
    };
}

#[derive(Debug, Default)]
struct Client {
    pending: Vec<u8>,
    ended: bool,
    failed: bool,
    paused: bool,
    closing: bool,
}

/// Echoes, and checks on the way that no callback reaches a socket that is not alive.
#[derive(Debug, Default)]
pub struct Echo {
    clients: HashMap<SocketId, Client>,
    changed: Vec<SocketId>,
    next_context: u64,
    contexts: HashMap<SocketId, u64>,
    pub peers: Vec<SocketAddr>,
    pub pauses: u64,
    pub failed_sends: u64,
}

impl Echo {
    fn client(&mut self, socket: SocketId, context: u64) -> &mut Client {
        assert_eq!(self.contexts.get(&socket), Some(&context), "the context of this very socket");
        let client = self.clients.get_mut(&socket).expect("callbacks reach living sockets only");
        assert!(!client.closing, "after close only closed follows");
        client
    }

    /// What the loop does after each poll.
    pub fn act(&mut self, driver: &mut Driver) {
        for socket in std::mem::take(&mut self.changed) {
            let Some(client) = self.clients.get_mut(&socket) else { continue };
            let sending = driver.is_sending(socket);
            if !sending && !client.pending.is_empty() {
                let mut buffer = driver.take_buffer();
                std::mem::swap(&mut buffer, &mut client.pending);
                driver.send(socket, buffer);
            } else if !sending && (client.ended || client.failed) && !client.closing {
                client.closing = true;
                driver.close(socket);
            }
            let too_much = client.pending.len() > PENDING_BYTES_MAX;
            if too_much && !client.paused {
                self.pauses += 1;
                driver.pause_receive(socket);
            } else if !too_much && client.paused {
                driver.resume_receive(socket);
            }
            client.paused = too_much;
        }
    }
}

impl Handler for Echo {
    fn accepted(&mut self, socket: SocketId, _: ListenerId, peer: SocketAddr) -> u64 {
        self.next_context += 1;
        assert!(self.clients.insert(socket, Client::default()).is_none(), "ids are new");
        self.contexts.insert(socket, self.next_context);
        self.peers.push(peer);
        self.next_context
    }
    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {
        panic!("nobody connects here");
    }
    fn received(&mut self, socket: SocketId, context: u64, bytes: &mut [u8]) {
        assert!(!bytes.is_empty());
        let client = self.client(socket, context);
        assert!(!client.ended, "nothing is received after the end");
        client.pending.extend_from_slice(bytes);
        self.changed.push(socket);
    }
    fn receive_ended(&mut self, socket: SocketId, context: u64, _: io::Result<()>) {
        let client = self.client(socket, context);
        assert!(!client.ended, "the end comes once");
        client.ended = true;
        self.changed.push(socket);
    }
    fn sent(&mut self, socket: SocketId, context: u64, result: io::Result<()>) {
        let client = self.client(socket, context);
        if result.is_err() {
            client.pending.clear();
            client.failed = true;
            self.failed_sends += 1;
        }
        self.changed.push(socket);
    }
    fn closed(&mut self, socket: SocketId, context: u64) {
        assert_eq!(self.contexts.remove(&socket), Some(context));
        assert!(self.clients.remove(&socket).is_some_and(|client| client.closing));
    }
    fn woken(&mut self) {}
}

/// An echo server on its own thread.
pub struct Server {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<(Statistics, Echo)>>,
}

impl Server {
    pub fn start(options: Options, address: &str, backlog: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let address: SocketAddr = address.parse().unwrap();
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut driver = Driver::new(options).unwrap();
                let (_, bound) = driver.listen(address, backlog).unwrap();
                sender.send((bound, driver.waker())).unwrap();
                let mut echo = Echo::default();
                while !stop.load(Ordering::Acquire) {
                    driver.poll(None, &mut echo).unwrap();
                    echo.act(&mut driver);
                }
                (driver.statistics(), echo)
            }
        });
        let (address, waker) = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        Self { address, stop, waker, thread: Some(thread) }
    }

    /// Ends the thread and hands out what it counted; panics of the thread come through.
    pub fn stop(mut self) -> (Statistics, Echo) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        let (statistics, echo) = self.thread.take().unwrap().join().unwrap();
        assert_eq!(statistics.completions_stale, 0, "{statistics:?}");
        (statistics, echo)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The seed of a random test: MILLRACE_SEED, or a new one; printed, so that a failure can be run
/// again.
pub fn seed() -> u64 {
    let seed = std::env::var("MILLRACE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    eprintln!("MILLRACE_SEED={seed}");
    seed
}
