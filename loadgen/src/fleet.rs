//! The users of one thread, whatever they speak: ramp, schedule, timers, and the talk with whoever leads the
//! run.
//!
//! Users are dealt to the threads in turn: user u lives on thread u mod threads.

use std::{collections::VecDeque, io, ops::Range, sync::Arc};

use crate::{
    client::{Context, Manner, NS_PER_MS, Standing, Wish},
    control::{Control, Phase, Slot, Snapshot},
    driver::{Action, Fleet},
    load::{Load, Moment, Place, locals},
    log::Log,
    pacer::Pacer,
    population::Target,
    preflight::Sources,
    record::{Counter, Metric, Recorder},
    scenario::plan::{Act, Plan},
    slow::{SlowReaders, Turn},
    timers::{SLOT_NS, Timers},
    user::User,
    windows::{Part, Windows},
};

/// What one thread has to do.
#[derive(Clone, Debug)]
pub struct Share {
    /// Which thread, of how many.
    pub thread: u32,
    /// How many threads.
    pub threads: u32,
    /// Connections opened per second, by this thread.
    pub ramp_per_second: f64,
    /// Who the users are, what they do and when.
    pub plan: Arc<Plan>,
    /// When the ramp begins: the same moment for all threads.
    pub ramp_start_ns: u64,
    /// Length of a window of the time line.
    pub window_ns: u64,
    /// Windows of a part of the run at most.
    pub windows_max: usize,
    /// Where they connect from.
    pub sources: Sources,
    /// Which process this is of the ones that share the load.
    pub place: Place,
    /// Somebody takes what was measured while the run goes on.
    pub streams: bool,
}

/// Connections that may be in the making at once: a ramp faster than the server waits.
const CONNECTING_MAX: usize = 1024;
/// Random users looked at for one that fits.
const CHOICES_MAX: u32 = 1000;
/// Pulls of the verifier that may be on their way at once.
const REPAIRS_IN_FLIGHT_MAX: u64 = 256;
/// How often the thread publishes its state.
const PUBLISH_NS: u64 = 100 * NS_PER_MS;

/// How many users stand where, kept up at every change: with a million users nobody counts them
/// ten times a second.
struct Tally {
    counts: [usize; 7],
    outstanding: u64,
    /// What each user was counted as.
    counted: Vec<(Standing, u16)>,
}

impl Tally {
    fn new(users: usize) -> Self {
        let mut counts = [0; 7];
        counts[Standing::Absent as usize] = users;
        Self { counts, outstanding: 0, counted: vec![(Standing::Absent, 0); users] }
    }

    fn update(&mut self, index: u32, client: &impl User) {
        let (standing, outstanding) = &mut self.counted[index as usize];
        let (now_standing, now_outstanding) = (client.standing(), client.outstanding() as u16);
        self.counts[*standing as usize] -= 1;
        self.counts[now_standing as usize] += 1;
        self.outstanding -= u64::from(*outstanding);
        self.outstanding += u64::from(now_outstanding);
        (*standing, *outstanding) = (now_standing, now_outstanding);
    }

    fn is(&self, index: u32, standing: Standing) -> bool {
        self.counted[index as usize].0 == standing
    }

    fn of(&self, standing: Standing) -> usize {
        self.counts[standing as usize]
    }
}

/// See the module.
pub struct ChatFleet<U> {
    control: Arc<Control>,
    share: Share,
    clients: Vec<U>,
    cx: Context,
    timers: Timers,
    actions: VecDeque<Action>,
    due: Vec<u32>,
    ramp: Pacer,
    ramp_next: u32,
    tally: Tally,
    /// The schedules, once the load has begun.
    load: Option<Load>,
    slow: SlowReaders,
    /// Users below this index write their next message when the last one is acknowledged …
    closed_below: u32,
    /// … until then.
    closed_until_ns: u64,
    /// Visitors and when they go, in order, and where to look for the next one to call.
    visits: VecDeque<(u64, u32)>,
    next_visitor: u32,
    leaving: Option<(Pacer, u32)>,
    publish_due_ns: u64,
    now_ns: u64,
}

