//! `[search]`: full-text search of stored messages.

use millrace_service::{ByteSize, Duration, Invalid};
use serde::{Deserialize, Serialize};

/// `[search]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Search {
    /// SEARCH_MESSAGES is served. The index begins with the first search.
    pub enabled: bool,
    /// Messages indexed in a second at most; more are found later.
    pub messages_per_second_max: u32,
    /// What the index gathers in memory before it writes a file; at least 15 MB.
    pub memory_bytes_max: ByteSize,
    /// How long a message may wait until it is found.
    pub commit_interval: Duration,
    /// Notes that wait for the index. Full: it reads what it missed from the store.
    pub notes_queued_max: usize,
    /// The same in bytes.
    pub notes_queued_bytes_max: ByteSize,
    /// Searches at once; one more is refused with `over_capacity`.
    pub in_flight_max: usize,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            enabled: true,
            messages_per_second_max: 5_000,
            memory_bytes_max: ByteSize::from_mib(32),
            commit_interval: Duration::from_secs(1),
            notes_queued_max: 16_384,
            notes_queued_bytes_max: ByteSize::from_mib(16),
            in_flight_max: 4,
        }
    }
}

/// What the index needs to work at all.
const MEMORY_BYTES_MIN: u64 = 15_000_000;

impl Search {
    /// Whether the index can work with these.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let memory = self.memory_bytes_max.as_bytes();
        if !(MEMORY_BYTES_MIN..=1 << 30).contains(&memory) {
            let reason = "must be from 15000000B to 1GiB";
            return Err(Invalid::new("search.memory_bytes_max", reason));
        }
        for (key, value) in [
            ("search.messages_per_second_max", self.messages_per_second_max as usize),
            ("search.notes_queued_max", self.notes_queued_max),
            ("search.notes_queued_bytes_max", self.notes_queued_bytes_max.as_usize()),
            ("search.in_flight_max", self.in_flight_max),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        Ok(())
    }
}
