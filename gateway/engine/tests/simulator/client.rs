//! One client: speaks one of the forms, asks at random, and remembers what it asked and heard.

use std::collections::BTreeMap;

use fastrand::Rng;
use millrace_protocol::{
    command::{
        self, DELIVER, ERROR, HEARTBEAT, LOGIN, LOGOUT, NOTICE, REFRESH, REPORT, ROOM_MESSAGE,
        SEND_MESSAGE, TYPING, reply,
    },
    frame::{self, Flags, FrameReader},
    session, text,
    websocket::{
        Limits, Message, MessageReader, Opcode, Role, read_upgrade_response, write_frame,
        write_upgrade_request,
    },
};
use prost::Message as _;

const UPGRADE_KEY: [u8; 16] = [3; 16];
const MASK: [u8; 4] = [9, 8, 7, 6];

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Tcp,
    Binary,
    Text,
    /// WebSocket without a subprotocol; binary.
    Mixed,
}

/// A client and its memory.
#[derive(Debug)]
pub struct Client {
    pub form: Form,
    pub session_id: u64,
    /// It sent garbage; what comes after does not count.
    pub spoiled: bool,
    /// The world was quiet for long before it left.
    pub has_settled: bool,
    pub logged_in: bool,
    /// It asked to leave, or was told that the connection ends.
    pub ending: bool,
    /// Says nothing any more from some point on, and never closes its end.
    pub mute: bool,
    /// It was told KICK.
    pub kicked: bool,
    login_asked: bool,
    next_request: u32,
    /// Requests that wait for an answer, and how many.
    pub waiting: BTreeMap<u32, u32>,
    pub answered: u64,
    /// Numbers of the messages pushed by logic, in the order of their arrival.
    pub pushed: Vec<u64>,
    /// Numbers of the frames sent to logic, in order.
    next_number: u64,
    inbound: Vec<u8>,
    is_upgraded: bool,
    messages: MessageReader,
    frames: FrameReader,
}

impl Client {
    pub fn new(form: Form, session_id: u64) -> Self {
        Self {
            form,
            session_id,
            spoiled: false,
            has_settled: false,
            logged_in: false,
            ending: false,
            mute: false,
            kicked: false,
            login_asked: false,
            next_request: 1,
            waiting: BTreeMap::new(),
            answered: 0,
            pushed: Vec::new(),
            next_number: 0,
            inbound: Vec::new(),
            is_upgraded: form == Form::Tcp,
            messages: MessageReader::new(),
            frames: FrameReader::new(),
        }
    }

    /// The first bytes.
    pub fn begin(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let subprotocol = match self.form {
            Form::Tcp => return out,
            Form::Binary => Some("millrace.v1"),
            Form::Text => Some("millrace.v1.json"),
            Form::Mixed => None,
        };
        write_upgrade_request(&mut out, "localhost", "/ws", subprotocol, &UPGRADE_KEY);
        out
    }

    /// Does something, or nothing.
    pub fn act(&mut self, random: &mut Rng) -> Vec<u8> {
        if !self.is_upgraded || self.ending || self.mute {
            return Vec::new();
        }
        // Some fall silent, before the login or after it.
        if random.u16(..5_000) == 0 {
            self.mute = true;
            return Vec::new();
        }
        if !self.logged_in {
            // Some are silent until the deadline, some ask before they may.
            return match random.u16(..400) {
                0 => self.ask(HEARTBEAT, b""),
                1..60 if !self.login_asked => {
                    self.login_asked = true;
                    let login = session::Login {
                        user_id: "user".to_owned(),
                        token: "token".to_owned(),
                        ..session::Login::default()
                    };
                    let body = match self.form {
                        Form::Text => serde_json::to_vec(&login).expect("JSON"),
                        _ => login.encode_to_vec(),
                    };
                    self.ask(LOGIN, &body)
                }
                _ => Vec::new(),
            };
        }
        match random.u16(..1000) {
            0..60 => {
                let number = self.number(random);
                self.ask(SEND_MESSAGE, &number)
            }
            60..90 => {
                let number = self.number(random);
                self.write(TYPING, 0, &number)
            }
            90..110 => {
                let number = self.number(random);
                self.ask(REPORT, &number)
            }
            110..200 => self.ask(HEARTBEAT, b""),
            200..205 => {
                let refresh = session::Refresh { token: "newer".to_owned() };
                let body = match self.form {
                    Form::Text => serde_json::to_vec(&refresh).expect("JSON"),
                    _ => refresh.encode_to_vec(),
                };
                self.ask(REFRESH, &body)
            }
            205 => {
                let bytes = self.ask(LOGOUT, b"");
                self.ending = true;
                bytes
            }
            206..210 if self.form != Form::Tcp => {
                let mut out = Vec::new();
                write_frame(&mut out, Opcode::Ping, true, Some(MASK), b"ping");
                out
            }
            _ => Vec::new(),
        }
    }

