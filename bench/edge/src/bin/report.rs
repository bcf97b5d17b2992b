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
use serde::Deserialize;
use serde_json::Value;

/// Writes the report from what was measured.
#[derive(Parser)]
struct Arguments {
    /// Folder with runtimes.json, fan-out.json, end-to-end.json and instructions.json.
    #[arg(long, default_value = "target/report")]
    from: PathBuf,
    /// Folder for report.md and the plots; the JSON is copied beside them.
    #[arg(long, default_value = "target/report")]
    to: PathBuf,
}

/// End-to-end figures at one number of connections, as `bench/end_to_end.py` writes them.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
struct EndToEnd {
    connections: u64,
    messages_per_second: u64,
    duration_seconds: u64,
    heartbeat_seconds: u64,
    passed: bool,
    messages_acknowledged: u64,
    deliveries: (u64, u64),
    latency_us: std::collections::BTreeMap<String, Latency>,
    cpu_us_per_message: Tiers,
    idle_cores: Tiers,
    resident_bytes_per_connection: Tiers,
    kernel_bytes_per_connection: f64,
    ramp_per_second: Option<f64>,
}

#[derive(Clone, Debug, Deserialize, serde::Serialize)]
struct Latency {
    p50: u64,
    p99: u64,
    #[serde(rename = "p99.9")]
    p99_9: u64,
    max: u64,
    curve: Vec<(f64, u64)>,
}

