//! Where devices can be reached: the trait [`TokenStore`], and the one on side tables. A device has one
//! token, a token one device; the newest word counts.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::ProviderKind;
use crate::{
    storage::{
        StoreError,
        embedded::encoding::{DecodeError, Reader, put_number, put_text},
        side::{Cursor, Follow, SideTable, SideWrites, Sides},
    },
    user_filter::UserFilter,
};

/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 4_096;

/// Longest app id, in bytes.
pub const APP_ID_BYTES_MAX: usize = 256;

/// Longest device id, in bytes.
pub const DEVICE_ID_BYTES_MAX: usize = 255;

/// Devices of one user. For one more, the one registered longest ago is forgotten.
pub const TOKENS_PER_USER_MAX: usize = 16;

/// Where a device can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// As the client names it.
    pub device_id: String,
    /// By whom.
    pub provider: ProviderKind,
    /// The provider's own word for the device.
    pub token: String,
    /// As registered; may be empty.
    pub app_id: String,
    /// Milliseconds since 1970.
    pub registered_at_ms: i64,
}

/// Keeps tokens.
#[async_trait]
pub trait TokenStore: Send + Sync + 'static {
    /// A device of a user has this token from now on. The same token of another device is forgotten,
    /// and the oldest of too many of the user.
    ///
    /// # Errors
    /// The store's own failures; nothing has changed then.
    async fn put(&self, user_id: &str, token: Token) -> Result<(), StoreError>;

    /// A device has no token any more; says whether it had one. With `only`, it goes only if it is
    /// this token, registered before `before_ms`.
    ///
    /// # Errors
    /// The store's own failures; nothing has changed then.
    async fn remove(
        &self,
        user_id: &str,
        device_id: &str,
        only: Option<(&str, i64)>,
    ) -> Result<bool, StoreError>;

    /// The tokens of a user, by device.
    ///
    /// # Errors
    /// The store's own failures.
    async fn of(&self, user_id: &str) -> Result<Vec<Token>, StoreError>;

    /// Whether [`TokenStore::of`] is worth asking; from memory. False is certain.
    fn may_have(&self, user_id: &str) -> bool;
}

/// Tokens in a side table.
///
/// Keys: 0, the length of the user's id, the user and the device; 1, the provider and the token.
pub struct TokenTable {
    table: SideTable,
    filter: Arc<Mutex<UserFilter>>,
    /// How far what others have written was looked at.
    seen: tokio::sync::Mutex<Cursor>,
}

const VERSION: u8 = 1;

fn corrupt(error: DecodeError) -> StoreError {
    StoreError::Corrupt(format!("a row of the push tokens: {error}"))
}

fn user_prefix(user_id: &str) -> Vec<u8> {
    debug_assert!(user_id.len() <= 255, "ids are checked before keys are made");
    [&[0, user_id.len() as u8], user_id.as_bytes()].concat()
}

fn device_key(user_id: &str, device_id: &str) -> Vec<u8> {
    [&user_prefix(user_id), device_id.as_bytes()].concat()
}

fn token_key(provider: ProviderKind, token: &str) -> Vec<u8> {
    [&[1, provider as u8], token.as_bytes()].concat()
}

fn encode(token: &Token) -> Vec<u8> {
    let mut row = vec![VERSION, token.provider as u8];
    put_number(&mut row, token.registered_at_ms as u64);
    put_text(&mut row, &token.token);
    put_text(&mut row, &token.app_id);
    row
}

fn decode(device_id: &[u8], row: &[u8]) -> Result<Token, StoreError> {
    let read = || {
        let mut reader = Reader::of_version(row, VERSION)?;
        let provider = match reader.byte()? {
            1 => ProviderKind::Apns,
            2 => ProviderKind::Fcm,
            3 => ProviderKind::Webhook,
            _ => return Err(DecodeError::Number),
        };
        let token = Token {
            device_id: String::from_utf8(device_id.to_vec()).map_err(|_| DecodeError::Text)?,
            provider,
            registered_at_ms: reader.number()? as i64,
            token: reader.text()?.to_owned(),
            app_id: reader.text()?.to_owned(),
        };
        reader.finish()?;
        Ok(token)
    };
    read().map_err(corrupt)
}

