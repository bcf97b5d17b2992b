//! [`AccountStore`] in a side table.
//!
//! | key | row |
//! |---|---|
//! | `a` user | [`AccountRow`] |
//! | `i` user in lower case, 0, user | nothing: the search by id |
//! | `n` name in lower case, 0, user | nothing: the search by name |
//! | `l` login id | [`LoginRow`] |
//! | `u` length of user, user, when (big-endian), login id | nothing: a user's logins, oldest first |

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message;
use tokio::sync::Mutex;

use super::{Cursor, SideRows, SideTable, SideWrites, Sides};
use crate::storage::{
    StoreError,
    accounts::{
        Account, AccountLogin, AccountPage, AccountStore, Exchange, Exchanged, ProfileChange,
    },
};

/// Rows that one page of a search looks at.
const ROWS_SEARCHED_MAX: usize = 1_000;

/// The table's name.
const NAME: &str = "accounts";

#[derive(Clone, PartialEq, Message)]
struct AccountRow {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    avatar: String,
    #[prost(string, tag = "3")]
    extra: String,
    #[prost(string, tag = "4")]
    password_hash: String,
    #[prost(int64, tag = "5")]
    created_at_ms: i64,
    #[prost(int64, tag = "6")]
    updated_at_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
struct LoginRow {
    #[prost(string, tag = "1")]
    user_id: String,
    #[prost(bytes = "vec", tag = "2")]
    secret_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    previous_hash: Vec<u8>,
    #[prost(int64, tag = "4")]
    exchanged_at_ms: i64,
    #[prost(int64, tag = "5")]
    created_at_ms: i64,
    #[prost(int64, tag = "6")]
    expires_at_ms: i64,
}

/// Users in a side table.
pub struct AccountTable {
    table: SideTable,
    /// How far what others have written was looked at.
    seen: Mutex<Cursor>,
}

impl AccountTable {
    /// The users of a store.
    ///
    /// # Errors
    /// What the engine refuses.
    pub async fn open(sides: &dyn Sides) -> Result<Self, StoreError> {
        let table = sides.side(NAME)?;
        let seen = Mutex::new(table.cursor().await?);
        Ok(Self { table, seen })
    }
}

fn account_key(user_id: &str) -> Vec<u8> {
    [b"a", user_id.as_bytes()].concat()
}

fn search_key(kind: u8, text: &str, user_id: &str) -> Vec<u8> {
    [&[kind], text.to_lowercase().as_bytes(), &[0], user_id.as_bytes()].concat()
}

fn login_key(login_id: &[u8]) -> Vec<u8> {
    [b"l", login_id].concat()
}

fn user_logins(user_id: &str) -> Vec<u8> {
    let length = u16::try_from(user_id.len()).unwrap_or(u16::MAX).to_be_bytes();
    [b"u", &length[..], user_id.as_bytes()].concat()
}

fn user_login_key(user_id: &str, created_at_ms: i64, login_id: &[u8]) -> Vec<u8> {
    let at = created_at_ms.max(0).to_be_bytes();
    [&user_logins(user_id)[..], &at, login_id].concat()
}

fn decode<R: Message + Default>(bytes: &[u8]) -> Result<R, StoreError> {
    R::decode(bytes).map_err(|error| StoreError::Corrupt(format!("a row of {NAME}: {error}")))
}

fn account(user_id: &str, bytes: &[u8]) -> Result<Account, StoreError> {
    let row: AccountRow = decode(bytes)?;
    Ok(Account {
        user_id: user_id.to_owned(),
        name: row.name,
        avatar: row.avatar,
        extra: row.extra,
        password_hash: row.password_hash,
        created_at_ms: row.created_at_ms,
        updated_at_ms: row.updated_at_ms,
    })
}

fn row(account: &Account) -> Vec<u8> {
    AccountRow {
        name: account.name.clone(),
        avatar: account.avatar.clone(),
        extra: account.extra.clone(),
        password_hash: account.password_hash.clone(),
        created_at_ms: account.created_at_ms,
        updated_at_ms: account.updated_at_ms,
    }
    .encode_to_vec()
}

/// A user's logins, oldest first.
fn logins_of(rows: &SideRows<'_>, user_id: &str) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut keys = Vec::new();
    rows.prefix(&user_logins(user_id), |key, _| {
        keys.push(key.to_vec());
        Ok(true)
    })?;
    Ok(keys)
}

fn remove_login(rows: &mut SideWrites<'_>, index_key: Vec<u8>) {
    let login_id = index_key[index_key.len().saturating_sub(16)..].to_vec();
    rows.remove(login_key(&login_id));
    rows.remove(index_key);
}

fn end(rows: &mut SideWrites<'_>, login_id: &[u8], login: &LoginRow) {
    rows.remove(login_key(login_id));
    rows.remove(user_login_key(&login.user_id, login.created_at_ms, login_id));
}

#[async_trait]
impl AccountStore for AccountTable {
    async fn create(&self, account: Account) -> Result<bool, StoreError> {
        self.table
            .write(move |rows| {
                let key = account_key(&account.user_id);
                if rows.get(&key)?.is_some() {
                    return Ok(false);
                }
                rows.put(key, row(&account));
                rows.put(search_key(b'i', &account.user_id, &account.user_id), vec![]);
                if !account.name.is_empty() {
                    rows.put(search_key(b'n', &account.name, &account.user_id), vec![]);
                }
                Ok(true)
            })
            .await
    }

