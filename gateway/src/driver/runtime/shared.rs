//! What the driver and its tasks share: the table of sockets, the buffers, and two lists: what has
//! happened, for the handler, and whom to wake, for the next run.

use std::{collections::VecDeque, io, net::SocketAddr, task::Waker};

use millrace_uring::{ListenerId, Options, SocketId, Statistics};

/// Something that happened to a socket.
#[derive(Debug)]
pub(super) enum Event {
    Accepted(SocketId, ListenerId, SocketAddr),
    Received(SocketId, Vec<u8>),
    Ended(SocketId, io::Result<()>),
    Sent(SocketId, io::Result<()>),
    Closed(SocketId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Free,
    Open,
    /// The owner has closed it; its task is to end.
    Closing,
}

/// What receiving waits for, apart from bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Nothing.
    On,
    /// That the handler gets what was received: one buffer a socket and poll, so that a flood does
    /// not take all of them.
    Handled,
    /// A buffer: it stands in the line.
    Parked,
    /// Nothing: it was the first of the line, and one buffer is meant for it.
    Granted,
    /// Nothing more: the end was reported.
    Ended,
}

#[derive(Debug)]
pub(super) struct Sending {
    /// Lent to the runtime for a time by some of them.
    pub(super) bytes: Vec<u8>,
    /// All that are to go out.
    pub(super) length: usize,
    /// Bytes that are out already.
    pub(super) offset: usize,
}

/// A socket, without the runtime's part of it, which its task owns.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) context: u64,
    generation: u32,
    pub(super) stage: Stage,
    pub(super) receiving: Receiving,
    /// The owner wants to receive.
    pub(super) wants_receive: bool,
    /// FIN is to follow the send in flight.
    pub(super) wants_shutdown: bool,
    /// It stands in the list of those to wake.
    is_listed: bool,
    pub(super) sending: Option<Box<Sending>>,
    pub(super) waker: Option<Waker>,
}

/// See the module.
pub(super) struct Shared {
    slots: Vec<Slot>,
    free: Vec<u32>,
    pub(super) events: Vec<Event>,
    /// Sockets whose task has something to do.
    listed: Vec<SocketId>,
    /// Sockets without a receive buffer, first in first out.
    line: VecDeque<SocketId>,
    /// Empty receive buffers, and how many of them may still be made.
    receive_buffers: Vec<Vec<u8>>,
    receive_buffers_left: usize,
    send_buffers: Vec<Vec<u8>>,
    pub(super) options: Options,
    pub(super) statistics: Statistics,
    /// In order of the listeners.
    pub(super) accepting: Vec<Accepting>,
    /// The tasks that accept have something to look at.
    wakes_accepting: bool,
    /// Listeners that are still open.
    pub(super) listeners_open: usize,
    /// Accepting rests because the table is full; counted once at its beginning.
    pub(super) is_full: bool,
    /// Ends the run.
    pub(super) main: Option<Waker>,
    /// The task that ends a run which is not to wait, and whether it has run.
    pub(super) glance: Option<Waker>,
    pub(super) has_glanced: bool,
    /// The task that watches the bell, and whether it rang in this run.
    pub(super) watch: Option<Waker>,
    pub(super) is_rung: bool,
    /// The driver is being dropped: these two tasks are to end.
    pub(super) is_leaving: bool,
}

/// A listener, without the runtime's part of it, which its task owns.
#[derive(Debug, Default)]
pub(super) struct Accepting {
    pub(super) waker: Option<Waker>,
    pub(super) is_stopping: bool,
}

