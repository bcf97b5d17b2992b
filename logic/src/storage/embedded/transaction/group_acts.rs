//! Acts on groups, and who may do what. What the members are told of it is beside this.
//!
//! Every check comes before the first change, as everywhere in a transaction. An act that changes
//! nothing (muting who is muted so already, say) succeeds and tells nobody.

use std::collections::BTreeSet;

use millrace_protocol::{Code, chat};
use uuid::Uuid;

use super::{
    Conversation, Source, Stop, Transaction, check_id, check_ids,
    group_notices::about,
    groups::{check_room, not_yet_members, still_members},
    is_member, refuse,
};
use crate::storage::{
    Outcome,
    embedded::{
        group_rows::{GroupRow, JoinRequestRow},
        keys::{self, Table},
    },
    groups::*,
    limits::*,
};

const ROLE_TOO_LOW: &str = "Your role in this group does not allow this.";

/// What somebody may do: a member's role, or everything. In this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Power {
    Of(Role),
    System,
}

/// A group that is acted on.
pub(super) struct Scene {
    group_id: String,
    group: GroupRow,
    pub(super) conversation_id: String,
    pub(super) conversation: Conversation,
    pub(super) actor: Option<String>,
    pub(super) at_ms: i64,
    pub(super) notice_id: Uuid,
}

impl Scene {
    /// What the actor may do; a refusal for somebody who is not a member.
    fn power(&self) -> Result<Power, Stop> {
        match &self.actor {
            None => Ok(Power::System),
            Some(actor) if is_member(&self.conversation.members, actor) => {
                Ok(Power::Of(self.group.role(actor)))
            }
            Some(_) => refuse(Code::NotPermitted, "Only members of the group may do this."),
        }
    }

    /// A refusal for a lower role.
    fn at_least(&self, role: Role) -> Result<Power, Stop> {
        let power = self.power()?;
        if power >= Power::Of(role) { Ok(power) } else { refuse(Code::RoleTooLow, ROLE_TOO_LOW) }
    }

    /// A refusal unless the actor is above all of these members.
    fn above(&self, user_ids: &[String]) -> Result<(), Stop> {
        let power = self.at_least(Role::Administrator)?;
        match user_ids.iter().all(|user_id| power > Power::Of(self.group.role(user_id))) {
            true => Ok(()),
            false => refuse(Code::RoleTooLow, "This needs a higher role than theirs."),
        }
    }

    /// The actor of an act that one does for oneself.
    fn self_(&self) -> Result<String, Stop> {
        match &self.actor {
            Some(actor) => Ok(actor.clone()),
            None => refuse(Code::BadRequest, "This act needs a user who does it."),
        }
    }
}

/// What an act did, before it is told.
struct Done {
    /// How many members or settings.
    changed: u32,
    waiting: u32,
    told: Option<Told>,
    asked: Vec<String>,
    turned_away: Vec<String>,
}

impl Done {
    fn nothing() -> Self {
        Self { changed: 0, waiting: 0, told: None, asked: vec![], turned_away: vec![] }
    }

    fn told(changed: usize, told: Told) -> Self {
        Self { changed: changed as u32, told: Some(told), ..Self::nothing() }
    }
}

