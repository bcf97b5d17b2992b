//! The questions. Each is a read-only transaction with one view of everything (`REPEATABLE READ`), the
//! clock included: the version of a page is exactly what its view holds.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::join;
use millrace_protocol::chat;
use tokio_postgres::types::Type;

use super::{
    commit::read_clock,
    loaded::{Loaded, MembersCache, lock, number, text},
    pool::{Failure, Session},
    wanted::Wanted,
};
use crate::storage::{
    Changes, ConversationPage, MemberRange, Members, Page, StoreError,
    conversation_id::ConversationName,
    embedded::{
        database::{corrupt, decode},
        edit_rows::DeletedRow,
        encoding::DecodeError,
        keys::{self, Table},
        reader::{Look as _, News, conversation, member_sees, message},
        rows::{ConversationRow, MemberRow, MessageRow, PointerRow},
        transaction::single_members,
    },
};

/// Times that a page may need more than it has; see the embedded store's `conversation`.
const FETCHES_MAX: usize = 16;

/// Who asks, as the conversation knows it.
struct Standing {
    member: MemberRow,
    deleted: DeletedRow,
}

async fn standing(
    session: &Session,
    user_id: &str,
    conversation_id: &str,
) -> Result<Standing, Failure> {
    let (user, id) = (user_id.as_bytes(), conversation_id.as_bytes());
    let rows = session
        .rows(
            "SELECT \
             (SELECT data FROM millrace.members WHERE user_id = $1 AND conversation_id = $2), \
             (SELECT data FROM millrace.deletions WHERE user_id = $1 AND conversation_id = $2), \
             EXISTS (SELECT 1 FROM millrace.conversations WHERE conversation_id = $2)",
            &[(&user, Type::BYTEA), (&id, Type::BYTEA)],
        )
        .await?;
    let Some(row) = rows.first() else { return Err(StoreError::NotFound.into()) };
    match row.get::<_, Option<&[u8]>>(0) {
        Some(data) => {
            let member: MemberRow = decode(Table::Users, data)?;
            let deleted = match row.get::<_, Option<&[u8]>>(1) {
                // Whoever came back as a new member begins anew.
                Some(data) if member.has_deleted => decode(Table::Edits, data)?,
                _ => DeletedRow::default(),
            };
            Ok(Standing { member, deleted })
        }
        None if row.get(2) => Err(StoreError::NotMember.into()),
        None => Err(StoreError::NotFound.into()),
    }
}

fn name_of(conversation_id: &str) -> Result<ConversationName<'_>, StoreError> {
    ConversationName::parse(conversation_id).ok_or(StoreError::NotFound)
}

/// A message as this user sees it.
fn shown(
    name: &ConversationName<'_>,
    conversation_id: &str,
    deleted: &DeletedRow,
    sequence: i64,
    data: &[u8],
) -> Result<chat::Message, StoreError> {
    let row: MessageRow = decode(Table::Messages, data)?;
    let key = keys::message(conversation_id, sequence.unsigned_abs());
    Ok(message(name, conversation_id, deleted, &key, row))
}

/// See [`Store::page`](crate::storage::Store::page).
pub async fn page(
    session: Arc<Session>,
    user_id: &str,
    conversation_id: &str,
    from: u64,
    to: u64,
    limit: usize,
    newest_first: bool,
) -> Result<Page, Failure> {
    let name = name_of(conversation_id)?;
    let Standing { member, deleted } = standing(&session, user_id, conversation_id).await?;
    let from = from.max(member.init_sequence + 1);
    let top = member.quit_sequence.unwrap_or(u64::MAX);
    let to = if to == 0 { top } else { to.min(top) };
    let mut page = Page { messages: vec![], complete: true };
    if from > to {
        return Ok(page);
    }
    let order = if newest_first { "DESC" } else { "ASC" };
    let sql = format!(
        "SELECT sequence, data FROM millrace.messages WHERE conversation_id = $1 \
         AND sequence BETWEEN $2 AND $3 ORDER BY sequence {order} LIMIT $4"
    );
    let (from, to, one_more) = (number(from), number(to), number(limit as u64).saturating_add(1));
    let id = conversation_id.as_bytes();
    let rows = session
        .rows(
            &sql,
            &[(&id, Type::BYTEA), (&from, Type::INT8), (&to, Type::INT8), (&one_more, Type::INT8)],
        )
        .await?;
    page.complete = rows.len() <= limit;
    for row in rows.iter().take(limit) {
        page.messages.push(shown(&name, conversation_id, &deleted, row.get(0), row.get(1))?);
    }
    Ok(page)
}

