//! What business services ask of notices: push one, see what became of it, watch.

use async_trait::async_trait;
use futures::stream::BoxStream;
use millrace_logic_sdk::Refused;
use millrace_protocol::api::{
    GetPushRequest, GetPushResponse, PushEvent, PushRequest, PushResponse, WatchPushRequest,
};

/// What becomes of notices, as it happens. Ends with a refusal, or with the process.
pub type PushEvents = BoxStream<'static, Result<PushEvent, Refused>>;

/// The calls of `push.proto`. As with [`Api`](super::Api), the caller has shown the token.
#[async_trait]
pub trait PushApi: Send + Sync + 'static {
    /// Pushes a notice, and keeps it for whom it has to be kept.
    async fn push(&self, request: PushRequest) -> Result<PushResponse, Refused>;

    /// A notice and its states.
    async fn get_push(&self, request: GetPushRequest) -> Result<GetPushResponse, Refused>;

    /// What becomes of one notice, or of all.
    async fn watch_push(&self, request: WatchPushRequest) -> Result<PushEvents, Refused>;
}
