//! Who wants to know when who comes and goes: the table of presence subscriptions.
//!
//! It decides what is told to whom; it asks nobody and sends nothing, except that
//! [`Watchers::confirm`] and [`Watchers::tell`] hand out under the lock, so that what a subscriber
//! hears last is how it is.
//!
//! # Coalescing
//! A change only marks its user. Once in an interval the marked ones are looked up, and what differs
//! from what was told last goes out: one event a subscriber, however many of its users changed, and
//! none for a user who went and came back meanwhile. So a storm of logins costs one look-up a watched
//! user and interval, and nothing for those nobody watches.
//!
//! # Bounds
//! Subscriptions of one subscriber and of all; whoever asks for one more is refused and keeps what
//! it has. Subscriptions of sessions end after a time unless renewed: what a client thinks it has
//! and this process has forgotten (it may have restarted) is put right by then.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use millrace_logic_sdk::SessionAddress;
use millrace_protocol::chat::UserPresence;
use tokio::sync::mpsc;

use super::online::Receiver;

/// Who subscribes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SubscriberId {
    /// A client's session.
    Session(SessionAddress),
    /// A stream of a business service.
    Service(u64),
}

/// Where a subscriber is told.
#[derive(Clone)]
pub(crate) enum Sink {
    Session(Receiver),
    Service(mpsc::Sender<Vec<UserPresence>>),
}

/// The bounds; see the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WatchersMax {
    pub subscriptions_per_session: usize,
    pub subscriptions: usize,
    pub services: usize,
}

/// Why a subscription was refused; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// This subscriber has too many.
    Subscriber,
    /// All have too many together.
    All,
}

/// See the module.
pub(crate) struct Watchers {
    max: WatchersMax,
    lifetime_ms: u64,
    /// Kept beside the table, so that a login asks it without a lock.
    subscriptions: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    subscribers: HashMap<SubscriberId, Subscriber>,
    watched: HashMap<Arc<str>, Watched>,
    /// Users to be looked up, each once.
    marked: VecDeque<Arc<str>>,
    /// When sessions' subscriptions end unless renewed.
    ends: BTreeSet<(u64, SubscriberId)>,
    services: usize,
    next_service: u64,
    /// Subscriptions so far; numbers them.
    tickets: u64,
}

struct Subscriber {
    sink: Sink,
    users: BTreeSet<Arc<str>>,
    /// `None` for a stream, which ends by itself.
    ends_at_ms: Option<u64>,
}

/// A user whom somebody watches.
struct Watched {
    /// Sorted.
    subscribers: Vec<SubscriberId>,
    /// The subscription that brought the user here. What an earlier one has found may be older than
    /// changes that nobody was here to note.
    since: Ticket,
    /// What was told last; `None` until the first subscriber was answered.
    told: Option<Arc<UserPresence>>,
    is_marked: bool,
}

/// A look-up that is under way: for a subscription that waits for its answer, or for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// What is to be sent: one list of users to each group of sessions that gets the same.
pub(crate) type Told = Vec<(Vec<UserPresence>, Vec<Receiver>)>;

