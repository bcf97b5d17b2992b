//! What the machine says about itself: files of `/proc` and `/sys`, and three things tried for
//! real: a ring, a bind to each source address, a connect to each target.
//!
//! What cannot be read is `None`, never a guess; the checks say so.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Major and minor version of the kernel.
    pub kernel: Option<(u32, u32)>,
    /// `kernel.io_uring_disabled`.
    pub io_uring_disabled: Option<u64>,
    /// Why a small ring could not be made; `None`: it could.
    pub ring_error: Option<String>,
    /// RLIMIT_NOFILE: soft and hard.
    pub descriptors: Option<(u64, u64)>,
    /// RLIMIT_MEMLOCK, soft; `u64::MAX` is unlimited.
    pub memlock_bytes: Option<u64>,
    /// Whether CAP_IPC_LOCK makes that limit void.
    pub has_ipc_lock: bool,
    /// `fs.nr_open`.
    pub nr_open: Option<u64>,
    /// `fs.file-max`.
    pub file_max: Option<u64>,
    /// Files open on the whole machine.
    pub files_open: Option<u64>,
    /// `net.ipv4.ip_local_port_range`.
    pub ports: Option<(u32, u32)>,
    /// Ports of that range in `net.ipv4.ip_local_reserved_ports`.
    pub ports_reserved: u32,
    /// Source addresses that this machine does not have.
    pub addresses_missing: Vec<IpAddr>,
    /// The interface towards the first target.
    pub interface: Option<String>,
    /// Connections in TIME_WAIT.
    pub time_wait: Option<u64>,
    /// `net.ipv4.tcp_tw_reuse`.
    pub tw_reuse: Option<u64>,
    /// `net.netfilter.nf_conntrack_max`; `None`: connections are not tracked.
    pub conntrack_max: Option<u64>,
    /// Tracked connections while one of ours was open.
    pub conntrack_count: Option<u64>,
    /// `net.ipv4.tcp_mem` in pages.
    pub tcp_mem_pages: Option<[u64; 3]>,
    /// `net.ipv4.tcp_ehash_entries`.
    pub table_entries: Option<u64>,
    /// `net.core.somaxconn`.
    pub somaxconn: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub syn_backlog: Option<u64>,
    /// MemAvailable.
    pub memory_available: Option<u64>,
    /// What the control group still allows.
    pub group_memory_left: Option<u64>,
    /// Cores that this process may use.
    pub cores: Option<f64>,
    /// Load average of the last minute.
    pub load: Option<f64>,
    /// The clock that `clock_gettime` reads.
    pub clock_source: Option<String>,
    /// Targets that did not answer, with the reason.
    pub unreachable: Vec<(SocketAddr, String)>,
}

/// Never wait longer for one target.
const REACH_MAX: Duration = Duration::from_secs(2);

impl Facts {
    /// Of this machine.
    pub fn of_this_machine(targets: &[SocketAddr], sources: &[IpAddr]) -> Self {
        let mut facts = Self::read(Path::new("/"), targets.first().map(SocketAddr::ip));
        facts.ring_error = try_ring();
        facts.conntrack_count = tracked_beside_one_of_ours();
        facts.addresses_missing =
            sources.iter().copied().filter(|source| !is_ours(*source)).collect();
        facts.unreachable = targets.iter().filter_map(try_target).collect();
        facts.cores = std::thread::available_parallelism().ok().map(|cores| cores.get() as f64);
        facts
    }

