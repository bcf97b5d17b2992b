//! `report`: tables and plots from the JSON files that the measurements left.
//!
//! Every part is optional: what was not measured is said to be missing. It measures nothing itself.
#![allow(clippy::print_stdout, reason = "it says where the report is")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use millrace_bench_edge::plot::{self, Axis, Scale, Series, number};
use millrace_bench_edge::results::{self, EchoFigure, FanOutFigure, Results, median};
use millrace_bench_edge::sections;
use serde::Deserialize;
use serde_json::Value;

/// Writes the report from what was measured.
#[derive(Parser)]
struct Arguments {
    /// Folder with runtimes.json, fan-out.json, end-to-end-*.json, million.json, single-chat.json,
    /// single-chat-profile.json and instructions.json.
    #[arg(long, default_value = "target/report")]
    from: PathBuf,
    /// Folder for report.md and the plots; the JSON is copied beside them.
    #[arg(long, default_value = "target/report")]
    to: PathBuf,
}

/// End-to-end figures at one number of connections, from what `tests/e2e/million.py` wrote.
struct EndToEnd {
    connections: f64,
    heartbeat_seconds: f64,
    passed: bool,
    logins_per_second: f64,
    messages_per_second: f64,
    found: f64,
    expected: f64,
    latencies: Value,
    /// µs of CPU for one single-chat message, with what the phase without load costs taken off.
    message: Tiers,
    idle_cores: Tiers,
    bytes: Tiers,
    kernel_bytes: f64,
    command: String,
}

#[derive(Clone, Copy)]
struct Tiers {
    gateway: f64,
    logic: f64,
    generator: f64,
}

impl Tiers {
    fn of(value: impl Fn(&str) -> f64) -> Self {
        Self { gateway: value("gateway"), logic: value("logic"), generator: value("generator") }
    }
}

impl EndToEnd {
    fn new(run: &Value) -> Self {
        let figure = |value: &Value| value.as_f64().unwrap_or_default();
        let generator = &run["generator"];
        let verified = &generator["verification"];
        let cores = |phase: &str, tier: &str| {
            let used = &run["cpu_percent_of_a_core"][phase][tier];
            (figure(&used["user"]) + figure(&used["system"])) / 100.0
        };
        let load_seconds = figure(&generator["load_seconds"]).max(f64::MIN_POSITIVE);
        let messages_per_second = figure(&verified["acked"]) / load_seconds;
        let memory = &run["memory"]["per_connection"];
        Self {
            connections: figure(&run["connections"]),
            heartbeat_seconds: figure(&run["heartbeat_seconds"]),
            passed: generator["passed"].as_bool().unwrap_or_default(),
            logins_per_second: figure(&generator["ramp_per_second"]),
            messages_per_second,
            found: figure(&verified["found_deliveries"]),
            expected: figure(&verified["expected_deliveries"]),
            latencies: generator["latency_us"].clone(),
            message: Tiers::of(|tier| {
                1e6 * (cores("load", tier) - cores("hold", tier)) / messages_per_second.max(1.0)
            }),
            idle_cores: Tiers::of(|tier| cores("hold", tier)),
            bytes: Tiers::of(|tier| figure(&memory[format!("{tier}_user")])),
            kernel_bytes: figure(&memory["kernel_both_ends"]),
            command: run["command"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// A latency's figure in milliseconds, for a table.
    fn ms(&self, latency: &str, figure: &str) -> String {
        let us = self.latencies[latency][figure].as_f64();
        us.map_or_else(|| "–".to_owned(), |us| number(us / 1e3))
    }

    /// Quantile and milliseconds.
    fn curve(&self, latency: &str) -> Vec<(f64, f64)> {
        let points = self.latencies[latency]["curve"].as_array().into_iter().flatten();
        points.filter_map(|point| Some((point[0].as_f64()?, point[1].as_f64()? / 1e3))).collect()
    }
}

/// Every run that lies in the folder, by its number of connections.
fn end_to_end(arguments: &Arguments) -> Result<Vec<EndToEnd>> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(&arguments.from)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("end-to-end-") || !name.ends_with(".json") {
            continue;
        }
        runs.extend(script(arguments, &name)?.as_ref().map(EndToEnd::new));
    }
    runs.sort_by(|one, other| one.connections.total_cmp(&other.connections));
    Ok(runs)
}

struct Report {
    folder: PathBuf,
    text: String,
}

impl Report {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn plot(&mut self, name: &str, alternative: &str, svg: &str) -> Result<()> {
        fs::write(self.folder.join(name), svg)?;
        self.line(&format!("\n![{alternative}]({name})\n"));
        Ok(())
    }

