//! The gRPC service of friends, `FriendService` of `friends.proto`.

use millrace_protocol::api::{
    ListRelationsRequest, ListRelationsResponse, Relation, RelationRequest, RelationResponse,
    RequestFriendRequest, friend_service_server::FriendService,
};

use super::caller::serve_callers;
use crate::api::FriendsApi;

serve_callers! { FriendService for FriendsApi;
    request_friend(Known): RequestFriendRequest => RelationResponse;
    accept_friend(Known): RelationRequest => RelationResponse;
    reject_friend(Known): RelationRequest => RelationResponse;
    cancel_friend_request(Known): RelationRequest => RelationResponse;
    remove_friend(Known): RelationRequest => RelationResponse;
    block_user(Known): RelationRequest => RelationResponse;
    unblock_user(Known): RelationRequest => RelationResponse;
    get_relation(Known): RelationRequest => Relation;
    list_relations(Known): ListRelationsRequest => ListRelationsResponse;
}
