//! Topics over HTTP.

use std::sync::Arc;

use super::{
    HttpSettings,
    door::Door,
    routes::{Routes, operations},
};
use crate::api::{Guard, reports::TopicsApi};

/// The operations, to be merged with the others.
pub fn routes(api: Arc<dyn TopicsApi>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "TopicService" for services;
        GET "/v1/topics" => list_topics [];
        GET "/v1/topics/{topic}" => read_topic [NotFound];
        POST "/v1/topics/{topic}/consumers/{consumer}" => commit_offset [NotFound];
    }
    routes
}
