//! The chat domain: what the commands 0x0100 to 0x0FFF mean.
//!
//! [`Chat`] is a [`Backend`] and uses nothing of the gateway but the SDK; of the world below it
//! knows the traits [`Store`], [`Registry`], [`Bus`] and [`TokenVerifier`], never an
//! implementation.
//!
//! # The chain
//! A message passes three stages with bounded queues between them:
//!
//! 1. `receiver`: decode, validate, rates of the user
//! 2. `processor`: batches, one durable commit each; while one commits, the next gathers
//! 3. `sync`: replies and deliveries, in commit order, from one task
//!
//! Beside it run `reads` (pulls and look-ups), `reports` (to the bus), `topics` (what services read
//! of it), `notices` and `push` (what services tell users), `room_directory` (rooms that services have
//! made), `gateways` (which one a client should use), `offline_push` and `push_tokens` (who is on no
//! device), `presence` (logins, the registry
//! and the device policy), `presence_requests` and `watchers` (who wants to know who is online), `logout`
//! (everywhere at once), `rooms` (live messages), `catch_up` (what a session has missed) and `expiry`
//! (erasing what is over). `messages` says what a message must be, `forward` and `live` what is sent
//! on and what is not stored, `words` what is not let through. `online` is the table of connected
//! sessions, and explains how nothing is
//! pushed twice in a steady run and nothing is missed. `api` serves business services through the
//! same chain.
//!
//! # Decisions
//! - A message to oneself is allowed: a note in the chat of the user with itself.
//! - The session that sent a message gets its reply and no `DELIVER`; the sender's other sessions
//!   get a `DELIVER` like everybody.
//! - Receipts go to the other members' devices and to the user's own other devices; in
//!   conversations above `receipt_members_max` to the own devices only.
//! - The delivered cursor moves by `DELIVER_ACK` alone, so a client acknowledges what it has sent
//!   itself like anything else; until then its next login pushes it again.
//! - What a login pushes is bounded; everything else is found by `PULL_CONVERSATIONS` and
//!   `PULL_MESSAGES`. Their replies are bounded in bytes, so `complete` may be false although
//!   fewer than `limit` came.
//! - A request with a `request_id` is always answered, those without a reply of their own by an
//!   empty one.

mod api;
mod api_groups;
mod catch_up;
mod expiry;
mod forward;
mod gate;
mod gateways;
mod groups;
mod history_api;
mod live;
mod logout;
mod messages;
mod metrics;
mod moved_away;
mod notices;
mod offline_push;
mod online;
mod paces;
mod peers;
mod presence;
mod presence_requests;
mod processor;
mod profiles;
mod push;
mod push_tokens;
mod rate;
mod reads;
mod receipts;
mod receiver;
mod reports;
mod room_directory;
mod rooms;
mod search;
mod session_log;
mod sessions_api;
mod settings;
mod sync;
mod topics;
mod watchers;
mod words;

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use millrace_logic_sdk::{Accepted, Backend, Ended, Gateways, Inbound, Login, Refused, Session};
use millrace_protocol::{Code, chat::Notice, command};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use uuid::Uuid;

use crate::{
    bus::Bus,
    login::{ReplayGuard, TokenVerifier},
    notices::NoticeStore,
    registry::Registry,
    rooms::RoomDirectory,
    search::SearchIndex,
    storage::{Revocations, Store},
};
use gateways::Assigned;
use metrics::{CodeLabel, QueueLabel, TransportLabel};
use notices::{Ack, Notices};
use offline_push::Pusher;
use online::{HeldMax, Online, Rates};
use paces::{PacedRates, Paces};
use peers::Peers;
use processor::Job;
use rate::Rate;
use reports::Business;
use rooms::Rooms;
use watchers::{SubscriberId, Watchers, WatchersMax};
use words::Words;

pub use gate::{SendGate, SendGates};
pub use messages::MessageSettings;
pub use metrics::Metrics;
pub use offline_push::{OfflinePush, OfflinePushSettings};
pub use peers::{PeerEvents, PeerSettings};
pub use presence_requests::{OpenPresence, PresencePolicy};
pub use profiles::{NoProfiles, Profile, Profiles};
pub(crate) use receiver::unix_ms;
pub use rooms::{OpenRooms, RoomPolicy};
pub use settings::ChatSettings;
pub use words::{FINDINGS_TOPIC, NoWords, Verdict, WordFilter, WordStatus};

