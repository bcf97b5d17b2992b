//! Notices over HTTP.

use std::sync::Arc;

use super::{
    HttpSettings,
    door::Door,
    routes::{Routes, operations},
};
use crate::api::{Guard, push::PushApi};

/// The operations, to be merged with the others.
pub fn routes(api: Arc<dyn PushApi>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "PushService" for services;
        POST "/v1/push" => push [NotFound, RateLimited];
        GET "/v1/push/{notice_id}" => get_push [NotFound];
    }
    routes
}
