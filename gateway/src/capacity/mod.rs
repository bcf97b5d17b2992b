//! How many connections a configuration can hold on this machine, what binds first, and what to do
//! about it.
//!
//! Clients' sockets are direct descriptors of the rings, and RLIMIT_NOFILE, whose soft limit is
//! raised to the hard one first, caps the table of each ring. So a shard gets as many rings as its
//! share of the connections needs: one where the limit is high. Some entries are kept free so that
//! a full table refuses nobody with a reset, and some so that those above the limit can be told.
//!
//! A gateway opens no connections towards clients, so that it needs no ports but those it listens
//! on; whoever makes a million connections to it does.

mod checks;
mod machine;

use std::fmt;

pub use checks::Check;
pub use machine::Machine;

use crate::{config::Config, driver::Kind};

/// Connections of a process when neither the configuration nor the machine says less.
const CONNECTIONS_DEFAULT: u64 = 1 << 20;

/// Entries of a ring's table for clients that are being refused, as a share and at most.
const REFUSAL_SHARE: u32 = 16;
const REFUSAL_MAX: u32 = 256;

/// A shard's rings have no more entries than this together: the driver's ids have 24 bits for them.
const SOCKETS_CEILING: u64 = 1 << 24;

/// Bytes of a logged-in idle connection in this process and in the kernel, as measured
/// (docs/measurements/capacity.md).
const USER_BYTES: u64 = 256;
const KERNEL_BYTES: u64 = 4_100;

/// The share of the available memory that idle connections may take: the rest is for bytes under
/// way, in tenths.
const MEMORY_TENTHS: u64 = 8;

/// Files of the machine that are left to others.
const FILES_SPARE: u64 = 4_096;

/// Descriptors of the process that are no clients' sockets: links, the administrative side, epoll,
/// bells. Kept free where sockets are descriptors; at most a quarter of all.
const DESCRIPTORS_FOR_OTHERS: u64 = 512;

/// The sizes that a gateway runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Shards, one thread each.
    pub shards: usize,
    /// Rings of each shard.
    pub rings_per_shard: u8,
    /// Entries of each ring's table.
    pub sockets_per_ring: u32,
    /// Connections of each shard that are served; those above are told `over_capacity`.
    pub connections_per_shard: u32,
    /// What bounds the number, the tightest first.
    pub bounds: Vec<Bound>,
    /// Settings of the machine, held against these sizes.
    pub checks: Vec<Check>,
}

/// One thing that bounds the number of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// What it is.
    pub by: BoundBy,
    /// Connections of the process that it allows.
    pub connections: u64,
    /// The value behind it.
    pub observed: String,
    /// How to have more.
    pub fix: String,
}

/// What may bound the number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundBy {
    /// `connections.connections_max`.
    ConnectionsMax,
    /// The rings' tables: RLIMIT_NOFILE or `uring.sockets_max`, times `uring.rings_max`.
    Descriptors,
    /// Memory of the machine or the cgroup.
    Memory,
    /// fs.file-max.
    Files,
}

impl BoundBy {
    /// For metrics and messages.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ConnectionsMax => "connections_max",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Files => "files",
        }
    }
}

impl Capacity {
    /// Plans the sizes for this machine, after raising RLIMIT_NOFILE as far as it goes.
    ///
    /// # Errors
    /// A sentence that says which key asks for what cannot be had.
    pub fn plan(config: &Config, driver: Kind) -> Result<Self, String> {
        let limit = millrace_uring::raise_descriptor_limit()
            .map_err(|error| format!("cannot read RLIMIT_NOFILE: {error}"))?;
        let shards = match config.gateway.shards {
            0 => std::thread::available_parallelism()
                .map_or(1, std::num::NonZero::get)
                .min(crate::config::SHARDS_MAX),
            shards => shards,
        };
        let machine = Machine::look(limit);
        if driver.sockets_are_descriptors() {
            Self::of_descriptors(config, shards, machine, driver)
        } else {
            Self::of(config, shards, &machine)
        }
    }

