//! Listening and accepting.
//!
//! When the descriptor table is full, the kernel resets the client it has no entry for. So every
//! accept is for one client, and there are never more of them in the kernel than free entries; when
//! only the spare ones are left, there is none. Clients then wait in the backlog, where nobody
//! resets them.
//!
//! A multishot accept cannot give that promise. It goes on while the backlog holds anybody, and
//! clients join the backlog meanwhile: on a busy machine with a backlog of 64 one took more than 73
//! in one go or found the table full, 5 times in 278 runs of a test. Nor is it faster: 8,500
//! to 9,300 clients a second, 20-23 µs of the driver's CPU each, against 8,000 to 15,700 and
//! 16-28 µs with 32 accepts of one client each (`examples/accept_rate.rs`, four runs of each in
//! turn, Linux 6.18; the more where the driver is woken for every client).
//!
//! A client goes into the table of the ring whose accept took it; with several rings,
//! [`Placement`](crate::Placement) says where the next accept goes.
//!
//! The accept does not give the peer's address: memory for it would have to be lent for as long as
//! nobody comes. It is asked for on the ring (SO_PEERNAME as a socket command, Linux 6.7), which
//! costs one submission and one completion, and no system call of its own. The other way,
//! installing an ordinary descriptor (Linux 6.8) for getpeername and close, was measured beside it:
//! 1.3-1.7 µs a client against 0.4-0.8 µs, at 16 and 64 a batch on a busy machine with Linux 6.18.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::address::RawAddress;
use crate::driver::Driver;
use crate::operation::{Kind, Operation, Tag};
use crate::ring::Completion;
use crate::socket::{NONE, Stage};
use crate::{Handler, SocketId, sys};

/// Most accepts of one listener in the kernel, and so most clients that one turn takes from its
/// backlog. They hold as many entries of the table, which other listeners cannot have meanwhile.
const ACCEPTS_MAX: u32 = 32;

/// Most listeners of a driver.
const LISTENERS_MAX: usize = 255;

/// How long accepting rests after an error that will not go away by itself (ENFILE, ENOMEM).
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Names a listener of a driver, in order of [`Driver::listen`], from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ListenerId(u32);

impl ListenerId {
    /// The id of the listener with this number, for drivers that keep a list of their own.
    #[must_use]
    pub fn from_index(index: u32) -> Self {
        Self(index)
    }

    /// The number of the listener, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A listening socket and what the kernel does about it.
#[derive(Debug)]
pub(crate) struct Listener {
    /// `None` after `stop_accepting`, once no accept is in the kernel any more.
    socket: Option<OwnedFd>,
    address: SocketAddr,
    /// Accepts in the kernel, on all rings together.
    accepts: u32,
    retry_at: Option<Instant>,
    stopping: bool,
    /// Nothing is armed for lack of room; counted once at its beginning.
    paused: bool,
}

impl Listener {
    fn is_idle(&self) -> bool {
        self.accepts == 0
    }

    fn close_if_done(&mut self) {
        if self.stopping && self.is_idle() {
            self.socket = None;
        }
    }
}

fn tag(kind: Kind, index: usize) -> Tag {
    Tag::new(kind, u32::try_from(index).expect("at most 255 listeners"), 0)
}

impl Driver {
    /// Listens on `address` (port 0: one of the kernel's choice) with SO_REUSEPORT, so that every
    /// shard can have its own listener, and TCP_NODELAY. Accepting starts with the next poll.
    /// Returns the address that was bound.
    ///
    /// # Errors
    /// What socket(2), bind(2) and listen(2) say; `Other` above 255 listeners.
    pub fn listen(
        &mut self,
        address: SocketAddr,
        backlog: u32,
    ) -> io::Result<(ListenerId, SocketAddr)> {
        if self.listeners.len() >= LISTENERS_MAX {
            return Err(io::Error::other(format!("more than {LISTENERS_MAX} listeners")));
        }
        let (socket, bound) = sys::listen(&address, backlog)?;
        let id = ListenerId(u32::try_from(self.listeners.len()).expect("at most 255 listeners"));
        self.listeners.push(Listener {
            socket: Some(socket),
            address: bound,
            accepts: 0,
            retry_at: None,
            stopping: false,
            paused: false,
        });
        Ok((id, bound))
    }

    /// Stops accepting on all listeners and closes them. Clients accepted until then are still
    /// announced; those that wait in a backlog are refused by the kernel.
    pub fn stop_accepting(&mut self) {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if listener.stopping {
                continue;
            }
            listener.stopping = true;
            if listener.accepts > 0 {
                let target = tag(Kind::Accept, index);
                for ring in 0..self.rings.used() {
                    let operation = Operation::cancel_all(tag(Kind::CancelAccept, index), target);
                    self.rings.push(ring, operation);
                }
            }
            listener.close_if_done();
        }
    }

    /// Whether no accept is in the kernel.
    pub(crate) fn is_accept_idle(&self) -> bool {
        self.listeners.iter().all(Listener::is_idle)
    }

