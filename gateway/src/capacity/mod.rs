//! How many connections a configuration can hold on this machine, and what binds first.
//!
//! Each shard has one ring, and a ring's table of sockets is capped by RLIMIT_NOFILE, whose soft
//! limit is raised to the hard one first. Some entries are kept free so that a full table refuses
//! nobody with a reset, and some so that those above the limit can be told.

use std::fmt;

use crate::config::Config;

/// Entries of a table for clients that are being refused, as a share and at most.
const REFUSAL_SHARE: u32 = 16;
const REFUSAL_MAX: u32 = 256;

/// A ring's table never has more than this: the driver's ids have 24 bits for it.
const SOCKETS_CEILING: u32 = 1 << 24;

/// The sizes that a gateway runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Shards, each with one ring.
    pub shards: usize,
    /// Entries of each ring's table.
    pub sockets_per_ring: u32,
    /// Connections of each shard that are served; those above are told `over_capacity`.
    pub connections_per_shard: u32,
    /// What binds first.
    pub bound: Bound,
}

/// What bounds the number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// `connections.connections_max`.
    ConnectionsMax,
    /// `uring.sockets_max`.
    SocketsMax,
    /// RLIMIT_NOFILE, which is this.
    Descriptors(u64),
}

impl Capacity {
    /// Plans the sizes.
    pub(crate) fn plan(config: &Config) -> Result<Self, String> {
        let limit = millrace_uring::raise_descriptor_limit()
            .map_err(|error| format!("cannot read RLIMIT_NOFILE: {error}"))?;
        let shards = match config.gateway.shards {
            0 => std::thread::available_parallelism()
                .map_or(1, std::num::NonZero::get)
                .min(crate::config::SHARDS_MAX),
            shards => shards,
        };
        Self::of(config, shards, limit)
    }

    fn of(config: &Config, shards: usize, limit: u64) -> Result<Self, String> {
        let spare = config.uring.accept_spare;
        let share = u64::from(config.connections.connections_max).div_ceil(shards as u64) as u32;
        let descriptors = u32::try_from(limit).unwrap_or(u32::MAX).min(SOCKETS_CEILING);
        let (mut sockets, mut bound) = (descriptors, Bound::Descriptors(limit));
        if config.uring.sockets_max != 0 {
            if u64::from(config.uring.sockets_max) > limit {
                return Err(format!(
                    "uring.sockets_max is {}, but RLIMIT_NOFILE allows a ring {limit}; raise the \
                     limit (ulimit -n, LimitNOFILE=) or use more shards",
                    config.uring.sockets_max
                ));
            }
            (sockets, bound) = (config.uring.sockets_max, Bound::SocketsMax);
        }
        let usable = |sockets: u32| {
            let refusals = (sockets / REFUSAL_SHARE).min(REFUSAL_MAX);
            sockets.saturating_sub(spare + refusals)
        };
        let mut connections = usable(sockets);
        if share != 0 && share <= connections {
            // The table need not be larger than what is let in.
            let needed = share.saturating_add(spare).saturating_add(REFUSAL_MAX);
            sockets = sockets.min(needed);
            connections = share;
            bound = Bound::ConnectionsMax;
        }
        if connections == 0 {
            return Err(format!(
                "a ring of {sockets} sockets leaves none for clients after accept_spare = {spare}"
            ));
        }
        Ok(Self { shards, sockets_per_ring: sockets, connections_per_shard: connections, bound })
    }

    /// Connections of the process.
    pub const fn connections(&self) -> u64 {
        self.shards as u64 * self.connections_per_shard as u64
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "up to {} connections: {} shards of {} (rings of {} sockets); bound by ",
            self.connections(),
            self.shards,
            self.connections_per_shard,
            self.sockets_per_ring
        )?;
        match self.bound {
            Bound::ConnectionsMax => f.write_str("connections.connections_max"),
            Bound::SocketsMax => f.write_str("uring.sockets_max"),
            Bound::Descriptors(limit) => write!(f, "RLIMIT_NOFILE, {limit} for each ring"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Bound, Capacity};
    use crate::config::Config;

    fn config(connections_max: u32, sockets_max: u32) -> Config {
        let mut config = Config::default();
        config.connections.connections_max = connections_max;
        config.uring.sockets_max = sockets_max;
        config
    }

    #[test]
    fn descriptors_bind_when_nothing_else_does() {
        let capacity = Capacity::of(&config(0, 0), 2, 20_000).expect("fits");
        assert_eq!(capacity.bound, Bound::Descriptors(20_000));
        assert_eq!(capacity.sockets_per_ring, 20_000);
        assert_eq!(capacity.connections(), 2 * (20_000 - 64 - 256));
    }

    #[test]
    fn a_configured_number_binds_when_it_is_smaller() {
        let capacity = Capacity::of(&config(1_001, 0), 2, 20_000).expect("fits");
        assert_eq!(capacity.bound, Bound::ConnectionsMax);
        assert_eq!(capacity.connections_per_shard, 501);
        assert!(capacity.sockets_per_ring < 1_000);
        let capacity = Capacity::of(&config(100_000, 0), 2, 20_000).expect("fits");
        assert_eq!(capacity.bound, Bound::Descriptors(20_000));
    }

    #[test]
    fn a_table_that_cannot_be_had_is_refused_with_the_remedy() {
        let error = Capacity::of(&config(0, 30_000), 2, 20_000).expect_err("too many");
        assert!(error.contains("RLIMIT_NOFILE") && error.contains("20000"), "{error}");
        assert!(Capacity::of(&config(0, 65), 2, 20_000).is_err());
    }
}