/// See [`Store::messages`](crate::storage::Store::messages).
pub async fn messages(
    session: Arc<Session>,
    user_id: &str,
    conversation_id: &str,
    sequences: &[u64],
) -> Result<Vec<chat::Message>, Failure> {
    let name = name_of(conversation_id)?;
    let Standing { member, deleted } = standing(&session, user_id, conversation_id).await?;
    let wanted: Vec<i64> = sequences
        .iter()
        .filter(|sequence| member_sees(&member, **sequence))
        .map(|sequence| number(*sequence))
        .collect();
    if wanted.is_empty() {
        return Ok(vec![]);
    }
    let id = conversation_id.as_bytes();
    let rows = session
        .rows(
            "SELECT m.sequence, m.data FROM unnest($2::int8[]) WITH ORDINALITY AS k(sequence, n) \
             JOIN millrace.messages m ON m.conversation_id = $1 AND m.sequence = k.sequence \
             ORDER BY k.n",
            &[(&id, Type::BYTEA), (&wanted, Type::INT8_ARRAY)],
        )
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        found.push(shown(&name, conversation_id, &deleted, row.get(0), row.get(1))?);
    }
    Ok(found)
}

/// See [`Store::changes`](crate::storage::Store::changes).
pub async fn changes(
    session: Arc<Session>,
    user_id: &str,
    conversation_id: &str,
    since_version: u64,
    limit: usize,
) -> Result<Changes, Failure> {
    let name = name_of(conversation_id)?;
    let (standing, clock) =
        join(standing(&session, user_id, conversation_id), read_clock(&session)).await;
    let (Standing { member, deleted }, clock) = (standing?, clock?);
    let id = conversation_id.as_bytes();
    let (since, one_more) = (number(since_version), number(limit as u64).saturating_add(1));
    let after = number(member.init_sequence);
    let up_to = number(member.quit_sequence.unwrap_or(u64::MAX));
    let rows = session
        .rows(
            "SELECT c.version, m.sequence, m.data FROM millrace.changes c \
             JOIN millrace.messages m \
             ON m.conversation_id = c.conversation_id AND m.sequence = c.sequence \
             WHERE c.conversation_id = $1 AND c.version > $2 AND c.sequence > $3 \
             AND c.sequence <= $4 ORDER BY c.version LIMIT $5",
            &[
                (&id, Type::BYTEA),
                (&since, Type::INT8),
                (&after, Type::INT8),
                (&up_to, Type::INT8),
                (&one_more, Type::INT8),
            ],
        )
        .await?;
    let mut changes = Changes {
        deleted: deleted.ranges().to_vec(),
        complete: rows.len() <= limit,
        ..Changes::default()
    };
    let mut newest = since_version;
    for row in rows.iter().take(limit) {
        newest = row.get::<_, i64>(0).unsigned_abs();
        changes.messages.push(shown(&name, conversation_id, &deleted, row.get(1), row.get(2))?);
    }
    changes.version = if changes.complete { clock.max(newest) } else { newest };
    Ok(changes)
}

/// See [`Store::expired`](crate::storage::Store::expired).
pub async fn expired(
    session: Arc<Session>,
    now_ms: i64,
    limit: usize,
) -> Result<Vec<(String, u64)>, Failure> {
    let (now_ms, limit) = (now_ms.max(0), number(limit as u64));
    let rows = session
        .rows(
            "SELECT conversation_id, sequence FROM millrace.expiries WHERE expires_at_ms <= $1 \
             ORDER BY expires_at_ms, conversation_id, sequence LIMIT $2",
            &[(&now_ms, Type::INT8), (&limit, Type::INT8)],
        )
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        found.push((text(Table::Edits, row.get(0))?, row.get::<_, i64>(1).unsigned_abs()));
    }
    Ok(found)
}

