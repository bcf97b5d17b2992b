//! The gateways this process knows: their shards, their sessions, and the streams that lead there.
//!
//! A [`Shard`] is one life of one gateway shard. It outlives its streams by the lease, so that a
//! broken link ends no session. Whoever changes its sessions holds its `turn`: the stream's reader,
//! the lease, or a newer epoch; that is what makes the end of a session happen exactly once.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use millrace_protocol::Code;
use millrace_protocol::link::{
    Encoding, GatewayState, Hello, RoomMembers, RoomMembership, logic_event::Kind,
};
use rustc_hash::FxHashMap;
use tonic::Status;

use crate::backend::{Backend, Ended};
use crate::counters::{Counters, count};
use crate::outbox::{Entry, LinkStream};
use crate::rooms::Rooms;
use crate::session::{GatewayKey, Session, SessionAddress};
use crate::settings::ServerSettings;

/// How many session ends are told between two chances for other tasks.
const ENDS_PER_YIELD: usize = 1_024;

/// Sessions of one RoomMembership when many are stated.
const SESSIONS_PER_EVENT_MAX: usize = 4_096;

/// One life of one gateway shard.
pub(crate) struct Shard {
    pub(crate) key: GatewayKey,
    pub(crate) number: u16,
    pub(crate) gateway_id: Arc<str>,
    pub(crate) gateway_epoch: u64,
    pub(crate) sessions: Mutex<FxHashMap<u64, Arc<Session>>>,
    /// What the gateway said of itself last.
    pub(crate) state: Mutex<GatewayState>,
    /// Where events go; `None` while the stream is away or has not listed its sessions.
    attached: RwLock<Option<Arc<LinkStream>>>,
    /// The newest stream that wants to serve this shard.
    newest: Mutex<Option<Arc<LinkStream>>>,
    pub(crate) turn: tokio::sync::Mutex<Turn>,
}

/// What only the holder of the shard's turn may change.
#[derive(Default)]
pub(crate) struct Turn {
    /// Streams so far; a lease that finds another number than it left is void.
    pub(crate) streams: u64,
    /// The shard was given up; whoever waited for it must ask for its successor.
    pub(crate) retired: bool,
}

impl Shard {
    pub(crate) fn sessions(&self) -> MutexGuard<'_, FxHashMap<u64, Arc<Session>>> {
        lock(&self.sessions)
    }

    pub(crate) fn address(&self, session_id: u64) -> SessionAddress {
        SessionAddress { gateway: self.key, shard: self.number, session_id }
    }

    pub(crate) fn stream(&self) -> Option<Arc<LinkStream>> {
        self.attached.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn attach(&self, stream: Option<Arc<LinkStream>>) {
        *self.attached.write().unwrap_or_else(PoisonError::into_inner) = stream;
    }

    /// Makes `link` the stream of this shard; the one before is ended.
    pub(crate) fn claim(&self, link: &Arc<LinkStream>, counters: &Counters) {
        let earlier = lock(&self.newest).replace(Arc::clone(link));
        if let Some(earlier) = earlier
            && !earlier.is_over()
        {
            count(&counters.streams_superseded, 1);
            earlier.end(Some(Status::aborted("a newer stream of this shard took over")), counters);
        }
    }

    /// Ends whatever stream the shard has.
    fn disconnect(&self, status: Status, counters: &Counters) {
        let newest = lock(&self.newest).take();
        if let Some(newest) = newest
            && !newest.is_over()
        {
            count(&counters.streams_superseded, 1);
            newest.end(Some(status), counters);
        }
    }
}

/// The newest life of a gateway, and what is left of earlier ones.
struct Gateway {
    epoch: u64,
    shards: HashMap<u16, Arc<Shard>>,
    older: Vec<Arc<Shard>>,
}

#[derive(Default)]
struct Directory {
    next_key: u32,
    gateways: HashMap<Arc<str>, Gateway>,
}

/// Everything the streams and the way out share.
pub(crate) struct Hub {
    pub(crate) settings: ServerSettings,
    pub(crate) logic_epoch: u64,
    pub(crate) counters: Counters,
    pub(crate) rooms: Mutex<Rooms>,
    directory: Mutex<Directory>,
    shards: RwLock<FxHashMap<GatewayKey, Arc<Shard>>>,
    pub(crate) streams: Mutex<Vec<std::sync::Weak<LinkStream>>>,
    /// No stream is accepted any more: the sessions are being handed over.
    pub(crate) leaving: AtomicBool,
    /// A gateway said Drained, or a stream ended.
    pub(crate) drained: tokio::sync::Notify,
    pub(crate) tasks: tokio_util::task::TaskTracker,
    /// No lease runs out and no stream is accepted any more.
    pub(crate) stopping: tokio_util::sync::CancellationToken,
    /// The listener is closed.
    pub(crate) stopped: tokio_util::sync::CancellationToken,
}