/// Removes the row of a device, and its token's; says whether it was there.
fn take(rows: &mut SideWrites<'_>, device_key: Vec<u8>) -> Result<bool, StoreError> {
    let Some(row) = rows.get(&device_key)? else { return Ok(false) };
    let token = decode(&[], &row)?;
    rows.remove(token_key(token.provider, &token.token));
    rows.remove(device_key);
    Ok(true)
}

impl TokenTable {
    /// Opens the tokens in a store's database, and reads whose there are.
    ///
    /// # Errors
    /// The store's own failures.
    pub async fn open(sides: &dyn Sides) -> Result<Self, StoreError> {
        let table = sides.side("push_tokens")?;
        let seen = tokio::sync::Mutex::new(table.cursor().await?);
        let read = table.read(|rows| {
            let mut filter = UserFilter::new();
            rows.prefix(&[0], |key, _| {
                filter.add(&user_of(key).unwrap_or_default());
                Ok(true)
            })?;
            Ok(filter)
        });
        let filter = Arc::new(Mutex::new(read.await?));
        Ok(Self { table, filter, seen })
    }

    /// A user has one more row, and so many rows are gone.
    fn count(&self, user_id: Option<&str>, removed: u64) {
        let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        // In this order, so that the filter is not emptied in between.
        if let Some(user_id) = user_id {
            filter.add(user_id);
        }
        // Where others write, too, nobody counts how many rows there are, and the filter stays.
        if !self.table.is_shared() {
            filter.remove(removed);
        }
    }
}

/// The user of a device's key.
fn user_of(key: &[u8]) -> Option<String> {
    let [0, length, rest @ ..] = key else { return None };
    Some(String::from_utf8_lossy(rest.get(..usize::from(*length))?).into_owned())
}

#[async_trait]
impl Follow for TokenTable {
    async fn follow(&self) -> Result<(), StoreError> {
        let mut seen = self.seen.lock().await;
        loop {
            let written = self.table.news(&mut seen).await?;
            if written.is_empty() {
                return Ok(());
            }
            for user_id in written.iter().filter_map(|row| user_of(&row.key)) {
                self.count(Some(&user_id), 0);
            }
        }
    }
}

#[async_trait]
impl TokenStore for TokenTable {
    async fn put(&self, user_id: &str, token: Token) -> Result<(), StoreError> {
        let user_id = user_id.to_owned();
        let write = self.table.write(move |rows| {
            let key = device_key(&user_id, &token.device_id);
            let mut removed = u64::from(take(rows, key.clone())?);
            // A phone that changed hands: the user before is not told of the new one's messages.
            let by_token = token_key(token.provider, &token.token);
            if let Some(other) = rows.get(&by_token)? {
                removed += u64::from(take(rows, other)?);
            }
            let prefix = user_prefix(&user_id);
            let mut others = Vec::new();
            rows.before().prefix(&prefix, |key, row| {
                others.push((decode(&[], row)?.registered_at_ms, key.to_vec()));
                Ok(true)
            })?;
            others.retain(|(_, other)| *other != key);
            others.sort_unstable();
            let too_many = (others.len() + 1).saturating_sub(TOKENS_PER_USER_MAX);
            for (_, other) in others.into_iter().take(too_many) {
                removed += u64::from(take(rows, other)?);
            }
            rows.put(by_token, key.clone());
            rows.put(key, encode(&token));
            Ok((user_id, removed))
        });
        let (user_id, removed) = write.await?;
        self.count(Some(&user_id), removed);
        Ok(())
    }

