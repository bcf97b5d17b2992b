//! The questions, each answered from one consistent view, beside the writer and never in its way.

use std::{collections::HashMap, sync::atomic::Ordering};

use millrace_protocol::chat;

use super::{
    database::{Tables, View},
    edit_rows::{DeletedRow, EditRow, Mark, SequenceRow},
    encoding::DecodeError,
    group_rows::GroupRow,
    keys::{self, Table, UserRow},
    rows::{ConversationRow, MemberRow, MessageRow, PointerRow, Row},
    transaction::stored_members,
    writer::Shared,
};
use crate::storage::{
    Changes, ConversationPage, MemberRange, Members, Page, StoreError,
    conversation_id::ConversationName,
    extras::{STATE_DELETED, STATE_NORMAL, bury},
    limits::USER_ID_BYTES_MAX,
};

/// What is asked to put a conversation's row together.
pub trait Look {
    /// One row.
    fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError>;

    /// A message that must be there.
    fn stored_message(
        &self,
        conversation_id: &str,
        sequence: u64,
    ) -> Result<MessageRow, StoreError> {
        self.get(Table::Messages, &keys::message(conversation_id, sequence))?.ok_or_else(|| {
            StoreError::Corrupt(format!("message {sequence} of {conversation_id} is missing"))
        })
    }

    /// How many messages `from..=to` counted as unread before they were erased.
    fn counted_erased(&self, conversation_id: &str, from: u64, to: u64) -> Result<u64, StoreError>;
}

impl Look for View<'_> {
    fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        View::get(self, table, key)
    }

    fn counted_erased(&self, conversation_id: &str, from: u64, to: u64) -> Result<u64, StoreError> {
        let mut count = 0;
        let range = keys::erased(conversation_id, from)..=keys::erased(conversation_id, to);
        self.range(Table::Edits, range, false, |_, row: EditRow| {
            count += u64::from(row.counted);
            true
        })?;
        Ok(count)
    }
}

/// See [`Store::page`](crate::storage::Store::page).
pub fn page(
    tables: &Tables,
    user_id: &str,
    conversation_id: &str,
    from: u64,
    to: u64,
    limit: usize,
    newest_first: bool,
) -> Result<Page, StoreError> {
    let name = ConversationName::parse(conversation_id).ok_or(StoreError::NotFound)?;
    let view = tables.view();
    let member = member_of(&view, user_id, conversation_id)?;
    let deleted = deleted_by(&view, user_id, conversation_id, &member)?;
    let from = from.max(member.init_sequence + 1);
    let top = member.quit_sequence.unwrap_or(u64::MAX);
    let to = if to == 0 { top } else { to.min(top) };
    let mut page = Page { messages: vec![], complete: true };
    if from > to {
        return Ok(page);
    }
    view.range(
        Table::Messages,
        keys::messages(conversation_id, from, to),
        newest_first,
        |key, row: MessageRow| {
            page.complete = page.messages.len() < limit;
            if page.complete {
                page.messages.push(message(&name, conversation_id, &deleted, key, row));
            }
            page.complete
        },
    )?;
    Ok(page)
}

/// See [`Store::messages`](crate::storage::Store::messages).
pub fn messages(
    tables: &Tables,
    user_id: &str,
    conversation_id: &str,
    sequences: &[u64],
) -> Result<Vec<chat::Message>, StoreError> {
    let name = ConversationName::parse(conversation_id).ok_or(StoreError::NotFound)?;
    let view = tables.view();
    let member = member_of(&view, user_id, conversation_id)?;
    let deleted = deleted_by(&view, user_id, conversation_id, &member)?;
    let mut found = vec![];
    for sequence in sequences.iter().copied().filter(|sequence| member_sees(&member, *sequence)) {
        let key = keys::message(conversation_id, sequence);
        if let Some(row) = view.get::<MessageRow>(Table::Messages, &key)? {
            found.push(message(&name, conversation_id, &deleted, &key, row));
        }
    }
    Ok(found)
}