/// All conversations of some users, in the order of the users. Conversations' rows are put into
/// `loaded`.
async fn news_of(
    session: &Session,
    user_ids: &[&str],
    loaded: &mut Loaded,
) -> Result<Vec<Vec<News>>, Failure> {
    let users: Vec<&[u8]> = user_ids.iter().map(|id| id.as_bytes()).collect();
    let rows = session
        .rows(
            "SELECT k.n, m.conversation_id, m.data, c.members_version, c.data \
             FROM unnest($1::bytea[]) WITH ORDINALITY AS k(user_id, n) \
             JOIN millrace.members m ON m.user_id = k.user_id \
             JOIN millrace.conversations c ON c.conversation_id = m.conversation_id",
            &[(&users, Type::BYTEA_ARRAY)],
        )
        .await?;
    let mut found: Vec<Vec<News>> = user_ids.iter().map(|_| vec![]).collect();
    for row in rows {
        let conversation_id = text(Table::Users, row.get(1))?;
        let member: MemberRow = decode(Table::Users, row.get(2))?;
        let data: Vec<u8> = row.get(4);
        let pointer = match member.quit_sequence {
            // What came later is not this user's news; the row's own version says when it quit.
            Some(quit) => PointerRow { max_sequence: quit, version: member.version },
            None => {
                let row: ConversationRow = decode(Table::Conversations, &data)?;
                PointerRow { max_sequence: row.max_sequence, version: row.message_version }
            }
        };
        loaded.put_conversation(&conversation_id, row.get(3), data);
        let at = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
        if let Some(of_user) = found.get_mut(at) {
            of_user.push(News { conversation_id, member, pointer });
        }
    }
    Ok(found)
}

/// Rows of conversations, in the order given: what all of them need is fetched together.
async fn conversations_of(
    session: &Session,
    user_id: &str,
    news: Vec<News>,
    loaded: &mut Loaded,
    members: &std::sync::Mutex<MembersCache>,
) -> Result<Vec<chat::Conversation>, Failure> {
    let mut wanted = Wanted::default();
    for news in &news {
        let id = &news.conversation_id;
        if news.top() > news.member.init_sequence {
            wanted.message(id, news.top());
        }
        let read = news.member.init_sequence.max(news.member.read).max(news.member.own_last_sent);
        if news.top() > read && read > 0 {
            wanted.message(id, read);
        }
        if news.member.has_deleted {
            wanted.deletions(user_id, id);
        }
        if let Some(ConversationName::Group(group_id)) = ConversationName::parse(id) {
            wanted.group(group_id);
        }
    }
    let mut done: Vec<Option<chat::Conversation>> = news.iter().map(|_| None).collect();
    for _ in 0..FETCHES_MAX {
        loaded.fetch(session, wanted, members).await?;
        wanted = Wanted::default();
        for (news, done) in news.iter().zip(&mut done) {
            if done.is_some() {
                continue;
            }
            let of_one = News {
                conversation_id: news.conversation_id.clone(),
                member: news.member.clone(),
                pointer: news.pointer,
            };
            let row = conversation(&*loaded, user_id, news.version(), of_one);
            let missing = loaded.take_missing();
            match missing.is_empty() {
                true => *done = Some(row?),
                false => wanted.rows_and_erased(missing),
            }
        }
        if wanted.is_empty() {
            return Ok(done.into_iter().flatten().collect());
        }
    }
    Err(StoreError::Failed(format!("a page asked for rows {FETCHES_MAX} times")).into())
}

/// See [`Store::conversations`](crate::storage::Store::conversations).
pub async fn conversations(
    session: Arc<Session>,
    members: &std::sync::Mutex<MembersCache>,
    user_id: &str,
    since_version: u64,
    limit: usize,
) -> Result<ConversationPage, Failure> {
    let mut loaded = Loaded::default();
    let (clock, news) =
        join(read_clock(&session), news_of(&session, &[user_id], &mut loaded)).await;
    let (clock, mut news) = (clock?, news?.into_iter().flatten().collect::<Vec<_>>());
    news.retain(|news| news.version() > since_version);
    news.sort_unstable_by_key(News::version);
    let complete = news.len() <= limit;
    news.truncate(limit);
    let newest = news.last().map_or(0, News::version);
    let conversations = conversations_of(&session, user_id, news, &mut loaded, members).await?;
    let version = match complete {
        true => clock.max(newest),
        // Nothing was asked for, so nothing was seen.
        false if limit == 0 => since_version,
        false => newest,
    };
    Ok(ConversationPage { conversations, version, complete })
}

