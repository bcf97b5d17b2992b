//! Rows that were fetched, and the rules' view of them: what is asked for and not here is noted, so
//! that it can be fetched before the rules run again.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
};

use futures::future::{BoxFuture, join_all};
use tokio_postgres::types::Type;

use super::{
    columns::{Kind, Part, place_of, shape_of},
    pool::{Failure, Param, Session},
    wanted::Wanted,
};
use crate::{
    cache::Cache,
    storage::{
        Members, StoreError,
        conversation_id::{self, ConversationName},
        embedded::{
            database::{corrupt, decode},
            encoding::DecodeError,
            keys::{self, Table, UserRow},
            reader::Look,
            rows::{MessageRow, Row},
            transaction::{Source, single_members},
        },
    },
};

/// Members of groups by conversation, each with the version of the commit that last changed them.
/// What is remembered is used only if the conversation's row, just read, has the same version, so
/// that other processes need not tell.
pub type MembersCache = Cache<String, (i64, Members)>;

/// What was fetched.
#[derive(Default)]
pub struct Loaded {
    tables: [HashMap<Vec<u8>, Option<Vec<u8>>>; Table::ALL.len()],
    members: HashMap<String, Members>,
    members_versions: HashMap<String, i64>,
    waiting: HashMap<String, Vec<String>>,
    joined: HashMap<(String, u64), Vec<Vec<u8>>>,
    erased: HashMap<(String, u64, u64), u64>,
    missing: RefCell<Wanted>,
}

impl Loaded {
    /// What was asked for since the last time and is not here.
    pub fn take_missing(&mut self) -> Wanted {
        std::mem::take(self.missing.get_mut())
    }

    /// Whether there is such a row; `None` if it was never fetched.
    pub fn has(&self, table: Table, key: &[u8]) -> Option<bool> {
        self.tables[table as usize].get(key).map(Option::is_some)
    }

    /// Remembers a row, or that there is none.
    pub fn put(&mut self, table: Table, key: Vec<u8>, data: Option<Vec<u8>>) {
        self.tables[table as usize].insert(key, data);
    }

    /// Remembers a conversation's row.
    pub fn put_conversation(&mut self, id: &str, members_version: i64, data: Vec<u8>) {
        self.members_versions.insert(id.to_owned(), members_version);
        self.put(Table::Conversations, keys::conversation(id), Some(data));
    }

