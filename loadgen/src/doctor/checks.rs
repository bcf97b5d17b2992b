//! Each check: a function from what is wanted and what was found to a sentence and commands.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{Check, Status, facts::Facts};
use crate::{
    figures::{bytes, count, plain, significant},
    ledger::Ledger,
    preflight,
};

/// What is wanted of the machine.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Connections from here.
    pub connections: u32,
    /// Threads of the generator.
    pub threads: u32,
    /// Connections a second while they are opened.
    pub ramp_per_second: f64,
    /// Where to; empty: one address somewhere else.
    pub targets: Vec<SocketAddr>,
    /// From where; empty: the kernel's choice.
    pub sources: Vec<IpAddr>,
    /// Whether the servers are on this machine, too.
    pub is_local: bool,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections", count(self.connections.into()))?;
        match &self.targets[..] {
            [] => write!(f, " to one address on another machine")?,
            targets => {
                let targets: Vec<String> = targets.iter().map(SocketAddr::to_string).collect();
                write!(f, " to {}", targets.join(", "))?;
            }
        }
        match &self.sources[..] {
            [] => {}
            [first, .., last] => write!(f, " from {first} … {last} ({})", self.sources.len())?,
            [only] => write!(f, " from {only}")?,
        }
        write!(
            f,
            ", {} a second while they are opened, {} thread{}",
            plain(self.ramp_per_second),
            self.threads,
            if self.threads == 1 { "" } else { "s" }
        )?;
        if self.is_local { write!(f, "; the server is on this machine, too") } else { Ok(()) }
    }
}

impl Wanted {
    fn is_loopback(&self) -> bool {
        !self.targets.is_empty()
            && self.targets.iter().all(|target| target.ip().is_loopback() && target.is_ipv4())
    }

    /// Sockets of all connections on this machine.
    fn sockets(&self) -> u64 {
        u64::from(self.connections) * if self.is_local { 2 } else { 1 }
    }
}

impl Check {
    fn new(name: &'static str, status: Status, finding: impl Into<String>) -> Self {
        Self { name, status, finding: finding.into(), fix: Vec::new(), advice: None }
    }

    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, finding)
    }

    fn unknown(name: &'static str) -> Self {
        Self::new(name, Status::Unknown, "cannot be read here")
    }

    fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix.push(command.into());
        self
    }

    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

fn set(name: &str, value: impl fmt::Display) -> String {
    format!("sysctl -w {name}={value}")
}

/// Every check that applies, in the order in which one would look.
pub fn all(wanted: &Wanted, facts: &Facts) -> Vec<Check> {
    let always = [
        io_uring(facts),
        descriptors(wanted, facts),
        open_files(wanted, facts),
        locked_memory(wanted, facts),
        memory(wanted, facts),
        ports(wanted, facts),
    ];
    let sometimes = [
        source_addresses(wanted, facts),
        source_binding(wanted, facts),
        time_wait(wanted, facts),
        conntrack(wanted, facts),
        tcp_memory(wanted, facts),
        connection_table(wanted, facts),
        backlog(wanted, facts),
        cores(wanted, facts),
        other_load(facts),
        clock(facts),
        targets(wanted, facts),
    ];
    always.into_iter().chain(sometimes.into_iter().flatten()).collect()
}

fn io_uring(facts: &Facts) -> Check {
    const NAME: &str = "io_uring";
    match (&facts.ring_error, facts.io_uring_disabled) {
        (None, _) => Check::ok(NAME, "a ring can be made"),
        (Some(error), Some(disabled @ 1..)) => Check::new(
            NAME,
            Status::Fail,
            format!("{error}: kernel.io_uring_disabled is {disabled}"),
        )
        .fix(set("kernel.io_uring_disabled", 0)),
        (Some(error), _) => Check::new(NAME, Status::Fail, format!("no ring can be made: {error}"))
            .advice(
                "In a container it is the seccomp profile that forbids io_uring_setup, io_uring_enter and \
                 io_uring_register: allow these three, for the generator at least with \
                 --security-opt seccomp=unconfined.",
            ),
    }
}

/// A thread holds at most so many rings.
const RINGS_MAX: u64 = u8::MAX as u64;
/// A table of descriptors is made no larger.
const TABLE_MAX: u64 = 1 << 20;