impl<S: Source> Transaction<'_, S> {
    pub(super) fn change_group(&mut self, change: GroupChange) -> Result<Outcome, Stop> {
        let GroupChange { group_id, actor, at_ms, notice_id, act } = change;
        if let Some(actor) = &actor {
            check_id(actor, USER_ID_BYTES_MAX, "The acting user's id is empty or too long.")?;
        }
        let before = self.version;
        let (scene, done) = match act {
            GroupAct::Create { name, avatar, members, members_max, join_rule, invite_rule } => {
                let group = GroupRow {
                    name,
                    avatar,
                    members_max,
                    created_at_ms: at_ms,
                    join_rule,
                    invite_rule,
                    ..GroupRow::default()
                };
                self.act_create(group_id, group, members, actor, at_ms, notice_id)?
            }
            act => {
                let (group, conversation_id, conversation) = self.group(&group_id)?;
                let mut scene = Scene {
                    group_id,
                    group,
                    conversation_id,
                    conversation,
                    actor,
                    at_ms,
                    notice_id,
                };
                let done = self.act(&mut scene, act)?;
                (scene, done)
            }
        };
        let Scene { group_id, conversation_id, conversation, .. } = scene;
        // Of a group without members nobody is changed when it is dissolved.
        if done.changed > 0 || self.version > before {
            self.put_conversation(&conversation_id, conversation);
        }
        let Done { changed, waiting, told, asked, turned_away } = done;
        Ok(Outcome::GroupChanged(Box::new(GroupChanged {
            group_id,
            conversation_id,
            changed,
            waiting,
            version: self.version,
            told,
            asked,
            turned_away,
        })))
    }

    fn act(&mut self, scene: &mut Scene, act: GroupAct) -> Result<Done, Stop> {
        match act {
            GroupAct::Create { .. } => refuse(Code::Internal, "A group is not created twice."),
            GroupAct::Update { name, avatar, members_max, join_rule, invite_rule } => {
                self.act_update(scene, name, avatar, members_max, join_rule, invite_rule)
            }
            GroupAct::Announce { text } => self.act_announce(scene, text),
            GroupAct::Join { message } => self.act_join(scene, message),
            GroupAct::AnswerJoinRequest { user_id, accept } => {
                self.act_answer(scene, user_id, accept)
            }
            GroupAct::Invite { user_ids } => self.act_invite(scene, user_ids),
            GroupAct::Leave => self.act_leave(scene),
            GroupAct::Remove { user_ids } => self.act_remove(scene, user_ids),
            GroupAct::SetRole { user_id, role } => self.act_set_role(scene, user_id, role),
            GroupAct::Transfer { user_id } => self.act_transfer(scene, user_id),
            GroupAct::MuteMembers { user_ids, until_ms } => {
                self.act_mute_members(scene, user_ids, until_ms)
            }
            GroupAct::MuteGroup { muted } => self.act_mute_group(scene, muted),
            GroupAct::Dissolve => {
                scene.at_least(Role::Owner)?;
                self.version += 1;
                self.dissolve(scene)
            }
        }
    }

    fn act_create(
        &mut self,
        group_id: String,
        mut group: GroupRow,
        mut members: Vec<String>,
        actor: Option<String>,
        at_ms: i64,
        notice_id: Uuid,
    ) -> Result<(Scene, Done), Stop> {
        check_rules(Some(group.join_rule), Some(group.invite_rule))?;
        if group.members_max == 0 {
            group.members_max = GROUP_MEMBERS_MAX_DEFAULT;
        }
        if let Some(actor) = &actor {
            group.owner.clone_from(actor);
            members.push(actor.clone());
        }
        let (conversation_id, conversation) =
            self.found_group(&group_id, group.clone(), members)?;
        let members = conversation.members.clone();
        let user_ids: Vec<String> = members.iter().map(|id| id.to_string()).collect();
        let mut scene =
            Scene { group_id, group, conversation_id, conversation, actor, at_ms, notice_id };
        let told = self.tell(&mut scene, about("created", &user_ids), members)?;
        Ok((scene, Done::told(user_ids.len(), told)))
    }

    fn act_update(
        &mut self,
        scene: &mut Scene,
        name: Option<String>,
        avatar: Option<String>,
        members_max: Option<u32>,
        join_rule: Option<u32>,
        invite_rule: Option<u32>,
    ) -> Result<Done, Stop> {
        let rules = members_max.is_some() || join_rule.is_some() || invite_rule.is_some();
        scene.at_least(if rules { Role::Owner } else { Role::Administrator })?;
        check_rules(join_rule, invite_rule)?;
        if [&name, &avatar].into_iter().flatten().any(|text| text.len() > TEXT_BYTES_MAX) {
            return refuse(Code::BadRequest, "The name or the avatar is too long.");
        }
        if members_max.is_some_and(|max| !(1..=GROUP_MEMBERS_MAX_CEILING).contains(&max)) {
            return refuse(Code::BadRequest, "members_max is 0 or above what any group may have.");
        }
        if members_max.is_some_and(|max| scene.conversation.members.len() > max as usize) {
            return refuse(Code::OverCapacity, "The group has more members than that.");
        }
        let mut event = about("updated", &[]);
        let group = &mut scene.group;
        let mut changed = 0;
        let texts = [
            (name, &mut group.name, &mut event.name),
            (avatar, &mut group.avatar, &mut event.avatar),
        ];
        for (new, old, told) in texts {
            if let Some(new) = new.filter(|new| new != old) {
                old.clone_from(&new);
                *told = Some(new);
                changed += 1;
            }
        }
        let numbers = [
            (members_max, &mut group.members_max, &mut event.members_max),
            (join_rule, &mut group.join_rule, &mut event.join_rule),
            (invite_rule, &mut group.invite_rule, &mut event.invite_rule),
        ];
        for (new, old, told) in numbers {
            if let Some(new) = new.filter(|new| new != old) {
                *old = new;
                *told = Some(new);
                changed += 1;
            }
        }
        if changed == 0 {
            return Ok(Done::nothing());
        }
        self.version += 1;
        self.put_group(scene);
        let told = self.tell_members(scene, event)?;
        Ok(Done::told(changed, told))
    }

    fn act_announce(&mut self, scene: &mut Scene, text: String) -> Result<Done, Stop> {
        scene.at_least(Role::Administrator)?;
        if text.len() > ANNOUNCEMENT_BYTES_MAX {
            return refuse(Code::BadRequest, "The announcement is too long.");
        }
        if scene.group.announcement == text {
            return Ok(Done::nothing());
        }
        self.version += 1;
        scene.group.announcement.clone_from(&text);
        scene.group.announced_at_ms = scene.at_ms;
        scene.group.announced_by = scene.actor.clone().unwrap_or_default();
        self.put_group(scene);
        let event = chat::GroupEvent { announcement: Some(text), ..about("announced", &[]) };
        let told = self.tell_members(scene, event)?;
        Ok(Done::told(1, told))
    }

    // --- coming -----------------------------------------------------------------------------------

    fn act_join(&mut self, scene: &mut Scene, message: String) -> Result<Done, Stop> {
        let actor = scene.self_()?;
        if message.len() > JOIN_MESSAGE_BYTES_MAX {
            return refuse(Code::BadRequest, "The message is too long.");
        }
        if is_member(&scene.conversation.members, &actor) {
            return Ok(Done::nothing());
        }
        match scene.group.join_rule {
            JOIN_OPEN => self.bring_in(scene, "joined", vec![actor]),
            JOIN_BY_APPROVAL => self.ask(scene, vec![actor], message, String::new()),
            _ => refuse(Code::NotPermitted, "Members of this group are invited."),
        }
    }

    fn act_invite(&mut self, scene: &mut Scene, user_ids: Vec<String>) -> Result<Done, Stop> {
        let least = match scene.group.invite_rule {
            INVITE_BY_MEMBERS => Role::Member,
            _ => Role::Administrator,
        };
        let power = scene.at_least(least)?;
        let user_ids = not_yet_members(&scene.conversation, user_ids)?;
        if scene.group.join_rule == JOIN_BY_APPROVAL && power < Power::Of(Role::Administrator) {
            let invited_by = scene.actor.clone().unwrap_or_default();
            return self.ask(scene, user_ids, String::new(), invited_by);
        }
        self.bring_in(scene, "added", user_ids)
    }

    fn act_answer(
        &mut self,
        scene: &mut Scene,
        user_id: String,
        accept: bool,
    ) -> Result<Done, Stop> {
        scene.at_least(Role::Administrator)?;
        check_id(&user_id, USER_ID_BYTES_MAX, "user_id is empty or too long.")?;
        let request = keys::join_request(&scene.group_id, &user_id);
        if !self.is_waiting(&request)? {
            return refuse(Code::NotFound, "This user has not asked to join.");
        }
        if accept {
            return self.bring_in(scene, "added", vec![user_id]);
        }
        self.version += 1;
        self.changes.remove(Table::Groups, request);
        Ok(Done { changed: 1, turned_away: vec![user_id], ..Done::nothing() })
    }

    /// Makes members of those who are none, if there is room.
    fn bring_in(
        &mut self,
        scene: &mut Scene,
        event: &str,
        user_ids: Vec<String>,
    ) -> Result<Done, Stop> {
        check_room(&scene.group, &scene.conversation, user_ids.len())?;
        if user_ids.is_empty() {
            return Ok(Done::nothing());
        }
        self.version += 1;
        let Scene { group_id, conversation_id, conversation, .. } = scene;
        self.add(group_id, conversation_id, conversation, &user_ids)?;
        let told = self.tell_members(scene, about(event, &user_ids))?;
        Ok(Done::told(user_ids.len(), told))
    }

    /// Lets an administrator decide.
    fn ask(
        &mut self,
        scene: &Scene,
        mut user_ids: Vec<String>,
        message: String,
        invited_by: String,
    ) -> Result<Done, Stop> {
        let waiting: BTreeSet<String> =
            self.waiting_to_join(&scene.group_id)?.into_iter().collect();
        user_ids.retain(|user_id| !waiting.contains(user_id));
        if waiting.len() + user_ids.len() > GROUP_JOIN_REQUESTS_MAX {
            return refuse(Code::OverCapacity, "Too many wait to be let into this group.");
        }
        let count = user_ids.len() as u32;
        if count > 0 {
            self.version += 1;
        }
        let row = JoinRequestRow { asked_at_ms: scene.at_ms, message, invited_by };
        for user_id in user_ids {
            self.put(Table::Groups, keys::join_request(&scene.group_id, &user_id), &row);
        }
        let owner = Some(&scene.group.owner).filter(|owner| !owner.is_empty());
        let asked = match count {
            0 => vec![],
            _ => owner.into_iter().chain(&scene.group.administrators).cloned().collect(),
        };
        Ok(Done { waiting: count, asked, ..Done::nothing() })
    }

    // --- going ------------------------------------------------------------------------------------

    fn act_leave(&mut self, scene: &mut Scene) -> Result<Done, Stop> {
        let actor = scene.self_()?;
        scene.power()?;
        if scene.conversation.members.len() == 1 {
            self.version += 1;
            return self.dissolve(scene);
        }
        if scene.group.owner == actor {
            return refuse(Code::BadRequest, "The owner hands the group over or dissolves it.");
        }
        self.version += 1;
        self.send_away(scene, "left", vec![actor], QUIT_LEFT)
    }

    fn act_remove(&mut self, scene: &mut Scene, user_ids: Vec<String>) -> Result<Done, Stop> {
        let user_ids = still_members(&scene.conversation, user_ids)?;
        scene.above(&user_ids)?;
        if user_ids.is_empty() {
            return Ok(Done::nothing());
        }
        if user_ids.len() == scene.conversation.members.len() {
            return refuse(Code::BadRequest, "A group without members is dissolved instead.");
        }
        self.version += 1;
        self.send_away(scene, "removed", user_ids, QUIT_REMOVED)
    }

    /// Tells it first, so that those who go hear why.
    fn send_away(
        &mut self,
        scene: &mut Scene,
        event: &str,
        user_ids: Vec<String>,
        reason: u32,
    ) -> Result<Done, Stop> {
        let told = self.tell_members(scene, about(event, &user_ids))?;
        let Scene { group_id, group, conversation_id, conversation, .. } = scene;
        self.take_out(group_id, group, conversation_id, conversation, &user_ids, reason)?;
        Ok(Done::told(user_ids.len(), told))
    }

    fn dissolve(&mut self, scene: &mut Scene) -> Result<Done, Stop> {
        let told = self.tell_members(scene, about("dissolved", &[]))?;
        let Scene { group_id, group, conversation_id, conversation, .. } = scene;
        let members = self.end_group(group_id, group.clone(), conversation_id, conversation)?;
        Ok(Done::told(members.len(), told))
    }

    // --- roles and muting -------------------------------------------------------------------------

    fn act_set_role(
        &mut self,
        scene: &mut Scene,
        user_id: String,
        role: Role,
    ) -> Result<Done, Stop> {
        scene.at_least(Role::Owner)?;
        check_member(scene, &user_id)?;
        let group = &mut scene.group;
        if group.owner == user_id || role == Role::Owner {
            return refuse(Code::BadRequest, "The owner is changed by handing the group over.");
        }
        if group.role(&user_id) == role {
            return Ok(Done::nothing());
        }
        match role {
            Role::Administrator if group.administrators.len() >= GROUP_ADMINISTRATORS_MAX => {
                return refuse(
                    Code::OverCapacity,
                    "The group has as many administrators as it may.",
                );
            }
            Role::Administrator => {
                group.administrators.push(user_id.clone());
                group.administrators.sort_unstable();
            }
            _ => group.administrators.retain(|id| *id != user_id),
        }
        self.version += 1;
        self.put_group(scene);
        let event = chat::GroupEvent { role: Some(role as u32), ..about("role", &[user_id]) };
        let told = self.tell_members(scene, event)?;
        Ok(Done::told(1, told))
    }

    fn act_transfer(&mut self, scene: &mut Scene, user_id: String) -> Result<Done, Stop> {
        scene.at_least(Role::Owner)?;
        check_member(scene, &user_id)?;
        if scene.group.owner == user_id {
            return Ok(Done::nothing());
        }
        self.version += 1;
        scene.group.owner.clone_from(&user_id);
        scene.group.administrators.retain(|id| *id != user_id);
        self.put_group(scene);
        let told = self.tell_members(scene, about("transferred", &[user_id]))?;
        Ok(Done::told(1, told))
    }

    fn act_mute_members(
        &mut self,
        scene: &mut Scene,
        user_ids: Vec<String>,
        until_ms: i64,
    ) -> Result<Done, Stop> {
        if until_ms < 0 {
            return refuse(Code::BadRequest, "until_ms is below 0.");
        }
        check_ids(&user_ids)?;
        let user_ids = still_members(&scene.conversation, user_ids)?;
        scene.above(&user_ids)?;
        // A time that is over says the same as none.
        let until_ms = if until_ms > scene.at_ms { until_ms } else { 0 };
        let mut changed = vec![];
        for user_id in user_ids {
            let row = self.member_or_default(&user_id, &scene.conversation_id)?;
            if row.muted_until_ms.max(scene.at_ms) != until_ms.max(scene.at_ms) {
                changed.push((user_id, row));
            }
        }
        if changed.is_empty() {
            return Ok(Done::nothing());
        }
        self.version += 1;
        let mut user_ids = Vec::with_capacity(changed.len());
        for (user_id, mut row) in changed {
            row.muted_until_ms = until_ms;
            self.put_member(&user_id, &scene.conversation_id, row);
            user_ids.push(user_id);
        }
        let event = chat::GroupEvent { until_ms: Some(until_ms), ..about("muted", &user_ids) };
        let told = self.tell_members(scene, event)?;
        Ok(Done::told(user_ids.len(), told))
    }

    fn act_mute_group(&mut self, scene: &mut Scene, muted: bool) -> Result<Done, Stop> {
        scene.at_least(Role::Administrator)?;
        if scene.conversation.row.muted == muted {
            return Ok(Done::nothing());
        }
        self.version += 1;
        scene.conversation.row.muted = muted;
        let event = chat::GroupEvent { muted: Some(muted), ..about("group_muted", &[]) };
        let told = self.tell_members(scene, event)?;
        Ok(Done::told(1, told))
    }

    fn put_group(&mut self, scene: &Scene) {
        self.put(Table::Groups, keys::group(&scene.group_id), &scene.group);
    }
}

fn check_member(scene: &Scene, user_id: &str) -> Result<(), Stop> {
    check_id(user_id, USER_ID_BYTES_MAX, "user_id is empty or too long.")?;
    match is_member(&scene.conversation.members, user_id) {
        true => Ok(()),
        false => refuse(Code::NotFound, "This user is not a member of the group."),
    }
}

fn check_rules(join_rule: Option<u32>, invite_rule: Option<u32>) -> Result<(), Stop> {
    if join_rule.is_some_and(|rule| rule > JOIN_BY_APPROVAL) {
        return refuse(Code::BadRequest, "This join_rule is unknown.");
    }
    if invite_rule.is_some_and(|rule| rule > INVITE_BY_ADMINISTRATORS) {
        return refuse(Code::BadRequest, "This invite_rule is unknown.");
    }
    Ok(())
}
