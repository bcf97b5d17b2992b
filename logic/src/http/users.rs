//! The HTTP routes of the users' service.
//!
//! | call | who | answer |
//! |---|---|---|
//! | `POST /v1/users` | anybody, if registration is open | `RegisterUserResponse` |
//! | `POST /v1/login` | anybody | `LoginUserResponse` |
//! | `POST /v1/token/refresh` | anybody | `LoginUserResponse` |
//! | `POST /v1/token/revoke` | anybody | `RevokeTokenResponse` |
//! | `GET /v1/users?prefix=` | users | `SearchUsersResponse` |
//! | `GET`, `PATCH /v1/users/{user_id}` | users; to change: the user | `UserProfile` |
//! | `POST /v1/users/{user_id}/password` | the user | `LoginUserResponse` |

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::{get, post},
};
use millrace_protocol::api::{
    ChangePasswordRequest, GetUserRequest, SearchUsersRequest, UpdateUserRequest,
};
use serde::Deserialize;

use super::{HttpSettings, Id, caller::CallerDoor, no_such_method};
use crate::api::{Access, CallerGuard, UsersApi};

type Door = CallerDoor<dyn UsersApi>;

/// The routes; merged with those of [`super::router`].
pub fn router(api: Arc<dyn UsersApi>, guard: CallerGuard, settings: HttpSettings) -> Router {
    Router::new()
        .route("/v1/users", post(register).get(search))
        .route("/v1/login", post(login))
        .route("/v1/token/refresh", post(refresh))
        .route("/v1/token/revoke", post(revoke))
        .route("/v1/users/{user_id}", get(get_user).patch(update))
        .route("/v1/users/{user_id}/password", post(change_password))
        .method_not_allowed_fallback(no_such_method)
        .with_state(Arc::new(Door { api, guard, settings }))
}

async fn register(State(door): State<Arc<Door>>, call: Request) -> Response {
    door.call(Access::Anybody, call, |api, caller, request| async move {
        api.register_user(&caller, request).await
    })
    .await
}

async fn login(State(door): State<Arc<Door>>, call: Request) -> Response {
    door.call(Access::Anybody, call, |api, caller, request| async move {
        api.login_user(&caller, request).await
    })
    .await
}

async fn refresh(State(door): State<Arc<Door>>, call: Request) -> Response {
    door.call(Access::Anybody, call, |api, caller, request| async move {
        api.refresh_token(&caller, request).await
    })
    .await
}

async fn revoke(State(door): State<Arc<Door>>, call: Request) -> Response {
    door.call(Access::Anybody, call, |api, caller, request| async move {
        api.revoke_token(&caller, request).await
    })
    .await
}

async fn change_password(
    State(door): State<Arc<Door>>,
    Id(user_id): Id,
    call: Request,
) -> Response {
    door.call(Access::Known, call, |api, caller, request: ChangePasswordRequest| async move {
        api.change_password(&caller, ChangePasswordRequest { user_id, ..request }).await
    })
    .await
}

#[derive(Deserialize)]
struct Nothing {}

async fn get_user(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.query(call, |api, caller, Nothing {}| async move {
        api.get_user(&caller, GetUserRequest { user_id }).await
    })
    .await
}

async fn update(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.call(Access::Known, call, |api, caller, request: UpdateUserRequest| async move {
        api.update_user(&caller, UpdateUserRequest { user_id, ..request }).await
    })
    .await
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Search {
    prefix: String,
    limit: u32,
    after: String,
}

async fn search(State(door): State<Arc<Door>>, call: Request) -> Response {
    door.query(call, |api, caller, Search { prefix, limit, after }| async move {
        api.search_users(&caller, SearchUsersRequest { prefix, limit, after }).await
    })
    .await
}
