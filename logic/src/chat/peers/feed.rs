//! The order of a conversation's messages where several logic processes store them.
//!
//! Each process sends what it stored itself, and hears from the others what they stored. Both come here
//! first, because the sessions of this process get a conversation in increasing sequence, while what was
//! heard may come late: the message before it may have been stored elsewhere and be on its way. This
//! says when a message's turn is. It sends nothing, reads no store and no clock.
//!
//! # How it knows that nothing is missing before a message
//! - Of a conversation that was handed out lately, the last sequence is known: the next is one more.
//! - Of any other, a message says which version the conversation had before (`follows`). Versions
//!   grow with every commit of the fleet. What was stored so long ago that its event has come, or its
//!   loss has been noticed, is *settled* ([`FeedSettings::settles_after`]): after it nothing is missing.
//!
//! What everybody was caught up with from the store, at the start or after a loss, is past, however late
//! its event comes: a broken connection may bring it after many seconds.
//!
//! Anything else waits, at most [`FeedSettings::hold_max`]; then whoever it is for is caught up from
//! the store, which has everything, because sequences are given out in commits that follow each other.
//!
//! # What is left of a message
//! (It was revoked, say.) It has no place of its own in the sequence. It goes out at once, unless the
//! message itself still waits for its turn here: then right after it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use millrace_logic_sdk::SessionAddress;
use millrace_protocol::chat::Message;

use crate::storage::Members;

/// The bounds of a [`Feed`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FeedSettings {
    /// After this time an event has come, or its loss was noticed.
    pub settles_after: Duration,
    /// How long a message waits for those before it.
    pub hold_max: Duration,
    /// Messages that wait. Above it the longest-waiting conversation is given up early.
    pub held_messages_max: usize,
    /// Conversations whose last sequence is remembered. Above it those that were silent longest are
    /// forgotten early: a message that follows a recent one then waits without need, and is read
    /// from the store.
    pub conversations_max: usize,
}

/// A message with whom it goes to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    pub message: Message,
    /// Of the write that stored it.
    pub version: u64,
    /// The version of what was stored last in the conversation before it.
    pub follows: u64,
    /// It is what is left of an earlier message.
    pub rewritten: bool,
    /// Its content was too large to be told: those it is for are caught up.
    pub omitted: bool,
    pub recipients: Members,
    /// Has it already.
    pub except: Option<SessionAddress>,
}

/// When a message may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// At once, and what [`Feed::followers`] has right after it.
    Now,
    /// When those before it have come: hand it to [`Feed::hold`].
    Later,
    /// It went out before, or those it is for were caught up with it.
    Past,
}

/// What a message needs to be judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub conversation_id: &'a str,
    pub sequence: u64,
    pub version: u64,
    pub follows: u64,
    pub rewritten: bool,
}

impl<'a> Place<'a> {
    pub(crate) fn of(message: &'a Message, version: u64, follows: u64, rewritten: bool) -> Self {
        let (conversation_id, sequence) = (&*message.conversation_id, message.sequence);
        Self { conversation_id, sequence, version, follows, rewritten }
    }
}

impl Told {
    pub(crate) fn place(&self) -> Place<'_> {
        Place::of(&self.message, self.version, self.follows, self.rewritten)
    }
}

/// See the module.
pub(crate) struct Feed {
    settings: FeedSettings,
    conversations: HashMap<String, Conversation>,
    /// Conversations by when they were last handed out, the longest ago first; those that were
    /// handed out again since have a later entry.
    by_age: VecDeque<(Instant, String)>,
    held_messages: usize,
    /// When conversations are given up, in order; see `Conversation::waits_since`.
    deadlines: VecDeque<(Instant, String)>,
    /// The newest version seen, and those seen at moments before.
    newest: u64,
    seen: VecDeque<(Instant, u64)>,
    settled: u64,
    /// Whoever is here was caught up from the store with everything up to this version.
    caught_up: u64,
}

struct Conversation {
    /// Handed out up to this; `None`: nothing yet, something waits.
    last: Option<u64>,
    touched: Instant,
    /// `by_age` has it, at `touched`.
    is_listed: bool,
    held: BTreeMap<u64, Vec<Told>>,
    /// Since when something waits, which names its deadline.
    waits_since: Option<Instant>,
}

