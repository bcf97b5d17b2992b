//! A world around the engine, at random and repeatable by its seed: clients of every form that
//! connect, ask, drip, stall, leave and are cut; a network that splits and delays; a logic that
//! answers late, restarts, and loses its link; a clock that jumps.
//!
//! The world checks while it runs whatever must never happen, and keeps what a test asks about
//! afterwards. It knows the protocol from the client's side only, through the codecs.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod client;
pub mod logic;

use std::collections::BTreeMap;

use fastrand::Rng;
use millrace_engine::{
    ConnectionId, Effect, Engine, GatewayIdentity, LinkId, Now, Settings, TransportKind,
};
use millrace_protocol::Code;
use millrace_protocol::link::{ConnectRequest, ConnectResponse, Credit, logic_event::Kind};

use client::{Client, Form};
use logic::Logic;

/// What the engine is told to be: long enough that who speaks is never taken for silent.
const IDLE_TIMEOUT_MS: u32 = 30_000;
const LOGIN_DEADLINE_MS: u32 = 10_000;
const LINGER_MS: u32 = 5_000;

/// How long a frame may wait for credit.
const CREDIT_WAIT_MS: u32 = 4_000;

/// How late a deadline may be seen here: two of the longest steps, and the linger of a connection
/// that does not read its farewell.
const SLACK_MS: u64 = 2 * 3_000 + LINGER_MS as u64;

/// How wild the world is; chances are per step, of 1000.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub clients: usize,
    pub steps: u32,
    /// A client's connection is reset.
    pub cut: u32,
    /// The link is lost.
    pub link_loss: u32,
    /// Logic forgets everything when the link is lost.
    pub logic_restarts: bool,
    /// A client stops reading for a while.
    pub stall: u32,
    /// Credit that logic grants in frames.
    pub window_frames: u64,
    /// A client breaks the protocol.
    pub garbage: u32,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            clients: 30,
            steps: 4_000,
            cut: 2,
            link_loss: 2,
            logic_restarts: false,
            stall: 2,
            window_frames: 40,
            garbage: 1,
        }
    }
}

