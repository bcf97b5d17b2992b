//! A small chat server that does wrong on purpose: the protocol from the server's side, in memory,
//! with faults to plant. [`Model`] is the chat without I/O; [`Server`] puts it behind real listeners
//! with a thread a connection. The tests start it beside the generator; `examples/faulty-server.rs` is
//! the same as a program.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use millrace_protocol::{
    chat, command,
    frame::{self, Flags, FrameReader, Header},
    session,
    websocket::{self, Limits, Message as WebSocketMessage, MessageReader, Opcode, Role},
};
use prost::Message;

/// What the server does wrong, to the message with this number in order of storing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// Nothing.
    Nothing,
    /// It is acknowledged, but one recipient can never get it.
    Lose,
    /// It is not delivered, but can be pulled.
    DeliverOnlyOnPull,
    /// It is delivered twice.
    Duplicate,
    /// It is delivered after its successor.
    Reorder,
    /// The sequence before it stays empty.
    SkipSequence,
    /// It is stored under two sequences, as after a retry without deduplication.
    StoreTwice,
    /// It is delivered under another sequence than the one it is stored under.
    WrongSequence,
    /// The connection of whoever sends the heartbeat with this number is ended as idle.
    EarlyIdleClose,
    /// The heartbeat with this number is answered with the sixth after it, of the same user: that
    /// is six seconds later.
    LateHeartbeat,
    /// It is delivered under the id of another message.
    WrongId,
    /// It is delivered to somebody else, too.
    Misdeliver,
    /// Nothing is answered for a while.
    Stall(Duration),
    /// It is stored, but instead of the reply every connection is cut.
    CutEverything,
    /// It is refused with `logic_unavailable`, once.
    RefuseOnce,
    /// Everything from it on is refused with `rate_limited`, so often for each message.
    RefuseAll(u32),
    /// The message before it is not delivered, but can be pulled. It is not delivered either, and
    /// is acknowledged only when somebody pulls: so after the run's messages were counted.
    AcknowledgeLate,
    /// Instead of being answered, its sender is told that it was idle, and is cut.
    CutOne,
    /// Whatever is sent to somebody who is away, from the first message on, is lost.
    LoseOffline,
    /// The room message with this number does not reach one member.
    RoomLose,
    /// It reaches one member twice.
    RoomDuplicate,
    /// It reaches one member after its successor.
    RoomReorder,
    /// It reaches somebody who is no member.
    RoomStranger,
}

impl Plant {
    /// The faults that have a name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "lost" => Self::Lose,
            "duplicated" => Self::Duplicate,
            "reordered" => Self::Reorder,
            "wrong-sequence" => Self::WrongSequence,
            "gap" => Self::SkipSequence,
            "stored-twice" => Self::StoreTwice,
            "wrong-id" => Self::WrongId,
            "misdelivered" => Self::Misdeliver,
            "early-idle-close" => Self::EarlyIdleClose,
            "late-heartbeat" => Self::LateHeartbeat,
            _ => return None,
        })
    }
}

/// A frame for a user.
pub struct Out {
    pub user: String,
    pub frame: Vec<u8>,
}

#[derive(Default)]
struct Conversation {
    messages: Vec<chat::Message>,
    next_sequence: u64,
    members: Vec<String>,
}

/// The chat, in memory.
pub struct Model {
    plant: Plant,
    at: u64,
    stored: u64,
    conversations: HashMap<String, Conversation>,
    groups: HashMap<String, Vec<String>>,
    known: HashMap<(String, String), (String, u64)>,
    held_back: Option<(String, chat::Message)>,
    reply_held_back: Option<Out>,
    /// How often each message was refused.
    refused: HashMap<String, u32>,
    /// Whose heartbeat is not answered yet, and the replies that wait.
    late_heartbeats: Option<(String, Vec<Vec<u8>>)>,
    pub cut: bool,
    pub cut_one: Option<String>,
    pub stall: Option<Duration>,
    pub heartbeats: u64,
    pub logins: u64,
    pub last_token: Option<String>,
    pub sends: u64,
    pub retransmissions: u64,
    pub acks: u64,
    pub pulls: u64,
    pub logouts: u64,
    lost: Vec<(String, u64, String)>,
    rooms: HashMap<String, Vec<String>>,
    room_messages: u64,
    room_held_back: Option<Out>,
}

