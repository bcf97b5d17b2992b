//! The events of one stream: the list of sessions, then logins and frames until it ends. One task
//! does all of it, so its calls of the backend are in order.
//!
//! What a gateway sends against the contract ends its stream with a status that says so; it never
//! panics and never touches another stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream, StreamExt, TryStreamExt};
use millrace_protocol::frame::Flags;
use millrace_protocol::link::{
    ClientFrame, ConnectRequest, Credit, Encoding, GatewayEvent, Hello, HelloReply, LoginRequest,
    LoginResult, RefreshRequest, RefreshResult, RoomMembers, Session as ListedSession,
    SessionEnded, Transport, gateway_event, logic_event::Kind,
};
use millrace_protocol::{Code, limits};
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tonic::Status;

use crate::backend::{Accepted, Backend, Ended, Inbound, Login, Refused};
use crate::counters::count;
use crate::hub::{Hub, Shard, lock};
use crate::outbox::{Entry, LinkStream};
use crate::session::{Session, SessionAddress};

/// What a gateway sends, batch by batch: off an HTTP/2 stream, or from a test in this process.
pub(crate) trait Batches:
    Stream<Item = Result<ConnectRequest, Status>> + Unpin + Send
{
}

impl<S: Stream<Item = Result<ConnectRequest, Status>> + Unpin + Send> Batches for S {}

/// How a stream ended.
pub(crate) enum End {
    /// The gateway, the connection, or somebody here closed it.
    Gone,
    /// Nothing was heard for the lease.
    Silent,
    /// The gateway broke the contract.
    Violation(Status),
}

/// What is kept of a login while it is decided.
struct Asked {
    address: SessionAddress,
    device_id: String,
    platform: String,
    transport: Transport,
    encoding: Encoding,
}

/// What a login or refresh came to.
enum Decided {
    Login { asked: Asked, answer: Result<Accepted, Refused> },
    Refresh { session: Arc<Session>, request_id: u32, answer: Result<i64, Refused> },
}

/// One stream while it is open.
pub(crate) struct Reader<'a, B> {
    hub: &'a Arc<Hub>,
    backend: &'a Arc<B>,
    shard: &'a Arc<Shard>,
    link: &'a Arc<LinkStream>,
    lease: Duration,
    /// Number of the next event.
    sequence: u64,
    /// Credit the gateway has used so far.
    used_frames: u64,
    used_bytes: u64,
    /// The sessions listed so far; `None` once the list is complete.
    listing: Option<Vec<ListedSession>>,
    /// The rooms listed so far, and how many memberships that is.
    listed_rooms: (Vec<RoomMembers>, usize),
    /// Sessions and rooms of the batch at hand that came from another logic process.
    arrived: Vec<Arc<Session>>,
    arrived_rooms: Vec<RoomMembers>,
    deciding: FuturesUnordered<BoxFuture<'static, Decided>>,
    /// Answers to logins that leave together, with one wake of the connection, and the sessions
    /// that start right after.
    answers: Vec<Entry>,
    starting: Vec<Arc<Session>>,
}

impl<'a, B: Backend> Reader<'a, B> {
    pub(crate) fn new(
        hub: &'a Arc<Hub>,
        backend: &'a Arc<B>,
        shard: &'a Arc<Shard>,
        link: &'a Arc<LinkStream>,
        lease: Duration,
    ) -> Self {
        Self {
            hub,
            backend,
            shard,
            link,
            lease,
            sequence: 2,
            used_frames: 0,
            used_bytes: 0,
            listing: Some(Vec::new()),
            listed_rooms: (Vec::new(), 0),
            arrived: Vec::new(),
            arrived_rooms: Vec::new(),
            deciding: FuturesUnordered::new(),
            answers: Vec::new(),
            starting: Vec::new(),
        }
    }