/// Both ends of one client's socket.
#[derive(Debug)]
struct Socket {
    id: ConnectionId,
    client: Client,
    /// What the client wrote and the engine has not seen.
    to_engine: Vec<u8>,
    /// A send under way, and when it completes.
    in_flight: Option<(Vec<u8>, u64)>,
    /// Since when the engine does not listen.
    paused_at: Option<u64>,
    /// The engine shut its write side down.
    write_shut: bool,
    /// The client's end: closed in order or reset.
    ended: Option<End>,
    end_told: bool,
    /// When `closed` is called.
    close_at: Option<u64>,
    stalled_until: u64,
    accepted_at: u64,
    /// When the engine was last given bytes or a login's answer, or last began to listen again.
    heard_at: u64,
    write_shut_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// The world.
pub struct World {
    pub engine: Engine,
    pub logic: Logic,
    weather: Weather,
    random: Rng,
    now: Now,
    sockets: BTreeMap<u64, Socket>,
    next_socket: u64,
    link: Option<LinkId>,
    link_up_at: u64,
    /// Batches on their way, with their moment of arrival; both keep their order.
    to_logic: Vec<(u64, ConnectRequest)>,
    to_engine: Vec<(u64, ConnectResponse)>,
    /// What ended clients have seen.
    pub ended_clients: Vec<Client>,
    /// Sessions that ended for their silence.
    pub idle_timeouts: u64,
    /// Batches that the link still takes in this step.
    link_room: usize,
    /// Most connections that there were at once, and the table's bytes then.
    connections_peak: (usize, u64),
    /// No new things happen any more; everything under way comes to its end.
    settling: bool,
}

/// Runs a world and its end; returns it at rest.
#[expect(clippy::print_stdout, reason = "a failed run is repeated by its seed")]
pub fn run(seed: u64, weather: Weather) -> World {
    println!("seed {seed}, {weather:?}");
    let mut world = World::new(seed, weather);
    for _ in 0..weather.steps {
        world.step();
    }
    world.settle();
    world
}

/// The seeds of a run: always the same three, and one that is new each time;
/// MILLRACE_SIMULATOR_SEEDS asks for another number of new ones, MILLRACE_SIMULATOR_SEED for one alone.
pub fn seeds() -> Vec<u64> {
    if let Ok(seed) = std::env::var("MILLRACE_SIMULATOR_SEED") {
        return vec![seed.parse().expect("MILLRACE_SIMULATOR_SEED is a seed")];
    }
    let fresh = std::env::var("MILLRACE_SIMULATOR_SEEDS")
        .map_or(1, |number| number.parse().expect("MILLRACE_SIMULATOR_SEEDS is a number of seeds"));
    [1, 2, 3].into_iter().chain(std::iter::repeat_with(|| fastrand::u64(..)).take(fresh)).collect()
}

impl World {
    fn new(seed: u64, weather: Weather) -> Self {
        let now = Now { monotonic_ms: 50_000, unix_ms: 1_700_000_000_000 };
        let settings = Settings {
            // Small, so that the walls are met.
            link_batch_events_max: 7,
            send_batch_bytes_max: 400,
            sends_per_turn_max: 3,
            broadcasts_max: 2,
            connections_max: weather.clients as u32 + 5,
            // Counted, because it is below the other; never reached.
            connections_per_address_max: weather.clients as u32 + 4,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            login_deadline_ms: LOGIN_DEADLINE_MS,
            linger_ms: LINGER_MS,
            link_credit_wait_max_ms: CREDIT_WAIT_MS,
            ..Settings::default()
        };
        let identity = GatewayIdentity {
            gateway_id: "simulated".to_owned(),
            gateway_epoch: 1,
            shards: 1,
            lease_ms: 10_000,
            window: Credit { frames: 50, bytes: 100_000 },
        };
        Self {
            engine: Engine::new(settings, 0, identity, now),
            logic: Logic::new(weather.window_frames),
            weather,
            random: Rng::with_seed(seed),
            now,
            sockets: BTreeMap::new(),
            next_socket: 1,
            link: None,
            link_up_at: 0,
            to_logic: Vec::new(),
            to_engine: Vec::new(),
            ended_clients: Vec::new(),
            idle_timeouts: 0,
            link_room: 0,
            connections_peak: (0, 0),
            settling: false,
        }
    }

    fn chance(&mut self, of_1000: u32) -> bool {
        !self.settling && self.random.u32(..1000) < of_1000
    }

    fn step(&mut self) {
        let ms = match self.random.u8(..100) {
            0 => self.random.u64(..3_000),
            1..10 => self.random.u64(..300),
            _ => self.random.u64(..20),
        };
        self.now.monotonic_ms += ms;
        self.now.unix_ms += ms as i64;
        self.engine.tick(self.now);
        // Little enough that the lists at a stream's beginning take several steps, in which
        // clients come and go.
        self.link_room = if self.settling { usize::MAX } else { self.random.usize(..4) };
        self.step_link();
        self.call_late();
        if !self.settling && self.sockets.len() < self.weather.clients {
            self.connect();
        }
        let names: Vec<u64> = self.sockets.keys().copied().collect();
        for name in names {
            self.step_socket(name);
        }
        self.effects();
    }

    /// What a driver may say of a connection that is no more: it concerns nobody, least of all
    /// whoever has the slot now.
    fn call_late(&mut self) {
        if !self.chance(100) {
            return;
        }
        let Some(id) = self.logic.any_gone(&mut self.random) else { return };
        let id = ConnectionId::from_raw(id);
        let before = self.engine.counters().stale_calls;
        match self.random.u8(..4) {
            0 => {
                let mut heartbeat = Vec::new();
                let flags = millrace_protocol::frame::Flags::NONE;
                let command = millrace_protocol::command::HEARTBEAT;
                millrace_protocol::frame::write(&mut heartbeat, command, flags, 77, b"");
                self.engine.received(self.now, id, &mut heartbeat);
            }
            1 => self.engine.sent(self.now, id, true),
            2 => self.engine.receive_ended(self.now, id),
            _ => self.engine.closed(self.now, id),
        }
        assert_eq!(self.engine.counters().stale_calls, before + 1, "a late call reached somebody");
        self.effects();
    }

