//! What has happened, and what follows from it: the truth that everything else is compared with.
//!
//! It is made from the writes in the order in which they became durable, by the rules of
//! `docs/protocol.md` and `docs/groups.md` and with the simplest means, and says at once when the
//! store's answer to one does not fit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use millrace_logic::storage::{
    Actor, Outcome, Target, Write, conversation_id,
    extras::{STATE_DELETED, STATE_NORMAL, STATE_REVOKED},
    groups::GroupAct,
};
use millrace_protocol::{Code, chat};

/// A message.
#[derive(Clone, Debug)]
pub struct Said {
    pub message_id: String,
    pub sender: String,
    pub client_message_id: String,
    pub body: String,
    pub counts: bool,
    pub revoked: bool,
}

/// Somebody who is or was in a conversation.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Sees what comes after it.
    pub init: u64,
    /// Sees nothing after it; `None` while a member.
    pub quit: Option<u64>,
    pub delivered: u64,
    pub read: u64,
    pub deleted: BTreeSet<u64>,
    pub muted: bool,
    /// Every time this user was a member: after which sequence, and up to which.
    pub spans: Vec<(u64, u64)>,
}

/// A conversation.
#[derive(Clone, Debug, Default)]
pub struct Talk {
    pub said: Vec<Said>,
    pub members: BTreeMap<String, Member>,
    pub owner: String,
}

/// Where a message is.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub conversation_id: String,
    pub sequence: u64,
    pub message_id: String,
}

/// A row of a user's list, as far as it is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub max: u64,
    pub init: u64,
    pub read: u64,
    pub unread: u64,
    pub quit: bool,
    pub muted: bool,
}

impl Row {
    pub fn of(row: &chat::Conversation) -> Self {
        Self {
            max: row.max_sequence,
            init: row.init_sequence,
            read: row.read_sequence,
            unread: row.unread,
            quit: row.quit,
            muted: row.do_not_disturb,
        }
    }
}

/// A message as a user sees it: id, sender, content, state.
pub type Seen = (String, String, String, u32);

#[derive(Debug, Default)]
pub struct History {
    pub talks: BTreeMap<String, Talk>,
    known: HashMap<(String, String), Place>,
    /// What was done, without what differs between two runs of one program.
    pub log: Vec<String>,
}

impl Talk {
    fn current(&self) -> Vec<&str> {
        let members = self.members.iter().filter(|(_, member)| member.quit.is_none());
        members.map(|(user, _)| &**user).collect()
    }

    fn is_member(&self, user: &str) -> bool {
        self.members.get(user).is_some_and(|member| member.quit.is_none())
    }

    fn len(&self) -> u64 {
        self.said.len() as u64
    }

    /// The newest sequence that a member sees.
    pub fn top(&self, member: &Member) -> u64 {
        member.quit.unwrap_or(self.len())
    }

    /// A message as this member sees it.
    pub fn seen(&self, member: &Member, sequence: u64) -> Seen {
        let said = &self.said[sequence as usize - 1];
        let state = match (said.revoked, member.deleted.contains(&sequence)) {
            (true, _) => STATE_REVOKED,
            (false, true) => STATE_DELETED,
            (false, false) => STATE_NORMAL,
        };
        let body = if state == STATE_NORMAL { said.body.clone() } else { String::new() };
        (said.message_id.clone(), said.sender.clone(), body, state)
    }

    /// The row of a member.
    pub fn row(&self, user: &str, member: &Member) -> Row {
        let top = self.top(member);
        let visible = member.init + 1..=top;
        let own = visible.clone().rev().find(|n| self.said[*n as usize - 1].sender == user);
        let floor = member.read.max(own.unwrap_or(0));
        let unread = visible.filter(|n| {
            let said = &self.said[*n as usize - 1];
            *n > floor && said.counts && !said.revoked && !member.deleted.contains(n)
        });
        Row {
            max: top,
            init: member.init,
            read: member.read,
            unread: unread.count() as u64,
            quit: member.quit.is_some(),
            muted: member.muted,
        }
    }

    fn enter(&mut self, user: &str) {
        let init = self.len();
        let member = self.members.entry(user.to_owned()).or_default();
        let mut spans = std::mem::take(&mut member.spans);
        spans.push((init, u64::MAX));
        *member = Member { init, delivered: init, read: init, spans, ..Member::default() };
    }

    fn exit(&mut self, user: &str) {
        let end = self.len();
        if let Some(member) = self.members.get_mut(user) {
            member.quit = Some(end);
            if let Some(span) = member.spans.last_mut() {
                span.1 = end;
            }
        }
    }
}

impl History {
    /// Where a message of this sender is.
    pub fn place(&self, sender: &str, client_message_id: &str) -> Option<&Place> {
        self.known.get(&(sender.to_owned(), client_message_id.to_owned()))
    }