pub fn frame(command: u16, request_id: u32, body: &impl Message) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, command, Flags::NONE, request_id, &body.encode_to_vec());
    out
}

impl Model {
    pub fn new(plant: Plant, at: u64) -> Self {
        Self {
            plant,
            at,
            stored: 0,
            conversations: HashMap::new(),
            groups: HashMap::new(),
            known: HashMap::new(),
            held_back: None,
            reply_held_back: None,
            refused: HashMap::new(),
            late_heartbeats: None,
            cut: false,
            cut_one: None,
            stall: None,
            heartbeats: 0,
            logins: 0,
            last_token: None,
            sends: 0,
            retransmissions: 0,
            acks: 0,
            pulls: 0,
            logouts: 0,
            lost: Vec::new(),
            rooms: HashMap::new(),
            room_messages: 0,
            room_held_back: None,
        }
    }

    pub fn create_group(&mut self, group_id: &str, members: Vec<String>) {
        self.groups.insert(group_id.to_owned(), members);
    }

    /// LOGIN, answered with heartbeats every second and an idle timeout of four.
    pub fn login(&mut self, body: &[u8], request_id: u32) -> (String, Vec<u8>) {
        let login = session::Login::decode(body).expect("a LOGIN");
        self.logins += 1;
        let reply = session::LoginReply {
            session_id: self.logins,
            heartbeat_interval_ms: 1000,
            idle_timeout_ms: 4000,
            body_bytes_max: 65536,
            ..session::LoginReply::default()
        };
        self.last_token = Some(login.token);
        (login.user_id, frame(command::reply(command::LOGIN), request_id, &reply))
    }

    pub fn handle(&mut self, user: &str, header: Header, body: &[u8]) -> Vec<Out> {
        let to_self = |frame| vec![Out { user: user.to_owned(), frame }];
        let request_id = header.request_id;
        match header.command {
            command::HEARTBEAT => {
                self.heartbeats += 1;
                let mut out = Vec::new();
                frame::write(
                    &mut out,
                    command::reply(command::HEARTBEAT),
                    Flags::NONE,
                    request_id,
                    &[],
                );
                if self.plant == Plant::EarlyIdleClose && self.heartbeats == self.at {
                    self.cut_one = Some(user.to_owned());
                    let error = session::Error { code: 12, ..Default::default() };
                    return to_self(frame(command::ERROR, 0, &error));
                }
                if self.plant == Plant::LateHeartbeat && self.heartbeats == self.at {
                    self.late_heartbeats = Some((user.to_owned(), Vec::new()));
                }
                match &mut self.late_heartbeats {
                    Some((late, replies)) if late == user && replies.len() < 6 => {
                        replies.push(out);
                        Vec::new()
                    }
                    Some((late, replies)) if late == user => {
                        replies.push(out);
                        let replies = std::mem::take(replies);
                        self.late_heartbeats = None;
                        let user = user.to_owned();
                        replies.into_iter().map(|frame| Out { user: user.clone(), frame }).collect()
                    }
                    _ => to_self(out),
                }
            }
            command::SEND_MESSAGE => {
                if header.flags.contains(Flags::RETRANSMISSION) {
                    self.retransmissions += 1;
                }
                self.sends += 1;
                let message = chat::SendMessage::decode(body).expect("a SEND_MESSAGE");
                self.send(user, request_id, message)
            }
            command::DELIVER_ACK => {
                chat::DeliverAck::decode(body).expect("a DELIVER_ACK");
                self.acks += 1;
                Vec::new()
            }
            command::PULL_MESSAGES => {
                self.pulls += 1;
                let pull = chat::PullMessages::decode(body).expect("a PULL_MESSAGES");
                let mut out: Vec<Out> = self.reply_held_back.take().into_iter().collect();
                out.extend(to_self(self.pull(user, request_id, &pull)));
                out
            }
            command::LOGOUT => {
                self.logouts += 1;
                let mut out = Vec::new();
                let reply = command::reply(command::LOGOUT);
                frame::write(&mut out, reply, Flags::NONE, request_id, &[]);
                to_self(out)
            }
            command::JOIN_ROOM => {
                let join = chat::JoinRoom::decode(body).expect("a JOIN_ROOM");
                let members = self.rooms.entry(join.room_id).or_default();
                members.push(user.to_owned());
                let reply = chat::RoomReply { members: members.len() as u64, ..Default::default() };
                to_self(frame(command::reply(command::JOIN_ROOM), request_id, &reply))
            }
            command::ROOM_MESSAGE => {
                let message = chat::RoomMessage::decode(body).expect("a ROOM_MESSAGE");
                self.publish(user, request_id, message)
            }
            // A team's own frames: answered with their body.
            other @ 0x0300..0x0400 => {
                let mut out = Vec::new();
                frame::write(&mut out, command::reply(other), Flags::NONE, request_id, body);
                to_self(out)
            }
            other => panic!("the client sent command {other:#06x}"),
        }
    }

