//! Messages of other people's servers as streams: the numbers 1, 2, 3 … of one sender to one place.
//! Servers give no sequences of their own, so the sender numbers, and the receiver judges.
//!
//! [`Streams`] is what all threads know: how far each sender is, and which of its messages nobody
//! may rely on. A [`Track`] is what one receiver knows of one stream. [`judge`] is the verdict. As
//! with a live room, a receiver is owed what was written while its session was up; what came while
//! it had none is missed, and no fault.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    log::{FaultKind, Log},
    population::{Population, Target},
    record::{Counter, Counters},
    verify::Verdict,
};

/// Streams from one user to others.
const LANES: u32 = 2;
/// Holes that a track remembers; more than that is a failed run anyway.
const HOLES_MAX: usize = 10_000;

/// The one topic that has many subscribers. No other group exists here.
pub const ROOM: Target = Target::group(0);

/// Messages of a stream that a receiver did not get: numbers, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamGap {
    /// The receiver.
    pub user: u32,
    /// The stream.
    pub stream: u32,
    /// The first missing number.
    pub from: u32,
    /// The last one.
    pub to: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Streams {
    users: u32,
    /// Everybody writes to itself, as to an echo.
    to_oneself: bool,
    written: Box<[AtomicU32]>,
    /// Ranges of a stream that may have been lost on the way there: (stream, from) → to, disjoint.
    doubts: Mutex<BTreeMap<(u32, u32), u32>>,
}

impl Streams {
    /// For so many users.
    pub fn new(users: u32, to_oneself: bool) -> Self {
        let count = users as usize * LANES as usize + 1;
        let written = (0..count).map(|_| AtomicU32::new(0)).collect();
        Self { users, to_oneself, written, doubts: Mutex::default() }
    }

    /// Whom a user writes to; `choice` is any number.
    pub fn partner(&self, population: &Population, user: u32, choice: u32) -> u32 {
        if self.to_oneself { user } else { population.contact(user, choice) }
    }

    /// The stream of a sender to a target; `None`: it never writes there.
    pub fn of(&self, population: &Population, sender: u32, target: Target) -> Option<u32> {
        if target == ROOM {
            return population.is_publisher(sender).then_some(self.users * LANES);
        }
        if sender >= self.users {
            return None;
        }
        let partner = |choice| self.partner(population, sender, choice) == target.index();
        (0..LANES).find(|lane| partner(*lane)).map(|lane| sender * LANES + lane)
    }

    /// Whether it is the stream to the room.
    pub const fn is_room(&self, stream: u32) -> bool {
        stream == self.users * LANES
    }

    /// Every stream that a user is to receive.
    pub fn to(&self, population: &Population, user: u32) -> impl Iterator<Item = u32> {
        // Contacts are near; see `Population::contact`.
        let near = if self.to_oneself { user..user + 1 } else { user.saturating_sub(3)..user + 4 };
        let inbox = near.filter(move |sender| self.to_oneself || *sender != user);
        let inbox = inbox.filter_map(move |sender| self.of(population, sender, Target::user(user)));
        let hears_room = population.is_room_member(user) && !population.is_publisher(user);
        inbox.chain(hears_room.then_some(self.users * LANES))
    }