impl Hub {
    pub(crate) fn new(settings: ServerSettings, logic_epoch: u64) -> Self {
        Self {
            rooms: Mutex::new(Rooms::new(settings.shares_gateways)),
            settings,
            logic_epoch,
            counters: Counters::default(),
            directory: Mutex::default(),
            shards: RwLock::default(),
            streams: Mutex::default(),
            leaving: AtomicBool::new(false),
            drained: tokio::sync::Notify::new(),
            tasks: tokio_util::task::TaskTracker::new(),
            stopping: tokio_util::sync::CancellationToken::new(),
            stopped: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// The shard a Hello speaks for, made if need be, and the shards of the gateway's earlier lives
    /// whose sessions have to end first.
    pub(crate) fn register(&self, hello: &Hello) -> Result<(Arc<Shard>, Vec<Arc<Shard>>), Status> {
        let Ok(number) = u16::try_from(hello.shard) else {
            return Err(Status::invalid_argument("the shard's number is above 65535"));
        };
        let mut directory = lock(&self.directory);
        let directory = &mut *directory;
        if !directory.gateways.contains_key(hello.gateway_id.as_str()) {
            if directory.gateways.len() >= self.settings.gateways_max {
                directory.gateways.retain(|_, g| !g.shards.is_empty() || !g.older.is_empty());
            }
            if directory.gateways.len() >= self.settings.gateways_max {
                return Err(Status::resource_exhausted("there are too many gateways already"));
            }
        }
        let name: Arc<str> = hello.gateway_id.as_str().into();
        let gateway = directory.gateways.entry(name).or_insert_with(|| Gateway {
            epoch: hello.gateway_epoch,
            shards: HashMap::new(),
            older: Vec::new(),
        });
        if hello.gateway_epoch < gateway.epoch {
            return Err(Status::failed_precondition("a newer process of this gateway is known"));
        }
        if hello.gateway_epoch > gateway.epoch {
            gateway.epoch = hello.gateway_epoch;
            gateway.older.extend(gateway.shards.drain().map(|(_, shard)| shard));
        }
        let older = gateway.older.clone();
        if let Some(shard) = gateway.shards.get(&number) {
            return Ok((Arc::clone(shard), older));
        }
        directory.next_key += 1;
        let shard = Arc::new(Shard {
            key: GatewayKey(directory.next_key),
            number,
            gateway_id: hello.gateway_id.as_str().into(),
            gateway_epoch: hello.gateway_epoch,
            sessions: Mutex::default(),
            state: Mutex::default(),
            attached: RwLock::default(),
            newest: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        });
        gateway.shards.insert(number, Arc::clone(&shard));
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        shards.insert(shard.key, Arc::clone(&shard));
        Ok((shard, older))
    }

    /// Gives a shard up: its sessions end now, and a gateway that comes back starts anew.
    pub(crate) async fn retire<B: Backend>(
        &self,
        shard: &Arc<Shard>,
        turn: &mut Turn,
        backend: &B,
        ended: Ended,
    ) {
        turn.retired = true;
        shard.attach(None);
        self.shards.write().unwrap_or_else(PoisonError::into_inner).remove(&shard.key);
        if let Some(gateway) = lock(&self.directory).gateways.get_mut(&shard.gateway_id) {
            gateway.older.retain(|other| other.key != shard.key);
            gateway.shards.retain(|_, other| other.key != shard.key);
        }
        let sessions = std::mem::take(&mut *shard.sessions());
        self.end_sessions(sessions.into_values(), backend, ended).await;
    }

    /// Fences an earlier life of a gateway: its stream is ended, its sessions too.
    pub(crate) async fn fence<B: Backend>(&self, shard: &Arc<Shard>, backend: &B) {
        let status = Status::failed_precondition("a newer process of this gateway is known");
        shard.disconnect(status, &self.counters);
        let mut turn = shard.turn.lock().await;
        if !turn.retired {
            // Its process is gone, and with it every connection.
            self.retire(shard, &mut turn, backend, Ended::Over(Code::PeerGone)).await;
        }
    }

    /// Tells the backend of ends. The sessions must be out of their table already.
    pub(crate) async fn end_sessions<B: Backend>(
        &self,
        sessions: impl IntoIterator<Item = Arc<Session>>,
        backend: &B,
        ended: Ended,
    ) {
        for (index, session) in sessions.into_iter().enumerate() {
            if index % ENDS_PER_YIELD == ENDS_PER_YIELD - 1 {
                tokio::task::yield_now().await;
            }
            self.end_session(session, backend, ended);
        }
    }

    /// Tells the backend of one end. The session must be out of its table already.
    pub(crate) fn end_session<B: Backend>(&self, session: Arc<Session>, backend: &B, ended: Ended) {
        lock(&self.rooms).forget(session.address);
        count(&self.counters.sessions_ended, 1);
        if ended == Ended::Moved {
            count(&self.counters.sessions_moved_away, 1);
        }
        backend.session_ended(session, ended);
    }

    /// Takes over the rooms of sessions that moved here, as far as the bounds allow; the gateway is
    /// told of those that they do not.
    pub(crate) fn adopt_rooms(&self, shard: &Shard, link: &LinkStream, listed: Vec<RoomMembers>) {
        let mut rooms = lock(&self.rooms);
        let max = self.settings.rooms_bounds();
        for RoomMembers { room_id, mut session_ids } in listed {
            session_ids.retain(|session_id| {
                let session = shard.sessions().get(session_id).cloned();
                // One that we do not know has ended.
                session.is_some_and(|session| {
                    rooms.join(&room_id, session.address, session.encoding, max).is_err()
                })
            });
            if !session_ids.is_empty() {
                let change = RoomMembership {
                    room_id,
                    join_session_ids: Vec::new(),
                    leave_session_ids: session_ids,
                };
                link.push([Entry::new(Kind::RoomMembership(change))], &self.counters);
            }
        }
    }

    /// Compares the rooms that a shard listed with ours, on a stream that has just been attached,
    /// and states what differs. Those of the sessions that have just `started` here are taken over.
    pub(crate) fn reconcile_rooms(
        &self,
        shard: &Shard,
        link: &LinkStream,
        listed: Vec<RoomMembers>,
        started: &[Arc<Session>],
    ) {
        let started: FxHashMap<u64, Encoding> =
            started.iter().map(|s| (s.address.session_id, s.encoding)).collect();
        let adopt = |session_id: u64| started.get(&session_id).copied();
        let address = |session_id| shard.address(session_id);
        // Stated under the lock, as every change is: so both ends see the same order.
        let mut rooms = lock(&self.rooms);
        let max = self.settings.rooms_bounds();
        for (room_id, told) in rooms.reconcile(shard.key, listed, address, adopt, max) {
            let change = |join: &[u64], leave: &[u64]| {
                Entry::new(Kind::RoomMembership(RoomMembership {
                    room_id: room_id.clone(),
                    join_session_ids: join.to_vec(),
                    leave_session_ids: leave.to_vec(),
                }))
            };
            let joins = told.join.chunks(SESSIONS_PER_EVENT_MAX).map(|ids| change(ids, &[]));
            let leaves = told.leave.chunks(SESSIONS_PER_EVENT_MAX).map(|ids| change(&[], ids));
            link.push(joins.chain(leaves), &self.counters);
        }
    }

    pub(crate) fn shard(&self, key: GatewayKey) -> Option<Arc<Shard>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    pub(crate) fn key_of(&self, gateway_id: &str, epoch: u64, number: u16) -> Option<GatewayKey> {
        let directory = lock(&self.directory);
        let gateway = directory.gateways.get(gateway_id).filter(|known| known.epoch == epoch)?;
        gateway.shards.get(&number).map(|shard| shard.key)
    }

    pub(crate) fn newest_life_of(&self, gateway_id: &str) -> Option<(u64, bool)> {
        let directory = lock(&self.directory);
        let gateway = directory.gateways.get(gateway_id)?;
        Some((gateway.epoch, !gateway.shards.is_empty()))
    }

    pub(crate) fn all_shards(&self) -> Vec<Arc<Shard>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Queues events for a shard; without a stream they are skipped and counted.
    pub(crate) fn push(&self, key: GatewayKey, entries: Vec<Entry>) {
        match self.shard(key).and_then(|shard| shard.stream()) {
            Some(link) => link.push(entries, &self.counters),
            None => count(&self.counters.events_skipped, entries.len() as u64),
        }
    }

    /// Remembers a stream until it is dropped, for the shutdown.
    pub(crate) fn remember(&self, link: &Arc<LinkStream>) {
        let mut streams = lock(&self.streams);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(link));
    }

    pub(crate) fn all_streams(&self) -> Vec<Arc<LinkStream>> {
        lock(&self.streams).iter().filter_map(std::sync::Weak::upgrade).collect()
    }
}

/// The data under our locks is whole after every statement, so a panic elsewhere spoils nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
