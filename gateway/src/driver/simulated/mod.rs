//! A driver without a kernel: connections in memory, a virtual clock, and faults that follow from a
//! seed. For tests; nothing here ever waits for real time, except for a [`Waker`] on another thread.
//!
//! Things happen in the order of the virtual clock: a poll does what can be done now, and when
//! that is nothing, the clock jumps to whatever comes next, at most to the poll's timeout.

mod network;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use millrace_uring::{Handler, ListenerId, Options, SocketId, Statistics};
pub use network::{Client, Faults, Network, VirtualTime};

use super::{Driver as _, Wake};

/// How long a poll without anything to come waits for a waker before it calls that a deadlock.
const DEADLOCK_AFTER: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    Open,
    Closing,
}

#[derive(Debug)]
struct Sending {
    bytes: Vec<u8>,
    offset: usize,
}

#[derive(Debug)]
struct Slot {
    context: u64,
    generation: u32,
    stage: Stage,
    connection: usize,
    wants_receive: bool,
    has_ended: bool,
    wants_shutdown: bool,
    sending: Option<Sending>,
}

/// The driver.
#[derive(Debug)]
pub struct Driver {
    network: Network,
    time: VirtualTime,
    options: Options,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The network's listeners that are this driver's.
    listeners: Vec<usize>,
    statistics: Statistics,
    bell: Waker,
    is_full: bool,
}

/// Ends a wait from another thread.
#[derive(Clone, Debug, Default)]
pub struct Waker(Arc<(Mutex<bool>, Condvar)>);

impl Wake for Waker {
    fn wake(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}

impl Waker {
    fn take(&self) -> bool {
        std::mem::take(&mut *self.0.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wait(&self) -> bool {
        let rung = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .0
            .1
            .wait_timeout_while(rung, DEADLOCK_AFTER, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *rung)
    }
}

impl Driver {
    /// A driver on a network.
    #[must_use]
    pub fn on(network: &Network, options: Options) -> Self {
        Self {
            network: network.clone(),
            time: network.time(),
            options,
            slots: Vec::new(),
            free: Vec::new(),
            listeners: Vec::new(),
            statistics: Statistics::default(),
            bell: Waker::default(),
            is_full: false,
        }
    }

    /// The network it is on.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn get(&self, id: SocketId) -> Option<&Slot> {
        let slot = self.slots.get(id.slot() as usize)?;
        (slot.generation == id.generation() && slot.stage != Stage::Free).then_some(slot)
    }

    fn get_mut(&mut self, id: SocketId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.slot() as usize)?;
        (slot.generation == id.generation() && slot.stage != Stage::Free).then_some(slot)
    }

