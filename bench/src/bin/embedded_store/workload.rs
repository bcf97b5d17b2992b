//! The messages that every engine gets, and the rows they become. The same seed writes the same
//! rows whichever engine takes them.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    Arguments,
    engine::{Engine, Row, Table},
};

/// The part of the arguments that shapes the work.
pub struct Options {
    pub senders: usize,
    pub rate: u64,
    pub commit_messages_max: usize,
    pub conversations: u32,
    pub seed: u64,
}

impl From<&Arguments> for Options {
    fn from(arguments: &Arguments) -> Self {
        Self {
            senders: arguments.senders,
            rate: arguments.rate,
            commit_messages_max: arguments.commit_messages_max,
            conversations: arguments.conversations,
            seed: arguments.seed,
        }
    }
}

/// When messages come: from senders that wait for their reply, or on a schedule that waits for
/// nobody.
pub struct Arrivals {
    waiting: VecDeque<Instant>,
    interval: Option<Duration>,
    next: Instant,
}

impl Arrivals {
    pub fn new(options: &Options, begun: Instant) -> Self {
        let interval = (options.rate > 0).then(|| Duration::from_secs(1) / options.rate as u32);
        let waiting = if interval.is_some() { 0 } else { options.senders };
        Self { waiting: vec![begun; waiting].into(), interval, next: begun }
    }

    /// The intended times of the messages that wait now, at least one, at most `most`.
    pub fn wait(&mut self, most: usize) -> Vec<Instant> {
        if let Some(interval) = self.interval {
            if self.waiting.is_empty() {
                std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
            }
            let now = Instant::now();
            while self.next <= now {
                self.waiting.push_back(self.next);
                self.next += interval;
            }
        }
        self.waiting.drain(..most.min(self.waiting.len())).collect()
    }

    /// A sender got its reply and sends the next.
    pub fn again(&mut self, now: Instant) {
        if self.interval.is_none() {
            self.waiting.push_back(now);
        }
    }
}

/// The row of the newest commit's version.
pub const VERSION_KEY: &[u8] = b"version";

pub struct Workload {
    random: fastrand::Rng,
    sequences: Vec<u64>,
    version: u64,
    sent: u64,
    recent: VecDeque<(u32, u64)>,
}

impl Workload {
    pub fn new(options: &Options) -> Self {
        Self {
            random: fastrand::Rng::with_seed(options.seed),
            sequences: vec![0; options.conversations as usize],
            version: 0,
            sent: 0,
            recent: VecDeque::new(),
        }
    }

    /// How many messages were stored; the row [`VERSION_KEY`] says the same.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Stores `count` messages as one commit: look every one up among the stored ones, write five
    /// rows for each new one, sorted as all engines like it.
    pub fn commit(&mut self, engine: &mut dyn Engine, count: usize) -> anyhow::Result<()> {
        let mut rows: HashMap<(Table, Vec<u8>), Vec<u8>> = HashMap::with_capacity(count * 5);
        for _ in 0..count {
            let retried = self.random.u8(..) < 3 && !self.recent.is_empty();
            let (chat, number) = if retried {
                self.recent[self.random.usize(..self.recent.len())]
            } else {
                self.sent += 1;
                (self.random.u32(..self.sequences.len() as u32), self.sent)
            };
            let (one, other) = users(chat);
            let sender = if number.is_multiple_of(2) { &one } else { &other };
            let mut dedupe = prefixed(sender.as_bytes());
            let client_message_id = format!("{number:016x}-{:019x}", number.wrapping_mul(0x9e37));
            dedupe.extend_from_slice(client_message_id.as_bytes());
            if rows.contains_key(&(Table::Dedupe, dedupe.clone()))
                || engine.get(Table::Dedupe, &dedupe)?.is_some()
            {
                continue;
            }
            self.recent.push_back((chat, number));
            if self.recent.len() > 4_000 {
                self.recent.pop_front();
            }

            self.version += 1;
            let sequence = &mut self.sequences[chat as usize];
            *sequence += 1;
            let sequence = sequence.to_be_bytes();
            let version = self.version.to_le_bytes();
            let conversation = conversation_id(chat);
            let conversation = conversation.as_bytes();

            let mut message = vec![1];
            message.extend_from_slice(&version);
            message.extend_from_slice(&self.random.u128(..).to_le_bytes());
            message.extend_from_slice(&prefixed(sender.as_bytes()));
            message.extend_from_slice(client_message_id.as_bytes());
            let body = (0..100).map(|_| self.random.alphanumeric() as u8);
            message.extend(body);
            rows.insert((Table::Messages, [conversation, &sequence[..]].concat()), message);
            rows.insert(
                (Table::Dedupe, dedupe),
                [&prefixed(conversation)[..], &sequence[..]].concat(),
            );
            rows.insert(
                (Table::Conversations, conversation.to_vec()),
                [&sequence[..], &sequence[..], &version[..], &sequence[..]].concat(),
            );
            for user in [&one, &other] {
                let mut pointer = prefixed(user.as_bytes());
                pointer.extend_from_slice(conversation);
                rows.insert((Table::Pointers, pointer), [&sequence[..], &version[..]].concat());
            }
        }
        let version = self.version.to_le_bytes().to_vec();
        rows.insert((Table::Conversations, VERSION_KEY.to_vec()), version);
        let mut rows: Vec<Row> =
            rows.into_iter().map(|((table, key), value)| Row { table, key, value }).collect();
        rows.sort_unstable_by(|a, b| (a.table, &a.key).cmp(&(b.table, &b.key)));
        engine.commit(rows)
    }
}

fn users(chat: u32) -> (String, String) {
    (format!("user{chat:07}"), format!("user{:07}", chat.wrapping_mul(2_654_435_761) % 1_000_003))
}

/// As the store makes them.
pub fn conversation_id(chat: u32) -> String {
    let (one, other) = users(chat);
    let (first, second) = if one <= other { (one, other) } else { (other, one) };
    format!("s:{}:{first}:{second}", first.len())
}

fn prefixed(bytes: &[u8]) -> Vec<u8> {
    let mut prefixed = vec![bytes.len() as u8];
    prefixed.extend_from_slice(bytes);
    prefixed
}