    /// Arms accepts as far as there is room in the tables. Returns when to look again, if a
    /// listener rests after an error.
    pub(crate) fn arm_accepts(&mut self) -> Option<Duration> {
        let spare = self.options.accept_spare;
        let mut retry = None;
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let Some(socket) = listener.socket.as_ref().filter(|_| !listener.stopping) else {
                continue;
            };
            let descriptor = socket.as_raw_fd();
            if let Some(at) = listener.retry_at {
                let now = Instant::now();
                if now < at {
                    let rest = at - now;
                    retry = Some(retry.map_or(rest, |other: Duration| other.min(rest)));
                    continue;
                }
                listener.retry_at = None;
            }
            while listener.accepts < ACCEPTS_MAX {
                let Some(ring) = self.rings.choose(spare) else { break };
                listener.accepts += 1;
                self.rings.member(ring).accepts += 1;
                let tag = tag(Kind::Accept, index);
                self.rings.push(ring, Operation::accept(tag, descriptor));
            }
            let paused = listener.accepts == 0;
            if paused && !listener.paused {
                self.statistics.accept_paused += 1;
            }
            listener.paused = paused;
        }
        retry
    }

    pub(crate) fn on_accept(&mut self, ring: u8, completed: Tag, completion: Completion) {
        let index = completed.slot as usize;
        let listener = &mut self.listeners[index];
        listener.accepts -= 1;
        self.rings.member(ring).accepts -= 1;
        listener.close_if_done();
        let address = listener.address;
        match u32::try_from(completion.result) {
            Ok(descriptor) => self.ask_for_peer(ring, index, descriptor, &address),
            Err(_) => match -completion.result {
                libc::ECANCELED => {}
                // The client gave up, or a signal came; the next one may follow at once.
                libc::ECONNABORTED | libc::EINTR | libc::EAGAIN => {
                    self.statistics.accept_failed += 1;
                }
                _ => {
                    self.statistics.accept_failed += 1;
                    self.listeners[index].retry_at = Some(Instant::now() + RETRY_AFTER);
                }
            },
        }
    }

    fn ask_for_peer(&mut self, ring: u8, listener: usize, descriptor: u32, address: &SocketAddr) {
        let id = self.insert_socket(ring, Stage::Naming, 0);
        let link = self.lent.peers.insert(Box::new(RawAddress::room_for(address)));
        let room: *mut RawAddress = &mut **self.lent.peers.get_mut(link);
        let socket = self.sockets.get_mut(id).expect("just inserted");
        socket.descriptor = descriptor;
        socket.listener = u8::try_from(listener).expect("at most 255 listeners");
        socket.link = link;
        let tag = Tag::new(Kind::Peer, id.slot(), id.generation());
        // SAFETY: the room is boxed in `lent` and left alone until the completion removes it.
        let operation = unsafe { Operation::peer_name(tag, descriptor, room) };
        self.rings.push(ring, operation);
    }

    pub(crate) fn on_peer(&mut self, tag: Tag, completion: Completion, handler: &mut impl Handler) {
        let Some(socket) = self.sockets.find(tag.slot, tag.generation) else {
            self.statistics.completions_stale += 1;
            return;
        };
        let room = self.lent.peers.remove(socket.link);
        socket.link = NONE;
        let listener = ListenerId(u32::from(socket.listener));
        let id = SocketId::new(tag.slot, tag.generation);
        if socket.stage == Stage::Closing {
            self.leave_if_idle(id);
            return;
        }
        let peer = if completion.result > 0 { room.decode() } else { None };
        let Some(peer) = peer else {
            // The client is gone already, and nobody has heard of it.
            self.statistics.accept_failed += 1;
            self.close(id);
            return;
        };
        socket.stage = Stage::Open;
        socket.announced = true;
        self.statistics.accepted += 1;
        let context = handler.accepted(id, listener, peer);
        self.sockets.get_mut(id).expect("callbacks cannot close").context = context;
        self.arm_receive(id);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::Options;
    use crate::rings::MAIN;

    #[derive(Default)]
    struct Count {
        accepted: usize,
    }

    impl Handler for Count {
        fn accepted(&mut self, _: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
            self.accepted += 1;
            0
        }
        fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
        fn received(&mut self, _: SocketId, _: u64, _: &mut [u8]) {}
        fn receive_ended(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
        fn sent(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
        fn closed(&mut self, _: SocketId, _: u64) {}
        fn woken(&mut self) {}
    }

    /// The table never becomes full by our own doing, but the system's file table may.
    #[test]
    fn accepting_goes_on_after_an_error_from_the_kernel() {
        for code in [libc::ENFILE, libc::EMFILE, libc::ENOMEM, libc::ECONNABORTED] {
            // Room for one accept, so that no other takes the client.
            let options = Options { sockets_max: 1, accept_spare: 0, ..Options::default() };
            let mut driver = Driver::new(options).unwrap();
            let mut count = Count::default();
            let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 4).unwrap();
            assert_eq!(driver.arm_accepts(), None);
            assert_eq!(driver.listeners[0].accepts, 1);
            // As if the kernel had failed the accept: really ended by a cancellation, with the
            // code of the error in its completion.
            let target = tag(Kind::Accept, 0);
            let ring = driver.rings.main();
            ring.push(Operation::cancel(tag(Kind::CancelAccept, 0), target));
            ring.enter(1, Some(Duration::from_secs(5))).unwrap();
            let mut batch = Vec::new();
            ring.reap(&mut batch, 8);
            let mut last = batch[0];
            assert_eq!((batch.len(), last.result), (1, -libc::ECANCELED));
            last.result = -code;
            driver.on_accept(MAIN, target, last);
            assert_eq!(driver.listeners[0].accepts, 0);
            assert_eq!(driver.statistics().accept_failed, 1);

            let _client = TcpStream::connect(address).unwrap();
            let start = Instant::now();
            while count.accepted == 0 {
                // The rest after the error must shorten this wait.
                driver.poll(Some(Duration::from_secs(20)), &mut count).unwrap();
                assert!(start.elapsed() < Duration::from_secs(15), "accepting has ended");
            }
        }
    }
}
