//! What the clients write down for the verifier: compact records of what was acknowledged and
//! what arrived, and the faults that can be seen at once.
//!
//! It draws no conclusion; `verify` does.

use std::sync::{Arc, Mutex};

use rustc_hash::FxHashMap;

use crate::{adapter::streams::StreamGap, population::Target};

/// A message of this run: its sender's index and a number the sender never uses again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    /// A message of another run.
    pub const FOREIGN: Self = Self(u64::MAX);

    /// The message `counter` of `sender`.
    pub const fn new(sender: u32, counter: u32) -> Self {
        Self((sender as u64) << 32 | counter as u64)
    }

    /// Who sent it.
    pub const fn sender(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The sender's number for it.
    pub const fn counter(self) -> u32 {
        self.0 as u32
    }

    /// The `client_message_id` of the message in this run.
    pub fn client_message_id(self, run: u32) -> String {
        format!("{run:08x}-{}-{}", self.sender(), self.counter())
    }

    /// Reads a `client_message_id`. `None`: it is of another run, or not of ours at all.
    pub fn parse(client_message_id: &str, run: u32) -> Option<Self> {
        let (head, rest) = client_message_id.split_at_checked(8)?;
        if u32::from_str_radix(head, 16).ok()? != run {
            return None;
        }
        let (sender, counter) = rest.strip_prefix('-')?.split_once('-')?;
        Some(Self::new(sender.parse().ok()?, counter.parse().ok()?))
    }
}

/// A stored message as its SendReply named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which message.
    pub key: Key,
    /// The sequence it got.
    pub sequence: u64,
    /// The interned conversation.
    pub conversation: u32,
    /// Where it was sent.
    pub target: Target,
}

/// The first arrival of one sequence at one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Which message it said it was.
    pub key: Key,
    /// Its sequence.
    pub sequence: u64,
    /// The interned conversation.
    pub conversation: u32,
    /// Who received it.
    pub user: u32,
}

/// A message that was sent and never acknowledged: stored or not, but never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Which message.
    pub key: Key,
    /// Where it was sent.
    pub target: Target,
}

/// A range of a conversation, as one user asks for it: both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// Who asks.
    pub user: u32,
    /// The interned conversation.
    pub conversation: u32,
    /// The first sequence.
    pub from: u64,
    /// The last sequence.
    pub to: u64,
}

/// Room messages that a member did not get between two that it did, or at the end: numbers, both
/// ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomGap {
    /// The member.
    pub user: u32,
    /// The first missing number.
    pub from: u32,
    /// The last one.
    pub to: u32,
}

/// What can be wrong with the messages and sessions of a run. Each fails the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum FaultKind {
    /// Acknowledged, and not to be had by a recipient, not even by pulling.
    Lost,
    /// Delivered twice on one connection.
    Duplicated,
    /// Delivered after a higher sequence of the same conversation and connection.
    OutOfOrder,
    /// A sequence of a conversation that holds no message.
    Gap,
    /// One message under two sequences.
    StoredTwice,
    /// Two messages under one sequence.
    SequenceReused,
    /// A delivered message that is not the one acknowledged under this sequence, or whose id,
    /// sender and body do not belong together.
    WrongMessage,
    /// Delivered to somebody who is no recipient.
    Misdelivered,
    /// Delivered under another sequence than the one it was acknowledged and stored under.
    WrongSequence,
    /// A room message that a member who stayed connected did not get.
    RoomLost,
    /// A room message that came twice.
    RoomDuplicated,
    /// A room message that came after a later one.
    RoomOutOfOrder,
    /// A room message to somebody who is no member, of another room or sender, or with another
    /// body.
    RoomWrong,
    /// A session that the server ended as idle before the time it had named at LOGIN.
    EarlyIdleClose,
    /// A heartbeat whose reply came later than allowed.
    HeartbeatLate,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::Lost,
        Self::Duplicated,
        Self::OutOfOrder,
        Self::Gap,
        Self::StoredTwice,
        Self::SequenceReused,
        Self::WrongMessage,
        Self::Misdelivered,
        Self::WrongSequence,
        Self::RoomLost,
        Self::RoomDuplicated,
        Self::RoomOutOfOrder,
        Self::RoomWrong,
        Self::EarlyIdleClose,
        Self::HeartbeatLate,
    ];

    /// The name in summaries and JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::OutOfOrder => "out_of_order",
            Self::Gap => "gap",
            Self::StoredTwice => "stored_twice",
            Self::SequenceReused => "sequence_reused",
            Self::WrongMessage => "wrong_message",
            Self::Misdelivered => "misdelivered",
            Self::RoomLost => "room_lost",
            Self::RoomDuplicated => "room_duplicated",
            Self::RoomOutOfOrder => "room_out_of_order",
            Self::RoomWrong => "room_wrong",
            Self::WrongSequence => "wrong_sequence",
            Self::EarlyIdleClose => "early_idle_close",
            Self::HeartbeatLate => "heartbeat_late",
        }
    }
}

