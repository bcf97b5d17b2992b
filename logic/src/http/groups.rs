//! Acts on groups, and a user's conversations and messages, over HTTP.
//!
//! | call | answer |
//! |---|---|
//! | `POST /v1/groups/{group_id}/{act}` | `ChangeGroupResponse` |
//! | `GET /v1/groups/{group_id}/members?after_user_id=&limit=` | `GroupMembersReply` |
//! | `GET /v1/groups/{group_id}/join_requests?after_user_id=&limit=` | `GroupJoinRequestsReply` |
//! | `GET /v1/conversations/{conversation_id}/receipts?sequence=&filter=&after_user_id=&limit=` | `PullReceiptsReply` |
//! | `GET /v1/users/{user_id}/conversations?since_version=&limit=&newest_first=&before_version=` | `ConversationsReply` |
//! | `GET /v1/users/{user_id}/conversations/{conversation_id}/messages?from_sequence=&to_sequence=&limit=&newest_first=` | `PullReply` |
//!
//! `{act}` is the name of a field of `ChangeGroupRequest.act`; the body holds that field's message,
//! and `actor_user_id` beside its fields.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Request, State},
    response::Response,
    routing::{get, post},
};
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        ChangeGroupRequest, ListConversationsRequest, ListJoinRequestsRequest, ListMembersRequest,
        ListMessagesRequest, ListReceiptsRequest,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Door, HttpSettings, Id, refusal, with_refusals};
use crate::api::{Guard, groups::GroupsApi};

type Groups = State<Arc<Door<dyn GroupsApi>>>;

/// The acts, as paths name them.
const ACTS: [&str; 13] = [
    "create",
    "update",
    "announce",
    "join",
    "answer_join_request",
    "invite",
    "leave",
    "remove",
    "set_role",
    "transfer",
    "mute_members",
    "mute",
    "dissolve",
];

