//! Sessions and presence over HTTP.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::Request,
    http::Method,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::StreamExt as _;

use super::{
    HttpSettings,
    binding::Binding,
    door::{Door, Parts},
    operation::{Media, Operation, Who},
    refusal,
    routes::{Routes, operations},
};
use crate::api::{Guard, sessions::SessionsApi};

/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The operations, to be merged with the others.
pub fn routes(api: Arc<dyn SessionsApi>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "SessionService" for services;
        GET "/v1/sessions" => list_sessions [];
        POST "/v1/users/{user_id}/sessions/kick" => kick_sessions [];
        POST "/v1/users/{user_id}/logout" => logout_everywhere [];
    }
    operations! { routes, door, "PresenceService" for services;
        POST "/v1/presence/query" => query_presence [];
    }
    let call = ("PresenceService", "WatchPresence");
    let watching = Operation::of_call(Method::GET, "/v1/presence/watch", call, Who::Services, &[])
        .renamed("user_id", "user_ids")
        .answers(200, Media::Events, "A stream that goes on until one side ends it.");
    routes.answered(watching, move |binding, parts, call| {
        let door = Arc::clone(&door);
        async move { door.watch_presence(&binding, parts, call).await }
    });
    routes
}

impl Door<dyn SessionsApi> {
    /// A stream that goes on has a bound of its own and gives its place among the calls back.
    async fn watch_presence(&self, binding: &Binding, parts: Parts, call: Request) -> Response {
        if let Err(refused) = self.admit(Who::Services, self.origin(&call)).await {
            return refusal(&refused);
        }
        let request = match self.request(binding, parts, call).await {
            Ok(request) => request,
            Err(response) => return *response,
        };
        match self.api.watch_presence(request).await {
            Ok(updates) => {
                let events = updates.map(|update| {
                    // Maps with text keys and lists of text always have a JSON form.
                    let json = serde_json::to_string(&update).unwrap_or_default();
                    Ok::<_, Infallible>(Event::default().data(json))
                });
                let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
                Sse::new(events).keep_alive(keep_alive).into_response()
            }
            Err(refused) => refusal(&refused),
        }
    }
}
