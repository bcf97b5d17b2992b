//! One user with one connection to somebody else's server: everything that is the same whatever the
//! server speaks. Connect, the way to a session, pings, every way a connection can end, and the way
//! back. `letters` has its messages; what the bytes mean is the [`Adapter`]'s business.

use std::{io, ops::Range};

use super::{
    Adapter, Answer, Event,
    letters::Letters,
    streams::{StreamGap, Track},
};
use crate::{
    client::{Context, Manner, NS_PER_MS, Standing, Wish},
    log::{FaultKind, Log},
    population::{Population, Target},
    record::{Counter, Metric},
    user::User,
};

/// Unwritten output above which no message is added.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// A ping that is answered within this is in no case late.
const PONG_LATE_NS_MIN: u64 = 5_000 * NS_PER_MS;
/// A server that says nothing for two intervals of pings and this is given up.
const SILENCE_GRACE_NS: u64 = 5_000 * NS_PER_MS;

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No connection; the next attempt is due at `due_ns` (never: `u64::MAX`).
    Waiting,
    /// The TCP connection is being made.
    Connecting,
    /// On the way to a session.
    Opening,
    /// The session is up.
    Ready,
    /// No connection, and none wanted.
    Done,
}

/// See the module. Small, since a run may have a million of them.
#[derive(Debug)]
pub struct Guest<A> {
    pub(super) user: u32,
    failures: u32,
    stage: Stage,
    was_ready: bool,
    /// It went by itself and has not come back yet.
    away: bool,
    /// The server said that it ends the connection.
    is_closing: bool,
    /// When the stage began; on the way to a session: when the last step was done.
    stage_since_ns: u64,
    /// Waiting: when to connect. Ready: the next ping.
    due_ns: u64,
    /// Before a session: when it was wanted. Ready: when the ping that waits for its answer was
    /// meant; 0: none does.
    mark_ns: u64,
    last_received_ns: u64,
    last_written_ns: u64,
    adapter: Option<A>,
    pub(super) output: Vec<u8>,
    wish: Option<Box<Wish>>,
    /// What it writes, while there is any of it.
    pub(super) letters: Option<Box<Letters>>,
    /// What it knows of what others write to it, once something came or a session ended.
    pub(super) tracks: Vec<Track>,
}

impl<A: Adapter> Guest<A> {
    /// A user that has not connected yet.
    pub fn new(user: u32) -> Self {
        Self {
            user,
            failures: 0,
            stage: Stage::Waiting,
            was_ready: false,
            away: false,
            is_closing: false,
            stage_since_ns: 0,
            due_ns: u64::MAX,
            mark_ns: 0,
            last_received_ns: 0,
            last_written_ns: 0,
            adapter: None,
            output: Vec::new(),
            wish: None,
            letters: None,
            tracks: Vec::new(),
        }
    }

    fn enter(&mut self, stage: Stage, now_ns: u64) {
        self.stage = stage;
        self.stage_since_ns = now_ns;
        self.due_ns = u64::MAX;
    }

    fn connect(&mut self, now_ns: u64, cx: &Context) {
        let Some(endpoint) = A::endpoint(&cx.settings) else {
            self.stage = Stage::Done;
            return;
        };
        self.enter(Stage::Connecting, now_ns);
        if self.was_ready {
            self.mark_ns = now_ns;
        }
        self.wish = Some(Box::new(Wish::Connect(endpoint.address)));
    }

    fn connect_later(&mut self, now_ns: u64, wait_ns: u64) {
        self.enter(Stage::Waiting, now_ns);
        self.due_ns = now_ns + wait_ns;
    }

    fn is_connected(&self) -> bool {
        matches!(self.stage, Stage::Opening | Stage::Ready)
    }

