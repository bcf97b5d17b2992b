//! The HTTP/1.1 upgrade that opens a WebSocket connection (RFC 6455 section 4), for both sides.
//!
//! Both readers are handed all bytes that have arrived so far and say whether the head is whole;
//! the caller keeps them, at most [`limits::UPGRADE_REQUEST_BYTES_MAX`]. Which paths, origins and
//! subprotocols are served is the caller's decision, not made here.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sha1::{Digest as _, Sha1};

use crate::{Code, limits};

/// Appended to the key before it is hashed (RFC 6455 section 1.3).
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How far the request head has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpgradeProgress {
    /// Nothing wrong so far; more bytes are needed.
    Incomplete,
    /// The head is whole.
    Complete {
        /// Bytes of the head; WebSocket frames may follow it in the same input.
        consumed: usize,
        /// What was asked for.
        upgrade: Upgrade,
    },
}

/// A valid upgrade request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The path, without the query.
    pub path: String,
    /// Subprotocols on offer, the client's favourite first.
    pub subprotocols: Vec<String>,
    /// Who asks, if a browser does.
    pub origin: Option<String>,
    /// The value of `Sec-WebSocket-Accept`.
    pub accept_key: [u8; 28],
}

/// Why an upgrade failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// Not HTTP.
    #[error("the bytes are not an HTTP/1.1 message")]
    NotHttp,
    /// The request line and headers are too long, or too many.
    #[error(
        "the request head is above {} bytes or {} headers",
        limits::UPGRADE_REQUEST_BYTES_MAX,
        limits::UPGRADE_HEADERS_MAX
    )]
    HeadTooLarge,
    /// Something else than GET.
    #[error("only GET opens a WebSocket")]
    Method,
    /// HTTP/1.0.
    #[error("HTTP/1.1 is required")]
    HttpVersion,
    /// No Host header, or more than one.
    #[error("exactly one Host header is required")]
    Host,
    /// The request announces a body.
    #[error("an upgrade request has no body")]
    Body,
    /// A plain HTTP request.
    #[error("this address speaks WebSocket; ask for an upgrade")]
    NotAnUpgrade,
    /// Sec-WebSocket-Version is not 13.
    #[error("only WebSocket version 13 is spoken")]
    WebSocketVersion,
    /// Sec-WebSocket-Key is not the base64 of 16 bytes, or not there exactly once.
    #[error("exactly one Sec-WebSocket-Key of 16 bytes in base64 is required")]
    Key,
    /// Sec-WebSocket-Protocol is not a list of tokens, or names one twice.
    #[error("Sec-WebSocket-Protocol must list each subprotocol once")]
    Subprotocol,
    /// The server does not serve this path.
    #[error("nothing is served at this path")]
    Path,
    /// The server does not serve pages of this origin.
    #[error("this origin is not allowed")]
    Origin,
    /// The server refuses for a reason of its own: full, draining, too many from one address.
    #[error("{}", .0.sentence())]
    Refused(Code),
    /// Client side: the server answered with another status than 101.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// Client side: a 101 that does not answer this request.
    #[error("the server's answer does not fit the request")]
    BadAnswer,
}

impl UpgradeError {
    /// The HTTP status of the refusal.
    pub const fn status(&self) -> u16 {
        match self {
            Self::HeadTooLarge => 431,
            Self::Method => 405,
            Self::HttpVersion => 505,
            Self::NotAnUpgrade | Self::WebSocketVersion => 426,
            Self::Path => 404,
            Self::Origin => 403,
            Self::Refused(code) => match code {
                Code::RateLimited => 429,
                Code::LoginTimeout | Code::IdleTimeout => 408,
                Code::NotFound => 404,
                Code::NotPermitted => 403,
                Code::OverCapacity | Code::Draining | Code::LogicUnavailable => 503,
                Code::Internal => 500,
                _ => 400,
            },
            Self::Status(status) => *status,
            _ => 400,
        }
    }

    /// The row of the product's table of codes.
    pub const fn code(&self) -> Code {
        match self {
            Self::HeadTooLarge => Code::TooLarge,
            Self::HttpVersion | Self::WebSocketVersion => Code::UnsupportedVersion,
            Self::Path => Code::NotFound,
            Self::Origin => Code::NotPermitted,
            Self::Refused(code) => *code,
            _ => Code::BadFrame,
        }
    }
}

