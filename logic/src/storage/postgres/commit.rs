//! One commit as one transaction: lock and fetch, decide, take the versions, write.
//!
//! The rules are those of the embedded store ([`Transaction`]). They run on what was fetched; if they
//! asked for more, that is fetched and they run again, and once they have all they need they run for
//! good, with the versions that the clock gave.

use futures::future::{BoxFuture, join, join_all};
use tokio_postgres::types::Type;

use super::{
    columns::{Kind, place_of, shape_of},
    loaded::{Column, Loaded, MembersCache, columns_of, lock, number, text},
    pool::{Failure, Param, Session},
    wanted::{Needs, Wanted},
};
use crate::{
    cache::Cache,
    storage::{
        Members, Outcome, StoreError, Write, conversation_id,
        embedded::{
            database::{Changes, corrupt},
            encoding::DecodeError,
            keys::Table,
            transaction::{Applied, Caches, Transaction},
        },
    },
};

/// Times that the rules may ask for more. What is asked for depends on what came before in few cases,
/// and never in a chain as long as this.
const FETCHES_MAX: usize = 64;

/// The most members whose groups get a row per message and member: none do. Here a message to a
/// group of 500 would be 500 rows rewritten, each leaving a dead one behind; the members look at the
/// conversation's row, which the question for a user's conversations joins.
const FAN_OUT_MEMBERS_MAX: usize = 0;

/// What a commit has done, or is about to do.
pub struct Decided {
    pub outcomes: Vec<Vec<Outcome>>,
    /// After it.
    pub version: u64,
    changes: Changes,
    /// Groups whose members change, with their conversations and who is in them then.
    membership: Vec<(String, Members)>,
}

/// What commits have in common.
pub struct Context<'a> {
    pub writer_id: &'a [u8],
    pub members: &'a std::sync::Mutex<MembersCache>,
    /// Begins a transaction that writes.
    pub begin: &'a str,
}

