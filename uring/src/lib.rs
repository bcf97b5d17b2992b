//! The io_uring driver: TCP sockets as direct descriptors of rings, completions as callbacks.
//!
//! What it does: listens, accepts, connects, receives, sends and closes, on one thread, for as many
//! sockets as the descriptor tables of its rings hold: one ring where RLIMIT_NOFILE is high, several
//! where it is not. What it does not do: it knows no
//! protocol, keeps no time, queues no second send, and starts no thread.
//!
//! A tour, storey by storey, the unsafe ones first:
//!
//! - `sys`: the few raw system calls (enter, eventfd, listening sockets, limits, mappings).
//! - `address`: socket addresses as the kernel's bytes.
//! - `operation`: one submission; those that lend memory to the kernel are `unsafe` to build.
//! - `ring`: the submission queue with its overflow, the one enter, the reaping of completions.
//! - `rings`: all rings of a thread; which of them are entered, and when it may sleep.
//! - `buffers`: the provided buffer ring from which the sockets of a ring receive.
//! - `socket`: the table of sockets; 32 bytes each, generation-checked.
//! - `accept`, `connect`, `receive`, `send`, `close`: one concern of the [`Driver`] each.
//! - `wake`: the bell that other threads ring.
//! - `driver`: construction and the loop's single step, [`Driver::poll`].
//!
//! Laws of this crate:
//!
//! 1. A socket has at most one receive, one send and one shutdown in the kernel at a time.
//! 2. A descriptor is closed only after the last completion of each of them has arrived, and a table
//!    slot is used again only after the close has completed. So a completion never meets a
//!    later socket; generations check that it is so, and count if not.
//! 3. Memory the kernel may write or read belongs to the driver until the completion.
//! 4. Nothing is dropped when a queue is full: submissions overflow into a list, receives that
//!    found no buffer wait in line, accepts stop before the table is full.

mod accept;
mod address;
mod buffers;
mod close;
mod connect;
mod driver;
mod handler;
mod operation;
mod options;
mod receive;
mod ring;
mod rings;
mod send;
mod slab;
mod socket;
mod statistics;
mod sys;
mod wake;

pub use accept::ListenerId;
pub use driver::Driver;
pub use handler::{Handler, Nobody};
pub use options::{Options, Placement};
pub use socket::SocketId;
pub use statistics::Statistics;
pub use sys::{descriptor_limit, raise_descriptor_limit};
pub use wake::{Bell, Waker};
