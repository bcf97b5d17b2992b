//! A gateway whose logics are the addresses of a name, as of a headless service: addresses come and go,
//! the name server fails in every way it can, and several hundred clients that ask all the time stay
//! connected and are refused nothing.
//!
//! The gateway is a process of its own that asks a real name server through the system's resolver; the
//! logics are the SDK's server, in this process. It takes root; without it, it says so and ends. Where root
//! itself may not make a namespace for mounts it fails.

#![allow(clippy::print_stdout)] // The figures are printed with --nocapture.

mod name_server;
#[path = "../processes/mod.rs"]
mod processes;

use std::{io::Write, net::SocketAddr, sync::Arc};

use name_server::{Answer, NameServer};
use processes::{
    clients::Clients,
    eventually,
    gateway::{self, GatewayProcess},
    logic::{Ledger, Logic},
};

const CLIENTS: usize = 400;

/// Lookups that have to come to nothing until we believe that nothing comes of it.
const LOOKUPS: u64 = 3;

/// The gateway, with what its metrics say about endpoints.
struct World {
    gateway: GatewayProcess,
    names: NameServer,
    clients: Clients,
}

impl World {
    fn say(&self, logics: &[SocketAddr]) {
        self.names.say(Answer::Addresses(logics.to_vec()));
    }

    /// Named, kept, and without a link.
    fn endpoints(&self) -> (u64, u64, u64) {
        let known = |state: &str| self.gateway.metric_of("millrace_link_endpoints", state);
        let without = self.gateway.metric("millrace_link_endpoints_without_place");
        (known("\"named\""), known("\"kept\""), without)
    }

    fn lookups(&self, result: &str) -> u64 {
        self.gateway.metric_of("millrace_link_name_lookups_total", result)
    }

    /// Clients ask until so many more lookups have had this result.
    fn until_looked_up(&mut self, result: &str) {
        let before = self.lookups(result);
        eventually("the name is looked up", || {
            self.clients.ask_all();
            self.lookups(result) >= before + LOOKUPS
        });
    }

    /// Streams that there were to a logic.
    fn streams(&self, logic: SocketAddr) -> u64 {
        self.gateway.metric_of("millrace_link_streams_total", &logic.to_string())
    }

    #[track_caller]
    fn nobody_noticed(&mut self) {
        self.clients.ask_all();
        assert_eq!(self.clients.refused, 0, "a request was refused");
        assert_eq!(self.gateway.metric("millrace_sessions"), CLIENTS as u64);
        assert_eq!(self.gateway.metric("millrace_logins_total"), CLIENTS as u64, "one came anew");
        assert_eq!(self.gateway.metric("millrace_sessions_ended_total"), 0);
    }
}

