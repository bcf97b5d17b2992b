//! The HTTP client that the verifiers ask with: no redirects, no proxy, one time limit for all of a
//! call, and bodies of a bounded size.

use std::time::Duration;

use reqwest::{Client, Response, redirect::Policy};

/// Why the other side gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The client cannot be made: the system's certificates cannot be read, say.
    #[error("no HTTP client can be made: {0}")]
    Client(String),
    /// The address is not one of HTTP.
    #[error("{0:?} is not an http:// or https:// URL")]
    Url(String),
    /// No connection, or no answer in time.
    #[error("it does not answer: {0}")]
    Unreachable(String),
    /// A status that means nothing to us.
    #[error("it answers with status {0}")]
    Status(u16),
    /// An answer that is too large.
    #[error("its answer has more than {0} bytes")]
    TooLarge(usize),
    /// An answer that cannot be read.
    #[error("its answer is not the JSON expected: {0}")]
    Malformed(String),
}

/// A client whose calls take at most this long, all together.
pub(super) fn client(timeout: Duration) -> Result<Client, FetchError> {
    Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .redirect(Policy::none())
        .no_proxy()
        .user_agent(concat!("millrace-logic/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| FetchError::Client(causes(&error)))
}

/// Whether an address can be asked.
pub(super) fn check_url(url: &str) -> Result<(), FetchError> {
    match reqwest::Url::parse(url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => Ok(()),
        _ => Err(FetchError::Url(url.to_owned())),
    }
}

/// The body, if it is not too large.
pub(super) async fn body(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(FetchError::TooLarge(bytes_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

pub(super) fn unreachable(error: &reqwest::Error) -> FetchError {
    FetchError::Unreachable(causes(error))
}

/// What is wrong, down to the cause; the first line of these errors alone says nothing.
fn causes(error: &reqwest::Error) -> String {
    let mut text =
        if error.is_timeout() { "no answer in time".to_owned() } else { error.to_string() };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
