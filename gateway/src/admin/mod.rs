//! The administrative address: probes, metrics and inspection, on a thread of its own.
//!
//! It only reads snapshots and asks shards through their mailboxes, so nothing here can hold a
//! shard up. It is never on an address that clients reach; it has no authentication.
//!
//! | GET | answer |
//! |---|---|
//! | `/livez` | 200 while the process runs, whatever it depends on |
//! | `/readyz` | 200, or 503 with the reasons |
//! | `/metrics` | Prometheus text format 0.0.4 |
//! | `/version` | name and version |
//! | `/config` | the effective configuration, credentials in URIs left out |
//! | `/connections?limit=N` | some of the connections |

mod exposition;
mod metrics;
mod process;

use std::{io, net::SocketAddr, sync::Arc, thread, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use millrace_engine::ConnectionInfo;
use millrace_protocol::Code;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{oneshot, watch};

pub(crate) use self::process::redact;

use self::metrics::Workers;
use crate::{
    shard::{Command, NotSent},
    status::{Phase, Status},
};

/// How long a shard may take to list its connections.
const SHARD_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the shards' CPU time is read, for `millrace_worker_busy_ratio`.
const BUSY_INTERVAL: Duration = Duration::from_secs(5);

/// The running administrative side.
#[derive(Debug)]
pub(crate) struct Admin {
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: thread::JoinHandle<()>,
}

impl Admin {
    /// Listens and starts the thread.
    pub fn start(address: SocketAddr, status: Arc<Status>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let body = move || {
            if let Err(error) = runtime.block_on(serve(listener, status, stopped)) {
                tracing::error!(%error, "the administrative side failed");
            }
            // Connections that are kept open do not hold the process up.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(body)?;
        Ok(Self { address, stop, thread })
    }

    /// Ends the thread.
    pub fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the administrative thread panicked");
        }
    }
}

async fn serve(
    listener: std::net::TcpListener,
    status: Arc<Status>,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let workers = Arc::new(Workers::default());
    let state = Admins { status: status.clone(), workers: workers.clone() };
    let busy = async move {
        let mut interval = tokio::time::interval(BUSY_INTERVAL);
        loop {
            interval.tick().await;
            workers.measure(&status.snapshots());
        }
    };
    tokio::select! {
        result = axum::serve(listener, router(state)) => result,
        () = busy => Ok(()),
        _ = stopped.wait_for(|stop| *stop) => Ok(()),
    }
}

#[derive(Clone)]
struct Admins {
    status: Arc<Status>,
    workers: Arc<Workers>,
}

fn router(state: Admins) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .route("/config", get(config))
        .route("/connections", get(connections))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, Code::NotFound, "no such page") })
        .method_not_allowed_fallback(|| async {
            refuse(StatusCode::METHOD_NOT_ALLOWED, Code::BadRequest, "only GET is allowed here")
        })
        .with_state(state)
}

fn refuse(status: StatusCode, code: Code, reason: impl Into<String>) -> Response {
    let body = json!({ "code": code.number(), "reason": reason.into() });
    (status, Json(body)).into_response()
}

async fn live() -> Response {
    Json(json!({ "live": true })).into_response()
}

async fn ready(State(admin): State<Admins>) -> Response {
    let reasons = admin.status.unready_reasons();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

async fn metrics(State(admin): State<Admins>) -> Response {
    let text = metrics::render(&admin.status, &admin.workers);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn version(State(admin): State<Admins>) -> Response {
    Json(json!({
        "name": "millrace-gateway",
        "version": env!("CARGO_PKG_VERSION"),
        "gateway_id": admin.status.gateway_id,
        "uptime_seconds": admin.status.uptime_seconds(),
        "draining": admin.status.phase() == Phase::Draining,
    }))
    .into_response()
}

async fn config(State(admin): State<Admins>) -> Response {
    let mut config = admin.status.config.clone();
    for uri in &mut config.logic.endpoints {
        *uri = redact(uri);
    }
    Json(config).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    limit: Option<usize>,
}

async fn connections(
    State(admin): State<Admins>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Response {
    let listing = match listing {
        Ok(Query(listing)) => listing,
        Err(rejection) => {
            return refuse(StatusCode::BAD_REQUEST, Code::BadRequest, rejection.body_text());
        }
    };
    let limit_max = admin.status.config.admin.connections_listed_max;
    let limit = listing.limit.unwrap_or(100).min(limit_max);
    let mut listed: Vec<ConnectionInfo> = Vec::new();
    for mailbox in admin.status.mailboxes() {
        let missing = limit.saturating_sub(listed.len());
        if missing == 0 {
            break;
        }
        let (reply, answer) = oneshot::channel();
        let busy = || {
            let sentence = "a shard did not answer in time";
            refuse(StatusCode::SERVICE_UNAVAILABLE, Code::Internal, sentence)
        };
        match mailbox.send(Command::Connections { connections_max: missing, reply }) {
            Ok(()) => match tokio::time::timeout(SHARD_ANSWER_TIMEOUT, answer).await {
                Ok(Ok(some)) => listed.extend(some),
                // It left meanwhile.
                Ok(Err(_)) => {}
                Err(_) => return busy(),
            },
            // A shard that has left has no connections.
            Err(NotSent::Left) => {}
            Err(NotSent::Busy(_)) => return busy(),
        }
    }
    let snapshots = admin.status.snapshots();
    let total: u64 = snapshots
        .iter()
        .map(|shard| shard.counters.tcp.connections + shard.counters.websocket.connections)
        .sum();
    let links = admin.status.links();
    let listed: Vec<_> = listed.iter().map(|info| metrics::connection(info, links)).collect();
    Json(json!({ "total": total, "limit": limit, "connections": listed })).into_response()
}