    /// One row, decoded.
    fn row<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        match self.tables[table as usize].get(key) {
            Some(Some(data)) => decode(table, data).map(Some),
            Some(None) => Ok(None),
            None => {
                self.missing.borrow_mut().rows.insert((table, key.to_vec()));
                Ok(None)
            }
        }
    }

    /// Fetches everything that is wanted and not here, in one round trip, or in two if members are
    /// among it that are not remembered.
    pub async fn fetch(
        &mut self,
        session: &Session,
        wanted: Wanted,
        remembered: &std::sync::Mutex<MembersCache>,
    ) -> Result<(), Failure> {
        let Wanted { mut rows, members, waiting, joined, erased, rows_of_members } = wanted;
        for id in &members {
            rows.insert((Table::Conversations, keys::conversation(id)));
        }
        let mut by_kind: BTreeMap<Kind, Asked> = BTreeMap::new();
        for (table, key) in rows {
            if self.tables[table as usize].contains_key(&key) {
                continue;
            }
            let (kind, parts) = place_of(table, &key)?;
            let asked = by_kind.entry(kind).or_default();
            asked.keys.push((table, key));
            asked.parts.push(parts);
        }
        let waiting: Vec<String> = waiting.into_iter().collect();
        let joined: Vec<(String, u64)> = joined.into_iter().collect();
        let erased: Vec<(String, u64, u64)> = erased.into_iter().collect();
        let mut work: Vec<BoxFuture<'_, Result<Fetched, Failure>>> = vec![];
        for (kind, asked) in by_kind {
            work.push(Box::pin(fetch_rows(session, kind, asked)));
        }
        if !waiting.is_empty() {
            work.push(Box::pin(fetch_waiting(session, waiting)));
        }
        if !joined.is_empty() {
            work.push(Box::pin(fetch_joined(session, joined)));
        }
        if !erased.is_empty() {
            work.push(Box::pin(fetch_erased(session, erased)));
        }
        for group_id in rows_of_members {
            work.push(Box::pin(fetch_rows_of_members(session, group_id)));
        }
        for fetched in join_all(work).await {
            self.take_in(fetched?);
        }
        self.fetch_members(session, members, remembered).await
    }

    fn take_in(&mut self, fetched: Fetched) {
        match fetched {
            Fetched::Rows(rows) => {
                for ((table, key), data) in rows {
                    self.put(table, key, data);
                }
            }
            Fetched::Conversations(rows) => {
                for (id, members_version, data) in rows {
                    match data {
                        Some(data) => self.put_conversation(&id, members_version, data),
                        None => self.put(Table::Conversations, keys::conversation(&id), None),
                    }
                }
            }
            Fetched::Waiting(groups) => self.waiting.extend(groups),
            Fetched::Joined(groups) => self.joined.extend(groups),
            Fetched::Erased(ranges) => self.erased.extend(ranges),
        }
    }

    async fn fetch_members(
        &mut self,
        session: &Session,
        conversation_ids: impl IntoIterator<Item = String>,
        remembered: &std::sync::Mutex<MembersCache>,
    ) -> Result<(), Failure> {
        let mut unknown: Vec<(String, i64)> = vec![];
        for id in conversation_ids {
            // Of a conversation that is not there nobody asks for the members.
            let Some(version) = self.members_versions.get(&id).copied() else { continue };
            let known = {
                let mut cache = lock(remembered);
                cache.get(&id).filter(|(of, _)| *of == version).map(|(_, members)| members.clone())
            };
            match known {
                Some(members) => drop(self.members.insert(id, members)),
                None => unknown.push((id, version)),
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let groups: Vec<&[u8]> = unknown
            .iter()
            .map(|(id, _)| id.strip_prefix("g:").unwrap_or_default().as_bytes())
            .collect();
        let rows = session
            .rows(
                "SELECT k.n, t.user_id FROM unnest($1::bytea[]) WITH ORDINALITY AS k(group_id, n) \
                 JOIN millrace.group_members t ON t.group_id = k.group_id",
                &[(&groups, Type::BYTEA_ARRAY)],
            )
            .await?;
        let mut found: Vec<Vec<String>> = vec![vec![]; unknown.len()];
        for row in rows {
            let user_id = text(Table::Groups, row.get(1))?;
            if let Some(members) = nth(&mut found, row.get(0)) {
                members.push(user_id);
            }
        }
        for ((id, version), mut user_ids) in unknown.into_iter().zip(found) {
            user_ids.sort_unstable();
            let members: Members = user_ids.into_iter().map(Into::into).collect();
            lock(remembered).insert(id.clone(), (version, members.clone()));
            self.members.insert(id, members);
        }
        Ok(())
    }

    /// Members that were fetched.
    pub fn members_of(&self, conversation_id: &str) -> Option<Members> {
        match ConversationName::parse(conversation_id)? {
            ConversationName::Single(one, other) => Some(single_members(one, other)),
            ConversationName::Group(_) => self.members.get(conversation_id).cloned(),
        }
    }
}

/// The lock of a cache; a panic elsewhere does not make it wrong.
pub fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Source for Loaded {
    fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.row(table, key)
    }

    fn members(&self, conversation_id: &str) -> Result<Members, StoreError> {
        Ok(self.members_of(conversation_id).unwrap_or_else(|| {
            self.missing.borrow_mut().members.insert(conversation_id.to_owned());
            [].into()
        }))
    }

    fn waiting_to_join(&self, group_id: &str) -> Result<Vec<String>, StoreError> {
        Ok(self.waiting.get(group_id).cloned().unwrap_or_else(|| {
            self.missing.borrow_mut().waiting.insert(group_id.to_owned());
            vec![]
        }))
    }

    fn joined_since(&self, group_id: &str, sequence: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let key = (group_id.to_owned(), sequence);
        Ok(self.joined.get(&key).cloned().unwrap_or_else(|| {
            self.missing.borrow_mut().joined.insert(key);
            vec![]
        }))
    }

    fn is_incomplete(&self) -> bool {
        !self.missing.borrow().is_empty()
    }
}

