//! What operators ask: health, metrics, version. Its own address, no authentication, nothing that
//! changes anything.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use crate::{api::Api, chat::Chat};

/// What the answers are made of.
#[derive(Clone)]
pub(crate) struct Admin {
    pub chat: Arc<Chat>,
}

/// The routes.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { Json(json!({ "live": true })) }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .fallback(|| async {
            refusal(StatusCode::NOT_FOUND, "not_found", "There is no such page.")
        })
        .method_not_allowed_fallback(|| async {
            let reason = "These pages are for reading only.";
            refusal(StatusCode::METHOD_NOT_ALLOWED, "bad_request", reason)
        })
        .with_state(admin)
}

fn refusal(status: StatusCode, code: &str, reason: &str) -> Response {
    (status, Json(json!({ "code": code, "reason": reason }))).into_response()
}

async fn readyz(State(admin): State<Admin>) -> Response {
    match admin.chat.not_ready() {
        None => Json(json!({ "ready": true, "reasons": [] })).into_response(),
        Some(reason) => {
            let body = Json(json!({ "ready": false, "reasons": [reason] }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.chat.scrape()).into_response()
}

async fn version() -> Response {
    Json(json!({ "name": "millrace-logic", "version": env!("CARGO_PKG_VERSION") })).into_response()
}
