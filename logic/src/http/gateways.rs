//! Gateways over HTTP.
//!
//! | call | answer |
//! |---|---|
//! | `GET /v1/gateways` | `ListGatewaysResponse` |
//! | `GET /v1/gateways/assign` | `AssignGatewayResponse` |

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::get,
};
use millrace_protocol::api::{AssignGatewayRequest, ListGatewaysRequest};

use super::{Door, HttpSettings, with_refusals};
use crate::api::{Guard, gateways::GatewaysApi};

type Gateways = State<Arc<Door<dyn GatewaysApi>>>;

/// The routes, to be merged with the others.
pub fn routes(api: Arc<dyn GatewaysApi>, guard: Guard, settings: HttpSettings) -> Router {
    let router = Router::new()
        .route("/v1/gateways", get(list_gateways))
        .route("/v1/gateways/assign", get(assign_gateway));
    with_refusals(router).with_state(Arc::new(Door { api, guard, settings }))
}

async fn list_gateways(State(door): Gateways, call: Request) -> Response {
    door.call_without_body(
        call,
        |api| async move { api.list_gateways(ListGatewaysRequest {}).await },
    )
    .await
}

async fn assign_gateway(State(door): Gateways, call: Request) -> Response {
    door.call_without_body(
        call,
        |api| async move { api.assign_gateway(AssignGatewayRequest {}).await },
    )
    .await
}