#[test]
fn logics_come_and_go_by_their_name_and_a_name_server_that_fails_hurts_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    if !rustix::process::geteuid().is_root() {
        // Past what cargo catches of a test that passes.
        let said = "logics_by_name: NOT TESTED, as it takes root (port 53, unshare --mount)";
        writeln!(std::io::stderr(), "{said}").expect("standard error");
        return;
    }
    let names = NameServer::start();
    let wrapper = names.asked_by(folder.path());

    // All of a name listen on one port, as pods do.
    let ledger = Arc::new(Ledger::default());
    let [.., high, low] = std::process::id().to_be_bytes();
    let address =
        |number: u8, port: u16| SocketAddr::from(([127, high.max(64), low, number], port));
    let first = Logic::start("first", address(1, 0), &ledger);
    let port = first.address.port();
    let (second_at, third_at) = (address(2, port), address(3, port));

    names.say(Answer::Addresses(vec![first.address]));
    let gateway = GatewayProcess::start_through(
        &wrapper,
        &[format!("dns:logic.test:{port}")],
        "endpoints_max = 2\nresolve_interval = \"200ms\"\nreconnect_max = \"200ms\"",
    );
    let clients = Clients::log_in(gateway.tcp, CLIENTS);
    let mut world = World { gateway, names, clients };
    assert_eq!((first.sessions(), world.endpoints()), (CLIENTS, (1, 0, 0)));

    // A second one appears: it gets its share.
    let second = Logic::start("second", second_at, &ledger);
    world.say(&[second_at, first.address]);
    eventually("the second has its share", || {
        world.clients.ask_all();
        second.sessions() >= CLIENTS * 2 / 5
    });
    assert_eq!(world.endpoints(), (2, 0, 0));
    world.nobody_noticed();

    // The name server fails, in every way.
    for failure in [Answer::ServerFailure, Answer::NoSuchName, Answer::Silence] {
        println!("{failure:?}");
        world.names.say(failure);
        world.until_looked_up("\"failed\"");
        assert_eq!(world.endpoints(), (2, 0, 0));
        world.nobody_noticed();
    }
    world.say(&[]);
    world.until_looked_up("\"failed\"");
    assert_eq!(world.endpoints(), (2, 0, 0), "a name without addresses");
    world.nobody_noticed();

    // It leaves one out for a while, whose links work.
    world.say(&[second_at]);
    eventually("the answer is taken", || world.endpoints() == (1, 1, 0));
    world.until_looked_up("\"addresses\"");
    assert!(first.sessions() >= CLIENTS * 2 / 5, "its sessions stay");
    world.nobody_noticed();
    world.say(&[first.address, second_at]);
    eventually("the answer is taken", || world.endpoints() == (2, 0, 0));
    assert_eq!(world.streams(first.address), u64::from(gateway::SHARDS), "no link was touched");
    assert_eq!(world.streams(second_at), u64::from(gateway::SHARDS), "no link was touched");

    // A third one has to wait for a place, and gets that of the one that leaves.
    let third = Logic::start("third", third_at, &ledger);
    world.say(&[first.address, second_at, third_at]);
    eventually("there is no place for it", || world.endpoints() == (2, 0, 1));
    world.say(&[second_at, third_at]);
    eventually("one is kept", || world.endpoints() == (1, 1, 1));
    world.nobody_noticed();
    let first_at = first.address;
    let leaving = first.hand_over_in_background();
    eventually("it has let go", || {
        world.clients.ask_all();
        leaving.is_finished()
    });
    let handed_over = leaving.join().expect("no panic");
    println!("handed over: {handed_over:?}");
    assert!(handed_over.in_time && handed_over.sessions_left == 0, "{handed_over:?}");
    eventually("the third has its place", || world.endpoints() == (2, 0, 0));
    assert_eq!(world.gateway.samples_of("millrace_link_up", &first_at.to_string()), 0, "gone");
    eventually("the third has its share", || {
        world.clients.ask_all();
        third.sessions() >= CLIENTS * 2 / 5
    });
    world.nobody_noticed();

    // While the name server is away, one is killed and comes back where it was.
    world.names.say(Answer::ServerFailure);
    world.until_looked_up("\"failed\"");
    second.kill();
    eventually("the third has everybody", || {
        world.clients.ask_all();
        third.sessions() == CLIENTS
    });
    let refused = std::mem::take(&mut world.clients.refused);
    println!("killed: {refused} requests refused");
    let second = Logic::start("second again", second_at, &ledger);
    eventually("it has its share again", || {
        world.clients.ask_all();
        second.sessions() >= CLIENTS * 2 / 5
    });
    assert_eq!(world.endpoints(), (2, 0, 0));
    world.nobody_noticed();

    world.clients.log_out();
    eventually("all ends are told", || ledger.ends() == CLIENTS);
    eventually("nobody is left", || second.sessions() + third.sessions() == 0);
    assert_eq!(ledger.ended_twice(), 0);
    assert_eq!(ledger.out_of_order(), 0, "frames of a client arrive in order over its homes");
}
