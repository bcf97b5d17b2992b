//! What business services ask of topics: read them from any offset or time, consume them, and say
//! how far they are.

use async_trait::async_trait;
use futures::stream::BoxStream;
use millrace_logic_sdk::Refused;
use millrace_protocol::api::{
    CommitOffsetRequest, CommitOffsetResponse, ConsumeRequest, ConsumeResponse, ListTopicsRequest,
    ListTopicsResponse, ReadTopicRequest, ReadTopicResponse,
};

/// Records of one consumer, as they come. Ends with a refusal, or with the process.
pub type Consumed = BoxStream<'static, Result<ConsumeResponse, Refused>>;

/// The calls of `reports.proto`. As with [`Api`](super::Api), the caller has shown the token.
#[async_trait]
pub trait TopicsApi: Send + Sync + 'static {
    /// Every topic, with its consumers.
    async fn list_topics(&self, request: ListTopicsRequest) -> Result<ListTopicsResponse, Refused>;

    /// Records from an offset or a time on, committing nothing.
    async fn read_topic(&self, request: ReadTopicRequest) -> Result<ReadTopicResponse, Refused>;

    /// Moves what a consumer has committed.
    async fn commit_offset(
        &self,
        request: CommitOffsetRequest,
    ) -> Result<CommitOffsetResponse, Refused>;

    /// Every record after what a consumer has committed, as it comes.
    async fn consume(&self, request: ConsumeRequest) -> Result<Consumed, Refused>;
}
