//! Acts on groups, and a user's conversations, over gRPC.

use std::sync::Arc;

use millrace_protocol::{
    api::{
        ChangeGroupRequest, ChangeGroupResponse, ListConversationsRequest, ListJoinRequestsRequest,
        ListMembersRequest, ListReceiptsRequest,
        group_act_service_server::{GroupActService, GroupActServiceServer},
    },
    chat::{ConversationsReply, GroupJoinRequestsReply, GroupMembersReply, PullReceiptsReply},
};
use tonic::{Request, Response, Status, service::Routes};

use super::{Door, MESSAGE_BYTES_MAX};
use crate::api::{Guard, groups::GroupsApi};

/// Adds the service to others.
pub fn add_to(routes: Routes, api: Arc<dyn GroupsApi>, guard: Guard) -> Routes {
    let groups = GroupActServiceServer::from_arc(Arc::new(Door { api, guard }));
    routes.add_service(groups.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

#[tonic::async_trait]
impl GroupActService for Door<dyn GroupsApi> {
    async fn change_group(
        &self,
        request: Request<ChangeGroupRequest>,
    ) -> Result<Response<ChangeGroupResponse>, Status> {
        self.call(request, |api, request| async move { api.change_group(request).await }).await
    }

    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Result<Response<GroupMembersReply>, Status> {
        self.call(request, |api, request| async move { api.list_members(request).await }).await
    }

    async fn list_join_requests(
        &self,
        request: Request<ListJoinRequestsRequest>,
    ) -> Result<Response<GroupJoinRequestsReply>, Status> {
        self.call(request, |api, request| async move { api.list_join_requests(request).await })
            .await
    }

    async fn list_receipts(
        &self,
        request: Request<ListReceiptsRequest>,
    ) -> Result<Response<PullReceiptsReply>, Status> {
        self.call(request, |api, request| async move { api.list_receipts(request).await }).await
    }

    async fn list_conversations(
        &self,
        request: Request<ListConversationsRequest>,
    ) -> Result<Response<ConversationsReply>, Status> {
        self.call(request, |api, request| async move { api.list_conversations(request).await })
            .await
    }
}