impl Watchers {
    pub(crate) fn new(max: WatchersMax, lifetime_ms: u64) -> Self {
        Self { max, lifetime_ms, subscriptions: AtomicUsize::new(0), table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic under the lock is our own bug; the table is still the best that there is.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscriptions of all.
    pub(crate) fn subscriptions(&self) -> usize {
        self.subscriptions.load(Ordering::Relaxed)
    }

    /// Users marked and not looked up yet.
    pub(crate) fn marked(&self) -> usize {
        self.table().marked.len()
    }

    /// Subscribes a session to users, to these alone if `replace`, and renews what it has. Whoever asks
    /// looks the users up after this, and hands what was found to [`Watchers::confirm`].
    pub(crate) fn subscribe(
        &self,
        receiver: Receiver,
        users: &[String],
        replace: bool,
        now_ms: u64,
    ) -> Result<Ticket, Full> {
        let id = SubscriberId::Session(receiver.0);
        let max = self.max.subscriptions_per_session;
        let mut table = self.table();
        let sink = Sink::Session(receiver);
        let ticket = self.subscribe_in(&mut table, id, sink, users, replace, max)?;
        let table = &mut *table;
        if let Some(subscriber) = table.subscribers.get_mut(&id) {
            let ends_at_ms = now_ms + self.lifetime_ms;
            if let Some(earlier) = subscriber.ends_at_ms.replace(ends_at_ms) {
                table.ends.remove(&(earlier, id));
            }
            table.ends.insert((ends_at_ms, id));
        }
        Ok(ticket)
    }

    /// Subscribes a stream of a service, until it is forgotten.
    pub(crate) fn subscribe_service(
        &self,
        events: mpsc::Sender<Vec<UserPresence>>,
        users: &[String],
    ) -> Result<(SubscriberId, Ticket), Full> {
        let mut table = self.table();
        if table.services >= self.max.services {
            return Err(Full::Subscriber);
        }
        table.next_service += 1;
        let id = SubscriberId::Service(table.next_service);
        let sink = Sink::Service(events);
        let ticket = self.subscribe_in(&mut table, id, sink, users, false, usize::MAX)?;
        table.services += 1;
        Ok((id, ticket))
    }

    fn subscribe_in(
        &self,
        table: &mut Table,
        id: SubscriberId,
        sink: Sink,
        users: &[String],
        replace: bool,
        subscriber_max: usize,
    ) -> Result<Ticket, Full> {
        let has = table.subscribers.get(&id).map(|subscriber| &subscriber.users);
        let has = |user: &str| has.is_some_and(|users| users.contains(user));
        let wanted: BTreeSet<&str> = users.iter().map(String::as_str).collect();
        let held = table.subscribers.get(&id).map_or(0, |subscriber| subscriber.users.len());
        let new: Vec<&str> = wanted.iter().copied().filter(|user| !has(user)).collect();
        let kept = if replace { wanted.len() - new.len() } else { held };
        if kept + new.len() > subscriber_max {
            return Err(Full::Subscriber);
        }
        if self.subscriptions() - (held - kept) + new.len() > self.max.subscriptions {
            return Err(Full::All);
        }
        let new: Vec<Arc<str>> = new.into_iter().map(|user| table.name(user)).collect();
        if replace && held > kept {
            let gone = table.subscribers.get(&id).map(|subscriber| {
                subscriber.users.iter().filter(|u| !wanted.contains(&***u)).cloned().collect()
            });
            self.remove(table, id, gone.unwrap_or_default());
        }
        table.tickets += 1;
        let ticket = Ticket(table.tickets);
        for user in &new {
            let watched = table.watched.entry(Arc::clone(user)).or_insert_with(|| Watched {
                subscribers: Vec::with_capacity(1),
                since: ticket,
                told: None,
                is_marked: false,
            });
            if let Err(place) = watched.subscribers.binary_search(&id) {
                watched.subscribers.insert(place, id);
            }
        }
        self.subscriptions.fetch_add(new.len(), Ordering::Relaxed);
        let subscriber = table.subscribers.entry(id).or_insert_with(|| Subscriber {
            sink: sink.clone(),
            users: BTreeSet::new(),
            ends_at_ms: None,
        });
        subscriber.sink = sink;
        subscriber.users.extend(new);
        Ok(ticket)
    }

    /// Answers a subscription: gives each user as it was told to others last, else as it was found
    /// now, and calls `answer` before anything newer goes out.
    pub(crate) fn confirm(
        &self,
        ticket: Ticket,
        found: Vec<UserPresence>,
        answer: impl FnOnce(Vec<UserPresence>),
    ) {
        let mut table = self.table();
        let confirmed = found
            .into_iter()
            .map(|found| match table.watched.get_mut(&*found.user_id) {
                Some(watched) if watched.told.is_some() || watched.since <= ticket => {
                    let told = watched.told.get_or_insert_with(|| Arc::new(found));
                    UserPresence::clone(told)
                }
                // The subscription has ended already, and may have begun anew.
                _ => found,
            })
            .collect();
        answer(confirmed);
    }

    /// Ends subscriptions of a session: to these users, or all of them if there are none. Returns
    /// how many it has left.
    pub(crate) fn unsubscribe(&self, address: SessionAddress, users: &[String]) -> usize {
        let id = SubscriberId::Session(address);
        let mut table = self.table();
        let table = &mut *table;
        let Some(subscriber) = table.subscribers.get(&id) else { return 0 };
        let gone = match users {
            [] => subscriber.users.iter().cloned().collect(),
            users => users.iter().filter_map(|u| subscriber.users.get(&**u)).cloned().collect(),
        };
        self.remove(table, id, gone);
        let left = table.subscribers.get(&id).map_or(0, |subscriber| subscriber.users.len());
        if left == 0 {
            self.forget_in(table, id);
        }
        left
    }

    /// To how many users a session subscribes.
    pub(crate) fn subscriptions_of(&self, address: SessionAddress) -> usize {
        let subscribers = &self.table().subscribers;
        subscribers.get(&SubscriberId::Session(address)).map_or(0, |found| found.users.len())
    }

    /// A subscriber is gone.
    pub(crate) fn forget(&self, id: SubscriberId) {
        if self.subscriptions() > 0 {
            self.forget_in(&mut self.table(), id);
        }
    }

    fn forget_in(&self, table: &mut Table, id: SubscriberId) {
        if let Some(subscriber) = table.subscribers.get(&id) {
            let users = subscriber.users.iter().cloned().collect();
            let ends_at_ms = subscriber.ends_at_ms;
            self.remove(table, id, users);
            table.subscribers.remove(&id);
            if let Some(ends_at_ms) = ends_at_ms {
                table.ends.remove(&(ends_at_ms, id));
            }
            table.services -= usize::from(matches!(id, SubscriberId::Service(_)));
        }
    }

    /// Every service's stream ends.
    pub(crate) fn forget_services(&self) {
        let mut table = self.table();
        let is_service = |id: &&SubscriberId| matches!(id, SubscriberId::Service(_));
        let services: Vec<_> = table.subscribers.keys().filter(is_service).copied().collect();
        for id in services {
            self.forget_in(&mut table, id);
        }
    }

    fn remove(&self, table: &mut Table, id: SubscriberId, users: Vec<Arc<str>>) {
        let Some(subscriber) = table.subscribers.get_mut(&id) else { return };
        for user in users {
            if !subscriber.users.remove(&user) {
                continue;
            }
            self.subscriptions.fetch_sub(1, Ordering::Relaxed);
            let Some(watched) = table.watched.get_mut(&user) else { continue };
            if let Ok(place) = watched.subscribers.binary_search(&id) {
                watched.subscribers.remove(place);
            }
            // A marked one leaves the table when its turn comes.
            if watched.subscribers.is_empty() && !watched.is_marked {
                table.watched.remove(&user);
            }
        }
    }

    /// A user has come or gone. True if somebody wants to know.
    pub(crate) fn mark(&self, user_id: &str) -> bool {
        if self.subscriptions() == 0 {
            return false;
        }
        let mut table = self.table();
        let table = &mut *table;
        let Some((name, watched)) = table.watched.get_key_value(user_id) else { return false };
        if !watched.is_marked {
            table.marked.push_back(Arc::clone(name));
            if let Some(watched) = table.watched.get_mut(user_id) {
                watched.is_marked = true;
            }
        }
        true
    }

    /// Ends what was not renewed; returns when the next ends.
    pub(crate) fn expire(&self, now_ms: u64) -> Option<u64> {
        let mut table = self.table();
        while let Some((ends_at_ms, id)) = table.ends.first().copied() {
            if ends_at_ms > now_ms {
                return Some(ends_at_ms);
            }
            self.forget_in(&mut table, id);
        }
        None
    }

    /// The next users to be looked up, up to `users_max`, and what to hand to [`Watchers::tell`] with
    /// what was found. They may be marked again from now on.
    pub(crate) fn take_marked(&self, users_max: usize) -> (Vec<Arc<str>>, Ticket) {
        let mut table = self.table();
        let table = &mut *table;
        let count = users_max.min(table.marked.len());
        let mut taken: Vec<Arc<str>> = table.marked.drain(..count).collect();
        taken.retain(|user| {
            let Some(watched) = table.watched.get_mut(user) else { return false };
            watched.is_marked = false;
            let is_watched = !watched.subscribers.is_empty();
            if !is_watched {
                table.watched.remove(user);
            }
            is_watched
        });
        (taken, Ticket(table.tickets))
    }

    /// Tells subscribers what differs from what was told last. Streams of services get it here, and
    /// one that does not keep up is ended; sessions through `send`, under the lock. Returns how
    /// many streams were ended.
    pub(crate) fn tell(
        &self,
        ticket: Ticket,
        found: Vec<UserPresence>,
        send: impl FnOnce(Told),
    ) -> usize {
        let mut table = self.table();
        let table = &mut *table;
        let mut news: HashMap<SubscriberId, Vec<usize>> = HashMap::new();
        let mut users: Vec<Arc<UserPresence>> = Vec::new();
        for found in found {
            let Some(watched) = table.watched.get_mut(&*found.user_id) else { continue };
            // Whoever came after the look-up has looked for itself.
            if watched.since > ticket || watched.told.as_deref().is_some_and(|told| *told == found)
            {
                continue;
            }
            let found = Arc::new(found);
            if watched.told.replace(Arc::clone(&found)).is_none() {
                // Nobody was answered yet; the answers will say it.
                continue;
            }
            for id in &watched.subscribers {
                news.entry(*id).or_default().push(users.len());
            }
            users.push(found);
        }
        let list = |numbers: &[usize]| {
            numbers.iter().map(|number| UserPresence::clone(&users[*number])).collect::<Vec<_>>()
        };
        let mut slow = Vec::new();
        let mut same: HashMap<Vec<usize>, Vec<Receiver>> = HashMap::new();
        for (id, numbers) in news {
            let is_slow = match table.subscribers.get(&id).map(|subscriber| &subscriber.sink) {
                Some(Sink::Session(receiver)) => {
                    same.entry(numbers).or_default().push(*receiver);
                    false
                }
                Some(Sink::Service(events)) => events.try_send(list(&numbers)).is_err(),
                None => false,
            };
            if is_slow {
                slow.push(id);
            }
        }
        send(same.into_iter().map(|(numbers, to)| (list(&numbers), to)).collect());
        for id in &slow {
            self.forget_in(table, *id);
        }
        slow.len()
    }
}

impl Table {
    /// A user's id as it is kept already, or for the first time.
    fn name(&self, user_id: &str) -> Arc<str> {
        self.watched.get_key_value(user_id).map_or_else(|| user_id.into(), |(name, _)| name.clone())
    }
}

#[cfg(test)]
mod tests;
