//! Ending: the shutdown of the sending side, and the close.
//!
//! Closing a descriptor does not end what is pending on it in the kernel. So a close first cancels
//! the receive and the send (or the connect) by their user data, waits for the last completion of
//! each, closes then, and frees the slot when the close itself has completed.
//!
//! The kernel hands a shutdown on the ring to a thread of its own. An ordinary descriptor for
//! shutdown(2) was tried and saves nothing (docs/measurements/capacity.md).

use crate::connect::connect_tag;
use crate::driver::Driver;
use crate::operation::{Kind, Operation, Tag};
use crate::ring::Completion;
use crate::socket::{NONE, Receiving, Stage};
use crate::{Handler, SocketId};

impl Driver {
    /// Ends the sending side: the peer gets FIN after the bytes of the send in flight. Sending
    /// afterwards fails. A dead id is ignored.
    pub fn shutdown_write(&mut self, socket: SocketId) {
        let id = socket;
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if socket.stage != Stage::Open || socket.shutting_down {
            return;
        }
        if socket.send != NONE {
            socket.wants_shutdown = true;
            return;
        }
        socket.shutting_down = true;
        let tag = Tag::new(Kind::Shutdown, id.slot(), id.generation());
        let operation = Operation::shutdown_write(tag, socket.descriptor);
        self.rings.push(socket.ring, operation);
    }

    pub(crate) fn on_shutdown(&mut self, tag: Tag) {
        // The result does not matter: it fails only when the connection is gone already.
        match self.sockets.find(tag.slot, tag.generation) {
            Some(socket) => {
                socket.shutting_down = false;
                if socket.stage == Stage::Closing {
                    self.leave_if_idle(SocketId::new(tag.slot, tag.generation));
                }
            }
            None => self.statistics.completions_stale += 1,
        }
    }

    /// Closes the socket. What was received but not yet handed over is dropped, a send in flight
    /// is ended, and the only further callback is [`Handler::closed`]. A dead id, or one that is
    /// being closed already, is ignored.
    pub fn close(&mut self, socket: SocketId) {
        let id = socket;
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let was = socket.stage;
        if matches!(was, Stage::Closing | Stage::Leaving) {
            return;
        }
        socket.stage = Stage::Closing;
        let receiving = socket.receiving;
        match receiving {
            Receiving::Armed => socket.receiving = Receiving::Cancelling,
            Receiving::Parked => socket.receiving = Receiving::Off,
            Receiving::Off | Receiving::Cancelling | Receiving::Ended => {}
        }
        let (send, link) = (socket.send, socket.link);
        if was == Stage::Connecting && self.lent.connecting.get_mut(link).may_wait() {
            self.cancel_connect(id);
        }
        if receiving == Receiving::Armed {
            self.cancel_receive(id);
        }
        if send != NONE {
            self.cancel_send(id);
        }
        self.leave_if_idle(id);
    }

    fn cancel_connect(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        let tag = Tag::new(Kind::CancelConnect, id.slot(), id.generation());
        self.rings.push(socket.ring, Operation::cancel(tag, connect_tag(id)));
    }

    /// Submits the close of a closing socket if nothing of it is in the kernel any more.
    pub(crate) fn leave_if_idle(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        debug_assert_eq!(socket.stage, Stage::Closing);
        if socket.is_busy() {
            return;
        }
        socket.stage = Stage::Leaving;
        let tag = Tag::new(Kind::Close, id.slot(), id.generation());
        let operation = match socket.descriptor {
            // The socket could not even be made. The end is still told from within poll.
            NONE => Operation::nothing(tag),
            descriptor => Operation::close(tag, descriptor),
        };
        self.rings.push(socket.ring, operation);
    }

    pub(crate) fn on_close(
        &mut self,
        tag: Tag,
        completion: Completion,
        handler: &mut impl Handler,
    ) {
        let Some(socket) = self.sockets.find(tag.slot, tag.generation) else {
            self.statistics.completions_stale += 1;
            return;
        };
        debug_assert_eq!(completion.result, 0, "the entry was ours to close");
        let (context, announced) = (socket.context, socket.announced);
        self.rings.member(socket.ring).sockets -= 1;
        self.sockets.remove(tag.slot);
        self.statistics.closed += 1;
        if announced {
            handler.closed(SocketId::new(tag.slot, tag.generation), context);
        }
    }

    /// A cancellation did not find its target, or found it at work. If the target has not
    /// completed meanwhile, it is cancelled again.
    pub(crate) fn on_cancel_failed(&mut self, failed: Tag) {
        let id = SocketId::new(failed.slot, failed.generation);
        let Some(socket) = self.sockets.get(id) else { return };
        let closing = socket.stage == Stage::Closing;
        match failed.kind {
            Kind::CancelReceive if socket.receiving == Receiving::Cancelling => {
                self.cancel_receive(id);
            }
            Kind::CancelSend if closing && socket.send != NONE => self.cancel_send(id),
            Kind::CancelConnect if closing && socket.link != NONE => self.cancel_connect(id),
            _ => return,
        }
        self.statistics.cancels_repeated += 1;
    }
}
