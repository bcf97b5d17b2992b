//! Pausing stops the flow up to the peer, resuming brings every byte in order.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use common::recorder::{Event, Recorder};
use common::seed;
use millrace_uring::{Driver, Options};

with_one_ring_and_three!(
    with_enough_buffers,
    while_waiting_for_buffers,
    a_paused_socket_stops_its_peer,
    resuming_while_the_pause_is_under_way_needs_no_second_call,
);

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 253) as u8).collect()
}

fn toggled(options: Options, bytes: usize) {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut driver = Driver::new(options).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (id, _, _) = recorder.wait_accepted(&mut driver);
    let writer = std::thread::spawn(move || {
        client.write_all(&pattern(bytes)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    let mut all = Vec::new();
    loop {
        match random.u32(0..4) {
            0 => driver.pause_receive(id),
            1 => driver.resume_receive(id),
            2 => {
                driver.pause_receive(id);
                driver.resume_receive(id);
            }
            _ => {
                driver.resume_receive(id);
                driver.pause_receive(id);
            }
        }
        driver.poll(Some(Duration::from_millis(1)), &mut recorder).unwrap();
        all.extend(recorder.take_received(id));
        if recorder.events.iter().any(|event| matches!(event, Event::ReceiveEnded(_, Ok(())))) {
            break;
        }
    }
    assert!(all == pattern(bytes), "{} bytes", all.len());
    writer.join().unwrap();
}

fn with_enough_buffers(options: Options) {
    toggled(options, 24 << 20);
}

fn while_waiting_for_buffers(options: Options) {
    let few = Options {
        receive_buffers: 1,
        satellite_receive_buffers: 1,
        receive_buffer_bytes: 512,
        ..options
    };
    toggled(few, 2 << 20);
}

fn a_paused_socket_stops_its_peer(options: Options) {
    const BYTES: usize = 64 << 20;
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (id, _, _) = recorder.wait_accepted(&mut driver);
    driver.pause_receive(id);
    let writer = std::thread::spawn(move || client.write_all(&pattern(BYTES)).map(|()| client));
    recorder.idle(&mut driver, 40);
    let early = recorder.take_received(id);
    recorder.idle(&mut driver, 40);
    assert!(recorder.take_received(id).is_empty(), "paused and still receiving");
    assert!(!writer.is_finished(), "the peer must be blocked by its window");
    driver.resume_receive(id);
    let mut all = early;
    while all.len() < BYTES {
        driver.poll(Some(Duration::from_secs(20)), &mut recorder).unwrap();
        all.extend(recorder.take_received(id));
    }
    assert!(all == pattern(BYTES));
    drop(writer.join().unwrap());
}

fn resuming_while_the_pause_is_under_way_needs_no_second_call(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (id, _, _) = recorder.wait_accepted(&mut driver);
    recorder.idle(&mut driver, 3);
    for round in 0..50u8 {
        driver.pause_receive(id);
        driver.resume_receive(id);
        if round % 2 == 0 {
            recorder.idle(&mut driver, 1);
        }
        client.write_all(&[round; 10]).unwrap();
        let mut bytes = Vec::new();
        while bytes.len() < 10 {
            bytes.extend(recorder.wait(&mut driver, "the bytes", |event| match event {
                Event::Received(_, bytes) => Some(bytes.clone()),
                _ => None,
            }));
        }
        assert_eq!(bytes, [round; 10]);
    }
}
