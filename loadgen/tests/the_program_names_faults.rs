//! The real program against a server with one planted fault: it ends with 99 and names the fault in
//! its summary and in its JSON. Without a fault it ends with 0.

mod support;

use std::process::Command;

use support::{Plant, Server};

/// Exit code, standard output, and the JSON report.
fn run(server: &Server, number: usize, more: &[&str]) -> (i32, String, serde_json::Value) {
    let json =
        std::env::temp_dir().join(format!("millrace-fault-{}-{number}.json", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"))
        .args(["chat", "--tcp", &server.tcp.to_string()])
        .args(["--websocket", &format!("ws://{}/ws", server.websocket)])
        .args(["--http", &format!("http://{}", server.http), "--api-token", "api-token"])
        .args(["--jwt-secret", "secret", "--connections", "6", "--group-size", "4"])
        .args(["--single-rate", "200", "--group-rate", "20", "--ramp-rate", "400"])
        .args(["--settle", "5s", "--quiet", "--allow-late", "--json"])
        .arg(&json)
        .args(more)
        .output()
        .expect("the generator runs");
    let report = std::fs::read_to_string(&json).unwrap_or_default();
    let _ = std::fs::remove_file(&json);
    let report = serde_json::from_str(&report).unwrap_or(serde_json::Value::Null);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().expect("no signal"), text, report)
}

#[test]
fn each_planted_fault_is_reported_by_its_name() {
    let planted = [
        (Plant::Lose, 100, "lost", "2s"),
        (Plant::Duplicate, 100, "duplicated", "2s"),
        (Plant::Reorder, 100, "out_of_order", "2s"),
        (Plant::WrongSequence, 400, "wrong_sequence", "2s"),
        (Plant::EarlyIdleClose, 3, "early_idle_close", "3s"),
        (Plant::LateHeartbeat, 1, "heartbeat_late", "9s"),
    ];
    // They wait more than they work, so they run side by side.
    std::thread::scope(|scope| {
        for (number, (plant, at, name, duration)) in planted.into_iter().enumerate() {
            scope.spawn(move || {
                let server = Server::start(plant, at);
                let (exit, text, report) = run(&server, number, &["--duration", duration]);
                let found = &report["verification"]["faults"][name];
                assert_eq!(exit, 99, "{plant:?}\n{text}");
                assert!(found.as_u64() >= Some(1), "{plant:?}: {found}\n{text}");
                assert!(text.contains(&format!("{name}: ")), "{plant:?}\n{text}");
                let verified: Vec<&str> =
                    text.lines().filter(|line| line.starts_with("verified")).collect();
                println!("{plant:?}: exit {exit}, {name} {found}; {verified:?}");
            });
        }
    });
}

#[test]
fn a_server_without_a_fault_is_not_accused() {
    let server = Server::start(Plant::Nothing, 0);
    let (exit, text, report) = run(&server, 99, &["--duration", "5s"]);
    assert_eq!(exit, 0, "{text}");
    let faults = report["verification"]["faults"].as_object().expect("verified");
    assert!(faults.values().all(|count| *count == 0), "{text}");
    // The users beat every second, and their beats were timed.
    assert!(report["latency_us"]["heartbeat"]["count"].as_u64() >= Some(6), "{text}");
}