/// See [`Store::changes`](crate::storage::Store::changes).
pub fn changes(
    tables: &Tables,
    shared: &Shared,
    user_id: &str,
    conversation_id: &str,
    since_version: u64,
    limit: usize,
) -> Result<Changes, StoreError> {
    let name = ConversationName::parse(conversation_id).ok_or(StoreError::NotFound)?;
    // Before the view, so that the view holds everything up to it.
    let version = shared.version.load(Ordering::Acquire);
    let view = tables.view();
    let member = member_of(&view, user_id, conversation_id)?;
    let deleted = deleted_by(&view, user_id, conversation_id, &member)?;
    let mut changes = Changes { deleted: deleted.ranges().to_vec(), ..Changes::default() };
    let mut changed: Vec<u64> = vec![];
    let range = keys::change(conversation_id, since_version.saturating_add(1))
        ..=keys::change(conversation_id, u64::MAX);
    let mut newest = since_version;
    changes.complete = true;
    view.range(Table::Edits, range, false, |key, row: SequenceRow| {
        if !member_sees(&member, row.sequence) {
            return true;
        }
        changes.complete = changed.len() < limit;
        if changes.complete {
            changed.push(row.sequence);
            // The version is the last number of the key, as the sequence is in a message's.
            newest = keys::sequence_of(key).unwrap_or(newest);
        }
        changes.complete
    })?;
    for sequence in changed {
        let key = keys::message(conversation_id, sequence);
        if let Some(row) = view.get::<MessageRow>(Table::Messages, &key)? {
            changes.messages.push(message(&name, conversation_id, &deleted, &key, row));
        }
    }
    changes.version = if changes.complete { version.max(newest) } else { newest };
    Ok(changes)
}

/// See [`Store::expired`](crate::storage::Store::expired).
pub fn expired(
    tables: &Tables,
    now_ms: i64,
    limit: usize,
) -> Result<Vec<(String, u64)>, StoreError> {
    let mut found = vec![];
    if limit == 0 {
        return Ok(found);
    }
    let mut damaged = false;
    tables.view().range(Table::Edits, keys::expiries_until(now_ms), false, |key, _: Mark| {
        match keys::expiry_of(key) {
            Some((conversation_id, sequence)) => {
                found.push((conversation_id.to_owned(), sequence));
            }
            None => damaged = true,
        }
        found.len() < limit
    })?;
    if damaged {
        return Err(super::database::corrupt(Table::Edits, DecodeError::Short));
    }
    Ok(found)
}

/// The row of somebody who is or was in a conversation.
fn member_of(
    view: &View<'_>,
    user_id: &str,
    conversation_id: &str,
) -> Result<MemberRow, StoreError> {
    let member = match user_id.len() {
        1..=USER_ID_BYTES_MAX => {
            let key = keys::user(user_id, conversation_id, UserRow::Member);
            view.get::<MemberRow>(Table::Users, &key)?
        }
        _ => None,
    };
    if let Some(member) = member {
        return Ok(member);
    }
    let key = keys::conversation(conversation_id);
    let row = view.get::<ConversationRow>(Table::Conversations, &key)?;
    Err(row.map_or(StoreError::NotFound, |_| StoreError::NotMember))
}

pub fn member_sees(member: &MemberRow, sequence: u64) -> bool {
    sequence > member.init_sequence && sequence <= member.quit_sequence.unwrap_or(u64::MAX)
}

/// What this member has deleted; nothing, without a look, for nearly everybody.
pub fn deleted_by<V: Look>(
    view: &V,
    user_id: &str,
    conversation_id: &str,
    member: &MemberRow,
) -> Result<DeletedRow, StoreError> {
    if !member.has_deleted {
        return Ok(DeletedRow::default());
    }
    let row = view.get(Table::Edits, &keys::deleted(user_id, conversation_id))?;
    Ok(row.unwrap_or_default())
}

