//! The binary `millrace-logic`: its arguments, what it prints where, and how it leaves.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Output, Stdio},
};

const SECRET: &str = "a secret of the tests, long enough for HS256";

fn logic(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millrace-logic"))
        .args(arguments)
        .env_remove("MILLRACE_LOGIN__JWT_SECRET")
        .env_remove("MILLRACE_API__TOKEN")
        .output()
        .expect("it runs")
}

fn check(folder: &Path, text: &str) -> (Option<i32>, String) {
    let file = folder.join("logic.toml");
    fs::write(&file, text).expect("written");
    let output = logic(&["check", "--config", file.to_str().expect("UTF-8")]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn check_says_valid_invalid_or_wrong_usage() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = format!("[login]\njwt_secret = \"{SECRET}\"\n[api]\ntoken = \"0123456789abcdef\"\n");
    assert_eq!(check(folder.path(), &good), (Some(0), String::new()));
    let (code, text) = check(folder.path(), &format!("{good}[limits]\nreads_in_flight = 3\n"));
    assert_eq!(code, Some(1));
    assert!(text.contains("logic.toml:6:1: unknown key `reads_in_flight`"), "{text}");
    let (code, text) = check(folder.path(), "[link]\nlease = \"10ms\"\n");
    assert_eq!(code, Some(1));
    assert!(text.contains("logic.toml:2:1: link.lease"), "{text}");
    // The printed defaults are complete but for the secrets, and say so.
    let defaults = logic(&["config", "default"]);
    assert_eq!(defaults.status.code(), Some(0));
    let (code, text) = check(folder.path(), &String::from_utf8_lossy(&defaults.stdout));
    assert_eq!(code, Some(1));
    assert!(text.contains("login.jwt_secret"), "{text}");
    assert_eq!(logic(&["check"]).status.code(), Some(2));
    assert_eq!(logic(&["run", "--config", "/nonexistent.toml"]).status.code(), Some(1));
}

#[test]
fn sigterm_ends_it_well_and_its_data_directory_is_free_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("logic.toml");
    let text = format!(
        "[link]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"\"\n[admin]\nlisten = \"\"\n\
         [store]\ndirectory = \"{}\"\n[login]\njwt_secret = \"{SECRET}\"\n",
        folder.path().join("data").display()
    );
    fs::write(&file, text).expect("written");
    let run = || {
        Command::new(env!("CARGO_BIN_EXE_millrace-logic"))
            .args(["run", "--config"])
            .arg(&file)
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs")
    };
    for _ in 0..2 {
        let mut child = run();
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let listening = lines.find_map(|line| line.ok().filter(|l| l.contains("\"listening\"")));
        let listening = listening.expect("it says where it listens");
        assert!(listening.contains("\"link\":\"127.0.0.1:"), "{listening}");
        // A second process is refused the directory, in a sentence.
        let second = run().wait_with_output().expect("it ends by itself");
        let sentence = String::from_utf8_lossy(&second.stderr).into_owned();
        assert_eq!(second.status.code(), Some(1));
        assert!(sentence.contains("in use by another process"), "{sentence}");

        let kill = Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
        assert!(kill.success());
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
        assert!(lines.any(|line| line.is_ok_and(|l| l.contains("\"left\""))));
        let mut printed = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut printed).expect("read");
        assert_eq!(printed, "", "nothing but data goes to standard output");
    }
}
