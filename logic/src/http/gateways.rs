//! Gateways over HTTP.

use std::sync::Arc;

use super::{
    HttpSettings,
    door::Door,
    routes::{Routes, operations},
};
use crate::api::{Guard, gateways::GatewaysApi};

/// The operations, to be merged with the others.
pub fn routes(api: Arc<dyn GatewaysApi>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "GatewayService" for services;
        GET "/v1/gateways" => list_gateways [];
        GET "/v1/gateways/assign" => assign_gateway [];
    }
    routes
}
