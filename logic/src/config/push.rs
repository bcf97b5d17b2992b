//! `[push]`: how devices that are offline are reached.

use std::{fmt, path::PathBuf};

use millrace_service::{Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::chat::OfflinePushSettings;

/// Shortest `push.webhook.secret`: HMAC-SHA256 wants one of the size of its hash.
pub const WEBHOOK_SECRET_BYTES_MIN: usize = 32;

/// `[push]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Push {
    /// See [`OfflinePushSettings::delay`].
    pub delay: Duration,
    /// See [`OfflinePushSettings::text`].
    pub text: String,
    /// See [`OfflinePushSettings::show_body`].
    pub show_body: bool,
    /// See [`OfflinePushSettings::lifetime`].
    pub lifetime: Duration,
    /// See [`OfflinePushSettings::queued_max`].
    pub queued_max: usize,
    /// See [`OfflinePushSettings::in_flight_max`].
    pub in_flight_max: usize,
    /// See [`OfflinePushSettings::attempts_max`].
    pub attempts_max: u32,
    /// See [`OfflinePushSettings::retry_min`].
    pub retry_min: Duration,
    /// See [`OfflinePushSettings::retry_max`].
    pub retry_max: Duration,
    /// Of one request to a provider.
    pub timeout: Duration,
    /// A certificate authority that is trusted besides the system's, as PEM.
    pub ca_file: PathBuf,
    /// Apple's service.
    pub apns: PushApns,
    /// Firebase.
    pub fcm: PushFcm,
    /// A service of one's own.
    pub webhook: PushWebhook,
}

/// `[push.apns]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PushApns {
    /// The key's `.p8` file; empty: no APNs.
    pub key_file: PathBuf,
    /// The key's id.
    pub key_id: String,
    /// The team.
    pub team_id: String,
    /// The app's bundle id.
    pub topic: String,
    /// Where the service is.
    pub endpoint: String,
}

/// `[push.fcm]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PushFcm {
    /// The service account's JSON file; empty: no FCM.
    pub account_file: PathBuf,
    /// Where the service is.
    pub endpoint: String,
}

/// `[push.webhook]`
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PushWebhook {
    /// What is posted to; empty: no webhook.
    pub url: String,
    /// What signs.
    pub secret: String,
    /// A file that holds it instead.
    pub secret_file: PathBuf,
}

impl fmt::Debug for PushWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushWebhook")
            .field("url", &self.url)
            .field("secret_file", &self.secret_file)
            .finish_non_exhaustive()
    }
}

impl Default for Push {
    fn default() -> Self {
        let settings = OfflinePushSettings::default();
        let duration = |d: std::time::Duration| Duration::from_millis(d.as_millis() as u64);
        Self {
            delay: duration(settings.delay),
            text: settings.text,
            show_body: settings.show_body,
            lifetime: duration(settings.lifetime),
            queued_max: settings.queued_max,
            in_flight_max: settings.in_flight_max,
            attempts_max: settings.attempts_max,
            retry_min: duration(settings.retry_min),
            retry_max: duration(settings.retry_max),
            timeout: Duration::from_secs(10),
            ca_file: PathBuf::new(),
            apns: PushApns::default(),
            fcm: PushFcm::default(),
            webhook: PushWebhook::default(),
        }
    }
}

impl Default for PushApns {
    fn default() -> Self {
        Self {
            key_file: PathBuf::new(),
            key_id: String::new(),
            team_id: String::new(),
            topic: String::new(),
            endpoint: "https://api.push.apple.com".to_owned(),
        }
    }
}

impl Default for PushFcm {
    fn default() -> Self {
        Self { account_file: PathBuf::new(), endpoint: "https://fcm.googleapis.com".to_owned() }
    }
}

impl Push {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        for (key, value) in [
            ("push.queued_max", self.queued_max),
            ("push.in_flight_max", self.in_flight_max),
            ("push.attempts_max", self.attempts_max as usize),
            ("push.timeout", self.timeout.as_millis() as usize),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        if self.retry_min > self.retry_max {
            return Err(Invalid::new("push.retry_min", "must not be above push.retry_max"));
        }
        if !self.apns.key_file.as_os_str().is_empty() {
            for (key, value) in [
                ("push.apns.key_id", &self.apns.key_id),
                ("push.apns.team_id", &self.apns.team_id),
                ("push.apns.topic", &self.apns.topic),
            ] {
                if value.is_empty() {
                    return Err(Invalid::new(key, "is needed with push.apns.key_file"));
                }
            }
        }
        for (key, url) in
            [("push.apns.endpoint", &self.apns.endpoint), ("push.fcm.endpoint", &self.fcm.endpoint)]
        {
            if !url.starts_with("https://") || url.ends_with('/') {
                return Err(Invalid::new(key, "must begin with https:// and not end with /"));
            }
        }
        let url = &self.webhook.url;
        let is_http = url.starts_with("https://") || url.starts_with("http://");
        if !url.is_empty() && !is_http {
            return Err(Invalid::new("push.webhook.url", "must begin with https:// or http://"));
        }
        Ok(())
    }

    /// Settings of the chat domain's part.
    pub fn settings(&self) -> OfflinePushSettings {
        OfflinePushSettings {
            queued_max: self.queued_max,
            in_flight_max: self.in_flight_max,
            delay: self.delay.as_std(),
            attempts_max: self.attempts_max,
            retry_min: self.retry_min.as_std(),
            retry_max: self.retry_max.as_std(),
            lifetime: self.lifetime.as_std(),
            text: self.text.clone(),
            show_body: self.show_body,
            ..OfflinePushSettings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_service::config::parse;

    use crate::config::Config;

    #[test]
    fn what_a_provider_needs_is_asked_for() {
        for (text, key) in [
            ("[push.apns]\nkey_file = \"a.p8\"\n", "push.apns.key_id"),
            ("[push.fcm]\nendpoint = \"http://x\"\n", "push.fcm.endpoint"),
            ("[push.webhook]\nurl = \"ftp://x\"\n", "push.webhook.url"),
            ("[push]\nretry_min = \"2m\"\n", "push.retry_min"),
        ] {
            let config: Config = parse(text, "logic.toml").expect("TOML");
            assert_eq!(config.check().expect_err("refused").key, key);
        }
    }

    #[test]
    fn the_webhooks_secret_is_not_printed() {
        let text = "[push.webhook]\nsecret = \"a very secret secret\"\n";
        let config: Config = parse(text, "logic.toml").expect("TOML");
        assert!(!format!("{config:?}").contains("very secret"));
    }
}
