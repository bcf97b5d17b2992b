//! Topics over HTTP.
//!
//! | call | answer |
//! |---|---|
//! | `GET /v1/topics` | `ListTopicsResponse` |
//! | `GET /v1/topics/{topic}?offset=&time_ms=&limit=&wait_ms=` | `ReadTopicResponse` |
//! | `POST /v1/topics/{topic}/consumers/{consumer}` | `CommitOffsetResponse` |

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::{get, post},
};
use millrace_protocol::api::{CommitOffsetRequest, ListTopicsRequest, ReadTopicRequest};
use serde::Deserialize;

use super::{Door, HttpSettings, Id, Ids, with_refusals};
use crate::api::{Guard, reports::TopicsApi};

type Topics = State<Arc<Door<dyn TopicsApi>>>;

/// The routes, to be merged with the others.
pub fn routes(api: Arc<dyn TopicsApi>, guard: Guard, settings: HttpSettings) -> Router {
    let router = Router::new()
        .route("/v1/topics", get(list_topics))
        .route("/v1/topics/{topic}", get(read_topic))
        .route("/v1/topics/{topic}/consumers/{consumer}", post(commit_offset));
    with_refusals(router).with_state(Arc::new(Door { api, guard, settings }))
}

async fn list_topics(State(door): Topics, call: Request) -> Response {
    door.call_without_body(call, |api| async move { api.list_topics(ListTopicsRequest {}).await })
        .await
}

/// The query of a read; what is absent is 0.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Read {
    offset: u64,
    time_ms: i64,
    limit: u32,
    wait_ms: u32,
}

async fn read_topic(State(door): Topics, Id(topic): Id, call: Request) -> Response {
    door.call_with_query(call, |api, read: Read| async move {
        let Read { offset, time_ms, limit, wait_ms } = read;
        api.read_topic(ReadTopicRequest { topic, offset, time_ms, limit, wait_ms }).await
    })
    .await
}

async fn commit_offset(State(door): Topics, Ids(topic, consumer): Ids, call: Request) -> Response {
    door.call(call, |api, request: CommitOffsetRequest| async move {
        api.commit_offset(CommitOffsetRequest { topic, consumer, ..request }).await
    })
    .await
}
