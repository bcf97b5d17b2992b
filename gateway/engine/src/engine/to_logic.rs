//! The streams to logic: their beginnings with the lists of sessions and rooms, their ends, and the
//! batches.

use millrace_protocol::link::{
    ConnectRequest, GatewayEvent, Hello, RoomMembers, SessionEnded, SessionsComplete,
    gateway_event::Kind,
};

use super::Engine;
use crate::{
    LinkId, Now,
    connection::{Facts, Phase},
    effect::ConnectionId,
    link::{Home, Link, Opening, Outgoing},
};

/// Members of a room in one RoomMembers; more come in several.
const ROOM_MEMBERS_PER_EVENT_MAX: usize = 4_096;

impl Engine {
    /// A stream is open. Hello, those of the sessions without a home that it takes in, their rooms and
    /// SessionsComplete go out on it. Any number of streams may be open, up to 255.
    pub fn link_up(&mut self, now: Now, link: LinkId) {
        self.now = now;
        // The owner may have skipped the end of the old stream.
        self.link_down(now, link);
        self.counters.link_ups += 1;
        self.streams += 1;
        let heartbeat_at_ms = now.monotonic_ms + self.heartbeat_interval_ms();
        self.links.put(Link::new(link, self.streams, heartbeat_at_ms, self.identity.window));
    }

    /// Whether logic has answered the stream's Hello, so that client frames have credit.
    pub fn link_is_ready(&self, link: LinkId) -> bool {
        self.links.get(Home::at(link)).is_some_and(|link| link.is_ready)
    }

    /// A third of the lease: two batches may be lost before logic gives the sessions up.
    fn heartbeat_interval_ms(&self) -> u64 {
        u64::from(self.identity.lease_ms / 3).max(1)
    }

    /// The stream takes no batch now. What waits for it will say that we live; until then no
    /// heartbeat is due, else [`Self::next_deadline_ms`] would ask for one without end. Nobody new
    /// finds a home there meanwhile.
    pub fn link_is_full(&mut self, link: LinkId) {
        let postponed_ms = self.now.monotonic_ms + self.heartbeat_interval_ms();
        if let Some(link) = self.links.get_mut(Home::at(link)) {
            link.is_full = true;
            link.heartbeat_at_ms = link.heartbeat_at_ms.max(postponed_ms);
        }
    }

    /// A stream has ended. Requests and logins in flight there are answered `logic_unavailable`; its
    /// sessions stay, and the other streams take them in.
    pub fn link_down(&mut self, now: Now, link: LinkId) {
        self.now = now;
        let home = Home::at(link);
        let Some(lost) = self.links.take(home) else { return };
        self.counters.link_downs += 1;
        self.counters.link_outbox_events -= lost.waiting() as u64;
        let before = self.abandoned_logins.len();
        self.abandoned_logins.retain(|_, (_, asked)| *asked != home);
        self.counters.logins_in_flight -= (before - self.abandoned_logins.len()) as u64;
        let is_home_in_sight = self.is_home_in_sight();
        for slot in 0..self.connections.slots() {
            let Some(id) = self.id_in_slot(slot) else { continue };
            let Some(connection) = self.connections.at_mut(slot) else { continue };
            let is_active = connection.is_active();
            if connection.home == home {
                if is_active {
                    connection.home = Home::NONE;
                    connection.set(Facts::ARRIVING, false);
                    self.counters.sessions_homeless += 1;
                }
                self.fail_work(id);
            } else if connection.home == Home::NONE && is_active && !is_home_in_sight {
                self.fail_work(id);
            }
        }
        self.balance();
    }

    /// Answers whatever a connection has asked of logic.
    fn fail_work(&mut self, id: ConnectionId) {
        let Some((connection, works)) = self.parts(id) else { return };
        if connection.phase == Phase::LoginPending {
            return self.fail_login(id);
        }
        let requests = connection.take_requests(works);
        let mut untold = 0;
        let mut backlog = 0;
        while let Some(waiting) = connection.pop_backlog(works) {
            backlog += 1;
            untold += u64::from(waiting.frame.request_id == 0 && waiting.acknowledge == 0);
        }
        self.counters.requests_in_flight -= requests.len() as u64;
        self.counters.backlog_frames -= backlog;
        for request_id in requests {
            self.logic_unavailable(id, request_id);
        }
        if untold > 0 {
            self.counters.dropped[crate::Dropped::LogicUnavailable as usize] += untold;
            self.logic_unavailable(id, 0);
        }
        self.resume_receive(id);
    }

    /// Puts something on the way to logic, if its link is up.
    pub(super) fn send_to_logic(&mut self, home: Home, outgoing: Outgoing) {
        if let Some(link) = self.links.get_mut(home) {
            link.push(outgoing);
            self.counters.link_outbox_events += 1;
        }
    }

    /// Tells the logic that it was at home with that a session has ended.
    pub(super) fn tell_session_ended(&mut self, home: Home, id: ConnectionId, code: u32) {
        let ended = SessionEnded { session_id: id.raw(), code, moved: false };
        self.send_to_logic(home, Outgoing::Event(Kind::SessionEnded(ended)));
    }