    pub(super) fn is_up(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// Whether the socket takes output fast enough for more of it.
    pub(super) fn may_write(&self) -> bool {
        self.output.len() < OUTPUT_BYTES_MAX
    }

    fn pings(&self, cx: &Context) -> Option<u64> {
        let interval_ns = A::ping_interval_ns(&cx.settings);
        let wanted = cx.settings.heartbeats && cx.population.part(self.user).heartbeats;
        (wanted && interval_ns > 0).then_some(interval_ns)
    }

    fn event(&mut self, now_ns: u64, cx: &mut Context, event: Event<'_>) {
        match event {
            Event::Passed(metric) => {
                cx.record.record(metric, now_ns - self.stage_since_ns);
                self.stage_since_ns = now_ns;
            }
            Event::Ready => self.welcome(now_ns, cx),
            Event::Acknowledged(label) => self.acknowledged(now_ns, cx, label),
            Event::Message { target, payload } => self.arrived(now_ns, cx, target, payload),
            Event::Other => {}
            Event::Pong => self.ponged(now_ns, cx),
            Event::Refused { reason, is_final } => {
                cx.record.counters.add(Counter::LoginsRefused);
                cx.note_error(reason);
                self.let_go(cx, Vec::new());
                if is_final {
                    cx.record.counters.add(Counter::GaveUp);
                    self.enter(Stage::Done, now_ns);
                } else {
                    self.come_back(now_ns, cx);
                }
            }
            Event::Closing(reason) => {
                self.is_closing = true;
                cx.note_error(format!("the server closed: {reason}"));
                let farewell = A::farewell(cx);
                self.broke(now_ns, cx, farewell);
            }
        }
    }

    /// The session is up.
    fn welcome(&mut self, now_ns: u64, cx: &mut Context) {
        cx.record.counters.add(Counter::Logins);
        if self.was_ready {
            cx.record.counters.add(Counter::Reconnects);
            cx.record.record(Metric::Return, now_ns.saturating_sub(self.mark_ns));
        } else {
            cx.record.record(Metric::Arrival, now_ns.saturating_sub(self.mark_ns));
        }
        self.mark_ns = 0;
        self.enter(Stage::Ready, now_ns);
        (self.failures, self.is_closing) = (0, false);
        // The first ping falls anywhere in the interval, so that users who came together do not
        // ping together.
        if let Some(interval_ns) = self.pings(cx) {
            self.due_ns = now_ns + cx.random.u64(interval_ns / 10..=interval_ns);
        }
        (self.was_ready, self.away) = (true, false);
        self.listen(cx);
        if cx.population.is_room_member(self.user) {
            cx.seats += 1;
            cx.record.counters.add(Counter::RoomJoins);
        }
        self.write_letters(now_ns, cx);
    }

    /// From now on every stream is owed to this user.
    fn listen(&mut self, cx: &mut Context) {
        let before = std::mem::take(&mut self.tracks);
        let streams = cx.streams.clone();
        for stream in streams.to(&cx.population, self.user) {
            let written = streams.written(stream);
            let owed_from = before.iter().find(|track| track.stream == stream);
            let owed_from = owed_from.map_or(1, Track::owed_from);
            let missed = streams.certain_in(stream, owed_from, written);
            cx.record.counters.add_many(Counter::Missed, u64::from(missed));
            if written > 0 {
                self.tracks.push(Track::new(stream, written));
            }
        }
    }

    fn ponged(&mut self, now_ns: u64, cx: &mut Context) {
        if self.mark_ns == 0 {
            return;
        }
        let took_ns = now_ns.saturating_sub(std::mem::take(&mut self.mark_ns));
        cx.record.counters.add(Counter::Heartbeats);
        cx.record.record(Metric::Heartbeat, took_ns);
        if let Some(letters) = &mut self.letters {
            letters.ponged(&cx.streams);
        }
        let allowed_ns = match cx.settings.heartbeat_reply_max_ns {
            0 => A::ping_interval_ns(&cx.settings).max(PONG_LATE_NS_MIN),
            allowed_ns => allowed_ns,
        };
        let reads_slowly = cx.population.part(self.user).slow_reader_pause_ms > 0;
        if took_ns > allowed_ns && !reads_slowly && !cx.settings.expect_faults {
            let user = self.user;
            cx.log.faults.add(FaultKind::HeartbeatLate, || {
                let (took_ms, allowed_ms) = (took_ns / NS_PER_MS, allowed_ns / NS_PER_MS);
                format!("user {user}: answered after {took_ms} ms, {allowed_ms} are allowed")
            });
        }
    }

    fn write_ping(&mut self, cx: &mut Context) {
        A::write_ping(cx, &mut self.output);
        if let Some(letters) = &mut self.letters {
            letters.pinged(&cx.streams);
        }
    }

    /// The connection is over, for whatever reason.
    fn broke(&mut self, now_ns: u64, cx: &mut Context, farewell: Vec<u8>) {
        match self.stage {
            Stage::Waiting | Stage::Done => return,
            Stage::Connecting | Stage::Opening => cx.record.counters.add(Counter::SetupsCut),
            Stage::Ready => {
                cx.record.counters.add(Counter::ConnectionsLost);
                let label = if self.is_closing { "closed" } else { "none" };
                cx.endings.add(now_ns - self.last_written_ns, label);
            }
        }
        self.let_go(cx, farewell);
        self.come_back(now_ns, cx);
    }

    /// Closes the connection and notes what that leaves open.
    fn let_go(&mut self, cx: &mut Context, farewell: Vec<u8>) {
        self.wish = Some(Box::new(Wish::Close { farewell }));
        self.adapter = None;
        self.output = Vec::new();
        if self.stage == Stage::Ready && cx.population.is_room_member(self.user) {
            cx.seats -= 1;
        }
        for track in &mut self.tracks {
            let (user, stream) = (self.user, track.stream);
            let gaps = track.take_holes().into_iter();
            cx.log.stream_gaps.extend(gaps.map(|(from, to)| StreamGap { user, stream, from, to }));
        }
        let answer = A::answer(&cx.settings);
        if let Some(letters) = &mut self.letters {
            let forgotten = letters.connection_ended(answer, &cx.streams);
            cx.record.counters.add_many(Counter::Unanswered, forgotten);
        }
        self.due_ns = u64::MAX;
        self.mark_ns = if self.was_ready { 0 } else { self.mark_ns };
    }

    /// Whether and when to connect again: full jitter over a doubling span.
    fn come_back(&mut self, now_ns: u64, cx: &mut Context) {
        let settings = &cx.settings;
        let reconnects = settings.reconnect && cx.population.part(self.user).reconnects;
        self.failures += 1;
        if !reconnects || self.failures > settings.reconnects_max {
            if reconnects {
                cx.record.counters.add(Counter::GaveUp);
            }
            self.enter(Stage::Done, now_ns);
            return;
        }
        let doubled = settings.reconnect_base_ns << self.failures.min(16);
        let span_ns = doubled.min(settings.reconnect_cap_ns).max(1);
        let wait_ns = cx.random.u64(0..span_ns);
        self.connect_later(now_ns, wait_ns.max(NS_PER_MS));
    }

    /// When a server that says nothing is given up. Who does not read on purpose hears nothing.
    fn silence_due_ns(&self, cx: &Context) -> u64 {
        let reads_slowly = cx.population.part(self.user).slow_reader_pause_ms > 0;
        self.pings(cx).filter(|_| !reads_slowly).map_or(u64::MAX, |interval_ns| {
            self.last_received_ns + 2 * interval_ns + SILENCE_GRACE_NS
        })
    }

    fn tick_ready(&mut self, now_ns: u64, cx: &mut Context) {
        if now_ns >= self.silence_due_ns(cx) {
            cx.record.counters.add(Counter::ClientIdle);
            self.broke(now_ns, cx, Vec::new());
            return;
        }
        if now_ns >= self.due_ns
            && let Some(interval_ns) = self.pings(cx)
        {
            self.due_ns = now_ns + interval_ns;
            if self.may_write() {
                self.write_ping(cx);
                // The oldest without an answer keeps its moment.
                if self.mark_ns == 0 {
                    self.mark_ns = now_ns;
                }
            }
        }
        if self.letters.as_ref().is_some_and(|letters| now_ns >= letters.due_ns) {
            self.write_letters(now_ns, cx);
        }
    }

    /// What this user is still owed: numbers of streams, both ends inclusive.
    fn owed_ranges(&self, cx: &Context, mut on_range: impl FnMut(u32, u32, u32)) {
        for track in &self.tracks {
            track.holes().iter().for_each(|(from, to)| on_range(track.stream, *from, *to));
        }
        for stream in cx.streams.to(&cx.population, self.user) {
            let written = cx.streams.written(stream);
            let known = self.tracks.iter().find(|track| track.stream == stream);
            let from = known.map_or(1, Track::owed_from);
            if from <= written {
                on_range(stream, from, written);
            }
        }
    }
}

impl<A: Adapter> User for Guest<A> {
    fn new(user: u32, _: &Population) -> Self {
        Self::new(user)
    }

