//! What a measurement leaves behind: JSON files with the machine, the command and the figures,
//! which the report is drawn from. A part can be measured again, or on its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// On what something was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor, and how many cores of it.
    pub processor: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The hard limit of descriptors.
    pub descriptors_max: u64,
    /// The compiler found at the time of measuring.
    pub rustc: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
        let memory_kib = read("/proc/meminfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok()
            })
            .unwrap_or(0_u64);
        Self {
            processor: format!("{cores} × {}", model.map_or("unknown", |(_, name)| name)),
            memory_bytes: memory_kib * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            descriptors_max: millrace_uring::descriptor_limit().unwrap_or_default(),
            rustc: output("rustc", &["--version"]),
        }
    }
}

/// What a program prints; nothing if it cannot be run.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// The commit of the working tree, with `+` if there are changes.
fn commit() -> String {
    let changed = output("git", &["status", "--porcelain", "--untracked-files=no"]);
    let mark = if changed.is_empty() { "" } else { "+" };
    output("git", &["rev-parse", "--short", "HEAD"]) + mark
}

/// One measurement's file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results<T> {
    /// Where.
    pub machine: Machine,
    /// The commits of the working tree at the time.
    pub commits: Vec<String>,
    /// The command lines that contributed.
    pub commands: Vec<String>,
    /// The figures.
    pub figures: Vec<T>,
}

/// Adds figures to a file, which is made if it is not there. Figures of another machine, kernel or
/// compiler are thrown away first.
///
/// # Errors
/// The file cannot be read or written.
pub fn add<T>(path: &Path, figures: Vec<T>) -> Result<()>
where
    T: Serialize + for<'a> Deserialize<'a>,
{
    let machine = Machine::here();
    let command = std::env::args().collect::<Vec<_>>();
    // Where the program lies is nobody's business.
    let name = Path::new(&command[0]).file_name().unwrap_or_default().to_string_lossy();
    let command = [&[name.into_owned()], &command[1..]].concat().join(" ");
    let before = if path.exists() { read(path).ok() } else { None };
    let mut results =
        before.filter(|before: &Results<T>| before.machine == machine).unwrap_or(Results {
            machine,
            commits: Vec::new(),
            commands: Vec::new(),
            figures: Vec::new(),
        });
    for (list, item) in [(&mut results.commits, commit()), (&mut results.commands, command)] {
        if !list.contains(&item) {
            list.push(item);
        }
    }
    results.figures.extend(figures);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, serde_json::to_string_pretty(&results)? + "\n")
        .with_context(|| format!("{} cannot be written", path.display()))
}

/// Reads a file of figures.
///
/// # Errors
/// It is not there, or is something else.
pub fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Results<T>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is something else", path.display()))
}

/// The median; 0 of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

/// Echo work on one server in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EchoFigure {
    /// The server.
    pub server: String,
    /// Connections that were open.
    pub connections: u32,
    /// Connections that talked.
    pub active: u32,
    /// Which round; figures of one round were measured one after the other.
    pub round: u32,
    /// Answers a second.
    pub messages_per_second: f64,
    /// Median round trip.
    pub round_trip_p50_us: u64,
    /// 99 % of round trips.
    pub round_trip_p99_us: u64,
    /// Share of its core that the server used.
    pub server_core: f64,
    /// Share of its core that the client used.
    pub client_core: f64,
    /// Resident bytes of the server for each connection, all idle, before anybody had talked.
    pub idle_bytes: f64,
}

/// Fan-out to one room.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FanOutFigure {
    /// The server.
    pub server: String,
    /// Members, each on a connection of its own.
    pub members: u32,
    /// Messages published at once; the next follow when everybody has them.
    pub published_at_once: u32,
    /// Messages to members a second.
    pub deliveries_per_second: f64,
    /// Share of its core that the gateway used.
    pub server_core: f64,
    /// Share of its core that the receivers used.
    pub client_core: f64,
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }
}
