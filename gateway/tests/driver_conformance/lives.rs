//! Sockets: told apart, closed once, woken for, and never lost.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use millrace_gateway::driver::{Driver, Options, SocketId, Wake};

use crate::{
    harness::{Bench, small},
    worlds::{Client, World},
};

pub fn a_storm_of_closes_meets_no_wrong_socket<W: World>() {
    const CLIENTS: usize = 600;
    let options = Options { sockets_max: 24, receive_buffers: 4, accept_spare: 0, ..small() };
    let mut bench = Bench::<W>::new(options);
    let address = bench.listen(64);
    let mut started = 0;
    let mut clients: Vec<W::Client> = Vec::new();
    while started < CLIENTS || !clients.is_empty() || bench.driver.sockets() > 0 {
        if started < CLIENTS && clients.len() < 32 && bench.random.bool() {
            // In the simulation the backlog may be full.
            if let Ok(client) = bench.world.connect(address) {
                clients.push(client);
                started += 1;
            }
        }
        if !clients.is_empty() {
            let index = bench.random.usize(0..clients.len());
            match bench.random.u32(0..12) {
                0..5 => {
                    let length = bench.random.usize(1..30_000);
                    let _refused = clients[index].write(&vec![1; length]);
                }
                5..8 => {
                    let _nothing = clients[index].read(&mut [0; 20_000]);
                }
                8 => clients[index].shutdown_write(),
                9 => clients.swap_remove(index).reset(),
                10 => drop(clients.swap_remove(index)),
                _ => {}
            }
        }
        let timeout = if bench.random.bool() { Duration::ZERO } else { Duration::from_millis(1) };
        bench.poll(Some(timeout));
        let ids: Vec<SocketId> = bench.ledger.lives.keys().copied().collect();
        for id in ids {
            match bench.random.u32(0..40) {
                0..6 if !bench.driver.is_sending(id) => {
                    let length = bench.random.usize(1..100_000);
                    bench.send(id, vec![2; length]);
                }
                6 => bench.driver.pause_receive(id),
                7..10 => bench.driver.resume_receive(id),
                10 => bench.driver.shutdown_write(id),
                11 => bench.close(id),
                _ if started == CLIENTS && clients.is_empty() => bench.close(id),
                _ => {}
            }
        }
        // Ids that are gone are harmless in every call.
        if let Some(gone) = bench.ledger.closed.last().copied() {
            bench.driver.send(gone, vec![1; 10]);
            bench.driver.pause_receive(gone);
            bench.driver.resume_receive(gone);
            bench.driver.shutdown_write(gone);
            bench.driver.close(gone);
            assert!(!bench.driver.is_sending(gone));
        }
    }
    // Until nobody has come for a while: with injected faults a client or a completion may be late.
    let mut quiet_turns = 0;
    for _ in 0..5_000 {
        bench.turn();
        let ids: Vec<SocketId> = bench.ledger.lives.keys().copied().collect();
        quiet_turns = if bench.driver.sockets() == 0 { quiet_turns + 1 } else { 0 };
        if quiet_turns == 20 {
            break;
        }
        for id in ids {
            bench.close(id);
        }
    }
    let statistics = bench.driver.statistics();
    assert_eq!(bench.driver.sockets(), 0);
    assert_eq!(statistics.completions_stale, 0);
    assert_eq!(statistics.accepted, bench.ledger.closed.len() as u64);
    assert_eq!(bench.ledger.accepted.len(), bench.ledger.closed.len());
    assert!(statistics.accepted > 0, "{statistics:?}");
}

pub fn a_reset_is_reported_and_the_close_comes_once<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(16);
    // While nothing is sent, and while a send waits for the reader.
    for is_sending in [false, true] {
        let (client, id) = bench.connect(address);
        if is_sending {
            bench.send(id, vec![9; 32 << 20]);
            for _ in 0..5 {
                bench.turn();
            }
        }
        client.reset();
        bench.until("the reset", |bench| {
            let life = bench.life(id);
            life.ended.is_some() && (!is_sending || life.send_failed == 1)
        });
        // The kernel tells one of two operations what happened, and the other the mere end.
        let life = bench.life(id);
        assert!(matches!(life.ended, Some(Err(_))) || life.send_failed == 1);
        assert!(!bench.driver.is_sending(id));
        bench.close_and_wait(id);
        for _ in 0..5 {
            bench.turn();
        }
    }
    assert_eq!(bench.driver.sockets(), 0);
}

pub fn the_context_stays_with_the_socket_until_it_is_replaced<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(16);
    let (mut first, first_id) = bench.connect(address);
    let (mut second, second_id) = bench.connect(address);
    // The ledger holds every callback to the context that it returned itself.
    bench.driver.set_context(first_id, 4_711);
    bench.life(first_id).context = 4_711;
    bench.write(&mut first, b"one");
    bench.write(&mut second, b"two");
    bench.send(first_id, b"three".to_vec());
    assert_eq!(bench.read(&mut first, 5), b"three");
    bench.until("both", |bench| {
        bench.life(first_id).received == b"one" && bench.life(second_id).received == b"two"
    });
    bench.close_and_wait(first_id);
    bench.driver.set_context(first_id, 1);
    bench.close_and_wait(second_id);
}

pub fn a_wake_before_the_wait_ends_it<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let waker = bench.driver.waker();
    for round in 1..=3 {
        waker.wake();
        waker.clone().wake();
        let started = Instant::now();
        bench.poll(None);
        assert!(started.elapsed() < Duration::from_secs(15));
        assert_eq!(bench.ledger.woken, round, "several uses make one call");
    }
}

