//! The administrative address: what operators and their tools rely on.

mod support;

use std::collections::HashMap;

use millrace_gateway::Gateway;
use millrace_protocol::command;
use support::{
    client::{Client, Tcp, WebSocket, http},
    config, eventually,
    logic::FakeLogic,
    ready_gateway,
};

/// Every sample of a metrics page; fails on a line that is none.
fn samples(page: &str) -> HashMap<String, f64> {
    let mut samples = HashMap::new();
    let mut typed = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            typed = rest.split(' ').next().expect("a name").to_owned();
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            assert!(name.starts_with(&typed), "{line} stands below {typed}");
            let value = value.parse().expect("a number");
            assert!(samples.insert(name.to_owned(), value).is_none(), "{name} twice");
        }
    }
    samples
}

#[test]
fn probes_say_whether_it_lives_and_whether_it_serves() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let uri = format!("http://{}", closed.local_addr().expect("an address"));
    drop(closed);
    let gateway = Gateway::start(config(&uri)).expect("starts");
    let admin = gateway.addresses().admin.expect("listens");
    assert_eq!(http(admin, "GET", "/livez").0, 200);
    let (status, body) = http(admin, "GET", "/readyz");
    assert_eq!(status, 503);
    assert!(body.contains("no logic for shard 1"), "{body}");
}

#[test]
fn metrics_are_sums_over_the_shards_in_the_agreed_names() {
    let logic = FakeLogic::start();
    let gateway = ready_gateway(config(&logic.uri()));
    let addresses = gateway.addresses();
    let admin = addresses.admin.expect("listens");
    let mut tcp: Vec<Tcp> =
        (0..12).map(|_| Tcp::connect(addresses.tcp.expect("listens"))).collect();
    let mut websocket = WebSocket::connect(addresses.websocket.expect("listens"));
    for client in &mut tcp {
        assert_eq!(client.log_in("alice", "good").code, 0);
        client.ask(command::SEND_MESSAGE, 2, b"abc");
    }
    assert_eq!(websocket.log_in("bob", "bad").code, 5);
    assert_eq!(websocket.close_code(), 3505);
    drop(websocket);
    let tcp_label = "{listener=\"tcp\",transport=\"tcp\"}";
    let read = || samples(&http(admin, "GET", "/metrics").1);
    eventually("the snapshots are there", || {
        let samples = read();
        samples["millrace_connections_closed_total{code=\"bad_token\"}"] == 1.0
            && samples[&format!("millrace_messages_received_total{tcp_label}")] == 24.0
    });
    let samples = read();
    assert_eq!(samples[&format!("millrace_connections{tcp_label}")], 12.0);
    assert_eq!(samples[&format!("millrace_connections_opened_total{tcp_label}")], 12.0);
    assert_eq!(samples["millrace_sessions"], 12.0);
    assert_eq!(samples["millrace_logins_total"], 12.0);
    assert_eq!(samples["millrace_logins_refused_total{code=\"bad_token\"}"], 1.0);
    assert!(samples["process_resident_memory_bytes"] > 1_000_000.0);
    assert!(samples["process_open_fds"] > 3.0);
    assert_eq!(samples["millrace_uring_completions_stale_total"], 0.0);
    assert_eq!(samples["millrace_draining"], 0.0);
    for shard in 0..2 {
        let name = format!("millrace_link_up{{shard=\"{shard}\",endpoint=\"{}\"}}", logic.uri());
        assert_eq!(samples[&name], 1.0);
    }
    drop(tcp);
    eventually("the connections are counted out", || {
        read()[&format!("millrace_connections{tcp_label}")] == 0.0
    });
}

#[test]
fn connections_are_listed_up_to_a_limit() {
    let logic = FakeLogic::start();
    let gateway = ready_gateway(config(&logic.uri()));
    let addresses = gateway.addresses();
    let admin = addresses.admin.expect("listens");
    let mut clients: Vec<Tcp> =
        (0..5).map(|_| Tcp::connect(addresses.tcp.expect("listens"))).collect();
    for client in &mut clients {
        assert_eq!(client.log_in("alice", "good").code, 0);
    }
    let list = |query: &str| {
        let (status, body) = http(admin, "GET", &format!("/connections{query}"));
        let listed: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        (status, listed)
    };
    let (status, listed) = list("");
    assert_eq!(status, 200);
    let rows = listed["connections"].as_array().expect("a list");
    assert_eq!(rows.len(), 5);
    assert!(rows.iter().all(|row| row["user_id"] == "alice" && row["peer"] == "127.0.0.1"));
    assert_eq!(list("?limit=3").1["connections"].as_array().map(Vec::len), Some(3));
    assert_eq!(list("?limit=0").1["connections"].as_array().map(Vec::len), Some(0));
    assert_eq!(list("?limit=x").0, 400);
    assert_eq!(list("?limits=3").0, 400);
}

#[test]
fn whatever_is_not_served_is_refused_in_json() {
    let logic = FakeLogic::start();
    let gateway = ready_gateway(config(&logic.uri()));
    let admin = gateway.addresses().admin.expect("listens");
    for (method, path, status) in
        [("GET", "/", 404), ("GET", "/metrics/x", 404), ("POST", "/metrics", 405)]
    {
        let (answered, body) = http(admin, method, path);
        assert_eq!(answered, status, "{method} {path}");
        let refusal: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert!(refusal["code"].is_u64() && refusal["reason"].is_string(), "{body}");
    }
}

#[test]
fn the_configuration_is_shown_without_credentials() {
    let logic = FakeLogic::start();
    let uri = logic.uri().replace("http://", "http://user:secret@");
    let gateway = Gateway::start(config(&uri)).expect("starts");
    let admin = gateway.addresses().admin.expect("listens");
    let (status, body) = http(admin, "GET", "/config");
    assert_eq!(status, 200);
    assert!(!body.contains("secret"), "{body}");
    let shown: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(shown["connections"]["idle_timeout"], "15s");
    assert!(!http(admin, "GET", "/metrics").1.contains("secret"));
    let (status, body) = http(admin, "GET", "/version");
    assert_eq!(status, 200);
    assert!(body.contains(env!("CARGO_PKG_VERSION")), "{body}");
}
