//! A world around the engine, at random and repeatable by its seed: clients of every form that
//! connect, ask, drip, stall, leave and are cut; a network that splits and delays; a logic that
//! answers late, restarts, and loses its link, or several that stall, leave and come back; a clock that
//! jumps.
//!
//! The world checks while it runs whatever must never happen, and keeps what a test asks about
//! afterwards. It knows the protocol from the client's side only, through the codecs.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod client;
pub mod logic;
pub mod truth;

use std::collections::BTreeMap;

use fastrand::Rng;
use millrace_engine::{
    ConnectionId, Effect, Engine, GatewayIdentity, LinkId, Now, Settings, TransportKind,
};
use millrace_protocol::Code;
use millrace_protocol::link::{ConnectRequest, ConnectResponse, Credit, logic_event::Kind};

use client::{Client, Form};
use logic::Logic;
use truth::Truth;

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
    /// Logic processes, each with its link.
    pub logics: usize,
    /// A link is lost.
    pub link_loss: u32,
    /// A logic stops for a while.
    pub logic_stall: u32,
    /// A logic leaves in good order, and comes back, unless another one is leaving.
    pub logic_leaves: u32,
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
            logics: 1,
            link_loss: 2,
            logic_stall: 0,
            logic_leaves: 0,
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

/// A logic, and the way to it.
pub struct Post {
    pub logic: Logic,
    id: LinkId,
    is_up: bool,
    up_at: u64,
    /// Batches on their way, with their moment of arrival; both keep their order.
    to_logic: Vec<(u64, ConnectRequest)>,
    to_engine: Vec<(u64, ConnectResponse)>,
    /// Batches that the link still takes in this step.
    room: usize,
}

/// The world.
pub struct World {
    pub engine: Engine,
    pub posts: Vec<Post>,
    pub truth: Truth,
    weather: Weather,
    random: Rng,
    now: Now,
    sockets: BTreeMap<u64, Socket>,
    next_socket: u64,
    /// What ended clients have seen.
    pub ended_clients: Vec<Client>,
    /// Sessions that ended for their silence.
    pub idle_timeouts: u64,
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
            posts: (0..weather.logics)
                .map(|place| Post {
                    logic: Logic::new(weather.window_frames),
                    id: LinkId(place as u8),
                    is_up: false,
                    up_at: 0,
                    to_logic: Vec::new(),
                    to_engine: Vec::new(),
                    room: 0,
                })
                .collect(),
            truth: Truth::default(),
            weather,
            random: Rng::with_seed(seed),
            now,
            sockets: BTreeMap::new(),
            next_socket: 1,
            ended_clients: Vec::new(),
            idle_timeouts: 0,
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
        for place in 0..self.posts.len() {
            // Little enough that the lists at a stream's beginning take several steps, in which
            // clients come and go.
            let room = if self.settling { usize::MAX } else { self.random.usize(..4) };
            self.posts[place].room = room;
            if room == 0 && self.posts[place].is_up && self.random.bool() {
                self.engine.link_is_full(self.posts[place].id);
            }
            self.step_link(place);
        }
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
        let Some(id) = self.truth.any_gone(&mut self.random) else { return };
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
                let was_closed = self.truth.closed.contains(&client.session_id);
                assert!(!client.kicked || was_closed, "kicked, but not by logic: {client:?}");
                self.truth.is_gone(client.session_id);
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

        let was_accepted = self.truth.accepted.contains(&socket.client.session_id);
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

