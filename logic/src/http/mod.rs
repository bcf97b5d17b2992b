//! The HTTP door of the administrative API: JSON in the proto3 mapping, refusals as
//! `{"code", "reason"}` with a fitting status. It decides nothing: every call goes to the traits of
//! [`crate::api`].
//!
//! Which operations there are stands in rows, one file for each trait ([`groups`], [`rooms`], …);
//! [`routes`] makes the router of them, and what it serves at `GET /v1/openapi.json`. The rows of
//! [`Api`] and [`HistoryApi`](crate::api::HistoryApi) are here, with `GET /livez` and `/readyz`.

use std::sync::Arc;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use serde::Serialize;

use crate::api::{Api, Guard};

use self::{
    door::Door,
    operation::{Media, Operation, Who},
    routes::{Routes, operations},
};

pub mod attachments;
mod binding;
mod descriptors;
mod door;
pub mod friends;
pub mod gateways;
pub mod groups;
mod openapi;
mod operation;
pub mod push;
pub mod push_tokens;
pub mod reports;
pub mod rooms;
pub mod routes;
pub mod search;
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

/// Groups, messages, presence and the process itself; to be merged with the others.
pub fn router(api: Arc<dyn Api>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "GroupService" for services;
        POST "/v1/groups" => create_group [AlreadyExists, WordBlocked];
        GET "/v1/groups/{group_id}" => get_group [NotFound];
        DELETE "/v1/groups/{group_id}" => remove_group [NotFound, NotPermitted, RoleTooLow];
        POST "/v1/groups/{group_id}/members" => add_members
            [NotFound, NotPermitted, RoleTooLow];
        DELETE "/v1/groups/{group_id}/members" => remove_members
            [NotFound, NotPermitted, RoleTooLow].with_body();
    }
    operations! { routes, door, "MessageService" for services;
        POST "/v1/messages" => send_message [
            NotFound, NotPermitted, NotFriends, Blocked, Muted, WordBlocked, Replayed, RateLimited
        ];
    }
    operations! { routes, door, "HistoryService" for services;
        GET "/v1/conversations/{conversation_id}/messages" => pull_messages
            [NotFound, NotPermitted];
        POST "/v1/conversations/{conversation_id}/messages/delete" => delete_messages
            [NotFound, NotPermitted];
        POST "/v1/conversations/{conversation_id}/messages/forward" => forward_messages
            [NotFound, NotPermitted, NotFriends, Blocked, Muted, WordBlocked, RateLimited];
        POST "/v1/conversations/{conversation_id}/messages/{sequence}/revoke" => revoke_message
            [NotFound, NotPermitted, RoleTooLow, TooLate];
    }
    operations! { routes, door, "RoomService" for services;
        POST "/v1/rooms/{room_id}/messages" => publish_room_message [];
    }
    operations! { routes, door, "BroadcastService" for services;
        POST "/v1/broadcast" => broadcast [RateLimited];
    }
    operations! { routes, door, "UserService" for services;
        POST "/v1/users/{user_id}/kick" => kick_user [];
        GET "/v1/users/{user_id}/presence" => get_presence [];
    }
    let health = |path, id, about| {
        Operation::alone(Method::GET, path, id, "Process", Who::Everyone, &[]).about(about)
    };
    routes.other(
        health("/livez", "GetLiveness", "Whether the process runs.").answers(
            200,
            Media::Health,
            "It does.",
        ),
        |_, _| async { json(StatusCode::OK, &Health { status: "live", reason: None }) },
    );
    routes.other(
        health("/readyz", "GetReadiness", "Whether the process should get calls.")
            .answers(200, Media::Health, "It should.")
            .answers(503, Media::Health, "It should not: it starts, or it leaves."),
        move |_, _| {
            let reason = door.api.not_ready();
            async move { readiness(reason) }
        },
    );
    routes
}

fn readiness(reason: Option<String>) -> Response {
    match reason {
        None => json(StatusCode::OK, &Health { status: "ready", reason: None }),
        reason => json(StatusCode::SERVICE_UNAVAILABLE, &Health { status: "not_ready", reason }),
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
