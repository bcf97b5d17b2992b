//! When the descriptor table is full, clients wait in the backlog: none is reset, and each is served
//! when others have left.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::Duration;

use common::Server;
use common::recorder::{Event, Recorder};
use millrace_uring::{Driver, Options, Placement};

with_one_ring_and_three!(
    a_hundred_clients_share_few_places,
    a_table_of_one_serves_them_one_by_one,
    the_first_ring_is_filled_before_the_next,
    a_burst_stays_below_the_mark,
);

fn serve_all(options: Options, clients: usize) {
    let server = Server::start(options, "127.0.0.1:0", 256);
    let start = Barrier::new(clients);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (server, start) = (&server, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..3usize {
                    let mut stream = TcpStream::connect(server.address).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                    let payload = [(client * 3 + round) as u8; 100];
                    stream.write_all(&payload).unwrap();
                    let mut back = [0; 100];
                    stream.read_exact(&mut back).unwrap();
                    assert_eq!(back, payload);
                    // Stays a while, so that the table is full with others waiting.
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
    });
    let (statistics, _) = server.stop();
    assert_eq!(statistics.accepted, clients as u64 * 3);
    assert_eq!(statistics.accept_failed, 0);
    assert!(statistics.accept_paused > 0, "the table must have been full: {statistics:?}");
}

fn a_hundred_clients_share_few_places(options: Options) {
    let sockets_max = 32 / u32::from(options.rings);
    serve_all(Options { sockets_max, accept_spare: 2, ..options }, 100);
}

fn a_table_of_one_serves_them_one_by_one(options: Options) {
    serve_all(Options { sockets_max: 1, accept_spare: 0, ..options }, 20);
}

fn the_first_ring_is_filled_before_the_next(options: Options) {
    let fill = Options { placement: Placement::Fill, ..options };
    serve_all(Options { sockets_max: 8, accept_spare: 1, ..fill }, 100);
}

fn a_burst_stays_below_the_mark(options: Options) {
    // The mark is far above the backlog, so that clients keep joining the backlog while it is
    // emptied: an accept that goes on while it finds any would overshoot.
    let rings = u32::from(options.rings);
    let options = Options { sockets_max: 408 / rings, accept_spare: 24 / rings, ..options };
    let most = (options.sockets_max - options.accept_spare) * rings;
    let mut driver = Driver::new(options).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let clients = std::thread::spawn(move || {
        // Non-blocking in effect: those who find the backlog full retry by SYN.
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(move || -> Vec<TcpStream> {
                    (0..most / 8).map(|_| TcpStream::connect(address).unwrap()).collect()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut accepted = 0;
    while accepted < most {
        recorder.wait_accepted(&mut driver);
        accepted += 1;
    }
    let clients = clients.join().unwrap();
    let extra = TcpStream::connect(address).unwrap();
    recorder.idle(&mut driver, 20);
    assert_eq!(driver.sockets(), most as usize, "the spare entries stay free");
    assert!(!recorder.events.iter().any(|event| matches!(event, Event::ReceiveEnded(..))));
    assert_eq!(driver.statistics().accept_failed, 0);
    drop(clients);
    let (mut left, mut extra_accepted) = (0, false);
    while left < most || !extra_accepted {
        let ended = recorder.wait(&mut driver, "an end or the last client", |event| match event {
            Event::ReceiveEnded(id, _) => Some(Some(*id)),
            Event::Accepted(..) => Some(None),
            _ => None,
        });
        match ended {
            Some(id) => {
                driver.close(id);
                left += 1;
            }
            None => extra_accepted = true,
        }
    }
    drop(extra);
}
