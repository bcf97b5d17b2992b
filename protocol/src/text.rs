//! The envelope of the WebSocket text form, subprotocol `millrace.v1.json`:
//! `{"command": "send_message", "request_id": 7, "body": {…}}`.
//!
//! A command travels by its name in [`command`], or by its number (0 to 32767). A reply says
//! `"reply": true`. `"retransmission"` and `"no_store"` stand for the flags of the binary form.
//! Members that are not known are ignored; one that is there twice is refused. The body is kept
//! as it came: this file does not know what it means.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Code, command, frame::Flags};

/// One parsed text message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The command's number, without [`command::REPLY_BIT`].
    pub command: u16,
    /// The message answers a request.
    pub is_reply: bool,
    /// Chosen by the sender, echoed in the reply; 0 wants no reply.
    pub request_id: u32,
    /// Always with [`Flags::JSON`].
    pub flags: Flags,
    /// JSON as it came; `{}` if there was none.
    pub body: &'a str,
}

/// Why a text message was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Not a JSON object, or one with a member twice.
    #[error("the message is not a JSON envelope: {sentence}")]
    NotAnEnvelope {
        /// What the JSON parser says.
        sentence: String,
    },
    /// A member is missing, or has the wrong type or value.
    #[error("\"{member}\" must be {expected}")]
    BadMember {
        /// Which one.
        member: &'static str,
        /// What it must be.
        expected: &'static str,
        /// The message's request id, or 0.
        request_id: u32,
    },
    /// A name that the table of commands does not have.
    #[error("there is no command with this name; unnamed commands travel by number")]
    UnknownCommand {
        /// The message's request id, or 0.
        request_id: u32,
    },
}

impl TextError {
    /// The row of the product's table of codes.
    pub const fn code(&self) -> Code {
        match self {
            Self::UnknownCommand { .. } => Code::UnknownCommand,
            _ => Code::BadFrame,
        }
    }

    /// The request id of the refused message, or 0 if it could not be read.
    pub const fn request_id(&self) -> u32 {
        match self {
            Self::NotAnEnvelope { .. } => 0,
            Self::BadMember { request_id, .. } | Self::UnknownCommand { request_id } => *request_id,
        }
    }
}

/// The members, not looked at yet, so that a refusal can name the one that is wrong and still
/// carry the request id.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow)]
    command: Option<&'a RawValue>,
    #[serde(borrow)]
    request_id: Option<&'a RawValue>,
    #[serde(borrow)]
    reply: Option<&'a RawValue>,
    #[serde(borrow)]
    retransmission: Option<&'a RawValue>,
    #[serde(borrow)]
    no_store: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Command<'a> {
    Number(u16),
    #[serde(borrow)]
    Name(Cow<'a, str>),
}

/// Reads an envelope.
///
/// # Errors
/// What is wrong with it, with the request id if that could be read.
pub fn parse(text: &str) -> Result<Envelope<'_>, TextError> {
    if !text.trim_ascii_start().starts_with('{') {
        return Err(TextError::NotAnEnvelope { sentence: "not an object".to_owned() });
    }
    let members: Members<'_> = serde_json::from_str(text)
        .map_err(|error| TextError::NotAnEnvelope { sentence: error.to_string() })?;

    let request_id = match members.request_id {
        None => 0,
        Some(raw) => serde_json::from_str(raw.get()).map_err(|_| TextError::BadMember {
            member: "request_id",
            expected: "an integer from 0 to 4294967295",
            request_id: 0,
        })?,
    };
    let boolean = |member: &'static str, raw: Option<&RawValue>| match raw {
        None => Ok(false),
        Some(raw) => serde_json::from_str(raw.get()).map_err(|_| TextError::BadMember {
            member,
            expected: "true or false",
            request_id,
        }),
    };
    let bad_command = TextError::BadMember {
        member: "command",
        expected: "a name or an integer from 0 to 32767",
        request_id,
    };
    let command = match members.command.map(|raw| serde_json::from_str(raw.get())) {
        Some(Ok(Command::Number(number))) if !command::is_reply(number) => number,
        Some(Ok(Command::Name(name))) => {
            command::from_name(&name).ok_or(TextError::UnknownCommand { request_id })?
        }
        _ => return Err(bad_command),
    };
    let is_reply = boolean("reply", members.reply)?;
    let mut flags = Flags::JSON;
    if boolean("retransmission", members.retransmission)? {
        flags = flags.with(Flags::RETRANSMISSION);
    }
    if boolean("no_store", members.no_store)? {
        flags = flags.with(Flags::NO_STORE);
    }
    let body = members.body.map_or("{}", RawValue::get);
    Ok(Envelope { command, is_reply, request_id, flags, body })
}

/// Appends an envelope. `command` carries [`command::REPLY_BIT`] for a reply; an empty body is
/// written as `{}`. `body_json` must be JSON in UTF-8; it is copied as it is.
pub fn write(out: &mut Vec<u8>, command: u16, request_id: u32, body_json: &[u8]) {
    let number = command & !command::REPLY_BIT;
    out.reserve(body_json.len() + 80);
    out.extend_from_slice(b"{\"command\":");
    match command::name(number) {
        Some(name) => {
            out.push(b'"');
            out.extend_from_slice(name.as_bytes());
            out.push(b'"');
        }
        None => out.extend_from_slice(number.to_string().as_bytes()),
    }
    if command::is_reply(command) {
        out.extend_from_slice(b",\"reply\":true");
    }
    out.extend_from_slice(b",\"request_id\":");
    out.extend_from_slice(request_id.to_string().as_bytes());
    out.extend_from_slice(b",\"body\":");
    out.extend_from_slice(if body_json.is_empty() { b"{}" } else { body_json });
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::{TextError, parse, write};
    use crate::{Code, command, frame::Flags};

    #[test]
    fn an_envelope_survives_a_round_trip() {
        let written = |command, request_id, body: &[u8]| {
            let mut out = Vec::new();
            write(&mut out, command, request_id, body);
            String::from_utf8(out).expect("UTF-8")
        };
        let text = written(command::reply(command::SEND_MESSAGE), 7, br#"{"code":0}"#);
        let envelope = parse(&text).expect("valid");
        assert_eq!((envelope.command, envelope.is_reply), (command::SEND_MESSAGE, true));
        assert_eq!((envelope.request_id, envelope.body), (7, r#"{"code":0}"#));
        let text = written(0x1234, 0, b"");
        let envelope = parse(&text).expect("valid");
        assert_eq!((envelope.command, envelope.is_reply), (0x1234, false));
        assert_eq!((envelope.request_id, envelope.body), (0, "{}"));
        assert_eq!(envelope.flags, Flags::JSON);
    }

    #[test]
    fn a_refusal_names_the_member_and_keeps_the_request_id() {
        let refuse = |text: &str| parse(text).expect_err("refused");
        assert_eq!(refuse(r#"{"request_id": 9}"#).request_id(), 9);
        assert_eq!(refuse(r#"{"request_id": 9, "command": "no"}"#).code(), Code::UnknownCommand);
        assert!(matches!(
            refuse(r#"{"request_id": 9, "command": 1, "reply": 1}"#),
            TextError::BadMember { member: "reply", request_id: 9, .. }
        ));
        assert_eq!(refuse(r#"{"request_id": -1, "command": 1}"#).request_id(), 0);
        assert_eq!(refuse("[1]").code(), Code::BadFrame);
        assert_eq!(refuse(r#"{"command": 1, "command": 2}"#).code(), Code::BadFrame);
        assert_eq!(refuse(r#"{"command": 33281}"#).code(), Code::BadFrame);
    }
}