    pub fn member(&self, user: &str, conversation_id: &str) -> Option<(&Talk, &Member)> {
        let talk = self.talks.get(conversation_id)?;
        Some((talk, talk.members.get(user)?))
    }

    /// The conversations of a user.
    pub fn of(&self, user: &str) -> impl Iterator<Item = (&String, &Talk, &Member)> {
        self.talks.iter().filter_map(move |(id, talk)| Some((id, talk, talk.members.get(user)?)))
    }

    /// Adds a write that has become durable, with the store's answer.
    ///
    /// # Errors
    /// What does not fit.
    pub fn add(&mut self, write: &Write, outcome: &Outcome) -> Result<(), String> {
        let refused = match outcome {
            Outcome::Refused { code, .. } => Some(*code),
            _ => None,
        };
        let done = match write {
            Write::Append { .. } => self.append(write, outcome),
            Write::MoveCursor { user_id, conversation_id, delivered, read } => {
                let Some(talk) = self.talks.get_mut(conversation_id) else {
                    return expect(refused, Some(Code::NotFound), write);
                };
                let top = talk.members.get(user_id).map(|member| talk.top(member));
                let (Some(top), Some(member)) = (top, talk.members.get_mut(user_id)) else {
                    return expect(refused, Some(Code::NotPermitted), write);
                };
                member.read = member.read.max(*read.min(&top));
                member.delivered = member.delivered.max(*delivered.min(&top)).max(member.read);
                let stand = (member.delivered, member.read);
                match outcome {
                    Outcome::CursorMoved { delivered, read, .. }
                        if (*delivered, *read) == stand =>
                    {
                        Ok(format!("{user_id} in {conversation_id} at {stand:?}"))
                    }
                    other => Err(format!("the cursors stand at {stand:?}, not {other:?}")),
                }
            }
            Write::Revoke { actor: Actor::User(user), conversation_id, sequence, .. } => {
                let talk = self.talks.get_mut(conversation_id);
                let sees = talk.as_ref().is_some_and(|talk| {
                    talk.members.get(user).is_some_and(|member| {
                        member.quit.is_none() && (member.init + 1..=talk.len()).contains(sequence)
                    })
                });
                let Some(talk) = talk.filter(|_| sees) else {
                    return match refused {
                        Some(_) => Ok(()),
                        None => Err(format!("{write:?} was not refused: {outcome:?}")),
                    };
                };
                let said = &mut talk.said[*sequence as usize - 1];
                let mut may = said.sender == *user || talk.owner == *user;
                if said.client_message_id.is_empty() {
                    // The server's own words: the store says whether they can be taken back.
                    may = refused.is_none();
                }
                if may != refused.is_none() {
                    return Err(format!("{write:?} by {user} became {outcome:?}"));
                }
                said.revoked |= may;
                Ok(format!("{user} revokes {conversation_id} {sequence}: {may}"))
            }
            Write::Delete { user_id, conversation_id, sequences } => {
                let sees = self.member(user_id, conversation_id).is_some_and(|(talk, member)| {
                    sequences.iter().all(|n| (member.init + 1..=talk.top(member)).contains(n))
                });
                if sees
                    && let Some(talk) = self.talks.get_mut(conversation_id)
                    && let Some(member) = talk.members.get_mut(user_id)
                {
                    member.deleted.extend(sequences);
                    expect(refused, None, write)?;
                } else if refused.is_none() {
                    return Err(format!("{write:?} was not refused: {outcome:?}"));
                }
                Ok(format!("{user_id} deletes {conversation_id} {sequences:?}: {sees}"))
            }
            Write::SetConversation { user_id, conversation_id, do_not_disturb, .. } => {
                let talk = self.talks.get_mut(conversation_id);
                let member = talk.and_then(|talk| talk.members.get_mut(user_id));
                if let (Some(member), Some(on), None) = (member, do_not_disturb, refused) {
                    member.muted = *on;
                }
                Ok(format!("{user_id} sets {conversation_id}: {do_not_disturb:?}, {refused:?}"))
            }
            Write::ChangeGroup(change) => {
                let actor = change.actor.clone().unwrap_or_default();
                self.act(&change.group_id, &actor, &change.act, outcome)
            }
            other => Err(format!("no program does this: {other:?}")),
        };
        self.log.push(done?);
        Ok(())
    }