/// Runs the rules; errors are of no meaning while something is missing.
fn decide(loaded: &Loaded, commits: &[&[Write]], version: u64) -> Result<Decided, StoreError> {
    // Everything is remembered in `loaded` already.
    let mut caches = Caches { conversations: Cache::new(0, |_| 1), members: Cache::new(0, |_| 1) };
    let mut transaction = Transaction::new(loaded, &mut caches, FAN_OUT_MEMBERS_MAX, version);
    let mut outcomes = Vec::with_capacity(commits.len());
    let mut failure = None;
    for writes in commits {
        let mut of_commit = Vec::with_capacity(writes.len());
        for write in *writes {
            match transaction.apply(write.clone()) {
                Ok(outcome) => of_commit.push(outcome),
                // The others may have questions, too.
                Err(error) => failure = Some(error),
            }
        }
        outcomes.push(of_commit);
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let version = transaction.version();
    let (changes, Applied { mut conversations, members: _ }) = transaction.finish();
    let mut membership = vec![];
    for group_id in changed_groups(&changes)? {
        let conversation_id = conversation_id::group(&group_id);
        if let Some(conversation) = conversations.remove(&conversation_id) {
            membership.push((conversation_id, conversation.members));
        }
    }
    Ok(Decided { outcomes, version, changes, membership })
}

/// Groups that somebody joined or left.
fn changed_groups(changes: &Changes) -> Result<Vec<String>, StoreError> {
    let mut groups = vec![];
    for (table, key, _) in changes.rows() {
        if table == Table::Groups
            && let (Kind::GroupMember, parts) = place_of(Table::Groups, key)?
            && let Some(super::columns::Part::Bytes(group_id)) = parts.first()
        {
            groups.push(text(Table::Groups, group_id)?);
        }
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

/// Does a commit. What is decided depends on nothing but the rows that it locks and reads, so that it
/// may be tried again after a failure.
///
/// What is left in `pending`, also when this is given up half-way, may have been done: see
/// [`happened`].
pub async fn run(
    session: &Session,
    context: &Context<'_>,
    commits: &[&[Write]],
    pending: &mut Option<Decided>,
) -> Result<Decided, Failure> {
    let Needs { locks, wanted } = Needs::of(commits.iter().copied().flatten());
    let mut loaded = Loaded::default();
    // All of this is one round trip: the statements are sent before the first answer is waited for.
    let begin = session.run(context.begin);
    let (begun, (locked, clock)) =
        join(begin, join(lock_conversations(session, &locks), read_clock(session))).await;
    begun?;
    for (id, members_version, data) in locked? {
        loaded.put_conversation(&id, members_version, data);
    }
    let mut has_absent = false;
    for id in &locks {
        let key = crate::storage::embedded::keys::conversation(id);
        if loaded.has(Table::Conversations, &key).is_none() {
            loaded.put(Table::Conversations, key, None);
            has_absent = true;
        }
    }
    let before = clock?;
    let mut wanted: Wanted = wanted;
    let mut fetches = 0;
    let first = loop {
        loaded.fetch(session, wanted, context.members).await?;
        let decided = decide(&loaded, commits, before);
        wanted = loaded.take_missing();
        if wanted.is_empty() {
            break match decided {
                // What is not there cannot be locked: somebody may have begun the conversation
                // between two statements, so that its messages are found and it is not.
                Err(error @ StoreError::Corrupt(_)) if has_absent => {
                    return Err(Failure::Again { error, is_known: true });
                }
                decided => decided?,
            };
        }
        fetches += 1;
        if fetches == FETCHES_MAX {
            let reason = format!("a commit asked for rows {FETCHES_MAX} times");
            return Err(StoreError::Failed(reason).into());
        }
    };
    if first.changes.is_empty() {
        session.run("ROLLBACK").await?;
        return Ok(first);
    }
    // From here until the end this is the only commit anywhere.
    let count = first.version - before;
    let version = take_versions(session, count).await?;
    let decided = match version - count == before {
        true => first,
        false => decide(&loaded, commits, version - count)?,
    };
    if !loaded.take_missing().is_empty() || decided.version != version {
        let reason = "a commit decided otherwise with other versions".to_owned();
        return Err(StoreError::Failed(reason).into());
    }
    let statements = statements_of(&decided, &loaded)?;
    *pending = Some(decided);
    let written = write(session, context.writer_id, version, &statements);
    let end = session.run("COMMIT");
    let failure = match join(written, end).await {
        (Ok(()), Ok(())) => {
            return match pending.take() {
                Some(decided) => {
                    remember(context.members, &decided);
                    Ok(decided)
                }
                None => Err(StoreError::Failed("a commit got lost".into()).into()),
            };
        }
        // The connection was lost, before the commit or after it.
        (Ok(()) | Err(Failure::Again { is_known: false, .. }), Err(failure))
            if !failure.is_known() =>
        {
            return Err(failure);
        }
        // After a statement that failed, the end of a transaction is no commit.
        (Err(failure), _) | (_, Err(failure)) => failure,
    };
    *pending = None;
    Err(failure)
}

/// Whether a commit happened whose end was not answered. It held the clock from before its end was
/// sent, so that whoever has the clock now knows.
pub async fn happened(
    session: &Session,
    context: &Context<'_>,
    decided: &Decided,
) -> Result<bool, Failure> {
    let begin = session.run(context.begin);
    let look = async {
        let locked =
            session.rows("SELECT version FROM millrace.clock WHERE id = 1 FOR UPDATE", &[]);
        let own: [Param<'_>; 1] = [(&context.writer_id, Type::BYTEA)];
        let last = session.rows("SELECT version FROM millrace.writers WHERE writer_id = $1", &own);
        let (locked, last) = join(locked, last).await;
        locked?;
        last
    };
    let (begun, last) = join(begin, look).await;
    begun?;
    let last: Option<i64> = last?.first().map(|row| row.get(0));
    session.run("ROLLBACK").await?;
    let happened = last == Some(number(decided.version));
    if happened {
        remember(context.members, decided);
    }
    Ok(happened)
}

fn remember(members: &std::sync::Mutex<MembersCache>, decided: &Decided) {
    let mut cache = lock(members);
    for (conversation_id, members) in &decided.membership {
        cache.insert(conversation_id.clone(), (number(decided.version), members.clone()));
    }
}

type Locked = Vec<(String, i64, Vec<u8>)>;

/// Locks rows in the order of their ids, the same for everybody. A conversation that is not there yet
/// cannot be locked; of two that begin it, the later finds its key taken, and tries again.
async fn lock_conversations(
    session: &Session,
    ids: &std::collections::BTreeSet<String>,
) -> Result<Locked, Failure> {
    if ids.is_empty() {
        return Ok(vec![]);
    }
    let ids: Vec<&[u8]> = ids.iter().map(|id| id.as_bytes()).collect();
    let rows = session
        .rows(
            "SELECT c.conversation_id, c.members_version, c.data FROM unnest($1::bytea[]) AS k(id) \
             JOIN millrace.conversations c ON c.conversation_id = k.id \
             ORDER BY c.conversation_id FOR UPDATE OF c",
            &[(&ids, Type::BYTEA_ARRAY)],
        )
        .await?;
    let mut locked = Vec::with_capacity(rows.len());
    for row in rows {
        let id = text(Table::Conversations, row.get(0))?;
        locked.push((id, row.get(1), row.get(2)));
    }
    Ok(locked)
}

/// The version of the newest commit, as the statement sees it.
pub async fn read_clock(session: &Session) -> Result<u64, Failure> {
    let rows = session.rows("SELECT version FROM millrace.clock WHERE id = 1", &[]).await?;
    clock_of(&rows)
}

async fn take_versions(session: &Session, count: u64) -> Result<u64, Failure> {
    let rows = session
        .rows(
            "UPDATE millrace.clock SET version = version + $1 WHERE id = 1 RETURNING version",
            &[(&number(count), Type::INT8)],
        )
        .await?;
    clock_of(&rows)
}

fn clock_of(rows: &[tokio_postgres::Row]) -> Result<u64, Failure> {
    let version: Option<i64> = rows.first().map(|row| row.get(0));
    version
        .and_then(|version| u64::try_from(version).ok())
        .ok_or_else(|| corrupt(Table::Conversations, DecodeError::Number).into())
}

/// One statement that writes many rows.
struct Statement {
    sql: String,
    columns: Vec<Column>,
}

/// What to write: a statement for each table and way.
fn statements_of(decided: &Decided, loaded: &Loaded) -> Result<Vec<Statement>, StoreError> {
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Way {
        Insert,
        Update,
        Upsert,
        Delete,
    }
    type Rows = (Vec<Vec<super::columns::Part>>, Vec<i64>, Vec<Vec<u8>>);
    let mut all: std::collections::BTreeMap<(Kind, Way), Rows> = Default::default();
    for (table, key, data) in decided.changes.rows() {
        let (kind, parts) = place_of(table, key)?;
        let way = match (data, kind) {
            (None, _) => Way::Delete,
            (Some(_), Kind::Conversation | Kind::Message) => match loaded.has(table, key) {
                Some(true) => Way::Update,
                _ => Way::Insert,
            },
            (Some(_), Kind::MessageId) => Way::Insert,
            (Some(_), _) => Way::Upsert,
        };
        let (keys, extras, datas) = all.entry((kind, way)).or_default();
        if let Some(data) = data {
            let shape = shape_of(kind);
            if let Some((_, extra)) = shape.extra {
                extras.push(extra(data).map_err(|error| corrupt(table, error))?);
            }
            if shape.has_data {
                datas.push(data.clone());
            }
        }
        keys.push(parts);
    }
    let mut statements = Vec::with_capacity(all.len() + 1);
    for ((kind, way), (keys, extras, datas)) in all {
        let shape = shape_of(kind);
        let sql = match way {
            Way::Insert => &shape.insert,
            Way::Update => &shape.update,
            Way::Upsert => &shape.upsert,
            Way::Delete => &shape.delete,
        };
        let mut columns = columns_of(kind, keys);
        if way != Way::Delete {
            columns.extend(shape.extra.map(|_| Column::Numbers(extras)));
            columns.extend(shape.has_data.then_some(Column::Bytes(datas)));
        }
        statements.push(Statement { sql: sql.clone(), columns });
    }
    if !decided.membership.is_empty() {
        let ids = decided.membership.iter().map(|(id, _)| id.as_bytes().to_vec()).collect();
        let versions = vec![number(decided.version); decided.membership.len()];
        statements.push(Statement {
            sql: "UPDATE millrace.conversations t SET members_version = k.version \
                  FROM unnest($1::bytea[], $2::int8[]) AS k(id, version) \
                  WHERE t.conversation_id = k.id"
                .to_owned(),
            columns: vec![Column::Bytes(ids), Column::Numbers(versions)],
        });
    }
    Ok(statements)
}

/// Sends all of it before the first answer is waited for.
async fn write(
    session: &Session,
    writer_id: &[u8],
    version: u64,
    statements: &[Statement],
) -> Result<(), Failure> {
    let mut work: Vec<BoxFuture<'_, Result<(), Failure>>> = vec![];
    for Statement { sql, columns } in statements {
        work.push(Box::pin(async move {
            let params: Vec<Param<'_>> = columns.iter().map(Column::param).collect();
            session.rows(sql, &params).await.map(drop)
        }));
    }
    work.push(Box::pin(async move {
        let version = number(version);
        session
            .rows(
                "INSERT INTO millrace.writers (writer_id, version) VALUES ($1, $2) \
                 ON CONFLICT (writer_id) DO UPDATE SET version = excluded.version, seen_at = now()",
                &[(&writer_id, Type::BYTEA), (&version, Type::INT8)],
            )
            .await
            .map(drop)
    }));
    // Of several failures the first says why; the others only that there was one.
    join_all(work).await.into_iter().collect()
}
