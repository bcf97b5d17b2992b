//! The way out: frames to sessions and rooms, and the end of sessions. Usable from any thread;
//! nothing here blocks or waits. What cannot be delivered is skipped and counted, because only the
//! backend knows what must be sent again.

use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::link::{
    BroadcastFrame, CloseSession, GatewayState, RoomFrame, RoomMembership, SendFrame,
    logic_event::Kind,
};
use millrace_protocol::{Code, frame::Flags, limits};
use prost::Message;
use serde::Serialize;

use crate::backend::{Inbound, Refused};
use crate::counters::{CountersSnapshot, count};
use crate::encode;
use crate::hub::{Hub, Shard, lock};
use crate::outbox::{Entry, LinkStream};
use crate::rooms::Receiver;
use crate::session::{Encoding, GatewayKey, Session, SessionAddress};

/// Sessions of one SendFrame; a longer list travels in several.
const SESSIONS_PER_FRAME_MAX: usize = 8_192;

/// The gateways' end of the link. Cheap to clone.
#[derive(Clone)]
pub struct Gateways {
    pub(crate) hub: Arc<Hub>,
}

/// What is known of one gateway shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayStatus {
    /// Its key in session addresses.
    pub key: GatewayKey,
    /// Its gateway's name.
    pub gateway_id: Arc<str>,
    /// The life of its gateway's process.
    pub gateway_epoch: u64,
    /// Its number within the gateway.
    pub shard: u16,
    /// Whether its stream is open and its sessions are listed.
    pub connected: bool,
    /// Its live sessions.
    pub sessions: usize,
    /// Events waiting to be sent to it.
    pub outbox_frames: usize,
    /// The same in bytes.
    pub outbox_bytes: usize,
    /// What it said of itself last.
    pub state: GatewayState,
}

impl Gateways {
    /// Sends a frame to sessions wherever they are: one SendFrame per gateway shard. Sessions whose
    /// shard is away are skipped.
    pub fn send(&self, sessions: &[SessionAddress], command: u16, flags: Flags, body: Bytes) {
        let mut batch = self.batch();
        batch.send(sessions, command, flags, body);
    }

    /// Sends a message to sessions, in each one's encoding; it is encoded at most once for each.
    pub fn send_message<M: Message + Serialize>(
        &self,
        sessions: &[(SessionAddress, Encoding)],
        command: u16,
        message: &M,
    ) {
        let mut batch = self.batch();
        batch.send_message(sessions, command, message);
    }