/// How many examples of each kind are kept; all are counted.
pub const EXAMPLES_MAX: usize = 5;

/// Faults by kind, with a few examples in words.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    counts: [u64; FaultKind::ALL.len()],
    examples: Vec<(FaultKind, String)>,
}

impl Faults {
    /// Counts a fault; `describe` is called only while examples are still wanted.
    pub fn add(&mut self, kind: FaultKind, describe: impl FnOnce() -> String) {
        self.counts[kind as usize] += 1;
        if self.counts[kind as usize] <= EXAMPLES_MAX as u64 {
            self.examples.push((kind, describe()));
        }
    }

    /// Counts several, of some of which there is a description.
    pub fn add_many(
        &mut self,
        kind: FaultKind,
        count: u64,
        descriptions: &mut dyn Iterator<Item = &str>,
    ) {
        self.counts[kind as usize] += count;
        let known = self.examples.iter().filter(|(known, _)| *known == kind).count();
        let wanted = EXAMPLES_MAX.saturating_sub(known);
        self.examples.extend(descriptions.take(wanted).map(|text| (kind, text.to_owned())));
    }

    /// How many of a kind.
    pub fn count(&self, kind: FaultKind) -> u64 {
        self.counts[kind as usize]
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The examples.
    pub fn examples(&self) -> &[(FaultKind, String)] {
        &self.examples
    }

    /// Adds another's faults.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(mine, theirs)| *mine += theirs);
        for (kind, example) in &other.examples {
            if self.examples.iter().filter(|(known, _)| known == kind).count() < EXAMPLES_MAX {
                self.examples.push((*kind, example.clone()));
            }
        }
    }
}

/// Gaps looked through for one late room message.
const LATE_LOOKS_MAX: usize = 10_000;

/// The records of one thread.
#[derive(Debug, Default)]
pub struct Log {
    /// Acknowledged messages.
    pub acks: Vec<Ack>,
    /// Arrivals.
    pub receipts: Vec<Receipt>,
    /// Messages without an answer.
    pub unanswered: Vec<Unanswered>,
    /// Room messages that members did not get.
    pub room_gaps: Vec<RoomGap>,
    /// Room messages that members still wait for: as things stood when the records were handed
    /// over, so that later records replace it.
    pub room_owed: Vec<RoomGap>,
    /// Messages of a stream that its receivers did not get; see `adapter::streams`.
    pub stream_gaps: Vec<StreamGap>,
    /// Those that they still waited for when the records were handed over.
    pub stream_owed: Vec<StreamGap>,
    /// Ranges that the verifier asked for and got a good answer to. What such an answer did not
    /// bring is not there; about any other range nothing is known.
    pub answered: Vec<Range>,
    /// What was seen to be wrong on arrival.
    pub faults: Faults,
}

impl Log {
    /// Records held.
    pub fn records(&self) -> usize {
        let gaps = self.room_gaps.len() + self.stream_gaps.len();
        self.acks.len() + self.receipts.len() + self.unanswered.len() + gaps
    }

