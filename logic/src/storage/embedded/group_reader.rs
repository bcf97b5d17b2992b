//! Questions about groups and their members, in pages whose cost does not grow with the group.

use millrace_protocol::chat;

use super::{
    database::{Tables, View},
    encoding::DecodeError,
    group_rows::{GroupRow, JoinRequestRow, MarkRow},
    keys::{self, Table, UserRow},
    rows::{ConversationRow, MemberRow, Row},
};
use crate::storage::{
    Members, StoreError, conversation_id,
    groups::{JoinRequestPage, MemberPage, ReceiptFilter, ReceiptPage, Role},
    limits::{GROUP_ID_BYTES_MAX, GROUP_MEMBERS_SHOWN_MAX, USER_ID_BYTES_MAX},
};

/// A group that was not removed.
fn living(view: &View<'_>, group_id: &str) -> Result<Option<GroupRow>, StoreError> {
    if !(1..=GROUP_ID_BYTES_MAX).contains(&group_id.len()) {
        return Ok(None);
    }
    let group: Option<GroupRow> = view.get(Table::Groups, &keys::group(group_id))?;
    Ok(group.filter(|group| !group.removed))
}

/// See [`Store::group`](crate::storage::Store::group).
pub fn group(
    tables: &Tables,
    group_id: &str,
    members: &Members,
) -> Result<Option<chat::Group>, StoreError> {
    let view = tables.view();
    let Some(group) = living(&view, group_id)? else { return Ok(None) };
    let conversation_id = conversation_id::group(group_id);
    let row: Option<ConversationRow> =
        view.get(Table::Conversations, &keys::conversation(&conversation_id))?;
    Ok(Some(chat::Group {
        group_id: group_id.to_owned(),
        conversation_id,
        name: group.name,
        avatar: group.avatar,
        members: members.iter().take(GROUP_MEMBERS_SHOWN_MAX).map(|id| id.to_string()).collect(),
        members_max: group.members_max,
        created_at_ms: group.created_at_ms,
        member_count: members.len() as u32,
        owner_id: group.owner,
        administrators: group.administrators,
        join_rule: group.join_rule,
        invite_rule: group.invite_rule,
        announcement: group.announcement,
        announced_at_ms: group.announced_at_ms,
        announced_by: group.announced_by,
        muted: row.is_some_and(|row| row.muted),
    }))
}

/// See [`GroupStore::group_members`](crate::storage::groups::GroupStore::group_members).
pub fn group_members(
    tables: &Tables,
    group_id: &str,
    after: &str,
    limit: usize,
    member_count: u32,
) -> Result<Option<MemberPage>, StoreError> {
    let view = tables.view();
    let Some(group) = living(&view, group_id)? else { return Ok(None) };
    let conversation_id = conversation_id::group(group_id);
    let prefix_bytes = keys::group_members_prefix(group_id).len();
    let range = keys::group_members_after(group_id, after);
    let (marks, complete) = rows_of::<MarkRow>(&view, range, prefix_bytes, limit)?;
    let members = marks
        .into_iter()
        .map(|(user_id, _)| {
            let member = member_of(&view, &user_id, &conversation_id)?;
            let role = group.role(&user_id) as u32;
            Ok(chat::GroupMember { user_id, role, muted_until_ms: member.muted_until_ms })
        })
        .collect::<Result<_, StoreError>>()?;
    Ok(Some(MemberPage { members, complete, member_count }))
}

/// See [`GroupStore::join_requests`](crate::storage::groups::GroupStore::join_requests).
pub fn join_requests(
    tables: &Tables,
    group_id: &str,
    after: &str,
    limit: usize,
) -> Result<Option<JoinRequestPage>, StoreError> {
    let view = tables.view();
    if living(&view, group_id)?.is_none() {
        return Ok(None);
    }
    let prefix_bytes = keys::join_requests_prefix(group_id).len();
    let range = keys::join_requests_after(group_id, after);
    let (found, complete) = rows_of::<JoinRequestRow>(&view, range, prefix_bytes, limit)?;
    let requests = found
        .into_iter()
        .map(|(user_id, row)| chat::JoinRequest {
            user_id,
            message: row.message,
            asked_at_ms: row.asked_at_ms,
            invited_by: row.invited_by,
        })
        .collect();
    Ok(Some(JoinRequestPage { requests, complete }))
}

