//! The real program's commands that open no connections: what they print, and how they end.

use std::{path::Path, process::Command};

const PROGRAM: &str = env!("CARGO_BIN_EXE_millrace-loadgen");

/// Standard output, standard error and exit code.
fn run(arguments: &[&str]) -> (String, String, i32) {
    let output = Command::new(PROGRAM).args(arguments).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

#[test]
fn a_doctor_of_few_connections_finds_this_machine_ready() {
    let (out, _, code) = run(&["doctor", "--connections", "10"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("io_uring") && out.contains("descriptors"), "{out}");
}

#[test]
fn a_doctor_with_a_low_limit_and_nobody_listening_says_both_and_exits_121() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound").port()
    };
    let script =
        format!("ulimit -Sn 256; exec {PROGRAM} doctor --connections 4M --to 127.0.0.1:{port}");
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh starts");
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(121), "{out}");
    for words in ["FAIL  descriptors", "ofile", "FAIL  targets", "refused"] {
        assert!(out.contains(words), "{words} is missing in\n{out}");
    }
    let (out, _, code) =
        run(&["doctor", "--connections", "4M", "--to", &format!("127.0.0.1:{port}"), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &json["passed"]), (121, &false.into()));
}

#[test]
fn a_plan_is_the_same_as_text_and_as_json_and_nonsense_exits_104() {
    let (text, _, code) = run(&["plan", "--connections", "10M", "--messages-per-second", "50k"]);
    assert_eq!(code, 0, "{text}");
    let (json, _, _) =
        run(&["plan", "--connections", "10M", "--messages-per-second", "50k", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    for tier in json["tiers"].as_array().expect("tiers") {
        let line = format!("{} {}", tier["count"], tier["name"].as_str().expect("a name"));
        assert!(text.contains(&line), "{line} is missing in\n{text}");
    }
    for bad in [
        &["plan"][..],
        &["plan", "--connections", "many"],
        &["plan", "--connections", "5", "--utilization", "2"],
    ] {
        let (_, error, code) = run(bad);
        assert_eq!(code, 104, "{bad:?}: {error}");
    }
}

fn report(folder: &Path, name: &str, p99_9: u64, saturated: bool) -> String {
    let report = serde_json::json!({
        "tool": "millrace-loadgen", "schema_version": 1, "passed": true,
        "latency_us": {"delivery": {"count": 1000, "p50": 100, "p90": 200, "p99": 300, "p99.9": p99_9, "max": 9000, "curve": []}},
        "generator": {"saturated": saturated},
    });
    let path = folder.join(name);
    std::fs::write(&path, report.to_string()).expect("written");
    path.to_string_lossy().into_owned()
}

#[test]
fn compare_ends_as_its_conditions_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = report(folder.path(), "before.json", 1000, false);
    let slower = report(folder.path(), "slower.json", 1060, false);
    let spoilt = report(folder.path(), "spoilt.json", 1000, true);
    let compare =
        |after: &str, condition: &str| run(&["compare", &before, after, "--fail-on", condition]);
    assert_eq!(compare(&slower, "p99.9 > +10%").2, 0);
    let (out, _, code) = compare(&slower, "p99.9 > +5%");
    assert_eq!(code, 99, "{out}");
    assert!(out.contains("FAIL  p99.9 > +5%") && out.contains("+6.0 %"), "{out}");
    assert_eq!(compare(&spoilt, "p99.9 > +5%").2, 120);
    assert_eq!(compare("/nonexistent", "p99.9 > +5%").2, 104);
    let (_, error, code) = compare(&slower, "p99.9 > 5%");
    assert!(code == 104 && error.contains("sign"), "{error}");
}

#[test]
fn a_report_is_drawn_again_from_its_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = report(folder.path(), "before.json", 1000, false);
    let page = folder.path().join("page.html");
    let (out, error, code) = run(&["report", &before, "--html", &page.to_string_lossy()]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("page.html"), "{out}");
    assert!(std::fs::read_to_string(page).expect("written").contains("delivery p99.9"));
    assert_eq!(run(&["report", &before]).2, 104);
}