fn descriptors(wanted: &Wanted, facts: &Facts) -> Check {
    const NAME: &str = "descriptors";
    let Some((soft, hard)) = facts.descriptors else { return Check::unknown(NAME) };
    let slots = preflight::slots(wanted.connections.div_ceil(wanted.threads.max(1)));
    let rings = slots.div_ceil(soft.clamp(1, TABLE_MAX));
    if rings <= RINGS_MAX && soft >= 256 {
        let rings = if rings == 1 { "one ring".to_owned() } else { format!("{rings} rings") };
        return Check::ok(NAME, format!("RLIMIT_NOFILE is {}: {rings} a thread", count(soft)));
    }
    let needed = slots.div_ceil(RINGS_MAX).next_power_of_two().max(65_536);
    let mut check = Check::new(
        NAME,
        Status::Fail,
        format!(
            "RLIMIT_NOFILE is {}: a thread would need {} rings, and has at most {RINGS_MAX}",
            count(soft),
            count(rings)
        ),
    );
    if hard < needed {
        if facts.nr_open.is_some_and(|most| most < needed) {
            check = check.fix(set("fs.nr_open", needed));
        }
        check = check.fix(format!("prlimit --pid $$ --nofile={needed}:{needed}")).advice(format!(
            "For a service: LimitNOFILE={needed} in its unit. Or use more --threads."
        ));
    } else {
        check = check.fix(format!("ulimit -n {needed}"));
    }
    check
}

fn open_files(wanted: &Wanted, facts: &Facts) -> Check {
    const NAME: &str = "open files";
    let (Some(most), Some(used)) = (facts.file_max, facts.files_open) else {
        return Check::unknown(NAME);
    };
    // A descriptor in a ring's table is an open file of the machine, too.
    let needed = used + wanted.sockets() + 10_000;
    if most >= needed {
        return Check::ok(
            NAME,
            format!(
                "fs.file-max leaves {}",
                if most > 1 << 40 { "plenty".to_owned() } else { count(most - used) }
            ),
        );
    }
    Check::new(
        NAME,
        Status::Fail,
        format!(
            "fs.file-max is {}, {} are open, {} more are needed",
            count(most),
            count(used),
            count(wanted.sockets())
        ),
    )
    .fix(set("fs.file-max", needed.next_power_of_two()))
}

fn locked_memory(wanted: &Wanted, facts: &Facts) -> Check {
    const NAME: &str = "locked memory";
    /// What 54 rings fitted into (docs/measurements/capacity.md).
    const ENOUGH: u64 = 8 << 20;
    let Some(limit) = facts.memlock_bytes else { return Check::unknown(NAME) };
    if facts.has_ipc_lock || limit >= ENOUGH {
        let found = if facts.has_ipc_lock {
            "CAP_IPC_LOCK".to_owned()
        } else if limit == u64::MAX {
            "unlimited".to_owned()
        } else {
            bytes(limit as f64)
        };
        return Check::ok(NAME, format!("RLIMIT_MEMLOCK: {found}"));
    }
    let status = if wanted.connections > 100_000 { Status::Fail } else { Status::Warn };
    Check::new(
        NAME,
        status,
        format!("RLIMIT_MEMLOCK is {}, and rings register their buffers", bytes(limit as f64)),
    )
    .fix("prlimit --pid $$ --memlock=unlimited:unlimited")
    .advice("For a service: LimitMEMLOCK=infinity in its unit.")
}

fn memory(wanted: &Wanted, facts: &Facts) -> Check {
    const NAME: &str = "memory";
    let available = [facts.memory_available, facts.group_memory_left].into_iter().flatten().min();
    let Some(available) = available else { return Check::unknown(NAME) };
    let ledger = Ledger::built_in();
    let kernel = ledger.kernel_bytes_per_connection_end.value;
    let mut each = ledger.generator_bytes_per_connection_peak.value + kernel;
    if wanted.is_local {
        each += kernel
            + ledger.gateway_bytes_per_connection_peak.value
            + ledger.logic_bytes_per_session_peak.value;
    }
    let needed = f64::from(wanted.connections) * each;
    let ends = if wanted.is_local { "both ends, gateway and logic" } else { "this end" };
    let by_group =
        facts.group_memory_left == Some(available) && facts.memory_available != Some(available);
    let found = format!(
        "{} needed ({} a connection, {ends}), {} available{}",
        bytes(needed),
        bytes(each),
        bytes(available as f64),
        if by_group { " in this control group" } else { "" }
    );
    if needed <= available as f64 * 0.9 {
        return Check::ok(NAME, found);
    }
    let fits = (available as f64 * 0.9 / each) as u64;
    let agents = u64::from(wanted.connections).div_ceil(fits.max(1));
    let status = if needed > available as f64 { Status::Fail } else { Status::Warn };
    let mut check = Check::new(NAME, status, found).advice(format!(
        "{} connections fit: use {} agents of this size, or a machine with {}.",
        count(fits),
        count(agents),
        bytes(needed / 0.9)
    ));
    if by_group {
        check = check.fix(format!(
            "systemctl set-property \"$(systemctl whoami)\" MemoryMax={}",
            (needed / 0.9) as u64 + (256 << 20)
        ));
    }
    check
}

