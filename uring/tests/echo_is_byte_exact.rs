//! What goes in comes out, byte by byte: small and large payloads, many connections at once.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use common::{Server, seed};
use millrace_uring::Options;

with_one_ring_and_three!(payloads_from_1_byte_to_4_mib, five_hundred_connections_at_once,);

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Sends a payload from a second thread while reading it back.
fn round_trip(stream: &mut TcpStream, payload: &[u8]) {
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(payload).unwrap());
        let mut back = vec![0; payload.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == payload, "{} bytes came back changed", payload.len());
    });
}

fn payloads_from_1_byte_to_4_mib(options: Options) {
    let mut random = fastrand::Rng::with_seed(seed());
    let server = Server::start(options, "127.0.0.1:0", 16);
    let mut stream = connect(&server);
    for length in [1, 64, 2047, 2048, 2049, 65_536, 1 << 20, 4 << 20] {
        let payload: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        round_trip(&mut stream, &payload);
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "closed after the end of stream");
    let (statistics, _) = server.stop();
    let total: u64 = [1, 64, 2047, 2048, 2049, 65_536, 1 << 20, 4 << 20].iter().sum();
    assert_eq!((statistics.received_bytes, statistics.sent_bytes), (total, total));
}

fn five_hundred_connections_at_once(options: Options) {
    let seed = seed();
    let sockets_max = 1024 / u32::from(options.rings);
    let server = Server::start(Options { sockets_max, ..options }, "127.0.0.1:0", 1024);
    std::thread::scope(|scope| {
        for thread in 0..10 {
            let server = &server;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ thread);
                let mut streams: Vec<_> = (0..50).map(|_| connect(server)).collect();
                for _ in 0..10 {
                    let payloads: Vec<Vec<u8>> = streams
                        .iter()
                        .map(|_| (0..random.usize(1..10_000)).map(|_| random.u8(..)).collect())
                        .collect();
                    // All are under way before the first is read.
                    for (stream, payload) in streams.iter_mut().zip(&payloads) {
                        stream.write_all(payload).unwrap();
                    }
                    for (stream, payload) in streams.iter_mut().zip(&payloads) {
                        let mut back = vec![0; payload.len()];
                        stream.read_exact(&mut back).unwrap();
                        assert!(&back == payload, "{} bytes came back changed", payload.len());
                    }
                }
            });
        }
    });
    let (statistics, _) = server.stop();
    assert_eq!(statistics.accepted, 500);
    assert_eq!(statistics.received_bytes, statistics.sent_bytes);
}
