//! Which field of a request's message a part of the path, a parameter of the query or the body is.
//!
//! It follows from the message itself: what the path names is there, what is left is in the body or,
//! for calls without one, in the query. A value of the path wins over the body's.

use prost::encoding;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::operation::Operation;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    pub path: Vec<FieldDescriptor>,
    /// With the names of the parameters.
    pub query: Vec<(String, FieldDescriptor)>,
    /// The fields of the body; empty: it is not looked at.
    pub body: Vec<FieldDescriptor>,
    /// The body is the message of this field, and `body` holds what stands beside its fields.
    pub within: Option<FieldDescriptor>,
    presets: Vec<u8>,
}

impl Binding {
    /// # Panics
    /// The row names what its message does not have, or a parameter is of a type that has no text.
    pub(super) fn of(operation: &Operation, request: &MessageDescriptor) -> Self {
        let field = |name: &str| {
            let found = request.get_field_by_name(name);
            found.unwrap_or_else(|| panic!("{}: no field {name} in {request:?}", operation.path))
        };
        let path: Vec<_> = operation.path_names().map(field).collect();
        let within = operation.within.map(field);
        let mut presets = Vec::new();
        for (name, value) in &operation.presets {
            let put = put(&field(name), value, &mut presets);
            put.unwrap_or_else(|wanted| panic!("{}: {name} is not {wanted}", operation.path));
        }
        let is_open = |field: &FieldDescriptor| {
            let is_other_act = within.is_some() && field.containing_oneof().is_some();
            !path.contains(field)
                && !is_other_act
                && within.as_ref() != Some(field)
                && !operation.presets.iter().any(|(name, _)| *name == field.name())
        };
        let open = request.fields().filter(is_open).collect::<Vec<_>>();
        let (query, body) = match operation.with_body {
            true => (Vec::new(), open),
            false => (open, Vec::new()),
        };
        let name = |field: &FieldDescriptor| {
            let renamed = operation.renamed.iter().find(|(_, of)| *of == field.name());
            renamed.map_or(field.name(), |(parameter, _)| parameter).to_owned()
        };
        for field in path.iter().chain(&query) {
            assert!(has_text(field), "{}: {field:?} cannot be a parameter", operation.path);
        }
        let query = query.into_iter().map(|field| (name(&field), field)).collect();
        Self { path, query, body, within, presets }
    }

    /// Whether a body is read.
    pub(super) fn has_body(&self) -> bool {
        !self.body.is_empty() || self.within.is_some()
    }

    /// What the path, the query and the row say, encoded so that it can be merged into the message.
    /// `path` holds the decoded parts by their names.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub(super) fn encode<'a>(
        &self,
        path: impl Iterator<Item = (&'a str, &'a str)>,
        query: &str,
    ) -> Result<Vec<u8>, String> {
        let mut message = self.presets.clone();
        self.encode_query(query, &mut message)?;
        for (name, text) in path {
            let Some(field) = self.path.iter().find(|field| field.name() == name) else { continue };
            put(field, text, &mut message)
                .map_err(|wanted| format!("The {name} in the path is not {wanted}."))?;
        }
        Ok(message)
    }

    fn encode_query(&self, query: &str, message: &mut Vec<u8>) -> Result<(), String> {
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, text) = pair.split_once('=').unwrap_or((pair, ""));
            let Some((_, field)) = self.query.iter().find(|(known, _)| known == name) else {
                return Err(self.unknown(name));
            };
            if seen.contains(&name) && !field.is_list() {
                return Err(format!("The query holds {name} more than once."));
            }
            seen.push(name);
            let text = decoded(text)
                .ok_or_else(|| format!("The {name} in the query is not well encoded."))?;
            put(field, &text, message)
                .map_err(|wanted| format!("The {name} in the query is not {wanted}."))?;
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> String {
        let known: Vec<&str> = self.query.iter().map(|(name, _)| &**name).collect();
        match known.is_empty() {
            true => format!("There is no parameter {name:?}; this call has none in its query."),
            false => format!("There is no parameter {name:?}; there are {}.", known.join(", ")),
        }
    }
}

/// Whether a value of the field can be a piece of text.
fn has_text(field: &FieldDescriptor) -> bool {
    let is_text = matches!(
        field.kind(),
        Kind::String | Kind::Bool | Kind::Uint32 | Kind::Uint64 | Kind::Int32 | Kind::Int64
    );
    is_text && (!field.is_list() || field.kind() == Kind::String)
}

