//! With far fewer receive buffers than busy senders every byte arrives, and every sender gets on.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::recorder::Recorder;
use common::{Server, seed};
use millrace_uring::{Driver, Options, Placement};

with_one_ring_and_three!(
    four_buffers_serve_two_hundred_busy_senders,
    a_flooding_minority_does_not_starve_the_others,
    the_driver_does_not_sleep_while_somebody_waits_in_line,
);

const SENDERS: usize = 200;
const ROUNDS: usize = 8;

fn four_buffers_serve_two_hundred_busy_senders(options: Options) {
    let seed = seed();
    let options = Options {
        sockets_max: 1024 / u32::from(options.rings),
        receive_buffers: 4,
        satellite_receive_buffers: 4,
        receive_buffer_bytes: 256,
        ..options
    };
    let server = Server::start(options, "127.0.0.1:0", 512);
    let start = Barrier::new(SENDERS);
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (server, start) = (&server, &start);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ sender as u64);
                let mut stream = TcpStream::connect(server.address).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                start.wait();
                for _ in 0..ROUNDS {
                    let payload: Vec<u8> =
                        (0..random.usize(1..8_000)).map(|_| random.u8(..)).collect();
                    stream.write_all(&payload).unwrap();
                    let mut back = vec![0; payload.len()];
                    stream.read_exact(&mut back).unwrap();
                    assert!(back == payload, "sender {sender}: bytes lost or out of order");
                }
            });
        }
    });
    let (statistics, _) = server.stop();
    assert!(statistics.receive_starved > 0, "the test must starve: {statistics:?}");
    assert_eq!(statistics.received_bytes, statistics.sent_bytes);
}

fn a_flooding_minority_does_not_starve_the_others(options: Options) {
    // Few buffers and floods that never stop: sockets whose place in the line is always behind a
    // flood must still be served.
    let options = Options {
        receive_buffers: 4,
        satellite_receive_buffers: 4,
        receive_buffer_bytes: 64,
        ..options
    };
    let server = Server::start(options, "127.0.0.1:0", 64);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (server, done) = (&server, &done);
            scope.spawn(move || {
                let mut stream = TcpStream::connect(server.address).unwrap();
                let mut reader = stream.try_clone().unwrap();
                reader.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                scope.spawn(move || {
                    let mut sink = vec![0; 65_536];
                    while !done.load(std::sync::atomic::Ordering::Acquire) {
                        let _ = reader.read(&mut sink);
                    }
                });
                stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                while !done.load(std::sync::atomic::Ordering::Acquire) {
                    let _ = stream.write(&[7; 4096]);
                }
            });
        }
        let mut quiet: Vec<_> =
            (0..20).map(|_| TcpStream::connect(server.address).unwrap()).collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..20u8 {
                for stream in &mut quiet {
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    stream.write_all(&[round; 100]).unwrap();
                }
                for stream in &mut quiet {
                    let mut back = [0; 100];
                    stream.read_exact(&mut back).unwrap();
                    assert_eq!(back, [round; 100]);
                }
            }
        }));
        done.store(true, std::sync::atomic::Ordering::Release);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    let (statistics, _) = server.stop();
    assert!(statistics.receive_starved > 0, "the test must starve: {statistics:?}");
}

fn the_driver_does_not_sleep_while_somebody_waits_in_line(options: Options) {
    // One buffer. The first client has more than it holds, so that all four find none and stand in
    // line; the next two have nothing to receive and would hold up the fourth, were the driver to
    // wait for them.
    let options = Options {
        receive_buffers: 1,
        satellite_receive_buffers: 1,
        receive_buffer_bytes: 512,
        placement: Placement::Fill,
        ..options
    };
    let mut driver = Driver::new(options).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let mut clients: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    clients[0].write_all(&[1; 2000]).unwrap();
    clients[3].write_all(&[4; 100]).unwrap();
    let start = Instant::now();
    while driver.statistics().received_bytes < 2100 {
        driver.poll(Some(Duration::from_secs(20)), &mut recorder).unwrap();
        assert!(start.elapsed() < Duration::from_secs(15), "slept: {:?}", driver.statistics());
    }
    assert!(driver.statistics().receive_starved >= 4, "{:?}", driver.statistics());
}
