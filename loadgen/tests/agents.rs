//! Coordinator and agents as the processes that they are: the figures of two machines against those of
//! one, clocks that are wrong, and machines that are lost, each against the small test server.

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicU32, atomic::Ordering},
    time::{Duration, Instant},
};

use clap::Parser as _;
use millrace_loadgen::{
    agents::{agent::Running, build},
    cli::{Cli, Command as LoadCommand},
};
use serde_json::Value;
use support::{Plant, Server, Stall};

const PROGRAM: &str = env!("CARGO_BIN_EXE_millrace-loadgen");

/// Each of them wants the machine for itself.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

static FILES: AtomicU32 = AtomicU32::new(0);

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!("millrace-agents-{}-{number}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a temporary file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("plain")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A process of ours, which does not outlive the test.
struct Process {
    child: Child,
}

impl Process {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().expect("it starts") }
    }

    fn signal(&self, name: &str) {
        let process = self.child.id().to_string();
        let done = Command::new("kill").args(["-s", name, &process]).status();
        assert!(done.expect("kill is part of every system").success());
    }

    fn wait(&mut self, at_most: Duration) -> Option<i32> {
        let until = Instant::now() + at_most;
        loop {
            if let Some(status) = self.child.try_wait().expect("ours") {
                return status.code();
            }
            assert!(Instant::now() < until, "it did not end within {at_most:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut text).expect("text");
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An agent, and where it listens.
struct Agent {
    process: Process,
    address: String,
}

impl Agent {
    fn start(more: &[&str]) -> Self {
        Self::start_with(&[], more)
    }

    fn start_with(prefix: &[&str], more: &[&str]) -> Self {
        let words = [prefix, &[PROGRAM, "agent", "--listen", "127.0.0.1:0"], more].concat();
        let mut process = Process::start(words[0], &words[1..]);
        let stdout = process.child.stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let rest = line.strip_prefix("listening on ").expect("where it listens");
        let address = rest.split(',').next().expect("an address").to_owned();
        Self { process, address }
    }
}

/// A run of a scenario, alone or over agents.
struct Run {
    process: Process,
    json: File,
}

impl Run {
    fn start(server: &Server, scenario: &File, more: &[&str]) -> Self {
        let json = File::new("report.json", "");
        let (tcp, http) = (server.tcp.to_string(), format!("http://{}", server.http));
        let mut words = vec!["run", scenario.path(), "--tcp", &tcp, "--http", &http];
        words.extend(["--jwt-secret", "secret", "--api-token", "api-token"]);
        words.extend(["--user-prefix", "load", "--json", json.path()]);
        words.extend(more);
        Self { process: Process::start(PROGRAM, &words), json }
    }

    fn over(server: &Server, scenario: &File, agents: &[&Agent], more: &[&str]) -> Self {
        let addresses: Vec<&str> = agents.iter().map(|agent| &*agent.address).collect();
        let addresses = addresses.join(",");
        let words = [&["--agents", &addresses], more].concat();
        Self::start(server, scenario, &words)
    }

    /// Exit code, report, and what it said on standard error.
    fn finish(mut self) -> (i32, Value, String) {
        let exit = self.process.wait(Duration::from_secs(90)).expect("no signal");
        let text = std::fs::read_to_string(&self.json.0).unwrap_or_default();
        let report = serde_json::from_str(&text).unwrap_or(Value::Null);
        (exit, report, self.process.errors())
    }
}

fn scenario(rest: &str, seconds: u32, connections: u32) -> File {
    let text = format!(
        "connections = {connections}\nthresholds = [\"loss = 0\", \"duplicates = 0\"]\n\
         [connect]\nper_second = 400\n\
         [[population]]\nname = \"users\"\nshare = 1\ntransport = \"tcp\"\n{rest}\n\
         [[stage]]\nname = \"only\"\nduration = \"{seconds}s\"\n\
         [generator]\nthreads = 1\nallow_saturated = true\n"
    );
    File::new("scenario.toml", &text)
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sends(server: &Server) -> u64 {
    server.with_model(|model| model.sends)
}

fn number(report: &Value, path: &str) -> f64 {
    let value = report.pointer(path).unwrap_or_else(|| panic!("{path} is missing in {report:#}"));
    value.as_f64().unwrap_or_else(|| panic!("{path} is {value}"))
}

/// The latency in microseconds that all but `share` of the moments of a load stay below, if everything
/// is answered at once but for the stalls: the truth.
fn truth_us(stalls: &[Stall], from_us: f64, seconds: f64, share: f64) -> f64 {
    let to_us = from_us + seconds * 1e6;
    let longer_than = |x: f64| {
        let lengths = stalls.iter().map(|stall| {
            let (begin, end) = (stall.from_unix_us as f64, stall.to_unix_us as f64);
            ((end - x).min(to_us) - begin.max(from_us)).max(0.0)
        });
        lengths.sum::<f64>() / (to_us - from_us)
    };
    let (mut low, mut high) = (0.0, 1e9);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if longer_than(middle) > share { low = middle } else { high = middle }
    }
    high
}

#[test]
fn two_agents_and_a_coordinator_give_the_percentiles_of_one_process() {
    let _alone = alone();
    const RATE: f64 = 400.0;
    const SECONDS: u32 = 8;
    let load = scenario(&format!("[single_chat]\nper_second = {RATE}"), SECONDS, 40);
    // 1 s of 4, over two periods: a quarter of all messages waits, from 0 to 1 s.
    let stalling = || {
        let server = Server::start(Plant::Nothing, 0);
        server.stall_every(Duration::from_secs(1), Duration::from_secs(4));
        server
    };
    let server = stalling();
    let (exit, one, said) = Run::start(&server, &load, &[]).finish();
    assert_eq!(exit, 0, "{said}\n{:#}", one["failures"]);
    let alone_stalls = server.stalls();

    let server = stalling();
    let agents = [Agent::start(&[]), Agent::start(&[])];
    let (exit, two, said) = Run::over(&server, &load, &[&agents[0], &agents[1]], &[]).finish();
    assert_eq!(exit, 0, "{said}\n{:#}", two["failures"]);
    let together_stalls = server.stalls();

    // The same load: as many messages, all verified.
    for counter in ["intended", "acked", "received", "logins"] {
        let path = format!("/counters/{counter}");
        assert_eq!(number(&one, &path), number(&two, &path), "{counter}");
    }
    assert_eq!(number(&two, "/verification/acked"), number(&two, "/counters/acked"));
    assert_eq!(two["agents"].as_array().expect("agents").len(), 2, "{:#}", two["agents"]);
    println!("latency           percentile    one process   two agents    truth of each");
    for name in ["ack", "delivery"] {
        for (percentile, share) in [("p50", 0.5), ("p90", 0.1), ("p99", 0.01), ("p99.9", 0.001)] {
            let at = |report: &Value| number(report, &format!("/latency_us/{name}/{percentile}"));
            let truth = |report: &Value, stalls: &[Stall]| {
                let from_us = number(report, "/load_started_at_unix_us");
                truth_us(stalls, from_us, f64::from(SECONDS), share)
            };
            let (alone_truth, together_truth) =
                (truth(&one, &alone_stalls), truth(&two, &together_stalls));
            println!(
                "{name:<17} {percentile:<10} {:>10.1} ms {:>10.1} ms {:>10.1} {:>10.1} ms",
                at(&one) / 1e3,
                at(&two) / 1e3,
                alone_truth / 1e3,
                together_truth / 1e3
            );
            // Off from the truth by a twentieth, which is what the generator promises of stalls and what
            // a busy machine needs to answer all that waited in one; by the moments that the schedule
            // has and the truth has not (two of them); and by what the generator itself was late. What a
            // message takes without a stall is the server's: some milliseconds on a busy machine.
            for (report, truth) in [(&one, alone_truth), (&two, together_truth)] {
                let late = number(report, "/generator/late_p999_us");
                let serving = number(report, "/latency_us/service/p50");
                let allowed = 0.05 * truth + 2.0 * 1e6 / RATE + late + 5.0 * serving + 10_000.0;
                let off = (at(report) - truth).abs();
                assert!(off <= allowed, "{name} {percentile}: {off} > {allowed}, {truth}");
            }
        }
    }
    let streamed: f64 = two["windows"]
        .as_array()
        .expect("a time line")
        .iter()
        .filter_map(|window| window["counters"]["acked"].as_f64())
        .sum();
    assert_eq!(streamed, number(&two, "/counters/acked"), "the time line has every message");
}

#[test]
fn clocks_that_are_wrong_are_measured_reported_and_do_no_harm() {
    let _alone = alone();
    let server = Server::start(Plant::Nothing, 0);
    let load = scenario(
        "[single_chat]\nper_second = 100\n[group_chat]\nper_second = 4\ngroup_size = 5",
        2,
        40,
    );
    // One is a minute ahead, one eleven seconds behind.
    let agents = [
        Agent::start(&["--clock-ahead-ms", "60000"]),
        Agent::start(&["--clock-ahead-ms", "-11000"]),
    ];
    let (exit, report, said) =
        Run::over(&server, &load, &[&agents[0], &agents[1]], &["--threshold", "loss=0"]).finish();
    assert_eq!(exit, 0, "{said}\n{:#}", report["failures"]);
    for (index, ahead_us) in [(0, 60e6), (1, -11e6)] {
        let agent = &report["agents"][index];
        for (offset, uncertainty) in [
            ("/clock_offset_us", "/clock_uncertainty_us"),
            ("/clock_offset_end_us", "/clock_uncertainty_end_us"),
        ] {
            let (offset, within) = (number(agent, offset), number(agent, uncertainty));
            println!("agent {index}: {offset:.1} ± {within:.1} µs, the truth is {ahead_us}");
            // Both clocks are read once from the machine's, which may be slewed meanwhile.
            assert!((offset - ahead_us).abs() <= within + 50.0, "{agent:#}");
            assert!(within < 100_000.0, "a round trip on one machine: {agent:#}");
        }
        assert!(number(agent, "/clock_drift_us").abs() < 100_000.0, "{agent:#}");
        assert_eq!(number(agent, "/share"), 0.5);
    }
    // The view is of both together.
    let seen = said.lines().find(|line| line.contains(" load ") && line.contains("up     40"));
    let seen = seen.unwrap_or_else(|| panic!("no line of the load: {said}"));
    println!("{seen}");
    assert!(!seen.contains("p99      0.0 ms"), "latencies are streamed: {seen}");
    let load_phase =
        report["phases"].as_array().expect("phases").iter().find(|one| one["name"] == "load");
    assert!(load_phase.is_some(), "{:#}", report["phases"]);
    assert!(number(&report, "/counters/acked") >= 200.0);
}

#[test]
fn generators_that_were_late_spoil_the_run_by_name() {
    let _alone = alone();
    let server = Server::start(Plant::Nothing, 0);
    let text = "connections = 40\n[connect]\nper_second = 400\n\
        [[population]]\nname = \"users\"\nshare = 1\ntransport = \"tcp\"\n\
        [single_chat]\nper_second = 100\n[[stage]]\nname = \"only\"\nduration = \"1s\"\n\
        [generator]\nthreads = 1\nlate_p99_max = \"0s\"\n";
    let load = File::new("strict.toml", text);
    let agents = [Agent::start(&[]), Agent::start(&[])];
    let (exit, report, said) = Run::over(&server, &load, &[&agents[0], &agents[1]], &[]).finish();
    assert_eq!(exit, 120, "{said}\n{:#}", report["failures"]);
    let failures = report["failures"].to_string();
    for agent in &agents {
        let named = format!("agent {}: in", agent.address);
        assert!(failures.contains(&named), "{failures}");
    }
    assert!(failures.contains("the generator itself was late"), "{failures}");
    assert_eq!(report["agents"][0]["generator"]["saturated"], true, "{:#}", report["agents"]);
}

#[test]
fn an_agent_that_is_killed_fails_the_run_by_name_and_the_others_wait_again() {
    let _alone = alone();
    let server = Server::start(Plant::Nothing, 0);
    let load = scenario("[single_chat]\nper_second = 100", 20, 20);
    let (good, mut bad) = (Agent::start(&[]), Agent::start(&[]));
    let run = Run::over(&server, &load, &[&good, &bad], &[]);
    wait_for("the load", || sends(&server) > 200);
    // What was streamed is reported.
    std::thread::sleep(Duration::from_millis(1500));
    bad.process.child.kill().expect("ours");
    bad.process.child.wait().expect("ours");
    let began = Instant::now();
    let (exit, report, said) = run.finish();
    assert_eq!(exit, 105, "{said}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let failures = report["failures"].to_string();
    assert!(failures.contains(&bad.address) && failures.contains("lost"), "{failures}");
    assert!(report["agents"][1]["lost"].is_string(), "{:#}", report["agents"]);
    assert!(report["agents"][0]["lost"].is_null(), "{:#}", report["agents"]);
    assert!(number(&report, "/latency_us/ack/count") > 100.0, "what was measured until then");
    wait_for("all sessions are gone", || server.sessions() == 0);

    // The one that is left takes another run.
    let load = scenario("[single_chat]\nper_second = 50", 1, 20);
    let (exit, report, said) = Run::over(&server, &load, &[&good], &[]).finish();
    assert_eq!(exit, 0, "{said}\n{:#}", report["failures"]);
}

#[test]
fn an_agent_that_stands_still_is_lost_and_ends_its_load_when_it_goes_on() {
    let _alone = alone();
    let server = Server::start(Plant::Nothing, 0);
    let load = scenario("[single_chat]\nper_second = 100", 30, 20);
    let (good, still) = (Agent::start(&[]), Agent::start(&[]));
    let run = Run::over(&server, &load, &[&good, &still], &["--agent-silence-max", "3s"]);
    wait_for("the load", || sends(&server) > 100);
    still.process.signal("STOP");
    let began = Instant::now();
    let (exit, report, said) = run.finish();
    still.process.signal("CONT");
    assert_eq!(exit, 105, "{said}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let failures = report["failures"].to_string();
    assert!(
        failures.contains(&still.address) && failures.contains("nothing was heard"),
        "{failures}"
    );
    wait_for("the one that goes on ends its sessions", || server.sessions() == 0);
}

#[test]
fn agents_without_a_coordinator_stop_their_load_and_wait_again() {
    let _alone = alone();
    let server = Server::start(Plant::Nothing, 0);
    let load = scenario("[single_chat]\nper_second = 100", 30, 20);
    let agents = [Agent::start(&[]), Agent::start(&[])];
    let both = [&agents[0], &agents[1]];
    let mut run = Run::over(&server, &load, &both, &[]);
    wait_for("the load", || sends(&server) > 100);

    // Another coordinator is told to wait.
    let short = scenario("[single_chat]\nper_second = 50", 1, 20);
    let (exit, _, said) = Run::over(&server, &short, &both, &[]).finish();
    assert_eq!(exit, 121, "{said}");
    assert!(said.contains("busy"), "{said}");

    run.process.child.kill().expect("ours");
    run.process.child.wait().expect("ours");
    wait_for("all sessions are gone", || server.sessions() == 0);
    let before = sends(&server);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(sends(&server), before, "nobody sends any more");

    // And one that hangs is left alone as well, after the time that it named itself.
    let mut run = Run::over(&server, &load, &both, &["--agent-silence-max", "3s"]);
    wait_for("the load", || sends(&server) > before + 100);
    run.process.signal("STOP");
    wait_for("all sessions are gone", || server.sessions() == 0);
    run.process.child.kill().expect("ours");

    let (exit, report, said) = Run::over(&server, &short, &both, &[]).finish();
    assert_eq!(exit, 0, "{said}\n{:#}", report["failures"]);

    // Ctrl-C at the coordinator ends all of it.
    let before = sends(&server);
    let run = Run::over(&server, &load, &both, &[]);
    wait_for("the load", || sends(&server) > before + 100);
    run.process.signal("INT");
    let (exit, _, said) = run.finish();
    assert_eq!(exit, 105, "{said}");
    assert!(said.contains("interrupted"), "{said}");
    wait_for("all sessions are gone", || server.sessions() == 0);
}

#[test]
fn who_may_not_or_cannot_is_refused_before_anything_begins() {
    let _alone = alone();
    let server = Server::start(Plant::Nothing, 0);
    let load = scenario("[single_chat]\nper_second = 50", 1, 40);
    let right = File::new("right", "0123456789abcdef-right\n");
    let wrong = File::new("wrong", "0123456789abcdef-wrong\n");
    let open = Agent::start(&[]);
    let locked = Agent::start(&["--once", "--token-file", right.path()]);
    let token = |file: &File| ["--agents-token-file".to_owned(), file.path().to_owned()];
    let refused = |agents: &[&Agent], more: &[&str], words: &[&str]| {
        let (exit, report, said) = Run::over(&server, &load, agents, more).finish();
        assert_eq!(exit, 121, "{said}\n{:#}", report["failures"]);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert_eq!(server.with_model(|model| model.logins), 0, "nothing has begun");
    };
    refused(&[&open, &locked], &[], &[&locked.address, "token"]);
    let other = token(&wrong);
    refused(&[&open, &locked], &[&other[0], &other[1]], &[&locked.address, "token"]);

    // A machine that cannot hold its share.
    let narrow = Agent::start_with(&["prlimit", "--nofile=40"], &[]);
    refused(&[&open, &narrow], &[], &[&narrow.address, "cannot hold its share", "descriptors"]);

    // Another build, in this process.
    let arguments = Cli::parse_from(["millrace-loadgen", "agent", "--listen", "127.0.0.1:0"]);
    let LoadCommand::Agent(arguments) = arguments.command else { panic!("an agent") };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let other = runtime.block_on(Running::start(&arguments, "0.0.9+feed")).expect("it listens");
    let address = other.address.to_string();
    let list = format!("{},{address}", open.address);
    let (exit, _, said) = Run::start(&server, &load, &["--agents", &list]).finish();
    assert_eq!(exit, 121, "{said}");
    for words in [&*address, "0.0.9+feed", build(), "the same millrace-loadgen"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    runtime.block_on(other.stop());

    // Nobody there at all.
    let list = format!("{},127.0.0.1:1", open.address);
    let (exit, _, said) = Run::start(&server, &load, &["--agents", &list]).finish();
    assert_eq!(exit, 121, "{said}");
    assert!(said.contains("127.0.0.1:1") && said.contains("cannot be reached"), "{said}");

    // The right word opens the door; with --once for one run.
    let right = token(&right);
    let (exit, report, said) =
        Run::over(&server, &load, &[&open, &locked], &[&right[0], &right[1]]).finish();
    assert_eq!(exit, 0, "{said}\n{:#}", report["failures"]);
    let mut locked = locked;
    assert_eq!(locked.process.wait(Duration::from_secs(10)), Some(0), "--once");
}

#[test]
fn a_search_judges_its_steps_by_what_all_agents_measured_and_ends_the_load() {
    let _alone = alone();
    let server = Server::start(Plant::Nothing, 0);
    // A limit on the rate itself, so that it is known which step breaks on any machine: 20, 40, 60, 80
    // messages in a step, half of them at each agent.
    let text = "connections = 20\n[connect]\nper_second = 400\n[single_chat]\nper_second = 100\n\
        [[population]]\nname = \"users\"\nshare = 1\ntransport = \"tcp\"\n\
        [[stage]]\nname = \"step\"\nkind = \"breakpoint\"\nduration = \"1s\"\nfrom = 0.2\nto = 2.4\n\
        steps = 12\nthresholds = [\"intended < 70\"]\n\
        [generator]\nthreads = 1\nallow_saturated = true\n";
    let load = File::new("search.toml", text);
    let agents = [Agent::start(&["--clock-ahead-ms", "5000"]), Agent::start(&[])];
    let (exit, report, said) = Run::over(&server, &load, &[&agents[0], &agents[1]], &[]).finish();
    assert_eq!(exit, 0, "{said}\n{:#}", report["failures"]);
    println!("{}", report["breakpoint"]);
    assert!((number(&report, "/breakpoint/held_load") - 0.6).abs() < 1e-9, "{said}");
    assert!((number(&report, "/breakpoint/broke_load") - 0.8).abs() < 1e-9, "{said}");
    assert!(
        number(&report, "/load_seconds") < 11.0,
        "the load was cut: {}",
        report["load_seconds"]
    );
    assert_eq!(number(&report, "/counters/acked"), number(&report, "/counters/intended"));
    let whole: f64 = (1..=12).map(|step| 20.0 * f64::from(step)).sum();
    assert!(number(&report, "/counters/intended") < whole, "{:#}", report["counters"]);
}