    /// What the files below `root` say.
    pub fn read(root: &Path, target: Option<IpAddr>) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let number = |path: &str| text(path)?.split_whitespace().next()?.parse::<u64>().ok();
        let sysctl = |name: &str| number(&format!("proc/sys/{name}"));
        let limits = text("proc/self/limits").unwrap_or_default();
        let status = text("proc/self/status").unwrap_or_default();
        let ports = text("proc/sys/net/ipv4/ip_local_port_range").and_then(|text| pair(&text));
        let reserved = text("proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
        let groups = groups(root, &text("proc/self/cgroup").unwrap_or_default());
        Self {
            kernel: text("proc/sys/kernel/osrelease").and_then(|text| version(&text)),
            io_uring_disabled: sysctl("kernel/io_uring_disabled"),
            ring_error: None,
            descriptors: limit(&limits, "Max open files"),
            memlock_bytes: limit(&limits, "Max locked memory").map(|(soft, _)| soft),
            has_ipc_lock: capabilities(&status).is_some_and(|bits| bits >> 14 & 1 == 1),
            nr_open: sysctl("fs/nr_open"),
            file_max: sysctl("fs/file-max"),
            files_open: sysctl("fs/file-nr"),
            ports,
            ports_reserved: ports.map_or(0, |range| reserved_in(&reserved, range)),
            addresses_missing: Vec::new(),
            interface: interface(&text("proc/net/route").unwrap_or_default(), target),
            time_wait: text("proc/net/sockstat").and_then(|text| time_wait(&text)),
            tw_reuse: sysctl("net/ipv4/tcp_tw_reuse"),
            conntrack_max: sysctl("net/netfilter/nf_conntrack_max"),
            conntrack_count: sysctl("net/netfilter/nf_conntrack_count"),
            tcp_mem_pages: text("proc/sys/net/ipv4/tcp_mem").and_then(|text| triple(&text)),
            // Negative: the table is shared with the namespace that made this one.
            table_entries: text("proc/sys/net/ipv4/tcp_ehash_entries")
                .and_then(|text| text.trim().parse::<i64>().ok())
                .map(i64::unsigned_abs),
            somaxconn: sysctl("net/core/somaxconn"),
            syn_backlog: sysctl("net/ipv4/tcp_max_syn_backlog"),
            memory_available: text("proc/meminfo")
                .and_then(|text| crate::preflight::available_bytes(&text)),
            group_memory_left: groups.iter().filter_map(|group| memory_left(group)).min(),
            cores: None,
            load: text("proc/loadavg")
                .and_then(|text| text.split_whitespace().next()?.parse().ok()),
            clock_source: text("sys/devices/system/clocksource/clocksource0/current_clocksource")
                .map(|text| text.trim().to_owned()),
            unreachable: Vec::new(),
        }
    }
}

fn try_ring() -> Option<String> {
    let options = millrace_uring::Options {
        sockets_max: 8,
        accept_spare: 0,
        receive_buffers: 8,
        ..millrace_uring::Options::default()
    };
    millrace_uring::Driver::new(options).err().map(|error| error.to_string())
}

/// Tracked connections while a connection of our own is open: 0 means that nothing tracks them here,
/// though the module with its limit is loaded.
fn tracked_beside_one_of_ours() -> Option<u64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    let _open = TcpStream::connect_timeout(&listener.local_addr().ok()?, REACH_MAX).ok()?;
    let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?;
    count.trim().parse().ok()
}

fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn try_target(target: &SocketAddr) -> Option<(SocketAddr, String)> {
    let error = TcpStream::connect_timeout(target, REACH_MAX).err()?;
    Some((*target, error.to_string()))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Soft and hard limit of a line of `/proc/self/limits`.
fn limit(limits: &str, name: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut values = line.split_whitespace().map(|value| match value {
        "unlimited" => Some(u64::MAX),
        value => value.parse().ok(),
    });
    Some((values.next()??, values.next()??))
}

fn capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn pair(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn triple(text: &str) -> Option<[u64; 3]> {
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    numbers.try_into().ok()
}

/// How many ports of the range a list such as `8080,9000-9100` takes away.
fn reserved_in(list: &str, (low, high): (u32, u32)) -> u32 {
    let spans = list.trim().split(',').filter_map(|span| {
        let (from, to) = span.split_once('-').unwrap_or((span, span));
        Some((from.trim().parse::<u32>().ok()?.max(low), to.trim().parse::<u32>().ok()?.min(high)))
    });
    spans.map(|(from, to)| (to + 1).saturating_sub(from)).sum()
}

fn time_wait(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == "tw")?;
    words.next()?.parse().ok()
}

/// The interface with the longest prefix that covers the target, or the default route's.
fn interface(routes: &str, target: Option<IpAddr>) -> Option<String> {
    let target = match target {
        Some(IpAddr::V4(target)) => u32::from(target),
        _ => u32::from(Ipv4Addr::UNSPECIFIED),
    };
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Written as the bytes lie in memory.
        let field =
            |index: usize| u32::from_str_radix(words.get(index)?, 16).ok().map(u32::swap_bytes);
        let (network, mask) = (field(1)?, field(7)?);
        (target & mask == network).then(|| (mask, words[0].to_owned()))
    };
    routes.lines().skip(1).filter_map(route).max_by_key(|(mask, _)| *mask).map(|(_, name)| name)
}