    /// Slots are used again: the table grows only when there are more connections than ever.
    fn check_table(&mut self) {
        let (count, bytes) = (self.sockets.len(), self.engine.memory().connections);
        if count > self.connections_peak.0 {
            self.connections_peak = (count, bytes);
        }
        let (most, bytes_max) = self.connections_peak;
        assert!(bytes <= bytes_max, "{count} connections take more slots than {most} did");
    }

    fn connect(&mut self) {
        let form = match self.random.u8(..4) {
            0 => Form::Tcp,
            1 => Form::Binary,
            2 => Form::Text,
            _ => Form::Mixed,
        };
        let name = self.next_socket;
        self.next_socket += 1;
        let kind = if form == Form::Tcp { TransportKind::Tcp } else { TransportKind::WebSocket };
        let peer = std::net::Ipv4Addr::new(10, 0, 0, self.random.u8(..));
        let id = self.engine.accepted(self.now, name, kind, peer.into());
        let mut client = Client::new(form, id.raw());
        let to_engine = client.begin();
        self.sockets.insert(
            name,
            Socket {
                id,
                client,
                to_engine,
                in_flight: None,
                paused_at: None,
                write_shut: false,
                ended: None,
                end_told: false,
                close_at: None,
                stalled_until: 0,
                accepted_at: self.now.monotonic_ms,
                heard_at: self.now.monotonic_ms,
                write_shut_at: u64::MAX,
            },
        );
        self.check_table();
    }

    fn step_socket(&mut self, name: u64) {
        let Weather { cut, stall, garbage, .. } = self.weather;
        let (cut, stall, garbage) = (self.chance(cut), self.chance(stall), self.chance(garbage));
        let settling = self.settling;
        let now_ms = self.now.monotonic_ms;
        let Some(socket) = self.sockets.get_mut(&name) else { return };
        if let Some(at) = socket.close_at {
            if at <= now_ms {
                let socket = self.sockets.remove(&name).expect("found above");
                self.engine.closed(self.now, socket.id);
                let client = socket.client;
                let was_closed = self.logic.closed.contains(&client.session_id);
                assert!(!client.kicked || was_closed, "kicked, but not by logic: {client:?}");
                self.logic.is_gone(client.session_id);
                self.ended_clients.push(client);
            }
            return;
        }
        if stall && socket.stalled_until < now_ms {
            socket.stalled_until = now_ms + self.random.u64(..5_000);
        }
        if settling {
            socket.stalled_until = 0;
        }

        // The client acts.
        if socket.ended.is_none() {
            if cut {
                socket.ended = Some(End::Reset);
            } else if garbage {
                let bytes: Vec<u8> = (0..50).map(|_| self.random.u8(..)).collect();
                socket.to_engine.extend_from_slice(&bytes);
                socket.client.spoiled = true;
            } else if socket.write_shut
                && socket.in_flight.is_none()
                && !socket.client.mute
                && self.random.u8(..4) == 0
            {
                socket.ended = Some(End::Fin);
            } else if !settling && !socket.client.spoiled {
                let bytes = socket.client.act(&mut self.random);
                socket.to_engine.extend_from_slice(&bytes);
            }
        }

        // The network delivers a piece of what the client wrote.
        let deliver =
            socket.paused_at.is_none() && !socket.end_told && !socket.to_engine.is_empty();
        if deliver && self.random.bool() {
            let most = socket.to_engine.len().min(1 + self.random.usize(..600));
            let length = 1 + self.random.usize(..most);
            let mut piece: Vec<u8> = socket.to_engine.drain(..length).collect();
            let id = socket.id;
            socket.heard_at = now_ms;
            self.engine.received(self.now, id, &mut piece);
            self.effects();
        }
        let Some(socket) = self.sockets.get_mut(&name) else { return };

        // A send completes.
        if let Some((_, at)) = &socket.in_flight {
            let reset = socket.ended == Some(End::Reset);
            if reset || (*at <= now_ms && socket.stalled_until <= now_ms) {
                let (bytes, _) = socket.in_flight.take().expect("found above");
                if !reset {
                    socket.client.receive(&bytes);
                }
                let id = socket.id;
                self.engine.sent(self.now, id, !reset);
                self.effects();
            }
        }
        let Some(socket) = self.sockets.get_mut(&name) else { return };

        let was_accepted = self.logic.accepted.contains(&socket.client.session_id);
        check_deadlines(socket, was_accepted, now_ms);

        // The client's end arrives, after what it wrote if it ended in order.
        let everything_arrived = socket.to_engine.is_empty() && socket.paused_at.is_none();
        let tell = match socket.ended {
            Some(End::Fin) => everything_arrived,
            Some(End::Reset) => socket.paused_at.is_none(),
            None => false,
        };
        if tell && !socket.end_told && socket.close_at.is_none() {
            socket.end_told = true;
            let id = socket.id;
            self.engine.receive_ended(self.now, id);
            self.effects();
        }
    }

