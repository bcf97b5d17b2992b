//! What the logic processes of a fleet tell each other.
//!
//! A session has one home: the process whose link its gateway lists it on. What another process stores
//! reaches it through its home: the one that stored it tells all of them, and each hands it to the
//! sessions it is the home of, in the order of the sequence ([`feed`]). What is not stored (typing,
//! receipts, notices, ends of sessions) is told the same way and passed on as it comes.
//!
//! Events can be lost, but never in silence ([`crate::events`]): then every session is caught up from
//! the store, as after a break of its gateway's link. So nothing stored depends on an event.
//!
//! With one process there is none of this ([`Core::peers`](super::Core) is `None`), and it costs nothing.

pub(crate) mod feed;
mod hear;
pub(crate) mod rooms;
pub(crate) mod tell;

use std::{sync::Arc, time::Duration};

use millrace_logic_sdk::SessionAddress;
use millrace_protocol::{Code, peer::SessionName};

use serde::Serialize;

use self::feed::{FeedSettings, Told};
use super::Core;
use crate::{
    events::{Events, EventsCounts, EventsError, Listener},
    registry::SessionRecord,
};

pub(crate) use hear::run;

/// The subject of everything that processes tell each other.
const SUBJECT: &str = "peers";

/// Bounds of what processes tell each other.
#[derive(Clone, Copy, Debug)]
pub struct PeerSettings {
    /// How long a message waits for an earlier one of its conversation that another process has
    /// stored, before those it is for are caught up from the store.
    pub hold_max: Duration,
    /// Messages that wait so. Above it those that wait longest are given up early.
    pub held_messages_max: usize,
    /// Conversations whose last sequence is remembered. Above it those that were silent longest are
    /// forgotten, and read from the store without need.
    pub conversations_max: usize,
    /// Commits heard of whose deliveries are still to be sent. Full: hearing waits, and what is lost
    /// by that is noticed.
    pub heard_queued_max: usize,
    /// Bytes of one event; what is larger goes in several. A NATS server takes 1 MiB unless it is
    /// told otherwise.
    pub event_bytes_max: usize,
    /// Live rooms of each other process whose members are counted. Those of further ones are not.
    pub room_counts_max: usize,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            hold_max: Duration::from_millis(200),
            held_messages_max: 10_000,
            conversations_max: 500_000,
            heard_queued_max: 1_024,
            event_bytes_max: 128 << 10,
            room_counts_max: 100_000,
        }
    }
}

impl PeerSettings {
    pub(crate) fn feed(&self) -> FeedSettings {
        FeedSettings {
            settles_after: SETTLES_AFTER,
            hold_max: self.hold_max,
            held_messages_max: self.held_messages_max,
            conversations_max: self.conversations_max,
        }
    }
}

/// Far longer than an event travels, or its loss stays unnoticed.
const SETTLES_AFTER: Duration = Duration::from_secs(30);

/// The events of a fleet, which this process listens to already.
pub struct PeerEvents {
    events: Arc<dyn Events>,
    listener: Box<dyn Listener>,
}

impl PeerEvents {
    /// Listens from now on. To be called before the store is read: what others store after this is
    /// heard.
    ///
    /// # Errors
    /// Those of [`Events::listen`].
    pub async fn listen(events: Arc<dyn Events>) -> Result<Self, EventsError> {
        let listener = events.listen(SUBJECT).await?;
        Ok(Self { events, listener })
    }

    pub(crate) fn split(self, settings: PeerSettings) -> (Peers, Box<dyn Listener>) {
        let peers = Peers { events: self.events, settings, elsewhere: rooms::Elsewhere::default() };
        (peers, self.listener)
    }
}

/// The other processes, as this one speaks to them.
pub(crate) struct Peers {
    events: Arc<dyn Events>,
    settings: PeerSettings,
    elsewhere: rooms::Elsewhere,
}

impl Peers {
    /// Everything told so far goes out, and the others need not wonder about the silence after it.
    pub(crate) async fn leave(&self) {
        self.events.close().await;
    }

    pub(crate) fn counts(&self) -> EventsCounts {
        self.events.counts()
    }
}

/// What the third stage hears of the others.
pub(crate) enum Heard {
    /// What another process stored, in its order.
    Stored(Vec<Told>),
    /// Something was lost: everybody is to be caught up.
    Missed,
}

/// How every process can name a session.
pub(crate) fn name_of(session: &SessionRecord) -> SessionName {
    SessionName {
        gateway_id: session.gateway_id.to_string(),
        session_id: session.address.session_id,
        logged_in_at_ms: session.logged_in_at_ms,
        user_id: session.user_id.to_string(),
    }
}

impl Core {
    /// Sends what is not stored to every session of these users, but for `except`. Returns how many
    /// of them have their home here.
    pub(crate) fn send_to_users<M: prost::Message + Serialize>(
        &self,
        user_ids: &[impl AsRef<str>],
        except: Option<SessionAddress>,
        command: u16,
        message: &M,
    ) -> usize {
        let mut receivers = Vec::new();
        self.online.deliveries().everybody(user_ids, except, &mut receivers);
        self.gateways.send_message(&receivers, command, message);
        if let Some(peers) = &self.peers {
            peers.to_users(user_ids, command, message);
        }
        receivers.len()
    }

    /// Ends a session that the registry knows, here or through its home.
    pub(crate) fn close_session(&self, session: &SessionRecord, code: Code, reason: &str) {
        self.metrics.kicked.inc();
        let Some(peers) = &self.peers else {
            return self.gateways.close(session.address, code, reason);
        };
        let name = name_of(session);
        match self.online.find(&name) {
            Some(address) => self.gateways.close(address, code, reason),
            None => peers.close(vec![name], code, reason),
        }
    }

    /// A version up to which whatever is read after this holds everything. While the store cannot be
    /// asked, the newest that is known: then more is read than need be.
    pub(crate) async fn readable_version(&self) -> u64 {
        self.store.committed_version().await.unwrap_or_else(|_| self.store.version())
    }
}
