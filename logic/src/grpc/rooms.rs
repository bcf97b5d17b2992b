//! Rooms over gRPC.

use std::sync::Arc;

use millrace_protocol::api::{
    AddAccount2RoomRequest, AddAccount2RoomResponse, CreateRoomRequest, CreateRoomResponse,
    GetRoomRequest, GetRoomResponse, ListRoomMembersRequest, ListRoomMembersResponse,
    RemoveRoomRequest, RemoveRoomResponse, RmAccountFromRoomRequest, RmAccountFromRoomResponse,
    room_directory_service_server::{RoomDirectoryService, RoomDirectoryServiceServer},
};
use tonic::{Request, Response, Status};

use super::{Door, MESSAGE_BYTES_MAX};
use crate::api::{Guard, rooms::RoomsApi};

/// The service.
pub fn service(
    api: Arc<dyn RoomsApi>,
    guard: Guard,
) -> RoomDirectoryServiceServer<impl RoomDirectoryService + use<>> {
    RoomDirectoryServiceServer::new(Door { api, guard })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl RoomDirectoryService for Door<dyn RoomsApi> {
    async fn create_room(
        &self,
        request: Request<CreateRoomRequest>,
    ) -> Result<Response<CreateRoomResponse>, Status> {
        self.call(request, |api, request| async move { api.create_room(request).await }).await
    }

    async fn get_room(
        &self,
        request: Request<GetRoomRequest>,
    ) -> Result<Response<GetRoomResponse>, Status> {
        self.call(request, |api, request| async move { api.get_room(request).await }).await
    }

    async fn remove_room(
        &self,
        request: Request<RemoveRoomRequest>,
    ) -> Result<Response<RemoveRoomResponse>, Status> {
        self.call(request, |api, request| async move { api.remove_room(request).await }).await
    }

    async fn add_account2_room(
        &self,
        request: Request<AddAccount2RoomRequest>,
    ) -> Result<Response<AddAccount2RoomResponse>, Status> {
        self.call(request, |api, request| async move { api.add_account2_room(request).await }).await
    }

    async fn rm_account_from_room(
        &self,
        request: Request<RmAccountFromRoomRequest>,
    ) -> Result<Response<RmAccountFromRoomResponse>, Status> {
        self.call(request, |api, request| async move { api.rm_account_from_room(request).await })
            .await
    }

    async fn list_room_members(
        &self,
        request: Request<ListRoomMembersRequest>,
    ) -> Result<Response<ListRoomMembersResponse>, Status> {
        self.call(request, |api, request| async move { api.list_room_members(request).await }).await
    }
}
