//! The gRPC door of the administrative API: the services of `api.proto`, each call passed on to
//! [`Api`]. A refusal is a status with our code in the metadata `millrace-code`.

use std::future::Future;
use std::sync::Arc;

use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use millrace_protocol::api::account_service_server::AccountServiceServer;
use millrace_protocol::api::attachment_service_server::AttachmentServiceServer;
use millrace_protocol::api::broadcast_service_server::{BroadcastService, BroadcastServiceServer};
use millrace_protocol::api::friend_service_server::FriendServiceServer;
use millrace_protocol::api::group_service_server::{GroupService, GroupServiceServer};
use millrace_protocol::api::history_service_server::HistoryServiceServer;
use millrace_protocol::api::message_service_server::{MessageService, MessageServiceServer};
use millrace_protocol::api::room_service_server::{RoomService, RoomServiceServer};
use millrace_protocol::api::user_service_server::{UserService, UserServiceServer};
use millrace_protocol::api::{
    AddMembersRequest, AddMembersResponse, BroadcastRequest, BroadcastResponse, CreateGroupRequest,
    CreateGroupResponse, GetGroupRequest, GetGroupResponse, GetPresenceRequest,
    GetPresenceResponse, KickUserRequest, KickUserResponse, PublishRoomMessageRequest,
    PublishRoomMessageResponse, RemoveGroupRequest, RemoveGroupResponse, RemoveMembersRequest,
    RemoveMembersResponse, SendMessageRequest, SendMessageResponse,
};
use serde::Serialize;
use tokio::net::TcpListener;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::{
    api::{Api, AttachmentsApi, CallerGuard, FriendsApi, Guard, UsersApi},
    audit::{self, Audit},
};

mod attachments;
mod caller;
mod friends;
pub mod gateways;
pub mod groups;
mod history;
pub mod push;
pub mod push_tokens;
pub mod reports;
pub mod rooms;
pub mod search;
pub mod sessions;
#[cfg(test)]
mod tests;
mod users;

/// Largest message of a call, in bytes; larger ones are refused with `out_of_range`.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Calls of one connection at the same time; HTTP/2 refuses more.
const CALLS_PER_CONNECTION_MAX: u32 = 256;

