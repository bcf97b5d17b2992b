//! What the thread that leads a run and the generator threads say to each other: a phase, a snapshot
//! of counters, the records, and pulls to make. Everything is looked at a few times a second and
//! bounded; nobody waits for anybody.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use crate::{
    log::{Log, Range},
    record::{Counters, Recent},
    windows::{Fresh, Part, merge_fresh},
};

/// Where the run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Connections are being opened.
    Ramp,
    /// All are up; nothing is sent but heartbeats.
    Hold,
    /// The schedule runs.
    Load,
    /// The schedule is over; what is on its way arrives.
    Settle,
    /// Nothing is sent any more, so that what was acknowledged stops growing; users pull what the
    /// verifier misses.
    Verify,
    /// Sessions are ended.
    Leave,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Ramp, Self::Hold, Self::Load, Self::Settle, Self::Verify, Self::Leave];

    /// For the progress line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ramp => "ramp",
            Self::Hold => "hold",
            Self::Load => "load",
            Self::Settle => "settle",
            Self::Verify => "verify",
            Self::Leave => "leave",
        }
    }
}

/// What processes use.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Processor time so far, seconds.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
}

/// A thread's state as it last published it.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// Counters so far.
    pub counters: Counters,
    /// Sessions that are up.
    pub ready: u64,
    /// Users that want no connection any more.
    pub done: u64,
    /// Users that are not there until somebody calls.
    pub absent: u64,
    /// Messages not yet acknowledged.
    pub outstanding: u64,
    /// Users that went by themselves and have not come back yet, without those connecting.
    pub away: u64,
    /// Members that have joined the room.
    pub seats: u64,
    /// Once the load is over: messages that users still wait for and that are in no counter, those of
    /// the room and of other people's servers.
    pub owed: u64,
    /// PULL_MESSAGES on their way, or still to be written.
    pub pulls: u64,
    /// Records held.
    pub records: u64,
    /// Processor time and memory of the generators, where they are other processes than this one.
    pub elsewhere: Option<Usage>,
    /// The first few errors in words.
    pub errors: Vec<String>,
}

/// One thread's side.
pub struct Slot {
    /// Published a few times a second.
    snapshot: Mutex<Snapshot>,
    /// Latencies and lateness since they were last taken.
    recent: Mutex<Recent>,
    /// Pulls to make; at most `verify::REPAIRS_MAX`.
    repairs: Mutex<VecDeque<Range>>,
    log_wanted: AtomicBool,
    log: Mutex<Option<Log>>,
    /// The beginning of the part of the run whose windows are wanted; 0: none is.
    part_wanted: AtomicU64,
    part: Mutex<Option<Part>>,
    /// What was measured since somebody last took it, if somebody does.
    fresh: Mutex<Fresh>,
}

/// See the module.
pub struct Control {
    phase: AtomicU8,
    load_start_ns: AtomicU64,
    /// When the load ends before its time; `u64::MAX`: it does not.
    load_cut_ns: AtomicU64,
    is_abandoned: AtomicBool,
    /// One for each thread.
    pub slots: Vec<Slot>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds this")
}

impl Slot {
    fn new() -> Self {
        Self {
            snapshot: Mutex::default(),
            recent: Mutex::default(),
            repairs: Mutex::default(),
            log_wanted: AtomicBool::new(false),
            log: Mutex::default(),
            part_wanted: AtomicU64::new(0),
            part: Mutex::default(),
            fresh: Mutex::default(),
        }
    }

    /// The thread's state.
    pub fn publish(&self, snapshot: Snapshot, take_recent: impl FnOnce(&mut Recent)) {
        *lock(&self.snapshot) = snapshot;
        take_recent(&mut lock(&self.recent));
    }