fn ports(wanted: &Wanted, facts: &Facts) -> Check {
    const NAME: &str = "ports";
    let Some((low, high)) = facts.ports else { return Check::unknown(NAME) };
    let ports =
        u64::from((high + 1).saturating_sub(low).saturating_sub(facts.ports_reserved)).max(1);
    let connections = u64::from(wanted.connections);
    let destinations = wanted.targets.len().max(1) as u64;
    if wanted.is_loopback() && wanted.sources.is_empty() {
        let addresses = connections.div_ceil(preflight::CONNECTIONS_PER_SOURCE.into());
        let most = u64::from(preflight::SOURCES_MAX);
        if addresses <= most {
            return Check::ok(
                NAME,
                format!(
                    "{} ports; a loopback target is reached from {addresses} of 127.x.y.z",
                    count(ports)
                ),
            );
        }
        return Check::new(
            NAME,
            Status::Fail,
            format!("{addresses} loopback addresses would be needed; at most {most} are used"),
        )
        .advice(format!(
            "Use at most {} connections a generator.",
            count(most * u64::from(preflight::CONNECTIONS_PER_SOURCE))
        ));
    }
    let sources = wanted.sources.len().max(1) as u64;
    let all = ports * sources * destinations;
    let quick =
        (ports as f64 * Ledger::built_in().port_share.value) as u64 * sources * destinations;
    let found = format!(
        "{} ports × {sources} source address{} × {destinations} destination{} = {} connections",
        count(ports),
        if sources == 1 { "" } else { "es" },
        if destinations == 1 { "" } else { "s" },
        count(all)
    );
    if connections <= quick {
        return Check::ok(NAME, found);
    }
    const WIDE: u64 = 64_512;
    let wide_quick = WIDE / 2 * destinations;
    let addresses = connections.div_ceil(wide_quick);
    let mut check = if connections > all {
        Check::new(NAME, Status::Fail, format!("{found}, {} are wanted", count(connections)))
    } else {
        Check::new(
            NAME,
            Status::Warn,
            format!(
                "{found}; above {} of them the kernel searches long for a free port at each connect",
                count(quick)
            ),
        )
    };
    if ports < WIDE - 1_000 {
        check = check.fix(set("net.ipv4.ip_local_port_range", "\"1024 65535\""));
        if let Some(port) = wanted.targets.iter().map(SocketAddr::port).find(|_| wanted.is_local) {
            // The listener's own port must not be given away.
            check = check.fix(set("net.ipv4.ip_local_reserved_ports", port));
        }
    }
    if addresses > sources {
        let interface = facts.interface.as_deref().unwrap_or("eth0");
        check = check.advice(format!(
            "With the whole range it takes {addresses} source addresses: add free ones of your network (ip address add \
             ADDRESS/32 dev {interface}), and name them with --source-addresses FIRST-LAST."
        ));
    }
    check
}

fn source_addresses(wanted: &Wanted, facts: &Facts) -> Option<Check> {
    const NAME: &str = "source addresses";
    if wanted.sources.is_empty() {
        return None;
    }
    let missing = &facts.addresses_missing;
    if missing.is_empty() {
        return Some(Check::ok(NAME, format!("all {} are this machine's", wanted.sources.len())));
    }
    let interface = facts.interface.as_deref().unwrap_or("eth0");
    let prefix = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let list: Vec<String> =
        missing.iter().map(|address| format!("{address}/{}", prefix(address))).collect();
    let command = match &list[..] {
        [one] => format!("ip address add {one} dev {interface}"),
        many => format!("for a in {}; do ip address add $a dev {interface}; done", many.join(" ")),
    };
    Some(
        Check::new(
            NAME,
            Status::Fail,
            format!("{} of {} are not this machine's: {}", missing.len(), wanted.sources.len(), missing[0]),
        )
        .fix(command)
        .advice("They must be routed to this machine; in a cloud they are also given to its network interface there."),
    )
}

