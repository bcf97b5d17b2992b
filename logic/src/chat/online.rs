//! Who is connected to this logic process, and how far each session is in being caught up.
//!
//! A table in memory: users, their sessions and rates, and two queues of sessions, one for the
//! lifecycle task and one for catch-ups. It sends nothing and waits for nothing; its lock is held
//! for moments. Its size follows the sessions of the connected gateways, which the SDK bounds; the
//! queues hold a few entries a session at most.
//!
//! # How nothing is pushed twice and nothing is missed
//! A session starts *catching up*: what is committed from then on is held back for it
//! ([`Online::targets`] puts it aside), while its undelivered messages are read from the store
//! (everything up to the version of that moment) and pushed. [`Online::finish_catch_up`] then
//! hands out what was held, without what was pushed already, and the session is *live*. A commit
//! that was durable before the read, but whose deliveries were not yet sent, is recognised by the
//! highest sequence pushed in its conversation. Where other processes store messages as well, their
//! events may come so late that the session was caught up once more meanwhile; so what was pushed is
//! remembered over catch-ups that follow each other, until no event of before can come any more.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use millrace_logic_sdk::{Session, SessionAddress};
use millrace_protocol::{
    chat::Message,
    link::{Encoding, Transport},
    peer::SessionName,
};
use prost::Message as _;

use super::{
    paces::{Paced, Paces, RequestClass},
    rate::{Bucket, Rate},
};
use crate::storage::extras::STATE_NORMAL;

/// A session to push to, and in which form.
pub(crate) type Receiver = (SessionAddress, Encoding);

/// What the lifecycle task has to do, in order.
pub(crate) enum Lifecycle {
    /// A session that logged in: presence, device policy.
    Started(Arc<Session>),
    /// A session that logged in when another life of logic served it: the same.
    Replayed(Arc<Session>),
    /// A session that was known here and whose gateway came back, of a user who may have logged out
    /// everywhere meanwhile.
    Returned(Arc<Session>),
    /// A session that is gone.
    Ended(Arc<Session>),
    /// A session that another logic process serves from now on.
    Moved(Arc<Session>),
}

impl Lifecycle {
    /// Whose session it is about.
    pub(crate) fn user_id(&self) -> &str {
        match self {
            Self::Started(session)
            | Self::Replayed(session)
            | Self::Returned(session)
            | Self::Ended(session)
            | Self::Moved(session) => &session.user_id,
        }
    }
}

/// The rates of [`Online::admit`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub frames: Rate,
    pub messages: Rate,
}

/// How much is held back for one session that is catching up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldMax {
    pub messages: usize,
    pub bytes: usize,
}

/// See the module.
pub(crate) struct Online {
    rates: Rates,
    held_max: HeldMax,
    paces: Paces,
    started_at: Instant,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    users: HashMap<Arc<str>, User>,
    sessions: usize,
    /// Those of them that came over WebSocket.
    websockets: usize,
    lifecycle: VecDeque<Lifecycle>,
    /// Sessions to be caught up, with the round that asked for it.
    catch_ups: VecDeque<(Arc<Session>, u64)>,
    /// Deliveries of every commit up to this version were handed out.
    delivered_version: u64,
    /// Catch-ups begun so far; numbers them, so that a late result is never taken for a newer one.
    rounds: u64,
}

struct User {
    sessions: Vec<Entry>,
    frames: Bucket,
    messages: Bucket,
}

struct Entry {
    session: Arc<Session>,
    delivery: Delivery,
}

/// Boxed where they are large, since nearly all sessions are live with nothing pushed.
enum Delivery {
    CatchingUp(Box<CatchingUp>),
    /// Everything new goes out. `pushed` is kept only while deliveries of commits that the
    /// catch-up has read may still come.
    Live {
        pushed: Option<Box<Pushed>>,
    },
}

struct CatchingUp {
    /// Which catch-up; a result of an earlier one is void.
    round: u64,
    held: Vec<Message>,
    held_bytes: usize,
    overflowed: bool,
    /// The first round since the link was whole or the session live: what it and later ones have pushed has
    /// arrived.
    since: u64,
    /// What catch-ups before this one have pushed.
    earlier: Option<Box<Pushed>>,
}

