//! Sessions that moved to another logic process, whose presence stays stated here for a moment.
//!
//! The other process states them as well, by calls of its own. If what is stated here went first, their
//! users would be shown as offline, and be sent nothing, for as long as those are under way. So both
//! state them for a while, and whoever asks counts a session once. It does not look whether the other has done so.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use millrace_logic_sdk::Session;
use tokio::time::Instant;

/// For how long: many times what stating a user takes. A user who logs out within it is shown as online
/// so much too long, by processes that have not heard of it.
const STATED_FOR: Duration = Duration::from_secs(2);

/// Sessions that may wait. For one more the first of them is over at once.
const WAITING_MAX: usize = 65_536;

/// See the module. In the order in which they moved.
#[derive(Default)]
pub(super) struct MovedAway(VecDeque<(Instant, Arc<Session>)>);

impl MovedAway {
    /// A session has moved away. Returns one that is to be over now because there are too many.
    pub(super) fn add(&mut self, session: Arc<Session>, now: Instant) -> Option<Arc<Session>> {
        self.add_up_to(session, now, WAITING_MAX)
    }

    fn add_up_to(
        &mut self,
        session: Arc<Session>,
        now: Instant,
        waiting_max: usize,
    ) -> Option<Arc<Session>> {
        self.0.push_back((now + STATED_FOR, session));
        (self.0.len() > waiting_max).then(|| self.0.pop_front()).flatten().map(|(_, first)| first)
    }

    /// When something is to be done, if anything.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }

    /// One whose moment is over.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Arc<Session>> {
        self.due_at()
            .is_some_and(|due| due <= now)
            .then(|| self.0.pop_front())
            .flatten()
            .map(|(_, first)| first)
    }
}

#[cfg(test)]
mod tests {
    use super::{MovedAway, STATED_FOR};
    use crate::chat::online::tests::session;
    use tokio::time::Instant;

    #[test]
    fn who_moved_is_stated_for_a_moment_longer_in_order_and_within_bounds() {
        let (mut moved, now) = (MovedAway::default(), Instant::now());
        let id = |session: Option<std::sync::Arc<millrace_logic_sdk::Session>>| {
            session.map(|session| session.address.session_id)
        };
        assert_eq!((moved.due_at(), id(moved.take_due(now + 2 * STATED_FOR))), (None, None));
        assert_eq!(id(moved.add_up_to(session(1, "ann"), now, 2)), None);
        assert_eq!(id(moved.add_up_to(session(2, "bob"), now + STATED_FOR / 2, 2)), None);
        assert_eq!(moved.due_at(), Some(now + STATED_FOR));
        assert_eq!(id(moved.take_due(now + STATED_FOR / 2)), None);
        assert_eq!(id(moved.take_due(now + STATED_FOR)), Some(1));
        assert_eq!(id(moved.take_due(now + STATED_FOR)), None);
        assert_eq!(id(moved.add_up_to(session(3, "cid"), now + STATED_FOR, 2)), None);
        assert_eq!(id(moved.add_up_to(session(4, "dee"), now + STATED_FOR, 2)), Some(2), "full");
        assert_eq!(id(moved.take_due(now + 3 * STATED_FOR)), Some(3));
        assert_eq!(id(moved.take_due(now + 3 * STATED_FOR)), Some(4));
        assert_eq!(moved.due_at(), None);
    }
}