    fn step_link(&mut self) {
        let now_ms = self.now.monotonic_ms;
        match self.link {
            None => {
                if now_ms >= self.link_up_at {
                    let link = LinkId(self.random.u8(..3));
                    self.link = Some(link);
                    self.logic.stream_begins();
                    self.engine.link_up(self.now, link);
                }
            }
            Some(link) => {
                if self.chance(self.weather.link_loss) {
                    self.lose_link(link);
                }
            }
        }
        let Some(link) = self.link else { return };
        // Arrivals, in order.
        while self.to_logic.first().is_some_and(|(at, _)| *at <= now_ms) {
            let (_, batch) = self.to_logic.remove(0);
            self.logic.receive(batch, &mut self.random);
        }
        if let Some(batch) = self.logic.act(&mut self.random, self.settling) {
            let last = self.to_engine.last().map_or(0, |(at, _)| *at);
            let at = last.max(now_ms + self.random.u64(..100));
            self.to_engine.push((at, batch));
        }
        while self.to_engine.first().is_some_and(|(at, _)| *at <= now_ms) {
            let (_, batch) = self.to_engine.remove(0);
            self.logic.delivered(&batch);
            // Silence counts from the login's answer.
            for event in &batch.events {
                let Some(Kind::LoginResult(result)) = &event.kind else { continue };
                let sockets = self.sockets.values_mut();
                let of_login = sockets.filter(|socket| socket.id.raw() == result.session_id);
                of_login.for_each(|socket| socket.heard_at = now_ms);
            }
            self.engine.from_logic(self.now, link, batch);
            self.effects();
        }
    }

    fn lose_link(&mut self, link: LinkId) {
        self.link = None;
        self.link_up_at = self.now.monotonic_ms + self.random.u64(..4_000);
        self.to_logic.clear();
        self.to_engine.clear();
        self.logic.stream_ends(self.weather.logic_restarts);
        self.engine.link_down(self.now, link);
        self.effects();
    }

    fn effects(&mut self) {
        loop {
            while let Some(effect) = self.engine.poll_effect() {
                self.perform(effect);
            }
            let Some(link) = self.link else { return };
            // Sometimes there is no room towards logic.
            if self.link_room == 0 || self.random.u8(..3) == 0 {
                return;
            }
            let Some(batch) = self.engine.take_link_batch(link) else { return };
            self.link_room -= 1;
            let last = self.to_logic.last().map_or(0, |(at, _)| *at);
            let at = last.max(self.now.monotonic_ms + self.random.u64(..100));
            self.to_logic.push((at, batch));
        }
    }

    fn perform(&mut self, effect: Effect) {
        let now_ms = self.now.monotonic_ms;
        match effect {
            Effect::Send { connection, socket: name } => {
                let socket = self.sockets.get_mut(&name).expect("an effect on a socket that is");
                assert!(socket.in_flight.is_none(), "one send at a time");
                assert!(!socket.write_shut, "nothing is sent after the end");
                assert_eq!(socket.id, connection);
                let mut bytes = Vec::new();
                if self.engine.take_send(connection, &mut bytes) {
                    socket.in_flight = Some((bytes, now_ms + self.random.u64(..200)));
                }
            }
            Effect::ShutdownWrite { socket: name, .. } => {
                let socket = self.sockets.get_mut(&name).expect("an effect on a socket that is");
                assert!(socket.in_flight.is_none() && !socket.write_shut);
                socket.write_shut = true;
                socket.write_shut_at = now_ms;
            }
            Effect::Close { socket: name, .. } => {
                let socket = self.sockets.get_mut(&name).expect("an effect on a socket that is");
                assert!(socket.close_at.is_none(), "closed once");
                socket.close_at = Some(now_ms + self.random.u64(..500));
                // What was under way is cancelled.
                socket.in_flight = None;
            }
            Effect::PauseReceive { socket: name, .. } => {
                let socket = self.sockets.get_mut(&name).expect("an effect on a socket that is");
                assert_eq!(socket.paused_at.replace(now_ms), None);
            }
            Effect::ResumeReceive { socket: name, .. } => {
                let socket = self.sockets.get_mut(&name).expect("an effect on a socket that is");
                let since = socket.paused_at.take().expect("it was paused");
                let held_ms = now_ms - since;
                // The longest step, and a tick.
                assert!(held_ms <= u64::from(CREDIT_WAIT_MS) + 3_000, "held for {held_ms} ms");
                socket.heard_at = now_ms;
            }
        }
    }

