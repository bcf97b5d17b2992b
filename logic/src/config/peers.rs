//! `[peers]`: what the logic processes of a fleet tell each other.

use millrace_service::{ByteSize, Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::chat::{ChatSettings, PeerSettings};

/// How events travel between processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeersKind {
    /// Not at all: this process is alone.
    #[default]
    None,
    /// Over core NATS, at the servers of `[bus.nats]`.
    Nats,
}

/// `[peers]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Peers {
    /// How events travel.
    pub kind: PeersKind,
    /// See [`PeerSettings::hold_max`].
    pub hold_max: Duration,
    /// See [`PeerSettings::held_messages_max`].
    pub held_messages_max: usize,
    /// See [`PeerSettings::conversations_max`].
    pub conversations_max: usize,
    /// See [`PeerSettings::heard_queued_max`].
    pub heard_queued_max: usize,
    /// See [`PeerSettings::event_bytes_max`].
    pub event_bytes_max: ByteSize,
    /// See [`PeerSettings::room_counts_max`].
    pub room_counts_max: usize,
}

impl Default for Peers {
    fn default() -> Self {
        let settings = PeerSettings::default();
        Self {
            kind: PeersKind::default(),
            hold_max: Duration::from_millis(settings.hold_max.as_millis() as u64),
            held_messages_max: settings.held_messages_max,
            conversations_max: settings.conversations_max,
            heard_queued_max: settings.heard_queued_max,
            event_bytes_max: ByteSize::from_bytes(settings.event_bytes_max as u64),
            room_counts_max: settings.room_counts_max,
        }
    }
}

impl Peers {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.kind == PeersKind::Nats && !cfg!(feature = "nats") {
            let reason = "this program was built without NATS (the cargo feature \"nats\")";
            return Err(Invalid::new("peers.kind", reason));
        }
        for (key, value) in [
            ("peers.held_messages_max", self.held_messages_max),
            ("peers.conversations_max", self.conversations_max),
            ("peers.heard_queued_max", self.heard_queued_max),
            ("peers.room_counts_max", self.room_counts_max),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        // Core NATS carries an event of 256 KiB here.
        if !(4 << 10..=240 << 10).contains(&self.event_bytes_max.as_bytes()) {
            return Err(Invalid::new("peers.event_bytes_max", "must be from 4KiB to 240KiB"));
        }
        Ok(())
    }

    pub(super) fn apply(&self, chat: &mut ChatSettings) {
        chat.peers = PeerSettings {
            hold_max: self.hold_max.as_std(),
            held_messages_max: self.held_messages_max,
            conversations_max: self.conversations_max,
            heard_queued_max: self.heard_queued_max,
            event_bytes_max: self.event_bytes_max.as_usize(),
            room_counts_max: self.room_counts_max,
        };
    }
}
