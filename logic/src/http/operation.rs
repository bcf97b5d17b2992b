//! One operation of the HTTP door: method and path, which call of a gRPC service it is, who may call,
//! and with which codes it refuses.
//!
//! Routes are made from these rows and from nothing else (`routes`), what is in a path, a query or
//! a body follows from the call's messages (`binding`), and the OpenAPI description is written from
//! both (`openapi`): none of them can say what another does not do.

use axum::http::Method;
use millrace_protocol::Code;
use prost_reflect::{MessageDescriptor, MethodDescriptor};

use super::descriptors;

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Everybody; a token is not looked at.
    Everyone,
    /// Everybody; a token that is shown must be good.
    Anybody,
    /// Users with their tokens, and services.
    Known,
    /// Services with the API token.
    Services,
}

/// Something in a path, a query or a header beside the fields of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter {
    /// `path`, `query` or `header`.
    pub place: &'static str,
    pub name: &'static str,
    /// A type of JSON schema.
    pub kind: &'static str,
    pub about: &'static str,
}

/// What an answer or a body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// The message of the call, in JSON.
    Message,
    /// A message with this name, in JSON.
    Named(&'static str),
    /// Server-sent events, each with the message of the call in JSON.
    Events,
    /// The bytes of a file.
    File,
    /// `{"status", "reason"?}`.
    Health,
    /// The OpenAPI description.
    Description,
    /// Nothing.
    Nothing,
}

/// An answer other than a refusal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub about: &'static str,
    pub media: Media,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub method: Method,
    pub path: String,
    /// Unique; what generated clients call it.
    pub id: String,
    /// The name of the group that it is shown in.
    pub tag: &'static str,
    /// What it does, if that is not said at `call`.
    pub about: String,
    /// The call of a gRPC service that does the same.
    pub call: Option<MethodDescriptor>,
    pub who: Who,
    /// Those that follow from what it does; what every operation refuses with is not among them.
    pub codes: Vec<Code>,
    /// Fields of the message that are not in the path are in the body, whatever the method.
    pub with_body: bool,
    /// The body is the message of this field, with the other fields of the request beside its own.
    pub within: Option<&'static str>,
    /// Fields of the message with the values that they have here.
    pub presets: Vec<(&'static str, &'static str)>,
    /// Parameters of the query that are not named as their field: parameter, field.
    pub renamed: Vec<(&'static str, &'static str)>,
    pub parameters: Vec<Parameter>,
    /// A body that is no message.
    pub file: Option<&'static str>,
    pub answers: Vec<Answer>,
}

impl Operation {
    /// The same as the call `method` of the gRPC service `service`.
    ///
    /// # Panics
    /// There is no such call.
    pub(super) fn of_call(
        method: Method,
        path: &str,
        (service, call): (&'static str, &str),
        who: Who,
        codes: &[Code],
    ) -> Self {
        let Some(descriptor) = descriptors::method(service, call) else {
            panic!("{method} {path}: there is no call {service}.{call}");
        };
        Self {
            call: Some(descriptor),
            answers: vec![Answer { status: 200, about: "Done.", media: Media::Message }],
            ..Self::alone(method, path, call, service, who, codes)
        }
    }

    /// One that HTTP alone has.
    pub(super) fn alone(
        method: Method,
        path: &str,
        id: &str,
        tag: &'static str,
        who: Who,
        codes: &[Code],
    ) -> Self {
        Self {
            with_body: method == Method::POST || method == Method::PUT || method == Method::PATCH,
            method,
            path: path.to_owned(),
            id: id.to_owned(),
            tag: tag.strip_suffix("Service").unwrap_or(tag),
            about: String::new(),
            call: None,
            who,
            codes: codes.to_vec(),
            within: None,
            presets: Vec::new(),
            renamed: Vec::new(),
            parameters: Vec::new(),
            file: None,
            answers: Vec::new(),
        }
    }

    pub(super) fn named(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    pub(super) fn about(mut self, about: impl Into<String>) -> Self {
        self.about = about.into();
        self
    }

    pub(super) fn with_body(mut self) -> Self {
        self.with_body = true;
        self
    }

    pub(super) fn within(mut self, field: &'static str) -> Self {
        self.within = Some(field);
        self
    }

    pub(super) fn preset(mut self, field: &'static str, value: &'static str) -> Self {
        self.presets.push((field, value));
        self
    }

    pub(super) fn renamed(mut self, parameter: &'static str, field: &'static str) -> Self {
        self.renamed.push((parameter, field));
        self
    }

    pub(super) fn parameter(
        mut self,
        place: &'static str,
        name: &'static str,
        kind: &'static str,
        about: &'static str,
    ) -> Self {
        self.parameters.push(Parameter { place, name, kind, about });
        self
    }

    pub(super) fn file(mut self, about: &'static str) -> Self {
        self.file = Some(about);
        self
    }

    pub(super) fn answers(mut self, status: u16, media: Media, about: &'static str) -> Self {
        self.answers.retain(|answer| answer.status != status);
        self.answers.push(Answer { status, about, media });
        self
    }

    /// The message of the request.
    pub(super) fn request(&self) -> Option<MessageDescriptor> {
        self.call.as_ref().map(MethodDescriptor::input)
    }

    /// The names in braces in the path.
    pub(super) fn path_names(&self) -> impl Iterator<Item = &str> {
        self.path
            .split('/')
            .filter_map(|part| part.strip_prefix('{').and_then(|name| name.strip_suffix('}')))
    }

    /// Whether a body is looked at.
    pub(super) fn has_body(&self) -> bool {
        let elsewhere = self.path_names().count() + self.presets.len();
        let is_left = |request: MessageDescriptor| request.fields().len() > elsewhere;
        self.file.is_some() || (self.with_body && self.request().is_some_and(is_left))
    }

    /// The codes of every refusal that may come, each once.
    pub(super) fn all_codes(&self) -> Vec<Code> {
        let mut codes = self.codes.clone();
        if self.who == Who::Everyone {
            return codes;
        }
        codes.extend([
            Code::BadRequest,
            Code::BadToken,
            Code::OverCapacity,
            Code::LogicUnavailable,
            Code::Internal,
        ]);
        if matches!(self.who, Who::Anybody | Who::Known) {
            codes.extend([Code::TokenExpired, Code::RateLimited]);
        }
        if self.has_body() {
            codes.push(Code::TooLarge);
        }
        codes.sort_unstable();
        codes.dedup();
        codes
    }
}
