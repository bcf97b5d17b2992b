//! What the end of the sending side costs: `farewell CONNECTIONS`.
//!
//! Opens connections from this driver to itself, ends the sending side of all accepted ones at once,
//! and waits until every client has seen its end of stream. Prints the CPU time of the process, with
//! what the kernel's threads did for it.

#![allow(clippy::print_stdout)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use millrace_uring::{Driver, Handler, ListenerId, Options, SocketId};

#[derive(Default)]
struct Ends {
    accepted: Vec<SocketId>,
    connected: usize,
    ended: usize,
}

impl Handler for Ends {
    fn accepted(&mut self, socket: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        self.accepted.push(socket);
        0
    }
    fn connected(&mut self, _: SocketId, _: u64, result: io::Result<()>) {
        self.connected += usize::from(result.is_ok());
    }
    fn received(&mut self, _: SocketId, _: u64, _: &mut [u8]) {}
    fn receive_ended(&mut self, _: SocketId, _: u64, _: io::Result<()>) {
        self.ended += 1;
    }
    fn sent(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn closed(&mut self, _: SocketId, _: u64) {}
    fn woken(&mut self) {}
}

/// CPU time of the process in microseconds: user and system, in ticks of 10 ms.
fn cpu_us() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    ticks * 10_000
}

fn main() -> io::Result<()> {
    let count: usize = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(8_000);
    millrace_uring::raise_descriptor_limit()?;
    let mut driver =
        Driver::new(Options { sockets_max: 2 * count as u32 + 2_000, ..Options::default() })?;
    let (_, address) = driver.listen((Ipv4Addr::LOCALHOST, 0).into(), 1024)?;
    let mut ends = Ends::default();
    let mut started = 0;
    while ends.accepted.len() < count || ends.connected < count {
        while started < count && started < ends.accepted.len() + 500 {
            driver.connect(address, None, 0)?;
            started += 1;
        }
        driver.poll(Some(Duration::from_millis(100)), &mut ends)?;
    }
    let (cpu, began) = (cpu_us(), Instant::now());
    for socket in std::mem::take(&mut ends.accepted) {
        driver.shutdown_write(socket);
    }
    while ends.ended < count {
        driver.poll(Some(Duration::from_millis(100)), &mut ends)?;
    }
    println!(
        "{count} ends: {:.2} us CPU, {:.2} us each",
        (cpu_us() - cpu) as f64 / count as f64,
        began.elapsed().as_micros() as f64 / count as f64,
    );
    // The rest is the kernel's.
    std::process::exit(0)
}
