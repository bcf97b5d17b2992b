//! What the store on PostgreSQL takes: several stores, each as a process of its own would be, commit
//! single-chat messages as fast as they are answered.
//!
//! `postgres_store --url postgresql://… --stores 4 --writes 500 --seconds 10 --server-pid 4711` on a
//! migrated database. With the pid of the server's first process its CPU time is told as well.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use millrace_logic::storage::{
    Outcome, Store as _, Target, Write,
    postgres::{Options, PostgresStore},
};

/// Commits messages on PostgreSQL and tells how many a second.
#[derive(Parser)]
struct Arguments {
    /// The database.
    #[arg(long)]
    url: String,
    /// Stores, each with a writer of its own.
    #[arg(long, default_value_t = 1)]
    stores: usize,
    /// Messages of one commit.
    #[arg(long, default_value_t = 500)]
    writes: usize,
    /// How long.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Single chats that the messages are spread over, at random.
    #[arg(long, default_value_t = 20_000)]
    chats: u64,
    /// Bytes of a message's body.
    #[arg(long, default_value_t = 64)]
    body_bytes: usize,
    /// The database server's first process.
    #[arg(long)]
    server_pid: Option<u32>,
}

/// CPU seconds of a process and its children, the ended ones included.
fn cpu_s(pid: u32) -> f64 {
    let mut ticks = 0;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let is_first = head.split(' ').next() == Some(&pid.to_string());
        if is_first || number(1) == Some(u64::from(pid)) {
            ticks += number(11).unwrap_or(0) + number(12).unwrap_or(0);
        }
        if is_first {
            ticks += number(13).unwrap_or(0) + number(14).unwrap_or(0);
        }
    }
    ticks as f64 / 100.0
}

fn message(sender: String, user: String, id: String, body: &str) -> Write {
    Write::Append {
        message_id: uuid::Uuid::now_v7(),
        sender_id: sender,
        client_message_id: id,
        target: Target::User(user),
        kind: 1,
        body: body.to_owned(),
        attachment: None,
        does_not_count: false,
        sent_at_ms: 1,
        extras: None,
    }
}

#[allow(clippy::print_stdout)]
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let Arguments { url, stores, writes, seconds, chats, body_bytes, server_pid } = arguments;
    let (stored, commits) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let is_over = Arc::new(AtomicBool::new(false));
    let run = uuid::Uuid::now_v7();
    let mut tasks = vec![];
    let mut opened = vec![];
    for number in 0..stores {
        let options = Options {
            commit_writes_max: writes,
            connections_max: NonZeroUsize::MIN,
            ..Options::new(&url)
        };
        let store = Arc::new(PostgresStore::open(options).await?);
        opened.push(store.clone());
        // One commit is on its way, and the next waits.
        for caller in 0..2 {
            let (store, stored, commits, is_over) =
                (store.clone(), stored.clone(), commits.clone(), is_over.clone());
            tasks.push(tokio::spawn(async move {
                let (mut n, body) = (0_u64, "x".repeat(body_bytes));
                let mut took = vec![];
                while !is_over.load(Ordering::Relaxed) {
                    let batch: Vec<Write> = (0..writes)
                        .map(|_| {
                            n += 1;
                            let chat = fastrand::u64(..chats);
                            let id = format!("{run}/{number}/{caller}/{n}");
                            message(format!("s{chat}"), format!("r{chat}"), id, &body)
                        })
                        .collect();
                    let began = Instant::now();
                    let outcomes = store.commit(batch).await.map_err(|error| error.to_string())?;
                    took.push(began.elapsed());
                    let new = outcomes
                        .iter()
                        .filter(|outcome| {
                            matches!(outcome, Outcome::Appended { duplicate: false, .. })
                        })
                        .count();
                    stored.fetch_add(new as u64, Ordering::Relaxed);
                    commits.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(took)
            }));
        }
    }
    let (before, began) = (server_pid.map(cpu_s), Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    is_over.store(true, Ordering::Relaxed);
    let mut took = vec![];
    for task in tasks {
        took.extend(task.await??);
    }
    let elapsed_s = began.elapsed().as_secs_f64();
    let (stored, commits) = (stored.load(Ordering::Relaxed), commits.load(Ordering::Relaxed));
    took.sort_unstable();
    let at =
        |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
    let server = match (server_pid, before) {
        (Some(pid), Some(before)) => {
            format!("{:.1} µs of server CPU a message", (cpu_s(pid) - before) * 1e6 / stored as f64)
        }
        _ => String::new(),
    };
    println!(
        "stores {stores} writes {writes}: {:.0} messages/s, {:.0} commits/s, commit p50 {:.1} ms \
         p99 {:.1} ms, {server}",
        stored as f64 / elapsed_s,
        commits as f64 / elapsed_s,
        at(0.5).as_secs_f64() * 1e3,
        at(0.99).as_secs_f64() * 1e3,
    );
    for store in opened {
        store.close().await?;
    }
    Ok(())
}
