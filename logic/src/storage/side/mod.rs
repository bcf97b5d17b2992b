//! Matters that need not be atomic with messages (accounts, relations, attachments, …), as tables of
//! rows under keys of bytes, on whatever the messages lie on.
//!
//! - `rows`: what a question and a change see
//! - `accounts`, `attachments`, `relations`, `revocations`: what is kept so; rooms, tokens for offline
//!   push and notices keep their rows beside their own matter
//!
//! A change reads and writes as one transaction, alone in its table, and is durable when it is
//! answered. On the embedded store that is one process's lock; on PostgreSQL a lock of all processes
//! on the database. What such a matter keeps in memory (who may have something) follows what other
//! processes have written by [`SideTable::news`]: see [`Follow`].

use async_trait::async_trait;

#[cfg(feature = "postgres")]
use super::postgres;
use super::{StoreError, embedded};

mod accounts;
mod attachments;
mod relations;
mod revocations;
mod rows;

pub use self::{
    accounts::AccountTable,
    attachments::AttachmentTable,
    relations::RelationTable,
    revocations::RevocationTable,
    rows::{GroupRows, GroupWrites, Place, SideRows, SideWrites},
};
pub(in crate::storage) use rows::{Each, RowSource, Rows};
#[cfg(feature = "postgres")]
pub(in crate::storage) use rows::{Overlaid, behind};

/// What side tables can be kept on.
pub trait Sides: Send + Sync + 'static {
    /// A table, made if it is not there. Names are the matter's own: one table, one owner.
    ///
    /// # Errors
    /// What the engine refuses.
    fn side(&self, name: &'static str) -> Result<SideTable, StoreError>;

    /// Tables that change together, and often.
    ///
    /// # Errors
    /// What the engine refuses.
    fn side_group(
        &self,
        name: &'static str,
        tables: &[&'static str],
    ) -> Result<SideGroup, StoreError>;
}

/// Keeps up with what other processes write to the same tables. A store of this process's own has
/// nothing to follow.
#[async_trait]
pub trait Follow: Send + Sync {
    /// Takes in what was written since the last time.
    ///
    /// # Errors
    /// The store's own failures; what was not taken in is taken in the next time.
    async fn follow(&self) -> Result<(), StoreError>;
}

/// How far the news of a table were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub(in crate::storage) version: u64,
    pub(in crate::storage) table: usize,
    pub(in crate::storage) key: Vec<u8>,
}

/// A row that was written: its table's place in its group, its key, and what it is now; `None` if it
/// was removed and the table tells of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The table's place in the list it was opened with; 0 of a [`SideTable`].
    pub table: usize,
    /// Its key.
    pub key: Vec<u8>,
    /// What it is now.
    pub value: Option<Vec<u8>>,
}

/// Rows written at most that [`SideTable::news`] answers with at once.
pub const NEWS_MAX: usize = 4_096;

/// One table. Cheap to clone; clones are the same table.
#[derive(Clone)]
pub struct SideTable {
    engine: TableEngine,
}

#[derive(Clone)]
enum TableEngine {
    Embedded(embedded::SideTable),
    #[cfg(feature = "postgres")]
    Postgres(postgres::Side),
}

impl From<embedded::SideTable> for SideTable {
    fn from(table: embedded::SideTable) -> Self {
        Self { engine: TableEngine::Embedded(table) }
    }
}

#[cfg(feature = "postgres")]
impl From<postgres::Side> for SideTable {
    fn from(side: postgres::Side) -> Self {
        Self { engine: TableEngine::Postgres(side) }
    }
}

impl SideTable {
    /// Answers a question about one moment, on a thread that may block.
    ///
    /// # Errors
    /// The question's own, [`StoreError::Closed`], and what the engine refuses.
    pub async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&SideRows<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match &self.engine {
            TableEngine::Embedded(table) => table.read(question).await,
            #[cfg(feature = "postgres")]
            TableEngine::Postgres(side) => {
                side.read(move |rows| question(&SideRows::new(rows))).await
            }
        }
    }

    /// Reads and changes in one transaction; durable when it is answered. When `act` fails, or
    /// changes nothing, nothing is written.
    ///
    /// # Errors
    /// The act's own, [`StoreError::Closed`], [`StoreError::Full`], and what the engine refuses.
    /// After [`StoreError::Unavailable`] it may have happened nevertheless.
    pub async fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut SideWrites<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match &self.engine {
            TableEngine::Embedded(table) => table.write(act).await,
            #[cfg(feature = "postgres")]
            TableEngine::Postgres(side) => {
                let change = move |base: &dyn RowSource, written: &[Rows]| {
                    let before = Overlaid { base, written };
                    let mut writes = SideWrites::new(&before);
                    let done = act(&mut writes);
                    (vec![writes.into_changes()], done)
                };
                side.write(change).await
            }
        }
    }

    /// Whether other processes may write to it.
    pub fn is_shared(&self) -> bool {
        match &self.engine {
            TableEngine::Embedded(_) => false,
            #[cfg(feature = "postgres")]
            TableEngine::Postgres(_) => true,
        }
    }

    /// Where [`SideTable::news`] go on from what is there now.
    ///
    /// # Errors
    /// What the engine refuses.
    pub async fn cursor(&self) -> Result<Cursor, StoreError> {
        match &self.engine {
            TableEngine::Embedded(_) => Ok(Cursor::default()),
            #[cfg(feature = "postgres")]
            TableEngine::Postgres(side) => side.cursor().await,
        }
    }

    /// Rows that were written after `cursor`, by whomever, in the order of their commits, at most
    /// [`NEWS_MAX`]; moves `cursor` behind them. A row that was written several times comes once, as
    /// it is now. Of a table that only this process writes there are none.
    ///
    /// # Errors
    /// What the engine refuses; `cursor` has not moved then.
    pub async fn news(&self, cursor: &mut Cursor) -> Result<Vec<Written>, StoreError> {
        match &self.engine {
            TableEngine::Embedded(_) => {
                let _nobody_else_writes = cursor;
                Ok(vec![])
            }
            #[cfg(feature = "postgres")]
            TableEngine::Postgres(side) => side.news(cursor).await,
        }
    }
}

