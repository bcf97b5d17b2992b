//! Whole runs against a server with a planted fault: each is found under its name, and a server
//! without one passes. Real sockets, the real driver, the real threads.

mod support;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use clap::Parser;
use millrace_loadgen::{
    cli::{Cli, Command},
    exit::{Exit, RunError},
    report::Report,
    subcommands,
};
use support::{Plant, Server};

/// 40 users, 200 single and 20 group messages a second for two seconds.
fn run_with(server: &Server, more: &[&str]) -> Result<Report, RunError> {
    let (tcp, http) = (server.tcp.to_string(), format!("http://{}", server.http));
    let websocket = format!("ws://{}/ws", server.websocket);
    let mut line = vec!["millrace-loadgen", "chat", "--tcp", &tcp, "--websocket", &websocket];
    line.extend(["--http", &http, "--jwt-secret", "secret"]);
    line.extend(["--single-rate", "200", "--group-rate", "20"]);
    if !more.contains(&"--connections") {
        line.extend(["--connections", "40", "--group-size", "8"]);
    }
    line.extend(["--ramp-rate", "400", "--quiet", "--allow-late"]);
    line.extend(more);
    if !more.contains(&"--api-token") {
        line.extend(["--api-token", "api-token"]);
    }
    if !more.contains(&"--settle") {
        line.extend(["--settle", "3s"]);
    }
    if !more.contains(&"--duration") {
        line.extend(["--duration", "2s"]);
    }
    let cli = Cli::try_parse_from(line).expect("valid arguments");
    let Command::Chat(arguments) = cli.command else { panic!("not chat") };
    subcommands::run(&arguments, &Arc::new(AtomicBool::new(false)))
}

fn run(plant: Plant, more: &[&str]) -> (Report, Server) {
    let server = Server::start(plant, 100);
    let report = run_with(&server, more).expect("a result");
    (report, server)
}

fn fault(report: &Report, kind: &str) -> u64 {
    report.verification.as_ref().expect("verified").faults[kind]
}

fn assert_found(plant: Plant, kind: &str) {
    // So few users that every message soon has a successor to the same recipient.
    let (report, _server) = run(plant, &["--connections", "6", "--group-size", "4"]);
    assert_eq!(report.exit_code, Exit::Failed as u8, "{plant:?}\n{}", report.to_text());
    assert!(fault(&report, kind) >= 1, "{plant:?}\n{}", report.to_text());
    let others: u64 = report.verification.as_ref().expect("verified").faults.values().sum();
    assert!(others <= fault(&report, kind) + 1, "{plant:?}\n{}", report.to_text());
}

#[test]
fn a_good_server_passes_and_gets_a_good_client() {
    let (report, server) = run(Plant::Nothing, &["--threshold", "delivery_p50<10s"]);
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert_eq!(report.counters["intended"], 440);
    assert_eq!(report.counters["acked"], 440);
    assert_eq!(report.counters["received"], 400 + 40 * 7);
    assert_eq!(report.counters["pulled"], 0, "{}", report.to_text());
    assert_eq!(report.latency_us["delivery"].count, 680);
    server.with_model(|model| {
        assert_eq!((model.logins, model.logouts), (40, 40));
        assert!(model.heartbeats >= 40, "{} heartbeats", model.heartbeats);
        // Coalesced: at most one for each delivery.
        assert!(model.acks > 0 && model.acks <= 680, "{} acks", model.acks);
        assert_eq!(model.retransmissions, 0);
    });
}

#[test]
fn a_lost_message_is_found() {
    assert_found(Plant::Lose, "lost");
}

#[test]
fn a_duplicated_delivery_is_found() {
    assert_found(Plant::Duplicate, "duplicated");
}

#[test]
fn a_reordered_delivery_is_found() {
    assert_found(Plant::Reorder, "out_of_order");
}

#[test]
fn a_gap_in_the_sequence_is_found() {
    assert_found(Plant::SkipSequence, "gap");
}

#[test]
fn a_message_stored_twice_is_found() {
    assert_found(Plant::StoreTwice, "stored_twice");
}

#[test]
fn a_delivery_under_a_wrong_id_is_found() {
    assert_found(Plant::WrongId, "wrong_message");
}

#[test]
fn a_delivery_to_a_stranger_is_found() {
    assert_found(Plant::Misdeliver, "misdelivered");
}

#[test]
fn an_undelivered_message_that_can_be_pulled_is_not_lost_but_counted() {
    let (report, _server) = run(Plant::DeliverOnlyOnPull, &[]);
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert!(report.counters["pulled"] >= 1, "{}", report.to_text());
    let (report, _server) = run(Plant::DeliverOnlyOnPull, &["--threshold", "pulled=0"]);
    assert_eq!(report.exit_code, Exit::Failed as u8, "{}", report.to_text());
}