/// Appends a field with the value that a text says, also a value that is the default. Err: what it
/// should be.
fn put(field: &FieldDescriptor, text: &str, message: &mut Vec<u8>) -> Result<(), &'static str> {
    let number = field.number();
    match field.kind() {
        Kind::String => encoding::string::encode(number, &text.to_owned(), message),
        Kind::Bool => {
            let value = text.parse().map_err(|_| "\"true\" or \"false\"")?;
            encoding::bool::encode(number, &value, message);
        }
        Kind::Uint32 => {
            let value = text.parse().map_err(|_| "a whole number from 0 to 4294967295")?;
            encoding::uint32::encode(number, &value, message);
        }
        Kind::Uint64 => {
            let value = text.parse().map_err(|_| "a whole number from 0 on")?;
            encoding::uint64::encode(number, &value, message);
        }
        Kind::Int32 => {
            let value = text.parse().map_err(|_| "a whole number of 32 bits")?;
            encoding::int32::encode(number, &value, message);
        }
        Kind::Int64 => {
            let value = text.parse().map_err(|_| "a whole number")?;
            encoding::int64::encode(number, &value, message);
        }
        // Binding::of lets none in.
        _ => return Err("text"),
    }
    Ok(())
}

/// Percent-decoding, with `+` for a space. None: it is not well formed, or not UTF-8.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                rest = tail;
                let digit = |index: usize| char::from(digits[index]).to_digit(16);
                bytes.push((digit(0)? * 16 + digit(1)?) as u8);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use millrace_protocol::api::{PullMessagesRequest, RevokeMessageRequest, WatchPresenceRequest};
    use prost::Message;

    use super::*;
    use crate::http::operation::Who;

    fn binding(method: Method, path: &str, call: (&'static str, &str)) -> Binding {
        let operation = Operation::of_call(method, path, call, Who::Services, &[])
            .renamed("user_id", "user_ids");
        let request = operation.request().expect("a message");
        Binding::of(&operation, &request)
    }

    fn pull() -> Binding {
        let path = "/v1/conversations/{conversation_id}/messages";
        binding(Method::GET, path, ("HistoryService", "PullMessages"))
    }

    #[test]
    fn path_and_query_are_the_fields_of_the_message() {
        let path = [("conversation_id", "s:1:a:b")].into_iter();
        let query = "user_id=%C3%A4+%26&from_sequence=3&limit=0&newest_first=true";
        let encoded = pull().encode(path, query).expect("encoded");
        let request = PullMessagesRequest::decode(&*encoded).expect("decoded");
        let wanted = PullMessagesRequest {
            conversation_id: "s:1:a:b".into(),
            user_id: "\u{e4} &".into(),
            from_sequence: 3,
            newest_first: true,
            ..PullMessagesRequest::default()
        };
        assert_eq!(request, wanted);
    }

    #[test]
    fn what_the_query_cannot_mean_is_said() {
        for (query, reason) in [
            ("user=a", "There is no parameter \"user\"; there are user_id, from_sequence,"),
            ("conversation_id=x", "There is no parameter \"conversation_id\""),
            ("from_sequence=-1", "The from_sequence in the query is not a whole number from 0 on."),
            ("limit=", "The limit in the query is not a whole number from 0 to 4294967295."),
            ("newest_first=yes", "The newest_first in the query is not \"true\" or \"false\"."),
            ("limit=1&limit=2", "The query holds limit more than once."),
            ("user_id=%4", "The user_id in the query is not well encoded."),
            ("user_id=%+f", "The user_id in the query is not well encoded."),
            ("user_id=%zz", "The user_id in the query is not well encoded."),
            ("user_id=%ff", "The user_id in the query is not well encoded."),
        ] {
            let found = pull().encode(std::iter::empty(), query).expect_err(query);
            assert!(found.starts_with(reason), "{query}: {found}");
        }
    }

    #[test]
    fn a_list_is_a_parameter_that_comes_more_than_once() {
        let watch = binding(Method::GET, "/w", ("PresenceService", "WatchPresence"));
        let encoded = watch.encode(std::iter::empty(), "user_id=a&user_id=b").expect("encoded");
        let request = WatchPresenceRequest::decode(&*encoded).expect("decoded");
        assert_eq!(request.user_ids, ["a", "b"]);
    }

    #[test]
    fn a_path_wins_over_the_body_also_with_a_zero() {
        let path = "/v1/conversations/{conversation_id}/messages/{sequence}/revoke";
        let revoke = binding(Method::POST, path, ("HistoryService", "RevokeMessage"));
        assert_eq!(revoke.body.len(), 1);
        let parts = [("conversation_id", "g:x"), ("sequence", "0")].into_iter();
        let encoded = revoke.encode(parts, "").expect("encoded");
        let mut request = RevokeMessageRequest { sequence: 7, ..RevokeMessageRequest::default() };
        request.merge(&*encoded).expect("merged");
        assert_eq!((&*request.conversation_id, request.sequence), ("g:x", 0));
        let wrong = revoke.encode([("sequence", "x")].into_iter(), "").expect_err("refused");
        assert_eq!(wrong, "The sequence in the path is not a whole number from 0 on.");
    }
}