    /// The last published state.
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.snapshot).clone()
    }

    /// Moves what is recent into `into`.
    pub fn take_recent(&self, into: &mut Recent) {
        lock(&self.recent).take(into);
    }

    /// Gives the thread pulls to make.
    pub fn repair(&self, repairs: impl IntoIterator<Item = Range>) {
        lock(&self.repairs).extend(repairs);
    }

    /// The next pull to make.
    pub fn next_repair(&self) -> Option<Range> {
        lock(&self.repairs).pop_front()
    }

    /// Forgets the pulls that there was no time for.
    pub fn forget_repairs(&self) {
        lock(&self.repairs).clear();
    }

    /// Pulls still to be written.
    pub fn repairs_waiting(&self) -> u64 {
        lock(&self.repairs).len() as u64
    }

    /// Asks the thread for its records.
    pub fn want_log(&self) {
        self.log_wanted.store(true, Ordering::Release);
    }

    /// Whether the records are wanted; answers `true` once for each wish.
    pub fn is_log_wanted(&self) -> bool {
        self.log_wanted.swap(false, Ordering::AcqRel)
    }

    /// Asks the thread for what it measured in the part of the run that began then.
    pub fn want_part(&self, start_ns: u64) {
        self.part_wanted.store(start_ns, Ordering::Release);
    }

    /// When the part began that is wanted; once for each wish.
    pub fn wanted_part(&self) -> Option<u64> {
        Some(self.part_wanted.swap(0, Ordering::AcqRel)).filter(|start_ns| *start_ns > 0)
    }

    /// Hands a part over.
    pub fn give_part(&self, part: Part) {
        *lock(&self.part) = Some(part);
    }

    /// The part, when it has been handed over.
    pub fn take_part(&self) -> Option<Part> {
        lock(&self.part).take()
    }

    /// Adds what the thread measured lately.
    pub fn give_fresh(&self, fresh: Fresh) {
        merge_fresh(&mut lock(&self.fresh), fresh);
    }

    /// Takes what the thread measured lately.
    pub fn take_fresh(&self) -> Fresh {
        std::mem::take(&mut *lock(&self.fresh))
    }

    /// Hands the records over.
    pub fn give_log(&self, log: Log) {
        *lock(&self.log) = Some(log);
    }

    /// The records, when they have been handed over.
    pub fn take_log(&self) -> Option<Log> {
        lock(&self.log).take()
    }
}

impl Control {
    /// For so many threads.
    pub fn new(threads: usize) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Ramp as u8),
            load_start_ns: AtomicU64::new(0),
            load_cut_ns: AtomicU64::new(u64::MAX),
            is_abandoned: AtomicBool::new(false),
            slots: (0..threads).map(|_| Slot::new()).collect(),
        }
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Goes on to a phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Starts the load at a moment of the run.
    pub fn start_load(&self, at_ns: u64) {
        self.load_start_ns.store(at_ns, Ordering::Release);
        self.enter(Phase::Load);
    }

    /// Ends the load before its time.
    pub fn cut_load(&self, at_ns: u64) {
        self.load_cut_ns.store(at_ns, Ordering::Release);
    }

    /// When the load ends before its time, if it does.
    pub fn load_cut_ns(&self) -> Option<u64> {
        Some(self.load_cut_ns.load(Ordering::Acquire)).filter(|at_ns| *at_ns != u64::MAX)
    }

    /// Ends the threads at once, with whatever they are doing; their connections break.
    pub fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Release);
    }

    /// Whether the threads are to end at once.
    pub fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Acquire)
    }

    /// When the load starts.
    pub fn load_start_ns(&self) -> u64 {
        self.load_start_ns.load(Ordering::Acquire)
    }

    /// All threads' published states in one.
    pub fn snapshot(&self) -> Snapshot {
        let mut sum = Snapshot::default();
        for slot in &self.slots {
            sum.merge(slot.snapshot());
        }
        sum
    }
}

impl Snapshot {
    /// Adds another's state.
    pub fn merge(&mut self, one: Self) {
        self.counters.merge(&one.counters);
        self.ready += one.ready;
        self.done += one.done;
        self.absent += one.absent;
        self.outstanding += one.outstanding;
        self.away += one.away;
        self.seats += one.seats;
        self.owed += one.owed;
        self.pulls += one.pulls;
        self.records += one.records;
        if let Some(usage) = one.elsewhere {
            let sum = self.elsewhere.get_or_insert_default();
            sum.cpu_seconds += usage.cpu_seconds;
            sum.resident_bytes += usage.resident_bytes;
        }
        for error in one.errors {
            if !self.errors.contains(&error) {
                self.errors.push(error);
            }
        }
    }
}
