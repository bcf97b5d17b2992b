//! What has come when a poll begins is handled by it, however many enters the kernel wants for that.
//! But for a flood: that comes in portions.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use common::recorder::{Event, Recorder};
use millrace_uring::{Driver, Options};

with_one_ring_and_three!(
    what_came_before_a_poll_is_received_in_it,
    a_flood_of_one_is_given_to_its_owner_in_portions,
);

const SENDERS: usize = 150;

fn what_came_before_a_poll_is_received_in_it(options: Options) {
    // A buffer for everybody: kernels before 6.14 do all of it at once.
    let options = Options { receive_buffers: 256, satellite_receive_buffers: 128, ..options };
    let mut driver = Driver::new(options).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let mut streams = Vec::new();
    for _ in 0..SENDERS {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        recorder.wait_accepted(&mut driver);
        streams.push(stream);
    }
    // Until every receive is in the kernel.
    while driver.poll(Some(Duration::from_millis(50)), &mut recorder).unwrap() > 0 {}
    recorder.events.clear();
    for stream in &mut streams {
        stream.write_all(b"now").unwrap();
    }
    driver.poll(Some(Duration::from_secs(10)), &mut recorder).unwrap();
    let received =
        recorder.events.iter().filter(|event| matches!(event, Event::Received(..))).count();
    assert_eq!(received, SENDERS, "{:?}", driver.statistics());
}

fn a_flood_of_one_is_given_to_its_owner_in_portions(options: Options) {
    let mut driver = Driver::new(options).unwrap();
    let mut recorder = Recorder::default();
    let (_, address) = driver.listen("127.0.0.1:0".parse().unwrap(), 64).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    recorder.wait_accepted(&mut driver);
    while driver.poll(Some(Duration::from_millis(50)), &mut recorder).unwrap() > 0 {}
    stream.set_nonblocking(true).unwrap();
    let mut flooded = 0;
    while let Ok(written) = stream.write(&[7; 64 * 1024]) {
        flooded += written;
    }
    // The owner can pause it only between two polls.
    recorder.events.clear();
    driver.poll(Some(Duration::from_secs(10)), &mut recorder).unwrap();
    let bytes = |event: &Event| match event {
        Event::Received(_, bytes) => bytes.len(),
        _ => 0,
    };
    let received: usize = recorder.events.iter().map(bytes).sum();
    assert!(flooded > 1 << 20, "only {flooded} bytes were written");
    assert!((1..=256 * 1024).contains(&received), "{received} of {flooded} bytes in one poll");
}
