//! Names and avatars of users for the chat domain: [`Profiles`] over an [`AccountStore`], with a
//! bounded memory.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;

use crate::{
    cache::Cache,
    chat::{Profile, Profiles},
    storage::{StoreError, accounts::AccountStore, side::Follow},
};

/// What a remembered profile counts as besides its texts.
const PROFILE_BYTES: usize = 128;

/// See the module.
pub struct ProfileNames {
    store: Arc<dyn AccountStore>,
    any: AtomicBool,
    remembered: Mutex<Remembered>,
}

struct Remembered {
    profiles: Cache<String, Arc<Profile>>,
    /// Grows with every change, so that what was read before it is not remembered after it.
    changes: u64,
}

impl ProfileNames {
    /// Profiles of a store, remembered in so many bytes. Full: those not used lately are looked up
    /// again.
    ///
    /// # Errors
    /// The store's own failures.
    pub async fn new(
        store: Arc<dyn AccountStore>,
        remembered_bytes_max: usize,
    ) -> Result<Arc<Self>, StoreError> {
        let any = AtomicBool::new(store.any().await?);
        let profiles = Cache::new(remembered_bytes_max, |profile: &Arc<Profile>| {
            PROFILE_BYTES + profile.name.len() + profile.avatar.len()
        });
        let remembered = Mutex::new(Remembered { profiles, changes: 0 });
        Ok(Arc::new(Self { store, any, remembered }))
    }

    /// A user was made, or a profile has changed.
    pub(super) fn changed(&self, user_id: &str) {
        self.any.store(true, Ordering::Release);
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.changes += 1;
        remembered.profiles.remove(user_id);
    }
}

#[async_trait]
impl Follow for ProfileNames {
    async fn follow(&self) -> Result<(), StoreError> {
        loop {
            let changed = self.store.changed().await?;
            if changed.is_empty() {
                return Ok(());
            }
            changed.iter().for_each(|user_id| self.changed(user_id));
        }
    }
}

#[async_trait]
impl Profiles for ProfileNames {
    fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    async fn profiles(&self, user_ids: Vec<String>) -> Vec<Arc<Profile>> {
        let mut found: Vec<Option<Arc<Profile>>> = Vec::with_capacity(user_ids.len());
        let changes = {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            found.extend(user_ids.iter().map(|id| remembered.profiles.get(id.as_str()).cloned()));
            remembered.changes
        };
        let missing: Vec<usize> =
            (0..found.len()).filter(|index| found[*index].is_none()).collect();
        if !missing.is_empty() {
            let asked = missing.iter().map(|index| user_ids[*index].clone()).collect();
            match self.store.accounts(asked).await {
                Ok(accounts) => {
                    let mut remembered =
                        self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
                    for (index, account) in missing.into_iter().zip(accounts) {
                        let account = account.unwrap_or_default();
                        let profile =
                            Arc::new(Profile { name: account.name, avatar: account.avatar });
                        if remembered.changes == changes {
                            remembered.profiles.insert(user_ids[index].clone(), profile.clone());
                        }
                        found[index] = Some(profile);
                    }
                }
                // A row without a name is better than no row.
                Err(error) => tracing::error!(%error, "profiles were not read"),
            }
        }
        found.into_iter().map(Option::unwrap_or_default).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        accounts::{Account, ProfileChange},
        embedded::{EmbeddedStore, Options},
        side::AccountTable,
    };

    async fn named(names: &ProfileNames, users: &[&str]) -> Vec<String> {
        let users = users.iter().map(|user| (*user).to_owned()).collect();
        names.profiles(users).await.iter().map(|profile| profile.name.clone()).collect()
    }

    #[tokio::test]
    async fn a_changed_name_is_seen_at_once_however_little_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { free_bytes_min: 0, ..Options::new(folder.path()) };
        let store = EmbeddedStore::open(options).unwrap();
        let accounts: Arc<dyn AccountStore> = Arc::new(AccountTable::open(&store).await.unwrap());
        for remembered_bytes_max in [0, 2 * PROFILE_BYTES + 20, 1 << 20] {
            let names = ProfileNames::new(accounts.clone(), remembered_bytes_max).await.unwrap();
            let round = remembered_bytes_max.to_string();
            let user_id = format!("ann-{round}");
            assert_eq!(named(&names, &[&user_id, "nobody"]).await, ["", ""]);
            let account =
                Account { user_id: user_id.clone(), name: "Ann".into(), ..Account::default() };
            assert!(accounts.create(account).await.unwrap());
            names.changed(&user_id);
            assert!(names.any());
            for name in ["Ann", "Anna", "安娜", ""] {
                let change = ProfileChange { name: Some(name.into()), ..ProfileChange::default() };
                accounts.update(&user_id, change, 1).await.unwrap().unwrap();
                names.changed(&user_id);
                for _ in 0..3 {
                    assert_eq!(named(&names, &["nobody", &user_id]).await, ["", name]);
                }
            }
        }
        let again = ProfileNames::new(accounts, 0).await.unwrap();
        assert!(again.any(), "it is known at a start");
    }

    #[tokio::test]
    async fn what_was_read_before_a_change_is_not_remembered_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { free_bytes_min: 0, ..Options::new(folder.path()) };
        let store = EmbeddedStore::open(options).unwrap();
        let accounts: Arc<dyn AccountStore> = Arc::new(AccountTable::open(&store).await.unwrap());
        let account = Account { user_id: "ann".into(), name: "0".into(), ..Account::default() };
        assert!(accounts.create(account).await.unwrap());
        let names = ProfileNames::new(accounts.clone(), 1 << 20).await.unwrap();
        assert!(names.any());
        let reading = {
            let names = names.clone();
            tokio::spawn(async move {
                for _ in 0..300 {
                    named(&names, &["ann"]).await;
                }
            })
        };
        for round in 1..=30 {
            let name = Some(round.to_string());
            let change = ProfileChange { name, ..ProfileChange::default() };
            accounts.update("ann", change, 1).await.unwrap().unwrap();
            names.changed("ann");
            assert_eq!(named(&names, &["ann"]).await, [round.to_string()]);
        }
        reading.await.unwrap();
        assert_eq!(named(&names, &["ann"]).await, ["30"]);
    }
}