    fn insert(&mut self, connection: usize) -> SocketId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                context: 0,
                generation: 0,
                stage: Stage::Free,
                connection: 0,
                wants_receive: false,
                has_ended: false,
                wants_shutdown: false,
                sending: None,
            });
            self.slots.len() as u32 - 1
        });
        let generation = self.slots[index as usize].generation.wrapping_add(1).max(1);
        self.slots[index as usize] = Slot {
            context: 0,
            generation,
            stage: Stage::Open,
            connection,
            wants_receive: true,
            has_ended: false,
            wants_shutdown: false,
            sending: None,
        };
        SocketId::from_parts(index, generation)
    }

    /// Whether the simulated kernel takes its time.
    fn is_postponed(&self) -> bool {
        let mut world = self.network.0.borrow_mut();
        let percent = world.faults.postpone_percent;
        world.chance(percent)
    }

    /// Does what can be done now. Returns how many callbacks were made, and whether something was
    /// put off.
    fn step(&mut self, handler: &mut impl Handler) -> (usize, bool) {
        self.network.0.borrow_mut().settle();
        let (mut done, mut postponed) = (0, false);
        for listener in 0..self.listeners.len() {
            let (accepted, later) = self.accept(listener, handler);
            done += accepted;
            postponed |= later;
        }
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.stage == Stage::Free {
                continue;
            }
            let id = SocketId::from_parts(index as u32, slot.generation);
            let has_work = slot.stage == Stage::Closing
                || slot.sending.is_some()
                || slot.wants_shutdown
                || (slot.wants_receive && !slot.has_ended);
            if !has_work {
                continue;
            }
            if self.is_postponed() {
                postponed = true;
                continue;
            }
            if slot.stage == Stage::Closing {
                self.finish(id, handler);
                done += 1;
                continue;
            }
            done += self.send_some(id, handler);
            done += self.receive_some(id, handler);
        }
        (done, postponed)
    }

    fn accept(&mut self, listener: usize, handler: &mut impl Handler) -> (usize, bool) {
        let mut accepted = 0;
        loop {
            let has_room = self.live() + (self.options.accept_spare as usize)
                < self.options.sockets_max as usize;
            let mut world = self.network.0.borrow_mut();
            let now = world.now;
            let waiting = &world.listeners[self.listeners[listener]];
            if !waiting.is_open || waiting.backlog.front().is_none_or(|(at, _)| *at > now) {
                return (accepted, false);
            }
            if !has_room {
                self.statistics.accept_paused += u64::from(!self.is_full);
                self.is_full = true;
                return (accepted, false);
            }
            self.is_full = false;
            let percent = world.faults.accept_failure_percent;
            if world.chance(percent) {
                self.statistics.accept_failed += 1;
                return (accepted, true);
            }
            let Some((_, connection)) =
                world.listeners[self.listeners[listener]].backlog.pop_front()
            else {
                return (accepted, false);
            };
            let Some(peer) = world.connections.get(&connection).map(|known| known.client) else {
                continue;
            };
            drop(world);
            let id = self.insert(connection);
            self.statistics.accepted += 1;
            accepted += 1;
            let context = handler.accepted(id, ListenerId::from_index(listener as u32), peer);
            self.set_context(id, context);
        }
    }

    fn send_some(&mut self, id: SocketId, handler: &mut impl Handler) -> usize {
        let network = self.network.clone();
        let Some(slot) = self.get_mut(id) else { return 0 };
        let (connection, context) = (slot.connection, slot.context);
        let Some(sending) = &mut slot.sending else {
            if std::mem::take(&mut slot.wants_shutdown) {
                network.0.borrow_mut().end(connection, true);
            }
            return 0;
        };
        let result =
            network.0.borrow_mut().write(connection, true, &sending.bytes[sending.offset..]);
        let outcome = match result {
            Ok(written) => {
                sending.offset += written;
                let is_done = sending.offset == sending.bytes.len();
                self.statistics.sent_bytes += written as u64;
                if !is_done {
                    self.statistics.sends_continued += u64::from(written > 0);
                    return 0;
                }
                self.statistics.sends += 1;
                Ok(())
            }
            Err(error) => {
                self.statistics.send_failed += 1;
                Err(error)
            }
        };
        let Some(slot) = self.get_mut(id) else { return 0 };
        slot.sending = None;
        if std::mem::take(&mut slot.wants_shutdown) {
            network.0.borrow_mut().end(connection, true);
        }
        handler.sent(id, context, outcome);
        1
    }

    fn receive_some(&mut self, id: SocketId, handler: &mut impl Handler) -> usize {
        let bytes_max = self.options.receive_buffer_bytes as usize;
        let network = self.network.clone();
        let Some(slot) = self.get_mut(id) else { return 0 };
        if !slot.wants_receive || slot.has_ended {
            return 0;
        }
        let (connection, context) = (slot.connection, slot.context);
        let result = network.0.borrow_mut().read(connection, true, bytes_max);
        match result {
            Ok(None) => 0,
            Ok(Some(mut bytes)) if !bytes.is_empty() => {
                self.statistics.receives += 1;
                self.statistics.received_bytes += bytes.len() as u64;
                handler.received(id, context, &mut bytes);
                1
            }
            ended => {
                slot.has_ended = true;
                handler.receive_ended(id, context, ended.map(drop));
                1
            }
        }
    }

    /// The close itself.
    fn finish(&mut self, id: SocketId, handler: &mut impl Handler) {
        let Some(slot) = self.get_mut(id) else { return };
        let (connection, context) = (slot.connection, slot.context);
        slot.stage = Stage::Free;
        slot.sending = None;
        self.free.push(id.slot());
        self.statistics.closed += 1;
        self.network.0.borrow_mut().close(connection, true, false);
        handler.closed(id, context);
    }
}

