//! Topics over gRPC.

use std::sync::Arc;

use futures::{StreamExt as _, stream::BoxStream};
use millrace_protocol::api::{
    CommitOffsetRequest, CommitOffsetResponse, ConsumeRequest, ConsumeResponse, ListTopicsRequest,
    ListTopicsResponse, ReadTopicRequest, ReadTopicResponse,
    topic_service_server::{TopicService, TopicServiceServer},
};
use tonic::{Request, Response, Status};

use super::{Door, MESSAGE_BYTES_MAX, status};
use crate::api::{Guard, reports::TopicsApi};

/// The service.
pub fn service(
    api: Arc<dyn TopicsApi>,
    guard: Guard,
) -> TopicServiceServer<impl TopicService + use<>> {
    TopicServiceServer::new(Door { api, guard }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl TopicService for Door<dyn TopicsApi> {
    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        self.call(request, |api, request| async move { api.list_topics(request).await }).await
    }

    async fn read_topic(
        &self,
        request: Request<ReadTopicRequest>,
    ) -> Result<Response<ReadTopicResponse>, Status> {
        self.call(request, |api, request| async move { api.read_topic(request).await }).await
    }

    async fn commit_offset(
        &self,
        request: Request<CommitOffsetRequest>,
    ) -> Result<Response<CommitOffsetResponse>, Status> {
        self.call(request, |api, request| async move { api.commit_offset(request).await }).await
    }

    type ConsumeStream = BoxStream<'static, Result<ConsumeResponse, Status>>;

    async fn consume(
        &self,
        request: Request<ConsumeRequest>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let begun =
            self.call(request, |api, request| async move { api.consume(request).await }).await?;
        let stream = begun.into_inner();
        Ok(Response::new(stream.map(|next| next.map_err(|refused| status(&refused))).boxed()))
    }
}