/// How finely the age of versions is kept.
const SEEN_EVERY: Duration = Duration::from_secs(1);

impl Feed {
    /// `version`: of the store when the events of others began to be heard.
    pub(crate) fn new(settings: FeedSettings, version: u64) -> Self {
        Self {
            settings,
            conversations: HashMap::new(),
            by_age: VecDeque::new(),
            held_messages: 0,
            deadlines: VecDeque::new(),
            newest: version,
            seen: VecDeque::new(),
            settled: version,
            caught_up: version,
        }
    }

    /// Everything stored up to this version has been handed out here, or is known to be lost.
    pub(crate) fn settled(&self) -> u64 {
        self.settled
    }

    /// Messages that wait.
    pub(crate) fn held(&self) -> usize {
        self.held_messages
    }

    /// Judges a message. After `Turn::Now` it counts as handed out.
    pub(crate) fn turn(&mut self, now: Instant, place: Place<'_>) -> Turn {
        self.see(now, place.version);
        let settled = self.settled;
        let known = self.conversations.get_mut(place.conversation_id);
        if place.rewritten {
            let waits = known.is_some_and(|conversation| {
                conversation.held.contains_key(&place.sequence)
                    || conversation.last.is_some_and(|last| place.sequence > last)
            });
            return if waits { Turn::Later } else { Turn::Now };
        }
        if place.version <= self.caught_up {
            return Turn::Past;
        }
        let Some(conversation) = known else {
            if place.sequence != 1 && place.follows > settled {
                return Turn::Later;
            }
            self.remember(now, place.conversation_id, place.sequence);
            return Turn::Now;
        };
        match conversation.last {
            Some(last) if place.sequence <= last => Turn::Past,
            Some(last) if place.sequence != last + 1 => Turn::Later,
            None if place.sequence != 1 && place.follows > settled => Turn::Later,
            _ => {
                self.advance(now, place.conversation_id, place.sequence);
                Turn::Now
            }
        }
    }

    /// Keeps a message whose turn is [`Turn::Later`].
    pub(crate) fn hold(&mut self, now: Instant, told: Told) {
        let conversation_id = told.message.conversation_id.clone();
        let conversation = self
            .conversations
            .entry(conversation_id.clone())
            .or_insert_with(|| Conversation::new(now, None));
        if conversation.waits_since.is_none() {
            conversation.waits_since = Some(now);
            self.deadlines.push_back((now, conversation_id));
        }
        let waiting = conversation.held.entry(told.message.sequence).or_default();
        if told.rewritten {
            waiting.push(told);
        } else if waiting.iter().all(|other| other.rewritten) {
            // What is left of it comes after it.
            waiting.insert(0, told);
        } else {
            return;
        }
        self.held_messages += 1;
    }

    /// What waited for the message that has just got [`Turn::Now`], in order: it goes out right after.
    pub(crate) fn followers(&mut self, now: Instant, conversation_id: &str) -> Vec<Told> {
        let mut followers = Vec::new();
        let Some(conversation) = self.conversations.get_mut(conversation_id) else {
            return followers;
        };
        if conversation.held.is_empty() {
            return followers;
        }
        while let Some((&sequence, waiting)) = conversation.held.first_key_value() {
            let last = conversation.last.unwrap_or_default();
            let is_next = sequence == last + 1 && waiting.iter().any(|told| !told.rewritten);
            if sequence > last && !is_next {
                break;
            }
            let Some(waiting) = conversation.held.remove(&sequence) else { break };
            self.held_messages -= waiting.len();
            conversation.last = Some(last.max(sequence));
            // What was handed out by another way meanwhile is not handed out again.
            followers.extend(waiting.into_iter().filter(|told| told.rewritten || is_next));
        }
        // The deadline is void, or begins anew for what waits for something else.
        conversation.waits_since = None;
        if !conversation.held.is_empty() {
            conversation.waits_since = Some(now);
            self.deadlines.push_back((now, conversation_id.to_owned()));
        }
        followers
    }

