//! What business services ask, through the same chain as clients: HTTP and gRPC are only doors.

use std::time::Instant;

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        AddMembersRequest, AddMembersResponse, BroadcastRequest, BroadcastResponse,
        ChangeGroupRequest, CreateGroupRequest, CreateGroupResponse, GetGroupRequest,
        GetGroupResponse, GetPresenceRequest, GetPresenceResponse, KickUserRequest,
        KickUserResponse, PresenceSession, PublishRoomMessageRequest, PublishRoomMessageResponse,
        RemoveGroupRequest, RemoveGroupResponse, RemoveMembersRequest, RemoveMembersResponse,
        SendMessageRequest, SendMessageResponse, change_group_request::Act,
    },
    chat::{CreateGroup, DissolveGroup, InviteToGroup, RemoveFromGroup, SendMessage},
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    Chat, Core, gate, groups, messages,
    paces::Paced,
    processor::{Job, Origin},
    receiver::{seen_before, unix_ms},
    rooms,
};
use crate::{
    api::Api,
    registry::SessionRecord,
    storage::{Outcome, StoreError, Write, groups::GroupChanged, limits::USER_ID_BYTES_MAX},
};

impl Chat {
    /// Sends a write through the chain and waits until it is durable.
    pub(super) async fn change(&self, write: Write) -> Result<Outcome, Refused> {
        let gone = || self.with_delay(Code::LogicUnavailable);
        let writes = self.intake().ok_or_else(gone)?.writes.clone();
        let (caller, outcome) = oneshot::channel();
        let job = Job { write, origin: Origin::Api(caller), received_at: Instant::now() };
        writes.send(job).await.map_err(|_| gone())?;
        drop(writes);
        // No answer means that the chain broke down under the write: whether it was stored is
        // unknown, and a retry is harmless for messages.
        match outcome.await.map_err(|_| self.with_delay(Code::Internal))? {
            Ok(Outcome::Refused { code, reason }) => Err(self.refused(code, reason)),
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(self.with_delay(error.code())),
        }
    }

    /// An act on a group in a user's name; the system's when that is empty.
    pub(super) async fn act(
        &self,
        group_id: String,
        actor_user_id: String,
        act: Act,
    ) -> Result<GroupChanged, Refused> {
        let request = ChangeGroupRequest { group_id, actor_user_id, act: Some(act) };
        let mut change = groups::from_request(request)
            .map_err(|reason| self.refused(Code::BadRequest, reason))?;
        groups::screen(&self.core, &mut change)
            .inspect_err(|refused| self.core.count_refusal(refused.code))?;
        match self.change(Write::ChangeGroup(Box::new(change))).await? {
            Outcome::GroupChanged(changed) => Ok(*changed),
            other => Err(self.mismatched(&other)),
        }
    }

    /// Looks for words that are not let through in a text that others will read: a name, say.
    /// Masks what is to be masked; `user_id` is who wrote it, `target` what it is about.
    ///
    /// # Errors
    /// `word_blocked`.
    pub fn screen(&self, user_id: &str, target: &str, text: &mut String) -> Result<(), Refused> {
        let screened = self.core.words.screen(user_id, target, "", text);
        screened.inspect_err(|refused| self.core.count_refusal(refused.code))
    }

    /// Does what needs no store, unless this process is leaving.
    fn live<T>(&self, act: impl FnOnce(&Core) -> Result<T, Refused>) -> Result<T, Refused> {
        if self.core.is_stopping() {
            return Err(self.with_delay(Code::LogicUnavailable));
        }
        act(&self.core).inspect_err(|refused| self.core.count_refusal(refused.code))
    }

    /// Takes a message that a service sends off the rate of the user in whose name it is.
    pub(super) fn pace_message(&self, sender_id: &str) -> Result<(), Refused> {
        self.core.online.pace(sender_id, Paced::ServiceMessage).map_err(|wait_ms| {
            // In the words that a client hears.
            let reason = Code::RateLimited.sentence();
            self.refused(Code::RateLimited, reason).retry_after(wait_ms)
        })
    }

    pub(super) fn refused(&self, code: Code, reason: impl Into<String>) -> Refused {
        self.core.count_refusal(code);
        Refused::new(code, reason)
    }

    pub(super) fn with_delay(&self, code: Code) -> Refused {
        self.refused(code, code.sentence()).retry_after(self.core.retry_after_ms_of(code))
    }

