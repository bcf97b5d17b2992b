//! What an operator may ask about the connections of a shard. It walks over all of them, so it is
//! for a person's question, not for a metric.

use std::net::IpAddr;

use super::Engine;
use crate::{ConnectionId, LinkId, TransportKind, identity::Identity, link::Opening};

/// One connection, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Its id, which is the session's id as well.
    pub id: ConnectionId,
    /// How it is connected.
    pub transport: TransportKind,
    /// Where the peer is.
    pub peer: IpAddr,
    /// The verified user; `None` before the login.
    pub user_id: Option<String>,
    /// As claimed at the login; empty before it.
    pub device_id: String,
    /// As claimed at the login; empty before it.
    pub platform: String,
    /// Milliseconds since 1970; 0 before the login.
    pub logged_in_at_ms: i64,
    /// Milliseconds since the last complete frame, or since the accept.
    pub silence_ms: u32,
    /// Bytes that wait to be sent.
    pub send_queue_bytes: usize,
    /// Whether it has been told that it ends.
    pub is_closing: bool,
    /// The link that its session is at home on.
    pub link: Option<LinkId>,
}

/// How far a link is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPhase {
    /// Logic has not answered Hello, or the lists are under way.
    Opening,
    /// In use.
    Ready,
    /// Logic has said that it leaves; its sessions move to others.
    Leaving,
}

/// One link that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its id.
    pub id: LinkId,
    /// How far it is.
    pub phase: LinkPhase,
    /// Sessions that are at home on it, logins under way included.
    pub sessions: u32,
    /// Events that wait for it.
    pub outbox_events: usize,
}

impl Engine {
    /// Whether frames are still on their way to many: the owner's loop goes on without waiting.
    pub fn is_fanning_out(&self) -> bool {
        !self.fan_outs.is_empty()
    }

    /// The first `connections_max` connections, in order of their slots.
    pub fn connections(&self, connections_max: usize) -> Vec<ConnectionInfo> {
        let ids = (0..self.connections.slots()).filter_map(|slot| self.id_in_slot(slot));
        ids.filter_map(|id| self.inspect(id)).take(connections_max).collect()
    }

    /// The links that are up, in order of their ids.
    pub fn links(&self) -> impl Iterator<Item = LinkInfo> {
        self.links.iter().map(|link| LinkInfo {
            id: link.id,
            phase: match link.leaving {
                Some(_) => LinkPhase::Leaving,
                None if link.is_ready && link.opening == Opening::Complete => LinkPhase::Ready,
                None => LinkPhase::Opening,
            },
            sessions: link.sessions,
            outbox_events: link.waiting(),
        })
    }

    fn inspect(&self, id: ConnectionId) -> Option<ConnectionInfo> {
        let connection = self.get(id)?;
        let identity = Identity::read(self.identities.get(connection.identity));
        let session = identity.claims.unwrap_or_default();
        Some(ConnectionInfo {
            id,
            transport: connection.transport(),
            peer: identity.peer,
            user_id: connection.is_active().then_some(session.user_id),
            device_id: session.device_id,
            platform: session.platform,
            logged_in_at_ms: session.logged_in_at_ms,
            silence_ms: connection.silence_ms(self.now),
            send_queue_bytes: connection.queued_bytes(&self.works),
            is_closing: !connection.is_open(),
            link: connection.home.link(),
        })
    }
}