    /// A session ended: it leaves its rooms.
    pub fn leave(&mut self, user: &str) {
        self.rooms.values_mut().for_each(|members| members.retain(|member| member != user));
    }

    fn publish(&mut self, user: &str, request_id: u32, message: chat::RoomMessage) -> Vec<Out> {
        self.room_messages += 1;
        let plant = if self.room_messages == self.at { self.plant } else { Plant::Nothing };
        let members = self.rooms.get(&message.room_id).expect("the room exists").clone();
        assert!(members.iter().any(|member| member == user), "only members publish");
        let reply = chat::RoomReply::default();
        let reply = frame(command::reply(command::ROOM_MESSAGE), request_id, &reply);
        let mut out = vec![Out { user: user.to_owned(), frame: reply }];
        let message = chat::RoomMessage { sender_id: user.to_owned(), ..message };
        let to = |user: &str| Out {
            user: user.to_owned(),
            frame: frame(command::ROOM_MESSAGE, 0, &message),
        };
        for (index, member) in members.iter().filter(|member| *member != user).enumerate() {
            match plant {
                Plant::RoomLose if index == 0 => continue,
                Plant::RoomReorder if index == 0 => {
                    self.room_held_back = Some(to(member));
                    continue;
                }
                Plant::RoomDuplicate if index == 0 => out.push(to(member)),
                _ => {}
            }
            out.push(to(member));
        }
        if plant == Plant::RoomStranger {
            let stranger = (0..).map(|n| format!("load-{n}")).find(|user| !members.contains(user));
            out.push(to(&stranger.expect("there are many")));
        }
        if plant == Plant::Nothing {
            out.extend(self.room_held_back.take());
        }
        out
    }

    /// Somebody was away: the plant decides whether the message can be had later.
    pub fn was_away(&mut self, user: &str, frame: &[u8]) -> bool {
        if self.plant != Plant::LoseOffline {
            return true;
        }
        let deliver = chat::Deliver::decode(&frame[frame::HEADER_BYTES..]).expect("a DELIVER");
        for message in deliver.messages {
            self.lost.push((message.conversation_id, message.sequence, user.to_owned()));
        }
        false
    }

    fn pull(&self, user: &str, request_id: u32, pull: &chat::PullMessages) -> Vec<u8> {
        let to = if pull.to_sequence == 0 { u64::MAX } else { pull.to_sequence };
        let stored = self.conversations.get(&pull.conversation_id);
        let is_lost = |message: &chat::Message| {
            self.lost.iter().any(|(conversation, sequence, recipient)| {
                (conversation, *sequence, recipient.as_str())
                    == (&message.conversation_id, message.sequence, user)
            })
        };
        let mut messages: Vec<_> = stored
            .into_iter()
            .flat_map(|conversation| &conversation.messages)
            .filter(|message| (pull.from_sequence..=to).contains(&message.sequence))
            .filter(|message| !is_lost(message))
            .cloned()
            .collect();
        messages.sort_by_key(|message| message.sequence);
        let complete = messages.len() <= pull.limit as usize;
        messages.truncate(pull.limit as usize);
        let reply = chat::PullReply { messages, complete, ..chat::PullReply::default() };
        frame(command::reply(command::PULL_MESSAGES), request_id, &reply)
    }

