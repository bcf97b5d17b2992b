//! The HTTP client of all providers: HTTP/2 where the other end speaks it, bounded times and answers,
//! no proxy, no redirects.

use std::{fs, io, path::PathBuf, time::Duration};

use reqwest::{Response, StatusCode, header};

use super::Delivery;

/// Bytes of an answer that are read; what is beyond says nothing that matters.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Longest sentence of a provider that is taken over.
const REASON_BYTES_MAX: usize = 200;

/// How a [`Client`] works.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// From the first byte sent to the last received. Default 10 s.
    pub timeout: Duration,
    /// For a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// A PEM file with a certificate authority that is trusted besides the system's; empty: none.
    pub ca_file: PathBuf,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            ca_file: PathBuf::new(),
        }
    }
}

/// See the module. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) inner: reqwest::Client,
}

/// What came back, as far as it matters.
pub(super) struct Answer {
    pub status: StatusCode,
    pub retry_after: Option<Duration>,
    pub body: Vec<u8>,
}

impl Client {
    /// Makes one.
    ///
    /// # Errors
    /// The file of the certificate authority cannot be read, or TLS cannot be set up.
    pub fn new(settings: &ClientSettings) -> io::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("millrace/", env!("CARGO_PKG_VERSION")))
            .timeout(settings.timeout)
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(Duration::from_secs(600))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if !settings.ca_file.as_os_str().is_empty() {
            let file = settings.ca_file.display();
            let pem = fs::read(&settings.ca_file)
                .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))?;
            let authority = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| io::Error::other(format!("{file}: {error}")))?;
            builder = builder.tls_certs_merge(authority);
        }
        let inner = builder.build().map_err(io::Error::other)?;
        Ok(Self { inner })
    }
}

/// Sends a request and reads its answer.
pub(super) async fn send(request: reqwest::RequestBuilder) -> Result<Answer, Delivery> {
    let failed = |error: reqwest::Error| Delivery::Later(causes(&error.without_url()), None);
    let mut response: Response = request.send().await.map_err(failed)?;
    let status = response.status();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(failed)? {
        let room = ANSWER_BYTES_MAX - body.len();
        body.extend_from_slice(&part[..part.len().min(room)]);
        if body.len() == ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok(Answer { status, retry_after, body })
}

impl Answer {
    /// The JSON of the body; null if it is none.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// What to make of an answer that the provider's own rules do not cover.
    pub(super) fn otherwise(&self, reason: &str) -> Delivery {
        let mut reason = format!("{}: {reason}", self.status);
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        let busy = self.status == StatusCode::TOO_MANY_REQUESTS
            || self.status == StatusCode::REQUEST_TIMEOUT
            || self.status.is_server_error();
        match busy {
            true => Delivery::Later(reason, self.retry_after),
            false => Delivery::Refused(reason),
        }
    }
}

/// An error and what is behind it, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