fn source_binding(wanted: &Wanted, facts: &Facts) -> Option<Check> {
    const NAME: &str = "kernel";
    let loopback = wanted.is_loopback() && wanted.connections > preflight::CONNECTIONS_PER_SOURCE;
    if wanted.sources.is_empty() && !loopback {
        return None;
    }
    let (major, minor) = facts.kernel?;
    if (major, minor) >= (6, 11) {
        return Some(Check::ok(NAME, format!("{major}.{minor} binds sockets in the ring")));
    }
    let check = Check::new(
        NAME,
        Status::Fail,
        format!(
            "{major}.{minor} cannot bind a socket in the ring, which several source addresses take"
        ),
    );
    Some(check.advice("It takes Linux 6.11 or later (Debian: linux-image of backports)."))
}

fn time_wait(wanted: &Wanted, facts: &Facts) -> Option<Check> {
    const NAME: &str = "TIME_WAIT";
    let reuse = facts.tw_reuse?;
    let waiting = facts.time_wait.unwrap_or(0);
    let found = format!("net.ipv4.tcp_tw_reuse is {reuse}, {} ports wait now", count(waiting));
    // 2 is for loopback only.
    let is_enough = reuse == 1 || (reuse == 2 && wanted.is_loopback());
    let few = u64::from(wanted.connections) + waiting < 5_000;
    if is_enough || few {
        return Some(Check::ok(NAME, found));
    }
    Some(
        Check::new(
            NAME,
            Status::Warn,
            format!("{found}: after a run its ports are gone for a minute"),
        )
        .fix(set("net.ipv4.tcp_tw_reuse", 1)),
    )
}

fn conntrack(wanted: &Wanted, facts: &Facts) -> Option<Check> {
    const NAME: &str = "conntrack";
    let most = facts.conntrack_max?;
    if facts.conntrack_count == Some(0) {
        return Some(Check::ok(NAME, "loaded, but no rule tracks connections"));
    }
    let used = facts.conntrack_count.unwrap_or(0);
    let needed = used + u64::from(wanted.connections) + u64::from(wanted.connections) / 8;
    if most >= needed {
        return Some(Check::ok(
            NAME,
            format!("nf_conntrack_max is {}, {} in use", count(most), count(used)),
        ));
    }
    let size = needed.next_power_of_two();
    Some(
        Check::new(
            NAME,
            Status::Fail,
            format!(
                "nf_conntrack_max is {}, {} in use: further connections would be dropped silently",
                count(most),
                count(used)
            ),
        )
        .fix(set("net.netfilter.nf_conntrack_max", size))
        .fix(format!("echo {} > /sys/module/nf_conntrack/parameters/hashsize", size / 4))
        .advice("Better: no tracking of these connections (nftables: notrack)."),
    )
}

fn tcp_memory(wanted: &Wanted, facts: &Facts) -> Option<Check> {
    const NAME: &str = "tcp_mem";
    let [low, pressure, high] = facts.tcp_mem_pages?;
    // A socket with anything in its queues holds a page at least; an idle one none. A quarter of
    // them at once is a wide room for a burst.
    let needed = wanted.sockets() / 4;
    let found = format!("pressure begins at {} pages, the end is {}", count(pressure), count(high));
    if pressure >= needed {
        return Some(Check::ok(NAME, found));
    }
    let value = format!("\"{} {} {}\"", low.max(needed), needed + needed / 2, high.max(needed * 2));
    Some(
        Check::new(
            NAME,
            Status::Warn,
            format!(
                "{found}: a burst to a quarter of {} sockets reaches it, and then windows shrink",
                count(wanted.sockets())
            ),
        )
        .fix(set("net.ipv4.tcp_mem", value)),
    )
}