/// What the chat domain stands on.
pub struct Foundation {
    /// Messages, conversations, groups.
    pub store: Arc<dyn Store>,
    /// Who is online where.
    pub registry: Arc<dyn Registry>,
    /// Topics of business services.
    pub bus: Arc<dyn Bus>,
    /// Notices that wait for their targets.
    pub notices: Arc<dyn NoticeStore>,
    /// Whose token it is.
    pub verifier: Arc<dyn TokenVerifier>,
    /// Who may join live rooms and speak in them.
    pub rooms: Arc<dyn RoomPolicy>,
    /// Where messages are searched; `None`: SEARCH_MESSAGES is not served.
    pub search: Option<Arc<dyn SearchIndex>>,
    /// Whose tokens of before are good no more.
    pub revocations: Arc<dyn Revocations>,
    /// Who may see whether somebody is online.
    pub presence: Arc<dyn PresencePolicy>,
    /// Who may send what to whom, beside what the store decides.
    pub gates: SendGates,
    /// Words that are not let through.
    pub words: Arc<dyn WordFilter>,
    /// The rooms that business services have made.
    pub directory: Arc<RoomDirectory>,
    /// How devices that are offline are reached, if at all.
    pub push: Option<OfflinePush>,
    /// What people call each other.
    pub profiles: Arc<dyn Profiles>,
    /// The other logic processes of the fleet; `None`: this one is alone.
    pub peers: Option<PeerEvents>,
}

/// See the module.
pub struct Chat {
    core: Arc<Core>,
    /// Gone once everything under way is being drained.
    intake: Mutex<Option<Arc<Intake>>>,
    /// The tasks that end when the intake is gone and they have dealt with what they have.
    stages: Mutex<Vec<JoinHandle<()>>>,
}

/// Where the first stage puts things. While it lives, more may come.
pub(crate) struct Intake {
    pub writes: mpsc::Sender<Job>,
    pub reads: mpsc::Sender<Inbound>,
    pub reports: mpsc::Sender<Business>,
    pub acks: mpsc::Sender<Ack>,
    pub push_tokens: mpsc::Sender<Inbound>,
}

/// What the stages share.
pub(crate) struct Core {
    pub settings: ChatSettings,
    pub store: Arc<dyn Store>,
    pub registry: Arc<dyn Registry>,
    pub bus: Arc<dyn Bus>,
    pub verifier: Arc<dyn TokenVerifier>,
    pub gates: SendGates,
    pub profiles: Arc<dyn Profiles>,
    pub gateways: Gateways,
    pub online: Online,
    pub rooms: Rooms,
    pub search: Option<Arc<dyn SearchIndex>>,
    pub revocations: Arc<dyn Revocations>,
    pub recent_logouts: logout::Recent,
    pub logins_seen: ReplayGuard,
    pub sends_seen: ReplayGuard,
    pub presence_policy: Arc<dyn PresencePolicy>,
    pub watchers: Watchers,
    pub notices: Notices,
    pub words: Words,
    pub pusher: Option<Arc<Pusher>>,
    pub assigned: Assigned,
    pub peers: Option<Peers>,
    pub metrics: Metrics,
    pub lifecycle_waker: Notify,
    pub catch_up_waker: Notify,
    pub watchers_waker: Notify,
    pub stop: Stop,
    /// Places for those who wait for records of a topic.
    pub consumers: Arc<Semaphore>,
}

/// Says once that the process is leaving.
pub(crate) struct Stop(watch::Sender<bool>);

impl Stop {
    fn say(&self) {
        self.0.send_replace(true);
    }

    /// Waits until it is said.
    pub(crate) async fn said(&self) {
        // The sender lives in this value, so it cannot be gone.
        let mut watch = self.0.subscribe();
        let _said = watch.wait_for(|said| *said).await;
    }
}