    fn user(&self) -> u32 {
        self.user
    }

    fn standing(&self) -> Standing {
        match self.stage {
            Stage::Waiting if self.due_ns == u64::MAX => Standing::Absent,
            Stage::Waiting if self.away => Standing::Away,
            Stage::Waiting => Standing::Waiting,
            Stage::Connecting | Stage::Opening => Standing::Connecting,
            Stage::Ready => Standing::Ready,
            Stage::Done => Standing::Done,
        }
    }

    fn is_ready(&self) -> bool {
        self.is_up()
    }

    fn is_away(&self) -> bool {
        self.away
    }

    fn outstanding(&self) -> usize {
        self.letters.as_ref().map_or(0, |letters| letters.len())
    }

    fn take_wish(&mut self) -> Option<Wish> {
        self.wish.take().map(|wish| *wish)
    }

    fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    fn take_output(&mut self, now_ns: u64, cx: &mut Context) -> Vec<u8> {
        self.last_written_ns = now_ns;
        cx.record.counters.add_many(Counter::BytesOut, self.output.len() as u64);
        std::mem::take(&mut self.output)
    }

    fn deadline_ns(&self, cx: &Context) -> u64 {
        match self.stage {
            Stage::Done => u64::MAX,
            Stage::Waiting => self.due_ns,
            Stage::Connecting | Stage::Opening => {
                self.stage_since_ns + cx.settings.stage_timeout_ns
            }
            Stage::Ready => {
                let letters_due = self.letters.as_ref().map_or(u64::MAX, |letters| letters.due_ns);
                self.due_ns.min(self.silence_due_ns(cx)).min(letters_due)
            }
        }
    }