/// The services, for a server that has others too.
pub fn routes(api: Arc<dyn Api>, guard: Guard) -> Routes {
    let door = Arc::new(Door { api, guard });
    let groups = GroupServiceServer::from_arc(Arc::clone(&door));
    let messages = MessageServiceServer::from_arc(Arc::clone(&door));
    let rooms = RoomServiceServer::from_arc(Arc::clone(&door));
    let broadcast = BroadcastServiceServer::from_arc(Arc::clone(&door));
    let history = HistoryServiceServer::from_arc(Arc::clone(&door));
    let users = UserServiceServer::from_arc(door);
    Routes::new(groups.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(messages.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(rooms.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(broadcast.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(history.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(users.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Adds the service of users.
pub fn with_users(routes: Routes, api: Arc<dyn UsersApi>, guard: CallerGuard) -> Routes {
    let users = AccountServiceServer::new(caller::CallerDoor { api, guard });
    routes.add_service(users.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Adds the service of friends.
pub fn with_friends(routes: Routes, api: Arc<dyn FriendsApi>, guard: CallerGuard) -> Routes {
    let friends = FriendServiceServer::new(caller::CallerDoor { api, guard });
    routes.add_service(friends.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Adds the service of attachments.
pub fn with_attachments(
    routes: Routes,
    api: Arc<dyn AttachmentsApi>,
    guard: CallerGuard,
) -> Routes {
    let attachments = AttachmentServiceServer::new(caller::CallerDoor { api, guard });
    routes.add_service(attachments.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Serves services until `stop` comes; calls under way are finished.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop)
        .await
}

/// What the services of one trait of calls share.
struct Door<A: ?Sized = dyn Api> {
    api: Arc<A>,
    guard: Guard,
}

impl<A: ?Sized> Door<A> {
    async fn call<Q, R, F>(
        &self,
        request: Request<Q>,
        to: impl FnOnce(Arc<A>, Q) -> F,
    ) -> Result<Response<R>, Status>
    where
        Q: Serialize,
        F: Future<Output = Result<R, Refused>>,
    {
        let authorization = request.metadata().get("authorization");
        let _permit = self
            .guard
            .admit(authorization.map(|value| value.as_encoded_bytes()))
            .map_err(|refused| status(&refused))?;
        let act = audit::act_of::<Q>();
        noted(self.guard.audit(), act, request, |request| to(Arc::clone(&self.api), request)).await
    }
}

/// Runs an admitted call. When it is an act of administration, its end leaves an audit line.
async fn noted<Q, R, F>(
    log: &Audit,
    act: Option<&str>,
    request: Request<Q>,
    run: impl FnOnce(Q) -> F,
) -> Result<Response<R>, Status>
where
    Q: Serialize,
    F: Future<Output = Result<R, Refused>>,
{
    let line =
        act.map(|act| (act, acting_for(request.metadata()), audit::target_of(request.get_ref())));
    let result = run(request.into_inner()).await;
    if let Some((act, actor, target)) = line {
        let code = result.as_ref().map_or_else(|refused| refused.code, |_| Code::Ok);
        log.note("grpc", &actor, act, &target, code);
    }
    result.map(Response::new).map_err(|refused| status(&refused))
}

/// In whose name a service acts, as it says itself; for the audit line alone.
fn acting_for(metadata: &MetadataMap) -> String {
    let actor = metadata.get("x-millrace-actor").and_then(|value| value.to_str().ok());
    actor.unwrap_or_default().to_owned()
}

#[tonic::async_trait]
impl GroupService for Door {
    async fn create_group(
        &self,
        request: Request<CreateGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        self.call(request, |api, request| async move { api.create_group(request).await }).await
    }

    async fn get_group(
        &self,
        request: Request<GetGroupRequest>,
    ) -> Result<Response<GetGroupResponse>, Status> {
        self.call(request, |api, request| async move { api.get_group(request).await }).await
    }

    async fn remove_group(
        &self,
        request: Request<RemoveGroupRequest>,
    ) -> Result<Response<RemoveGroupResponse>, Status> {
        self.call(request, |api, request| async move { api.remove_group(request).await }).await
    }

    async fn add_members(
        &self,
        request: Request<AddMembersRequest>,
    ) -> Result<Response<AddMembersResponse>, Status> {
        self.call(request, |api, request| async move { api.add_members(request).await }).await
    }

    async fn remove_members(
        &self,
        request: Request<RemoveMembersRequest>,
    ) -> Result<Response<RemoveMembersResponse>, Status> {
        self.call(request, |api, request| async move { api.remove_members(request).await }).await
    }
}

#[tonic::async_trait]
impl MessageService for Door {
    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        self.call(request, |api, request| async move { api.send_message(request).await }).await
    }
}

#[tonic::async_trait]
impl RoomService for Door {
    async fn publish_room_message(
        &self,
        request: Request<PublishRoomMessageRequest>,
    ) -> Result<Response<PublishRoomMessageResponse>, Status> {
        self.call(request, |api, request| async move { api.publish_room_message(request).await })
            .await
    }
}

#[tonic::async_trait]
impl BroadcastService for Door {
    async fn broadcast(
        &self,
        request: Request<BroadcastRequest>,
    ) -> Result<Response<BroadcastResponse>, Status> {
        self.call(request, |api, request| async move { api.broadcast(request).await }).await
    }
}

#[tonic::async_trait]
impl UserService for Door {
    async fn kick_user(
        &self,
        request: Request<KickUserRequest>,
    ) -> Result<Response<KickUserResponse>, Status> {
        self.call(request, |api, request| async move { api.kick_user(request).await }).await
    }

    async fn get_presence(
        &self,
        request: Request<GetPresenceRequest>,
    ) -> Result<Response<GetPresenceResponse>, Status> {
        self.call(request, |api, request| async move { api.get_presence(request).await }).await
    }
}

/// The status that fits a refusal, with our code and, if there is one, the delay as metadata.
fn status(refused: &Refused) -> Status {
    let code = match refused.code {
        Code::NotLoggedIn
        | Code::BadToken
        | Code::TokenExpired
        | Code::BadCredentials
        | Code::Replayed => tonic::Code::Unauthenticated,
        Code::NotPermitted
        | Code::NotFriends
        | Code::Blocked
        | Code::Muted
        | Code::RoleTooLow
        | Code::WordBlocked => tonic::Code::PermissionDenied,
        // A newer caller took over.
        Code::Replaced => tonic::Code::Aborted,
        Code::TooLate => tonic::Code::FailedPrecondition,
        Code::NotFound => tonic::Code::NotFound,
        Code::AlreadyExists | Code::AlreadyLoggedIn => tonic::Code::AlreadyExists,
        Code::BadFrame
        | Code::UnsupportedVersion
        | Code::UnknownCommand
        | Code::TooLarge
        | Code::BadRequest => tonic::Code::InvalidArgument,
        Code::RateLimited | Code::OverCapacity => tonic::Code::ResourceExhausted,
        Code::LogicUnavailable | Code::Draining => tonic::Code::Unavailable,
        Code::Ok
        | Code::LoginTimeout
        | Code::IdleTimeout
        | Code::SlowConsumer
        | Code::Kicked
        | Code::Internal
        | Code::PeerGone => tonic::Code::Internal,
    };
    let mut metadata = MetadataMap::new();
    metadata.insert("millrace-code", MetadataValue::from(refused.code.number()));
    if refused.retry_after_ms > 0 {
        metadata.insert("retry-after-ms", MetadataValue::from(refused.retry_after_ms));
    }
    Status::with_metadata(code, refused.reason.clone(), metadata)
}