    /// A body that every form can carry and logic can read: short mostly, and now and then long
    /// enough to wait for credit in bytes while shorter ones could go.
    fn number(&mut self, random: &mut Rng) -> Vec<u8> {
        self.next_number += 1;
        let width = if random.u8(..4) == 0 { random.usize(20..200) } else { 1 };
        format!("\"{:0width$}\"", self.next_number).into_bytes()
    }

    fn ask(&mut self, command: u16, body: &[u8]) -> Vec<u8> {
        let request_id = self.next_request;
        self.next_request += 1;
        *self.waiting.entry(request_id).or_default() += 1;
        self.write(command, request_id, body)
    }

    fn write(&mut self, command: u16, request_id: u32, body: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        if self.form == Form::Text {
            text::write(&mut payload, command, request_id, body);
        } else {
            frame::write(&mut payload, command, Flags::NONE, request_id, body);
        }
        if self.form == Form::Tcp {
            return payload;
        }
        let opcode = if self.form == Form::Text { Opcode::Text } else { Opcode::Binary };
        let mut out = Vec::new();
        write_frame(&mut out, opcode, true, Some(MASK), &payload);
        out
    }

    /// Bytes have come.
    pub fn receive(&mut self, bytes: &[u8]) {
        let mut heard = Vec::new();
        if self.form == Form::Tcp {
            collect(&mut self.frames, bytes, &mut heard);
        } else {
            self.inbound.extend_from_slice(bytes);
            if !self.is_upgraded {
                match read_upgrade_response(&self.inbound, &UPGRADE_KEY) {
                    Ok(None) => return,
                    Ok(Some((used, subprotocol))) => {
                        assert_eq!(subprotocol.is_some(), self.form != Form::Mixed);
                        self.inbound.drain(..used);
                        self.is_upgraded = true;
                    }
                    Err(_) => {
                        // Refused in HTTP: the connection ends.
                        self.ending = true;
                        self.inbound.clear();
                        return;
                    }
                }
            }
            let mut input = std::mem::take(&mut self.inbound);
            let mut at = 0;
            let limits = Limits { message_bytes_max: 1 << 20 };
            loop {
                let (used, message) = self
                    .messages
                    .read(Role::Client, &limits, &mut input[at..])
                    .expect("the gateway speaks WebSocket");
                at += used;
                match message {
                    None => break,
                    Some(Message::Binary(message)) => {
                        let mut reader = FrameReader::new();
                        collect(&mut reader, message, &mut heard);
                        assert!(!reader.is_partial(), "messages hold whole frames");
                    }
                    Some(Message::Text(message)) => {
                        let envelope = text::parse(message).expect("an envelope");
                        let command = match envelope.is_reply {
                            true => reply(envelope.command),
                            false => envelope.command,
                        };
                        heard.push((command, envelope.request_id, envelope.body.into()));
                    }
                    Some(Message::Close(_)) => self.ending = true,
                    Some(Message::Ping(_) | Message::Pong(_)) => {}
                }
            }
        }
        for (command, request_id, body) in heard {
            self.hear(command, request_id, &body);
        }
    }

    fn hear(&mut self, command: u16, request_id: u32, body: &[u8]) {
        if [DELIVER, ROOM_MESSAGE, NOTICE].contains(&command) {
            self.pushed.push(super::logic::number_of(body));
            return;
        }
        if command == reply(LOGIN) {
            let code = match self.form {
                Form::Text => {
                    serde_json::from_slice::<session::LoginReply>(body).expect("JSON").code
                }
                _ => session::LoginReply::decode(body).expect("a LoginReply").code,
            };
            if code != 0 {
                // An ERROR follows; that is the answer that counts here.
                self.login_asked = false;
                return;
            }
            assert!(!self.logged_in, "logged in once");
            self.logged_in = true;
        }
        if command::is_reply(command) || (command == ERROR && request_id != 0) {
            self.answer(request_id);
        } else if command == command::KICK {
            self.kicked = true;
        } else if command == ERROR {
            // Unasked: the end, or a gap, or that a frame without a request was dropped.
        }
    }

    fn answer(&mut self, request_id: u32) {
        let waiting = self.waiting.get_mut(&request_id);
        if self.spoiled && waiting.is_none() {
            // The garbage had a request id.
            return;
        }
        let waiting = waiting.unwrap_or_else(|| panic!("request {request_id} answered twice"));
        *waiting -= 1;
        if *waiting == 0 {
            self.waiting.remove(&request_id);
        }
        self.answered += 1;
    }
}

fn collect(reader: &mut FrameReader, bytes: &[u8], heard: &mut Vec<(u16, u32, Vec<u8>)>) {
    reader
        .read(bytes, 1 << 20, |header, body| {
            heard.push((header.command, header.request_id, body.to_vec()));
            true
        })
        .expect("the gateway writes valid frames");
}
