//! Receipts on their way: the newest cursors of each (conversation, user), sent together once an
//! interval, so that a burst of acknowledgements costs the other members one frame.
//!
//! Only sums up and addresses; the third stage owns it and drives its clock.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_logic_sdk::SessionAddress;
use millrace_protocol::chat::Receipt;

use super::online::{Deliveries, Receiver};
use crate::storage::Members;

/// See the module.
pub(crate) struct Receipts {
    interval: Duration,
    members_max: usize,
    pending_max: usize,
    pending: HashMap<(String, String), Pending>,
    due: Option<Instant>,
}

struct Pending {
    delivered: u64,
    read: u64,
    members: Members,
    /// The session all of it came from: it knows already. `None` as soon as there were two.
    except: Option<SessionAddress>,
}

impl Receipts {
    pub(crate) fn new(interval: Duration, members_max: usize, pending_max: usize) -> Self {
        Self { interval, members_max, pending_max, pending: HashMap::new(), due: None }
    }

    /// When to call [`Receipts::take`]; `None` while there is nothing.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Notes where a user's cursors stand now.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn note(
        &mut self,
        now: Instant,
        conversation_id: String,
        user_id: String,
        delivered: u64,
        read: u64,
        members: Members,
        from: Option<SessionAddress>,
    ) {
        self.pending
            .entry((conversation_id, user_id))
            .and_modify(|pending| {
                pending.delivered = pending.delivered.max(delivered);
                pending.read = pending.read.max(read);
                pending.members = members.clone();
                if pending.except != from {
                    pending.except = None;
                }
            })
            .or_insert(Pending { delivered, read, members, except: from });
        let due = if self.pending.len() >= self.pending_max { now } else { now + self.interval };
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Everything pending, each with the sessions that get it here. `others` is called with each and
    /// its users, whose homes may be elsewhere too.
    pub(crate) fn take(
        &mut self,
        deliveries: &Deliveries<'_>,
        mut others: impl FnMut(&Receipt, &[Arc<str>]),
    ) -> Vec<(Receipt, Vec<Receiver>)> {
        self.due = None;
        let mut out = Vec::with_capacity(self.pending.len());
        for ((conversation_id, user_id), pending) in self.pending.drain() {
            let users = match pending.members.len() <= self.members_max {
                true => pending.members,
                false => [Arc::from(&user_id[..])].into(),
            };
            let mut receivers = Vec::new();
            deliveries.everybody(users.iter(), pending.except, &mut receivers);
            let receipt = Receipt {
                conversation_id,
                user_id,
                delivered_sequence: pending.delivered,
                read_sequence: pending.read,
            };
            others(&receipt, &users);
            if !receivers.is_empty() {
                out.push((receipt, receivers));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::Receipts;
    use crate::chat::{
        online::{HeldMax, Online, Rates},
        paces::{PacedRates, Paces},
        rate::Rate,
    };

    #[test]
    fn the_first_cursor_sets_the_time_and_a_full_table_is_due_at_once() {
        let interval = Duration::from_millis(200);
        let mut receipts = Receipts::new(interval, 100, 2);
        assert_eq!(receipts.due(), None);
        let began = Instant::now();
        let members: crate::storage::Members = Arc::from([Arc::from("alice")]);
        let note = |receipts: &mut Receipts, after_ms, user: &str| {
            let now = began + Duration::from_millis(after_ms);
            receipts.note(now, "c".into(), user.into(), 1, 0, members.clone(), None);
        };
        note(&mut receipts, 0, "alice");
        note(&mut receipts, 150, "alice");
        assert_eq!(receipts.due(), Some(began + interval));
        note(&mut receipts, 160, "bob");
        assert_eq!(receipts.due(), Some(began + Duration::from_millis(160)));

        // Nobody is online: nothing is to be sent, and nothing is kept.
        let rate = Rate { per_second_max: 1, burst_max: 1 };
        let held = HeldMax { messages: 1, bytes: 1 };
        let online = Online::new(
            Rates { frames: rate, messages: rate },
            held,
            Paces::new(PacedRates::all(rate), 1),
        );
        assert!(receipts.take(&online.deliveries(), |_, _| {}).is_empty());
        assert_eq!(receipts.due(), None);
    }
}
