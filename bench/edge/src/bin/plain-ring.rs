//! `plain-ring ADDRESS`: the least a WebSocket echo server on the ring can be. It knows one request
//! head, short whole binary messages, and nothing else: no sessions, no timers, no limits.
//!
//! The distance between it and the gateway is what the engine costs. Not a server for anybody.

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
    broken: Vec<SocketId>,
    pool: Vec<Vec<u8>>,
}

impl Echo {
    fn answer(&mut self, open: bool, bytes: &mut [u8]) -> Option<Vec<u8>> {
        let mut out = self.pool.pop().unwrap_or_default();
        if !open {
            let UpgradeProgress::Complete { upgrade, .. } = read_upgrade(bytes).ok()? else {
                return None;
            };
            write_upgrade_response(&mut out, &upgrade, None);
            return Some(out);
        }
        let (head, payload) = bytes.split_at_mut_checked(HEAD_BYTES)?;
        let length = usize::from(head[1] & 0x7f);
        if head[0] != 0x82 || length > 125 || length != payload.len() {
            return None;
        }
        unmask(payload, [head[2], head[3], head[4], head[5]], 0);
        write_header(&mut out, Opcode::Binary, length);
        out.extend_from_slice(payload);
        Some(out)
    }
}

impl Handler for Echo {
    fn accepted(&mut self, _: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        0
    }

    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}

    fn received(&mut self, socket: SocketId, open: u64, bytes: &mut [u8]) {
        match self.answer(open != 0, bytes) {
            Some(answer) => self.answers.push((socket, answer)),
            None => self.broken.push(socket),
        }
    }

    fn receive_ended(&mut self, socket: SocketId, _: u64, _: io::Result<()>) {
        self.broken.push(socket);
    }

    fn sent(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}

    fn closed(&mut self, _: SocketId, _: u64) {}

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
        for (socket, answer) in echo.answers.drain(..) {
            if driver.is_sending(socket) {
                // Two messages at once: nobody who measures does that.
                echo.broken.push(socket);
                continue;
            }
            driver.set_context(socket, 1);
            driver.send(socket, answer);
        }
        for socket in echo.broken.drain(..) {
            driver.close(socket);
        }
        while echo.pool.len() < 64 {
            echo.pool.push(driver.take_buffer());
        }
    }
}
