//! The calls of the users' service.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        ChangePasswordRequest, GetUserRequest, LoginUserRequest, LoginUserResponse,
        RefreshTokenRequest, RegisterUserRequest, RegisterUserResponse, RevokeTokenRequest,
        RevokeTokenResponse, SearchUsersRequest, SearchUsersResponse, Tokens, UpdateUserRequest,
        UserProfile,
    },
};
use uuid::Uuid;

use super::{
    Accounts,
    attempts::Network,
    failed,
    password::PASSWORD_BYTES_MAX,
    tokens::{RefreshToken, tokens},
    too_many,
};
use crate::{
    api::{Caller, UsersApi, unix_ms},
    storage::{
        accounts::{
            AVATAR_BYTES_MAX, Account, AccountLogin, EXTRA_BYTES_MAX, Exchange, Exchanged,
            NAME_BYTES_MAX, ProfileChange,
        },
        limits::USER_ID_BYTES_MAX,
    },
};

/// Shortest and longest user id that may be registered, in bytes.
const REGISTERED_ID_BYTES: std::ops::RangeInclusive<usize> = 3..=64;

/// Users on one page of a search, when none are asked for and at most.
const SEARCH_LIMIT: (u32, u32) = (20, 50);

/// Longest prefix that is searched for, in bytes.
const PREFIX_BYTES_MAX: usize = 256;

/// Longest position of a search, in bytes.
const AFTER_BYTES_MAX: usize = 1_024;

fn bad_request(reason: impl Into<String>) -> Refused {
    Refused::new(Code::BadRequest, reason)
}

/// What may be registered: what needs no escaping anywhere, and is not taken for somebody's own.
fn check_new_id(user_id: &str) -> Result<(), Refused> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if REGISTERED_ID_BYTES.contains(&user_id.len()) && user_id.chars().all(is_plain) {
        return Ok(());
    }
    Err(bad_request("A user_id has 3 to 64 letters, digits, '.', '_' or '-'."))
}

fn check_length(what: &str, text: &str, bytes_max: usize) -> Result<(), Refused> {
    if text.len() <= bytes_max {
        return Ok(());
    }
    let reason = format!("The {what} has {} bytes; it may have {bytes_max}.", text.len());
    Err(Refused::new(Code::TooLarge, reason))
}

fn check_profile(name: &str, avatar: &str, extra: &str) -> Result<(), Refused> {
    if name.chars().any(char::is_control) {
        return Err(bad_request("A name has no control characters."));
    }
    check_length("name", name, NAME_BYTES_MAX)?;
    check_length("avatar", avatar, AVATAR_BYTES_MAX)?;
    check_length("extra", extra, EXTRA_BYTES_MAX)
}

fn profile(account: Account) -> UserProfile {
    UserProfile {
        user_id: account.user_id,
        name: account.name,
        avatar: account.avatar,
        extra: account.extra,
        created_at_ms: account.created_at_ms,
        updated_at_ms: account.updated_at_ms,
    }
}

fn no_such_user() -> Refused {
    Refused::new(Code::NotFound, "There is no such user.")
}

fn wrong() -> Refused {
    Refused::from(Code::BadCredentials)
}

impl Accounts {
    fn check_password(&self, user_id: &str, password: &str) -> Result<(), Refused> {
        let min = self.settings.password_bytes_min;
        if password.len() < min || password.len() > PASSWORD_BYTES_MAX {
            let reason = format!("A password has {min} to {PASSWORD_BYTES_MAX} bytes.");
            return Err(bad_request(reason));
        }
        if password.eq_ignore_ascii_case(user_id) {
            return Err(bad_request("The password must not be the user_id."));
        }
        Ok(())
    }

    /// One user; `None` also for ids that nobody can have.
    pub(super) async fn account(&self, user_id: &str) -> Result<Option<Account>, Refused> {
        if user_id.is_empty() || user_id.len() > USER_ID_BYTES_MAX {
            return Ok(None);
        }
        let found = self.store.accounts(vec![user_id.to_owned()]).await;
        Ok(found.map_err(|error| failed(&error))?.pop().flatten())
    }

    /// Checks a password within the bounds on trying.
    async fn authenticate(
        &self,
        caller: &Caller,
        user_id: &str,
        password: String,
    ) -> Result<Account, Refused> {
        if password.len() > PASSWORD_BYTES_MAX || user_id.len() > USER_ID_BYTES_MAX {
            return Err(wrong());
        }
        // A service's own address says nothing about where its users are.
        let network = caller.counted_address().map(Network::of);
        let now_ms = self.now_ms();
        let reason = "Too many passwords were tried; wait before the next.";
        {
            let mut attempts = self.attempts();
            if let Some(network) = network {
                attempts.addresses.take(network, now_ms).map_err(|wait| too_many(wait, reason))?;
            }
            attempts
                .accounts
                .take(user_id.to_owned(), now_ms)
                .map_err(|wait| too_many(wait, reason))?;
        }
        let account = self.account(user_id).await?;
        let hash = account.as_ref().map_or("", |account| &account.password_hash);
        let is_right = self.passwords.verify(password, hash).await?;
        match account {
            Some(account) if is_right => {
                let mut attempts = self.attempts();
                attempts.accounts.give_back(&account.user_id);
                if let Some(network) = &network {
                    attempts.addresses.give_back(network);
                }
                Ok(account)
            }
            _ => Err(wrong()),
        }
    }

