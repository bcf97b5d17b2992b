//! What the machine allows, read from `/proc` and `/sys`. A figure that cannot be read is `None` and
//! binds nothing; nothing is changed here.

use std::{fs, path::Path};

/// Capabilities by their bit in `CapEff`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_IPC_LOCK: u32 = 14;

/// Limits and figures of this machine, as this process sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// RLIMIT_NOFILE: the most entries of one ring's table, and the most ordinary descriptors.
    pub descriptors: u64,
    /// fs.nr_open: as far as RLIMIT_NOFILE can be raised.
    pub nr_open: Option<u64>,
    /// MemAvailable, or what the memory cgroup leaves, if that is less.
    pub memory_available_bytes: Option<u64>,
    /// Whether it is the cgroup that leaves less.
    pub is_memory_of_cgroup: bool,
    /// fs.file-max, if it binds this process (CAP_SYS_ADMIN is exempt).
    pub files_max: Option<u64>,
    /// Open files of the whole machine.
    pub files_open: Option<u64>,
    /// net.netfilter.nf_conntrack_max, where anything is tracked: the module may be there and unused.
    pub conntrack_max: Option<u64>,
    /// net.core.somaxconn.
    pub somaxconn: Option<u64>,
    /// net.ipv4.tcp_max_syn_backlog.
    pub syn_backlog_max: Option<u64>,
    /// net.ipv4.tcp_mem: low, pressure and high, in pages.
    pub tcp_mem_pages: Option<[u64; 3]>,
    /// vm.max_map_count.
    pub map_count_max: Option<u64>,
    /// RLIMIT_MEMLOCK, if it binds this process (CAP_IPC_LOCK is exempt).
    pub memlock_bytes: Option<u64>,
    /// Threads: the least of RLIMIT_NPROC, kernel.threads-max and the pids cgroup.
    pub threads_max: Option<u64>,
    /// kernel.io_uring_disabled: 0 allowed, 1 for some groups, 2 for nobody.
    pub io_uring_disabled: Option<u64>,
}

impl Machine {
    /// Looks at this machine. `descriptors` is RLIMIT_NOFILE, already raised as far as it goes.
    pub fn look(descriptors: u64) -> Self {
        let limits = text("/proc/self/limits");
        let capabilities = effective_capabilities();
        let has = |bit: u32| capabilities >> bit & 1 == 1;
        let in_machine = memory_available();
        let in_cgroup = cgroup_room("memory", "memory.max", "memory.limit_in_bytes", &|folder| {
            number(&folder.join("memory.current"))
                .or_else(|| number(&folder.join("memory.usage_in_bytes")))
        });
        let files = numbers("/proc/sys/fs/file-nr");
        Self {
            descriptors,
            nr_open: sysctl("fs/nr_open"),
            memory_available_bytes: least([in_machine, in_cgroup]),
            is_memory_of_cgroup: in_cgroup.is_some() && in_cgroup < in_machine,
            files_max: sysctl("fs/file-max").filter(|_| !has(CAP_SYS_ADMIN)),
            files_open: files.first().copied(),
            conntrack_max: sysctl("net/netfilter/nf_conntrack_max").filter(|_| {
                sysctl("net/netfilter/nf_conntrack_count").is_some_and(|used| used > 0)
            }),
            somaxconn: sysctl("net/core/somaxconn"),
            syn_backlog_max: sysctl("net/ipv4/tcp_max_syn_backlog"),
            tcp_mem_pages: numbers("/proc/sys/net/ipv4/tcp_mem").try_into().ok(),
            map_count_max: sysctl("vm/max_map_count"),
            memlock_bytes: soft_limit(&limits, "Max locked memory").filter(|_| !has(CAP_IPC_LOCK)),
            threads_max: least([
                soft_limit(&limits, "Max processes"),
                sysctl("kernel/threads-max"),
                cgroup_room("pids", "pids.max", "pids.max", &|folder| {
                    number(&folder.join("pids.current"))
                }),
            ]),
            io_uring_disabled: sysctl("kernel/io_uring_disabled"),
        }
    }
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The one number in a file; `None` for "max" and where there is no such file.
fn number(path: &Path) -> Option<u64> {
    text(path).trim().parse().ok()
}

fn numbers(path: &str) -> Vec<u64> {
    text(path).split_whitespace().map_while(|word| word.parse().ok()).collect()
}

fn sysctl(name: &str) -> Option<u64> {
    number(&Path::new("/proc/sys").join(name))
}

fn least<const N: usize>(values: [Option<u64>; N]) -> Option<u64> {
    values.into_iter().flatten().min()
}

fn memory_available() -> Option<u64> {
    let text = text("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn effective_capabilities() -> u64 {
    let status = text("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// A soft limit of `/proc/self/limits`; `None` when unlimited.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What the cgroups above this process leave of something, the tightest of them; `None` where none
/// has a limit. Version 2 and version 1 are looked at.
fn cgroup_room(
    controller: &str,
    limit_v2: &str,
    limit_v1: &str,
    used: &dyn Fn(&Path) -> Option<u64>,
) -> Option<u64> {
    let mut rooms = Vec::new();
    for line in text("/proc/self/cgroup").lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mounts, limit): (&[&str], _) = if names.is_empty() {
            (&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], limit_v2)
        } else if names.split(',').any(|name| name == controller) {
            (&["/sys/fs/cgroup"], limit_v1)
        } else {
            continue;
        };
        for mount in mounts {
            let mut root = Path::new(mount).to_owned();
            if !names.is_empty() {
                root.push(controller);
            }
            let mut folder = root.join(path.trim_start_matches('/'));
            // Each ancestor's limit holds, too. In a container the path may be one of the host's,
            // which is not to be seen here; then the root is what counts.
            while folder.starts_with(&root) {
                if let Some(limit) = number(&folder.join(limit)) {
                    rooms.push(limit.saturating_sub(used(&folder).unwrap_or(0)));
                }
                if !folder.pop() {
                    break;
                }
            }
        }
    }
    rooms.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::{Machine, soft_limit};

    #[test]
    fn this_machine_can_be_looked_at() {
        let machine = Machine::look(1_000);
        assert_eq!(machine.descriptors, 1_000);
        assert!(machine.memory_available_bytes.is_some_and(|bytes| bytes > 1 << 20));
        assert!(machine.nr_open.is_some_and(|limit| limit >= 1_024));
        assert!(machine.threads_max.is_some_and(|limit| limit > 10));
    }

    #[test]
    fn limits_are_read_by_their_names() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             96365                96365                processes \n\
                      Max locked memory         8388608              unlimited            bytes     \n\
                      Max stack size            unlimited            unlimited            bytes     \n";
        assert_eq!(soft_limit(limits, "Max processes"), Some(96_365));
        assert_eq!(soft_limit(limits, "Max locked memory"), Some(8_388_608));
        assert_eq!(soft_limit(limits, "Max stack size"), None);
        assert_eq!(soft_limit(limits, "Max something"), None);
    }
}
