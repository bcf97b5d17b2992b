//! Users: registration, passwords, tokens, profiles, search; friends and blocks, and who may write to
//! whom.
//!
//! - `users`, `password`, `tokens`, `attempts`: [`Accounts`]
//! - `friends`: [`Friends`]; `policy`: [`FriendsPolicy`], which the chat domain asks
//!
//! [`Accounts`] answers [`UsersApi`]; the doors are in [`crate::http`] and [`crate::grpc`]. Of the
//! world below it knows the trait [`AccountStore`]. It knows no sessions and no chat: a token that it
//! issues is good at the gateway because both know the same secret.
//!
//! # Decisions
//! - Who may do what: a service does everything for everybody; a user acts for themself, and sees
//!   every profile. See [`Caller`].
//! - A wrong name and a wrong password are the same refusal, and take the same time.
//! - Attempts are bounded per account and per address *before* a password is hashed, so that nobody
//!   can make this process busy. A successful attempt is given back. An attacker can keep somebody
//!   else from logging in with a password for as long as the attack runs; logins that exist go on.
//! - A refresh token is good for one exchange. One that shows up again later was copied: the login
//!   ends. Changing the password ends all of them.

mod attempts;
mod friends;
mod names;
mod password;
mod policy;
mod settings;
mod tokens;
mod users;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;

use self::{attempts::Attempts, password::Passwords, tokens::TokenIssuer};
use crate::storage::{StoreError, accounts::AccountStore};

pub use attempts::Pace;
pub use friends::{Friends, FriendsSettings, NoticeSink};
pub use names::ProfileNames;
pub use policy::{FriendsPolicy, FriendsPresence, PolicySettings, SendPolicy};
pub use settings::UsersSettings;
pub use tokens::SigningKey;

/// Ends what a user's earlier tokens allow, when the password has changed.
#[async_trait]
pub trait LogoutEverywhere: Send + Sync + 'static {
    /// Ends every session of the user, and refuses tokens that were issued before the moment that is
    /// returned, in milliseconds since 1970.
    async fn logout_everywhere(&self, user_id: &str) -> Result<i64, Refused>;
}

/// Looks at texts that others will read.
pub trait TextScreen: Send + Sync + 'static {
    /// Masks what is to be masked in what `user_id` has written about `target`.
    ///
    /// # Errors
    /// `word_blocked`.
    fn screen(&self, user_id: &str, target: &str, text: &mut String) -> Result<(), Refused>;
}

/// See the module.
pub struct Accounts {
    store: Arc<dyn AccountStore>,
    settings: UsersSettings,
    passwords: Passwords,
    issuer: TokenIssuer,
    logout: Arc<dyn LogoutEverywhere>,
    screen: Arc<dyn TextScreen>,
    names: Arc<ProfileNames>,
    attempts: Mutex<AllAttempts>,
    began: std::time::Instant,
}

struct AllAttempts {
    /// Passwords tried, by account.
    accounts: Attempts<String>,
    /// Passwords tried, by address.
    addresses: Attempts<attempts::Network>,
    /// Registrations, by address.
    registrations: Attempts<attempts::Network>,
}

impl Accounts {
    /// Users in a store. `key` signs their tokens, `names` is told of every change.
    ///
    /// # Errors
    /// A key that cannot sign, or parameters that argon2 does not take: a sentence.
    pub fn new(
        store: Arc<dyn AccountStore>,
        settings: UsersSettings,
        key: SigningKey,
        logout: Arc<dyn LogoutEverywhere>,
        screen: Arc<dyn TextScreen>,
        names: Arc<ProfileNames>,
    ) -> Result<Self, String> {
        let table_max = settings.attempts_table_max;
        Ok(Self {
            passwords: Passwords::new(&settings)?,
            issuer: TokenIssuer::new(key, &settings)?,
            attempts: Mutex::new(AllAttempts {
                accounts: Attempts::new(settings.attempts_per_account, table_max),
                addresses: Attempts::new(settings.attempts_per_address, table_max),
                registrations: Attempts::new(settings.registrations_per_address, table_max),
            }),
            store,
            settings,
            logout,
            screen,
            names,
            began: std::time::Instant::now(),
        })
    }

    fn attempts(&self) -> MutexGuard<'_, AllAttempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

/// What the caller is told of a store that failed.
fn failed(error: &StoreError) -> Refused {
    tracing::error!(%error, "the users' store failed");
    let code = error.code();
    Refused::new(code, code.sentence()).retry_after(1_000)
}

fn too_many(wait_ms: u32, reason: &str) -> Refused {
    Refused::new(Code::RateLimited, reason).retry_after(wait_ms)
}
