//! Configured rooms over HTTP.
//!
//! | call | answer |
//! |---|---|
//! | `POST /v1/rooms` | `CreateRoomResponse` |
//! | `GET`, `DELETE /v1/rooms/{room_id}` | `GetRoomResponse`, `RemoveRoomResponse` |
//! | `POST`, `DELETE /v1/rooms/{room_id}/accounts` | `AddAccount2RoomResponse`, `RmAccountFromRoomResponse` |
//! | `GET /v1/rooms/{room_id}/members?after_user_id=&limit=` | `ListRoomMembersResponse` |

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::{get, post},
};
use millrace_protocol::api::{
    AddAccount2RoomRequest, CreateRoomRequest, GetRoomRequest, ListRoomMembersRequest,
    RemoveRoomRequest, RmAccountFromRoomRequest,
};
use serde::Deserialize;

use super::{Door, HttpSettings, Id, with_refusals};
use crate::api::{Guard, rooms::RoomsApi};

type Rooms = State<Arc<Door<dyn RoomsApi>>>;

/// The routes, to be merged with the others.
pub fn routes(api: Arc<dyn RoomsApi>, guard: Guard, settings: HttpSettings) -> Router {
    let router = Router::new()
        .route("/v1/rooms", post(create_room))
        .route("/v1/rooms/{room_id}", get(get_room).delete(remove_room))
        .route("/v1/rooms/{room_id}/accounts", post(add_accounts).delete(remove_accounts))
        .route("/v1/rooms/{room_id}/members", get(list_members));
    with_refusals(router).with_state(Arc::new(Door { api, guard, settings }))
}

async fn create_room(State(door): Rooms, call: Request) -> Response {
    door.call(call, |api, request: CreateRoomRequest| async move { api.create_room(request).await })
        .await
}

async fn get_room(State(door): Rooms, Id(room_id): Id, call: Request) -> Response {
    door.call_without_body(
        call,
        |api| async move { api.get_room(GetRoomRequest { room_id }).await },
    )
    .await
}

async fn remove_room(State(door): Rooms, Id(room_id): Id, call: Request) -> Response {
    door.call_without_body(call, |api| async move {
        api.remove_room(RemoveRoomRequest { room_id }).await
    })
    .await
}

async fn add_accounts(State(door): Rooms, Id(room_id): Id, call: Request) -> Response {
    door.call(call, |api, request: AddAccount2RoomRequest| async move {
        api.add_account2_room(AddAccount2RoomRequest { room_id, ..request }).await
    })
    .await
}

async fn remove_accounts(State(door): Rooms, Id(room_id): Id, call: Request) -> Response {
    door.call(call, |api, request: RmAccountFromRoomRequest| async move {
        api.rm_account_from_room(RmAccountFromRoomRequest { room_id, ..request }).await
    })
    .await
}

/// The query; what is absent is empty.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Page {
    after_user_id: String,
    limit: u32,
}

async fn list_members(State(door): Rooms, Id(room_id): Id, call: Request) -> Response {
    door.call_with_query(call, |api, page: Page| async move {
        let Page { after_user_id, limit } = page;
        api.list_room_members(ListRoomMembersRequest { room_id, after_user_id, limit }).await
    })
    .await
}
