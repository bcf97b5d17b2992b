//! `[presence]`: who is told when who comes and goes.

use millrace_service::{Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::chat::ChatSettings;

/// `[presence]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Presence {
    /// See [`ChatSettings::presence_interval`].
    pub interval: Duration,
    /// See [`ChatSettings::presence_subscribed_for`].
    pub subscribed_for: Duration,
    /// See [`ChatSettings::presence_subscriptions_per_session_max`].
    pub subscriptions_per_session_max: usize,
    /// See [`ChatSettings::presence_subscriptions_max`].
    pub subscriptions_max: usize,
    /// See [`ChatSettings::presence_streams_max`].
    pub streams_max: usize,
}

impl Default for Presence {
    fn default() -> Self {
        let chat = ChatSettings::default();
        Self {
            interval: Duration::from_millis(chat.presence_interval.as_millis() as u64),
            subscribed_for: Duration::from_millis(chat.presence_subscribed_for.as_millis() as u64),
            subscriptions_per_session_max: chat.presence_subscriptions_per_session_max,
            subscriptions_max: chat.presence_subscriptions_max,
            streams_max: chat.presence_streams_max,
        }
    }
}

impl Presence {
    /// Whether the values make sense.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        match self.subscribed_for.as_millis() < 1_000 {
            true => Err(Invalid::new("presence.subscribed_for", "must be at least 1s")),
            false => Ok(()),
        }
    }

    /// Puts them where the chat domain looks.
    pub(super) fn set(&self, settings: &mut ChatSettings) {
        settings.presence_interval = self.interval.as_std();
        settings.presence_subscribed_for = self.subscribed_for.as_std();
        settings.presence_subscriptions_per_session_max = self.subscriptions_per_session_max;
        settings.presence_subscriptions_max = self.subscriptions_max;
        settings.presence_streams_max = self.streams_max;
    }
}
