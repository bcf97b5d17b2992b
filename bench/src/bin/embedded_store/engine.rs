//! The candidates behind one narrow door: look a key up, commit rows durably, read the newest rows
//! of a conversation. Each is configured as we would run it: 256 MiB of cache, fdatasync or
//! stronger before a commit returns.

use std::path::Path;

use anyhow::bail;
use fjall::{KeyspaceCreateOptions, PersistMode};
use redb::{ReadableDatabase as _, TableDefinition};

const CACHE_BYTES: usize = 256 << 20;

/// The tables of the schema. Cursors and groups are left out: a message does not write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Messages,
    Dedupe,
    Conversations,
    Pointers,
}

impl Table {
    const ALL: [Self; 4] = [Self::Messages, Self::Dedupe, Self::Conversations, Self::Pointers];

    fn name(self) -> &'static str {
        ["messages", "dedupe", "conversations", "pointers"][self as usize]
    }
}

pub struct Row {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

pub trait Engine {
    fn get(&self, table: Table, key: &[u8]) -> anyhow::Result<Option<Vec<u8>>>;
    /// All rows or none, durable on return; sorted by table and key.
    fn commit(&mut self, rows: Vec<Row>) -> anyhow::Result<()>;
    /// Reads the newest messages, values included, and says how many there were.
    fn newest(&self, conversation: &[u8], limit: usize) -> anyhow::Result<usize>;
}

/// `nothing` (what the workload itself costs), `redb`, `sqlite`, `fjall-<MiB of a memtable>` with a keyspace per table, and
/// `fjall-one-<MiB>` with all tables in one keyspace.
pub fn open(name: &str, directory: &Path) -> anyhow::Result<Box<dyn Engine>> {
    Ok(match name {
        "nothing" => Box::new(Nothing),
        "redb" => Box::new(Redb::open(directory)?),
        "sqlite" => Box::new(Sqlite::open(directory)?),
        _ => match name.strip_prefix("fjall-") {
            Some(rest) => {
                let (one, mib) = match rest.strip_prefix("one-") {
                    Some(mib) => (true, mib),
                    None => (false, rest),
                };
                Box::new(Fjall::open(directory, one, mib.parse()?)?)
            }
            None => bail!("no engine is called {name}"),
        },
    })
}

/// The range of a conversation's messages, for keys of conversation and big-endian sequence.
fn bounds(conversation: &[u8]) -> (Vec<u8>, Vec<u8>) {
    ([conversation, &[0; 8]].concat(), [conversation, &[0xff; 8]].concat())
}

/// Stores nothing; the difference to it is what an engine costs.
struct Nothing;

impl Engine for Nothing {
    fn get(&self, _: Table, _: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn commit(&mut self, _: Vec<Row>) -> anyhow::Result<()> {
        Ok(())
    }

    fn newest(&self, _: &[u8], _: usize) -> anyhow::Result<usize> {
        Ok(0)
    }
}

struct Fjall {
    database: fjall::Database,
    keyspaces: Vec<fjall::Keyspace>,
}

impl Fjall {
    fn open(directory: &Path, one: bool, memtable_mib: u64) -> anyhow::Result<Self> {
        let database = fjall::Database::builder(directory).cache_size(CACHE_BYTES as u64).open()?;
        let names = if one { vec!["all"] } else { Table::ALL.map(Table::name).to_vec() };
        let options = || KeyspaceCreateOptions::default().max_memtable_size(memtable_mib << 20);
        let keyspaces = names
            .into_iter()
            .map(|name| database.keyspace(name, options))
            .collect::<Result<_, _>>()?;
        Ok(Self { database, keyspaces })
    }

    fn place(&self, table: Table, key: &[u8]) -> (&fjall::Keyspace, Vec<u8>) {
        match &self.keyspaces[..] {
            [all] => (all, [&[table as u8], key].concat()),
            each => (&each[table as usize], key.to_vec()),
        }
    }
}

impl Engine for Fjall {
    fn get(&self, table: Table, key: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        let (keyspace, key) = self.place(table, key);
        Ok(keyspace.get(key)?.map(|value| value.to_vec()))
    }

