//! The raw system calls the driver needs and no safe library offers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::address::RawAddress;

/// `IORING_ENTER_GETEVENTS`: run deferred work and look for completions.
const ENTER_GETEVENTS: u32 = 1;
/// `IORING_ENTER_EXT_ARG`: the argument is a [`GetEventsArgument`].
const ENTER_EXT_ARG: u32 = 1 << 3;
/// `IORING_ENTER_REGISTERED_RING`: the descriptor is an index of the thread's registered rings.
const ENTER_REGISTERED_RING: u32 = 1 << 4;
/// `IORING_REGISTER_RING_FDS`.
const REGISTER_RING_FDS: u32 = 20;
/// `IORING_UNREGISTER_RING_FDS`.
const UNREGISTER_RING_FDS: u32 = 21;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct GetEventsArgument {
    signal_mask: u64,
    signal_mask_bytes: u32,
    wait_minimum_us: u32,
    timespec: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct ResourceUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

fn result(value: libc::c_long) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| io::Error::last_os_error())
}

/// How a ring is named in `io_uring_enter`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RingName {
    /// By its descriptor.
    Descriptor(RawFd),
    /// By its index among this thread's registered rings, which saves the look-up.
    Registered(u32),
}

/// Submits `submit` entries and waits for `wait` completions, at most for `timeout` (`None`: for
/// ever). Deferred work runs in any case. Returns how many entries were consumed.
///
/// Asking for it with a wait of 0 is why the library's own enter is not used: it leaves out
/// GETEVENTS then, and without that a DEFER_TASKRUN ring does nothing.
pub(crate) fn enter(
    ring: RingName,
    submit: u32,
    wait: u32,
    timeout: Option<Duration>,
) -> io::Result<u32> {
    let (descriptor, flag) = match ring {
        RingName::Descriptor(descriptor) => (descriptor, 0),
        RingName::Registered(index) => {
            (i32::try_from(index).expect("at most 16 rings a thread"), ENTER_REGISTERED_RING)
        }
    };
    let timespec = timeout.map(|duration| KernelTimespec {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: i64::from(duration.subsec_nanos()),
    });
    let argument = GetEventsArgument {
        signal_mask: 0,
        signal_mask_bytes: 0,
        wait_minimum_us: 0,
        timespec: timespec.as_ref().map_or(0, |spec| std::ptr::from_ref(spec) as u64),
    };
    // SAFETY: the argument and its timespec live until the call returns, and the kernel keeps no
    // pointer to them. What the submitted entries point at is guaranteed by `Operation`.
    let value = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            descriptor,
            submit,
            wait,
            ENTER_GETEVENTS | ENTER_EXT_ARG | flag,
            std::ptr::from_ref(&argument),
            size_of::<GetEventsArgument>(),
        )
    };
    result(value)
}

/// Registers the ring with this thread, so that an enter needs no descriptor look-up. Returns the
/// index. To be undone by [`unregister_ring`], or the thread would keep the ring alive.
pub(crate) fn register_ring(ring: RawFd) -> io::Result<u32> {
    let mut update = ResourceUpdate { offset: u32::MAX, reserved: 0, data: ring as u64 };
    // SAFETY: the kernel reads and writes one ResourceUpdate during the call only.
    let value = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            REGISTER_RING_FDS,
            std::ptr::from_mut(&mut update),
            1,
        )
    };
    result(value)?;
    Ok(update.offset)
}

/// Undoes [`register_ring`].
pub(crate) fn unregister_ring(ring: RawFd, index: u32) -> io::Result<()> {
    let update = ResourceUpdate { offset: index, reserved: 0, data: 0 };
    // SAFETY: the kernel reads one ResourceUpdate during the call only.
    let value = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            UNREGISTER_RING_FDS,
            std::ptr::from_ref(&update),
            1,
        )
    };
    result(value).map(drop)
}

/// A new eventfd with counter 0.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    owned(descriptor)
}

/// Adds 1 to an eventfd. It cannot block or fail in practice: the counter would have to reach
/// 2^64 - 2 first.
pub(crate) fn eventfd_add(eventfd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the descriptor is open and `one` has the 8 bytes that are read.
    unsafe { libc::write(eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

fn owned(descriptor: RawFd) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just returned to us by the kernel and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn check(value: i32) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_option_on(socket: &OwnedFd, level: i32, name: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open and the kernel reads the integer during the call only.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    })
}

/// A listening socket with SO_REUSEPORT (each shard has its own) and TCP_NODELAY, which accepted
/// sockets inherit. Returns it with the address it is bound to.
pub(crate) fn listen(address: &SocketAddr, backlog: u32) -> io::Result<(OwnedFd, SocketAddr)> {
    let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is passed.
    let socket = owned(unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    set_option_on(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    set_option_on(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
    set_option_on(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
    let raw = RawAddress::encode(address);
    // SAFETY: the descriptor is open; pointer and length describe `raw`, read during the call only.
    check(unsafe { libc::bind(socket.as_raw_fd(), raw.as_ptr(), raw.length()) })?;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: no memory is passed; the descriptor is open.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    let mut bound = RawAddress::room_for(address);
    let mut length = bound.length();
    // SAFETY: the descriptor is open; the kernel writes at most `length` bytes into `bound` and the
    // true length into `length`, during the call only.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), bound.as_mut_ptr(), &mut length) })?;
    let bound = bound.decode().ok_or_else(|| io::Error::other("getsockname: no IP address"))?;
    Ok((socket, bound))
}

fn limits() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit during the call only.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    Ok(limit)
}

/// The soft RLIMIT_NOFILE of this process: the most direct descriptors one ring may have, and,
/// apart from those, the most ordinary descriptors of the process.
///
/// # Errors
/// What getrlimit(2) says.
pub fn descriptor_limit() -> io::Result<u64> {
    Ok(limits()?.rlim_cur)
}

/// Raises the soft RLIMIT_NOFILE of this process to its hard limit and returns that. For programs'
/// `main`; the driver itself never changes limits.
///
/// # Errors
/// What getrlimit(2) and setrlimit(2) say.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = limits()?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the kernel reads one rlimit during the call only.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    }
    Ok(limit.rlim_cur)
}

/// Anonymous, zeroed, page-aligned memory, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Mapping {
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        assert!(length > 0, "a mapping has a length");
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice touches no
        // memory that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), length })
    }

    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of our own mapping, and nothing borrows from it any
        // more: its owner lets the kernel finish first (see `Driver::drop`).
        let value = unsafe { libc::munmap(self.start.cast(), self.length) };
        debug_assert_eq!(value, 0, "unmapping our own mapping cannot fail");
    }
}
