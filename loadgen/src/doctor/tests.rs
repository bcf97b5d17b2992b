//! Each thing that can be wrong is named, and its command is the one that mends it.

use std::net::{IpAddr, SocketAddr};

use super::{
    Check, Diagnosis, Status,
    checks::{self, Wanted},
    facts::Facts,
};

/// A machine on which a million connections to elsewhere can be opened.
fn good() -> Facts {
    Facts {
        kernel: Some((6, 18)),
        io_uring_disabled: Some(0),
        ring_error: None,
        descriptors: Some((20_000, 20_000)),
        memlock_bytes: Some(8 << 20),
        has_ipc_lock: false,
        nr_open: Some(1 << 20),
        file_max: Some(i64::MAX as u64),
        files_open: Some(1_000),
        ports: Some((1024, 65_535)),
        ports_reserved: 0,
        addresses_missing: Vec::new(),
        interface: Some("ens5".to_owned()),
        time_wait: Some(0),
        tw_reuse: Some(1),
        conntrack_max: None,
        conntrack_count: None,
        tcp_mem_pages: Some([287_901, 1_383_868, 2_575_802]),
        table_entries: Some(1 << 20),
        somaxconn: Some(4096),
        syn_backlog: Some(4096),
        memory_available: Some(32 << 30),
        group_memory_left: None,
        cores: Some(8.0),
        load: Some(0.1),
        clock_source: Some("kvm-clock".to_owned()),
        unreachable: Vec::new(),
    }
}

fn wanted() -> Wanted {
    let address = |last: u8| IpAddr::from([10, 0, 0, last]);
    Wanted {
        connections: 1_000_000,
        threads: 2,
        ramp_per_second: 6_000.0,
        targets: vec!["192.0.2.1:9000".parse().expect("an address")],
        sources: (2..=40).map(address).collect(),
        is_local: false,
    }
}

