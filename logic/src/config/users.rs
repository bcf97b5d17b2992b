//! `[users]`: users with a password, and the bounds on what users call.

use std::{fs, path::PathBuf};

use jsonwebtoken::Algorithm;
use millrace_service::{ByteSize, Duration, Invalid};
use serde::{Deserialize, Serialize};

use super::{Login, LoginMethod};
use crate::{
    accounts::{Pace, SigningKey, UsersSettings},
    api::CallerLimits,
};

/// `[users]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Users {
    /// Whether anybody may register.
    pub registration: Registration,
    /// See [`UsersSettings::token_lifetime`].
    pub token_lifetime: Duration,
    /// See [`UsersSettings::refresh_lifetime`].
    pub refresh_lifetime: Duration,
    /// See [`UsersSettings::refresh_grace`].
    pub refresh_grace: Duration,
    /// See [`UsersSettings::logins_per_user_max`].
    pub logins_per_user_max: usize,
    /// A private key in PEM that signs users' tokens; empty: `login.jwt_secret` does.
    pub signing_key_file: PathBuf,
    /// The algorithm of that key.
    pub signing_algorithm: SigningAlgorithm,
    /// `kid` of the tokens' header.
    pub signing_key_id: String,
    /// See [`UsersSettings::password_bytes_min`].
    pub password_bytes_min: usize,
    /// See [`UsersSettings::argon2_memory_kib`].
    pub argon2_memory: ByteSize,
    /// See [`UsersSettings::argon2_iterations`].
    pub argon2_iterations: u32,
    /// See [`UsersSettings::argon2_lanes`].
    pub argon2_lanes: u32,
    /// See [`UsersSettings::hashes_in_flight_max`].
    pub hashes_in_flight_max: usize,
    /// See [`UsersSettings::hashes_waiting_max`].
    pub hashes_waiting_max: usize,
    /// See [`UsersSettings::attempts_per_account`].
    pub attempts_per_account_burst_max: u32,
    /// The same: one more in this time.
    pub attempts_per_account_interval: Duration,
    /// See [`UsersSettings::attempts_per_address`].
    pub attempts_per_address_burst_max: u32,
    /// The same: one more in this time.
    pub attempts_per_address_interval: Duration,
    /// See [`UsersSettings::registrations_per_address`].
    pub registrations_per_address_burst_max: u32,
    /// The same: one more in this time.
    pub registrations_per_address_interval: Duration,
    /// See [`UsersSettings::attempts_table_max`].
    pub attempts_table_max: usize,
    /// Names and avatars remembered for the rows of single chats. Full: those not used lately are
    /// looked up again.
    pub names_remembered_bytes_max: ByteSize,
    /// The header in which the nearest proxy says where a call comes from.
    pub client_address_header: String,
    /// See [`CallerLimits::calls_in_flight_max`].
    pub calls_in_flight_max: usize,
    /// See [`CallerLimits::calls_per_second_max`].
    pub calls_per_second_max: u32,
    /// See [`CallerLimits::calls_burst_max`].
    pub calls_burst_max: u32,
    /// See [`CallerLimits::users_paced_max`].
    pub users_paced_max: usize,
}

/// `users.registration`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    /// Anybody may register.
    Open,
    /// Services register users.
    Closed,
}

/// `users.signing_algorithm`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SigningAlgorithm {
    /// Ed25519.
    EdDSA,
    /// ECDSA with P-256.
    ES256,
    /// RSA with PKCS 1 padding.
    RS256,
}

impl Default for Users {
    fn default() -> Self {
        let users = UsersSettings::default();
        let calls = CallerLimits::default();
        let duration =
            |duration: std::time::Duration| Duration::from_millis(duration.as_millis() as u64);
        Self {
            registration: Registration::Open,
            token_lifetime: duration(users.token_lifetime),
            refresh_lifetime: duration(users.refresh_lifetime),
            refresh_grace: duration(users.refresh_grace),
            logins_per_user_max: users.logins_per_user_max,
            signing_key_file: PathBuf::new(),
            signing_algorithm: SigningAlgorithm::EdDSA,
            signing_key_id: String::new(),
            password_bytes_min: users.password_bytes_min,
            argon2_memory: ByteSize::from_kib(u64::from(users.argon2_memory_kib)),
            argon2_iterations: users.argon2_iterations,
            argon2_lanes: users.argon2_lanes,
            hashes_in_flight_max: users.hashes_in_flight_max,
            hashes_waiting_max: users.hashes_waiting_max,
            attempts_per_account_burst_max: users.attempts_per_account.burst_max,
            attempts_per_account_interval: Duration::from_millis(
                users.attempts_per_account.interval_ms,
            ),
            attempts_per_address_burst_max: users.attempts_per_address.burst_max,
            attempts_per_address_interval: Duration::from_millis(
                users.attempts_per_address.interval_ms,
            ),
            registrations_per_address_burst_max: users.registrations_per_address.burst_max,
            registrations_per_address_interval: Duration::from_millis(
                users.registrations_per_address.interval_ms,
            ),
            attempts_table_max: users.attempts_table_max,
            names_remembered_bytes_max: ByteSize::from_mib(16),
            client_address_header: String::new(),
            calls_in_flight_max: calls.calls_in_flight_max,
            calls_per_second_max: calls.calls_per_second_max,
            calls_burst_max: calls.calls_burst_max,
            users_paced_max: calls.users_paced_max,
        }
    }
}

