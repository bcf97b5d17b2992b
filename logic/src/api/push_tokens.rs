//! What business services ask of push tokens: keep one, list those of a user, forget one.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::api::{
    AddPushTokenRequest, AddPushTokenResponse, ListPushTokensRequest, ListPushTokensResponse,
    RemovePushTokenRequest, RemovePushTokenResponse,
};

/// The calls of `push_tokens.proto`. As with [`Api`](super::Api), the caller has shown the token.
#[async_trait]
pub trait PushTokensApi: Send + Sync + 'static {
    /// Keeps where a device of a user can be reached.
    async fn add_push_token(
        &self,
        request: AddPushTokenRequest,
    ) -> Result<AddPushTokenResponse, Refused>;

    /// Where the devices of a user can be reached.
    async fn list_push_tokens(
        &self,
        request: ListPushTokensRequest,
    ) -> Result<ListPushTokensResponse, Refused>;

    /// Forgets where a device can be reached.
    async fn remove_push_token(
        &self,
        request: RemovePushTokenRequest,
    ) -> Result<RemovePushTokenResponse, Refused>;
}
