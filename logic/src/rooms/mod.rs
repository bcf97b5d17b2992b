//! Configured rooms: live rooms that business services have made, and the accounts they have put in.
//!
//! [`RoomDirectory`] answers from memory, because it is asked for every join and every login; each
//! change is durable in a [`RoomStore`] before it is seen. Who is in a room at the moment the SDK
//! knows; nothing here sends anything, but observers are told of every change.
//!
//! # Bounds
//! See [`RoomLimits`]; what is above one is refused and changes nothing.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use async_trait::async_trait;
use tokio::sync::{Mutex, MutexGuard};

use crate::storage::{StoreError, side::Follow};

mod table;

pub use table::RoomTable;

/// Longest name of a room, in bytes.
pub const NAME_BYTES_MAX: usize = 1_024;

/// Bounds of a [`RoomDirectory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLimits {
    /// Rooms. Default 100,000.
    pub rooms_max: usize,
    /// Accounts of one room when its maker states no limit, and at most. Default 100,000.
    pub accounts_per_room_max: usize,
    /// Accounts over all rooms, about 150 bytes of memory each. Default 1,000,000.
    pub accounts_max: usize,
    /// Rooms of one account: its sessions join all of them at a login. Default 64.
    pub rooms_per_account_max: usize,
}

impl Default for RoomLimits {
    fn default() -> Self {
        Self {
            rooms_max: 100_000,
            accounts_per_room_max: 100_000,
            accounts_max: 1_000_000,
            rooms_per_account_max: 64,
        }
    }
}

/// What is stated of a room when it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomSettings {
    /// For people.
    pub name: String,
    /// Accounts of a closed room, sessions at once of an open one; 0: the server's limit.
    pub members_max: u64,
    /// Only accounts may join.
    pub closed: bool,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
}

/// A change of what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomChange {
    /// A room, or other settings of it.
    Put(String, RoomSettings),
    /// A room is no more, nor are its accounts.
    Remove(String),
    /// An account is in a room.
    Add(String, String),
    /// It is in it no more.
    Take(String, String),
}

/// Everything that is stored.
pub type StoredRooms = Vec<(String, RoomSettings, Vec<String>)>;

/// Keeps rooms and their accounts.
#[async_trait]
pub trait RoomStore: Send + Sync + 'static {
    /// Everything.
    ///
    /// # Errors
    /// The store's own failures.
    async fn load(&self) -> Result<StoredRooms, StoreError>;

    /// Applies changes as one; durable when it is answered.
    ///
    /// # Errors
    /// The store's own failures; nothing was applied then.
    async fn change(&self, changes: Vec<RoomChange>) -> Result<(), StoreError>;

    /// Whether other processes change rooms, too.
    fn is_shared(&self) -> bool {
        false
    }

    /// Some of what was changed, by whomever, since [`RoomStore::load`] or the last call, in order;
    /// empty when there is no more. Where nobody else changes rooms there is nothing.
    ///
    /// # Errors
    /// The store's own failures; the same comes again then.
    async fn changed(&self) -> Result<Vec<RoomChange>, StoreError> {
        Ok(vec![])
    }
}

