//! The scenarios `idle` and `echo` against small servers, over real sockets.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use clap::Parser;
use millrace_loadgen::{
    cli::{Cli, Command},
    echo,
    exit::{Exit, RunError},
    report::Report,
    subcommands,
};
use millrace_protocol::{
    command,
    frame::{self, Flags, FrameReader},
    session,
    websocket::{self, Limits, Message as WebSocketMessage, MessageReader, Opcode, Role},
};
use prost::Message;

fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn run(line: &str) -> Result<Report, RunError> {
    let cli = Cli::try_parse_from(line.split_whitespace()).expect("valid arguments");
    let aborted = Arc::new(AtomicBool::new(false));
    match cli.command {
        Command::Idle(arguments) => subcommands::run_idle(&arguments, &aborted),
        Command::Echo(arguments) => echo::run(&arguments, &aborted),
        _ => panic!("not tested here"),
    }
}

#[test]
fn flat_out_users_beat_again_at_every_answer_and_the_others_keep_their_interval() {
    let address = listen(serve_idle);
    let report = run(&format!(
        "millrace-loadgen idle --tcp {address} --websocket-share 0 --jwt-secret s --connections 6 \
         --flat-out 2 --duration 2s --ramp-rate 100 --quiet"
    ))
    .expect("a result");
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    // An interval of 300 ms gives two users 14 in two seconds; a closed loop thousands.
    assert!(report.counters["flat_out"] >= 100, "{}", report.to_text());
    let others = report.counters["heartbeats"] - report.counters["flat_out"];
    assert!((4..=60).contains(&others), "{}", report.to_text());
}

/// Accepts every LOGIN, answers heartbeats, and ends who is silent for a second.
fn serve_idle(mut stream: TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
    let (mut reader, mut buffer) = (FrameReader::new(), [0; 4096]);
    let mut writer = stream.try_clone().expect("a socket");
    loop {
        let mut answer = Vec::new();
        let mut go_on = true;
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let read = reader.read(&buffer[..count], 65536, |header, _| {
                    let reply = session::LoginReply {
                        heartbeat_interval_ms: 300,
                        idle_timeout_ms: 1000,
                        ..session::LoginReply::default()
                    };
                    let is_login = header.command == command::LOGIN;
                    let body = if is_login { reply.encode_to_vec() } else { Vec::new() };
                    let reply = command::reply(header.command);
                    frame::write(&mut answer, reply, Flags::NONE, header.request_id, &body);
                    go_on = header.command != command::LOGOUT;
                    go_on
                });
                read.expect("the client speaks the protocol");
            }
            Err(_) => {
                let error = session::Error { code: 12, ..session::Error::default() };
                let body = error.encode_to_vec();
                frame::write(&mut answer, command::ERROR, Flags::NONE, 0, &body);
                go_on = false;
            }
        }
        if writer.write_all(&answer).is_err() || !go_on {
            return;
        }
    }
}

#[test]
fn silent_connections_are_timed_from_their_last_frame_and_named_by_code() {
    let address = listen(serve_idle);
    let line = format!(
        "millrace-loadgen idle --tcp {address} --websocket-share 0 --jwt-secret s --quiet \
         --connections 30 --ramp-rate 100 --duration 10s --silent --closed-between"
    );
    let report = run(&format!("{line} 0.9s..5s")).expect("a result");
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert_eq!(report.endings.count, 30);
    assert_eq!(report.endings.by_code["idle_timeout"], 30);
    assert!(report.endings.silence_seconds_min >= 0.9, "{}", report.to_text());
    assert!(report.load_seconds < 9.0, "ends as soon as all are gone");

    let report = run(&format!("{line} 20s..30s")).expect("a result");
    assert_eq!(report.exit_code, Exit::Failed as u8, "{}", report.to_text());
}

#[test]
fn heartbeats_keep_idle_connections_alive() {
    let address = listen(serve_idle);
    let report = run(&format!(
        "millrace-loadgen idle --tcp {address} --websocket-share 0 --jwt-secret s --quiet \
         --connections 30 --ramp-rate 100 --duration 3s"
    ))
    .expect("a result");
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    assert_eq!(report.counters["connections_lost"], 0);
    assert!(report.counters["heartbeats"] >= 30 * 6, "{}", report.to_text());
}