    /// The number of the message that is to be written next. The first one is 1.
    pub fn next(&self, stream: u32) -> u32 {
        self.written[stream as usize].fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the last message written; whoever hears now that it is subscribed must get
    /// every later one.
    pub fn written(&self, stream: u32) -> u32 {
        self.written[stream as usize].load(Ordering::Acquire)
    }

    /// Messages that may not have reached the server: receivers may lack them.
    pub fn doubt(&self, stream: u32, from: u32, to: u32) {
        if from <= to {
            self.doubts().insert((stream, from), to);
        }
    }

    /// How many numbers of a range (both ends inclusive) every receiver must have.
    pub fn certain_in(&self, stream: u32, from: u32, to: u32) -> u32 {
        if from > to {
            return 0;
        }
        let doubts = self.doubts();
        let doubtful = doubts.range((stream, 0)..=(stream, to));
        let overlap = doubtful.map(|((_, start), end)| {
            let (first, last) = (from.max(*start), to.min(*end));
            if first <= last { last - first + 1 } else { 0 }
        });
        (to - from + 1).saturating_sub(overlap.sum())
    }

    fn doubts(&self) -> MutexGuard<'_, BTreeMap<(u32, u32), u32>> {
        // A map of numbers is whole whatever a thread was doing to it.
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The first time.
    New,
    /// The first time, but after a higher number.
    Late,
    /// Once more.
    Again,
}

/// What one receiver knows of one stream, within one session.
#[derive(Debug)]
pub struct Track {
    /// Which stream.
    pub stream: u32,
    /// The first number that must arrive.
    certain_from: u32,
    /// The highest that arrived; 0: none.
    last: u32,
    /// What is missing below it, ascending.
    holes: Vec<(u32, u32)>,
}

impl Track {
    /// A receiver that is owed everything after `written`.
    pub const fn new(stream: u32, written: u32) -> Self {
        Self { stream, certain_from: written + 1, last: 0, holes: Vec::new() }
    }

    /// A message arrived. Answers how, and a gap that was forgotten because there are too many.
    pub fn arrived(&mut self, number: u32) -> (Arrival, Option<(u32, u32)>) {
        if number > self.last {
            let (from, to) = (self.owed_from(), number - 1);
            self.last = number;
            let forgotten = if from > to {
                None
            } else if self.holes.len() < HOLES_MAX {
                self.holes.push((from, to));
                None
            } else {
                Some((from, to))
            };
            return (Arrival::New, forgotten);
        }
        let at = self.holes.partition_point(|(_, to)| *to < number);
        match self.holes.get(at).copied() {
            Some((from, to)) if from <= number => {
                self.holes.remove(at);
                if number < to {
                    self.holes.insert(at, (number + 1, to));
                }
                if from < number {
                    self.holes.insert(at, (from, number - 1));
                }
                (Arrival::Late, None)
            }
            _ => (Arrival::Again, None),
        }
    }

    /// What is missing between arrivals.
    pub fn holes(&self) -> &[(u32, u32)] {
        &self.holes
    }

    /// The same, and forgets it: the session is over.
    pub fn take_holes(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.holes)
    }

    /// The first number after the last arrival that must still come.
    pub fn owed_from(&self) -> u32 {
        self.certain_from.max(self.last + 1)
    }
}