/// The routes, to be merged with the others.
pub fn routes(api: Arc<dyn GroupsApi>, guard: Guard, settings: HttpSettings) -> Router {
    let router = Router::new()
        .route("/v1/groups/{group_id}/{act}", post(change_group))
        .route("/v1/groups/{group_id}/join_requests", get(list_join_requests))
        .route("/v1/conversations/{conversation_id}/receipts", get(list_receipts))
        .route("/v1/users/{user_id}/conversations", get(list_conversations))
        .route("/v1/users/{user_id}/conversations/{conversation_id}/messages", get(list_messages));
    // This path has other methods elsewhere, with the words for those that it does not have.
    with_refusals(router)
        .route("/v1/groups/{group_id}/members", get(list_members))
        .with_state(Arc::new(Door { api, guard, settings }))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Page {
    after_user_id: String,
    limit: u32,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReceiptPage {
    sequence: u64,
    filter: u32,
    after_user_id: String,
    limit: u32,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConversationPage {
    since_version: u64,
    limit: u32,
    newest_first: bool,
    before_version: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MessagePage {
    from_sequence: u64,
    to_sequence: u64,
    limit: u32,
    newest_first: bool,
}

/// Two parts of a path; what is not UTF-8 is refused before the handler.
type Two = Result<Path<(String, String)>, axum::extract::rejection::PathRejection>;

fn not_utf8() -> Response {
    refusal(&Refused::new(Code::BadRequest, "The path is not UTF-8."))
}

async fn change_group(State(door): Groups, path: Two, call: Request) -> Response {
    let Ok(Path((group_id, act))) = path else { return not_utf8() };
    door.call(call, |api, body: Map<String, Value>| async move {
        api.change_group(act_of(group_id, &act, body)?).await
    })
    .await
}

/// Puts the body where the request has it.
fn act_of(
    group_id: String,
    act: &str,
    mut body: Map<String, Value>,
) -> Result<ChangeGroupRequest, Refused> {
    if !ACTS.contains(&act) {
        let acts = ACTS.join(", ");
        let reason = format!("There is no act {act:?} on a group; there are {acts}.");
        return Err(Refused::new(Code::NotFound, reason));
    }
    let actor = body.remove("actor_user_id").or_else(|| body.remove("actorUserId"));
    let mut request = Map::new();
    request.insert(act.to_owned(), Value::Object(body));
    if let Some(actor) = actor {
        request.insert("actor_user_id".to_owned(), actor);
    }
    let request: ChangeGroupRequest =
        serde_json::from_value(Value::Object(request)).map_err(|error| {
            let reason = format!("The body is not the JSON expected: {error}.");
            Refused::new(Code::BadRequest, reason)
        })?;
    Ok(ChangeGroupRequest { group_id, ..request })
}

async fn list_members(State(door): Groups, Id(group_id): Id, call: Request) -> Response {
    door.call_with_query(call, |api, page: Page| async move {
        let Page { after_user_id, limit } = page;
        api.list_members(ListMembersRequest { group_id, after_user_id, limit }).await
    })
    .await
}

async fn list_join_requests(State(door): Groups, Id(group_id): Id, call: Request) -> Response {
    door.call_with_query(call, |api, page: Page| async move {
        let Page { after_user_id, limit } = page;
        api.list_join_requests(ListJoinRequestsRequest { group_id, after_user_id, limit }).await
    })
    .await
}

async fn list_receipts(State(door): Groups, Id(conversation_id): Id, call: Request) -> Response {
    door.call_with_query(call, |api, page: ReceiptPage| async move {
        let ReceiptPage { sequence, filter, after_user_id, limit } = page;
        let request =
            ListReceiptsRequest { conversation_id, sequence, filter, after_user_id, limit };
        api.list_receipts(request).await
    })
    .await
}

async fn list_conversations(State(door): Groups, Id(user_id): Id, call: Request) -> Response {
    door.call_with_query(call, |api, page: ConversationPage| async move {
        let ConversationPage { since_version, limit, newest_first, before_version } = page;
        let request = ListConversationsRequest {
            user_id,
            since_version,
            limit,
            newest_first,
            before_version,
        };
        api.list_conversations(request).await
    })
    .await
}

async fn list_messages(State(door): Groups, path: Two, call: Request) -> Response {
    let Ok(Path((user_id, conversation_id))) = path else { return not_utf8() };
    door.call_with_query(call, |api, page: MessagePage| async move {
        let MessagePage { from_sequence, to_sequence, limit, newest_first } = page;
        let request = ListMessagesRequest {
            user_id,
            conversation_id,
            from_sequence,
            to_sequence,
            limit,
            newest_first,
        };
        api.list_messages(request).await
    })
    .await
}

#[cfg(test)]
mod tests {
    use millrace_protocol::api::change_group_request::Act;
    use serde_json::json;

    use super::*;

    fn body(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(body) => body,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn every_act_of_the_request_has_a_path() {
        for act in ACTS {
            let request = act_of("g".into(), act, Map::new()).expect(act);
            let named = serde_json::to_value(&request).expect("JSON");
            assert!(named.get(act).is_some(), "{act}: {named}");
        }
        // One more field of the oneof would be one more path.
        let unknown = act_of("g".into(), "no_such_act", Map::new()).expect_err("refused");
        assert_eq!(unknown.code, Code::NotFound);
    }

    #[test]
    fn the_path_decides_the_group_and_the_body_the_rest() {
        let given = body(json!({ "group_id": "h", "text": "hear", "actor_user_id": "ann" }));
        let request = act_of("g".into(), "announce", given).expect("an act");
        assert_eq!((&request.group_id[..], &request.actor_user_id[..]), ("g", "ann"));
        assert!(matches!(request.act, Some(Act::Announce(act)) if act.text == "hear"));
        let wrong = act_of("g".into(), "announce", body(json!({ "text": 7 })));
        assert_eq!(wrong.expect_err("refused").code, Code::BadRequest);
    }
}
