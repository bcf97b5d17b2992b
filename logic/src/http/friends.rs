//! The HTTP operations of the friends' service. A user calls them for themself, a service for anybody.

use std::sync::Arc;

use axum::http::Method;
use millrace_protocol::Code;

use super::{
    HttpSettings,
    door::Door,
    operation::{Operation, Who},
    routes::{Routes, operations},
};
use crate::api::{CallerGuard, FriendsApi};

/// The operations, to be merged with those of [`super::router`].
pub fn router(api: Arc<dyn FriendsApi>, guard: CallerGuard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "FriendService" for callers;
        POST "/v1/users/{user_id}/friend_requests" => request_friend(Known)
            [NotFound, NotPermitted, Blocked, AlreadyExists, WordBlocked];
        POST "/v1/users/{user_id}/friend_requests/{other_id}/accept" => accept_friend(Known)
            [NotFound, NotPermitted];
        POST "/v1/users/{user_id}/friend_requests/{other_id}/reject" => reject_friend(Known)
            [NotFound, NotPermitted];
        DELETE "/v1/users/{user_id}/friend_requests/{other_id}" => cancel_friend_request(Known)
            [NotFound, NotPermitted];
        DELETE "/v1/users/{user_id}/friends/{other_id}" => remove_friend(Known)
            [NotFound, NotPermitted];
        PUT "/v1/users/{user_id}/blocks/{other_id}" => block_user(Known) [NotFound, NotPermitted];
        DELETE "/v1/users/{user_id}/blocks/{other_id}" => unblock_user(Known)
            [NotFound, NotPermitted];
        GET "/v1/users/{user_id}/relations/{other_id}" => get_relation(Known) [NotPermitted];
        GET "/v1/users/{user_id}/relations" => list_relations(Known) [NotPermitted];
    }
    for (list, id, filter) in [
        ("friends", "ListFriends", "friends"),
        ("friend_requests", "ListFriendRequests", "requests_incoming"),
        ("blocks", "ListBlocks", "blocked"),
    ] {
        let path = format!("/v1/users/{{user_id}}/{list}");
        let call = ("FriendService", "ListRelations");
        let operation =
            Operation::of_call(Method::GET, &path, call, Who::Known, &[Code::NotPermitted])
                .named(id)
                .about(format!("Lists the relations of a user that are {filter:?}."))
                .preset("filter", filter);
        routes.call(&door, operation, |api, caller, request| async move {
            api.list_relations(&caller, request).await
        });
    }
    routes
}
