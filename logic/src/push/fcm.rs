//! Firebase Cloud Messaging, HTTP v1, as a service account: a JWT (RS256) is exchanged for an access
//! token (RFC 7523), which is kept until a minute before its end.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::Instant};

use super::{Client, Delivery, Note, ProviderKind, PushProvider, client};

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

/// How long an assertion is good, and an access token if the answer does not say, in seconds.
const ASSERTION_S: u64 = 3_600;

/// How long before its end an access token is no longer used.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);

/// Where FCM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FcmSettings {
    /// `https://fcm.googleapis.com`.
    pub endpoint: String,
}

/// The file that the console gives for a service account; what else is in it does not matter here.
#[derive(Deserialize)]
struct ServiceAccount {
    project_id: String,
    client_email: String,
    private_key: String,
    private_key_id: Option<String>,
    token_uri: String,
}

/// See the module.
pub struct Fcm {
    client: Client,
    settings: FcmSettings,
    account: ServiceAccount,
    key: EncodingKey,
    /// Held while a token is fetched, so that one fetches for all.
    token: Mutex<Option<AccessToken>>,
}

#[derive(Clone)]
struct AccessToken {
    text: String,
    until: Instant,
}

impl Fcm {
    /// `account_file` is the service account's JSON file.
    ///
    /// # Errors
    /// The file cannot be read, or is not one.
    pub fn new(client: Client, settings: FcmSettings, account_file: &Path) -> io::Result<Self> {
        let shown = account_file.display();
        let text = fs::read(account_file)
            .map_err(|error| io::Error::new(error.kind(), format!("{shown}: {error}")))?;
        let account: ServiceAccount = serde_json::from_slice(&text)
            .map_err(|error| io::Error::other(format!("{shown}: no service account: {error}")))?;
        let key = EncodingKey::from_rsa_pem(account.private_key.as_bytes())
            .map_err(|error| io::Error::other(format!("{shown}: no RSA key: {error}")))?;
        Ok(Self { client, settings, account, key, token: Mutex::new(None) })
    }

    /// The access token; a newer one than `refused`.
    async fn token(&self, refused: Option<&str>) -> Result<String, Delivery> {
        let mut kept = self.token.lock().await;
        if let Some(token) = &*kept
            && token.until > Instant::now()
            && refused != Some(&*token.text)
        {
            return Ok(token.text.clone());
        }
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |s| s.as_secs());
        let mut header = Header::new(Algorithm::RS256);
        header.kid.clone_from(&self.account.private_key_id);
        let claims = json!({
            "iss": self.account.client_email,
            "scope": SCOPE,
            "aud": self.account.token_uri,
            "iat": now_s,
            "exp": now_s + ASSERTION_S,
        });
        let assertion = jsonwebtoken::encode(&header, &claims, &self.key)
            .map_err(|error| Delivery::Later(format!("no assertion: {error}"), None))?;
        // A JWT is made of characters that a form takes as they are.
        let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
        let request = self
            .client
            .inner
            .post(&self.account.token_uri)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(format!("grant_type={grant}&assertion={assertion}"));
        let answer = client::send(request).await?;
        let answered = answer.json();
        let Some(text) = answered["access_token"].as_str().filter(|_| answer.status.is_success())
        else {
            let reason = answered["error"].as_str().unwrap_or("no access token");
            // Whatever it is, it is no fault of the note: a person has to mend the account.
            return Err(match answer.otherwise(&format!("token: {reason}")) {
                Delivery::Refused(reason) => Delivery::Later(reason, None),
                other => other,
            });
        };
        let lasts_s = answered["expires_in"].as_u64().unwrap_or(ASSERTION_S);
        let lasts = Duration::from_secs(lasts_s).saturating_sub(TOKEN_MARGIN);
        *kept = Some(AccessToken { text: text.to_owned(), until: Instant::now() + lasts });
        Ok(text.to_owned())
    }

    async fn once(&self, note: &Note, token: &str) -> Result<client::Answer, Delivery> {
        let project = &self.account.project_id;
        let url = format!("{}/v1/projects/{project}/messages:send", self.settings.endpoint);
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |s| s.as_secs());
        let ttl_s = note.expires_at_s.saturating_sub(now_s);
        let body = json!({
            "message": {
                "token": note.token,
                "notification": { "title": note.title, "body": note.body },
                "data": {
                    "conversation_id": note.conversation_id,
                    "sequence": note.sequence.to_string(),
                    "sender_id": note.sender_id,
                    "badge": note.badge.to_string(),
                },
                "android": {
                    "priority": "HIGH",
                    "collapse_key": note.collapse_id,
                    "ttl": format!("{ttl_s}s"),
                    "notification": {
                        "tag": note.collapse_id,
                        "notification_count": note.badge,
                    },
                },
            },
        });
        client::send(self.client.inner.post(url).bearer_auth(token).json(&body)).await
    }
}

/// The FCM error code in an answer, or else its status: `UNREGISTERED`, `QUOTA_EXCEEDED` …
fn code_of(answered: &Value) -> &str {
    let error = &answered["error"];
    let details = error["details"].as_array().map_or(&[][..], Vec::as_slice);
    let code = details.iter().find_map(|detail| detail["errorCode"].as_str());
    code.or(error["status"].as_str()).unwrap_or_default()
}

#[async_trait]
impl PushProvider for Fcm {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Fcm
    }

    async fn push(&self, note: &Note) -> Delivery {
        let mut refused = None;
        for attempt in 0..2 {
            let token = match self.token(refused.as_deref()).await {
                Ok(token) => token,
                Err(failed) => return failed,
            };
            let answer = match self.once(note, &token).await {
                Ok(answer) => answer,
                Err(failed) => return failed,
            };
            if answer.status.is_success() {
                return Delivery::Taken;
            }
            let answered = answer.json();
            match (answer.status, code_of(&answered)) {
                (_, "UNREGISTERED") | (StatusCode::FORBIDDEN, "SENDER_ID_MISMATCH") => {
                    return Delivery::Gone(None);
                }
                (StatusCode::UNAUTHORIZED, _) if attempt == 0 => refused = Some(token),
                (StatusCode::UNAUTHORIZED, code) => {
                    return Delivery::Later(format!("access refused: {code}"), None);
                }
                (_, code) => return answer.otherwise(code),
            }
        }
        Delivery::Later("two access tokens were refused".to_owned(), None)
    }
}
