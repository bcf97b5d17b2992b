//! The administrative API, whatever the door: business services manage groups, send messages (to
//! users, rooms, everybody), end sessions and ask who is online. The messages are those of `api.proto`; [`crate::http`] and
//! [`crate::grpc`] are the doors, the chat domain answers.
//!
//! What both doors share is here too: the token, and how many calls run at the same time.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use millrace_protocol::api::{
    AddMembersRequest, AddMembersResponse, BroadcastRequest, BroadcastResponse, CreateGroupRequest,
    CreateGroupResponse, GetGroupRequest, GetGroupResponse, GetPresenceRequest,
    GetPresenceResponse, KickUserRequest, KickUserResponse, PublishRoomMessageRequest,
    PublishRoomMessageResponse, RemoveGroupRequest, RemoveGroupResponse, RemoveMembersRequest,
    RemoveMembersResponse, SendMessageRequest, SendMessageResponse,
};
pub mod groups;
pub mod search;
pub mod sessions;

use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::audit::Audit;

mod attachments;
mod caller;
mod friends;
pub mod gateways;
mod history;
pub mod push;
pub mod push_tokens;
pub mod reports;
pub mod rooms;
mod users;

pub use attachments::AttachmentsApi;
pub(crate) use caller::{Access, unix_ms};
pub use caller::{Caller, CallerGuard, CallerLimits, Principal};
pub use friends::FriendsApi;
pub use history::HistoryApi;
pub use users::UsersApi;

/// What business services may ask for. Every call fails with [`Refused`]; its code decides the
/// status that the door answers with. The caller has shown the token already.
#[async_trait]
pub trait Api: HistoryApi + Send + Sync + 'static {
    /// Creates a group.
    async fn create_group(
        &self,
        request: CreateGroupRequest,
    ) -> Result<CreateGroupResponse, Refused>;

    /// Looks a group up.
    async fn get_group(&self, request: GetGroupRequest) -> Result<GetGroupResponse, Refused>;

    /// Removes a group.
    async fn remove_group(
        &self,
        request: RemoveGroupRequest,
    ) -> Result<RemoveGroupResponse, Refused>;

    /// Adds members to a group.
    async fn add_members(&self, request: AddMembersRequest) -> Result<AddMembersResponse, Refused>;

    /// Takes members out of a group.
    async fn remove_members(
        &self,
        request: RemoveMembersRequest,
    ) -> Result<RemoveMembersResponse, Refused>;

    /// Stores and delivers a message in a user's name.
    async fn send_message(
        &self,
        request: SendMessageRequest,
    ) -> Result<SendMessageResponse, Refused>;

    /// Sends a message to the members of a live room.
    async fn publish_room_message(
        &self,
        request: PublishRoomMessageRequest,
    ) -> Result<PublishRoomMessageResponse, Refused>;

    /// Sends a notice to everybody who is online.
    async fn broadcast(&self, request: BroadcastRequest) -> Result<BroadcastResponse, Refused>;

    /// Ends every session of a user.
    async fn kick_user(&self, request: KickUserRequest) -> Result<KickUserResponse, Refused>;

    /// Tells where a user is online.
    async fn get_presence(
        &self,
        request: GetPresenceRequest,
    ) -> Result<GetPresenceResponse, Refused>;

    /// Why this process should get no calls at the moment, if so: it starts, or it leaves.
    fn not_ready(&self) -> Option<String> {
        None
    }
}

/// What both doors ask of a caller. Cheap to clone; clones share the bound.
#[derive(Clone)]
pub struct Guard {
    token: Arc<str>,
    calls: Arc<Semaphore>,
    audit: Arc<Audit>,
}

impl Guard {
    /// `token` is what callers must show as `Authorization: Bearer …`; an empty one lets nobody in.
    /// Of more than `calls_in_flight_max` calls at the same time the next is refused with
    /// `over_capacity`.
    pub fn new(token: &str, calls_in_flight_max: usize) -> Self {
        let calls = Arc::new(Semaphore::new(calls_in_flight_max.min(Semaphore::MAX_PERMITS)));
        Self { token: token.into(), calls, audit: Arc::new(Audit::to_log()) }
    }

    /// Notes administrative acts there instead of in the log.
    #[must_use]
    pub fn with_audit(mut self, audit: Arc<Audit>) -> Self {
        self.audit = audit;
        self
    }

    /// Where administrative acts are noted.
    pub(crate) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Whether the header's value shows the API token.
    pub(crate) fn is_api_token(&self, authorization: &[u8]) -> bool {
        bearer(authorization).is_some_and(|shown| self.is_token(shown))
    }

    fn is_token(&self, shown: &[u8]) -> bool {
        // Compared in constant time: how long it takes tells nothing about the token but its length.
        !self.token.is_empty() && bool::from(shown.ct_eq(self.token.as_bytes()))
    }

    /// Lets a call in, or refuses it. `authorization` is the header's value.
    pub(crate) fn admit(
        &self,
        authorization: Option<&[u8]>,
    ) -> Result<OwnedSemaphorePermit, Refused> {
        let Some(shown) = authorization.and_then(bearer) else {
            let reason = "Show the API token as Authorization: Bearer <token>.";
            return Err(Refused::new(Code::BadToken, reason));
        };
        if !self.is_token(shown) {
            return Err(Refused::new(Code::BadToken, "The API token is wrong."));
        }
        Arc::clone(&self.calls).try_acquire_owned().map_err(|_| {
            Refused::new(Code::OverCapacity, "Too many calls at the same time.").retry_after(1_000)
        })
    }
}

/// The name of a call by the method of its trait: `create_room` → `CreateRoom`.
pub(crate) fn call_name(method: &str) -> String {
    let words = method.split('_').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_ascii_uppercase() + rest
    });
    words.collect()
}

/// The token of `Authorization: Bearer …`.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("calls", &self.calls).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod testing;