    /// Answers the Hello.
    pub(crate) fn open(&self, hello: &Hello) {
        let (hub, settings) = (self.hub, &self.hub.settings);
        count(&hub.counters.streams_opened, 1);
        tracing::info!(gateway = %hello.gateway_id, epoch = hello.gateway_epoch, shard = hello.shard,
            "a gateway shard connected");
        let lease_ms = u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX);
        self.link.open_window(hello.window.unwrap_or_default(), lease_ms / 3);
        self.link.moves.store(hello.moves && settings.takes_moves, Ordering::Release);
        let reply = HelloReply {
            logic_id: settings.logic_id.clone(),
            logic_epoch: hub.logic_epoch,
            lease_ms,
            window: Some(Credit {
                frames: settings.window_frames_max,
                bytes: settings.window_bytes_max,
            }),
            takes_moves: settings.takes_moves,
        };
        self.link.push([Entry::new(Kind::HelloReply(reply))], &hub.counters);
    }

    /// Works the stream off until it ends.
    pub(crate) async fn run(&mut self, first: ConnectRequest, inbound: &mut impl Batches) -> End {
        if let Err(status) = self.batch(first).await {
            return End::Violation(status);
        }
        let link = Arc::clone(self.link);
        let changed = link.changed.notified();
        let silence = tokio::time::sleep(self.lease);
        tokio::pin!(changed, silence);
        let mut heard = Instant::now();
        loop {
            if link.is_over() {
                return End::Gone;
            }
            tokio::select! {
                biased;
                () = &mut changed => renew(changed.as_mut(), &link),
                Some(decided) = self.deciding.next(),
                    if self.listing.is_none() && !self.deciding.is_empty() =>
                {
                    self.decided(decided);
                    self.decide_what_is_ready();
                    self.start_sessions();
                }
                received = inbound.try_next(), if !link.is_reading_stopped() => {
                    match received {
                        Ok(Some(batch)) => {
                            if let Err(status) = self.batch(batch).await {
                                return End::Violation(status);
                            }
                        }
                        Ok(None) => return End::Gone,
                        Err(status) => {
                            tracing::debug!(%status, "a gateway's stream broke");
                            return End::Gone;
                        }
                    }
                    // While a batch was worked on nobody listened: that time is not the gateway's.
                    heard = Instant::now();
                }
                () = &mut silence => {
                    if link.is_reading_stopped() {
                        heard = Instant::now();
                    } else if heard.elapsed() >= self.lease {
                        return End::Silent;
                    }
                    silence.as_mut().reset(heard + self.lease);
                }
            }
        }
    }

    /// Works a batch off. Whatever is wrong with a later event of it, a login that was accepted
    /// starts its session.
    async fn batch(&mut self, batch: ConnectRequest) -> Result<(), Status> {
        let worked = self.events(batch).await;
        self.start_sessions();
        worked
    }

    /// Works events off: credit, the list, logins, sessions that moved here, then frames, then ends. An
    /// end comes after the frames of its session because a gateway sends none of a session that ended
    /// or moved away.
    async fn events(&mut self, batch: ConnectRequest) -> Result<(), Status> {
        if let Some(state) = batch.state {
            *lock(&self.shard.state) = state;
        }
        if let Some(credit) = batch.credit {
            self.link.add_credit(credit);
        }
        if batch.events.is_empty() {
            return Ok(());
        }
        if batch.sequence != self.sequence {
            let (found, expected) = (batch.sequence, self.sequence);
            return Err(Status::data_loss(format!("event {found} came instead of {expected}")));
        }
        self.sequence += batch.events.len() as u64;
        let mut frames = Vec::new();
        let mut ended = Vec::new();
        let mut let_go = false;
        let sessions = Arc::clone(self.shard);
        for GatewayEvent { kind } in batch.events {
            use gateway_event::Kind as Event;
            match kind {
                Some(Event::Frame(frame)) => {
                    if self.listing.is_some() {
                        return Err(Status::invalid_argument("a frame before SessionsComplete"));
                    }
                    let session = sessions.sessions().get(&frame.session_id).cloned();
                    if let Some(inbound) = self.frame(frame, session)? {
                        frames.push(inbound);
                    }
                }
                Some(Event::Login(login)) => self.login(login),
                Some(Event::Refresh(refresh)) => self.refresh(refresh)?,
                Some(Event::SessionEnded(end)) => match &mut self.listing {
                    Some(listed) => {
                        listed.retain(|session| session.session_id != end.session_id);
                        self.end(end);
                    }
                    None => ended.push(end),
                },
                Some(Event::Session(session)) => match &mut self.listing {
                    Some(listed) if listed.len() < self.hub.settings.sessions_max => {
                        listed.push(session);
                    }
                    Some(_) => {
                        return Err(Status::resource_exhausted("the list of sessions is too long"));
                    }
                    None if session.moved => self.arrives(session)?,
                    None => {
                        let reason = "a Session after SessionsComplete that has not moved";
                        return Err(Status::invalid_argument(reason));
                    }
                },
                Some(Event::RoomMembers(room)) => self.room_listed(room)?,
                Some(Event::Drained(drained)) => {
                    tracing::debug!(
                        sessions_left = drained.sessions_left,
                        "a gateway shard let go"
                    );
                    let_go = true;
                }
                Some(Event::SessionsComplete(complete)) => {
                    let Some(listed) = self.listing.take() else {
                        return Err(Status::invalid_argument("a second SessionsComplete"));
                    };
                    tracing::debug!(
                        sessions = listed.len(),
                        announced = complete.sessions,
                        "a gateway listed its sessions"
                    );
                    self.reconcile(listed).await;
                }
                Some(Event::Hello(_)) => return Err(Status::invalid_argument("a second Hello")),
                // A newer gateway may know events that we do not.
                None => {}
            }
        }
        self.start_sessions();
        self.take_in();
        if !frames.is_empty() {
            count(&self.hub.counters.frames_received, frames.len() as u64);
            self.backend.frames(frames).await;
        }
        for end in ended {
            self.end(end);
        }
        if let_go {
            // The ends that came with it count.
            self.link.drained.store(true, Ordering::Release);
            self.hub.drained.notify_waiters();
        }
        Ok(())
    }

    /// A session is over; one we do not know is over already.
    fn end(&self, end: SessionEnded) {
        let session = self.shard.sessions().remove(&end.session_id);
        if let Some(session) = session {
            let ended = match end.moved {
                true => Ended::Moved,
                false => Ended::Over(Code::from_number(end.code).unwrap_or(Code::PeerGone)),
            };
            self.hub.end_session(session, &**self.backend, ended);
        }
    }

    /// A session comes from another logic process: it is entered, so that its frames find it.
    fn arrives(&mut self, listed: ListedSession) -> Result<(), Status> {
        let shard = self.shard;
        let session = Session::listed(shard.key, shard.number, &shard.gateway_id, listed);
        let session = Arc::new(session);
        let earlier = {
            let mut sessions = shard.sessions();
            if sessions.len() >= self.hub.settings.sessions_max {
                return Err(Status::resource_exhausted("there are too many sessions"));
            }
            sessions.insert(session.address.session_id, Arc::clone(&session))
        };
        if let Some(earlier) = earlier {
            // Not as the contract has it; whoever it was is not here any more.
            self.hub.end_session(earlier, &**self.backend, Ended::Lost);
        }
        self.arrived.push(session);
        Ok(())
    }

    /// Tells the backend of the sessions that have arrived, after their rooms.
    fn take_in(&mut self) {
        if !self.arrived_rooms.is_empty() {
            let rooms = std::mem::take(&mut self.arrived_rooms);
            self.hub.adopt_rooms(self.shard, self.link, rooms);
        }
        if !self.arrived.is_empty() {
            let arrived = std::mem::take(&mut self.arrived);
            count(&self.hub.counters.sessions_moved_here, arrived.len() as u64);
            self.backend.sessions_moved_here(arrived);
        }
    }

    /// Keeps a listed room until the list is complete, or those that moved here are entered.
    fn room_listed(&mut self, room: RoomMembers) -> Result<(), Status> {
        if self.listing.is_none() {
            // Bounded by the size of a batch.
            self.arrived_rooms.push(room);
            return Ok(());
        }
        let settings = &self.hub.settings;
        let memberships_max = settings.sessions_max.saturating_mul(settings.rooms_per_session_max);
        let (rooms, memberships) = &mut self.listed_rooms;
        *memberships = memberships.saturating_add(room.session_ids.len().max(1));
        if *memberships > memberships_max {
            return Err(Status::resource_exhausted("the list of rooms is too long"));
        }
        rooms.push(room);
        Ok(())
    }

    /// Compares the gateway's list with ours: what it does not list has ended, what we do not know
    /// starts, the rest is kept.
    async fn reconcile(&mut self, listed: Vec<ListedSession>) {
        let shard = self.shard;
        let (mut started, mut kept, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut sessions = shard.sessions();
            let mut before = std::mem::take(&mut *sessions);
            for entry in listed {
                let session = match before.remove(&entry.session_id) {
                    Some(known) if *known.user_id == *entry.user_id => {
                        kept.push(Arc::clone(&known));
                        known
                    }
                    other => {
                        gone.extend(other);
                        let new =
                            Session::listed(shard.key, shard.number, &shard.gateway_id, entry);
                        let new = Arc::new(new);
                        started.push(Arc::clone(&new));
                        new
                    }
                };
                sessions.insert(session.address.session_id, session);
            }
            gone.extend(before.into_values());
        }
        self.hub.end_sessions(gone, &**self.backend, Ended::Lost).await;
        self.backend.sessions_returning(&kept);
        shard.attach(Some(Arc::clone(self.link)));
        let rooms = std::mem::take(&mut self.listed_rooms.0);
        self.hub.reconcile_rooms(shard, self.link, rooms, &started);
        self.backend.sessions_replayed(started, kept);
    }

    /// Takes a client's frame, checks it against the credit, and finds its session.
    fn frame(
        &mut self,
        frame: ClientFrame,
        session: Option<Arc<Session>>,
    ) -> Result<Option<Inbound>, Status> {
        let bytes = frame.body.len() as u64;
        self.used_frames += 1;
        self.used_bytes += bytes;
        let granted_bytes = self.link.granted_bytes.load(Ordering::Acquire);
        if self.used_frames > self.link.granted_frames.load(Ordering::Acquire)
            || self.used_bytes > granted_bytes + u64::from(limits::BODY_BYTES_MAX_CEILING)
        {
            return Err(Status::resource_exhausted("more frames than the credit allows"));
        }
        let counters = &self.hub.counters;
        let Some(session) = session else {
            count(&counters.frames_of_unknown_sessions, 1);
            self.link.return_credit(1, bytes);
            return Ok(None);
        };
        let command = u16::try_from(frame.command).ok();
        let flags = u8::try_from(frame.flags).ok().and_then(Flags::from_bits);
        let (Some(command), Some(flags)) = (command, flags) else {
            count(&counters.frames_malformed, 1);
            self.link.return_credit(1, bytes);
            return Ok(None);
        };
        Ok(Some(Inbound {
            session,
            command,
            flags,
            request_id: frame.request_id,
            body: frame.body,
            link: Arc::clone(self.link),
            hub: Arc::clone(self.hub),
            credit_bytes: bytes,
            answered: AtomicBool::new(false),
        }))
    }

    fn login(&mut self, request: LoginRequest) {
        let address = self.shard.address(request.session_id);
        let (transport, encoding) = (request.transport(), request.encoding());
        let login = Login {
            user_id: request.user_id,
            token: request.token,
            device_id: request.device_id,
            platform: request.platform,
            client_version: request.client_version,
            timestamp_ms: request.timestamp_ms,
            nonce: request.nonce,
            resume_token: request.resume_token,
            remote_address: request.remote_address,
            transport,
            encoding,
            address,
        };
        self.make_room();
        if self.deciding.len() >= self.hub.settings.logins_max {
            return self.refuse_login(address, &self.busy());
        }
        let asked = Asked {
            address,
            device_id: login.device_id.clone(),
            platform: login.platform.clone(),
            transport,
            encoding,
        };
        let backend = Arc::clone(self.backend);
        let decision =
            async move { Decided::Login { asked, answer: backend.login(login).await } }.boxed();
        self.decide(decision);
    }

    /// Waits for a decision, or takes it at once: most need no waiting, and there may be tens of
    /// thousands a second.
    fn decide(&mut self, mut decision: BoxFuture<'static, Decided>) {
        if self.listing.is_none()
            && let Some(decided) = (&mut decision).now_or_never()
        {
            return self.decided(decided);
        }
        self.deciding.push(decision);
    }

    fn refresh(&mut self, request: RefreshRequest) -> Result<(), Status> {
        if self.listing.is_some() {
            return Err(Status::invalid_argument("a refresh before SessionsComplete"));
        }
        let session = self.shard.sessions().get(&request.session_id).cloned();
        let Some(session) = session else {
            let refused = Refused::from(Code::NotLoggedIn);
            self.answer_refresh(request.session_id, request.request_id, Err(refused));
            return Ok(());
        };
        self.make_room();
        if self.deciding.len() >= self.hub.settings.logins_max {
            let busy = self.busy();
            self.answer_refresh(request.session_id, request.request_id, Err(busy));
            return Ok(());
        }
        let (backend, asked) = (Arc::clone(self.backend), Arc::clone(&session));
        let decision = async move {
            let answer = backend.refresh(asked, request.token).await;
            Decided::Refresh { session, request_id: request.request_id, answer }
        };
        self.decide(decision.boxed());
        Ok(())
    }

    /// Before anything is refused for want of room: what needs no waiting is decided right away.
    fn make_room(&mut self) {
        if self.listing.is_none() && self.deciding.len() >= self.hub.settings.logins_max {
            self.decide_what_is_ready();
        }
    }

    fn decide_what_is_ready(&mut self) {
        while let Some(Some(decided)) = self.deciding.next().now_or_never() {
            self.decided(decided);
        }
    }

    fn busy(&self) -> Refused {
        Refused::new(Code::OverCapacity, "too many logins at the same time")
            .retry_after(self.hub.settings.retry_after_ms)
    }

    fn decided(&mut self, decided: Decided) {
        match decided {
            Decided::Login { asked, answer: Ok(accepted) } => self.accept(asked, accepted),
            Decided::Login { asked, answer: Err(refused) } => {
                self.refuse_login(asked.address, &refused);
            }
            Decided::Refresh { session, request_id, answer } => {
                if let Ok(expires_at_ms) = answer {
                    let renewed = Session { expires_at_ms, ..Session::clone(&session) };
                    let mut sessions = self.shard.sessions();
                    if let Some(known) = sessions.get_mut(&session.address.session_id) {
                        *known = Arc::new(renewed);
                    }
                }
                self.answer_refresh(session.address.session_id, request_id, answer);
            }
        }
    }

    /// The session is entered; [`Self::start_sessions`] answers and tells the backend.
    fn accept(&mut self, login: Asked, accepted: Accepted) {
        let SessionAddress { session_id, .. } = login.address;
        let session = Arc::new(Session {
            address: login.address,
            gateway_id: Arc::clone(&self.shard.gateway_id),
            user_id: accepted.user_id.as_str().into(),
            device_id: login.device_id.into(),
            platform: login.platform.into(),
            transport: login.transport,
            encoding: login.encoding,
            logged_in_at_ms: now_ms(),
            expires_at_ms: accepted.expires_at_ms,
            state: accepted.state.clone(),
        });
        let refusal = {
            let mut sessions = self.shard.sessions();
            if sessions.contains_key(&session_id) {
                Some(Refused::from(Code::AlreadyLoggedIn))
            } else if sessions.len() >= self.hub.settings.sessions_max {
                Some(
                    Refused::from(Code::OverCapacity).retry_after(self.hub.settings.retry_after_ms),
                )
            } else {
                sessions.insert(session_id, Arc::clone(&session));
                None
            }
        };
        if let Some(refused) = refusal {
            return self.refuse_login(login.address, &refused);
        }
        count(&self.hub.counters.logins_accepted, 1);
        let result = LoginResult {
            session_id,
            code: Code::Ok.number(),
            reason: String::new(),
            retry_after_ms: 0,
            user_id: accepted.user_id,
            heartbeat_interval_ms: accepted.heartbeat_interval_ms,
            idle_timeout_ms: accepted.idle_timeout_ms,
            expires_at_ms: accepted.expires_at_ms,
            resume_token: accepted.resume_token,
            state: accepted.state,
        };
        self.answers.push(Entry::new(Kind::LoginResult(result)));
        self.starting.push(session);
    }

    /// Queues the answers to logins, then tells the backend of the sessions, so that what it sends
    /// them arrives after their answer.
    fn start_sessions(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        self.link.push(self.answers.drain(..), &self.hub.counters);
        for session in self.starting.drain(..) {
            self.backend.session_started(session);
        }
    }

    fn refuse_login(&mut self, address: SessionAddress, refused: &Refused) {
        count(&self.hub.counters.logins_refused, 1);
        let result = LoginResult {
            session_id: address.session_id,
            code: refusal_number(refused.code),
            reason: refused.reason.clone(),
            retry_after_ms: refused.retry_after_ms,
            ..LoginResult::default()
        };
        self.answers.push(Entry::new(Kind::LoginResult(result)));
    }

    fn answer_refresh(&self, session_id: u64, request_id: u32, answer: Result<i64, Refused>) {
        let mut result = RefreshResult { session_id, request_id, ..RefreshResult::default() };
        match answer {
            Ok(expires_at_ms) => result.expires_at_ms = expires_at_ms,
            Err(refused) => {
                result.code = refusal_number(refused.code);
                result.reason = refused.reason;
            }
        }
        self.link.push([Entry::new(Kind::RefreshResult(result))], &self.hub.counters);
    }
}

/// A refusal must not read as a success, even if a backend made it out of `Code::Ok`.
fn refusal_number(code: Code) -> u32 {
    if code == Code::Ok { Code::Internal.number() } else { code.number() }
}

/// Waits for the next change; a change that came in between is not lost, [`tokio::sync::Notify`]
/// keeps one.
fn renew<'a>(mut changed: std::pin::Pin<&mut Notified<'a>>, link: &'a LinkStream) {
    changed.set(link.changed.notified());
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
