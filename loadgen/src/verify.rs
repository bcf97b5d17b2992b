//! The verdict on the messages of a run: every acknowledged message with each recipient, once,
//! in order, under gapless sequences.
//!
//! It works on the records after the load, so that it costs the load nothing. What it finds
//! missing it names as ranges to pull ([`Verifier::repairs`]). A message is called lost, and a
//! sequence a gap, only when such a pull was answered and did not bring it: a user who could not
//! be asked proves nothing, and what it misses is counted as not verified.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    log::{Ack, FaultKind, Faults, Key, Log, Names, Range, Receipt},
    population::{Population, Target},
    room::Board,
};

/// Pulls asked for at most in one round; what is missing beyond them waits for the next one.
pub const REPAIRS_MAX: usize = 200_000;

/// The result.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Faults by kind, with examples.
    pub faults: Faults,
    /// Acknowledged messages looked at.
    pub acked: u64,
    /// Deliveries that these should have caused.
    pub expected: u64,
    /// Of them, found.
    pub found: u64,
    /// Messages that were stored although their acknowledgement never came.
    pub stored_unanswered: u64,
    /// Conversations with at least one message of this run.
    pub conversations: u64,
    /// Missing deliveries and sequences that nobody gave an answer about: not known to be lost,
    /// and not verified either.
    pub unverified: u64,
    /// The users who would have had to answer.
    pub users_unasked: u64,
}

impl Verdict {
    /// Adds that of another part of the users, who have no conversation with these.
    pub fn merge(&mut self, other: &Self) {
        self.faults.merge(&other.faults);
        self.acked += other.acked;
        self.expected += other.expected;
        self.found += other.found;
        self.stored_unanswered += other.stored_unanswered;
        self.conversations += other.conversations;
        self.unverified += other.unverified;
        self.users_unasked += other.users_unasked;
    }
}

/// All records of a run, in the order the checks need.
pub struct Verifier<'a> {
    population: &'a Population,
    names: &'a Names,
    board: &'a Board,
    log: &'a Log,
    /// Acks by (conversation, sequence).
    acks: Vec<Ack>,
    /// Receipts by (conversation, sequence, user).
    receipts: Vec<Receipt>,
    answered: Answered,
}

/// What was asked for and answered, by user and by conversation.
#[derive(Default)]
struct Answered {
    by_user: FxHashMap<(u32, u32), Vec<(u64, u64)>>,
    by_conversation: FxHashMap<u32, Vec<(u64, u64)>>,
}

impl Answered {
    fn new(ranges: &[Range]) -> Self {
        let mut answered = Self::default();
        for Range { user, conversation, from, to } in ranges.iter().copied() {
            answered.by_user.entry((user, conversation)).or_default().push((from, to));
            answered.by_conversation.entry(conversation).or_default().push((from, to));
        }
        let all = answered.by_user.values_mut().chain(answered.by_conversation.values_mut());
        all.for_each(|ranges| *ranges = joined(std::mem::take(ranges)));
        answered
    }

    /// Whether this user was told all it can have of a sequence.
    fn of_user(&self, user: u32, conversation: u32, sequence: u64) -> bool {
        let ranges = self.by_user.get(&(user, conversation));
        ranges.is_some_and(|ranges| covered(ranges, sequence, sequence) == 1)
    }

    /// Of how many sequences from `from` to `to` some member was told.
    fn of_anybody(&self, conversation: u32, from: u64, to: u64) -> u64 {
        self.by_conversation.get(&conversation).map_or(0, |ranges| covered(ranges, from, to))
    }
}

/// Sorted, disjoint ranges.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match all.last_mut() {
            Some((_, end)) if from <= end.saturating_add(1) => *end = (*end).max(to),
            _ => all.push((from, to)),
        }
    }
    all
}

/// How many of the sequences from `from` to `to` lie in the ranges.
fn covered(ranges: &[(u64, u64)], from: u64, to: u64) -> u64 {
    let first = ranges.partition_point(|(_, end)| *end < from);
    let within = ranges[first..].iter().take_while(|(start, _)| *start <= to);
    within.map(|(start, end)| (*end).min(to) - (*start).max(from) + 1).sum()
}

