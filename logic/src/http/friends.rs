//! The HTTP routes of the friends' service. A user calls them for themself, a service for anybody.
//!
//! | call | answer |
//! |---|---|
//! | `POST /v1/users/{user_id}/friend_requests` | `RelationResponse` |
//! | `POST /v1/users/{user_id}/friend_requests/{other_id}/accept`, `/reject` | `RelationResponse` |
//! | `DELETE /v1/users/{user_id}/friend_requests/{other_id}` | `RelationResponse` |
//! | `DELETE /v1/users/{user_id}/friends/{other_id}` | `RelationResponse` |
//! | `PUT`, `DELETE /v1/users/{user_id}/blocks/{other_id}` | `RelationResponse` |
//! | `GET /v1/users/{user_id}/relations/{other_id}` | `Relation` |
//! | `GET /v1/users/{user_id}/relations`, `/friends`, `/friend_requests`, `/blocks` | `ListRelationsResponse` |

use std::{future::Future, sync::Arc};

use axum::{
    Router,
    extract::{FromRequestParts, Path, Request, State},
    http::request::Parts,
    response::Response,
    routing::{delete, get, post, put},
};
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{ListRelationsRequest, RelationRequest, RelationResponse, RequestFriendRequest},
};
use serde::{Deserialize, Serialize};

use super::{HttpSettings, Id, caller::CallerDoor, no_such_method, refusal};
use crate::api::{Access, Caller, CallerGuard, FriendsApi};

type Door = CallerDoor<dyn FriendsApi>;

/// The routes; merged with those of [`super::router`].
pub fn router(api: Arc<dyn FriendsApi>, guard: CallerGuard, settings: HttpSettings) -> Router {
    const REQUEST: &str = "/v1/users/{user_id}/friend_requests/{other_id}";
    Router::new()
        .route("/v1/users/{user_id}/friend_requests", post(request).get(list_requests))
        .route(REQUEST, delete(cancel))
        .route(&format!("{REQUEST}/accept"), post(accept))
        .route(&format!("{REQUEST}/reject"), post(reject))
        .route("/v1/users/{user_id}/friends", get(list_friends))
        .route("/v1/users/{user_id}/friends/{other_id}", delete(remove))
        .route("/v1/users/{user_id}/blocks", get(list_blocks))
        .route("/v1/users/{user_id}/blocks/{other_id}", put(block).delete(unblock))
        .route("/v1/users/{user_id}/relations", get(list))
        .route("/v1/users/{user_id}/relations/{other_id}", get(get_relation))
        .method_not_allowed_fallback(no_such_method)
        .with_state(Arc::new(Door { api, guard, settings }))
}

/// The two variable parts of a path.
struct Pair(RelationRequest);

impl<S: Send + Sync> FromRequestParts<S> for Pair {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Path::<(String, String)>::from_request_parts(parts, state).await {
            Ok(Path((user_id, other_id))) => Ok(Self(RelationRequest { user_id, other_id })),
            Err(_) => Err(refusal(&Refused::new(Code::BadRequest, "The path is not UTF-8."))),
        }
    }
}

/// A call whose path says everything; a body is not looked at.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Nothing {}

impl Door {
    async fn act<F>(
        &self,
        call: Request,
        to: impl FnOnce(Arc<dyn FriendsApi>, Caller) -> F,
    ) -> Response
    where
        F: Future<Output = Result<RelationResponse, Refused>>,
    {
        self.call(Access::Known, call, |api, caller, Nothing {}| to(api, caller)).await
    }

    async fn list(&self, user_id: String, filter: &'static str, call: Request) -> Response {
        self.query(call, |api, caller, mut query: List| async move {
            if !filter.is_empty() {
                filter.clone_into(&mut query.filter);
            }
            let List { filter, since_version, after, limit } = query;
            let request = ListRelationsRequest { user_id, filter, since_version, after, limit };
            api.list_relations(&caller, request).await
        })
        .await
    }
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct List {
    filter: String,
    since_version: u64,
    after: u64,
    limit: u32,
}

async fn request(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.call(Access::Known, call, |api, caller, request: RequestFriendRequest| async move {
        api.request_friend(&caller, RequestFriendRequest { user_id, ..request }).await
    })
    .await
}

async fn accept(State(door): State<Arc<Door>>, Pair(pair): Pair, call: Request) -> Response {
    door.act(call, |api, caller| async move { api.accept_friend(&caller, pair).await }).await
}

async fn reject(State(door): State<Arc<Door>>, Pair(pair): Pair, call: Request) -> Response {
    door.act(call, |api, caller| async move { api.reject_friend(&caller, pair).await }).await
}

async fn cancel(State(door): State<Arc<Door>>, Pair(pair): Pair, call: Request) -> Response {
    door.act(call, |api, caller| async move { api.cancel_friend_request(&caller, pair).await })
        .await
}

async fn remove(State(door): State<Arc<Door>>, Pair(pair): Pair, call: Request) -> Response {
    door.act(call, |api, caller| async move { api.remove_friend(&caller, pair).await }).await
}

async fn block(State(door): State<Arc<Door>>, Pair(pair): Pair, call: Request) -> Response {
    door.act(call, |api, caller| async move { api.block_user(&caller, pair).await }).await
}

async fn unblock(State(door): State<Arc<Door>>, Pair(pair): Pair, call: Request) -> Response {
    door.act(call, |api, caller| async move { api.unblock_user(&caller, pair).await }).await
}

async fn get_relation(State(door): State<Arc<Door>>, Pair(pair): Pair, call: Request) -> Response {
    door.query(call, |api, caller, Nothing {}| async move { api.get_relation(&caller, pair).await })
        .await
}

async fn list(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.list(user_id, "", call).await
}

async fn list_friends(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.list(user_id, "friends", call).await
}

async fn list_requests(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.list(user_id, "requests_incoming", call).await
}

async fn list_blocks(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.list(user_id, "blocked", call).await
}