/// Reads an upgrade request from all bytes that have arrived on a connection.
///
/// # Errors
/// Why it is refused; answer with [`write_upgrade_refusal`] and close.
pub fn read_upgrade(input: &[u8]) -> Result<UpgradeProgress, UpgradeError> {
    let head = &input[..input.len().min(limits::UPGRADE_REQUEST_BYTES_MAX)];
    let mut headers = [httparse::EMPTY_HEADER; limits::UPGRADE_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let consumed = match request.parse(head).map_err(not_http)? {
        httparse::Status::Complete(consumed) => consumed,
        httparse::Status::Partial if head.len() == limits::UPGRADE_REQUEST_BYTES_MAX => {
            return Err(UpgradeError::HeadTooLarge);
        }
        httparse::Status::Partial => return Ok(UpgradeProgress::Incomplete),
    };

    if request.method != Some("GET") {
        return Err(UpgradeError::Method);
    }
    if request.version != Some(1) {
        return Err(UpgradeError::HttpVersion);
    }
    let headers = &*request.headers;
    only(headers, "host").ok_or(UpgradeError::Host)?;
    let announces_body = all(headers, "transfer-encoding").next().is_some()
        || all(headers, "content-length").any(|value| value != b"0");
    if announces_body {
        return Err(UpgradeError::Body);
    }
    if !has_token(headers, "upgrade", "websocket") || !has_token(headers, "connection", "upgrade") {
        return Err(UpgradeError::NotAnUpgrade);
    }
    if only(headers, "sec-websocket-version") != Some(b"13") {
        return Err(UpgradeError::WebSocketVersion);
    }
    let key = only(headers, "sec-websocket-key").ok_or(UpgradeError::Key)?;
    if BASE64.decode(key).map_err(|_| UpgradeError::Key)?.len() != 16 {
        return Err(UpgradeError::Key);
    }
    let origin = match all(headers, "origin").next() {
        Some(value) => {
            Some(std::str::from_utf8(value).map_err(|_| UpgradeError::NotHttp)?.to_owned())
        }
        None => None,
    };
    let upgrade = Upgrade {
        path: path(request.path.unwrap_or_default()).to_owned(),
        subprotocols: subprotocols(headers)?,
        origin,
        accept_key: accept_key(key),
    };
    Ok(UpgradeProgress::Complete { consumed, upgrade })
}

/// Appends the `101 Switching Protocols`. `subprotocol` must be one of those on offer.
pub fn write_upgrade_response(out: &mut Vec<u8>, upgrade: &Upgrade, subprotocol: Option<&str>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&upgrade.accept_key);
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends a whole HTTP response that refuses the upgrade: status, and `{"code", "reason"}` in
/// JSON. The connection is to be closed after it.
pub fn write_upgrade_refusal(out: &mut Vec<u8>, error: &UpgradeError) {
    let status = error.status();
    let body = serde_json::json!({ "code": error.code().number(), "reason": error.to_string() })
        .to_string();
    let extra = match error {
        UpgradeError::Method => "Allow: GET\r\n",
        UpgradeError::NotAnUpgrade | UpgradeError::WebSocketVersion => {
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        }
        _ => "",
    };
    // RFC 9110 section 7.8: a 426 names what to upgrade to, and Connection names that header.
    let connection = if status == 426 { "close, Upgrade" } else { "close" };
    let head = format!(
        "HTTP/1.1 {status} {}\r\nConnection: {connection}\r\n{extra}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        status_text(status),
        body.len()
    );
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(body.as_bytes());
}

/// Client side: appends an upgrade request. The key is 16 fresh random bytes.
pub fn write_upgrade_request(
    out: &mut Vec<u8>,
    host: &str,
    path: &str,
    subprotocol: Option<&str>,
    key: &[u8; 16],
) {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n",
        BASE64.encode(key)
    );
    out.extend_from_slice(request.as_bytes());
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(b"Sec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Client side: reads the answer to a request with `key`, from all bytes that have arrived.
/// Returns the bytes of the head and the chosen subprotocol, or `None` while it is not whole.
///
/// # Errors
/// [`UpgradeError::Status`] for a refusal; its body is not read.
pub fn read_upgrade_response(
    input: &[u8],
    key: &[u8; 16],
) -> Result<Option<(usize, Option<String>)>, UpgradeError> {
    let head = &input[..input.len().min(limits::UPGRADE_REQUEST_BYTES_MAX)];
    let mut headers = [httparse::EMPTY_HEADER; limits::UPGRADE_HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let consumed = match response.parse(head).map_err(not_http)? {
        httparse::Status::Complete(consumed) => consumed,
        httparse::Status::Partial if head.len() == limits::UPGRADE_REQUEST_BYTES_MAX => {
            return Err(UpgradeError::HeadTooLarge);
        }
        httparse::Status::Partial => return Ok(None),
    };
    match response.code {
        Some(101) => {}
        Some(status) => return Err(UpgradeError::Status(status)),
        None => return Err(UpgradeError::NotHttp),
    }
    let headers = &*response.headers;
    let expected = accept_key(BASE64.encode(key).as_bytes());
    let fits = has_token(headers, "upgrade", "websocket")
        && has_token(headers, "connection", "upgrade")
        && only(headers, "sec-websocket-accept") == Some(&expected)
        && all(headers, "sec-websocket-extensions").next().is_none();
    if !fits {
        return Err(UpgradeError::BadAnswer);
    }
    let mut subprotocols = subprotocols(headers)?;
    if subprotocols.len() > 1 {
        return Err(UpgradeError::BadAnswer);
    }
    Ok(Some((consumed, subprotocols.pop())))
}

fn not_http(error: httparse::Error) -> UpgradeError {
    match error {
        httparse::Error::TooManyHeaders => UpgradeError::HeadTooLarge,
        _ => UpgradeError::NotHttp,
    }
}

/// The values of a header, without the white space around them.
fn all<'a>(
    headers: &'a [httparse::Header<'a>],
    name: &'a str,
) -> impl Iterator<Item = &'a [u8]> + 'a {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value.trim_ascii())
}