/// Echoes; every `wrong_every`-th message with its last byte changed (0: never).
fn serve_echo(mut stream: TcpStream, wrong_every: u64) {
    stream.set_nodelay(true).expect("a socket");
    let (mut head, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    let used = loop {
        let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
        head.extend_from_slice(&buffer[..count]);
        if let websocket::UpgradeProgress::Complete { consumed, upgrade } =
            websocket::read_upgrade(&head).expect("the client upgrades")
        {
            let mut answer = Vec::new();
            websocket::write_upgrade_response(&mut answer, &upgrade, None);
            stream.write_all(&answer).expect("the client reads");
            break consumed;
        }
    };
    let limits = Limits { message_bytes_max: 16 << 20 };
    let (mut reader, mut input, mut echoed) = (MessageReader::new(), head.split_off(used), 0);
    loop {
        let mut from = 0;
        while let (used, Some(message)) = reader
            .read(Role::Server, &limits, &mut input[from..])
            .expect("the client speaks RFC 6455")
        {
            from += used;
            let (opcode, mut payload) = match message {
                WebSocketMessage::Text(text) => (Opcode::Text, text.as_bytes().to_vec()),
                WebSocketMessage::Binary(bytes) => (Opcode::Binary, bytes.to_vec()),
                WebSocketMessage::Close(_) => return,
                _ => continue,
            };
            echoed += 1;
            if wrong_every > 0 && echoed % wrong_every == 0 {
                *payload.last_mut().expect("not empty") = b'!';
            }
            let mut answer = Vec::new();
            websocket::write_frame(&mut answer, opcode, true, None, &payload);
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
        let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
        input = buffer[..count].to_vec();
    }
}

#[test]
fn echoes_are_counted_checked_and_timed() {
    let address = listen(|stream| serve_echo(stream, 0));
    for more in ["--rate 500 --text", "--rate 200 --size 70000", "--rate 0 --threads 2"] {
        let report = run(&format!(
            "millrace-loadgen echo ws://{address}/ --connections 10 --duration 1s --quiet \
             --allow-late {more}"
        ))
        .expect("a result");
        assert_eq!(report.exit_code, 0, "{more}\n{}", report.to_text());
        let intended = report.counters["intended"];
        assert!(intended >= 200, "{more}: {intended}");
        assert_eq!(report.counters["echoes"], intended, "{more}");
        assert_eq!(report.latency_us["echo"].count, intended, "{more}");
    }
}

#[test]
fn a_changed_echo_is_found() {
    let address = listen(|stream| serve_echo(stream, 10));
    let report = run(&format!(
        "millrace-loadgen echo ws://{address}/ --connections 2 --rate 100 --duration 1s --quiet \
         --allow-late"
    ))
    .expect("a result");
    assert_eq!(report.exit_code, Exit::Failed as u8, "{}", report.to_text());
    assert_eq!(report.counters["echoes_wrong"], 10, "{}", report.to_text());
}

#[test]
fn connections_come_from_the_source_addresses_that_were_named() {
    let (seen, peers) = std::sync::mpsc::channel();
    let address = listen(move |stream| {
        seen.send(stream.peer_addr().expect("connected").ip()).expect("the test waits");
        serve_echo(stream, 0);
    });
    let report = run(&format!(
        "millrace-loadgen echo ws://{address}/ --connections 4 --rate 100 --duration 1s --quiet \
         --allow-late --source-addresses 127.0.9.1-127.0.9.2"
    ))
    .expect("a result");
    assert_eq!(report.exit_code, 0, "{}", report.to_text());
    let mut peers: Vec<String> = peers.try_iter().map(|peer| peer.to_string()).collect();
    peers.sort();
    // The first connection only asks whether anybody is there.
    peers.retain(|peer| peer != "127.0.0.1");
    assert_eq!(peers, ["127.0.9.1", "127.0.9.1", "127.0.9.2", "127.0.9.2"]);
    let error = run(&format!(
        "millrace-loadgen echo ws://{address}/ --quiet --source-addresses 192.0.2.77"
    ))
    .expect_err("not this machine's");
    assert_eq!(error.exit, Exit::Preflight);
}
