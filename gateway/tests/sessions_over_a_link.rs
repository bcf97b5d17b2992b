//! Clients log in and talk to logic through real sockets, a real shard and a real gRPC stream; and
//! they stay when logic goes.

mod support;

use std::sync::atomic::Ordering;

use millrace_protocol::{Code, command, link::gateway_event::Kind};
use support::{
    client::{Client, Tcp, WebSocket, http},
    config, eventually,
    logic::FakeLogic,
    ready_gateway,
};

fn both(addresses: millrace_gateway::Addresses) -> [Box<dyn Client>; 2] {
    [
        Box::new(Tcp::connect(addresses.tcp.expect("listens"))),
        Box::new(WebSocket::connect(addresses.websocket.expect("listens"))),
    ]
}

#[test]
fn a_login_and_a_request_travel_to_logic_and_back_over_either_transport() {
    let logic = FakeLogic::start();
    let gateway = ready_gateway(config(&logic.uri()));
    for mut client in both(gateway.addresses()) {
        let reply = client.log_in("alice", "good");
        assert_eq!(reply.code, 0);
        assert_eq!(reply.idle_timeout_ms, 15_000);
        assert_eq!(reply.heartbeat_interval_ms, 5_000);
        for (request_id, size) in [(7, 0), (8, 1), (9, 1_000), (10, 65_536)] {
            let body = vec![request_id as u8; size];
            let answer = client.ask(command::SEND_MESSAGE, request_id, &body);
            assert_eq!(answer.command, command::reply(command::SEND_MESSAGE));
            assert!(answer.body == body, "the echo of {size} bytes differs");
        }
        let answer = client.ask(command::HEARTBEAT, 11, b"");
        assert_eq!(answer.command, command::reply(command::HEARTBEAT));
    }
    gateway.stop();
    gateway.join().expect("no shard failed");
}

#[test]
fn a_refused_login_is_told_twice_and_the_connection_ends() {
    let logic = FakeLogic::start();
    let gateway = ready_gateway(config(&logic.uri()));
    for mut client in both(gateway.addresses()) {
        let reply = client.log_in("mallory", "bad");
        assert_eq!(reply.code, Code::BadToken.number());
        assert_eq!(reply.reason, "not good");
        let error = client.receive().expect("an ERROR");
        assert_eq!((error.request_id, error.error().code), (1, Code::BadToken.number()));
        assert_eq!(client.receive(), None);
    }
    assert!(logic.heard.ended().is_empty(), "there was no session");
}

#[test]
fn sessions_survive_the_death_of_logic_and_requests_are_answered_meanwhile() {
    let logic = FakeLogic::start();
    let gateway = ready_gateway(config(&logic.uri()));
    let mut clients = both(gateway.addresses());
    let mut sessions = Vec::new();
    for client in &mut clients {
        let reply = client.log_in("alice", "good");
        assert_eq!(reply.code, 0);
        sessions.push(reply.session_id);
    }
    // A request that logic has taken and will never answer …
    logic.mute.store(true, Ordering::Relaxed);
    for client in &mut clients {
        client.send(command::SEND_MESSAGE, 21, b"lost");
    }
    eventually("logic has the requests", || {
        logic.heard.count(|kind| matches!(kind, Kind::Frame(_))) == 2
    });
    let logins = logic.heard.count(|kind| matches!(kind, Kind::Login(_)));
    let address = logic.kill();
    // … is answered when the link is lost, and so is every later one.
    for client in &mut clients {
        let lost = client.receive().expect("an answer");
        assert_eq!(lost.request_id, 21);
        let error = lost.error();
        assert_eq!(error.code, Code::LogicUnavailable.number());
        assert!(error.retry_after_ms > 0);
        let error = client.ask(command::SEND_MESSAGE, 22, b"later").error();
        assert_eq!(error.code, Code::LogicUnavailable.number());
        let beat = client.ask(command::HEARTBEAT, 23, b"");
        assert_eq!(beat.command, command::reply(command::HEARTBEAT));
    }
    assert!(!gateway.unready_reasons().is_empty());
    let logic = FakeLogic::start_at(address, 10_000);
    eventually("the links are back", || gateway.unready_reasons().is_empty());
    eventually("both shards have listed their sessions", || {
        logic.heard.count(|kind| matches!(kind, Kind::SessionsComplete(_))) == 2
    });
    assert_eq!(logic.heard.listed().len(), 2);
    for client in &mut clients {
        let answer = client.ask(command::SEND_MESSAGE, 24, b"again");
        assert_eq!(answer.body, b"again");
    }
    assert_eq!(logins, 2);
    assert_eq!(logic.heard.count(|kind| matches!(kind, Kind::Login(_))), 0, "nobody came anew");
    drop(clients);
    eventually("both ends are told", || logic.heard.ended().len() == 2);
    let mut ended: Vec<u64> = logic.heard.ended().iter().map(|(id, _)| *id).collect();
    let mut listed = logic.heard.listed();
    ended.sort_unstable();
    listed.sort_unstable();
    assert_eq!(ended, listed);
}

