//! What a message to a group costs by either rule: a pointer written for each member, or members who
//! look at the group's own row. On the embedded store alone; bytes are those that the process wrote
//! to the disk (`/proc/self/io`), and time is that of the commit and of the logins.
//!
//! `cargo run --release -p millrace-logic --example group_fan_out [MEMBERS,… [MESSAGES]]`
//!
//! Defaults: groups of 10, 100, 500, 5,000 and 100,000 members, 200 messages each (20 above 10,000
//! members), one commit a message.

use std::{
    error::Error,
    path::Path,
    time::{Duration, Instant},
};

use millrace_logic::storage::{
    Outcome, Store, Target, Write,
    embedded::{EmbeddedStore, Options},
};
use uuid::Uuid;

type Failure = Box<dyn Error>;

/// Members added at once.
const BATCH: usize = 10_000;
/// Logins whose undelivered messages are read.
const LOGINS: usize = 200;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let sizes = arguments.next().unwrap_or("10,100,500,5000,100000".into());
    let sizes = sizes.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let messages: usize = arguments.next().map_or(Ok(200), |count| count.parse())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut lines = vec![format!(
        "{:>8} {:>9} {:>14} {:>15} {:>14} {:>14} {:>12}",
        "members",
        "rule",
        "make the group",
        "bytes a message",
        "ms a message",
        "slowest ms",
        "us a login"
    )];
    for size in sizes {
        for (rule, limit) in [("pointers", usize::MAX), ("cursor", 0)] {
            let messages = if size > 10_000 { messages.min(20) } else { messages };
            let folder = tempfile::tempdir()?;
            let measured = runtime.block_on(measure(folder.path(), size, messages, limit))?;
            let Measured { made, bytes, mean, slowest, login } = measured;
            lines.push(format!(
                "{size:>8} {rule:>9} {:>11.2} s {bytes:>15} {:>14.2} {:>14.2} {:>12.1}",
                made.as_secs_f64(),
                mean.as_secs_f64() * 1e3,
                slowest.as_secs_f64() * 1e3,
                login.as_secs_f64() * 1e6,
            ));
        }
    }
    std::io::Write::write_all(&mut std::io::stdout(), (lines.join("\n") + "\n").as_bytes())?;
    Ok(())
}

struct Measured {
    made: Duration,
    bytes: u64,
    mean: Duration,
    slowest: Duration,
    login: Duration,
}

async fn measure(
    folder: &Path,
    size: usize,
    messages: usize,
    fan_out_members_max: usize,
) -> Result<Measured, Failure> {
    let options = Options { fan_out_members_max, ..Options::new(folder.join("data")) };
    let store = EmbeddedStore::open(options)?;
    let member = |n: usize| format!("member-{n:06}");
    let begun = Instant::now();
    let first: Vec<String> = (0..size.min(BATCH)).map(member).collect();
    commit(&store, create(first)).await?;
    for from in (BATCH..size).step_by(BATCH) {
        let user_ids = (from..size.min(from + BATCH)).map(member).collect();
        commit(&store, Write::AddMembers { group_id: "g".into(), user_ids }).await?;
    }
    let made = begun.elapsed();
    // Warm: the writer knows the members.
    commit(&store, message(member(0), "warm")).await?;
    let before = written()?;
    let (mut spent, mut slowest) = (Duration::ZERO, Duration::ZERO);
    for n in 0..messages {
        let begun = Instant::now();
        commit(&store, message(member(n % size), &n.to_string())).await?;
        spent += begun.elapsed();
        slowest = slowest.max(begun.elapsed());
    }
    // What the engine still has to write of it belongs to the messages as well: files are written
    // when tables in memory are full, so this counts the journal, and those files.
    let bytes = (written()? - before) / messages as u64;
    let begun = Instant::now();
    for n in 0..LOGINS {
        let user_id = member(n * 7919 % size);
        store.undelivered(&user_id, u64::MAX, 20, 200).await?;
    }
    let login = begun.elapsed() / LOGINS as u32;
    store.close().await?;
    let mean = spent / messages as u32;
    Ok(Measured { made, bytes, mean, slowest, login })
}

fn create(members: Vec<String>) -> Write {
    Write::CreateGroup {
        group_id: "g".into(),
        name: "g".into(),
        avatar: String::new(),
        members,
        members_max: 100_000,
        created_at_ms: 1,
    }
}

fn message(sender_id: String, id: &str) -> Write {
    Write::Append {
        message_id: Uuid::now_v7(),
        sender_id,
        client_message_id: id.into(),
        target: Target::Group("g".into()),
        kind: 1,
        body: "x".repeat(100),
        attachment: None,
        does_not_count: false,
        sent_at_ms: 1,
        extras: None,
    }
}

async fn commit(store: &EmbeddedStore, write: Write) -> Result<(), Failure> {
    match store.commit(vec![write]).await?.pop() {
        Some(Outcome::Refused { reason, .. }) => Err(reason.into()),
        _ => Ok(()),
    }
}

/// Bytes that this process caused to be written to the disk.
fn written() -> Result<u64, Failure> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.ok_or("no write_bytes")?.trim().parse()?)
}
