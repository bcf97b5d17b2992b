//! The tokens that users get: a signed JWT for the gateway and the calls of users, and a refresh
//! token, which is random and means something only to the store.
//!
//! A JWT has `sub` (the user), `iat` (when, with milliseconds, so that "logout everywhere" can tell
//! tokens apart that were issued in the same second) and `exp` (seconds), and
//! `iss` and `aud` if the verifier wants them.

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use millrace_logic_sdk::Refused;
use millrace_protocol::{Code, api::Tokens};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::UsersSettings;

/// What signs the users' tokens.
pub enum SigningKey {
    /// Nothing: tokens are verified by other means, and issued elsewhere.
    None,
    /// A secret that the verifier knows, too (HS256).
    Secret(Vec<u8>),
    /// A private key in PEM (PKCS 8), whose public key the verifier knows.
    Pem {
        /// `EdDSA`, `ES256` or `RS256`.
        algorithm: Algorithm,
        /// The file's content.
        pem: Vec<u8>,
        /// The file, for messages.
        path: PathBuf,
        /// `kid` of the tokens' header; empty: none.
        key_id: String,
    },
}

/// Issues tokens.
pub(super) struct TokenIssuer {
    key: Option<EncodingKey>,
    header: Header,
    lifetime: Duration,
    issuer: String,
    audience: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: f64,
    exp: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    iss: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    aud: &'a str,
}

/// A refresh token: which login, and the secret that proves it.
pub(super) struct RefreshToken {
    pub login_id: [u8; 16],
    secret: [u8; 32],
}

impl TokenIssuer {
    pub(super) fn new(key: SigningKey, settings: &UsersSettings) -> Result<Self, String> {
        let (key, header) = match key {
            SigningKey::None => (None, Header::default()),
            SigningKey::Secret(secret) => {
                (Some(EncodingKey::from_secret(&secret)), Header::new(Algorithm::HS256))
            }
            SigningKey::Pem { algorithm, pem, path, key_id } => {
                let key = match algorithm {
                    Algorithm::EdDSA => EncodingKey::from_ed_pem(&pem),
                    Algorithm::ES256 => EncodingKey::from_ec_pem(&pem),
                    Algorithm::RS256 => EncodingKey::from_rsa_pem(&pem),
                    other => return Err(format!("{other:?} cannot sign tokens")),
                };
                let key = key.map_err(|error| {
                    format!("{} holds no {algorithm:?} key in PEM: {error}", path.display())
                })?;
                let kid = (!key_id.is_empty()).then_some(key_id);
                (Some(key), Header { kid, ..Header::new(algorithm) })
            }
        };
        Ok(Self {
            key,
            header,
            lifetime: settings.token_lifetime,
            issuer: settings.token_issuer.clone(),
            audience: settings.token_audience.clone(),
        })
    }

    /// A token for a user, and when it ends, in milliseconds since 1970.
    pub(super) fn issue(&self, user_id: &str, now_ms: i64) -> Result<(String, i64), Refused> {
        let Some(key) = &self.key else {
            let reason = "This server issues no tokens; users log in elsewhere.";
            return Err(Refused::new(Code::NotPermitted, reason));
        };
        let lifetime_ms = i64::try_from(self.lifetime.as_millis()).unwrap_or(i64::MAX);
        let exp = now_ms.saturating_add(lifetime_ms) / 1_000;
        let claims = Claims {
            sub: user_id,
            iat: now_ms as f64 / 1_000.0,
            exp,
            iss: &self.issuer,
            aud: &self.audience,
        };
        let token = jsonwebtoken::encode(&self.header, &claims, key).map_err(|error| {
            tracing::error!(%error, "a token was not signed");
            Refused::from(Code::Internal)
        })?;
        Ok((token, exp * 1_000))
    }
}

impl RefreshToken {
    /// A new one, of a login or of a new login.
    pub(super) fn new(login_id: Option<[u8; 16]>) -> Self {
        let random = || *Uuid::new_v4().as_bytes();
        let mut secret = [0; 32];
        // 122 random bits each, from the system's generator.
        secret[..16].copy_from_slice(&random());
        secret[16..].copy_from_slice(&random());
        Self { login_id: login_id.unwrap_or_else(random), secret }
    }

    /// What a client showed; `None` when no token of ours looks so.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 48] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (login_id, secret) = bytes.split_at(16);
        Some(Self { login_id: login_id.try_into().ok()?, secret: secret.try_into().ok()? })
    }

    /// What the client keeps.
    pub(super) fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode([&self.login_id[..], &self.secret].concat())
    }

    /// What the store keeps: who reads it there cannot log in with it.
    pub(super) fn secret_hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }
}

/// Both tokens as an answer.
pub(super) fn tokens(
    (token, expires_at_ms): (String, i64),
    refresh: &RefreshToken,
    refresh_expires_at_ms: i64,
) -> Tokens {
    Tokens { token, expires_at_ms, refresh_token: refresh.text(), refresh_expires_at_ms }
}

#[cfg(test)]
mod tests {
    use super::{RefreshToken, SigningKey, TokenIssuer, UsersSettings};
    use crate::login::{ClaimRules, Hs256Verifier, TokenVerifier as _};

    #[tokio::test]
    async fn a_token_is_good_at_the_verifier_with_the_same_secret() {
        let secret = b"a secret of at least thirty-two bytes";
        let settings = UsersSettings {
            token_issuer: "millrace".into(),
            token_audience: "chat".into(),
            ..UsersSettings::default()
        };
        let issuer = TokenIssuer::new(SigningKey::Secret(secret.to_vec()), &settings);
        let now_ms = crate::api::unix_ms();
        let rules = ClaimRules {
            issuer: "millrace".into(),
            audience: "chat".into(),
            ..ClaimRules::default()
        };
        let (token, expires_at_ms) = issuer.unwrap().issue("alice", now_ms).unwrap();
        let verified = Hs256Verifier::new(secret, &rules).unwrap().verify(&token).await.unwrap();
        assert_eq!((&*verified.user_id, verified.expires_at_ms), ("alice", expires_at_ms));
        assert!((now_ms + 3_599_000..=now_ms + 3_600_000).contains(&expires_at_ms));
    }

    #[test]
    fn refresh_tokens_round_trip_and_differ() {
        let token = RefreshToken::new(None);
        let parsed = RefreshToken::parse(&token.text()).unwrap();
        assert_eq!(parsed.login_id, token.login_id);
        assert_eq!(parsed.secret_hash(), token.secret_hash());
        let next = RefreshToken::new(Some(token.login_id));
        assert_eq!(next.login_id, token.login_id);
        assert_ne!(next.secret_hash(), token.secret_hash());
        for text in ["", "x", "\u{e4}", &token.text()[1..], &format!("{}A", token.text())] {
            assert!(RefreshToken::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_file_that_holds_no_key_is_refused_with_its_name() {
        let key = SigningKey::Pem {
            algorithm: jsonwebtoken::Algorithm::EdDSA,
            pem: b"nothing".to_vec(),
            path: "/etc/key.pem".into(),
            key_id: String::new(),
        };
        let refused = TokenIssuer::new(key, &UsersSettings::default()).err().unwrap();
        assert!(refused.contains("/etc/key.pem"), "{refused}");
    }
}
