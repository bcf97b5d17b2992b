//! Who gets what was committed, and in whose turn: the receivers of each outcome, as ranges of one list. It
//! sends nothing.

use std::{ops::Range, sync::Arc, time::Instant};

use millrace_logic_sdk::SessionAddress;
use millrace_protocol::chat::Message;

use super::{
    super::{
        Core,
        online::{Deliveries, Receiver},
        peers::feed::{self, Place, Turn},
    },
    Fleet,
};
use crate::storage::{Members, Outcome, extras::STATE_REVOKED, groups::Told};

/// Where the receivers of an outcome are in the list of all of them, and what else goes out after it.
pub(super) struct Target {
    pub receivers: Range<usize>,
    /// What waited for this outcome's message: others have stored it, and it follows.
    pub followers: Vec<(Message, Range<usize>)>,
}

/// Decides, under the lock of the table of sessions, who gets what.
pub(super) struct Placing<'a, 'b> {
    core: &'a Core,
    fleet: Option<&'b mut Fleet>,
    deliveries: Deliveries<'a>,
    receivers: Vec<Receiver>,
    /// What waited for the messages of the outcome at hand.
    followers: Vec<feed::Told>,
    newest: u64,
}

impl<'a, 'b> Placing<'a, 'b> {
    pub(super) fn new(core: &'a Core, fleet: Option<&'b mut Fleet>) -> Self {
        Self {
            core,
            fleet,
            deliveries: core.online.deliveries(),
            receivers: Vec::new(),
            followers: Vec::new(),
            newest: 0,
        }
    }

    pub(super) fn outcome(&mut self, outcome: &Outcome, except: Option<SessionAddress>) -> Target {
        let from = self.receivers.len();
        match outcome {
            Outcome::Appended { message, duplicate: false, version, follows, recipients } => {
                self.place(message, (*version, *follows), recipients, except);
                self.missed(message, recipients);
            }
            Outcome::Forwarded { messages, duplicate: false, version, follows, recipients } => {
                // All of them are in this commit, so they have the same receivers.
                let first = version + 1 - messages.len() as u64;
                let mut follows = *follows;
                for (version, message) in (first..).zip(messages) {
                    self.receivers.truncate(from);
                    self.place(message, (version, follows), recipients, except);
                    self.missed(message, recipients);
                    follows = version;
                }
            }
            // What is over its receivers know themselves.
            Outcome::Erased { message, changed: true, version, recipients }
                if message.state == STATE_REVOKED =>
            {
                self.rewritten(message, *version, recipients, except);
            }
            Outcome::Deleted { user_id, messages, version } => {
                let own: Members = [Arc::from(&user_id[..])].into();
                for message in messages {
                    self.receivers.truncate(from);
                    self.rewritten(message, *version, &own, except);
                }
            }
            Outcome::GroupChanged(changed) => {
                if let Some(Told { message, follows, recipients }) = &changed.told {
                    self.place(message, (changed.version, *follows), recipients, None);
                }
            }
            _ => {}
        }
        let receivers = from..self.receivers.len();
        let followers = std::mem::take(&mut self.followers);
        Target {
            receivers,
            followers: followers.into_iter().map(|told| self.follow(told)).collect(),
        }
    }

    /// A message with a place of its own in the sequence. `at`: its version, and the one it follows.
    fn place(
        &mut self,
        message: &Message,
        at: (u64, u64),
        recipients: &Members,
        except: Option<SessionAddress>,
    ) {
        let (version, follows) = at;
        self.newest = self.newest.max(version);
        self.go(message, Place::of(message, version, follows, false), recipients, except);
    }

    /// What is left of a message.
    fn rewritten(
        &mut self,
        message: &Message,
        version: u64,
        recipients: &Members,
        except: Option<SessionAddress>,
    ) {
        self.newest = self.newest.max(version);
        self.go(message, Place::of(message, version, 0, true), recipients, except);
    }

    fn go(
        &mut self,
        message: &Message,
        place: Place<'_>,
        recipients: &Members,
        except: Option<SessionAddress>,
    ) {
        let receivers = &mut self.receivers;
        let (Some(fleet), Some(peers)) = (&mut self.fleet, &self.core.peers) else {
            // Commits come here in order: everything before this one was handed out.
            let settled = place.version.saturating_sub(1);
            return self.deliveries.targets(message, settled, recipients, except, receivers);
        };
        peers.add(&mut fleet.telling, message, place, recipients);
        let now = Instant::now();
        match fleet.feed.turn(now, place) {
            Turn::Now => {
                let settled = fleet.feed.settled();
                self.deliveries.targets(message, settled, recipients, except, receivers);
                self.followers.extend(fleet.feed.followers(now, place.conversation_id));
            }
            Turn::Later => fleet.feed.hold(
                now,
                feed::Told {
                    message: message.clone(),
                    version: place.version,
                    follows: place.follows,
                    rewritten: place.rewritten,
                    omitted: false,
                    recipients: recipients.clone(),
                    except,
                },
            ),
            Turn::Past => {}
        }
    }

    /// What another process has stored, and waited for what was just placed.
    fn follow(&mut self, told: feed::Told) -> (Message, Range<usize>) {
        let from = self.receivers.len();
        let settled = self.fleet.as_ref().map_or(0, |fleet| fleet.feed.settled());
        let feed::Told { message, recipients, except, omitted, .. } = told;
        if !omitted {
            self.deliveries.targets(&message, settled, &recipients, except, &mut self.receivers);
        } else if self.deliveries.catch_up(&recipients) {
            self.core.catch_up_waker.notify_one();
        }
        (message, from..self.receivers.len())
    }

    /// Who is on no device is told in another way.
    fn missed(&self, message: &Message, recipients: &Members) {
        if let Some(pusher) = &self.core.pusher
            && !message.does_not_count
        {
            pusher.missed(self.core, &self.deliveries, message, recipients);
        }
    }

    pub(super) fn finish(self, targets: Vec<Target>) -> (Vec<Target>, Vec<Receiver>) {
        match (self.fleet, &self.core.peers) {
            (Some(fleet), Some(peers)) => {
                peers.send(&mut fleet.telling);
                self.deliveries.done(fleet.feed.settled());
            }
            _ => self.deliveries.done(self.newest),
        }
        (targets, self.receivers)
    }
}
