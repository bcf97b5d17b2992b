//! The bounds of a logic server, each with its unit and default. It decides nothing: what happens
//! at a bound is written beside it.

use crate::rooms::RoomsMax;

/// Settings of [`crate::Server`].
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// This process's name towards the gateways. Default `logic`.
    pub logic_id: String,
    /// How long the sessions of a gateway shard outlive its stream, and how long a stream may stay
    /// silent, in milliseconds. A gateway that asks for less in its Hello gets less. Default 10,000.
    pub lease_ms: u32,
    /// Frames a gateway shard may have under way here before credit goes back. At the bound the
    /// gateway stops receiving from its clients. Default 65,536.
    pub window_frames_max: u64,
    /// The same in body bytes; keep it at twice the largest body or more. Default 32 MiB.
    pub window_bytes_max: u64,
    /// Events waiting to be sent to one gateway shard. Above it the stream is ended: the gateway
    /// connects again and lists its sessions. Default 262,144.
    pub outbox_frames_max: usize,
    /// The same in bytes. Default 64 MiB.
    pub outbox_bytes_max: usize,
    /// Logins and refreshes of one stream decided at the same time; one more is refused with
    /// `over_capacity`. Default 1,024.
    pub logins_max: usize,
    /// Bytes of one batch to a gateway; one larger event travels alone. Default 256 KiB.
    pub batch_bytes_max: usize,
    /// Events of one batch to a gateway. Default 4,096.
    pub batch_events_max: usize,
    /// Sessions of one gateway shard. A login above it is refused with `over_capacity`, a longer
    /// list ends the stream. Default 2,000,000.
    pub sessions_max: usize,
    /// Gateways known at the same time. Above it those without a session are forgotten, and if
    /// there are none, the newcomer's stream is refused. Default 1,024.
    pub gateways_max: usize,
    /// Live rooms with members. A join that would need another is refused. Default 100,000.
    pub rooms_max: usize,
    /// Members of one live room that have their home here, over all gateways. A further join is refused. Default 1,000,000.
    pub room_members_max: u64,
    /// Rooms of one session. A further join is refused. Default 64.
    pub rooms_per_session_max: usize,
    /// What a login refused with `over_capacity` is told to wait, in milliseconds. Default 1,000.
    pub retry_after_ms: u32,
    /// How long [`crate::Server::hand_over`] waits for the gateways to move the sessions to other logic
    /// processes, in milliseconds; it is what they are told. Default 5,000.
    pub hand_over_ms_max: u32,
    /// Whether gateways may move sessions here and away; without it this process has its sessions until
    /// they end. Default yes.
    pub takes_moves: bool,
    /// Whether the gateways are linked to other logic processes as well. Then a shard may have members of
    /// a room, and sessions, whose home is elsewhere: what is published goes to every shard that is
    /// linked, and which rooms have changed is kept for [`crate::Gateways::take_changed_rooms`].
    /// Default no.
    pub shares_gateways: bool,
    /// How long a shutdown waits for what is queued to reach the gateways. Default 5,000.
    pub shutdown_ms_max: u32,
}

impl ServerSettings {
    pub(crate) const fn rooms_bounds(&self) -> RoomsMax {
        RoomsMax {
            rooms: self.rooms_max,
            members: self.room_members_max,
            per_session: self.rooms_per_session_max,
        }
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            logic_id: "logic".to_owned(),
            lease_ms: 10_000,
            window_frames_max: 65_536,
            window_bytes_max: 32 * 1024 * 1024,
            outbox_frames_max: 262_144,
            outbox_bytes_max: 64 * 1024 * 1024,
            logins_max: 1_024,
            batch_bytes_max: 256 * 1024,
            batch_events_max: 4_096,
            sessions_max: 2_000_000,
            gateways_max: 1_024,
            rooms_max: 100_000,
            room_members_max: 1_000_000,
            rooms_per_session_max: 64,
            retry_after_ms: 1_000,
            hand_over_ms_max: 5_000,
            takes_moves: true,
            shares_gateways: false,
            shutdown_ms_max: 5_000,
        }
    }
}