impl<U: User> ChatFleet<U> {
    /// The users of one thread; nothing is opened before the first `advance`.
    pub fn new(control: Arc<Control>, share: Share, mut cx: Context, now_ns: u64) -> Self {
        let population = &cx.population;
        let users = (share.thread..population.users).step_by(share.threads as usize);
        let clients: Vec<U> = users.map(|user| U::new(user, population)).collect();
        let count = clients.len();
        let visitors = clients.iter().filter(|one| population.part(one.user()).visits).count();
        let arriving = count - visitors;
        let ramp_ns = (arriving as f64 / share.ramp_per_second * 1e9).ceil() as u64;
        let phase = share.place.phase(share.thread, share.threads);
        cx.record.windows = Windows::new(share.window_ns, share.windows_max);
        if share.streams {
            cx.record.windows.keep_fresh();
        }
        cx.record.windows.begin(share.ramp_start_ns);
        Self {
            timers: Timers::new(count, now_ns),
            ramp: Pacer::new(share.ramp_per_second, share.ramp_start_ns, ramp_ns, phase),
            clients,
            control,
            share,
            cx,
            actions: VecDeque::new(),
            due: Vec::new(),
            ramp_next: 0,
            tally: Tally::new(count),
            load: None,
            slow: SlowReaders::default(),
            closed_below: 0,
            closed_until_ns: 0,
            visits: VecDeque::new(),
            next_visitor: 0,
            leaving: None,
            publish_due_ns: 0,
            now_ns,
        }
    }

    /// How many connections the thread has.
    pub fn stations(&self) -> usize {
        self.clients.len()
    }

    /// Latencies, counters and ends of sessions, after the run.
    pub fn into_records(mut self) -> (Recorder, crate::client::Endings, Vec<String>) {
        let ready = self.tally.of(Standing::Ready) as u64;
        let record = &mut self.cx.record;
        record.windows.close(&record.counters, ready);
        let slot = &self.control.slots[self.share.thread as usize];
        slot.give_fresh(record.windows.take_fresh());
        (self.cx.record, self.cx.endings, self.cx.errors)
    }

    /// The present moment, for whoever needs it without being told.
    fn observe(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.cx.record.now_ns = now_ns;
    }

    fn slot(&self) -> &Slot {
        &self.control.slots[self.share.thread as usize]
    }

    /// After a client was told something: perform its wish, write its output, arm its timer.
    fn settle(&mut self, index: u32) {
        let client = &mut self.clients[index as usize];
        if client.user() < self.closed_below
            && client.is_ready()
            && client.outstanding() == 0
            && self.now_ns < self.closed_until_ns
        {
            let choice = self.cx.random.u32(..);
            let contact = U::partner(&self.cx, client.user(), choice);
            client.send(self.now_ns, &mut self.cx, Target::user(contact), self.now_ns);
        }
        match client.take_wish() {
            Some(Wish::Connect(address)) => {
                let source = self.share.sources.of(client.user(), address.ip());
                self.actions.push_back(Action::Connect { index, address, source });
            }
            Some(Wish::Close { farewell }) => {
                self.actions.push_back(Action::Close { index, farewell });
            }
            None => {}
        }
        if client.has_output() {
            self.actions.push_back(Action::Send { index });
        }
        let deadline_ns = client.deadline_ns(&self.cx);
        if deadline_ns != u64::MAX {
            self.timers.arm(index, deadline_ns);
        }
        client.rest();
        let was_ready = self.tally.is(index, Standing::Ready);
        self.tally.update(index, client);
        if client.is_ready() && !was_ready && self.cx.population.part(client.user()).visits {
            self.visits.push_back((self.now_ns + self.share.plan.visit_ns, index));
        }
    }

    fn advance_ramp(&mut self, now_ns: u64) {
        while (self.ramp_next as usize) < self.clients.len()
            && self.tally.of(Standing::Connecting) < CONNECTING_MAX
        {
            let user = self.clients[self.ramp_next as usize].user();
            if self.cx.population.part(user).visits {
                self.ramp_next += 1;
                continue;
            }
            // The last moment of the schedule may be rounded away; the last users still come.
            let intended_ns = match self.ramp.take_due(now_ns) {
                Some(intended_ns) => intended_ns,
                None if self.ramp.next_ns().is_some() => return,
                None => now_ns,
            };
            let index = self.ramp_next;
            self.ramp_next += 1;
            self.clients[index as usize].start(now_ns, intended_ns, &self.cx);
            self.settle(index);
        }
    }

