//! The binary as operators and their scripts use it.

use std::process::{Command, Output};

fn gateway(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millrace-gateway")).args(arguments).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn the_printed_default_is_valid() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.toml");
    let printed = gateway(&["config", "default"]);
    assert!(printed.status.success());
    std::fs::write(&file, &printed.stdout).expect("written");
    let checked = gateway(&["check", "--config", file.to_str().expect("UTF-8")]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
}

#[test]
fn a_check_fails_with_one_line_that_names_place_and_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.toml");
    let path = file.to_str().expect("UTF-8");
    for (wrong, expected) in [
        ("[listen]\ntpc = \"0.0.0.0:1\"\n", ":2:1: unknown key `tpc`; did you mean `tcp`?"),
        ("[logic]\n\nlease = 10\n", ":3:9: 10 has no unit"),
        ("[logic]\nlease = \"1ms\"\n", ":2:1: logic.lease: must be between 300ms and 1h"),
    ] {
        std::fs::write(&file, wrong).expect("written");
        for command in ["check", "run"] {
            let refused = gateway(&[command, "--config", path]);
            assert_eq!(refused.status.code(), Some(1));
            let line = text(&refused.stderr);
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(line.starts_with(&format!("{path}{expected}")), "{line}");
        }
    }
}

#[test]
fn wrong_arguments_end_with_2() {
    assert_eq!(gateway(&["check"]).status.code(), Some(2));
    assert_eq!(gateway(&["fly"]).status.code(), Some(2));
    assert_eq!(gateway(&[]).status.code(), Some(2));
}
