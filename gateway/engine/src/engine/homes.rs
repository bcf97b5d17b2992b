//! Which logic a session is at home with: the choice at its login, another one when its link is lost,
//! and moves from one to another while both are up.
//!
//! A session's *home* is the link that hears of it: its frames, its refreshes and its end go there.
//! It has one or none. Logic hears of a session before anything else about it, because the session
//! gets its home in the moment in which it is listed on that stream. Without a home (its link is lost,
//! no other has room yet) its frames wait with it.
//!
//! A move happens while a batch for the old home is made: SessionEnded, marked as moved, goes into
//! that batch behind all that the session had under way, and the Session into the outbox of the new
//! one. So the old home's word is handed over first, and there is no moment in between. Only who has
//! no request in flight and nothing held back is moved.
//!
//! Bounds: `link_moves_per_second_max`, a batch of events that wait at the new home, and the slots
//! that are looked at in a turn. A logic that leaves is emptied in the time that it gives, at an even
//! pace.

use std::collections::BTreeMap;

use millrace_protocol::link::{
    Drained, Draining, RoomMembers, Session, SessionEnded, gateway_event::Kind,
};

use super::{
    Engine,
    login::{encoding_on_link, transport_on_link},
};
use crate::{
    Now,
    connection::{Facts, Phase},
    effect::ConnectionId,
    identity::Identity,
    link::{Home, Leaving, Link, Opening, Outgoing},
};

/// How often the loop turns for the sake of moves, while some are due.
const MOVE_INTERVAL_MS: u64 = 10;

/// Slots that are looked at for each move of a turn, and in any case: those who are busy, or at home
/// elsewhere, cost time, too.
const VISITS_PER_MOVE: u32 = 16;
const VISITS_MIN: u32 = 1_024;

/// What a logic that leaves is given if it says nothing.
const LEAVING_MS_MIN: u32 = 100;

/// Two homes are even when their difference is at most a tenth of what each should have, or this.
const DIFFERENCE_MAX: u32 = 2;

/// How fast sessions move.
#[derive(Debug)]
pub(super) struct Moves {
    /// Some link has too many, or leaves.
    are_due: bool,
    /// Thousandths of a move that may happen now.
    allowance: u64,
    filled_at_ms: u64,
    /// The slot to look at next.
    at: u32,
    visits_left: u32,
}

impl Moves {
    pub(super) const fn new(now: Now) -> Self {
        Self {
            are_due: false,
            allowance: 1_000,
            filled_at_ms: now.monotonic_ms,
            at: 0,
            visits_left: 0,
        }
    }

    /// Whether sessions are to move.
    pub(super) const fn are_due(&self) -> bool {
        self.are_due
    }

    fn fill(&mut self, now_ms: u64, per_second: u32) {
        let per_second = u64::from(per_second);
        let elapsed_ms = now_ms.saturating_sub(self.filled_at_ms);
        self.filled_at_ms = now_ms;
        let most = (per_second * 100).max(1_000);
        self.allowance = (self.allowance + elapsed_ms.saturating_mul(per_second)).min(most);
    }
}

impl Leaving {
    /// Sessions that should have moved by now: evenly over four fifths of the time, so that those who
    /// were busy have the rest.
    fn due(&self, now_ms: u64) -> u32 {
        let elapsed_ms = now_ms.saturating_sub(self.since_ms);
        let window_ms = (self.within_ms * 4 / 5).max(1);
        let due = u64::from(self.sessions) * elapsed_ms.min(window_ms) / window_ms;
        // At most the number of sessions.
        due as u32
    }
}

impl Engine {
    // --- the choice -----------------------------------------------------------------------------

    /// Where a login is decided: where the fewest are at home, of those that answer. Which of equals
    /// differs from connection to connection, and so from shard to shard.
    pub(super) fn home_for_login(&self, id: ConnectionId) -> Home {
        let places = self.links.places();
        if places == 0 {
            return Home::NONE;
        }
        let first = (id.slot() as usize + id.shard() as usize) % places;
        let links = (first..places).chain(0..first).filter_map(|at| self.links.in_place(at));
        let stays = links.filter(|link| link.leaving.is_none());
        let chosen = stays.min_by_key(|link| {
            (!link.is_ready, link.is_ready && !link.takes_moves, link.is_full, link.sessions)
        });
        chosen.map_or(Home::NONE, Link::home)
    }

