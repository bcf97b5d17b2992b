//! The chat users of one thread: ramp, schedule, timers, and the talk with the coordinator.
//!
//! Users are dealt to the threads in turn: user u lives on thread u mod threads.

use std::{collections::VecDeque, io, sync::Arc};

use crate::{
    client::{Client, Context, Manner, NS_PER_MS, Standing, Wish},
    control::{Control, Phase, Slot, Snapshot},
    driver::{Action, Fleet},
    log::Log,
    pacer::Pacer,
    preflight,
    record::{Counter, Metric, Recorder},
    room::PUBLISHER,
    scenario::Target,
    timers::{SLOT_NS, Timers},
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
    /// Single-chat messages per second, by this thread.
    pub single_per_second: f64,
    /// Group messages per second, by this thread.
    pub group_per_second: f64,
    /// Room messages per second. One thread publishes all of them: the one of the publisher.
    pub room_per_second: f64,
    /// Users of this thread that go for a while, per second.
    pub churn_per_second: f64,
    /// During the load, users below this index send heartbeats one after the other without a pause.
    pub flat_out_below: u32,
    /// Length of the schedule.
    pub load_ns: u64,
    /// Connections from one source address; 0: let the kernel choose the source.
    pub connections_per_source: u32,
}

/// Connections that may be in the making at once: a ramp faster than the server waits.
const CONNECTING_MAX: usize = 1024;
/// Random users looked at for one that fits.
const CHOICES_MAX: u32 = 1000;
/// Pulls of the verifier that may be on their way at once.
const REPAIRS_IN_FLIGHT_MAX: u64 = 256;
/// How often the thread publishes its state.
const PUBLISH_NS: u64 = 100 * NS_PER_MS;

/// The schedules of the load.
struct Load {
    single: Pacer,
    group: Pacer,
    room: Pacer,
    churn: Pacer,
}

impl Load {
    fn new(share: &Share, start_ns: u64) -> Self {
        let phase = f64::from(share.thread) / f64::from(share.threads);
        let pacer = |rate| Pacer::new(rate, start_ns, share.load_ns, phase);
        let publishes = share.thread == PUBLISHER % share.threads;
        Self {
            single: pacer(share.single_per_second),
            group: pacer(share.group_per_second),
            room: pacer(if publishes { share.room_per_second } else { 0.0 }),
            churn: pacer(share.churn_per_second),
        }
    }

    fn next_ns(&self) -> u64 {
        let all = [&self.single, &self.group, &self.room, &self.churn];
        all.into_iter().filter_map(Pacer::next_ns).min().unwrap_or(u64::MAX)
    }
}

/// How many users stand where, kept up at every change: with a million users nobody counts them
/// ten times a second.
struct Tally {
    counts: [usize; 6],
    outstanding: u64,
    /// What each user was counted as.
    counted: Vec<(Standing, u16)>,
}

impl Tally {
    fn new(users: usize) -> Self {
        let mut counts = [0; 6];
        counts[Standing::Waiting as usize] = users;
        Self { counts, outstanding: 0, counted: vec![(Standing::Waiting, 0); users] }
    }

    fn update(&mut self, index: u32, client: &Client) {
        let (standing, outstanding) = &mut self.counted[index as usize];
        let (now_standing, now_outstanding) = (client.standing(), client.outstanding() as u16);
        self.counts[*standing as usize] -= 1;
        self.counts[now_standing as usize] += 1;
        self.outstanding -= u64::from(*outstanding);
        self.outstanding += u64::from(now_outstanding);
        (*standing, *outstanding) = (now_standing, now_outstanding);
    }

    fn of(&self, standing: Standing) -> usize {
        self.counts[standing as usize]
    }
}

/// See the module.
pub struct ChatFleet {
    control: Arc<Control>,
    share: Share,
    clients: Vec<Client>,
    cx: Context,
    timers: Timers,
    actions: VecDeque<Action>,
    due: Vec<u32>,
    ramp: Pacer,
    ramp_next: u32,
    tally: Tally,
    /// The schedules, once the load has begun.
    load: Option<Load>,
    leaving: Option<(Pacer, u32)>,
    publish_due_ns: u64,
    now_ns: u64,
}