impl super::Driver for Driver {
    type Waker = Waker;
    type Time = VirtualTime;

    /// On a network of its own, without faults.
    fn new(options: Options) -> io::Result<Self> {
        Ok(Self::on(&Network::new(0, Faults::none()), options))
    }

    fn listen(
        &mut self,
        address: SocketAddr,
        backlog: u32,
    ) -> io::Result<(ListenerId, SocketAddr)> {
        let mut world = self.network.0.borrow_mut();
        let bound = world.listen(address, backlog);
        self.listeners.push(world.listeners.len() - 1);
        Ok((ListenerId::from_index(self.listeners.len() as u32 - 1), bound))
    }

    fn stop_accepting(&mut self) {
        let mut world = self.network.0.borrow_mut();
        for listener in &self.listeners {
            let listener = &mut world.listeners[*listener];
            listener.is_open = false;
            let waiting: Vec<_> = listener.backlog.drain(..).collect();
            for (_, connection) in waiting {
                world.close(connection, true, true);
            }
        }
    }

    fn waker(&self) -> Waker {
        self.bell.clone()
    }

    fn poll(&mut self, timeout: Option<Duration>, handler: &mut impl Handler) -> io::Result<usize> {
        self.statistics.enters += 1;
        let end = timeout.map(|timeout| self.network.elapsed() + timeout);
        let mut has_arrival = false;
        loop {
            let (done, postponed) = self.step(handler);
            let rung = self.bell.take();
            if rung {
                self.statistics.woken += 1;
                handler.woken();
            }
            // Also when something reached a client, so that it can act at that time.
            if done > 0 || rung || has_arrival || timeout == Some(Duration::ZERO) {
                return Ok(done);
            }
            let mut world = self.network.0.borrow_mut();
            let soon = postponed.then(|| world.now + Duration::from_micros(100));
            let next = soon.into_iter().chain(world.next_at()).min();
            match (next, end) {
                (Some(next), Some(end)) if next > end => {
                    world.now = end;
                    return Ok(0);
                }
                (Some(next), _) => {
                    has_arrival = soon != Some(next);
                    world.now = next;
                }
                (None, Some(end)) => {
                    world.now = end;
                    return Ok(0);
                }
                (None, None) => {
                    drop(world);
                    if !self.bell.wait() {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "nothing is under way and nobody wakes the driver: a deadlock",
                        ));
                    }
                    self.statistics.woken += 1;
                    handler.woken();
                    return Ok(0);
                }
            }
        }
    }

    fn take_buffer(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn send(&mut self, socket: SocketId, bytes: Vec<u8>) {
        if let Some(slot) = self.get_mut(socket)
            && slot.stage == Stage::Open
        {
            assert!(slot.sending.is_none(), "at most one send in flight a socket");
            slot.sending = Some(Sending { bytes, offset: 0 });
        }
    }

    fn is_sending(&self, socket: SocketId) -> bool {
        self.get(socket).is_some_and(|slot| slot.sending.is_some())
    }

    fn shutdown_write(&mut self, socket: SocketId) {
        if let Some(slot) = self.get_mut(socket) {
            slot.wants_shutdown = true;
        }
    }

    fn close(&mut self, socket: SocketId) {
        if let Some(slot) = self.get_mut(socket) {
            slot.stage = Stage::Closing;
        }
    }

    fn pause_receive(&mut self, socket: SocketId) {
        if let Some(slot) = self.get_mut(socket) {
            slot.wants_receive = false;
        }
    }

    fn resume_receive(&mut self, socket: SocketId) {
        if let Some(slot) = self.get_mut(socket) {
            slot.wants_receive = true;
        }
    }

    fn set_context(&mut self, socket: SocketId, context: u64) {
        if let Some(slot) = self.get_mut(socket) {
            slot.context = context;
        }
    }

    fn sockets(&self) -> usize {
        self.live()
    }

    fn statistics(&self) -> Statistics {
        self.statistics
    }

    fn time(&self) -> VirtualTime {
        self.time.clone()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop_accepting();
        let open = self.slots.iter().filter(|slot| slot.stage != Stage::Free);
        for slot in open {
            self.network.0.borrow_mut().close(slot.connection, true, false);
        }
    }
}