impl Look for Loaded {
    fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.row(table, key)
    }

    fn stored_message(
        &self,
        conversation_id: &str,
        sequence: u64,
    ) -> Result<MessageRow, StoreError> {
        match self.row(Table::Messages, &keys::message(conversation_id, sequence))? {
            Some(row) => Ok(row),
            None if self.is_incomplete() => Ok(MessageRow::unknown()),
            None => Err(StoreError::Corrupt(format!(
                "message {sequence} of {conversation_id} is missing"
            ))),
        }
    }

    fn counted_erased(&self, conversation_id: &str, from: u64, to: u64) -> Result<u64, StoreError> {
        let key = (conversation_id.to_owned(), from, to);
        Ok(self.erased.get(&key).copied().unwrap_or_else(|| {
            self.missing.borrow_mut().erased.insert(key);
            0
        }))
    }
}

/// Rows of one table.
#[derive(Default)]
struct Asked {
    keys: Vec<(Table, Vec<u8>)>,
    parts: Vec<Vec<Part>>,
}

/// A row's table and key.
type Key = (Table, Vec<u8>);

/// A group, and the message that was there when somebody joined.
type Since = (String, u64);

enum Fetched {
    Rows(Vec<(Key, Option<Vec<u8>>)>),
    Conversations(Vec<(String, i64, Option<Vec<u8>>)>),
    Waiting(Vec<(String, Vec<String>)>),
    Joined(Vec<(Since, Vec<Vec<u8>>)>),
    Erased(Vec<((String, u64, u64), u64)>),
}

/// One column of many rows, as a parameter.
pub enum Column {
    Bytes(Vec<Vec<u8>>),
    Numbers(Vec<i64>),
}

impl Column {
    /// As a statement takes it.
    pub fn param(&self) -> Param<'_> {
        match self {
            Self::Bytes(values) => (values, Type::BYTEA_ARRAY),
            Self::Numbers(values) => (values, Type::INT8_ARRAY),
        }
    }
}

/// The columns of keys.
pub fn columns_of(kind: Kind, keys: impl IntoIterator<Item = Vec<Part>>) -> Vec<Column> {
    let mut columns: Vec<Column> = shape_of(kind)
        .key
        .iter()
        .map(|(_, is_number)| match is_number {
            true => Column::Numbers(vec![]),
            false => Column::Bytes(vec![]),
        })
        .collect();
    for parts in keys {
        for (column, part) in columns.iter_mut().zip(parts) {
            match (column, part) {
                (Column::Bytes(values), Part::Bytes(value)) => values.push(value),
                (Column::Numbers(values), Part::Number(value)) => values.push(value),
                // The parts of a kind are those of its shape: a test of `columns` holds it to that.
                _ => {}
            }
        }
    }
    columns
}

/// Numbers count from 1.
pub fn nth<T>(all: &mut [T], number: i64) -> Option<&mut T> {
    all.get_mut(usize::try_from(number).ok()?.checked_sub(1)?)
}

/// An id out of the database.
pub fn text(table: Table, bytes: &[u8]) -> Result<String, StoreError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| corrupt(table, DecodeError::Text))
}

/// A number of ours as the database has it; none of them gets there.
pub fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

async fn fetch_rows(session: &Session, kind: Kind, asked: Asked) -> Result<Fetched, Failure> {
    let Asked { keys, parts } = asked;
    let columns = columns_of(kind, parts);
    if kind == Kind::Conversation {
        return fetch_conversations(session, &columns).await;
    }
    let params: Vec<Param<'_>> = columns.iter().map(Column::param).collect();
    let rows = session.rows(&shape_of(kind).select, &params).await?;
    let mut found: Vec<Option<Vec<u8>>> = vec![None; keys.len()];
    for row in rows {
        if let Some(place) = nth(&mut found, row.get(0)) {
            *place = Some(row.get(1));
        }
    }
    Ok(Fetched::Rows(keys.into_iter().zip(found).collect()))
}

async fn fetch_conversations(session: &Session, columns: &[Column]) -> Result<Fetched, Failure> {
    let [Column::Bytes(ids)] = columns else { return Ok(Fetched::Conversations(vec![])) };
    let rows = session
        .rows(
            "SELECT k.n, t.members_version, t.data FROM unnest($1::bytea[]) WITH ORDINALITY \
             AS k(id, n) JOIN millrace.conversations t ON t.conversation_id = k.id",
            &[(ids, Type::BYTEA_ARRAY)],
        )
        .await?;
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        found.push((text(Table::Conversations, id)?, 0, None));
    }
    for row in rows {
        if let Some((_, members_version, data)) = nth(&mut found, row.get(0)) {
            (*members_version, *data) = (row.get(1), Some(row.get(2)));
        }
    }
    Ok(Fetched::Conversations(found))
}

