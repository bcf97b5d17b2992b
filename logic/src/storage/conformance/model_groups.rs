//! Acts on groups in the model: who may do what, said once more and as simply as it goes.

use super::model::{Group, Model};
use super::*;
use crate::storage::groups::*;

impl Model {
    /// Applies an act and says what a store must answer.
    pub fn act(&mut self, change: &GroupChange) -> String {
        self.try_act(change).unwrap_or_else(|code| format!("refused {code}"))
    }

    fn try_act(&mut self, change: &GroupChange) -> Result<String, Code> {
        let id = conversation_id::group(&change.group_id);
        let next = self.version + 1;
        let actor = change.actor.as_deref();
        if let GroupAct::Create { name, avatar, members, members_max, .. } = &change.act {
            let members_max = if *members_max == 0 { 500 } else { *members_max };
            let members: std::collections::BTreeSet<String> =
                members.iter().cloned().chain(change.actor.clone()).collect();
            if members.is_empty() {
                return Err(Code::BadRequest);
            }
            if members.len() > members_max as usize {
                return Err(Code::OverCapacity);
            }
            if self.conversations.get(&id).is_some_and(|found| found.group.is_some()) {
                return Err(Code::AlreadyExists);
            }
            let conversation = self.conversations.entry(id.clone()).or_default();
            let owner = change.actor.clone().unwrap_or_default();
            (conversation.name, conversation.avatar) = (name.clone(), avatar.clone());
            conversation.group = Some(Group { members_max, owner, ..Group::default() });
            for user in &members {
                conversation.join(user, next);
            }
            let users: Vec<&str> = members.iter().map(|user| &user[..]).collect();
            return Ok(self.done(change, users.len(), event("created", &users)));
        }
        let conversation = self.conversations.get_mut(&id).ok_or(Code::NotFound)?;
        let members = conversation.members.clone();
        let newest = conversation.messages.len() as u64;
        let group = conversation.group.as_mut().ok_or(Code::NotFound)?;
        // 0 member, 1 administrator, 2 owner, 3 system; below 0 a stranger.
        let power_of = |group: &Group, user: &str| match () {
            () if !members.contains(user) => -1,
            () if group.owner == user => 2,
            () => i32::from(group.administrators.contains(user)),
        };
        let power = actor.map_or(3, |actor| power_of(group, actor));
        let need = |least: i32| match power {
            -1 => Err(Code::NotPermitted),
            power if power < least => Err(Code::RoleTooLow),
            _ => Ok(()),
        };
        let above = |group: &Group, users: &[&String]| {
            need(1)?;
            match users.iter().all(|user| power > power_of(group, user)) {
                true => Ok(()),
                false => Err(Code::RoleTooLow),
            }
        };
        let inside = |users: &[String]| -> Vec<String> {
            members.iter().filter(|user| users.contains(user)).cloned().collect()
        };
        let nothing =
            format!("act {id} 0 waiting 0 at {} told 0 to 0 asked 0 away 0", self.version);
        match &change.act {
            GroupAct::Create { .. } => unreachable!("answered above"),
            GroupAct::Update { name, join_rule, .. } => {
                need(if join_rule.is_some() { 2 } else { 1 })?;
                let mut told = event("updated", &[]);
                let mut changed = 0;
                if let Some(name) = name
                    && *name != conversation.name
                {
                    conversation.name.clone_from(name);
                    told.name = Some(name.clone());
                    changed += 1;
                }
                if let Some(rule) = join_rule
                    && *rule != group.join_rule
                {
                    group.join_rule = *rule;
                    told.join_rule = Some(*rule);
                    changed += 1;
                }
                if changed == 0 { Ok(nothing) } else { Ok(self.done(change, changed, told)) }
            }
            GroupAct::Announce { text } => {
                need(1)?;
                if group.announcement == *text {
                    return Ok(nothing);
                }
                group.announcement.clone_from(text);
                let told = event("announced", &[]);
                let told = chat::GroupEvent { announcement: Some(text.clone()), ..told };
                Ok(self.done(change, 1, told))
            }
            GroupAct::Join { .. }
            | GroupAct::Invite { .. }
            | GroupAct::AnswerJoinRequest { .. } => {
                let mut asks = false;
                let (word, users): (_, Vec<String>) = match &change.act {
                    GroupAct::Join { .. } => {
                        let user = change.actor.clone().ok_or(Code::BadRequest)?;
                        if members.contains(&user) {
                            return Ok(nothing);
                        }
                        asks = match group.join_rule {
                            1 => false,
                            2 => true,
                            _ => return Err(Code::NotPermitted),
                        };
                        ("joined", vec![user])
                    }
                    GroupAct::Invite { user_ids } => {
                        need(0)?;
                        asks = group.join_rule == 2 && power < 1;
                        let mut users = user_ids.clone();
                        users.retain(|user| !members.contains(user));
                        users.sort();
                        users.dedup();
                        ("added", users)
                    }
                    GroupAct::AnswerJoinRequest { user_id, accept } => {
                        need(1)?;
                        if !group.waiting.contains(user_id) {
                            return Err(Code::NotFound);
                        }
                        if !accept {
                            group.waiting.remove(user_id);
                            self.version = next;
                            return Ok(format!(
                                "act {id} 1 waiting 0 at {next} told 0 to 0 asked 0 away 1"
                            ));
                        }
                        ("added", vec![user_id.clone()])
                    }
                    _ => unreachable!("not one of the three"),
                };
                if asks {
                    let new: Vec<&String> =
                        users.iter().filter(|user| !group.waiting.contains(*user)).collect();
                    let count = new.len();
                    let asked = usize::from(!group.owner.is_empty()) + group.administrators.len();
                    let asked = if count > 0 { asked } else { 0 };
                    group.waiting.extend(users.iter().cloned());
                    self.version += u64::from(count > 0);
                    let version = self.version;
                    return Ok(format!(
                        "act {id} 0 waiting {count} at {version} told 0 to 0 asked {asked} away 0"
                    ));
                }
                if !users.is_empty() && members.len() + users.len() > group.members_max as usize {
                    return Err(Code::OverCapacity);
                }
                if users.is_empty() {
                    return Ok(nothing);
                }
                for user in &users {
                    group.waiting.remove(user);
                }
                for user in &users {
                    let muted = conversation.rows.get(user).map_or(0, |row| row.muted_until);
                    conversation.join(user, next);
                    conversation.rows.get_mut(user).unwrap().muted_until = muted;
                }
                let users: Vec<&str> = users.iter().map(|user| &user[..]).collect();
                Ok(self.done(change, users.len(), event(word, &users)))
            }
            GroupAct::Leave | GroupAct::Remove { .. } | GroupAct::Dissolve => {
                let (word, users, reason) = match &change.act {
                    GroupAct::Leave => {
                        let user = change.actor.clone().ok_or(Code::BadRequest)?;
                        need(0)?;
                        match () {
                            () if members.len() == 1 => ("dissolved", vec![user], 3),
                            () if group.owner == user => return Err(Code::BadRequest),
                            () => ("left", vec![user], 1),
                        }
                    }
                    GroupAct::Remove { user_ids } => {
                        let users = inside(user_ids);
                        above(group, &users.iter().collect::<Vec<_>>())?;
                        match users.len() {
                            0 => return Ok(nothing),
                            all if all == members.len() => return Err(Code::BadRequest),
                            _ => ("removed", users, 2),
                        }
                    }
                    _ => {
                        need(2)?;
                        ("dissolved", members.iter().cloned().collect(), 3)
                    }
                };
                let named: Vec<&str> = match reason {
                    3 => vec![],
                    _ => users.iter().map(|user| &user[..]).collect(),
                };
                let answer = self.done(change, users.len(), event(word, &named));
                let conversation = self.conversations.get_mut(&id).unwrap();
                assert_eq!(conversation.messages.len() as u64, newest + 1);
                for user in &users {
                    conversation.leave(user, next, reason);
                }
                if reason == 3 {
                    conversation.group = None;
                }
                Ok(answer)
            }
            GroupAct::SetRole { user_id, role } => {
                need(2)?;
                match power_of(group, user_id) {
                    -1 => Err(Code::NotFound),
                    2 => Err(Code::BadRequest),
                    now if now == *role as i32 => Ok(nothing),
                    _ => {
                        match role {
                            Role::Member => group.administrators.remove(user_id),
                            _ => group.administrators.insert(user_id.clone()),
                        };
                        let told = event("role", &[user_id]);
                        let told = chat::GroupEvent { role: Some(*role as u32), ..told };
                        Ok(self.done(change, 1, told))
                    }
                }
            }
            GroupAct::Transfer { user_id } => {
                need(2)?;
                match power_of(group, user_id) {
                    -1 => Err(Code::NotFound),
                    2 => Ok(nothing),
                    _ => {
                        group.administrators.remove(user_id);
                        group.owner.clone_from(user_id);
                        Ok(self.done(change, 1, event("transferred", &[user_id])))
                    }
                }
            }
            GroupAct::MuteMembers { until_ms, .. } if *until_ms < 0 => Err(Code::BadRequest),
            GroupAct::MuteMembers { user_ids, until_ms } => {
                let mut users = inside(user_ids);
                above(group, &users.iter().collect::<Vec<_>>())?;
                let until = if *until_ms > change.at_ms { *until_ms } else { 0 };
                let now = |ms: i64| if ms > change.at_ms { ms } else { 0 };
                users.retain(|user| now(conversation.rows[user].muted_until) != until);
                for user in &users {
                    conversation.rows.get_mut(user).unwrap().muted_until = until;
                }
                if users.is_empty() {
                    return Ok(nothing);
                }
                let users: Vec<&str> = users.iter().map(|user| &user[..]).collect();
                let told = chat::GroupEvent { until_ms: Some(until), ..event("muted", &users) };
                Ok(self.done(change, users.len(), told))
            }
            GroupAct::MuteGroup { muted } => {
                need(1)?;
                if group.muted == *muted {
                    return Ok(nothing);
                }
                group.muted = *muted;
                let told = chat::GroupEvent { muted: Some(*muted), ..event("group_muted", &[]) };
                Ok(self.done(change, 1, told))
            }
        }
    }

