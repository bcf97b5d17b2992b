//! The HTTP door of the administrative API: JSON in the proto3 mapping, refusals as
//! `{"code", "reason"}` with a fitting status. It decides nothing: every call goes to [`Api`].
//!
//! | call | answer |
//! |---|---|
//! | `POST /v1/groups` | `CreateGroupResponse` |
//! | `GET`, `DELETE /v1/groups/{group_id}` | `GetGroupResponse`, `RemoveGroupResponse` |
//! | `POST`, `DELETE /v1/groups/{group_id}/members` | `AddMembersResponse`, `RemoveMembersResponse` |
//! | `POST /v1/messages` | `SendMessageResponse` |
//! | `…/v1/conversations/{conversation_id}/messages…` | see `history` |
//! | `POST /v1/rooms/{room_id}/messages` | `PublishRoomMessageResponse` |
//! | `POST /v1/broadcast` | `BroadcastResponse` |
//! | `POST /v1/users/{user_id}/kick` | `KickUserResponse` |
//! | `GET /v1/users/{user_id}/presence` | `GetPresenceResponse` |
//! | `/v1/sessions`, `/v1/presence…`, `/v1/users/{user_id}/logout` … | see [`sessions`] |
//! | `/v1/gateways…` | see [`gateways`] |
//! | `/v1/rooms…` | see [`rooms`], and above |
//! | `/v1/users/{user_id}/push_tokens…` | see [`push_tokens`] |
//! | `/v1/push…` | see [`push`] |
//! | `/v1/topics…` | see [`reports`] |
//! | `GET /livez`, `/readyz` (without the token) | `{"status"}`, and a reason with 503 |

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use millrace_protocol::api::{
    AddMembersRequest, BroadcastRequest, CreateGroupRequest, GetGroupRequest, GetPresenceRequest,
    KickUserRequest, PublishRoomMessageRequest, RemoveGroupRequest, RemoveMembersRequest,
    SendMessageRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::{
    api::{Api, Guard},
    audit::{self, Audit},
};

pub mod attachments;
mod caller;
pub mod friends;
pub mod gateways;
pub mod groups;
mod history;
pub mod push;
pub mod push_tokens;
pub mod reports;
pub mod rooms;
pub mod sessions;
#[cfg(test)]
mod tests;
pub mod users;

/// Bounds of the HTTP door.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Largest body of a call, in bytes; above it 413. Default 1 MiB.
    pub body_bytes_max: usize,
    /// How long a body may take to arrive, in milliseconds; after it 408. Default 10,000.
    pub body_ms_max: u32,
    /// The header in which the nearest proxy says where a call comes from, such as
    /// `X-Forwarded-For`; its last address counts. Empty: there is no proxy, and the peer's counts.
    pub client_address_header: String,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            body_bytes_max: 1024 * 1024,
            body_ms_max: 10_000,
            client_address_header: String::new(),
        }
    }
}

/// What the handlers of one trait of calls share.
struct Door<A: ?Sized = dyn Api> {
    api: Arc<A>,
    guard: Guard,
    settings: HttpSettings,
}

/// The routes of the door. Others may be merged into it; a fallback is here already.
pub fn router(api: Arc<dyn Api>, guard: Guard, settings: HttpSettings) -> Router {
    let door = Arc::new(Door { api, guard, settings });
    Router::new()
        .route("/v1/groups", post(create_group))
        .route("/v1/groups/{group_id}", get(get_group).delete(remove_group))
        .route("/v1/groups/{group_id}/members", post(add_members).delete(remove_members))
        .route("/v1/messages", post(send_message))
        .route("/v1/rooms/{room_id}/messages", post(publish_room_message))
        .route("/v1/broadcast", post(broadcast))
        .route("/v1/users/{user_id}/kick", post(kick_user))
        .route("/v1/users/{user_id}/presence", get(get_presence))
        .merge(history::routes())
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(door)
}

async fn create_group(State(door): State<Arc<Door>>, call: Request) -> Response {
    door.call(
        call,
        |api, request: CreateGroupRequest| async move { api.create_group(request).await },
    )
    .await
}

async fn get_group(State(door): State<Arc<Door>>, Id(group_id): Id, call: Request) -> Response {
    door.call_without_body(
        call,
        |api| async move { api.get_group(GetGroupRequest { group_id }).await },
    )
    .await
}

async fn remove_group(State(door): State<Arc<Door>>, Id(group_id): Id, call: Request) -> Response {
    door.call_without_body(call, |api| async move {
        api.remove_group(RemoveGroupRequest { group_id, ..Default::default() }).await
    })
    .await
}

async fn add_members(State(door): State<Arc<Door>>, Id(group_id): Id, call: Request) -> Response {
    door.call(call, |api, request: AddMembersRequest| async move {
        api.add_members(AddMembersRequest { group_id, ..request }).await
    })
    .await
}

