//! Servers of the tests that do wrong on purpose, and guests who talk to them without sockets.

use std::sync::Arc;

use millrace_protocol::websocket::{
    self, Limits, Message, MessageReader, Opcode, Role, UpgradeProgress,
};

use crate::{
    adapter::{
        Adapter,
        guest::Guest,
        mqtt::packet::{Packet, PacketReader, filters},
        streams::{Streams, judge},
    },
    client::{Context, Endpoint, NS_PER_MS, Settings, Wish},
    log::Names,
    population::{Population, Target},
    record::Counter,
    user::User,
    verify::Verdict,
};

/// What a server does wrong, to the message with this number in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    Lose(u32),
    Duplicate(u32),
    Reorder(u32),
    Corrupt(u32),
    Misdeliver(u32),
    /// It is taken, and never acknowledged.
    NoAnswer(u32),
    Refuse(u8),
    RefuseSubscription,
}

/// A server of the tests: bytes of one connection in, bytes for any of them out.
pub trait Server {
    fn receive(&mut self, from: usize, bytes: &mut [u8]) -> Vec<(usize, Vec<u8>)>;
    fn closed(&mut self, from: usize);
}

/// What becomes of a message under a plant: the payloads to be delivered now.
fn delivered(
    plant: Plant,
    number: u32,
    payload: &[u8],
    held: &mut Option<Vec<u8>>,
) -> Vec<Vec<u8>> {
    let payload = payload.to_vec();
    if let Some(before) = held.take() {
        return vec![payload, before];
    }
    match plant {
        Plant::Lose(at) if at == number => Vec::new(),
        Plant::Duplicate(at) if at == number => vec![payload.clone(), payload],
        Plant::Corrupt(at) if at == number => {
            let mut payload = payload;
            *payload.last_mut().expect("not empty") = b'!';
            vec![payload]
        }
        Plant::Reorder(at) if at == number => {
            *held = Some(payload);
            Vec::new()
        }
        _ => vec![payload],
    }
}

pub struct Broker {
    pub plant: Plant,
    pub readers: Vec<PacketReader>,
    pub subscribed: Vec<Vec<(String, u8)>>,
    /// Client id, user name, password.
    pub connects: Vec<(String, Option<String>, Option<String>)>,
    pub published: u32,
    pub again: u32,
    pub acknowledged: u32,
    pub held: Option<Vec<u8>>,
}

impl Broker {
    pub fn new(plant: Plant, clients: usize) -> Self {
        Self {
            plant,
            readers: (0..clients).map(|_| PacketReader::default()).collect(),
            subscribed: vec![Vec::new(); clients],
            connects: Vec::new(),
            published: 0,
            again: 0,
            acknowledged: 0,
            held: None,
        }
    }
}