    /// Where each socket is a descriptor of the process: the shards share RLIMIT_NOFILE, and each
    /// has one table.
    fn of_descriptors(
        config: &Config,
        shards: usize,
        machine: Machine,
        driver: Kind,
    ) -> Result<Self, String> {
        let limit = machine.descriptors;
        let ours = limit - DESCRIPTORS_FOR_OTHERS.min(limit / 4);
        let share = ours / shards as u64;
        let mut sized = config.clone();
        sized.uring.rings_max = 1;
        if u64::from(sized.uring.sockets_max) > share {
            sized.uring.sockets_max = 0;
        }
        let shared = Machine { descriptors: share, ..machine.clone() };
        let mut capacity = Self::of(&sized, shards, &shared)?;
        capacity.checks = checks::of(&sized, &capacity, &machine);
        for bound in &mut capacity.bounds {
            if bound.by == BoundBy::Descriptors && sized.uring.sockets_max == 0 {
                bound.observed = format!(
                    "RLIMIT_NOFILE {limit} for the whole process, of which each socket of the \
                     driver {driver} takes one"
                );
                bound.fix = "LimitNOFILE= in the systemd unit (docker: --ulimit nofile=; shell: \
                             ulimit -Hn), or gateway.driver = \"io_uring\""
                    .to_owned();
            }
        }
        Ok(capacity)
    }

    fn of(config: &Config, shards: usize, machine: &Machine) -> Result<Self, String> {
        let spare = config.uring.accept_spare;
        let table = table_entries(config, machine.descriptors)?;
        let refusals = (table / REFUSAL_SHARE).min(REFUSAL_MAX);
        let usable = u64::from(table.saturating_sub(spare));
        if usable <= u64::from(refusals) {
            return Err(format!(
                "a ring of {table} sockets leaves none for clients after accept_spare = {spare}"
            ));
        }
        let rings_max =
            u64::from(config.uring.rings_max).min(SOCKETS_CEILING / u64::from(table)).max(1);
        let per_shard_max = rings_max * usable - u64::from(refusals);
        let bounds = bounds(config, shards as u64, table, per_shard_max, machine);
        let connections = bounds[0].connections;
        let per_shard = connections.div_ceil(shards as u64).clamp(1, per_shard_max);
        // Tables need not be larger than what is let in.
        let entries = per_shard + u64::from(refusals);
        let rings = entries.div_ceil(usable);
        let sockets = entries.div_ceil(rings) + u64::from(spare);
        let mut capacity = Self {
            shards,
            rings_per_shard: u8::try_from(rings).expect("at most rings_max, which has 8 bits"),
            sockets_per_ring: u32::try_from(sockets).expect("at most the table").min(table),
            connections_per_shard: u32::try_from(per_shard).expect("at most 2^24"),
            bounds,
            checks: Vec::new(),
        };
        capacity.checks = checks::of(config, &capacity, machine);
        Ok(capacity)
    }

    /// Connections of the process.
    pub const fn connections(&self) -> u64 {
        self.shards as u64 * self.connections_per_shard as u64
    }

    /// What binds first.
    pub fn bound(&self) -> &Bound {
        &self.bounds[0]
    }

    /// What is to be mended on this machine, each a sentence with its fix: a bound below the
    /// configured number, and settings that do not suffice.
    pub fn warnings(&self) -> Vec<String> {
        let configured = self.bounds.iter().find(|bound| bound.by == BoundBy::ConnectionsMax);
        let wanted = configured.map_or(u64::MAX, |bound| bound.connections);
        let bounds = self.bounds.iter().filter(|bound| bound.connections < wanted);
        let bounds = bounds.map(|bound| bound.to_string());
        let checks = self.checks.iter().filter(|check| !check.is_enough);
        bounds.chain(checks.map(|check| check.to_string())).collect()
    }

    /// Everything, line by line: the sizes, the bounds, the checks.
    pub fn report(&self) -> String {
        let mut lines = vec![self.to_string(), "what bounds it, the tightest first:".to_owned()];
        lines.extend(self.bounds.iter().map(|bound| format!("  {bound}")));
        lines.push("settings of this machine:".to_owned());
        lines.extend(self.checks.iter().map(|check| {
            let mark = if check.is_enough { "ok  " } else { "MEND" };
            format!("  {mark} {check}")
        }));
        lines.join("\n")
    }
}

/// Entries that one ring's table can have.
fn table_entries(config: &Config, limit: u64) -> Result<u32, String> {
    let configured = config.uring.sockets_max;
    if u64::from(configured) > limit {
        return Err(format!(
            "uring.sockets_max is {configured}, but RLIMIT_NOFILE allows a ring {limit}; raise the \
             limit (ulimit -n, LimitNOFILE=) or set it to 0, so that more rings are used"
        ));
    }
    let most = u32::try_from(limit.min(SOCKETS_CEILING)).expect("at most 2^24");
    Ok(if configured == 0 { most } else { configured })
}

