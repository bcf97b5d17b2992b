//! [`RelationStore`] in a side table.
//!
//! | key | row |
//! |---|---|
//! | `r`, length of user, user, other | [`RelationRow`] |
//! | `v`, length of user, user, version (big-endian) | other: the relation that this change was of, if none came later |
//! | `c` user | [`CountsRow`] |
//! | `b` user | nothing: blocks somebody |

use async_trait::async_trait;
use millrace_protocol::Code;
use prost::Message;
use tokio::sync::Mutex;

use super::{Cursor, SideRows, SideTable, SideWrites, Sides};
use crate::storage::{
    StoreError,
    relations::{
        Act, Acted, Relation, RelationFilter, RelationLimits, RelationNews, RelationPage,
        RelationStore, transition,
    },
};

/// The table's name.
const NAME: &str = "relations";

/// Relations that are looked up together.
const LOOKED_UP_MAX: usize = 256;

#[derive(Clone, PartialEq, Message)]
struct RelationRow {
    #[prost(bool, tag = "1")]
    friend: bool,
    #[prost(bool, tag = "2")]
    blocked: bool,
    #[prost(bool, tag = "3")]
    incoming: bool,
    #[prost(bool, tag = "4")]
    outgoing: bool,
    #[prost(string, tag = "5")]
    message: String,
    #[prost(int64, tag = "6")]
    friends_since_ms: i64,
    #[prost(int64, tag = "7")]
    updated_at_ms: i64,
    #[prost(uint64, tag = "8")]
    version: u64,
}

/// How many of a user's relations are what, and the user's counter.
#[derive(Clone, PartialEq, Message)]
struct CountsRow {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(uint64, tag = "2")]
    friends: u64,
    #[prost(uint64, tag = "3")]
    blocks: u64,
    #[prost(uint64, tag = "4")]
    incoming: u64,
    #[prost(uint64, tag = "5")]
    outgoing: u64,
    #[prost(uint64, tag = "6")]
    ended: u64,
    /// Ended relations up to this version may be forgotten.
    #[prost(uint64, tag = "7")]
    floor: u64,
}

impl CountsRow {
    /// Counts a relation in or out.
    fn count(&mut self, relation: &Relation, by: fn(u64, u64) -> u64) {
        self.friends = by(self.friends, u64::from(relation.friend));
        self.blocks = by(self.blocks, u64::from(relation.blocked));
        self.incoming = by(self.incoming, u64::from(relation.incoming));
        self.outgoing = by(self.outgoing, u64::from(relation.outgoing));
        // A relation that never was has no row, so it has not ended.
        self.ended = by(self.ended, u64::from(relation.is_ended() && relation.version > 0));
    }
}

/// Relations in a side table.
pub struct RelationTable {
    table: SideTable,
    /// How far what others have written was looked at.
    seen: Mutex<Cursor>,
}

impl RelationTable {
    /// The relations of a store.
    ///
    /// # Errors
    /// What the engine refuses.
    pub async fn open(sides: &dyn Sides) -> Result<Self, StoreError> {
        let table = sides.side(NAME)?;
        let seen = Mutex::new(table.cursor().await?);
        Ok(Self { table, seen })
    }
}

fn of_user(kind: u8, user_id: &str) -> Vec<u8> {
    let length = u16::try_from(user_id.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[kind], &length[..], user_id.as_bytes()].concat()
}

fn relation_key(user_id: &str, other_id: &str) -> Vec<u8> {
    [&of_user(b'r', user_id)[..], other_id.as_bytes()].concat()
}

fn version_key(user_id: &str, version: u64) -> Vec<u8> {
    [&of_user(b'v', user_id)[..], &version.to_be_bytes()].concat()
}

fn counts_key(user_id: &str) -> Vec<u8> {
    [b"c", user_id.as_bytes()].concat()
}

fn blocker_key(user_id: &str) -> Vec<u8> {
    [b"b", user_id.as_bytes()].concat()
}

