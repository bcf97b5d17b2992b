//! The bounds of the chat domain: every queue, table and rate, with its default and what happens
//! when it is full.
//!
//! Values only. Where they come from (a file, a test) is the caller's business; see
//! [`crate::config`] for the file.

use std::time::Duration;

use super::{messages::MessageSettings, peers::PeerSettings};
use crate::login::{ReplayCheck, ReplaySettings, SessionPolicy};

/// The settings of [`Chat`](super::Chat). `Default` is what production starts with.
#[derive(Clone, Debug)]
pub struct ChatSettings {
    /// What processes of a fleet tell each other.
    pub peers: PeerSettings,
    /// Writes waiting for the processor. Full: receiving waits, so the link's credit runs out and
    /// the clients' TCP windows close.
    pub writes_queued_max: usize,
    /// Writes of one durable commit.
    pub commit_writes_max: usize,
    /// How long cursor moves that nobody waits for may wait for a message to share a commit with.
    /// Receipts are coalesced for longer than this anyway.
    pub cursor_delay: Duration,
    /// Under load a commit begins at most once in this time. Zero: as soon as there is a write.
    pub commit_interval: Duration,
    /// Batches of writes that the store has been given and has not answered. At the bound the next
    /// batch gathers until it answers one.
    pub commits_in_flight_max: usize,
    /// Commits whose replies and deliveries are still to be sent. Full: the processor waits.
    pub commits_queued_max: usize,
    /// Reads (pulls, look-ups, typing) waiting. Full: receiving waits.
    pub reads_queued_max: usize,
    /// Reads running at once.
    pub reads_in_flight_max: usize,
    /// Sessions whose undelivered messages are being read and pushed at once; others wait their
    /// turn, in the order they logged in.
    pub catch_ups_in_flight_max: usize,
    /// Newest undelivered messages of one conversation that a login pushes; older ones are
    /// pulled.
    pub catch_up_messages_max: usize,
    /// Conversations whose undelivered messages a login pushes, newest first; others are found by
    /// `PULL_CONVERSATIONS`.
    pub catch_up_conversations_max: usize,
    /// Bytes that a catch-up pushes before it pauses, so that it does not overrun the send queue
    /// that the gateway keeps for a connection.
    pub catch_up_burst_bytes_max: usize,
    /// The length of that pause.
    pub catch_up_pause: Duration,
    /// Live messages held back for one session while its catch-up runs. Full: the catch-up starts
    /// again, which reads them from the store.
    pub catch_up_held_max: usize,
    /// The same in bytes.
    pub catch_up_held_bytes_max: usize,
    /// Attempts of a catch-up before the session is closed with `internal`, for the client to
    /// come back.
    pub catch_up_attempts_max: u32,
    /// Reports waiting for the bus. Full: receiving waits.
    pub reports_queued_max: usize,
    /// Attempts to put reports on the bus while this process leaves, before they are dropped and
    /// counted. Until then they wait, however long it takes.
    pub report_attempts_max: u32,
    /// Topics that clients may report to; empty: any, up to the bus's own bound. Others:
    /// `not_permitted`.
    pub report_topics: Vec<String>,
    /// Callers that wait for records of a topic at once, reading or consuming. One more:
    /// `over_capacity`.
    pub consumers_waiting_max: usize,
    /// Frames of any kind a second that one user may send, over all devices. Above: ERROR
    /// `rate_limited`.
    pub frames_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub frames_burst_max: u32,
    /// Messages (`SEND_MESSAGE`, `ROOM_MESSAGE`) a second that one user may send, over all
    /// devices. Above: ERROR `rate_limited`.
    pub messages_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub messages_burst_max: u32,
    /// Pulls and look-ups a second that one user may ask for, over all devices. Above: ERROR
    /// `rate_limited`.
    pub pulls_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub pulls_burst_max: u32,
    /// Questions about presence a second of one user, subscriptions included. Above: ERROR
    /// `rate_limited`.
    pub presence_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub presence_burst_max: u32,
    /// Reports a second of one user. Above: ERROR `rate_limited`.
    pub reports_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub reports_burst_max: u32,
    /// Logins, refreshes and logouts everywhere a second of one user. Above: `rate_limited`.
    pub logins_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub logins_burst_max: u32,
    /// Messages a second that services may send in one user's name. Above: `rate_limited`.
    pub service_messages_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub service_messages_burst_max: u32,
    /// Users, each by kind of request, whose rate is in use: the five kinds above. Full: who is new
    /// is told `rate_limited`.
    pub paced_buckets_max: usize,
    /// Logins that were seen before.
    pub replay_login: ReplaySettings,
    /// Messages that were seen before.
    pub replay_send: ReplaySettings,
    /// Changes of presence are gathered for so long before subscribers are told.
    pub presence_interval: Duration,
    /// How long a session's subscriptions last unless renewed.
    pub presence_subscribed_for: Duration,
    /// Users one session may subscribe to. Above: `over_capacity`, and nothing changes.
    pub presence_subscriptions_per_session_max: usize,
    /// Subscriptions of all sessions and streams. Above: as before.
    pub presence_subscriptions_max: usize,
    /// Streams of presence that services may have open. Above: `over_capacity`.
    pub presence_streams_max: usize,
    /// Messages a second that clients may send to one live room, all together. Above: ERROR
    /// `rate_limited`, and nobody hears the message.
    pub room_messages_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub room_messages_burst_max: u32,
    /// Live rooms whose rate is kept, those that spoke within the last burst. Full: a room that was
    /// silent until now is told `rate_limited`.
    pub rooms_paced_max: usize,
    /// Body of a room's message or of a broadcast, in bytes. Above: `too_large`.
    pub room_body_bytes_max: usize,
    /// Broadcasts a second that services may send to everybody. Above: `rate_limited`.
    pub broadcasts_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub broadcasts_burst_max: u32,
    /// Targets of one push, members of its groups included. Above: `too_large`.
    pub notice_targets_max: usize,
    /// How long a notice is kept for its users when the caller does not say.
    pub notice_ttl: Duration,
    /// How long a caller may ask for. Above: `bad_request`.
    pub notice_ttl_max: Duration,
    /// Acknowledgements of notices that wait to be stored. Full: receiving waits.
    pub notice_acks_queued_max: usize,
    /// Registrations of push tokens that wait. Full: receiving waits.
    pub push_tokens_queued_max: usize,
    /// States of notices that a watcher may be behind. Above, it is ended and told so.
    pub notice_events_queued_max: usize,
    /// Receipts of one user in one conversation are sent at most this often.
    pub receipt_interval: Duration,
    /// Conversations with more members get no receipts of other members: one message to a group
    /// of n would cause n × n of them. A user's own devices always get theirs.
    pub receipt_members_max: usize,
    /// Receipts being coalesced. Full: all of them are sent at once, early.
    pub receipts_pending_max: usize,
    /// Messages in one `DELIVER`.
    pub deliver_messages_max: usize,
    /// Bytes of messages in one `DELIVER` or pull reply; a single larger message still travels.
    pub reply_bytes_max: usize,
    /// What a client is told to wait after a failure that is ours.
    pub retry_after: Duration,
    /// What messages may be, and what may become of them.
    pub messages: MessageSettings,
    /// How many sessions a user may have, and who leaves when there are too many.
    pub sessions: SessionPolicy,
}