/// See [`Store::conversations`](crate::storage::Store::conversations).
///
/// Reads all rows of the user, also those that did not change: the cost grows with the number of
/// the user's conversations, not with what changed. A second index by version would cost a removed
/// and a written row for every message and member.
pub fn conversations(
    tables: &Tables,
    shared: &Shared,
    user_id: &str,
    since_version: u64,
    limit: usize,
) -> Result<ConversationPage, StoreError> {
    // Before the view, so that the view holds everything up to it.
    let version = shared.version.load(Ordering::Acquire);
    let view = tables.view();
    let mut changed = vec![];
    for news in news_of(&view, user_id)? {
        let version = news.member.version.max(news.pointer.version);
        if version > since_version {
            changed.push((version, news));
        }
    }
    changed.sort_unstable_by_key(|(version, _)| *version);
    let complete = changed.len() <= limit;
    changed.truncate(limit);
    let newest = changed.last().map_or(0, |(version, _)| *version);
    let conversations = changed
        .into_iter()
        .map(|(version, news)| conversation(&view, user_id, version, news))
        .collect::<Result<_, _>>()?;
    let version = match complete {
        true => version.max(newest),
        // Nothing was asked for, so nothing was seen.
        false if limit == 0 => since_version,
        false => newest,
    };
    Ok(ConversationPage { conversations, version, complete })
}

/// See [`Store::member_ranges`](crate::storage::Store::member_ranges).
pub fn member_ranges(tables: &Tables, user_id: &str) -> Result<Vec<MemberRange>, StoreError> {
    if !(1..=USER_ID_BYTES_MAX).contains(&user_id.len()) {
        return Ok(vec![]);
    }
    let prefix = keys::user_prefix(user_id);
    let mut ranges = vec![];
    tables.view().prefix(Table::Users, &prefix, |key, value| {
        match keys::conversation_of(key, prefix.len()) {
            Some((conversation_id, UserRow::Member)) => {
                let row: MemberRow = super::database::decode(Table::Users, value)?;
                ranges.push(MemberRange {
                    conversation_id: conversation_id.to_owned(),
                    after: row.init_sequence,
                    up_to: row.quit_sequence.unwrap_or(u64::MAX),
                });
            }
            Some(_) => {}
            None => return Err(not_a_conversation()),
        }
        Ok(())
    })?;
    Ok(ranges)
}

/// See [`Store::recent_conversations`](crate::storage::Store::recent_conversations).
pub fn recent_conversations(
    tables: &Tables,
    shared: &Shared,
    user_id: &str,
    before_version: u64,
    limit: usize,
) -> Result<ConversationPage, StoreError> {
    let version = shared.version.load(Ordering::Acquire);
    let view = tables.view();
    let before_version = if before_version == 0 { u64::MAX } else { before_version };
    let mut rows = vec![];
    for news in news_of(&view, user_id)? {
        let version = news.member.version.max(news.pointer.version);
        if version < before_version {
            rows.push((version, news));
        }
    }
    // Rows of one version (the members of a new group, say) are told apart by nothing a client
    // could go on with, so a page never ends between them.
    rows.sort_unstable_by(|(one, a), (other, b)| {
        other.cmp(one).then_with(|| a.conversation_id.cmp(&b.conversation_id))
    });
    let mut end = limit.min(rows.len());
    while end > 0 && end < rows.len() && rows[end].0 == rows[end - 1].0 {
        end += 1;
    }
    let complete = end == rows.len();
    rows.truncate(end);
    let conversations = rows
        .into_iter()
        .map(|(version, news)| conversation(&view, user_id, version, news))
        .collect::<Result<_, _>>()?;
    Ok(ConversationPage { conversations, version, complete })
}

/// See [`Store::undelivered`](crate::storage::Store::undelivered).
pub fn undelivered(
    tables: &Tables,
    user_id: &str,
    as_of: u64,
    per_conversation_max: usize,
    conversations_max: usize,
) -> Result<Vec<chat::Message>, StoreError> {
    let view = tables.view();
    let mut waiting = news_of(&view, user_id)?;
    waiting.retain(|news| news.top() > news.undelivered_after());
    for news in &mut waiting {
        // Who quit a large group has no pointer that says when its last message was sent, and the
        // pointer of who quit a small one says when a message of it was last changed.
        if news.member.quit_sequence.is_some() {
            let key = keys::message(&news.conversation_id, news.top());
            if let Some(last) = view.get::<MessageRow>(Table::Messages, &key)? {
                news.pointer.version = last.version;
            }
        }
    }
    waiting.sort_unstable_by_key(|news| std::cmp::Reverse(news.pointer.version));
    let mut messages = vec![];
    let mut found = 0;
    for news in waiting {
        if found == conversations_max || per_conversation_max == 0 {
            break;
        }
        let Some(name) = ConversationName::parse(&news.conversation_id) else {
            return Err(not_a_conversation());
        };
        let begun = messages.len();
        let deleted = deleted_by(&view, user_id, &news.conversation_id, &news.member)?;
        let range = keys::messages(&news.conversation_id, news.undelivered_after() + 1, news.top());
        view.range(Table::Messages, range, true, |key, row: MessageRow| {
            if row.version <= as_of {
                messages.push(message(&name, &news.conversation_id, &deleted, key, row));
            }
            messages.len() < begun + per_conversation_max
        })?;
        messages[begun..].reverse();
        found += usize::from(messages.len() > begun);
    }
    Ok(messages)
}