fn corrupt(what: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("a row of {NAME}: {what}"))
}

fn decode<R: Message + Default>(bytes: Option<Vec<u8>>) -> Result<R, StoreError> {
    bytes.map_or(Ok(R::default()), |bytes| R::decode(&bytes[..]).map_err(corrupt))
}

fn relation(other_id: &str, bytes: Option<Vec<u8>>) -> Result<Relation, StoreError> {
    let row: RelationRow = decode(bytes)?;
    Ok(Relation {
        other_id: other_id.to_owned(),
        friend: row.friend,
        blocked: row.blocked,
        incoming: row.incoming,
        outgoing: row.outgoing,
        message: row.message,
        friends_since_ms: row.friends_since_ms,
        updated_at_ms: row.updated_at_ms,
        version: row.version,
    })
}

fn row(relation: &Relation) -> Vec<u8> {
    RelationRow {
        friend: relation.friend,
        blocked: relation.blocked,
        incoming: relation.incoming,
        outgoing: relation.outgoing,
        message: relation.message.clone(),
        friends_since_ms: relation.friends_since_ms,
        updated_at_ms: relation.updated_at_ms,
        version: relation.version,
    }
    .encode_to_vec()
}

/// The change of one of the two rows.
struct Side {
    user_id: String,
    before: Relation,
    after: Relation,
    counts: CountsRow,
}

impl Side {
    fn read(rows: &SideWrites<'_>, user_id: &str, other_id: &str) -> Result<Self, StoreError> {
        let before = relation(other_id, rows.get(&relation_key(user_id, other_id))?)?;
        let counts = decode(rows.get(&counts_key(user_id))?)?;
        Ok(Self { user_id: user_id.to_owned(), after: before.clone(), before, counts })
    }

    /// Gives a changed row its version and time, and counts it.
    fn settle(&mut self, now_ms: i64) -> bool {
        if self.after == self.before {
            return false;
        }
        self.counts.count(&self.before, |n, gone| n.saturating_sub(gone));
        self.counts.version += 1;
        self.after.version = self.counts.version;
        self.after.updated_at_ms = now_ms;
        if self.after.friend != self.before.friend {
            self.after.friends_since_ms = if self.after.friend { now_ms } else { 0 };
        }
        self.counts.count(&self.after, |n, come| n + come);
        true
    }

    /// What got above its limit by this change.
    fn exceeded(&self, limits: &RelationLimits) -> Option<Exceeded> {
        let (before, after, counts) = (&self.before, &self.after, &self.counts);
        if after.friend && !before.friend && counts.friends > limits.friends_max {
            Some(Exceeded::Friends)
        } else if after.incoming && !before.incoming && counts.incoming > limits.incoming_max {
            Some(Exceeded::Incoming)
        } else if after.outgoing && !before.outgoing && counts.outgoing > limits.outgoing_max {
            Some(Exceeded::Outgoing)
        } else if after.blocked && !before.blocked && counts.blocks > limits.blocks_max {
            Some(Exceeded::Blocks)
        } else {
            None
        }
    }

    fn write(
        mut self,
        rows: &mut SideWrites<'_>,
        limits: &RelationLimits,
    ) -> Result<(), StoreError> {
        if self.counts.ended > limits.ended_max {
            self.forget_ended(rows, limits.ended_max)?;
        }
        let Self { user_id, before, after, counts } = self;
        if before.version > 0 {
            rows.remove(version_key(&user_id, before.version));
        }
        rows.put(version_key(&user_id, after.version), after.other_id.clone().into_bytes());
        rows.put(relation_key(&user_id, &after.other_id), row(&after));
        if counts.blocks > 0 {
            rows.put(blocker_key(&user_id), vec![]);
        } else {
            rows.remove(blocker_key(&user_id));
        }
        rows.put(counts_key(&user_id), counts.encode_to_vec());
        Ok(())
    }

