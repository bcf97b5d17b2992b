//! Raw TCP echo server on one driver: `echo ADDR`.
//!
//! Shows the loop every owner of a driver has: poll, note in the callbacks, act afterwards. Also the
//! server for quick measurements of the driver alone. One thread; end it with a signal.

#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use millrace_uring::{Driver, Handler, ListenerId, Options, SocketId};

/// Bytes kept for a client that does not read; above, nothing more is received from it.
const PENDING_BYTES_MAX: usize = 1 << 20;

#[derive(Default)]
struct Client {
    pending: Vec<u8>,
    ended: bool,
    paused: bool,
}

#[derive(Default)]
struct Echo {
    clients: HashMap<SocketId, Client>,
    /// Clients something happened to during this poll.
    changed: Vec<SocketId>,
}

impl Handler for Echo {
    fn accepted(&mut self, socket: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        self.clients.insert(socket, Client::default());
        0
    }
    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn received(&mut self, socket: SocketId, _: u64, bytes: &mut [u8]) {
        if let Some(client) = self.clients.get_mut(&socket) {
            if client.pending.is_empty() {
                self.changed.push(socket);
            }
            client.pending.extend_from_slice(bytes);
        }
    }
    fn receive_ended(&mut self, socket: SocketId, _: u64, _: io::Result<()>) {
        if let Some(client) = self.clients.get_mut(&socket) {
            client.ended = true;
            self.changed.push(socket);
        }
    }
    fn sent(&mut self, socket: SocketId, _: u64, result: io::Result<()>) {
        if let Some(client) = self.clients.get_mut(&socket) {
            if result.is_err() {
                client.pending.clear();
                client.ended = true;
            }
            self.changed.push(socket);
        }
    }
    fn closed(&mut self, socket: SocketId, _: u64) {
        self.clients.remove(&socket);
    }
    fn woken(&mut self) {}
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".into());
    let address: SocketAddr =
        address.parse().map_err(|error| io::Error::other(format!("{address}: {error}")))?;
    let limit = millrace_uring::raise_descriptor_limit()?;
    let sockets_max = u32::try_from(limit.min(1 << 20)).expect("at most 2^20");
    let mut driver = Driver::new(Options { sockets_max, ..Options::default() })?;
    let (_, bound) = driver.listen(address, 4096)?;
    println!("echo on {bound}");
    let mut echo = Echo::default();
    let mut report_at = Instant::now() + Duration::from_secs(5);
    loop {
        driver.poll(Some(Duration::from_secs(5)), &mut echo)?;
        for socket in std::mem::take(&mut echo.changed) {
            let Some(client) = echo.clients.get_mut(&socket) else { continue };
            let sending = driver.is_sending(socket);
            if !sending && !client.pending.is_empty() {
                let mut buffer = driver.take_buffer();
                std::mem::swap(&mut buffer, &mut client.pending);
                driver.send(socket, buffer);
            } else if !sending && client.ended {
                driver.close(socket);
            }
            let too_much = client.pending.len() > PENDING_BYTES_MAX;
            if too_much && !client.paused {
                driver.pause_receive(socket);
            } else if !too_much && client.paused {
                driver.resume_receive(socket);
            }
            client.paused = too_much;
        }
        if Instant::now() >= report_at {
            report_at += Duration::from_secs(5);
            println!("{} sockets, {:?}", driver.sockets(), driver.statistics());
        }
    }
}