#[test]
fn a_logic_that_hangs_is_left_after_the_lease() {
    let logic = FakeLogic::start_at("127.0.0.1:0".parse().expect("an address"), 600);
    let mut config = config(&logic.uri());
    config.logic.lease = millrace_service::Duration::from_millis(600);
    let gateway = ready_gateway(config);
    let mut client = Tcp::connect(gateway.addresses().tcp.expect("listens"));
    assert_eq!(client.log_in("alice", "good").code, 0);
    // Quiet but alive for several leases: heartbeats keep the stream.
    std::thread::sleep(std::time::Duration::from_millis(2_000));
    assert_eq!(logic.heard.count(|kind| matches!(kind, Kind::Hello(_))), 2, "no stream was lost");
    assert_eq!(client.ask(command::SEND_MESSAGE, 3, b"x").body, b"x");
    logic.hang.store(true, Ordering::Relaxed);
    client.send(command::SEND_MESSAGE, 4, b"never answered");
    let error = client.receive().expect("an answer").error();
    assert_eq!(error.code, Code::LogicUnavailable.number());
    logic.hang.store(false, Ordering::Relaxed);
    eventually("logic is used again", || gateway.unready_reasons().is_empty());
    assert_eq!(client.ask(command::SEND_MESSAGE, 5, b"y").body, b"y");
}

#[test]
fn many_clients_at_once_each_get_their_own_answers() {
    let logic = FakeLogic::start();
    let gateway = ready_gateway(config(&logic.uri()));
    let addresses = gateway.addresses();
    let threads: Vec<_> = (0..8_u32)
        .map(|thread| {
            std::thread::spawn(move || {
                let mut clients: Vec<_> = (0..25).flat_map(|_| both(addresses)).collect();
                for client in &mut clients {
                    assert_eq!(client.log_in("alice", "good").code, 0);
                }
                for round in 0..10_u32 {
                    for (index, client) in clients.iter_mut().enumerate() {
                        let id = 100 + round;
                        let body = format!("{thread}/{index}/{round}");
                        client.send(command::SEND_MESSAGE, id, body.as_bytes());
                    }
                    for (index, client) in clients.iter_mut().enumerate() {
                        let answer = client.receive().expect("an answer");
                        let body = format!("{thread}/{index}/{round}");
                        assert_eq!(answer.request_id, 100 + round);
                        assert_eq!(answer.body, body.as_bytes());
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("all answers were right");
    }
    eventually("every session has ended", || logic.heard.ended().len() == 400);
}

#[test]
fn without_credit_clients_are_held_back_and_nothing_is_lost_or_reordered() {
    const FRAMES: u32 = 6_000;
    let logic = FakeLogic::start_at("127.0.0.1:0".parse().expect("an address"), 600);
    logic.starve.store(true, Ordering::Relaxed);
    let mut config = config(&logic.uri());
    config.gateway.shards = 1;
    config.connections.requests_in_flight_max = FRAMES;
    config.connections.frames_per_second_max = 1_000_000;
    config.connections.frames_burst_max = 1_000_000;
    config.connections.send_queue_bytes_max = millrace_service::ByteSize::from_mib(64);
    let gateway = ready_gateway(config);
    let mut client = Tcp::connect(gateway.addresses().tcp.expect("listens"));
    assert_eq!(client.log_in("alice", "good").code, 0);
    let mut writer = Tcp(client.0.try_clone().expect("cloned"));
    let written = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let progress = written.clone();
    let thread = std::thread::spawn(move || {
        for request_id in 1..=FRAMES {
            writer.send(command::SEND_MESSAGE, request_id, &[7; 4_096]);
            progress.store(request_id, Ordering::Relaxed);
        }
    });
    let taken = || logic.heard.count(|kind| matches!(kind, Kind::Frame(_)));
    // Logic offers 1,000 frames and 1 MiB, which is 256 of these.
    eventually("the credit is used up", || taken() >= 256);
    let mut before = u32::MAX;
    eventually("the client cannot write any more", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = written.load(Ordering::Relaxed);
        std::mem::replace(&mut before, now) == now
    });
    assert!(written.load(Ordering::Relaxed) < FRAMES, "the socket took everything");
    assert!(taken() <= 257, "{} frames without credit", taken());
    let beat = http(gateway.addresses().admin.expect("listens"), "GET", "/metrics").1;
    assert!(!beat.contains("millrace_receive_pauses_total 0\n"), "nobody was paused");
    logic.starve.store(false, Ordering::Relaxed);
    for request_id in 1..=FRAMES {
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.command, command::reply(command::SEND_MESSAGE), "{:?}", answer.body);
        assert_eq!(answer.request_id, request_id, "in order");
    }
    thread.join().expect("everything was written");
}
