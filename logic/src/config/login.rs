//! `[login]`: whose token it is, and how that is found out.

use std::{fmt, path::PathBuf};

use millrace_service::{Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::login::{ClaimRules, ExternalVerifierSettings, JwksSettings};

/// `[login]`
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Login {
    /// How tokens are verified.
    pub method: LoginMethod,
    /// The HS256 secret that signs the clients' tokens.
    pub jwt_secret: String,
    /// A file that holds it instead.
    pub jwt_secret_file: PathBuf,
    /// A PEM file with the public keys that tokens are verified with.
    pub public_key_file: PathBuf,
    /// For how long it is remembered that a user has logged out everywhere: at least as long as a
    /// token lives.
    pub revocations_kept: Duration,
    /// How long after `exp` a token is still good, for clocks that differ.
    pub leeway: Duration,
    /// What `iss` must be; empty: it is not looked at.
    pub issuer: String,
    /// What `aud` must be or hold; empty: it is not looked at.
    pub audience: String,
    /// The key set of a URL.
    pub jwks: Jwks,
    /// A service that verifies tokens.
    pub http: LoginHttp,
}

/// `login.method`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginMethod {
    /// JWT, HS256, with `jwt_secret`.
    #[default]
    Secret,
    /// JWT, with the keys of `public_key_file`.
    PublicKey,
    /// JWT, with the keys of `jwks.url`.
    Jwks,
    /// Any token, verified by `http.url`.
    Http,
}

/// `[login.jwks]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jwks {
    /// Where the key set is.
    pub url: String,
    /// See [`JwksSettings::refresh_interval`].
    pub refresh_interval: Duration,
    /// See [`JwksSettings::refetch_interval_min`].
    pub refetch_interval_min: Duration,
    /// See [`JwksSettings::stale_max`].
    pub stale_max: Duration,
    /// See [`JwksSettings::timeout`].
    pub timeout: Duration,
}

/// `[login.http]`
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoginHttp {
    /// Where to ask.
    pub url: String,
    /// What the service is shown as `Authorization: Bearer …`.
    pub token: String,
    /// A file that holds it instead.
    pub token_file: PathBuf,
    /// See [`ExternalVerifierSettings::timeout`].
    pub timeout: Duration,
    /// See [`ExternalVerifierSettings::in_flight_max`].
    pub in_flight_max: usize,
    /// See [`ExternalVerifierSettings::cache_time`].
    pub cache_time: Duration,
    /// See [`ExternalVerifierSettings::cache_entries_max`].
    pub cache_entries_max: usize,
}

impl Default for Login {
    fn default() -> Self {
        Self {
            method: LoginMethod::default(),
            jwt_secret: String::new(),
            jwt_secret_file: PathBuf::new(),
            public_key_file: PathBuf::new(),
            revocations_kept: Duration::from_secs(90 * 86_400),
            leeway: Duration::default(),
            issuer: String::new(),
            audience: String::new(),
            jwks: Jwks::default(),
            http: LoginHttp::default(),
        }
    }
}

impl Default for Jwks {
    fn default() -> Self {
        let jwks = JwksSettings::default();
        Self {
            url: jwks.url,
            refresh_interval: duration(jwks.refresh_interval),
            refetch_interval_min: duration(jwks.refetch_interval_min),
            stale_max: duration(jwks.stale_max),
            timeout: duration(jwks.timeout),
        }
    }
}

impl Default for LoginHttp {
    fn default() -> Self {
        let http = ExternalVerifierSettings::default();
        Self {
            url: http.url,
            token: String::new(),
            token_file: PathBuf::new(),
            timeout: duration(http.timeout),
            in_flight_max: http.in_flight_max,
            cache_time: duration(http.cache_time),
            cache_entries_max: http.cache_entries_max,
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("method", &self.method)
            .field("jwt_secret_file", &self.jwt_secret_file)
            .field("public_key_file", &self.public_key_file)
            .field("revocations_kept", &self.revocations_kept)
            .field("leeway", &self.leeway)
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .field("jwks", &self.jwks)
            .field("http", &self.http)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for LoginHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginHttp").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Login {
    /// Whether the values make sense together. What the files hold is looked at when they are used.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let needs = |key: &str, is_empty: bool| match is_empty {
            true => Err(Invalid::new(key, "login.method needs it")),
            false => Ok(()),
        };
        match self.method {
            LoginMethod::Secret => {}
            LoginMethod::PublicKey => {
                needs("login.public_key_file", self.public_key_file.as_os_str().is_empty())?;
            }
            LoginMethod::Jwks => needs("login.jwks.url", self.jwks.url.is_empty())?,
            LoginMethod::Http => needs("login.http.url", self.http.url.is_empty())?,
        }
        for (key, value) in [
            ("login.jwks.timeout", self.jwks.timeout),
            ("login.jwks.stale_max", self.jwks.stale_max),
            ("login.http.timeout", self.http.timeout),
            ("login.revocations_kept", self.revocations_kept),
        ] {
            if value.as_millis() == 0 {
                return Err(Invalid::new(key, "must be at least 1ms"));
            }
        }
        match self.http.in_flight_max {
            0 => Err(Invalid::new("login.http.in_flight_max", "must be at least 1")),
            _ => Ok(()),
        }
    }

    /// What is asked of a JWT beside its signature.
    pub fn rules(&self) -> ClaimRules {
        ClaimRules {
            leeway_s: self.leeway.as_millis() / 1_000,
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
        }
    }

    /// Settings of the key set's reader.
    pub fn jwks_settings(&self) -> JwksSettings {
        JwksSettings {
            url: self.jwks.url.clone(),
            refresh_interval: self.jwks.refresh_interval.as_std(),
            refetch_interval_min: self.jwks.refetch_interval_min.as_std(),
            stale_max: self.jwks.stale_max.as_std(),
            timeout: self.jwks.timeout.as_std(),
            ..JwksSettings::default()
        }
    }

    /// Settings of the service that verifies tokens; `authorization` is the resolved secret.
    pub fn http_settings(&self, authorization: String) -> ExternalVerifierSettings {
        ExternalVerifierSettings {
            url: self.http.url.clone(),
            authorization,
            timeout: self.http.timeout.as_std(),
            in_flight_max: self.http.in_flight_max,
            cache_time: self.http.cache_time.as_std(),
            cache_entries_max: self.http.cache_entries_max,
        }
    }
}

fn duration(value: std::time::Duration) -> Duration {
    Duration::from_millis(value.as_millis() as u64)
}
