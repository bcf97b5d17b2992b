//! One submission. Operations that lend memory to the kernel are `unsafe` to build: whoever builds
//! one promises that the memory stays; the others are safe. So the rings' users need no unsafe code
//! beyond that promise.

use std::os::fd::RawFd;

use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed};
use io_uring::{opcode, squeue};

use crate::address::RawAddress;

/// The provided buffer group all receives use.
pub(crate) const BUFFER_GROUP: u16 = 0;

/// `SOCKET_URING_OP_GETSOCKOPT`, which the library has no builder for.
const SOCKET_OPERATION_GETSOCKOPT: u32 = 2;

/// Index of the 32-bit word of a submission that holds a socket command's operation (`cmd_op`).
const COMMAND_OPERATION_WORD: usize = 2;

/// What a completion belongs to; the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The read of the wake-up eventfd.
    Wake = 1,
    /// An accept; the slot is the listener.
    Accept = 2,
    /// The question for an accepted socket's peer.
    Peer = 3,
    /// Any stage of an outgoing connection; one is in the kernel at a time.
    Connect = 4,
    /// A receive, multishot or single.
    Receive = 5,
    /// A send.
    Send = 6,
    /// A shutdown of the sending side.
    Shutdown = 7,
    /// The close of a descriptor, or a stand-in where there is none.
    Close = 8,
    /// The cancellation of a receive.
    CancelReceive = 9,
    /// The cancellation of a send.
    CancelSend = 10,
    /// The cancellation of a connect.
    CancelConnect = 11,
    /// The cancellation of accepts.
    CancelAccept = 12,
    /// A socket option whose success is silent and whose failure does no harm.
    Option = 13,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Wake,
        Self::Accept,
        Self::Peer,
        Self::Connect,
        Self::Receive,
        Self::Send,
        Self::Shutdown,
        Self::Close,
        Self::CancelReceive,
        Self::CancelSend,
        Self::CancelConnect,
        Self::CancelAccept,
        Self::Option,
    ];
}

/// User data: kind (8 bits), slot (24 bits), generation (32 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) kind: Kind,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Tag {
    pub(crate) fn new(kind: Kind, slot: u32, generation: u32) -> Self {
        debug_assert!(slot < 1 << 24, "a slot has 24 bits");
        Self { kind, slot, generation }
    }

    pub(crate) fn pack(self) -> u64 {
        (self.kind as u64) << 56 | u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    pub(crate) fn unpack(data: u64) -> Option<Self> {
        let kind = *Kind::ALL.get(((data >> 56) as usize).checked_sub(1)?)?;
        Some(Self { kind, slot: (data >> 32) as u32 & 0x00ff_ffff, generation: data as u32 })
    }
}

/// One submission, ready for [`Ring::push`](crate::ring::Ring::push).
#[derive(Clone, Debug)]
pub(crate) struct Operation(pub(crate) squeue::Entry);

impl Operation {
    fn tagged(entry: squeue::Entry, tag: Tag) -> Self {
        Self(entry.user_data(tag.pack()))
    }

    /// Accepts one client into a table entry of the kernel's choice.
    pub(crate) fn accept(tag: Tag, listener: RawFd) -> Self {
        let entry = opcode::Accept::new(Fd(listener), std::ptr::null_mut(), std::ptr::null_mut())
            .file_index(Some(DestinationSlot::auto_target()))
            .build();
        Self::tagged(entry, tag)
    }

    /// Makes a TCP socket in a table entry of the kernel's choice.
    pub(crate) fn socket(tag: Tag, domain: i32) -> Self {
        let entry = opcode::Socket::new(domain, libc::SOCK_STREAM, 0)
            .file_index(Some(DestinationSlot::auto_target()))
            .build();
        Self::tagged(entry, tag)
    }

    /// Receives until it is cancelled, fails, or finds no buffer.
    pub(crate) fn receive_many(tag: Tag, descriptor: u32) -> Self {
        Self::tagged(opcode::RecvMulti::new(Fixed(descriptor), BUFFER_GROUP).build(), tag)
    }

    /// Receives one buffer full at most.
    pub(crate) fn receive_one(tag: Tag, descriptor: u32) -> Self {
        let entry = opcode::Recv::new(Fixed(descriptor), std::ptr::null_mut(), 0)
            .buf_group(BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        Self::tagged(entry, tag)
    }

    /// Ends the sending side: FIN after what was sent.
    pub(crate) fn shutdown_write(tag: Tag, descriptor: u32) -> Self {
        Self::tagged(opcode::Shutdown::new(Fixed(descriptor), libc::SHUT_WR).build(), tag)
    }

    /// Cancels the one operation with the user data of `target`. A success completes silently, a
    /// failure (not found, or at work) does not.
    ///
    /// By user data it is a hash look-up; by descriptor the kernel scans everything pending.
    pub(crate) fn cancel(tag: Tag, target: Tag) -> Self {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(target.pack()))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        Self::tagged(entry, tag)
    }