/// The folders of this process's control group and of those above it.
fn groups(root: &Path, own: &str) -> Vec<PathBuf> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let top = root.join("sys/fs/cgroup");
    let mut group = top.join(path.trim_start_matches('/'));
    let mut groups = vec![group.clone()];
    while group != top && group.pop() {
        groups.push(group.clone());
    }
    groups
}

fn memory_left(group: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let (most, used) = (number("memory.max")?, number("memory.current")?);
    // What of it is file cache goes when somebody needs it.
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let cache: u64 = cache.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    Some(most.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{Facts, interface, reserved_in};

    #[test]
    fn a_machine_is_read_from_its_files() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("has one")).expect("folder");
            fs::write(path, text).expect("file");
        };
        write("proc/sys/kernel/osrelease", "6.18.44-cloud\n");
        write(
            "proc/self/limits",
            "Limit  Soft  Hard\nMax open files   1024   524288   files\nMax locked memory  unlimited  unlimited  bytes\n",
        );
        write("proc/self/status", "Name:\tx\nCapEff:\t0000000000004000\n");
        write("proc/self/cgroup", "0::/a/b\n");
        write("sys/fs/cgroup/a/memory.max", "1000000\n");
        write("sys/fs/cgroup/a/memory.current", "700000\n");
        write("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 200000\n");
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        write("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n");
        write("proc/sys/net/ipv4/ip_local_reserved_ports", "8080,40000-40009\n");
        write("proc/sys/net/ipv4/tcp_ehash_entries", "-262144\n");
        write("proc/sys/net/ipv4/tcp_mem", "1\t2\t3\n");
        write(
            "proc/net/sockstat",
            "sockets: used 14\nTCP: inuse 1 orphan 0 tw 440 alloc 1 mem 0\n",
        );
        write("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 50 kB\n");
        let facts = Facts::read(root.path(), None);
        assert_eq!(facts.kernel, Some((6, 18)));
        assert_eq!(facts.descriptors, Some((1024, 524_288)));
        assert_eq!(facts.memlock_bytes, Some(u64::MAX));
        assert!(facts.has_ipc_lock);
        assert_eq!(facts.group_memory_left, Some(500_000));
        assert_eq!((facts.ports, facts.ports_reserved), (Some((32_768, 60_999)), 10));
        assert_eq!(facts.table_entries, Some(262_144));
        assert_eq!(facts.tcp_mem_pages, Some([1, 2, 3]));
        assert_eq!(facts.time_wait, Some(440));
        assert_eq!(facts.memory_available, Some(50 * 1024));
        assert_eq!(facts.conntrack_max, None);
    }

    #[test]
    fn this_machine_says_what_every_linux_says() {
        let facts = Facts::read(Path::new("/"), None);
        assert!(facts.kernel.is_some() && facts.descriptors.is_some(), "{facts:?}");
        assert!(facts.ports.is_some() && facts.memory_available.is_some(), "{facts:?}");
    }

    #[test]
    fn the_interface_is_that_of_the_longest_prefix() {
        let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                      eth0 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0\n\
                      eth1 0000000A 00000000 0001 0 0 0 000000FF 0 0 0\n";
        let of = |target: &str| interface(routes, Some(target.parse().expect("address")));
        assert_eq!(of("10.1.2.3").as_deref(), Some("eth1"));
        assert_eq!(of("192.0.2.1").as_deref(), Some("eth0"));
        assert_eq!(interface("", None), None);
    }

    #[test]
    fn reserved_ports_outside_of_the_range_take_nothing_away() {
        assert_eq!(reserved_in("", (1, 10)), 0);
        assert_eq!(reserved_in("5,8-20,30-40", (1, 10)), 4);
    }
}