#[test]
fn what_is_acknowledged_while_the_verifier_asks_is_asked_for_and_not_called_lost() {
    // The last message of the run.
    let server = Server::start(Plant::AcknowledgeLate, 440);
    let report = run_with(&server, &[]).expect("a result");
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert_eq!(report.counters["acked"], 440, "{}", report.to_text());
    assert!(report.counters["pulled"] >= 2, "{}", report.to_text());
    assert_eq!(report.verification.as_ref().expect("verified").unverified, 0);
}

#[test]
fn a_stalled_server_raises_the_latency_and_does_not_lower_the_rate() {
    let stall = Duration::from_millis(1500);
    let (report, _server) = run(Plant::Stall(stall), &["--duration", "3s"]);
    // Every message of the schedule was still meant and sent …
    assert_eq!(report.counters["intended"], 660, "{}", report.to_text());
    assert_eq!(report.counters["acked"], 660, "{}", report.to_text());
    // … and the stall is in the latency, of the many that it met and not of one alone.
    assert!(report.latency_us["ack"].max >= 1_400_000, "{}", report.to_text());
    assert!(report.latency_us["ack"].p90 >= 300_000, "{}", report.to_text());
    assert!(report.latency_us["ack"].p50 >= 1000, "{}", report.to_text());
}

#[test]
fn cut_connections_are_made_again_and_nothing_is_stored_twice() {
    let (report, server) = run(Plant::CutEverything, &["--expect-faults", "--settle", "30s"]);
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert_eq!(report.counters["acked"], 440, "{}", report.to_text());
    assert!(report.counters["connections_lost"] >= 1, "{}", report.to_text());
    assert_eq!(report.counters["reconnects"], report.counters["connections_lost"]);
    // The message whose reply was withheld came again under its id.
    assert!(report.counters["resent"] >= 1, "{}", report.to_text());
    assert!(report.counters["acked_duplicate"] >= 1, "{}", report.to_text());
    server.with_model(|model| assert!(model.retransmissions >= 1));

    let (report, _server) = run(Plant::CutEverything, &[]);
    assert_eq!(report.exit_code, Exit::Failed as u8, "without --expect-faults");
}

/// Half of the users go and come back every second.
const CHURN: [&str; 4] = ["--churn-per-minute", "30", "--churn-away", "50ms..300ms"];

#[test]
fn who_goes_and_comes_back_gets_what_was_sent_meanwhile() {
    let (report, server) = run(Plant::Nothing, &CHURN);
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    // 40 users, half of them a second, for two seconds.
    assert_eq!(report.counters["churned"] + report.counters["nobody_there"], 40);
    assert!(report.counters["churned"] >= 10, "{}", report.to_text());
    assert_eq!(report.counters["reconnects"], report.counters["churned"]);
    assert_eq!(report.counters["connections_lost"], 0);
    assert_eq!(report.counters["received"], 400 + 40 * 7);
    assert_eq!(report.latency_us["return"].count, report.counters["churned"]);
    let delivered = report.latency_us["delivery"].count;
    let offline = report.latency_us["delivery_offline"].count;
    assert_eq!(delivered + offline, 680, "{}", report.to_text());
    assert!(offline >= 1, "some were away when something was sent: {}", report.to_text());
    server.with_model(|model| assert_eq!(model.logins, 40 + report.counters["churned"]));
}

#[test]
fn a_server_that_forgets_those_who_are_away_is_found() {
    let (report, _server) = run(Plant::LoseOffline, &CHURN);
    assert_eq!(report.exit_code, Exit::Failed as u8, "{}", report.to_text());
    assert!(fault(&report, "lost") >= 1, "{}", report.to_text());
}

#[test]
fn a_connection_that_the_server_ends_unasked_fails_the_run() {
    let (report, _server) = run(Plant::CutOne, &[]);
    assert_eq!(report.exit_code, Exit::Failed as u8, "{}", report.to_text());
    assert_eq!(report.counters["connections_lost"], 1);
    assert_eq!(report.endings.by_code["idle_timeout"], 1);
}

const ROOM: [&str; 4] = ["--room-size", "30", "--room-rate", "10"];