/// Several tables that change together, with a writer that commits in groups. Close it before the
/// store that it came from.
pub struct SideGroup {
    engine: GroupEngine,
}

enum GroupEngine {
    Embedded(embedded::SideGroup),
    #[cfg(feature = "postgres")]
    Postgres(postgres::Side),
}

impl From<embedded::SideGroup> for SideGroup {
    fn from(group: embedded::SideGroup) -> Self {
        Self { engine: GroupEngine::Embedded(group) }
    }
}

#[cfg(feature = "postgres")]
impl From<postgres::Side> for SideGroup {
    fn from(side: postgres::Side) -> Self {
        Self { engine: GroupEngine::Postgres(side) }
    }
}

impl SideGroup {
    /// Runs a change. What it wrote is durable when this returns Ok; if the change itself fails, or
    /// the commit does, nothing of it is applied.
    ///
    /// # Errors
    /// The change's own, or the store's. After [`StoreError::Unavailable`] it may have happened
    /// nevertheless.
    pub async fn write<T, E>(
        &self,
        change: impl FnOnce(&mut GroupWrites<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        match &self.engine {
            GroupEngine::Embedded(group) => group.write(change).await,
            #[cfg(feature = "postgres")]
            GroupEngine::Postgres(side) => {
                let tables = side.tables();
                let change = move |base: &dyn RowSource, written: &[Rows]| {
                    let mut writes = GroupWrites::new(base, written, tables);
                    let done = change(&mut writes);
                    (writes.into_changes(), done)
                };
                side.write(change).await
            }
        }
    }

    /// Answers a question on a thread that may block, over one consistent view of what is durable.
    ///
    /// # Errors
    /// The question's own, or the store's.
    pub async fn read<T, E>(
        &self,
        question: impl FnOnce(&GroupRows<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        match &self.engine {
            GroupEngine::Embedded(group) => group.read(question).await,
            #[cfg(feature = "postgres")]
            GroupEngine::Postgres(side) => {
                side.read(move |rows| question(&GroupRows::new(rows))).await
            }
        }
    }

    /// As [`SideTable::is_shared`].
    pub fn is_shared(&self) -> bool {
        match &self.engine {
            GroupEngine::Embedded(_) => false,
            #[cfg(feature = "postgres")]
            GroupEngine::Postgres(_) => true,
        }
    }

    /// As [`SideTable::cursor`].
    ///
    /// # Errors
    /// What the engine refuses.
    pub async fn cursor(&self) -> Result<Cursor, StoreError> {
        match &self.engine {
            GroupEngine::Embedded(_) => Ok(Cursor::default()),
            #[cfg(feature = "postgres")]
            GroupEngine::Postgres(side) => side.cursor().await,
        }
    }

    /// As [`SideTable::news`].
    ///
    /// # Errors
    /// What the engine refuses; `cursor` has not moved then.
    pub async fn news(&self, cursor: &mut Cursor) -> Result<Vec<Written>, StoreError> {
        match &self.engine {
            GroupEngine::Embedded(_) => {
                let _nobody_else_writes = cursor;
                Ok(vec![])
            }
            #[cfg(feature = "postgres")]
            GroupEngine::Postgres(side) => side.news(cursor).await,
        }
    }

    /// Finishes what was begun and lets go of the database; later calls fail with
    /// [`StoreError::Closed`].
    ///
    /// # Errors
    /// When it was closed before, or its writer had ended.
    pub async fn close(&self) -> Result<(), StoreError> {
        match &self.engine {
            GroupEngine::Embedded(group) => group.close().await,
            #[cfg(feature = "postgres")]
            GroupEngine::Postgres(side) => side.close().await,
        }
    }
}