/// The value of a header that must be there exactly once.
fn only<'a>(headers: &'a [httparse::Header<'a>], name: &'a str) -> Option<&'a [u8]> {
    let mut values = all(headers, name);
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// Whether the comma-separated lists of a header hold a token, in any case.
fn has_token(headers: &[httparse::Header<'_>], name: &str, token: &str) -> bool {
    all(headers, name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The items of Sec-WebSocket-Protocol, over all of its lines, in order.
fn subprotocols(headers: &[httparse::Header<'_>]) -> Result<Vec<String>, UpgradeError> {
    let mut names: Vec<String> = Vec::new();
    for value in all(headers, "sec-websocket-protocol") {
        for item in value.split(|byte| *byte == b',') {
            let item = item.trim_ascii();
            // Lists may have empty items (RFC 9110 section 5.6.1.2).
            if item.is_empty() {
                continue;
            }
            let name = std::str::from_utf8(item).map_err(|_| UpgradeError::Subprotocol)?;
            if !name.bytes().all(is_token_byte) || names.iter().any(|other| other == name) {
                return Err(UpgradeError::Subprotocol);
            }
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// A character of a token (RFC 9110 section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The path of a request target in origin form or absolute form, without the query.
fn path(target: &str) -> &str {
    let origin_form = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            rest.find('/').map_or("/", |slash| &rest[slash..])
        }
        _ => target,
    };
    origin_form.split(['?', '#']).next().unwrap_or_default()
}

/// The value of Sec-WebSocket-Accept for a key in base64 (RFC 6455 section 4.2.2).
fn accept_key(key: &[u8]) -> [u8; 28] {
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX).finalize();
    let mut accept = [0; 28];
    let written = BASE64.encode_slice(digest, &mut accept);
    assert_eq!(written, Ok(28), "20 bytes are 28 characters of base64");
    accept
}

/// The reason phrase of the statuses used here.
const fn status_text(status: u16) -> &'static str {
    match status {
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Bad Request",
    }
}
