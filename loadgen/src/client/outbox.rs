//! One user's messages that are not yet acknowledged, in order, with their timeouts and retries.
//!
//! A message keeps its `client_message_id` however often it is written. The outbox does not write
//! frames itself.

use std::collections::VecDeque;

use crate::population::Target;

/// Unacknowledged messages a user; beyond it new ones are shed and counted.
pub const OUTBOX_MAX: usize = 1024;

/// A message waiting for its SendReply.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing {
    /// The sender's number for it.
    pub counter: u32,
    /// Where it goes.
    pub target: Target,
    /// When the schedule wanted it sent.
    pub intended_ns: u64,
    /// When it was first written, on any connection.
    pub written_ns: u64,
    /// Until when its answer is awaited; 0: it is not on its way on this connection.
    pub awaited_until_ns: u64,
    /// Not to be written before this moment.
    pub not_before_ns: u64,
    /// Writes so far, on any connection.
    pub writes: u32,
    /// Of them, those that were answered with a refusal that passes.
    pub refusals: u32,
}

impl Outgoing {
    /// Writes that nobody answered: in vain, or on their way.
    pub const fn unanswered(&self) -> u32 {
        self.writes - self.refusals
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    entries: VecDeque<Outgoing>,
}

impl Outbox {
    /// Adds a message; `false` when the outbox is full.
    pub fn push(&mut self, counter: u32, target: Target, intended_ns: u64) -> bool {
        if self.entries.len() >= OUTBOX_MAX {
            return false;
        }
        self.entries.push_back(Outgoing {
            counter,
            target,
            intended_ns,
            written_ns: 0,
            awaited_until_ns: 0,
            not_before_ns: 0,
            writes: 0,
            refusals: 0,
        });
        true
    }

    /// The message with this number.
    pub fn get_mut(&mut self, counter: u32) -> Option<&mut Outgoing> {
        self.entries.iter_mut().find(|entry| entry.counter == counter)
    }

    /// Takes the message out: it is answered, or given up.
    pub fn remove(&mut self, counter: u32) -> Option<Outgoing> {
        let index = self.entries.iter().position(|entry| entry.counter == counter)?;
        let entry = self.entries.remove(index);
        if self.entries.is_empty() {
            // An idle user owns no buffer.
            self.entries = VecDeque::new();
        }
        entry
    }

    /// The connection ended: everything is to be written again on the next one, what was refused
    /// not before its time.
    pub fn connection_ended(&mut self) {
        for entry in &mut self.entries {
            entry.awaited_until_ns = 0;
        }
    }

    /// The first message that is not on its way and may be written now.
    pub fn next_to_write(&self, now_ns: u64) -> Option<Outgoing> {
        self.entries
            .iter()
            .find(|entry| entry.awaited_until_ns == 0 && entry.not_before_ns <= now_ns)
            .copied()
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Outgoing> {
        self.entries.iter_mut()
    }

    /// All messages, first in first out.
    pub fn iter(&self) -> impl Iterator<Item = &Outgoing> {
        self.entries.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{OUTBOX_MAX, Outbox};
    use crate::population::Target;

    #[test]
    fn a_full_outbox_refuses_and_keeps_what_it_has() {
        let mut outbox = Outbox::default();
        for counter in 0..OUTBOX_MAX as u32 {
            assert!(outbox.push(counter, Target::user(1), 0));
        }
        assert!(!outbox.push(9999, Target::user(1), 0));
        assert_eq!(outbox.len(), OUTBOX_MAX);
    }

    #[test]
    fn after_a_lost_connection_everything_is_written_again_in_order() {
        let mut outbox = Outbox::default();
        for counter in 1..=3 {
            outbox.push(counter, Target::user(1), 0);
        }
        for entry in outbox.iter_mut() {
            entry.awaited_until_ns = 500;
            entry.writes = 1;
        }
        assert!(outbox.next_to_write(10).is_none());
        assert_eq!(outbox.remove(2).map(|entry| entry.counter), Some(2));
        outbox.connection_ended();
        assert_eq!(
            outbox.next_to_write(10).map(|entry| (entry.counter, entry.writes)),
            Some((1, 1))
        );
    }
}
