//! The OpenAPI 3.1 description of the HTTP door, written from its operations and from the `.proto`
//! files; nothing in it is said a second time here.
//!
//! It is JSON from the start: the models of OpenAPI that there are for Rust are made for types that
//! describe themselves, and these are described by the `.proto` files already.

mod schemas;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::Code;
use serde_json::{Map, Value, json};

use self::schemas::{Direction, Schemas, parameter_schema};
use super::{
    binding::Binding,
    descriptors,
    operation::{Answer, Media, Operation, Who},
    status_of,
};

const ABOUT: &str = "\
What business services and users call. Bodies are JSON in the proto3 mapping of the messages in the .proto files, with \
the same field names; the same calls are there over gRPC.

Whole numbers of 64 bits travel as text; in requests, numbers are taken as well. Fields that a request does not have are \
empty, 0 or false. Fields of an answer that are empty are there all the same, except those that are objects or \
optional. More fields may come: leave those alone that you do not know.

Every refusal is {\"code\", \"reason\"}, whatever its status; the codes are those of every other door of the server. With 429 and \
503, Retry-After says in seconds when to try again.";

/// The document.
///
/// # Panics
/// Two operations have the same id.
pub(super) fn document(rows: &[(Operation, Option<Binding>)]) -> Value {
    let mut schemas = Schemas::new(answers_of(rows));
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let (mut ids, mut tags) = (BTreeSet::new(), BTreeSet::new());
    for (operation, binding) in rows {
        assert!(ids.insert(&operation.id), "two operations are called {}", operation.id);
        tags.insert(operation.tag);
        let method = operation.method.as_str().to_ascii_lowercase();
        let described = described(operation, binding.as_ref(), &mut schemas);
        paths.entry(&operation.path).or_default().insert(method, described);
    }
    let tags: Vec<Value> = tags.into_iter().map(|name| json!({ "name": name })).collect();
    let mut components = schemas.into_components();
    components.insert("Refusal".to_owned(), refusal_schema());
    components.insert("Health".to_owned(), health_schema());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Millrace logic",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "api_token": {
                    "type": "http", "scheme": "bearer",
                    "description": "The token of business services, `api.token` of the configuration. It may act for everybody.",
                },
                "user_token": {
                    "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "A user's own token, as the gateway's LOGIN takes it. It acts for that user alone.",
                },
            },
        },
    })
}

/// The messages that answers hold.
fn answers_of(rows: &[(Operation, Option<Binding>)]) -> Vec<prost_reflect::MessageDescriptor> {
    let of = |operation: &Operation, media: Media| match media {
        Media::Message | Media::Events => operation.call.as_ref().map(|call| call.output()),
        Media::Named(name) => descriptors::message(name),
        _ => None,
    };
    let answers = rows.iter().flat_map(|(operation, _)| {
        operation.answers.iter().filter_map(move |answer| of(operation, answer.media))
    });
    answers.collect()
}

fn described(operation: &Operation, binding: Option<&Binding>, schemas: &mut Schemas) -> Value {
    let mut described = Map::new();
    let (summary, description) = words(operation);
    described.insert("operationId".to_owned(), json!(operation.id));
    described.insert("tags".to_owned(), json!([operation.tag]));
    described.insert("summary".to_owned(), json!(summary));
    if !description.is_empty() {
        described.insert("description".to_owned(), json!(description));
    }
    described.insert("security".to_owned(), security(operation.who));
    let parameters = parameters(operation, binding);
    if !parameters.is_empty() {
        described.insert("parameters".to_owned(), json!(parameters));
    }
    if let Some(body) = body(operation, binding, schemas) {
        described.insert("requestBody".to_owned(), body);
    }
    described.insert("responses".to_owned(), Value::Object(responses(operation, schemas)));
    if let Some(call) = &operation.call {
        described.insert("x-grpc-method".to_owned(), json!(grpc_path(call)));
    }
    Value::Object(described)
}

/// `/millrace.api.v1.GroupService/GetGroup`.
pub(super) fn grpc_path(call: &prost_reflect::MethodDescriptor) -> String {
    format!("/{}/{}", call.parent_service().full_name(), call.name())
}

/// A sentence, and the rest.
fn words(operation: &Operation) -> (String, String) {
    let mut text = operation.about.clone();
    if text.is_empty()
        && let Some(call) = &operation.call
    {
        // The first lines of the comment; after them come method and path.
        let comment = descriptors::comment_of_method(call);
        let end = METHODS.iter().filter_map(|method| comment.find(method)).min();
        comment[..end.unwrap_or(comment.len())].trim().clone_into(&mut text);
        let message = descriptors::comment_of_message(&call.input());
        if !message.is_empty() {
            text.push_str("\n\n");
            text.push_str(message);
        }
    }
    let (summary, rest) = text
        .split_once(". ")
        .unwrap_or_else(|| text.split_once("\n\n").unwrap_or((text.trim_end_matches('.'), "")));
    (summary.trim_end_matches('.').to_owned(), rest.trim().to_owned())
}

/// How the line of a comment begins that says method and path.
pub(super) const METHODS: [&str; 5] = ["GET /", "POST /", "PUT /", "PATCH /", "DELETE /"];

fn security(who: Who) -> Value {
    match who {
        Who::Everyone => json!([]),
        Who::Anybody => json!([{}, { "user_token": [] }, { "api_token": [] }]),
        Who::Known => json!([{ "user_token": [] }, { "api_token": [] }]),
        Who::Services => json!([{ "api_token": [] }]),
    }
}