/// Adds the faults of the streams to the verdict, once every thread has handed over what it knows.
pub fn judge(streams: &Streams, log: &Log, counters: &Counters, verdict: &mut Verdict) {
    let mut lost = 0;
    for gap in log.stream_gaps.iter().chain(&log.stream_owed) {
        let StreamGap { user, stream, from, to } = *gap;
        let missing = streams.certain_in(stream, from, to);
        let (kind, what) = match streams.is_room(stream) {
            true => (FaultKind::RoomLost, "the room".to_owned()),
            false => (FaultKind::Lost, format!("user {}", stream / LANES)),
        };
        for _ in 0..missing {
            verdict.faults.add(kind, || {
                format!("user {user} never got {missing} of the messages {from} to {to} of {what}")
            });
        }
        if kind == FaultKind::Lost {
            lost += u64::from(missing);
        }
    }
    verdict.acked = counters.get(Counter::Acked);
    verdict.found = counters.get(Counter::Received);
    verdict.expected = verdict.found + lost;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Arrival, ROOM, StreamGap, Streams, Track, judge};
    use crate::{
        log::{FaultKind, Log},
        population::{Population, Target},
        record::Counters,
        verify::Verdict,
    };

    #[test]
    fn whoever_is_written_to_knows_every_stream_that_comes_and_no_other() {
        for users in [1, 2, 3, 5, 6, 7, 100] {
            for to_oneself in [true, false] {
                if users == 1 && !to_oneself {
                    continue;
                }
                let mut population = Population::uniform(users, 0.0, "load", 1);
                population.room_size = users.min(4);
                let streams = Streams::new(users, to_oneself);
                let (mut out, mut into) = (BTreeSet::new(), BTreeSet::new());
                for user in 0..users {
                    for choice in 0..4 {
                        let partner = streams.partner(&population, user, choice);
                        let stream = streams.of(&population, user, Target::user(partner));
                        out.insert((stream.expect("it writes there"), partner));
                    }
                    let inbox = streams.to(&population, user);
                    into.extend(inbox.filter(|one| !streams.is_room(*one)).map(|one| (one, user)));
                }
                assert_eq!(out, into, "{users} users, to oneself: {to_oneself}");
            }
        }
        let mut population = Population::uniform(10, 0.0, "load", 1);
        (population.room_first, population.room_size) = (2, 5);
        let streams = Streams::new(10, false);
        let hears = |user| streams.to(&population, user).any(|stream| streams.is_room(stream));
        let members: Vec<u32> = (0..10).filter(|user| hears(*user)).collect();
        assert_eq!(members, [3, 4, 5, 6], "the publisher does not hear itself");
        assert!(streams.of(&population, 2, ROOM).is_some());
        assert_eq!(streams.of(&population, 3, ROOM), None);
        assert_eq!(streams.of(&population, 3, Target::user(9)), None);
        assert_eq!(streams.of(&population, 99, Target::user(9)), None);
    }

    #[test]
    fn a_track_agrees_with_a_plain_set_whatever_the_order() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut track, mut seen) = (Track::new(0, 0), BTreeSet::new());
            for _ in 0..80 {
                let number = random.u32(1..50);
                let highest = seen.last().copied().unwrap_or(0);
                let expected = match seen.insert(number) {
                    false => Arrival::Again,
                    true if number < highest => Arrival::Late,
                    true => Arrival::New,
                };
                assert_eq!(track.arrived(number), (expected, None), "seed {seed}");
            }
            let highest = seen.last().copied().expect("not empty");
            assert_eq!(track.owed_from(), highest + 1);
            let missing: BTreeSet<u32> =
                track.holes().iter().flat_map(|(from, to)| *from..=*to).collect();
            let expected: BTreeSet<u32> = (1..highest).filter(|n| !seen.contains(n)).collect();
            assert_eq!(missing, expected, "seed {seed}");
        }
    }

    #[test]
    fn a_session_is_owed_what_was_written_after_it_began() {
        let mut track = Track::new(0, 5);
        assert_eq!(track.owed_from(), 6);
        assert_eq!(track.arrived(4).0, Arrival::New, "a subscription may take effect early");
        assert_eq!(track.arrived(8).0, Arrival::New);
        assert_eq!(track.holes(), [(6, 7)]);
        assert_eq!(track.arrived(7).0, Arrival::Late);
        assert_eq!(track.arrived(7).0, Arrival::Again);
        assert_eq!(track.holes(), [(6, 6)]);
    }

    #[test]
    fn what_never_surely_reached_the_server_is_no_loss() {
        let streams = Streams::new(4, false);
        (0..100).for_each(|_| {
            streams.next(2);
        });
        streams.doubt(2, 10, 19);
        streams.doubt(2, 50, 50);
        streams.doubt(2, 50, 50);
        streams.doubt(3, 1, 100);
        assert_eq!(streams.certain_in(2, 1, 100), 89);
        assert_eq!(streams.certain_in(2, 15, 50), 36 - 5 - 1);
        assert_eq!(streams.certain_in(2, 10, 19), 0);
        assert_eq!(streams.certain_in(2, 20, 19), 0);
        let gap = |stream, from, to| StreamGap { user: 1, stream, from, to };
        let log = Log {
            stream_gaps: vec![gap(2, 9, 11)],
            stream_owed: vec![gap(2, 100, 100), gap(8, 1, 2)],
            ..Log::default()
        };
        let mut verdict = Verdict::default();
        judge(&streams, &log, &Counters::default(), &mut verdict);
        assert_eq!(verdict.faults.count(FaultKind::Lost), 2);
        assert_eq!(verdict.faults.count(FaultKind::RoomLost), 2);
        assert_eq!(verdict.expected, 2);
    }
}
