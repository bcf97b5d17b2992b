//! `[messages]` and `[words]`: what messages may be, and which words are not let through.

use std::path::PathBuf;

use millrace_service::{ByteSize, Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::{chat::MessageSettings, words::WordFileSettings};

/// `[messages]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Messages {
    /// See [`MessageSettings::unknown_types`].
    pub unknown_types: bool,
    /// See [`MessageSettings::body_bytes_max`].
    pub body_bytes_max: ByteSize,
    /// See [`MessageSettings::revoke_limit`].
    pub revoke_limit: Duration,
    /// See [`MessageSettings::ttl_max`].
    pub ttl_max: Duration,
    /// See [`MessageSettings::expiry_interval`].
    pub expiry_interval: Duration,
    /// See [`MessageSettings::expiry_batch_max`].
    pub expiry_batch_max: usize,
    /// See [`MessageSettings::typing_members_max`].
    pub typing_members_max: usize,
    /// See [`MessageSettings::live_members_max`].
    pub live_members_max: usize,
}

impl Default for Messages {
    fn default() -> Self {
        let messages = MessageSettings::default();
        let duration = |time: std::time::Duration| Duration::from_millis(time.as_millis() as u64);
        Self {
            unknown_types: messages.unknown_types,
            body_bytes_max: ByteSize::from_bytes(messages.body_bytes_max as u64),
            revoke_limit: duration(messages.revoke_limit),
            ttl_max: duration(messages.ttl_max),
            expiry_interval: duration(messages.expiry_interval),
            expiry_batch_max: messages.expiry_batch_max,
            typing_members_max: messages.typing_members_max,
            live_members_max: messages.live_members_max,
        }
    }
}

impl Messages {
    /// Whether the values make sense.
    ///
    /// # Errors
    /// The first key that does not.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.body_bytes_max.as_bytes() < 1024 {
            return Err(Invalid::new("messages.body_bytes_max", "must be at least 1KiB"));
        }
        if self.expiry_interval.as_millis() < 10 {
            return Err(Invalid::new("messages.expiry_interval", "must be at least 10ms"));
        }
        if self.expiry_batch_max == 0 {
            return Err(Invalid::new("messages.expiry_batch_max", "must be at least 1"));
        }
        Ok(())
    }

    /// As the chat domain takes them.
    pub(super) fn settings(&self) -> MessageSettings {
        MessageSettings {
            unknown_types: self.unknown_types,
            body_bytes_max: self.body_bytes_max.as_usize(),
            revoke_limit: self.revoke_limit.as_std(),
            ttl_max: self.ttl_max.as_std(),
            expiry_interval: self.expiry_interval.as_std(),
            expiry_batch_max: self.expiry_batch_max,
            typing_members_max: self.typing_members_max,
            live_members_max: self.live_members_max,
        }
    }
}

/// `[words]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Words {
    /// The list; empty: every word is let through.
    pub file: PathBuf,
    /// See [`WordFileSettings::poll`].
    pub poll: Duration,
    /// See [`WordFileSettings::bytes_max`].
    pub file_bytes_max: ByteSize,
    /// See [`WordFileSettings::rules_max`].
    pub rules_max: usize,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            file: PathBuf::new(),
            poll: Duration::from_secs(2),
            file_bytes_max: ByteSize::from_mib(4),
            rules_max: 100_000,
        }
    }
}

impl Words {
    /// Whether the values make sense.
    ///
    /// # Errors
    /// The first key that does not.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.poll.as_millis() < 10 {
            return Err(Invalid::new("words.poll", "must be at least 10ms"));
        }
        Ok(())
    }

    /// Where the list is, if there is one.
    pub fn settings(&self) -> Option<WordFileSettings> {
        (!self.file.as_os_str().is_empty()).then(|| WordFileSettings {
            path: self.file.clone(),
            poll: self.poll.as_std(),
            bytes_max: self.file_bytes_max.as_bytes(),
            rules_max: self.rules_max,
        })
    }
}
