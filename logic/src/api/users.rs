//! What the users' service answers, whatever the door; the messages are those of `users.proto`.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::api::{
    ChangePasswordRequest, GetUserRequest, LoginUserRequest, LoginUserResponse,
    RefreshTokenRequest, RegisterUserRequest, RegisterUserResponse, RevokeTokenRequest,
    RevokeTokenResponse, SearchUsersRequest, SearchUsersResponse, UpdateUserRequest, UserProfile,
};

use super::Caller;

/// Users with a password. Every call fails with [`Refused`].
#[async_trait]
pub trait UsersApi: Send + Sync + 'static {
    /// Makes a new user. Anybody may, if registration is open.
    async fn register_user(
        &self,
        caller: &Caller,
        request: RegisterUserRequest,
    ) -> Result<RegisterUserResponse, Refused>;

    /// Gives tokens for a password. Anybody may.
    async fn login_user(
        &self,
        caller: &Caller,
        request: LoginUserRequest,
    ) -> Result<LoginUserResponse, Refused>;

    /// Gives tokens for a refresh token. Anybody may who has one.
    async fn refresh_token(
        &self,
        caller: &Caller,
        request: RefreshTokenRequest,
    ) -> Result<LoginUserResponse, Refused>;

    /// Ends the login of a refresh token. Anybody may who has one.
    async fn revoke_token(
        &self,
        caller: &Caller,
        request: RevokeTokenRequest,
    ) -> Result<RevokeTokenResponse, Refused>;

    /// Sets a new password.
    async fn change_password(
        &self,
        caller: &Caller,
        request: ChangePasswordRequest,
    ) -> Result<LoginUserResponse, Refused>;

    /// A user's profile. Every user may see it.
    async fn get_user(
        &self,
        caller: &Caller,
        request: GetUserRequest,
    ) -> Result<UserProfile, Refused>;

    /// Changes a profile.
    async fn update_user(
        &self,
        caller: &Caller,
        request: UpdateUserRequest,
    ) -> Result<UserProfile, Refused>;

    /// Finds users by the beginning of id or name. Every user may.
    async fn search_users(
        &self,
        caller: &Caller,
        request: SearchUsersRequest,
    ) -> Result<SearchUsersResponse, Refused>;
}
