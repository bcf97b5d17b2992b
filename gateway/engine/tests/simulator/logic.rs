//! A logic that answers late and pushes at random. It holds the gateway to the contract of the
//! link, as far as one logic can: what is true of all together is in `truth`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::truth::Truth;
use bytes::Bytes;
use fastrand::Rng;
use millrace_protocol::{
    Code,
    command::{DELIVER, NOTICE, REPORT, ROOM_MESSAGE, reply},
    link::{
        BroadcastFrame, CloseSession, ConnectRequest, ConnectResponse, Credit, Draining, Encoding,
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
    /// Ends heard of, by event, that are not moves.
    pub ended: BTreeMap<u64, u32>,
    /// Sessions that it knew and that were not listed any more.
    pub lost: BTreeSet<u64>,
    pub frames: u64,
    pub streams: u64,
    /// Since when it leaves.
    leaving_since_ms: Option<u64>,
    /// Drained was said, with so many sessions left.
    pub drained: Option<u64>,
    /// Times it was told that nothing is left.
    pub drained_empty: u64,
    /// It does nothing until then.
    pub stalled_until_ms: u64,
}

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
            ended: BTreeMap::new(),
            lost: BTreeSet::new(),
            frames: 0,
            streams: 0,
            leaving_since_ms: None,
            drained: None,
            drained_empty: 0,
            stalled_until_ms: 0,
        }
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
        self.leaving_since_ms = None;
        self.drained = None;
    }

    /// Says that it leaves.
    pub fn leave(&mut self, now_ms: u64, within_ms: u32) {
        if self.is_in_use() {
            self.leaving_since_ms = Some(now_ms);
            self.outbox.push_back(Kind::Draining(Draining { reconnect_after_ms: within_ms }));
        }
    }

    /// Whether the lists are through and it does not leave.
    pub fn is_in_use(&self) -> bool {
        self.has_hello && self.listed.is_none() && self.leaving_since_ms.is_none()
    }

    /// Whether it leaves and has nothing to wait for, or has waited too long.
    pub fn has_left(&self, now_ms: u64) -> bool {
        let too_late = |since| now_ms > since + 20_000;
        self.drained.is_some() || self.leaving_since_ms.is_some_and(too_late)
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
    pub fn receive(&mut self, batch: ConnectRequest, random: &mut Rng, truth: &mut Truth) {
        if !batch.events.is_empty() {
            assert_eq!(batch.sequence, self.sequence_expected, "events are numbered");
            self.sequence_expected += batch.events.len() as u64;
        }
        for event in batch.events {
            let kind = event.kind.expect("an event is something");
            assert_eq!(matches!(kind, Event::Hello(_)), !self.has_hello, "Hello comes first");
            self.event(kind, random, truth);
        }
    }

    fn event(&mut self, kind: Event, random: &mut Rng, truth: &mut Truth) {
        match kind {
            Event::Hello(_) => {
                self.has_hello = true;
                self.listed = Some(BTreeSet::new());
                let window = Credit { frames: self.window_frames, bytes: self.window_bytes };
                self.outbox.push_front(Kind::HelloReply(HelloReply {
                    window: Some(window),
                    takes_moves: true,
                    ..HelloReply::default()
                }));
            }
            Event::Session(session) => {
                let session_id = session.session_id;
                match &mut self.listed {
                    Some(listed) => {
                        assert!(!session.moved && listed.insert(session_id), "listed once");
                    }
                    None => {
                        assert!(session.moved, "a session after the list has moved");
                        assert!(!self.sessions.contains_key(&session_id), "it is here already");
                    }
                }
                assert!(!self.ended.contains_key(&session_id), "it has ended");
                assert_eq!(session.user_id, "verified");
                let is_json = session.encoding == i32::from(Encoding::Json);
                self.sessions.entry(session_id).or_insert(Session { is_json, last_number: 0 });
            }
            Event::RoomMembers(room) => {
                for session_id in room.session_ids {
                    let is_known = self.sessions.contains_key(&session_id);
                    assert!(is_known, "members are sessions that were listed");
                }
            }
            Event::SessionsComplete(complete) => {
                let listed = self.listed.take().expect("the list is completed once");
                assert_eq!(complete.sessions, listed.len() as u64);
                // Ended, or at home elsewhere.
                let lost: Vec<u64> =
                    self.sessions.keys().filter(|id| !listed.contains(id)).copied().collect();
                for id in lost {
                    self.sessions.remove(&id);
                    self.lost.insert(id);
                }
            }
            Event::Drained(drained) => {
                assert!(self.leaving_since_ms.is_some(), "an answer to nothing");
                assert_eq!(self.drained.replace(drained.sessions_left), None, "said once");
                if drained.sessions_left == 0 {
                    assert_eq!(self.live_sessions(), [] as [u64; 0], "drained, but not empty");
                    self.drained_empty += 1;
                }
            }
            Event::Login(login) => {
                assert!(self.listed.is_none(), "nothing comes between Hello and the list's end");
                assert!(self.drained.is_none(), "a login for a logic that has left");
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
                    truth.accepted.insert(session_id);
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
                let known = self.sessions.remove(&ended.session_id);
                assert!(known.is_some(), "ended once, and known");
                if !ended.moved {
                    let before = self.ended.insert(ended.session_id, ended.code);
                    assert_eq!(before, None, "a session ends once");
                }
            }
        }
    }

    /// Whether it has nothing to send, and nothing to give back.
    pub fn is_silent(&self) -> bool {
        self.outbox.is_empty() && self.to_give_back.frames == 0
    }

    /// Sends something, or nothing.
    pub fn act(
        &mut self,
        random: &mut Rng,
        settling: bool,
        truth: &mut Truth,
    ) -> Option<ConnectResponse> {
        if !self.has_hello {
            return None;
        }
        if !settling && self.listed.is_none() && !self.sessions.is_empty() {
            self.push_something(random, truth);
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

    fn push_something(&mut self, random: &mut Rng, truth: &mut Truth) {
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
                session_ids.extend(truth.any_gone(random));
                let body = number(truth);
                self.outbox.push_back(Kind::SendFrame(SendFrame {
                    session_ids,
                    command: u32::from(DELIVER),
                    flags: u32::from(is_json),
                    request_id: 0,
                    body,
                }));
            }
            8..14 => {
                let body = number(truth);
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
                join_session_ids.extend(truth.any_gone(random));
                leave_session_ids.extend(truth.any_gone(random));
                self.outbox.push_back(Kind::RoomMembership(RoomMembership {
                    room_id: format!("room {}", random.u8(..3)),
                    join_session_ids,
                    leave_session_ids,
                }));
            }
            19 | 20 => {
                // To whoever is logged in when it arrives.
                let body = number(truth);
                self.outbox.push_back(Kind::BroadcastFrame(BroadcastFrame {
                    command: u32::from(NOTICE),
                    flags: 0,
                    body_protobuf: body.clone(),
                    body_json: body,
                }));
            }
            21 | 22 => {
                // To somebody who is no more: whoever has the slot now is not meant.
                let Some(session_id) = truth.any_gone(random) else { return };
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
                        body: number(truth),
                    }),
                };
                self.outbox.push_back(kind);
            }
            18 if random.u8(..4) == 0 => {
                truth.closed.insert(one);
                self.outbox.push_back(Kind::CloseSession(CloseSession {
                    session_id: one,
                    code: Code::Kicked.number(),
                    reason: String::new(),
                }));
            }
            _ => {}
        }
    }
}

fn number(truth: &mut Truth) -> Bytes {
    let number = truth.next_push();
    // Long enough now and then to be shared rather than copied.
    let width = if number.is_multiple_of(5) { 400 } else { 1 };
    Bytes::from(format!("\"{number:0width$}\""))
}

/// The number in what logic pushes: a JSON string, so that every form can carry it.
pub fn number_of(body: &[u8]) -> u64 {
    let text = std::str::from_utf8(body).expect("text");
    text.trim_matches('"').parse().expect("logic sends numbers")
}
