//! A gateway shard for tests: it connects over a real socket, lists and logs in sessions, sends
//! frames within its credit, and hands out what comes back, per session and in order.
//!
//! It keeps the contract as a gateway must, and gives credit back as soon as it has read a batch
//! unless told otherwise. It checks that logic keeps the contract: events numbered without a gap,
//! no frame for a session before its LoginResult, no more frames than its credit allows. It has no
//! clients: whoever uses it plays them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, TryStreamExt};
use millrace_protocol::frame::Flags;
use millrace_protocol::link::link_service_client::LinkServiceClient;
use millrace_protocol::link::{
    ClientFrame, CloseSession, ConnectRequest, ConnectResponse, Credit, Drained, GatewayEvent,
    Hello, HelloReply, LoginRequest, LoginResult, RefreshRequest, RefreshResult, RoomMembers,
    Session, SessionEnded, SessionsComplete, gateway_event, logic_event,
};
use millrace_protocol::{Code, command, limits};
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Endpoint;

use crate::{Encoding, Transport};

mod in_process;

pub use in_process::InProcess;

/// Batches between a [`FakeGateway`] and its connection.
const BATCHES_MAX: usize = 64;

/// How long anything that must come is waited for, before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who a [`FakeGateway`] is.
#[derive(Clone, Debug)]
pub struct FakeGatewaySettings {
    /// The gateway's name. Default `gateway-a`.
    pub gateway_id: String,
    /// The life of its process. Default 1.
    pub gateway_epoch: u64,
    /// The shard. Default 0.
    pub shard: u32,
    /// The lease asked for, in milliseconds; 0: logic's own. Default 0.
    pub lease_ms: u32,
    /// What logic may have under way. Default 65,536 frames and 64 MiB.
    pub window: Credit,
    /// Whether credit goes back as soon as a batch is read. Default yes.
    pub returns_credit: bool,
    /// Whether empty batches keep the lease. Default yes.
    pub heartbeats: bool,
    /// The sessions listed after Hello. Default none.
    pub sessions: Vec<Session>,
    /// The rooms listed after them. Default none.
    pub rooms: Vec<RoomMembers>,
    /// Whether it says that it moves sessions. Default no.
    pub moves: bool,
}

impl Default for FakeGatewaySettings {
    fn default() -> Self {
        Self {
            gateway_id: "gateway-a".to_owned(),
            gateway_epoch: 1,
            shard: 0,
            lease_ms: 0,
            window: Credit { frames: 65_536, bytes: 64 * 1024 * 1024 },
            returns_credit: true,
            heartbeats: true,
            sessions: Vec::new(),
            rooms: Vec::new(),
            moves: false,
        }
    }
}

/// A frame as a client of the fake gateway gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The command, with the reply bit on replies.
    pub command: u16,
    /// The flags.
    pub flags: Flags,
    /// The request it answers, or 0.
    pub request_id: u32,
    /// The body.
    pub body: Bytes,
}

impl Frame {
    /// The body as a message, by the frame's encoding.
    ///
    /// # Panics
    /// If it is none.
    pub fn decode<M: Message + Default + serde::de::DeserializeOwned>(&self) -> M {
        crate::encode::decode(&self.body, self.flags).expect("a body of the type expected")
    }

    /// Whether this is an ERROR frame, and of which code.
    pub fn error(&self) -> Option<Code> {
        if self.command != command::ERROR {
            return None;
        }
        let error: millrace_protocol::session::Error = self.decode();
        Some(Code::from_number(error.code).expect("a code of the table"))
    }
}

/// A gateway shard. Methods that wait fail the test after 20 seconds; when the stream ends under
/// them they return `None` or the status.
pub struct FakeGateway {
    settings: FakeGatewaySettings,
    hello_reply: HelloReply,
    to_logic: mpsc::Sender<ConnectRequest>,
    from_logic: BoxStream<'static, Result<ConnectResponse, Status>>,
    heartbeat: Option<JoinHandle<()>>,
    /// Number of the next event in each direction.
    sequence: u64,
    expected: u64,
    credit: Credit,
    owed: Credit,
    /// What logic may still send.
    granted: Credit,
    encodings: HashMap<u64, Encoding>,
    /// Sessions listed or logged in; frames come for no other.
    sessions: HashSet<u64>,
    logins: HashMap<u64, LoginResult>,
    refreshes: HashMap<u64, RefreshResult>,
    inboxes: HashMap<u64, VecDeque<Frame>>,
    closes: VecDeque<CloseSession>,
    rooms: HashMap<String, Vec<u64>>,
    draining: bool,
    end: Option<Status>,
}

