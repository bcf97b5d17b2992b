//! `plain-ring ADDRESS`: the least a WebSocket server on the ring can be. It sends binary messages
//! back, and text messages as binary ones to everybody else. It knows one request head, short
//! whole messages, and nothing else: no sessions, no timers, no limits.
//!
//! The distance between it and the gateway is what the engine costs. Not a server for anybody.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use millrace_protocol::websocket::{
    Opcode, UpgradeProgress, read_upgrade, unmask, write_header, write_upgrade_response,
};
use millrace_uring::{Driver, Handler, ListenerId, Options, SocketId};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Bytes of a masked frame before its payload, for payloads below 126 bytes.
const HEAD_BYTES: usize = 6;

#[derive(Default)]
struct Echo {
    /// What goes out after the poll. A client waits for its answer, so one is enough for each.
    answers: Vec<(SocketId, Vec<u8>)>,
    /// What goes to everybody but its sender.
    broadcasts: Vec<(SocketId, Vec<u8>)>,
    open: Vec<SocketId>,
    /// Bytes for sockets whose last send is not known to be done.
    waiting: HashMap<SocketId, Vec<u8>>,
    /// Sockets among them whose send is done.
    ready: Vec<SocketId>,
    broken: Vec<SocketId>,
    pool: Vec<Vec<u8>>,
}

impl Echo {
    /// One message at the front of `bytes`; how long it was, or nothing if it is something else.
    fn message(&mut self, socket: SocketId, bytes: &mut [u8]) -> Option<usize> {
        let (head, rest) = bytes.split_at_mut_checked(HEAD_BYTES)?;
        let length = usize::from(head[1] & 0x7f);
        let payload = rest.get_mut(..length).filter(|_| length <= 125)?;
        unmask(payload, [head[2], head[3], head[4], head[5]], 0);
        let mut out = self.pool.pop().unwrap_or_default();
        write_header(&mut out, Opcode::Binary, length);
        out.extend_from_slice(payload);
        match head[0] {
            0x82 => self.answers.push((socket, out)),
            0x81 => self.broadcasts.push((socket, out)),
            _ => return None,
        }
        Some(HEAD_BYTES + length)
    }

    fn take(&mut self, socket: SocketId, open: bool, bytes: &mut [u8]) -> Option<()> {
        if !open {
            let UpgradeProgress::Complete { upgrade, .. } = read_upgrade(bytes).ok()? else {
                return None;
            };
            let mut out = Vec::new();
            write_upgrade_response(&mut out, &upgrade, None);
            self.answers.push((socket, out));
            self.open.push(socket);
            return Some(());
        }
        let mut at = 0;
        while at < bytes.len() {
            at += self.message(socket, &mut bytes[at..])?;
        }
        Some(())
    }

    /// Does what the callbacks have noted.
    fn act(&mut self, driver: &mut Driver) {
        for (socket, answer) in self.answers.drain(..) {
            if driver.is_sending(socket) {
                // Two messages at once: nobody who measures does that.
                self.broken.push(socket);
                continue;
            }
            driver.set_context(socket, 1);
            driver.send(socket, answer);
        }
        for socket in self.ready.drain(..) {
            if let Some(bytes) = self.waiting.remove(&socket) {
                driver.send(socket, bytes);
            }
        }
        for (sender, bytes) in self.broadcasts.drain(..) {
            for socket in &self.open {
                if *socket == sender {
                    continue;
                }
                if driver.is_sending(*socket) {
                    self.waiting.entry(*socket).or_default().extend_from_slice(&bytes);
                    continue;
                }
                let mut buffer = driver.take_buffer();
                buffer.extend_from_slice(&bytes);
                driver.send(*socket, buffer);
            }
        }
        for socket in self.broken.drain(..) {
            driver.close(socket);
        }
        while self.pool.len() < 64 {
            self.pool.push(driver.take_buffer());
        }
    }
}

impl Handler for Echo {
    fn accepted(&mut self, _: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        0
    }

    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}

    fn received(&mut self, socket: SocketId, open: u64, bytes: &mut [u8]) {
        if self.take(socket, open != 0, bytes).is_none() {
            self.broken.push(socket);
        }
    }

    fn receive_ended(&mut self, socket: SocketId, _: u64, _: io::Result<()>) {
        self.broken.push(socket);
    }

    fn sent(&mut self, socket: SocketId, _: u64, _: io::Result<()>) {
        if !self.waiting.is_empty() && self.waiting.contains_key(&socket) {
            self.ready.push(socket);
        }
    }

    fn closed(&mut self, socket: SocketId, _: u64) {
        self.open.retain(|open| *open != socket);
        self.waiting.remove(&socket);
    }

    fn woken(&mut self) {}
}

fn main() -> Result<()> {
    let address = std::env::args().nth(1).context("usage: plain-ring ADDRESS")?;
    let descriptors = millrace_uring::raise_descriptor_limit()?;
    let sockets_max = u32::try_from(descriptors.min(1 << 20))?;
    let mut driver = Driver::new(Options { sockets_max, ..Options::default() })?;
    driver.listen(address.parse().context("ADDRESS is IP:PORT")?, 4096)?;
    let mut echo = Echo::default();
    loop {
        driver.poll(None, &mut echo)?;
        echo.act(&mut driver);
    }
}
