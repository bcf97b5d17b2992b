//! A logic that answers late and pushes at random. It holds the gateway to the contract of the
//! link, and remembers what it sent to whom.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use millrace_protocol::{
    Code,
    command::{DELIVER, NOTICE, REPORT, ROOM_MESSAGE, reply},
    link::{
        BroadcastFrame, CloseSession, ConnectRequest, ConnectResponse, Credit, Encoding,
        HelloReply, LogicEvent, LoginResult, RefreshResult, RoomFrame, RoomMembership, SendFrame,
        gateway_event::Kind as Event, logic_event::Kind,
    },
};

/// One session that logic believes in.
#[derive(Debug)]
struct Session {
    is_json: bool,
    /// The number of the last frame; 0: none, or not known after a restart.
    last_number: u64,
}

/// The logic.
#[derive(Debug)]
pub struct Logic {
    sessions: BTreeMap<u64, Session>,
    window_frames: u64,
    /// Body bytes that may be under way: few, so that they are what a frame waits for.
    window_bytes: u64,
    /// Frames received and not given back, and their bytes.
    under_way: Credit,
    to_give_back: Credit,
    /// What is to be sent, in order.
    outbox: VecDeque<Kind>,
    sequence_next: u64,
    sequence_expected: u64,
    has_hello: bool,
    /// Sessions listed on this stream, until the list is complete.
    listed: Option<BTreeSet<u64>>,
    next_push: u64,
    /// Who is in a room: as the gateway listed it, and as it was told since. After a restart, the
    /// list alone.
    rooms: BTreeMap<String, BTreeSet<u64>>,
    /// Memberships that the gateway listed at the beginning of a stream.
    pub memberships_listed: u64,
    /// By number: the sessions there were when a broadcast was queued.
    broadcasts: BTreeMap<u64, Vec<u64>>,
    /// By session: the numbers in what was delivered to the engine for it, in order.
    pub pushed: BTreeMap<u64, Vec<u64>>,
    /// Ends heard of, by event or by the list.
    pub ended: BTreeMap<u64, u32>,
    pub accepted: BTreeSet<u64>,
    pub frames: u64,
    pub streams: u64,
    /// Sessions whose connections are no more, the latest last: a late message of logic's to one of
    /// them is nobody's.
    gone: VecDeque<u64>,
    /// Whom it closed.
    pub closed: BTreeSet<u64>,
}

/// Gone sessions that are remembered.
const GONE_MAX: usize = 40;

impl Logic {
    pub fn new(window_frames: u64) -> Self {
        Self {
            sessions: BTreeMap::new(),
            window_frames,
            window_bytes: window_frames.saturating_mul(40).max(150),
            under_way: Credit::default(),
            to_give_back: Credit::default(),
            outbox: VecDeque::new(),
            sequence_next: 1,
            sequence_expected: 1,
            has_hello: false,
            listed: None,
            next_push: 1,
            rooms: BTreeMap::new(),
            memberships_listed: 0,
            broadcasts: BTreeMap::new(),
            pushed: BTreeMap::new(),
            ended: BTreeMap::new(),
            accepted: BTreeSet::new(),
            frames: 0,
            streams: 0,
            gone: VecDeque::new(),
            closed: BTreeSet::new(),
        }
    }

    /// A connection is no more. Logic may still speak to its session, out of turn or by mistake.
    pub fn is_gone(&mut self, session_id: u64) {
        self.gone.push_back(session_id);
        if self.gone.len() > GONE_MAX {
            self.gone.pop_front();
        }
    }

    /// A session that is no more, if there was one.
    pub fn any_gone(&self, random: &mut Rng) -> Option<u64> {
        let place = random.usize(..self.gone.len().max(1));
        self.gone.get(place).copied()
    }

    pub fn live_sessions(&self) -> Vec<u64> {
        self.sessions.keys().copied().collect()
    }