impl FakeGateway {
    /// Connects, says Hello, lists the sessions of the settings and waits for the HelloReply.
    ///
    /// # Errors
    /// What logic answered instead, or why it cannot be reached.
    pub async fn connect(
        address: SocketAddr,
        settings: FakeGatewaySettings,
    ) -> Result<Self, Status> {
        let mut gateway = Self::connect_without_list(address, settings).await?;
        gateway.list().await;
        Ok(gateway)
    }

    /// Lists the sessions and rooms of the settings.
    async fn list(&mut self) {
        let gateway = self;
        let (sessions, rooms) = (gateway.settings.sessions.clone(), gateway.settings.rooms.clone());
        let listed = sessions.len() as u64;
        let mut events: Vec<_> = sessions.into_iter().map(gateway_event::Kind::Session).collect();
        for room in &rooms {
            gateway.rooms.entry(room.room_id.clone()).or_default().extend(&room.session_ids);
        }
        events.extend(rooms.into_iter().map(gateway_event::Kind::RoomMembers));
        events.push(gateway_event::Kind::SessionsComplete(SessionsComplete { sessions: listed }));
        gateway.send_events(events).await;
    }

    /// Connects and says Hello, but lists nothing yet.
    ///
    /// # Errors
    /// As [`FakeGateway::connect`].
    pub async fn connect_without_list(
        address: SocketAddr,
        settings: FakeGatewaySettings,
    ) -> Result<Self, Status> {
        let unreachable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(unreachable)?
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(unreachable)?;
        let (to_logic, outgoing) = mpsc::channel(BATCHES_MAX);
        to_logic.send(hello(&settings)).await.map_err(|_| Status::internal("it is new"))?;
        let outgoing = futures::stream::unfold(outgoing, |mut outgoing| async move {
            outgoing.recv().await.map(|batch| (batch, outgoing))
        });
        let from_logic = LinkServiceClient::new(channel)
            .max_decoding_message_size(2 * limits::BODY_BYTES_MAX_CEILING as usize)
            .connect(outgoing)
            .await?
            .into_inner();
        Self::open(to_logic, Box::pin(from_logic), settings).await
    }

    /// Waits for the HelloReply.
    async fn open(
        to_logic: mpsc::Sender<ConnectRequest>,
        from_logic: BoxStream<'static, Result<ConnectResponse, Status>>,
        settings: FakeGatewaySettings,
    ) -> Result<Self, Status> {
        let mut gateway = Self {
            hello_reply: HelloReply::default(),
            heartbeat: None,
            to_logic,
            from_logic,
            sequence: 2,
            expected: 1,
            credit: Credit::default(),
            owed: Credit::default(),
            granted: settings.window,
            encodings: HashMap::new(),
            sessions: HashSet::new(),
            logins: HashMap::new(),
            refreshes: HashMap::new(),
            inboxes: HashMap::new(),
            closes: VecDeque::new(),
            rooms: HashMap::new(),
            draining: false,
            end: None,
            settings,
        };
        while gateway.hello_reply.logic_id.is_empty() {
            if !gateway.receive().await {
                return Err(gateway.end.take().unwrap_or_else(|| Status::ok("ended at once")));
            }
        }
        if gateway.settings.heartbeats {
            let period = Duration::from_millis(u64::from(gateway.hello_reply.lease_ms / 3).max(1));
            let to_logic = gateway.to_logic.clone();
            gateway.heartbeat = Some(tokio::spawn(async move {
                // The number of an empty batch is not looked at.
                while to_logic.send(ConnectRequest::default()).await.is_ok() {
                    tokio::time::sleep(period).await;
                }
            }));
        }
        Ok(gateway)
    }

