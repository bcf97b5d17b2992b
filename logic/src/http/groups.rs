//! Acts on groups, and a user's conversations, over HTTP.
//!
//! Each field of `ChangeGroupRequest.act` is a path of its own, `POST /v1/groups/{group_id}/{act}`, whose
//! body holds that field's message, and `actor_user_id` beside its fields.

use std::sync::Arc;

use axum::http::Method;
use millrace_protocol::Code;

use super::{
    HttpSettings, descriptors,
    door::Door,
    operation::{Operation, Who},
    routes::{Routes, operations},
};
use crate::api::{Guard, call_name, groups::GroupsApi};

/// What any act may be refused with.
const REFUSALS: [Code; 5] =
    [Code::NotFound, Code::NotPermitted, Code::RoleTooLow, Code::AlreadyExists, Code::WordBlocked];

/// The operations, to be merged with the others.
pub fn routes(api: Arc<dyn GroupsApi>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    for act in acts() {
        let path = format!("/v1/groups/{{group_id}}/{act}");
        let call = ("GroupActService", "ChangeGroup");
        let operation = Operation::of_call(Method::POST, &path, call, Who::Services, &REFUSALS)
            .named(&format!("ChangeGroup{}", call_name(act)))
            .about(format!("Does {act:?} to a group, in a user's name or as the system."))
            .within(act);
        routes.call(&door, operation, |api, _service, request| async move {
            api.change_group(request).await
        });
    }
    operations! { routes, door, "GroupActService" for services;
        GET "/v1/groups/{group_id}/members" => list_members [NotFound];
        GET "/v1/groups/{group_id}/join_requests" => list_join_requests [NotFound];
        GET "/v1/conversations/{conversation_id}/receipts" => list_receipts
            [NotFound, NotPermitted];
        GET "/v1/users/{user_id}/conversations" => list_conversations [];
    }
    routes
}

/// The names of the acts, as the message has them.
fn acts() -> impl Iterator<Item = &'static str> {
    let request = descriptors::message("ChangeGroupRequest").expect("groups.proto has it");
    let act = request.oneofs().find(|oneof| oneof.name() == "act");
    let names: Vec<&'static str> = act
        .expect("groups.proto has it")
        .fields()
        // A dozen names, once.
        .map(|field| &*field.name().to_owned().leak())
        .collect();
    names.into_iter()
}

#[cfg(test)]
mod tests {
    use millrace_protocol::api::ChangeGroupRequest;
    use serde_json::json;

    use super::acts;

    #[test]
    fn every_act_of_the_request_has_a_path() {
        let acts: Vec<&str> = acts().collect();
        for act in ["create", "announce", "set_role", "answer_join_request", "dissolve"] {
            assert!(acts.contains(&act), "{act}: {acts:?}");
        }
        for act in acts {
            let request: ChangeGroupRequest =
                serde_json::from_value(json!({ act: {} })).expect("a request");
            let named = serde_json::to_value(&request).expect("JSON");
            assert!(named.get(act).is_some(), "{act}: {named}");
        }
    }
}
