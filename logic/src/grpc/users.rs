//! The gRPC service of users, `AccountService` of `users.proto`.

use millrace_protocol::api::{
    ChangePasswordRequest, GetUserRequest, LoginUserRequest, LoginUserResponse,
    RefreshTokenRequest, RegisterUserRequest, RegisterUserResponse, RevokeTokenRequest,
    RevokeTokenResponse, SearchUsersRequest, SearchUsersResponse, UpdateUserRequest, UserProfile,
    account_service_server::AccountService,
};

use super::caller::serve_callers;
use crate::api::UsersApi;

serve_callers! { AccountService for UsersApi;
    register_user(Anybody): RegisterUserRequest => RegisterUserResponse;
    login_user(Anybody): LoginUserRequest => LoginUserResponse;
    refresh_token(Anybody): RefreshTokenRequest => LoginUserResponse;
    revoke_token(Anybody): RevokeTokenRequest => RevokeTokenResponse;
    change_password(Known): ChangePasswordRequest => LoginUserResponse;
    get_user(Known): GetUserRequest => UserProfile;
    update_user(Known): UpdateUserRequest => UserProfile;
    search_users(Known): SearchUsersRequest => SearchUsersResponse;
}