    /// When to call [`Feed::give_up`]; `None` while nothing waits.
    pub(crate) fn due(&self) -> Option<Instant> {
        let (since, _) = self.deadlines.front()?;
        let crowded = self.held_messages > self.settings.held_messages_max;
        Some(if crowded { *since } else { *since + self.settings.hold_max })
    }

    /// Gives up waiting where it has lasted too long, and returns what waited: those it is for are to
    /// be caught up from the store.
    pub(crate) fn give_up(&mut self, now: Instant) -> Vec<Told> {
        let mut given_up = Vec::new();
        while self.due().is_some_and(|due| due <= now) {
            let Some((since, conversation_id)) = self.deadlines.pop_front() else { break };
            let Some(conversation) = self.conversations.get_mut(&conversation_id) else { continue };
            // What it waited for has come.
            if conversation.waits_since != Some(since) {
                continue;
            }
            conversation.waits_since = None;
            let held = std::mem::take(&mut conversation.held);
            // What is only left of messages says nothing about how far the conversation is.
            let highest = held
                .iter()
                .filter(|(_, waiting)| waiting.iter().any(|told| !told.rewritten))
                .map(|(sequence, _)| *sequence)
                .next_back();
            conversation.last = conversation.last.max(highest);
            conversation.touched = now;
            conversation.is_listed = conversation.last.is_some();
            if conversation.is_listed {
                self.by_age.push_back((now, conversation_id));
            } else {
                self.conversations.remove(&conversation_id);
            }
            for told in held.into_values().flatten() {
                self.held_messages -= 1;
                given_up.push(told);
            }
        }
        given_up
    }

    /// Events were lost: everybody is caught up with what was stored up to `version`, and whatever
    /// waits or was remembered is void.
    pub(crate) fn begin_anew(&mut self, version: u64) {
        let settings = self.settings;
        let newest = self.newest.max(version);
        *self = Self::new(settings, version);
        self.newest = newest;
    }

    fn see(&mut self, now: Instant, version: u64) {
        self.newest = self.newest.max(version);
        if self.seen.back().is_none_or(|(at, _)| now >= *at + SEEN_EVERY) {
            self.seen.push_back((now, self.newest));
        }
        while let Some((at, seen)) = self.seen.front()
            && *at + self.settings.settles_after <= now
        {
            self.settled = self.settled.max(*seen);
            self.seen.pop_front();
        }
        self.forget(now);
    }

    fn remember(&mut self, now: Instant, conversation_id: &str, sequence: u64) {
        let conversation = Conversation::new(now, Some(sequence));
        self.conversations.insert(conversation_id.to_owned(), conversation);
        self.by_age.push_back((now, conversation_id.to_owned()));
    }

    /// A message of a conversation that is in the table goes out.
    fn advance(&mut self, now: Instant, conversation_id: &str, sequence: u64) {
        let Some(conversation) = self.conversations.get_mut(conversation_id) else { return };
        conversation.last = Some(sequence);
        // An entry now and then is enough to know which were silent longest.
        let listed_for = now.saturating_duration_since(conversation.touched);
        if listed_for >= self.settings.settles_after / 4 || !conversation.is_listed {
            conversation.touched = now;
            conversation.is_listed = true;
            self.by_age.push_back((now, conversation_id.to_owned()));
        }
    }

    /// Forgets conversations that have been silent for so long that all they had is settled, or that
    /// are too many.
    fn forget(&mut self, now: Instant) {
        while let Some((at, _)) = self.by_age.front() {
            let old = *at + self.settings.settles_after * 2 <= now;
            if !old && self.conversations.len() <= self.settings.conversations_max {
                break;
            }
            let Some((at, conversation_id)) = self.by_age.pop_front() else { break };
            let Some(conversation) = self.conversations.get_mut(&conversation_id) else { continue };
            if conversation.touched != at {
                continue;
            }
            if conversation.held.is_empty() {
                self.conversations.remove(&conversation_id);
                continue;
            }
            conversation.touched = now;
            self.by_age.push_back((now, conversation_id));
            if !old {
                break;
            }
        }
    }
}

impl Conversation {
    fn new(now: Instant, last: Option<u64>) -> Self {
        let is_listed = last.is_some();
        Self { last, touched: now, is_listed, held: BTreeMap::new(), waits_since: None }
    }
}

#[cfg(test)]
mod tests;