    fn made_by<T>(&mut self, results: &Results<T>) {
        self.line(&format!("\nCommit {}. Commands:\n\n```", results.commits.join(", ")));
        for command in &results.commands {
            self.line(command);
        }
        self.line("```");
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    fs::create_dir_all(&arguments.to)?;
    let mut report = Report { folder: arguments.to.clone(), text: String::new() };
    let runtimes = part::<EchoFigure>(&arguments, "runtimes.json")?;
    let fan_outs = part::<FanOutFigure>(&arguments, "fan-out.json")?;
    let end_to_end = end_to_end(&arguments)?;
    report.line("# What was measured\n");
    report.line("Written by `scripts/bench.sh` from the JSON files beside it; nothing here is typed by hand.");
    let machines =
        [runtimes.as_ref().map(|part| &part.machine), fan_outs.as_ref().map(|part| &part.machine)];
    let here = results::Machine::here();
    if let Some(machine) = machines.into_iter().flatten().next().or(Some(&here)) {
        report.line(&format!(
            "Machine: {}, {} GiB of memory, Linux {}, RLIMIT_NOFILE {}, {}.",
            machine.processor,
            (machine.memory_bytes as f64 / f64::from(1 << 30)).round(),
            machine.kernel,
            machine.descriptors_max,
            machine.rustc
        ));
    }
    report.line("Servers, clients and generator share this machine; such machines are noisy, so believe ratios within one table.");
    match runtimes {
        Some(results) => compare(&mut report, &results)?,
        None => report.line("\nThe comparison of runtimes was not measured."),
    }
    match fan_outs {
        Some(results) => fan_out(&mut report, &results),
        None => report.line("\nFan-out was not measured."),
    }
    if end_to_end.is_empty() {
        report.line("\nEnd-to-end figures were not measured.");
    } else {
        whole(&mut report, &end_to_end)?;
    }
    match script(&arguments, "million.json")? {
        Some(run) => report.text += &sections::million(&run),
        None => report.line("\nThe preset `million` was not measured."),
    }
    match script(&arguments, "single-chat.json")? {
        Some(measured) => {
            let profiled = script(&arguments, "single-chat-profile.json")?;
            report.text += &sections::single_chat(&measured, profiled.as_ref());
        }
        None => report.line("\nSingle chat was not measured."),
    }
    instructions(&mut report, &arguments)?;
    fs::write(arguments.to.join("report.md"), &report.text)?;
    println!("{}", arguments.to.join("report.md").display());
    Ok(())
}

/// What one of the scripts wrote, copied beside the report; `None` if it was not run.
fn script(arguments: &Arguments, name: &str) -> Result<Option<Value>> {
    let path = arguments.from.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let mut run: Value = serde_json::from_str(&fs::read_to_string(&path)?)
        .with_context(|| format!("{} is something else", path.display()))?;
    // What is for whoever looks closer is not for the committed copy: samples and windows of every
    // second, the load's stages once more, and curves that are not drawn.
    if let Some(run) = run.as_object_mut() {
        run.remove("samples");
    }
    if let Some(generator) = run.get_mut("generator").and_then(Value::as_object_mut) {
        generator.remove("windows");
        generator.remove("stages");
        forget_curves(generator.get_mut("latency_us"), DRAWN);
    }
    for part in run.get_mut("runs").and_then(Value::as_array_mut).into_iter().flatten() {
        forget_curves(part.get_mut("latency_us"), "");
    }
    if arguments.from != arguments.to {
        fs::write(arguments.to.join(name), serde_json::to_string_pretty(&run)? + "\n")?;
    }
    Ok(Some(run))
}

/// Removes the curves of these latencies, of all but one.
fn forget_curves(latencies: Option<&mut Value>, but: &str) {
    for (name, latency) in latencies.and_then(Value::as_object_mut).into_iter().flatten() {
        if name != but
            && let Some(latency) = latency.as_object_mut()
        {
            latency.remove("curve");
        }
    }
}

/// A part's figures, copied beside the report; `None` if it was not measured.
fn part<T>(arguments: &Arguments, name: &str) -> Result<Option<Results<T>>>
where
    T: for<'a> Deserialize<'a>,
{
    let path = arguments.from.join(name);
    if !path.exists() {
        return Ok(None);
    }
    copy(&path, &arguments.to.join(name))?;
    results::read(&path).map(Some)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from != to {
        fs::copy(from, to).with_context(|| format!("{} cannot be copied", from.display()))?;
    }
    Ok(())
}

// --- the comparison of runtimes -----------------------------------------------------------------

/// The medians of one server's rounds.
struct Server {
    name: String,
    rounds: usize,
    per_second: f64,
    /// Against the server named by the report, round by round.
    ratio: f64,
    least: f64,
    most: f64,
    server_core: f64,
    client_core: f64,
    idle_bytes: f64,
}

const REFERENCE: &str = "tokio-tungstenite";

fn servers(figures: &[EchoFigure]) -> Vec<Server> {
    let mut names: Vec<&String> = Vec::new();
    for figure in figures {
        if !names.contains(&&figure.server) {
            names.push(&figure.server);
        }
    }
    let server = |name: &String| {
        // Rounds are numbered anew by every run, so the n-th of one server goes with the n-th of
        // the other: they were measured one after the other.
        let of = |name: &str| {
            let name = name.to_owned();
            figures.iter().filter(move |figure| figure.server == name)
        };
        let ratios = of(name).zip(of(REFERENCE));
        let ratios = ratios.map(|(one, other)| one.messages_per_second / other.messages_per_second);
        let speeds = || of(name).map(|figure| figure.messages_per_second);
        Server {
            name: name.clone(),
            rounds: speeds().count(),
            per_second: median(speeds()),
            ratio: median(ratios),
            least: speeds().fold(f64::INFINITY, f64::min),
            most: speeds().fold(0.0, f64::max),
            server_core: median(of(name).map(|figure| figure.server_core)),
            client_core: median(of(name).map(|figure| figure.client_core)),
            idle_bytes: median(of(name).map(|figure| figure.idle_bytes)),
        }
    };
    names.into_iter().map(server).collect()
}

fn compare(report: &mut Report, results: &Results<EchoFigure>) -> Result<()> {
    report.line("\n## The same echo on one core\n");
    report.line(
        "Every client has one message of 64 bytes under way, always; the server has one core, all clients the other. \
         `gateway-heartbeat` is the real gateway with everything on: login through logic, sessions, idle wheel, rates, \
         metrics; its message is a HEARTBEAT, which has no body; names with a runtime at the end are the same on another driver. \
         `websocket-echo` is its driver and codec without the \
         engine, `plain-ring` the least there can be on the ring. Servers named `raw` speak no WebSocket: they send \
         bytes back.",
    );
    let mut work: Vec<(u32, u32)> =
        results.figures.iter().map(|figure| (figure.connections, figure.active)).collect();
    work.sort_unstable();
    work.dedup();
    for (connections, active) in work {
        let same =
            |figure: &&EchoFigure| (figure.connections, figure.active) == (connections, active);
        let figures: Vec<EchoFigure> = results.figures.iter().filter(same).cloned().collect();
        let servers = servers(&figures);
        let title = format!(
            "{} connections, {} of them talking",
            number(f64::from(connections)),
            number(f64::from(active))
        );
        report.line(&format!("\n### {title}\n"));
        report.line(&format!(
            "| server | messages/s (median of rounds) | rounds: least to most | × {REFERENCE} | server's core | clients' core | \
             resident bytes an idle connection |"
        ));
        report.line("|---|---|---|---|---|---|---|");
        for server in &servers {
            report.line(&format!(
                "| {} | {} | {}: {} to {} | {} | {:.0} % | {:.0} % | {} |",
                server.name,
                number(server.per_second),
                server.rounds,
                number(server.least),
                number(server.most),
                if server.ratio > 0.0 { format!("{:.2}", server.ratio) } else { "–".to_owned() },
                100.0 * server.server_core,
                100.0 * server.client_core,
                number(server.idle_bytes)
            ));
        }
        let ours = ["gateway-heartbeat", "websocket-echo", "plain-ring"];
        let bars: Vec<_> = servers
            .iter()
            .map(|server| {
                (
                    server.name.clone(),
                    server.per_second,
                    ours.iter().any(|name| server.name.starts_with(name)),
                )
            })
            .collect();
        let svg = plot::bars(&title, "messages a second on one core", &bars);
        report.plot(&format!("runtimes-{connections}.svg"), &title, &svg)?;
    }
    report.line(
        "Where the clients' core is as busy as the server's, the clients are part of the limit, and the distance to slower \
         servers is understated. Bytes with few connections contain what a server allocates once.",
    );
    report.made_by(results);
    Ok(())
}

// --- fan-out ------------------------------------------------------------------------------------

fn fan_out(report: &mut Report, results: &Results<FanOutFigure>) {
    report.line("\n## Fan-out to one room\n");
    report.line(
        "Logic publishes once; the real gateway on one core sends to every member's connection; the next publication follows \
         when everybody has the last one. With one message at once nothing can be coalesced. Messages are 64 bytes on the wire. `plain-ring` copies each message to \
         every socket and does nothing else.\n",
    );
    report.line("| server | members | published at once | deliveries/s (median of rounds) | rounds: least to most | server's core | receivers' core |");
    report.line("|---|---|---|---|---|---|---|");
    let work = |one: &FanOutFigure| (one.members, one.published_at_once, one.server.clone());
    let mut all: Vec<_> = results.figures.iter().map(work).collect();
    all.sort_unstable();
    all.dedup();
    for (members, at_once, server) in all {
        let same = (members, at_once, server.clone());
        let figures: Vec<_> = results.figures.iter().filter(|one| work(one) == same).collect();
        let speeds = || figures.iter().map(|one| one.deliveries_per_second);
        report.line(&format!(
            "| {server} | {} | {at_once} | {} | {}: {} to {} | {:.0} % | {:.0} % |",
            number(f64::from(members)),
            number(median(speeds())),
            figures.len(),
            number(speeds().fold(f64::INFINITY, f64::min)),
            number(speeds().fold(0.0, f64::max)),
            100.0 * median(figures.iter().map(|one| one.server_core)),
            100.0 * median(figures.iter().map(|one| one.client_core)),
        ));
    }
    report.made_by(results);
}

// --- end to end ---------------------------------------------------------------------------------

fn axis(label: &str, scale: Scale) -> Axis {
    Axis { label: label.to_owned(), scale, ticks: Vec::new() }
}

fn whole(report: &mut Report, runs: &[EndToEnd]) -> Result<()> {
    report.line("\n## Gateway, logic and store, end to end\n");
    report.line(
        "Three processes (gateway, logic with the embedded store, load generator) on this machine; WebSocket clients, each logged in \
         with a signed token. First they are quiet but for heartbeats, then single-chat messages are sent on a schedule: stored \
         (fdatasync), acknowledged, delivered, and verified. Latency counts from the intended send time. What else a run had \
         (clients that come and go, a live room) is in its command.\n",
    );
    report.line("| connections | heartbeat, s | logins/s | messages/s | delivery p50, ms | p99 | p99.9 | max | room p99.9, ms | max | delivered of expected | verdict |");
    report.line("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for run in runs {
        let delivery = |figure| run.ms("delivery_single", figure);
        report.line(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} of {} | {} |",
            number(run.connections),
            number(run.heartbeat_seconds),
            number(run.logins_per_second),
            number(run.messages_per_second),
            delivery("p50"),
            delivery("p99"),
            delivery("p99.9"),
            delivery("max"),
            run.ms("delivery_room", "p99.9"),
            run.ms("delivery_room", "max"),
            number(run.found),
            number(run.expected),
            if run.passed { "passed" } else { "failed" }
        ));
    }
    latency_plot(report, runs)?;
    report.line("| connections | gateway, µs CPU a message | logic | generator | gateway, cores when quiet | logic | gateway, bytes a connection | logic | generator | kernel, bytes a connection, both ends |");
    report.line("|---|---|---|---|---|---|---|---|---|---|");
    for run in runs {
        report.line(&format!(
            "| {} | {} | {} | {} | {:.3} | {:.3} | {} | {} | {} | {} |",
            number(run.connections),
            number(run.message.gateway),
            number(run.message.logic),
            number(run.message.generator),
            run.idle_cores.gateway,
            run.idle_cores.logic,
            number(run.bytes.gateway),
            number(run.bytes.logic),
            number(run.bytes.generator),
            number(run.kernel_bytes)
        ));
    }
    report.line("\nWhat the quiet phase costs (heartbeats) is taken off the cost of a message; what comes and goes, and a room, are in it.");
    let series = |name: &str, of: &dyn Fn(&EndToEnd) -> f64| Series {
        name: name.to_owned(),
        points: runs.iter().map(|run| (run.connections, of(run).max(0.0))).collect(),
    };
    let cost = [
        series("gateway", &|run| run.message.gateway),
        series("logic", &|run| run.message.logic),
        series("generator", &|run| run.message.generator),
    ];
    let title = "What a chat message costs, against the number of connections";
    let connections = axis("connections", Scale::Logarithmic);
    let svg = plot::lines(title, &connections, &axis("µs of CPU a message", Scale::Linear), &cost);
    report.plot("cost.svg", title, &svg)?;
    let memory = [
        series("gateway", &|run| run.bytes.gateway),
        series("logic", &|run| run.bytes.logic),
        series("kernel, both ends", &|run| run.kernel_bytes),
    ];
    let title = "Memory of an idle, logged-in connection";
    let bytes = axis("bytes a connection", Scale::Logarithmic);
    report.plot("memory.svg", title, &plot::lines(title, &connections, &bytes, &memory))?;
    report.line("\nCommands:\n\n```");
    for run in runs {
        report.line(&run.command);
    }
    report.line("```");
    Ok(())
}