pub fn no_wake_from_other_threads_is_lost<W: World>() {
    const THREADS: u64 = 3;
    const PIECES: u64 = 2_000;
    let mut bench = Bench::<W>::new(small());
    // With a listener, so that there is something else to wait for.
    bench.listen(16);
    let (work, seen) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (waker, work, seen) = (bench.driver.waker(), &work, &seen);
            let mut random = bench.random.fork();
            scope.spawn(move || {
                for _ in 0..PIECES {
                    let mine = work.fetch_add(1, Ordering::Relaxed) + 1;
                    waker.wake();
                    if random.u32(0..4) == 0 {
                        // Until it is seen, so that the driver falls asleep in between.
                        let deadline = Instant::now() + Duration::from_secs(60);
                        while seen.load(Ordering::Acquire) < mine {
                            assert!(Instant::now() < deadline, "a wake-up was lost");
                            std::thread::yield_now();
                        }
                    }
                }
            });
        }
        while seen.load(Ordering::Relaxed) < THREADS * PIECES {
            // A lost ring would leave this waiting for ever; the threads' assertions and the last
            // ring below end it then.
            let before = bench.ledger.woken;
            bench.poll(Some(Duration::from_secs(20)));
            if bench.ledger.woken > before {
                seen.store(work.load(Ordering::Relaxed), Ordering::Release);
            }
        }
    });
}

pub fn after_stop_accepting_clients_are_refused_and_the_others_live_on<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(64);
    let (mut client, id) = bench.connect(address);
    bench.driver.stop_accepting();
    bench.driver.stop_accepting();
    for _ in 0..5 {
        bench.turn();
    }
    let error = bench.world.connect(address).err().expect("nobody listens");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    bench.send(id, b"still here".to_vec());
    assert_eq!(bench.read(&mut client, 10), b"still here");
    // And a new listener of the same driver works.
    let address = bench.listen(64);
    let (mut client, id) = bench.connect(address);
    bench.write(&mut client, b"hello");
    bench.until("the bytes", |bench| bench.life(id).received == b"hello");
}

pub fn the_peers_address_is_right_for_both_families<W: World>() {
    let mut bench = Bench::<W>::new(small());
    for (local, reached) in
        [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")]
    {
        let (listener, bound) = bench.driver.listen(local.parse().unwrap(), 64).unwrap();
        let address = SocketAddr::new(reached.parse().unwrap(), bound.port());
        for _ in 0..5 {
            let (client, id) = bench.connect(address);
            let (last, on, peer) = *bench.ledger.accepted.last().unwrap();
            // An IPv4 client of an IPv6 listener is shown with its IPv4 address.
            assert_eq!((last, on, peer), (id, listener, client.local_address()));
            bench.close_and_wait(id);
        }
    }
}

pub fn a_full_table_lets_clients_wait_and_resets_nobody<W: World>() {
    const CLIENTS: usize = 40;
    let options = Options { sockets_max: 12, accept_spare: 2, ..small() };
    let mut bench = Bench::<W>::new(options);
    let address = bench.listen(64);
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|_| Some(bench.world.connect(address).unwrap())).collect();
    for client in clients.iter_mut().flatten() {
        let mut rest: &[u8] = b"hello";
        while !rest.is_empty() {
            rest = &rest[client.write(rest).unwrap()..];
        }
    }
    bench.until("the table is full", |bench| bench.driver.sockets() == 10);
    for _ in 0..30 {
        bench.turn();
        assert!(bench.driver.sockets() <= 10, "the spare entries stay free");
    }
    // When it is noticed depends on the world: a client may be late in it, or an accept fail first.
    bench.until("accepting pauses", |bench| bench.driver.statistics().accept_paused > 0);
    let mut answered = 0;
    bench.until("everybody was served", |bench| {
        let ids: Vec<SocketId> = bench.ledger.lives.keys().copied().collect();
        for id in ids {
            let life = bench.life(id);
            if life.received == b"hello" {
                life.received.clear();
                bench.send(id, b"world".to_vec());
            } else if life.ended.is_some() && !life.is_closing {
                bench.close(id);
            }
        }
        for place in &mut clients {
            let Some(client) = place else { continue };
            let mut word = [0; 5];
            match client.read(&mut word) {
                Ok(length) => {
                    // A word of five bytes is cut by the simulation alone.
                    assert!(length > 0, "nobody is turned away");
                    if word[..length].last() == Some(&b'd') {
                        answered += 1;
                        *place = None;
                    }
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
            }
        }
        answered == CLIENTS
    });
}

pub fn a_dropped_driver_ends_its_connections<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(16);
    let (mut reading, _) = bench.connect(address);
    let (mut slow, slow_id) = bench.connect(address);
    bench.send(slow_id, vec![7; 32 << 20]);
    for _ in 0..5 {
        bench.turn();
    }
    // A second driver of the same world stands in, so that the clients can be waited for.
    let other = bench.world.driver(small());
    drop(std::mem::replace(&mut bench.driver, other));
    let (bytes, is_end) = bench.read_to_end(&mut reading);
    assert!(bytes.is_empty() && is_end);
    let (bytes, _) = bench.read_to_end(&mut slow);
    assert!(bytes.len() < 32 << 20);
    assert!(bench.world.connect(address).is_err(), "nobody listens any more");
}
