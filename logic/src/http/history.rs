//! The HTTP paths about messages that are stored.
//!
//! | call | answer |
//! |---|---|
//! | `GET /v1/conversations/{conversation_id}/messages?user_id=…` | `PullMessagesResponse` |
//! | `POST /v1/conversations/{conversation_id}/messages/{sequence}/revoke` | `RevokeMessageResponse` |
//! | `POST /v1/conversations/{conversation_id}/messages/delete` | `DeleteMessagesResponse` |
//! | `POST /v1/conversations/{conversation_id}/messages/forward` | `SendMessageResponse` |

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use millrace_protocol::api::{
    DeleteMessagesRequest, ForwardMessagesRequest, PullMessagesRequest, RevokeMessageRequest,
};
use serde::Deserialize;

use super::{Door, Id, refusal};

pub(super) fn routes() -> Router<Arc<Door>> {
    let messages = "/v1/conversations/{conversation_id}/messages";
    Router::new()
        .route(messages, get(pull))
        .route(&format!("{messages}/delete"), post(delete))
        .route(&format!("{messages}/forward"), post(forward))
        .route(&format!("{messages}/{{sequence}}/revoke"), post(revoke))
}

/// The query of a pull; fields as in `PullMessagesRequest`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Pull {
    user_id: String,
    from_sequence: u64,
    to_sequence: u64,
    limit: u32,
    newest_first: bool,
    changed_since_version: u64,
}

async fn pull(State(door): State<Arc<Door>>, Id(conversation_id): Id, call: Request) -> Response {
    let pull = match Query::<Pull>::try_from_uri(call.uri()) {
        Ok(Query(pull)) => pull,
        Err(error) => {
            let reason = format!("The query is not as expected: {error}.");
            return refusal(&Refused::new(Code::BadRequest, reason));
        }
    };
    let request = PullMessagesRequest {
        conversation_id,
        user_id: pull.user_id,
        from_sequence: pull.from_sequence,
        to_sequence: pull.to_sequence,
        limit: pull.limit,
        newest_first: pull.newest_first,
        changed_since_version: pull.changed_since_version,
    };
    door.call_without_body(call, |api| async move { api.pull_messages(request).await }).await
}

async fn revoke(
    State(door): State<Arc<Door>>,
    Path((conversation_id, sequence)): Path<(String, String)>,
    call: Request,
) -> Response {
    let Ok(sequence) = sequence.parse() else {
        let reason = "The sequence in the path is not a number.";
        return refusal(&Refused::new(Code::BadRequest, reason));
    };
    door.call(call, |api, request: RevokeMessageRequest| async move {
        api.revoke_message(RevokeMessageRequest { conversation_id, sequence, ..request }).await
    })
    .await
}

async fn delete(State(door): State<Arc<Door>>, Id(conversation_id): Id, call: Request) -> Response {
    door.call(call, |api, request: DeleteMessagesRequest| async move {
        api.delete_messages(DeleteMessagesRequest { conversation_id, ..request }).await
    })
    .await
}

async fn forward(
    State(door): State<Arc<Door>>,
    Id(conversation_id): Id,
    call: Request,
) -> Response {
    door.call(call, |api, request: ForwardMessagesRequest| async move {
        api.forward_messages(ForwardMessagesRequest { conversation_id, ..request }).await
    })
    .await
}