    /// A store's failure to read, as a caller sees it.
    pub(super) fn unread(&self, error: &StoreError) -> Refused {
        tracing::error!(%error, "a read failed");
        self.with_delay(error.code())
    }

    /// The store answered with the outcome of another write, which is our own mistake.
    pub(super) fn mismatched(&self, outcome: &Outcome) -> Refused {
        tracing::error!(?outcome, "the store's outcome does not fit the write");
        self.with_delay(Code::Internal)
    }

    pub(super) async fn sessions(&self, user_id: &str) -> Result<Vec<SessionRecord>, Refused> {
        if !(1..=USER_ID_BYTES_MAX).contains(&user_id.len()) {
            let reason = "A user_id of 1 to 128 bytes is needed.";
            return Err(self.refused(Code::BadRequest, reason));
        }
        match self.core.registry.sessions_of(&[user_id]).await {
            Ok(mut sessions) => Ok(sessions.pop().unwrap_or_default()),
            Err(error) => {
                tracing::error!(%error, "the registry was not read");
                Err(self.with_delay(Code::LogicUnavailable))
            }
        }
    }
}

#[async_trait]
impl Api for Chat {
    async fn create_group(
        &self,
        request: CreateGroupRequest,
    ) -> Result<CreateGroupResponse, Refused> {
        if !request.actor_user_id.is_empty() {
            let CreateGroupRequest { group_id, name, avatar, members, members_max, actor_user_id } =
                request;
            let create =
                CreateGroup { name, avatar, members, members_max, ..CreateGroup::default() };
            let changed = self.act(group_id, actor_user_id, Act::Create(create)).await?;
            let GroupChanged { group_id, conversation_id, .. } = changed;
            return Ok(CreateGroupResponse { group_id, conversation_id });
        }
        let group_id = match request.group_id {
            chosen if !chosen.is_empty() => chosen,
            _ => Uuid::now_v7().simple().to_string(),
        };
        let mut name = request.name;
        self.screen("", &group_id, &mut name)?;
        let write = Write::CreateGroup {
            group_id,
            name,
            avatar: request.avatar,
            members: request.members,
            members_max: request.members_max,
            created_at_ms: unix_ms(),
        };
        match self.change(write).await? {
            Outcome::GroupCreated { group_id, conversation_id, .. } => {
                Ok(CreateGroupResponse { group_id, conversation_id })
            }
            other => Err(self.mismatched(&other)),
        }
    }

    async fn get_group(&self, request: GetGroupRequest) -> Result<GetGroupResponse, Refused> {
        match self.core.store.group(&request.group_id).await {
            Ok(Some(group)) => Ok(GetGroupResponse {
                group_id: group.group_id,
                conversation_id: group.conversation_id,
                name: group.name,
                avatar: group.avatar,
                members: group.members,
                members_max: group.members_max,
                created_at_ms: group.created_at_ms,
                member_count: group.member_count,
                owner_id: group.owner_id,
                administrators: group.administrators,
                join_rule: group.join_rule,
                invite_rule: group.invite_rule,
                announcement: group.announcement,
                announced_at_ms: group.announced_at_ms,
                announced_by: group.announced_by,
                muted: group.muted,
            }),
            Ok(None) => Err(self.refused(Code::NotFound, "There is no such group.")),
            Err(error) => Err(self.unread(&error)),
        }
    }

    async fn remove_group(
        &self,
        request: RemoveGroupRequest,
    ) -> Result<RemoveGroupResponse, Refused> {
        let RemoveGroupRequest { group_id, actor_user_id } = request;
        if !actor_user_id.is_empty() {
            let act = Act::Dissolve(DissolveGroup::default());
            self.act(group_id, actor_user_id, act).await?;
            return Ok(RemoveGroupResponse::default());
        }
        match self.change(Write::RemoveGroup { group_id }).await? {
            Outcome::GroupRemoved { .. } => Ok(RemoveGroupResponse::default()),
            other => Err(self.mismatched(&other)),
        }
    }

    async fn add_members(&self, request: AddMembersRequest) -> Result<AddMembersResponse, Refused> {
        let AddMembersRequest { group_id, user_ids, actor_user_id } = request;
        if !actor_user_id.is_empty() {
            let act = Act::Invite(InviteToGroup { user_ids, ..InviteToGroup::default() });
            let added = self.act(group_id, actor_user_id, act).await?.changed;
            return Ok(AddMembersResponse { added, ..AddMembersResponse::default() });
        }
        match self.change(Write::AddMembers { group_id, user_ids }).await? {
            Outcome::MembersAdded { added, .. } => {
                Ok(AddMembersResponse { added, ..AddMembersResponse::default() })
            }
            other => Err(self.mismatched(&other)),
        }
    }

