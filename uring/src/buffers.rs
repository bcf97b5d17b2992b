//! The provided buffer ring: the memory all sockets receive into.
//!
//! The kernel takes a buffer when bytes arrive, the completion names it, the handler sees it, and
//! it goes back. So an idle socket owns no buffer.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::operation::BUFFER_GROUP;
use crate::ring::Ring;
use crate::sys::Mapping;

/// Receive buffers, all of one size, owned by the kernel except between completion and return.
pub(crate) struct ReceiveBuffers {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    bytes_each: u32,
    tail: u16,
}

impl ReceiveBuffers {
    /// Registers `count` buffers (a power of two) with the ring and gives it all of them.
    ///
    /// # Safety
    /// The value outlives the ring's use of the buffers: it is dropped (or leaked) only when no
    /// receive is in the kernel any more.
    pub(crate) unsafe fn new(ring: &Ring, count: u16, bytes_each: u32) -> io::Result<Self> {
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * bytes_each as usize)?;
        let address = entries.as_mut_ptr() as u64;
        // SAFETY: the mapping is page-aligned, has `count` entries, and stays, by the caller's
        // promise, until the ring uses it no more.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count, BUFFER_GROUP, 0) }?;
        let mut buffers = Self { entries, memory, count, bytes_each, tail: 0 };
        for index in 0..count {
            buffers.give_back(index);
        }
        Ok(buffers)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    fn start(&self, index: u16) -> *mut u8 {
        assert!(index < self.count, "the kernel names only buffers we gave it");
        self.memory.as_mut_ptr().wrapping_add(usize::from(index) * self.bytes_each as usize)
    }

    /// The first `length` bytes of a buffer that a completion has named.
    ///
    /// # Safety
    /// A completion has named the buffer and it was not given back since.
    pub(crate) unsafe fn bytes(&mut self, index: u16, length: usize) -> &mut [u8] {
        assert!(length <= self.bytes_each as usize, "the kernel writes no more than fits");
        let start = self.start(index);
        // SAFETY: start and length lie within the mapping, which is initialised; the kernel does
        // not touch this buffer until it is given back, by the caller's promise; `&mut self`
        // excludes a second slice.
        unsafe { std::slice::from_raw_parts_mut(start, length) }
    }

    /// Gives a buffer to the kernel.
    pub(crate) fn give_back(&mut self, index: u16) {
        let address = self.start(index) as u64;
        let first = self.entries.as_mut_ptr().cast::<BufRingEntry>();
        let place = first.wrapping_add(usize::from(self.tail & (self.count - 1)));
        // SAFETY: the place lies within the mapping; the kernel reads only entries before the tail,
        // and no more than `count` buffers exist, so this entry is not in its hands.
        let entry = unsafe { &mut *place };
        entry.set_addr(address);
        entry.set_len(self.bytes_each);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `first` is the start of the registered ring.
        let tail = unsafe { BufRingEntry::tail(first) };
        // SAFETY: the tail is an aligned u16 in our mapping, which the kernel only reads; both
        // sides use it as an atomic from now on.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