    fn send(&mut self, user: &str, request_id: u32, sent: chat::SendMessage) -> Vec<Out> {
        let reply_command = command::reply(command::SEND_MESSAGE);
        let key = (user.to_owned(), sent.client_message_id.clone());
        if let Some((conversation_id, sequence)) = self.known.get(&key).cloned() {
            let reply = chat::SendReply {
                conversation_id,
                sequence,
                duplicate: true,
                ..chat::SendReply::default()
            };
            let frame = frame(reply_command, request_id, &reply);
            return vec![Out { user: user.to_owned(), frame }];
        }
        if let Plant::RefuseAll(times) = self.plant
            && self.stored >= self.at
        {
            let refused = self.refused.entry(sent.client_message_id.clone()).or_default();
            *refused += 1;
            if *refused <= times {
                let error = session::Error { code: 9, ..Default::default() };
                let frame = frame(command::ERROR, request_id, &error);
                return vec![Out { user: user.to_owned(), frame }];
            }
        }
        self.stored += 1;
        let plant = match self.plant {
            Plant::AcknowledgeLate if self.stored + 1 == self.at => Plant::DeliverOnlyOnPull,
            plant if self.stored == self.at => plant,
            _ => Plant::Nothing,
        };
        if plant == Plant::CutOne {
            self.cut_one = Some(user.to_owned());
            let error = session::Error { code: 12, ..Default::default() };
            return vec![Out { user: user.to_owned(), frame: frame(command::ERROR, 0, &error) }];
        }
        if plant == Plant::RefuseOnce {
            let error = session::Error { code: 10, retry_after_ms: 100, ..Default::default() };
            let frame = frame(command::ERROR, request_id, &error);
            return vec![Out { user: user.to_owned(), frame }];
        }
        let (conversation_id, conversation_type, members) = if sent.group_id.is_empty() {
            let mut pair = [user.to_owned(), sent.user_id.clone()];
            pair.sort();
            (pair.join(":"), 1, pair.to_vec())
        } else {
            let members = self.groups.get(&sent.group_id).expect("the group exists").clone();
            (format!("g:{}", sent.group_id), 2, members)
        };
        let conversation = self.conversations.entry(conversation_id.clone()).or_default();
        conversation.members = members;
        if plant == Plant::SkipSequence {
            conversation.next_sequence += 1;
        }
        conversation.next_sequence += 1;
        let sequence = conversation.next_sequence;
        let message = chat::Message {
            conversation_id: conversation_id.clone(),
            conversation_type,
            sequence,
            message_id: format!("m{}", self.stored),
            client_message_id: sent.client_message_id,
            sender_id: user.to_owned(),
            r#type: sent.r#type,
            body: sent.body,
            ..chat::Message::default()
        };
        conversation.messages.push(message.clone());
        self.known.insert(key, (conversation_id.clone(), sequence));
        let recipients: Vec<String> =
            conversation.members.iter().filter(|member| *member != user).cloned().collect();
        let mut deliveries = vec![message.clone()];
        if plant == Plant::StoreTwice {
            conversation.next_sequence += 1;
            let again = chat::Message { sequence: sequence + 1, ..message.clone() };
            conversation.messages.push(again.clone());
            deliveries.push(again);
        }

        let mut out = Vec::new();
        let reply = chat::SendReply {
            message_id: message.message_id.clone(),
            conversation_id: conversation_id.clone(),
            sequence,
            ..chat::SendReply::default()
        };
        let reply = Out { user: user.to_owned(), frame: frame(reply_command, request_id, &reply) };
        match plant {
            Plant::CutEverything => self.cut = true,
            Plant::AcknowledgeLate => self.reply_held_back = Some(reply),
            Plant::Stall(span) => {
                self.stall = Some(span);
                out.push(reply);
            }
            _ => out.push(reply),
        }
        for (index, recipient) in recipients.iter().enumerate() {
            let first = index == 0;
            for message in &deliveries {
                let mut message = message.clone();
                match plant {
                    Plant::Lose if first => {
                        self.lost.push((conversation_id.clone(), sequence, recipient.clone()));
                        continue;
                    }
                    Plant::DeliverOnlyOnPull | Plant::AcknowledgeLate => continue,
                    Plant::Reorder if first => {
                        self.held_back = Some((recipient.clone(), message));
                        continue;
                    }
                    Plant::WrongSequence if first => message.sequence += 1000,
                    Plant::WrongId if first => {
                        let (head, number) =
                            message.client_message_id.rsplit_once('-').expect("an id of ours");
                        let number: u32 = number.parse().expect("a number");
                        message.client_message_id = format!("{head}-{}", number + 1_000_000);
                    }
                    Plant::Duplicate if first => out.push(deliver(recipient, &message)),
                    _ => {}
                }
                out.push(deliver(recipient, &message));
                let is_successor = self.held_back.as_ref().is_some_and(|(user, held)| {
                    user == recipient && held.conversation_id == message.conversation_id
                });
                if is_successor && let Some((user, held)) = self.held_back.take() {
                    out.push(deliver(&user, &held));
                }
            }
        }
        if plant == Plant::Misdeliver {
            let members = &self.conversations[&conversation_id].members;
            let stranger = (0..).map(|n| format!("load-{n}")).find(|user| !members.contains(user));
            out.push(deliver(&stranger.expect("there are many"), &message));
        }
        out
    }
}