    async fn remove_members(
        &self,
        request: RemoveMembersRequest,
    ) -> Result<RemoveMembersResponse, Refused> {
        let RemoveMembersRequest { group_id, user_ids, actor_user_id } = request;
        if !actor_user_id.is_empty() {
            let act = Act::Remove(RemoveFromGroup { user_ids, ..RemoveFromGroup::default() });
            let removed = self.act(group_id, actor_user_id, act).await?.changed;
            return Ok(RemoveMembersResponse { removed, ..RemoveMembersResponse::default() });
        }
        match self.change(Write::RemoveMembers { group_id, user_ids }).await? {
            Outcome::MembersRemoved { removed, .. } => {
                Ok(RemoveMembersResponse { removed, ..RemoveMembersResponse::default() })
            }
            other => Err(self.mismatched(&other)),
        }
    }

    async fn send_message(
        &self,
        request: SendMessageRequest,
    ) -> Result<SendMessageResponse, Refused> {
        if !(1..=USER_ID_BYTES_MAX).contains(&request.sender_id.len()) {
            let reason = "A sender_id of 1 to 128 bytes is needed.";
            return Err(self.refused(Code::BadRequest, reason));
        }
        let message = SendMessage {
            client_message_id: request.client_message_id,
            user_id: request.user_id,
            group_id: request.group_id,
            r#type: request.r#type,
            body: request.body,
            attachment: request.attachment,
            does_not_count: request.does_not_count,
            quote: request.quote,
            mentions: request.mentions,
            location: request.location,
            ttl_ms: request.ttl_ms,
            timestamp_ms: request.timestamp_ms,
            nonce: request.nonce,
        };
        self.pace_message(&request.sender_id)?;
        seen_before(&self.core, &request.sender_id, &message)
            .inspect_err(|refused| self.core.count_refusal(refused.code))?;
        if request.no_store {
            return self.send_live(&request.sender_id, message).await;
        }
        let mut write = messages::append(&self.core, request.sender_id, message)
            .inspect_err(|refused| self.core.count_refusal(refused.code))?;
        gate::admit_write(&self.core, &mut write)
            .await
            .inspect_err(|refused| self.core.count_refusal(refused.code))?;
        match self.change(write).await? {
            Outcome::Appended { message, duplicate, .. } => Ok(SendMessageResponse {
                code: Code::Ok.number(),
                reason: String::new(),
                message_id: message.message_id,
                conversation_id: message.conversation_id,
                sequence: message.sequence,
                sent_at_ms: message.sent_at_ms,
                duplicate,
                ..SendMessageResponse::default()
            }),
            other => Err(self.mismatched(&other)),
        }
    }

    async fn publish_room_message(
        &self,
        request: PublishRoomMessageRequest,
    ) -> Result<PublishRoomMessageResponse, Refused> {
        self.live(|core| rooms::publish_for(core, request))
    }

    async fn broadcast(&self, request: BroadcastRequest) -> Result<BroadcastResponse, Refused> {
        self.live(|core| rooms::broadcast_for(core, request))
    }

    async fn kick_user(&self, request: KickUserRequest) -> Result<KickUserResponse, Refused> {
        let sessions = self.sessions(&request.user_id).await?;
        let reason = match &*request.reason {
            "" => Code::Kicked.sentence(),
            reason => reason,
        };
        for session in &sessions {
            self.core.close_session(session, Code::Kicked, reason);
        }
        Ok(KickUserResponse { sessions: sessions.len() as u32, ..KickUserResponse::default() })
    }

    async fn get_presence(
        &self,
        request: GetPresenceRequest,
    ) -> Result<GetPresenceResponse, Refused> {
        let sessions = self.sessions(&request.user_id).await?;
        let shown = |record: SessionRecord| PresenceSession {
            gateway_id: record.gateway_id.to_string(),
            session_id: record.address.session_id,
            device_id: record.device_id.to_string(),
            platform: record.platform.to_string(),
            logged_in_at_ms: record.logged_in_at_ms,
        };
        Ok(GetPresenceResponse {
            online: !sessions.is_empty(),
            sessions: sessions.into_iter().map(shown).collect(),
        })
    }
    fn not_ready(&self) -> Option<String> {
        self.core.is_stopping().then(|| "draining".to_owned())
    }
}
