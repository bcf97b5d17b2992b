//! Where a session is, and who it is. Plain values; the tables that hold them are elsewhere.

use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::link;
pub use millrace_protocol::link::{Encoding, Transport};

/// One life of one gateway shard, as this process knows it. A shard that was given up (its lease
/// ran out, or its process started again) and comes back gets another key; none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayKey(pub u32);

/// Where a session is. The same address can come again only after `session_ended` of the session
/// that had it before: a client may repeat a LOGIN whose answer was lost with the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionAddress {
    /// The life of the gateway shard.
    pub gateway: GatewayKey,
    /// The shard's number within its gateway.
    pub shard: u16,
    /// The gateway's own id of the connection.
    pub session_id: u64,
}

/// A logged-in session.
#[derive(Clone, Debug)]
pub struct Session {
    /// Where it is.
    pub address: SessionAddress,
    /// The gateway's name, the same for all its shards and lives.
    pub gateway_id: Arc<str>,
    /// The verified user.
    pub user_id: Arc<str>,
    /// As the client named its device; may be empty.
    pub device_id: Arc<str>,
    /// As the client named its platform; may be empty.
    pub platform: Arc<str>,
    /// How the client is connected.
    pub transport: Transport,
    /// How the client wants its bodies.
    pub encoding: Encoding,
    /// When it logged in, milliseconds since 1970.
    pub logged_in_at_ms: i64,
    /// When its token expires, milliseconds since 1970; 0: never.
    pub expires_at_ms: i64,
    /// What the backend attached when it accepted the login; the gateway keeps it.
    pub state: Bytes,
}

impl Session {
    /// The session a gateway listed.
    pub(crate) fn listed(
        gateway: GatewayKey,
        shard: u16,
        gateway_id: &Arc<str>,
        listed: link::Session,
    ) -> Self {
        let (transport, encoding) = (listed.transport(), listed.encoding());
        Self {
            address: SessionAddress { gateway, shard, session_id: listed.session_id },
            gateway_id: Arc::clone(gateway_id),
            user_id: listed.user_id.into(),
            device_id: listed.device_id.into(),
            platform: listed.platform.into(),
            transport,
            encoding,
            logged_in_at_ms: listed.logged_in_at_ms,
            expires_at_ms: listed.expires_at_ms,
            state: listed.state,
        }
    }
}
