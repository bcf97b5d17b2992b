//! Settings of the machine held against what a gateway of this size needs: each with the value seen,
//! the value needed, and the command that mends it. They do not cap the number of connections; they
//! make it slow, or the start fail.

use std::fmt;

use super::{Capacity, machine::Machine};
use crate::config::Config;

/// Mappings of one ring: its queues, its submissions, and the two of its buffers.
const MAPPINGS_PER_RING: u64 = 4;
/// Mappings of a process of ours without rings: program, libraries, heaps, stacks.
const MAPPINGS_BESIDES: u64 = 1_000;
/// Threads of a shard: its own and those the kernel may start for its rings.
const THREADS_PER_SHARD: u64 = 3;
/// Threads besides shards and links.
const THREADS_BESIDES: u64 = 16;
/// Ordinary descriptors besides rings, listeners and links.
const DESCRIPTORS_BESIDES: u64 = 128;
/// Bytes of a submission, a completion, and an entry of a buffer ring.
const SUBMISSION_BYTES: u64 = 64;
const COMPLETION_BYTES: u64 = 16;
const BUFFER_ENTRY_BYTES: u64 = 16;
const PAGE_BYTES: u64 = 4096;

/// One setting of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name: a sysctl or a limit.
    pub setting: &'static str,
    /// What it is.
    pub observed: u64,
    /// What this gateway needs, at least; for `kernel.io_uring_disabled`, at most.
    pub needed: u64,
    /// Whether that suffices.
    pub is_enough: bool,
    /// What happens if it does not.
    pub otherwise: &'static str,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, observed, needed, .. } = self;
        if self.is_enough {
            write!(f, "{setting} is {observed}, enough (needed: {needed})")
        } else {
            let Self { otherwise, fix, .. } = self;
            write!(f, "{setting} is {observed}, needed: {needed}; {otherwise}. Fix: {fix}")
        }
    }
}

/// All checks whose values can be read here.
pub(super) fn of(config: &Config, capacity: &Capacity, machine: &Machine) -> Vec<Check> {
    let shards = capacity.shards as u64;
    let rings = shards * u64::from(capacity.rings_per_shard);
    let endpoints = config.logic_endpoints().unwrap_or_default();
    let links = shards * endpoints.places(config.logic.endpoints_max) as u64;
    let backlog = u64::from(config.listen.backlog_max);
    let memlock = shards * memlock_bytes_per_shard(config, capacity.rings_per_shard);
    let mut checks = Vec::new();
    let mut at_least = |setting, observed: Option<u64>, needed, otherwise, fix: String| {
        if let Some(observed) = observed {
            let is_enough = observed >= needed;
            checks.push(Check { setting, observed, needed, is_enough, otherwise, fix });
        }
    };
    let sysctl = |name: &str, value: u64| format!("sysctl -w {name}={value}");
    at_least(
        "net.core.somaxconn",
        machine.somaxconn,
        backlog,
        "bursts of connects beyond it are refused or retried after a second",
        sysctl("net.core.somaxconn", backlog),
    );
    at_least(
        "net.ipv4.tcp_max_syn_backlog",
        machine.syn_backlog_max,
        backlog,
        "in bursts of connects the kernel falls back to SYN cookies",
        sysctl("net.ipv4.tcp_max_syn_backlog", backlog),
    );
    // A connection with anything under way takes a whole page of this budget.
    let pages = capacity.connections();
    at_least(
        "net.ipv4.tcp_mem (pressure, pages)",
        machine.tcp_mem_pages.map(|pages| pages[1]),
        pages,
        "when more connections than that have bytes under way at once, as in a broadcast, TCP \
         shrinks windows and drops packets",
        format!("sysctl -w net.ipv4.tcp_mem=\"{} {pages} {}\"", pages * 3 / 4, pages * 3 / 2),
    );
    at_least(
        "net.netfilter.nf_conntrack_max",
        machine.conntrack_max,
        capacity.connections(),
        "packets of connections that cannot be tracked are dropped, unless their port is exempt",
        sysctl("net.netfilter.nf_conntrack_max", 2 * capacity.connections()),
    );
    at_least(
        "vm.max_map_count",
        machine.map_count_max,
        MAPPINGS_BESIDES + MAPPINGS_PER_RING * rings,
        "rings cannot be made",
        sysctl("vm.max_map_count", 65_530.max(2 * MAPPINGS_PER_RING * rings)),
    );
    at_least(
        "RLIMIT_MEMLOCK (bytes)",
        machine.memlock_bytes,
        memlock,
        "rings cannot be made; all processes of a user share it",
        format!("LimitMEMLOCK={} in the systemd unit, or ulimit -l {}", memlock, memlock / 1024),
    );
    at_least(
        "RLIMIT_NOFILE (ordinary descriptors)",
        Some(machine.descriptors),
        DESCRIPTORS_BESIDES + rings + 4 * shards + 2 * links,
        "rings, listeners or links cannot be opened",
        "LimitNOFILE=1048576 in the systemd unit, or ulimit -n".to_owned(),
    );
    at_least(
        "threads (RLIMIT_NPROC, kernel.threads-max, pids cgroup)",
        machine.threads_max,
        THREADS_BESIDES + THREADS_PER_SHARD * shards + config.logic.link_threads as u64,
        "shards or links cannot be started",
        "LimitNPROC= and TasksMax= in the systemd unit, or sysctl -w kernel.threads-max="
            .to_owned(),
    );
    if let Some(observed) = machine.io_uring_disabled {
        checks.push(Check {
            setting: "kernel.io_uring_disabled",
            observed,
            needed: 0,
            is_enough: observed == 0,
            otherwise: "io_uring is refused",
            fix: "sysctl -w kernel.io_uring_disabled=0".to_owned(),
        });
    }
    checks
}

/// What the rings of a shard count against RLIMIT_MEMLOCK: queues and buffer rings, in whole pages.
/// Receive buffers themselves are not locked.
fn memlock_bytes_per_shard(config: &Config, rings: u8) -> u64 {
    let ring = |submissions: u32, completions: u32, buffers: u16| {
        (u64::from(submissions) * SUBMISSION_BYTES).next_multiple_of(PAGE_BYTES)
            + (u64::from(completions) * COMPLETION_BYTES + PAGE_BYTES).next_multiple_of(PAGE_BYTES)
            + (u64::from(buffers) * BUFFER_ENTRY_BYTES).next_multiple_of(PAGE_BYTES)
    };
    let driver = config.driver_options(rings, 1);
    let main = ring(driver.submission_entries, driver.completion_entries, driver.receive_buffers);
    let satellite = ring(
        driver.satellite_submission_entries,
        driver.satellite_completion_entries,
        driver.satellite_receive_buffers,
    );
    main + u64::from(rings.saturating_sub(1)) * satellite
}