    fn step_link(&mut self, place: usize) {
        let now_ms = self.now.monotonic_ms;
        let Weather { link_loss, logic_stall, logic_leaves, .. } = self.weather;
        let (lost, stall, leaves) =
            (self.chance(link_loss), self.chance(logic_stall), self.chance(logic_leaves));
        let others_stay = self
            .posts
            .iter()
            .enumerate()
            .any(|(other, post)| other != place && post.is_up && post.logic.is_in_use());
        let post = &mut self.posts[place];
        if !post.is_up {
            if now_ms >= post.up_at {
                if self.weather.logics == 1 {
                    // Any id will do.
                    post.id = LinkId(self.random.u8(..3));
                }
                post.is_up = true;
                post.logic.stream_begins();
                self.engine.link_up(self.now, post.id);
            }
        } else if post.logic.has_left(now_ms) && post.to_engine.is_empty() {
            self.lose_link(place, true);
        } else if lost {
            self.lose_link(place, self.weather.logic_restarts);
        }
        let post = &mut self.posts[place];
        if stall && post.logic.stalled_until_ms < now_ms {
            post.logic.stalled_until_ms = now_ms + self.random.u64(..8_000);
        }
        if leaves && post.is_up && others_stay {
            post.logic.leave(now_ms, 2_000);
        }
        let is_stalled = post.logic.stalled_until_ms > now_ms && !self.settling;
        if !post.is_up || is_stalled {
            return;
        }
        // Arrivals, in order.
        while post.to_logic.first().is_some_and(|(at, _)| *at <= now_ms) {
            let (_, batch) = post.to_logic.remove(0);
            post.logic.receive(batch, &mut self.random, &mut self.truth);
        }
        if let Some(batch) = post.logic.act(&mut self.random, self.settling, &mut self.truth) {
            let last = post.to_engine.last().map_or(0, |(at, _)| *at);
            let at = last.max(now_ms + self.random.u64(..100));
            post.to_engine.push((at, batch));
        }
        let link = post.id;
        while self.posts[place].to_engine.first().is_some_and(|(at, _)| *at <= now_ms) {
            let (_, batch) = self.posts[place].to_engine.remove(0);
            self.truth.delivered(link, &batch);
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

    fn lose_link(&mut self, place: usize, forget: bool) {
        let post = &mut self.posts[place];
        post.is_up = false;
        post.up_at = self.now.monotonic_ms + self.random.u64(..4_000);
        post.to_logic.clear();
        post.to_engine.clear();
        post.logic.stream_ends(forget);
        self.truth.link_down(post.id);
        self.engine.link_down(self.now, post.id);
        self.effects();
    }

    fn effects(&mut self) {
        loop {
            while let Some(effect) = self.engine.poll_effect() {
                self.perform(effect);
            }
            let mut taken = false;
            for post in self.posts.iter_mut().filter(|post| post.is_up) {
                // Sometimes there is no room towards logic.
                if post.room == 0 || self.random.u8(..3) == 0 {
                    continue;
                }
                let Some(batch) = self.engine.take_link_batch(post.id) else { continue };
                taken = true;
                post.room -= 1;
                let engine = &self.engine;
                self.truth.handed(post.id, &batch, |id| {
                    let all = engine.connections(usize::MAX);
                    all.iter().any(|info| info.id.raw() == id && info.user_id.is_some())
                });
                let last = post.to_logic.last().map_or(0, |(at, _)| *at);
                let at = last.max(self.now.monotonic_ms + self.random.u64(..100));
                post.to_logic.push((at, batch));
            }
            if !taken {
                return;
            }
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
        let is_idle = |post: &Post| {
            post.is_up
                && post.to_logic.is_empty()
                && post.to_engine.is_empty()
                && post.logic.is_silent()
        };
        held + counters.logins_in_flight + counters.link_outbox_events == 0
            && counters.sessions_homeless == 0
            && self.posts.iter().all(is_idle)
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
        assert_eq!(self.truth.with_a_home(), [] as [u64; 0], "at home, but of nobody");
        for place in 0..self.posts.len() {
            let live = self.posts[place].logic.live_sessions();
            assert_eq!(live, [] as [u64; 0], "logic has sessions of nobody");
            assert!(self.posts[place].is_up, "the links are up in a settled world");
            self.lose_link(place, false);
        }
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