    fn commit(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for row in rows {
            let (keyspace, key) = self.place(row.table, &row.key);
            batch.insert(keyspace, key, row.value);
        }
        Ok(batch.commit()?)
    }

    fn newest(&self, conversation: &[u8], limit: usize) -> anyhow::Result<usize> {
        let (from, to) = bounds(conversation);
        let (keyspace, from) = self.place(Table::Messages, &from);
        let (_, to) = self.place(Table::Messages, &to);
        let mut rows = 0;
        for guard in keyspace.range(from..=to).rev().take(limit) {
            rows += usize::from(!guard.value()?.is_empty());
        }
        Ok(rows)
    }
}

struct Redb {
    database: redb::Database,
}

impl Redb {
    fn open(directory: &Path) -> anyhow::Result<Self> {
        let database = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create(directory.join("store.redb"))?;
        let transaction = database.begin_write()?;
        for table in Table::ALL {
            transaction.open_table(Self::table(table))?;
        }
        transaction.commit()?;
        Ok(Self { database })
    }

    fn table(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(table.name())
    }
}

impl Engine for Redb {
    fn get(&self, table: Table, key: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        let table = self.database.begin_read()?.open_table(Self::table(table))?;
        Ok(table.get(key)?.map(|value| value.value().to_vec()))
    }

    fn commit(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        let transaction = self.database.begin_write()?;
        for table in Table::ALL {
            let mut open = transaction.open_table(Self::table(table))?;
            for row in rows.iter().filter(|row| row.table == table) {
                open.insert(&row.key[..], &row.value[..])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn newest(&self, conversation: &[u8], limit: usize) -> anyhow::Result<usize> {
        let (from, to) = bounds(conversation);
        let table = self.database.begin_read()?.open_table(Self::table(Table::Messages))?;
        let mut rows = 0;
        for row in table.range(&from[..]..=&to[..])?.rev().take(limit) {
            rows += usize::from(!row?.1.value().is_empty());
        }
        Ok(rows)
    }
}

struct Sqlite {
    connection: rusqlite::Connection,
}

impl Sqlite {
    fn open(directory: &Path) -> anyhow::Result<Self> {
        let connection = rusqlite::Connection::open(directory.join("store.sqlite"))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "cache_size", -((CACHE_BYTES / 1024) as i64))?;
        // 64 MiB of log instead of 4 before a checkpoint: fewer of them, each page written once.
        connection.pragma_update(None, "wal_autocheckpoint", 16_384)?;
        for table in Table::ALL {
            connection.execute(
                &format!(
                    "create table if not exists {} (k blob primary key, v blob) without rowid",
                    table.name()
                ),
                [],
            )?;
        }
        Ok(Self { connection })
    }
}

impl Engine for Sqlite {
    fn get(&self, table: Table, key: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        let mut statement = self
            .connection
            .prepare_cached(&format!("select v from {} where k = ?", table.name()))?;
        let mut rows = statement.query([key])?;
        Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
    }

    fn commit(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        let transaction = self.connection.transaction()?;
        for row in rows {
            transaction
                .prepare_cached(&format!(
                    "insert or replace into {} values (?, ?)",
                    row.table.name()
                ))?
                .execute([&row.key, &row.value])?;
        }
        Ok(transaction.commit()?)
    }

    fn newest(&self, conversation: &[u8], limit: usize) -> anyhow::Result<usize> {
        let (from, to) = bounds(conversation);
        let mut statement = self.connection.prepare_cached(
            "select v from messages where k between ? and ? order by k desc limit ?",
        )?;
        let mut rows = statement.query(rusqlite::params![from, to, limit as i64])?;
        let mut found = 0;
        while let Some(row) = rows.next()? {
            found += usize::from(!row.get::<_, Vec<u8>>(0)?.is_empty());
        }
        Ok(found)
    }
}
