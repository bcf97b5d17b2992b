//! How devices that are offline are reached: the trait [`PushProvider`] with APNs, FCM and a webhook
//! behind it, and the trait [`TokenStore`], which knows where each device can be reached.
//!
//! A provider sends one note to one device and says how that went; whom to send what, when to try
//! again and when to give up is the business of the chat domain.

use std::time::Duration;

use async_trait::async_trait;

mod apns;
mod client;
mod fcm;
mod tokens;
mod webhook;

pub use apns::{Apns, ApnsSettings};
pub use client::{Client, ClientSettings};
pub use fcm::{Fcm, FcmSettings};
pub use tokens::{
    APP_ID_BYTES_MAX, DEVICE_ID_BYTES_MAX, TOKEN_BYTES_MAX, Token, TokenStore, TokenTable,
};
pub use webhook::{Webhook, WebhookSettings};

/// Which provider reaches a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProviderKind {
    /// Apple Push Notification service.
    Apns = 1,
    /// Firebase Cloud Messaging, HTTP v1.
    Fcm = 2,
    /// A service of one's own.
    Webhook = 3,
}

impl ProviderKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Apns, Self::Fcm, Self::Webhook];

    /// The word for it, in requests, files and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Apns => "apns",
            Self::Fcm => "fcm",
            Self::Webhook => "webhook",
        }
    }

    /// The provider behind a word.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.label() == label)
    }
}

/// What one device shall show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Whose device it is.
    pub user_id: String,
    /// Which one.
    pub device_id: String,
    /// Where the provider reaches it.
    pub token: String,
    /// As registered; may be empty.
    pub app_id: String,
    /// First line.
    pub title: String,
    /// Second line.
    pub body: String,
    /// Unread messages of all conversations that may disturb.
    pub badge: u64,
    /// The same for all notes of a conversation of a user; at most 64 bytes, of `0-9 a-f`.
    pub collapse_id: String,
    /// The conversation.
    pub conversation_id: String,
    /// The newest message in it.
    pub sequence: u64,
    /// Its sender.
    pub sender_id: String,
    /// When a provider may give up, seconds since 1970.
    pub expires_at_s: u64,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The provider has taken it.
    Taken,
    /// The token reaches nothing any more, as of this time in milliseconds since 1970 if the provider
    /// says.
    Gone(Option<i64>),
    /// Not now; perhaps after a while, which the provider may state.
    Later(String, Option<Duration>),
    /// Never like this.
    Refused(String),
}

/// Sends notes.
#[async_trait]
pub trait PushProvider: Send + Sync + 'static {
    /// Which one it is.
    fn kind(&self) -> ProviderKind;

    /// Sends one note, once. Never panics and never waits longer than the client's timeouts.
    async fn push(&self, note: &Note) -> Delivery;
}
