//! The gRPC service of users, `AccountService` of `users.proto`.

use millrace_protocol::api::{
    ChangePasswordRequest, GetUserRequest, LoginUserRequest, LoginUserResponse,
    RefreshTokenRequest, RegisterUserRequest, RegisterUserResponse, RevokeTokenRequest,
    RevokeTokenResponse, SearchUsersRequest, SearchUsersResponse, UpdateUserRequest, UserProfile,
    account_service_server::AccountService,
};
use tonic::{Request, Response, Status};

use super::caller::CallerDoor;
use crate::api::{Access, UsersApi};

#[tonic::async_trait]
impl AccountService for CallerDoor<dyn UsersApi> {
    async fn register_user(
        &self,
        request: Request<RegisterUserRequest>,
    ) -> Result<Response<RegisterUserResponse>, Status> {
        self.call(Access::Anybody, request, |api, caller, request| async move {
            api.register_user(&caller, request).await
        })
        .await
    }

    async fn login_user(
        &self,
        request: Request<LoginUserRequest>,
    ) -> Result<Response<LoginUserResponse>, Status> {
        self.call(Access::Anybody, request, |api, caller, request| async move {
            api.login_user(&caller, request).await
        })
        .await
    }

    async fn refresh_token(
        &self,
        request: Request<RefreshTokenRequest>,
    ) -> Result<Response<LoginUserResponse>, Status> {
        self.call(Access::Anybody, request, |api, caller, request| async move {
            api.refresh_token(&caller, request).await
        })
        .await
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        self.call(Access::Anybody, request, |api, caller, request| async move {
            api.revoke_token(&caller, request).await
        })
        .await
    }

    async fn change_password(
        &self,
        request: Request<ChangePasswordRequest>,
    ) -> Result<Response<LoginUserResponse>, Status> {
        self.call(Access::Known, request, |api, caller, request| async move {
            api.change_password(&caller, request).await
        })
        .await
    }

    async fn get_user(
        &self,
        request: Request<GetUserRequest>,
    ) -> Result<Response<UserProfile>, Status> {
        self.call(Access::Known, request, |api, caller, request| async move {
            api.get_user(&caller, request).await
        })
        .await
    }

    async fn update_user(
        &self,
        request: Request<UpdateUserRequest>,
    ) -> Result<Response<UserProfile>, Status> {
        self.call(Access::Known, request, |api, caller, request| async move {
            api.update_user(&caller, request).await
        })
        .await
    }

    async fn search_users(
        &self,
        request: Request<SearchUsersRequest>,
    ) -> Result<Response<SearchUsersResponse>, Status> {
        self.call(Access::Known, request, |api, caller, request| async move {
            api.search_users(&caller, request).await
        })
        .await
    }
}