    fn rest(&mut self) {
        if self.letters.as_ref().is_some_and(|letters| letters.is_over()) {
            self.letters = None;
        }
    }

    fn start(&mut self, now_ns: u64, intended_ns: u64, cx: &Context) {
        debug_assert_eq!(self.stage, Stage::Waiting, "a user starts once");
        self.mark_ns = intended_ns;
        self.connect(now_ns, cx);
    }

    fn call(&mut self, now_ns: u64, intended_ns: u64, cx: &Context) {
        debug_assert_eq!(self.standing(), Standing::Absent, "who is there is not called");
        (self.was_ready, self.away, self.failures) = (false, false, 0);
        self.mark_ns = intended_ns;
        self.connect(now_ns, cx);
    }

    fn connected(&mut self, now_ns: u64, cx: &mut Context, result: io::Result<()>) {
        if self.stage != Stage::Connecting {
            return;
        }
        if let Err(error) = result {
            cx.record.counters.add(Counter::ConnectFailed);
            cx.note_error(format!("connect: {error}"));
            self.wish = Some(Box::new(Wish::Close { farewell: Vec::new() }));
            self.come_back(now_ns, cx);
            return;
        }
        cx.record.counters.add(Counter::Connections);
        cx.record.record(Metric::Connect, now_ns - self.stage_since_ns);
        self.last_received_ns = now_ns;
        self.enter(Stage::Opening, now_ns);
        self.adapter = Some(A::open(self.user, cx, &mut self.output));
    }

    fn received(&mut self, now_ns: u64, cx: &mut Context, bytes: &mut [u8]) {
        cx.record.counters.add_many(Counter::BytesIn, bytes.len() as u64);
        self.last_received_ns = now_ns;
        // Taken out, so that what it reads can be told to the user while it is borrowed.
        let Some(mut adapter) = self.adapter.take() else { return };
        let mut from = 0;
        let result = loop {
            let read = adapter.read(self.user, cx, &mut bytes[from..], &mut self.output);
            let (used, event) = match read {
                Ok(read) => read,
                Err(error) => break Err(error),
            };
            from += used;
            let Some(event) = event else { break Ok(()) };
            self.event(now_ns, cx, event);
            if !self.is_connected() {
                return;
            }
        };
        if let Err(error) = result {
            let is_upgrade = error.starts_with("upgrade");
            let counter = if is_upgrade { Counter::UpgradeFailed } else { Counter::ProtocolErrors };
            cx.record.counters.add(counter);
            cx.note_error(error);
            self.broke(now_ns, cx, Vec::new());
            return;
        }
        self.adapter = Some(adapter);
    }

