//! Sessions and presence over HTTP.
//!
//! | call | answer |
//! |---|---|
//! | `GET /v1/sessions?after_user_id=&limit=` | `ListSessionsResponse` |
//! | `POST /v1/users/{user_id}/sessions/kick` | `KickSessionsResponse` |
//! | `POST /v1/users/{user_id}/logout` | `LogoutEverywhereResponse` |
//! | `POST /v1/presence/query` | `QueryPresenceResponse` |
//! | `GET /v1/presence/watch?user_id=&user_id=` | server-sent events, each with a `WatchPresenceResponse` |

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{RawQuery, Request, State},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures::StreamExt as _;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        KickSessionsRequest, ListSessionsRequest, LogoutEverywhereRequest, QueryPresenceRequest,
        WatchPresenceRequest,
    },
};
use serde::Deserialize;

use super::{Door, HttpSettings, Id, authorization, refusal, with_refusals};
use crate::api::{Guard, sessions::SessionsApi};

type Sessions = State<Arc<Door<dyn SessionsApi>>>;

/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The routes, to be merged with the others.
pub fn routes(api: Arc<dyn SessionsApi>, guard: Guard, settings: HttpSettings) -> Router {
    let router = Router::new()
        .route("/v1/sessions", get(list_sessions))
        .route("/v1/users/{user_id}/sessions/kick", post(kick_sessions))
        .route("/v1/users/{user_id}/logout", post(logout_everywhere))
        .route("/v1/presence/query", post(query_presence))
        .route("/v1/presence/watch", get(watch_presence));
    with_refusals(router).with_state(Arc::new(Door { api, guard, settings }))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Page {
    after_user_id: String,
    limit: u32,
}

async fn list_sessions(State(door): Sessions, call: Request) -> Response {
    door.call_with_query(call, |api, page: Page| async move {
        let Page { after_user_id, limit } = page;
        api.list_sessions(ListSessionsRequest { after_user_id, limit }).await
    })
    .await
}

async fn kick_sessions(State(door): Sessions, Id(user_id): Id, call: Request) -> Response {
    door.call(call, |api, request: KickSessionsRequest| async move {
        api.kick_sessions(KickSessionsRequest { user_id, ..request }).await
    })
    .await
}

async fn logout_everywhere(State(door): Sessions, Id(user_id): Id, call: Request) -> Response {
    door.call(call, |api, request: LogoutEverywhereRequest| async move {
        api.logout_everywhere(LogoutEverywhereRequest { user_id, ..request }).await
    })
    .await
}

async fn query_presence(State(door): Sessions, call: Request) -> Response {
    door.call(call, |api, request: QueryPresenceRequest| async move {
        api.query_presence(request).await
    })
    .await
}

/// A stream that goes on has a bound of its own and gives its place among the calls back.
async fn watch_presence(
    State(door): Sessions,
    RawQuery(query): RawQuery,
    call: Request,
) -> Response {
    let admitted = door.guard.admit(authorization(&call));
    if let Err(refused) = admitted {
        return refusal(&refused);
    }
    let user_ids = match user_ids(query.as_deref().unwrap_or_default()) {
        Ok(user_ids) => user_ids,
        Err(refused) => return refusal(&refused),
    };
    match door.api.watch_presence(WatchPresenceRequest { user_ids }).await {
        Ok(updates) => {
            let events = updates.map(|update| {
                // Maps with text keys and lists of text always have a JSON form.
                let json = serde_json::to_string(&update).unwrap_or_default();
                Ok::<_, Infallible>(Event::default().data(json))
            });
            let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
            Sse::new(events).keep_alive(keep_alive).into_response()
        }
        Err(refused) => refusal(&refused),
    }
}

/// The values of `user_id`, which may be there many times.
fn user_ids(query: &str) -> Result<Vec<String>, Refused> {
    let mut user_ids = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value);
        match (name, value) {
            ("user_id", Some(value)) => user_ids.push(value),
            ("user_id", None) => {
                return Err(Refused::new(Code::BadRequest, "A user_id is not well encoded."));
            }
            _ => {
                let reason = "The query may hold user_id only, once for each user.";
                return Err(Refused::new(Code::BadRequest, reason));
            }
        }
    }
    Ok(user_ids)
}

/// Percent-decoding, with `+` for a space.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                rest = tail;
                let digits = std::str::from_utf8(digits).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::user_ids;

    #[test]
    fn users_of_a_query_are_decoded_and_nothing_else_is_let_in() {
        let ids = |query: &str| user_ids(query).map_err(|refused| refused.reason.len() > 10);
        assert_eq!(ids(""), Ok(vec![]));
        assert_eq!(ids("user_id=a&user_id=b"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(ids("user_id=%E4%BD%A0+%26"), Ok(vec!["你 &".to_owned()]));
        for bad in ["user_id=%4", "user_id=%zz", "user_id=%ff", "user=a", "limit"] {
            assert_eq!(ids(bad), Err(true), "{bad}");
        }
    }
}
