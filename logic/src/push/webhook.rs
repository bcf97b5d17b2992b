//! A service of one's own: each note is posted to it as JSON, signed with a shared secret.
//!
//! `X-Millrace-Signature: t=<milliseconds since 1970>,v1=<hex of HMAC-SHA256(secret, t + "." + body)>`.
//! The service checks the signature and that the time is near, and answers 2xx; 410 says that the
//! token reaches nothing any more; 408, 429 and 5xx ask for another attempt.

use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use hmac::{Hmac, Mac as _};
use reqwest::{StatusCode, header};
use serde_json::json;
use sha2::Sha256;

use super::{Client, Delivery, Note, ProviderKind, PushProvider, client};

/// Where the service is.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    /// The URL that is posted to.
    pub url: String,
    /// What signs.
    pub secret: String,
}

/// See the module.
pub struct Webhook {
    client: Client,
    settings: WebhookSettings,
}

impl Webhook {
    /// Makes one.
    pub fn new(client: Client, settings: WebhookSettings) -> Self {
        Self { client, settings }
    }

    fn signature(&self, time_ms: u64, body: &[u8]) -> String {
        let mut hmac = Hmac::<Sha256>::new_from_slice(self.settings.secret.as_bytes())
            .expect("HMAC takes a key of any length");
        hmac.update(format!("{time_ms}.").as_bytes());
        hmac.update(body);
        let hex = |byte: &u8| format!("{byte:02x}");
        let signature: String = hmac.finalize().into_bytes().iter().map(hex).collect();
        format!("t={time_ms},v1={signature}")
    }
}

#[async_trait]
impl PushProvider for Webhook {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Webhook
    }

    async fn push(&self, note: &Note) -> Delivery {
        let body = json!({
            "user_id": note.user_id,
            "device_id": note.device_id,
            "token": note.token,
            "app_id": note.app_id,
            "title": note.title,
            "body": note.body,
            "badge": note.badge,
            "collapse_id": note.collapse_id,
            "conversation_id": note.conversation_id,
            "sequence": note.sequence.to_string(),
            "sender_id": note.sender_id,
        });
        let body = body.to_string().into_bytes();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let signature = self.signature(now.as_millis() as u64, &body);
        let request = self
            .client
            .inner
            .post(&self.settings.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-millrace-signature", signature)
            .body(body);
        match client::send(request).await {
            Ok(answer) if answer.status.is_success() => Delivery::Taken,
            Ok(answer) if answer.status == StatusCode::GONE => Delivery::Gone(None),
            Ok(answer) => answer.otherwise("the webhook"),
            Err(failed) => failed,
        }
    }
}