    /// Whether nothing is under way: no bytes, no batches, no requests.
    fn is_quiet(&self) -> bool {
        let counters = self.engine.counters();
        let held =
            counters.send_queue_bytes + counters.requests_in_flight + counters.backlog_frames;
        let is_quiet = |socket: &Socket| {
            let is_read = socket.to_engine.is_empty() || socket.end_told;
            socket.close_at.is_none() && socket.in_flight.is_none() && is_read
        };
        self.link.is_some()
            && held + counters.logins_in_flight + counters.link_outbox_events == 0
            && self.to_logic.is_empty()
            && self.to_engine.is_empty()
            && self.logic.is_silent()
            && self.sockets.values().all(is_quiet)
    }

    /// Lets everything under way come to its end, then takes the clients and the link away.
    fn settle(&mut self) {
        // From here on all are silent. Who sent garbage was before: it may have left half a frame.
        let clients = self.sockets.values().map(|socket| &socket.client).chain(&self.ended_clients);
        let silent = clients.filter(|client| client.mute || client.spoiled).count();
        self.idle_timeouts = self.engine.counters().sessions_ended[Code::IdleTimeout as usize];
        assert!(self.idle_timeouts <= silent as u64, "somebody who spoke was taken for silent");
        self.settling = true;
        // Until nothing is under way in either direction, however long the queues have become: the
        // bound is for a world that never comes to rest, and is a failure.
        let mut steps = 0;
        while !self.is_quiet() {
            self.step();
            steps += 1;
            assert!(
                steps < 20_000,
                "the world does not come to rest: {:?}",
                self.engine.counters()
            );
        }
        for socket in self.sockets.values_mut() {
            socket.client.has_settled =
                !socket.write_shut && socket.ended.is_none() && socket.close_at.is_none();
            if socket.ended.is_none() {
                socket.ended = Some(End::Fin);
            }
        }
        for _ in 0..2_000 {
            self.step();
        }
        assert!(self.sockets.is_empty(), "all clients have gone: {:?}", self.sockets);
        assert!(self.engine.is_empty());
        let live = self.logic.live_sessions();
        assert_eq!(live, [] as [u64; 0], "logic has sessions of nobody");
        let link = self.link.take().expect("the link is up in a settled world");
        self.engine.link_down(self.now, link);
        self.effects();
    }
}

/// Nobody is kept longer than the deadlines allow: without a login, in silence, or after the end.
fn check_deadlines(socket: &Socket, was_accepted: bool, now_ms: u64) {
    let is_over = |since: u64, deadline_ms: u32| {
        now_ms.saturating_sub(since) > u64::from(deadline_ms) + SLACK_MS
    };
    if socket.ended.is_some() || socket.close_at.is_some() {
        return;
    }
    let overdue = !was_accepted && is_over(socket.accepted_at, LOGIN_DEADLINE_MS);
    assert!(!overdue, "kept without a login: {socket:?}");
    let held_since = socket.paused_at.unwrap_or(now_ms);
    assert!(!is_over(held_since, CREDIT_WAIT_MS), "held without an answer: {socket:?}");
    let overdue = socket.paused_at.is_none() && is_over(socket.heard_at, IDLE_TIMEOUT_MS);
    assert!(!overdue, "kept in silence: {socket:?}");
    assert!(!is_over(socket.write_shut_at, LINGER_MS), "kept after its end: {socket:?}");
}
