//! The stream to logic: its beginning with the lists of sessions and rooms, its end, and the batches.

use millrace_protocol::link::{
    ConnectRequest, GatewayEvent, Hello, RoomMembers, Session, SessionEnded, SessionsComplete,
    gateway_event::Kind,
};

use super::{
    Engine,
    login::{encoding_on_link, transport_on_link},
};
use crate::{
    LinkId, Now,
    connection::Phase,
    effect::ConnectionId,
    identity::Identity,
    link::{Link, Opening, Outgoing},
};

/// Members of a room in one RoomMembers; more come in several.
const ROOM_MEMBERS_PER_EVENT_MAX: usize = 4_096;

impl Engine {
    /// A stream is open. The first one is used: Hello, the sessions, the rooms and SessionsComplete
    /// go out on it. Others stand by, unsaid, until it ends.
    pub fn link_up(&mut self, now: Now, link: LinkId) {
        self.now = now;
        if self.link.as_ref().is_some_and(|active| active.id == link) {
            // The owner skipped the end of the old stream.
            self.link_down(now, link);
        }
        self.counters.link_ups += 1;
        self.standby.retain(|standby| *standby != link);
        if self.link.is_some() {
            self.standby.push(link);
        } else {
            self.begin_link(link);
        }
    }

    fn begin_link(&mut self, link: LinkId) {
        let heartbeat_at_ms = self.now.monotonic_ms + self.heartbeat_interval_ms();
        self.streams += 1;
        self.link = Some(Link::new(link, heartbeat_at_ms, self.identity.window));
    }

    /// Whether logic has answered the stream's Hello, so that client frames have credit.
    pub fn link_is_ready(&self, link: LinkId) -> bool {
        self.link.as_ref().is_some_and(|active| active.id == link && active.is_ready)
    }

    /// A third of the lease: two batches may be lost before logic gives the sessions up.
    fn heartbeat_interval_ms(&self) -> u64 {
        u64::from(self.identity.lease_ms / 3).max(1)
    }

    /// The stream takes no batch now. What waits for it will say that we live; until then no
    /// heartbeat is due, else [`Self::next_deadline_ms`] would ask for one without end.
    pub fn link_is_full(&mut self, link: LinkId) {
        let postponed_ms = self.now.monotonic_ms + self.heartbeat_interval_ms();
        if let Some(active) = self.link.as_mut().filter(|active| active.id == link) {
            active.heartbeat_at_ms = active.heartbeat_at_ms.max(postponed_ms);
        }
    }

