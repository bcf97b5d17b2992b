//! Configured rooms over HTTP.

use std::sync::Arc;

use super::{
    HttpSettings,
    door::Door,
    routes::{Routes, operations},
};
use crate::api::{Guard, rooms::RoomsApi};

/// The operations, to be merged with the others.
pub fn routes(api: Arc<dyn RoomsApi>, guard: Guard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "RoomDirectoryService" for services;
        POST "/v1/rooms" => create_room [AlreadyExists];
        GET "/v1/rooms/{room_id}" => get_room [NotFound];
        DELETE "/v1/rooms/{room_id}" => remove_room [NotFound];
        POST "/v1/rooms/{room_id}/accounts" => add_account2_room [NotFound];
        DELETE "/v1/rooms/{room_id}/accounts" => rm_account_from_room [NotFound].with_body();
        GET "/v1/rooms/{room_id}/members" => list_room_members [NotFound];
    }
    routes
}