impl Core {
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.0.borrow()
    }

    pub(crate) fn count_refusal(&self, code: Code) {
        self.metrics.refused.get_or_create(&CodeLabel { code: code.label() }).inc();
    }

    /// Failures of ours come with the advice when to try again.
    pub(crate) fn retry_after_ms_of(&self, code: Code) -> u32 {
        let ours = matches!(code, Code::Internal | Code::OverCapacity | Code::LogicUnavailable);
        if ours {
            self.settings.retry_after.as_millis().min(u128::from(u32::MAX)) as u32
        } else {
            0
        }
    }

    /// An ERROR frame.
    pub(crate) fn refuse(&self, inbound: &Inbound, code: Code, reason: &str) {
        self.count_refusal(code);
        inbound.refuse(code, reason, self.retry_after_ms_of(code));
    }
}

impl Chat {
    /// Starts the chain. Must be called within a tokio runtime.
    pub fn start(foundation: Foundation, settings: ChatSettings, gateways: Gateways) -> Arc<Self> {
        let rate = |per_second_max, burst_max| Rate { per_second_max, burst_max };
        let rates = Rates {
            frames: rate(settings.frames_per_second_max, settings.frames_burst_max),
            messages: rate(settings.messages_per_second_max, settings.messages_burst_max),
        };
        let paced = PacedRates {
            pulls: rate(settings.pulls_per_second_max, settings.pulls_burst_max),
            presence: rate(settings.presence_per_second_max, settings.presence_burst_max),
            reports: rate(settings.reports_per_second_max, settings.reports_burst_max),
            logins: rate(settings.logins_per_second_max, settings.logins_burst_max),
            service_messages: rate(
                settings.service_messages_per_second_max,
                settings.service_messages_burst_max,
            ),
        };
        let watchers_max = WatchersMax {
            subscriptions_per_session: settings.presence_subscriptions_per_session_max,
            subscriptions: settings.presence_subscriptions_max,
            services: settings.presence_streams_max,
        };
        let held_max = HeldMax {
            messages: settings.catch_up_held_max,
            bytes: settings.catch_up_held_bytes_max,
        };
        let (writes, jobs) = mpsc::channel(settings.writes_queued_max.max(1));
        let (commits, committed) = mpsc::channel(settings.commits_queued_max.max(1));
        let (reads, to_read) = mpsc::channel(settings.reads_queued_max.max(1));
        let (reports, to_publish) = mpsc::channel(settings.reports_queued_max.max(1));
        let (acks, to_mark) = mpsc::channel(settings.notice_acks_queued_max.max(1));
        let (push_tokens, to_register) = mpsc::channel(settings.push_tokens_queued_max.max(1));
        let (pusher, missed) = foundation.push.map(Pusher::new).unzip();
        let consumers = Arc::new(Semaphore::new(settings.consumers_waiting_max));
        let metrics = Metrics::default();
        let (words, findings) = Words::new(foundation.words, &metrics);
        let (peers, listener) = foundation.peers.map(|peers| peers.split(settings.peers)).unzip();
        let version = foundation.store.version();
        let core = Arc::new(Core {
            online: Online::new(rates, held_max, Paces::new(paced, settings.paced_buckets_max)),
            words,
            rooms: Rooms::new(foundation.rooms, foundation.directory, &settings),
            search: foundation.search,
            revocations: foundation.revocations,
            recent_logouts: logout::Recent::default(),
            logins_seen: ReplayGuard::new(settings.replay_login),
            sends_seen: ReplayGuard::new(settings.replay_send),
            presence_policy: foundation.presence,
            watchers: Watchers::new(
                watchers_max,
                settings.presence_subscribed_for.as_millis() as u64,
            ),
            notices: Notices::new(foundation.notices, settings.notice_events_queued_max),
            settings,
            store: foundation.store,
            registry: foundation.registry,
            bus: foundation.bus,
            verifier: foundation.verifier,
            gates: foundation.gates,
            profiles: foundation.profiles,
            gateways,
            pusher: pusher.map(Arc::new),
            assigned: Assigned::default(),
            peers,
            metrics,
            lifecycle_waker: Notify::new(),
            catch_up_waker: Notify::new(),
            watchers_waker: Notify::new(),
            stop: Stop(watch::Sender::new(false)),
            consumers,
        });
        let observing = Arc::downgrade(&core);
        core.rooms.directory.observe(Box::new(move |changes| {
            if let Some(core) = observing.upgrade() {
                room_directory::changed(&core, changes);
            }
        }));
        let fleet = listener.map(|listener| {
            let settings = core.settings.peers;
            let (to_sync, heard) = mpsc::channel(settings.heard_queued_max.max(1));
            tokio::spawn(peers::run(core.clone(), listener, to_sync));
            tokio::spawn(peers::rooms::run(core.clone()));
            sync::Fleet::new(peers::feed::Feed::new(settings.feed(), version), heard)
        });
        let stages = vec![
            tokio::spawn(processor::run(core.clone(), jobs, commits)),
            tokio::spawn(sync::run(core.clone(), committed, fleet)),
            tokio::spawn(reads::run(core.clone(), to_read, writes.clone())),
            tokio::spawn(reports::run(core.clone(), to_publish)),
            tokio::spawn(notices::acknowledge(core.clone(), to_mark)),
            tokio::spawn(push_tokens::run(core.clone(), to_register)),
        ];
        tokio::spawn(presence::run(core.clone()));
        tokio::spawn(catch_up::run(core.clone()));
        tokio::spawn(presence_requests::run(core.clone()));
        tokio::spawn(notices::run(core.clone()));
        tokio::spawn(expiry::run(core.clone(), writes.clone()));
        tokio::spawn(words::run(Arc::downgrade(&core), findings));
        if let (Some(pusher), Some(missed)) = (&core.pusher, missed) {
            tokio::spawn(offline_push::run(core.clone(), pusher.clone(), missed));
        }
        let intake = Arc::new(Intake { writes, reads, reports, acks, push_tokens });
        Arc::new(Self { core, intake: Mutex::new(Some(intake)), stages: Mutex::new(stages) })
    }

