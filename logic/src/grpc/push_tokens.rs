//! Push tokens over gRPC.

use std::sync::Arc;

use millrace_protocol::api::{
    AddPushTokenRequest, AddPushTokenResponse, ListPushTokensRequest, ListPushTokensResponse,
    RemovePushTokenRequest, RemovePushTokenResponse,
    push_token_service_server::{PushTokenService, PushTokenServiceServer},
};
use tonic::{Request, Response, Status};

use super::{Door, MESSAGE_BYTES_MAX};
use crate::api::{Guard, push_tokens::PushTokensApi};

/// The service.
pub fn service(
    api: Arc<dyn PushTokensApi>,
    guard: Guard,
) -> PushTokenServiceServer<impl PushTokenService + use<>> {
    PushTokenServiceServer::new(Door { api, guard }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl PushTokenService for Door<dyn PushTokensApi> {
    async fn add_push_token(
        &self,
        request: Request<AddPushTokenRequest>,
    ) -> Result<Response<AddPushTokenResponse>, Status> {
        self.call(request, |api, request| async move { api.add_push_token(request).await }).await
    }

    async fn list_push_tokens(
        &self,
        request: Request<ListPushTokensRequest>,
    ) -> Result<Response<ListPushTokensResponse>, Status> {
        self.call(request, |api, request| async move { api.list_push_tokens(request).await }).await
    }

    async fn remove_push_token(
        &self,
        request: Request<RemovePushTokenRequest>,
    ) -> Result<Response<RemovePushTokenResponse>, Status> {
        self.call(request, |api, request| async move { api.remove_push_token(request).await }).await
    }
}
