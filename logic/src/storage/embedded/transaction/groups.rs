//! What a commit does to groups and to who is in them, whoever asks; the rights are next door, in
//! `group_acts`.

use std::{collections::BTreeSet, ops::RangeInclusive, sync::Arc};

use millrace_protocol::Code;

use super::{Conversation, Source, Stop, Transaction, check_id, check_ids, is_member, refuse};
use crate::storage::{
    Members, Outcome, StoreError, conversation_id,
    embedded::{
        group_rows::GroupRow,
        keys::{self, Table},
        rows::{ConversationRow, MemberRow},
    },
    groups::{QUIT_DISSOLVED, QUIT_REMOVED, Role},
    limits::*,
};

impl<S: Source> Transaction<'_, S> {
    pub(super) fn create_group(
        &mut self,
        group_id: String,
        group: GroupRow,
        members: Vec<String>,
    ) -> Result<Outcome, Stop> {
        let (conversation_id, conversation) = self.found_group(&group_id, group, members)?;
        let members = conversation.members.clone();
        self.put_conversation(&conversation_id, conversation);
        Ok(Outcome::GroupCreated { group_id, conversation_id, members, version: self.version })
    }

    /// Makes a group with its members; the conversation is for the caller to put.
    pub(super) fn found_group(
        &mut self,
        group_id: &str,
        group: GroupRow,
        mut members: Vec<String>,
    ) -> Result<(String, Conversation), Stop> {
        check_id(group_id, GROUP_ID_BYTES_MAX, "group_id is empty or too long.")?;
        check_ids(&members)?;
        members.sort_unstable();
        members.dedup();
        if members.is_empty() {
            return refuse(Code::BadRequest, "A group has at least one member.");
        }
        if group.name.len() > TEXT_BYTES_MAX || group.avatar.len() > TEXT_BYTES_MAX {
            return refuse(Code::BadRequest, "The name or the avatar is too long.");
        }
        if group.members_max > GROUP_MEMBERS_MAX_CEILING {
            return refuse(Code::BadRequest, "members_max is above what any group may have.");
        }
        if members.len() > group.members_max as usize {
            return refuse(Code::OverCapacity, "More members than members_max.");
        }
        let conversation_id = conversation_id::group(group_id);
        // Of a removed group the conversation is still there, and its sequences go on.
        let mut conversation = match self.conversation(&conversation_id)? {
            Some(conversation) if !conversation.row.removed => {
                return refuse(Code::AlreadyExists, "A group with this id exists.");
            }
            Some(conversation) => conversation,
            None => Conversation { row: ConversationRow::default(), members: [].into() },
        };
        self.version += 1;
        conversation.row.removed = false;
        conversation.row.muted = false;
        conversation.members = members.iter().map(|user_id| Arc::from(&user_id[..])).collect();
        conversation.row.by_cursor |= members.len() > self.fan_out_members_max;
        for user_id in &members {
            self.join(group_id, user_id, &conversation_id, &conversation.row, 0);
        }
        self.put(Table::Groups, keys::group(group_id), &group);
        Ok((conversation_id, conversation))
    }

    pub(super) fn remove_group(&mut self, group_id: &str) -> Result<Outcome, Stop> {
        let (group, conversation_id, mut conversation) = self.group(group_id)?;
        self.version += 1;
        let members = self.end_group(group_id, group, &conversation_id, &mut conversation)?;
        self.put_conversation(&conversation_id, conversation);
        Ok(Outcome::GroupRemoved { conversation_id, members, version: self.version })
    }

    /// Lets everybody quit, and returns who that was. The conversation is for the caller to put.
    pub(super) fn end_group(
        &mut self,
        group_id: &str,
        mut group: GroupRow,
        conversation_id: &str,
        conversation: &mut Conversation,
    ) -> Result<Members, StoreError> {
        let members = std::mem::replace(&mut conversation.members, [].into());
        let max_sequence = conversation.row.max_sequence;
        for user_id in members.iter() {
            self.quit(group_id, user_id, conversation_id, max_sequence, QUIT_DISSOLVED)?;
        }
        for user_id in self.waiting_to_join(group_id)? {
            self.changes.remove(Table::Groups, keys::join_request(group_id, &user_id));
        }
        conversation.row.removed = true;
        group.removed = true;
        self.put(Table::Groups, keys::group(group_id), &group);
        Ok(members)
    }

    pub(super) fn add_members(
        &mut self,
        group_id: &str,
        user_ids: Vec<String>,
    ) -> Result<Outcome, Stop> {
        let (group, conversation_id, mut conversation) = self.group(group_id)?;
        let user_ids = not_yet_members(&conversation, user_ids)?;
        check_room(&group, &conversation, user_ids.len())?;
        if !user_ids.is_empty() {
            self.version += 1;
            self.add(group_id, &conversation_id, &mut conversation, &user_ids)?;
            self.put_conversation(&conversation_id, conversation.clone());
        }
        Ok(Outcome::MembersAdded {
            conversation_id,
            added: user_ids.len() as u32,
            members: conversation.members,
            version: self.version,
        })
    }

    /// Makes members of users who are none, sorted and different; the version is moved already. The
    /// conversation is for the caller to put.
    pub(super) fn add(
        &mut self,
        group_id: &str,
        conversation_id: &str,
        conversation: &mut Conversation,
        user_ids: &[String],
    ) -> Result<(), StoreError> {
        let count = conversation.members.len() + user_ids.len();
        if count > self.fan_out_members_max && !conversation.row.by_cursor {
            // Pointers end here: from now on the members look at the conversation itself.
            conversation.row.by_cursor = true;
            for user_id in conversation.members.iter() {
                let mut row = self.member_or_default(user_id, conversation_id)?;
                row.by_cursor = true;
                self.put_member(user_id, conversation_id, row);
            }
        }
        for user_id in user_ids {
            // Who comes back while muted is muted still.
            let earlier = self.member(user_id, conversation_id)?;
            let muted_until_ms = earlier.map_or(0, |row| row.muted_until_ms);
            self.join(group_id, user_id, conversation_id, &conversation.row, muted_until_ms);
            let request = keys::join_request(group_id, user_id);
            if self.is_waiting(&request)? {
                self.changes.remove(Table::Groups, request);
            }
        }
        // Both are sorted, and few come to many.
        let mut members: Vec<Arc<str>> = Vec::with_capacity(count);
        let mut rest = &conversation.members[..];
        for user_id in user_ids {
            let (before, behind) = rest.split_at(rest.partition_point(|id| **id < **user_id));
            members.extend_from_slice(before);
            members.push(Arc::from(&user_id[..]));
            rest = behind;
        }
        members.extend_from_slice(rest);
        conversation.members = members.into();
        Ok(())
    }

    pub(super) fn remove_members(
        &mut self,
        group_id: &str,
        user_ids: Vec<String>,
    ) -> Result<Outcome, Stop> {
        let (mut group, conversation_id, mut conversation) = self.group(group_id)?;
        let user_ids = still_members(&conversation, user_ids)?;
        if !user_ids.is_empty() {
            self.version += 1;
            let id = &conversation_id;
            self.take_out(group_id, &mut group, id, &mut conversation, &user_ids, QUIT_REMOVED)?;
            self.put_conversation(&conversation_id, conversation.clone());
        }
        Ok(Outcome::MembersRemoved {
            conversation_id,
            removed: user_ids.len() as u32,
            members: conversation.members,
            version: self.version,
        })
    }

    /// Ends the membership of members, sorted and different; the version is moved already. The
    /// conversation is for the caller to put.
    pub(super) fn take_out(
        &mut self,
        group_id: &str,
        group: &mut GroupRow,
        conversation_id: &str,
        conversation: &mut Conversation,
        user_ids: &[String],
        reason: u32,
    ) -> Result<(), StoreError> {
        let gone = |user_id: &str| user_ids.binary_search_by(|id| id[..].cmp(user_id)).is_ok();
        for user_id in user_ids {
            let max_sequence = conversation.row.max_sequence;
            self.quit(group_id, user_id, conversation_id, max_sequence, reason)?;
        }
        if gone(&group.owner) || group.administrators.iter().any(|id| gone(id)) {
            group.administrators.retain(|id| !gone(id));
            if gone(&group.owner) {
                group.owner.clear();
            }
            self.put(Table::Groups, keys::group(group_id), group);
        }
        conversation.members =
            conversation.members.iter().filter(|user_id| !gone(user_id)).cloned().collect();
        Ok(())
    }

    /// Whether a member may speak at this moment.
    pub(super) fn may_speak(
        &mut self,
        group_id: &str,
        conversation: &Conversation,
        member: &MemberRow,
        user_id: &str,
        at_ms: i64,
    ) -> Result<(), Stop> {
        if member.muted_until_ms > at_ms {
            return refuse(Code::Muted, "You are muted in this group for a while.");
        }
        if conversation.row.muted && self.role(group_id, user_id)? == Role::Member {
            return refuse(Code::Muted, "Only administrators speak in this group at the moment.");
        }
        Ok(())
    }

    /// The role of somebody who is a member.
    pub(super) fn role(&mut self, group_id: &str, user_id: &str) -> Result<Role, StoreError> {
        let group: Option<GroupRow> = self.get(Table::Groups, &keys::group(group_id))?;
        Ok(group.map_or(Role::Member, |group| group.role(user_id)))
    }

    /// Who has asked to come in, as this commit sees it.
    pub(super) fn waiting_to_join(&self, group_id: &str) -> Result<Vec<String>, StoreError> {
        let before_id = keys::join_requests_prefix(group_id).len();
        let stored = self.tables.waiting_to_join(group_id)?.into_iter().map(String::into_bytes);
        let waiting = self.users_in(stored, keys::join_requests_after(group_id, ""), before_id);
        Ok(waiting.iter().map(|user_id| String::from_utf8_lossy(user_id).into_owned()).collect())
    }

    /// Those who are `stored` at the end of the keys of a range in [`Table::Groups`], as this commit
    /// has changed it.
    fn users_in(
        &self,
        stored: impl IntoIterator<Item = Vec<u8>>,
        range: RangeInclusive<Vec<u8>>,
        before_id: usize,
    ) -> BTreeSet<Vec<u8>> {
        let mut users: BTreeSet<Vec<u8>> = stored.into_iter().collect();
        for (key, change) in self.changes.range(Table::Groups, range) {
            match change {
                Some(_) => users.insert(key[before_id..].to_vec()),
                None => users.remove(&key[before_id..]),
            };
        }
        users
    }

    /// Whether somebody has asked to come in.
    pub(super) fn is_waiting(&self, request: &[u8]) -> Result<bool, StoreError> {
        let row = self
            .get::<crate::storage::embedded::group_rows::JoinRequestRow>(Table::Groups, request)?;
        Ok(row.is_some())
    }

    /// A group that was not removed, with its conversation.
    pub(super) fn group(
        &mut self,
        group_id: &str,
    ) -> Result<(GroupRow, String, Conversation), Stop> {
        check_id(group_id, GROUP_ID_BYTES_MAX, "group_id is empty or too long.")?;
        let conversation_id = conversation_id::group(group_id);
        let conversation = self.living_group(&conversation_id)?;
        match self.get(Table::Groups, &keys::group(group_id))? {
            Some(group) => Ok((group, conversation_id, conversation)),
            None => refuse(Code::NotFound, "There is no such group."),
        }
    }

    pub(super) fn living_group(&mut self, conversation_id: &str) -> Result<Conversation, Stop> {
        match self.conversation(conversation_id)? {
            Some(conversation) if !conversation.row.removed => Ok(conversation),
            _ => refuse(Code::NotFound, "There is no such group."),
        }
    }

    /// Makes somebody a member who sees what comes from now on.
    fn join(
        &mut self,
        group_id: &str,
        user_id: &str,
        conversation_id: &str,
        row: &ConversationRow,
        muted_until_ms: i64,
    ) {
        let member = MemberRow {
            muted_until_ms,
            version: self.version,
            init_sequence: row.max_sequence,
            delivered: row.max_sequence,
            read: row.max_sequence,
            by_cursor: row.by_cursor,
            ..MemberRow::default()
        };
        self.put_member(user_id, conversation_id, member);
        let key = keys::group_member(group_id, user_id);
        self.changes.put(Table::Groups, key, vec![]);
        if row.max_sequence > 0 {
            let key = keys::joined(group_id, row.max_sequence, user_id);
            self.changes.put(Table::Groups, key, vec![]);
        }
    }

    /// The members to whom a message says something: those who were there when it came.
    pub(super) fn members_who_see(
        &self,
        group_id: &str,
        members: &Members,
        sequence: u64,
    ) -> Result<Members, StoreError> {
        let (range, before_id) = keys::joined_since(group_id, sequence);
        let later = self.users_in(self.tables.joined_since(group_id, sequence)?, range, before_id);
        if later.is_empty() {
            return Ok(members.clone());
        }
        Ok(members.iter().filter(|member| !later.contains(member.as_bytes())).cloned().collect())
    }

    /// Ends somebody's membership; what was there until now stays readable.
    fn quit(
        &mut self,
        group_id: &str,
        user_id: &str,
        conversation_id: &str,
        max_sequence: u64,
        reason: u32,
    ) -> Result<(), StoreError> {
        let mut member = self.member_or_default(user_id, conversation_id)?;
        let joined = keys::joined(group_id, member.init_sequence, user_id);
        self.changes.remove(Table::Groups, joined);
        member.version = self.version;
        member.quit_sequence = Some(max_sequence);
        member.quit_reason = reason as u8;
        self.put_member(user_id, conversation_id, member);
        self.changes.remove(Table::Groups, keys::group_member(group_id, user_id));
        Ok(())
    }
}

/// Those of the users who are not members, sorted and different.
pub(super) fn not_yet_members(
    conversation: &Conversation,
    mut user_ids: Vec<String>,
) -> Result<Vec<String>, Stop> {
    check_ids(&user_ids)?;
    user_ids.retain(|user_id| !is_member(&conversation.members, user_id));
    user_ids.sort_unstable();
    user_ids.dedup();
    Ok(user_ids)
}

/// Those of the users who are members, sorted and different.
pub(super) fn still_members(
    conversation: &Conversation,
    mut user_ids: Vec<String>,
) -> Result<Vec<String>, Stop> {
    check_ids(&user_ids)?;
    user_ids.retain(|user_id| is_member(&conversation.members, user_id));
    user_ids.sort_unstable();
    user_ids.dedup();
    Ok(user_ids)
}

/// Whether so many more fit into a group.
pub(super) fn check_room(
    group: &GroupRow,
    conversation: &Conversation,
    more: usize,
) -> Result<(), Stop> {
    if more > 0 && conversation.members.len() + more > group.members_max as usize {
        return refuse(Code::OverCapacity, "More members than members_max.");
    }
    Ok(())
}