impl Default for ChatSettings {
    fn default() -> Self {
        Self {
            peers: PeerSettings::default(),
            writes_queued_max: 16_384,
            commit_writes_max: 1_000,
            cursor_delay: Duration::from_millis(10),
            commit_interval: Duration::from_millis(4),
            commits_in_flight_max: 16,
            commits_queued_max: 4,
            reads_queued_max: 4_096,
            reads_in_flight_max: 64,
            catch_ups_in_flight_max: 64,
            catch_up_messages_max: 20,
            catch_up_conversations_max: 200,
            catch_up_burst_bytes_max: 64 * 1024,
            catch_up_pause: Duration::from_millis(100),
            catch_up_held_max: 1_024,
            catch_up_held_bytes_max: 1024 * 1024,
            catch_up_attempts_max: 5,
            reports_queued_max: 4_096,
            report_attempts_max: 5,
            report_topics: vec![],
            consumers_waiting_max: 64,
            frames_per_second_max: 1_000,
            frames_burst_max: 2_000,
            messages_per_second_max: 200,
            messages_burst_max: 400,
            pulls_per_second_max: 200,
            pulls_burst_max: 1_000,
            presence_per_second_max: 20,
            presence_burst_max: 100,
            reports_per_second_max: 500,
            reports_burst_max: 1_000,
            logins_per_second_max: 5,
            logins_burst_max: 50,
            service_messages_per_second_max: 2_000,
            service_messages_burst_max: 4_000,
            paced_buckets_max: 1_000_000,
            replay_login: ReplaySettings::default(),
            replay_send: ReplaySettings { check: ReplayCheck::Off, ..ReplaySettings::default() },
            presence_interval: Duration::from_millis(500),
            presence_subscribed_for: Duration::from_secs(600),
            presence_subscriptions_per_session_max: 200,
            presence_subscriptions_max: 500_000,
            presence_streams_max: 64,
            room_messages_per_second_max: 100,
            room_messages_burst_max: 200,
            rooms_paced_max: 100_000,
            room_body_bytes_max: 16 * 1024,
            broadcasts_per_second_max: 10,
            broadcasts_burst_max: 20,
            notice_targets_max: 10_000,
            notice_ttl: Duration::from_secs(7 * 24 * 3_600),
            notice_ttl_max: Duration::from_secs(30 * 24 * 3_600),
            notice_acks_queued_max: 4_096,
            push_tokens_queued_max: 1_024,
            notice_events_queued_max: 4_096,
            receipt_interval: Duration::from_millis(500),
            receipt_members_max: 100,
            receipts_pending_max: 65_536,
            deliver_messages_max: 64,
            reply_bytes_max: 32 * 1024,
            retry_after: Duration::from_secs(1),
            messages: MessageSettings::default(),
            sessions: SessionPolicy::default(),
        }
    }
}
