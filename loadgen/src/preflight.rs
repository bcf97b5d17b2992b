//! What must hold before a run begins, checked with a sentence that says what to do: ring tables,
//! ephemeral ports, reachable listeners.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use millrace_uring::{Options, Placement};

use crate::exit::RunError;

/// Connections from one loopback source address. Far below the 28,232 ephemeral ports: the kernel
/// tries the ports of one parity first, and when most of them are taken each connect searches
/// through thousands, which made a ramp to 20,000 a source ten times slower.
pub const CONNECTIONS_PER_SOURCE: u32 = 5_000;
/// Entries of one descriptor table at most, where RLIMIT_NOFILE allows more.
const TABLE_MAX: u64 = 1 << 20;
/// Source addresses used at most: 127.0.0.1 and those after it, for a loopback target.
pub const SOURCES_MAX: u32 = 1_000;

/// What a connection costs on this machine, roughly: the generator's own state, and the kernel's
/// socket. A million took 7.7 kB each, both ends together; see docs/measurements/million.md.
const BYTES_PER_CONNECTION: u64 = 300 + 4_600;

/// Slots of descriptor tables for so many connections of a thread: a returning user may hold two for
/// a moment, the new one and the one being closed.
pub fn slots(connections: u32) -> u64 {
    u64::from(connections) + u64::from(connections) / 16 + 64
}

/// The driver of one thread with so many connections: as many rings as it takes, since the
/// descriptor table of one holds no more than RLIMIT_NOFILE.
///
/// # Errors
/// That many rings would be too many.
pub fn driver_options(connections: u32, threads: u32) -> Result<Options, RunError> {
    let wanted = slots(connections) as u32;
    let limit = millrace_uring::descriptor_limit().unwrap_or(u64::from(u32::MAX));
    let table = u64::from(wanted).min(limit).min(TABLE_MAX) as u32;
    let rings = wanted.div_ceil(table.max(1));
    let Ok(rings) = u8::try_from(rings) else {
        return Err(RunError::preflight(format!(
            "{connections} connections a thread need {rings} rings, since RLIMIT_NOFILE ({limit}) \
             bounds the descriptor table of each, and a thread has at most {}; use more than \
             --threads {threads}, or raise the limit: ulimit -n 1000000",
            u8::MAX
        )));
    };
    Ok(Options {
        rings,
        sockets_max: table,
        accept_spare: 0,
        receive_buffers: 1024,
        // Users of neighbouring numbers do things together, as the members of a room: were they on one
        // ring, their messages would wait for its buffers, and the generator would measure itself.
        placement: Placement::Spread,
        ..Options::default()
    })
}

/// Whether the machine has the memory for so many connections.
///
/// # Errors
/// It has not; the sentence says how much is missing.
pub fn memory(connections: u32) -> Result<(), RunError> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    enough_memory(connections, available_bytes(&text))
}

fn enough_memory(connections: u32, available: Option<u64>) -> Result<(), RunError> {
    let needed = u64::from(connections) * BYTES_PER_CONNECTION;
    match available {
        Some(available) if available < needed => Err(RunError::preflight(format!(
            "{connections} connections need about {:.1} GB of memory on this side, most of it the \
             kernel's sockets, and {:.1} GB are available: free some, or use fewer --connections \
             or several machines",
            needed as f64 / 1e9,
            available as f64 / 1e9
        ))),
        _ => Ok(()),
    }
}

/// MemAvailable of `/proc/meminfo`, in bytes.
pub fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Where the connections of a run come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// From one loopback address; 0: the kernel's choice will do.
    per_loopback: u32,
    /// Named by somebody; they go before everything else.
    given: Arc<[IpAddr]>,
}

impl Sources {
    /// These addresses, nothing checked yet.
    pub fn given(addresses: &[IpAddr]) -> Self {
        Self { per_loopback: 0, given: addresses.into() }
    }