fn bounds(
    config: &Config,
    shards: u64,
    table: u32,
    per_shard_max: u64,
    machine: &Machine,
) -> Vec<Bound> {
    let mut bounds = Vec::new();
    let mut bound = |by, connections, observed: String, fix: String| {
        bounds.push(Bound { by, connections, observed, fix });
    };
    let configured = u64::from(config.connections.connections_max);
    let wanted = if configured == 0 { CONNECTIONS_DEFAULT } else { configured };
    bound(
        BoundBy::ConnectionsMax,
        wanted,
        match configured {
            0 => format!("connections.connections_max = 0: up to {CONNECTIONS_DEFAULT}"),
            _ => format!("connections.connections_max = {configured}"),
        },
        "raise connections.connections_max".to_owned(),
    );
    let rings_max = config.uring.rings_max;
    let of_table = match config.uring.sockets_max {
        0 => "RLIMIT_NOFILE".to_owned(),
        _ => "uring.sockets_max".to_owned(),
    };
    let needed = (wanted.div_ceil(shards) + u64::from(REFUSAL_MAX + config.uring.accept_spare))
        .next_power_of_two();
    let mut fix = String::new();
    if machine.nr_open.is_some_and(|nr_open| nr_open < needed) {
        fix = format!("sysctl -w fs.nr_open={needed}, then ");
    }
    fix += &format!(
        "LimitNOFILE={needed} in the systemd unit (docker: --ulimit nofile={needed}; shell: \
         ulimit -Hn), or raise uring.rings_max, at most 255, or gateway.shards"
    );
    bound(
        BoundBy::Descriptors,
        shards * per_shard_max,
        format!("{of_table} {table} for each ring, uring.rings_max {rings_max} for each shard"),
        fix,
    );
    if let Some(bytes) = machine.memory_available_bytes {
        let each = USER_BYTES + KERNEL_BYTES;
        let source = if machine.is_memory_of_cgroup { "left in the cgroup" } else { "available" };
        bound(
            BoundBy::Memory,
            (bytes / 10 * MEMORY_TENTHS / each).max(1),
            format!(
                "{} MiB {source}, of which {MEMORY_TENTHS} tenths for connections of {USER_BYTES} \
                 bytes here and {KERNEL_BYTES} in the kernel",
                bytes >> 20
            ),
            match machine.is_memory_of_cgroup {
                true => "MemoryMax= in the systemd unit (docker: --memory)".to_owned(),
                false => "add memory, or move other processes away".to_owned(),
            },
        );
    }
    if let Some(files_max) = machine.files_max {
        let open = machine.files_open.unwrap_or(0);
        bound(
            BoundBy::Files,
            files_max.saturating_sub(open + FILES_SPARE).max(1),
            format!("fs.file-max {files_max} for the machine, {open} open"),
            format!("sysctl -w fs.file-max={}", wanted + open + 2 * FILES_SPARE),
        );
    }
    bounds.sort_by_key(|bound| bound.connections);
    bounds
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, connections, observed, fix } = self;
        write!(f, "{}: {connections} connections ({observed}). For more: {fix}", by.label())
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rings = if self.rings_per_shard == 1 { "ring" } else { "rings" };
        write!(
            f,
            "up to {} connections: {} shards of {}, each with {} {rings} of {} sockets; bound by \
             {} ({})",
            self.connections(),
            self.shards,
            self.connections_per_shard,
            self.rings_per_shard,
            self.sockets_per_ring,
            self.bound().by.label(),
            self.bound().observed,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{BoundBy, CONNECTIONS_DEFAULT, Capacity, Machine};
    use crate::{config::Config, driver::Kind};

    fn config(connections_max: u32, sockets_max: u32, rings_max: u8) -> Config {
        let mut config = Config::default();
        config.connections.connections_max = connections_max;
        config.uring.sockets_max = sockets_max;
        config.uring.rings_max = rings_max;
        config
    }

    fn machine(descriptors: u64) -> Machine {
        Machine { descriptors, ..Machine::default() }
    }

    fn plan(config: &Config, machine: &Machine) -> Capacity {
        let capacity = Capacity::of(config, 2, machine).expect("fits");
        // Whatever binds: all that are let in fit, with the spare entries and those to be refused.
        let entries = u64::from(capacity.sockets_per_ring) * u64::from(capacity.rings_per_shard);
        let spare = u64::from(config.uring.accept_spare) * u64::from(capacity.rings_per_shard);
        assert!(entries > u64::from(capacity.connections_per_shard) + spare, "{capacity}");
        assert!(u64::from(capacity.sockets_per_ring) <= machine.descriptors);
        assert!(capacity.rings_per_shard <= config.uring.rings_max);
        capacity
    }

    #[test]
    fn where_sockets_are_descriptors_all_shards_share_the_limit() {
        let config = config(0, 0, 64);
        let capacity = Capacity::of_descriptors(&config, 2, machine(20_000), Kind::Epoll);
        let capacity = capacity.expect("fits");
        assert_eq!((capacity.bound().by, capacity.rings_per_shard), (BoundBy::Descriptors, 1));
        assert!(capacity.bound().observed.contains("epoll"), "{}", capacity.bound().observed);
        assert!(2 * u64::from(capacity.sockets_per_ring) <= 20_000 - 512);
        assert!(capacity.connections() > 18_000, "{capacity}");
    }

    #[test]
    fn one_ring_a_shard_where_the_limit_is_high() {
        let capacity = plan(&config(0, 0, 64), &machine(1 << 20));
        assert_eq!((capacity.rings_per_shard, capacity.connections()), (1, CONNECTIONS_DEFAULT));
        assert_eq!(capacity.bound().by, BoundBy::ConnectionsMax);
        assert!(capacity.warnings().is_empty(), "{:?}", capacity.warnings());
        let small = plan(&config(1_001, 0, 64), &machine(1 << 20));
        assert_eq!((small.rings_per_shard, small.connections_per_shard), (1, 501));
        assert!(small.sockets_per_ring < 1_000, "no table for more than is let in");
    }

    #[test]
    fn a_million_fits_where_a_table_ends_at_20_000() {
        let capacity = plan(&config(1_000_000, 0, 64), &machine(20_000));
        assert_eq!(capacity.connections(), 1_000_000);
        assert_eq!(capacity.rings_per_shard, 26);
        assert_eq!(capacity.bound().by, BoundBy::ConnectionsMax);
    }

    #[test]
    fn descriptors_bind_when_rings_are_few() {
        let capacity = plan(&config(0, 0, 1), &machine(20_000));
        assert_eq!(capacity.bound().by, BoundBy::Descriptors);
        assert_eq!(capacity.sockets_per_ring, 20_000);
        assert_eq!(capacity.connections(), 2 * (20_000 - 64 - 256));
        let warnings = capacity.warnings();
        assert!(warnings[0].contains("RLIMIT_NOFILE 20000"), "{warnings:?}");
        assert!(warnings[0].contains("LimitNOFILE=1048576"), "{warnings:?}");
    }

    #[test]
    fn memory_binds_on_a_small_machine_and_its_cgroup_is_named() {
        let small = Machine {
            memory_available_bytes: Some(1 << 30),
            is_memory_of_cgroup: true,
            ..machine(1 << 20)
        };
        let capacity = plan(&config(0, 0, 64), &small);
        assert_eq!(capacity.bound().by, BoundBy::Memory);
        assert!((150_000..250_000).contains(&capacity.connections()), "{capacity}");
        assert!(capacity.warnings()[0].contains("MemoryMax="), "{:?}", capacity.warnings());
    }

    #[test]
    fn every_bound_and_every_setting_that_falls_short_comes_with_its_fix() {
        let poor = Machine {
            nr_open: Some(20_000),
            memory_available_bytes: Some(1 << 28),
            files_max: Some(100_000),
            files_open: Some(1_000),
            conntrack_max: Some(500),
            somaxconn: Some(128),
            syn_backlog_max: Some(128),
            tcp_mem_pages: Some([100, 200, 300]),
            map_count_max: Some(1_000),
            memlock_bytes: Some(65_536),
            threads_max: Some(8),
            io_uring_disabled: Some(2),
            ..machine(200)
        };
        let capacity = plan(&config(1_000_000, 0, 64), &poor);
        assert_eq!(capacity.bound().by, BoundBy::Descriptors);
        let report = capacity.report();
        for fix in [
            "sysctl -w fs.nr_open=",
            "LimitNOFILE=",
            "MemoryMax=",
            "sysctl -w fs.file-max=",
            "sysctl -w net.netfilter.nf_conntrack_max=",
            "sysctl -w net.core.somaxconn=4096",
            "sysctl -w net.ipv4.tcp_max_syn_backlog=4096",
            "sysctl -w net.ipv4.tcp_mem=",
            "sysctl -w vm.max_map_count=",
            "LimitMEMLOCK=",
            "LimitNPROC=",
            "sysctl -w kernel.io_uring_disabled=0",
        ] {
            let expected = if fix == "MemoryMax=" { "add memory" } else { fix };
            assert!(report.contains(expected), "{expected} is not in:\n{report}");
        }
        assert_eq!(capacity.warnings().len(), 3 + capacity.checks.len());
    }

    #[test]
    fn a_table_that_cannot_be_had_is_refused_with_the_remedy() {
        let refused =
            |config: &Config| Capacity::of(config, 2, &machine(20_000)).expect_err("too many");
        let error = refused(&config(0, 30_000, 64));
        assert!(error.contains("RLIMIT_NOFILE") && error.contains("20000"), "{error}");
        refused(&config(0, 65, 64));
    }
}