    /// What logic answered to Hello.
    pub fn hello_reply(&self) -> &HelloReply {
        &self.hello_reply
    }

    /// What logic still allows to be sent.
    pub fn credit(&self) -> Credit {
        self.credit
    }

    /// Whether logic has said that it leaves.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// The members of a room as this shard knows them.
    pub fn room(&self, room_id: &str) -> &[u64] {
        self.rooms.get(room_id).map_or(&[], Vec::as_slice)
    }

    /// The frames that are here already for a session, without waiting.
    pub fn inbox(&self, session_id: u64) -> usize {
        self.inboxes.get(&session_id).map_or(0, VecDeque::len)
    }

    /// Asks for a login and waits for the answer.
    ///
    /// # Panics
    /// If the stream ends first.
    pub async fn login(&mut self, request: LoginRequest) -> LoginResult {
        let session_id = request.session_id;
        self.send_login(request).await;
        self.login_result(session_id).await.expect("the stream lives")
    }

    /// Logs a user in over TCP with protobuf, the token as given.
    ///
    /// # Panics
    /// If the stream ends first.
    pub async fn login_as(&mut self, session_id: u64, user_id: &str, token: &str) -> LoginResult {
        self.login(login_request(session_id, user_id, token, "", "", Encoding::Protobuf)).await
    }

    /// Asks for a login without waiting.
    pub async fn send_login(&mut self, request: LoginRequest) {
        self.encodings.insert(request.session_id, request.encoding());
        self.send_events(vec![gateway_event::Kind::Login(request)]).await;
    }

