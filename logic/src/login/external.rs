//! Tokens that somebody else's service verifies: they are sent to a URL, which says whose they are.
//!
//! `POST` with `{"token": "…"}`. The service answers
//!
//! - 200 with `{"user_id": "…", "expires_at_ms": …, "issued_at_ms": …}`: the token is good, until
//!   then (0: for ever); `issued_at_ms` may be left out
//! - 401, 403 or 404, perhaps with `{"code": 6}` (it has expired) or `{"reason": "…"}`: it is not
//! - anything else: it cannot say at the moment; the login is answered `logic_unavailable`
//!
//! A good answer is kept for a while, under a hash of the token; a bad one never is.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use millrace_protocol::Code;
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, time::Instant};

use super::{FetchError, TokenVerifier, Verified, VerifyError, claims, fetch};
use crate::storage::limits::USER_ID_BYTES_MAX;

/// Largest answer, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// Longest reason of the service that a client is shown, in bytes.
const REASON_BYTES_MAX: usize = 200;

/// How an [`ExternalVerifier`] asks.
#[derive(Clone, Debug)]
pub struct ExternalVerifierSettings {
    /// Where to ask.
    pub url: String,
    /// Shown to the service as `Authorization: Bearer …`; empty: nothing is shown.
    pub authorization: String,
    /// How long an answer may take. After it: `logic_unavailable`.
    pub timeout: Duration,
    /// Questions under way at the same time. One more login is answered `logic_unavailable`.
    pub in_flight_max: usize,
    /// How long a good answer is kept; 0: every login asks. So long may a token that the service
    /// takes back still let somebody in.
    pub cache_time: Duration,
    /// Answers kept. Full: the oldest goes.
    pub cache_entries_max: usize,
}

impl Default for ExternalVerifierSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            authorization: String::new(),
            timeout: Duration::from_secs(5),
            in_flight_max: 256,
            cache_time: Duration::from_secs(30),
            cache_entries_max: 100_000,
        }
    }
}

/// Asks a service whose a token is.
pub struct ExternalVerifier {
    settings: ExternalVerifierSettings,
    client: Client,
    in_flight: Semaphore,
    cache: Mutex<Cache>,
}

type TokenHash = [u8; 32];

/// The answers kept, and their order: all are kept for the same time, so the oldest end first.
#[derive(Default)]
struct Cache {
    answers: HashMap<TokenHash, (Verified, Instant)>,
    order: VecDeque<TokenHash>,
}

#[derive(Serialize)]
struct Question<'a> {
    token: &'a str,
}

#[derive(Deserialize)]
struct Good {
    user_id: String,
    #[serde(default)]
    expires_at_ms: i64,
    #[serde(default)]
    issued_at_ms: Option<i64>,
}

#[derive(Default, Deserialize)]
struct Bad {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    reason: String,
}

impl ExternalVerifier {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// A URL that is none, or a client that cannot be made.
    pub fn new(settings: ExternalVerifierSettings) -> Result<Self, FetchError> {
        fetch::check_url(&settings.url)?;
        let client = fetch::client(settings.timeout)?;
        let in_flight = Semaphore::new(settings.in_flight_max.clamp(1, Semaphore::MAX_PERMITS));
        Ok(Self { settings, client, in_flight, cache: Mutex::default() })
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, token: &str) -> Result<Verified, VerifyError> {
        let Ok(_permit) = self.in_flight.try_acquire() else {
            return Err(VerifyError::Unavailable("too many are being checked".to_owned()));
        };
        let mut request = self.client.post(&self.settings.url).json(&Question { token });
        if !self.settings.authorization.is_empty() {
            request = request.bearer_auth(&self.settings.authorization);
        }
        let response = request.send().await.map_err(|error| failed(&fetch::unreachable(&error)))?;
        let status = response.status();
        let body = fetch::body(response, BODY_BYTES_MAX).await.map_err(|error| failed(&error))?;
        match status {
            StatusCode::OK => {
                let good: Good = serde_json::from_slice(&body)
                    .map_err(|error| failed(&FetchError::Malformed(error.to_string())))?;
                good.verified()
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                Err(serde_json::from_slice::<Bad>(&body).unwrap_or_default().refusal())
            }
            other => Err(failed(&FetchError::Status(other.as_u16()))),
        }
    }
}

#[async_trait]
impl TokenVerifier for ExternalVerifier {
    async fn verify(&self, token: &str) -> Result<Verified, VerifyError> {
        claims::check_length(token)?;
        let hash: TokenHash = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.cache().get(&hash) {
            return known.unexpired();
        }
        let verified = self.ask(token).await?.unexpired()?;
        if !self.settings.cache_time.is_zero() {
            self.cache().keep(hash, verified.clone(), &self.settings);
        }
        Ok(verified)
    }
}

impl Good {
    fn verified(self) -> Result<Verified, VerifyError> {
        if !(1..=USER_ID_BYTES_MAX).contains(&self.user_id.len()) {
            let wrong = format!("user_id must have 1 to {USER_ID_BYTES_MAX} bytes");
            return Err(failed(&FetchError::Malformed(wrong)));
        }
        Ok(Verified {
            user_id: self.user_id,
            expires_at_ms: self.expires_at_ms,
            issued_at_ms: self.issued_at_ms,
        })
    }
}

impl Bad {
    fn refusal(self) -> VerifyError {
        if self.code == Code::TokenExpired.number() {
            return VerifyError::Expired;
        }
        let mut reason = self.reason.trim().trim_end_matches('.').to_owned();
        while reason.len() > REASON_BYTES_MAX {
            reason.pop();
        }
        reason.retain(|c| !c.is_control());
        if reason.is_empty() {
            reason = "the service that knows refuses it".to_owned();
        }
        VerifyError::BadToken(reason)
    }
}

impl Cache {
    fn get(&mut self, hash: &TokenHash) -> Option<Verified> {
        self.forget(usize::MAX);
        self.answers.get(hash).map(|(verified, _)| verified.clone())
    }

    /// Makes room: what has ended goes, and the oldest until there are no more than `entries_max`.
    fn forget(&mut self, entries_max: usize) {
        let now = Instant::now();
        while let Some(oldest) = self.order.front() {
            let ends_at = self.answers.get(oldest).map(|(_, ends_at)| *ends_at);
            if self.answers.len() <= entries_max && ends_at.is_some_and(|ends_at| ends_at > now) {
                return;
            }
            self.answers.remove(oldest);
            self.order.pop_front();
        }
    }

    fn keep(&mut self, hash: TokenHash, verified: Verified, settings: &ExternalVerifierSettings) {
        let Some(room) = settings.cache_entries_max.checked_sub(1) else { return };
        self.forget(room);
        let ends_at = Instant::now() + settings.cache_time;
        // Asked twice at the same time: the first answer keeps its place in the order.
        if self.answers.insert(hash, (verified, ends_at)).is_none() {
            self.order.push_back(hash);
        }
    }
}

impl Verified {
    fn unexpired(self) -> Result<Self, VerifyError> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis());
        match self.expires_at_ms != 0 && i128::from(self.expires_at_ms) <= now_ms as i128 {
            true => Err(VerifyError::Expired),
            false => Ok(self),
        }
    }
}

/// What a client reads names no address; the log does.
fn failed(error: &FetchError) -> VerifyError {
    tracing::warn!(%error, "the service that verifies tokens failed");
    VerifyError::Unavailable("the service that knows them does not say".to_owned())
}

#[cfg(test)]
mod tests;