/// One sequence of one conversation: what was acknowledged under it and who received what.
struct Place<'a> {
    conversation: u32,
    sequence: u64,
    acks: &'a [Ack],
    receipts: &'a [Receipt],
}

impl Place<'_> {
    /// Somebody who can be asked for the neighbours of this sequence.
    fn member(&self) -> Option<u32> {
        let sender = self.acks.first().map(|ack| ack.key.sender());
        sender.or(self.receipts.first().map(|receipt| receipt.user))
    }
}

impl<'a> Verifier<'a> {
    /// Sorts the records.
    pub fn new(
        population: &'a Population,
        names: &'a Names,
        board: &'a Board,
        log: &'a Log,
    ) -> Self {
        let mut acks = log.acks.clone();
        acks.sort_unstable_by_key(|ack| (ack.conversation, ack.sequence, ack.key));
        let mut receipts = log.receipts.clone();
        receipts
            .sort_unstable_by_key(|receipt| (receipt.conversation, receipt.sequence, receipt.user));
        let answered = Answered::new(&log.answered);
        Self { population, names, board, log, acks, receipts, answered }
    }

    /// Calls `on_place` for every known sequence, in order.
    fn for_each_place(&self, mut on_place: impl FnMut(Place<'_>)) {
        let (mut acks, mut receipts) = (self.acks.as_slice(), self.receipts.as_slice());
        loop {
            let next_ack = acks.first().map(|ack| (ack.conversation, ack.sequence));
            let next_receipt =
                receipts.first().map(|receipt| (receipt.conversation, receipt.sequence));
            let here = match (next_ack, next_receipt) {
                (Some(ack), Some(receipt)) => ack.min(receipt),
                (Some(ack), None) => ack,
                (None, Some(receipt)) => receipt,
                (None, None) => return,
            };
            let acks_here = acks.iter().take_while(|a| (a.conversation, a.sequence) == here);
            let (here_acks, rest) = acks.split_at(acks_here.count());
            acks = rest;
            let receipts_here =
                receipts.iter().take_while(|r| (r.conversation, r.sequence) == here);
            let (here_receipts, rest) = receipts.split_at(receipts_here.count());
            receipts = rest;
            let (conversation, sequence) = here;
            on_place(Place { conversation, sequence, acks: here_acks, receipts: here_receipts });
        }
    }

    /// Messages that were acknowledged under one sequence and arrived under another one, under which
    /// nothing was acknowledged: with the place where they should not be.
    fn misplaced(&self) -> Vec<(Key, u32, u64)> {
        let mut unacked: FxHashMap<Key, (u32, u64)> = FxHashMap::default();
        self.for_each_place(|place| {
            if place.acks.is_empty() {
                let keys = place.receipts.iter().map(|receipt| receipt.key);
                let here = (place.conversation, place.sequence);
                unacked.extend(keys.filter(|key| *key != Key::FOREIGN).map(|key| (key, here)));
            }
        });
        if unacked.is_empty() {
            return Vec::new();
        }
        let acked = self.acks.iter().filter_map(|ack| {
            let (conversation, sequence) = *unacked.get(&ack.key)?;
            Some((ack.key, conversation, sequence))
        });
        acked.collect()
    }

    /// Those of them that are not stored there: the sender was told all that it can have of that
    /// sequence, and this was not in it. The others are stored twice.
    fn delivered_elsewhere(&self) -> FxHashMap<(u32, u64), Key> {
        let misplaced = self.misplaced().into_iter();
        let is_elsewhere = |(key, conversation, sequence): &(Key, u32, u64)| {
            let at = (*conversation, *sequence, key.sender());
            let place = |receipt: &Receipt| (receipt.conversation, receipt.sequence, receipt.user);
            self.answered.of_user(key.sender(), *conversation, *sequence)
                && self.receipts.binary_search_by_key(&at, place).is_err()
        };
        misplaced
            .filter(is_elsewhere)
            .map(|(key, conversation, sequence)| ((conversation, sequence), key))
            .collect()
    }

    /// What is missing and could be had by pulling: acknowledged messages that a recipient has
    /// not got, sequences that nobody has seen (asked from a member of the conversation), and
    /// messages that arrived under a sequence that was not theirs (asked from their sender).
    /// Whoever has answered is not asked again.
    pub fn repairs(&self) -> Vec<Range> {
        let mut missing: BTreeMap<(u32, u32), Vec<(u64, u64)>> = BTreeMap::new();
        let mut wanted = 0;
        let mut want = |user: u32, conversation: u32, from: u64, to: u64| {
            let ranges = missing.entry((user, conversation)).or_default();
            match ranges.last_mut() {
                Some((_, end)) if *end + 1 == from => *end = to,
                _ if wanted < REPAIRS_MAX => {
                    wanted += 1;
                    ranges.push((from, to));
                }
                _ => {}
            }
        };
        for (key, conversation, sequence) in self.misplaced() {
            if !self.answered.of_user(key.sender(), conversation, sequence) {
                want(key.sender(), conversation, sequence, sequence);
            }
        }
        let mut holes = Holes::default();
        self.for_each_place(|place| {
            if let Some(ack) = place.acks.first() {
                for user in self.population.recipients(ack.key.sender(), ack.target) {
                    let (conversation, sequence) = (place.conversation, place.sequence);
                    if !received_by(place.receipts, user)
                        && !self.answered.of_user(user, conversation, sequence)
                    {
                        want(user, conversation, sequence, sequence);
                    }
                }
            }
            if let (Some((from, to)), Some(member)) = (holes.next(&place), place.member())
                && self.answered.of_anybody(place.conversation, from, to) < to - from + 1
            {
                want(member, place.conversation, from, to);
            }
        });
        missing
            .into_iter()
            .flat_map(|((user, conversation), ranges)| {
                ranges.into_iter().map(move |(from, to)| Range { user, conversation, from, to })
            })
            .collect()
    }

    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict { faults: self.log.faults.clone(), ..Verdict::default() };
        let mut unasked = FxHashSet::default();
        let targets = self.targets();
        let mut places_of: FxHashMap<Key, (u32, u64)> = FxHashMap::default();
        let mut holes = Holes::default();
        let mut last_conversation = None;
        let elsewhere = self.delivered_elsewhere();
        self.for_each_place(|place| {
            if let Some(key) = elsewhere.get(&(place.conversation, place.sequence)) {
                verdict.faults.add(FaultKind::WrongSequence, || {
                    let id = key.client_message_id(self.population.run);
                    format!("{}: {id} is stored under another one", self.describe(&place))
                });
                return;
            }
            if holes_apply(&place) && last_conversation != Some(place.conversation) {
                last_conversation = Some(place.conversation);
                verdict.conversations += 1;
            }
            self.check_place(&place, &targets, &mut verdict, &mut unasked);
            self.check_stored_once(&place, &mut places_of, &mut verdict.faults);
            if let Some((from, to)) = holes.next(&place) {
                let known = self.answered.of_anybody(place.conversation, from, to);
                if known < to - from + 1 {
                    verdict.unverified += to - from + 1 - known;
                    unasked.extend(place.member());
                }
                if known == 0 {
                    return;
                }
                verdict.faults.add(FaultKind::Gap, || {
                    let name = self.names.name(place.conversation);
                    format!("{name}: nothing is stored under sequences {from} to {to}")
                });
            }
        });
        verdict.users_unasked = unasked.len() as u64;
        self.check_room(&mut verdict.faults);
        // A message may have been noted as unanswered and be acknowledged later, or be noted twice.
        let acked: FxHashSet<Key> = self.acks.iter().map(|ack| ack.key).collect();
        let unanswered: FxHashSet<Key> =
            self.log.unanswered.iter().map(|message| message.key).collect();
        verdict.stored_unanswered =
            unanswered.difference(&acked).filter(|key| places_of.contains_key(*key)).count() as u64;
        verdict
    }

