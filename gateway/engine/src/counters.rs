//! What a shard has done and what it holds. Plain numbers of one thread; the owner publishes them.

use millrace_protocol::Code;

use crate::{durations::Durations, effect::TransportKind};

/// Rows of the table of codes.
const CODES: usize = Code::ALL.len();

/// Why something was dropped. Whatever the client can be told, it was told as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// A frame for a connection whose send queue was full.
    SlowConsumer,
    /// A client's frame that needs no reply, while no logic is reachable.
    LogicUnavailable,
    /// A client's frame beyond the backlog of those that wait for credit.
    Backlog,
    /// A client's frame that waited for credit too long; it was told.
    CreditWait,
    /// A client's frame beyond its rate, or a ping.
    RateLimited,
    /// A frame from logic for a session that has ended, or never was.
    SessionUnknown,
    /// A reply from logic to a request that is not in flight: answered already, or never asked.
    RequestUnknown,
    /// A protobuf body for a connection of the text form.
    Encoding,
    /// A room membership beyond the limits.
    RoomLimit,
    /// A change of a room, from another logic than the session is at home with.
    NotHome,
    /// An event from logic that breaks the contract: before HelloReply, on a link that is not up,
    /// about a login that another logic decides, or empty.
    LinkContract,
}

impl Dropped {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::SlowConsumer,
        Self::LogicUnavailable,
        Self::Backlog,
        Self::CreditWait,
        Self::RateLimited,
        Self::SessionUnknown,
        Self::RequestUnknown,
        Self::Encoding,
        Self::RoomLimit,
        Self::NotHome,
        Self::LinkContract,
    ];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::SlowConsumer => "slow_consumer",
            Self::LogicUnavailable => "logic_unavailable",
            Self::Backlog => "backlog",
            Self::CreditWait => "credit_wait",
            Self::RateLimited => "rate_limited",
            Self::SessionUnknown => "session_unknown",
            Self::RequestUnknown => "request_unknown",
            Self::Encoding => "encoding",
            Self::RoomLimit => "room_limit",
            Self::NotHome => "not_home",
            Self::LinkContract => "link_contract",
        }
    }
}

/// Traffic of one transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections accepted, refused ones included.
    pub opened: u64,
    /// Connections freed, by the code they ended with.
    pub closed: [u64; CODES],
    /// Whole frames (WebSocket text messages included) from clients.
    pub messages_in: u64,
    /// Frames queued for clients.
    pub messages_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes handed out to be sent.
    pub bytes_out: u64,
    /// Connections now.
    pub connections: u64,
}

/// Counters of one shard. Those named "now" in their text go up and down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// TCP connections.
    pub tcp: Traffic,
    /// WebSocket connections.
    pub websocket: Traffic,
    /// ERROR frames to clients, by code.
    pub refused: [u64; CODES],
    /// What was dropped, by [`Dropped`].
    pub dropped: [u64; Dropped::ALL.len()],
    /// Logins accepted.
    pub logins: u64,
    /// Logins refused, by code.
    pub logins_refused: [u64; CODES],
    /// Sessions ended, by code.
    pub sessions_ended: [u64; CODES],
    /// Sessions now.
    pub sessions: u64,
    /// From a login's question to logic's answer; like the next two a sample.
    pub login_durations: Durations,
    /// From a request to its answer.
    pub request_durations: Durations,
    /// From a frame's arrival from logic until all that was queued with it was sent.
    pub delivery_durations: Durations,
    /// Requests without an answer now.
    pub requests_in_flight: u64,
    /// Logins that wait for logic now.
    pub logins_in_flight: u64,
    /// Client frames that wait for credit now.
    pub backlog_frames: u64,
    /// Bytes in all send queues now.
    pub send_queue_bytes: u64,
    /// Rooms now.
    pub rooms: u64,
    /// Memberships of all rooms now.
    pub room_members: u64,
    /// Times a connection's receive was paused for want of credit.
    pub receive_pauses: u64,
    /// Events that wait for the link now.
    pub link_outbox_events: u64,
    /// Client frames handed to the link.
    pub link_frames_out: u64,
    /// Events handed to the link.
    pub link_events_out: u64,
    /// Events received from logic.
    pub link_events_in: u64,
    /// Links that came up.
    pub link_ups: u64,
    /// Links that went down.
    pub link_downs: u64,
    /// Batches from logic whose number was not the expected one.
    pub link_sequence_gaps: u64,
    /// Sessions moved from a link that is up to another one.
    pub sessions_moved: u64,
    /// Sessions without a home that a link has taken in.
    pub sessions_taken_in: u64,
    /// Sessions without a home now.
    pub sessions_homeless: u64,
    /// Calls for a connection that is not there any more.
    pub stale_calls: u64,
}

impl Counters {
    /// The traffic of one transport.
    pub const fn traffic(&self, kind: TransportKind) -> &Traffic {
        match kind {
            TransportKind::Tcp => &self.tcp,
            TransportKind::WebSocket => &self.websocket,
        }
    }

    pub(crate) const fn traffic_mut(&mut self, kind: TransportKind) -> &mut Traffic {
        match kind {
            TransportKind::Tcp => &mut self.tcp,
            TransportKind::WebSocket => &mut self.websocket,
        }
    }

    /// How often something was dropped for this reason.
    pub const fn dropped(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize]
    }

    pub(crate) const fn drop_one(&mut self, reason: Dropped) {
        self.dropped[reason as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::Dropped;

    #[test]
    fn every_reason_has_its_own_place_and_label() {
        for (index, reason) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            let same = Dropped::ALL.iter().filter(|other| other.label() == reason.label());
            assert_eq!(same.count(), 1);
        }
    }
}
