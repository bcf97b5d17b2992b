//! Push tokens over HTTP.

use std::sync::Arc;

use super::{
    HttpSettings,
    door::Door,
    routes::{Routes, operations},
};
use crate::api::{Guard, push_tokens::PushTokensApi};

/// The operations, to be merged with the others.
pub fn routes(api: Arc<dyn PushTokensApi>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "PushTokenService" for services;
        POST "/v1/users/{user_id}/push_tokens" => add_push_token [NotFound];
        GET "/v1/users/{user_id}/push_tokens" => list_push_tokens [NotFound];
        DELETE "/v1/users/{user_id}/push_tokens/{device_id}" => remove_push_token [NotFound];
    }
    routes
}