impl Server for Broker {
    fn receive(&mut self, from: usize, bytes: &mut [u8]) -> Vec<(usize, Vec<u8>)> {
        let mut answers = Vec::new();
        let mut at = 0;
        let mut reader = std::mem::take(&mut self.readers[from]);
        loop {
            let (used, packet) = reader.read(&bytes[at..]).expect("the guest speaks MQTT");
            at += used;
            let Some(packet) = packet else { break };
            let mut answer = Vec::new();
            match packet {
                Packet::Connect { client_id, username, password, .. } => {
                    let password = password.map(|it| String::from_utf8_lossy(it).into_owned());
                    self.connects.push((client_id.into(), username.map(Into::into), password));
                    let code = if let Plant::Refuse(code) = self.plant { code } else { 0 };
                    Packet::ConnAck { session_present: false, code }.write(&mut answer);
                }
                Packet::Subscribe { id, filters: wanted } => {
                    let wanted: Vec<(String, u8)> =
                        filters(wanted).map(|(filter, qos)| (filter.to_owned(), qos)).collect();
                    let refused = self.plant == Plant::RefuseSubscription;
                    let code = |qos: u8| if refused { 0x80 } else { qos };
                    let codes: Vec<u8> = wanted.iter().map(|(_, qos)| code(*qos)).collect();
                    self.subscribed[from] = wanted;
                    Packet::SubAck { id, codes: &codes }.write(&mut answer);
                }
                Packet::Publish { qos, duplicate, topic, id, payload, .. } => {
                    self.published += 1;
                    self.again += u32::from(duplicate);
                    let number = self.published;
                    if qos > 0 && self.plant != Plant::NoAnswer(number) {
                        Packet::PubAck(id).write(&mut answer);
                    }
                    let payloads = delivered(self.plant, number, payload, &mut self.held);
                    for (to, subscribed) in self.subscribed.iter().enumerate() {
                        let hears = subscribed.iter().any(|(filter, _)| filter == topic);
                        let is_stray = self.plant == Plant::Misdeliver(number) && to == 3;
                        for payload in payloads.iter().filter(|_| hears || is_stray) {
                            let mut copy = Vec::new();
                            let packet = Packet::Publish {
                                qos,
                                duplicate: false,
                                retain: false,
                                topic,
                                id: if qos > 0 { 7 } else { 0 },
                                payload,
                            };
                            packet.write(&mut copy);
                            answers.push((to, copy));
                        }
                    }
                }
                Packet::PubAck(7) => self.acknowledged += 1,
                Packet::PingReq => Packet::PingResp.write(&mut answer),
                Packet::Disconnect => {}
                other => panic!("a guest does not send {other:?}"),
            }
            answers.push((from, answer));
        }
        self.readers[from] = reader;
        answers
    }

    fn closed(&mut self, from: usize) {
        self.readers[from] = PacketReader::default();
        self.subscribed[from].clear();
    }
}

pub struct EchoServer {
    pub plant: Plant,
    pub readers: Vec<Option<MessageReader>>,
    pub subprotocol: Option<&'static str>,
    /// Everything that was said, as text.
    pub said: Vec<String>,
    pub echoed: u32,
    pub held: Option<Vec<u8>>,
}

impl Server for EchoServer {
    fn receive(&mut self, from: usize, bytes: &mut [u8]) -> Vec<(usize, Vec<u8>)> {
        let mut answer = Vec::new();
        let Some(reader) = &mut self.readers[from] else {
            let progress = websocket::read_upgrade(bytes).expect("the guest upgrades");
            let UpgradeProgress::Complete { upgrade, .. } = progress else { panic!("in pieces") };
            websocket::write_upgrade_response(&mut answer, &upgrade, self.subprotocol);
            self.readers[from] = Some(MessageReader::new());
            return vec![(from, answer)];
        };
        let limits = Limits { message_bytes_max: 1 << 20 };
        let mut at = 0;
        while let (used, Some(message)) =
            reader.read(Role::Server, &limits, &mut bytes[at..]).expect("RFC 6455")
        {
            at += used;
            let (opcode, payload) = match message {
                Message::Text(text) => (Opcode::Text, text.as_bytes().to_vec()),
                Message::Binary(bytes) => (Opcode::Binary, bytes.to_vec()),
                Message::Ping(payload) => {
                    websocket::write_frame(&mut answer, Opcode::Pong, true, None, payload);
                    continue;
                }
                _ => continue,
            };
            self.said.push(String::from_utf8_lossy(&payload).into_owned());
            self.echoed += 1;
            for payload in delivered(self.plant, self.echoed, &payload, &mut self.held) {
                websocket::write_frame(&mut answer, opcode, true, None, &payload);
            }
        }
        vec![(from, answer)]
    }

    fn closed(&mut self, from: usize) {
        self.readers[from] = None;
    }
}

pub struct World<A, S> {
    pub cx: Context,
    pub guests: Vec<Guest<A>>,
    pub server: S,
    pub now_ns: u64,
}

