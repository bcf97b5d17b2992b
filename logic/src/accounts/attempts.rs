//! How often something may be tried, by account or by address: a bounded table of paces.
//!
//! It knows no clock: the time, in milliseconds of any clock that only goes forward, comes with
//! every question. An entry says when its key may try at full pace again, so one of the past can be
//! forgotten.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
};

/// So many at once after a quiet time, and then one every so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// At once after a quiet time; at least 1.
    pub burst_max: u32,
    /// Afterwards one in this time, in milliseconds.
    pub interval_ms: u64,
}

/// Whose attempts are counted together: an IPv4 address, or the /64 that one customer of an IPv6
/// provider has at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Network(IpAddr);

impl Network {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(IpAddr::V4(address)),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
            }
        }
    }
}

/// See the module.
pub(super) struct Attempts<K> {
    pace: Pace,
    entries_max: usize,
    /// When each key is at its full pace again.
    full_at_ms: HashMap<K, u64>,
    swept_at_ms: u64,
}

/// A full table is not searched for what can be forgotten more often than this.
const SWEEP_INTERVAL_MS: u64 = 1_000;

impl<K: Eq + Hash> Attempts<K> {
    pub(super) fn new(pace: Pace, entries_max: usize) -> Self {
        Self { pace, entries_max, full_at_ms: HashMap::new(), swept_at_ms: 0 }
    }

    /// Counts one attempt. Err: how long to wait, in milliseconds; then it is not counted. When the
    /// table is full of keys that are not at full pace, one that is not in it has to wait, too.
    pub(super) fn take(&mut self, key: K, now_ms: u64) -> Result<(), u32> {
        if self.full_at_ms.len() >= self.entries_max && !self.full_at_ms.contains_key(&key) {
            if now_ms >= self.swept_at_ms + SWEEP_INTERVAL_MS || self.swept_at_ms == 0 {
                self.swept_at_ms = now_ms.max(1);
                self.full_at_ms.retain(|_, full_at_ms| *full_at_ms > now_ms);
            }
            if self.full_at_ms.len() >= self.entries_max {
                return Err(SWEEP_INTERVAL_MS as u32);
            }
        }
        let Pace { burst_max, interval_ms } = self.pace;
        let full_at_ms = self.full_at_ms.entry(key).or_insert(now_ms);
        let from_ms = now_ms.max(*full_at_ms);
        let debt_max_ms = interval_ms * u64::from(burst_max.max(1) - 1);
        let wait_ms = (from_ms - now_ms).saturating_sub(debt_max_ms);
        if wait_ms > 0 {
            return Err(u32::try_from(wait_ms).unwrap_or(u32::MAX));
        }
        *full_at_ms = from_ms + interval_ms;
        Ok(())
    }

    /// Gives one attempt back.
    pub(super) fn give_back(&mut self, key: &K) {
        if let Some(full_at_ms) = self.full_at_ms.get_mut(key) {
            *full_at_ms = full_at_ms.saturating_sub(self.pace.interval_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Attempts, Network, Pace};

    #[test]
    fn a_burst_and_then_one_an_interval() {
        let mut attempts = Attempts::new(Pace { burst_max: 3, interval_ms: 100 }, 10);
        for key in ["a", "b"] {
            for _ in 0..3 {
                assert_eq!(attempts.take(key, 1_000), Ok(()));
            }
            assert_eq!(attempts.take(key, 1_000), Err(100));
            assert_eq!(attempts.take(key, 1_060), Err(40));
            assert_eq!(attempts.take(key, 1_100), Ok(()));
            assert_eq!(attempts.take(key, 1_100), Err(100));
            for _ in 0..3 {
                assert_eq!(attempts.take(key, 9_000), Ok(()), "a quiet time gives the burst back");
            }
            assert_eq!(attempts.take(key, 9_000), Err(100));
            attempts.give_back(&key);
            assert_eq!(attempts.take(key, 9_000), Ok(()));
        }
    }

    #[test]
    fn a_full_table_stays_bounded_and_forgets_who_is_at_full_pace() {
        let mut attempts = Attempts::new(Pace { burst_max: 1, interval_ms: 10_000 }, 3);
        for key in 0..3 {
            assert_eq!(attempts.take(key, 5_000 * key), Ok(()));
        }
        assert_eq!(attempts.take(3, 10_001), Ok(()), "the first may be forgotten");
        assert!(attempts.take(4, 10_002).is_err(), "and the others not");
        assert!(attempts.take(4, 12_000).is_err());
        assert_eq!(attempts.take(4, 16_000), Ok(()));
        assert_eq!(attempts.full_at_ms.len(), 3);
    }

    #[test]
    fn addresses_of_one_customer_count_together() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
    }
}
