//! `[rooms]`: how many rooms services may make, and how many accounts they may put in.

use serde::{Deserialize, Serialize};

use crate::rooms::RoomLimits;

/// `[rooms]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rooms {
    /// See [`RoomLimits::rooms_max`].
    pub rooms_max: usize,
    /// See [`RoomLimits::accounts_per_room_max`].
    pub accounts_per_room_max: usize,
    /// See [`RoomLimits::accounts_max`].
    pub accounts_max: usize,
    /// See [`RoomLimits::rooms_per_account_max`].
    pub rooms_per_account_max: usize,
}

impl Default for Rooms {
    fn default() -> Self {
        let limits = RoomLimits::default();
        Self {
            rooms_max: limits.rooms_max,
            accounts_per_room_max: limits.accounts_per_room_max,
            accounts_max: limits.accounts_max,
            rooms_per_account_max: limits.rooms_per_account_max,
        }
    }
}

impl Rooms {
    /// Bounds of the directory.
    pub fn limits(&self) -> RoomLimits {
        RoomLimits {
            rooms_max: self.rooms_max,
            accounts_per_room_max: self.accounts_per_room_max,
            accounts_max: self.accounts_max,
            rooms_per_account_max: self.rooms_per_account_max,
        }
    }
}