async fn remove_members(
    State(door): State<Arc<Door>>,
    Id(group_id): Id,
    call: Request,
) -> Response {
    door.call(call, |api, request: RemoveMembersRequest| async move {
        api.remove_members(RemoveMembersRequest { group_id, ..request }).await
    })
    .await
}

async fn send_message(State(door): State<Arc<Door>>, call: Request) -> Response {
    door.call(
        call,
        |api, request: SendMessageRequest| async move { api.send_message(request).await },
    )
    .await
}

async fn publish_room_message(
    State(door): State<Arc<Door>>,
    Id(room_id): Id,
    call: Request,
) -> Response {
    door.call(call, |api, request: PublishRoomMessageRequest| async move {
        api.publish_room_message(PublishRoomMessageRequest { room_id, ..request }).await
    })
    .await
}

async fn broadcast(State(door): State<Arc<Door>>, call: Request) -> Response {
    door.call(call, |api, request: BroadcastRequest| async move { api.broadcast(request).await })
        .await
}

async fn kick_user(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.call(call, |api, request: KickUserRequest| async move {
        api.kick_user(KickUserRequest { user_id, ..request }).await
    })
    .await
}

async fn get_presence(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.call_without_body(call, |api| async move {
        api.get_presence(GetPresenceRequest { user_id }).await
    })
    .await
}

async fn livez() -> Response {
    json(StatusCode::OK, &Health { status: "live", reason: None })
}

async fn readyz(State(door): State<Arc<Door>>) -> Response {
    match door.api.not_ready() {
        None => json(StatusCode::OK, &Health { status: "ready", reason: None }),
        reason => json(StatusCode::SERVICE_UNAVAILABLE, &Health { status: "not_ready", reason }),
    }
}

async fn no_such_path() -> Response {
    refusal(&Refused::new(Code::NotFound, "There is no such path."))
}

async fn no_such_method() -> Response {
    let refused = Refused::new(Code::BadRequest, "This path does not have this method.");
    with_status(StatusCode::METHOD_NOT_ALLOWED, &refused)
}

/// An administrative act under way.
struct Act {
    name: &'static str,
    actor: String,
    path: String,
}

impl Act {
    /// `T` is the message of the request, or of the answer where the request has none.
    fn of<T>(call: &Request) -> Option<Self> {
        let name = audit::act_of::<T>()?;
        let actor = call.headers().get(ACTOR).and_then(|value| value.to_str().ok());
        let (actor, path) = (actor.unwrap_or_default().to_owned(), call.uri().path().to_owned());
        Some(Self { name, actor, path })
    }

    fn note<R>(self, audit: &Audit, target: Value, result: &Result<R, Refused>) {
        let mut target = match target {
            Value::Object(ids) => ids,
            _ => Map::new(),
        };
        target.insert("path".to_owned(), Value::from(self.path));
        let code = result.as_ref().map_or_else(|refused| refused.code, |_| Code::Ok);
        audit.note("http", &self.actor, self.name, &Value::Object(target), code);
    }
}

/// In whose name a service acts, as it says itself; for the audit line alone.
const ACTOR: &str = "x-millrace-actor";

/// Gives routes that were made elsewhere the same words for a method that they do not have.
fn with_refusals<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router.method_not_allowed_fallback(no_such_method)
}

impl<A: ?Sized> Door<A> {
    /// Admits a call with a JSON body and passes it on. An absent body is an empty message.
    async fn call<Q, R, F>(&self, call: Request, to: impl FnOnce(Arc<A>, Q) -> F) -> Response
    where
        Q: DeserializeOwned + Serialize + Default,
        R: Serialize,
        F: Future<Output = Result<R, Refused>>,
    {
        let _permit = match self.guard.admit(authorization(&call)) {
            Ok(permit) => permit,
            Err(refused) => return refusal(&refused),
        };
        let act = Act::of::<Q>(&call);
        let request = match read_body::<Q>(&self.settings, call.into_body()).await {
            Ok(request) => request,
            Err(response) => return *response,
        };
        let target = act.as_ref().map(|_| audit::target_of(&request));
        let result = to(Arc::clone(&self.api), request).await;
        if let Some(act) = act {
            act.note(self.guard.audit(), target.unwrap_or_default(), &result);
        }
        answer(result)
    }

    async fn call_without_body<R, F>(&self, call: Request, to: impl FnOnce(Arc<A>) -> F) -> Response
    where
        R: Serialize,
        F: Future<Output = Result<R, Refused>>,
    {
        let _permit = match self.guard.admit(authorization(&call)) {
            Ok(permit) => permit,
            Err(refused) => return refusal(&refused),
        };
        let act = Act::of::<R>(&call);
        let result = to(Arc::clone(&self.api)).await;
        if let Some(act) = act {
            act.note(self.guard.audit(), Value::Null, &result);
        }
        answer(result)
    }

