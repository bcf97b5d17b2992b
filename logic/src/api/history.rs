//! What business services do with messages that are stored, whatever the door.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::api::{
    DeleteMessagesRequest, DeleteMessagesResponse, ForwardMessagesRequest, PullMessagesRequest,
    PullMessagesResponse, RevokeMessageRequest, RevokeMessageResponse, SendMessageResponse,
};

/// The service `HistoryService`. Fails as [`Api`](super::Api) does.
#[async_trait]
pub trait HistoryApi: Send + Sync + 'static {
    /// Reads messages as a member sees them.
    async fn pull_messages(
        &self,
        request: PullMessagesRequest,
    ) -> Result<PullMessagesResponse, Refused>;

    /// Takes a message back, for everybody.
    async fn revoke_message(
        &self,
        request: RevokeMessageRequest,
    ) -> Result<RevokeMessageResponse, Refused>;

    /// Hides messages from one user.
    async fn delete_messages(
        &self,
        request: DeleteMessagesRequest,
    ) -> Result<DeleteMessagesResponse, Refused>;

    /// Sends messages on, in a user's name.
    async fn forward_messages(
        &self,
        request: ForwardMessagesRequest,
    ) -> Result<SendMessageResponse, Refused>;
}
