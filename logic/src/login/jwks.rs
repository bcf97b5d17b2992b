//! Tokens signed with a key that a URL publishes as a JSON Web Key Set (RFC 7517), as an SSO does.
//!
//! The set is kept and used while it is fresh; an old one is fetched again in the background, so no
//! login waits for that. A token that names a key (`kid`) not in the set makes it be fetched at
//! once, but at most every [`JwksSettings::refetch_interval_min`], whatever clients send. While the
//! URL is away the set that is there goes on being used, up to [`JwksSettings::stale_max`].

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jsonwebtoken::Algorithm;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    ClaimRules, FetchError, TokenVerifier, Verified, VerifyError, claims, fetch,
    keys::{self, KEYS_MAX, VerifyingKey},
};

/// How a [`JwksVerifier`] gets its keys.
#[derive(Clone, Debug)]
pub struct JwksSettings {
    /// Where the set is.
    pub url: String,
    /// After this the set is fetched again, at the next login.
    pub refresh_interval: Duration,
    /// The least time between two fetches, whatever the reason.
    pub refetch_interval_min: Duration,
    /// How long a set is used after it was fetched, if it cannot be fetched again. After it:
    /// logins are answered `logic_unavailable`.
    pub stale_max: Duration,
    /// How long a fetch may take.
    pub timeout: Duration,
    /// Largest set, in bytes; a larger one counts as unreachable.
    pub body_bytes_max: usize,
}

impl Default for JwksSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            refresh_interval: Duration::from_secs(600),
            refetch_interval_min: Duration::from_secs(30),
            stale_max: Duration::from_secs(24 * 3_600),
            timeout: Duration::from_secs(5),
            body_bytes_max: 256 * 1024,
        }
    }
}

/// Verifies tokens with the keys of a URL.
pub struct JwksVerifier {
    inner: Arc<Inner>,
}

struct Inner {
    settings: JwksSettings,
    rules: ClaimRules,
    client: Client,
    known: Mutex<Known>,
    /// Held while a fetch is under way, so that there is one at a time.
    fetching: tokio::sync::Mutex<()>,
}

/// What was fetched, and how that went.
#[derive(Clone, Default)]
struct Known {
    keys: Arc<[VerifyingKey]>,
    fetched_at: Option<Instant>,
    attempted_at: Option<Instant>,
    failure: Option<String>,
}

/// What a token's header says about its key.
struct Wanted {
    id: Option<String>,
    algorithm: Algorithm,
}

impl JwksVerifier {
    /// Fetches nothing yet: the first login does.
    ///
    /// # Errors
    /// A URL that is none, or a client that cannot be made.
    pub fn new(settings: JwksSettings, rules: ClaimRules) -> Result<Self, FetchError> {
        fetch::check_url(&settings.url)?;
        let client = fetch::client(settings.timeout)?;
        let (known, fetching) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self { inner: Arc::new(Inner { settings, rules, client, known, fetching }) })
    }
}

#[async_trait]
impl TokenVerifier for JwksVerifier {
    async fn verify(&self, token: &str) -> Result<Verified, VerifyError> {
        claims::check_length(token)?;
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| VerifyError::BadToken("it is not a JWT that can be read".to_owned()))?;
        let wanted = Wanted { id: header.kid, algorithm: header.alg };
        let known = Inner::known_for(&self.inner, &wanted).await?;
        let key = known.find(&wanted).ok_or_else(|| match (&wanted.id, &known.failure) {
            // The key may be there, where nobody can look just now.
            (Some(_), Some(failure)) => unavailable(failure),
            (Some(_), None) => VerifyError::BadToken("its key (kid) is not known".to_owned()),
            (None, _) => VerifyError::BadToken("it does not name its key (kid)".to_owned()),
        })?;
        claims::verify(token, &key.key, &key.validation)
    }
}

impl Known {
    /// The key of a token. One that names none is good if there is only one it can be.
    fn find(&self, wanted: &Wanted) -> Option<&VerifyingKey> {
        if let Some(id) = &wanted.id {
            return self.keys.iter().find(|key| key.id.as_ref() == Some(id));
        }
        let mut fitting = self.keys.iter().filter(|key| key.algorithm() == wanted.algorithm);
        fitting.next().filter(|_| fitting.next().is_none())
    }

    fn is_older_than(&self, age: Duration) -> bool {
        self.fetched_at.is_none_or(|at| at.elapsed() >= age)
    }

    fn may_fetch(&self, settings: &JwksSettings) -> bool {
        self.attempted_at.is_none_or(|at| at.elapsed() >= settings.refetch_interval_min)
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys to look into for a token, fetched if they have to be.
    async fn known_for(this: &Arc<Self>, wanted: &Wanted) -> Result<Known, VerifyError> {
        let settings = &this.settings;
        let mut known = this.known().clone();
        let usable = |known: &Known| !known.is_older_than(settings.stale_max);
        if !usable(&known) || (wanted.id.is_some() && known.find(wanted).is_none()) {
            this.fetch_if_due().await;
            known = this.known().clone();
        } else if known.is_older_than(settings.refresh_interval) && known.may_fetch(settings) {
            let this = Arc::clone(this);
            tokio::spawn(async move { this.fetch_if_due().await });
        }
        if usable(&known) {
            return Ok(known);
        }
        Err(unavailable(known.failure.as_deref().unwrap_or("the keys are too old")))
    }

    /// Fetches the set, unless that was tried just now. Whoever comes while a fetch is under way
    /// waits for it and does not begin another.
    async fn fetch_if_due(&self) {
        let _turn = self.fetching.lock().await;
        if !self.known().may_fetch(&self.settings) {
            return;
        }
        self.known().attempted_at = Some(Instant::now());
        let fetched = self.fetch().await;
        let mut known = self.known();
        match fetched {
            Ok(keys) => {
                tracing::info!(url = self.settings.url, keys = keys.len(), "the key set was read");
                *known = Known {
                    keys: keys.into(),
                    fetched_at: Some(Instant::now()),
                    attempted_at: known.attempted_at,
                    failure: None,
                };
            }
            Err(error) => {
                tracing::warn!(url = self.settings.url, %error, "the key set was not read");
                known.failure = Some(format!("the key set cannot be read: {error}"));
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<VerifyingKey>, FetchError> {
        let response = self.client.get(&self.settings.url).send().await;
        let response = response.map_err(|error| fetch::unreachable(&error))?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let body = fetch::body(response, self.settings.body_bytes_max).await?;
        let set: Value = serde_json::from_slice(&body)
            .map_err(|error| FetchError::Malformed(error.to_string()))?;
        let Some(keys) = set.get("keys").and_then(Value::as_array) else {
            return Err(FetchError::Malformed("there is no list named keys".to_owned()));
        };
        let keys: Vec<_> =
            keys.iter().filter_map(|key| keys::from_jwk(key, &self.rules)).take(KEYS_MAX).collect();
        if keys.is_empty() {
            // A set without a key would shut everybody out; the one before is better than that.
            return Err(FetchError::Malformed("no key of it verifies tokens".to_owned()));
        }
        Ok(keys)
    }
}

/// What a client reads names no URL; the log does.
fn unavailable(failure: &str) -> VerifyError {
    tracing::debug!(failure, "a token cannot be checked");
    VerifyError::Unavailable("the keys they are signed with cannot be read".to_owned())
}

#[cfg(test)]
mod tests;
