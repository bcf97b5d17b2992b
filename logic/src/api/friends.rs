//! What the friends' service answers, whatever the door; the messages are those of `friends.proto`.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::api::{
    ListRelationsRequest, ListRelationsResponse, Relation, RelationRequest, RelationResponse,
    RequestFriendRequest,
};

use super::Caller;

/// Friends, requests and blocks. Every call fails with [`Refused`], with `not_permitted` when a user
/// calls for somebody else.
#[async_trait]
pub trait FriendsApi: Send + Sync + 'static {
    /// Asks another user to be a friend.
    async fn request_friend(
        &self,
        caller: &Caller,
        request: RequestFriendRequest,
    ) -> Result<RelationResponse, Refused>;

    /// Accepts another's request.
    async fn accept_friend(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused>;

    /// Rejects another's request.
    async fn reject_friend(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused>;

    /// Takes an own request back.
    async fn cancel_friend_request(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused>;

    /// Ends a friendship, on both sides.
    async fn remove_friend(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused>;

    /// Takes nothing more from another.
    async fn block_user(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused>;

    /// Takes things again.
    async fn unblock_user(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused>;

    /// What another is to the user.
    async fn get_relation(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<Relation, Refused>;

    /// A page of the user's relations, or of what changed.
    async fn list_relations(
        &self,
        caller: &Caller,
        request: ListRelationsRequest,
    ) -> Result<ListRelationsResponse, Refused>;
}