    /// Room messages are live: what a member who stayed did not get is lost.
    fn check_room(&self, faults: &mut Faults) {
        for gap in self.log.room_gaps.iter().chain(&self.log.room_owed) {
            for number in gap.from..=gap.to {
                if self.board.certain_in(number, number) > 0 {
                    faults.add(FaultKind::RoomLost, || {
                        format!("user {} never got room message {number}", gap.user)
                    });
                }
            }
        }
    }

    /// Where every message of the run was sent, acknowledged or not.
    fn targets(&self) -> FxHashMap<Key, Target> {
        let unanswered = self.log.unanswered.iter().map(|message| (message.key, message.target));
        unanswered.chain(self.acks.iter().map(|ack| (ack.key, ack.target))).collect()
    }

    fn describe(&self, place: &Place<'_>) -> String {
        format!("{} sequence {}", self.names.name(place.conversation), place.sequence)
    }

    fn check_place(
        &self,
        place: &Place<'_>,
        targets: &FxHashMap<Key, Target>,
        verdict: &mut Verdict,
        unasked: &mut FxHashSet<u32>,
    ) {
        let faults = &mut verdict.faults;
        let message = |key: Key| key.client_message_id(self.population.run);
        if let [first, second, ..] = place.acks {
            faults.add(FaultKind::SequenceReused, || {
                let (first, second) = (message(first.key), message(second.key));
                format!("{}: acknowledged for {first} and for {second}", self.describe(place))
            });
        }
        let named = place.acks.first().or(None).map(|ack| ack.key);
        let named = named.or(place.receipts.first().map(|receipt| receipt.key));
        for receipt in place.receipts {
            if !place.acks.iter().any(|ack| ack.key == receipt.key) && named != Some(receipt.key) {
                faults.add(FaultKind::WrongMessage, || {
                    let named = named.map_or_else(String::new, message);
                    let (user, got) = (receipt.user, message(receipt.key));
                    format!("{}: is {named}, but user {user} got {got}", self.describe(place))
                });
                continue;
            }
            if receipt.key == Key::FOREIGN {
                continue;
            }
            let Some(target) = targets.get(&receipt.key) else {
                faults.add(FaultKind::WrongMessage, || {
                    let got = message(receipt.key);
                    format!("{}: {got} was never sent", self.describe(place))
                });
                continue;
            };
            let sender = receipt.key.sender();
            if receipt.user != sender
                && !self.population.is_recipient(sender, *target, receipt.user)
            {
                faults.add(FaultKind::Misdelivered, || {
                    let (user, got) = (receipt.user, message(receipt.key));
                    format!("{}: user {user} got {got}, sent to {target:?}", self.describe(place))
                });
            }
        }
        for ack in place.acks {
            verdict.acked += 1;
            for user in self.population.recipients(ack.key.sender(), ack.target) {
                verdict.expected += 1;
                if received_by(place.receipts, user) {
                    verdict.found += 1;
                } else if !self.answered.of_user(user, place.conversation, place.sequence) {
                    verdict.unverified += 1;
                    unasked.insert(user);
                } else {
                    verdict.faults.add(FaultKind::Lost, || {
                        let lost = message(ack.key);
                        format!("{}: user {user} never got {lost}", self.describe(place))
                    });
                }
            }
        }
    }

