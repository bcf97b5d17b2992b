//! The verdict on the messages of a run: every acknowledged message with each recipient, once,
//! in order, under gapless sequences.
//!
//! It works on the records after the load, so that it costs the load nothing. What it finds
//! missing it names as ranges to pull ([`Verifier::repairs`]); what stays missing is lost.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    log::{Ack, FaultKind, Faults, Key, Log, Names, Receipt},
    scenario::{Population, Target},
};

/// A range that a user should pull: both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repair {
    /// Who pulls.
    pub user: u32,
    /// The interned conversation.
    pub conversation: u32,
    /// The first sequence.
    pub from: u64,
    /// The last sequence.
    pub to: u64,
}

/// Pulls asked for at most; what is missing beyond them is lost without a second look.
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
}

/// All records of a run, in the order the checks need.
pub struct Verifier<'a> {
    population: &'a Population,
    names: &'a Names,
    log: &'a Log,
    /// Acks by (conversation, sequence).
    acks: Vec<Ack>,
    /// Receipts by (conversation, sequence, user).
    receipts: Vec<Receipt>,
}

/// One sequence of one conversation: what was acknowledged under it and who received what.
struct Place<'a> {
    conversation: u32,
    sequence: u64,
    acks: &'a [Ack],
    receipts: &'a [Receipt],
}

impl<'a> Verifier<'a> {
    /// Sorts the records.
    pub fn new(population: &'a Population, names: &'a Names, log: &'a Log) -> Self {
        let mut acks = log.acks.clone();
        acks.sort_unstable_by_key(|ack| (ack.conversation, ack.sequence, ack.key));
        let mut receipts = log.receipts.clone();
        receipts
            .sort_unstable_by_key(|receipt| (receipt.conversation, receipt.sequence, receipt.user));
        Self { population, names, log, acks, receipts }
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

    /// What is missing and could be had by pulling: acknowledged messages that a recipient has
    /// not got, and sequences that nobody has seen (asked from a member of the conversation).
    pub fn repairs(&self) -> Vec<Repair> {
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
        let mut holes = Holes::default();
        self.for_each_place(|place| {
            if let Some(ack) = place.acks.first() {
                for user in self.population.recipients(ack.key.sender(), ack.target) {
                    if !received_by(place.receipts, user) {
                        want(user, place.conversation, place.sequence, place.sequence);
                    }
                }
            }
            if let Some((from, to)) = holes.next(&place) {
                let member = place.acks.first().map(|ack| ack.key.sender());
                let member = member.or(place.receipts.first().map(|receipt| receipt.user));
                if let Some(member) = member {
                    want(member, place.conversation, from, to);
                }
            }
        });
        missing
            .into_iter()
            .flat_map(|((user, conversation), ranges)| {
                ranges.into_iter().map(move |(from, to)| Repair { user, conversation, from, to })
            })
            .collect()
    }

    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict { faults: self.log.faults.clone(), ..Verdict::default() };
        let targets = self.targets();
        let mut places_of: FxHashMap<Key, (u32, u64)> = FxHashMap::default();
        let mut holes = Holes::default();
        let mut last_conversation = None;
        self.for_each_place(|place| {
            if holes_apply(&place) && last_conversation != Some(place.conversation) {
                last_conversation = Some(place.conversation);
                verdict.conversations += 1;
            }
            self.check_place(&place, &targets, &mut verdict);
            self.check_stored_once(&place, &mut places_of, &mut verdict.faults);
            if let Some((from, to)) = holes.next(&place) {
                verdict.faults.add(FaultKind::Gap, || {
                    let name = self.names.name(place.conversation);
                    format!("{name}: nothing is stored under sequences {from} to {to}")
                });
            }
        });
        // A message may have been noted as unanswered and be acknowledged later, or be noted twice.
        let acked: FxHashSet<Key> = self.acks.iter().map(|ack| ack.key).collect();
        let unanswered: FxHashSet<Key> =
            self.log.unanswered.iter().map(|message| message.key).collect();
        verdict.stored_unanswered =
            unanswered.difference(&acked).filter(|key| places_of.contains_key(*key)).count() as u64;
        verdict
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

/// Finds holes between the sequences of a conversation as the places go by.
#[derive(Default)]
struct Holes {
    before: Option<(u32, u64)>,
}

impl Holes {
    fn next(&mut self, place: &Place<'_>) -> Option<(u64, u64)> {
        let before = self.before.filter(|(conversation, _)| *conversation == place.conversation);
        if before.is_some() || holes_apply(place) {
            self.before = Some((place.conversation, place.sequence));
        }
        let (_, sequence) = before?;
        (place.sequence > sequence + 1).then(|| (sequence + 1, place.sequence - 1))
    }
}
