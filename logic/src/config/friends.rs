//! `[friends]`: how many relations a user may have, and who may write to whom.

use millrace_service::Invalid;
use serde::{Deserialize, Serialize};

use crate::{
    accounts::{FriendsSettings, PolicySettings, SendPolicy},
    storage::relations::RelationLimits,
};

/// `[friends]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Friends {
    /// Who may write to a user in a single chat.
    pub send_policy: MayWrite,
    /// Who sees whether a user is online.
    pub presence_policy: MaySee,
    /// See [`PolicySettings::exempt_senders`].
    pub exempt_senders: Vec<String>,
    /// See [`PolicySettings::cached_relations_max`].
    pub cached_relations_max: usize,
    /// See [`FriendsSettings::registered_only`].
    pub registered_only: bool,
    /// See [`RelationLimits::friends_max`].
    pub friends_max: u64,
    /// See [`RelationLimits::incoming_max`].
    pub requests_incoming_max: u64,
    /// See [`RelationLimits::outgoing_max`].
    pub requests_outgoing_max: u64,
    /// See [`RelationLimits::blocks_max`].
    pub blocks_max: u64,
    /// See [`RelationLimits::ended_max`].
    pub ended_max: u64,
}

/// `friends.send_policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MayWrite {
    /// Everybody; blocks are not looked at.
    Everyone,
    /// Everybody who is not blocked.
    NotBlocked,
    /// Friends who are not blocked.
    Friends,
}

/// `friends.presence_policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaySee {
    /// Everybody.
    Everyone,
    /// Friends who are not blocked.
    Friends,
}

impl Default for Friends {
    fn default() -> Self {
        let policy = PolicySettings::default();
        let FriendsSettings { limits, registered_only } = FriendsSettings::default();
        Self {
            send_policy: match policy.send {
                SendPolicy::Everyone => MayWrite::Everyone,
                SendPolicy::NotBlocked => MayWrite::NotBlocked,
                SendPolicy::Friends => MayWrite::Friends,
            },
            presence_policy: MaySee::Everyone,
            exempt_senders: policy.exempt_senders,
            cached_relations_max: policy.cached_relations_max,
            registered_only,
            friends_max: limits.friends_max,
            requests_incoming_max: limits.incoming_max,
            requests_outgoing_max: limits.outgoing_max,
            blocks_max: limits.blocks_max,
            ended_max: limits.ended_max,
        }
    }
}

impl Friends {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        for (key, value) in [
            ("friends.friends_max", self.friends_max),
            ("friends.requests_incoming_max", self.requests_incoming_max),
            ("friends.requests_outgoing_max", self.requests_outgoing_max),
            ("friends.blocks_max", self.blocks_max),
            ("friends.ended_max", self.ended_max),
            ("friends.cached_relations_max", self.cached_relations_max as u64),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        Ok(())
    }

    /// Settings of the friends' service.
    pub(crate) fn settings(&self) -> FriendsSettings {
        FriendsSettings {
            limits: RelationLimits {
                friends_max: self.friends_max,
                incoming_max: self.requests_incoming_max,
                outgoing_max: self.requests_outgoing_max,
                blocks_max: self.blocks_max,
                ended_max: self.ended_max,
            },
            registered_only: self.registered_only,
        }
    }

    /// Settings of the policy.
    pub(crate) fn policy(&self) -> PolicySettings {
        PolicySettings {
            send: match self.send_policy {
                MayWrite::Everyone => SendPolicy::Everyone,
                MayWrite::NotBlocked => SendPolicy::NotBlocked,
                MayWrite::Friends => SendPolicy::Friends,
            },
            exempt_senders: self.exempt_senders.clone(),
            cached_relations_max: self.cached_relations_max,
        }
    }
}