    async fn remove(
        &self,
        user_id: &str,
        device_id: &str,
        only: Option<(&str, i64)>,
    ) -> Result<bool, StoreError> {
        let key = device_key(user_id, device_id);
        let only = only.map(|(token, before_ms)| (token.to_owned(), before_ms));
        let write = self.table.write(move |rows| {
            if let Some((token, before_ms)) = only {
                let Some(row) = rows.get(&key)? else { return Ok(false) };
                let known = decode(&[], &row)?;
                if known.token != token || known.registered_at_ms >= before_ms {
                    return Ok(false);
                }
            }
            take(rows, key)
        });
        let removed = write.await?;
        self.count(None, u64::from(removed));
        Ok(removed)
    }

    async fn of(&self, user_id: &str) -> Result<Vec<Token>, StoreError> {
        let prefix = user_prefix(user_id);
        let read = self.table.read(move |rows| {
            let mut tokens = Vec::new();
            rows.prefix(&prefix, |key, row| {
                tokens.push(decode(&key[prefix.len()..], row)?);
                Ok(true)
            })?;
            Ok(tokens)
        });
        read.await
    }

    fn may_have(&self, user_id: &str) -> bool {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner).may_have(user_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        Store as _,
        embedded::{EmbeddedStore, Options},
    };

    fn token(device_id: &str, token: &str, registered_at_ms: i64) -> Token {
        let (device_id, token) = (device_id.to_owned(), token.to_owned());
        let (provider, app_id) = (ProviderKind::Apns, "app".to_owned());
        Token { device_id, provider, token, app_id, registered_at_ms }
    }

    async fn open(folder: &tempfile::TempDir) -> (EmbeddedStore, TokenTable) {
        let options = Options { free_bytes_min: 0, ..Options::new(folder.path()) };
        let store = EmbeddedStore::open(options).expect("opened");
        let tokens = TokenTable::open(&store).await.expect("opened");
        (store, tokens)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_device_has_its_newest_token_and_a_token_its_newest_device() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, tokens) = open(&folder).await;
        assert!(!tokens.may_have("ann"));
        tokens.put("ann", token("phone", "t1", 1)).await.expect("stored");
        tokens.put("ann", token("phone", "t2", 2)).await.expect("stored");
        tokens.put("ann", token("pad", "t3", 3)).await.expect("stored");
        let of_ann = tokens.of("ann").await.expect("read");
        assert_eq!(of_ann, [token("pad", "t3", 3), token("phone", "t2", 2)]);
        // The pad changes hands; the first token of the phone is free again.
        tokens.put("bob", token("his pad", "t3", 4)).await.expect("stored");
        tokens.put("bob", token("old", "t1", 5)).await.expect("stored");
        assert_eq!(tokens.of("ann").await.expect("read"), [token("phone", "t2", 2)]);
        assert_eq!(tokens.of("bob").await.expect("read").len(), 2);
        store.close().await.expect("closed");
        let (_store, tokens) = open(&folder).await;
        assert!(tokens.may_have("ann") && tokens.may_have("bob"));
        let only = |token, before_ms| Some((token, before_ms));
        for (only, removed) in
            [(only("t1", 100), false), (only("t2", 2), false), (only("t2", 3), true), (None, false)]
        {
            let result = tokens.remove("ann", "phone", only).await;
            assert_eq!(result.expect("answered"), removed, "{only:?}");
        }
        assert_eq!(tokens.of("ann").await.expect("read"), []);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_oldest_of_too_many_devices_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_store, tokens) = open(&folder).await;
        for n in 0..TOKENS_PER_USER_MAX as i64 + 3 {
            let device = format!("device {}", 100 - n);
            tokens.put("ann", token(&device, &format!("t{n}"), n)).await.expect("stored");
        }
        let kept = tokens.of("ann").await.expect("read");
        assert_eq!(kept.len(), TOKENS_PER_USER_MAX);
        assert_eq!(kept.iter().map(|token| token.registered_at_ms).min(), Some(3));
    }
}
