//! An [`Api`] for the tests of both doors: it knows one group, and echoes what it was asked.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use millrace_protocol::api::{
    AddMembersRequest, AddMembersResponse, BroadcastRequest, BroadcastResponse, CreateGroupRequest,
    CreateGroupResponse, GetGroupRequest, GetGroupResponse, GetPresenceRequest,
    GetPresenceResponse, KickUserRequest, KickUserResponse, PresenceSession,
    PublishRoomMessageRequest, PublishRoomMessageResponse, RemoveGroupRequest, RemoveGroupResponse,
    RemoveMembersRequest, RemoveMembersResponse, SendMessageRequest, SendMessageResponse,
};
use millrace_protocol::api::{
    DeleteMessagesRequest, DeleteMessagesResponse, ForwardMessagesRequest, PullMessagesRequest,
    PullMessagesResponse, RevokeMessageRequest, RevokeMessageResponse,
};

use super::{Api, HistoryApi};

/// See the module. A `client_message_id` that is the label of a code makes `send_message` refuse
/// with that code.
pub(crate) struct EchoApi;

pub(crate) const GROUP: &str = "team/1";

fn known(group_id: &str) -> Result<(), Refused> {
    if group_id == GROUP { Ok(()) } else { Err(Refused::from(Code::NotFound)) }
}

#[async_trait]
impl Api for EchoApi {
    async fn create_group(
        &self,
        request: CreateGroupRequest,
    ) -> Result<CreateGroupResponse, Refused> {
        let conversation_id = format!("{}:{}", request.name, request.members.join(","));
        Ok(CreateGroupResponse { group_id: request.group_id, conversation_id })
    }

    async fn get_group(&self, request: GetGroupRequest) -> Result<GetGroupResponse, Refused> {
        known(&request.group_id)?;
        Ok(GetGroupResponse {
            group_id: request.group_id,
            created_at_ms: 1_700_000_000_000,
            ..GetGroupResponse::default()
        })
    }

    async fn remove_group(
        &self,
        request: RemoveGroupRequest,
    ) -> Result<RemoveGroupResponse, Refused> {
        known(&request.group_id)?;
        Ok(RemoveGroupResponse::default())
    }

    async fn add_members(&self, request: AddMembersRequest) -> Result<AddMembersResponse, Refused> {
        known(&request.group_id)?;
        let added = request.user_ids.len() as u32;
        Ok(AddMembersResponse { added, ..AddMembersResponse::default() })
    }

    async fn remove_members(
        &self,
        request: RemoveMembersRequest,
    ) -> Result<RemoveMembersResponse, Refused> {
        known(&request.group_id)?;
        let removed = request.user_ids.len() as u32;
        Ok(RemoveMembersResponse { removed, ..RemoveMembersResponse::default() })
    }

    async fn send_message(
        &self,
        request: SendMessageRequest,
    ) -> Result<SendMessageResponse, Refused> {
        let wanted = Code::ALL.iter().find(|code| code.label() == request.client_message_id);
        if let Some(code) = wanted {
            return Err(Refused::new(*code, "as wanted").retry_after(1_500));
        }
        let message_id = format!("{}>{}", request.sender_id, request.user_id);
        Ok(SendMessageResponse { message_id, sequence: 7, ..SendMessageResponse::default() })
    }

    async fn publish_room_message(
        &self,
        request: PublishRoomMessageRequest,
    ) -> Result<PublishRoomMessageResponse, Refused> {
        let reason = format!("{}: {}", request.room_id, request.body);
        Ok(PublishRoomMessageResponse { reason, members: 3, code: 0 })
    }

    async fn broadcast(&self, request: BroadcastRequest) -> Result<BroadcastResponse, Refused> {
        Ok(BroadcastResponse { reason: request.body, sessions: 4, ..BroadcastResponse::default() })
    }

    async fn kick_user(&self, request: KickUserRequest) -> Result<KickUserResponse, Refused> {
        let reason = format!("{}: {}", request.user_id, request.reason);
        Ok(KickUserResponse { reason, sessions: 2, ..KickUserResponse::default() })
    }

    async fn get_presence(
        &self,
        request: GetPresenceRequest,
    ) -> Result<GetPresenceResponse, Refused> {
        let session = PresenceSession { device_id: request.user_id, ..PresenceSession::default() };
        Ok(GetPresenceResponse { online: true, sessions: vec![session] })
    }
}

#[async_trait]
impl HistoryApi for EchoApi {
    async fn pull_messages(
        &self,
        request: PullMessagesRequest,
    ) -> Result<PullMessagesResponse, Refused> {
        let message = millrace_protocol::chat::Message {
            conversation_id: request.conversation_id,
            sender_id: request.user_id,
            sequence: request.from_sequence,
            ..Default::default()
        };
        let complete = request.newest_first;
        Ok(PullMessagesResponse { messages: vec![message], complete, ..Default::default() })
    }

    async fn revoke_message(
        &self,
        request: RevokeMessageRequest,
    ) -> Result<RevokeMessageResponse, Refused> {
        let RevokeMessageRequest { conversation_id, sequence, actor_user_id } = request;
        let reason = format!("{conversation_id} {sequence} {actor_user_id}");
        Ok(RevokeMessageResponse { reason, changed: true, code: 0 })
    }

    async fn delete_messages(
        &self,
        request: DeleteMessagesRequest,
    ) -> Result<DeleteMessagesResponse, Refused> {
        let reason = format!("{} {}", request.conversation_id, request.user_id);
        Ok(DeleteMessagesResponse { reason, deleted: request.sequences.len() as u32, code: 0 })
    }

    async fn forward_messages(
        &self,
        request: ForwardMessagesRequest,
    ) -> Result<SendMessageResponse, Refused> {
        let message_id = format!("{} {}", request.conversation_id, request.sender_id);
        let count = request.sequences.len() as u32;
        Ok(SendMessageResponse { message_id, count, ..SendMessageResponse::default() })
    }
}