    /// No message may show up under two sequences, whether acknowledged or delivered there.
    fn check_stored_once(
        &self,
        place: &Place<'_>,
        places_of: &mut FxHashMap<Key, (u32, u64)>,
        faults: &mut Faults,
    ) {
        let here = (place.conversation, place.sequence);
        let acked = place.acks.iter().map(|ack| ack.key);
        let mut last = Key::FOREIGN;
        for key in acked.chain(place.receipts.iter().map(|receipt| receipt.key)) {
            if key == last || key == Key::FOREIGN {
                continue;
            }
            last = key;
            let before = *places_of.entry(key).or_insert(here);
            if before != here {
                faults.add(FaultKind::StoredTwice, || {
                    let id = key.client_message_id(self.population.run);
                    let (name, sequence) = (self.names.name(before.0), before.1);
                    format!("{id}: {name} sequence {sequence} and {}", self.describe(place))
                });
            }
        }
    }
}

/// Whether a user is among the receipts of one place (sorted by user).
fn received_by(receipts: &[Receipt], user: u32) -> bool {
    receipts.binary_search_by_key(&user, |receipt| receipt.user).is_ok()
}

/// Whether a place belongs to this run: holes are looked for from its first one on.
fn holes_apply(place: &Place<'_>) -> bool {
    !place.acks.is_empty() || place.receipts.iter().any(|receipt| receipt.key != Key::FOREIGN)
}