impl Users {
    /// Bytes of names and avatars remembered.
    pub fn names_remembered(&self) -> usize {
        self.names_remembered_bytes_max.as_usize()
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        for (key, value) in [
            ("users.logins_per_user_max", self.logins_per_user_max),
            ("users.hashes_in_flight_max", self.hashes_in_flight_max),
            ("users.attempts_per_account_burst_max", self.attempts_per_account_burst_max as usize),
            ("users.attempts_per_address_burst_max", self.attempts_per_address_burst_max as usize),
            (
                "users.registrations_per_address_burst_max",
                self.registrations_per_address_burst_max as usize,
            ),
            ("users.attempts_table_max", self.attempts_table_max),
            ("users.calls_in_flight_max", self.calls_in_flight_max),
            ("users.calls_per_second_max", self.calls_per_second_max as usize),
            ("users.calls_burst_max", self.calls_burst_max as usize),
            ("users.users_paced_max", self.users_paced_max),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        for (key, value) in [
            ("users.token_lifetime", self.token_lifetime),
            ("users.refresh_lifetime", self.refresh_lifetime),
        ] {
            if value.as_millis() < 1_000 {
                return Err(Invalid::new(key, "must be at least 1s"));
            }
        }
        if !(1..=64).contains(&self.password_bytes_min) {
            return Err(Invalid::new("users.password_bytes_min", "must be between 1 and 64"));
        }
        // The lower bounds are argon2's own; below 8 KiB a lane there is no such hash.
        let kib = self.argon2_memory.as_bytes() / 1_024;
        if !(8 * u64::from(self.argon2_lanes.max(1))..=4 << 20).contains(&kib) {
            let reason = "must be at least 8KiB a lane, and at most 4GiB";
            return Err(Invalid::new("users.argon2_memory", reason));
        }
        if self.argon2_iterations == 0 || self.argon2_lanes == 0 {
            return Err(Invalid::new("users.argon2_iterations", "and lanes must be at least 1"));
        }
        let is_token = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        if !self.client_address_header.bytes().all(is_token) {
            let reason = "must be a header's name such as \"X-Forwarded-For\"";
            return Err(Invalid::new("users.client_address_header", reason));
        }
        Ok(())
    }

    /// What signs users' tokens.
    pub(crate) fn signing_key(
        &self,
        login: &Login,
        jwt_secret: &str,
    ) -> Result<SigningKey, Invalid> {
        if self.signing_key_file.as_os_str().is_empty() {
            if login.method != LoginMethod::Secret {
                return Ok(SigningKey::None);
            }
            return Ok(SigningKey::Secret(jwt_secret.as_bytes().to_vec()));
        }
        let path = self.signing_key_file.clone();
        let pem = fs::read(&path).map_err(|error| {
            Invalid::new("users.signing_key_file", format!("{}: {error}", path.display()))
        })?;
        let algorithm = match self.signing_algorithm {
            SigningAlgorithm::EdDSA => Algorithm::EdDSA,
            SigningAlgorithm::ES256 => Algorithm::ES256,
            SigningAlgorithm::RS256 => Algorithm::RS256,
        };
        Ok(SigningKey::Pem { algorithm, pem, path, key_id: self.signing_key_id.clone() })
    }

    /// Settings of the users' service.
    pub(crate) fn settings(&self, login: &Login) -> UsersSettings {
        let pace =
            |burst_max, interval: Duration| Pace { burst_max, interval_ms: interval.as_millis() };
        UsersSettings {
            open_registration: self.registration == Registration::Open,
            token_lifetime: self.token_lifetime.as_std(),
            token_issuer: login.issuer.clone(),
            token_audience: login.audience.clone(),
            refresh_lifetime: self.refresh_lifetime.as_std(),
            refresh_grace: self.refresh_grace.as_std(),
            logins_per_user_max: self.logins_per_user_max,
            password_bytes_min: self.password_bytes_min,
            argon2_memory_kib: (self.argon2_memory.as_bytes() / 1_024) as u32,
            argon2_iterations: self.argon2_iterations,
            argon2_lanes: self.argon2_lanes,
            hashes_in_flight_max: self.hashes_in_flight_max,
            hashes_waiting_max: self.hashes_waiting_max,
            attempts_per_account: pace(
                self.attempts_per_account_burst_max,
                self.attempts_per_account_interval,
            ),
            attempts_per_address: pace(
                self.attempts_per_address_burst_max,
                self.attempts_per_address_interval,
            ),
            registrations_per_address: pace(
                self.registrations_per_address_burst_max,
                self.registrations_per_address_interval,
            ),
            attempts_table_max: self.attempts_table_max,
        }
    }

    /// Bounds on users' calls.
    pub(crate) fn caller_limits(&self) -> CallerLimits {
        CallerLimits {
            calls_in_flight_max: self.calls_in_flight_max,
            calls_per_second_max: self.calls_per_second_max,
            calls_burst_max: self.calls_burst_max,
            users_paced_max: self.users_paced_max,
        }
    }
}