    /// Collects replies and frames, in order, to be handed over at once when it is dropped.
    pub fn batch(&self) -> Batch<'_> {
        Batch { gateways: self, parts: Vec::new(), links: Vec::new() }
    }

    /// Ends a session: the client is told, `session_ended` follows when the gateway has done it.
    pub fn close(&self, session: SessionAddress, code: Code, reason: &str) {
        let close = CloseSession {
            session_id: session.session_id,
            code: code.number(),
            reason: reason.to_owned(),
        };
        self.hub.push(session.gateway, vec![Entry::new(Kind::CloseSession(close))]);
    }

    /// Puts a session into a live room and returns how many members that has now. Joining twice
    /// changes nothing. Memberships outlive a broken link and this process: the gateways keep them,
    /// and the next life of logic takes them over.
    ///
    /// # Errors
    /// `not_found` if the session is not live, `over_capacity` at the bounds of the settings.
    pub fn join_room(&self, room_id: &str, session: SessionAddress) -> Result<u64, Refused> {
        self.join_room_of(room_id, session, u64::MAX)
    }

    /// As [`Gateways::join_room`], for a room that has a bound of its own besides that of the
    /// settings: `over_capacity` if it has `members_max` members already.
    ///
    /// # Errors
    /// As [`Gateways::join_room`].
    pub fn join_room_of(
        &self,
        room_id: &str,
        session: SessionAddress,
        members_max: u64,
    ) -> Result<u64, Refused> {
        let settings = &self.hub.settings;
        let Some(shard) = self.hub.shard(session.gateway) else {
            return Err(Refused::new(Code::NotFound, "the session has ended"));
        };
        let mut max = settings.rooms_bounds();
        max.members = max.members.min(members_max);
        // The rooms are locked before the session is looked up, as its end takes it out of the
        // table before it takes it out of its rooms: so no ended session stays in a room.
        let mut rooms = lock(&self.hub.rooms);
        let found = shard.sessions().get(&session.session_id).map(|known| known.encoding);
        let Some(encoding) = found else {
            return Err(Refused::new(Code::NotFound, "the session has ended"));
        };
        let (members, new) = rooms.join(room_id, session, encoding, max)?;
        if new {
            self.announce(room_id, session, true);
        }
        Ok(members)
    }

    /// Takes a session out of a live room and returns how many members are left. Leaving a room one
    /// is not in changes nothing.
    ///
    /// # Errors
    /// None today; the shape is that of [`Gateways::join_room`].
    pub fn leave_room(&self, room_id: &str, session: SessionAddress) -> Result<u64, Refused> {
        let mut rooms = lock(&self.hub.rooms);
        let (members, was) = rooms.leave(room_id, session);
        if was {
            self.announce(room_id, session, false);
        }
        Ok(members)
    }

    fn announce(&self, room_id: &str, session: SessionAddress, join: bool) {
        let (mut joins, mut leaves) = (Vec::new(), Vec::new());
        if join { &mut joins } else { &mut leaves }.push(session.session_id);
        let change = RoomMembership {
            room_id: room_id.to_owned(),
            join_session_ids: joins,
            leave_session_ids: leaves,
        };
        self.hub.push(session.gateway, vec![Entry::new(Kind::RoomMembership(change))]);
    }

    /// Sends a message to a room's members but one: it is published once to each gateway shard that
    /// has members, and that shard fans it out. Where gateways are shared with other logic processes
    /// ([`ServerSettings::shares_gateways`](crate::ServerSettings)), it goes to every shard that is
    /// linked, which knows best whom it has. Returns how many members of the room have their home here.
    /// The message must not encode to nothing, as one with no field set does in protobuf.
    ///
    /// Live only: members behind a broken link miss it, and one that reads too slowly meets its
    /// gateway's `slow_consumer` policy.
    pub fn publish_room<M: Message + Serialize>(
        &self,
        room_id: &str,
        command: u16,
        message: &M,
        except: Option<SessionAddress>,
    ) -> u64 {
        let (members, mut receivers) = {
            let rooms = lock(&self.hub.rooms);
            (rooms.members(room_id), rooms.receivers(room_id))
        };
        if self.hub.settings.shares_gateways {
            let linked = self.hub.all_shards().into_iter().filter(|shard| shard.stream().is_some());
            let everything =
                |shard: Arc<Shard>| Receiver { gateway: shard.key, protobuf: true, json: true };
            receivers = linked.map(everything).collect();
        }
        let mut bodies = Bodies::new(self, command, message);
        for receiver in receivers {
            let mut body = |wanted: bool, encoding| {
                if wanted { bodies.get(encoding) } else { Some(Bytes::new()) }
            };
            let (Some(body_protobuf), Some(body_json)) =
                (body(receiver.protobuf, Encoding::Protobuf), body(receiver.json, Encoding::Json))
            else {
                return members;
            };
            let frame = RoomFrame {
                room_id: room_id.to_owned(),
                command: u32::from(command),
                flags: 0,
                body_protobuf,
                body_json,
                except_session_id: except
                    .filter(|except| except.gateway == receiver.gateway)
                    .map_or(0, |except| except.session_id),
            };
            self.hub.push(receiver.gateway, vec![Entry::new(Kind::RoomFrame(frame))]);
        }
        members
    }

    /// Sends a message to everybody who is logged in: it is published once to each gateway shard,
    /// which fans it out. Returns how many sessions of those shards have their home here. The message
    /// must not encode to nothing, as one with no field set does in protobuf.
    ///
    /// Live only, as [`Gateways::publish_room`]: shards whose stream is away are skipped.
    pub fn broadcast<M: Message + Serialize>(&self, command: u16, message: &M) -> u64 {
        let mut bodies = Bodies::new(self, command, message);
        let (Some(body_protobuf), Some(body_json)) =
            (bodies.get(Encoding::Protobuf), bodies.get(Encoding::Json))
        else {
            return 0;
        };
        let mut reached = 0;
        for shard in self.hub.all_shards() {
            let sessions = shard.sessions().len() as u64;
            let has_some = sessions > 0 || self.hub.settings.shares_gateways;
            let Some(link) = shard.stream().filter(|_| has_some) else { continue };
            let frame = BroadcastFrame {
                command: u32::from(command),
                flags: 0,
                body_protobuf: body_protobuf.clone(),
                body_json: body_json.clone(),
            };
            link.push([Entry::new(Kind::BroadcastFrame(frame))], &self.hub.counters);
            reached += sessions;
        }
        reached
    }

    /// The rooms whose members have changed in number since the last call, with how many have their
    /// home here now; nothing unless gateways are shared.
    pub fn take_changed_rooms(&self) -> Vec<(Arc<str>, u64)> {
        lock(&self.hub.rooms).take_changed()
    }

    /// Every live room with how many members have their home here.
    pub fn rooms(&self) -> Vec<(Arc<str>, u64)> {
        lock(&self.hub.rooms).all()
    }

    /// How many sessions have their home here.
    pub fn sessions(&self) -> u64 {
        self.hub.all_shards().iter().map(|shard| shard.sessions().len() as u64).sum()
    }

    /// How many members of a live room have their home here.
    pub fn room_members(&self, room_id: &str) -> u64 {
        lock(&self.hub.rooms).members(room_id)
    }

    /// The sessions that are in a live room, in no order. Looks at every session that is in any
    /// room, so it is for what happens now and then.
    pub fn room_sessions(&self, room_id: &str) -> Vec<SessionAddress> {
        let found = lock(&self.hub.rooms).sessions(room_id);
        let address = |(gateway, session_id)| {
            let shard = self.hub.shard(gateway)?;
            Some(shard.address(session_id))
        };
        found.into_iter().filter_map(address).collect()
    }

    /// Whether a session is in a live room.
    pub fn is_in_room(&self, room_id: &str, session: SessionAddress) -> bool {
        lock(&self.hub.rooms).is_member(room_id, session)
    }

    /// The live session at an address.
    pub fn session(&self, address: SessionAddress) -> Option<Arc<Session>> {
        let shard = self.hub.shard(address.gateway)?;
        shard.sessions().get(&address.session_id).cloned()
    }

    /// Every gateway shard known, in no order.
    pub fn gateways(&self) -> Vec<GatewayStatus> {
        let status = |shard: Arc<Shard>| {
            let stream = shard.stream();
            let (outbox_frames, outbox_bytes) = stream.as_ref().map_or((0, 0), |s| s.queued());
            let sessions = shard.sessions().len();
            GatewayStatus {
                key: shard.key,
                gateway_id: Arc::clone(&shard.gateway_id),
                gateway_epoch: shard.gateway_epoch,
                shard: shard.number,
                connected: stream.is_some(),
                sessions,
                outbox_frames,
                outbox_bytes,
                state: lock(&shard.state).clone(),
            }
        };
        self.hub.all_shards().into_iter().map(status).collect()
    }

    /// The epoch of the gateway whose shard has this key; `None` once the shard was given up.
    pub fn epoch_of(&self, key: GatewayKey) -> Option<u64> {
        self.hub.shard(key).map(|shard| shard.gateway_epoch)
    }

    /// The key of a life of a gateway shard; `None` if it is not known here.
    pub fn key_of(&self, gateway_id: &str, gateway_epoch: u64, shard: u16) -> Option<GatewayKey> {
        self.hub.key_of(gateway_id, gateway_epoch, shard)
    }

    /// The epoch of the newest life of a gateway that has connected here, and whether any of its
    /// shards is still known: false after the leases of all of them have run out.
    pub fn newest_life_of(&self, gateway_id: &str) -> Option<(u64, bool)> {
        self.hub.newest_life_of(gateway_id)
    }

    /// What was counted since the start.
    pub fn counters(&self) -> CountersSnapshot {
        self.hub.counters.snapshot()
    }
}