impl CatchingUp {
    /// Puts a message aside, or gives all of them up when there are too many.
    fn hold(&mut self, message: &Message, max: HeldMax) {
        if self.overflowed {
            return;
        }
        self.held_bytes += message.encoded_len();
        if self.held.len() < max.messages && self.held_bytes <= max.bytes {
            self.held.push(message.clone());
        } else {
            self.overflowed = true;
            self.held = Vec::new();
        }
    }
}

impl Delivery {
    fn catching_up(round: u64, earlier: Option<Box<Pushed>>) -> Self {
        let held = Vec::new();
        let (held_bytes, overflowed, since) = (0, false, round);
        let all = CatchingUp { round, held, held_bytes, overflowed, since, earlier };
        Self::CatchingUp(Box::new(all))
    }

    /// Catches up once more. What was pushed before is remembered, as its events may still be on their way.
    fn begin(&mut self, round: u64) {
        let (earlier, since) = match self {
            Self::CatchingUp(catching_up) => (catching_up.earlier.take(), catching_up.since),
            Self::Live { pushed } => (pushed.take(), round),
        };
        *self = Self::catching_up(round, earlier);
        if let Self::CatchingUp(catching_up) = self {
            catching_up.since = since;
        }
    }

    fn is_round(&self, wanted: u64) -> bool {
        matches!(self, Self::CatchingUp(catching_up) if catching_up.round == wanted)
    }
}

/// What a catch-up has pushed.
#[derive(Debug, Default)]
pub(crate) struct Pushed {
    /// The catch-up read the store up to this version.
    pub as_of: u64,
    /// The highest sequence pushed of each conversation.
    pub highest: HashMap<String, u64>,
}

/// Conversations of which it is remembered how far they were pushed. Above it only the newest catch-up is
/// remembered, so that a message may be pushed again after later ones if its event is late.
const PUSHED_CONVERSATIONS_MAX: usize = 1_024;

impl Pushed {
    /// Adds what an earlier catch-up has pushed.
    fn add(&mut self, earlier: Self) {
        self.as_of = self.as_of.max(earlier.as_of);
        if self.highest.len() + earlier.highest.len() > PUSHED_CONVERSATIONS_MAX {
            return;
        }
        for (conversation_id, sequence) in earlier.highest {
            let highest = self.highest.entry(conversation_id).or_default();
            *highest = sequence.max(*highest);
        }
    }

    /// What became of a message later (it was revoked, say) is news also to who has the message.
    pub(crate) fn covers(&self, message: &Message) -> bool {
        if message.state != STATE_NORMAL {
            return false;
        }
        self.highest.get(&message.conversation_id).is_some_and(|h| message.sequence <= *h)
    }
}

/// What became of [`Online::finish_catch_up`].
#[derive(Debug, PartialEq)]
pub(crate) enum Finished {
    /// The session is live.
    Live,
    /// The held messages outgrew their bound: read the store again.
    Again,
    /// The session ended, or another catch-up of it has begun.
    Void,
}

impl Online {
    pub(crate) fn new(rates: Rates, held_max: HeldMax, paces: Paces) -> Self {
        let (started_at, table) = (Instant::now(), Mutex::default());
        Self { rates, held_max, paces, started_at, table }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic under the lock is our own bug; the table is still the best that there is.
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Milliseconds since this process began, for rates and for what lasts a while.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started_at.elapsed().as_millis() as u64
    }

    /// Users in the table.
    pub(crate) fn users(&self) -> usize {
        self.table().users.len()
    }

