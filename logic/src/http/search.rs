//! Searching in a user's messages over HTTP. The body is `SearchMessages`, as a client sends it.

use std::sync::Arc;

use axum::http::Method;
use millrace_protocol::Code;

use super::{
    HttpSettings,
    door::Door,
    operation::{Operation, Who},
    routes::Routes,
};
use crate::api::{Guard, search::SearchApi};

/// The operations, to be merged with the others.
pub fn routes(api: Arc<dyn SearchApi>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    let operation = Operation::of_call(
        Method::POST,
        "/v1/users/{user_id}/search",
        ("SearchService", "SearchMessages"),
        Who::Services,
        &[Code::NotPermitted, Code::UnknownCommand],
    )
    .within("search");
    routes.call(&door, operation, |api, _service, request| async move {
        api.search_messages(request).await
    });
    routes
}