#[test]
fn every_member_of_the_room_gets_every_message_once() {
    let (report, _server) = run(Plant::Nothing, &ROOM);
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert_eq!((report.counters["room_sent"], report.counters["room_acked"]), (20, 20));
    assert_eq!(report.counters["room_received"], 20 * 29, "{}", report.to_text());
    assert_eq!(report.latency_us["delivery_room"].count, 20 * 29);
    assert_eq!(report.latency_us["delivery"].count, 680, "the room is not in it");
}

#[test]
fn a_fanout_is_a_room_of_everybody_and_fails_when_a_message_is_lost() {
    for (plant, exit_code) in [(Plant::Nothing, 0), (Plant::RoomLose, Exit::Failed as u8)] {
        let server = Server::start(plant, 5);
        let (tcp, websocket) = (server.tcp, server.websocket);
        let line = format!(
            "millrace-loadgen fanout --tcp {tcp} --websocket ws://{websocket}/ws --jwt-secret s \
             --connections 20 --rate 10 --duration 2s --ramp-rate 400 --quiet --allow-late"
        );
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("valid arguments");
        let Command::Fanout(arguments) = cli.command else { panic!("not fanout") };
        let aborted = Arc::new(AtomicBool::new(false));
        let report =
            subcommands::run_as("fanout", &arguments.as_chat(), &aborted).expect("a result");
        assert_eq!(report.exit_code, exit_code, "{}", report.to_text());
        let lost = u64::from(plant == Plant::RoomLose);
        assert_eq!(report.counters["room_received"], 20 * 19 - lost, "{}", report.to_text());
    }
}

#[test]
fn members_who_come_back_join_again_and_are_owed_only_what_came_after() {
    let (report, _server) = run(Plant::Nothing, &[ROOM, CHURN].concat());
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert_eq!(report.counters["room_sent"], 20);
    assert!(report.counters["room_joins"] > 30, "{}", report.to_text());
}

#[test]
fn faults_of_a_room_are_found_under_their_names() {
    for (plant, kind) in [
        (Plant::RoomLose, "room_lost"),
        (Plant::RoomDuplicate, "room_duplicated"),
        (Plant::RoomReorder, "room_out_of_order"),
        (Plant::RoomStranger, "room_wrong"),
    ] {
        let server = Server::start(plant, 5);
        let report = run_with(&server, &ROOM).expect("a result");
        assert_eq!(report.exit_code, Exit::Failed as u8, "{plant:?}\n{}", report.to_text());
        let faults = &report.verification.as_ref().expect("verified").faults;
        let found = faults.iter().filter(|(_, count)| **count > 0);
        let found: Vec<_> = found.map(|(kind, count)| (kind.as_str(), *count)).collect();
        assert_eq!(found, [(kind, 1)], "{plant:?}\n{}", report.to_text());
    }
}

#[test]
fn a_refusal_that_passes_is_retried_with_the_same_id() {
    let (report, server) = run(Plant::RefuseOnce, &[]);
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert_eq!(report.refusals["logic_unavailable"], 1);
    assert_eq!(report.counters["acked"], 440);
    server.with_model(|model| assert_eq!(model.retransmissions, 1));
}

#[test]
fn a_server_that_refuses_everything_twice_gets_no_more_than_two_resends_of_each() {
    let server = Server::start(Plant::RefuseAll(2), 0);
    let report = run_with(&server, &["--settle", "30s"]).expect("a result");
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert_eq!(report.counters["acked"], 440, "{}", report.to_text());
    assert_eq!(report.counters["send_refusals"], 2 * 440);
    assert_eq!(report.counters["resent"], 2 * 440);
    server.with_model(|model| assert_eq!(model.sends, 3 * 440));
}

#[test]
fn what_is_wrong_before_the_run_has_its_own_exit_codes() {
    let server = Server::start(Plant::Nothing, 0);
    let refused = run_with(&server, &["--api-token", "wrong"]).expect_err("no permission");
    assert_eq!(refused.exit, Exit::Preflight, "{refused}");
    assert!(refused.message.contains("not permitted"), "{refused}");

    let nonsense = run_with(&server, &["--websocket-share", "2"]).expect_err("out of range");
    assert_eq!(nonsense.exit, Exit::BadArguments);

    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound")
    };
    let line = format!(
        "millrace-loadgen chat --tcp {closed} --websocket-share 0 --jwt-secret s --group-rate 0"
    );
    let cli = Cli::try_parse_from(line.split(' ')).expect("valid arguments");
    let Command::Chat(arguments) = cli.command else { panic!("not chat") };
    let unreachable = subcommands::run(&arguments, &Arc::new(AtomicBool::new(false)))
        .expect_err("nobody listens");
    assert_eq!(unreachable.exit, Exit::Preflight, "{unreachable}");
}
