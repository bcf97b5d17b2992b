//! Peers' addresses are right, listeners are told apart, and accepting can be stopped.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::recorder::{ACCEPTED_CONTEXT, Event, Recorder};
use millrace_uring::{Driver, Options};

with_one_ring_and_three!(
    the_peers_address_is_right_for_both_families,
    an_ipv4_client_of_an_ipv6_listener_has_its_ipv4_address,
    several_drivers_share_an_address,
    after_stop_accepting_clients_are_refused_and_the_others_live_on,
    an_address_in_use_is_an_error_and_so_is_a_foreign_one,
    a_dropped_driver_ends_its_connections_at_once,
    set_context_replaces_what_accepted_returned,
);

fn the_peers_address_is_right_for_both_families(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let (listener, address) = driver.listen(local.parse().unwrap(), 64).unwrap();
        for _ in 0..20 {
            let client = TcpStream::connect(address).unwrap();
            let (_, on, peer) = recorder.wait_accepted(&mut driver);
            assert_eq!(peer, client.local_addr().unwrap());
            assert_eq!(on, listener);
        }
    }
}

fn an_ipv4_client_of_an_ipv6_listener_has_its_ipv4_address(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("[::]:0".parse().unwrap(), 64).unwrap();
    let client = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], address.port()))).unwrap();
    let (_, _, peer) = recorder.wait_accepted(&mut driver);
    assert_eq!(peer, client.local_addr().unwrap());
}

fn several_drivers_share_an_address(options: Options) {
    let mut first = Driver::new(options.clone()).unwrap();
    let mut second = Driver::new(options.clone()).unwrap();
    let (_, address) = first.listen("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let (_, again) = second.listen(address, 64).unwrap();
    assert_eq!(address, again);
    let mut recorder = Recorder::default();
    let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut polls = 0;
    while first.statistics().accepted + second.statistics().accepted < 64 {
        first.poll(Some(Duration::from_millis(2)), &mut recorder).unwrap();
        second.poll(Some(Duration::from_millis(2)), &mut recorder).unwrap();
        polls += 1;
        assert!(polls < 5_000, "{:?} {:?}", first.statistics(), second.statistics());
    }
    assert!(first.statistics().accepted > 0 && second.statistics().accepted > 0);
    drop(clients);
}

fn after_stop_accepting_clients_are_refused_and_the_others_live_on(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (id, _, _) = recorder.wait_accepted(&mut driver);
    driver.stop_accepting();
    driver.stop_accepting();
    recorder.idle(&mut driver, 3);
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    driver.send(id, b"still here".to_vec());
    recorder.wait(&mut driver, "the send", |event| match event {
        Event::Sent(socket, Ok(())) if *socket == id => Some(()),
        _ => None,
    });
    let mut text = [0; 10];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"still here");
    // And a new listener of the same driver works.
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let _client = TcpStream::connect(address).unwrap();
    recorder.wait_accepted(&mut driver);
}

fn an_address_in_use_is_an_error_and_so_is_a_foreign_one(options: Options) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut driver = Driver::new(options.clone()).unwrap();
    let error = driver.listen(taken.local_addr().unwrap(), 8).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(driver.listen("192.0.2.1:0".parse().unwrap(), 8).is_err());
}

fn a_dropped_driver_ends_its_connections_at_once(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let mut reading = TcpStream::connect(address).unwrap();
    let (id, _, _) = recorder.wait_accepted(&mut driver);
    let slow = TcpStream::connect(address).unwrap();
    let (slow_id, _, _) = recorder.wait_accepted(&mut driver);
    driver.set_context(id, 5);
    driver.send(slow_id, vec![1; 32 << 20]);
    recorder.idle(&mut driver, 3);
    drop(driver);
    reading.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(reading.read(&mut [0; 8]).unwrap(), 0);
    assert!(TcpStream::connect(address).is_err());
    drop(slow);
}

fn set_context_replaces_what_accepted_returned(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let _first = TcpStream::connect(address).unwrap();
    let (first, _, _) = recorder.wait_accepted(&mut driver);
    let _second = TcpStream::connect(address).unwrap();
    let (second, _, _) = recorder.wait_accepted(&mut driver);
    driver.set_context(first, 99);
    driver.close(first);
    assert_eq!(recorder.wait_closed(&mut driver, first), 99);
    driver.close(second);
    assert_eq!(recorder.wait_closed(&mut driver, second), ACCEPTED_CONTEXT);
    driver.set_context(first, 1);
}