    /// Cancels every operation with the user data of `target`, silently in any case.
    pub(crate) fn cancel_all(tag: Tag, target: Tag) -> Self {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(target.pack()).all())
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        Self::tagged(entry, tag)
    }

    /// Closes a table entry.
    pub(crate) fn close(tag: Tag, descriptor: u32) -> Self {
        Self::tagged(opcode::Close::new(Fixed(descriptor)).build(), tag)
    }

    /// Does nothing but complete.
    pub(crate) fn nothing(tag: Tag) -> Self {
        Self::tagged(opcode::Nop::new().build(), tag)
    }

    /// Sends `length` bytes from `start`, all of them unless the connection fails.
    ///
    /// # Safety
    /// The bytes stay where they are, unchanged, until the completion.
    pub(crate) unsafe fn send(tag: Tag, descriptor: u32, start: *const u8, length: u32) -> Self {
        let entry = opcode::Send::new(Fixed(descriptor), start, length)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        Self::tagged(entry, tag)
    }

    /// Connects to `address`.
    ///
    /// # Safety
    /// The address stays where it is, unchanged, until the completion.
    pub(crate) unsafe fn connect(tag: Tag, descriptor: u32, address: *const RawAddress) -> Self {
        // SAFETY: the caller's promise covers this read.
        let address = unsafe { &*address };
        let entry =
            opcode::Connect::new(Fixed(descriptor), address.as_ptr(), address.length()).build();
        Self::tagged(entry, tag)
    }

    /// Binds the socket to `address`.
    ///
    /// # Safety
    /// The address stays where it is, unchanged, until the completion.
    pub(crate) unsafe fn bind(tag: Tag, descriptor: u32, address: *const RawAddress) -> Self {
        // SAFETY: the caller's promise covers this read.
        let address = unsafe { &*address };
        let entry =
            opcode::Bind::new(Fixed(descriptor), address.as_ptr(), address.length()).build();
        Self::tagged(entry, tag)
    }

    /// Turns a socket option on; a success completes silently.
    pub(crate) fn option_on(tag: Tag, descriptor: u32, level: i32, name: i32) -> Self {
        static ON: i32 = 1;
        let entry = opcode::SetSockOpt::new(
            Fixed(descriptor),
            level as u32,
            name as u32,
            std::ptr::from_ref(&ON).cast(),
            size_of_val(&ON) as u32,
        )
        .build()
        .flags(squeue::Flags::SKIP_SUCCESS);
        Self::tagged(entry, tag)
    }

    /// Asks for the peer's address (SO_PEERNAME), to be written to `room`. The completion's result
    /// is the length, or an error.
    ///
    /// The library can express setting an option but not reading one. The two commands differ in
    /// one word of the submission, which is changed here.
    ///
    /// # Safety
    /// The room stays where it is, and nobody else uses it, until the completion.
    pub(crate) unsafe fn peer_name(tag: Tag, descriptor: u32, room: *mut RawAddress) -> Self {
        // SAFETY: the caller's promise covers this use.
        let room = unsafe { &mut *room };
        let mut entry = opcode::SetSockOpt::new(
            Fixed(descriptor),
            libc::SOL_SOCKET as u32,
            libc::SO_PEERNAME as u32,
            room.as_mut_ptr().cast_const().cast(),
            room.length(),
        )
        .build();
        let command = std::ptr::from_mut(&mut entry).cast::<u32>();
        let command = command.wrapping_add(COMMAND_OPERATION_WORD);
        // SAFETY: a submission is 64 bytes of plain integers (checked below), aligned to 8, and
        // this word of it is `cmd_op`, so that any value is a valid one.
        unsafe { command.write(SOCKET_OPERATION_GETSOCKOPT) };
        Self::tagged(entry, tag)
    }

    /// Reads the 8 bytes of an eventfd.
    ///
    /// # Safety
    /// The place stays where it is, and nobody else uses it, until the completion.
    pub(crate) unsafe fn read_counter(tag: Tag, eventfd: RawFd, place: *mut u64) -> Self {
        Self::tagged(opcode::Read::new(Fd(eventfd), place.cast(), 8).build(), tag)
    }
}

const _: () = assert!(size_of::<squeue::Entry>() == 64 && align_of::<squeue::Entry>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_keeps_kind_slot_and_generation_apart() {
        for kind in Kind::ALL {
            for (slot, generation) in [(0, 1), (0x00ff_ffff, u32::MAX), (7, 9)] {
                let tag = Tag::new(kind, slot, generation);
                assert_eq!(Tag::unpack(tag.pack()), Some(tag));
            }
        }
        assert_eq!(Tag::unpack(0), None);
        assert_eq!(Tag::unpack(u64::MAX), None);
    }
}
