//! The gRPC service of friends, `FriendService` of `friends.proto`.

use millrace_protocol::api::{
    ListRelationsRequest, ListRelationsResponse, Relation, RelationRequest, RelationResponse,
    RequestFriendRequest, friend_service_server::FriendService,
};
use tonic::{Request, Response, Status};

use super::caller::CallerDoor;
use crate::api::{Access, FriendsApi};

/// Passes a call on to the method of the same name.
macro_rules! pass_on {
    ($($method:ident: $request:ty => $response:ty;)+) => {
        #[tonic::async_trait]
        impl FriendService for CallerDoor<dyn FriendsApi> {
            $(
                async fn $method(
                    &self,
                    request: Request<$request>,
                ) -> Result<Response<$response>, Status> {
                    self.call(Access::Known, request, |api, caller, request| async move {
                        api.$method(&caller, request).await
                    })
                    .await
                }
            )+
        }
    };
}

pass_on! {
    request_friend: RequestFriendRequest => RelationResponse;
    accept_friend: RelationRequest => RelationResponse;
    reject_friend: RelationRequest => RelationResponse;
    cancel_friend_request: RelationRequest => RelationResponse;
    remove_friend: RelationRequest => RelationResponse;
    block_user: RelationRequest => RelationResponse;
    unblock_user: RelationRequest => RelationResponse;
    get_relation: RelationRequest => Relation;
    list_relations: ListRelationsRequest => ListRelationsResponse;
}
