//! The schema: numbered files that are part of the program, applied forward only, each in a
//! transaction of its own that also writes its number down.
//!
//! Two that migrate at the same time are kept apart by the key of that number: the second waits for
//! the first, finds the number taken, and goes on with the next. A program refuses a schema older than
//! itself, and one that a newer program has declared too new for it.

use std::{sync::Arc, time::Duration};

use tokio_postgres::{Config, types::Type};

use super::pool::{Failure, Pool, Session};
use crate::storage::StoreError;

/// One step of the schema.
struct Migration {
    number: i32,
    name: &'static str,
    sql: &'static str,
    /// The oldest program, told by the newest step that it knows, which works on this schema.
    program_min: i32,
}

/// All steps, in order.
const MIGRATIONS: &[Migration] = &[
    Migration {
        number: 1,
        name: "chat",
        sql: include_str!("migrations/0001_chat.sql"),
        program_min: 1,
    },
    Migration {
        number: 2,
        name: "sides",
        sql: include_str!("migrations/0002_sides.sql"),
        program_min: 1,
    },
];

/// The newest step that this program knows.
pub(super) const NEWEST: i32 = MIGRATIONS[MIGRATIONS.len() - 1].number;

/// Times that a step is tried that another process was busy with.
const ATTEMPTS_MAX: usize = 5;

/// Partitions of each large table at most.
pub const PARTITIONS_MAX: u32 = 1_024;

/// What [`migrate`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The step that the schema was at; 0: there was none.
    pub from: i32,
    /// The step that it is at now.
    pub to: i32,
}

