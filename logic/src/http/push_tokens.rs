//! Push tokens over HTTP.
//!
//! | call | answer |
//! |---|---|
//! | `POST`, `GET /v1/users/{user_id}/push_tokens` | `AddPushTokenResponse`, `ListPushTokensResponse` |
//! | `DELETE /v1/users/{user_id}/push_tokens/{device_id}` | `RemovePushTokenResponse` |

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::{delete, post},
};
use millrace_protocol::api::{AddPushTokenRequest, ListPushTokensRequest, RemovePushTokenRequest};

use super::{Door, HttpSettings, Id, Ids, with_refusals};
use crate::api::{Guard, push_tokens::PushTokensApi};

type Tokens = State<Arc<Door<dyn PushTokensApi>>>;

/// The routes, to be merged with the others.
pub fn routes(api: Arc<dyn PushTokensApi>, guard: Guard, settings: HttpSettings) -> Router {
    let router = Router::new()
        .route("/v1/users/{user_id}/push_tokens", post(add).get(list))
        .route("/v1/users/{user_id}/push_tokens/{device_id}", delete(remove));
    with_refusals(router).with_state(Arc::new(Door { api, guard, settings }))
}

async fn add(State(door): Tokens, Id(user_id): Id, call: Request) -> Response {
    door.call(call, |api, request: AddPushTokenRequest| async move {
        api.add_push_token(AddPushTokenRequest { user_id, ..request }).await
    })
    .await
}

async fn list(State(door): Tokens, Id(user_id): Id, call: Request) -> Response {
    door.call_without_body(call, |api| async move {
        api.list_push_tokens(ListPushTokensRequest { user_id }).await
    })
    .await
}

async fn remove(State(door): Tokens, Ids(user_id, device_id): Ids, call: Request) -> Response {
    door.call_without_body(call, |api| async move {
        api.remove_push_token(RemovePushTokenRequest { user_id, device_id }).await
    })
    .await
}
