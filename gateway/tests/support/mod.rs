//! What the tests of the gateway share: a scripted logic tier over a real gRPC stream, and small
//! blocking clients over real sockets.

#![allow(dead_code, missing_docs)]

pub mod client;
pub mod logic;

use std::time::{Duration, Instant};

use millrace_gateway::{Config, Gateway};
use millrace_service::Duration as Span;

/// How long a test waits for something that should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `holds`; fails with `what` if it never does.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A configuration for tests: loopback, free ports, two shards, short times.
pub fn config(logic: &str) -> Config {
    let mut config = Config::default();
    config.gateway.id = "test-gateway".to_owned();
    config.gateway.shards = 2;
    config.gateway.pin_shards = false;
    config.listen.websocket = "127.0.0.1:0".to_owned();
    config.listen.tcp = "127.0.0.1:0".to_owned();
    config.admin.listen = "127.0.0.1:0".to_owned();
    config.connections.connections_max = 2_000;
    config.connections.linger = Span::from_millis(500);
    config.logic.endpoints = vec![logic.to_owned()];
    config.logic.reconnect_min = Span::from_millis(20);
    config.logic.reconnect_max = Span::from_millis(200);
    config.drain.shutdown = Span::from_millis(600);
    config.drain.reconnect_after_min = Span::from_millis(10);
    config.drain.reconnect_after_max = Span::from_millis(300);
    config
}

/// A running gateway whose links are up.
pub fn ready_gateway(config: Config) -> Gateway {
    let gateway = Gateway::start(config).expect("the gateway starts");
    eventually("the gateway is ready", || gateway.unready_reasons().is_empty());
    gateway
}