    /// Admits a call whose parameters are in its query.
    async fn call_with_query<Q, R, F>(
        &self,
        call: Request,
        to: impl FnOnce(Arc<A>, Q) -> F,
    ) -> Response
    where
        Q: DeserializeOwned,
        R: Serialize,
        F: Future<Output = Result<R, Refused>>,
    {
        let _permit = match self.guard.admit(authorization(&call)) {
            Ok(permit) => permit,
            Err(refused) => return refusal(&refused),
        };
        match Query::<Q>::try_from_uri(call.uri()) {
            Ok(Query(query)) => answer(to(Arc::clone(&self.api), query).await),
            Err(error) => {
                let reason = format!("The query is not as expected: {}.", error.body_text());
                refusal(&Refused::new(Code::BadRequest, reason))
            }
        }
    }
}

/// Reads a JSON body within the bounds. An absent one is an empty message.
async fn read_body<Q: DeserializeOwned + Default>(
    settings: &HttpSettings,
    body: Body,
) -> Result<Q, Box<Response>> {
    let max = settings.body_bytes_max;
    let patience = Duration::from_millis(u64::from(settings.body_ms_max));
    let body = match timeout(patience, axum::body::to_bytes(body, max)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => {
            // The cause tells a body that is too large from one that broke off; its type is
            // private to a crate below, so the sentence covers both.
            let reason = format!("The body is above {max} bytes or broke off: {error}.");
            return Err(Box::new(refusal(&Refused::new(Code::TooLarge, reason))));
        }
        Err(_) => {
            let refused = Refused::new(Code::BadRequest, "The body did not arrive in time.");
            return Err(Box::new(with_status(StatusCode::REQUEST_TIMEOUT, &refused)));
        }
    };
    if body.is_empty() {
        return Ok(Q::default());
    }
    serde_json::from_slice(&body).map_err(|error| {
        let reason = format!("The body is not the JSON expected: {error}.");
        Box::new(refusal(&Refused::new(Code::BadRequest, reason)))
    })
}

/// The one variable part of a path.
struct Id(String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(refusal(&Refused::new(Code::BadRequest, "The path is not UTF-8."))),
        }
    }
}

/// The two variable parts of a path.
struct Ids(String, String);

impl<S: Send + Sync> FromRequestParts<S> for Ids {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Path::<(String, String)>::from_request_parts(parts, state).await {
            Ok(Path((first, second))) => Ok(Self(first, second)),
            Err(_) => Err(refusal(&Refused::new(Code::BadRequest, "The path is not UTF-8."))),
        }
    }
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct Refusal<'a> {
    code: u32,
    reason: &'a str,
}

fn authorization(call: &Request) -> Option<&[u8]> {
    call.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes)
}

fn answer<R: Serialize>(result: Result<R, Refused>) -> Response {
    match result {
        Ok(message) => json(StatusCode::OK, &message),
        Err(refused) => refusal(&refused),
    }
}

fn refusal(refused: &Refused) -> Response {
    with_status(status_of(refused.code), refused)
}

fn with_status(status: StatusCode, refused: &Refused) -> Response {
    let mut response =
        json(status, &Refusal { code: refused.code.number(), reason: &refused.reason });
    let headers = response.headers_mut();
    if refused.retry_after_ms > 0 {
        headers.insert(header::RETRY_AFTER, refused.retry_after_ms.div_ceil(1_000).into());
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn json<T: Serialize>(status: StatusCode, message: &T) -> Response {
    match serde_json::to_vec(message) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer has no JSON form");
            let body = r#"{"code":20,"reason":"The answer has no JSON form."}"#;
            let headers = [(header::CONTENT_TYPE, "application/json")];
            (StatusCode::INTERNAL_SERVER_ERROR, headers, body).into_response()
        }
    }
}

/// The status that fits a code.
const fn status_of(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::NotLoggedIn
        | Code::BadToken
        | Code::TokenExpired
        | Code::BadCredentials
        | Code::Replayed => StatusCode::UNAUTHORIZED,
        Code::NotPermitted
        | Code::NotFriends
        | Code::Blocked
        | Code::Muted
        | Code::RoleTooLow
        | Code::WordBlocked => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::AlreadyLoggedIn | Code::TooLate => StatusCode::CONFLICT,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::LogicUnavailable | Code::Draining | Code::OverCapacity => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Code::BadFrame | Code::UnsupportedVersion | Code::UnknownCommand | Code::BadRequest => {
            StatusCode::BAD_REQUEST
        }
        Code::LoginTimeout
        | Code::IdleTimeout
        | Code::SlowConsumer
        | Code::Kicked
        | Code::Replaced
        | Code::Internal
        | Code::PeerGone => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
