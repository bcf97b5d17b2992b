//! Apple Push Notification service over HTTP/2 with provider tokens (JWT, ES256).
//!
//! One token is used for all requests and made anew after 50 minutes: APNs refuses one that is older
//! than an hour, and whoever makes them more often than every 20 minutes. One that APNs calls expired
//! is made anew at once, because then the clocks differ, but at most once a minute.

use std::{
    fs, io,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::StatusCode;
use serde_json::json;

use super::{Client, Delivery, Note, ProviderKind, PushProvider, client};

/// When a token is made anew, in seconds.
const TOKEN_AGE_MAX_S: u64 = 50 * 60;

/// How young a token may be that is made anew because APNs called it expired, in seconds.
const FORCED_AGE_MIN_S: u64 = 60;

/// Who sends to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApnsSettings {
    /// `https://api.push.apple.com`, or that of the sandbox.
    pub endpoint: String,
    /// The team, which issues the tokens.
    pub team_id: String,
    /// The key's id.
    pub key_id: String,
    /// The bundle id of the app, where a device has registered none.
    pub topic: String,
}

/// See the module.
pub struct Apns {
    client: Client,
    settings: ApnsSettings,
    key: EncodingKey,
    token: Mutex<Option<ProviderToken>>,
}

#[derive(Clone)]
struct ProviderToken {
    made_at_s: u64,
    text: String,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Apns {
    /// `key_file` is the `.p8` file of the key (PKCS#8, PEM).
    ///
    /// # Errors
    /// The file cannot be read, or holds no such key.
    pub fn new(client: Client, settings: ApnsSettings, key_file: &Path) -> io::Result<Self> {
        let shown = key_file.display();
        let pem = fs::read(key_file)
            .map_err(|error| io::Error::new(error.kind(), format!("{shown}: {error}")))?;
        let key = EncodingKey::from_ec_pem(&pem)
            .map_err(|error| io::Error::other(format!("{shown}: no P-256 key: {error}")))?;
        let apns = Self { client, settings, key, token: Mutex::new(None) };
        // A key that cannot sign shows now, and not with the first message that somebody misses.
        apns.token(now_s(), None).map_err(|error| io::Error::other(format!("{shown}: {error}")))?;
        Ok(apns)
    }

    /// The token to show at `now_s`; one that is not `refused`, if it may be made anew.
    fn token(&self, now_s: u64, refused: Option<&str>) -> Result<String, String> {
        let mut kept = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = &*kept {
            let age_s = now_s.saturating_sub(token.made_at_s);
            let forced = refused == Some(&*token.text) && age_s >= FORCED_AGE_MIN_S;
            if age_s < TOKEN_AGE_MAX_S && now_s >= token.made_at_s && !forced {
                return Ok(token.text.clone());
            }
        }
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.settings.key_id.clone());
        let claims = json!({ "iss": self.settings.team_id, "iat": now_s });
        let text = jsonwebtoken::encode(&header, &claims, &self.key)
            .map_err(|error| format!("the provider token cannot be signed: {error}"))?;
        *kept = Some(ProviderToken { made_at_s: now_s, text: text.clone() });
        Ok(text)
    }

    async fn once(&self, note: &Note, token: &str) -> Result<client::Answer, Delivery> {
        let url = format!("{}/3/device/{}", self.settings.endpoint, note.token);
        let topic = if note.app_id.is_empty() { &self.settings.topic } else { &note.app_id };
        let body = json!({
            "aps": {
                "alert": { "title": note.title, "body": note.body },
                "badge": note.badge,
                "sound": "default",
                "thread-id": note.collapse_id,
            },
            "conversation_id": note.conversation_id,
            "sequence": note.sequence,
            "sender_id": note.sender_id,
        });
        let request = self
            .client
            .inner
            .post(url)
            .bearer_auth(token)
            .header("apns-topic", topic)
            .header("apns-push-type", "alert")
            .header("apns-priority", "10")
            .header("apns-expiration", note.expires_at_s.to_string())
            .header("apns-collapse-id", &note.collapse_id)
            .json(&body);
        client::send(request).await
    }
}

#[async_trait]
impl PushProvider for Apns {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Apns
    }

    async fn push(&self, note: &Note) -> Delivery {
        // It becomes a part of the path.
        if note.token.is_empty() || !note.token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Delivery::Gone(None);
        }
        let mut token = match self.token(now_s(), None) {
            Ok(token) => token,
            Err(reason) => return Delivery::Later(reason, None),
        };
        for attempt in 0..2 {
            let answer = match self.once(note, &token).await {
                Ok(answer) => answer,
                Err(failed) => return failed,
            };
            if answer.status == StatusCode::OK {
                return Delivery::Taken;
            }
            let answered = answer.json();
            let reason = answered["reason"].as_str().unwrap_or_default();
            match (answer.status, reason) {
                (StatusCode::GONE, _) => return Delivery::Gone(answered["timestamp"].as_i64()),
                (StatusCode::BAD_REQUEST, "BadDeviceToken" | "DeviceTokenNotForTopic") => {
                    return Delivery::Gone(None);
                }
                (StatusCode::FORBIDDEN, "ExpiredProviderToken") if attempt == 0 => {
                    match self.token(now_s(), Some(&token)) {
                        Ok(newer) if newer != token => token = newer,
                        // It is young: the clocks differ by more than a new token mends.
                        _ => return Delivery::Later(reason.to_owned(), None),
                    }
                }
                _ => return answer.otherwise(reason),
            }
        }
        Delivery::Later("two provider tokens were refused".to_owned(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::ClientSettings;

    const KEY: &[u8] = include_bytes!("../../tests/keys/apns.p8");

    #[test]
    fn a_token_is_kept_for_fifty_minutes_and_forced_at_most_once_a_minute() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("key.p8");
        fs::write(&file, KEY).expect("written");
        let settings = ApnsSettings {
            endpoint: "https://127.0.0.1:1".into(),
            team_id: "TEAM".into(),
            key_id: "KEY".into(),
            topic: "app".into(),
        };
        let client = Client::new(&ClientSettings::default()).expect("a client");
        let apns = Apns::new(client, settings, &file).expect("a key");
        *apns.token.lock().expect("no panic") = None;
        let first = apns.token(1_000_000, None).expect("signed");
        assert_eq!(apns.token(1_000_000 + 2_999, None).expect("signed"), first);
        assert_eq!(apns.token(1_000_059, Some(&first)).expect("signed"), first, "too young");
        let second = apns.token(1_000_060, Some(&first)).expect("signed");
        assert_ne!(second, first);
        // Who was refused with the older one finds the newer one, and makes none.
        assert_eq!(apns.token(1_000_200, Some(&first)).expect("signed"), second);
        let third = apns.token(1_000_060 + 3_000, None).expect("signed");
        assert_ne!(third, second);
        assert_ne!(apns.token(1_000, None).expect("signed"), third, "a clock that was put back");
    }
}
