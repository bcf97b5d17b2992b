//! What business services do with messages that are stored, through the same chain as clients.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        DeleteMessagesRequest, DeleteMessagesResponse, ForwardMessagesRequest, PullMessagesRequest,
        PullMessagesResponse, RevokeMessageRequest, RevokeMessageResponse, SendMessageResponse,
    },
    chat::{Forward, PullMessages, SendMessage, SendReply},
};

use super::{Chat, forward, live, reads, receiver::unix_ms};
use crate::{
    api::HistoryApi,
    storage::{Actor, Outcome, StoreError, Write, limits::USER_ID_BYTES_MAX},
};

impl Chat {
    /// Sends a message that is not stored.
    pub(super) async fn send_live(
        &self,
        sender_id: &str,
        message: SendMessage,
    ) -> Result<SendMessageResponse, Refused> {
        if self.core.is_stopping() {
            return Err(self.with_delay(Code::LogicUnavailable));
        }
        let sent = live::send(&self.core, sender_id, None, message).await;
        let reply = sent.inspect_err(|refused| self.core.count_refusal(refused.code))?;
        Ok(response(reply))
    }

    fn check_user(&self, user_id: &str, field: &str) -> Result<(), Refused> {
        if (1..=USER_ID_BYTES_MAX).contains(&user_id.len()) {
            return Ok(());
        }
        let reason = format!("A {field} of 1 to {USER_ID_BYTES_MAX} bytes is needed.");
        Err(self.refused(Code::BadRequest, reason))
    }
}

fn response(reply: SendReply) -> SendMessageResponse {
    SendMessageResponse {
        code: reply.code,
        reason: reply.reason,
        message_id: reply.message_id,
        conversation_id: reply.conversation_id,
        sequence: reply.sequence,
        sent_at_ms: reply.sent_at_ms,
        duplicate: reply.duplicate,
        count: reply.count,
        not_stored: reply.not_stored,
    }
}

#[async_trait]
impl HistoryApi for Chat {
    async fn pull_messages(
        &self,
        request: PullMessagesRequest,
    ) -> Result<PullMessagesResponse, Refused> {
        self.check_user(&request.user_id, "user_id")?;
        let pull = PullMessages {
            conversation_id: request.conversation_id,
            from_sequence: request.from_sequence,
            to_sequence: request.to_sequence,
            limit: request.limit,
            newest_first: request.newest_first,
            changed_since_version: request.changed_since_version,
        };
        match reads::messages_page(&self.core, &request.user_id, pull).await {
            Ok(page) => Ok(PullMessagesResponse {
                messages: page.messages,
                complete: page.complete,
                version: page.version,
                deleted: page.deleted,
            }),
            Err(error @ (StoreError::NotFound | StoreError::NotMember)) => {
                Err(self.refused(error.code(), error.to_string()))
            }
            Err(error) => Err(self.unread(&error)),
        }
    }

    async fn revoke_message(
        &self,
        request: RevokeMessageRequest,
    ) -> Result<RevokeMessageResponse, Refused> {
        let RevokeMessageRequest { conversation_id, sequence, actor_user_id } = request;
        let actor = match actor_user_id {
            none if none.is_empty() => Actor::Service,
            user_id => Actor::User(user_id),
        };
        let limit_ms = self.core.settings.messages.revoke_limit.as_millis() as u64;
        let at_ms = unix_ms();
        let write = Write::Revoke { actor, conversation_id, sequence, at_ms, limit_ms };
        match self.change(write).await? {
            Outcome::Erased { changed, .. } => {
                Ok(RevokeMessageResponse { changed, ..RevokeMessageResponse::default() })
            }
            other => Err(self.mismatched(&other)),
        }
    }

    async fn delete_messages(
        &self,
        request: DeleteMessagesRequest,
    ) -> Result<DeleteMessagesResponse, Refused> {
        self.check_user(&request.user_id, "user_id")?;
        let DeleteMessagesRequest { conversation_id, user_id, sequences } = request;
        match self.change(Write::Delete { user_id, conversation_id, sequences }).await? {
            Outcome::Deleted { messages, .. } => {
                let deleted = messages.len() as u32;
                Ok(DeleteMessagesResponse { deleted, ..DeleteMessagesResponse::default() })
            }
            other => Err(self.mismatched(&other)),
        }
    }

    async fn forward_messages(
        &self,
        request: ForwardMessagesRequest,
    ) -> Result<SendMessageResponse, Refused> {
        self.check_user(&request.sender_id, "sender_id")?;
        self.pace_message(&request.sender_id)?;
        let forward = Forward {
            conversation_id: request.conversation_id,
            sequences: request.sequences,
            user_id: request.user_id,
            group_id: request.group_id,
            client_message_id: request.client_message_id,
            merged: request.merged,
            title: request.title,
        };
        let write = match forward::prepare(&self.core, &request.sender_id, forward).await {
            Ok(write) => write,
            Err(forward::Failed::Refused(refused)) => {
                self.core.count_refusal(refused.code);
                return Err(refused);
            }
            Err(forward::Failed::Store(error)) => return Err(self.unread(&error)),
        };
        let outcome = self.change(write).await?;
        forward::reply(&outcome).map(response).ok_or_else(|| self.mismatched(&outcome))
    }
}