    /// A stream has ended. Requests and logins in flight are answered `logic_unavailable`;
    /// sessions stay.
    pub fn link_down(&mut self, now: Now, link: LinkId) {
        self.now = now;
        self.standby.retain(|standby| *standby != link);
        if self.link.as_ref().is_none_or(|active| active.id != link) {
            return;
        }
        self.link = None;
        self.counters.link_downs += 1;
        self.counters.link_outbox_events = 0;
        self.counters.logins_in_flight -= self.abandoned_logins.len() as u64;
        self.abandoned_logins.clear();
        self.waiting.clear();
        self.held.clear();
        for slot in 0..self.connections.slots() {
            if let Some(id) = self.id_in_slot(slot) {
                self.fail_work(id);
            }
        }
        if !self.standby.is_empty() {
            let next = self.standby.remove(0);
            self.begin_link(next);
        }
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

    /// Puts something on the way to logic, if there is a link.
    pub(super) fn send_to_logic(&mut self, outgoing: Outgoing) {
        if let Some(link) = &mut self.link {
            link.push(outgoing);
            self.counters.link_outbox_events += 1;
        }
    }

    /// Tells logic that a session has ended. If logic has not heard of the session on this
    /// stream, there is nothing to tell: the session is missing in the list, which says the same.
    pub(super) fn tell_session_ended(&mut self, id: ConnectionId, code: u32) {
        if self.link.as_ref().is_some_and(|link| link.knows(id.slot())) {
            let ended = SessionEnded { session_id: id.raw(), code };
            self.send_to_logic(Outgoing::Event(Kind::SessionEnded(ended)));
        }
    }

    /// The next batch for this link, or `None` if nothing is due. An empty batch is a heartbeat,
    /// or gives credit back.
    pub fn take_link_batch(&mut self, link: LinkId) -> Option<ConnectRequest> {
        let now_ms = self.now.monotonic_ms;
        let heartbeat_interval_ms = self.heartbeat_interval_ms();
        let events_max = self.settings.link_batch_events_max.max(1);
        let bytes_max = self.settings.link_batch_bytes_max;
        let active = self.link.as_mut().filter(|active| active.id == link)?;

        let mut kinds = Vec::new();
        if active.opening == Opening::Hello {
            active.opening = Opening::Sessions { slot: 0, listed: 0 };
            kinds.push(Kind::Hello(Hello {
                gateway_id: self.identity.gateway_id.clone(),
                gateway_epoch: self.identity.gateway_epoch,
                shard: u32::from(self.shard),
                shards: self.identity.shards,
                lease_ms: self.identity.lease_ms,
                window: Some(self.identity.window),
            }));
        }
        self.list_sessions(&mut kinds, events_max);
        self.list_rooms(&mut kinds, events_max, bytes_max);

        let active = self.link.as_mut()?;
        let mut acknowledged = Vec::new();
        let mut bytes = 0;
        if active.opening == Opening::Complete {
            while kinds.len() < events_max
                && bytes < bytes_max
                && let Some(outgoing) = active.pop()
            {
                bytes += outgoing.bytes();
                self.counters.link_outbox_events -= 1;
                match outgoing {
                    Outgoing::Event(kind) => kinds.push(kind),
                    Outgoing::Frame(waiting) => {
                        self.counters.link_frames_out += 1;
                        if waiting.acknowledge != 0 {
                            acknowledged.push((waiting.frame.session_id, waiting.acknowledge));
                        }
                        kinds.push(Kind::Frame(waiting.frame));
                    }
                }
            }
        }
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

    /// Goes on with the list of sessions, from where the last batch ended.
    fn list_sessions(&mut self, kinds: &mut Vec<Kind>, events_max: usize) {
        let slots = self.connections.slots();
        while kinds.len() < events_max
            && let Some(link) = &mut self.link
            && let Opening::Sessions { slot, listed } = link.opening
        {
            if slot >= slots {
                link.opening = Opening::Rooms { slot: 0, before: usize::MAX, listed };
                return;
            }
            let generation = self.connections.generation(slot);
            let session = generation.and_then(|generation| {
                let connection = self.connections.at(slot).filter(|c| c.is_active())?;
                let identity = Identity::read(self.identities.get(connection.identity));
                let claims = identity.claims?;
                Some(Session {
                    session_id: ConnectionId::new(self.shard, generation, slot).raw(),
                    user_id: claims.user_id,
                    device_id: claims.device_id,
                    platform: claims.platform,
                    transport: transport_on_link(connection.transport()).into(),
                    encoding: encoding_on_link(claims.is_json).into(),
                    logged_in_at_ms: claims.logged_in_at_ms,
                    expires_at_ms: claims.expires_at_ms,
                    state: claims.state,
                })
            });
            link.opening =
                Opening::Sessions { slot: slot + 1, listed: listed + u64::from(session.is_some()) };
            kinds.extend(session.map(Kind::Session));
        }
    }

    /// Goes on with the list of rooms. From the last member to the first: whoever leaves meanwhile
    /// is replaced by the last, which was listed already, so nobody is missed.
    fn list_rooms(&mut self, kinds: &mut Vec<Kind>, events_max: usize, bytes_max: usize) {
        let (connections, shard) = (&self.connections, self.shard);
        let mut bytes = 0;
        while kinds.len() < events_max
            && bytes < bytes_max
            && let Some(link) = &mut self.link
            && let Opening::Rooms { slot, before, listed } = link.opening
        {
            if slot >= self.rooms.slots() {
                link.opening = Opening::Complete;
                kinds.push(Kind::SessionsComplete(SessionsComplete { sessions: listed }));
                return;
            }
            let (name, members) = self.rooms.in_slot(slot).unwrap_or_default();
            let until = before.min(members.len());
            let from = until.saturating_sub(ROOM_MEMBERS_PER_EVENT_MAX);
            if from < until {
                let members = members[from..until].iter();
                let session_ids = members.filter_map(|slot| {
                    let generation = connections.generation(*slot)?;
                    Some(ConnectionId::new(shard, generation, *slot).raw())
                });
                let session_ids = session_ids.collect();
                bytes += name.len() + 8 * (until - from);
                kinds.push(Kind::RoomMembers(RoomMembers { room_id: name.into(), session_ids }));
            }
            link.opening = match from {
                0 => Opening::Rooms { slot: slot + 1, before: usize::MAX, listed },
                before => Opening::Rooms { slot, before, listed },
            };
        }
    }
}
