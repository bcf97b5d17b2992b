//! Which embedded engine should hold the messages? One command writes the row set of our schema
//! through each candidate with group commit and fdatasync, kills the writer with SIGKILL, reopens,
//! reads, and prints one Markdown table.
//!
//! It measures engines, not our store: no permissions, no cursors, counters kept in memory for
//! every engine alike. The 1 % of retried messages and the look-up that finds them are part of it.

#![allow(clippy::print_stdout)] // The table is what this program is for.

mod engine;
mod workload;

use std::{
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};
use workload::{Options, Workload};

/// As in the processes that will hold the store.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    /// The candidates, in order; see `engine::open` for the names.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "nothing,fjall-8,fjall-16,fjall-64,fjall-one-16,redb,sqlite"
    )]
    engines: Vec<String>,
    /// Write until this many messages are stored …
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// … and this many seconds have passed.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Senders that each wait for their message's commit before they send the next.
    #[arg(long, default_value_t = 2_000)]
    senders: usize,
    /// Most messages of one commit.
    #[arg(long, default_value_t = 1_000)]
    commit_messages_max: usize,
    /// Messages per second on a fixed schedule instead of waiting senders; 0 for senders.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Single chats that the messages are spread over at random.
    #[arg(long, default_value_t = 50_000)]
    conversations: u32,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the stores are written; a directory of its own below it is removed at the end.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Internal: be the writer process of one engine, in this directory.
    #[arg(long, hide = true)]
    write: Option<PathBuf>,
}

/// What the writer process reports before it goes on writing until it is killed.
#[derive(Serialize, Deserialize)]
struct Written {
    messages: u64,
    seconds: f64,
    cpu_seconds: f64,
    disk_bytes: u64,
    commits: u64,
    wait_p50_ms: f64,
    wait_p99_ms: f64,
    wait_p999_ms: f64,
    wait_max_ms: f64,
    version: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(directory) = &arguments.write {
        return write(&arguments, directory);
    }
    let below = tempfile::tempdir_in(&arguments.directory)?;
    println!("{}", head(&arguments));
    for name in &arguments.engines {
        let directory = below.path().join(name);
        std::fs::create_dir(&directory)?;
        println!("{}", measure(name, &directory)?);
        std::fs::remove_dir_all(&directory)?;
    }
    Ok(())
}

fn head(arguments: &Arguments) -> String {
    let load = if arguments.rate == 0 {
        format!("{} waiting senders", arguments.senders)
    } else {
        format!("{} messages/s scheduled", arguments.rate)
    };
    format!(
        "{load}, at least {} messages and {} s, commits of at most {}, {} conversations, seed {}\n\n\
         | engine | messages/s | messages a commit | commit wait p50 | p99 | p99.9 | max, ms | CPU a message, µs | disk a message, B | reopen after kill -9, ms | newest 20 of a random conversation, µs (p99) |\n\
         |---|---|---|---|---|---|---|---|---|---|---|",
        arguments.messages,
        arguments.seconds,
        arguments.commit_messages_max,
        arguments.conversations,
        arguments.seed,
    )
}

/// Runs one engine's writer process, kills it, reopens and reads.
fn measure(name: &str, directory: &Path) -> anyhow::Result<String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut child = Command::new(std::env::current_exe()?)
        .args(&arguments)
        .args(["--engines", name, "--write"])
        .arg(directory)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("the writer's output")?).lines();
    let report = lines.next().context("the writer ended without a report")??;
    let written: Written = serde_json::from_str(&report)?;
    if name == "nothing" {
        child.kill()?;
        child.wait()?;
        let cpu = written.cpu_seconds * 1e6 / written.messages as f64;
        return Ok(format!("| nothing | – | – | – | – | – | – | {cpu:.1} | – | – | – |"));
    }
    // It is writing again; the kill meets it in the middle of something.
    std::thread::sleep(Duration::from_millis(700));
    child.kill()?;
    child.wait()?;

    let begun = Instant::now();
    let engine = engine::open(name, directory)?;
    let reopen_ms = begun.elapsed().as_secs_f64() * 1e3;

    let options = Options::from(&Arguments::parse());
    let mut random = fastrand::Rng::with_seed(options.seed + 1);
    let mut histogram = hdrhistogram::Histogram::<u64>::new(3)?;
    let mut found = 0_u64;
    for round in 0..22_000 {
        let conversation = workload::conversation_id(random.u32(0..options.conversations));
        let begun = Instant::now();
        let rows = engine.newest(conversation.as_bytes(), 20)?;
        if round >= 2_000 {
            histogram.record(begun.elapsed().as_nanos() as u64)?;
            found += rows as u64;
        }
    }
    let version = engine.get(engine::Table::Conversations, workload::VERSION_KEY)?;
    let version = u64::from_le_bytes(version.context("no version row")?[..].try_into()?);
    if version < written.version || found == 0 {
        bail!("{name} came back at version {version}, but had acknowledged {}", written.version);
    }
    Ok(format!(
        "| {name} | {:.0} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} | {reopen_ms:.0} | {:.1} ({:.1}) |",
        written.messages as f64 / written.seconds,
        written.messages as f64 / written.commits as f64,
        written.wait_p50_ms,
        written.wait_p99_ms,
        written.wait_p999_ms,
        written.wait_max_ms,
        written.cpu_seconds * 1e6 / written.messages as f64,
        written.disk_bytes as f64 / written.messages as f64,
        histogram.value_at_quantile(0.5) as f64 / 1e3,
        histogram.value_at_quantile(0.99) as f64 / 1e3,
    ))
}

/// The writer process: writes, reports, goes on until it is killed.
fn write(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    let name = arguments.engines.last().context("no engine named")?;
    let mut engine = engine::open(name, directory)?;
    let options = Options::from(arguments);
    let mut workload = Workload::new(&options);
    let mut histogram = hdrhistogram::Histogram::<u64>::new(3)?;
    let cpu_before = cpu_seconds()?;
    let begun = Instant::now();
    let mut arrivals = workload::Arrivals::new(&options, begun);
    let (mut messages, mut commits) = (0_u64, 0_u64);
    while messages < arguments.messages || begun.elapsed().as_secs() < arguments.seconds {
        let due = arrivals.wait(options.commit_messages_max);
        workload.commit(engine.as_mut(), due.len())?;
        let now = Instant::now();
        for intended in due {
            histogram.record((now - intended).as_micros() as u64)?;
            messages += 1;
            arrivals.again(now);
        }
        commits += 1;
    }
    let milliseconds = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    let written = Written {
        messages,
        seconds: begun.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds()? - cpu_before,
        disk_bytes: disk_bytes(directory)?,
        commits,
        wait_p50_ms: milliseconds(0.5),
        wait_p99_ms: milliseconds(0.99),
        wait_p999_ms: milliseconds(0.999),
        wait_max_ms: histogram.max() as f64 / 1e3,
        version: workload.version(),
    };
    println!("{}", serde_json::to_string(&written)?);
    std::io::stdout().flush()?;
    loop {
        workload.commit(engine.as_mut(), options.commit_messages_max)?;
    }
}

/// CPU time of this process so far, in seconds.
fn cpu_seconds() -> anyhow::Result<f64> {
    let time = millrace_service::cpu_time::of_process(None).context("/proc/self/stat")?;
    Ok(time.as_secs_f64())
}

/// Blocks that the directory's files occupy.
fn disk_bytes(directory: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // Engines remove files while this walks.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes +=
            if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}