    /// A token and a new chain of refresh tokens.
    async fn begin_login(&self, user_id: &str, now_ms: i64) -> Result<Tokens, Refused> {
        let refresh = RefreshToken::new(None);
        let expires_at_ms = now_ms.saturating_add(self.refresh_lifetime_ms());
        let issued = self.issuer.issue(user_id, now_ms)?;
        let login = AccountLogin {
            login_id: refresh.login_id,
            user_id: user_id.to_owned(),
            secret_hash: refresh.secret_hash(),
            created_at_ms: now_ms,
            expires_at_ms,
        };
        let added = self.store.add_login(login, self.settings.logins_per_user_max).await;
        added.map_err(|error| failed(&error))?;
        Ok(tokens(issued, &refresh, expires_at_ms))
    }

    fn refresh_lifetime_ms(&self) -> i64 {
        i64::try_from(self.settings.refresh_lifetime.as_millis()).unwrap_or(i64::MAX)
    }
}

#[async_trait]
impl UsersApi for Accounts {
    async fn register_user(
        &self,
        caller: &Caller,
        request: RegisterUserRequest,
    ) -> Result<RegisterUserResponse, Refused> {
        let RegisterUserRequest { user_id, password, mut name, avatar, extra } = request;
        if !caller.is_service() && !self.settings.open_registration {
            let reason = "Registration is closed; ask the operator for an account.";
            return Err(Refused::new(Code::NotPermitted, reason));
        }
        let user_id = match user_id {
            chosen if !chosen.is_empty() => chosen,
            _ => Uuid::now_v7().simple().to_string(),
        };
        // Services may take over ids that they have given out already.
        if caller.is_service() {
            if user_id.len() > USER_ID_BYTES_MAX || user_id.chars().any(char::is_control) {
                return Err(bad_request("A user_id has 1 to 128 bytes, no control characters."));
            }
        } else {
            check_new_id(&user_id)?;
        }
        if user_id == "me" {
            return Err(bad_request("The user_id \"me\" means the caller; choose another."));
        }
        check_profile(&name, &avatar, &extra)?;
        self.screen.screen(&user_id, &user_id, &mut name)?;
        if !caller.is_service() || !password.is_empty() {
            self.check_password(&user_id, &password)?;
        }
        if let Some(network) = caller.counted_address().map(Network::of) {
            let taken = self.attempts().registrations.take(network, self.now_ms());
            taken.map_err(|wait| {
                too_many(wait, "Too many users were registered from this address; wait.")
            })?;
        }
        let taken = || Refused::new(Code::AlreadyExists, "This user_id is taken; choose another.");
        // Before the password is hashed, which is the expensive part.
        if self.account(&user_id).await?.is_some() {
            return Err(taken());
        }
        let password_hash = match password {
            none if none.is_empty() => none,
            password => self.passwords.hash(password).await?,
        };
        let now_ms = unix_ms();
        let account = Account {
            user_id: user_id.clone(),
            name,
            avatar,
            extra,
            password_hash,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
        };
        if !self.store.create(account.clone()).await.map_err(|error| failed(&error))? {
            return Err(taken());
        }
        self.names.changed(&user_id);
        let tokens = match caller.is_service() {
            true => None,
            false => Some(self.begin_login(&user_id, now_ms).await?),
        };
        Ok(RegisterUserResponse { user: Some(profile(account)), tokens })
    }

    async fn login_user(
        &self,
        caller: &Caller,
        request: LoginUserRequest,
    ) -> Result<LoginUserResponse, Refused> {
        let account = self.authenticate(caller, &request.user_id, request.password).await?;
        let tokens = Some(self.begin_login(&account.user_id, unix_ms()).await?);
        Ok(LoginUserResponse { user: Some(profile(account)), tokens })
    }

