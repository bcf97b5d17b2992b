//! Receiving: multishot from the ring's buffers, pausing, and the line of those without a buffer.
//!
//! A receive that finds no buffer ends (ENOBUFS); its bytes stay in the socket. The socket goes to
//! the end of a line. Each poll takes the first of the line, as many as there are buffers, and
//! lets each receive *one* buffer full: were they armed multishot at once, the first would take
//! all buffers, and a socket in the same place of the line in every round would never get one.
//! A socket becomes multishot again when the line is empty.

use std::io;

use crate::driver::Driver;
use crate::operation::{Kind, Operation, Tag};
use crate::ring::Completion;
use crate::socket::{Receiving, Stage};
use crate::{Handler, SocketId};

fn receive_tag(id: SocketId) -> Tag {
    Tag::new(Kind::Receive, id.slot(), id.generation())
}

impl Driver {
    /// Stops receiving, so that the peer is slowed down by TCP. What the kernel has already handed
    /// over still reaches the handler; an end of stream is not noticed until
    /// [`resume_receive`](Self::resume_receive). A dead id is ignored.
    pub fn pause_receive(&mut self, socket: SocketId) {
        let id = socket;
        let Some(socket) = self.sockets.get_mut(id) else { return };
        socket.wants_receive = false;
        if socket.stage == Stage::Open && socket.receiving == Receiving::Armed {
            socket.receiving = Receiving::Cancelling;
            self.cancel_receive(id);
        }
    }

    /// Receives again after [`pause_receive`](Self::pause_receive). A dead id is ignored.
    pub fn resume_receive(&mut self, socket: SocketId) {
        let id = socket;
        let Some(socket) = self.sockets.get_mut(id) else { return };
        socket.wants_receive = true;
        // A receive that is still being cancelled is followed by a new one when it has ended.
        self.arm_receive(id);
    }

    /// Starts receiving if that is wanted, possible and not yet under way.
    pub(crate) fn arm_receive(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if socket.stage == Stage::Open && socket.receiving == Receiving::Off && socket.wants_receive
        {
            let ring = socket.ring;
            let member = self.rings.member(ring);
            if member.parked.is_empty() {
                socket.receiving = Receiving::Armed;
                let operation = Operation::receive_many(receive_tag(id), socket.descriptor);
                self.rings.push(ring, operation);
            } else {
                self.park(id);
            }
        }
    }

    fn park(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.receiving = Receiving::Parked;
            self.rings.member(socket.ring).parked.push_back(id);
        }
    }

    /// Lets the first of each ring's line receive, one buffer each.
    pub(crate) fn arm_parked(&mut self) {
        for ring in 0..self.rings.used() {
            self.arm_parked_of(ring);
        }
    }

    fn arm_parked_of(&mut self, ring: u8) {
        let member = self.rings.member(ring);
        let mut buffers = match member.parked.is_empty() {
            true => return,
            false => self.lent.buffers[usize::from(ring)].count(),
        };
        while buffers > 0 {
            let Some(id) = member.parked.pop_front() else { return };
            // Closed since, or closing: it left the line.
            let Some(socket) = self.sockets.get_mut(id) else { continue };
            if socket.receiving != Receiving::Parked {
                continue;
            }
            if !socket.wants_receive {
                socket.receiving = Receiving::Off;
                continue;
            }
            buffers -= 1;
            socket.receiving = Receiving::Armed;
            let operation = Operation::receive_one(receive_tag(id), socket.descriptor);
            member.ring.push(operation);
        }
    }

    /// Submits the cancellation of the receive in the kernel.
    pub(crate) fn cancel_receive(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        let tag = Tag::new(Kind::CancelReceive, id.slot(), id.generation());
        self.rings.push(socket.ring, Operation::cancel(tag, receive_tag(id)));
    }

    pub(crate) fn on_receive(
        &mut self,
        ring: u8,
        tag: Tag,
        completion: Completion,
        handler: &mut impl Handler,
    ) {
        let id = SocketId::new(tag.slot, tag.generation);
        let buffers = &mut self.lent.buffers[usize::from(ring)];
        let Some(socket) = self.sockets.find(tag.slot, tag.generation) else {
            if let Some(buffer) = completion.buffer() {
                buffers.give_back(buffer);
            }
            self.statistics.completions_stale += 1;
            return;
        };
        if !completion.more() {
            socket.receiving = Receiving::Off;
        }
        let is_open = socket.stage == Stage::Open;
        let context = socket.context;
        let length = usize::try_from(completion.result).unwrap_or(0);
        if let Some(buffer) = completion.buffer() {
            if is_open && length > 0 {
                self.statistics.receives += 1;
                self.statistics.received_bytes += length as u64;
                // SAFETY: this completion named the buffer, and it is given back only below.
                let bytes = unsafe { buffers.bytes(buffer, length) };
                handler.received(id, context, bytes);
            }
            buffers.give_back(buffer);
        }
        if completion.more() {
            return;
        }
        if is_open {
            self.receive_stopped(id, context, completion.result, handler);
        } else {
            self.leave_if_idle(id);
        }
    }

    /// No receive is in the kernel any more: goes on, waits in line, or tells the end.
    fn receive_stopped(
        &mut self,
        id: SocketId,
        context: u64,
        result: i32,
        handler: &mut impl Handler,
    ) {
        let ended = match result {
            0 => Ok(()),
            // Bytes (a multishot may end with some), a cancellation, or a moment's trouble.
            1.. => return self.arm_receive(id),
            _ => match -result {
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => return self.arm_receive(id),
                libc::ENOBUFS => {
                    self.statistics.receive_starved += 1;
                    return self.park(id);
                }
                code => Err(io::Error::from_raw_os_error(code)),
            },
        };
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.receiving = Receiving::Ended;
        }
        handler.receive_ended(id, context, ended);
    }
}