    pub fn stream_begins(&mut self) {
        self.streams += 1;
        self.sequence_next = 1;
        self.sequence_expected = 1;
        self.under_way = Credit::default();
        self.has_hello = false;
    }

    pub fn stream_ends(&mut self, forget: bool) {
        self.outbox.clear();
        self.to_give_back = Credit::default();
        self.listed = None;
        if forget {
            self.sessions.clear();
        }
    }

    /// A batch has come from the gateway.
    pub fn receive(&mut self, batch: ConnectRequest, random: &mut Rng) {
        if !batch.events.is_empty() {
            assert_eq!(batch.sequence, self.sequence_expected, "events are numbered");
            self.sequence_expected += batch.events.len() as u64;
        }
        for event in batch.events {
            let kind = event.kind.expect("an event is something");
            assert_eq!(matches!(kind, Event::Hello(_)), !self.has_hello, "Hello comes first");
            self.event(kind, random);
        }
    }

    fn event(&mut self, kind: Event, random: &mut Rng) {
        match kind {
            Event::Hello(_) => {
                self.has_hello = true;
                self.listed = Some(BTreeSet::new());
                self.rooms.clear();
                let window = Credit { frames: self.window_frames, bytes: self.window_bytes };
                self.outbox.push_front(Kind::HelloReply(HelloReply {
                    window: Some(window),
                    ..HelloReply::default()
                }));
            }
            Event::Session(session) => {
                let listed = self.listed.as_mut().expect("sessions are listed after Hello only");
                assert!(listed.insert(session.session_id), "listed once");
                assert!(!self.ended.contains_key(&session.session_id), "it has ended");
                assert_eq!(session.user_id, "verified");
                let is_json = session.encoding == i32::from(Encoding::Json);
                let session_id = session.session_id;
                self.sessions.entry(session_id).or_insert(Session { is_json, last_number: 0 });
            }
            Event::RoomMembers(room) => {
                let listed = self.listed.as_ref().expect("rooms are listed with the sessions");
                let members = self.rooms.entry(room.room_id).or_default();
                for session_id in room.session_ids {
                    assert!(listed.contains(&session_id), "members are sessions that were listed");
                    members.insert(session_id);
                    self.memberships_listed += 1;
                }
            }
            Event::SessionsComplete(complete) => {
                let listed = self.listed.take().expect("the list is completed once");
                assert_eq!(complete.sessions, listed.len() as u64);
                let gone: Vec<u64> =
                    self.sessions.keys().filter(|id| !listed.contains(id)).copied().collect();
                for id in gone {
                    self.end(id, u32::MAX);
                }
            }
            Event::Login(login) => {
                assert!(self.listed.is_none(), "nothing comes between Hello and the list's end");
                let session_id = login.session_id;
                assert!(!self.sessions.contains_key(&session_id), "logged in once");
                let code = match random.u8(..20) {
                    0 => Code::BadToken,
                    1 => Code::LogicUnavailable,
                    _ => Code::Ok,
                };
                if code == Code::Ok {
                    let is_json = login.encoding == i32::from(Encoding::Json);
                    self.sessions.insert(session_id, Session { is_json, last_number: 0 });
                    self.accepted.insert(session_id);
                    // A login whose answer was lost with the link may be tried again on the same
                    // connection, after the list has ended the session that nobody heard of.
                    self.ended.remove(&session_id);
                }
                self.outbox.push_back(Kind::LoginResult(LoginResult {
                    session_id,
                    code: code.number(),
                    user_id: "verified".to_owned(),
                    ..LoginResult::default()
                }));
            }
            Event::Refresh(refresh) => {
                assert!(self.listed.is_none());
                self.outbox.push_back(Kind::RefreshResult(RefreshResult {
                    session_id: refresh.session_id,
                    request_id: refresh.request_id,
                    ..RefreshResult::default()
                }));
            }
            Event::Frame(frame) => {
                assert!(self.listed.is_none());
                self.under_way.frames += 1;
                self.under_way.bytes += frame.body.len() as u64;
                let Credit { frames, bytes } = self.under_way;
                assert!(frames <= self.window_frames, "credit is overdrawn");
                assert!(bytes <= self.window_bytes || frames == 1, "credit in bytes is overdrawn");
                self.frames += 1;
                self.to_give_back.frames += 1;
                self.to_give_back.bytes += frame.body.len() as u64;
                let session = self.sessions.get_mut(&frame.session_id);
                let session = session.expect("frames come from live sessions");
                let number = number_of(&frame.body);
                // What met a lost link was refused, so numbers may be missing, never reordered.
                assert!(number > session.last_number, "frames arrive once and in order");
                session.last_number = number;
                if frame.command == u32::from(REPORT) {
                    assert_eq!(frame.request_id, 0, "reports are acknowledged by the gateway");
                } else if frame.request_id != 0 {
                    let answer = Kind::SendFrame(SendFrame {
                        session_ids: vec![frame.session_id],
                        command: u32::from(reply(frame.command as u16)),
                        flags: u32::from(session.is_json),
                        request_id: frame.request_id,
                        body: Bytes::from_static(b"0"),
                    });
                    if random.u8(..20) == 0 {
                        // A mistake of logic: the gateway lets one through.
                        self.outbox.push_back(answer.clone());
                    }
                    self.outbox.push_back(answer);
                }
            }
            Event::SessionEnded(ended) => {
                assert!(self.sessions.contains_key(&ended.session_id), "ended once, and known");
                self.end(ended.session_id, ended.code);
            }
        }
    }