/// Finds holes between the sequences of a conversation as the places go by, from the sequence
/// before this run's first message on: what earlier runs left behind is not judged, but this run
/// must continue it without a hole.
#[derive(Default)]
struct Holes {
    before: Option<(u32, u64)>,
    in_run: bool,
}

impl Holes {
    fn next(&mut self, place: &Place<'_>) -> Option<(u64, u64)> {
        let before = self.before.filter(|(conversation, _)| *conversation == place.conversation);
        let was_in_run = before.is_some() && self.in_run;
        self.in_run = was_in_run || holes_apply(place);
        self.before = Some((place.conversation, place.sequence));
        // Sequences start at 1; a peer that says 0 has no hole before it.
        let end = place.sequence.saturating_sub(1);
        let known = before.map_or(0, |(_, sequence)| sequence);
        match (was_in_run, self.in_run) {
            _ if known >= end => None,
            (true, _) => Some((known + 1, end)),
            (false, true) => Some((end, end)),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Verdict, Verifier};
    use crate::{
        log::{Ack, FaultKind, Key, Log, Names, Range, Receipt, RoomGap, Unanswered},
        population::{Population, Target},
        room::Board,
    };

    const GROUP: u32 = 0;
    const PAIR: u32 = 1;

    fn population() -> Population {
        Population { groups: 2, group_size: 4, ..Population::uniform(10, 0.5, "load", 7) }
    }

    /// A run without fault: thirty messages of group 0 and thirty between users 8 and 9.
    fn good_run() -> Log {
        let population = population();
        let mut log = Log::default();
        for sequence in 1..=30_u64 {
            for (conversation, sender, target) in [
                (GROUP, sequence as u32 % 4, Target::group(0)),
                (PAIR, 8 + sequence as u32 % 2, Target::user(9 - sequence as u32 % 2)),
            ] {
                let key = Key::new(sender, sequence as u32);
                log.acks.push(Ack { key, sequence, conversation, target });
                for user in population.recipients(sender, target) {
                    log.receipts.push(Receipt { key, sequence, conversation, user });
                }
            }
        }
        log
    }

    fn with_names<T>(log: &Log, look: impl FnOnce(Verifier<'_>) -> T) -> T {
        let (population, mut names) = (population(), Names::default());
        assert_eq!((names.number("group"), names.number("pair")), (GROUP, PAIR));
        look(Verifier::new(&population, &names, &board(), log))
    }

    /// Ten room messages, of which the fourth was refused.
    fn board() -> Board {
        let board = Board::default();
        (0..10).for_each(|_| {
            board.next();
        });
        board.doubt(4);
        board
    }

    fn verdict(log: &Log) -> Verdict {
        with_names(log, |verifier| verifier.verdict())
    }

    fn repairs(log: &Log) -> Vec<Range> {
        with_names(log, |verifier| verifier.repairs())
    }

    /// Everybody is asked for what is missing, and has nothing more to tell.
    fn ask_in_vain(log: &mut Log) {
        let asked = repairs(log);
        log.answered.extend(asked);
    }

    /// The run has exactly this one kind of fault, so often.
    fn assert_only(log: &Log, kind: FaultKind, count: u64) {
        let verdict = verdict(log);
        let found: Vec<_> = FaultKind::ALL
            .iter()
            .map(|kind| (*kind, verdict.faults.count(*kind)))
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(found, [(kind, count)], "{:?}", verdict.faults.examples());
    }

    fn receipt_of(log: &mut Log, conversation: u32, sequence: u64, user: u32) -> &mut Receipt {
        log.receipts
            .iter_mut()
            .find(|r| (r.conversation, r.sequence, r.user) == (conversation, sequence, user))
            .expect("in the good run")
    }

    #[test]
    fn a_good_run_has_no_fault_and_nothing_to_repair() {
        let log = good_run();
        let verdict = verdict(&log);
        assert_eq!(verdict.faults.total(), 0, "{:?}", verdict.faults.examples());
        assert_eq!((verdict.acked, verdict.expected, verdict.found), (60, 120, 120));
        assert_eq!(verdict.conversations, 2);
        assert_eq!(repairs(&log), []);
    }

    #[test]
    fn the_order_of_the_records_does_not_matter() {
        for seed in 0..20 {
            let mut log = good_run();
            let mut random = fastrand::Rng::with_seed(seed);
            random.shuffle(&mut log.acks);
            random.shuffle(&mut log.receipts);
            assert_eq!(verdict(&log).faults.total(), 0, "seed {seed}");
        }
    }

    #[test]
    fn lost_messages_are_found_and_can_be_asked_for_as_ranges() {
        let mut log = good_run();
        log.receipts.retain(|r| !(r.user == 3 && r.conversation == GROUP && r.sequence >= 29));
        // User 3 sent sequence 27 (27 mod 4) and received 28; 29 and 30 are missing.
        let asked = Range { user: 3, conversation: GROUP, from: 29, to: 30 };
        assert_eq!(repairs(&log), [asked]);
        ask_in_vain(&mut log);
        assert_only(&log, FaultKind::Lost, 2);
        assert_eq!(repairs(&log), [], "nobody is asked twice");
    }

    #[test]
    fn what_a_user_who_is_away_lacks_is_not_called_lost_but_not_verified() {
        let mut log = good_run();
        log.receipts.retain(|r| !(r.user == 3 && r.conversation == GROUP && r.sequence >= 29));
        log.receipts.retain(|r| !(r.user == 2 && r.conversation == GROUP && r.sequence == 28));
        ask_in_vain(&mut log);
        log.answered.retain(|range| range.user != 3);
        assert_only(&log, FaultKind::Lost, 1);
        let verdict = verdict(&log);
        assert_eq!((verdict.unverified, verdict.users_unasked), (2, 1));
    }

    #[test]
    fn what_was_acknowledged_after_everybody_was_asked_is_asked_for_again_before_it_is_lost() {
        let mut log = good_run();
        ask_in_vain(&mut log);
        // While the pulls ran, an answer to a message of user 8 arrived: sequence 33, and nobody
        // has seen it, nor the two before it.
        let key = Key::new(8, 99);
        log.acks.push(Ack { key, sequence: 33, conversation: PAIR, target: Target::user(9) });
        let found = verdict(&log);
        assert_eq!(found.faults.total(), 0, "{:?}", found.faults.examples());
        assert_eq!((found.unverified, found.users_unasked), (3, 2));
        let of = |user, from, to| Range { user, conversation: PAIR, from, to };
        assert_eq!(repairs(&log), [of(8, 31, 32), of(9, 33, 33)]);
        log.answered.push(of(8, 31, 31));
        let found = verdict(&log);
        assert_eq!(found.faults.count(FaultKind::Gap), 1, "31 is not there");
        assert_eq!(found.unverified, 2, "32 and 33 may be");
        ask_in_vain(&mut log);
        let found = verdict(&log);
        assert_eq!(found.unverified, 0);
        assert_eq!(found.faults.count(FaultKind::Gap), 1);
        assert_eq!(found.faults.count(FaultKind::Lost), 1);
    }

    #[test]
    fn a_sequence_without_a_message_is_a_gap_and_is_asked_for_first() {
        let mut log = good_run();
        log.acks.retain(|ack| (ack.conversation, ack.sequence) != (GROUP, 12));
        log.receipts.retain(|receipt| (receipt.conversation, receipt.sequence) != (GROUP, 12));
        let asked = repairs(&log);
        assert_eq!(asked.len(), 1);
        assert_eq!((asked[0].conversation, asked[0].from, asked[0].to), (GROUP, 12, 12));
        assert!(asked[0].user < 4, "a member is asked");
        ask_in_vain(&mut log);
        assert_only(&log, FaultKind::Gap, 1);
    }

    #[test]
    fn a_message_under_two_sequences_is_stored_twice_acknowledged_or_not() {
        let mut log = good_run();
        let key = Key::new(8, 30);
        // Sequence 31 delivers the message of sequence 30 once more.
        log.receipts.push(Receipt { key, sequence: 31, conversation: PAIR, user: 9 });
        assert_only(&log, FaultKind::StoredTwice, 1);

        let mut log = good_run();
        let unknown = Key::new(9, 1000);
        log.unanswered.push(Unanswered { key: unknown, target: Target::user(8) });
        for sequence in [31, 32] {
            log.receipts.push(Receipt { key: unknown, sequence, conversation: PAIR, user: 8 });
        }
        assert_only(&log, FaultKind::StoredTwice, 1);
    }

    #[test]
    fn two_messages_under_one_sequence_are_named() {
        let mut log = good_run();
        let key = Key::new(9, 777);
        let target = Target::user(8);
        log.acks.push(Ack { key, sequence: 30, conversation: PAIR, target });
        let verdict = verdict(&log);
        assert_eq!(verdict.faults.count(FaultKind::SequenceReused), 1);
    }

    #[test]
    fn room_messages_that_a_member_lacks_are_lost_unless_they_were_refused() {
        let mut log = good_run();
        log.room_gaps.push(RoomGap { user: 3, from: 4, to: 4 });
        assert_eq!(verdict(&log).faults.total(), 0);
        log.room_gaps.push(RoomGap { user: 3, from: 3, to: 6 });
        assert_only(&log, FaultKind::RoomLost, 3);
        log.room_owed.push(RoomGap { user: 3, from: 10, to: 10 });
        assert_only(&log, FaultKind::RoomLost, 4);
    }

    #[test]
    fn a_delivery_of_another_message_than_acknowledged_is_wrong() {
        let mut log = good_run();
        receipt_of(&mut log, GROUP, 10, 1).key = Key::new(2, 555);
        assert_only(&log, FaultKind::WrongMessage, 1);
    }

    #[test]
    fn a_message_that_nobody_sent_is_wrong() {
        let mut log = good_run();
        let key = Key::new(8, 555);
        log.receipts.push(Receipt { key, sequence: 31, conversation: PAIR, user: 9 });
        assert_only(&log, FaultKind::WrongMessage, 1);
    }

    #[test]
    fn a_delivery_to_a_stranger_is_misdelivered() {
        let mut log = good_run();
        let key = receipt_of(&mut log, PAIR, 5, 8).key;
        log.receipts.push(Receipt { key, sequence: 5, conversation: PAIR, user: 2 });
        assert_only(&log, FaultKind::Misdelivered, 1);
    }

    #[test]
    fn a_message_stored_without_an_answer_is_no_fault_and_is_counted() {
        let mut log = good_run();
        let key = Key::new(8, 99);
        log.unanswered.push(Unanswered { key, target: Target::user(9) });
        log.receipts.push(Receipt { key, sequence: 31, conversation: PAIR, user: 9 });
        let verdict = verdict(&log);
        assert_eq!(verdict.faults.total(), 0, "{:?}", verdict.faults.examples());
        assert_eq!(verdict.stored_unanswered, 1);
    }

    #[test]
    fn messages_of_earlier_runs_fill_sequences_and_are_not_judged() {
        let mut log = good_run();
        for record in &mut log.acks {
            record.sequence += 100;
        }
        for record in &mut log.receipts {
            record.sequence += 100;
        }
        // An old page with a hole before this run's first sequence.
        let foreign = |conversation, sequence, user| Receipt {
            key: Key::FOREIGN,
            sequence,
            conversation,
            user,
        };
        log.receipts.extend([50, 60, 99, 100].map(|sequence| foreign(PAIR, sequence, 8)));
        // Nobody has seen what came before in the group, so it is asked for, and is a gap if it
        // cannot be had.
        let asked = repairs(&log);
        assert_eq!(asked.len(), 1);
        assert_eq!((asked[0].conversation, asked[0].from, asked[0].to), (GROUP, 100, 100));
        ask_in_vain(&mut log);
        assert_only(&log, FaultKind::Gap, 1);
        log.receipts.push(foreign(GROUP, 100, 1));
        let verdict = verdict(&log);
        assert_eq!(verdict.faults.total(), 0, "{:?}", verdict.faults.examples());
    }
}
