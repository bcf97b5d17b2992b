//! What a commit does to groups and to who is in them.

use std::sync::Arc;

use millrace_protocol::Code;

use super::{Conversation, Stop, Transaction, check_id, check_ids, is_member, refuse};
use crate::storage::{
    Outcome, StoreError, conversation_id,
    embedded::{
        keys::{self, Table},
        rows::{ConversationRow, GroupRow, MemberRow},
    },
    limits::*,
};

impl Transaction<'_> {
    pub(super) fn create_group(
        &mut self,
        group_id: String,
        group: GroupRow,
        mut members: Vec<String>,
    ) -> Result<Outcome, Stop> {
        check_id(&group_id, GROUP_ID_BYTES_MAX, "group_id is empty or too long")?;
        check_ids(&members)?;
        members.sort_unstable();
        members.dedup();
        if members.is_empty() {
            return refuse(Code::BadRequest, "a group has at least one member");
        }
        if group.name.len() > TEXT_BYTES_MAX || group.avatar.len() > TEXT_BYTES_MAX {
            return refuse(Code::BadRequest, "the name or the avatar is too long");
        }
        if group.members_max > GROUP_MEMBERS_MAX_CEILING {
            return refuse(Code::BadRequest, "members_max is above what any group may have");
        }
        if members.len() > group.members_max as usize {
            return refuse(Code::OverCapacity, "more members than members_max");
        }
        let conversation_id = conversation_id::group(&group_id);
        // Of a removed group the conversation is still there, and its sequences go on.
        let mut conversation = match self.conversation(&conversation_id)? {
            Some(conversation) if !conversation.row.removed => {
                return refuse(Code::AlreadyExists, "a group with this id exists");
            }
            Some(conversation) => conversation,
            None => Conversation { row: ConversationRow::default(), members: [].into() },
        };
        self.version += 1;
        conversation.row.removed = false;
        conversation.members = members.iter().map(|user_id| Arc::from(&user_id[..])).collect();
        conversation.row.by_cursor |= members.len() > self.fan_out_members_max;
        for user_id in &members {
            self.join(&group_id, user_id, &conversation_id, &conversation.row);
        }
        self.put(Table::Groups, keys::group(&group_id), &group);
        let members = conversation.members.clone();
        self.put_conversation(&conversation_id, conversation);
        Ok(Outcome::GroupCreated { group_id, conversation_id, members, version: self.version })
    }

    pub(super) fn remove_group(&mut self, group_id: &str) -> Result<Outcome, Stop> {
        let (mut group, conversation_id, mut conversation) = self.group(group_id)?;
        self.version += 1;
        let members = std::mem::replace(&mut conversation.members, [].into());
        for user_id in members.iter() {
            self.quit(group_id, user_id, &conversation_id, conversation.row.max_sequence)?;
        }
        conversation.row.removed = true;
        group.removed = true;
        self.put(Table::Groups, keys::group(group_id), &group);
        self.put_conversation(&conversation_id, conversation);
        Ok(Outcome::GroupRemoved { conversation_id, members, version: self.version })
    }

    pub(super) fn add_members(
        &mut self,
        group_id: &str,
        mut user_ids: Vec<String>,
    ) -> Result<Outcome, Stop> {
        let (group, conversation_id, mut conversation) = self.group(group_id)?;
        check_ids(&user_ids)?;
        user_ids.retain(|user_id| !is_member(&conversation.members, user_id));
        user_ids.sort_unstable();
        user_ids.dedup();
        let count = conversation.members.len() + user_ids.len();
        if !user_ids.is_empty() && count > group.members_max as usize {
            return refuse(Code::OverCapacity, "more members than members_max");
        }
        if !user_ids.is_empty() {
            self.version += 1;
            if count > self.fan_out_members_max && !conversation.row.by_cursor {
                // Pointers end here: from now on the members look at the conversation itself.
                conversation.row.by_cursor = true;
                for user_id in conversation.members.iter() {
                    let mut row = self.member_or_default(user_id, &conversation_id)?;
                    row.by_cursor = true;
                    self.put_member(user_id, &conversation_id, row);
                }
            }
            for user_id in &user_ids {
                self.join(group_id, user_id, &conversation_id, &conversation.row);
            }
            let added = user_ids.iter().map(|user_id| Arc::from(&user_id[..]));
            let mut members: Vec<Arc<str>> =
                conversation.members.iter().cloned().chain(added).collect();
            members.sort_unstable();
            conversation.members = members.into();
            self.put_conversation(&conversation_id, conversation.clone());
        }
        Ok(Outcome::MembersAdded {
            conversation_id,
            added: user_ids.len() as u32,
            members: conversation.members,
            version: self.version,
        })
    }

    pub(super) fn remove_members(
        &mut self,
        group_id: &str,
        mut user_ids: Vec<String>,
    ) -> Result<Outcome, Stop> {
        let (_, conversation_id, mut conversation) = self.group(group_id)?;
        check_ids(&user_ids)?;
        user_ids.retain(|user_id| is_member(&conversation.members, user_id));
        user_ids.sort_unstable();
        user_ids.dedup();
        if !user_ids.is_empty() {
            self.version += 1;
            for user_id in &user_ids {
                self.quit(group_id, user_id, &conversation_id, conversation.row.max_sequence)?;
            }
            let gone = |user_id: &Arc<str>| {
                user_ids.binary_search_by(|other| other[..].cmp(user_id)).is_ok()
            };
            conversation.members =
                conversation.members.iter().filter(|user_id| !gone(user_id)).cloned().collect();
            self.put_conversation(&conversation_id, conversation.clone());
        }
        Ok(Outcome::MembersRemoved {
            conversation_id,
            removed: user_ids.len() as u32,
            members: conversation.members,
            version: self.version,
        })
    }

    /// A group that was not removed, with its conversation.
    fn group(&mut self, group_id: &str) -> Result<(GroupRow, String, Conversation), Stop> {
        check_id(group_id, GROUP_ID_BYTES_MAX, "group_id is empty or too long")?;
        let conversation_id = conversation_id::group(group_id);
        let conversation = self.living_group(&conversation_id)?;
        match self.get(Table::Groups, &keys::group(group_id))? {
            Some(group) => Ok((group, conversation_id, conversation)),
            None => refuse(Code::NotFound, "there is no such group"),
        }
    }

    pub(super) fn living_group(&mut self, conversation_id: &str) -> Result<Conversation, Stop> {
        match self.conversation(conversation_id)? {
            Some(conversation) if !conversation.row.removed => Ok(conversation),
            _ => refuse(Code::NotFound, "there is no such group"),
        }
    }

    /// Makes somebody a member who sees what comes from now on.
    fn join(
        &mut self,
        group_id: &str,
        user_id: &str,
        conversation_id: &str,
        row: &ConversationRow,
    ) {
        let member = MemberRow {
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
    }

    /// Ends somebody's membership; what was there until now stays readable.
    fn quit(
        &mut self,
        group_id: &str,
        user_id: &str,
        conversation_id: &str,
        max_sequence: u64,
    ) -> Result<(), StoreError> {
        let mut member = self.member_or_default(user_id, conversation_id)?;
        member.version = self.version;
        member.quit_sequence = Some(max_sequence);
        self.put_member(user_id, conversation_id, member);
        self.changes.remove(Table::Groups, keys::group_member(group_id, user_id));
        Ok(())
    }
}
