//! Requests that were seen before: a timestamp and a nonce of the client's choosing, together, are
//! taken once within a window of time.
//!
//! This stops what was recorded on the way from being played again word for word. It does not stop
//! somebody who has the token: they can make up new ones. Where nobody can record (TLS), it costs
//! something and finds nothing.
//!
//! # Memory
//! 8 bytes of hash for each, in two generations that take turns: while one fills, the other is
//! looked into, and when a generation is older than twice the window (a timestamp may lie that far
//! ahead of another) it is forgotten as a whole.

use std::{
    collections::HashSet,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    sync::{Mutex, PoisonError},
};

use millrace_logic_sdk::Refused;
use millrace_protocol::Code;

/// Longest nonce, in bytes.
const NONCE_BYTES_MAX: usize = 128;

/// Who has to send a timestamp and a nonce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplayCheck {
    /// Nobody looks.
    Off,
    /// Who sends both is held to them; who leaves one out is not.
    #[default]
    On,
    /// Who leaves one out is refused.
    Required,
}

/// How a [`ReplayGuard`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplaySettings {
    /// Who has to send them.
    pub check: ReplayCheck,
    /// How far a timestamp may be from this process's clock, either way, in milliseconds.
    pub window_ms: u32,
    /// Requests remembered within twice the window. Above it: `over_capacity`, try again.
    pub nonces_max: usize,
}

impl Default for ReplaySettings {
    fn default() -> Self {
        Self { check: ReplayCheck::On, window_ms: 300_000, nonces_max: 2_000_000 }
    }
}

/// See the module.
pub struct ReplayGuard {
    settings: ReplaySettings,
    hasher: RandomState,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// When the newer generation began.
    began_at_ms: i64,
    newer: HashSet<u64, BuildHasherDefault<Hashed>>,
    older: HashSet<u64, BuildHasherDefault<Hashed>>,
}