    /// A room message came after a later one: it is not missing any more.
    pub fn arrived_late(&mut self, user: u32, number: u32) {
        // Gaps are rare and late messages rarer; a flood of both is a failed run anyway.
        let recent = self.room_gaps.iter().rev().take(LATE_LOOKS_MAX);
        let mut found = recent
            .enumerate()
            .filter(|(_, gap)| gap.user == user && (gap.from..=gap.to).contains(&number));
        let Some(at) = found.next().map(|(back, _)| self.room_gaps.len() - 1 - back) else {
            return;
        };
        let RoomGap { user, from, to } = self.room_gaps.swap_remove(at);
        if from < number {
            self.room_gaps.push(RoomGap { user, from, to: number - 1 });
        }
        if number < to {
            self.room_gaps.push(RoomGap { user, from: number + 1, to });
        }
    }

    /// Adds another thread's records.
    pub fn merge(&mut self, mut other: Self) {
        self.acks.append(&mut other.acks);
        self.receipts.append(&mut other.receipts);
        self.unanswered.append(&mut other.unanswered);
        self.room_gaps.append(&mut other.room_gaps);
        self.room_owed.append(&mut other.room_owed);
        self.stream_gaps.append(&mut other.stream_gaps);
        self.stream_owed.append(&mut other.stream_owed);
        self.answered.append(&mut other.answered);
        self.faults.merge(&other.faults);
    }
}

/// Gives every conversation id a number that all threads agree on.
#[derive(Debug, Default, Clone)]
pub struct Names {
    shared: Arc<Mutex<SharedNames>>,
    known: FxHashMap<Arc<str>, u32>,
}

#[derive(Debug, Default)]
struct SharedNames {
    numbers: FxHashMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

impl Names {
    /// The number of a conversation. Locks only at the thread's first sight of it.
    pub fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.known.get(name) {
            return *number;
        }
        let (name, number) = {
            let mut shared = self.shared.lock().expect("no thread panics while it holds this");
            match shared.numbers.get_key_value(name) {
                Some((name, number)) => (name.clone(), *number),
                None => {
                    let (name, number) = (Arc::<str>::from(name), shared.names.len() as u32);
                    shared.numbers.insert(name.clone(), number);
                    shared.names.push(name.clone());
                    (name, number)
                }
            }
        };
        self.known.insert(name, number);
        number
    }

    /// The conversation id behind a number.
    pub fn name(&self, number: u32) -> String {
        let shared = self.shared.lock().expect("no thread panics while it holds this");
        shared.names.get(number as usize).map_or_else(String::new, |name| name.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, Log, Names, RoomGap};

    #[test]
    fn a_late_room_message_is_taken_out_of_its_gap() {
        let gap = |from, to| RoomGap { user: 1, from, to };
        let mut log = Log { room_gaps: vec![gap(3, 6), gap(9, 9)], ..Log::default() };
        log.arrived_late(1, 4);
        log.arrived_late(1, 9);
        log.arrived_late(2, 5);
        log.arrived_late(1, 8);
        log.room_gaps.sort_by_key(|gap| gap.from);
        assert_eq!(log.room_gaps, [gap(3, 3), gap(5, 6)]);
    }

    #[test]
    fn a_client_message_id_names_the_message_within_its_run_only() {
        let key = Key::new(17, 3);
        let id = key.client_message_id(0xABCD);
        assert_eq!(id, "0000abcd-17-3");
        assert_eq!(Key::parse(&id, 0xABCD), Some(key));
        assert_eq!(Key::parse(&id, 0xABCE), None);
        for other in ["", "0000abcd", "0000abcd-1", "0000abcd-x-1", "hello, wörld"] {
            assert_eq!(Key::parse(other, 0xABCD), None, "{other}");
        }
    }

    #[test]
    fn threads_agree_on_the_number_of_a_conversation() {
        let mut one = Names::default();
        let mut two = one.clone();
        assert_eq!(one.number("a"), two.number("a"));
        assert_eq!(two.number("b"), one.number("b"));
        assert_ne!(one.number("a"), one.number("b"));
        assert_eq!(one.name(two.number("b")), "b");
    }
}
