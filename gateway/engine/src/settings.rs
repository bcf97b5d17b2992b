//! Every limit of a shard, with its unit, its default and what happens when it is reached.
//!
//! The engine takes them as they are; reading and checking a configuration is done elsewhere.

use millrace_protocol::{limits, link};

/// What to do with a connection that reads more slowly than it is sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlowConsumer {
    /// Discard its queue, tell it `slow_consumer`, close it.
    #[default]
    Close,
    /// Drop the frames that do not fit and count them; when the queue has drained, tell it with
    /// one ERROR `slow_consumer` that there is a gap.
    Drop,
}

/// The limits of one shard.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections of this shard. Above it: `over_capacity`, closed.
    pub connections_max: u32,
    /// Connections from one IPv4 address or one IPv6 /64. Above it: `rate_limited`, closed.
    pub connections_per_address_max: u32,
    /// Largest frame body from a client. Above it: `too_large`, closed.
    pub body_bytes_max: u32,
    /// Time from the accept to a successful login. After it: `login_timeout`, closed.
    pub login_deadline_ms: u32,
    /// Time without a complete frame from a logged-in client, unless logic negotiates another.
    /// After it: `idle_timeout`, closed.
    pub idle_timeout_ms: u32,
    /// How long a session outlives its token, for a REFRESH that comes late. After it: KICK
    /// `token_expired`, closed.
    pub token_grace_ms: u32,
    /// How often a client is asked to send HEARTBEAT, unless logic negotiates another.
    pub heartbeat_interval_ms: u32,
    /// How long a closing connection may take to read its farewell and to close its end. After
    /// it the socket is closed.
    pub linger_ms: u32,
    /// Bytes that may wait for one connection, without the send under way. A frame that meets an
    /// empty queue always fits. Above it: [`Self::slow_consumer`].
    pub send_queue_bytes_max: usize,
    /// Bytes that are coalesced into one send.
    pub send_batch_bytes_max: usize,
    /// Sends of fan-outs in one turn of the loop; the others wait for the next turns, so that
    /// everything else is prompt.
    pub sends_per_turn_max: u32,
    /// Broadcasts under way, at most 100. When one more comes, the oldest is finished in that turn.
    pub broadcasts_max: u32,
    /// What happens above [`Self::send_queue_bytes_max`].
    pub slow_consumer: SlowConsumer,
    /// Requests of one connection without an answer. Above it: ERROR `rate_limited`.
    pub requests_in_flight_max: u32,
    /// Frames and WebSocket control frames a second of one connection. Above it, and once
    /// [`Self::frames_burst_max`] is used up: ERROR `rate_limited`.
    pub frames_per_second_max: u32,
    /// Frames that may come at once after a pause.
    pub frames_burst_max: u32,
    /// Logins of this shard that wait for logic. Above it: `logic_unavailable`, try again.
    pub logins_in_flight_max: u32,
    /// Rooms one session may be in. Above it: ERROR `over_capacity`; it stays outside.
    pub rooms_per_connection_max: u32,
    /// Rooms of this shard. Above it: as above.
    pub rooms_max: u32,
    /// Refused frames of one connection before its login, or within one idle timeout after it.
    /// Above it: closed with the code of the last refusal.
    pub refusals_max: u8,
    /// What a client is told to wait before it tries again.
    pub retry_after_ms: u32,
    /// Frames of one connection that wait for credit; its receive is paused meanwhile. Above it:
    /// ERROR `rate_limited`.
    pub link_backlog_frames_max: u32,
    /// Body bytes of one connection that wait for credit. Above it: as above.
    pub link_backlog_bytes_max: usize,
    /// How long a frame waits for credit, at most a third of [`Self::idle_timeout_ms`]. After it:
    /// ERROR `rate_limited`, and the connection is read again. 0: as long as it takes; then a
    /// client that is held for its idle timeout goes.
    pub link_credit_wait_max_ms: u32,
    /// Events that wait for a link that does not take them, before logins and refreshes are
    /// answered `logic_unavailable`. (Client frames are bounded by credit, ends of sessions by
    /// the number of sessions.)
    pub link_outbox_events_max: usize,
    /// Events of one batch to logic.
    pub link_batch_events_max: usize,
    /// Body bytes after which a batch to logic is complete.
    pub link_batch_bytes_max: usize,
    /// Sessions a second that move from one logic to another that has fewer. 0: none, but those of a
    /// logic that leaves, which all move in the time that it gives them.
    pub link_moves_per_second_max: u32,
    /// The path of the WebSocket upgrade; another one gets status 404.
    pub websocket_path: String,
    /// Origins a browser's page may come from; others get status 403. Empty: any. Clients that
    /// are not browsers send none and are always allowed.
    pub allowed_origins: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            connections_per_address_max: 100_000,
            body_bytes_max: limits::BODY_BYTES_MAX_DEFAULT,
            login_deadline_ms: 10_000,
            idle_timeout_ms: 15_000,
            token_grace_ms: 10_000,
            heartbeat_interval_ms: 5_000,
            linger_ms: 2_000,
            send_queue_bytes_max: 256 * 1024,
            send_batch_bytes_max: 64 * 1024,
            sends_per_turn_max: 256,
            broadcasts_max: 32,
            slow_consumer: SlowConsumer::Close,
            requests_in_flight_max: 256,
            frames_per_second_max: 1_000,
            frames_burst_max: 2_000,
            logins_in_flight_max: 20_000,
            rooms_per_connection_max: 64,
            rooms_max: 100_000,
            refusals_max: 32,
            retry_after_ms: 1_000,
            link_backlog_frames_max: 512,
            link_backlog_bytes_max: 256 * 1024,
            link_credit_wait_max_ms: 5_000,
            link_outbox_events_max: 100_000,
            link_batch_events_max: 512,
            link_batch_bytes_max: 256 * 1024,
            link_moves_per_second_max: 1_000,
            websocket_path: "/ws".to_owned(),
            allowed_origins: Vec::new(),
        }
    }
}

/// Who this shard is, as logic hears it in `Hello`.
#[derive(Clone, Debug)]
pub struct GatewayIdentity {
    /// The gateway's stable name.
    pub gateway_id: String,
    /// Grows with every start of the process.
    pub gateway_epoch: u64,
    /// Shards of the process.
    pub shards: u32,
    /// How long logic keeps the sessions after it last heard from the gateway. An empty batch is
    /// sent after a third of it without another.
    pub lease_ms: u32,
    /// What logic may have under way towards this shard.
    pub window: link::Credit,
}

/// How a shard leaves.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// GOAWAY is spread evenly over this time.
    pub spread_ms: u32,
    /// Told in GOAWAY: the earliest moment to leave.
    pub reconnect_after_ms_min: u32,
    /// Told in GOAWAY: the latest moment to leave. A connection that is still there a second
    /// later is closed with `draining`.
    pub reconnect_after_ms_max: u32,
    /// Told in GOAWAY: where to; empty: the same address.
    pub reconnect_to: String,
}
