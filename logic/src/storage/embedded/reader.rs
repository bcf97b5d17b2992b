//! The questions, each answered from one consistent view, beside the writer and never in its way.

use std::{collections::HashMap, sync::atomic::Ordering};

use millrace_protocol::chat;

use super::{
    database::{Tables, View},
    encoding::DecodeError,
    keys::{self, Table, UserRow},
    rows::{ConversationRow, GroupRow, MemberRow, MessageRow, PointerRow},
    transaction::stored_members,
    writer::Shared,
};
use crate::storage::{
    ConversationPage, Members, Page, StoreError,
    conversation_id::{self, ConversationName},
    limits::USER_ID_BYTES_MAX,
};

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
    let member = match user_id.len() {
        1..=USER_ID_BYTES_MAX => {
            let key = keys::user(user_id, conversation_id, UserRow::Member);
            view.get::<MemberRow>(Table::Users, &key)?
        }
        _ => None,
    };
    let Some(member) = member else {
        let row = view
            .get::<ConversationRow>(Table::Conversations, &keys::conversation(conversation_id))?;
        return Err(row.map_or(StoreError::NotFound, |_| StoreError::NotMember));
    };
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
                page.messages.push(message(&name, conversation_id, key, row));
            }
            page.complete
        },
    )?;
    Ok(page)
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
        let range = keys::messages(&news.conversation_id, news.undelivered_after() + 1, news.top());
        view.range(Table::Messages, range, true, |key, row: MessageRow| {
            if row.version <= as_of {
                messages.push(message(&name, &news.conversation_id, key, row));
            }
            messages.len() < begun + per_conversation_max
        })?;
        messages[begun..].reverse();
        found += usize::from(messages.len() > begun);
    }
    Ok(messages)
}

/// See [`Store::group`](crate::storage::Store::group).
pub fn group(tables: &Tables, group_id: &str) -> Result<Option<chat::Group>, StoreError> {
    let Some(group) = tables.get::<GroupRow>(Table::Groups, &keys::group(group_id))? else {
        return Ok(None);
    };
    if group.removed {
        return Ok(None);
    }
    let conversation_id = conversation_id::group(group_id);
    let members = stored_members(tables, &conversation_id)?;
    Ok(Some(chat::Group {
        group_id: group_id.to_owned(),
        conversation_id,
        name: group.name,
        avatar: group.avatar,
        members: members.iter().map(|user_id| user_id.to_string()).collect(),
        members_max: group.members_max,
        created_at_ms: group.created_at_ms,
    }))
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
struct News {
    conversation_id: String,
    member: MemberRow,
    pointer: PointerRow,
}

impl News {
    /// The newest sequence that this member may see.
    fn top(&self) -> u64 {
        self.member.quit_sequence.unwrap_or(u64::MAX).min(self.pointer.max_sequence)
    }

    fn undelivered_after(&self) -> u64 {
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

fn conversation(
    view: &View<'_>,
    user_id: &str,
    version: u64,
    news: News,
) -> Result<chat::Conversation, StoreError> {
    let News { conversation_id, member, .. } = news;
    let name = ConversationName::parse(&conversation_id).ok_or_else(not_a_conversation)?;
    let row = conversation_row(view, &conversation_id)?;
    let max_sequence = member.quit_sequence.unwrap_or(row.max_sequence);
    let (own_last_sent, display_name, avatar) = match name {
        ConversationName::Single(first, _) => {
            let sent = if first == user_id { row.sent[0] } else { row.sent[1] };
            (sent, name.peer_of(user_id).unwrap_or_default().to_owned(), String::new())
        }
        ConversationName::Group(group_id) => {
            let group: GroupRow =
                view.get(Table::Groups, &keys::group(group_id))?.unwrap_or_default();
            (member.own_last_sent, group.name, group.avatar)
        }
    };
    let get = |sequence| -> Result<MessageRow, StoreError> {
        view.get(Table::Messages, &keys::message(&conversation_id, sequence))?.ok_or_else(|| {
            StoreError::Corrupt(format!("message {sequence} of {conversation_id} is missing"))
        })
    };
    let last = (max_sequence > member.init_sequence).then(|| get(max_sequence)).transpose()?;
    let floor = member.init_sequence.max(member.read).max(own_last_sent);
    let unread = match &last {
        Some(last) if max_sequence > floor => {
            let before = if floor == 0 { 0 } else { get(floor)?.counting };
            last.counting.saturating_sub(before)
        }
        _ => 0,
    };
    let conversation_type = name.conversation_type();
    Ok(chat::Conversation {
        last_message: last
            .map(|last| last.into_message(&conversation_id, conversation_type, max_sequence)),
        conversation_id,
        r#type: conversation_type,
        name: display_name,
        avatar,
        unread,
        init_sequence: member.init_sequence,
        max_sequence,
        read_sequence: member.read,
        do_not_disturb: member.do_not_disturb,
        quit: member.quit_sequence.is_some(),
        version,
    })
}

fn conversation_row(view: &View<'_>, conversation_id: &str) -> Result<ConversationRow, StoreError> {
    view.get(Table::Conversations, &keys::conversation(conversation_id))?
        .ok_or_else(|| StoreError::Corrupt(format!("{conversation_id} has members but no row")))
}

fn message(
    name: &ConversationName<'_>,
    conversation_id: &str,
    key: &[u8],
    row: MessageRow,
) -> chat::Message {
    // Every key of the range ends with the eight bytes that the range was made from.
    let sequence = keys::sequence_of(key).unwrap_or_default();
    row.into_message(conversation_id, name.conversation_type(), sequence)
}

fn not_a_conversation() -> StoreError {
    super::database::corrupt(Table::Users, DecodeError::Text)
}