    async fn any(&self) -> Result<bool, StoreError> {
        self.table
            .read(|rows| {
                let mut any = false;
                rows.prefix(b"a", |_, _| {
                    any = true;
                    Ok(false)
                })?;
                Ok(any)
            })
            .await
    }

    async fn accounts(&self, user_ids: Vec<String>) -> Result<Vec<Option<Account>>, StoreError> {
        self.table
            .read(move |rows| {
                let found = rows.get_all(user_ids.iter().map(|id| account_key(id)).collect())?;
                let one = |(user_id, found): (&String, Option<Vec<u8>>)| {
                    found.map(|bytes| account(user_id, &bytes)).transpose()
                };
                user_ids.iter().zip(found).map(one).collect()
            })
            .await
    }

    async fn update(
        &self,
        user_id: &str,
        change: ProfileChange,
        now_ms: i64,
    ) -> Result<Option<Account>, StoreError> {
        let user_id = user_id.to_owned();
        self.table
            .write(move |rows| {
                let key = account_key(&user_id);
                let Some(bytes) = rows.get(&key)? else { return Ok(None) };
                let mut account = account(&user_id, &bytes)?;
                let before = account.clone();
                let ProfileChange { name, avatar, extra } = change;
                if let Some(name) = name {
                    account.name = name;
                }
                if let Some(avatar) = avatar {
                    account.avatar = avatar;
                }
                if let Some(extra) = extra {
                    account.extra = extra;
                }
                if account == before {
                    return Ok(Some(account));
                }
                account.updated_at_ms = now_ms;
                if account.name != before.name {
                    rows.remove(search_key(b'n', &before.name, &user_id));
                    if !account.name.is_empty() {
                        rows.put(search_key(b'n', &account.name, &user_id), vec![]);
                    }
                }
                rows.put(key, row(&account));
                Ok(Some(account))
            })
            .await
    }

    async fn set_password(&self, user_id: &str, password_hash: &str) -> Result<bool, StoreError> {
        let (user_id, password_hash) = (user_id.to_owned(), password_hash.to_owned());
        self.table
            .write(move |rows| {
                let key = account_key(&user_id);
                let Some(bytes) = rows.get(&key)? else { return Ok(false) };
                let account = Account { password_hash, ..account(&user_id, &bytes)? };
                rows.put(key, row(&account));
                for login in logins_of(rows.before(), &user_id)? {
                    remove_login(rows, login);
                }
                Ok(true)
            })
            .await
    }