fn find(wanted: &Wanted, facts: &Facts, name: &str) -> Check {
    let checks = checks::all(wanted, facts);
    checks.into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_machine_that_is_ready_is_told_so() {
    let diagnosis = Diagnosis::new(&wanted(), &good());
    assert!(
        diagnosis.checks.iter().all(|check| check.status == Status::Ok),
        "{}",
        diagnosis.to_text()
    );
    assert_eq!(diagnosis.exit_code, 0);
    assert!(diagnosis.commands().is_empty());
    assert!(diagnosis.to_text().contains("This machine is ready."));
}

#[test]
fn each_planted_defect_is_found_under_its_name_with_the_command_that_mends_it() {
    type Plant = fn(&mut Wanted, &mut Facts);
    let plants: [(&str, Status, &str, Plant); 17] = [
        ("io_uring", Status::Fail, "sysctl -w kernel.io_uring_disabled=0", |_, facts| {
            facts.ring_error = Some("Operation not permitted".into());
            facts.io_uring_disabled = Some(2);
        }),
        ("descriptors", Status::Fail, "ulimit -n 65536", |_, facts| {
            facts.descriptors = Some((1024, 1 << 20))
        }),
        ("descriptors", Status::Fail, "prlimit --pid $$ --nofile=65536:65536", |_, facts| {
            facts.descriptors = Some((1024, 4096))
        }),
        ("open files", Status::Fail, "sysctl -w fs.file-max=1048576", |_, facts| {
            facts.file_max = Some(500_000)
        }),
        (
            "locked memory",
            Status::Fail,
            "prlimit --pid $$ --memlock=unlimited:unlimited",
            |_, facts| facts.memlock_bytes = Some(65_536),
        ),
        (
            "ports",
            Status::Fail,
            "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"",
            |wanted, facts| {
                wanted.sources.clear();
                facts.ports = Some((32_768, 60_999));
            },
        ),
        (
            "ports",
            Status::Warn,
            "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"",
            |_, facts| facts.ports = Some((32_768, 60_999)),
        ),
        ("source addresses", Status::Fail, "ip address add 10.0.0.3/32 dev ens5", |_, facts| {
            facts.addresses_missing = vec![IpAddr::from([10, 0, 0, 3])];
        }),
        ("TIME_WAIT", Status::Warn, "sysctl -w net.ipv4.tcp_tw_reuse=1", |_, facts| {
            facts.tw_reuse = Some(2)
        }),
        (
            "conntrack",
            Status::Fail,
            "sysctl -w net.netfilter.nf_conntrack_max=2097152",
            |_, facts| facts.conntrack_max = Some(262_144),
        ),
        (
            "tcp_mem",
            Status::Warn,
            "sysctl -w net.ipv4.tcp_mem=\"250000 375000 500000\"",
            |_, facts| facts.tcp_mem_pages = Some([10, 20, 30]),
        ),
        (
            "connection table",
            Status::Warn,
            "sysctl -w net.ipv4.tcp_child_ehash_entries=1048576    # then, for server and generator: unshare --net bash; ip link set lo up",
            |_, facts| facts.table_entries = Some(262_144),
        ),
        ("accept backlog", Status::Warn, "sysctl -w net.core.somaxconn=4096", |wanted, facts| {
            wanted.is_local = true;
            facts.somaxconn = Some(128);
        }),
        (
            "accept backlog",
            Status::Warn,
            "sysctl -w net.ipv4.tcp_max_syn_backlog=4096",
            |wanted, facts| {
                wanted.is_local = true;
                facts.syn_backlog = Some(512);
            },
        ),
        (
            "clock",
            Status::Warn,
            "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource",
            |_, facts| facts.clock_source = Some("hpet".into()),
        ),
        ("memory", Status::Fail, "", |_, facts| facts.memory_available = Some(1 << 30)),
        ("targets", Status::Fail, "", |wanted, facts| {
            facts.unreachable = vec![(wanted.targets[0], "Connection refused".into())];
        }),
    ];
    for (name, status, command, plant) in plants {
        let (mut wanted, mut facts) = (wanted(), good());
        plant(&mut wanted, &mut facts);
        let check = find(&wanted, &facts, name);
        assert_eq!(check.status, status, "{check:?}");
        assert!(command.is_empty() || check.fix.iter().any(|fix| fix == command), "{check:?}");
        assert!(!check.fix.is_empty() || check.advice.is_some(), "{check:?}");
        let diagnosis = Diagnosis::new(&wanted, &facts);
        assert_eq!(diagnosis.exit_code, if status == Status::Fail { 121 } else { 0 }, "{check:?}");
        let mut others = diagnosis.checks.iter().filter(|check| check.name != name);
        let other = others.find(|check| check.status == Status::Fail);
        assert!(other.is_none(), "{name} was planted, and {other:?} was found");
    }
}

#[test]
fn ports_count_for_each_source_address_and_each_destination() {
    let mut wanted = wanted();
    wanted.sources.truncate(1);
    let mut facts = good();
    assert_eq!(find(&wanted, &facts, "ports").status, Status::Fail);
    // 64,512 ports × 16 listeners, half of which are found without a search.
    let target = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
    wanted.targets = (9000..9032).map(target).collect();
    assert_eq!(find(&wanted, &facts, "ports").status, Status::Ok);
    wanted.targets.truncate(16);
    assert_eq!(find(&wanted, &facts, "ports").status, Status::Warn);
    facts.ports_reserved = 10_000;
    assert_eq!(find(&wanted, &facts, "ports").status, Status::Fail);
}

#[test]
fn a_loopback_target_takes_both_ends_and_as_many_addresses_as_it_needs() {
    let (mut wanted, facts) = (wanted(), good());
    wanted.sources.clear();
    wanted.targets = vec!["127.0.0.1:9000".parse().expect("an address")];
    let remote = find(&wanted, &facts, "memory").finding;
    wanted.is_local = true;
    assert_ne!(find(&wanted, &facts, "memory").finding, remote);
    assert_eq!(find(&wanted, &facts, "ports").status, Status::Ok);
    wanted.connections = 6_000_000;
    assert_eq!(find(&wanted, &facts, "ports").status, Status::Fail);
}

#[test]
fn a_control_group_with_less_memory_than_the_machine_decides() {
    let mut facts = good();
    facts.group_memory_left = Some(1 << 30);
    let check = find(&wanted(), &facts, "memory");
    assert_eq!(check.status, Status::Fail);
    assert!(check.finding.contains("control group"), "{check:?}");
}

#[test]
fn a_limit_of_tracking_is_none_where_nothing_is_tracked() {
    let mut facts = good();
    (facts.conntrack_max, facts.conntrack_count) = (Some(1_000), Some(0));
    assert_eq!(find(&wanted(), &facts, "conntrack").status, Status::Ok);
    facts.conntrack_count = Some(1);
    assert_eq!(find(&wanted(), &facts, "conntrack").status, Status::Fail);
}

#[test]
fn what_cannot_be_read_is_called_unknown_and_fails_nothing() {
    let diagnosis = Diagnosis::new(&wanted(), &Facts::default());
    assert_eq!(diagnosis.exit_code, 0, "{}", diagnosis.to_text());
    assert!(diagnosis.checks.iter().any(|check| check.status == Status::Unknown));
}