/// Why a change was refused.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// There is no such configured room.
    #[error("There is no such room.")]
    NotFound,
    /// There is one already.
    #[error("There is a room with this id already.")]
    AlreadyExists,
    /// A bound is reached; the sentence says which.
    #[error("{0}.")]
    Full(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

struct Room {
    settings: RoomSettings,
    accounts: BTreeSet<Arc<str>>,
}

/// What is known in memory.
#[derive(Default)]
struct Known {
    rooms: HashMap<Arc<str>, Room>,
    /// The rooms of each account.
    accounts: HashMap<Arc<str>, Vec<Arc<str>>>,
    /// Accounts over all rooms.
    total: usize,
}

/// See the module.
pub struct RoomDirectory {
    store: Arc<dyn RoomStore>,
    limits: RoomLimits,
    known: RwLock<Known>,
    /// Held by who changes something, so that what was checked stays true until it is durable.
    changing: Mutex<()>,
    /// Are told of what has changed; one for each chat domain that lives in this process.
    observers: RwLock<Vec<Observer>>,
}

/// Is told of changes once they are seen, in their order, whoever made them.
pub type Observer = Box<dyn Fn(&[RoomChange]) + Send + Sync>;

impl RoomDirectory {
    /// Reads everything that is stored.
    ///
    /// # Errors
    /// The store's own failures.
    pub async fn open(store: Arc<dyn RoomStore>, limits: RoomLimits) -> Result<Self, StoreError> {
        let mut known = Known::default();
        for (room_id, settings, accounts) in store.load().await? {
            known.apply(RoomChange::Put(room_id.clone(), settings));
            for user_id in accounts {
                known.apply(RoomChange::Add(room_id.clone(), user_id));
            }
        }
        Ok(Self {
            store,
            limits,
            known: RwLock::new(known),
            changing: Mutex::default(),
            observers: RwLock::default(),
        })
    }

    /// From now on tells `observer` of every change, of this process and of others. It is called while
    /// nothing else can change, and must not block.
    pub fn observe(&self, observer: Observer) {
        self.observers.write().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        // Whole after every statement, so a panic elsewhere spoils nothing.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    async fn change(&self, changes: Vec<RoomChange>) -> Result<(), StoreError> {
        self.store.change(changes.clone()).await?;
        if self.store.is_shared() {
            // Ours come with those of others, in the order in which they happened. It is durable, so
            // that a failure here only means that it is seen a little later.
            if let Err(error) = self.take_in().await {
                tracing::warn!(%error, "changes of rooms were not read; this is tried again");
            }
            return Ok(());
        }
        self.apply(&changes);
        Ok(())
    }

    fn apply(&self, changes: &[RoomChange]) {
        {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            changes.iter().for_each(|change| known.apply(change.clone()));
        }
        let observers = self.observers.read().unwrap_or_else(PoisonError::into_inner);
        observers.iter().for_each(|observer| observer(changes));
    }

    /// Takes in what the store says was changed. To be called with `changing` held.
    async fn take_in(&self) -> Result<(), StoreError> {
        loop {
            let changes = self.store.changed().await?;
            if changes.is_empty() {
                return Ok(());
            }
            self.apply(&changes);
        }
    }

    /// Waits for its turn to change something, on what is true now.
    async fn turn(&self) -> Result<MutexGuard<'_, ()>, StoreError> {
        let changing = self.changing.lock().await;
        if self.store.is_shared() {
            self.take_in().await?;
        }
        Ok(changing)
    }

    /// A room's settings and how many accounts it has.
    pub fn get(&self, room_id: &str) -> Option<(RoomSettings, usize)> {
        let known = self.known();
        let room = known.rooms.get(room_id)?;
        Some((room.settings.clone(), room.accounts.len()))
    }

    /// How many sessions may be in the room at once, if it is an open one with a limit.
    pub fn sessions_max(&self, room_id: &str) -> Option<u64> {
        let known = self.known();
        let settings = &known.rooms.get(room_id)?.settings;
        (!settings.closed && settings.members_max > 0).then_some(settings.members_max)
    }

    /// Whether the user may join: any room but a closed one without this account.
    pub fn may_join(&self, room_id: &str, user_id: &str) -> bool {
        let known = self.known();
        let room = known.rooms.get(room_id);
        room.is_none_or(|room| !room.settings.closed || room.accounts.contains(user_id))
    }

    /// The rooms of an account.
    pub fn rooms_of(&self, user_id: &str) -> Vec<Arc<str>> {
        let known = self.known();
        if known.accounts.is_empty() {
            return Vec::new();
        }
        known.accounts.get(user_id).cloned().unwrap_or_default()
    }

    /// The accounts of a room after one, in order, at most `limit`.
    pub fn accounts(&self, room_id: &str, after: &str, limit: usize) -> Vec<Arc<str>> {
        let known = self.known();
        let Some(room) = known.rooms.get(room_id) else { return Vec::new() };
        let after = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        room.accounts.range::<str, _>(after).take(limit).cloned().collect()
    }

    /// Makes a room with its first accounts.
    ///
    /// # Errors
    /// [`RoomError`]; nothing has changed then.
    pub async fn create(
        &self,
        room_id: &str,
        settings: RoomSettings,
        user_ids: &[String],
    ) -> Result<(), RoomError> {
        let _changing = self.turn().await?;
        {
            let known = self.known();
            if known.rooms.contains_key(room_id) {
                return Err(RoomError::AlreadyExists);
            }
            let max = self.limits.rooms_max;
            if known.rooms.len() >= max {
                return Err(RoomError::Full(format!("There are {max} rooms already")));
            }
        }
        let user_ids: BTreeSet<&str> = user_ids.iter().map(String::as_str).collect();
        self.check_room_for(&settings, 0, &user_ids)?;
        let mut changes = vec![RoomChange::Put(room_id.to_owned(), settings)];
        changes.extend(user_ids.iter().map(|id| added(room_id, id)));
        Ok(self.change(changes).await?)
    }

    /// Removes a room and its accounts.
    ///
    /// # Errors
    /// [`RoomError`]; nothing has changed then.
    pub async fn remove(&self, room_id: &str) -> Result<(), RoomError> {
        let _changing = self.turn().await?;
        if self.get(room_id).is_none() {
            return Err(RoomError::NotFound);
        }
        Ok(self.change(vec![RoomChange::Remove(room_id.to_owned())]).await?)
    }

    /// Puts accounts into a room; returns those that were not in it.
    ///
    /// # Errors
    /// [`RoomError`]; nothing has changed then.
    pub async fn add(&self, room_id: &str, user_ids: &[String]) -> Result<Vec<String>, RoomError> {
        let _changing = self.turn().await?;
        let new: BTreeSet<&str> = {
            let known = self.known();
            let room = known.rooms.get(room_id).ok_or(RoomError::NotFound)?;
            let ids = user_ids.iter().map(String::as_str);
            ids.filter(|id| !room.accounts.contains(*id)).collect()
        };
        let (settings, accounts) = self.get(room_id).ok_or(RoomError::NotFound)?;
        self.check_room_for(&settings, accounts, &new)?;
        if !new.is_empty() {
            self.change(new.iter().map(|id| added(room_id, id)).collect()).await?;
        }
        Ok(new.into_iter().map(str::to_owned).collect())
    }

    /// Takes accounts out of a room; returns those that were in it.
    ///
    /// # Errors
    /// [`RoomError`]; nothing has changed then.
    pub async fn take(&self, room_id: &str, user_ids: &[String]) -> Result<Vec<String>, RoomError> {
        let _changing = self.turn().await?;
        let gone: BTreeSet<&str> = {
            let known = self.known();
            let room = known.rooms.get(room_id).ok_or(RoomError::NotFound)?;
            let ids = user_ids.iter().map(String::as_str);
            ids.filter(|id| room.accounts.contains(*id)).collect()
        };
        let take = |id: &&str| RoomChange::Take(room_id.to_owned(), (*id).to_owned());
        if !gone.is_empty() {
            self.change(gone.iter().map(take).collect()).await?;
        }
        Ok(gone.into_iter().map(str::to_owned).collect())
    }

    /// Whether so many more accounts fit into a room, into all rooms, and the room into each account.
    fn check_room_for(
        &self,
        settings: &RoomSettings,
        accounts: usize,
        new: &BTreeSet<&str>,
    ) -> Result<(), RoomError> {
        let limits = &self.limits;
        let mut max = limits.accounts_per_room_max;
        if settings.closed && settings.members_max > 0 {
            max = max.min(usize::try_from(settings.members_max).unwrap_or(usize::MAX));
        }
        if accounts + new.len() > max {
            return Err(RoomError::Full(format!("This room may have {max} accounts")));
        }
        let known = self.known();
        if known.total + new.len() > limits.accounts_max {
            let max = limits.accounts_max;
            return Err(RoomError::Full(format!("All rooms together may have {max} accounts")));
        }
        for user_id in new {
            let rooms = known.accounts.get(*user_id).map_or(0, Vec::len);
            let max = limits.rooms_per_account_max;
            if rooms >= max {
                return Err(RoomError::Full(format!("{user_id:?} is in {max} rooms already")));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Follow for RoomDirectory {
    async fn follow(&self) -> Result<(), StoreError> {
        self.turn().await.map(drop)
    }
}

fn added(room_id: &str, user_id: &str) -> RoomChange {
    RoomChange::Add(room_id.to_owned(), user_id.to_owned())
}

impl Known {
    fn apply(&mut self, change: RoomChange) {
        match change {
            RoomChange::Put(room_id, settings) => {
                let new = || Room { settings: RoomSettings::default(), accounts: BTreeSet::new() };
                // Other settings leave the accounts.
                self.rooms.entry(room_id.into()).or_insert_with(new).settings = settings;
            }
            RoomChange::Remove(room_id) => {
                let Some(room) = self.rooms.remove(&*room_id) else { return };
                self.total -= room.accounts.len();
                room.accounts.iter().for_each(|user_id| self.forget(&room_id, user_id));
            }
            RoomChange::Add(room_id, user_id) => {
                let Some((room_id, _)) = self.rooms.get_key_value(&*room_id) else { return };
                let room_id = room_id.clone();
                let user_id: Arc<str> = user_id.into();
                // What is told again changes nothing.
                if let Some(room) = self.rooms.get_mut(&room_id)
                    && room.accounts.insert(user_id.clone())
                {
                    self.total += 1;
                    self.accounts.entry(user_id).or_default().push(room_id);
                }
            }
            RoomChange::Take(room_id, user_id) => {
                let Some(room) = self.rooms.get_mut(&*room_id) else { return };
                if room.accounts.remove(&*user_id) {
                    self.total -= 1;
                    self.forget(&room_id, &user_id);
                }
            }
        }
    }

    /// The account is not in the room any more.
    fn forget(&mut self, room_id: &str, user_id: &str) {
        if let Some(rooms) = self.accounts.get_mut(user_id) {
            rooms.retain(|known| **known != *room_id);
            if rooms.is_empty() {
                self.accounts.remove(user_id);
            }
        }
    }
}

#[cfg(test)]
mod tests;
