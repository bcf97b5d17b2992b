//! Users that were stated later than they came: see [`stated_late`](crate::registry::Registry::stated_late).
//! No I/O.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::registry::StatedLate;

/// See the module.
pub(super) struct Late {
    users_max: usize,
    table: Mutex<Table>,
    wake: Notify,
}

#[derive(Default)]
struct Table {
    users: HashSet<Arc<str>>,
    everybody: bool,
}

impl Late {
    /// One more than `users_max` that nobody has asked for: it is everybody then.
    pub(super) fn new(users_max: usize) -> Self {
        Self { users_max, table: Mutex::default(), wake: Notify::new() }
    }

    pub(super) fn add(&self, user_id: &Arc<str>) {
        {
            // Whole after each statement, so a panic elsewhere spoils nothing.
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            if table.everybody {
                return;
            }
            if table.users.len() >= self.users_max && !table.users.contains(user_id) {
                *table = Table { users: HashSet::new(), everybody: true };
            } else {
                table.users.insert(Arc::clone(user_id));
            }
        }
        self.wake.notify_one();
    }

    fn take(&self) -> Option<StatedLate> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *table);
        match taken.everybody {
            true => Some(StatedLate::Everybody),
            false if taken.users.is_empty() => None,
            false => Some(StatedLate::Users(taken.users.into_iter().collect())),
        }
    }

    pub(super) async fn next(&self) -> StatedLate {
        loop {
            if let Some(late) = self.take() {
                return late;
            }
            self.wake.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Late, StatedLate};

    #[tokio::test]
    async fn more_than_are_remembered_are_everybody_and_each_is_told_once() {
        let late = Late::new(2);
        late.add(&"alice".into());
        late.add(&"alice".into());
        assert_eq!(late.next().await, StatedLate::Users(vec!["alice".into()]));
        assert_eq!(late.take(), None);
        for user in ["alice", "bob", "carol", "dora"] {
            late.add(&user.into());
        }
        assert_eq!(late.next().await, StatedLate::Everybody);
        assert_eq!(late.take(), None);
    }
}