    fn end(&mut self, session_id: u64, code: u32) {
        self.sessions.remove(&session_id);
        for members in self.rooms.values_mut() {
            members.remove(&session_id);
        }
        assert_eq!(self.ended.insert(session_id, code), None, "a session ends once");
    }

    /// Whether it has nothing to send, and nothing to give back.
    pub fn is_silent(&self) -> bool {
        self.outbox.is_empty() && self.to_give_back.frames == 0
    }

    /// Sends something, or nothing.
    pub fn act(&mut self, random: &mut Rng, settling: bool) -> Option<ConnectResponse> {
        if !self.has_hello {
            return None;
        }
        if !settling && self.listed.is_none() && !self.sessions.is_empty() {
            self.push_something(random);
        }
        if !settling && random.u8(..4) != 0 {
            return None;
        }
        let most = 1 + random.usize(..20);
        let mut events = Vec::new();
        while events.len() < most
            && let Some(kind) = self.outbox.pop_front()
        {
            events.push(LogicEvent { kind: Some(kind) });
        }
        let credit = std::mem::take(&mut self.to_give_back);
        self.under_way.frames -= credit.frames;
        self.under_way.bytes -= credit.bytes;
        if events.is_empty() && credit.frames == 0 {
            return None;
        }
        let sequence = self.sequence_next;
        self.sequence_next += events.len() as u64;
        Some(ConnectResponse { sequence, credit: Some(credit), events })
    }