/// The latency whose curve is drawn.
const DRAWN: &str = "delivery_single";

/// Percentiles on an axis where each further nine is as far again.
fn latency_plot(report: &mut Report, runs: &[EndToEnd]) -> Result<()> {
    let nines = [0.5, 0.9, 0.99, 0.999, 0.9999];
    let x = Axis {
        label: "percentile of deliveries".to_owned(),
        scale: Scale::Logarithmic,
        ticks: nines
            .iter()
            .map(|quantile| (1.0 / (1.0 - quantile), format!("{} %", trimmed(100.0 * quantile))))
            .collect(),
    };
    let series = runs.iter().map(|run| {
        let points = run.curve(DRAWN).into_iter();
        let points = points.filter(|(quantile, _)| (0.5..=0.9999).contains(quantile));
        Series {
            name: number(run.connections),
            points: points.map(|(quantile, ms)| (1.0 / (1.0 - quantile), ms)).collect(),
        }
    });
    let title = "Latency of delivery by percentile, for each number of connections";
    let y = axis("ms", Scale::Logarithmic);
    let svg = plot::lines(title, &x, &y, &series.collect::<Vec<_>>());
    report.plot("latency.svg", title, &svg)
}

fn trimmed(value: f64) -> String {
    format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

// --- instructions -------------------------------------------------------------------------------

fn instructions(report: &mut Report, arguments: &Arguments) -> Result<()> {
    let path = arguments.from.join("instructions.json");
    if !path.exists() {
        report.line("\nInstructions were not counted.");
        return Ok(());
    }
    copy(&path, &arguments.to.join("instructions.json"))?;
    let counted: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    report.line("\n## Instructions of the hot paths\n");
    report.line("Counted by Callgrind (`scripts/instructions.py`); they do not depend on how fast or busy the machine is.\n");
    report.line("| path | instructions | one of it is |\n|---|---|---|");
    for path in counted["paths"].as_array().into_iter().flatten() {
        let mut line = String::new();
        let _ = write!(
            line,
            "| {} | {} | {} |",
            path["name"].as_str().unwrap_or_default(),
            number(path["instructions"].as_f64().unwrap_or_default()),
            path["what"].as_str().unwrap_or_default()
        );
        report.line(&line);
    }
    Ok(())
}
