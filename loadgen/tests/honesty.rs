//! Whether the generator's figures are true: the real program against a server that stalls by a
//! schedule and writes down when, beside a closed loop that does not see it; and a generator that is
//! starved of its core.

mod support;

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use support::{Plant, Server, Stall};

/// A running generator, which does not outlive the test.
struct Generator {
    child: Child,
    json: PathBuf,
}

impl Generator {
    fn start(name: &str, server: &Server, prefix: &[&str], more: &str) -> Self {
        let json =
            std::env::temp_dir().join(format!("millrace-{name}-{}.json", std::process::id()));
        let program = env!("CARGO_BIN_EXE_millrace-loadgen");
        let words = prefix.iter().copied().chain([program]).collect::<Vec<_>>();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(more.split_whitespace());
        command.args(["--tcp", &server.tcp.to_string(), "--jwt-secret", "secret", "--quiet"]);
        command.args(["--user-prefix", "load", "--json"]).arg(&json);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().expect("the generator starts"), json }
    }

    /// The exit code and the report.
    fn finish(mut self) -> (i32, serde_json::Value) {
        let status = self.child.wait().expect("the generator ends");
        let text = std::fs::read_to_string(&self.json).unwrap_or_default();
        let report = serde_json::from_str(&text).unwrap_or(serde_json::Value::Null);
        (status.code().expect("no signal"), report)
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.json);
    }
}

/// The latency in microseconds that `1 - share` of the moments of a load from one moment to another
/// stay below, if everything is answered at once but for the stalls: the truth.
fn truth_us(stalls: &[Stall], from_us: i64, to_us: i64, share: f64) -> f64 {
    // A moment t in a stall waits until its end. So within one stall the share of moments that wait
    // longer than x is the stall without its last x.
    let longer_than = |x: f64| {
        let lengths = stalls.iter().map(|stall| {
            let (begin, end) = (stall.from_unix_us.max(from_us), stall.to_unix_us);
            (((end as f64 - x).min(to_us as f64)) - begin as f64).max(0.0)
        });
        lengths.sum::<f64>() / (to_us - from_us) as f64
    };
    let (mut low, mut high) = (0.0, 1e9);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if longer_than(middle) > share { low = middle } else { high = middle }
    }
    high
}

#[test]
fn the_truth_of_a_stall_is_what_a_person_would_work_out() {
    // 2 s of 10: a fifth of all moments waits, evenly from 0 to 2 s; a thousandth of all is a
    // two-hundredth of them.
    let stall = |from: i64| Stall { from_unix_us: from, to_unix_us: from + 2_000_000 };
    let truth = truth_us(&[stall(8_000_000), stall(18_000_000)], 0, 20_000_000, 0.001);
    assert!((truth - 1_990_000.0).abs() < 1.0, "{truth}");
    let median = truth_us(&[stall(8_000_000)], 0, 10_000_000, 0.5);
    assert!(median < 1.0, "most do not wait: {median}");
}

/// One of these tests takes a core away from everybody; the other must not feel it.
static ALONE: Mutex<()> = Mutex::new(());

/// The load of both: about two periods of the server.
const SECONDS: u64 = 12;

