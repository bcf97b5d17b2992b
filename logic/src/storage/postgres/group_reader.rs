//! Questions about groups and their members, in pages whose cost does not grow with the group.

use std::sync::Arc;

use millrace_protocol::chat;
use tokio_postgres::types::Type;

use super::{
    loaded::{number, text},
    pool::{Failure, Session},
};
use crate::storage::{
    Members, StoreError, conversation_id,
    embedded::{
        database::decode,
        group_rows::{GroupRow, JoinRequestRow},
        keys::Table,
        rows::{ConversationRow, MemberRow},
    },
    groups::{JoinRequestPage, MemberPage, ReceiptFilter, ReceiptPage, Role},
    limits::GROUP_MEMBERS_SHOWN_MAX,
};

/// A group that was not removed, and its conversation's row.
async fn living(
    session: &Session,
    group_id: &str,
) -> Result<Option<(GroupRow, ConversationRow)>, Failure> {
    let conversation_id = conversation_id::group(group_id);
    let (group, conversation) = (group_id.as_bytes(), conversation_id.as_bytes());
    let rows = session
        .rows(
            "SELECT g.data, c.data FROM millrace.groups g JOIN millrace.conversations c \
             ON c.conversation_id = $2 WHERE g.group_id = $1",
            &[(&group, Type::BYTEA), (&conversation, Type::BYTEA)],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let group: GroupRow = decode(Table::Groups, row.get(0))?;
    let conversation: ConversationRow = decode(Table::Conversations, row.get(1))?;
    Ok(Some((group, conversation)).filter(|(group, _)| !group.removed))
}

/// See [`Store::group`](crate::storage::Store::group).
pub async fn group(
    session: Arc<Session>,
    group_id: &str,
    members: &Members,
) -> Result<Option<chat::Group>, Failure> {
    let Some((group, row)) = living(&session, group_id).await? else { return Ok(None) };
    Ok(Some(chat::Group {
        group_id: group_id.to_owned(),
        conversation_id: conversation_id::group(group_id),
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
        muted: row.muted,
    }))
}

/// See [`GroupStore::group_members`](crate::storage::groups::GroupStore::group_members).
pub async fn group_members(
    session: Arc<Session>,
    group_id: &str,
    after: &str,
    limit: usize,
    member_count: u32,
) -> Result<Option<MemberPage>, Failure> {
    let Some((group, _)) = living(&session, group_id).await? else { return Ok(None) };
    let conversation_id = conversation_id::group(group_id);
    let (id, after) = (group_id.as_bytes(), after.as_bytes());
    let (conversation, one_more) =
        (conversation_id.as_bytes(), number(limit as u64).saturating_add(1));
    let rows = session
        .rows(
            "SELECT g.user_id, m.data FROM millrace.group_members g LEFT JOIN millrace.members m \
             ON m.user_id = g.user_id AND m.conversation_id = $3 \
             WHERE g.group_id = $1 AND g.user_id > $2 ORDER BY g.user_id LIMIT $4",
            &[
                (&id, Type::BYTEA),
                (&after, Type::BYTEA),
                (&conversation, Type::BYTEA),
                (&one_more, Type::INT8),
            ],
        )
        .await?;
    let complete = rows.len() <= limit;
    let mut members = Vec::with_capacity(limit.min(rows.len()));
    for row in rows.iter().take(limit) {
        let user_id = text(Table::Groups, row.get(0))?;
        let member = member_or_empty(row.get(1))?;
        let role = group.role(&user_id) as u32;
        members.push(chat::GroupMember { user_id, role, muted_until_ms: member.muted_until_ms });
    }
    Ok(Some(MemberPage { members, complete, member_count }))
}

/// See [`GroupStore::join_requests`](crate::storage::groups::GroupStore::join_requests).
pub async fn join_requests(
    session: Arc<Session>,
    group_id: &str,
    after: &str,
    limit: usize,
) -> Result<Option<JoinRequestPage>, Failure> {
    if living(&session, group_id).await?.is_none() {
        return Ok(None);
    }
    let (id, after) = (group_id.as_bytes(), after.as_bytes());
    let one_more = number(limit as u64).saturating_add(1);
    let rows = session
        .rows(
            "SELECT user_id, data FROM millrace.join_requests \
             WHERE group_id = $1 AND user_id > $2 ORDER BY user_id LIMIT $3",
            &[(&id, Type::BYTEA), (&after, Type::BYTEA), (&one_more, Type::INT8)],
        )
        .await?;
    let complete = rows.len() <= limit;
    let mut requests = Vec::with_capacity(limit.min(rows.len()));
    for row in rows.iter().take(limit) {
        let request: JoinRequestRow = decode(Table::Groups, row.get(1))?;
        requests.push(chat::JoinRequest {
            user_id: text(Table::Groups, row.get(0))?,
            message: request.message,
            asked_at_ms: request.asked_at_ms,
            invited_by: request.invited_by,
        });
    }
    Ok(Some(JoinRequestPage { requests, complete }))
}

/// See [`GroupStore::receipts`](crate::storage::groups::GroupStore::receipts).
#[allow(clippy::too_many_arguments)]
pub async fn receipts(
    session: Arc<Session>,
    conversation_id: &str,
    members: &Members,
    sequence: u64,
    filter: ReceiptFilter,
    after: &str,
    limit: usize,
    look_max: usize,
) -> Result<ReceiptPage, Failure> {
    let mut page = ReceiptPage {
        after_user_id: after.to_owned(),
        member_count: members.len() as u32,
        ..ReceiptPage::default()
    };
    let begin = members.partition_point(|id| **id <= *after);
    let end = members.len().min(begin.saturating_add(look_max.max(1)));
    let looked = &members[begin..end];
    let (ids, id): (Vec<&[u8]>, &[u8]) =
        (looked.iter().map(|id| id.as_bytes()).collect(), conversation_id.as_bytes());
    let rows = session
        .rows(
            "SELECT k.n, m.data FROM unnest($1::bytea[]) WITH ORDINALITY AS k(user_id, n) \
             LEFT JOIN millrace.members m \
             ON m.user_id = k.user_id AND m.conversation_id = $2 ORDER BY k.n",
            &[(&ids, Type::BYTEA_ARRAY), (&id, Type::BYTEA)],
        )
        .await?;
    for (user_id, row) in looked.iter().zip(rows) {
        if page.receipts.len() == limit {
            return Ok(page);
        }
        page.after_user_id = user_id.to_string();
        let member = member_or_empty(row.get(1))?;
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
    page.complete = end == members.len();
    Ok(page)
}

/// See [`GroupStore::group_role`](crate::storage::groups::GroupStore::group_role).
pub async fn group_role(
    session: Arc<Session>,
    group_id: &str,
    user_id: &str,
) -> Result<Option<Role>, Failure> {
    let (group, user) = (group_id.as_bytes(), user_id.as_bytes());
    let rows = session
        .rows(
            "SELECT g.data FROM millrace.groups g JOIN millrace.group_members m \
             ON m.group_id = g.group_id AND m.user_id = $2 WHERE g.group_id = $1",
            &[(&group, Type::BYTEA), (&user, Type::BYTEA)],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let group: GroupRow = decode(Table::Groups, row.get(0))?;
    Ok((!group.removed).then(|| group.role(user_id)))
}

/// See [`GroupStore::may_speak`](crate::storage::groups::GroupStore::may_speak).
pub async fn may_speak(
    session: Arc<Session>,
    group_id: &str,
    user_id: &str,
    at_ms: i64,
) -> Result<bool, Failure> {
    let Some((group, row)) = living(&session, group_id).await? else { return Ok(false) };
    let conversation_id = conversation_id::group(group_id);
    let (user, id) = (user_id.as_bytes(), conversation_id.as_bytes());
    let rows = session
        .rows(
            "SELECT data FROM millrace.members WHERE user_id = $1 AND conversation_id = $2",
            &[(&user, Type::BYTEA), (&id, Type::BYTEA)],
        )
        .await?;
    let member = member_or_empty(rows.first().map(|row| row.get(0)))?;
    if member.muted_until_ms > at_ms {
        return Ok(false);
    }
    Ok(!row.muted || group.role(user_id) >= Role::Administrator)
}

/// The row of a member; of one who has just gone, an empty one.
fn member_or_empty(data: Option<&[u8]>) -> Result<MemberRow, StoreError> {
    data.map_or_else(|| Ok(MemberRow::default()), |data| decode(Table::Users, data))
}