impl ChatFleet {
    /// The users of one thread; nothing is opened before the first `advance`.
    pub fn new(control: Arc<Control>, share: Share, cx: Context, now_ns: u64) -> Self {
        let population = &cx.population;
        let users = (share.thread..population.users).step_by(share.threads as usize);
        let clients: Vec<Client> =
            users.map(|user| Client::new(user, population.transport(user))).collect();
        let count = clients.len();
        let ramp_ns = (count as f64 / share.ramp_per_second * 1e9).ceil() as u64;
        let phase = f64::from(share.thread) / f64::from(share.threads);
        Self {
            timers: Timers::new(count, now_ns),
            ramp: Pacer::new(share.ramp_per_second, now_ns, ramp_ns, phase),
            clients,
            control,
            share,
            cx,
            actions: VecDeque::new(),
            due: Vec::new(),
            ramp_next: 0,
            tally: Tally::new(count),
            load: None,
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
    pub fn into_records(self) -> (Recorder, crate::client::Endings, Vec<String>) {
        (self.cx.record, self.cx.endings, self.cx.errors)
    }

    fn slot(&self) -> &Slot {
        &self.control.slots[self.share.thread as usize]
    }

    /// After a client was told something: perform its wish, write its output, arm its timer.
    fn settle(&mut self, index: u32) {
        let client = &mut self.clients[index as usize];
        match client.take_wish() {
            Some(Wish::Connect(address)) => {
                let source = preflight::source(
                    client.user(),
                    self.share.connections_per_source,
                    address.ip(),
                );
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
        self.tally.update(index, client);
    }

    fn advance_ramp(&mut self, now_ns: u64) {
        while (self.ramp_next as usize) < self.clients.len()
            && self.tally.of(Standing::Connecting) < CONNECTING_MAX
        {
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
        let start_ns = self.control.load_start_ns();
        let mut load = match self.load.take() {
            Some(load) => load,
            None => {
                self.go_flat_out(now_ns);
                Load::new(&self.share, start_ns)
            }
        };
        while load.churn.take_due(now_ns).is_some() {
            if let Some(index) = self.choose(Client::may_step_away) {
                let manner = Manner::ALL[self.cx.random.usize(0..Manner::ALL.len())];
                self.clients[index as usize].step_away(now_ns, &mut self.cx, manner);
                self.settle(index);
            }
        }
        while let Some(intended_ns) = load.room.take_due(now_ns) {
            let index = PUBLISHER / self.share.threads;
            self.cx.record.record(Metric::Late, now_ns.saturating_sub(intended_ns));
            self.clients[index as usize].publish(now_ns, &mut self.cx, intended_ns);
            self.settle(index);
        }
        while let Some(intended_ns) = load.single.take_due(now_ns) {
            // Who is away by itself does not send.
            let Some(index) = self.choose(|client| !client.is_away()) else { continue };
            let user = self.clients[index as usize].user();
            let contact = self.cx.population.contact(user, self.cx.random.u32(..));
            self.dispatch(index, Target::user(contact), intended_ns);
        }
        while let Some(intended_ns) = load.group.take_due(now_ns) {
            let grouped = self.cx.population.groups * self.cx.population.group_size;
            let here = grouped.saturating_sub(self.share.thread).div_ceil(self.share.threads);
            let is_here = |client: &Client| !client.is_away();
            let Some(index) = self.choose_below(here.max(1), is_here) else { continue };
            let user = self.clients[index as usize].user();
            if let Some(group) = self.cx.population.group_of(user) {
                self.dispatch(index, Target::group(group), intended_ns);
            }
        }
        self.load = Some(load);
    }

    /// The closed loop: everybody below the index beats now, and at every answer.
    fn go_flat_out(&mut self, now_ns: u64) {
        self.cx.flat_out_below = self.share.flat_out_below;
        for index in 0..self.clients.len() as u32 {
            let client = &mut self.clients[index as usize];
            if client.user() >= self.share.flat_out_below {
                return;
            }
            client.beat(now_ns, &mut self.cx);
            self.settle(index);
        }
    }

    /// A random user of this thread of whom `fits` is true.
    fn choose(&mut self, fits: impl Fn(&Client) -> bool) -> Option<u32> {
        self.choose_below(self.clients.len() as u32, fits)
    }

    /// The same among the first `count`. Counts a miss when they are hardly to be found.
    fn choose_below(&mut self, count: u32, fits: impl Fn(&Client) -> bool) -> Option<u32> {
        for _ in 0..CHOICES_MAX {
            let index = self.cx.random.u32(0..count);
            if fits(&self.clients[index as usize]) {
                return Some(index);
            }
        }
        self.cx.record.counters.add(Counter::NobodyThere);
        None
    }

    fn dispatch(&mut self, index: u32, target: Target, intended_ns: u64) {
        // The lateness is the generator's own only while the user could have sent in time.
        let client = &mut self.clients[index as usize];
        if client.is_ready() {
            self.cx.record.record(Metric::Late, self.now_ns.saturating_sub(intended_ns));
        }
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

    /// The members of the room: a thread has its part of the first users, as its first ones.
    fn members(&self) -> impl Iterator<Item = &Client> {
        let population = &self.cx.population;
        self.clients.iter().take_while(|client| population.is_room_member(client.user()))
    }

    /// Room messages that members still wait for.
    fn room_owed(&self) -> u64 {
        let board = &self.cx.board;
        let written = board.written();
        let owed = self.members().filter_map(|client| client.owed_by_room(written));
        owed.map(|gap| u64::from(board.certain_in(gap.from, gap.to))).sum()
    }

    fn publish(&mut self, now_ns: u64) {
        self.publish_due_ns = now_ns + PUBLISH_NS;
        let snapshot = Snapshot {
            counters: self.cx.record.counters.clone(),
            ready: self.tally.of(Standing::Ready) as u64,
            done: self.tally.of(Standing::Done) as u64,
            outstanding: self.tally.outstanding,
            away: self.tally.of(Standing::Away) as u64 + self.tally.of(Standing::Leaving) as u64,
            seats: self.cx.seats,
            room_owed: if self.control.phase() >= Phase::Settle { self.room_owed() } else { 0 },
            pulls: self.cx.pulls_outstanding + self.slot().repairs_waiting(),
            records: self.cx.log.records() as u64,
            errors: self.cx.errors.clone(),
        };
        let slot = &self.control.slots[self.share.thread as usize];
        slot.publish(snapshot, |recent| self.cx.record.take_recent(recent));
        if slot.is_log_wanted() {
            let mut log: Log = std::mem::take(&mut self.cx.log);
            log.unanswered.extend(self.clients.iter().flat_map(Client::unanswered));
            let written = self.cx.board.written();
            log.room_owed.extend(self.members().filter_map(|one| one.owed_by_room(written)));
            slot.give_log(log);
        }
    }
}

impl Fleet for ChatFleet {
    fn advance(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        let mut due = std::mem::take(&mut self.due);
        self.timers.expire(now_ns, &mut due);
        for index in due.drain(..) {
            self.clients[index as usize].tick(now_ns, &mut self.cx);
            self.settle(index);
        }
        self.due = due;
        match self.control.phase() {
            Phase::Ramp => self.advance_ramp(now_ns),
            Phase::Hold => {}
            Phase::Load => self.advance_load(now_ns),
            Phase::Settle => {
                self.cx.flat_out_below = 0;
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
        self.clients[index as usize].connected(now_ns, &mut self.cx, result);
        self.settle(index);
    }

    fn received(&mut self, now_ns: u64, index: u32, bytes: &mut [u8]) {
        self.clients[index as usize].received(now_ns, &mut self.cx, bytes);
        self.settle(index);
    }

    fn ended(&mut self, now_ns: u64, index: u32) {
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
        self.control.phase() == Phase::Leave
            && self.leaving.is_some()
            && self.tally.of(Standing::Done) == self.clients.len()
    }
}