    /// Takes no new requests (they are answered `logic_unavailable`, for the client to try again),
    /// and waits until everything taken is stored and its replies are handed to the link. True if
    /// that was done in time.
    pub async fn drain(&self, time: Duration) -> bool {
        self.core.stop.say();
        drop(self.intake.lock().unwrap_or_else(PoisonError::into_inner).take());
        let stages =
            std::mem::take(&mut *self.stages.lock().unwrap_or_else(PoisonError::into_inner));
        let done = timeout(time, async {
            for stage in stages {
                if let Err(error) = stage.await {
                    tracing::error!(%error, "a stage of the chain had failed");
                }
            }
        });
        let done = done.await.is_ok();
        if let Some(peers) = &self.core.peers {
            peers.leave().await;
        }
        done
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// The metrics in the OpenMetrics text format, with gauges of this moment.
    pub fn scrape(&self) -> String {
        let metrics = &self.core.metrics;
        let (tcp, websocket) = self.core.online.sessions_by_transport();
        let sessions =
            |transport| metrics.sessions.get_or_create(&TransportLabel { transport }).clone();
        sessions("tcp").set(tcp as i64);
        sessions("websocket").set(websocket as i64);
        metrics.take_link(&self.core.gateways.counters(), &self.core.gateways.gateways());
        metrics.take_bus(self.core.bus.counts());
        let words = self.core.words.status();
        metrics.word_rules.set(words.rules as i64);
        metrics.word_reloads.inner().store(words.reloads, Ordering::Relaxed);
        metrics.word_reloads_failed.inner().store(words.reloads_failed, Ordering::Relaxed);
        if let Some(index) = &self.core.search {
            let search = index.status();
            metrics.search_messages.set(search.messages as i64);
            metrics.search_bytes.set(search.bytes as i64);
            metrics.search_lag_seconds.set(search.lag_ms as f64 / 1_000.0);
            metrics.search_notes_dropped.inner().store(search.dropped, Ordering::Relaxed);
            metrics
                .queued
                .get_or_create(&QueueLabel { queue: "search" })
                .set(search.waiting as i64);
        }
        if let Some(status) = self.core.registry.status() {
            metrics.take_registry(&status);
        }
        if let Some(store) = self.core.store.figures() {
            metrics.take_store(&store);
        }
        if let Some(peers) = &self.core.peers {
            let counts = peers.counts();
            metrics.peer_events_told.inner().store(counts.told, Ordering::Relaxed);
            metrics.peer_events_dropped.inner().store(counts.dropped, Ordering::Relaxed);
        }
        metrics.users.set(self.core.online.users() as i64);
        let gauge = |queue, queued: usize, max: usize| {
            metrics.queued.get_or_create(&QueueLabel { queue }).set(queued as i64);
            if max > 0 {
                metrics.queued_max.get_or_create(&QueueLabel { queue }).set(max as i64);
            }
        };
        if let Some(intake) = self.intake() {
            let Intake { writes, reads, reports, acks, .. } = &*intake;
            gauge("writes", writes.max_capacity() - writes.capacity(), writes.max_capacity());
            gauge("reads", reads.max_capacity() - reads.capacity(), reads.max_capacity());
            gauge("notice_acks", acks.max_capacity() - acks.capacity(), acks.max_capacity());
            gauge("reports", reports.max_capacity() - reports.capacity(), reports.max_capacity());
        }
        if let Some(pusher) = &self.core.pusher {
            let (queued, max) = pusher.queued();
            gauge("offline_push", queued, max);
        }
        let (lifecycle, catch_ups) = self.core.online.queued();
        gauge("lifecycle", lifecycle, 0);
        gauge("catch_ups", catch_ups, 0);
        gauge("presence_changes", self.core.watchers.marked(), 0);
        metrics.presence_subscriptions.set(self.core.watchers.subscriptions() as i64);
        metrics.paced_buckets.set(self.core.online.paced_buckets() as i64);
        metrics.encode()
    }

    /// Pushes a NOTICE to every session of a user; who is away does not get it later.
    pub fn notify(&self, user_id: &str, kind: u32, body: String) {
        let notice = Notice {
            notice_id: Uuid::now_v7().to_string(),
            r#type: kind,
            body,
            sent_at_ms: unix_ms(),
        };
        self.core.send_to_users(&[user_id], None, command::NOTICE, &notice);
    }

    /// The way in; `None` once it is closed.
    pub(crate) fn intake(&self) -> Option<Arc<Intake>> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Chat {
    /// Without a drain, too, no task outlives its chat.
    fn drop(&mut self) {
        self.core.stop.say();
    }
}

impl Backend for Chat {
    async fn login(&self, login: Login) -> Result<Accepted, Refused> {
        let decided = presence::login(&self.core, login).await;
        let code = decided.as_ref().map_or_else(|refused| refused.code, |_| Code::Ok);
        self.core.metrics.logins.get_or_create(&CodeLabel { code: code.label() }).inc();
        decided
    }

    fn session_started(&self, session: Arc<Session>) {
        session_log::note(session_log::STARTED, &session, None);
        self.core.online.start(session.clone(), false);
        room_directory::session_up(&self.core, &session);
        self.core.notices.session_up(&session);
        self.core.lifecycle_waker.notify_one();
        self.core.catch_up_waker.notify_one();
    }

    async fn refresh(&self, session: Arc<Session>, token: String) -> Result<i64, Refused> {
        presence::refresh(&self.core, &session, &token).await
    }

    async fn frames(&self, frames: Vec<Inbound>) {
        self.receive(frames).await;
    }

    fn session_ended(&self, session: Arc<Session>, ended: Ended) {
        let act = if ended == Ended::Moved { session_log::MOVED } else { session_log::ENDED };
        session_log::note(act, &session, Some(ended.code()));
        self.core.watchers.forget(SubscriberId::Session(session.address));
        if ended == Ended::Moved {
            self.core.online.move_away(session);
        } else {
            self.core.online.end(session);
        }
        self.core.lifecycle_waker.notify_one();
    }

    fn sessions_returning(&self, kept: &[Arc<Session>]) {
        for session in kept {
            self.core.online.begin_catch_up(session);
        }
    }

    fn sessions_replayed(&self, started: Vec<Arc<Session>>, kept: Vec<Arc<Session>>) {
        for session in started {
            session_log::note(session_log::LISTED, &session, None);
            self.core.online.start(session.clone(), true);
            room_directory::session_up(&self.core, &session);
            self.core.notices.session_up(&session);
        }
        for session in kept {
            self.core
                .online
                .keep(session.clone(), |user_id| self.core.revocations.may_have(user_id));
            self.core.notices.session_up(&session);
        }
        self.core.lifecycle_waker.notify_one();
        self.core.catch_up_waker.notify_one();
    }
}
