//! The machine that the generator runs on, as the report has it.

use std::fs;

use super::document::Environment;

/// Settings of the kernel that decide what a load test of connections can see.
const SYSCTLS: [&str; 12] = [
    "fs.file-max",
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_ehash_entries",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_wmem",
    "net.netfilter.nf_conntrack_max",
    "vm.overcommit_memory",
];

/// Reads it; what cannot be read is empty.
pub fn of_this_machine() -> Environment {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = field(&text("/proc/meminfo"), "MemTotal")
        .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    let sysctl = |name: &&str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let value = fs::read_to_string(path).ok()?;
        Some(((*name).to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
    };
    Environment {
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        processor: field(&text("/proc/cpuinfo"), "model name").unwrap_or_default(),
        cores: std::thread::available_parallelism().map_or(0, |cores| cores.get() as u32),
        memory_bytes: memory.unwrap_or(0) * 1024,
        descriptors: millrace_uring::descriptor_limit().unwrap_or(0),
        load_before: text("/proc/loadavg")
            .split_whitespace()
            .next()
            .and_then(|load| load.parse().ok())
            .unwrap_or(0.0),
        nice: millrace_service::cpu_time::nice().unwrap_or(0),
        sysctls: SYSCTLS.iter().filter_map(sysctl).collect(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_machine_has_a_kernel_cores_and_memory() {
        let environment = super::of_this_machine();
        assert!(!environment.kernel.is_empty() && environment.cores > 0, "{environment:?}");
        assert!(environment.memory_bytes > 0 && environment.descriptors > 0, "{environment:?}");
        assert!(
            environment.sysctls.contains_key("net.ipv4.ip_local_port_range"),
            "{environment:?}"
        );
    }
}