/// Hashes what is a hash already to itself.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl ReplayGuard {
    /// Nothing was seen yet; what was before a restart is forgotten, and can be played once more
    /// within its window.
    pub fn new(settings: ReplaySettings) -> Self {
        Self { settings, hasher: RandomState::new(), seen: Mutex::default() }
    }

    /// Whether somebody looks at all.
    pub fn is_on(&self) -> bool {
        self.settings.check != ReplayCheck::Off
    }

    /// Whether the timestamp is good enough. To be asked first: it costs nothing.
    ///
    /// # Errors
    /// `replayed` outside the window, `bad_request` for what is missing or too long.
    pub fn check_time(&self, timestamp_ms: i64, nonce: &str, now_ms: i64) -> Result<(), Refused> {
        if !self.is_held_to(timestamp_ms, nonce)? {
            return Ok(());
        }
        let window_ms = i64::from(self.settings.window_ms);
        let ahead_ms = timestamp_ms.saturating_sub(now_ms);
        if (-window_ms..=window_ms).contains(&ahead_ms) {
            return Ok(());
        }
        let (seconds, way) = match ahead_ms {
            ahead if ahead > 0 => (ahead / 1_000, "ahead of"),
            behind => (behind.saturating_neg() / 1_000, "behind"),
        };
        let reason = format!(
            "The timestamp is {seconds} s {way} this server's clock; at most {} s are allowed.",
            window_ms / 1_000
        );
        Err(Refused::new(Code::Replayed, reason))
    }

    /// Takes a request that is good in every other way; the same one is refused from now on.
    ///
    /// # Errors
    /// `replayed` if it was taken before, `over_capacity` if no more can be remembered.
    pub fn take(
        &self,
        user_id: &str,
        timestamp_ms: i64,
        nonce: &str,
        now_ms: i64,
    ) -> Result<(), Refused> {
        if !self.is_held_to(timestamp_ms, nonce)? {
            return Ok(());
        }
        let hash = self.hasher.hash_one((user_id, timestamp_ms, nonce));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut *seen;
        let generation_ms = 2 * i64::from(self.settings.window_ms);
        let age_ms = now_ms.saturating_sub(seen.began_at_ms);
        // A clock that was set back starts a generation, too, rather than keep one for hours.
        if !(0..generation_ms).contains(&age_ms) {
            seen.older = std::mem::take(&mut seen.newer);
            seen.began_at_ms = now_ms;
            if age_ms >= 2 * generation_ms {
                seen.older = HashSet::default();
            }
        }
        if seen.newer.contains(&hash) || seen.older.contains(&hash) {
            let reason = "This request was seen before; send each with a nonce of its own.";
            return Err(Refused::new(Code::Replayed, reason));
        }
        if seen.newer.len() >= self.settings.nonces_max {
            let reason = "No more requests can be remembered for now; try again.";
            let wait_ms = generation_ms.saturating_sub(age_ms).clamp(1_000, 60_000);
            return Err(Refused::new(Code::OverCapacity, reason).retry_after(wait_ms as u32));
        }
        seen.newer.insert(hash);
        Ok(())
    }

    /// Whether this request is looked at.
    fn is_held_to(&self, timestamp_ms: i64, nonce: &str) -> Result<bool, Refused> {
        let is_complete = timestamp_ms != 0 && !nonce.is_empty();
        let refuse = |reason| Err(Refused::new(Code::BadRequest, reason));
        match self.settings.check {
            ReplayCheck::Off => Ok(false),
            ReplayCheck::Required if !is_complete => {
                refuse("A timestamp_ms and a nonce are needed here.")
            }
            _ if is_complete && nonce.len() > NONCE_BYTES_MAX => {
                refuse("A nonce has at most 128 bytes.")
            }
            _ => Ok(is_complete),
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::Code;

    use super::{ReplayCheck, ReplayGuard, ReplaySettings};

    const NOW_MS: i64 = 1_800_000_000_000;

    fn guard(check: ReplayCheck, nonces_max: usize) -> ReplayGuard {
        ReplayGuard::new(ReplaySettings { check, window_ms: 10_000, nonces_max })
    }

    /// Both steps, as a login takes them.
    fn ask(
        guard: &ReplayGuard,
        user_id: &str,
        at_ms: i64,
        nonce: &str,
        now_ms: i64,
    ) -> Result<(), Code> {
        guard
            .check_time(at_ms, nonce, now_ms)
            .and_then(|()| guard.take(user_id, at_ms, nonce, now_ms))
            .map_err(|refused| refused.code)
    }

    #[test]
    fn the_same_request_is_taken_once() {
        let guard = guard(ReplayCheck::On, 100);
        assert_eq!(ask(&guard, "alice", NOW_MS, "n", NOW_MS), Ok(()));
        assert_eq!(ask(&guard, "alice", NOW_MS, "n", NOW_MS + 1), Err(Code::Replayed));
        // Another nonce, another moment or another user is another request.
        assert_eq!(ask(&guard, "alice", NOW_MS, "m", NOW_MS), Ok(()));
        assert_eq!(ask(&guard, "alice", NOW_MS + 1, "n", NOW_MS), Ok(()));
        assert_eq!(ask(&guard, "bob", NOW_MS, "n", NOW_MS), Ok(()));
    }

    #[test]
    fn a_moment_outside_the_window_is_refused_either_way_and_told_how_far_it_is() {
        let guard = guard(ReplayCheck::On, 100);
        for (offset_ms, expected) in [
            (-10_000, Ok(())),
            (10_000, Ok(())),
            (-10_001, Err(Code::Replayed)),
            (10_001, Err(Code::Replayed)),
            (i64::MIN, Err(Code::Replayed)),
            (i64::MAX, Err(Code::Replayed)),
        ] {
            let at_ms = NOW_MS.saturating_add(offset_ms);
            assert_eq!(ask(&guard, "alice", at_ms, "n", NOW_MS), expected, "{offset_ms}");
        }
        let refused = guard.check_time(NOW_MS - 90_000, "n", NOW_MS).expect_err("too old");
        assert!(refused.reason.contains("90 s behind"), "{}", refused.reason);
    }

    #[test]
    fn nothing_is_taken_twice_as_long_as_its_time_is_in_the_window() {
        // The worst case: from the future end of the window to its past end, across generations.
        for start_ms in (0..40_000).step_by(1_000) {
            let guard = guard(ReplayCheck::On, 100);
            assert_eq!(ask(&guard, "other", NOW_MS, "x", NOW_MS), Ok(()));
            let first_ms = NOW_MS + start_ms;
            let at_ms = first_ms + 10_000;
            assert_eq!(ask(&guard, "alice", at_ms, "n", first_ms), Ok(()));
            for later_ms in (0..=60_000).step_by(500) {
                let found = ask(&guard, "alice", at_ms, "n", first_ms + later_ms);
                assert_eq!(found, Err(Code::Replayed), "{start_ms} {later_ms}");
                let noise = format!("{later_ms}");
                let now_ms = first_ms + later_ms;
                let _other = ask(&guard, "other", now_ms, &noise, now_ms);
            }
        }
    }

    #[test]
    fn who_sends_neither_is_let_through_unless_both_are_required() {
        for (check, expected) in [
            (ReplayCheck::Off, Ok(())),
            (ReplayCheck::On, Ok(())),
            (ReplayCheck::Required, Err(Code::BadRequest)),
        ] {
            let guard = guard(check, 100);
            for (at_ms, nonce) in [(0, ""), (NOW_MS, ""), (0, "n")] {
                for _again in 0..2 {
                    assert_eq!(ask(&guard, "alice", at_ms, nonce, NOW_MS), expected, "{check:?}");
                }
            }
        }
        let off = guard(ReplayCheck::Off, 100);
        for _again in 0..2 {
            assert_eq!(ask(&off, "alice", 7, "n", NOW_MS), Ok(()));
        }
    }

    #[test]
    fn a_full_table_refuses_what_it_cannot_remember_and_has_room_again_later() {
        let guard = guard(ReplayCheck::On, 3);
        for nonce in ["1", "2", "3"] {
            assert_eq!(ask(&guard, "alice", NOW_MS, nonce, NOW_MS), Ok(()));
        }
        assert_eq!(ask(&guard, "alice", NOW_MS, "4", NOW_MS), Err(Code::OverCapacity));
        // What is known is still known.
        assert_eq!(ask(&guard, "alice", NOW_MS, "1", NOW_MS), Err(Code::Replayed));
        let later_ms = NOW_MS + 20_000;
        assert_eq!(ask(&guard, "alice", later_ms, "4", later_ms), Ok(()));
        let long = "n".repeat(129);
        assert_eq!(ask(&guard, "alice", later_ms, &long, later_ms), Err(Code::BadRequest));
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let guard = guard(ReplayCheck::On, 3);
        assert_eq!(ask(&guard, "alice", NOW_MS, "1", NOW_MS), Ok(()));
        let earlier_ms = NOW_MS - 3_600_000;
        assert_eq!(ask(&guard, "alice", earlier_ms, "1", earlier_ms), Ok(()));
        assert_eq!(ask(&guard, "alice", earlier_ms, "1", earlier_ms), Err(Code::Replayed));
    }
}