    /// The addresses that somebody named.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.given
    }

    /// The source address of a user's connection: users take the given addresses of the target's
    /// family by turns. A loopback target is reachable from any 127.x.y.z, so that the ephemeral
    /// ports of one address are no limit. `None`: the kernel's choice.
    pub fn of(&self, user: u32, target: IpAddr) -> Option<IpAddr> {
        let count = fitting(&self.given, target).count();
        if count > 0 {
            return fitting(&self.given, target).nth(user as usize % count);
        }
        let block = user.checked_div(self.per_loopback)?;
        let IpAddr::V4(target) = target else { return None };
        let first = u32::from(Ipv4Addr::LOCALHOST);
        target.is_loopback().then(|| IpAddr::V4(Ipv4Addr::from(first + block)))
    }
}

fn fitting(addresses: &[IpAddr], target: IpAddr) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| address.is_ipv4() == target.is_ipv4())
}

/// Where to take connections to these targets from, so many to each. `given`: the addresses that
/// somebody named; without them the kernel's choice, or as many loopback addresses as it takes.
///
/// # Errors
/// A given address is not of this machine, or there are not enough ephemeral ports for a target.
pub fn sources(
    targets: &[(SocketAddr, u32)],
    connections: u32,
    given: &[IpAddr],
) -> Result<Sources, RunError> {
    if !given.is_empty() {
        return given_sources(targets, given);
    }
    let ports = ephemeral_ports();
    let per_source = CONNECTIONS_PER_SOURCE.min(ports / 4).max(1);
    if targets.iter().all(|(_, wanted)| *wanted <= per_source) {
        return Ok(Sources::default());
    }
    for (target, wanted) in targets {
        let is_loopback = target.ip().is_loopback() && target.is_ipv4();
        if !is_loopback && *wanted > ports * 3 / 4 {
            return Err(RunError::preflight(format!(
                "{wanted} connections to {target} need more than the {ports} ephemeral ports of \
                 one source address; widen them (sysctl -w \
                 net.ipv4.ip_local_port_range=\"1024 65535\"), give this machine more addresses and \
                 name them with --source-addresses, or use several machines; \
                 millrace-loadgen doctor says how many"
            )));
        }
    }
    if connections.div_ceil(per_source) > SOURCES_MAX {
        return Err(RunError::preflight(format!(
            "{connections} connections need more than {SOURCES_MAX} loopback source addresses"
        )));
    }
    Ok(Sources { per_loopback: per_source, given: Arc::default() })
}

fn given_sources(targets: &[(SocketAddr, u32)], given: &[IpAddr]) -> Result<Sources, RunError> {
    if let Some(foreign) = given.iter().find(|address| UdpSocket::bind((**address, 0)).is_err()) {
        return Err(RunError::preflight(format!(
            "source address {foreign} is not this machine's; add it (ip address add {foreign}/{} dev \
             INTERFACE) or leave it out",
            if foreign.is_ipv4() { 32 } else { 128 }
        )));
    }
    let ports = u64::from(ephemeral_ports());
    for (target, wanted) in targets {
        let addresses = fitting(given, target.ip()).count() as u64;
        if addresses == 0 {
            return Err(RunError::preflight(format!(
                "no source address is of the same family as {target}"
            )));
        }
        if u64::from(*wanted) > addresses * ports {
            return Err(RunError::preflight(format!(
                "{wanted} connections to {target} need more than the {ports} ephemeral ports of each \
                 of {addresses} source addresses; millrace-loadgen doctor says how many it takes"
            )));
        }
    }
    Ok(Sources::given(given))
}

fn ephemeral_ports() -> u32 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = range.split_whitespace().filter_map(|bound| bound.parse::<u32>().ok());
    match (bounds.next(), bounds.next()) {
        (Some(low), Some(high)) if high >= low => high - low + 1,
        _ => 28_232,
    }
}

