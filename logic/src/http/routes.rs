//! Operations and who answers them, and the router that they become.
//!
//! There is no other way to a route than through an [`Operation`], and the description that is
//! served at `GET /v1/openapi.json` is written from the same rows when the router is made: a route
//! that is not described cannot be, nor a description without a route.

use std::{any::type_name, collections::BTreeMap, future::Future, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{RawPathParams, Request, rejection::RawPathParamsRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    binding::Binding,
    door::{Door, Parts},
    openapi,
    operation::{Media, Operation, Who},
    refusal, with_status,
};
use crate::api::Caller;

/// Where the description is.
const DESCRIPTION: &str = "/v1/openapi.json";

/// How long a client may keep the description without asking again, in seconds.
const DESCRIPTION_KEPT: &str = "public, max-age=300";

/// See the module.
#[derive(Default)]
pub struct Routes {
    rows: Vec<(Operation, Option<Binding>)>,
    by_path: BTreeMap<String, MethodRouter>,
}

impl Routes {
    /// Adds the operations of others.
    ///
    /// # Panics
    /// Both have an operation with the same path and method.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.rows.extend(other.rows);
        for (path, methods) in other.by_path {
            self.route(path, methods);
        }
        self
    }

    /// The router of all of them, with the description beside them.
    ///
    /// # Panics
    /// Two operations have the same id.
    pub fn into_router(mut self) -> Router {
        let describing = Operation::alone(
            Method::GET,
            DESCRIPTION,
            "GetDescription",
            "Process",
            Who::Everyone,
            &[],
        )
        .about("This description.")
        .answers(200, Media::Description, "OpenAPI 3.1, in JSON.")
        .answers(304, Media::Nothing, "It is still the one that If-None-Match names.");
        self.rows.push((describing, None));
        let document = Arc::new(Described::of(&self.rows));
        let describe = move |headers: HeaderMap| {
            let document = Arc::clone(&document);
            async move { document.answer(&headers) }
        };
        self.route(DESCRIPTION.to_owned(), on(MethodFilter::GET, describe));
        let router = Router::new();
        self.by_path
            .into_iter()
            .fold(router, |router, (path, methods)| router.route(&path, methods))
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_method)
    }

    /// What is said of the operations so far.
    #[cfg(test)]
    pub(super) fn description(&self) -> serde_json::Value {
        openapi::document(&self.rows)
    }

    /// An operation that is a call of `door`'s trait: `to` gets its request.
    pub(super) fn call<A, Q, R, F>(
        &mut self,
        door: &Arc<Door<A>>,
        operation: Operation,
        to: impl Fn(Arc<A>, Caller, Q) -> F + Clone + Send + Sync + 'static,
    ) where
        A: ?Sized + Send + Sync + 'static,
        Q: Message + Default + DeserializeOwned + Serialize + 'static,
        R: Serialize + 'static,
        F: Future<Output = Result<R, Refused>> + Send + 'static,
    {
        check_types::<Q, R>(&operation);
        let binding = binding(&operation);
        let shared = Arc::new((operation, binding));
        let (operation, binding) = (shared.0.clone(), shared.1.clone());
        let door = Arc::clone(door);
        let handler = move |parts: RawParts, call: Request| {
            let (door, shared, to) = (Arc::clone(&door), Arc::clone(&shared), to.clone());
            async move { door.call((&shared.0, &shared.1), parts_of(parts), call, to).await }
        };
        let methods = on(filter(&operation.method), handler);
        self.add(operation, Some(binding), methods);
    }

    /// An operation that `answer` answers from the call to the last byte, with a request that is a
    /// message.
    pub(super) fn answered<F>(
        &mut self,
        operation: Operation,
        answer: impl Fn(Arc<Binding>, Parts, Request) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Response> + Send + 'static,
    {
        let binding = binding(&operation);
        let shared = Arc::new(binding.clone());
        let handler = move |parts: RawParts, call: Request| {
            let (shared, answer) = (Arc::clone(&shared), answer.clone());
            async move { answer(shared, parts_of(parts), call).await }
        };
        let methods = on(filter(&operation.method), handler);
        self.add(operation, Some(binding), methods);
    }

    /// An operation without a message as its request.
    pub(super) fn other<F>(
        &mut self,
        operation: Operation,
        answer: impl Fn(Parts, Request) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Response> + Send + 'static,
    {
        let handler = move |parts: RawParts, call: Request| {
            let answer = answer.clone();
            async move { answer(parts_of(parts), call).await }
        };
        let methods = on(filter(&operation.method), handler);
        self.add(operation, None, methods);
    }

    fn add(&mut self, operation: Operation, binding: Option<Binding>, methods: MethodRouter) {
        self.route(operation.path.clone(), methods);
        self.rows.push((operation, binding));
    }

    fn route(&mut self, path: String, methods: MethodRouter) {
        let merged = match self.by_path.remove(&path) {
            Some(others) => others.merge(methods),
            None => methods,
        };
        self.by_path.insert(path, merged);
    }
}

/// Rows of operations that are calls of a trait of the API, one each:
/// `METHOD "path" => method(Who) [codes];` and what else is said of it.
macro_rules! operations {
    (
        $routes:ident, $door:ident, $service:literal for services;
        $($verb:ident $path:literal => $method:ident [$($code:ident),*]
            $(.$more:ident($($argument:expr),*))*;)+
    ) => {
        $(
            let operation = $crate::http::operation::Operation::of_call(
                axum::http::Method::$verb,
                $path,
                ($service, &$crate::api::call_name(stringify!($method))),
                $crate::http::operation::Who::Services,
                &[$(millrace_protocol::Code::$code),*],
            );
            $routes.call(
                &$door,
                operation$(.$more($($argument),*))*,
                |api, _service, request| async move { api.$method(request).await },
            );
        )+
    };
    (
        $routes:ident, $door:ident, $service:literal for callers;
        $($verb:ident $path:literal => $method:ident($who:ident) [$($code:ident),*]
            $(.$more:ident($($argument:expr),*))*;)+
    ) => {
        $(
            let operation = $crate::http::operation::Operation::of_call(
                axum::http::Method::$verb,
                $path,
                ($service, &$crate::api::call_name(stringify!($method))),
                $crate::http::operation::Who::$who,
                &[$(millrace_protocol::Code::$code),*],
            );
            $routes.call(
                &$door,
                operation$(.$more($($argument),*))*,
                |api, caller, request| async move { api.$method(&caller, request).await },
            );
        )+
    };
}

pub(super) use operations;

fn binding(operation: &Operation) -> Binding {
    let request = operation.request();
    Binding::of(operation, &request.expect("an operation with a call has its request"))
}

/// The messages of the code are those of the call that the row names.
fn check_types<Q, R>(operation: &Operation) {
    let Some(call) = &operation.call else { return };
    let short = |name: &'static str| name.rsplit("::").next().unwrap_or_default();
    let found = (short(type_name::<Q>()), short(type_name::<R>()));
    let (request, answer) = (call.input(), call.output());
    assert_eq!(found, (request.name(), answer.name()), "{}", operation.path);
}

fn filter(method: &Method) -> MethodFilter {
    MethodFilter::try_from(method.clone()).expect("the rows name methods that there are")
}

type RawParts = Result<RawPathParams, RawPathParamsRejection>;

fn parts_of(parts: RawParts) -> Parts {
    let parts = parts.ok()?;
    Some(parts.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect())
}

async fn no_such_path() -> Response {
    refusal(&Refused::new(Code::NotFound, "There is no such path."))
}

async fn no_such_method() -> Response {
    let refused = Refused::new(Code::BadRequest, "This path does not have this method.");
    with_status(StatusCode::METHOD_NOT_ALLOWED, &refused)
}

/// The description as it is served.
struct Described {
    json: Bytes,
    tag: HeaderValue,
}

impl Described {
    fn of(rows: &[(Operation, Option<Binding>)]) -> Self {
        use sha2::{Digest as _, Sha256};
        let json = openapi::document(rows).to_string();
        let hash = format!("\"{:x}\"", Sha256::digest(&json));
        let tag = HeaderValue::from_str(&hash).expect("hexadecimal digits fit a header");
        Self { json: json.into(), tag }
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let is_known = known.unwrap_or_default().split(',').any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.trim_start_matches("W/").as_bytes() == self.tag.as_bytes()
        });
        let mut answer = match is_known {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => self.json.clone().into_response(),
        };
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ETAG, self.tag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(DESCRIPTION_KEPT));
        answer
    }
}
