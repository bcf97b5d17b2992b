//! What must hold before a run begins, checked with a sentence that says what to do: ring tables,
//! ephemeral ports, reachable listeners.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use millrace_uring::Options;

use crate::exit::RunError;

/// Connections from one loopback source address: below the usual 28,232 ephemeral ports, with
/// room for those that are still closing.
pub const CONNECTIONS_PER_SOURCE: u32 = 20_000;
/// Source addresses used at most: 127.0.0.1 to 127.0.0.250 of a loopback target.
const SOURCES_MAX: u32 = 250;

/// The driver of one thread with so many connections.
///
/// # Errors
/// The descriptor table of one ring cannot hold them.
pub fn driver_options(connections: u32, threads: u32) -> Result<Options, RunError> {
    // A returning user may hold two slots for a moment: the new one and the one being closed.
    let wanted = connections + connections / 16 + 64;
    let limit = millrace_uring::descriptor_limit().unwrap_or(u64::from(u32::MAX));
    let sockets_max = u64::from(wanted).min(limit) as u32;
    if sockets_max < connections + 16 {
        return Err(RunError::preflight(format!(
            "{connections} connections a thread do not fit RLIMIT_NOFILE ({limit}), which bounds \
             the descriptor table of a ring; use more than {threads} threads, or raise the limit"
        )));
    }
    Ok(Options {
        sockets_max,
        accept_spare: 0,
        receive_buffers: 1024,
        receive_buffer_bytes: 4096,
        ..Options::default()
    })
}

/// How many connections to take from one source address; 0: the kernel's choice will do.
///
/// # Errors
/// There are not enough ephemeral ports for a target.
pub fn sources(targets: &[(SocketAddr, u32)], connections: u32) -> Result<u32, RunError> {
    let ports = ephemeral_ports();
    if targets.iter().all(|(_, wanted)| *wanted <= ports * 3 / 4) {
        return Ok(0);
    }
    for (target, wanted) in targets {
        if !target.ip().is_loopback() || !target.is_ipv4() {
            return Err(RunError::preflight(format!(
                "{wanted} connections to {target} need more than the {ports} ephemeral ports of \
                 one source address; widen net.ipv4.ip_local_port_range or use several machines"
            )));
        }
    }
    let per_source = CONNECTIONS_PER_SOURCE.min(ports * 3 / 4).max(1);
    if connections.div_ceil(per_source) > SOURCES_MAX {
        return Err(RunError::preflight(format!(
            "{connections} connections need more than {SOURCES_MAX} loopback source addresses"
        )));
    }
    Ok(per_source)
}

/// The source address of a user's connection. A loopback target is reachable from any 127.x.y.z,
/// so that the ephemeral ports of one address are no limit. `None`: the kernel's choice.
pub fn source(user: u32, connections_per_source: u32, target: IpAddr) -> Option<IpAddr> {
    let block = user.checked_div(connections_per_source)?;
    let IpAddr::V4(target) = target else { return None };
    let first = u32::from(Ipv4Addr::LOCALHOST);
    target.is_loopback().then(|| IpAddr::V4(Ipv4Addr::from(first + block)))
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
    use super::{driver_options, ephemeral_ports, sources};

    #[test]
    fn too_many_connections_for_a_ring_are_refused_with_the_way_out() {
        let limit = millrace_uring::descriptor_limit().expect("the limit can be read");
        let Ok(above) = u32::try_from(limit) else { return };
        let error = driver_options(above, 1).expect_err("no room");
        assert!(error.to_string().contains("threads"), "{error}");
        assert!(driver_options(100, 1).is_ok());
    }

    #[test]
    fn loopback_targets_get_more_source_addresses_and_others_are_refused() {
        let loopback = "127.0.0.1:9000".parse().expect("address");
        let elsewhere = "192.0.2.1:9000".parse().expect("address");
        assert_eq!(sources(&[(loopback, 100)], 100).expect("few"), 0);
        let many = ephemeral_ports() + 1;
        let per_source = sources(&[(loopback, many)], many).expect("loopback");
        assert!(per_source > 0 && per_source <= 20_000);
        assert!(sources(&[(elsewhere, many)], many).is_err());
    }
}