    /// Stores the notice and says what happened.
    fn done(&mut self, change: &GroupChange, changed: usize, told: chat::GroupEvent) -> String {
        self.version += 1;
        let id = conversation_id::group(&change.group_id);
        let conversation = self.conversations.get_mut(&id).unwrap();
        let actor_id = change.actor.clone().unwrap_or_default();
        let told = chat::GroupEvent { actor_id: actor_id.clone(), ..told };
        let sequence = conversation.messages.len() as u64 + 1;
        let message = chat::Message {
            conversation_id: id.clone(),
            conversation_type: 2,
            sequence,
            message_id: change.notice_id.to_string(),
            sender_id: actor_id,
            r#type: 8,
            body: serde_json::to_string(&told).unwrap(),
            sent_at_ms: change.at_ms,
            does_not_count: true,
            system: true,
            ..chat::Message::default()
        };
        conversation.messages.push((message, self.version));
        let (members, version) = (conversation.members.len(), self.version);
        format!(
            "act {id} {changed} waiting 0 at {version} told {sequence} to {members} asked 0 away 0"
        )
    }
}

fn event(word: &str, users: &[&str]) -> chat::GroupEvent {
    chat::GroupEvent {
        event: word.into(),
        user_ids: owned(users),
        user_count: users.len() as u32,
        ..chat::GroupEvent::default()
    }
}