/// See [`Store::recent_conversations`](crate::storage::Store::recent_conversations).
pub async fn recent_conversations(
    session: Arc<Session>,
    members: &std::sync::Mutex<MembersCache>,
    user_id: &str,
    before_version: u64,
    limit: usize,
) -> Result<ConversationPage, Failure> {
    let mut loaded = Loaded::default();
    let (clock, news) =
        join(read_clock(&session), news_of(&session, &[user_id], &mut loaded)).await;
    let (version, mut news) = (clock?, news?.into_iter().flatten().collect::<Vec<_>>());
    let before_version = if before_version == 0 { u64::MAX } else { before_version };
    news.retain(|news| news.version() < before_version);
    // Rows of one version (the members of a new group, say) are told apart by nothing a client
    // could go on with, so a page never ends between them.
    news.sort_unstable_by(|one, other| {
        let by_id = || one.conversation_id.cmp(&other.conversation_id);
        other.version().cmp(&one.version()).then_with(by_id)
    });
    let mut end = limit.min(news.len());
    while end > 0 && end < news.len() && news[end].version() == news[end - 1].version() {
        end += 1;
    }
    let complete = end == news.len();
    news.truncate(end);
    let conversations = conversations_of(&session, user_id, news, &mut loaded, members).await?;
    Ok(ConversationPage { conversations, version, complete })
}

/// See [`Store::member_ranges`](crate::storage::Store::member_ranges).
pub async fn member_ranges(
    session: Arc<Session>,
    user_id: &str,
) -> Result<Vec<MemberRange>, Failure> {
    let user = user_id.as_bytes();
    let rows = session
        .rows(
            "SELECT conversation_id, data FROM millrace.members WHERE user_id = $1",
            &[(&user, Type::BYTEA)],
        )
        .await?;
    let mut ranges = Vec::with_capacity(rows.len());
    for row in rows {
        let member: MemberRow = decode(Table::Users, row.get(1))?;
        ranges.push(MemberRange {
            conversation_id: text(Table::Users, row.get(0))?,
            after: member.init_sequence,
            up_to: member.quit_sequence.unwrap_or(u64::MAX),
        });
    }
    Ok(ranges)
}

/// One user's part of [`undelivered_of`].
struct Waiting {
    /// Newest first.
    news: Vec<News>,
    /// How many of these were looked at.
    looked: usize,
    /// How many of these had messages.
    found: usize,
    messages: Vec<chat::Message>,
}