    fn advance_load(&mut self, now_ns: u64) {
        let mut load = match self.load.take() {
            Some(load) => load,
            None => self.begin_load(now_ns),
        };
        if let Some(cut_ns) = self.control.load_cut_ns()
            && load.cut(cut_ns)
        {
            self.closed_until_ns = self.closed_until_ns.min(cut_ns);
            self.cx.record.windows.begin(cut_ns);
        }
        while let Some(tick_ns) = load.take_tick(now_ns) {
            self.cx.record.record(Metric::Late, now_ns - tick_ns);
        }
        while let Some(moment) = load.take_due(now_ns) {
            self.perform(now_ns, &moment);
        }
        while let Some(turn) = self.slow.take_due(now_ns) {
            self.actions.push_back(match turn {
                Turn::Pause(index) => Action::Pause { index },
                Turn::Resume(index) => Action::Resume { index },
            });
        }
        self.load = Some(load);
    }

    fn begin_load(&mut self, now_ns: u64) -> Load {
        let start_ns = self.control.load_start_ns();
        let Share { plan, thread, threads, place, .. } = self.share.clone();
        let load = Load::new(&plan, (thread, threads), place, start_ns);
        for stage in &plan.stages {
            self.cx.record.windows.begin(start_ns + stage.offset_ns);
        }
        self.cx.record.windows.begin(load.end_ns());
        let pause_ns = |client: &U| {
            let pause_ms = self.cx.population.part(client.user()).slow_reader_pause_ms;
            u64::from(pause_ms) * NS_PER_MS
        };
        let clients = self.clients.iter().enumerate();
        let slow: Vec<(u32, u64)> = clients
            .map(|(index, client)| (index as u32, pause_ns(client)))
            .filter(|(_, pause_ns)| *pause_ns > 0)
            .collect();
        self.slow = SlowReaders::new(&slow, start_ns);
        self.go_flat_out(now_ns);
        (self.closed_below, self.closed_until_ns) = (plan.chat_closed_below, load.end_ns());
        for index in locals(&(0..self.closed_below), thread, threads) {
            if (index as usize) < self.clients.len() {
                self.settle(index);
            }
        }
        load
    }

    /// Does what a schedule wants now.
    fn perform(&mut self, now_ns: u64, moment: &Moment) {
        let (users, intended_ns) = (moment.users.clone(), moment.intended_ns);
        // Who is away by itself does not send.
        let is_here = |client: &U, _: &Context| !client.is_away();
        let is_ready = |client: &U, _: &Context| client.is_ready();
        match moment.act {
            Act::Churn => {
                if let Some(index) = self.choose(users, U::may_step_away) {
                    let manner = Manner::ALL[self.cx.random.usize(0..Manner::ALL.len())];
                    self.cx.record.counters.add(Counter::Churned);
                    self.clients[index as usize].step_away(now_ns, &mut self.cx, manner);
                    self.settle(index);
                }
            }
            Act::Storm => {
                let may_break = |client: &U, cx: &Context| {
                    client.is_ready() && !cx.population.is_publisher(client.user())
                };
                if let Some(index) = self.choose(users, may_break) {
                    let back_ns = self.cx.random.u64(0..=self.share.plan.storm_back_ns);
                    self.cx.record.counters.add(Counter::Stormed);
                    self.clients[index as usize].break_off(now_ns, &mut self.cx, back_ns);
                    self.settle(index);
                }
            }
            Act::Room => {
                let index = users.start;
                self.late(intended_ns);
                self.clients[index as usize].publish(now_ns, &mut self.cx, intended_ns);
                self.settle(index);
            }
            Act::Single => {
                let Some(index) = self.choose(users, is_here) else { return };
                let user = self.clients[index as usize].user();
                let choice = self.cx.random.u32(..);
                let contact = U::partner(&self.cx, user, choice);
                self.dispatch(index, Target::user(contact), intended_ns);
            }
            Act::Group => {
                let Some(index) = self.choose(users, is_here) else { return };
                let user = self.clients[index as usize].user();
                if let Some(group) = self.cx.population.group_of(user) {
                    self.dispatch(index, Target::group(group), intended_ns);
                }
            }
            Act::Heartbeat => {
                let may_beat = |client: &U, _: &Context| client.may_beat();
                if let Some(index) = self.choose(users, may_beat) {
                    self.late(intended_ns);
                    self.clients[index as usize].beat(now_ns, intended_ns, &mut self.cx);
                    self.settle(index);
                }
            }
            Act::Call => {
                if let Some(index) = self.next_absent(users) {
                    self.late(intended_ns);
                    self.cx.record.counters.add(Counter::Called);
                    self.clients[index as usize].call(now_ns, intended_ns, &self.cx);
                    self.settle(index);
                }
            }
            Act::Custom(number) => {
                let Some(index) = self.choose(users, is_ready) else { return };
                self.late(intended_ns);
                let client = &mut self.clients[index as usize];
                client.send_custom(now_ns, &mut self.cx, number, intended_ns);
                self.settle(index);
            }
        }
    }

