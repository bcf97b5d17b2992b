//! Searching in a user's messages over HTTP: the body is `SearchMessages`.

use std::sync::Arc;

use super::{
    HttpSettings,
    door::Door,
    routes::{Routes, operations},
};
use crate::api::{Guard, search::SearchApi};

/// The operations, to be merged with the others.
pub fn routes(api: Arc<dyn SearchApi>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "SearchService" for services;
        POST "/v1/users/{user_id}/search" => search_messages
            [UnknownCommand, NotPermitted, NotFound].within("search");
    }
    routes
}
