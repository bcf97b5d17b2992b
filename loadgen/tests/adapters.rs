//! Scenarios against other people's servers, run by the real program: an echo server of the tests
//! that does wrong on purpose, over real sockets.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use millrace_protocol::websocket::{self, Limits, Message, MessageReader, Opcode, Role};

/// What the server does with the message of this number, in order of arrival.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plant {
    Nothing,
    Lose(u64),
    Duplicate(u64),
    /// It ends the connection instead of answering.
    Cut(u64),
}

fn start(plant: Plant) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let count = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let count = count.clone();
            std::thread::spawn(move || serve(stream, plant, &count));
        }
    });
    address
}

fn serve(mut stream: TcpStream, plant: Plant, count: &AtomicU64) {
    stream.set_nodelay(true).expect("a socket");
    let (mut head, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    let used = loop {
        let Ok(length @ 1..) = stream.read(&mut buffer) else { return };
        head.extend_from_slice(&buffer[..length]);
        if let websocket::UpgradeProgress::Complete { consumed, upgrade } =
            websocket::read_upgrade(&head).expect("the generator upgrades")
        {
            let mut answer = Vec::new();
            websocket::write_upgrade_response(&mut answer, &upgrade, None);
            stream.write_all(&answer).expect("the generator reads");
            break consumed;
        }
    };
    let limits = Limits { message_bytes_max: 1 << 20 };
    let (mut reader, mut input) = (MessageReader::new(), head.split_off(used));
    loop {
        let (mut from, mut answer) = (0, Vec::new());
        while let (used, Some(message)) =
            reader.read(Role::Server, &limits, &mut input[from..]).expect("RFC 6455")
        {
            from += used;
            let (opcode, payload) = match message {
                Message::Text(text) => (Opcode::Text, text.as_bytes()),
                Message::Binary(bytes) => (Opcode::Binary, &*bytes),
                Message::Ping(payload) => {
                    websocket::write_frame(&mut answer, Opcode::Pong, true, None, payload);
                    continue;
                }
                Message::Close(_) => return,
                Message::Pong(_) => continue,
            };
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            let times = match plant {
                Plant::Lose(at) if at == number => 0,
                Plant::Duplicate(at) if at == number => 2,
                Plant::Cut(at) if at == number => {
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
                _ => 1,
            };
            for _ in 0..times {
                websocket::write_frame(&mut answer, opcode, true, None, payload);
            }
        }
        if stream.write_all(&answer).is_err() {
            return;
        }
        let Ok(length @ 1..) = stream.read(&mut buffer) else { return };
        input = buffer[..length].to_vec();
    }
}

struct Outcome {
    exit: i32,
    said: String,
    report: serde_json::Value,
}

impl Outcome {
    fn count(&self, name: &str) -> u64 {
        self.report["counters"][name].as_u64().unwrap_or_else(|| panic!("{name}\n{}", self.said))
    }

    fn fault(&self, name: &str) -> u64 {
        let faults = &self.report["verification"]["faults"];
        faults[name].as_u64().unwrap_or_else(|| panic!("{name}\n{}", self.said))
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn loadgen(arguments: &[&str]) -> (i32, String) {
    let program = env!("CARGO_BIN_EXE_millrace-loadgen");
    let output = Command::new(program).args(arguments).output().expect("the generator runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code().expect("no signal"), said)
}

fn run(name: &str, server: SocketAddr, scenario: &str) -> Outcome {
    let folder = format!("millrace-adapters-{name}-{}", std::process::id());
    let folder = Folder(std::env::temp_dir().join(folder));
    std::fs::create_dir_all(&folder.0).expect("a folder for the test");
    let (file, json) = (folder.0.join("scenario.toml"), folder.0.join("report.json"));
    std::fs::write(&file, scenario).expect("the folder is there");
    let url = format!("ws://{server}/");
    let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (exit, said) = loadgen(&[
        "run",
        &path(&file),
        "--websocket",
        &url,
        "--quiet",
        "--allow-late",
        "--json",
        &path(&json),
    ]);
    let report = std::fs::read_to_string(&json).unwrap_or_default();
    let report = serde_json::from_str(&report).unwrap_or(serde_json::Value::Null);
    Outcome { exit, said, report }
}

const HEAD: &str = "protocol = \"websocket_echo\"\nconnections = 20\n\
    thresholds = [\"delivery_latency max < 60s\", \"loss = 0\", \"duplicates = 0\"]\n\
    [connect]\nper_second = 400\n[single_chat]\nper_second = 100\n";

#[test]
fn an_echo_has_stages_thresholds_and_a_verdict_like_every_scenario() {
    let scenario = format!(
        "{HEAD}[websocket_echo]\ntext = true\nping_interval = \"500ms\"\n[heartbeat]\nper_second = 20\n\
         [presence_churn]\nshare_per_minute = 6\naway_min = \"100ms\"\naway_max = \"200ms\"\n\
         [[stage]]\nname = \"up\"\nkind = \"ramp\"\nduration = \"2s\"\n\
         [[stage]]\nname = \"double\"\nkind = \"spike\"\nload = 2\nduration = \"1s\"\n\
         thresholds = [\"delivery_latency p50 < 60s\"]\n"
    );
    let outcome = run("stages", start(Plant::Nothing), &scenario);
    assert_eq!(outcome.exit, 0, "{}", outcome.said);
    assert_eq!(outcome.count("intended"), 300, "{}", outcome.said);
    assert_eq!(outcome.count("received"), 300, "{}", outcome.said);
    assert_eq!(outcome.count("acked"), 300, "{}", outcome.said);
    assert_eq!(outcome.report["verification"]["expected_deliveries"], 300);
    assert_eq!(outcome.report["configuration"]["protocol"], "websocket_echo");
    let beats = outcome.count("heartbeats");
    assert!(beats >= 60 + 20 * 3, "{beats} of a schedule and of intervals\n{}", outcome.said);
    assert!(outcome.count("churned") >= 3, "{}", outcome.said);
    assert_eq!(outcome.count("churned"), outcome.count("reconnects"), "{}", outcome.said);
    let stages = outcome.report["stages"].as_array().expect("stages");
    assert_eq!(stages[1]["latency_us"]["delivery"]["count"], 200, "{}", outcome.said);
    assert_eq!(stages[1]["thresholds"][0]["passed"], true);
    assert!(outcome.report["latency_us"]["upgrade"]["count"].as_u64() >= Some(20));
    assert_eq!(outcome.report["predicted"], serde_json::json!([]), "it is no server of ours");
}

#[test]
fn an_echo_that_is_lost_twice_there_or_cut_off_fails_the_run_by_name() {
    let stage = "[[stage]]\nduration = \"1s\"\n[verdict]\nsettle = \"1s\"\n";
    let scenario = format!("{HEAD}{stage}");
    let lost = run("lost", start(Plant::Lose(50)), &scenario);
    assert_eq!((lost.exit, lost.fault("lost")), (99, 1), "{}", lost.said);
    assert!(lost.said.contains("threshold loss = 0 missed: 1"), "{}", lost.said);
    let twice = run("twice", start(Plant::Duplicate(50)), &scenario);
    assert_eq!((twice.exit, twice.fault("duplicated")), (99, 1), "{}", twice.said);
    assert_eq!(twice.count("received"), 100);
    let cut = run("cut", start(Plant::Cut(50)), &scenario);
    assert_eq!((cut.exit, cut.count("connections_lost")), (99, 1), "{}", cut.said);
    assert_eq!(cut.fault("lost"), 0, "nobody knows of what was on a broken connection");
    assert_eq!(cut.count("unanswered"), 1, "{}", cut.said);
    assert_eq!(cut.count("reconnects"), 1, "{}", cut.said);
    // Where faults are expected, the same is no failure.
    let scenario = scenario.replace("[verdict]", "[verdict]\nexpect_faults = true");
    let cut = run("expected", start(Plant::Cut(50)), &scenario);
    assert_eq!(cut.exit, 0, "{}", cut.said);
}

#[test]
fn a_breakpoint_is_found_and_a_closed_loop_goes_as_fast_as_the_server() {
    let search = "[[stage]]\nname = \"step\"\nkind = \"breakpoint\"\nduration = \"1s\"\nfrom = 0.5\n\
        to = 1\nsteps = 2\nthresholds = [\"delivery_latency p50 < 2s\"]\n";
    let outcome = run("search", start(Plant::Nothing), &format!("{HEAD}{search}"));
    assert_eq!(outcome.exit, 0, "{}", outcome.said);
    assert_eq!(outcome.report["breakpoint"]["held_load"], 1.0, "{}", outcome.said);
    let broken = search.replace("2s", "1us");
    let outcome = run("broken", start(Plant::Nothing), &format!("{HEAD}{broken}"));
    assert_eq!(outcome.exit, 99, "{}", outcome.said);
    assert!(outcome.said.contains("not even the first step held"), "{}", outcome.said);
    let closed = HEAD.replace("per_second = 100", "closed_loop = 2");
    let closed = format!("{closed}[[stage]]\nduration = \"1s\"\n");
    let outcome = run("closed", start(Plant::Nothing), &closed);
    assert_eq!(outcome.exit, 0, "{}", outcome.said);
    assert!(outcome.count("received") > 200, "{}", outcome.said);
    assert_eq!(outcome.count("received"), outcome.count("intended"), "{}", outcome.said);
}

#[test]
fn a_server_of_another_protocol_is_named_before_the_load() {
    // It speaks, but no HTTP.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        }
    });
    let stage = "reconnects = false\n";
    let scenario = format!("{HEAD}[[population]]\nname = \"all\"\n{stage}");
    let outcome = run("foreign", address, &scenario);
    assert_eq!(outcome.exit, 105, "{}", outcome.said);
    assert!(outcome.said.contains("only 0 of 20 users are logged in"), "{}", outcome.said);
    assert!(outcome.said.contains("upgrade: "), "{}", outcome.said);
}

#[test]
fn a_scenario_is_run_as_another_protocol_or_refused_with_what_that_lacks() {
    let (exit, said) = loadgen(&["scenario", "check", "mqtt", "websocket-echo", "breakpoint"]);
    assert_eq!(exit, 0, "{said}");
    let server = format!("ws://{}/", start(Plant::Nothing));
    let change =
        ["--protocol", "websocket_echo", "--websocket", &server, "--quiet", "--allow-late"];
    let shorter = ["--connections", "10", "--load", "0.1", "--time", "0.02"];
    let run = |preset: &str| loadgen(&[&["run", preset][..], &change, &shorter].concat());
    // Its limits may be missed on a slow machine; a fault, or what it cannot do, may not.
    let (exit, said) = run("spike");
    assert!(exit == 0 || exit == 99 && said.contains("threshold"), "{exit}\n{said}");
    assert!(said.contains(" lost 0,") && said.contains("duplicated 0,"), "{said}");
    let (exit, said) = run("million");
    assert_eq!(exit, 104, "{said}");
    assert!(said.contains("room_broadcast: an echo goes to its sender only"), "{said}");
}
