//! The audit line: one line of JSON for each administrative act, whatever its door and however it
//! ended: `{"time_ms", "door", "actor", "act", "target", "code", "result"}`.
//!
//! An act is a call that changes something, other than sending messages: those are what the service
//! is for, and lie in the store with their senders. Of a request only ids go into the line, never a
//! text or a secret. The line is written before the caller is answered. A file is opened once, and
//! appended to; one that rotates it copies and truncates.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use millrace_protocol::Code;
use serde::Serialize;
use serde_json::{Map, Value};

/// Longest actor that is written; more is cut off.
const ACTOR_BYTES_MAX: usize = 128;

/// Ids of a list that are written, and then how many there are in all.
const IDS_MAX: usize = 10;

/// The fields of requests that name what an act is about.
const TARGETS: [&str; 18] = [
    "user_id",
    "actor_user_id",
    "other_id",
    "attachment_id",
    "user_ids",
    "group_id",
    "group_ids",
    "room_id",
    "room_ids",
    "members",
    "everyone",
    "notice_id",
    "topic",
    "consumer",
    "device_id",
    "conversation_id",
    "sequence",
    "sequences",
];

/// Calls that change nothing, by how their names begin.
const READS: [&str; 9] =
    ["Get", "List", "Read", "Watch", "Consume", "Assign", "Pull", "Query", "Search"];

/// Calls that send messages.
const SENDS: [&str; 3] = ["SendMessage", "ForwardMessages", "PublishRoomMessage"];

/// Where the lines go.
pub struct Audit {
    file: Option<Mutex<File>>,
    lost: AtomicU64,
}

#[derive(Serialize)]
struct Line<'a> {
    time_ms: u64,
    door: &'a str,
    actor: &'a str,
    act: &'a str,
    target: &'a Value,
    code: u32,
    result: &'a str,
}

impl Audit {
    /// To the log, with the target `millrace_audit` and the level `info`.
    pub fn to_log() -> Self {
        Self { file: None, lost: AtomicU64::new(0) }
    }

    /// To a file, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be opened for appending.
    pub fn to_file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file: Some(Mutex::new(file)), lost: AtomicU64::new(0) })
    }

    /// Lines that the file did not take; each is in the log instead.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Notes an act: `actor` is who the caller says it acts for, empty if it does not.
    pub(crate) fn note(&self, door: &str, actor: &str, act: &str, target: &Value, code: Code) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let actor = if actor.is_empty() { "api" } else { cut(actor) };
        let line = Line {
            time_ms: now.as_millis() as u64,
            door,
            actor,
            act,
            target,
            code: code.number(),
            result: code.label(),
        };
        let Ok(mut line) = serde_json::to_string(&line) else { return };
        if let Some(file) = &self.file {
            line.push('\n');
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            match file.write_all(line.as_bytes()) {
                Ok(()) => return,
                Err(error) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%error, "the audit file did not take a line; it follows");
                    line.pop();
                }
            }
        }
        tracing::info!(target: "millrace_audit", "{line}");
    }
}

/// At most [`ACTOR_BYTES_MAX`] bytes, whole characters.
fn cut(actor: &str) -> &str {
    let mut end = actor.len().min(ACTOR_BYTES_MAX);
    while !actor.is_char_boundary(end) {
        end -= 1;
    }
    &actor[..end]
}

/// The name of an act by the type of its request, or of its answer, if it is one:
/// `KickUserRequest` → `KickUser`.
pub(crate) fn act_of<T>() -> Option<&'static str> {
    let name = std::any::type_name::<T>().rsplit("::").next()?;
    let name = name.strip_suffix("Request").or_else(|| name.strip_suffix("Response"))?;
    is_act(name).then_some(name)
}

/// Whether a call with this name, such as `KickUser`, changes something and sends no message.
pub(crate) fn is_act(name: &str) -> bool {
    !READS.iter().any(|read| name.starts_with(read)) && !SENDS.contains(&name)
}

/// What a request is about: its ids, and nothing else of it.
pub(crate) fn target_of<Q: Serialize>(request: &Q) -> Value {
    let mut target = Map::new();
    if let Ok(Value::Object(fields)) = serde_json::to_value(request) {
        pick(&fields, &mut target);
    }
    Value::Object(target)
}