/// Brings a database to the newest schema that this program knows; a newer one on which it works stays as
/// it is, so that whoever goes back to an earlier program may migrate first as always. Large tables are
/// made of so many `partitions`; 0 makes plain tables, for databases that spread them by themselves
/// (CockroachDB, YugabyteDB). The number holds for tables that are made now, and not for those that are
/// there.
///
/// # Errors
/// When the database cannot be reached or refuses, or a newer program has made it a schema on which this
/// one does not work.
pub async fn migrate(url: &str, partitions: u32) -> Result<Migrated, StoreError> {
    if partitions > PARTITIONS_MAX {
        let reason = format!("{partitions} partitions are more than {PARTITIONS_MAX}");
        return Err(StoreError::Failed(reason));
    }
    let pool = Pool::new(config_of(url)?, 1, Duration::from_secs(10), Arc::default());
    let mut attempts = 0;
    loop {
        attempts += 1;
        match attempt(&pool, partitions).await {
            Ok(migrated) => return Ok(migrated),
            Err(Failure::Again { error, .. }) if attempts < ATTEMPTS_MAX => {
                tracing::info!(%error, "the migration is tried again");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(failure) => return Err(failure.into_error()),
        }
    }
}

async fn attempt(pool: &Arc<Pool>, partitions: u32) -> Result<Migrated, Failure> {
    let session = pool.session().await?;
    session
        .run(
            "CREATE SCHEMA IF NOT EXISTS millrace; \
             CREATE TABLE IF NOT EXISTS millrace.schema_versions (\
             number int PRIMARY KEY, name text NOT NULL, program_min int NOT NULL, \
             applied_at timestamptz NOT NULL DEFAULT now())",
        )
        .await?;
    let (from, program_min) = schema_of(&session).await?;
    if program_min > NEWEST {
        return Err(too_new(from).into());
    }
    for Migration { number, name, sql, program_min } in MIGRATIONS {
        if *number <= from {
            continue;
        }
        session.run("BEGIN").await?;
        let insert = "INSERT INTO millrace.schema_versions (number, name, program_min) \
                      VALUES ($1, $2, $3)";
        let params: [super::pool::Param<'_>; 3] =
            [(number, Type::INT4), (name, Type::TEXT), (program_min, Type::INT4)];
        session.rows(insert, &params).await?;
        session.run(&with_sides(&with_partitions(sql, partitions))).await?;
        session.run("COMMIT").await?;
        tracing::info!(number, name, "the database's schema was migrated");
    }
    session.give_back();
    Ok(Migrated { from, to: from.max(NEWEST) })
}

/// The newest step of a database, and the oldest program that works on it.
async fn schema_of(session: &Session) -> Result<(i32, i32), Failure> {
    let rows = session
        .rows(
            "SELECT coalesce(max(number), 0), coalesce(max(program_min), 0) \
             FROM millrace.schema_versions",
            &[],
        )
        .await?;
    Ok(rows.first().map_or((0, 0), |row| (row.get(0), row.get(1))))
}

fn too_new(number: i32) -> StoreError {
    StoreError::Failed(format!(
        "the database's schema is at step {number}, and this program knows {NEWEST}; start a newer \
         program"
    ))
}

/// Refuses a database that this program does not work on.
pub async fn check(session: &Session) -> Result<(), Failure> {
    let there = session
        .rows(
            "SELECT 1 FROM information_schema.tables \
             WHERE table_schema = 'millrace' AND table_name = 'schema_versions'",
            &[],
        )
        .await?;
    let (number, program_min) = if there.is_empty() { (0, 0) } else { schema_of(session).await? };
    if number < NEWEST {
        let reason = format!(
            "the database's schema is at step {number}, and this program needs {NEWEST}; run \
             `millrace-logic migrate`"
        );
        return Err(StoreError::Failed(reason).into());
    }
    if program_min > NEWEST { Err(too_new(number).into()) } else { Ok(()) }
}

/// What a URL says, with the bounds of a connection that a cut network leaves behind.
pub fn config_of(url: &str) -> Result<Config, StoreError> {
    let mut config: Config = url
        .parse()
        .map_err(|error| StoreError::Failed(format!("the database's URL is wrong: {error}")))?;
    config
        .application_name("millrace-logic")
        .keepalives_idle(Duration::from_secs(30))
        .tcp_user_timeout(Duration::from_secs(30));
    Ok(config)
}

/// Replaces `/*hash COLUMN FILL*/` at the end of a table.
fn with_partitions(sql: &str, partitions: u32) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut table = "";
    for line in sql.lines() {
        if let Some(rest) = line.strip_prefix("CREATE TABLE ") {
            table = rest.split_whitespace().next().unwrap_or_default();
        }
        let hash = line
            .strip_prefix(") /*hash ")
            .and_then(|rest| rest.strip_suffix("*/;"))
            .and_then(|rest| rest.split_once(' '));
        match hash {
            None => out.push_str(line),
            Some(_) if partitions == 0 => out.push_str(");"),
            Some((column, fill)) => {
                out.push_str(&format!(") PARTITION BY HASH ({column});"));
                for at in 0..partitions {
                    out.push_str(&format!(
                        "\nCREATE TABLE {table}_{at} PARTITION OF {table} FOR VALUES \
                         WITH (MODULUS {partitions}, REMAINDER {at}) WITH (fillfactor = {fill});"
                    ));
                }
            }
        }
        out.push('\n');
    }
    out
}

/// Replaces `/*side NAME*/` by the tables of a matter.
fn with_sides(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    for line in sql.lines() {
        match line.strip_prefix("/*side ").and_then(|rest| rest.strip_suffix("*/")) {
            Some(name) => out.push_str(&side_table(name)),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// The tables of one matter beside the messages.
pub(super) fn side_table(name: &str) -> String {
    format!(
        "CREATE TABLE millrace.side_{name} (part smallint NOT NULL, key bytea NOT NULL, \
         version bigint NOT NULL, value bytea, removed_at timestamptz, PRIMARY KEY (part, key));\n\
         CREATE INDEX side_{name}_versions ON millrace.side_{name} (version);"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbered_without_a_gap_and_never_ask_for_newer_programs() {
        for (at, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.number as usize, at + 1, "{}", migration.name);
            assert!(migration.program_min <= migration.number);
        }
    }

    #[test]
    fn large_tables_are_plain_or_of_partitions() {
        let sql = MIGRATIONS[0].sql;
        let plain = with_partitions(sql, 0);
        assert!(!plain.contains("PARTITION") && plain.contains("PRIMARY KEY (user_id"));
        let parts = with_partitions(sql, 3);
        let count = sql.lines().filter(|line| line.starts_with(") /*hash ")).count();
        assert_eq!(count, 5);
        assert_eq!(parts.matches("PARTITION BY HASH").count(), count);
        assert_eq!(parts.matches("PARTITION OF").count(), 3 * count);
        assert!(parts.contains(
            "CREATE TABLE millrace.messages_2 PARTITION OF millrace.messages FOR VALUES WITH \
             (MODULUS 3, REMAINDER 2) WITH (fillfactor = 100);"
        ));
    }
}