    /// Whether a session without a home will find one without another link coming up.
    pub(super) fn is_home_in_sight(&self) -> bool {
        self.links.iter().any(Link::may_take_in)
    }

    /// Takes a connection out of its home's books.
    pub(super) fn leave_home(&mut self, id: ConnectionId) -> Home {
        let Some(connection) = self.get_mut(id) else { return Home::NONE };
        let home = std::mem::replace(&mut connection.home, Home::NONE);
        if let Some(link) = self.links.get_mut(home) {
            link.sessions -= 1;
        }
        home
    }

    // --- without a home -------------------------------------------------------------------------

    /// Whether a link takes in who has no home: one that answers, or any while none does.
    fn takes_in(&self, link: &Link) -> bool {
        let may = |link: &Link| link.may_take_in() && !link.is_full;
        let answers = |link: &Link| {
            let lists = matches!(link.opening, Opening::Sessions { .. });
            link.is_ready && (link.takes_moves || lists)
        };
        let is_open = match link.opening {
            Opening::Hello | Opening::Sessions { .. } => true,
            Opening::Rooms { .. } => false,
            Opening::Complete => link.is_settled(),
        };
        may(link)
            && is_open
            && (answers(link) || !self.links.iter().any(|other| may(other) && answers(other)))
    }

    /// How many more sessions are to find their home on this link, so that each link that takes some
    /// in has as many as the others.
    fn share_left(&self, home: Home) -> u32 {
        let Some(link) = self.links.get(home).filter(|link| self.takes_in(link)) else { return 0 };
        // Fewer than there are slots.
        let (mut links, mut sessions) = (0, self.counters.sessions_homeless as u32);
        for other in self.links.iter().filter(|other| self.takes_in(other)) {
            links += 1;
            sessions += other.sessions;
        }
        // At least this link is among them.
        sessions.div_ceil(links).saturating_sub(link.sessions)
    }

    /// Gives sessions without a home to a link, as far as its share and the batch allow. Returns how
    /// many, and whether the link has taken in all that it is to.
    pub(super) fn take_in(
        &mut self,
        home: Home,
        kinds: &mut Vec<Kind>,
        events_max: usize,
        moved: bool,
    ) -> (u64, bool) {
        let mut share = if self.counters.sessions_homeless > 0 { self.share_left(home) } else { 0 };
        let slots = self.connections.slots();
        let (mut visits, mut taken) = (slots, 0);
        let mut rooms = BTreeMap::new();
        while share > 0
            && self.counters.sessions_homeless > 0
            && visits > 0
            && kinds.len() + rooms.len() < events_max
        {
            visits -= 1;
            let slot = if self.homeless_at < slots { self.homeless_at } else { 0 };
            self.homeless_at = slot + 1;
            let is_without = |home: Home| home == Home::NONE;
            let Some((id, session)) = self.session_in_slot(slot, is_without, moved) else {
                continue;
            };
            if let Some(connection) = self.get_mut(id) {
                connection.home = home;
            }
            if let Some(link) = self.links.get_mut(home) {
                link.sessions += 1;
            }
            self.counters.sessions_homeless -= 1;
            share -= 1;
            taken += 1;
            kinds.push(Kind::Session(session));
            if moved {
                self.note_rooms(id, &mut rooms);
            }
            self.stand_in_line_anew(home, id);
        }
        kinds.extend(self.room_members(rooms));
        self.counters.sessions_taken_in += taken;
        let is_over = share == 0 || self.counters.sessions_homeless == 0 || visits == 0;
        (taken, is_over)
    }

