//! Several logics behind one gateway, which runs as a process of its own: one is killed, one comes up,
//! one leaves, one comes back, and a thousand clients that ask all the time stay connected.
//!
//! The logics are the SDK's server, in this process; what they are told together is in one ledger.

#![allow(clippy::print_stdout)] // The figures are printed with --nocapture.

#[path = "../processes/mod.rs"]
mod processes;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use processes::{
    clients::Clients,
    eventually,
    gateway::{self, GatewayProcess},
    logic::{Ledger, Logic},
};

const CLIENTS: usize = 1_000;

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// An address that nobody listens on yet.
fn free_address() -> SocketAddr {
    let probe = std::net::TcpListener::bind(any_port()).expect("a free port");
    probe.local_addr().expect("its address")
}

#[test]
fn a_thousand_clients_stay_while_logics_are_killed_come_up_and_leave() {
    let ledger = Arc::new(Ledger::default());
    let first = Logic::start("first", any_port(), &ledger);
    let second = Logic::start("second", any_port(), &ledger);
    let third_at = free_address();
    let endpoints = [first.address, second.address, third_at].map(|at| format!("http://{at}"));
    let gateway = GatewayProcess::start_with(&endpoints, "reconnect_max = \"200ms\"");
    eventually("both logics have their links", || {
        gateway.metric("millrace_link_up") == 2 * u64::from(gateway::SHARDS)
    });
    let at = |address: SocketAddr| {
        gateway.metric_of("millrace_link_sessions", &format!("http://{address}"))
    };
    let mut clients = Clients::log_in(gateway.tcp, CLIENTS);
    let (one, other) = (first.sessions(), second.sessions());
    assert_eq!(one + other, CLIENTS);
    assert!(one.abs_diff(other) <= 2 * gateway::SHARDS as usize, "{one} and {other}");
    clients.ask_all();
    assert_eq!(clients.refused, 0);

    // One is killed: who had something under way is told so, and nobody is disconnected.
    let killed_at = first.address;
    first.kill();
    eventually("the other one has everybody", || {
        clients.ask_all();
        second.sessions() == CLIENTS
    });
    let refused = std::mem::take(&mut clients.refused);
    clients.ask_all();
    assert_eq!(clients.refused, 0, "everybody is served again");
    eventually("the metrics say so", || {
        gateway.metric("millrace_sessions_homeless") == 0 && at(second.address) == CLIENTS as u64
    });
    println!("killed: {refused} requests refused, {one} sessions taken in by the other");

    // A third comes up: it gets its share, and nobody notices anything.
    let third = Logic::start("third", third_at, &ledger);
    eventually("the third has its share", || {
        clients.ask_all();
        third.sessions() >= CLIENTS * 2 / 5
    });
    assert_eq!(clients.refused, 0, "a move refuses nothing");

    // One leaves: its sessions move, and then nothing is lost by its end.
    let leaving = second.hand_over_in_background();
    eventually("it has let go", || {
        clients.ask_all();
        leaving.is_finished()
    });
    let handed_over = leaving.join().expect("no panic");
    println!("handed over: {handed_over:?}");
    assert!(handed_over.in_time && handed_over.sessions_left == 0, "{handed_over:?}");
    assert_eq!(third.sessions(), CLIENTS);
    clients.ask_all();
    assert_eq!(clients.refused, 0, "a logic that leaves refuses nothing");

    // The first comes back, with nobody's memory.
    let first = Logic::start("first again", killed_at, &ledger);
    eventually("it has its share again", || {
        clients.ask_all();
        first.sessions() >= CLIENTS * 2 / 5
    });
    assert_eq!(clients.refused, 0);
    assert_eq!(gateway.metric("millrace_sessions"), CLIENTS as u64);
    assert_eq!(gateway.metric("millrace_logins_total"), CLIENTS as u64, "nobody came anew");
    assert_eq!(gateway.metric("millrace_sessions_ended_total"), 0);

    // Everybody leaves; each end is told once, where the session is at home.
    clients.log_out();
    eventually("all ends are told", || ledger.ends() == CLIENTS);
    eventually("nobody is left", || first.sessions() + third.sessions() == 0);
    assert_eq!(ledger.ended_twice(), 0);
    assert_eq!(ledger.out_of_order(), 0, "frames of a client arrive in order over its homes");
    let moved = gateway.metric("millrace_sessions_moved_total");
    println!("moved: {moved}");
    assert!(moved as usize >= 2 * CLIENTS * 2 / 5 + handed_over.sessions_moved as usize);
}

#[test]
fn two_endpoints_of_one_logic_do_not_take_its_streams_from_each_other() {
    let ledger = Arc::new(Ledger::default());
    let everywhere = "0.0.0.0:0".parse().expect("an address");
    let logic = Logic::start("one", everywhere, &ledger);
    let port = logic.address.port();
    // Both addresses are this machine's.
    let endpoints = [format!("http://127.0.0.1:{port}"), format!("http://127.0.0.2:{port}")];
    let gateway = GatewayProcess::start_with(
        &endpoints,
        "reconnect_min = \"10ms\"\nreconnect_max = \"50ms\"",
    );
    let streams = || gateway.metric("millrace_link_streams_total");
    let shards = u64::from(gateway::SHARDS);
    // Each shard's links take the stream from each other until one has seen that it was the other. Then
    // nothing happens for a time in which they had begun many.
    let mut since = (streams(), Instant::now());
    eventually("one of the two waits", || {
        let now = streams();
        if now != since.0 {
            since = (now, Instant::now());
        }
        now > shards && since.1.elapsed() > Duration::from_secs(2)
    });
    assert_eq!(gateway.metric("millrace_link_up"), shards);
    let mut clients = Clients::log_in(gateway.tcp, 20);
    clients.ask_all();
    assert_eq!((clients.refused, logic.sessions(), streams()), (0, 20, since.0));

    // It starts again, and is found by whichever link tries first.
    logic.kill();
    let address = SocketAddr::from(([0, 0, 0, 0], port));
    eventually("its port is free", || std::net::TcpListener::bind(address).is_ok());
    let logic = Logic::start("one", address, &ledger);
    eventually("all are served again", || {
        clients.ask_all();
        std::mem::take(&mut clients.refused) == 0 && logic.sessions() == 20
    });
    // The shards publish their counters now and then.
    eventually("nobody came anew", || gateway.metric("millrace_logins_total") == 20);
    println!("streams: {} at first, {} in the end", since.0, streams());
}