fn pick(fields: &Map<String, Value>, target: &mut Map<String, Value>) {
    for (name, value) in fields {
        if let Value::Object(inner) = value {
            match name == "targets" {
                true => pick(inner, target),
                // Which act of several it is says the name of its field, with ids in it or without.
                false => {
                    let mut inside = Map::new();
                    pick(inner, &mut inside);
                    target.insert(name.clone(), Value::Object(inside));
                }
            }
            continue;
        }
        if !TARGETS.contains(&name.as_str()) {
            continue;
        }
        let value = match value {
            Value::String(text) if text.is_empty() => continue,
            Value::Bool(false) => continue,
            Value::Array(ids) if ids.is_empty() => continue,
            Value::Array(ids) if ids.len() > IDS_MAX => {
                let mut shown = ids[..IDS_MAX].to_vec();
                shown.push(Value::from(format!("… {} in all", ids.len())));
                Value::Array(shown)
            }
            value => value.clone(),
        };
        target.insert(name.clone(), value);
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{
        Code,
        api::{
            AddMembersRequest, ForwardMessagesRequest, GetGroupRequest, KickUserRequest,
            PushRequest, PushTargets, RemoveGroupResponse, RevokeMessageRequest,
            SendMessageRequest,
        },
    };
    use serde_json::{Value, json};

    use super::{Audit, act_of, is_act, target_of};

    #[test]
    fn acts_are_calls_that_change_something_and_send_no_message() {
        assert_eq!(act_of::<KickUserRequest>(), Some("KickUser"));
        assert_eq!(act_of::<PushRequest>(), Some("Push"));
        assert_eq!(act_of::<RemoveGroupResponse>(), Some("RemoveGroup"));
        assert_eq!(act_of::<GetGroupRequest>(), None);
        assert_eq!(act_of::<RevokeMessageRequest>(), Some("RevokeMessage"));
        assert_eq!(act_of::<SendMessageRequest>(), None);
        assert_eq!(act_of::<ForwardMessagesRequest>(), None);
        assert_eq!(act_of::<()>(), None);
        assert!(is_act("BlockUser") && !is_act("GetRelation") && !is_act("ListRelations"));
    }

    #[test]
    fn a_target_holds_ids_and_no_text() {
        let kick = KickUserRequest { user_id: "ann".into(), reason: "secret".into() };
        assert_eq!(target_of(&kick), json!({ "user_id": "ann" }));
        let targets = PushTargets { user_ids: vec!["ann".into()], ..PushTargets::default() };
        let push =
            PushRequest { targets: Some(targets), body: "secret".into(), ..PushRequest::default() };
        assert_eq!(target_of(&push), json!({ "user_ids": ["ann"] }));
        let many = (0..50).map(|n| n.to_string()).collect();
        let added = target_of(&AddMembersRequest {
            group_id: "g".into(),
            user_ids: many,
            ..AddMembersRequest::default()
        });
        assert_eq!(added["user_ids"].as_array().map(Vec::len), Some(11));
        assert_eq!(added["user_ids"][10], json!("… 50 in all"));
    }

    #[test]
    fn each_act_is_one_line_of_json_in_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("audit.jsonl");
        let audit = Audit::to_file(&file).expect("opened");
        audit.note("http", "", "KickUser", &json!({ "user_id": "a\nb" }), Code::Ok);
        let long = "ä".repeat(100);
        audit.note("grpc", &long, "RemoveRoom", &json!({}), Code::NotFound);
        let text = std::fs::read_to_string(&file).expect("read");
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["actor"], &lines[0]["result"]), (&json!("api"), &json!("ok")));
        assert_eq!(lines[0]["target"]["user_id"], json!("a\nb"));
        assert_eq!((&lines[1]["code"], &lines[1]["door"]), (&json!(16), &json!("grpc")));
        assert_eq!(lines[1]["actor"], json!("ä".repeat(64)));
        assert_eq!(audit.lost(), 0);
    }
}
