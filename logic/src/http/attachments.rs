//! The HTTP routes of the attachments' service: what files there are as JSON, and their bytes as they
//! are.
//!
//! | call | answer |
//! |---|---|
//! | `POST /v1/attachments` | `AttachmentInfo`: an upload begins |
//! | `PUT /v1/attachments/{attachment_id}/content` | `AttachmentInfo`: a part, at its `Content-Range` |
//! | `POST /v1/upload?name=&sha256=&public=&user_id=` | `AttachmentInfo`: a whole file, its type and size in the headers |
//! | `GET`, `DELETE /v1/attachments/{attachment_id}` | `AttachmentInfo`, `RemoveAttachmentResponse` |
//! | `GET`, `HEAD /v1/attachments/{attachment_id}/content` | the bytes; `Range`, `If-None-Match`, `If-Range`; with a token, or `expires` and `signature` of a link |
//! | `GET /v1/attachments/{attachment_id}/link` | `AttachmentLink` |
//! | `GET /v1/users/{user_id}/attachments/usage` | `AttachmentUsage` |

mod range;

use std::{ops::Range, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, BodyDataStream, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use futures::StreamExt as _;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{AttachmentInfo, AttachmentRequest, AttachmentUsageRequest, CreateAttachmentRequest},
};
use serde::Deserialize;
use tokio::{sync::mpsc, time::timeout};

use self::range::{Asked, asked, content_range};
use super::{
    HttpSettings, Id, answer,
    caller::{CallerDoor, query},
    no_such_method, refusal, with_status,
};
use crate::{
    api::{Access, AttachmentsApi as _, CallerGuard},
    attachments::{Attachments, Content},
};

type Door = CallerDoor<Attachments>;

/// Bytes of a refused body that are read and forgotten, and how long that may take.
const DRAINED_BYTES_MAX: usize = 8 << 20;

/// See [`DRAINED_BYTES_MAX`].
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Chunks of a download that wait for the connection.
const CHUNKS_QUEUED_MAX: usize = 4;

