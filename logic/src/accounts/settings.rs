//! The bounds and choices of the users' service, with their defaults. Values only; see
//! [`crate::config`] for the file.

use std::time::Duration;

use super::Pace;

/// The settings of [`Accounts`](super::Accounts).
#[derive(Clone, Debug)]
pub struct UsersSettings {
    /// Whether anybody may register; else only services register users.
    pub open_registration: bool,
    /// How long a token is good.
    pub token_lifetime: Duration,
    /// `iss` of the tokens; empty: none.
    pub token_issuer: String,
    /// `aud` of the tokens; empty: none.
    pub token_audience: String,
    /// How long a refresh token is good.
    pub refresh_lifetime: Duration,
    /// How long a refresh token that was exchanged may be exchanged once more, for clients that did
    /// not get the answer.
    pub refresh_grace: Duration,
    /// Logins of one user with a refresh token each. One more ends the oldest.
    pub logins_per_user_max: usize,
    /// Shortest password, in bytes.
    pub password_bytes_min: usize,
    /// Memory of one hash of a password, in KiB (argon2id).
    pub argon2_memory_kib: u32,
    /// Passes over that memory.
    pub argon2_iterations: u32,
    /// Lanes of that memory.
    pub argon2_lanes: u32,
    /// Passwords hashed at once, each on a thread that may block.
    pub hashes_in_flight_max: usize,
    /// Passwords that wait for that. One more is refused with `over_capacity`.
    pub hashes_waiting_max: usize,
    /// Passwords that may be tried for one account.
    pub attempts_per_account: Pace,
    /// Passwords that may be tried from one address.
    pub attempts_per_address: Pace,
    /// Users that may be registered from one address.
    pub registrations_per_address: Pace,
    /// Accounts, and again addresses, whose attempts are counted. Full: those that are not counted
    /// yet are told to wait.
    pub attempts_table_max: usize,
}

impl Default for UsersSettings {
    fn default() -> Self {
        Self {
            open_registration: true,
            token_lifetime: Duration::from_secs(3_600),
            token_issuer: String::new(),
            token_audience: String::new(),
            refresh_lifetime: Duration::from_secs(30 * 24 * 3_600),
            refresh_grace: Duration::from_secs(60),
            logins_per_user_max: 16,
            password_bytes_min: 8,
            // OWASP's first choice of 2025 for argon2id after 46 MiB with one pass.
            argon2_memory_kib: 19 * 1024,
            argon2_iterations: 2,
            argon2_lanes: 1,
            hashes_in_flight_max: 2,
            hashes_waiting_max: 64,
            attempts_per_account: Pace { burst_max: 10, interval_ms: 30_000 },
            attempts_per_address: Pace { burst_max: 100, interval_ms: 1_000 },
            registrations_per_address: Pace { burst_max: 100, interval_ms: 10_000 },
            attempts_table_max: 100_000,
        }
    }
}
