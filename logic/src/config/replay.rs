//! `[replay]`: requests that were seen before.

use millrace_service::{Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::{
    chat::ChatSettings,
    login::{ReplayCheck, ReplaySettings},
};

/// Longest `replay.window`.
const WINDOW_MS_MAX: u64 = 24 * 3_600_000;

/// `[replay]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// Who has to send a timestamp and a nonce with LOGIN.
    pub login: Check,
    /// Who has to send them with SEND_MESSAGE.
    pub send: Check,
    /// How far a timestamp may be from this process's clock, either way.
    pub window: Duration,
    /// See [`ReplaySettings::nonces_max`]; of logins and of messages each.
    pub nonces_max: usize,
}

/// `replay.login`, `replay.send`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Nobody looks.
    Off,
    /// Who sends both is held to them.
    On,
    /// Who leaves one out is refused.
    Required,
}

impl From<Check> for ReplayCheck {
    fn from(check: Check) -> Self {
        match check {
            Check::Off => Self::Off,
            Check::On => Self::On,
            Check::Required => Self::Required,
        }
    }
}

impl Default for Replay {
    fn default() -> Self {
        let settings = ReplaySettings::default();
        Self {
            login: Check::On,
            send: Check::Off,
            window: Duration::from_millis(settings.window_ms.into()),
            nonces_max: settings.nonces_max,
        }
    }
}

impl Replay {
    /// Whether the values make sense.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if !(1_000..=WINDOW_MS_MAX).contains(&self.window.as_millis()) {
            return Err(Invalid::new("replay.window", "must be between 1s and 24h"));
        }
        match self.nonces_max {
            0 => Err(Invalid::new("replay.nonces_max", "must be at least 1")),
            _ => Ok(()),
        }
    }

    /// Puts them where the chat domain looks.
    pub(super) fn set(&self, settings: &mut ChatSettings) {
        let with = |check: Check| ReplaySettings {
            check: check.into(),
            window_ms: self.window.as_millis_u32(),
            nonces_max: self.nonces_max,
        };
        settings.replay_login = with(self.login);
        settings.replay_send = with(self.send);
    }
}
