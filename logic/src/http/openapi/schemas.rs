//! JSON schemas of messages, in the form that the HTTP door reads and writes.
//!
//! A message has two: in an answer every field stands that is no object and not optional, in a
//! request any may be absent. One that occurs in both has the second as `<name>Input`.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use crate::http::descriptors::{comment_of_field, comment_of_message, short_name};

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Request,
    Answer,
}

/// The schemas so far.
pub(super) struct Schemas {
    done: BTreeMap<String, Value>,
    /// Full names of what answers hold, at any depth.
    in_answers: BTreeSet<String>,
}

impl Schemas {
    /// `answers` are the messages of all answers.
    pub(super) fn new(answers: Vec<MessageDescriptor>) -> Self {
        let (mut in_answers, mut left) = (BTreeSet::new(), answers);
        while let Some(message) = left.pop() {
            if in_answers.insert(message.full_name().to_owned()) {
                let fields = message.fields();
                left.extend(fields.filter_map(|field| field.kind().as_message().cloned()));
            }
        }
        Self { done: BTreeMap::new(), in_answers }
    }

    /// All of them by name.
    pub(super) fn into_components(self) -> BTreeMap<String, Value> {
        self.done
    }

    /// A reference to the schema of a message, which is made if it is not there.
    pub(super) fn reference(&mut self, message: &MessageDescriptor, way: Direction) -> Value {
        let is_twofold = way == Direction::Request && self.in_answers.contains(message.full_name());
        let name = short_name(message) + if is_twofold { "Input" } else { "" };
        if !self.done.contains_key(&name) {
            // Its place first: a message may hold itself.
            self.done.insert(name.clone(), Value::Null);
            let schema = self.object(message.fields(), way, comment_of_message(message));
            self.done.insert(name.clone(), schema);
        }
        reference_to(&name)
    }

    /// A reference to the schema of a body with these fields.
    ///
    /// # Panics
    /// Another body has the same name and other fields.
    pub(super) fn body<'a>(
        &mut self,
        name: &str,
        fields: impl Iterator<Item = &'a FieldDescriptor>,
        about: &str,
    ) -> Value {
        let schema = self.object(fields.cloned(), Direction::Request, about);
        let there = self.done.entry(name.to_owned()).or_insert_with(|| schema.clone());
        assert_eq!(*there, schema, "two bodies are called {name}");
        reference_to(name)
    }

    fn object(
        &mut self,
        fields: impl Iterator<Item = FieldDescriptor>,
        way: Direction,
        about: &str,
    ) -> Value {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for field in fields {
            let mut schema = self.of_field(&field, way);
            let comment = comment_of_field(&field);
            if !comment.is_empty() {
                schema["description"] = json!(comment);
            }
            properties.insert(field.name().to_owned(), schema);
            if way == Direction::Answer && !field.supports_presence() {
                required.push(field.name().to_owned());
            }
        }
        let mut object = json!({ "type": "object", "properties": properties });
        if !required.is_empty() {
            object["required"] = json!(required);
        }
        if !about.is_empty() {
            object["description"] = json!(about);
        }
        object
    }

    fn of_field(&mut self, field: &FieldDescriptor, way: Direction) -> Value {
        if field.is_map()
            && let Kind::Message(entry) = field.kind()
        {
            let value = self.of_kind(&entry.map_entry_value_field().kind(), way);
            return json!({ "type": "object", "additionalProperties": value });
        }
        let one = self.of_kind(&field.kind(), way);
        match field.is_list() {
            true => json!({ "type": "array", "items": one }),
            false => one,
        }
    }

    fn of_kind(&mut self, kind: &Kind, way: Direction) -> Value {
        match kind {
            Kind::Message(message) => self.reference(message, way),
            Kind::Enum(names) => {
                let names: Vec<_> = names.values().map(|value| value.name().to_owned()).collect();
                json!({ "type": "string", "enum": names })
            }
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                json!({ "type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$" })
            }
            Kind::Uint64 | Kind::Fixed64 => {
                json!({ "type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$" })
            }
            other => scalar(other),
        }
    }
}

/// The schema of a parameter in a path or a query, where every value is text anyway.
pub(super) fn parameter_schema(field: &FieldDescriptor) -> Value {
    let one = match field.kind() {
        Kind::Int64 => json!({ "type": "integer", "format": "int64" }),
        Kind::Uint64 => json!({ "type": "integer", "format": "uint64", "minimum": 0 }),
        other => scalar(&other),
    };
    match field.is_list() {
        true => json!({ "type": "array", "items": one }),
        false => one,
    }
}

fn scalar(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Double | Kind::Float => json!({ "type": "number" }),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            json!({ "type": "integer", "format": "int32" })
        }
        Kind::Uint32 | Kind::Fixed32 => {
            json!({ "type": "integer", "format": "uint32", "minimum": 0, "maximum": u32::MAX })
        }
        Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
        _ => json!({ "type": "string" }),
    }
}

fn reference_to(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}