impl<A: Adapter, S: Server> World<A, S> {
    pub fn new(users: u32, server: S, change: impl FnOnce(&mut Settings, &mut Population)) -> Self {
        let mut settings = Settings::new("secret", 4_000_000_000);
        let endpoint = Endpoint {
            address: ([127, 0, 0, 1], 9).into(),
            host: "127.0.0.1:9".into(),
            path: "/echo".into(),
        };
        (settings.tcp, settings.websocket) = (Some(endpoint.clone()), Some(endpoint));
        let mut population = Population::uniform(users, 0.0, "load", 0xAB);
        change(&mut settings, &mut population);
        let to_oneself = std::any::type_name::<A>().contains("Echo");
        let (settings, population) = (Arc::new(settings), Arc::new(population));
        let names = Names::default();
        let mut cx = Context::new(settings, population, names, Arc::default(), 1, 0);
        cx.streams = Arc::new(Streams::new(users, to_oneself));
        let guests = (0..users).map(Guest::new).collect();
        Self { cx, guests, server, now_ns: 1_000 * NS_PER_MS }
    }

    /// All of them with a session.
    pub fn up(users: u32, server: S, change: impl FnOnce(&mut Settings, &mut Population)) -> Self {
        let mut world = Self::new(users, server, change);
        for guest in &mut world.guests {
            guest.start(world.now_ns, world.now_ns, &world.cx);
        }
        world.pump();
        assert!(world.guests.iter().all(Guest::is_up), "{:?}", world.cx.errors);
        world
    }

    /// Lets everything happen that is to happen now; bytes come in pieces of seven.
    pub fn pump(&mut self) {
        loop {
            let mut is_quiet = true;
            for at in 0..self.guests.len() {
                let wish = self.guests[at].take_wish();
                is_quiet &= wish.is_none();
                match wish {
                    Some(Wish::Connect(_)) => {
                        self.guests[at].connected(self.now_ns, &mut self.cx, Ok(()));
                    }
                    Some(Wish::Close { .. }) => self.server.closed(at),
                    None => {}
                }
                if !self.guests[at].has_output() {
                    continue;
                }
                is_quiet = false;
                let mut bytes = self.guests[at].take_output(self.now_ns, &mut self.cx);
                for (to, mut answer) in self.server.receive(at, &mut bytes) {
                    for piece in answer.chunks_mut(7) {
                        self.guests[to].received(self.now_ns, &mut self.cx, piece);
                    }
                }
            }
            if is_quiet {
                return;
            }
        }
    }

    pub fn send(&mut self, from: u32, choice: u32) {
        let to = Guest::<A>::partner(&self.cx, from, choice);
        let (now_ns, target) = (self.now_ns, Target::user(to));
        self.guests[from as usize].send(now_ns, &mut self.cx, target, now_ns - 5 * NS_PER_MS);
    }

    /// Every guest sends ten messages, and everything arrives that will.
    pub fn talk(&mut self) {
        for number in 0..10 {
            (0..self.guests.len() as u32).for_each(|user| self.send(user, number));
            self.pump();
        }
    }

    pub fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(100) {
            self.now_ns += 100 * NS_PER_MS;
            for guest in &mut self.guests {
                guest.tick(self.now_ns, &mut self.cx);
            }
            self.pump();
        }
    }

    pub fn cut(&mut self, at: usize) {
        self.server.closed(at);
        self.guests[at].ended(self.now_ns, &mut self.cx);
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.cx.record.counters.get(counter)
    }

    pub fn verdict(&mut self) -> Verdict {
        let mut log = std::mem::take(&mut self.cx.log);
        self.guests.iter().for_each(|guest| guest.note_rest(&self.cx, &mut log));
        let mut verdict = Verdict { faults: log.faults.clone(), ..Verdict::default() };
        judge(&self.cx.streams, &log, &self.cx.record.counters, &mut verdict);
        verdict
    }
}
