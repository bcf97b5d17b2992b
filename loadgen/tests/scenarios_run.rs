//! Scenarios from files, run by the real program against a server of the tests: every behaviour does
//! what its section says, stages have figures of their own, and a search finds where it breaks.

mod support;

use std::{path::PathBuf, process::Command};

use support::{Plant, Server};

/// What a run came to.
struct Outcome {
    exit: i32,
    text: String,
    errors: String,
    report: serde_json::Value,
}

impl Outcome {
    fn count(&self, name: &str) -> u64 {
        self.report["counters"][name].as_u64().unwrap_or_else(|| panic!("{name}\n{}", self.text))
    }
}

struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("millrace-scenario-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("the folder is there");
        path.to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn loadgen(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"))
        .args(arguments)
        .output()
        .expect("the generator runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("no signal"), text(&output.stdout), text(&output.stderr))
}

fn run(name: &str, server: &Server, scenario: &str, more: &[&str]) -> Outcome {
    let files = Files::new(name);
    let file = files.write("scenario.toml", scenario);
    let json = files.0.join("report.json");
    let (tcp, http) = (server.tcp.to_string(), format!("http://{}", server.http));
    let websocket = format!("ws://{}/ws", server.websocket);
    let mut arguments = vec!["run", &file, "--tcp", &tcp, "--websocket", &websocket];
    arguments.extend(["--http", &http, "--api-token", "api-token", "--quiet", "--allow-late"]);
    arguments.extend(["--jwt-secret", "secret", "--json", json.to_str().expect("UTF-8")]);
    arguments.extend(more);
    let (exit, text, errors) = loadgen(&arguments);
    let report = std::fs::read_to_string(&json).unwrap_or_default();
    let report = serde_json::from_str(&report).unwrap_or(serde_json::Value::Null);
    Outcome { exit, text, errors, report }
}

#[test]
fn populations_stages_and_every_kind_of_traffic_are_what_the_file_says() {
    let server = Server::start(Plant::Nothing, 0);
    let scenario = r#"
        name = "mixed"
        connections = 60
        thresholds = ["delivery_latency max < 60s", "loss = 0", "custom max < 60s"]
        [connect]
        per_second = 400
        [[population]]
        name = "phones"
        share = 0.5
        transport = "tcp"
        devices = { ios = 1, android = 1 }
        [[population]]
        name = "browsers"
        share = 0.5
        transport = "websocket"
        [single_chat]
        per_second = 100
        population = "phones"
        [group_chat]
        per_second = 10
        group_size = 6
        population = "browsers"
        [room_broadcast]
        per_second = 5
        members = 20
        [heartbeat]
        per_second = 20
        [[custom]]
        command = 0x0310
        per_second = 20
        population = "browsers"
        body = "hello from {user}, {number}"
        [[stage]]
        name = "up"
        kind = "ramp"
        duration = "2s"
        [[stage]]
        name = "double"
        kind = "spike"
        load = 2
        duration = "1s"
        thresholds = ["delivery_latency p50 < 60s", "intended > 10"]
    "#;
    let outcome = run("mixed", &server, scenario, &[]);
    assert_eq!(outcome.exit, 0, "{}\n{}", outcome.text, outcome.errors);
    // Half of the full rate for two seconds and twice the rate for one: three seconds' worth.
    assert_eq!(outcome.count("intended"), 3 * (100 + 10), "{}", outcome.text);
    assert_eq!(outcome.count("custom_sent"), 3 * 20);
    assert_eq!(outcome.count("custom_replies"), 3 * 20);
    assert_eq!(outcome.count("room_sent"), 3 * 5);
    assert_eq!(outcome.count("received"), 3 * 100 + 3 * 10 * 5);
    let report = &outcome.report;
    assert_eq!(report["scenario"]["name"], "mixed");
    assert_eq!(report["configuration"]["websockets"], 30);
    let stages = report["stages"].as_array().expect("stages");
    assert_eq!(stages.len(), 2);
    assert_eq!((&stages[0]["name"], &stages[1]["kind"]), (&"up".into(), &"spike".into()));
    // What was meant in a stage is in its histogram, whenever it arrived.
    let delivered = |stage: &serde_json::Value| stage["latency_us"]["delivery"]["count"].as_u64();
    let both = delivered(&stages[0]).expect("up") + delivered(&stages[1]).expect("double");
    assert_eq!(Some(both), report["latency_us"]["delivery"]["count"].as_u64());
    assert_eq!(delivered(&stages[1]), Some(2 * (100 + 10 * 5)), "{}", outcome.text);
    assert_eq!(stages[1]["thresholds"].as_array().map(Vec::len), Some(2));
    // The time line has every second of it, and its counters add up to those of the run.
    let windows = report["windows"].as_array().expect("windows");
    let acked: u64 = windows.iter().filter_map(|one| one["counters"]["acked"].as_u64()).sum();
    assert_eq!(acked, outcome.count("acked"));
    assert_eq!(windows.iter().filter(|one| one["stage"] == "up").count(), 2);
    assert!(windows.iter().any(|one| one["connections"] == 60), "{windows:?}");
    let phases: Vec<_> = report["phases"].as_array().expect("phases").iter().collect();
    let names: Vec<_> = phases.iter().filter_map(|phase| phase["name"].as_str()).collect();
    assert_eq!(names, ["ramp", "load", "settle", "verify", "leave"]);
}

#[test]
fn a_stage_that_misses_its_threshold_fails_the_run_by_its_name() {
    let server = Server::start(Plant::Nothing, 0);
    let scenario = "connections = 10\n[connect]\nper_second = 400\n[single_chat]\nper_second = 50\n\
        [[stage]]\nname = \"calm\"\nduration = \"1s\"\n\
        [[stage]]\nname = \"strict\"\nduration = \"1s\"\nthresholds = [\"delivery p50 < 1us\"]\n";
    let outcome = run("missed", &server, scenario, &[]);
    assert_eq!(outcome.exit, 99, "{}", outcome.text);
    assert!(outcome.text.contains("stage strict: threshold delivery p50 < 1us missed"));
    assert_eq!(outcome.report["stages"][0]["passed"], true);
    assert_eq!(outcome.report["stages"][1]["passed"], false);
}

#[test]
fn storms_end_sessions_and_the_report_says_when_all_were_back() {
    let server = Server::start(Plant::Nothing, 0);
    let scenario = r#"
        connections = 50
        thresholds = ["recovery max < 60s", "arrival max < 60s", "loss = 0"]
        [connect]
        per_second = 400
        [[population]]
        name = "regulars"
        count = 40
        [[population]]
        name = "visitors"
        count = 10
        [single_chat]
        per_second = 50
        [reconnect_storm]
        share = 0.5
        at = "1s"
        within = "500ms"
        back_within = "500ms"
        [login_storm]
        population = "visitors"
        per_second = 8
        stay = "200ms"
        [[stage]]
        duration = "4s"
    "#;
    let outcome = run("storms", &server, scenario, &[]);
    assert_eq!(outcome.exit, 0, "{}\n{}", outcome.text, outcome.errors);
    let (stormed, called) = (outcome.count("stormed"), outcome.count("called"));
    assert!((15..=25).contains(&stormed), "{stormed}\n{}", outcome.text);
    assert!(called >= 10, "{called}: visitors come again and again\n{}", outcome.text);
    assert_eq!(outcome.count("reconnects"), stormed, "{}", outcome.text);
    assert_eq!(outcome.count("connections_lost"), 0, "they went by themselves");
    // 40 arrivals of the ramp, and every visit.
    let arrivals = outcome.report["latency_us"]["arrival"]["count"].as_u64();
    assert_eq!(arrivals, Some(40 + called), "{}", outcome.text);
    let recovery = &outcome.report["recoveries"][0];
    assert!(recovery["sessions"].as_u64() >= Some(1), "{recovery}");
    assert!(recovery["recovered_seconds"].as_f64() >= Some(0.5), "{recovery}");
    server.with_model(|model| assert_eq!(model.logins, 40 + stormed + called));
}

#[test]
fn slow_readers_get_everything_late_and_are_in_no_others_latency() {
    let server = Server::start(Plant::Nothing, 0);
    let scenario = r#"
        connections = 20
        [connect]
        per_second = 400
        [[population]]
        name = "quick"
        count = 16
        transport = "tcp"
        [[population]]
        name = "slow"
        count = 4
        transport = "tcp"
        [single_chat]
        per_second = 100
        [slow_reader]
        population = "slow"
        pause = "2s"
        [[stage]]
        duration = "4s"
    "#;
    let outcome = run("slow", &server, scenario, &[]);
    assert_eq!(outcome.exit, 0, "{}\n{}", outcome.text, outcome.errors);
    assert_eq!(outcome.count("received"), 400, "{}", outcome.text);
    let of = |name: &str| &outcome.report["latency_us"][name];
    let sum = of("delivery_slow")["count"].as_u64().expect("slow ones")
        + of("delivery")["count"].as_u64().expect("others");
    assert_eq!(sum, 400, "each is in one of them: {}", outcome.text);
    assert!(of("delivery_slow")["max"].as_u64() >= Some(1_500_000), "{}", outcome.text);
}

#[test]
fn a_search_stops_at_the_first_step_that_misses_a_threshold() {
    let server = Server::start(Plant::Nothing, 0);
    let search = |limit: &str| {
        format!(
            "connections = 10\n[connect]\nper_second = 400\n[single_chat]\nper_second = 100\n\
             [[stage]]\nname = \"step\"\nkind = \"breakpoint\"\nduration = \"1s\"\nfrom = 0.2\n\
             to = 1.6\nsteps = 8\nthresholds = [\"{limit}\"]\n"
        )
    };
    // A limit on the rate itself, so that it is known which step breaks on any machine.
    let outcome = run("search", &server, &search("intended < 70"), &[]);
    assert_eq!(outcome.exit, 0, "{}\n{}", outcome.text, outcome.errors);
    let breakpoint = &outcome.report["breakpoint"];
    // 20, 40, 60, 80 messages in the steps: the fourth is the first that is not below 70.
    assert!((breakpoint["held_load"].as_f64().expect("held") - 0.6).abs() < 1e-9, "{breakpoint}");
    assert!((breakpoint["broke_load"].as_f64().expect("broke") - 0.8).abs() < 1e-9, "{breakpoint}");
    assert!(outcome.text.contains("breakpoint   load 0.60 (60/s) held"), "{}", outcome.text);
    // A step is judged a second after its end, so others had begun; but not all of them.
    assert!(outcome.count("intended") < (1..=8).map(|step| 20 * step).sum(), "{}", outcome.text);
}

#[test]
fn tokens_are_signed_with_a_key_from_a_file_and_a_bad_one_is_refused_before_the_run() {
    let server = Server::start(Plant::Nothing, 0);
    let files = Files::new("keys");
    let secret = files.write("secret", "from-a-file\n");
    let scenario = |login: &str| {
        format!(
            "connections = 4\n[connect]\nper_second = 400\n[login]\n{login}\n[[stage]]\nduration = \"200ms\"\n"
        )
    };
    let good = run("keys-good", &server, &scenario(&format!("key_file = \"{secret}\"")), &[]);
    assert_eq!(good.exit, 0, "{}{}", good.text, good.errors);
    server.with_model(|model| {
        let token = model.last_token.as_deref().expect("somebody logged in");
        let key = jsonwebtoken::DecodingKey::from_secret(b"from-a-file");
        let validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
        jsonwebtoken::decode::<serde_json::Value>(token, &key, &validation)
            .expect("signed with it");
    });
    let wrong = format!("algorithm = \"RS256\"\nkey_file = \"{secret}\"");
    let bad = run("keys-bad", &server, &scenario(&wrong), &[]);
    assert_eq!(bad.exit, 104, "{}", bad.errors);
    assert!(bad.errors.contains("login.key_file"), "{}", bad.errors);
}

#[test]
fn scenarios_are_shown_listed_and_checked_without_a_server() {
    let (exit, text, _) = loadgen(&["scenario", "list"]);
    assert_eq!(exit, 0);
    let names = ["smoke", "ramp", "steady", "spike", "soak", "storm", "breakpoint", "million"];
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
    let files = Files::new("check");
    for name in names {
        let (exit, text, errors) = loadgen(&["scenario", "show", name]);
        assert_eq!(exit, 0, "{errors}");
        let copy = files.write("copy.toml", &text);
        let (exit, said, errors) = loadgen(&["scenario", "check", name, &copy]);
        assert_eq!((exit, said.lines().count()), (0, 2), "{said}{errors}");
    }
    let slip = files.write("slip.toml", "conections = 5\n");
    let (exit, _, errors) = loadgen(&["scenario", "check", &slip]);
    assert_eq!(exit, 104);
    assert!(errors.contains("slip.toml:1:1: unknown key `conections`; did you mean"), "{errors}");
    let (exit, _, errors) = loadgen(&["run", "smok"]);
    assert_eq!(exit, 104);
    assert!(errors.contains("the presets are smoke, ramp"), "{errors}");
}

#[test]
fn a_long_schedule_gets_longer_windows_and_no_more_of_them() {
    let server = Server::start(Plant::Nothing, 0);
    let scenario = "connections = 4\n[connect]\nper_second = 400\n[single_chat]\nper_second = 50\n\
        [generator]\nwindow = \"100ms\"\nwindows_max = 5\n[[stage]]\nduration = \"2s\"\n";
    let outcome = run("windows", &server, scenario, &[]);
    assert_eq!(outcome.exit, 0, "{}{}", outcome.text, outcome.errors);
    let windows = outcome.report["windows"].as_array().expect("windows");
    let load: Vec<_> = windows.iter().filter(|window| window["stage"] == "steady").collect();
    assert_eq!(load.len(), 5, "{load:?}");
    assert!(load.iter().all(|window| window["seconds"].as_f64() == Some(0.4)), "{load:?}");
}
