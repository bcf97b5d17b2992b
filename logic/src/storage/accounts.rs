//! Where users, their passwords and their logins live: the trait [`AccountStore`].
//!
//! It keeps rows and decides what only a transaction can decide: whether a user id is free, whether
//! a refresh token is the newest of its login. It hashes nothing and reads no clock.

use async_trait::async_trait;

use super::StoreError;

#[cfg(test)]
pub(crate) mod conformance;

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// Longest avatar, in bytes.
pub const AVATAR_BYTES_MAX: usize = 2 * 1024;

/// Longest extra, in bytes.
pub const EXTRA_BYTES_MAX: usize = 4 * 1024;

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Unique, at most [`USER_ID_BYTES_MAX`](super::limits::USER_ID_BYTES_MAX) bytes.
    pub user_id: String,
    /// Shown to people; not unique.
    pub name: String,
    /// Shown to people.
    pub avatar: String,
    /// The product's own.
    pub extra: String,
    /// In the PHC string format; empty when there is no password.
    pub password_hash: String,
    /// In milliseconds since 1970.
    pub created_at_ms: i64,
    /// Of the profile, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// What becomes of a profile; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProfileChange {
    /// The new name.
    pub name: Option<String>,
    /// The new avatar.
    pub avatar: Option<String>,
    /// The new extra.
    pub extra: Option<String>,
}

/// One login with a password, which a chain of refresh tokens keeps alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountLogin {
    /// Unique and random.
    pub login_id: [u8; 16],
    /// Whose.
    pub user_id: String,
    /// The hash of the newest refresh token's secret.
    pub secret_hash: [u8; 32],
    /// In milliseconds since 1970.
    pub created_at_ms: i64,
    /// When the newest refresh token ends, in milliseconds since 1970.
    pub expires_at_ms: i64,
}

/// What a refresh token is exchanged with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Which login.
    pub login_id: [u8; 16],
    /// The hash of the secret that was shown.
    pub shown_hash: [u8; 32],
    /// The hash of the next secret.
    pub next_hash: [u8; 32],
    /// Now, in milliseconds since 1970.
    pub now_ms: i64,
    /// When the next token ends.
    pub expires_at_ms: i64,
    /// How long the token before the newest may still be exchanged, in milliseconds, for clients
    /// that did not get the answer.
    pub grace_ms: i64,
}

/// What became of an [`Exchange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exchanged {
    /// The next secret is the newest now.
    Done {
        /// Whose login it is.
        user_id: String,
    },
    /// There is no such login (any more), or the secret was never its.
    Unknown,
    /// The login has ended by time; it is gone now.
    Expired,
    /// An older secret was shown, so somebody else has a copy of it: the login is gone now.
    Reused {
        /// Whose login it was.
        user_id: String,
    },
}

/// One page of a search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountPage {
    /// Without password hashes that matter to nobody: as stored.
    pub accounts: Vec<Account>,
    /// What to pass as `after` for the next page; empty when there is none.
    pub next: String,
}

/// A durable store of users. Every change is durable when it is answered.
#[async_trait]
pub trait AccountStore: Send + Sync + 'static {
    /// Stores a new user; false when the id is taken, and then nothing has changed.
    ///
    /// # Errors
    /// The store's own failures, here and everywhere below.
    async fn create(&self, account: Account) -> Result<bool, StoreError>;

    /// Whether there is any user at all.
    async fn any(&self) -> Result<bool, StoreError>;

    /// Users by id, in the order asked for.
    async fn accounts(&self, user_ids: Vec<String>) -> Result<Vec<Option<Account>>, StoreError>;

    /// Changes a profile and returns the user; `None` when there is none.
    async fn update(
        &self,
        user_id: &str,
        change: ProfileChange,
        now_ms: i64,
    ) -> Result<Option<Account>, StoreError>;

    /// Sets the password and ends every login of the user; false when there is no such user.
    async fn set_password(&self, user_id: &str, password_hash: &str) -> Result<bool, StoreError>;

    /// Users whose id begins with `prefix`, then those whose name does, upper and lower case alike;
    /// each once, in the order of the alphabet. `after` is [`AccountPage::next`] of the page before
    /// or empty; one that no page gave is like an empty page.
    async fn search(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<AccountPage, StoreError>;

    /// Stores a login. Of a user's logins the `logins_max` newest stay.
    async fn add_login(&self, login: AccountLogin, logins_max: usize) -> Result<(), StoreError>;

    /// Exchanges a refresh token for the next one.
    async fn exchange(&self, exchange: Exchange) -> Result<Exchanged, StoreError>;

    /// Ends a login if the hash is its newest secret's; false when not.
    async fn end_login(&self, login_id: [u8; 16], shown_hash: [u8; 32])
    -> Result<bool, StoreError>;

    /// Some users whose accounts were changed, by whomever, since the store was opened or since the
    /// last call; empty when there are no more. Where nobody else writes there are none.
    async fn changed(&self) -> Result<Vec<String>, StoreError> {
        Ok(vec![])
    }
}