    /// A session that logged in, or was listed to this process for the first time.
    pub(crate) fn start(&self, session: Arc<Session>, replayed: bool) {
        let now_ms = self.now_ms();
        let mut table = self.table();
        let table = &mut *table;
        let user = match table.users.entry(session.user_id.clone()) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => entry.insert(User {
                sessions: Vec::with_capacity(1),
                frames: Bucket::full(self.rates.frames, now_ms),
                messages: Bucket::full(self.rates.messages, now_ms),
            }),
        };
        if user.sessions.iter().any(|e| e.session.address == session.address) {
            return;
        }
        table.rounds += 1;
        let delivery = Delivery::catching_up(table.rounds, None);
        user.sessions.push(Entry { session: session.clone(), delivery });
        table.sessions += 1;
        table.websockets += usize::from(session.transport == Transport::Websocket);
        table.catch_ups.push_back((session.clone(), table.rounds));
        table.lifecycle.push_back(match replayed {
            false => Lifecycle::Started(session),
            true => Lifecycle::Replayed(session),
        });
    }

    /// The link of a session was down: what was sent meanwhile is lost, so it catches up again. Its
    /// end may be among that, if its user `may_be_over`.
    pub(crate) fn keep(&self, session: Arc<Session>, may_be_over: impl FnOnce(&str) -> bool) {
        let mut table = self.table();
        if may_be_over(&session.user_id) {
            table.lifecycle.push_back(Lifecycle::Returned(session.clone()));
        }
        let round = table.rounds + 1;
        if let Some(entry) = table.entry(&session.user_id, session.address) {
            // What was pushed before may not have arrived.
            entry.delivery = Delivery::catching_up(round, None);
            table.rounds = round;
            table.catch_ups.push_back((session, round));
        }
    }

    /// A session is gone.
    pub(crate) fn end(&self, session: Arc<Session>) {
        self.remove(session, Lifecycle::Ended);
    }

    /// A session is at home with another logic process.
    pub(crate) fn move_away(&self, session: Arc<Session>) {
        self.remove(session, Lifecycle::Moved);
    }

    /// Whether a session is at home here.
    pub(crate) fn has(&self, session: &Session) -> bool {
        self.table().entry(&session.user_id, session.address).is_some()
    }

    fn remove(&self, session: Arc<Session>, what: impl FnOnce(Arc<Session>) -> Lifecycle) {
        let mut table = self.table();
        let table = &mut *table;
        let hash_map::Entry::Occupied(mut user) = table.users.entry(session.user_id.clone()) else {
            return;
        };
        let sessions = &mut user.get_mut().sessions;
        let Some(index) = sessions.iter().position(|e| e.session.address == session.address) else {
            return;
        };
        sessions.swap_remove(index);
        if sessions.is_empty() {
            user.remove();
        }
        table.sessions -= 1;
        table.websockets -= usize::from(session.transport == Transport::Websocket);
        table.lifecycle.push_back(what(session));
    }

    /// The next thing for the lifecycle task.
    pub(crate) fn next_lifecycle(&self) -> Option<Lifecycle> {
        self.table().lifecycle.pop_front()
    }

    /// The next session to be caught up, and the round that begins with this call. Sessions that
    /// have gone, or asked again, are passed over.
    pub(crate) fn next_catch_up(&self) -> Option<(Arc<Session>, u64)> {
        let mut table = self.table();
        while let Some((session, asked)) = table.catch_ups.pop_front() {
            let entry = table.entry(&session.user_id, session.address);
            if entry.is_some_and(|entry| entry.delivery.is_round(asked)) {
                let round = table.begin_catch_up(&session)?;
                return Some((session, round));
            }
        }
        None
    }

    /// How much waits for the lifecycle task, and for a catch-up.
    pub(crate) fn queued(&self) -> (usize, usize) {
        let table = self.table();
        (table.lifecycle.len(), table.catch_ups.len())
    }

    /// Where a user's sessions are.
    pub(crate) fn sessions_of(&self, user_id: &str) -> Vec<SessionAddress> {
        let table = self.table();
        let sessions = table.users.get(user_id).map(|user| &user.sessions);
        sessions.into_iter().flatten().map(|entry| entry.session.address).collect()
    }

    /// The session of this name, if this process is its home.
    pub(crate) fn find(&self, name: &SessionName) -> Option<SessionAddress> {
        let table = self.table();
        let user = table.users.get(&name.user_id[..])?;
        let found = user.sessions.iter().map(|entry| &entry.session).find(|session| {
            session.address.session_id == name.session_id
                && session.logged_in_at_ms == name.logged_in_at_ms
                && *session.gateway_id == *name.gateway_id
        })?;
        Some(found.address)
    }

    /// Messages were lost on their way here, it is not known whose: everybody is to be caught up.
    pub(crate) fn catch_up_everybody(&self) {
        let mut table = self.table();
        let table = &mut *table;
        for user in table.users.values_mut() {
            user.begin_catch_ups(&mut table.rounds, &mut table.catch_ups);
        }
    }

    /// Takes one request off a user's rate, whether online or not. Err holds how long to wait, in
    /// milliseconds.
    pub(crate) fn pace(&self, user_id: &str, kind: Paced) -> Result<(), u32> {
        self.paces.take(user_id, kind, self.now_ms()).map_err(wait_ms)
    }

    /// Users and kinds of request whose rate is not unused.
    pub(crate) fn paced_buckets(&self) -> usize {
        self.paces.buckets()
    }

    /// Takes the frames of one batch off their users' rates. Err holds how long to wait, in
    /// milliseconds.
    pub(crate) fn admit<'a>(
        &self,
        frames: impl Iterator<Item = (&'a str, RequestClass)>,
        verdicts: &mut Vec<Result<(), u32>>,
    ) {
        let now_ms = self.now_ms();
        let mut table = self.table();
        for (user_id, class) in frames {
            // A frame of a session that has just ended is taken on; its reply goes nowhere.
            let verdict = table.users.get_mut(user_id).map_or(Ok(()), |user| {
                user.frames.take(self.rates.frames, now_ms)?;
                match class {
                    RequestClass::Frame => Ok(()),
                    RequestClass::Message => user.messages.take(self.rates.messages, now_ms),
                    RequestClass::Paced(kind) => self.paces.take(user_id, kind, now_ms),
                }
            });
            verdicts.push(verdict.map_err(wait_ms));
        }
    }

    /// Starts handing out the deliveries of a commit.
    pub(crate) fn deliveries(&self) -> Deliveries<'_> {
        Deliveries { held_max: self.held_max, table: self.table() }
    }

    /// Begins a catch-up, or begins it anew: from now on messages are held back. `None` when the
    /// session is gone.
    pub(crate) fn begin_catch_up(&self, session: &Session) -> Option<u64> {
        self.table().begin_catch_up(session)
    }

    /// Whether this round of a catch-up is still wanted.
    pub(crate) fn is_catching_up(&self, session: &Session, wanted: u64) -> bool {
        let mut table = self.table();
        table
            .entry(&session.user_id, session.address)
            .is_some_and(|entry| entry.delivery.is_round(wanted))
    }

    /// Ends a catch-up: `send` gets the messages that were held back, without those pushed, and
    /// runs under the lock, so that nothing overtakes them.
    pub(crate) fn finish_catch_up(
        &self,
        session: &Session,
        finished_round: u64,
        mut pushed: Pushed,
        send: impl FnOnce(Vec<Message>),
    ) -> Finished {
        let mut table = self.table();
        let delivered_version = table.delivered_version;
        let Some(entry) = table.entry(&session.user_id, session.address) else {
            return Finished::Void;
        };
        let Delivery::CatchingUp(catching_up) = &mut entry.delivery else {
            return Finished::Void;
        };
        if finished_round < catching_up.since {
            return Finished::Void;
        }
        if let Some(earlier) = catching_up.earlier.take() {
            pushed.add(*earlier);
        }
        let is_wanted = catching_up.round == finished_round;
        if !is_wanted || catching_up.overflowed {
            catching_up.earlier = Some(Box::new(pushed));
            return if is_wanted { Finished::Again } else { Finished::Void };
        }
        let mut held = std::mem::take(&mut catching_up.held);
        held.retain(|message| !pushed.covers(message));
        if !held.is_empty() {
            send(held);
        }
        let more_may_come = pushed.as_of > delivered_version && !pushed.highest.is_empty();
        entry.delivery = Delivery::Live { pushed: more_may_come.then(|| Box::new(pushed)) };
        Finished::Live
    }

    /// Sessions by transport, for the metrics.
    pub(crate) fn sessions_by_transport(&self) -> (usize, usize) {
        let table = self.table();
        (table.sessions - table.websockets, table.websockets)
    }
}

