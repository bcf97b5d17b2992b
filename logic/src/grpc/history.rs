//! `HistoryService`: what services do with messages that are stored.

use millrace_protocol::api::history_service_server::HistoryService;
use millrace_protocol::api::{
    DeleteMessagesRequest, DeleteMessagesResponse, ForwardMessagesRequest, PullMessagesRequest,
    PullMessagesResponse, RevokeMessageRequest, RevokeMessageResponse, SendMessageResponse,
};
use tonic::{Request, Response, Status};

use super::Door;

#[tonic::async_trait]
impl HistoryService for Door {
    async fn pull_messages(
        &self,
        request: Request<PullMessagesRequest>,
    ) -> Result<Response<PullMessagesResponse>, Status> {
        self.call(request, |api, request| async move { api.pull_messages(request).await }).await
    }

    async fn revoke_message(
        &self,
        request: Request<RevokeMessageRequest>,
    ) -> Result<Response<RevokeMessageResponse>, Status> {
        self.call(request, |api, request| async move { api.revoke_message(request).await }).await
    }

    async fn delete_messages(
        &self,
        request: Request<DeleteMessagesRequest>,
    ) -> Result<Response<DeleteMessagesResponse>, Status> {
        self.call(request, |api, request| async move { api.delete_messages(request).await }).await
    }

    async fn forward_messages(
        &self,
        request: Request<ForwardMessagesRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        self.call(request, |api, request| async move { api.forward_messages(request).await }).await
    }
}