/// See [`Store::members`](crate::storage::Store::members).
pub fn members(tables: &Tables, conversation_id: &str) -> Result<Option<Members>, StoreError> {
    if ConversationName::parse(conversation_id).is_none() {
        return Ok(None);
    }
    let key = keys::conversation(conversation_id);
    match tables.get::<ConversationRow>(Table::Conversations, &key)? {
        Some(row) if !row.removed => stored_members(tables, conversation_id).map(Some),
        _ => Ok(None),
    }
}

/// A user's rows of one conversation. In a single chat and in a large group nobody writes pointers;
/// there the pointer is made from the conversation's own row.
pub struct News {
    pub conversation_id: String,
    pub member: MemberRow,
    pub pointer: PointerRow,
}

impl News {
    /// The version of the last change that the user can see.
    pub fn version(&self) -> u64 {
        self.member.version.max(self.pointer.version)
    }

    /// The newest sequence that this member may see.
    pub fn top(&self) -> u64 {
        self.member.quit_sequence.unwrap_or(u64::MAX).min(self.pointer.max_sequence)
    }

    /// What the member has already, or came after.
    pub fn undelivered_after(&self) -> u64 {
        self.member.delivered.max(self.member.init_sequence)
    }
}

/// All conversations of a user: one range, and a look-up for each single chat and large group.
fn news_of(view: &View<'_>, user_id: &str) -> Result<Vec<News>, StoreError> {
    if !(1..=USER_ID_BYTES_MAX).contains(&user_id.len()) {
        return Ok(vec![]);
    }
    let prefix = keys::user_prefix(user_id);
    let mut members: Vec<News> = vec![];
    let mut pointers: HashMap<String, PointerRow> = HashMap::new();
    view.prefix(Table::Users, &prefix, |key, value| {
        let Some((conversation_id, row)) = keys::conversation_of(key, prefix.len()) else {
            return Err(not_a_conversation());
        };
        let conversation_id = conversation_id.to_owned();
        match row {
            UserRow::Member => members.push(News {
                conversation_id,
                member: super::database::decode(Table::Users, value)?,
                pointer: PointerRow::default(),
            }),
            UserRow::Pointer => {
                let pointer = super::database::decode(Table::Users, value)?;
                // Nearly always the pointer of the member row just read.
                match members.last_mut() {
                    Some(news) if news.conversation_id == conversation_id => news.pointer = pointer,
                    _ => drop(pointers.insert(conversation_id, pointer)),
                }
            }
        }
        Ok(())
    })?;
    for news in &mut members {
        if let Some(pointer) = pointers.remove(&news.conversation_id) {
            news.pointer = pointer;
        }
        if news.member.by_cursor && news.member.quit_sequence.is_none() {
            let row = conversation_row(view, &news.conversation_id)?;
            news.pointer =
                PointerRow { max_sequence: row.max_sequence, version: row.message_version };
        } else if let (true, Some(quit)) = (news.member.by_cursor, news.member.quit_sequence) {
            // What came later is not this user's news; the row's own version says when it quit.
            news.pointer = PointerRow { max_sequence: quit, version: news.member.version };
        }
    }
    Ok(members)
}

