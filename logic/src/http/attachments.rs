//! The HTTP operations of the attachments' service: what files there are as JSON, and their bytes as
//! they are, uploaded in parts or at once, downloaded with `Range`, `If-None-Match` and `If-Range`.

mod range;

use std::{ops::Range, sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::StreamExt as _;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{AttachmentInfo, CreateAttachmentRequest},
};
use serde::Deserialize;
use tokio::{sync::mpsc, time::timeout};

use self::range::{Asked, asked, content_range};
use super::{
    HttpSettings, answer,
    door::{self, Parts, query},
    operation::{Media, Operation, Who},
    refusal,
    routes::{Routes, operations},
    with_status,
};
use crate::{
    api::{AttachmentsApi as _, CallerGuard},
    attachments::{Attachments, Content},
};

type Door = door::Door<Attachments>;

/// Bytes of a refused body that are read and forgotten, and how long that may take.
const DRAINED_BYTES_MAX: usize = 8 << 20;

/// See [`DRAINED_BYTES_MAX`].
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Chunks of a download that wait for the connection.
const CHUNKS_QUEUED_MAX: usize = 4;

/// The operations, to be merged with those of [`super::router`].
pub fn router(api: Arc<Attachments>, guard: CallerGuard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "AttachmentService" for callers;
        POST "/v1/attachments" => create_attachment(Known) [NotPermitted];
        GET "/v1/attachments/{attachment_id}" => get_attachment(Known) [NotFound];
        DELETE "/v1/attachments/{attachment_id}" => remove_attachment(Known) [NotFound];
        GET "/v1/attachments/{attachment_id}/link" => get_attachment_link(Known) [NotFound];
        GET "/v1/users/{user_id}/attachments/usage" => get_attachment_usage(Known) [NotPermitted];
    }
    let (receiving, sending) = (Arc::clone(&door), Arc::clone(&door));
    routes.other(upload_of_all(), move |_, call| receive_all(Arc::clone(&door), call));
    routes
        .other(upload_of_a_part(), move |parts, call| receive(Arc::clone(&receiving), parts, call));
    // HEAD is answered as GET is, without the bytes.
    routes.other(download(), move |parts, call| send(Arc::clone(&sending), parts, call));
    routes
}

const CONTENT: &str = "/v1/attachments/{attachment_id}/content";

fn of_file(method: Method, path: &str, id: &str, who: Who, codes: &[Code]) -> Operation {
    Operation::alone(method, path, id, "Attachment", who, codes)
}

fn upload_of_all() -> Operation {
    let codes = [Code::NotPermitted];
    of_file(Method::POST, "/v1/upload", "UploadAttachment", Who::Known, &codes)
        .about(
            "Uploads a whole file. Its type is that of Content-Type, without parameters; its size, \
             which is needed, that of Content-Length.",
        )
        .parameter("query", "name", "string", "As in CreateAttachmentRequest.")
        .parameter("query", "sha256", "string", "As in CreateAttachmentRequest.")
        .parameter("query", "public", "boolean", "As in CreateAttachmentRequest.")
        .parameter("query", "user_id", "string", "As in CreateAttachmentRequest.")
        .file("The bytes of the file.")
        .answers(200, Media::Named("AttachmentInfo"), "All of it is kept.")
}

fn upload_of_a_part() -> Operation {
    let codes = [Code::NotFound, Code::AlreadyExists];
    of_file(Method::PUT, CONTENT, "UploadAttachmentPart", Who::Known, &codes)
        .about(
            "Uploads a part of a file, or all of it. A part starts where the part before ended: at \
             `received`, which GetAttachment tells after a connection broke off.",
        )
        .parameter("path", "attachment_id", "string", "What CreateAttachment answered.")
        .parameter(
            "header",
            "Content-Range",
            "string",
            "`bytes <first>-<last>/<size>`. Absent: the whole file. `bytes */<size>` with an empty \
             body ends an upload that could not be ended when it had arrived.",
        )
        .file("The bytes of the part.")
        .answers(200, Media::Named("AttachmentInfo"), "`received` says up to where it is kept.")
}

fn download() -> Operation {
    let id = "DownloadAttachment";
    of_file(Method::GET, CONTENT, id, Who::Anybody, &[Code::NotFound])
        .about(
            "Downloads a file, or a part of it. A token is needed, or `expires` and `signature` of a \
             link that GetAttachmentLink made. HEAD is answered without the bytes.",
        )
        .parameter("path", "attachment_id", "string", "What a message's attachment says.")
        .parameter("query", "expires", "integer", "Of a link.")
        .parameter("query", "signature", "string", "Of a link.")
        .parameter("header", "Range", "string", "One range; of more the whole file is sent.")
        .parameter("header", "If-None-Match", "string", "The ETag of a file that is there already.")
        .parameter("header", "If-Range", "string", "Range counts only if the ETag is this one.")
        .answers(200, Media::File, "The whole file, with its own type.")
        .answers(206, Media::File, "The part that Content-Range says.")
        .answers(304, Media::Nothing, "It is still the one that If-None-Match names.")
}

/// The only part of these paths that varies.
fn attachment_id(parts: Parts) -> Result<String, Refused> {
    let id = parts.and_then(|parts| parts.into_iter().next()).map(|(_, id)| id);
    id.ok_or_else(|| bad("The path is not UTF-8."))
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
async fn receive(door: Arc<Door>, parts: Parts, call: Request) -> Response {
    let origin = door.origin(&call);
    let (caller, permit) = match door.admit(Who::Known, origin).await {
        Ok(admitted) => admitted,
        Err(refused) => return refusal(&refused),
    };
    let (head, body) = call.into_parts();
    let wanted = attachment_id(parts).and_then(|id| Ok((id, part(&head.headers)?)));
    let (attachment_id, (offset, bytes_max)) = match wanted {
        Ok(wanted) => wanted,
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

async fn receive_all(door: Arc<Door>, call: Request) -> Response {
    let origin = door.origin(&call);
    let (caller, permit) = match door.admit(Who::Known, origin).await {
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

async fn send(door: Arc<Door>, parts: Parts, call: Request) -> Response {
    let named = attachment_id(parts).and_then(|id| Ok((id, query::<Link>(&call)?)));
    let (attachment_id, link) = match named {
        Ok(named) => named,
        Err(refused) => return refusal(&refused),
    };
    let link = (!link.signature.is_empty()).then_some(link);
    // A link says itself that it is good; a token that comes along is not looked at.
    let who = if link.is_some() { Who::Anybody } else { Who::Known };
    let origin = door.origin(&call);
    let origin = if link.is_some() { origin.without_token() } else { origin };
    let (caller, _permit) = match door.admit(who, origin).await {
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