fn connection_table(wanted: &Wanted, facts: &Facts) -> Option<Check> {
    const NAME: &str = "connection table";
    let entries = facts.table_entries.filter(|entries| *entries > 0)?;
    let found = format!("{} entries for {} sockets", count(entries), count(wanted.sockets()));
    if wanted.sockets() <= entries * 2 {
        return Some(Check::ok(NAME, found));
    }
    let size = wanted.sockets().next_power_of_two().min(1 << 24);
    Some(
        Check::new(NAME, Status::Warn, format!("{found}: each packet walks a chain of sockets that are in no cache"))
            .fix(format!("{}    # then, for server and generator: unshare --net bash; ip link set lo up",
                set("net.ipv4.tcp_child_ehash_entries", size)))
            .advice(format!("A new network namespace has a table of its own; for the whole machine boot with thash_entries={size}.")),
    )
}

fn backlog(wanted: &Wanted, facts: &Facts) -> Option<Check> {
    const NAME: &str = "accept backlog";
    if !wanted.is_local {
        return None;
    }
    let (somaxconn, syn) = (facts.somaxconn?, facts.syn_backlog.unwrap_or(u64::MAX));
    // Whoever arrives while the server looks elsewhere for a quarter of a second.
    let needed = (wanted.ramp_per_second / 4.0).ceil() as u64;
    let found = format!(
        "net.core.somaxconn is {}, tcp_max_syn_backlog {}",
        count(somaxconn),
        if syn == u64::MAX { "unknown".to_owned() } else { count(syn) }
    );
    if somaxconn.min(syn) >= needed {
        return Some(Check::ok(NAME, found));
    }
    let mut check = Check::new(
        NAME,
        Status::Warn,
        format!("{found}: {} arrive in a quarter of a second", count(needed)),
    );
    let size = needed.next_power_of_two().max(4096);
    if somaxconn < needed {
        check = check.fix(set("net.core.somaxconn", size));
    }
    if syn < needed {
        check = check.fix(set("net.ipv4.tcp_max_syn_backlog", size));
    }
    Some(check.advice("The server's listeners must ask for as much (gateway.toml: backlog_max)."))
}

fn cores(wanted: &Wanted, facts: &Facts) -> Option<Check> {
    const NAME: &str = "cores";
    let cores = facts.cores?;
    let ledger = Ledger::built_in();
    let mut us = ledger.generator_us_per_login.value;
    if wanted.is_local {
        us += ledger.gateway_us_per_login.value + ledger.logic_us_per_login.value;
    }
    let needed = wanted.ramp_per_second * us / 1e6;
    let found = format!("{} cores; the ramp takes about {}", plain(cores), significant(needed));
    if needed <= cores * 0.9 && f64::from(wanted.threads) <= cores {
        return Some(Check::ok(NAME, found));
    }
    let check = Check::new(NAME, Status::Warn, found);
    Some(if f64::from(wanted.threads) > cores {
        check.advice(format!("More threads than cores disturb each other: --threads {cores:.0}."))
    } else {
        check.advice(format!(
            "Connections will wait for their turn: --ramp-rate {:.0} is what the cores give.",
            cores * 0.9 * 1e6 / us
        ))
    })
}

fn other_load(facts: &Facts) -> Option<Check> {
    const NAME: &str = "other work";
    let (load, cores) = (facts.load?, facts.cores?);
    let found = format!("load average of the last minute: {load:.2}");
    if load <= cores * 0.5 {
        return Some(Check::ok(NAME, found));
    }
    let check = Check::new(NAME, Status::Warn, format!("{found} on {cores:.0} cores"));
    Some(check.advice("Whatever runs beside a measurement is part of it: wait, or stop it."))
}

fn clock(facts: &Facts) -> Option<Check> {
    const NAME: &str = "clock";
    let source = facts.clock_source.as_deref()?;
    if matches!(source, "hpet" | "acpi_pm" | "jiffies") {
        let check =
            Check::new(NAME, Status::Warn, format!("{source}: each reading is a slow system call"));
        return Some(
            check
                .fix("echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"),
        );
    }
    Some(Check::ok(NAME, source))
}

fn targets(wanted: &Wanted, facts: &Facts) -> Option<Check> {
    const NAME: &str = "targets";
    if wanted.targets.is_empty() {
        return None;
    }
    if facts.unreachable.is_empty() {
        return Some(Check::ok(NAME, format!("{} accept connections", wanted.targets.len())));
    }
    let list: Vec<String> =
        facts.unreachable.iter().map(|(target, error)| format!("{target}: {error}")).collect();
    let check = Check::new(NAME, Status::Fail, list.join("; "));
    Some(check.advice("Start the server, or mend --to: it is the listener for clients, not the admin or HTTP port."))
}