/// See [`Store::undelivered_of`](crate::storage::Store::undelivered_of).
pub async fn undelivered_of(
    session: Arc<Session>,
    members: &std::sync::Mutex<MembersCache>,
    user_ids: &[&str],
    as_of: u64,
    per_conversation_max: usize,
    conversations_max: usize,
) -> Result<Vec<Vec<chat::Message>>, Failure> {
    let mut loaded = Loaded::default();
    let mut users: Vec<Waiting> = vec![];
    let mut wanted = Wanted::default();
    for (user_id, mut news) in user_ids.iter().zip(news_of(&session, user_ids, &mut loaded).await?)
    {
        news.retain(|news| news.top() > news.undelivered_after());
        for news in &news {
            // Who quit has no pointer that says when its last message was sent.
            if news.member.quit_sequence.is_some() {
                wanted.message(&news.conversation_id, news.top());
            }
            if news.member.has_deleted {
                wanted.deletions(user_id, &news.conversation_id);
            }
        }
        users.push(Waiting { news, looked: 0, found: 0, messages: vec![] });
    }
    if per_conversation_max == 0 || conversations_max == 0 {
        return Ok(users.into_iter().map(|_| vec![]).collect());
    }
    loaded.fetch(&session, wanted, members).await?;
    for user in &mut users {
        for news in &mut user.news {
            if news.member.quit_sequence.is_some() {
                let last = loaded.stored_message(&news.conversation_id, news.top())?;
                news.pointer.version = last.version;
            }
        }
        user.news.sort_unstable_by_key(|news| std::cmp::Reverse(news.pointer.version));
    }
    loop {
        // As many of each as are still needed. Nearly always one round: a conversation whose messages
        // are all newer than `as_of` is rare.
        let mut asked: Vec<(usize, usize)> = vec![];
        for (at, user) in users.iter_mut().enumerate() {
            let end =
                user.news.len().min(user.looked.saturating_add(conversations_max - user.found));
            asked.extend((user.looked..end).map(|news| (at, news)));
            user.looked = end;
        }
        if asked.is_empty() {
            break;
        }
        let of = |(user, news): &(usize, usize)| &users[*user].news[*news];
        let ids: Vec<&[u8]> = asked.iter().map(|at| of(at).conversation_id.as_bytes()).collect();
        let from: Vec<i64> =
            asked.iter().map(|at| number(of(at).undelivered_after() + 1)).collect();
        let to: Vec<i64> = asked.iter().map(|at| number(of(at).top())).collect();
        let (as_of, limit) = (number(as_of), number(per_conversation_max as u64));
        let rows = session
            .rows(
                "SELECT k.n, x.sequence, x.data \
                 FROM unnest($1::bytea[], $2::int8[], $3::int8[]) \
                 WITH ORDINALITY AS k(id, low, high, n) CROSS JOIN LATERAL \
                 (SELECT m.sequence, m.data FROM millrace.messages m \
                 WHERE m.conversation_id = k.id AND m.sequence BETWEEN k.low AND k.high \
                 AND m.version <= $4 ORDER BY m.sequence DESC LIMIT $5) AS x \
                 ORDER BY k.n, x.sequence",
                &[
                    (&ids, Type::BYTEA_ARRAY),
                    (&from, Type::INT8_ARRAY),
                    (&to, Type::INT8_ARRAY),
                    (&as_of, Type::INT8),
                    (&limit, Type::INT8),
                ],
            )
            .await?;
        let mut by_conversation: BTreeMap<i64, Vec<tokio_postgres::Row>> = BTreeMap::new();
        for row in rows {
            by_conversation.entry(row.get(0)).or_default().push(row);
        }
        for (at, rows) in by_conversation {
            let at = usize::try_from(at - 1).ok().and_then(|at| asked.get(at).copied());
            let Some((user, news)) = at else { continue };
            let waiting = &mut users[user];
            let news = &waiting.news[news];
            let id = &news.conversation_id;
            let name = ConversationName::parse(id)
                .ok_or_else(|| corrupt(Table::Users, DecodeError::Text))?;
            let user_id = user_ids[user];
            let deleted =
                crate::storage::embedded::reader::deleted_by(&loaded, user_id, id, &news.member)?;
            waiting.found += 1;
            for row in rows {
                let message = shown(&name, id, &deleted, row.get(1), row.get(2))?;
                waiting.messages.push(message);
            }
        }
    }
    Ok(users.into_iter().map(|user| user.messages).collect())
}

/// See [`Store::members`](crate::storage::Store::members).
pub async fn members(
    session: Arc<Session>,
    cache: &std::sync::Mutex<MembersCache>,
    conversation_id: &str,
) -> Result<Option<Members>, Failure> {
    let Some(name) = ConversationName::parse(conversation_id) else { return Ok(None) };
    let mut wanted = Wanted::default();
    wanted.conversation(conversation_id);
    if let ConversationName::Group(_) = name {
        wanted.members.insert(conversation_id.to_owned());
    }
    let mut loaded = Loaded::default();
    loaded.fetch(&session, wanted, cache).await?;
    let key = keys::conversation(conversation_id);
    let row: Option<ConversationRow> = loaded.get(Table::Conversations, &key)?;
    match (row, name) {
        (Some(row), _) if row.removed => Ok(None),
        (None, _) => Ok(None),
        (Some(_), ConversationName::Single(one, other)) => {
            let members = single_members(one, other);
            // A single chat never ends and never changes.
            lock(cache).insert(conversation_id.to_owned(), (0, members.clone()));
            Ok(Some(members))
        }
        (Some(_), ConversationName::Group(_)) => Ok(loaded.members_of(conversation_id)),
    }
}
