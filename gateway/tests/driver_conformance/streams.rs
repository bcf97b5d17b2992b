//! Bytes: none lost, none repeated, in order, however they are cut and held up.

use std::io;

use millrace_gateway::driver::{Driver, Options, SocketId};

use crate::{
    harness::{Bench, pattern, small},
    worlds::{Client, World},
};

/// More than any socket's buffers hold.
const MUCH: usize = 32 << 20;

/// What an echo keeps for a client before it stops reading from it.
const PENDING_BYTES_MAX: usize = 64 * 1024;

struct Echoed<C> {
    client: Option<C>,
    id: SocketId,
    payload: Vec<u8>,
    written: usize,
    back: Vec<u8>,
    is_paused: bool,
}

fn echo<W: World>(options: Options, clients: usize, bytes_max: usize) -> Bench<W> {
    let mut bench = Bench::<W>::new(options);
    let address = bench.listen(256);
    let mut all = Vec::new();
    for index in 0..clients {
        let (client, id) = bench.connect(address);
        let length = if index == 0 { bytes_max } else { bench.random.usize(1..bytes_max) };
        let payload = (0..length).map(|_| bench.random.u8(..)).collect();
        all.push(Echoed {
            client: Some(client),
            id,
            payload,
            written: 0,
            back: Vec::new(),
            is_paused: false,
        });
    }
    bench.until("everything is back", |bench| {
        for one in &mut all {
            let Some(client) = &mut one.client else { continue };
            if one.written < one.payload.len() {
                let length = bench.random.usize(1..100_000).min(one.payload.len() - one.written);
                match client.write(&one.payload[one.written..one.written + length]) {
                    Ok(written) => one.written += written,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                if one.written == one.payload.len() {
                    client.shutdown_write();
                }
            }
            let mut bytes = vec![0; bench.random.usize(1..100_000)];
            match client.read(&mut bytes) {
                Ok(0) => {
                    one.client = None;
                    continue;
                }
                Ok(read) => one.back.extend_from_slice(&bytes[..read]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let id = one.id;
            let is_sending = bench.driver.is_sending(id);
            let Some(life) = bench.ledger.lives.get_mut(&id) else { continue };
            assert_eq!(is_sending, life.sends > life.sent + life.send_failed);
            let waiting = life.received.len();
            if !is_sending && waiting > 0 {
                let mut buffer = bench.driver.take_buffer();
                assert!(buffer.is_empty());
                buffer.append(&mut bench.life(id).received);
                bench.send(id, buffer);
            } else if !is_sending && life.ended.is_some() && !life.is_closing {
                assert_eq!(life.ended, Some(Ok(())));
                bench.close(id);
            }
            let is_too_much = waiting > PENDING_BYTES_MAX;
            if is_too_much && !one.is_paused {
                bench.driver.pause_receive(id);
            } else if !is_too_much && one.is_paused {
                bench.driver.resume_receive(id);
            }
            one.is_paused = is_too_much;
        }
        all.iter().all(|one| one.client.is_none())
    });
    for one in &all {
        assert!(one.back == one.payload, "{} of {}", one.back.len(), one.payload.len());
    }
    bench.until("all are closed", |bench| bench.driver.sockets() == 0);
    let statistics = bench.driver.statistics();
    assert_eq!(statistics.received_bytes, statistics.sent_bytes);
    assert_eq!(statistics.completions_stale, 0);
    bench
}

pub fn what_goes_in_comes_out_byte_by_byte<W: World>() {
    echo::<W>(small(), 12, 1_500_000);
}

pub fn two_buffers_serve_twenty_busy_senders<W: World>() {
    let options = Options { receive_buffers: 2, receive_buffer_bytes: 256, ..small() };
    echo::<W>(options, 20, 60_000);
}

pub fn pausing_and_resuming_loses_nothing<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(16);
    let (mut client, id) = bench.connect(address);
    let payload = pattern(4 << 20);
    let mut written = 0;
    bench.until("the end", |bench| {
        match bench.random.u32(0..5) {
            0 => bench.driver.pause_receive(id),
            1 => bench.driver.resume_receive(id),
            2 => {
                bench.driver.pause_receive(id);
                bench.driver.resume_receive(id);
            }
            3 => {
                bench.driver.resume_receive(id);
                bench.driver.pause_receive(id);
            }
            _ => {}
        }
        if written < payload.len() {
            match client.write(&payload[written..]) {
                Ok(more) => written += more,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            if written == payload.len() {
                client.shutdown_write();
            }
        }
        bench.life(id).ended.is_some()
    });
    assert_eq!(bench.life(id).ended, Some(Ok(())));
    assert!(bench.life(id).received == payload, "{} bytes", bench.life(id).received.len());
}

pub fn a_paused_socket_stops_its_peer_and_nobody_else<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(16);
    let (mut client, id) = bench.connect(address);
    let (mut other, other_id) = bench.connect(address);
    bench.driver.pause_receive(id);
    for _ in 0..10 {
        bench.turn();
    }
    let payload = pattern(MUCH);
    let mut written = 0;
    let mut refusals = 0;
    while refusals < 30 {
        match client.write(&payload[written..]) {
            Ok(more) => written += more,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                refusals += 1;
            }
        }
        bench.turn();
    }
    assert!(written < MUCH, "the peer must be stopped by its window");
    let early = bench.life(id).received.len();
    bench.write(&mut other, b"hello");
    bench.until("the other's bytes", |bench| bench.life(other_id).received == b"hello");
    assert_eq!(bench.life(id).received.len(), early, "paused and still receiving");
    bench.driver.resume_receive(id);
    bench.until("everything that was written", |bench| bench.life(id).received.len() == written);
    assert!(bench.life(id).received == payload[..written]);
}

pub fn each_send_is_reported_exactly_once_and_arrives_in_order<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(16);
    let (mut client, id) = bench.connect(address);
    let mut expected = Vec::new();
    for round in 0..60u64 {
        let length = match bench.random.u32(0..4) {
            0 => 1,
            1 => bench.random.usize(1..2_000),
            _ => bench.random.usize(1..300_000),
        };
        let bytes: Vec<u8> = (0..length).map(|_| bench.random.u8(..)).collect();
        expected.extend_from_slice(&bytes);
        bench.send(id, bytes);
        assert!(bench.driver.is_sending(id));
        let back = bench.read(&mut client, length);
        assert!(back == expected[expected.len() - length..], "round {round}");
        bench.until("the report", |bench| bench.life(id).sent == round + 1);
        assert!(!bench.driver.is_sending(id));
    }
    for _ in 0..10 {
        bench.turn();
    }
    assert_eq!((bench.life(id).sent, bench.life(id).send_failed), (60, 0));
    assert_eq!(bench.driver.statistics().sent_bytes, expected.len() as u64);
}