fn wait_ms(wait: Duration) -> u32 {
    wait.as_millis().min(60_000) as u32
}

/// The table, locked while the deliveries of one commit are handed out.
pub(crate) struct Deliveries<'a> {
    held_max: HeldMax,
    table: MutexGuard<'a, Table>,
}

impl Deliveries<'_> {
    /// Appends the live sessions of these users that get this message to `receivers`. Those that
    /// are catching up have it put aside; `except` has it already. `settled`: everything stored up to
    /// this version was handed out before.
    pub(crate) fn targets(
        &mut self,
        message: &Message,
        settled: u64,
        users: &[Arc<str>],
        except: Option<SessionAddress>,
        receivers: &mut Vec<Receiver>,
    ) {
        for user_id in users {
            let Some(user) = self.table.users.get_mut(user_id) else { continue };
            for entry in &mut user.sessions {
                if Some(entry.session.address) == except {
                    continue;
                }
                match &mut entry.delivery {
                    Delivery::CatchingUp(catching_up) => {
                        catching_up.hold(message, self.held_max);
                    }
                    Delivery::Live { pushed } => {
                        if let Some(earlier) = pushed {
                            if earlier.covers(message) {
                                continue;
                            }
                            if settled >= earlier.as_of {
                                *pushed = None;
                            }
                        }
                        receivers.push((entry.session.address, entry.session.encoding));
                    }
                }
            }
        }
    }

    /// Messages to these users were lost on their way here: their sessions are to be caught up. Says
    /// whether there are any.
    pub(crate) fn catch_up(&mut self, user_ids: &[Arc<str>]) -> bool {
        let table = &mut *self.table;
        let before = table.catch_ups.len();
        for user_id in user_ids {
            let Some(user) = table.users.get_mut(user_id) else { continue };
            user.begin_catch_ups(&mut table.rounds, &mut table.catch_ups);
        }
        table.catch_ups.len() > before
    }

    /// Whether the user has a session.
    pub(crate) fn is_online(&self, user_id: &str) -> bool {
        self.table.users.contains_key(user_id)
    }

    /// Appends every session of these users to `receivers`, caught up or not, for what is not
    /// stored.
    pub(crate) fn everybody(
        &self,
        users: impl IntoIterator<Item = impl AsRef<str>>,
        except: Option<SessionAddress>,
        receivers: &mut Vec<Receiver>,
    ) {
        for user_id in users {
            let Some(user) = self.table.users.get(user_id.as_ref()) else { continue };
            receivers.extend(
                user.sessions
                    .iter()
                    .filter(|e| Some(e.session.address) != except)
                    .map(|e| (e.session.address, e.session.encoding)),
            );
        }
    }

    /// Every delivery up to this version was handed out.
    pub(crate) fn done(mut self, version: u64) {
        self.table.delivered_version = self.table.delivered_version.max(version);
    }
}

impl User {
    /// Begins a catch-up of every session, or begins it anew.
    fn begin_catch_ups(&mut self, rounds: &mut u64, catch_ups: &mut VecDeque<(Arc<Session>, u64)>) {
        for entry in &mut self.sessions {
            *rounds += 1;
            entry.delivery.begin(*rounds);
            catch_ups.push_back((entry.session.clone(), *rounds));
        }
    }
}

impl Table {
    fn entry(&mut self, user_id: &str, address: SessionAddress) -> Option<&mut Entry> {
        self.users.get_mut(user_id)?.sessions.iter_mut().find(|e| e.session.address == address)
    }

    fn begin_catch_up(&mut self, session: &Session) -> Option<u64> {
        let next = self.rounds + 1;
        let entry = self.entry(&session.user_id, session.address)?;
        entry.delivery.begin(next);
        self.rounds = next;
        Some(next)
    }
}

#[cfg(test)]
pub(super) mod tests;