    async fn refresh_token(
        &self,
        caller: &Caller,
        request: RefreshTokenRequest,
    ) -> Result<LoginUserResponse, Refused> {
        let unknown =
            || Refused::new(Code::BadToken, "The refresh token is not good any more; log in.");
        if let Some(network) = caller.counted_address().map(Network::of) {
            let taken = self.attempts().addresses.take(network, self.now_ms());
            taken.map_err(|wait| too_many(wait, "Too many tokens were tried; wait."))?;
        }
        let shown = RefreshToken::parse(&request.refresh_token).ok_or_else(unknown)?;
        let now_ms = unix_ms();
        let next = RefreshToken::new(Some(shown.login_id));
        let expires_at_ms = now_ms.saturating_add(self.refresh_lifetime_ms());
        let exchange = Exchange {
            login_id: shown.login_id,
            shown_hash: shown.secret_hash(),
            next_hash: next.secret_hash(),
            now_ms,
            expires_at_ms,
            grace_ms: i64::try_from(self.settings.refresh_grace.as_millis()).unwrap_or(i64::MAX),
        };
        match self.store.exchange(exchange).await.map_err(|error| failed(&error))? {
            Exchanged::Done { user_id } => {
                if let Some(network) = caller.counted_address().map(Network::of) {
                    self.attempts().addresses.give_back(&network);
                }
                let issued = self.issuer.issue(&user_id, now_ms)?;
                let user = self.account(&user_id).await?.map(profile);
                Ok(LoginUserResponse { user, tokens: Some(tokens(issued, &next, expires_at_ms)) })
            }
            Exchanged::Expired => {
                let reason = "The refresh token has expired; log in.";
                Err(Refused::new(Code::TokenExpired, reason))
            }
            Exchanged::Reused { user_id } => {
                tracing::warn!(
                    user_id,
                    "an old refresh token was shown again; its login was ended"
                );
                Err(unknown())
            }
            Exchanged::Unknown => Err(unknown()),
        }
    }

    async fn revoke_token(
        &self,
        _caller: &Caller,
        request: RevokeTokenRequest,
    ) -> Result<RevokeTokenResponse, Refused> {
        // One that is not good any more is revoked already: the wish is fulfilled.
        if let Some(shown) = RefreshToken::parse(&request.refresh_token) {
            let ended = self.store.end_login(shown.login_id, shown.secret_hash()).await;
            ended.map_err(|error| failed(&error))?;
        }
        Ok(RevokeTokenResponse::default())
    }

    async fn change_password(
        &self,
        caller: &Caller,
        request: ChangePasswordRequest,
    ) -> Result<LoginUserResponse, Refused> {
        let ChangePasswordRequest { user_id, old_password, new_password } = request;
        let user_id = caller.acting_as(&user_id)?;
        self.check_password(&user_id, &new_password)?;
        let account = match caller.is_service() && old_password.is_empty() {
            true => self.account(&user_id).await?.ok_or_else(no_such_user)?,
            false => self.authenticate(caller, &user_id, old_password).await?,
        };
        let hash = self.passwords.hash(new_password).await?;
        let set = self.store.set_password(&user_id, &hash).await;
        if !set.map_err(|error| failed(&error))? {
            return Err(no_such_user());
        }
        let issued_before_ms = self.logout.logout_everywhere(&user_id).await?;
        let tokens = match caller.is_service() {
            true => None,
            // A moment later, because the token's own time is in seconds with a fraction, which
            // may come out a millisecond less.
            false => {
                let now_ms = unix_ms().max(issued_before_ms + 1);
                Some(self.begin_login(&user_id, now_ms).await?)
            }
        };
        Ok(LoginUserResponse { user: Some(profile(account)), tokens })
    }

    async fn get_user(
        &self,
        caller: &Caller,
        request: GetUserRequest,
    ) -> Result<UserProfile, Refused> {
        let user_id = caller.resolve(&request.user_id);
        self.account(&user_id).await?.map(profile).ok_or_else(no_such_user)
    }

    async fn update_user(
        &self,
        caller: &Caller,
        request: UpdateUserRequest,
    ) -> Result<UserProfile, Refused> {
        let UpdateUserRequest { user_id, mut name, avatar, extra } = request;
        let user_id = caller.acting_as(&user_id)?;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        check_profile(&text(&name), &text(&avatar), &text(&extra))?;
        if let Some(name) = &mut name {
            self.screen.screen(&user_id, &user_id, name)?;
        }
        let change = ProfileChange { name, avatar, extra };
        let updated = self.store.update(&user_id, change, unix_ms()).await;
        self.names.changed(&user_id);
        updated.map_err(|error| failed(&error))?.map(profile).ok_or_else(no_such_user)
    }

    async fn search_users(
        &self,
        _caller: &Caller,
        request: SearchUsersRequest,
    ) -> Result<SearchUsersResponse, Refused> {
        let SearchUsersRequest { prefix, limit, after } = request;
        if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || prefix.contains('\0') {
            return Err(bad_request("A prefix of 1 to 256 bytes is needed."));
        }
        if after.len() > AFTER_BYTES_MAX {
            return Err(bad_request("That is no position that a page has given."));
        }
        let (default, max) = SEARCH_LIMIT;
        let limit = if limit == 0 { default } else { limit.min(max) };
        let found = self.store.search(&prefix, &after, limit as usize).await;
        let page = found.map_err(|error| failed(&error))?;
        let users = page.accounts.into_iter().map(profile).collect();
        Ok(SearchUsersResponse { users, next: page.next })
    }
}
