//! How much CPU time of the driver's thread one accepted client costs, and how many come a second.
//! `cargo run --release -p millrace-uring --example accept_rate [seconds]`
//!
//! Four threads connect and close as fast as they can; the driver accepts and closes. CPU time is
//! that of the driver's thread alone, from the kernel's own account.

#![allow(clippy::print_stdout)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_uring::{Driver, Handler, ListenerId, Options, SocketId};

#[derive(Default)]
struct Closer {
    accepted: u64,
    closing: Vec<SocketId>,
}

impl Handler for Closer {
    fn accepted(&mut self, socket: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        self.accepted += 1;
        self.closing.push(socket);
        0
    }
    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn received(&mut self, _: SocketId, _: u64, _: &mut [u8]) {}
    fn receive_ended(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn sent(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn closed(&mut self, _: SocketId, _: u64) {}
    fn woken(&mut self) {}
}

fn cpu_nanoseconds() -> io::Result<u64> {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = line.split_whitespace().next().unwrap_or("0");
    first.parse().map_err(io::Error::other)
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let seconds = arguments.next().transpose().map_err(io::Error::other)?.unwrap_or(5);
    let mut driver = Driver::new(Options { sockets_max: 5000, ..Options::default() })?;
    let (_, address) = driver.listen(SocketAddr::from(([0, 0, 0, 0], 0)), 4096)?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let over = &over;
            scope.spawn(move || {
                // A new address each time, so that ports in TIME_WAIT are in nobody's way.
                for number in 0u32.. {
                    let [_, _, third, fourth] = number.to_be_bytes();
                    let host = IpAddr::V4(Ipv4Addr::new(127, 1 + thread, third, fourth));
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    drop(TcpStream::connect((host, address.port())));
                }
            });
        }
        let mut closer = Closer::default();
        let (start, cpu) = (Instant::now(), cpu_nanoseconds()?);
        let end = start + Duration::from_secs(u64::from(seconds));
        let mut polls = 0u64;
        while Instant::now() < end {
            driver.poll(Some(Duration::from_millis(10)), &mut closer)?;
            polls += 1;
            for socket in closer.closing.drain(..) {
                driver.close(socket);
            }
        }
        let cpu = cpu_nanoseconds()? - cpu;
        over.store(true, Ordering::Relaxed);
        let accepted = closer.accepted.max(1);
        println!(
            "{:.0} clients/s, {:.2} us of CPU each, {:.1} a poll; {:?}",
            accepted as f64 / start.elapsed().as_secs_f64(),
            cpu as f64 / 1000.0 / accepted as f64,
            accepted as f64 / polls as f64,
            driver.statistics(),
        );
        io::Result::Ok(())
    })
}
