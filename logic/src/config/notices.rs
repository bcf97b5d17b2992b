//! `[notices]`: how long notices of business services are kept, and how many.

use millrace_service::{Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::{chat::ChatSettings, notices::NoticeLimits};

/// `[notices]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notices {
    /// See [`ChatSettings::notice_targets_max`].
    pub targets_max: usize,
    /// See [`ChatSettings::notice_ttl`].
    pub ttl: Duration,
    /// See [`ChatSettings::notice_ttl_max`].
    pub ttl_max: Duration,
    /// See [`NoticeLimits::pending_per_user_max`].
    pub pending_per_user_max: usize,
    /// See [`NoticeLimits::notices_max`].
    pub notices_max: usize,
    /// See [`NoticeLimits::everyone_max`].
    pub everyone_max: usize,
    /// See [`NoticeLimits::kept_after_ms`].
    pub kept_after: Duration,
    /// See [`ChatSettings::notice_acks_queued_max`].
    pub acks_queued_max: usize,
    /// See [`ChatSettings::notice_events_queued_max`].
    pub events_queued_max: usize,
}

impl Default for Notices {
    fn default() -> Self {
        let (chat, limits) = (ChatSettings::default(), NoticeLimits::default());
        Self {
            targets_max: chat.notice_targets_max,
            ttl: Duration::from_millis(chat.notice_ttl.as_millis() as u64),
            ttl_max: Duration::from_millis(chat.notice_ttl_max.as_millis() as u64),
            pending_per_user_max: limits.pending_per_user_max,
            notices_max: limits.notices_max,
            everyone_max: limits.everyone_max,
            kept_after: Duration::from_millis(limits.kept_after_ms as u64),
            acks_queued_max: chat.notice_acks_queued_max,
            events_queued_max: chat.notice_events_queued_max,
        }
    }
}

impl Notices {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        for (key, value) in [
            ("notices.targets_max", self.targets_max),
            ("notices.ttl", self.ttl.as_millis() as usize),
            ("notices.pending_per_user_max", self.pending_per_user_max),
            ("notices.notices_max", self.notices_max),
            ("notices.acks_queued_max", self.acks_queued_max),
            ("notices.events_queued_max", self.events_queued_max),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        if self.ttl > self.ttl_max {
            return Err(Invalid::new("notices.ttl", "must not be above notices.ttl_max"));
        }
        Ok(())
    }

    /// Bounds of what is kept.
    pub fn limits(&self) -> NoticeLimits {
        NoticeLimits {
            pending_per_user_max: self.pending_per_user_max,
            notices_max: self.notices_max,
            everyone_max: self.everyone_max,
            kept_after_ms: self.kept_after.as_millis() as i64,
        }
    }

    /// What of it the chat domain has to know.
    pub(super) fn apply(&self, chat: &mut ChatSettings) {
        chat.notice_targets_max = self.targets_max;
        chat.notice_ttl = self.ttl.as_std();
        chat.notice_ttl_max = self.ttl_max.as_std();
        chat.notice_acks_queued_max = self.acks_queued_max;
        chat.notice_events_queued_max = self.events_queued_max;
    }
}
