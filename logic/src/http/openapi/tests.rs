//! What the description says of the operations of one router, against what is known of them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{HttpSettings, router};
use crate::api::{Guard, testing::EchoApi};

fn description() -> Value {
    let guard = Guard::new("token", 1);
    router(Arc::new(EchoApi), guard, HttpSettings::default()).description()
}

#[test]
fn a_body_holds_what_is_not_in_the_path() {
    let description = description();
    let revoke = &description["paths"]["/v1/conversations/{conversation_id}/messages/{sequence}/revoke"]
        ["post"];
    let names: Vec<&Value> =
        revoke["parameters"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["conversation_id", "sequence"]);
    assert_eq!(revoke["parameters"][1]["schema"]["type"], "integer");
    let body = &revoke["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(body, &json!({ "$ref": "#/components/schemas/RevokeMessageRequest" }));
    let schema = &description["components"]["schemas"]["RevokeMessageRequest"];
    let fields = schema["properties"].as_object().expect("fields");
    assert_eq!(fields.keys().collect::<Vec<_>>(), ["actor_user_id"]);
    assert!(fields["actor_user_id"]["description"].as_str().expect("text").starts_with("With the"));
}

#[test]
fn a_call_without_a_body_has_its_fields_in_the_query() {
    let description = description();
    let pull = &description["paths"]["/v1/conversations/{conversation_id}/messages"]["get"];
    assert_eq!(pull["requestBody"], Value::Null);
    assert_eq!(pull["summary"], "Reads messages of a conversation as a member sees them, by pages");
    let mut parameters = pull["parameters"].as_array().expect("a list").iter();
    let newest = parameters.find(|one| one["name"] == "newest_first").expect("a parameter");
    assert_eq!((&newest["in"], &newest["schema"]["type"]), (&json!("query"), &json!("boolean")));
}

#[test]
fn answers_have_all_their_fields_and_requests_need_none() {
    let description = description();
    let schemas = &description["components"]["schemas"];
    let needed = |name: &str| {
        let needed = schemas[name]["required"].as_array().cloned().unwrap_or_default();
        needed.iter().map(|name| name.as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(needed("CreateGroupResponse"), ["group_id", "conversation_id"]);
    assert!(needed("Message").contains(&"sequence".to_owned()));
    assert!(!needed("Message").contains(&"attachment".to_owned()), "objects may be absent");
    assert_eq!(needed("SendMessageRequest"), [""; 0]);
    // In both directions, so in two forms.
    assert!(needed("Attachment").contains(&"size".to_owned()));
    assert_eq!(needed("AttachmentInput"), [""; 0]);
    let sent = &schemas["SendMessageRequest"]["properties"]["attachment"]["$ref"];
    assert_eq!(sent, "#/components/schemas/AttachmentInput");
    assert_eq!(schemas["Message"]["properties"]["sequence"]["type"], "string", "64 bits are text");
}

#[test]
fn refusals_are_told_by_status_with_the_codes_that_come() {
    let description = description();
    let send = &description["paths"]["/v1/messages"]["post"]["responses"];
    let codes = |status: &str| {
        send[status]["content"]["application/json"]["schema"]["properties"]["code"]["enum"].clone()
    };
    assert_eq!(codes("404"), json!([16]));
    assert_eq!(codes("401"), json!([5, 29]));
    assert_eq!(codes("403"), json!([17, 23, 24, 25, 28]));
    assert_eq!(codes("413"), json!([3]));
    assert!(send["429"]["headers"]["Retry-After"].is_object());
    let livez = &description["paths"]["/livez"]["get"]["responses"];
    assert_eq!(livez.as_object().expect("answers").len(), 1);
}

#[test]
fn every_reference_leads_somewhere() {
    fn look(value: &Value, whole: &Value, seen: &mut usize) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get("$ref") {
                    let found = whole.pointer(to.trim_start_matches('#'));
                    assert!(found.is_some_and(Value::is_object), "{to}");
                    *seen += 1;
                }
                fields.values().for_each(|value| look(value, whole, seen));
            }
            Value::Array(values) => values.iter().for_each(|value| look(value, whole, seen)),
            _ => {}
        }
    }
    let (description, mut seen) = (description(), 0);
    look(&description, &description, &mut seen);
    assert!(seen > 50, "{seen}");
}