    fn push_something(&mut self, random: &mut Rng) {
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        let one = ids[random.usize(..ids.len())];
        match random.u8(..50) {
            0..8 => {
                // To a few of one encoding: the body is shared.
                let is_json = self.sessions[&one].is_json;
                let mut session_ids: Vec<u64> = ids
                    .into_iter()
                    .filter(|id| self.sessions[id].is_json == is_json && random.bool())
                    .collect();
                session_ids.push(12345);
                session_ids.extend(self.any_gone(random));
                let body = self.number();
                self.outbox.push_back(Kind::SendFrame(SendFrame {
                    session_ids,
                    command: u32::from(DELIVER),
                    flags: u32::from(is_json),
                    request_id: 0,
                    body,
                }));
            }
            8..14 => {
                let body = self.number();
                self.outbox.push_back(Kind::RoomFrame(RoomFrame {
                    room_id: format!("room {}", random.u8(..3)),
                    command: u32::from(ROOM_MESSAGE),
                    flags: 0,
                    body_protobuf: body.clone(),
                    body_json: body,
                    except_session_id: one,
                }));
            }
            14..18 => {
                let join = random.bool();
                let (mut join_session_ids, mut leave_session_ids) =
                    if join { (vec![one], vec![]) } else { (vec![], vec![one]) };
                join_session_ids.extend(self.any_gone(random));
                leave_session_ids.extend(self.any_gone(random));
                self.outbox.push_back(Kind::RoomMembership(RoomMembership {
                    room_id: format!("room {}", random.u8(..3)),
                    join_session_ids,
                    leave_session_ids,
                }));
            }
            19 | 20 => {
                // Whoever logs in behind it in the stream is not meant.
                let body = self.number();
                self.broadcasts.insert(number_of(&body), ids);
                self.outbox.push_back(Kind::BroadcastFrame(BroadcastFrame {
                    command: u32::from(NOTICE),
                    flags: 0,
                    body_protobuf: body.clone(),
                    body_json: body,
                }));
            }
            21 | 22 => {
                // To somebody who is no more: whoever has the slot now is not meant.
                let Some(session_id) = self.any_gone(random) else { return };
                let kind = match random.u8(..3) {
                    0 => Kind::CloseSession(CloseSession {
                        session_id,
                        code: Code::Kicked.number(),
                        reason: String::new(),
                    }),
                    1 => Kind::RefreshResult(RefreshResult {
                        session_id,
                        request_id: random.u32(1..20),
                        ..RefreshResult::default()
                    }),
                    _ => Kind::SendFrame(SendFrame {
                        session_ids: vec![session_id],
                        command: u32::from(DELIVER),
                        flags: 0,
                        request_id: 0,
                        body: self.number(),
                    }),
                };
                self.outbox.push_back(kind);
            }
            18 if random.u8(..4) == 0 => {
                self.closed.insert(one);
                self.outbox.push_back(Kind::CloseSession(CloseSession {
                    session_id: one,
                    code: Code::Kicked.number(),
                    reason: String::new(),
                }));
            }
            _ => {}
        }
    }

    fn number(&mut self) -> Bytes {
        let number = self.next_push;
        self.next_push += 1;
        // Long enough now and then to be shared rather than copied.
        let width = if number.is_multiple_of(5) { 400 } else { 1 };
        Bytes::from(format!("\"{number:0width$}\""))
    }

    /// The engine gets this batch now: what it must pass on, if the sessions still live.
    pub fn delivered(&mut self, batch: &ConnectResponse) {
        for event in &batch.events {
            match &event.kind {
                Some(Kind::SendFrame(frame)) if frame.request_id == 0 => {
                    let number = number_of(&frame.body);
                    for session_id in &frame.session_ids {
                        self.pushed.entry(*session_id).or_default().push(number);
                    }
                }
                Some(Kind::RoomFrame(frame)) => {
                    let number = number_of(&frame.body_json);
                    for member in self.rooms.get(&frame.room_id).into_iter().flatten() {
                        if *member != frame.except_session_id {
                            self.pushed.entry(*member).or_default().push(number);
                        }
                    }
                }
                Some(Kind::BroadcastFrame(frame)) => {
                    let number = number_of(&frame.body_json);
                    for session_id in self.broadcasts.remove(&number).into_iter().flatten() {
                        self.pushed.entry(session_id).or_default().push(number);
                    }
                }
                Some(Kind::RoomMembership(change)) => {
                    let members = self.rooms.entry(change.room_id.clone()).or_default();
                    for session_id in &change.leave_session_ids {
                        members.remove(session_id);
                    }
                    members.extend(&change.join_session_ids);
                }
                _ => {}
            }
        }
    }
}

/// The number in what logic pushes: a JSON string, so that every form can carry it.
pub fn number_of(body: &[u8]) -> u64 {
    let text = std::str::from_utf8(body).expect("text");
    text.trim_matches('"').parse().expect("logic sends numbers")
}
