//! Users whose sessions have changed and are to be stated in Redis. No I/O.
//!
//! What waits is the user, not the change: whoever takes it states what is true then. So a user waits
//! once however much happens, nothing old can be stated after something new, and what was not stated
//! in an outage is stated after it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, oneshot};

use super::entry::Entry;

/// Gets what other logic processes have stated of a user; dropped when that is not known.
pub(super) type Waiter = oneshot::Sender<Vec<Entry>>;

/// See the module. One for each writer.
pub(super) struct Queue {
    users_max: usize,
    table: Mutex<Table>,
    pub(super) wake: Notify,
}

/// Who waits for a user to be stated.
#[derive(Default)]
pub(super) struct Waiting {
    pub waiters: Vec<Waiter>,
    /// Somebody was told that it was not stated, or it was lost.
    pub is_late: bool,
}

#[derive(Default)]
struct Table {
    waiting: HashMap<Arc<str>, Waiting>,
    order: VecDeque<Arc<str>>,
}

impl Queue {
    pub(super) fn new(users_max: usize) -> Self {
        Self { users_max, table: Mutex::default(), wake: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is whole after each statement, so a panic elsewhere spoils nothing.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a user into the queue, once. False: it is full; the waiter is gone.
    pub(super) fn add(&self, user_id: &Arc<str>, waiter: Option<Waiter>) -> bool {
        let is_in = self.insert(user_id, waiter);
        if is_in {
            self.wake.notify_one();
        }
        is_in
    }

    /// Puts a user back who was not stated, and wakes nobody: who puts back knows. False: it is full.
    pub(super) fn put_back(&self, user_id: &Arc<str>) -> bool {
        self.insert(user_id, None)
    }

    fn insert(&self, user_id: &Arc<str>, waiter: Option<Waiter>) -> bool {
        let mut table = self.table();
        if let Some(waiting) = table.waiting.get_mut(user_id) {
            waiting.is_late |= waiter.is_none();
            waiting.waiters.extend(waiter);
            return true;
        }
        if table.waiting.len() >= self.users_max {
            return false;
        }
        table.order.push_back(Arc::clone(user_id));
        let is_late = waiter.is_none();
        let waiters = waiter.into_iter().collect();
        table.waiting.insert(Arc::clone(user_id), Waiting { waiters, is_late });
        true
    }

    /// The next users, in the order they came. Whoever changes from now on is put in again.
    pub(super) fn take(&self, users_max: usize) -> Vec<(Arc<str>, Waiting)> {
        let mut table = self.table();
        let table = &mut *table;
        let count = users_max.min(table.order.len());
        let users = table.order.drain(..count);
        let taken = users.map(|user_id| {
            let waiting = table.waiting.remove(&user_id).unwrap_or_default();
            (user_id, waiting)
        });
        taken.collect()
    }

    /// Users that wait.
    pub(super) fn len(&self) -> usize {
        self.table().order.len()
    }

    /// Lets go whoever waits for an answer; the users stay.
    pub(super) fn release(&self) {
        for waiting in self.table().waiting.values_mut() {
            waiting.is_late |= !waiting.waiters.is_empty();
            waiting.waiters.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::Queue;

    #[test]
    fn a_user_waits_once_and_all_who_wait_for_it_are_answered() {
        let queue = Queue::new(10);
        let alice: Arc<str> = "alice".into();
        let (first, mut first_answer) = oneshot::channel();
        let (second, mut second_answer) = oneshot::channel();
        assert!(queue.add(&alice, Some(first)) && queue.add(&alice, Some(second)));
        assert!(queue.add(&"bob".into(), None));
        let taken = queue.take(1);
        assert_eq!((taken.len(), taken[0].1.waiters.len(), queue.len()), (1, 2, 1));
        assert!(!taken[0].1.is_late);
        // A change while it is being stated: it has to be stated again.
        assert!(queue.add(&alice, None));
        assert_eq!(queue.len(), 2);
        for waiter in taken.into_iter().flat_map(|(_, waiting)| waiting.waiters) {
            waiter.send(Vec::new()).expect("somebody waits");
        }
        assert!(first_answer.try_recv().is_ok() && second_answer.try_recv().is_ok());
    }

    #[test]
    fn who_was_let_go_or_never_waited_makes_it_late() {
        let queue = Queue::new(10);
        let (waiter, _answer) = oneshot::channel();
        queue.add(&"alice".into(), Some(waiter));
        queue.add(&"bob".into(), None);
        queue.release();
        let (waiter, _answer) = oneshot::channel();
        queue.add(&"alice".into(), Some(waiter));
        let taken = queue.take(9);
        assert!(taken.iter().all(|(_, waiting)| waiting.is_late));
        assert_eq!(taken[0].1.waiters.len(), 1);
    }

    #[test]
    fn a_full_queue_takes_nobody_new() {
        let queue = Queue::new(1);
        assert!(queue.add(&"alice".into(), None));
        assert!(!queue.add(&"bob".into(), None));
        assert!(queue.add(&"alice".into(), None), "she waits already");
        assert_eq!(queue.take(9).len(), 1);
        assert!(queue.add(&"bob".into(), None));
    }
}