    /// Forgets the oldest half of the ended relations. The one at hand is not among them: its row
    /// is not written yet.
    fn forget_ended(
        &mut self,
        rows: &mut SideWrites<'_>,
        ended_max: u64,
    ) -> Result<(), StoreError> {
        let surplus = (self.counts.ended - ended_max / 2) as usize;
        let mut forgotten: Vec<(u64, Relation)> = Vec::new();
        let mut from = 0;
        while forgotten.len() < surplus {
            let others = changed_from(rows.before(), &self.user_id, from, LOOKED_UP_MAX)?;
            let found = relations_of(rows.before(), &self.user_id, &others)?;
            let ended = others
                .iter()
                .zip(found)
                .filter(|(_, found)| found.is_ended() && found.other_id != self.after.other_id);
            forgotten.extend(ended.map(|((version, _), found)| (*version, found)));
            match others.last() {
                Some((version, _)) if others.len() == LOOKED_UP_MAX => from = version + 1,
                _ => break,
            }
        }
        for (version, found) in forgotten.into_iter().take(surplus) {
            rows.remove(version_key(&self.user_id, version));
            rows.remove(relation_key(&self.user_id, &found.other_id));
            self.counts.ended -= 1;
            self.counts.floor = self.counts.floor.max(found.version);
        }
        Ok(())
    }
}

/// A user's changes from a version on: the version, and of which relation.
fn changed_from(
    rows: &SideRows<'_>,
    user_id: &str,
    from: u64,
    limit: usize,
) -> Result<Vec<(u64, String)>, StoreError> {
    let mut found = Vec::new();
    let range = version_key(user_id, from)..=version_key(user_id, u64::MAX);
    rows.range(range, |key, other_id| {
        let version = key.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        found.push((version, text(other_id)?.to_owned()));
        Ok(found.len() < limit)
    })?;
    Ok(found)
}

/// The relations of some changes, in their order.
fn relations_of(
    rows: &SideRows<'_>,
    user_id: &str,
    others: &[(u64, String)],
) -> Result<Vec<Relation>, StoreError> {
    let keys = others.iter().map(|(_, other_id)| relation_key(user_id, other_id)).collect();
    let found = rows.get_all(keys)?;
    others.iter().zip(found).map(|((_, other_id), row)| relation(other_id, row)).collect()
}

/// Which limit.
enum Exceeded {
    Friends,
    Incoming,
    Outgoing,
    Blocks,
}

fn text(bytes: &[u8]) -> Result<&str, StoreError> {
    std::str::from_utf8(bytes).map_err(corrupt)
}

#[async_trait]
impl RelationStore for RelationTable {
    async fn act(
        &self,
        user_id: &str,
        other_id: &str,
        act: Act,
        limits: RelationLimits,
        now_ms: i64,
    ) -> Result<Acted, StoreError> {
        let (user_id, other_id) = (user_id.to_owned(), other_id.to_owned());
        self.table
            .write(move |rows| {
                let mut own = Side::read(rows, &user_id, &other_id)?;
                let mut others = Side::read(rows, &other_id, &user_id)?;
                if let Err((code, reason)) = transition(&act, &mut own.after, &mut others.after) {
                    return Ok(Acted::Refused { code, reason });
                }
                let own_changed = own.settle(now_ms);
                let others_changed = others.settle(now_ms);
                let reason = match (own.exceeded(&limits), others.exceeded(&limits)) {
                    (Some(Exceeded::Friends), _) => "You have as many friends as you may.",
                    (Some(Exceeded::Blocks), _) => "You block as many users as you may.",
                    (Some(_), _) => "You have as many open requests as you may.",
                    (None, Some(Exceeded::Friends)) => "This user has as many friends as they may.",
                    (None, Some(_)) => "This user has as many open requests as they may.",
                    (None, None) => "",
                };
                if !reason.is_empty() {
                    return Ok(Acted::Refused { code: Code::OverCapacity, reason });
                }
                let done = Acted::Done {
                    own: own.after.clone(),
                    others: others.after.clone(),
                    own_changed,
                    others_changed,
                };
                if own_changed {
                    own.write(rows, &limits)?;
                }
                if others_changed {
                    others.write(rows, &limits)?;
                }
                Ok(done)
            })
            .await
    }