impl Shared {
    pub(super) fn new(options: Options) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            events: Vec::new(),
            listed: Vec::new(),
            line: VecDeque::new(),
            receive_buffers: Vec::new(),
            receive_buffers_left: usize::from(options.receive_buffers),
            send_buffers: Vec::new(),
            options,
            statistics: Statistics::default(),
            accepting: Vec::new(),
            wakes_accepting: false,
            listeners_open: 0,
            is_full: false,
            main: None,
            glance: None,
            has_glanced: false,
            watch: None,
            is_rung: false,
            is_leaving: false,
        }
    }

    /// Sockets, from their accept to the end of their close.
    pub(super) fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether a further client may be accepted. Each listener may bring one at a time, so as many
    /// entries are kept free.
    pub(super) fn has_room(&self) -> bool {
        let spare = self.options.accept_spare as usize + self.listeners_open.saturating_sub(1);
        self.live() + spare < self.options.sockets_max as usize
    }

    /// Takes a slot for an accepted socket.
    pub(super) fn insert(&mut self) -> SocketId {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = u32::try_from(self.slots.len()).expect("bounded by sockets_max");
            self.slots.push(Slot {
                context: 0,
                generation: 0,
                stage: Stage::Free,
                receiving: Receiving::On,
                wants_receive: true,
                wants_shutdown: false,
                is_listed: false,
                sending: None,
                waker: None,
            });
            slot
        });
        let taken = &mut self.slots[slot as usize];
        // The number 0 is left out, so that no id is 0.
        let generation = taken.generation.wrapping_add(1).max(1);
        *taken = Slot {
            context: 0,
            generation,
            stage: Stage::Open,
            receiving: Receiving::On,
            wants_receive: true,
            wants_shutdown: false,
            is_listed: false,
            sending: None,
            waker: None,
        };
        SocketId::from_parts(slot, generation)
    }

    /// Frees the slot of a socket whose task has ended.
    pub(super) fn remove(&mut self, id: SocketId) {
        let Some(slot) = self.get_mut(id) else { return };
        slot.stage = Stage::Free;
        slot.waker = None;
        slot.sending = None;
        self.free.push(id.slot());
        // Somebody may come in for it.
        self.wakes_accepting |= self.is_full;
    }

    /// Has the listeners' tasks end.
    pub(super) fn stop_accepting(&mut self) {
        for accepting in &mut self.accepting {
            accepting.is_stopping = true;
        }
        self.wakes_accepting = true;
    }

    pub(super) fn get(&self, id: SocketId) -> Option<&Slot> {
        self.slots
            .get(id.slot() as usize)
            .filter(|slot| slot.generation == id.generation() && slot.stage != Stage::Free)
    }

    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut Slot> {
        self.slots
            .get_mut(id.slot() as usize)
            .filter(|slot| slot.generation == id.generation() && slot.stage != Stage::Free)
    }

    /// The ids of all sockets.
    pub(super) fn ids(&self) -> Vec<SocketId> {
        let live = |(index, slot): (usize, &Slot)| {
            let index = u32::try_from(index).expect("bounded by sockets_max");
            (slot.stage != Stage::Free).then(|| SocketId::from_parts(index, slot.generation))
        };
        self.slots.iter().enumerate().filter_map(live).collect()
    }

    /// Notes what happened, and ends the run.
    pub(super) fn happened(&mut self, event: Event) {
        self.events.push(event);
        self.end_run();
    }

    /// Has the run end as soon as the tasks that can run have done so.
    pub(super) fn end_run(&mut self) {
        if let Some(main) = self.main.take() {
            main.wake();
        }
    }

    /// Has the socket's task woken in the next run.
    pub(super) fn list(&mut self, id: SocketId) {
        let Some(slot) = self.get_mut(id) else { return };
        if !std::mem::replace(&mut slot.is_listed, true) {
            self.listed.push(id);
        }
    }

    /// Wakes those who are listed, and as many of the line as there are buffers.
    pub(super) fn wake_listed(&mut self) {
        let buffers = self.receive_buffers.len() + self.receive_buffers_left;
        for _ in 0..buffers.min(self.line.len()) {
            let Some(id) = self.line.pop_front() else { break };
            if let Some(slot) = self.get_mut(id)
                && slot.receiving == Receiving::Parked
            {
                slot.receiving = Receiving::Granted;
                self.list(id);
            }
        }
        let mut listed = std::mem::take(&mut self.listed);
        for id in listed.drain(..) {
            let Some(slot) = self.get_mut(id) else { continue };
            slot.is_listed = false;
            if let Some(waker) = &slot.waker {
                waker.wake_by_ref();
            }
        }
        self.listed = listed;
        if std::mem::take(&mut self.wakes_accepting) {
            for waker in self.accepting.iter_mut().filter_map(|accepting| accepting.waker.take()) {
                waker.wake();
            }
        }
    }

    /// Whether sockets stand in line.
    pub(super) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Puts a socket at the end of the line.
    pub(super) fn park(&mut self, id: SocketId) {
        self.statistics.receive_starved += 1;
        self.line.push_back(id);
    }

    /// An empty receive buffer of the configured capacity, unless all are in use.
    pub(super) fn take_receive_buffer(&mut self) -> Option<Vec<u8>> {
        self.receive_buffers.pop().or_else(|| {
            self.receive_buffers_left = self.receive_buffers_left.checked_sub(1)?;
            Some(Vec::with_capacity(self.options.receive_buffer_bytes as usize))
        })
    }

    pub(super) fn keep_receive_buffer(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.receive_buffers.push(buffer);
    }

    pub(super) fn take_send_buffer(&mut self) -> Vec<u8> {
        self.send_buffers.pop().unwrap_or_default()
    }

    pub(super) fn keep_send_buffer(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0
            && buffer.capacity() <= self.options.send_buffer_bytes_max
            && self.send_buffers.len() < self.options.send_buffers_max
        {
            buffer.clear();
            self.send_buffers.push(buffer);
        }
    }
}