/// What a store answered to an act, in the words of [`Model::act`].
pub fn told_of_act(changed: &GroupChanged) -> String {
    let GroupChanged {
        conversation_id, changed, waiting, version, told, asked, turned_away, ..
    } = changed;
    let sequence = told.as_ref().map_or(0, |told| told.message.sequence);
    let recipients = told.as_ref().map_or(0, |told| told.recipients.len());
    format!(
        "act {conversation_id} {changed} waiting {waiting} at {version} told {sequence} to \
         {recipients} asked {} away {}",
        asked.len(),
        turned_away.len()
    )
}

/// Any act of anybody on any group.
pub fn random_act(
    random: &mut fastrand::Rng,
    group_id: String,
    users: &[&str],
    at_ms: i64,
) -> Write {
    let user = |random: &mut fastrand::Rng| users[random.usize(..users.len())].to_owned();
    let some = |random: &mut fastrand::Rng| {
        (0..random.usize(1..4)).map(|_| user(random)).collect::<Vec<_>>()
    };
    let act = match random.u8(..20) {
        0..2 => GroupAct::Create {
            name: format!("name of {group_id}"),
            avatar: "https://example.org/a.png".into(),
            members: some(random),
            members_max: random.u32(..6),
            join_rule: 0,
            invite_rule: 0,
        },
        2..4 => GroupAct::Update {
            name: random.bool().then(|| format!("name {}", random.u8(..3))),
            avatar: None,
            members_max: None,
            join_rule: random.bool().then(|| random.u32(..3)),
            invite_rule: None,
        },
        4 => GroupAct::Announce { text: format!("hear {}", random.u8(..3)) },
        5..8 => GroupAct::Join { message: "please".into() },
        8..10 => GroupAct::AnswerJoinRequest { user_id: user(random), accept: random.bool() },
        10..12 => GroupAct::Invite { user_ids: some(random) },
        12 => GroupAct::Leave,
        13 => GroupAct::Remove { user_ids: some(random) },
        14 => {
            let role = if random.bool() { Role::Member } else { Role::Administrator };
            GroupAct::SetRole { user_id: user(random), role }
        }
        15 => GroupAct::Transfer { user_id: user(random) },
        16..18 => GroupAct::MuteMembers {
            user_ids: some(random),
            // A time to come, one that is over, none, and one that no clock shows.
            until_ms: match random.u8(..8) {
                0..4 => at_ms + random.i64(-20..100),
                4..7 => 0,
                _ => -1,
            },
        },
        18 => GroupAct::MuteGroup { muted: random.u8(..3) == 0 },
        _ => GroupAct::Dissolve,
    };
    let actor = (random.u8(..5) > 0).then(|| user(random));
    Write::ChangeGroup(Box::new(GroupChange {
        group_id,
        actor,
        at_ms,
        notice_id: Uuid::now_v7(),
        act,
    }))
}