    /// Waits for the answer to a login; `None` if the stream ends first.
    pub async fn login_result(&mut self, session_id: u64) -> Option<LoginResult> {
        loop {
            if let Some(result) = self.logins.remove(&session_id) {
                return Some(result);
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Shows a newer token and waits for the answer; `None` if the stream ends first.
    pub async fn refresh(&mut self, session_id: u64, token: &str) -> Option<RefreshResult> {
        let request = RefreshRequest { session_id, request_id: 1, token: token.to_owned() };
        self.send_events(vec![gateway_event::Kind::Refresh(request)]).await;
        loop {
            if let Some(result) = self.refreshes.remove(&session_id) {
                return Some(result);
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Sends a client's frame; waits for credit if there is none.
    pub async fn send(&mut self, session_id: u64, command: u16, request_id: u32, body: Bytes) {
        self.send_flagged(session_id, command, request_id, Flags::NONE, body).await;
    }

    /// The same, with further flags.
    pub async fn send_flagged(
        &mut self,
        session_id: u64,
        command: u16,
        request_id: u32,
        flags: Flags,
        body: Bytes,
    ) {
        let json = self.encodings.get(&session_id) == Some(&Encoding::Json);
        let flags = if json { flags.with(Flags::JSON) } else { flags };
        while !self.has_credit(body.len()) {
            if !self.receive().await {
                return;
            }
        }
        self.send_unchecked(session_id, command, request_id, flags, body).await;
    }

    /// Sends a client's frame if the credit allows it; says whether it did.
    pub async fn try_send(
        &mut self,
        session_id: u64,
        command: u16,
        request_id: u32,
        body: Bytes,
    ) -> bool {
        let allowed = self.has_credit(body.len());
        if allowed {
            self.send_unchecked(session_id, command, request_id, Flags::NONE, body).await;
        }
        allowed
    }

    /// Sends a client's frame whatever the credit says.
    pub async fn send_unchecked(
        &mut self,
        session_id: u64,
        command: u16,
        request_id: u32,
        flags: Flags,
        body: Bytes,
    ) {
        self.credit.frames = self.credit.frames.saturating_sub(1);
        self.credit.bytes = self.credit.bytes.saturating_sub(body.len() as u64);
        let frame = ClientFrame {
            session_id,
            command: u32::from(command),
            flags: u32::from(flags.bits()),
            request_id,
            body,
        };
        self.send_events(vec![gateway_event::Kind::Frame(frame)]).await;
    }

    /// Sends a message in the session's encoding and waits for the frame with its request id.
    /// Other frames of the session stay in its inbox, in order.
    ///
    /// # Panics
    /// If the stream ends first.
    pub async fn request<M: Message + serde::Serialize>(
        &mut self,
        session_id: u64,
        command: u16,
        request_id: u32,
        message: &M,
    ) -> Frame {
        self.send_message(session_id, command, request_id, message).await;
        self.reply(session_id, request_id).await.expect("the stream lives")
    }

    /// Sends a message in the session's encoding.
    ///
    /// # Panics
    /// If it cannot be encoded.
    pub async fn send_message<M: Message + serde::Serialize>(
        &mut self,
        session_id: u64,
        command: u16,
        request_id: u32,
        message: &M,
    ) {
        let encoding = self.encodings.get(&session_id).copied().unwrap_or(Encoding::Protobuf);
        let body = crate::encode::message(message, encoding).expect("a message that encodes");
        self.send(session_id, command, request_id, body).await;
    }

    /// Waits for the frame that answers a request; `None` if the stream ends first.
    pub async fn reply(&mut self, session_id: u64, request_id: u32) -> Option<Frame> {
        loop {
            if let Some(inbox) = self.inboxes.get_mut(&session_id)
                && let Some(index) = inbox.iter().position(|frame| frame.request_id == request_id)
            {
                return inbox.remove(index);
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Waits for the next frame of a session; `None` if the stream ends first.
    pub async fn next_frame(&mut self, session_id: u64) -> Option<Frame> {
        loop {
            if let Some(frame) = self.inboxes.get_mut(&session_id).and_then(VecDeque::pop_front) {
                return Some(frame);
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Reads what has come already, without waiting; false when the stream has ended.
    pub fn read_now(&mut self) -> bool {
        loop {
            match self.receive().now_or_never() {
                Some(true) => {}
                Some(false) => return false,
                None => return true,
            }
        }
    }

    /// The next frame that was read for a session, without waiting.
    pub fn take_frame(&mut self, session_id: u64) -> Option<Frame> {
        self.inboxes.get_mut(&session_id)?.pop_front()
    }

    /// The answer to a login if it was read, without waiting.
    pub fn take_login_result(&mut self, session_id: u64) -> Option<LoginResult> {
        self.logins.remove(&session_id)
    }

    /// Waits for a session to be closed by logic; `None` if the stream ends first. The end is not
    /// reported by itself: see [`FakeGateway::end_session`].
    pub async fn next_close(&mut self) -> Option<CloseSession> {
        loop {
            if let Some(close) = self.closes.pop_front() {
                return Some(close);
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Sessions that logic has closed and [`FakeGateway::next_close`] has not told of yet.
    pub fn closes(&self) -> usize {
        self.closes.len()
    }

    /// Reads what comes for a while; what came is in the inboxes then.
    pub async fn read_for(&mut self, duration: Duration) {
        let until = tokio::time::Instant::now() + duration;
        while let Ok(true) = tokio::time::timeout_at(until, self.receive()).await {}
    }

    /// Reports the end of a session.
    pub async fn end_session(&mut self, session_id: u64, code: Code) {
        let ended = SessionEnded { session_id, code: code.number(), moved: false };
        self.send_events(vec![gateway_event::Kind::SessionEnded(ended)]).await;
    }

    /// Moves a session to another logic process.
    pub async fn move_away(&mut self, session_id: u64) {
        let ended = SessionEnded { session_id, code: 0, moved: true };
        self.send_events(vec![gateway_event::Kind::SessionEnded(ended)]).await;
    }

    /// Moves a session here, with the rooms it is in.
    pub async fn move_here(&mut self, session: Session, rooms: &[&str]) {
        let session_ids = vec![session.session_id];
        let mut events = vec![gateway_event::Kind::Session(Session { moved: true, ..session })];
        for room_id in rooms {
            self.rooms.entry((*room_id).to_owned()).or_default().extend(&session_ids);
            let members =
                RoomMembers { room_id: (*room_id).to_owned(), session_ids: session_ids.clone() };
            events.push(gateway_event::Kind::RoomMembers(members));
        }
        self.send_events(events).await;
    }

    /// Answers Draining.
    pub async fn say_drained(&mut self, sessions_left: u64) {
        self.send_events(vec![gateway_event::Kind::Drained(Drained { sessions_left })]).await;
    }

    /// Gives credit back that was kept because the settings say so.
    pub async fn return_credit(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        self.granted.frames += owed.frames;
        self.granted.bytes += owed.bytes;
        let batch = ConnectRequest {
            sequence: self.sequence,
            credit: Some(owed),
            events: vec![],
            state: None,
        };
        // A stream that has ended is noticed by the next read.
        let _ = self.to_logic.send(batch).await;
    }

    /// Sends events as one batch, as they are.
    pub async fn send_events(&mut self, events: Vec<gateway_event::Kind>) {
        for event in &events {
            if let gateway_event::Kind::Session(session) = event {
                self.encodings.insert(session.session_id, session.encoding());
                self.sessions.insert(session.session_id);
            }
        }
        let events: Vec<_> =
            events.into_iter().map(|kind| GatewayEvent { kind: Some(kind) }).collect();
        let sequence = self.sequence;
        self.sequence += events.len() as u64;
        // A stream that has ended is noticed by the next read.
        let _ = self
            .to_logic
            .send(ConnectRequest { sequence, credit: None, events, state: None })
            .await;
    }

    /// Leaves numbers out, as if events had been lost.
    pub fn skip_events(&mut self, events: u64) {
        self.sequence += events;
    }

    /// Waits for the end of the stream and says how it ended.
    pub async fn ended(&mut self) -> Status {
        while self.receive().await {}
        self.end.clone().unwrap_or_else(|| Status::ok(""))
    }

    /// The connection breaks, without a word.
    pub fn kill(self) {
        drop(self);
    }

    fn has_credit(&self, bytes: usize) -> bool {
        self.credit.frames > 0 && self.credit.bytes >= bytes as u64
    }

    /// Reads one batch and sorts it; `false` when the stream has ended.
    pub async fn receive(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        let received = tokio::time::timeout(PATIENCE, self.from_logic.try_next()).await;
        match received.expect("logic is heard in time: a heartbeat comes with every lease") {
            Ok(Some(batch)) => self.sort(batch),
            Ok(None) => self.end = Some(Status::ok("")),
            Err(status) => self.end = Some(status),
        }
        if self.settings.returns_credit && self.owed != Credit::default() {
            self.return_credit().await;
        }
        self.end.is_none()
    }

    fn sort(&mut self, batch: ConnectResponse) {
        assert_eq!(batch.sequence, self.expected, "events are numbered without a gap");
        self.expected += batch.events.len() as u64;
        if let Some(credit) = batch.credit {
            self.credit.frames += credit.frames;
            self.credit.bytes += credit.bytes;
        }
        for event in batch.events {
            match event.kind.expect("an event of a known kind") {
                logic_event::Kind::HelloReply(reply) => {
                    self.credit = reply.window.expect("a window");
                    self.hello_reply = reply;
                }
                logic_event::Kind::LoginResult(result) => {
                    if result.code == Code::Ok.number() {
                        self.sessions.insert(result.session_id);
                    }
                    self.logins.insert(result.session_id, result);
                }
                logic_event::Kind::RefreshResult(result) => {
                    self.refreshes.insert(result.session_id, result);
                }
                logic_event::Kind::SendFrame(frame) => {
                    self.owe(frame.body.len());
                    let (command, flags) = (frame.command, frame.flags);
                    let received = received(command, flags, frame.request_id, frame.body);
                    for session_id in frame.session_ids {
                        let known = self.sessions.contains(&session_id);
                        assert!(known, "a frame for {session_id} before its LoginResult");
                        self.inboxes.entry(session_id).or_default().push_back(received.clone());
                    }
                }
                logic_event::Kind::RoomFrame(frame) => {
                    self.owe(frame.body_protobuf.len() + frame.body_json.len());
                    for session_id in self.rooms.get(&frame.room_id).cloned().unwrap_or_default() {
                        let json = self.encodings.get(&session_id) == Some(&Encoding::Json);
                        let body = if json { &frame.body_json } else { &frame.body_protobuf };
                        if session_id != frame.except_session_id && !body.is_empty() {
                            let flags = u32::from(json) | frame.flags;
                            let received = received(frame.command, flags, 0, body.clone());
                            self.inboxes.entry(session_id).or_default().push_back(received);
                        }
                    }
                }
                logic_event::Kind::BroadcastFrame(frame) => {
                    self.owe(frame.body_protobuf.len() + frame.body_json.len());
                    for session_id in self.sessions.iter().copied() {
                        let json = self.encodings.get(&session_id) == Some(&Encoding::Json);
                        let body = if json { &frame.body_json } else { &frame.body_protobuf };
                        if !body.is_empty() {
                            let flags = u32::from(json) | frame.flags;
                            let received = received(frame.command, flags, 0, body.clone());
                            self.inboxes.entry(session_id).or_default().push_back(received);
                        }
                    }
                }
                logic_event::Kind::RoomMembership(change) => {
                    let room = self.rooms.entry(change.room_id).or_default();
                    room.retain(|id| !change.leave_session_ids.contains(id));
                    for joined in change.join_session_ids {
                        if !room.contains(&joined) {
                            room.push(joined);
                        }
                    }
                }
                logic_event::Kind::CloseSession(close) => self.closes.push_back(close),
                logic_event::Kind::Draining(_) => self.draining = true,
            }
        }
    }

    fn owe(&mut self, bytes: usize) {
        let bytes_left = self.granted.bytes.checked_sub(bytes as u64);
        self.granted.bytes = bytes_left.expect("logic keeps to its credit in bytes");
        let frames_left = self.granted.frames.checked_sub(1);
        self.granted.frames = frames_left.expect("logic keeps to its credit in frames");
        self.owed.frames += 1;
        self.owed.bytes += bytes as u64;
    }
}

/// The first batch of a stream.
fn hello(settings: &FakeGatewaySettings) -> ConnectRequest {
    let hello = Hello {
        gateway_id: settings.gateway_id.clone(),
        gateway_epoch: settings.gateway_epoch,
        shard: settings.shard,
        shards: settings.shard + 1,
        lease_ms: settings.lease_ms,
        window: Some(settings.window),
        moves: settings.moves,
    };
    let hello = GatewayEvent { kind: Some(gateway_event::Kind::Hello(hello)) };
    ConnectRequest { sequence: 1, credit: None, events: vec![hello], state: None }
}

impl Drop for FakeGateway {
    fn drop(&mut self) {
        if let Some(heartbeat) = self.heartbeat.take() {
            heartbeat.abort();
        }
    }
}

impl std::fmt::Debug for FakeGateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeGateway").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A login over TCP.
pub fn login_request(
    session_id: u64,
    user_id: &str,
    token: &str,
    device_id: &str,
    platform: &str,
    encoding: Encoding,
) -> LoginRequest {
    LoginRequest {
        session_id,
        user_id: user_id.to_owned(),
        token: token.to_owned(),
        device_id: device_id.to_owned(),
        platform: platform.to_owned(),
        remote_address: "127.0.0.1".to_owned(),
        transport: Transport::Tcp.into(),
        encoding: encoding.into(),
        ..LoginRequest::default()
    }
}

/// A session as a gateway lists it.
pub fn listed_session(session_id: u64, user_id: &str, encoding: Encoding) -> Session {
    Session {
        session_id,
        user_id: user_id.to_owned(),
        transport: Transport::Tcp.into(),
        encoding: encoding.into(),
        ..Session::default()
    }
}

fn received(command: u32, flags: u32, request_id: u32, body: Bytes) -> Frame {
    Frame {
        command: u16::try_from(command).expect("a command of 16 bits"),
        flags: u8::try_from(flags).ok().and_then(Flags::from_bits).expect("known flags"),
        request_id,
        body,
    }
}