/// Replies and frames collected in order; dropping it hands them over, with one wake per stream.
/// Frames of a batch keep their order towards each stream.
pub struct Batch<'a> {
    gateways: &'a Gateways,
    parts: Vec<(Arc<LinkStream>, Vec<Entry>)>,
    /// The streams looked up so far; `None` where a shard is away.
    links: Vec<(GatewayKey, Option<Arc<LinkStream>>)>,
}

impl Batch<'_> {
    /// As [`Gateways::send`].
    pub fn send(&mut self, sessions: &[SessionAddress], command: u16, flags: Flags, body: Bytes) {
        if body.len() > limits::BODY_BYTES_MAX_CEILING as usize {
            count(&self.gateways.hub.counters.frames_unsendable, 1);
            tracing::error!(command, bytes = body.len(), "a frame's body is above the ceiling");
            return;
        }
        for (gateway, ids) in by_gateway(sessions.iter().copied()) {
            self.frames(gateway, ids, command, flags, &body);
        }
    }

    /// As [`Gateways::send_message`].
    pub fn send_message<M: Message + Serialize>(
        &mut self,
        sessions: &[(SessionAddress, Encoding)],
        command: u16,
        message: &M,
    ) {
        let mut bodies = Bodies::new(self.gateways, command, message);
        for json in [false, true] {
            let wanted = sessions.iter().filter(|(_, e)| (*e == Encoding::Json) == json);
            let encoding = if json { Encoding::Json } else { Encoding::Protobuf };
            for (gateway, ids) in by_gateway(wanted.map(|(address, _)| *address)) {
                let Some(body) = bodies.get(encoding) else { return };
                self.frames(gateway, ids, command, encode::flags(encoding), &body);
            }
        }
    }

    /// As [`Inbound::reply`].
    pub fn reply(&mut self, request: &Inbound, body: Bytes) {
        if let Some(entry) = request.reply_entry(body) {
            self.add(request.link(), entry);
        }
    }

    /// As [`Inbound::reply_message`].
    pub fn reply_message<M: Message + Serialize>(&mut self, request: &Inbound, message: &M) {
        if let Some(entry) = request.reply_message_entry(message) {
            self.add(request.link(), entry);
        }
    }

    /// As [`Inbound::refuse`].
    pub fn refuse(&mut self, request: &Inbound, code: Code, reason: &str, retry_after_ms: u32) {
        let entry = request.refuse_entry(code, reason, retry_after_ms);
        self.add(request.link(), entry);
    }

    fn frames(
        &mut self,
        gateway: GatewayKey,
        ids: Vec<u64>,
        command: u16,
        flags: Flags,
        body: &Bytes,
    ) {
        let Some(link) = self.link_of(gateway) else {
            return count(&self.gateways.hub.counters.events_skipped, 1);
        };
        let frame = |session_ids: Vec<u64>| {
            Entry::new(Kind::SendFrame(SendFrame {
                session_ids,
                command: u32::from(command),
                flags: u32::from(flags.bits()),
                request_id: 0,
                body: body.clone(),
            }))
        };
        if ids.len() <= SESSIONS_PER_FRAME_MAX {
            return self.add(&link, frame(ids));
        }
        for part in ids.chunks(SESSIONS_PER_FRAME_MAX) {
            self.add(&link, frame(part.to_vec()));
        }
    }
}

