//! Sending: one contiguous buffer in flight a socket, continued until all of it is out.
//!
//! One, because two sends of a socket may overtake each other when the peer is slow. Whoever has
//! more to say meanwhile collects it for the next send.

use std::io;

use crate::driver::Driver;
use crate::operation::{Kind, Operation, Tag};
use crate::ring::Completion;
use crate::socket::{NONE, Stage};
use crate::{Handler, SocketId};

/// Most bytes of one submission; longer buffers take several, one after the other.
const SUBMISSION_BYTES_MAX: usize = 1 << 30;

/// A buffer on its way out.
#[derive(Debug)]
pub(crate) struct Sending {
    bytes: Vec<u8>,
    /// Bytes that are out already.
    offset: usize,
}

fn send_tag(id: SocketId) -> Tag {
    Tag::new(Kind::Send, id.slot(), id.generation())
}

impl Driver {
    /// An empty buffer, from the pool of those whose send has completed.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        self.send_pool.pop().unwrap_or_default()
    }

    fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0
            && buffer.capacity() <= self.options.send_buffer_bytes_max
            && self.send_pool.len() < self.options.send_buffers_max
        {
            buffer.clear();
            self.send_pool.push(buffer);
        }
    }

    /// Sends `bytes`; [`Handler::sent`] says when all of them are in the kernel. A dead id, one
    /// being closed, or one whose connect failed is ignored (its end is reported otherwise).
    ///
    /// # Panics
    /// If a send is in flight ([`is_sending`](Self::is_sending)) or the socket is not yet connected:
    /// both are mistakes of the caller.
    pub fn send(&mut self, socket: SocketId, bytes: Vec<u8>) {
        let id = socket;
        let Some(socket) = self.sockets.get_mut(id) else { return self.keep_buffer(bytes) };
        match socket.stage {
            Stage::Open => {}
            Stage::Connecting => panic!("a send before the connection is established"),
            _ => return self.keep_buffer(bytes),
        }
        assert!(socket.send == NONE, "at most one send in flight a socket");
        socket.send = self.lent.sends.insert(Sending { bytes, offset: 0 });
        self.submit_send(id);
    }

    /// Whether a send is in flight. `false` for a dead id.
    #[must_use]
    pub fn is_sending(&self, socket: SocketId) -> bool {
        self.sockets.get(socket).is_some_and(|socket| socket.send != NONE)
    }

    fn submit_send(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        let rest = {
            let sending = self.lent.sends.get_mut(socket.send);
            &sending.bytes[sending.offset..]
        };
        let length = u32::try_from(rest.len().min(SUBMISSION_BYTES_MAX)).expect("below 2^30");
        // SAFETY: the bytes are in `lent` and left alone until the completion; the vector may move,
        // its memory does not.
        let operation =
            unsafe { Operation::send(send_tag(id), socket.descriptor, rest.as_ptr(), length) };
        self.rings.push(socket.ring, operation);
    }

    /// Submits the cancellation of the send in the kernel.
    pub(crate) fn cancel_send(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        let tag = Tag::new(Kind::CancelSend, id.slot(), id.generation());
        self.rings.push(socket.ring, Operation::cancel(tag, send_tag(id)));
    }

    pub(crate) fn on_send(&mut self, tag: Tag, completion: Completion, handler: &mut impl Handler) {
        let id = SocketId::new(tag.slot, tag.generation);
        let Some(socket) = self.sockets.find(tag.slot, tag.generation) else {
            self.statistics.completions_stale += 1;
            return;
        };
        let is_open = socket.stage == Stage::Open;
        let context = socket.context;
        let sending = self.lent.sends.get_mut(socket.send);
        let outcome = match completion.result {
            0 if sending.offset < sending.bytes.len() => {
                Err(io::Error::from(io::ErrorKind::WriteZero))
            }
            result @ 0.. => {
                sending.offset += result as usize;
                self.statistics.sent_bytes += u64::from(result.unsigned_abs());
                if is_open && sending.offset < sending.bytes.len() {
                    self.statistics.sends_continued += 1;
                    return self.submit_send(id);
                }
                Ok(())
            }
            result => match -result {
                libc::EINTR | libc::EAGAIN if is_open => return self.submit_send(id),
                code => Err(io::Error::from_raw_os_error(code)),
            },
        };
        let sending = self.lent.sends.remove(socket.send);
        socket.send = NONE;
        let wants_shutdown = std::mem::take(&mut socket.wants_shutdown);
        self.keep_buffer(sending.bytes);
        if !is_open {
            return self.leave_if_idle(id);
        }
        match &outcome {
            Ok(()) => self.statistics.sends += 1,
            Err(_) => self.statistics.send_failed += 1,
        }
        handler.sent(id, context, outcome);
        if wants_shutdown {
            self.shutdown_write(id);
        }
    }
}
