//! The demo page and what it needs to know. It is served without authorization and hands out tokens
//! of the ready-made users, so it exists in `millrace dev` alone. Others register and log in on it, by
//! the calls that any app makes.

use std::sync::{Arc, OnceLock};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use serde::Serialize;

use super::secrets::User;

const PAGE: &str = include_str!("page.html");

/// What the page asks for first.
#[derive(Clone, Serialize)]
pub(super) struct Settings {
    /// Where the gateway's WebSocket is.
    pub(super) websocket: String,
    /// The ready-made users, with their tokens.
    pub(super) users: Vec<User>,
}

/// The routes of the page. The settings are there once the gateway has started.
pub(super) fn routes(settings: Arc<OnceLock<Settings>>) -> Router {
    Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/demo", get(|| async { Redirect::permanent("/") }))
        .route("/demo/settings", get(move || std::future::ready(answer(&settings))))
}

fn answer(settings: &OnceLock<Settings>) -> Response {
    match settings.get() {
        Some(settings) => Json(settings.clone()).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the gateway is starting").into_response(),
    }
}