    /// How late the generator itself is with something that it could have done in time.
    fn late(&mut self, intended_ns: u64) {
        let late_ns = self.now_ns.saturating_sub(intended_ns);
        self.cx.record.record(Metric::Late, late_ns);
    }

    /// The next visitor in turn who is not there.
    fn next_absent(&mut self, users: Range<u32>) -> Option<u32> {
        for _ in 0..users.len().min(CHOICES_MAX as usize) {
            let index = self.next_visitor.clamp(users.start, users.end - 1);
            self.next_visitor = if index + 1 < users.end { index + 1 } else { users.start };
            if self.tally.is(index, Standing::Absent) {
                return Some(index);
            }
        }
        self.cx.record.counters.add(Counter::NobodyThere);
        None
    }

    /// Visitors whose time is over go.
    fn advance_visits(&mut self, now_ns: u64) {
        while let Some((_, index)) = self.visits.front().copied().filter(|(at, _)| *at <= now_ns) {
            self.visits.pop_front();
            if self.clients[index as usize].is_ready() {
                self.clients[index as usize].step_away(now_ns, &mut self.cx, Manner::LogOut);
                self.settle(index);
            }
        }
    }

    /// The closed loop: everybody below the index beats now, and at every answer.
    fn go_flat_out(&mut self, now_ns: u64) {
        let below = self.share.plan.beats_closed_below;
        self.cx.flat_out_below = below;
        for index in 0..self.clients.len() as u32 {
            let client = &mut self.clients[index as usize];
            if client.user() >= below {
                return;
            }
            client.beat(now_ns, now_ns, &mut self.cx);
            self.settle(index);
        }
    }

    /// A random user of these of whom `fits` is true. Counts a miss when they are hardly to be found.
    fn choose(&mut self, users: Range<u32>, fits: impl Fn(&U, &Context) -> bool) -> Option<u32> {
        for _ in 0..CHOICES_MAX {
            let index = self.cx.random.u32(users.clone());
            if fits(&self.clients[index as usize], &self.cx) {
                return Some(index);
            }
        }
        self.cx.record.counters.add(Counter::NobodyThere);
        None
    }

    fn dispatch(&mut self, index: u32, target: Target, intended_ns: u64) {
        // The lateness is the generator's own only while the user could have sent in time.
        if self.clients[index as usize].is_ready() {
            self.late(intended_ns);
        }
        let client = &mut self.clients[index as usize];
        client.send(self.now_ns, &mut self.cx, target, intended_ns);
        self.settle(index);
    }

    fn advance_leave(&mut self, now_ns: u64) {
        let ramp_per_second = self.share.ramp_per_second;
        let count = self.clients.len();
        let (mut pacer, mut next) = self.leaving.take().unwrap_or_else(|| {
            let span_ns = (count as f64 / ramp_per_second * 1e9).ceil() as u64;
            (Pacer::new(ramp_per_second, now_ns, span_ns, 0.0), 0)
        });
        while (next as usize) < count
            && (pacer.take_due(now_ns).is_some() || pacer.next_ns().is_none())
        {
            self.clients[next as usize].finish(now_ns, &mut self.cx);
            self.settle(next);
            next += 1;
        }
        self.leaving = Some((pacer, next));
    }

    fn advance_repairs(&mut self, now_ns: u64) {
        while self.cx.pulls_outstanding < REPAIRS_IN_FLIGHT_MAX {
            let Some(repair) = self.slot().next_repair() else { return };
            let index = repair.user / self.share.threads;
            let client = &mut self.clients[index as usize];
            client.pull_for_verifier(now_ns, &mut self.cx, repair);
            self.settle(index);
        }
    }

    /// The users of this thread who may be owed messages that no counter knows of.
    fn owed_to(&self) -> impl Iterator<Item = &U> {
        let owed_to = U::owed_to(&self.cx.population);
        let places = locals(&owed_to, self.share.thread, self.share.threads);
        self.clients[places.start as usize..places.end as usize].iter()
    }

    /// Messages that they still wait for.
    fn owed(&self) -> u64 {
        self.owed_to().map(|client| client.owed(&self.cx)).sum()
    }