impl Batch<'_> {
    /// The stream of a shard, as it was when this batch first asked.
    fn link_of(&mut self, gateway: GatewayKey) -> Option<Arc<LinkStream>> {
        if let Some((_, link)) = self.links.iter().find(|(known, _)| *known == gateway) {
            return link.clone();
        }
        let link = self.gateways.hub.shard(gateway).and_then(|shard| shard.stream());
        self.links.push((gateway, link.clone()));
        link
    }

    fn add(&mut self, link: &Arc<LinkStream>, entry: Entry) {
        match self.parts.iter_mut().find(|(known, _)| Arc::ptr_eq(known, link)) {
            Some((_, entries)) => entries.push(entry),
            None => self.parts.push((Arc::clone(link), vec![entry])),
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for (link, entries) in self.parts.drain(..) {
            link.push(entries, &self.gateways.hub.counters);
        }
    }
}

/// The session ids of each shard, in the order given. Few shards, so a list is the fastest map.
fn by_gateway(sessions: impl Iterator<Item = SessionAddress>) -> Vec<(GatewayKey, Vec<u64>)> {
    let mut grouped: Vec<(GatewayKey, Vec<u64>)> = Vec::new();
    for address in sessions {
        match grouped.iter_mut().find(|(gateway, _)| *gateway == address.gateway) {
            Some((_, ids)) => ids.push(address.session_id),
            None => grouped.push((address.gateway, vec![address.session_id])),
        }
    }
    grouped
}

/// A message's bodies, each made when it is first wanted.
struct Bodies<'a, M> {
    gateways: &'a Gateways,
    command: u16,
    message: &'a M,
    made: [Option<Option<Bytes>>; 2],
}

impl<'a, M: Message + Serialize> Bodies<'a, M> {
    fn new(gateways: &'a Gateways, command: u16, message: &'a M) -> Self {
        Self { gateways, command, message, made: [None, None] }
    }

    /// `None` if the message cannot be sent in this encoding; it is counted once.
    fn get(&mut self, encoding: Encoding) -> Option<Bytes> {
        let made = &mut self.made[usize::from(encoding == Encoding::Json)];
        if made.is_none() {
            *made = Some(match encode::message(self.message, encoding) {
                Ok(body) => Some(body),
                Err(error) => {
                    count(&self.gateways.hub.counters.frames_unsendable, 1);
                    tracing::error!(%error, command = self.command, "a message cannot be sent");
                    None
                }
            });
        }
        made.clone().flatten()
    }
}