    /// The session that lives in a slot, if its home is one of those meant.
    fn session_in_slot(
        &self,
        slot: u32,
        is_meant: impl Fn(Home) -> bool,
        moved: bool,
    ) -> Option<(ConnectionId, Session)> {
        let generation = self.connections.generation(slot)?;
        let connection = self.connections.at(slot).filter(|c| c.is_active() && is_meant(c.home))?;
        let identity = Identity::read(self.identities.get(connection.identity));
        let claims = identity.claims?;
        let id = ConnectionId::new(self.shard, generation, slot);
        let session = Session {
            session_id: id.raw(),
            user_id: claims.user_id,
            device_id: claims.device_id,
            platform: claims.platform,
            transport: transport_on_link(connection.transport()).into(),
            encoding: encoding_on_link(claims.is_json).into(),
            logged_in_at_ms: claims.logged_in_at_ms,
            expires_at_ms: claims.expires_at_ms,
            state: claims.state,
            moved,
        };
        Some((id, session))
    }

    fn note_rooms(&self, id: ConnectionId, rooms: &mut BTreeMap<u32, Vec<u64>>) {
        let Some(connection) = self.get(id) else { return };
        for membership in self.memberships.of(connection.rooms) {
            rooms.entry(membership.room()).or_default().push(id.raw());
        }
    }

    fn room_members(&self, rooms: BTreeMap<u32, Vec<u64>>) -> Vec<Kind> {
        let listed = rooms.into_iter().filter_map(|(room, session_ids)| {
            let (name, _) = self.rooms.in_slot(room)?;
            Some(Kind::RoomMembers(RoomMembers { room_id: name.into(), session_ids }))
        });
        listed.collect()
    }

    // --- moves ----------------------------------------------------------------------------------

    /// Looks whether sessions are to move, now that time has passed or a link has changed.
    pub(super) fn balance(&mut self) {
        let per_second = self.settings.link_moves_per_second_max;
        self.moves.fill(self.now.monotonic_ms, per_second);
        let are_due =
            self.links.places() > 1 && self.links.iter().any(|link| self.next_home(link).is_some());
        self.moves.are_due = are_due;
        if are_due {
            let moves = (self.moves.allowance / 1_000) as u32;
            let visits = VISITS_MIN + moves.saturating_mul(VISITS_PER_MOVE);
            // All slots of a large shard in less than a second, for a logic that leaves.
            self.moves.visits_left = visits.max(self.connections.slots() / 64);
        }
    }

    /// When [`Self::balance`] is due, and who has no home is to be looked at again.
    pub(super) fn next_moves_ms(&self) -> Option<u64> {
        let waits = self.counters.sessions_homeless > 0
            && self.links.iter().any(|link| self.takes_in(link));
        (self.moves.are_due || waits).then_some(self.now.monotonic_ms + MOVE_INTERVAL_MS)
    }

    /// Where the next session of this link moves, if one is to.
    fn next_home(&self, link: &Link) -> Option<Home> {
        if !link.is_settled() || link.sessions == 0 {
            return None;
        }
        let leaves = link.leaving.is_some();
        if !leaves && self.settings.link_moves_per_second_max == 0 {
            return None;
        }
        let (mut links, mut sessions) = (0, 0);
        let mut fewest: Option<&Link> = None;
        for other in self.links.iter().filter(|other| other.is_settled() && other.leaving.is_none())
        {
            links += 1;
            sessions += other.sessions;
            let has_room = !other.is_full && other.waiting() < self.settings.link_batch_events_max;
            let is_less = fewest.is_none_or(|fewest| other.sessions < fewest.sessions);
            if other.id != link.id && has_room && is_less {
                fewest = Some(other);
            }
        }
        let fewest = fewest?;
        // There is one at least, that with the fewest.
        let difference_max = (sessions / links / 10).max(DIFFERENCE_MAX);
        let is_uneven = link.sessions > fewest.sessions.saturating_add(difference_max);
        (leaves || is_uneven).then(|| fewest.home())
    }

    /// Moves sessions away from a link, whose outbox is empty, as far as they are due.
    pub(super) fn move_away(&mut self, home: Home, kinds: &mut Vec<Kind>, events_max: usize) {
        if self.moves.are_due {
            self.move_those_due(home, kinds, events_max);
        }
        if kinds.len() < events_max {
            self.say_drained(home, kinds);
        }
    }

