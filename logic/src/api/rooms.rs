//! What business services ask of rooms: make them, put accounts in, see who is there.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::api::{
    AddAccount2RoomRequest, AddAccount2RoomResponse, CreateRoomRequest, CreateRoomResponse,
    GetRoomRequest, GetRoomResponse, ListRoomMembersRequest, ListRoomMembersResponse,
    RemoveRoomRequest, RemoveRoomResponse, RmAccountFromRoomRequest, RmAccountFromRoomResponse,
};

/// The calls of `rooms.proto`. As with [`Api`](super::Api), the caller has shown the token.
#[async_trait]
pub trait RoomsApi: Send + Sync + 'static {
    /// Makes a room.
    async fn create_room(&self, request: CreateRoomRequest) -> Result<CreateRoomResponse, Refused>;

    /// A room, configured or merely alive.
    async fn get_room(&self, request: GetRoomRequest) -> Result<GetRoomResponse, Refused>;

    /// Removes a room; its sessions leave.
    async fn remove_room(&self, request: RemoveRoomRequest) -> Result<RemoveRoomResponse, Refused>;

    /// Puts accounts into a room; their sessions join.
    async fn add_account2_room(
        &self,
        request: AddAccount2RoomRequest,
    ) -> Result<AddAccount2RoomResponse, Refused>;

    /// Takes accounts out of a room; their sessions leave.
    async fn rm_account_from_room(
        &self,
        request: RmAccountFromRoomRequest,
    ) -> Result<RmAccountFromRoomResponse, Refused>;

    /// Accounts of a room, and who is in it now.
    async fn list_room_members(
        &self,
        request: ListRoomMembersRequest,
    ) -> Result<ListRoomMembersResponse, Refused>;
}
