//! The binary as operators and their scripts use it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStderr, Command, Output, Stdio},
};

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
    let report = text(&checked.stdout);
    assert!(report.starts_with("on this machine: up to "), "{report}");
    for part in ["connections_max: ", "descriptors: ", "For more: ", "net.core.somaxconn is "] {
        assert!(report.contains(part), "{part} is not in:\n{report}");
    }
}

#[test]
fn a_table_above_the_limit_fails_check_and_run_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, "[uring]\nsockets_max = 16777216\n").expect("written");
    for command in ["check", "run"] {
        let refused = Command::new("sh")
            .args(["-c", "ulimit -n 512 && exec \"$0\" \"$@\""])
            .args([env!("CARGO_BIN_EXE_millrace-gateway"), command, "--config"])
            .arg(&file)
            .output()
            .expect("runs");
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains("RLIMIT_NOFILE allows a ring 512"));
    }
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

/// A running gateway process, with the lines that it has written so far.
struct Running {
    process: Child,
    log: BufReader<ChildStderr>,
    tcp: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start(drain: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.toml");
        let text = format!(
            "[gateway]\nshards = 2\n[listen]\ntcp = \"127.0.0.1:0\"\nwebsocket = \"\"\n\
             [admin]\nlisten = \"\"\n[log]\nformat = \"json\"\n[drain]\nshutdown = \"{drain}\"\n"
        );
        std::fs::write(&file, text).expect("written");
        let mut process = Command::new(env!("CARGO_BIN_EXE_millrace-gateway"))
            .args(["run", "--config", file.to_str().expect("UTF-8")])
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        let log = BufReader::new(process.stderr.take().expect("piped"));
        let address = "127.0.0.1:1".parse().expect("an address");
        let mut running = Self { process, log, tcp: address, _folder: folder };
        let line = running.line_with("listening");
        running.tcp = line["tcp"].as_str().expect("an address").parse().expect("an address");
        running
    }

    /// The next log line with this message.
    fn line_with(&mut self, message: &str) -> serde_json::Value {
        loop {
            let mut line = String::new();
            let read = self.log.read_line(&mut line).expect("read");
            assert!(read > 0, "it ended before it said {message:?}");
            let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON line");
            if line["msg"].as_str().is_some_and(|msg| msg.starts_with(message)) {
                return line;
            }
        }
    }

    fn terminate(&self) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().expect("runs");
        assert!(sent.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a failed test leaves it running.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[test]
fn it_says_what_it_holds_and_sigterm_ends_it_in_good_order() {
    let mut gateway = Running::start("10s");
    let holds = gateway.line_with("this process holds");
    let capacity = holds["capacity"].as_str().expect("a sentence");
    assert!(capacity.starts_with("up to ") && capacity.contains("bound by"), "{capacity}");
    gateway.terminate();
    gateway.line_with("leaving");
    gateway.line_with("left");
    assert_eq!(gateway.process.wait().expect("ended").code(), Some(0));
    assert!(TcpStream::connect(gateway.tcp).is_err());
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    let mut gateway = Running::start("1h");
    let mut client = TcpStream::connect(gateway.tcp).expect("connected");
    // A client that would be given an hour to leave, known to the gateway by its answer.
    client.write_all(&[0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 9]).expect("written");
    let mut answer = [0; 12];
    client.read_exact(&mut answer).expect("not logged in");
    gateway.terminate();
    gateway.line_with("leaving");
    gateway.terminate();
    gateway.line_with("second signal");
    assert_eq!(gateway.process.wait().expect("ended").code(), Some(130));
}