/// See [`GroupStore::receipts`](crate::storage::groups::GroupStore::receipts).
#[allow(clippy::too_many_arguments)]
pub fn receipts(
    tables: &Tables,
    conversation_id: &str,
    members: &Members,
    sequence: u64,
    filter: ReceiptFilter,
    after: &str,
    limit: usize,
    look_max: usize,
) -> Result<ReceiptPage, StoreError> {
    let view = tables.view();
    let mut page = ReceiptPage {
        after_user_id: after.to_owned(),
        member_count: members.len() as u32,
        ..ReceiptPage::default()
    };
    let begin = members.partition_point(|id| **id <= *after);
    // Every group and single chat has members in byte order.
    let mut rest = members[begin..].iter();
    for user_id in rest.by_ref().take(look_max.max(1)) {
        if page.receipts.len() == limit {
            return Ok(page);
        }
        page.after_user_id = user_id.to_string();
        let member = member_of(&view, user_id, conversation_id)?;
        let wanted = match filter {
            ReceiptFilter::Everybody => true,
            ReceiptFilter::Read => member.read >= sequence,
            ReceiptFilter::Unread => member.read < sequence,
        };
        if wanted {
            page.receipts.push(chat::MemberReceipt {
                user_id: user_id.to_string(),
                delivered_sequence: member.delivered,
                read_sequence: member.read,
            });
        }
    }
    page.complete = rest.next().is_none();
    Ok(page)
}

/// See [`GroupStore::group_role`](crate::storage::groups::GroupStore::group_role).
pub fn group_role(
    tables: &Tables,
    group_id: &str,
    user_id: &str,
) -> Result<Option<Role>, StoreError> {
    if !(1..=USER_ID_BYTES_MAX).contains(&user_id.len()) {
        return Ok(None);
    }
    let view = tables.view();
    let Some(group) = living(&view, group_id)? else { return Ok(None) };
    let mark: Option<MarkRow> = view.get(Table::Groups, &keys::group_member(group_id, user_id))?;
    Ok(mark.map(|_| group.role(user_id)))
}

/// See [`GroupStore::may_speak`](crate::storage::groups::GroupStore::may_speak).
pub fn may_speak(
    tables: &Tables,
    group_id: &str,
    user_id: &str,
    at_ms: i64,
) -> Result<bool, StoreError> {
    let view = tables.view();
    let Some(group) = living(&view, group_id)? else { return Ok(false) };
    let conversation_id = conversation_id::group(group_id);
    if member_of(&view, user_id, &conversation_id)?.muted_until_ms > at_ms {
        return Ok(false);
    }
    let row: Option<ConversationRow> =
        view.get(Table::Conversations, &keys::conversation(&conversation_id))?;
    Ok(!row.is_some_and(|row| row.muted) || group.role(user_id) >= Role::Administrator)
}

/// The row of a member; of one who has just gone, an empty one.
fn member_of(
    view: &View<'_>,
    user_id: &str,
    conversation_id: &str,
) -> Result<MemberRow, StoreError> {
    let key = keys::user(user_id, conversation_id, UserRow::Member);
    Ok(view.get(Table::Users, &key)?.unwrap_or_default())
}

/// Rows with the user ids that end their keys, at most `limit`, and whether these are all.
fn rows_of<R: Row>(
    view: &View<'_>,
    range: std::ops::RangeInclusive<Vec<u8>>,
    prefix_bytes: usize,
    limit: usize,
) -> Result<(Vec<(String, R)>, bool), StoreError> {
    let mut rows = vec![];
    let (mut complete, mut damaged) = (true, false);
    view.range(Table::Groups, range, false, |key, row: R| {
        complete = rows.len() < limit;
        if complete {
            match std::str::from_utf8(&key[prefix_bytes..]) {
                Ok(user_id) => rows.push((user_id.to_owned(), row)),
                Err(_) => damaged = true,
            }
        }
        complete && !damaged
    })?;
    match damaged {
        true => Err(super::database::corrupt(Table::Groups, DecodeError::Text)),
        false => Ok((rows, complete)),
    }
}