    fn ended(&mut self, now_ns: u64, cx: &mut Context) {
        self.broke(now_ns, cx, Vec::new());
    }

    fn tick(&mut self, now_ns: u64, cx: &mut Context) {
        let overdue = now_ns >= self.stage_since_ns + cx.settings.stage_timeout_ns;
        match self.stage {
            Stage::Waiting if now_ns >= self.due_ns => self.connect(now_ns, cx),
            Stage::Connecting if overdue => {
                self.connected(now_ns, cx, Err(io::ErrorKind::TimedOut.into()));
            }
            Stage::Opening if overdue => {
                cx.note_error("the server did not answer in time".to_owned());
                self.broke(now_ns, cx, Vec::new());
            }
            Stage::Ready => self.tick_ready(now_ns, cx),
            _ => {}
        }
    }

    fn finish(&mut self, now_ns: u64, cx: &mut Context) {
        cx.record.counters.add_many(Counter::Unanswered, self.outstanding() as u64);
        self.letters = None;
        self.away = false;
        if self.is_connected() || self.stage == Stage::Connecting {
            let farewell = if self.is_up() { A::farewell(cx) } else { Vec::new() };
            self.let_go(cx, farewell);
        }
        self.enter(Stage::Done, now_ns);
    }

    fn partner(cx: &Context, user: u32, choice: u32) -> u32 {
        cx.streams.partner(&cx.population, user, choice)
    }

    fn send(&mut self, now_ns: u64, cx: &mut Context, target: Target, intended_ns: u64) {
        self.send_letter(now_ns, cx, target, intended_ns);
    }

    fn publish(&mut self, now_ns: u64, cx: &mut Context, intended_ns: u64) {
        self.publish_letter(now_ns, cx, intended_ns);
    }

    fn may_beat(&self) -> bool {
        self.is_up() && self.mark_ns == 0 && self.may_write()
    }

    fn beat(&mut self, now_ns: u64, intended_ns: u64, cx: &mut Context) {
        debug_assert!(intended_ns <= now_ns, "nothing is sent before its time");
        if self.may_beat() {
            self.write_ping(cx);
            self.mark_ns = intended_ns;
        }
    }

    fn may_step_away(&self, cx: &Context) -> bool {
        self.is_up() && self.outstanding() == 0 && !cx.population.is_publisher(self.user)
    }

    fn step_away(&mut self, now_ns: u64, cx: &mut Context, manner: Manner) {
        self.away = true;
        let farewell = match manner {
            Manner::LogOut | Manner::CloseFrame => A::farewell(cx),
            Manner::Abrupt => Vec::new(),
        };
        self.let_go(cx, farewell);
        if cx.population.part(self.user).visits {
            // Until it is called again.
            self.enter(Stage::Waiting, now_ns);
            return;
        }
        let (min, max) = cx.settings.away_ns;
        let wait_ns = cx.random.u64(min..=max.max(min));
        self.connect_later(now_ns, wait_ns.max(NS_PER_MS));
    }

    fn break_off(&mut self, now_ns: u64, cx: &mut Context, back_ns: u64) {
        self.away = true;
        self.let_go(cx, Vec::new());
        self.connect_later(now_ns, back_ns.max(NS_PER_MS));
    }

    fn owed_to(population: &Population) -> Range<u32> {
        0..population.users
    }

    fn owed(&self, cx: &Context) -> u64 {
        let mut owed = 0;
        if self.is_up() {
            self.owed_ranges(cx, |stream, from, to| {
                owed += u64::from(cx.streams.certain_in(stream, from, to));
            });
        }
        owed
    }

    fn note_rest(&self, cx: &Context, log: &mut Log) {
        if A::answer(&cx.settings) == Answer::Acknowledgement
            && let Some(letters) = &self.letters
        {
            letters.doubt_written(&cx.streams);
        }
        if self.is_up() {
            let user = self.user;
            self.owed_ranges(cx, |stream, from, to| {
                log.stream_owed.push(StreamGap { user, stream, from, to });
            });
        }
    }
}