    async fn relation(&self, user_id: &str, other_id: &str) -> Result<Relation, StoreError> {
        let (user_id, other_id) = (user_id.to_owned(), other_id.to_owned());
        self.table
            .read(move |rows| relation(&other_id, rows.get(&relation_key(&user_id, &other_id))?))
            .await
    }

    async fn relations(
        &self,
        user_id: &str,
        filter: RelationFilter,
        since_version: u64,
        after: u64,
        limit: usize,
    ) -> Result<RelationPage, StoreError> {
        let user_id = user_id.to_owned();
        let list = move |rows: &SideRows<'_>| {
            let counts: CountsRow = decode(rows.get(&counts_key(&user_id))?)?;
            let reset = since_version > 0 && since_version < counts.floor;
            let mut page =
                RelationPage { version: counts.version, reset, ..RelationPage::default() };
            let mut from = since_version.max(after).saturating_add(1);
            loop {
                let others = changed_from(rows, &user_id, from, LOOKED_UP_MAX)?;
                for found in relations_of(rows, &user_id, &others)? {
                    if since_version == 0 && !filter.matches(&found) {
                        continue;
                    }
                    if page.relations.len() == limit {
                        page.next = page.relations.last().map_or(0, |last| last.version);
                        return Ok(page);
                    }
                    page.relations.push(found);
                }
                match others.last() {
                    Some((version, _)) if others.len() == LOOKED_UP_MAX => from = version + 1,
                    _ => return Ok(page),
                }
            }
        };
        self.table.read(list).await
    }

    async fn each_blocker(
        &self,
        mut each: Box<dyn for<'a> FnMut(&'a str) + Send>,
    ) -> Result<(), StoreError> {
        self.table
            .read(move |rows| {
                rows.prefix(b"b", |key, _| {
                    each(text(&key[1..])?);
                    Ok(true)
                })
            })
            .await
    }

    async fn changed(&self) -> Result<RelationNews, StoreError> {
        let mut news = RelationNews::default();
        let mut seen = self.seen.lock().await;
        for row in self.table.news(&mut seen).await? {
            news.rows += 1;
            match row.key.split_first() {
                Some((b'b', user_id)) if row.value.is_some() => {
                    news.blockers.push(text(user_id)?.to_owned());
                }
                Some((b'r', rest)) => {
                    let Some((length, rest)) = rest.split_first_chunk() else { continue };
                    let length = usize::from(u16::from_be_bytes(*length));
                    let Some((user_id, other_id)) = rest.split_at_checked(length) else { continue };
                    news.relations.push((text(user_id)?.to_owned(), text(other_id)?.to_owned()));
                }
                _ => {}
            }
        }
        Ok(news)
    }
}

#[cfg(test)]
mod tests {
    use super::RelationTable;
    use crate::storage::{
        Store as _,
        embedded::{EmbeddedStore, tests::options},
        relations::conformance::{Bed, relation_store_conformance_tests},
    };

    struct Directory {
        directory: tempfile::TempDir,
        store: std::sync::Mutex<Option<EmbeddedStore>>,
    }

    impl Bed for Directory {
        type Store = RelationTable;

        async fn open(&self) -> RelationTable {
            let earlier = self.store.lock().unwrap().take();
            if let Some(earlier) = earlier {
                earlier.close().await.unwrap();
            }
            let store = EmbeddedStore::open(options(self.directory.path())).unwrap();
            let relations = RelationTable::open(&store).await.unwrap();
            *self.store.lock().unwrap() = Some(store);
            relations
        }
    }

    relation_store_conformance_tests!(Directory {
        directory: tempfile::tempdir().unwrap(),
        store: std::sync::Mutex::new(None),
    });
}