pub fn deliver(user: &str, message: &chat::Message) -> Out {
    let body = chat::Deliver { messages: vec![message.clone()] };
    Out { user: user.to_owned(), frame: frame(command::DELIVER, 0, &body) }
}

fn is_delivery(frame: &[u8]) -> bool {
    frame[6..8] == command::DELIVER.to_be_bytes()
}

// --- behind listeners -----------------------------------------------------------------------------

struct Shared {
    model: Model,
    writers: HashMap<String, Writer>,
    /// Frames for users who were not there; they get them when they come back.
    offline: HashMap<String, Vec<Vec<u8>>>,
}

struct Writer {
    stream: TcpStream,
    /// Whose end it is: read while the connection stands, since a broken one has none.
    peer: Option<SocketAddr>,
    websocket: bool,
}

impl Shared {
    /// A connection ended. Its user is away, unless another connection has taken over.
    fn ended(&mut self, peer: Option<SocketAddr>, user: Option<&String>) {
        let Some(user) = user else { return };
        if self.writers.get(user).is_some_and(|writer| writer.peer == peer) {
            self.writers.remove(user);
            self.model.leave(user);
        }
    }
}

impl Writer {
    fn write(&mut self, frame: &[u8]) {
        let mut bytes = Vec::new();
        if self.websocket {
            websocket::write_frame(&mut bytes, Opcode::Binary, true, None, frame);
        } else {
            bytes.extend_from_slice(frame);
        }
        // A client that has gone is noticed by its reading side.
        let _ = self.stream.write_all(&bytes);
    }
}

/// A time in which nobody was served, by the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    pub from_unix_us: i64,
    pub to_unix_us: i64,
}

fn unix_us() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    unix.as_micros() as i64
}

/// The model behind a TCP, a WebSocket and an HTTP listener on loopback.
pub struct Server {
    shared: Arc<Mutex<Shared>>,
    stopped: Arc<AtomicBool>,
    stalls: Arc<Mutex<Vec<Stall>>>,
    pub tcp: SocketAddr,
    pub websocket: SocketAddr,
    pub http: SocketAddr,
}

