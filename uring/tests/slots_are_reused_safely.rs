//! Storms of connects, bytes and closes over few slots: no callback reaches a wrong socket, nothing
//! follows a close but its end, and no slot is lost.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::seed;
use millrace_uring::{Driver, Handler, ListenerId, Options, SocketId};

with_one_ring_and_three!(
    over_few_slots_with_few_buffers,
    over_queues_so_small_that_they_always_overflow,
);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Open,
    Ended,
    Closing,
}

#[derive(Default)]
struct Storm {
    lives: HashMap<SocketId, (u64, Life)>,
    known: HashSet<SocketId>,
    next: u64,
    changed: Vec<SocketId>,
    closed: u64,
}

impl Storm {
    fn check(&mut self, socket: SocketId, context: u64) -> Life {
        let (known, life) = *self.lives.get(&socket).expect("only living sockets are called");
        assert_eq!(known, context, "the context of another socket");
        assert_ne!(life, Life::Closing, "after close only closed follows");
        self.changed.push(socket);
        life
    }
}

impl Handler for Storm {
    fn accepted(&mut self, socket: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        self.next += 1;
        assert!(self.known.insert(socket), "an id is never used again");
        self.lives.insert(socket, (self.next, Life::Open));
        self.changed.push(socket);
        self.next
    }
    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {
        panic!("nobody connects here");
    }
    fn received(&mut self, socket: SocketId, context: u64, bytes: &mut [u8]) {
        assert_eq!(self.check(socket, context), Life::Open);
        bytes.fill(0);
    }
    fn receive_ended(&mut self, socket: SocketId, context: u64, _: io::Result<()>) {
        assert_eq!(self.check(socket, context), Life::Open, "the end comes once");
        self.lives.insert(socket, (context, Life::Ended));
    }
    fn sent(&mut self, socket: SocketId, context: u64, _: io::Result<()>) {
        self.check(socket, context);
    }
    fn closed(&mut self, socket: SocketId, context: u64) {
        assert_eq!(self.lives.remove(&socket), Some((context, Life::Closing)));
        self.closed += 1;
    }
    fn woken(&mut self) {}
}

/// Ends the clients when the test fails, so that it fails instead of hanging.
struct Calm<'a>(&'a AtomicUsize);

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

fn storm(options: Options, connections: usize) {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut driver = Driver::new(options).unwrap();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 256).unwrap();
    let left = AtomicUsize::new(connections);
    let mut storm = Storm::default();
    let deadline = Instant::now() + Duration::from_secs(120);
    std::thread::scope(|scope| {
        let _calm = Calm(&left);
        for thread in 0..8 {
            let left = &left;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ (thread + 1));
                let take = |value: usize| value.checked_sub(1);
                while left.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok() {
                    let patience = Duration::from_secs(2);
                    let Ok(mut stream) = TcpStream::connect_timeout(&address, patience) else {
                        continue;
                    };
                    stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
                    stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
                    for _ in 0..random.usize(0..6) {
                        let _ = stream.write(&vec![1; random.usize(1..50_000)]);
                        if random.bool() {
                            let _ = stream.read(&mut [0; 4096]);
                        }
                    }
                }
            });
        }
        while left.load(Ordering::Acquire) > 0 || driver.sockets() > 0 {
            assert!(
                Instant::now() < deadline,
                "the storm does not end: {driver:?} {:?}",
                storm.lives
            );
            driver.poll(Some(Duration::from_millis(20)), &mut storm).unwrap();
            let changed = std::mem::take(&mut storm.changed);
            for socket in changed {
                let Some((context, life)) = storm.lives.get(&socket).copied() else {
                    // A stale id must be harmless in every call.
                    driver.send(socket, vec![1; 10]);
                    driver.pause_receive(socket);
                    driver.resume_receive(socket);
                    driver.shutdown_write(socket);
                    driver.close(socket);
                    assert!(!driver.is_sending(socket));
                    continue;
                };
                if life == Life::Closing {
                    continue;
                }
                match random.u32(0..10) {
                    0..3 if !driver.is_sending(socket) => {
                        driver.send(socket, vec![2; random.usize(0..400_000)]);
                    }
                    3 => driver.pause_receive(socket),
                    4 => driver.resume_receive(socket),
                    5 => {
                        driver.pause_receive(socket);
                        driver.resume_receive(socket);
                    }
                    6 => driver.shutdown_write(socket),
                    7 => {
                        storm.lives.insert(socket, (context, Life::Closing));
                        driver.close(socket);
                    }
                    _ => {}
                }
            }
            // Whoever had its end, or was left paused, goes now and then.
            for (socket, (_, life)) in &mut storm.lives {
                if *life != Life::Closing && random.u32(0..20) == 0 {
                    *life = Life::Closing;
                    driver.close(*socket);
                }
            }
        }
    });
    // The last clients may sit in the backlog or have come since.
    for _ in 0..50 {
        driver.poll(Some(Duration::from_millis(2)), &mut storm).unwrap();
        for (socket, (_, life)) in &mut storm.lives {
            *life = Life::Closing;
            driver.close(*socket);
        }
    }
    let statistics = driver.statistics();
    assert_eq!(driver.sockets(), 0, "{:?}", storm.lives);
    assert_eq!(statistics.completions_stale, 0, "{statistics:?}");
    assert_eq!(statistics.accepted, storm.closed);
    assert!(storm.closed >= connections as u64 / 2, "{statistics:?}");
    eprintln!("{statistics:?}");
}

fn over_few_slots_with_few_buffers(options: Options) {
    let few = Options {
        sockets_max: 24 / u32::from(options.rings),
        receive_buffers: 4,
        satellite_receive_buffers: 2,
        accept_spare: 0,
        ..options
    };
    storm(few, 3_000);
}

fn over_queues_so_small_that_they_always_overflow(options: Options) {
    let tiny = Options {
        sockets_max: 64,
        submission_entries: 2,
        completion_entries: 8,
        receive_buffers: 8,
        satellite_submission_entries: 1,
        satellite_completion_entries: 4,
        satellite_receive_buffers: 8,
        ..options
    };
    storm(tiny, 2_000);
}