/// The routes; merged with those of [`super::router`].
pub fn router(api: Arc<Attachments>, guard: CallerGuard, settings: HttpSettings) -> Router {
    Router::new()
        .route("/v1/attachments", post(create))
        .route("/v1/attachments/{attachment_id}", get(get_info).delete(remove))
        .route("/v1/attachments/{attachment_id}/content", put(receive).get(send))
        .route("/v1/attachments/{attachment_id}/link", get(link))
        .route("/v1/upload", post(receive_all))
        .route("/v1/users/{user_id}/attachments/usage", get(usage))
        .method_not_allowed_fallback(no_such_method)
        .with_state(Arc::new(Door { api, guard, settings }))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Nothing {}

async fn create(State(door): State<Arc<Door>>, call: Request) -> Response {
    door.call(Access::Known, call, |api, caller, request| async move {
        api.create_attachment(&caller, request).await
    })
    .await
}

async fn get_info(State(door): State<Arc<Door>>, Id(attachment_id): Id, call: Request) -> Response {
    door.query(call, |api, caller, Nothing {}| async move {
        api.get_attachment(&caller, AttachmentRequest { attachment_id }).await
    })
    .await
}

async fn remove(State(door): State<Arc<Door>>, Id(attachment_id): Id, call: Request) -> Response {
    door.query(call, |api, caller, Nothing {}| async move {
        api.remove_attachment(&caller, AttachmentRequest { attachment_id }).await
    })
    .await
}

async fn link(State(door): State<Arc<Door>>, Id(attachment_id): Id, call: Request) -> Response {
    door.query(call, |api, caller, Nothing {}| async move {
        api.get_attachment_link(&caller, AttachmentRequest { attachment_id }).await
    })
    .await
}

async fn usage(State(door): State<Arc<Door>>, Id(user_id): Id, call: Request) -> Response {
    door.query(call, |api, caller, Nothing {}| async move {
        api.get_attachment_usage(&caller, AttachmentUsageRequest { user_id }).await
    })
    .await
}

fn bad(reason: &str) -> Refused {
    Refused::new(Code::BadRequest, reason)
}

/// A number of a header.
fn number(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Lets a call in, and receives what its body says on a task of its own: a connection that breaks
/// off must not take with it what has arrived.
async fn receive(State(door): State<Arc<Door>>, Id(attachment_id): Id, call: Request) -> Response {
    let origin = door.origin(&call);
    let (caller, permit) = match door.admit(Access::Known, origin).await {
        Ok(admitted) => admitted,
        Err(refused) => return refusal(&refused),
    };
    let (parts, body) = call.into_parts();
    let (offset, bytes_max) = match part(&parts.headers) {
        Ok(part) => part,
        Err(refused) => return refusal(&refused),
    };
    let api = Arc::clone(&door.api);
    let receiving = tokio::spawn(async move {
        let _permit = permit;
        let mut body = body.into_data_stream();
        let received = api.receive(&caller, &attachment_id, offset, bytes_max, &mut body).await;
        if received.is_err() {
            drain(body).await;
        }
        received
    });
    received(receiving.await)
}

/// Reads what is left of a body that was refused, so far: a client that is still sending it when the
/// connection is closed would not get to read the answer.
async fn drain(mut body: BodyDataStream) {
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = body.next().await {
            bytes += chunk.len();
            if bytes > DRAINED_BYTES_MAX {
                break;
            }
        }
    };
    // Either way the connection is closed after the answer.
    let _in_time = timeout(DRAIN_TIMEOUT, reading).await;
}

fn received(result: Result<Result<AttachmentInfo, Refused>, tokio::task::JoinError>) -> Response {
    match result {
        Ok(result) => {
            let mut response = answer(result);
            if !response.status().is_success() {
                // What is left of the body is not read, so nothing can follow it.
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
        Err(error) => {
            tracing::error!(%error, "receiving a file ended");
            refusal(&Refused::from(Code::Internal))
        }
    }
}

/// Where a part starts, and how long it may be. Without `Content-Range` it is the whole file; an
/// empty one, `bytes */<size>`, asks to end an upload that could not be ended when it had arrived.
fn part(headers: &HeaderMap) -> Result<(Option<u64>, u64), Refused> {
    let Some(value) = headers.get(header::CONTENT_RANGE) else {
        return Ok((Some(0), number(headers, header::CONTENT_LENGTH).unwrap_or(u64::MAX)));
    };
    let value = value.to_str().unwrap_or_default();
    if value.starts_with("bytes */") {
        return Ok((None, 0));
    }
    let range = content_range(value)
        .ok_or_else(|| bad("Content-Range is no \"bytes <first>-<last>/<size>\"."))?;
    Ok((Some(range.start), range.end - range.start))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Upload {
    name: String,
    sha256: String,
    public: bool,
    user_id: String,
}

async fn receive_all(State(door): State<Arc<Door>>, call: Request) -> Response {
    let origin = door.origin(&call);
    let (caller, permit) = match door.admit(Access::Known, origin).await {
        Ok(admitted) => admitted,
        Err(refused) => return refusal(&refused),
    };
    let request = query(&call).and_then(|upload: Upload| {
        let Upload { name, sha256, public, user_id } = upload;
        let size = number(call.headers(), header::CONTENT_LENGTH)
            .ok_or_else(|| bad("The size of the file is needed, as Content-Length."))?;
        let r#type = call.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        // Parameters such as a charset are not kept.
        let r#type = r#type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let r#type = r#type.to_owned();
        Ok(CreateAttachmentRequest { user_id, name, r#type, size, sha256, public })
    });
    let request = match request {
        Ok(request) => request,
        Err(refused) => return refusal(&refused),
    };
    let api = Arc::clone(&door.api);
    let receiving = tokio::spawn(async move {
        let _permit = permit;
        let mut body = call.into_body().into_data_stream();
        let received = api.receive_all(&caller, request, &mut body).await;
        if received.is_err() {
            drain(body).await;
        }
        received
    });
    received(receiving.await)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Link {
    expires: i64,
    signature: String,
}

async fn send(State(door): State<Arc<Door>>, Id(attachment_id): Id, call: Request) -> Response {
    let link: Link = match query(&call) {
        Ok(link) => link,
        Err(refused) => return refusal(&refused),
    };
    let link = (!link.signature.is_empty()).then_some(link);
    // A link says itself that it is good; a token that comes along is not looked at.
    let access = if link.is_some() { Access::Anybody } else { Access::Known };
    let origin = door.origin(&call);
    let origin = if link.is_some() { origin.without_token() } else { origin };
    let (caller, _permit) = match door.admit(access, origin).await {
        Ok(admitted) => admitted,
        Err(refused) => return refusal(&refused),
    };
    let with_bytes = call.method() != Method::HEAD;
    let headers = call.headers().clone();
    let wanted = move |info: &AttachmentInfo| match asked(&headers, &info.sha256, info.size) {
        Asked::Nothing => Ok(None),
        Asked::All => Ok(Some(0..info.size)),
        Asked::Part(range) => Ok(Some(range)),
        Asked::Beyond => Err(Refused::new(Code::BadRequest, "The range is not within the file.")),
    };
    let link = link.as_ref().map(|link| (link.expires, &*link.signature));
    let content =
        door.api.content(&caller, &attachment_id, link, with_bytes, Box::new(wanted)).await;
    match content {
        Ok(content) => sent(content, door.api.stall_timeout()),
        Err(refused) if refused.reason.starts_with("The range") => {
            with_status(StatusCode::RANGE_NOT_SATISFIABLE, &refused)
        }
        Err(refused) => refusal(&refused),
    }
}

/// The answer with a file's bytes.
fn sent(content: Content, stall_timeout: Duration) -> Response {
    let Content { info, range, inline, stream, permit } = content;
    let mut headers = HeaderMap::new();
    let mut insert = |name: HeaderName, value: String| {
        // Names are written so that they fit; what does not fit is left out.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    insert(header::ETAG, format!("\"{}\"", info.sha256));
    insert(header::ACCEPT_RANGES, "bytes".to_owned());
    // What an id names never changes, but who may read it does.
    insert(header::CACHE_CONTROL, "private, max-age=3600".to_owned());
    insert(header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned());
    insert(header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".to_owned());
    if range.is_empty() {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    insert(header::CONTENT_TYPE, info.r#type.clone());
    insert(header::CONTENT_DISPOSITION, disposition(inline, &info.name));
    insert(header::CONTENT_LENGTH, (range.end - range.start).to_string());
    let is_part = range != (0..info.size);
    if is_part {
        let Range { start, end } = range;
        insert(header::CONTENT_RANGE, format!("bytes {start}-{}/{}", end - 1, info.size));
    }
    let status = if is_part { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let Some(mut stream) = stream else { return (status, headers).into_response() };
    // A task reads ahead a little and gives up on a connection that takes nothing, so that nobody
    // holds one of the downloads for ever.
    let (chunks, taken) = mpsc::channel::<std::io::Result<Bytes>>(CHUNKS_QUEUED_MAX);
    tokio::spawn(async move {
        let _permit = permit;
        while let Some(chunk) = stream.next().await {
            if let Err(error) = &chunk {
                tracing::error!(%error, "a file was not read to its end");
            }
            let is_last = chunk.is_err();
            if chunks.send_timeout(chunk, stall_timeout).await.is_err() || is_last {
                return;
            }
        }
    });
    let body = futures::stream::unfold(taken, |mut taken| async move {
        taken.recv().await.map(|chunk| (chunk, taken))
    });
    (status, headers, Body::from_stream(body)).into_response()
}

/// How a browser treats the file (RFC 6266), with its name in UTF-8 (RFC 8187).
fn disposition(inline: bool, name: &str) -> String {
    use std::fmt::Write as _;
    let mut text = if inline { "inline" } else { "attachment" }.to_owned();
    if !name.is_empty() {
        text.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            let _infallible = match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                true => write!(text, "{}", byte as char),
                false => write!(text, "%{byte:02X}"),
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::disposition;

    #[test]
    fn a_name_cannot_break_out_of_its_header() {
        assert_eq!(disposition(true, ""), "inline");
        assert_eq!(
            disposition(false, "a \"b\"\r\n\u{e4}.png"),
            "attachment; filename*=UTF-8''a%20%22b%22%0D%0A%C3%A4.png"
        );
    }
}