    /// The next batch for this link, or `None` if nothing is due. An empty batch is a heartbeat,
    /// or gives credit back.
    pub fn take_link_batch(&mut self, link: LinkId) -> Option<ConnectRequest> {
        let now_ms = self.now.monotonic_ms;
        let heartbeat_interval_ms = self.heartbeat_interval_ms();
        let events_max = self.settings.link_batch_events_max.max(1);
        let bytes_max = self.settings.link_batch_bytes_max;
        let home = Home::at(link);
        let active = self.links.get_mut(home)?;
        active.is_full = false;

        let mut kinds = Vec::new();
        if active.opening != Opening::Complete || self.counters.sessions_homeless > 0 {
            self.list(home, &mut kinds, events_max, bytes_max);
        }
        let active = self.links.get_mut(home)?;
        let (mut acknowledged, mut arrived) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        if active.opening == Opening::Complete {
            while kinds.len() < events_max
                && bytes < bytes_max
                && let Some(outgoing) = active.pop()
            {
                bytes += outgoing.bytes();
                self.counters.link_outbox_events -= 1;
                match outgoing {
                    Outgoing::Event(kind) => {
                        if let Kind::Session(session) = &kind {
                            arrived.push(ConnectionId::from_raw(session.session_id));
                        }
                        kinds.push(kind);
                    }
                    Outgoing::Frame(waiting) => {
                        self.counters.link_frames_out += 1;
                        if waiting.acknowledge != 0 {
                            acknowledged.push((waiting.frame.session_id, waiting.acknowledge));
                        }
                        kinds.push(Kind::Frame(waiting.frame));
                    }
                }
            }
            let is_empty = active.waiting() == 0 && kinds.len() < events_max;
            let leaves = active.leaving.is_some();
            for id in arrived {
                if let Some(connection) = self.get_mut(id) {
                    connection.set(Facts::ARRIVING, false);
                }
            }
            if is_empty && (self.moves.are_due() || leaves) {
                self.move_away(home, &mut kinds, events_max);
            }
        }
        let active = self.links.get_mut(home)?;
        let is_due = now_ms >= active.heartbeat_at_ms || active.owes_much();
        if kinds.is_empty() && !is_due {
            return None;
        }
        active.heartbeat_at_ms = now_ms + heartbeat_interval_ms;
        let sequence = active.sequence_next;
        active.sequence_next += kinds.len() as u64;
        let credit = active.take_owed();
        self.counters.link_events_out += kinds.len() as u64;
        let events = kinds.into_iter().map(|kind| GatewayEvent { kind: Some(kind) }).collect();
        for (session_id, request_id) in acknowledged {
            self.acknowledge(session_id, request_id);
        }
        Some(ConnectRequest { sequence, credit, events, state: None })
    }

    /// Goes on with the beginning of a stream, from where the last batch ended, or takes in who has
    /// no home.
    fn list(&mut self, home: Home, kinds: &mut Vec<Kind>, events_max: usize, bytes_max: usize) {
        let Some(link) = self.links.get_mut(home) else { return };
        if link.opening == Opening::Hello {
            link.opening = Opening::Sessions { listed: 0 };
            kinds.push(Kind::Hello(Hello {
                gateway_id: self.identity.gateway_id.clone(),
                gateway_epoch: self.identity.gateway_epoch,
                shard: u32::from(self.shard),
                shards: self.identity.shards,
                lease_ms: self.identity.lease_ms,
                window: Some(self.identity.window),
                moves: true,
            }));
        }
        match link.opening {
            Opening::Sessions { listed } => {
                let (taken, is_over) = self.take_in(home, kinds, events_max, false);
                let listed = listed + taken;
                if let Some(link) = self.links.get_mut(home) {
                    link.opening = match is_over {
                        true => Opening::Rooms { slot: 0, before: usize::MAX, listed },
                        false => Opening::Sessions { listed },
                    };
                }
                self.list_rooms(home, kinds, events_max, bytes_max);
            }
            Opening::Rooms { .. } => self.list_rooms(home, kinds, events_max, bytes_max),
            Opening::Hello => {}
            Opening::Complete => {
                self.take_in(home, kinds, events_max, true);
            }
        }
        // What clients sent while they had no home.
        self.resume_waiting(home);
    }

    /// Goes on with the list of rooms, as far as their members are at home here. From the last member
    /// to the first: whoever leaves meanwhile is replaced by the last, which was listed already, so
    /// nobody is missed.
    fn list_rooms(
        &mut self,
        home: Home,
        kinds: &mut Vec<Kind>,
        events_max: usize,
        bytes_max: usize,
    ) {
        let (connections, shard) = (&self.connections, self.shard);
        let mut bytes = 0;
        while kinds.len() < events_max
            && bytes < bytes_max
            && let Some(link) = self.links.get_mut(home)
            && let Opening::Rooms { slot, before, listed } = link.opening
        {
            if slot >= self.rooms.slots() || listed == 0 {
                link.opening = Opening::Complete;
                kinds.push(Kind::SessionsComplete(SessionsComplete { sessions: listed }));
                return;
            }
            let (name, members) = self.rooms.in_slot(slot).unwrap_or_default();
            let until = before.min(members.len());
            let from = until.saturating_sub(ROOM_MEMBERS_PER_EVENT_MAX);
            let session_ids = members[from..until].iter().filter_map(|slot| {
                connections.at(*slot).filter(|connection| connection.home == home)?;
                let generation = connections.generation(*slot)?;
                Some(ConnectionId::new(shard, generation, *slot).raw())
            });
            let session_ids: Vec<u64> = session_ids.collect();
            if !session_ids.is_empty() {
                bytes += name.len() + 8 * session_ids.len();
                kinds.push(Kind::RoomMembers(RoomMembers { room_id: name.into(), session_ids }));
            }
            link.opening = match from {
                0 => Opening::Rooms { slot: slot + 1, before: usize::MAX, listed },
                before => Opening::Rooms { slot, before, listed },
            };
        }
    }
}