async fn fetch_waiting(session: &Session, groups: Vec<String>) -> Result<Fetched, Failure> {
    let ids: Vec<&[u8]> = groups.iter().map(|id| id.as_bytes()).collect();
    let rows = session
        .rows(
            "SELECT k.n, t.user_id FROM unnest($1::bytea[]) WITH ORDINALITY AS k(id, n) \
             JOIN millrace.join_requests t ON t.group_id = k.id",
            &[(&ids, Type::BYTEA_ARRAY)],
        )
        .await?;
    let mut found: Vec<(String, Vec<String>)> =
        groups.into_iter().map(|group_id| (group_id, vec![])).collect();
    for row in rows {
        let user_id = text(Table::Groups, row.get(1))?;
        if let Some((_, waiting)) = nth(&mut found, row.get(0)) {
            waiting.push(user_id);
        }
    }
    Ok(Fetched::Waiting(found))
}

async fn fetch_joined(session: &Session, asked: Vec<(String, u64)>) -> Result<Fetched, Failure> {
    let ids: Vec<&[u8]> = asked.iter().map(|(id, _)| id.as_bytes()).collect();
    let sequences: Vec<i64> = asked.iter().map(|(_, sequence)| number(*sequence)).collect();
    let rows = session
        .rows(
            "SELECT k.n, t.user_id FROM unnest($1::bytea[], $2::int8[]) WITH ORDINALITY \
             AS k(id, sequence, n) JOIN millrace.joined_later t \
             ON t.group_id = k.id AND t.sequence >= k.sequence",
            &[(&ids, Type::BYTEA_ARRAY), (&sequences, Type::INT8_ARRAY)],
        )
        .await?;
    let mut found: Vec<(Since, Vec<Vec<u8>>)> =
        asked.into_iter().map(|asked| (asked, vec![])).collect();
    for row in rows {
        if let Some((_, joined)) = nth(&mut found, row.get(0)) {
            joined.push(row.get(1));
        }
    }
    Ok(Fetched::Joined(found))
}

async fn fetch_erased(
    session: &Session,
    asked: Vec<(String, u64, u64)>,
) -> Result<Fetched, Failure> {
    let ids: Vec<&[u8]> = asked.iter().map(|(id, ..)| id.as_bytes()).collect();
    let from: Vec<i64> = asked.iter().map(|(_, from, _)| number(*from)).collect();
    let to: Vec<i64> = asked.iter().map(|(.., to)| number(*to)).collect();
    let rows = session
        .rows(
            "SELECT k.n, count(*) FROM unnest($1::bytea[], $2::int8[], $3::int8[]) \
             WITH ORDINALITY AS k(id, low, high, n) JOIN millrace.erased t \
             ON t.conversation_id = k.id AND t.sequence BETWEEN k.low AND k.high \
             WHERE t.counted = 1 GROUP BY k.n",
            &[(&ids, Type::BYTEA_ARRAY), (&from, Type::INT8_ARRAY), (&to, Type::INT8_ARRAY)],
        )
        .await?;
    let mut found: Vec<((String, u64, u64), u64)> =
        asked.into_iter().map(|asked| (asked, 0)).collect();
    for row in rows {
        if let Some((_, count)) = nth(&mut found, row.get(0)) {
            *count = row.get::<_, i64>(1).unsigned_abs();
        }
    }
    Ok(Fetched::Erased(found))
}

async fn fetch_rows_of_members(session: &Session, group_id: String) -> Result<Fetched, Failure> {
    let conversation_id = conversation_id::group(&group_id);
    let (group, conversation) = (group_id.as_bytes(), conversation_id.as_bytes());
    let rows = session
        .rows(
            "SELECT m.user_id, m.data FROM millrace.group_members g JOIN millrace.members m \
             ON m.user_id = g.user_id AND m.conversation_id = $2 WHERE g.group_id = $1",
            &[(&group, Type::BYTEA), (&conversation, Type::BYTEA)],
        )
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let user_id = text(Table::Groups, row.get(0))?;
        let key = keys::user(&user_id, &conversation_id, UserRow::Member);
        found.push(((Table::Users, key), Some(row.get(1))));
    }
    Ok(Fetched::Rows(found))
}