/// Connects once, so that a wrong address is told before anything else happens.
///
/// # Errors
/// The target does not accept a connection within two seconds.
pub fn reach(what: &str, address: SocketAddr) -> Result<(), RunError> {
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(drop).map_err(|error| {
        RunError::preflight(format!("{what} {address} cannot be reached: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::{CONNECTIONS_PER_SOURCE, driver_options, ephemeral_ports, sources};

    #[test]
    fn connections_beyond_one_descriptor_table_get_more_rings() {
        let limit = millrace_uring::descriptor_limit().expect("the limit can be read");
        let one = driver_options(100, 1).expect("few");
        assert_eq!(one.rings, 1);
        // Three tables' worth, wherever the limit stands, as long as it is one that binds.
        let Ok(three) = u32::try_from(limit.min(super::TABLE_MAX) * 3) else { return };
        let options = driver_options(three, 1).expect("as many rings as it takes");
        assert!(options.rings >= 3, "{options:?}");
        let capacity = u64::from(options.rings) * u64::from(options.sockets_max);
        assert!(capacity >= u64::from(three) + u64::from(three) / 16, "{options:?}");
    }

    #[test]
    fn a_machine_without_the_memory_is_told_before_the_run() {
        let meminfo = "MemTotal: 100 kB\nMemAvailable:    4096 kB\n";
        let available = super::available_bytes(meminfo);
        assert_eq!(available, Some(4096 * 1024));
        assert!(super::enough_memory(500, available).is_ok());
        let error = super::enough_memory(5_000, available).expect_err("24 MB are needed");
        assert!(error.to_string().contains("memory"), "{error}");
        assert!(super::enough_memory(5_000, None).is_ok(), "unknown is no reason to refuse");
    }

    #[test]
    fn loopback_targets_get_more_source_addresses_and_others_are_refused() {
        let loopback: SocketAddr = "127.0.0.1:9000".parse().expect("address");
        let elsewhere = "192.0.2.1:9000".parse().expect("address");
        let few = sources(&[(loopback, 100)], 100, &[]).expect("few");
        assert_eq!(few.of(99, loopback.ip()), None, "the kernel's choice");
        let many = ephemeral_ports() + 1;
        let several = sources(&[(loopback, many)], many, &[]).expect("loopback");
        let of = |user: u32| several.of(user, loopback.ip());
        assert_eq!(of(0), Some([127, 0, 0, 1].into()));
        assert_eq!(of(CONNECTIONS_PER_SOURCE), Some([127, 0, 0, 2].into()));
        assert_eq!(several.of(0, "::1".parse().expect("address")), None);
        assert_eq!(sources(&[(elsewhere, 6_000)], 6_000, &[]).is_ok(), ephemeral_ports() >= 8_000);
        assert!(sources(&[(elsewhere, many)], many, &[]).is_err());
    }

    #[test]
    fn given_source_addresses_are_taken_by_turns_and_must_be_ours() {
        let target = "127.0.0.1:9000".parse().expect("address");
        let given: Vec<IpAddr> = vec![[127, 0, 7, 1].into(), [127, 0, 7, 2].into()];
        let several = sources(&[(target, 6_000)], 6_000, &given).expect("loopback is ours");
        let taken: Vec<_> = (0..4).filter_map(|user| several.of(user, target.ip())).collect();
        assert_eq!(taken, [given[0], given[1], given[0], given[1]]);
        let foreign = sources(&[(target, 1)], 1, &[[192, 0, 2, 77].into()]).expect_err("not ours");
        assert!(foreign.to_string().contains("ip address add 192.0.2.77/32"), "{foreign}");
        let too_many = ephemeral_ports() * 2 + 1;
        assert!(sources(&[(target, too_many)], too_many, &given).is_err());
        let other_family: SocketAddr = "[::1]:9000".parse().expect("address");
        assert!(sources(&[(other_family, 1)], 1, &given).is_err());
    }
}
