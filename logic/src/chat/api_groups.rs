//! What services ask about groups, and about a user's conversations.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        ChangeGroupRequest, ChangeGroupResponse, ListConversationsRequest, ListJoinRequestsRequest,
        ListMembersRequest, ListReceiptsRequest,
    },
    chat::{
        ConversationsReply, GroupActReply, GroupJoinRequests, GroupJoinRequestsReply, GroupMembers,
        GroupMembersReply, PullConversations, PullReceipts, PullReceiptsReply,
    },
};

use super::{Chat, groups, reads};
use crate::api::groups::GroupsApi;

impl Chat {
    fn counted<T>(&self, result: Result<T, Refused>) -> Result<T, Refused> {
        result.inspect_err(|refused| self.core.count_refusal(refused.code))
    }
}

#[async_trait]
impl GroupsApi for Chat {
    async fn change_group(
        &self,
        request: ChangeGroupRequest,
    ) -> Result<ChangeGroupResponse, Refused> {
        let ChangeGroupRequest { group_id, actor_user_id, act } = request;
        let Some(act) = act else {
            let reason = "An act is needed, such as \"announce\".";
            return self.counted(Err(Refused::new(Code::BadRequest, reason)));
        };
        let changed = self.act(group_id, actor_user_id, act).await?;
        let GroupActReply { code, reason, group_id, conversation_id, changed, waiting, sequence } =
            groups::reply_of(&changed);
        Ok(ChangeGroupResponse {
            code,
            reason,
            group_id,
            conversation_id,
            changed,
            waiting,
            sequence,
        })
    }

    async fn list_members(
        &self,
        request: ListMembersRequest,
    ) -> Result<GroupMembersReply, Refused> {
        let ListMembersRequest { group_id, after_user_id, limit } = request;
        let request = GroupMembers { group_id, after_user_id, limit };
        self.counted(groups::members_page(&self.core, None, request).await)
    }

    async fn list_join_requests(
        &self,
        request: ListJoinRequestsRequest,
    ) -> Result<GroupJoinRequestsReply, Refused> {
        let ListJoinRequestsRequest { group_id, after_user_id, limit } = request;
        let request = GroupJoinRequests { group_id, after_user_id, limit };
        self.counted(groups::join_requests_page(&self.core, None, request).await)
    }

    async fn list_receipts(
        &self,
        request: ListReceiptsRequest,
    ) -> Result<PullReceiptsReply, Refused> {
        let ListReceiptsRequest { conversation_id, sequence, filter, after_user_id, limit } =
            request;
        let request = PullReceipts { conversation_id, sequence, filter, after_user_id, limit };
        self.counted(groups::receipts_page(&self.core, None, request).await)
    }

    async fn list_conversations(
        &self,
        request: ListConversationsRequest,
    ) -> Result<ConversationsReply, Refused> {
        let ListConversationsRequest {
            user_id,
            since_version,
            limit,
            newest_first,
            before_version,
        } = request;
        let pull = PullConversations { since_version, limit, newest_first, before_version };
        let page = reads::conversations_page(&self.core, &user_id, pull).await;
        self.counted(page.map_err(|error| groups::unread(&self.core, &error)))
    }
}
