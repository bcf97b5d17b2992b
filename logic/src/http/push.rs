//! Notices over HTTP.
//!
//! | call | answer |
//! |---|---|
//! | `POST /v1/push` | `PushResponse` |
//! | `GET /v1/push/{notice_id}?after_user_id=&limit=` | `GetPushResponse` |

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::{get, post},
};
use millrace_protocol::api::{GetPushRequest, PushRequest};
use serde::Deserialize;

use super::{Door, HttpSettings, Id, with_refusals};
use crate::api::{Guard, push::PushApi};

type Push = State<Arc<Door<dyn PushApi>>>;

/// The routes, to be merged with the others.
pub fn routes(api: Arc<dyn PushApi>, guard: Guard, settings: HttpSettings) -> Router {
    let router =
        Router::new().route("/v1/push", post(push)).route("/v1/push/{notice_id}", get(get_push));
    with_refusals(router).with_state(Arc::new(Door { api, guard, settings }))
}

async fn push(State(door): Push, call: Request) -> Response {
    door.call(call, |api, request: PushRequest| async move { api.push(request).await }).await
}

/// The query; what is absent is empty.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Page {
    after_user_id: String,
    limit: u32,
}

async fn get_push(State(door): Push, Id(notice_id): Id, call: Request) -> Response {
    door.call_with_query(call, |api, page: Page| async move {
        let Page { after_user_id, limit } = page;
        api.get_push(GetPushRequest { notice_id, after_user_id, limit }).await
    })
    .await
}
