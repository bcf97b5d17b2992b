//! `[bus]`: the topics that clients report to, and their consumers.

use millrace_service::{ByteSize, Duration, Invalid};
use serde::{Deserialize, Serialize};

use super::bus_nats::BusNats;
use crate::{
    bus::{EmbeddedBusSettings, check_name},
    chat::ChatSettings,
};

/// What topics stand on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusKind {
    /// The embedded store's disk.
    #[default]
    Embedded,
    /// NATS JetStream.
    Nats,
}

/// `[bus]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bus {
    /// Where records lie.
    pub kind: BusKind,
    /// See [`ChatSettings::report_topics`].
    pub topics: Vec<String>,
    /// See [`EmbeddedBusSettings::topics_max`].
    pub topics_max: usize,
    /// See [`EmbeddedBusSettings::topic_bytes_max`].
    pub topic_bytes_max: ByteSize,
    /// See [`EmbeddedBusSettings::retention_ms`].
    pub retention: Duration,
    /// See [`EmbeddedBusSettings::consumers_per_topic_max`].
    pub consumers_per_topic_max: usize,
    /// See [`ChatSettings::consumers_waiting_max`].
    pub consumers_waiting_max: usize,
    /// See [`EmbeddedBusSettings::deliveries_max`].
    pub deliveries_max: u32,
    /// See [`EmbeddedBusSettings::ids_kept_max`].
    pub ids_kept_max: usize,
    /// With `kind = "nats"`.
    pub nats: BusNats,
}

impl Default for Bus {
    fn default() -> Self {
        let bus = EmbeddedBusSettings::default();
        Self {
            kind: BusKind::default(),
            topics: vec![],
            topics_max: bus.topics_max,
            topic_bytes_max: ByteSize::from_bytes(bus.topic_bytes_max),
            retention: Duration::from_millis(bus.retention_ms),
            consumers_per_topic_max: bus.consumers_per_topic_max,
            consumers_waiting_max: ChatSettings::default().consumers_waiting_max,
            deliveries_max: bus.deliveries_max,
            ids_kept_max: bus.ids_kept_max,
            nats: BusNats::default(),
        }
    }
}

impl Bus {
    /// `nats_is_needed`: by something else than the bus.
    pub(super) fn check(&self, nats_is_needed: bool) -> Result<(), Invalid> {
        for (key, value) in [
            ("bus.topics_max", self.topics_max),
            ("bus.consumers_per_topic_max", self.consumers_per_topic_max),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        for topic in &self.topics {
            check_name(topic).map_err(|error| Invalid::new("bus.topics", error.to_string()))?;
        }
        if nats_is_needed || self.kind == BusKind::Nats {
            self.nats.check()?;
        }
        Ok(())
    }

    /// Settings of the log.
    pub fn settings(&self) -> EmbeddedBusSettings {
        EmbeddedBusSettings {
            topics_max: self.topics_max,
            consumers_per_topic_max: self.consumers_per_topic_max,
            topic_bytes_max: self.topic_bytes_max.as_bytes(),
            retention_ms: self.retention.as_millis(),
            ids_kept_max: self.ids_kept_max,
            deliveries_max: self.deliveries_max,
        }
    }

    /// What of it the chat domain has to know.
    pub(super) fn apply(&self, chat: &mut ChatSettings) {
        chat.report_topics.clone_from(&self.topics);
        chat.consumers_waiting_max = self.consumers_waiting_max;
    }
}