impl Server {
    pub fn start(plant: Plant, at: u64) -> Self {
        let model = Model::new(plant, at);
        let shared = Arc::new(Mutex::new(Shared {
            model,
            writers: HashMap::new(),
            offline: HashMap::new(),
        }));
        let stopped = Arc::new(AtomicBool::new(false));
        let listen = |serve: fn(TcpStream, Arc<Mutex<Shared>>)| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("bound");
            let (shared, stopped) = (shared.clone(), stopped.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let (Ok(stream), shared) = (stream, shared.clone()) else { continue };
                    stream.set_nodelay(true).expect("a socket");
                    std::thread::spawn(move || serve(stream, shared));
                }
            });
            address
        };
        let tcp = listen(|stream, shared| serve_tcp(stream, &shared));
        let websocket = listen(|stream, shared| serve_websocket(stream, &shared));
        let http = listen(|stream, shared| serve_http(stream, &shared));
        Self { shared, stopped, stalls: Arc::default(), tcp, websocket, http }
    }

    /// From now on nobody is served for `span` in every `period`, the first time after a period
    /// less a span. What it did is in [`Server::stalls`].
    pub fn stall_every(&self, span: Duration, period: Duration) {
        let (shared, stopped) = (self.shared.clone(), self.stopped.clone());
        let stalls = self.stalls.clone();
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(period - span);
                let guard = shared.lock().expect("no test thread panics while it holds this");
                let from_unix_us = unix_us();
                std::thread::sleep(span);
                let stall = Stall { from_unix_us, to_unix_us: unix_us() };
                stalls.lock().expect("nobody panics while holding this").push(stall);
                drop(guard);
            }
        });
    }

    /// The stalls so far, as they happened.
    pub fn stalls(&self) -> Vec<Stall> {
        self.stalls.lock().expect("nobody panics while holding this").clone()
    }

    /// Users who are logged in.
    pub fn sessions(&self) -> usize {
        self.shared.lock().expect("no test thread panics while it holds this").writers.len()
    }

    /// Looks at the model.
    pub fn with_model<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&self.shared.lock().expect("no test thread panics while it holds this").model)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for address in [self.tcp, self.websocket, self.http] {
            let _ = TcpStream::connect(address);
        }
        if let Ok(mut shared) = self.shared.lock() {
            for (_, writer) in shared.writers.drain() {
                let _ = writer.stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Handles a frame; `None` ends the connection.
fn on_frame(
    shared: &Mutex<Shared>,
    (stream, peer): (&TcpStream, Option<SocketAddr>),
    websocket: bool,
    user: &mut Option<String>,
    header: Header,
    body: &[u8],
) -> Option<()> {
    let mut guard = shared.lock().expect("no test thread panics while it holds this");
    let Shared { model, writers, offline } = &mut *guard;
    let Some(user) = user.as_deref() else {
        assert_eq!(header.command, command::LOGIN, "the first frame is LOGIN");
        let (name, reply) = model.login(body, header.request_id);
        let stream = stream.try_clone().expect("a socket");
        let mut writer = Writer { stream, peer, websocket };
        writer.write(&reply);
        for frame in offline.remove(&name).unwrap_or_default() {
            writer.write(&frame);
        }
        model.leave(&name);
        writers.insert(name.clone(), writer);
        *user = Some(name);
        return Some(());
    };
    for out in model.handle(user, header, body) {
        if let Some(writer) = writers.get_mut(&out.user) {
            writer.write(&out.frame);
        } else if is_delivery(&out.frame) && model.was_away(&out.user, &out.frame) {
            offline.entry(out.user).or_default().push(out.frame);
        }
    }
    if let Some(span) = model.stall.take() {
        // With the lock held: nobody is served meanwhile.
        std::thread::sleep(span);
    }
    if let Some(writer) = model.cut_one.take().and_then(|user| writers.remove(&user)) {
        let _ = writer.stream.shutdown(Shutdown::Both);
    }
    if std::mem::take(&mut model.cut) {
        for (_, writer) in writers.drain() {
            let _ = writer.stream.shutdown(Shutdown::Both);
        }
    }
    (header.command != command::LOGOUT).then_some(())
}

fn serve_tcp(stream: TcpStream, shared: &Mutex<Shared>) {
    let peer = stream.peer_addr().ok();
    let mut user = None;
    read_tcp(stream, shared, &mut user);
    shared.lock().expect("no test thread panics while it holds this").ended(peer, user.as_ref());
}

fn read_tcp(mut stream: TcpStream, shared: &Mutex<Shared>, user: &mut Option<String>) {
    let (mut reader, mut buffer) = (FrameReader::new(), [0; 16 * 1024]);
    let (handle, peer) = (stream.try_clone().expect("a socket"), stream.peer_addr().ok());
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut go_on = true;
        let read = reader.read(&buffer[..count], 65536, |header, body| {
            go_on = on_frame(shared, (&handle, peer), false, user, header, body).is_some();
            go_on
        });
        read.expect("the client speaks the protocol");
        if !go_on {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn serve_websocket(stream: TcpStream, shared: &Mutex<Shared>) {
    let peer = stream.peer_addr().ok();
    let mut user = None;
    read_websocket(stream, shared, &mut user);
    shared.lock().expect("no test thread panics while it holds this").ended(peer, user.as_ref());
}

fn read_websocket(mut stream: TcpStream, shared: &Mutex<Shared>, user: &mut Option<String>) {
    let mut head = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let used = loop {
        let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
        head.extend_from_slice(&buffer[..count]);
        match websocket::read_upgrade(&head).expect("the client upgrades") {
            websocket::UpgradeProgress::Incomplete => {}
            websocket::UpgradeProgress::Complete { consumed, upgrade } => {
                assert_eq!(upgrade.path, "/ws");
                let mut answer = Vec::new();
                let offered = upgrade.subprotocols.first().map(String::as_str);
                websocket::write_upgrade_response(&mut answer, &upgrade, offered);
                stream.write_all(&answer).expect("the client reads");
                break consumed;
            }
        }
    };
    let mut reader = MessageReader::new();
    let (handle, peer) = (stream.try_clone().expect("a socket"), stream.peer_addr().ok());
    let limits = Limits { message_bytes_max: 1 << 20 };
    let mut input = head.split_off(used);
    loop {
        let mut from = 0;
        while let (used, Some(message)) = reader
            .read(Role::Server, &limits, &mut input[from..])
            .expect("the client speaks RFC 6455")
        {
            from += used;
            let WebSocketMessage::Binary(payload) = message else { continue };
            let mut frames = FrameReader::new();
            let mut go_on = true;
            let read = frames.read(payload, 65536, |header, body| {
                go_on = on_frame(shared, (&handle, peer), true, user, header, body).is_some();
                go_on
            });
            read.expect("the client speaks the protocol");
            if !go_on {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
        let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
        input = buffer[..count].to_vec();
    }
}

/// POST /v1/groups and nothing else.
fn serve_http(mut stream: TcpStream, shared: &Mutex<Shared>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let whole = text.split_once("\r\n\r\n").and_then(|(head, body)| {
            let length = head
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, length)| length.trim().parse::<usize>().ok())?;
            (body.len() >= length).then(|| (head.to_owned(), body[..length].to_owned()))
        });
        let Some((head, body)) = whole else {
            let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
            bytes.extend_from_slice(&buffer[..count]);
            continue;
        };
        assert!(head.starts_with("POST /v1/groups HTTP/1.1"), "{head}");
        bytes.clear();
        let allowed = head.to_ascii_lowercase().contains("authorization: bearer api-token");
        let request: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let group_id = request["group_id"].as_str().expect("a group id").to_owned();
        let members = request["members"].as_array().expect("members");
        let members: Vec<String> =
            members.iter().filter_map(|member| member.as_str().map(str::to_owned)).collect();
        let (status, answer) = if allowed {
            let mut guard = shared.lock().expect("no test thread panics while it holds this");
            guard.model.create_group(&group_id, members);
            let conversation_id = format!("g:{group_id}");
            (
                "200 OK",
                serde_json::json!({ "group_id": group_id, "conversation_id": conversation_id }),
            )
        } else {
            ("403 Forbidden", serde_json::json!({ "code": 17, "reason": "not permitted" }))
        };
        let answer = answer.to_string();
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
        if stream.write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}