    fn move_those_due(&mut self, home: Home, kinds: &mut Vec<Kind>, events_max: usize) {
        let now_ms = self.now.monotonic_ms;
        let slots = self.connections.slots();
        let mut visits = self.moves.visits_left.min(slots);
        self.moves.visits_left -= visits;
        while kinds.len() < events_max && visits > 0 {
            let Some(link) = self.links.get(home) else { return };
            let is_behind = link.leaving.is_some_and(|leaving| leaving.moved < leaving.due(now_ms));
            let may_move = is_behind || self.moves.allowance >= 1_000;
            let Some(next) = self.next_home(link).filter(|_| may_move) else { return };
            visits -= 1;
            let slot = if self.moves.at < slots { self.moves.at } else { 0 };
            self.moves.at = slot + 1;
            let is_idle = self.connections.at(slot).is_some_and(|connection| {
                connection.phase == Phase::Active
                    && connection.home == home
                    && connection.requests(&self.works) == 0
                    && connection.backlog_frames(&self.works) == 0
            });
            if is_idle && let Some((id, session)) = self.session_in_slot(slot, |_| true, true) {
                self.moves.allowance = self.moves.allowance.saturating_sub(1_000);
                kinds.push(Kind::SessionEnded(SessionEnded {
                    session_id: id.raw(),
                    code: 0,
                    moved: true,
                }));
                self.move_session(id, session, home, next);
            }
        }
        self.moves.visits_left += visits;
    }

    /// The old home has been told.
    fn move_session(&mut self, id: ConnectionId, session: Session, from: Home, to: Home) {
        if let Some(link) = self.links.get_mut(from) {
            link.sessions -= 1;
            if let Some(leaving) = &mut link.leaving {
                leaving.moved += 1;
            }
        }
        if let Some(connection) = self.get_mut(id) {
            connection.home = to;
            connection.set(Facts::ARRIVING, true);
        }
        if let Some(link) = self.links.get_mut(to) {
            link.sessions += 1;
        }
        self.counters.sessions_moved += 1;
        self.send_to_logic(to, Outgoing::Event(Kind::Session(session)));
        let mut rooms = BTreeMap::new();
        self.note_rooms(id, &mut rooms);
        for members in self.room_members(rooms) {
            self.send_to_logic(to, Outgoing::Event(members));
        }
    }

    // --- a logic that leaves --------------------------------------------------------------------

    /// Logic is about to leave: it gets no new logins, and its sessions move.
    pub(super) fn logic_leaves(&mut self, home: Home, draining: &Draining) {
        let since_ms = self.now.monotonic_ms;
        let within_ms = u64::from(draining.reconnect_after_ms.max(LEAVING_MS_MIN));
        if let Some(link) = self.links.get_mut(home)
            && link.leaving.is_none()
        {
            let sessions = link.sessions;
            let leaving = Leaving { since_ms, within_ms, sessions, moved: 0, is_told: false };
            link.leaving = Some(leaving);
        }
        self.balance();
    }

    /// Says so when nothing is at home any more with a logic that leaves, or nobody else is there.
    fn say_drained(&mut self, home: Home, kinds: &mut Vec<Kind>) {
        let Some(link) = self.links.get(home) else { return };
        let Some(leaving) = link.leaving.filter(|leaving| !leaving.is_told) else { return };
        // A login whose client is gone becomes a session there as well, until logic hears of its end.
        let abandoned = self.abandoned_logins.values().filter(|(_, asked)| *asked == home).count();
        let sessions_left = u64::from(link.sessions) + abandoned as u64;
        let may_come = |other: &Link| {
            other.id != link.id && other.leaving.is_none() && (!other.is_ready || other.takes_moves)
        };
        if sessions_left > 0 && link.takes_moves && self.links.iter().any(may_come) {
            return;
        }
        kinds.push(Kind::Drained(Drained { sessions_left }));
        if let Some(link) = self.links.get_mut(home) {
            link.leaving = Some(Leaving { is_told: true, ..leaving });
        }
    }
}