#[derive(Clone, Copy, Debug, Deserialize, serde::Serialize)]
struct Tiers {
    gateway: f64,
    logic: f64,
    generator: f64,
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
    let end_to_end = part::<EndToEnd>(&arguments, "end-to-end.json")?;
    report.line("# What was measured\n");
    report.line("Written by `scripts/bench.sh` from the JSON files beside it; nothing here is typed by hand.");
    let machines = [
        runtimes.as_ref().map(|part| &part.machine),
        fan_outs.as_ref().map(|part| &part.machine),
        end_to_end.as_ref().map(|part| &part.machine),
    ];
    if let Some(machine) = machines.into_iter().flatten().next() {
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
    match end_to_end {
        Some(results) => whole(&mut report, &results)?,
        None => report.line("\nEnd-to-end figures were not measured."),
    }
    instructions(&mut report, &arguments)?;
    fs::write(arguments.to.join("report.md"), &report.text)?;
    println!("{}", arguments.to.join("report.md").display());
    Ok(())
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
         metrics; its message is a HEARTBEAT, which has no body. `websocket-echo` is its driver and codec without the \
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
                (server.name.clone(), server.per_second, ours.contains(&server.name.as_str()))
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
         when everybody has the last one. With one message at once nothing can be coalesced. Messages are 64 bytes on the wire.\n",
    );
    report.line("| members | published at once | deliveries/s (median of rounds) | rounds: least to most | gateway's core | receivers' core |");
    report.line("|---|---|---|---|---|---|");
    let mut work: Vec<(u32, u32)> =
        results.figures.iter().map(|one| (one.members, one.published_at_once)).collect();
    work.sort_unstable();
    work.dedup();
    for (members, at_once) in work {
        let same = |one: &&FanOutFigure| (one.members, one.published_at_once) == (members, at_once);
        let figures: Vec<_> = results.figures.iter().filter(same).collect();
        let speeds = || figures.iter().map(|one| one.deliveries_per_second);
        report.line(&format!(
            "| {} | {at_once} | {} | {}: {} to {} | {:.0} % | {:.0} % |",
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

fn whole(report: &mut Report, results: &Results<EndToEnd>) -> Result<()> {
    let figures = &results.figures;
    let Some(first) = figures.first() else { return Ok(()) };
    report.line("\n## Gateway, logic and store, end to end\n");
    report.line(&format!(
        "Three processes (gateway, logic with the embedded store, load generator) on this machine; half of the clients TCP, half \
         WebSocket, logged in with signed tokens, a heartbeat every {} s; then {} single-chat messages a second for {} s on a \
         schedule, stored (fdatasync), acknowledged, delivered, and verified. Latency counts from the intended send time.\n",
        first.heartbeat_seconds,
        number(first.messages_per_second as f64),
        first.duration_seconds
    ));
    report.line("| connections | login rate/s | delivery p50, ms | p99 | p99.9 | max | delivered of expected | verdict |");
    report.line("|---|---|---|---|---|---|---|---|");
    for one in figures {
        let ms = |of: fn(&Latency) -> u64| {
            one.latency_us
                .get("delivery")
                .map_or_else(|| "–".to_owned(), |l| number(of(l) as f64 / 1e3))
        };
        report.line(&format!(
            "| {} | {} | {} | {} | {} | {} | {} of {} | {} |",
            number(one.connections as f64),
            one.ramp_per_second.map_or_else(|| "–".to_owned(), number),
            ms(|l| l.p50),
            ms(|l| l.p99),
            ms(|l| l.p99_9),
            ms(|l| l.max),
            number(one.deliveries.0 as f64),
            number(one.deliveries.1 as f64),
            if one.passed { "passed" } else { "failed" }
        ));
    }
    latency_plot(report, figures)?;
    report.line("| connections | gateway, µs CPU a message | logic | generator | gateway, cores when idle | logic | gateway, resident B a connection | logic | generator | kernel, B a connection, both ends |");
    report.line("|---|---|---|---|---|---|---|---|---|---|");
    for one in figures {
        let (cost, idle, memory) =
            (one.cpu_us_per_message, one.idle_cores, one.resident_bytes_per_connection);
        report.line(&format!(
            "| {} | {} | {} | {} | {:.3} | {:.3} | {} | {} | {} | {} |",
            number(one.connections as f64),
            number(cost.gateway),
            number(cost.logic),
            number(cost.generator),
            idle.gateway,
            idle.logic,
            number(memory.gateway),
            number(memory.logic),
            number(memory.generator),
            number(one.kernel_bytes_per_connection)
        ));
    }
    report.line("\nWhat idling costs (heartbeats) is taken off the cost of a message.");
    let series = |name: &str, of: &dyn Fn(&EndToEnd) -> f64| Series {
        name: name.to_owned(),
        points: figures.iter().map(|one| (one.connections as f64, of(one).max(0.0))).collect(),
    };
    let cost = [
        series("gateway", &|one| one.cpu_us_per_message.gateway),
        series("logic", &|one| one.cpu_us_per_message.logic),
        series("generator", &|one| one.cpu_us_per_message.generator),
    ];
    let title = "What a chat message costs, against the number of connections";
    let svg = plot::lines(
        title,
        &axis("connections", Scale::Logarithmic),
        &axis("µs of CPU a message", Scale::Linear),
        &cost,
    );
    report.plot("cost.svg", title, &svg)?;
    let memory = [
        series("gateway", &|one| one.resident_bytes_per_connection.gateway),
        series("logic", &|one| one.resident_bytes_per_connection.logic),
        series("kernel, both ends", &|one| one.kernel_bytes_per_connection),
    ];
    let title = "Memory of an idle, logged-in connection";
    let svg = plot::lines(
        title,
        &axis("connections", Scale::Logarithmic),
        &axis("bytes a connection", Scale::Logarithmic),
        &memory,
    );
    report.plot("memory.svg", title, &svg)?;
    report.made_by(results);
    Ok(())
}

/// Percentiles on an axis where each further nine is as far again.
fn latency_plot(report: &mut Report, figures: &[EndToEnd]) -> Result<()> {
    let nines = [0.5, 0.9, 0.99, 0.999, 0.9999];
    let x = Axis {
        label: "percentile of deliveries".to_owned(),
        scale: Scale::Logarithmic,
        ticks: nines
            .iter()
            .map(|q| (1.0 / (1.0 - q), format!("{} %", trimmed(100.0 * q))))
            .collect(),
    };
    let series = figures.iter().filter_map(|one| {
        let latency = one.latency_us.get("delivery")?;
        let points = latency.curve.iter().filter(|(quantile, _)| (0.5..=0.9999).contains(quantile));
        Some(Series {
            name: format!("{} connections", number(one.connections as f64)),
            points: points.map(|(q, us)| (1.0 / (1.0 - q), *us as f64 / 1e3)).collect(),
        })
    });
    let title = "Latency of delivery by percentile";
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
