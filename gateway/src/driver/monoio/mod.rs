//! The monoio runtime: over epoll, which works wherever Linux does, and over monoio's own use of
//! io_uring. Both are a process-wide descriptor a socket, so RLIMIT_NOFILE bounds them together.

mod bell;
mod epoll;
mod ring;

use std::{io, net::SocketAddr};

use ::monoio::net::{ListenerOpts, TcpListener};

use super::runtime::RuntimeDriver;

/// monoio over epoll.
pub type EpollDriver = RuntimeDriver<epoll::Epoll>;

/// monoio over io_uring.
pub type RingDriver = RuntimeDriver<ring::Ring>;

fn listen(address: SocketAddr, backlog: u32) -> io::Result<(TcpListener, SocketAddr)> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let options = ListenerOpts::new().reuse_port(true).reuse_addr(true).backlog(backlog);
    let listener = TcpListener::bind_with_config(address, &options)?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}