fn parameters(operation: &Operation, binding: Option<&Binding>) -> Vec<Value> {
    let mut parameters = Vec::new();
    if let Some(binding) = binding {
        for field in &binding.path {
            let mut parameter = json!({
                "name": field.name(), "in": "path", "required": true,
                "schema": parameter_schema(field),
            });
            say(&mut parameter, descriptors::comment_of_field(field));
            parameters.push(parameter);
        }
        for (name, field) in &binding.query {
            let mut parameter =
                json!({ "name": name, "in": "query", "schema": parameter_schema(field) });
            say(&mut parameter, descriptors::comment_of_field(field));
            parameters.push(parameter);
        }
    }
    for one in &operation.parameters {
        let mut parameter =
            json!({ "name": one.name, "in": one.place, "schema": { "type": one.kind } });
        if one.place == "path" {
            parameter["required"] = json!(true);
        }
        say(&mut parameter, one.about);
        parameters.push(parameter);
    }
    parameters
}

fn say(object: &mut Value, text: &str) {
    if !text.is_empty() {
        object["description"] = json!(text);
    }
}

fn body(operation: &Operation, binding: Option<&Binding>, schemas: &mut Schemas) -> Option<Value> {
    if let Some(about) = operation.file {
        let content = json!({ "*/*": { "schema": {} } });
        return Some(json!({ "description": about, "required": true, "content": content }));
    }
    let (binding, request) = (binding.filter(|binding| binding.has_body())?, operation.request()?);
    let schema = match &binding.within {
        Some(field) => {
            let inner = field.kind().as_message()?.clone();
            let in_path = |name: &str| binding.path.iter().any(|field| field.name() == name);
            let own: Vec<_> = inner.fields().filter(|field| !in_path(field.name())).collect();
            let fields = own.iter().chain(&binding.body);
            let about = descriptors::comment_of_message(&inner);
            schemas.body(&format!("{}Request", operation.id), fields, about)
        }
        None => schemas.body(&descriptors::short_name(&request), binding.body.iter(), ""),
    };
    Some(json!({ "content": { "application/json": { "schema": schema } } }))
}

fn responses(operation: &Operation, schemas: &mut Schemas) -> Map<String, Value> {
    let mut responses = Map::new();
    for answer in &operation.answers {
        responses.insert(answer.status.to_string(), answered(operation, answer, schemas));
    }
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in operation.all_codes() {
        by_status.entry(status_of(code).as_u16()).or_default().push(code);
        if code == Code::TooLarge {
            // A body that does not arrive in time.
            by_status.insert(408, vec![Code::BadRequest]);
        }
    }
    if operation.parameters.iter().any(|parameter| parameter.name == "Range") {
        by_status.insert(416, vec![Code::BadRequest]);
    }
    for (status, codes) in by_status {
        responses.insert(status.to_string(), refused(status, &codes));
    }
    responses
}

fn answered(operation: &Operation, answer: &Answer, schemas: &mut Schemas) -> Value {
    let mut message = |message: Option<prost_reflect::MessageDescriptor>| {
        message.map(|message| schemas.reference(&message, Direction::Answer))
    };
    let content = match answer.media {
        Media::Message => message(operation.call.as_ref().map(|call| call.output()))
            .map(|schema| json!({ "application/json": { "schema": schema } })),
        Media::Named(name) => message(descriptors::message(name))
            .map(|schema| json!({ "application/json": { "schema": schema } })),
        Media::Events => message(operation.call.as_ref().map(|call| call.output())).map(|schema| {
            let about = "Server-sent events; the data of each is the JSON of this schema.";
            json!({ "text/event-stream": { "schema": {
                "type": "string", "description": about, "contentMediaType": "application/json",
                "contentSchema": schema,
            } } })
        }),
        Media::File => Some(json!({ "*/*": { "schema": {} } })),
        Media::Health => Some(json!({ "application/json": { "schema": {
            "$ref": "#/components/schemas/Health",
        } } })),
        Media::Description => Some(json!({ "application/json": { "schema": {
            "type": "object", "required": ["openapi", "info", "paths"],
        } } })),
        Media::Nothing => None,
    };
    let mut answered = json!({ "description": answer.about });
    if let Some(content) = content {
        answered["content"] = content;
    }
    answered
}

fn refused(status: u16, codes: &[Code]) -> Value {
    let numbers: Vec<u32> = codes.iter().map(|code| code.number()).collect();
    let names: Vec<String> = codes
        .iter()
        .map(|code| format!("`{}` ({}): {}", code.label(), code.number(), code.sentence()))
        .collect();
    let mut refused = json!({
        "description": names.join(" "),
        "content": { "application/json": { "schema": {
            "$ref": "#/components/schemas/Refusal",
            "properties": { "code": { "enum": numbers } },
        } } },
    });
    if matches!(status, 429 | 503) {
        refused["headers"] = json!({ "Retry-After": {
            "description": "Seconds.", "schema": { "type": "integer", "minimum": 1 },
        } });
    }
    refused
}

fn refusal_schema() -> Value {
    json!({
        "type": "object",
        "required": ["code", "reason"],
        "properties": {
            "code": { "type": "integer", "description": "Which refusal it is." },
            "reason": { "type": "string", "description": "A sentence for people." },
        },
    })
}

fn health_schema() -> Value {
    json!({
        "type": "object",
        "required": ["status"],
        "properties": {
            "status": { "type": "string", "enum": ["live", "ready", "not_ready"] },
            "reason": { "type": "string", "description": "Why it is not ready." },
        },
    })
}