pub fn the_end_of_the_sending_side_follows_the_bytes_in_flight<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(16);
    let (mut client, id) = bench.connect(address);
    let payload = pattern(MUCH / 4);
    bench.send(id, payload.clone());
    bench.driver.shutdown_write(id);
    for _ in 0..5 {
        bench.turn();
    }
    let (all, is_end) = bench.read_to_end(&mut client);
    assert!(is_end && all == payload, "{} bytes", all.len());
    bench.until("the report", |bench| bench.life(id).sent == 1);
    // The other direction still works.
    bench.write(&mut client, b"goodbye");
    bench.until("the answer", |bench| bench.life(id).received == b"goodbye");
    bench.close_and_wait(id);
}

pub fn sending_goes_on_after_the_peers_end<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(16);
    let (mut client, id) = bench.connect(address);
    bench.write(&mut client, b"question");
    client.shutdown_write();
    bench.until("the end", |bench| bench.life(id).ended.is_some());
    assert_eq!(bench.life(id).ended, Some(Ok(())));
    assert_eq!(bench.life(id).received, b"question");
    let payload = pattern(400_000);
    bench.send(id, payload.clone());
    assert!(bench.read(&mut client, payload.len()) == payload);
    bench.until("the report", |bench| bench.life(id).sent == 1);
    bench.driver.shutdown_write(id);
    let (rest, is_end) = bench.read_to_end(&mut client);
    assert!(rest.is_empty() && is_end);
    bench.close_and_wait(id);
}

pub fn a_send_to_a_silent_reader_harms_nobody_and_ends_with_the_close<W: World>() {
    let mut bench = Bench::<W>::new(small());
    let address = bench.listen(16);
    let (mut client, id) = bench.connect(address);
    bench.send(id, vec![9; MUCH]);
    for _ in 0..20 {
        bench.turn();
    }
    assert!(bench.driver.is_sending(id));
    assert_eq!((bench.life(id).sent, bench.life(id).send_failed), (0, 0));
    // Another client is served meanwhile, and the silent one can still be heard.
    let (mut other, other_id) = bench.connect(address);
    bench.send(other_id, b"hello".to_vec());
    assert_eq!(bench.read(&mut other, 5), b"hello");
    bench.write(&mut client, b"here");
    bench.until("the silent one's bytes", |bench| bench.life(id).received == b"here");
    bench.close_and_wait(id);
    assert!(!bench.driver.is_sending(id));
    for _ in 0..5 {
        bench.turn();
    }
    assert_eq!(bench.driver.sockets(), 1);
    // What was under way still arrives, then the end; far less than all.
    let (rest, _) = bench.read_to_end(&mut client);
    assert!(rest.len() < MUCH && rest.iter().all(|byte| *byte == 9), "{}", rest.len());
}