    fn append(&mut self, write: &Write, outcome: &Outcome) -> Result<String, String> {
        let Write::Append {
            message_id,
            sender_id,
            client_message_id,
            target,
            body,
            does_not_count,
            ..
        } = write
        else {
            return Err("no message".into());
        };
        if let Some(place) = self.place(sender_id, client_message_id) {
            return match outcome {
                Outcome::Appended { message, duplicate: true, .. }
                    if message.message_id == place.message_id
                        && message.sequence == place.sequence
                        && message.conversation_id == place.conversation_id =>
                {
                    Ok(format!("{sender_id} says {client_message_id} again"))
                }
                other => Err(format!("the second {client_message_id} became {other:?}")),
            };
        }
        let conversation_id = match target {
            Target::User(user) => conversation_id::single(sender_id, user),
            Target::Group(group) => conversation_id::group(group),
        };
        if let Target::User(user) = target
            && !self.talks.contains_key(&conversation_id)
        {
            let talk = self.talks.entry(conversation_id.clone()).or_default();
            talk.enter(sender_id);
            if user != sender_id {
                talk.enter(user);
            }
        }
        let may = self.talks.get(&conversation_id).is_some_and(|talk| talk.is_member(sender_id));
        let Outcome::Appended { message, duplicate: false, recipients, .. } = outcome else {
            return match (outcome, may) {
                (Outcome::Refused { .. }, false) => {
                    Ok(format!("{sender_id} may not say {client_message_id}"))
                }
                _ => Err(format!("{write:?} became {outcome:?}")),
            };
        };
        let Some(talk) = self.talks.get_mut(&conversation_id).filter(|_| may) else {
            return Err(format!("{sender_id} is no member, but said {message:?}"));
        };
        let sequence = talk.len() + 1;
        let told: Vec<&str> = recipients.iter().map(|user| &**user).collect();
        if message.sequence != sequence
            || message.conversation_id != conversation_id
            || message.message_id != message_id.to_string()
        {
            return Err(format!("{conversation_id} {sequence} expected, and it is {message:?}"));
        }
        if told != talk.current() {
            return Err(format!("{told:?} are told, and the members are {:?}", talk.current()));
        }
        talk.said.push(Said {
            message_id: message.message_id.clone(),
            sender: sender_id.clone(),
            client_message_id: client_message_id.clone(),
            body: body.clone(),
            counts: !does_not_count,
            revoked: false,
        });
        let key = (sender_id.clone(), client_message_id.clone());
        let message_id = message.message_id.clone();
        let log = format!("{sender_id} says {client_message_id} in {conversation_id} {sequence}");
        self.known.insert(key, Place { conversation_id, sequence, message_id });
        Ok(log)
    }

    fn act(
        &mut self,
        group_id: &str,
        actor: &str,
        act: &GroupAct,
        outcome: &Outcome,
    ) -> Result<String, String> {
        let id = conversation_id::group(group_id);
        let log = format!("{actor} in {group_id}: {act:?}");
        let changed = match outcome {
            Outcome::GroupChanged(changed) => changed,
            Outcome::Refused { code, .. } => return Ok(format!("{log}: {code}")),
            other => return Err(format!("{log} became {other:?}")),
        };
        let told = changed.told.as_ref().map(|told| &told.message);
        if (told.is_some()) != (changed.changed > 0) {
            return Err(format!("{log} became {changed:?}"));
        }
        if let GroupAct::Create { members, .. } = act {
            // The id of a group that has ended can be used again.
            let talk = self.talks.entry(id.clone()).or_default();
            if !talk.current().is_empty() {
                return Err(format!("{group_id} was made twice"));
            }
            talk.owner = actor.to_owned();
            talk.enter(actor);
            for user in members.iter().filter(|user| *user != actor) {
                talk.enter(user);
            }
        }
        let Some(talk) = self.talks.get_mut(&id) else { return Err(format!("{log}: no group")) };
        let before = talk.current().len();
        if !matches!(act, GroupAct::Create { .. } | GroupAct::Join { .. }) && !talk.is_member(actor)
        {
            return Err(format!("{log} was not refused"));
        }
        match act {
            GroupAct::Join { .. } if !talk.is_member(actor) => talk.enter(actor),
            GroupAct::Invite { user_ids } => {
                for user in user_ids {
                    if !talk.is_member(user) {
                        talk.enter(user);
                    }
                }
            }
            _ => {}
        }
        if let Some(message) = told {
            if message.sequence != talk.len() + 1 || message.conversation_id != id {
                return Err(format!("{log} is told as {message:?}, after {}", talk.len()));
            }
            talk.said.push(Said {
                message_id: message.message_id.clone(),
                sender: actor.to_owned(),
                client_message_id: String::new(),
                body: message.body.clone(),
                counts: false,
                revoked: false,
            });
        }
        match act {
            GroupAct::Leave => talk.exit(actor),
            GroupAct::Remove { user_ids } => {
                for user in user_ids {
                    if talk.is_member(user) {
                        talk.exit(user);
                    }
                }
            }
            _ => {}
        }
        let difference = talk.current().len().abs_diff(before);
        if difference != changed.changed as usize && !matches!(act, GroupAct::Create { .. }) {
            return Err(format!("{log} became {changed:?}, and {difference} were changed"));
        }
        Ok(format!("{log}: {}", changed.changed))
    }
}

fn expect(found: Option<Code>, expected: Option<Code>, write: &Write) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{write:?}: {expected:?} expected, and it is {found:?}"))
}