    fn publish(&mut self, now_ns: u64) {
        self.publish_due_ns = now_ns + PUBLISH_NS;
        let snapshot = Snapshot {
            counters: self.cx.record.counters.clone(),
            ready: self.tally.of(Standing::Ready) as u64,
            done: self.tally.of(Standing::Done) as u64,
            absent: self.tally.of(Standing::Absent) as u64,
            outstanding: self.tally.outstanding,
            away: self.tally.of(Standing::Away) as u64 + self.tally.of(Standing::Leaving) as u64,
            seats: self.cx.seats,
            owed: if self.control.phase() >= Phase::Settle { self.owed() } else { 0 },
            pulls: self.cx.pulls_outstanding + self.slot().repairs_waiting(),
            records: self.cx.log.records() as u64,
            elsewhere: None,
            errors: self.cx.errors.clone(),
        };
        let slot = &self.control.slots[self.share.thread as usize];
        slot.publish(snapshot, |recent| self.cx.record.take_recent(recent));
        slot.give_fresh(self.cx.record.windows.take_fresh());
        if let Some(start_ns) = slot.wanted_part() {
            let record = &mut self.cx.record;
            record.windows.close(&record.counters, self.tally.of(Standing::Ready) as u64);
            let parts = record.windows.parts().iter();
            let part = parts.filter(|part| part.start_ns == start_ns).map(Part::total).next();
            let windows = vec![part.unwrap_or_default()];
            slot.give_part(Part { start_ns, windows });
        }
        if slot.is_log_wanted() {
            let mut log: Log = std::mem::take(&mut self.cx.log);
            self.clients.iter().for_each(|client| client.note_rest(&self.cx, &mut log));
            slot.give_log(log);
        }
    }
}

impl<U: User> Fleet for ChatFleet<U> {
    fn advance(&mut self, now_ns: u64) {
        self.observe(now_ns);
        let ready = self.tally.of(Standing::Ready) as u64;
        let record = &mut self.cx.record;
        record.windows.roll(now_ns, &record.counters, ready);
        let mut due = std::mem::take(&mut self.due);
        self.timers.expire(now_ns, &mut due);
        for index in due.drain(..) {
            self.clients[index as usize].tick(now_ns, &mut self.cx);
            self.settle(index);
        }
        self.due = due;
        self.advance_visits(now_ns);
        match self.control.phase() {
            Phase::Ramp => self.advance_ramp(now_ns),
            Phase::Hold => {}
            Phase::Load => self.advance_load(now_ns),
            Phase::Settle => {
                (self.cx.flat_out_below, self.closed_below) = (0, 0);
                while let Some(index) = self.slow.finish() {
                    self.actions.push_back(Action::Resume { index });
                }
                if self.load.is_some() {
                    // What was due at the very end of the load is still owed.
                    self.advance_load(now_ns);
                }
            }
            Phase::Verify => {
                self.cx.is_verifying = true;
                self.load = None;
                self.advance_repairs(now_ns);
            }
            Phase::Leave => self.advance_leave(now_ns),
        }
        if now_ns >= self.publish_due_ns {
            self.publish(now_ns);
        }
    }

    fn wake_ns(&self) -> u64 {
        let ramp = if self.control.phase() == Phase::Ramp { self.ramp.next_ns() } else { None };
        let load = self.load.as_ref().map_or(u64::MAX, Load::next_ns);
        let schedule = ramp.unwrap_or(u64::MAX).min(load);
        schedule.min(self.now_ns + SLOT_NS)
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn connected(&mut self, now_ns: u64, index: u32, result: io::Result<()>) {
        self.observe(now_ns);
        self.clients[index as usize].connected(now_ns, &mut self.cx, result);
        self.settle(index);
    }

    fn received(&mut self, now_ns: u64, index: u32, bytes: &mut [u8]) {
        self.observe(now_ns);
        self.clients[index as usize].received(now_ns, &mut self.cx, bytes);
        self.settle(index);
    }

    fn ended(&mut self, now_ns: u64, index: u32) {
        self.observe(now_ns);
        self.clients[index as usize].ended(now_ns, &mut self.cx);
        self.settle(index);
    }

    fn has_output(&self, index: u32) -> bool {
        self.clients[index as usize].has_output()
    }

    fn take_output(&mut self, now_ns: u64, index: u32) -> Vec<u8> {
        self.clients[index as usize].take_output(now_ns, &mut self.cx)
    }

    fn is_finished(&self) -> bool {
        let has_left = self.control.phase() == Phase::Leave
            && self.leaving.is_some()
            && self.tally.of(Standing::Done) == self.clients.len();
        has_left || self.control.is_abandoned()
    }
}
