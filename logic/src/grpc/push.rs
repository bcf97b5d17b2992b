//! Notices over gRPC.

use std::sync::Arc;

use futures::{StreamExt as _, stream::BoxStream};
use millrace_protocol::api::{
    GetPushRequest, GetPushResponse, PushEvent, PushRequest, PushResponse, WatchPushRequest,
    push_service_server::{PushService, PushServiceServer},
};
use tonic::{Request, Response, Status};

use super::{Door, MESSAGE_BYTES_MAX, status};
use crate::api::{Guard, push::PushApi};

/// The service.
pub fn service(api: Arc<dyn PushApi>, guard: Guard) -> PushServiceServer<impl PushService + use<>> {
    PushServiceServer::new(Door { api, guard }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl PushService for Door<dyn PushApi> {
    async fn push(&self, request: Request<PushRequest>) -> Result<Response<PushResponse>, Status> {
        self.call(request, |api, request| async move { api.push(request).await }).await
    }

    async fn get_push(
        &self,
        request: Request<GetPushRequest>,
    ) -> Result<Response<GetPushResponse>, Status> {
        self.call(request, |api, request| async move { api.get_push(request).await }).await
    }

    type WatchPushStream = BoxStream<'static, Result<PushEvent, Status>>;

    async fn watch_push(
        &self,
        request: Request<WatchPushRequest>,
    ) -> Result<Response<Self::WatchPushStream>, Status> {
        let begun =
            self.call(request, |api, request| async move { api.watch_push(request).await }).await?;
        let stream = begun.into_inner();
        Ok(Response::new(stream.map(|next| next.map_err(|refused| status(&refused))).boxed()))
    }
}