/// A conversation as one of its members sees it.
pub fn conversation<V: Look>(
    view: &V,
    user_id: &str,
    version: u64,
    news: News,
) -> Result<chat::Conversation, StoreError> {
    let News { conversation_id, member, .. } = news;
    let name = ConversationName::parse(&conversation_id).ok_or_else(not_a_conversation)?;
    let row = conversation_row(view, &conversation_id)?;
    let max_sequence = member.quit_sequence.unwrap_or(row.max_sequence);
    let (own_last_sent, peer, display_name, avatar) = match name {
        ConversationName::Single(first, _) => {
            let sent = if first == user_id { row.sent[0] } else { row.sent[1] };
            let peer = name.peer_of(user_id).unwrap_or_default().to_owned();
            (sent, peer.clone(), peer, String::new())
        }
        ConversationName::Group(group_id) => {
            let group: GroupRow =
                view.get(Table::Groups, &keys::group(group_id))?.unwrap_or_default();
            (member.own_last_sent, String::new(), group.name, group.avatar)
        }
    };
    let get = |sequence| view.stored_message(&conversation_id, sequence);
    let last = (max_sequence > member.init_sequence).then(|| get(max_sequence)).transpose()?;
    let deleted = deleted_by(view, user_id, &conversation_id, &member)?;
    let floor = member.init_sequence.max(member.read).max(own_last_sent);
    let unread = match &last {
        Some(last) if max_sequence > floor => {
            let before = if floor == 0 { 0 } else { get(floor)?.counting };
            let erased = match row.has_edits {
                true => view.counted_erased(&conversation_id, floor + 1, max_sequence)?,
                false => 0,
            };
            let mut unread = last.counting.saturating_sub(before).saturating_sub(erased);
            for (from, to) in deleted.ranges() {
                let (from, to) = ((*from).max(floor + 1), (*to).min(max_sequence));
                if from > to {
                    continue;
                }
                let before = if from == 1 { 0 } else { get(from - 1)?.counting };
                let mut hidden = get(to)?.counting.saturating_sub(before);
                if row.has_edits {
                    // Those were taken off already.
                    let erased = view.counted_erased(&conversation_id, from, to)?;
                    hidden = hidden.saturating_sub(erased);
                }
                unread = unread.saturating_sub(hidden);
            }
            unread
        }
        _ => 0,
    };
    let mentioned = member.mentioned.max(row.mentioned_everyone);
    let mentioned_sequence = match mentioned > floor && mentioned <= max_sequence {
        true if get(mentioned)?.state == STATE_NORMAL && !deleted.contains(mentioned) => mentioned,
        _ => 0,
    };
    let conversation_type = name.conversation_type();
    Ok(chat::Conversation {
        last_message: last.map(|last| {
            let key = keys::message(&conversation_id, max_sequence);
            message(&name, &conversation_id, &deleted, &key, last)
        }),
        conversation_id,
        r#type: conversation_type,
        user_id: peer,
        name: display_name,
        avatar,
        unread,
        init_sequence: member.init_sequence,
        max_sequence,
        read_sequence: member.read,
        do_not_disturb: member.do_not_disturb,
        quit: member.quit_sequence.is_some(),
        version,
        quit_reason: u32::from(member.quit_reason),
        mentioned_sequence,
        pinned: member.pinned,
        hidden: member.hidden_sequence.is_some_and(|hidden| hidden >= max_sequence),
    })
}

fn conversation_row<V: Look>(
    view: &V,
    conversation_id: &str,
) -> Result<ConversationRow, StoreError> {
    view.get(Table::Conversations, &keys::conversation(conversation_id))?
        .ok_or_else(|| StoreError::Corrupt(format!("{conversation_id} has members but no row")))
}

/// A message as the user sees it who has deleted these.
pub fn message(
    name: &ConversationName<'_>,
    conversation_id: &str,
    deleted: &DeletedRow,
    key: &[u8],
    row: MessageRow,
) -> chat::Message {
    // Every key of the range ends with the eight bytes that the range was made from.
    let sequence = keys::sequence_of(key).unwrap_or_default();
    let mut message = row.into_message(conversation_id, name.conversation_type(), sequence);
    if message.state == STATE_NORMAL && deleted.contains(sequence) {
        bury(&mut message, STATE_DELETED);
    }
    message
}

fn not_a_conversation() -> StoreError {
    super::database::corrupt(Table::Users, DecodeError::Text)
}
