//! Outgoing connections: success and failure are told, the source address is used, and a connection
//! under way can be closed.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use common::recorder::{Event, Recorder};
use millrace_uring::{Driver, Options};

with_one_ring_and_three!(
    a_connection_sends_and_receives,
    a_refused_port_gives_the_error_and_the_slot_comes_back,
    the_source_address_is_used_and_serves_many_connections,
    a_source_that_is_not_ours_is_an_error,
    a_full_table_refuses_to_connect_and_recovers,
    a_connection_under_way_can_be_closed,
);

fn a_connection_sends_and_receives(options: Options) {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(local).unwrap();
        let mut driver = Driver::new(options.clone()).unwrap();
        let mut recorder = Recorder::default();
        let id = driver.connect(listener.local_addr().unwrap(), None, 42).unwrap();
        assert_eq!(driver.sockets(), 1);
        assert_eq!(recorder.wait_connected(&mut driver, id), Ok(()));
        let (mut peer, _) = listener.accept().unwrap();
        driver.send(id, b"over there".to_vec());
        peer.write_all(b"and back").unwrap();
        let back = recorder.wait(&mut driver, "bytes", |event| match event {
            Event::Received(socket, bytes) if *socket == id => Some(bytes.clone()),
            _ => None,
        });
        assert_eq!(back, b"and back");
        let mut there = [0; 10];
        peer.read_exact(&mut there).unwrap();
        assert_eq!(&there, b"over there");
        driver.close(id);
        assert_eq!(recorder.wait_closed(&mut driver, id), 42);
        assert_eq!(peer.read(&mut there).unwrap(), 0);
    }
}

fn a_refused_port_gives_the_error_and_the_slot_comes_back(options: Options) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut driver = Driver::new(Options { sockets_max: 4, accept_spare: 0, ..options }).unwrap();
    let mut recorder = Recorder::default();
    for _ in 0..20 {
        let id = driver.connect(free, None, 1).unwrap();
        assert_eq!(recorder.wait_connected(&mut driver, id), Err(libc_econnrefused()));
        // Nothing but the close follows, whatever is asked for.
        driver.send(id, vec![1]);
        driver.shutdown_write(id);
        driver.resume_receive(id);
        driver.close(id);
        assert_eq!(recorder.wait_closed(&mut driver, id), 1);
        assert_eq!(driver.sockets(), 0);
    }
    assert_eq!(driver.statistics().connect_failed, 20);
}

fn libc_econnrefused() -> i32 {
    111
}

fn the_source_address_is_used_and_serves_many_connections(options: Options) {
    for (local, source) in
        [("127.0.0.1:0", "127.0.0.77:0"), ("127.0.0.1:0", "127.9.9.9:0"), ("[::1]:0", "[::1]:0")]
    {
        let listener = TcpListener::bind(local).unwrap();
        let source: SocketAddr = source.parse().unwrap();
        let mut driver = Driver::new(options.clone()).unwrap();
        let mut recorder = Recorder::default();
        for _ in 0..50 {
            let id = driver.connect(listener.local_addr().unwrap(), Some(source), 0).unwrap();
            assert_eq!(recorder.wait_connected(&mut driver, id), Ok(()));
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip(), source.ip());
        }
        assert_eq!(driver.sockets(), 50);
    }
}

fn a_source_that_is_not_ours_is_an_error(options: Options) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let address = listener.local_addr().unwrap();
    let id = driver.connect(address, Some("192.0.2.1:0".parse().unwrap()), 3).unwrap();
    assert_eq!(recorder.wait_connected(&mut driver, id), Err(99), "EADDRNOTAVAIL");
    driver.close(id);
    assert_eq!(recorder.wait_closed(&mut driver, id), 3);
    assert!(driver.connect(address, Some("[::1]:0".parse().unwrap()), 3).is_err());
    assert_eq!(driver.sockets(), 0);
}

fn a_full_table_refuses_to_connect_and_recovers(options: Options) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sockets_max = 3 / u32::from(options.rings);
    let mut driver = Driver::new(Options { sockets_max, accept_spare: 0, ..options }).unwrap();
    let mut recorder = Recorder::default();
    let ids: Vec<_> = (0..3).map(|_| driver.connect(address, None, 0).unwrap()).collect();
    assert_eq!(driver.connect(address, None, 0).unwrap_err().raw_os_error(), Some(23), "ENFILE");
    for _ in &ids {
        // In any order: they may be on different rings.
        recorder.wait(&mut driver, "a connection", |event| match event {
            Event::Connected(_, _, Ok(())) => Some(()),
            _ => None,
        });
    }
    driver.close(ids[1]);
    recorder.wait_closed(&mut driver, ids[1]);
    let id = driver.connect(address, None, 0).unwrap();
    assert_eq!(recorder.wait_connected(&mut driver, id), Ok(()));
}

fn a_connection_under_way_can_be_closed(options: Options) {
    // A listener whose backlog is full drops SYNs: connects to it hang.
    let mut other = Driver::new(options.clone()).unwrap();
    let (_, address) = other.listen("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    // Never polled, so nothing is accepted.
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let ids: Vec<_> =
        (0..10).map(|context| driver.connect(address, None, context).unwrap()).collect();
    recorder.idle(&mut driver, 10);
    let done = recorder.events.len();
    assert!(done < 10, "some must hang: {:?}", recorder.events);
    recorder.events.clear();
    for id in &ids {
        driver.close(*id);
    }
    for (context, id) in ids.iter().enumerate() {
        let mut seen = false;
        while !seen {
            driver.poll(Some(std::time::Duration::from_millis(50)), &mut recorder).unwrap();
            seen = recorder.events.iter().any(
                |event| matches!(event, Event::Closed(socket, c) if socket == id && *c == context as u64),
            );
            assert!(
                !recorder.events.iter().any(|event| matches!(event, Event::Connected(..))),
                "after close only closed follows"
            );
        }
    }
    assert_eq!(driver.sockets(), 0);
    // And at once, before the socket even exists.
    let id = driver.connect(address, None, 77).unwrap();
    driver.close(id);
    recorder.events.clear();
    assert_eq!(recorder.wait_closed(&mut driver, id), 77);
}
