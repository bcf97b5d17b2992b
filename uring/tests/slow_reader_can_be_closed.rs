//! A send to somebody who does not read stays in flight, harms nobody, and ends with the close.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use common::recorder::{ACCEPTED_CONTEXT, Event, Recorder};
use millrace_uring::{Driver, Options};

with_one_ring_and_three!(
    the_send_stays_in_flight_until_close_ends_it,
    when_the_reader_comes_back_everything_arrives_and_then_fin,
    a_reader_that_resets_fails_the_send,
);

const BYTES: usize = 64 << 20;

fn the_send_stays_in_flight_until_close_ends_it(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (id, _, _) = recorder.wait_accepted(&mut driver);
    driver.send(id, vec![9; BYTES]);
    recorder.idle(&mut driver, 20);
    assert!(driver.is_sending(id));
    assert!(recorder.events.is_empty(), "{:?}", recorder.events);

    // Another client is served meanwhile.
    let mut other = TcpStream::connect(address).unwrap();
    let (other_id, _, _) = recorder.wait_accepted(&mut driver);
    driver.send(other_id, b"hello".to_vec());
    recorder.wait(&mut driver, "the other's send", |event| match event {
        Event::Sent(socket, Ok(())) if *socket == other_id => Some(()),
        _ => None,
    });
    let mut hello = [0; 5];
    other.read_exact(&mut hello).unwrap();

    driver.close(id);
    assert_eq!(recorder.wait_closed(&mut driver, id), ACCEPTED_CONTEXT);
    assert!(!driver.is_sending(id));
    recorder.idle(&mut driver, 5);
    assert!(recorder.events.is_empty(), "nothing after closed: {:?}", recorder.events);
    assert_eq!(driver.sockets(), 1);

    // What was in the kernel still arrives, then the end; far less than all.
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert!(rest.len() < BYTES && rest.iter().all(|byte| *byte == 9), "{}", rest.len());
}

fn when_the_reader_comes_back_everything_arrives_and_then_fin(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (id, _, _) = recorder.wait_accepted(&mut driver);
    let payload: Vec<u8> = (0..BYTES).map(|index| (index % 251) as u8).collect();
    driver.send(id, payload.clone());
    // Asked for while the send is in flight: FIN comes after its bytes.
    driver.shutdown_write(id);
    recorder.idle(&mut driver, 5);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        all
    });
    recorder.wait(&mut driver, "the send", |event| match event {
        Event::Sent(socket, Ok(())) if *socket == id => Some(()),
        _ => None,
    });
    // The reader closes when it has seen our FIN.
    recorder.wait(&mut driver, "the end", |event| match event {
        Event::ReceiveEnded(socket, Ok(())) if *socket == id => Some(()),
        _ => None,
    });
    assert!(reader.join().unwrap() == payload);
    driver.close(id);
    recorder.wait_closed(&mut driver, id);
}

fn a_reader_that_resets_fails_the_send(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let client = TcpStream::connect(address).unwrap();
    let (id, _, _) = recorder.wait_accepted(&mut driver);
    driver.send(id, vec![9; BYTES]);
    recorder.idle(&mut driver, 5);
    // Unread bytes make the close a reset.
    drop(client);
    recorder.wait(&mut driver, "the failure", |event| match event {
        Event::Sent(socket, Err(_)) if *socket == id => Some(()),
        _ => None,
    });
    assert!(!driver.is_sending(id));
    driver.close(id);
    recorder.wait_closed(&mut driver, id);
}
