//! Rooms in a side table.
//!
//! Keys: 0 and the room; 1, the length of the room's id, the room and the account.

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::{RoomChange, RoomSettings, RoomStore, StoredRooms};
use crate::storage::{
    StoreError,
    embedded::encoding::{DecodeError, Reader, put_number, put_text},
    side::{Cursor, SideTable, Sides, Written},
};

/// First byte of a room's row.
const VERSION: u8 = 1;

/// See the module.
pub struct RoomTable {
    table: SideTable,
    /// How far what others have written was looked at.
    seen: Mutex<Cursor>,
}

impl RoomTable {
    /// Opens the table in a store's database.
    ///
    /// # Errors
    /// The store's own failures.
    pub async fn open(sides: &dyn Sides) -> Result<Self, StoreError> {
        let table = sides.side("rooms")?;
        let seen = Mutex::new(table.cursor().await?);
        Ok(Self { table, seen })
    }
}

fn corrupt(error: DecodeError) -> StoreError {
    StoreError::Corrupt(format!("a row of the rooms: {error}"))
}

fn room_key(room_id: &str) -> Vec<u8> {
    [&[0], room_id.as_bytes()].concat()
}

fn accounts_prefix(room_id: &str) -> Vec<u8> {
    debug_assert!(room_id.len() <= 255, "ids are checked before keys are made");
    [&[1, room_id.len() as u8], room_id.as_bytes()].concat()
}

fn account_key(room_id: &str, user_id: &str) -> Vec<u8> {
    [&accounts_prefix(room_id), user_id.as_bytes()].concat()
}

fn encode(settings: &RoomSettings) -> Vec<u8> {
    let mut row = vec![VERSION, u8::from(settings.closed)];
    put_number(&mut row, settings.members_max);
    put_number(&mut row, settings.created_at_ms as u64);
    put_text(&mut row, &settings.name);
    row
}

fn decode(row: &[u8]) -> Result<RoomSettings, StoreError> {
    let read = || {
        let mut reader = Reader::of_version(row, VERSION)?;
        let closed = reader.byte()? != 0;
        let settings = RoomSettings {
            closed,
            members_max: reader.number()?,
            created_at_ms: reader.number()? as i64,
            name: reader.text()?.to_owned(),
        };
        reader.finish()?;
        Ok(settings)
    };
    read().map_err(corrupt)
}

fn text(bytes: &[u8]) -> Result<String, StoreError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| corrupt(DecodeError::Text))
}

/// What a written row did.
fn change_of(row: &Written) -> Result<Option<RoomChange>, StoreError> {
    let Some((kind, rest)) = row.key.split_first() else { return Ok(None) };
    let change = match (kind, &row.value) {
        (0, Some(value)) => RoomChange::Put(text(rest)?, decode(value)?),
        (0, None) => RoomChange::Remove(text(rest)?),
        (1, value) => {
            let Some((length, rest)) = rest.split_first() else { return Ok(None) };
            let Some((room_id, user_id)) = rest.split_at_checked(usize::from(*length)) else {
                return Ok(None);
            };
            let (room_id, user_id) = (text(room_id)?, text(user_id)?);
            match value {
                Some(_) => RoomChange::Add(room_id, user_id),
                None => RoomChange::Take(room_id, user_id),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(change))
}

#[async_trait]
impl RoomStore for RoomTable {
    async fn load(&self) -> Result<StoredRooms, StoreError> {
        let read = self.table.read(|rows| {
            let mut rooms = Vec::new();
            rows.prefix(&[0], |key, row| {
                rooms.push((text(&key[1..])?, decode(row)?, Vec::new()));
                Ok(true)
            })?;
            for (room_id, _, accounts) in &mut rooms {
                let prefix = accounts_prefix(room_id);
                rows.prefix(&prefix, |key, _| {
                    accounts.push(text(&key[prefix.len()..])?);
                    Ok(true)
                })?;
            }
            Ok(rooms)
        });
        read.await
    }

    async fn change(&self, changes: Vec<RoomChange>) -> Result<(), StoreError> {
        let write = self.table.write(move |rows| {
            for change in changes {
                match change {
                    RoomChange::Put(room_id, settings) => {
                        rows.put(room_key(&room_id), encode(&settings));
                    }
                    RoomChange::Remove(room_id) => {
                        let mut keys = vec![room_key(&room_id)];
                        rows.before().prefix(&accounts_prefix(&room_id), |key, _| {
                            keys.push(key.to_vec());
                            Ok(true)
                        })?;
                        keys.into_iter().for_each(|key| rows.remove(key));
                    }
                    RoomChange::Add(room_id, user_id) => {
                        rows.put(account_key(&room_id, &user_id), vec![]);
                    }
                    RoomChange::Take(room_id, user_id) => {
                        rows.remove(account_key(&room_id, &user_id));
                    }
                }
            }
            Ok(())
        });
        write.await
    }

    fn is_shared(&self) -> bool {
        self.table.is_shared()
    }

    async fn changed(&self) -> Result<Vec<RoomChange>, StoreError> {
        let mut seen = self.seen.lock().await;
        let written = self.table.news(&mut seen).await?;
        written.iter().filter_map(|row| change_of(row).transpose()).collect()
    }
}
