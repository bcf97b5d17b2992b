//! `[paces]`: how often one user may ask, by kind of request.

use millrace_service::Invalid;
use serde::{Deserialize, Serialize};

use crate::chat::ChatSettings;

/// `[paces]`; see the fields of [`ChatSettings`] with these names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "named as the fields of ChatSettings, which explain them")]
pub struct Paces {
    pub pulls_per_second_max: u32,
    pub pulls_burst_max: u32,
    pub presence_per_second_max: u32,
    pub presence_burst_max: u32,
    pub reports_per_second_max: u32,
    pub reports_burst_max: u32,
    pub logins_per_second_max: u32,
    pub logins_burst_max: u32,
    pub service_messages_per_second_max: u32,
    pub service_messages_burst_max: u32,
    pub buckets_max: usize,
}

impl Default for Paces {
    fn default() -> Self {
        let chat = ChatSettings::default();
        Self {
            pulls_per_second_max: chat.pulls_per_second_max,
            pulls_burst_max: chat.pulls_burst_max,
            presence_per_second_max: chat.presence_per_second_max,
            presence_burst_max: chat.presence_burst_max,
            reports_per_second_max: chat.reports_per_second_max,
            reports_burst_max: chat.reports_burst_max,
            logins_per_second_max: chat.logins_per_second_max,
            logins_burst_max: chat.logins_burst_max,
            service_messages_per_second_max: chat.service_messages_per_second_max,
            service_messages_burst_max: chat.service_messages_burst_max,
            buckets_max: chat.paced_buckets_max,
        }
    }
}

impl Paces {
    /// Whether everybody can do everything at least once.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        for (key, value) in [
            ("paces.pulls_per_second_max", self.pulls_per_second_max),
            ("paces.pulls_burst_max", self.pulls_burst_max),
            ("paces.presence_per_second_max", self.presence_per_second_max),
            ("paces.presence_burst_max", self.presence_burst_max),
            ("paces.reports_per_second_max", self.reports_per_second_max),
            ("paces.reports_burst_max", self.reports_burst_max),
            ("paces.logins_per_second_max", self.logins_per_second_max),
            ("paces.logins_burst_max", self.logins_burst_max),
            ("paces.service_messages_per_second_max", self.service_messages_per_second_max),
            ("paces.service_messages_burst_max", self.service_messages_burst_max),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        match self.buckets_max {
            0 => Err(Invalid::new("paces.buckets_max", "must be at least 1")),
            _ => Ok(()),
        }
    }

    /// Puts them where the chat domain looks.
    pub(super) fn set(&self, settings: &mut ChatSettings) {
        settings.pulls_per_second_max = self.pulls_per_second_max;
        settings.pulls_burst_max = self.pulls_burst_max;
        settings.presence_per_second_max = self.presence_per_second_max;
        settings.presence_burst_max = self.presence_burst_max;
        settings.reports_per_second_max = self.reports_per_second_max;
        settings.reports_burst_max = self.reports_burst_max;
        settings.logins_per_second_max = self.logins_per_second_max;
        settings.logins_burst_max = self.logins_burst_max;
        settings.service_messages_per_second_max = self.service_messages_per_second_max;
        settings.service_messages_burst_max = self.service_messages_burst_max;
        settings.paced_buckets_max = self.buckets_max;
    }
}
