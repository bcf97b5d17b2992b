//! What the server counts. Sums over all streams since the start; reading them is cheap and not a
//! snapshot of one moment.

use std::sync::atomic::{AtomicU64, Ordering};

/// Builds the live counters and their readable copy from one list.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// The live counters.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)+ }

        /// A copy of the counters.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CountersSnapshot { $($(#[$doc])* pub $name: u64,)+ }

        impl Counters {
            pub(crate) fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Streams whose Hello was accepted.
    streams_opened,
    /// Streams ended because their outbox was full.
    streams_overflowed,
    /// Streams ended because nothing was heard for the lease.
    streams_silent,
    /// Streams ended or refused because the gateway broke the contract.
    streams_violated,
    /// Streams refused or ended because a newer one, or a newer epoch, took their place.
    streams_superseded,
    /// Gateway shards whose lease ran out with sessions.
    leases_expired,
    /// Logins accepted.
    logins_accepted,
    /// Logins refused.
    logins_refused,
    /// Sessions ended, whatever the way, those included that moved away.
    sessions_ended,
    /// Sessions that came from another logic process.
    sessions_moved_here,
    /// Sessions that another logic process took over.
    sessions_moved_away,
    /// Client frames received.
    frames_received,
    /// Client frames skipped because their session is unknown here.
    frames_of_unknown_sessions,
    /// Client frames skipped because command or flags are out of range.
    frames_malformed,
    /// Requests the backend let go without an answer; they were refused with `internal`.
    requests_unanswered,
    /// SendFrames and RoomFrames queued for a gateway.
    frames_sent,
    /// Events not queued because the gateway's stream is away.
    events_skipped,
    /// Frames not queued because their body is above a limit or cannot be encoded.
    frames_unsendable,
}

/// Adds to one counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
