//! How a gateway leaves: clients are told, logic is told, everything ends.

mod support;

use std::{
    io::Read,
    net::TcpStream,
    time::{Duration, Instant},
};

use millrace_gateway::{Gateway, Phase};
use millrace_protocol::{Code, command, link::gateway_event::Kind, session::GoAway};
use prost::Message;
use support::{
    client::{Client, Tcp, WebSocket, http},
    config, eventually,
    logic::FakeLogic,
    ready_gateway,
};

#[test]
fn a_drain_tells_every_client_when_to_leave_and_logic_hears_of_every_end() {
    let logic = FakeLogic::start();
    let gateway = ready_gateway(config(&logic.uri()));
    let addresses = gateway.addresses();
    let mut tcp: Vec<Tcp> =
        (0..10).map(|_| Tcp::connect(addresses.tcp.expect("listens"))).collect();
    let mut websocket: Vec<WebSocket> =
        (0..10).map(|_| WebSocket::connect(addresses.websocket.expect("listens"))).collect();
    for client in &mut tcp {
        assert_eq!(client.log_in("alice", "good").code, 0);
    }
    for client in &mut websocket {
        assert_eq!(client.log_in("bob", "good").code, 0);
    }
    let started = Instant::now();
    gateway.drain();
    assert_eq!(gateway.phase(), Phase::Draining);
    let (status, body) = http(addresses.admin.expect("listens"), "GET", "/readyz");
    assert_eq!(status, 503);
    assert!(body.contains("draining"), "{body}");
    // Those over TCP leave when they are told; those over WebSocket stay until they are put out.
    for mut client in tcp {
        let frame = client.receive().expect("GOAWAY");
        assert_eq!(frame.command, command::GOAWAY);
        let goaway = GoAway::decode(frame.body.as_slice()).expect("a GoAway");
        assert_eq!(goaway.code, Code::Draining.number());
        assert!(goaway.reconnect_after_ms_min <= goaway.reconnect_after_ms_max);
        assert_eq!(goaway.reconnect_after_ms_max, 300);
    }
    for client in &mut websocket {
        assert_eq!(client.receive().expect("GOAWAY").command, command::GOAWAY);
        let error = client.receive().expect("ERROR").error();
        assert_eq!(error.code, Code::Draining.number());
        assert_eq!(client.close_code(), Code::Draining.websocket_close_code());
    }
    gateway.join().expect("no shard failed");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let ended = logic.heard.ended();
    assert_eq!(ended.len(), 20, "{ended:?}");
    let put_out = ended.iter().filter(|(_, code)| *code == Code::Draining.number()).count();
    assert_eq!(put_out, 10, "{ended:?}");
    assert!(TcpStream::connect(addresses.tcp.expect("listens")).is_err(), "nobody listens");
}

#[test]
fn a_gateway_without_clients_leaves_without_waiting_for_the_window() {
    let logic = FakeLogic::start();
    let mut config = config(&logic.uri());
    config.drain.shutdown = millrace_service::Duration::from_secs(600);
    let gateway = ready_gateway(config);
    gateway.drain();
    let started = Instant::now();
    gateway.join().expect("no shard failed");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_stop_ends_at_once_whatever_is_connected() {
    let logic = FakeLogic::start();
    let gateway = ready_gateway(config(&logic.uri()));
    let mut client = Tcp::connect(gateway.addresses().tcp.expect("listens"));
    assert_eq!(client.log_in("alice", "good").code, 0);
    gateway.stop();
    gateway.join().expect("no shard failed");
    let mut rest = Vec::new();
    // FIN or reset: either way nothing more comes.
    assert!(client.0.read_to_end(&mut rest).map_or(true, |_| rest.is_empty()));
}

#[test]
fn a_gateway_starts_and_leaves_without_any_logic() {
    // Nobody listens on the port of a listener that is closed again.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let uri = format!("http://{}", closed.local_addr().expect("an address"));
    drop(closed);
    let gateway = Gateway::start(config(&uri)).expect("starts");
    let mut client = Tcp::connect(gateway.addresses().tcp.expect("listens"));
    let reply = client.log_in("alice", "good");
    assert_eq!(reply.code, Code::LogicUnavailable.number());
    let reasons = gateway.unready_reasons();
    assert_eq!(reasons, ["no logic for shard 0", "no logic for shard 1"]);
    drop(client);
    gateway.drain();
    gateway.join().expect("no shard failed");
}

#[test]
fn a_second_gateway_does_not_slip_in_beside_the_first() {
    let logic = FakeLogic::start();
    let first = ready_gateway(config(&logic.uri()));
    let mut second = config(&logic.uri());
    second.listen.tcp = first.addresses().tcp.expect("listens").to_string();
    second.listen.bind_wait = millrace_service::Duration::from_millis(100);
    let error = Gateway::start(second).expect_err("refused").to_string();
    assert!(error.contains("cannot listen on 127.0.0.1:"), "{error}");
    let mut client = Tcp::connect(first.addresses().tcp.expect("listens"));
    assert_eq!(client.log_in("alice", "good").code, 0, "the first one serves on");
}

#[test]
fn a_gateway_with_two_logics_uses_the_other_when_one_dies() {
    let logics = [FakeLogic::start(), FakeLogic::start()];
    let mut config = config(&logics[0].uri());
    config.logic.endpoints.push(logics[1].uri());
    let gateway = ready_gateway(config);
    let mut client = Tcp::connect(gateway.addresses().tcp.expect("listens"));
    assert_eq!(client.log_in("alice", "good").code, 0);
    let serving = |logic: &FakeLogic| logic.heard.count(|kind| matches!(kind, Kind::Login(_))) > 0;
    let [a, b] = logics;
    let (dying, other) = if serving(&a) { (a, b) } else { (b, a) };
    dying.kill();
    eventually("the session is listed elsewhere", || other.heard.listed().len() == 1);
    let mut request_id = 100;
    eventually("requests are answered again", || {
        request_id += 1;
        client.ask(command::SEND_MESSAGE, request_id, b"z").body == b"z"
    });
}
