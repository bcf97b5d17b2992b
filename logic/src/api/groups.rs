//! Groups beyond their making, and a user's conversations: what services may ask. The
//! messages are those of `groups.proto`.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    api::{
        ChangeGroupRequest, ChangeGroupResponse, ListConversationsRequest, ListJoinRequestsRequest,
        ListMembersRequest, ListReceiptsRequest,
    },
    chat::{ConversationsReply, GroupJoinRequestsReply, GroupMembersReply, PullReceiptsReply},
};

/// As [`Api`](super::Api), for acts on groups and for what a user would pull.
#[async_trait]
pub trait GroupsApi: Send + Sync + 'static {
    /// Does something to a group, in a user's name or as the system.
    async fn change_group(
        &self,
        request: ChangeGroupRequest,
    ) -> Result<ChangeGroupResponse, Refused>;

    /// A group's members and their roles, by pages.
    async fn list_members(&self, request: ListMembersRequest)
    -> Result<GroupMembersReply, Refused>;

    /// Who wants to come in, by pages.
    async fn list_join_requests(
        &self,
        request: ListJoinRequestsRequest,
    ) -> Result<GroupJoinRequestsReply, Refused>;

    /// Who has got and read a message, by pages.
    async fn list_receipts(
        &self,
        request: ListReceiptsRequest,
    ) -> Result<PullReceiptsReply, Refused>;

    /// A user's conversations, by pages.
    async fn list_conversations(
        &self,
        request: ListConversationsRequest,
    ) -> Result<ConversationsReply, Refused>;
}