#[test]
fn a_stall_of_2_s_in_10_is_in_the_p999_within_5_percent_and_a_closed_loop_does_not_see_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Server::start(Plant::Nothing, 0);
    server.stall_every(Duration::from_secs(2), Duration::from_secs(10));
    let load = format!("--duration {SECONDS}s --websocket-share 0 --group-rate 0 --ramp-rate 400");
    let open = Generator::start(
        "open",
        &server,
        &[],
        &format!("chat {load} --connections 20 --single-rate 400 --allow-late"),
    );
    // Users of its own, on a server of its own that stalls at the same times: one waiting client
    // must not be the other's load.
    let other = Server::start(Plant::Nothing, 0);
    other.stall_every(Duration::from_secs(2), Duration::from_secs(10));
    let closed = Generator::start(
        "closed",
        &other,
        &[],
        &format!(
            "chat {load} --connections 4 --single-rate 0 --closed-loop 1 --threads 1 --allow-late"
        ),
    );
    let ((open_exit, open), (closed_exit, closed)) = (open.finish(), closed.finish());
    assert_eq!((open_exit, closed_exit), (0, 0), "{open:#}\n{closed:#}");

    let stalls = server.stalls();
    assert!(!stalls.is_empty(), "the server stalled during the load");
    let from_us = open["load_started_at_unix_us"].as_i64().expect("a moment");
    let truth = truth_us(&stalls, from_us, from_us + SECONDS as i64 * 1_000_000, 0.001);
    assert!(truth > 1_500_000.0, "a whole stall lies in the load: {truth}, {stalls:?}");
    let p999 = |report: &serde_json::Value, name: &str| {
        report["latency_us"][name]["p99.9"].as_f64().expect("measured")
    };
    println!("truth by the server's own record: p99.9 {:.1} ms", truth / 1e3);
    // On a machine that is busy with other things the generator was late itself, and says by how much.
    let late = open["generator"]["late_p999_us"].as_f64().expect("measured");
    println!("the generator's own lateness: p99.9 {:.1} ms", late / 1e3);
    for name in ["ack", "delivery"] {
        let said = p999(&open, name);
        println!(
            "open loop, {name}: p99.9 {:.1} ms, {:+.2} %",
            said / 1e3,
            100.0 * (said / truth - 1.0)
        );
        let off = (said - truth).abs();
        assert!(off < 0.05 * truth + late, "{name}: {said}, the truth is {truth}, late {late}");
    }
    let said = p999(&closed, "ack");
    let acked = closed["counters"]["acked"].as_u64().expect("counted");
    println!("closed loop, ack: p99.9 {:.1} ms over {acked} messages", said / 1e3);
    assert!(said < truth / 2.0, "{said}: a closed loop cannot see what it does not ask for");
    assert!(closed["latency_us"]["ack"]["max"].as_f64().expect("measured") > 1_500_000.0);
    // The service time stands beside it: what the server took from the actual write on.
    assert!(open["latency_us"]["service"]["p99.9"].as_f64().is_some());
    assert!(open["latency_us"]["service_delivery"]["p99.9"].as_f64().is_some());
    // The seconds of the stall show it, and the others do not.
    let windows = open["windows"].as_array().expect("a time line");
    let worst = |window: &serde_json::Value| window["latency_us"]["delivery"]["max"].as_u64();
    let load_start = from_us as f64 / 1e6 - open["started_at_unix_ms"].as_f64().expect("ms") / 1e3;
    let second_of = |unix_us: i64| {
        let since_load = (unix_us - from_us) as f64 / 1e6;
        windows.iter().find(|window| {
            let start = window["start_seconds"].as_f64().unwrap_or(-1.0) - load_start;
            window["phase"] == "load" && (start - 0.01..start + 0.99).contains(&since_load)
        })
    };
    let stall =
        stalls.iter().find(|stall| stall.from_unix_us > from_us).expect("one began in the load");
    let hit = second_of(stall.from_unix_us + 100_000).expect("its second is on the time line");
    assert!(worst(hit) > Some(1_000_000), "{hit:#}");
}

/// Something that wants a core for itself.
struct BusyLoop(Child);

impl BusyLoop {
    fn on(core: &str) -> Self {
        let program = ["-c", core, "sh", "-c", "while :; do :; done"];
        let child = Command::new("taskset").args(program).stdin(Stdio::null()).spawn();
        Self(child.expect("taskset is part of util-linux"))
    }
}

impl Drop for BusyLoop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A core that this process may run on.
fn a_core() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let list =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list");
    let last = list.trim().rsplit([',', '-']).next().expect("at least one core");
    last.to_owned()
}

#[test]
fn a_generator_that_is_starved_of_its_core_refuses_its_own_result() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Server::start(Plant::Nothing, 0);
    let core = a_core();
    // Pinned to a core. When the load runs, busy loops of more weight come to the same core, and stay
    // for most of it.
    let pinned = ["taskset", "-c", &core, "nice", "-n", "10"];
    let load = "chat --duration 6s --websocket-share 0 --group-rate 0 --ramp-rate 400 \
                --connections 20 --single-rate 1500 --settle 30s";
    let starved = Generator::start("starved", &server, &pinned, load);
    let began = Instant::now();
    while server.with_model(|model| model.sends) == 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "the load never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    let busy: Vec<BusyLoop> = (0..16).map(|_| BusyLoop::on(&core)).collect();
    std::thread::sleep(Duration::from_secs(4));
    drop(busy);
    let (exit, report) = starved.finish();
    println!("generator: {:#}", report["generator"]);
    assert_eq!(exit, 120, "{:#}\n{:#}", report["failures"], report["generator"]);
    assert_eq!(report["generator"]["saturated"], true);
    assert_eq!(report["passed"], false);
    let reasons = report["generator"]["reasons"].to_string();
    assert!(reasons.contains("late") || reasons.contains("no core"), "{reasons}");
}