    async fn search(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<AccountPage, StoreError> {
        let prefix = prefix.to_lowercase();
        let after = URL_SAFE_NO_PAD.decode(after).unwrap_or_else(|_| vec![0xff]);
        self.table.read(move |rows| search(rows, &prefix, &after, limit)).await
    }

    async fn add_login(&self, login: AccountLogin, logins_max: usize) -> Result<(), StoreError> {
        self.table
            .write(move |rows| {
                let earlier = logins_of(rows.before(), &login.user_id)?;
                let surplus = (earlier.len() + 1).saturating_sub(logins_max.max(1));
                for oldest in earlier.into_iter().take(surplus) {
                    remove_login(rows, oldest);
                }
                rows.put(
                    user_login_key(&login.user_id, login.created_at_ms, &login.login_id),
                    vec![],
                );
                let row = LoginRow {
                    user_id: login.user_id,
                    secret_hash: login.secret_hash.to_vec(),
                    previous_hash: vec![],
                    exchanged_at_ms: login.created_at_ms,
                    created_at_ms: login.created_at_ms,
                    expires_at_ms: login.expires_at_ms,
                };
                rows.put(login_key(&login.login_id), row.encode_to_vec());
                Ok(())
            })
            .await
    }

    async fn exchange(&self, exchange: Exchange) -> Result<Exchanged, StoreError> {
        self.table
            .write(move |rows| {
                let Exchange { login_id, shown_hash, next_hash, now_ms, expires_at_ms, grace_ms } =
                    exchange;
                let Some(bytes) = rows.get(&login_key(&login_id))? else {
                    return Ok(Exchanged::Unknown);
                };
                let mut login: LoginRow = decode(&bytes)?;
                if login.expires_at_ms <= now_ms {
                    end(rows, &login_id, &login);
                    return Ok(Exchanged::Expired);
                }
                let is_newest = login.secret_hash == shown_hash;
                let is_previous = login.previous_hash == shown_hash;
                if is_previous && now_ms > login.exchanged_at_ms.saturating_add(grace_ms) {
                    end(rows, &login_id, &login);
                    return Ok(Exchanged::Reused { user_id: login.user_id });
                }
                if !is_newest && !is_previous {
                    return Ok(Exchanged::Unknown);
                }
                if is_newest {
                    login.previous_hash = std::mem::take(&mut login.secret_hash);
                    login.exchanged_at_ms = now_ms;
                }
                // A repeated exchange of the previous one replaces the answer that was lost, and
                // does not prolong its grace.
                login.secret_hash = next_hash.to_vec();
                login.expires_at_ms = expires_at_ms;
                rows.put(login_key(&login_id), login.encode_to_vec());
                Ok(Exchanged::Done { user_id: login.user_id })
            })
            .await
    }

    async fn end_login(
        &self,
        login_id: [u8; 16],
        shown_hash: [u8; 32],
    ) -> Result<bool, StoreError> {
        self.table
            .write(move |rows| {
                let Some(bytes) = rows.get(&login_key(&login_id))? else { return Ok(false) };
                let login: LoginRow = decode(&bytes)?;
                if login.secret_hash != shown_hash {
                    return Ok(false);
                }
                end(rows, &login_id, &login);
                Ok(true)
            })
            .await
    }

    async fn changed(&self) -> Result<Vec<String>, StoreError> {
        let mut seen = self.seen.lock().await;
        loop {
            let written = self.table.news(&mut seen).await?;
            let nothing = written.is_empty();
            let accounts = written.into_iter().filter_map(|row| match row.key.split_first() {
                Some((b'a', user_id)) => String::from_utf8(user_id.to_vec()).ok(),
                _ => None,
            });
            let changed: Vec<String> = accounts.collect();
            // Logins alone are no change of anybody's account.
            if nothing || !changed.is_empty() {
                return Ok(changed);
            }
        }
    }
}

/// `after` is the key of the last row that was looked at; ids come before names because `i` comes
/// before `n`. A page may have less than `limit` users and still a next one: a search looks at
/// [`ROWS_SEARCHED_MAX`] rows at most.
fn search(
    rows: &SideRows<'_>,
    prefix: &str,
    after: &[u8],
    limit: usize,
) -> Result<AccountPage, StoreError> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut position: Vec<u8> = Vec::new();
    let mut searched = 0;
    let mut more = false;
    for kind in [b'i', b'n'] {
        let begin = [&[kind], prefix.as_bytes()].concat();
        let is_inside = after.starts_with(&begin);
        if more || (!after.is_empty() && !is_inside && after > begin.as_slice()) {
            continue;
        }
        let first = if is_inside { [after, &[0]].concat() } else { begin.clone() };
        let mut last = begin;
        last.push(0xff); // No text in UTF-8 holds this byte.
        rows.range(first..=last, |key, _| {
            let is_shown = kind == b'i' || !is_found_by_id(key, prefix);
            more = searched == ROWS_SEARCHED_MAX || (is_shown && found.len() == limit);
            if more {
                return Ok(false);
            }
            searched += 1;
            key.clone_into(&mut position);
            if is_shown {
                found.push(key.to_vec());
            }
            Ok(true)
        })?;
    }
    let mut accounts = Vec::with_capacity(found.len());
    let user_ids: Vec<&str> = found.iter().filter_map(|key| user_of(key)).collect();
    let found = rows.get_all(user_ids.iter().map(|user_id| account_key(user_id)).collect())?;
    for (user_id, bytes) in user_ids.into_iter().zip(found) {
        if let Some(bytes) = bytes {
            accounts.push(account(user_id, &bytes)?);
        }
    }
    let next = if more { URL_SAFE_NO_PAD.encode(&position) } else { String::new() };
    Ok(AccountPage { accounts, next })
}

fn user_of(key: &[u8]) -> Option<&str> {
    let zero = key.iter().rposition(|byte| *byte == 0)?;
    std::str::from_utf8(&key[zero + 1..]).ok()
}

/// The user of a name's row is shown among the ids.
fn is_found_by_id(key: &[u8], prefix: &str) -> bool {
    user_of(key).is_some_and(|user_id| user_id.to_lowercase().starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::AccountTable;
    use crate::storage::{
        Store as _,
        accounts::conformance::{Bed, account_store_conformance_tests},
        embedded::{EmbeddedStore, tests::options},
    };

    struct Directory {
        directory: tempfile::TempDir,
        store: std::sync::Mutex<Option<EmbeddedStore>>,
    }

    impl Bed for Directory {
        type Store = AccountTable;

        async fn open(&self) -> AccountTable {
            let earlier = self.store.lock().unwrap().take();
            if let Some(earlier) = earlier {
                earlier.close().await.unwrap();
            }
            let store = EmbeddedStore::open(options(self.directory.path())).unwrap();
            let accounts = AccountTable::open(&store).await.unwrap();
            *self.store.lock().unwrap() = Some(store);
            accounts
        }
    }

    account_store_conformance_tests!(Directory {
        directory: tempfile::tempdir().unwrap(),
        store: std::sync::Mutex::new(None),
    });
}
