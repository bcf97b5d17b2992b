//! Sessions and presence over gRPC.

use std::sync::Arc;

use futures::{StreamExt as _, stream::BoxStream};
use millrace_protocol::api::{
    KickSessionsRequest, KickSessionsResponse, ListSessionsRequest, ListSessionsResponse,
    LogoutEverywhereRequest, LogoutEverywhereResponse, QueryPresenceRequest, QueryPresenceResponse,
    WatchPresenceRequest, WatchPresenceResponse,
    presence_service_server::{PresenceService, PresenceServiceServer},
    session_service_server::{SessionService, SessionServiceServer},
};
use tonic::{Request, Response, Status, service::Routes};

use super::{Door, MESSAGE_BYTES_MAX};
use crate::api::{Guard, sessions::SessionsApi};

/// Adds the services to others.
pub fn add_to(routes: Routes, api: Arc<dyn SessionsApi>, guard: Guard) -> Routes {
    let door = Arc::new(Door { api, guard });
    let sessions = SessionServiceServer::from_arc(Arc::clone(&door));
    let presence = PresenceServiceServer::from_arc(door);
    routes
        .add_service(sessions.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(presence.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

#[tonic::async_trait]
impl SessionService for Door<dyn SessionsApi> {
    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        self.call(request, |api, request| async move { api.list_sessions(request).await }).await
    }

    async fn kick_sessions(
        &self,
        request: Request<KickSessionsRequest>,
    ) -> Result<Response<KickSessionsResponse>, Status> {
        self.call(request, |api, request| async move { api.kick_sessions(request).await }).await
    }

    async fn logout_everywhere(
        &self,
        request: Request<LogoutEverywhereRequest>,
    ) -> Result<Response<LogoutEverywhereResponse>, Status> {
        self.call(request, |api, request| async move { api.logout_everywhere(request).await }).await
    }
}

#[tonic::async_trait]
impl PresenceService for Door<dyn SessionsApi> {
    async fn query_presence(
        &self,
        request: Request<QueryPresenceRequest>,
    ) -> Result<Response<QueryPresenceResponse>, Status> {
        self.call(request, |api, request| async move { api.query_presence(request).await }).await
    }

    type WatchPresenceStream = BoxStream<'static, Result<WatchPresenceResponse, Status>>;

    async fn watch_presence(
        &self,
        request: Request<WatchPresenceRequest>,
    ) -> Result<Response<Self::WatchPresenceStream>, Status> {
        let begun = self
            .call(request, |api, request| async move { api.watch_presence(request).await })
            .await?;
        Ok(Response::new(begun.into_inner().map(Ok).boxed()))
    }
}
