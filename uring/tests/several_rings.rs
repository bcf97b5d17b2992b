//! Several rings behave as one: no wake-up of a satellite is lost, a busy ring keeps nobody from
//! the others, the first ring is filled first, and rings not in use cost no system call.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::recorder::Recorder;
use common::{Server, seed, small};
use millrace_uring::{Driver, Options, Placement};

/// Many rings, each with few sockets.
fn many_rings(rings: u8, sockets_max: u32) -> Options {
    Options {
        rings,
        sockets_max,
        placement: Placement::Spread,
        satellite_submission_entries: 8,
        satellite_completion_entries: 32,
        satellite_receive_buffers: 2,
        accept_spare: 0,
        ..small()
    }
}

/// Each thread sends on a socket of its own at a time and waits for the echo, so that whenever all
/// wait, only the satellite that got the last bytes can wake the driver, which sleeps for ever.
fn ask_and_wait(threads: u64, rounds: usize) {
    let seed = seed();
    let server = Server::start(many_rings(24, 4), "127.0.0.1:0", 128);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let server = &server;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ thread);
                let mut streams: Vec<TcpStream> = (0..90 / threads)
                    .map(|_| {
                        let stream = TcpStream::connect(server.address).unwrap();
                        stream.set_nodelay(true).unwrap();
                        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                        stream
                    })
                    .collect();
                for round in 0..rounds {
                    let stream = random.usize(..streams.len());
                    let pieces = random.usize(1..4);
                    for _ in 0..pieces {
                        streams[stream].write_all(&[round as u8; 10]).unwrap();
                        // The driver is to be met at every point between two sleeps.
                        for _ in 0..random.usize(0..300) {
                            std::hint::spin_loop();
                        }
                    }
                    let mut back = vec![0; pieces * 10];
                    streams[stream].read_exact(&mut back).expect("a wake-up was lost");
                    assert!(back.iter().all(|byte| *byte == round as u8));
                    if random.u32(0..64) == 0 {
                        // A new one, on whatever ring has room.
                        streams.swap_remove(stream);
                        streams.push(TcpStream::connect(server.address).unwrap());
                        let last = streams.last().unwrap();
                        last.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    }
                }
            });
        }
    });
    let (statistics, _) = server.stop();
    assert_eq!(statistics.received_bytes, statistics.sent_bytes);
}

#[test]
fn no_wake_up_is_lost_when_one_socket_at_a_time_speaks() {
    ask_and_wait(1, 20_000);
}

#[test]
fn no_wake_up_is_lost_when_three_race() {
    ask_and_wait(3, 8_000);
}

#[test]
fn connections_of_every_ring_work_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut driver = Driver::new(many_rings(9, 3)).unwrap();
    let mut recorder = Recorder::default();
    let address = listener.local_addr().unwrap();
    let ids: Vec<_> = (0..27).map(|_| driver.connect(address, None, 0).unwrap()).collect();
    assert!(driver.connect(address, None, 0).is_err(), "all tables are full");
    let mut peers: Vec<_> = Vec::new();
    while driver.statistics().connected < 27 {
        driver.poll(Some(Duration::from_millis(50)), &mut recorder).unwrap();
        listener.set_nonblocking(true).unwrap();
        peers.extend(listener.accept().map(|(peer, _)| peer));
    }
    while peers.len() < 27 {
        peers.extend(listener.accept().map(|(peer, _)| peer));
    }
    for (index, id) in ids.iter().enumerate() {
        driver.send(*id, vec![index as u8; 100]);
    }
    let mut echoed = 0;
    while echoed < 27 * 100 {
        driver.poll(Some(Duration::from_millis(5)), &mut recorder).unwrap();
        for peer in &mut peers {
            peer.set_nonblocking(true).unwrap();
            let mut bytes = [0; 100];
            if let Ok(length) = peer.read(&mut bytes) {
                assert!(bytes[..length].iter().all(|byte| *byte == bytes[0]));
                peer.write_all(&bytes[..length]).unwrap();
            }
        }
        for (index, id) in ids.iter().enumerate() {
            let bytes = recorder.take_received(*id);
            assert!(bytes.iter().all(|byte| usize::from(*byte) == index), "another's bytes");
            echoed += bytes.len();
        }
    }
}

#[test]
fn a_flooded_ring_keeps_nobody_from_the_others() {
    let server = Server::start(many_rings(4, 8), "127.0.0.1:0", 64);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut flood = TcpStream::connect(server.address).unwrap();
        let mut sink = flood.try_clone().unwrap();
        let done = &done;
        scope.spawn(move || {
            flood.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            while !done.load(Ordering::Acquire) {
                let _ = flood.write(&[7; 65_536]);
            }
        });
        scope.spawn(move || {
            sink.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut bytes = vec![0; 65_536];
            while !done.load(Ordering::Acquire) {
                let _ = sink.read(&mut bytes);
            }
        });
        let mut quiet: Vec<_> =
            (0..20).map(|_| TcpStream::connect(server.address).unwrap()).collect();
        let mut ask = |stream: &mut TcpStream| {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(&[1; 100])?;
            stream.read_exact(&mut [0; 100])
        };
        let answered = (0..10).try_for_each(|_| quiet.iter_mut().try_for_each(&mut ask));
        done.store(true, Ordering::Release);
        answered.unwrap();
    });
    server.stop();
}

#[test]
fn few_sockets_stay_on_one_ring_and_cost_one_enter_a_turn() {
    let options = Options { placement: Placement::Fill, ..many_rings(24, 64) };
    let mut driver = Driver::new(options).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let mut clients: Vec<_> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut polls = 0;
    let start = Instant::now();
    while driver.statistics().received_bytes < 1_000 {
        for client in &mut clients {
            let _ = client.write(&[1; 10]);
        }
        driver.poll(Some(Duration::from_millis(50)), &mut recorder).unwrap();
        polls += 1;
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(driver.rings(), 24);
    assert_eq!(driver.statistics().enters, polls, "one enter in every turn, none for the others");
}

#[test]
fn rings_for_half_a_million_sockets_can_be_made() {
    // Tables of 64 here; their size is the kernel's business, the queues and buffers are ours.
    let options = Options { rings: 54, sockets_max: 64, ..Options::default() };
    let driver = Driver::new(options).unwrap();
    assert_eq!(driver.rings(), 54);
}
