//! The rates of users by kind of request, for the kinds that few users make at any moment: pulls,
//! presence, reports, logins, and what services send in a user's name.
//!
//! Frames and messages have their buckets in the table of who is online, because everybody needs
//! those. Here a user takes room only while a bucket is not full; a full one is forgotten, which
//! changes nothing.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use millrace_protocol::command;

use super::{
    groups,
    rate::{Bucket, Rate},
};

/// How often the full buckets are looked for at most, and in how small a table nobody looks.
const SWEEP_INTERVAL_MS: u64 = 1_000;
const SWEEP_BUCKETS_MIN: usize = 4_096;

/// What a client's frame counts as, beside being a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestClass {
    /// Nothing more.
    Frame,
    /// A message.
    Message,
    /// One of the kinds of this table.
    Paced(Paced),
}

/// The kinds of this table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Paced {
    /// Pulls, look-ups and searches.
    Pull,
    /// Presence: questions and subscriptions.
    Presence,
    /// Reports to business services.
    Report,
    /// Logins, refreshes, logging out everywhere, and where a device is reached while it is offline.
    Login,
    /// Messages that services send in the user's name.
    ServiceMessage,
}

impl Paced {
    const COUNT: usize = 5;
}

impl RequestClass {
    /// What a command counts as.
    pub(crate) fn of(command: u16) -> Self {
        match command {
            // Each of these goes to every other member.
            command::SEND_MESSAGE
            | command::ROOM_MESSAGE
            | command::FORWARD
            | command::REVOKE
            | command::TYPING => Self::Message,
            command::PULL_MESSAGES
            | command::PULL_CONVERSATIONS
            | command::PULL_RECEIPTS
            | command::SEARCH_MESSAGES
            | command::GROUP_BY_ID
            | command::GROUP_MEMBERS
            | command::GROUP_JOIN_REQUESTS => Self::Paced(Paced::Pull),
            // Each stores a notice for the members, so it counts as one.
            act if groups::is_act(act) => Self::Message,
            command::QUERY_PRESENCE
            | command::SUBSCRIBE_PRESENCE
            | command::UNSUBSCRIBE_PRESENCE => Self::Paced(Paced::Presence),
            command::REPORT => Self::Paced(Paced::Report),
            // What a device does once in its session.
            command::LOGOUT_EVERYWHERE | command::REGISTER_PUSH | command::UNREGISTER_PUSH => {
                Self::Paced(Paced::Login)
            }
            // Own rows and memory alone; and what is refused as unknown.
            _ => Self::Frame,
        }
    }
}

/// The rate of each kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PacedRates {
    pub pulls: Rate,
    pub presence: Rate,
    pub reports: Rate,
    pub logins: Rate,
    pub service_messages: Rate,
}

#[cfg(test)]
impl PacedRates {
    /// The same for all kinds.
    pub(crate) fn all(rate: Rate) -> Self {
        Self { pulls: rate, presence: rate, reports: rate, logins: rate, service_messages: rate }
    }
}

/// See the module.
pub(crate) struct Paces {
    rates: [Rate; Paced::COUNT],
    buckets_max: usize,
    hasher: RandomState,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// By a hash of user and kind, with a key of its own for each process: two users who share a
    /// bucket by chance are one in 2^64, and nobody can make it happen.
    buckets: HashMap<u64, (Paced, Bucket)>,
    sweep_after_ms: u64,
    /// Twice what the last sweep left: so a storm of logins leaves no large table behind, and a sweep
    /// costs each newcomer little.
    sweep_at: usize,
}

impl Paces {
    /// `buckets_max` is how many that are not full are kept; above it, who has none is told to wait.
    pub(crate) fn new(rates: PacedRates, buckets_max: usize) -> Self {
        let PacedRates { pulls, presence, reports, logins, service_messages } = rates;
        Self {
            rates: [pulls, presence, reports, logins, service_messages],
            buckets_max,
            hasher: RandomState::new(),
            table: Mutex::default(),
        }
    }

    /// Takes one request off a user's rate, or says how long to wait for the next.
    pub(crate) fn take(&self, user_id: &str, kind: Paced, now_ms: u64) -> Result<(), Duration> {
        let rate = self.rates[kind as usize];
        let key = self.hasher.hash_one((user_id, kind));
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = &mut *table;
        if let Some((_, bucket)) = table.buckets.get_mut(&key) {
            return bucket.take(rate, now_ms);
        }
        let sweep_at = table.sweep_at.max(SWEEP_BUCKETS_MIN).min(self.buckets_max);
        if table.buckets.len() >= sweep_at && now_ms >= table.sweep_after_ms {
            table.sweep_after_ms = now_ms + SWEEP_INTERVAL_MS;
            table
                .buckets
                .retain(|_, (kind, bucket)| !bucket.is_full(self.rates[*kind as usize], now_ms));
            table.sweep_at = 2 * table.buckets.len();
            table.buckets.shrink_to(table.sweep_at);
        }
        if table.buckets.len() >= self.buckets_max {
            return Err(Duration::from_millis(SWEEP_INTERVAL_MS));
        }
        let mut bucket = Bucket::full(rate, now_ms);
        bucket.take(rate, now_ms)?;
        table.buckets.insert(key, (kind, bucket));
        Ok(())
    }

    /// Buckets that are kept.
    pub(crate) fn buckets(&self) -> usize {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).buckets.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millrace_protocol::command;

    use super::{Paced, PacedRates, Paces, Rate, RequestClass};

    fn paces(buckets_max: usize) -> Paces {
        let rate = |per_second_max, burst_max| Rate { per_second_max, burst_max };
        let rates = PacedRates {
            pulls: rate(10, 2),
            presence: rate(1, 1),
            reports: rate(10, 1),
            logins: rate(1, 3),
            service_messages: rate(10, 1),
        };
        Paces::new(rates, buckets_max)
    }

    #[test]
    fn each_user_has_a_rate_of_its_own_for_each_kind() {
        let paces = paces(100);
        for _ in 0..2 {
            assert_eq!(paces.take("alice", Paced::Pull, 0), Ok(()));
        }
        let wait = Err(Duration::from_millis(100));
        assert_eq!(paces.take("alice", Paced::Pull, 0), wait);
        assert_eq!(paces.take("bob", Paced::Pull, 0), Ok(()));
        assert_eq!(paces.take("alice", Paced::Presence, 0), Ok(()));
        assert_eq!(paces.take("alice", Paced::Presence, 0), Err(Duration::from_secs(1)));
        assert_eq!(paces.take("alice", Paced::Pull, 100), Ok(()));
        assert_eq!(paces.take("alice", Paced::Pull, 100), wait);
    }

    #[test]
    fn a_full_table_forgets_who_has_been_quiet_and_else_makes_newcomers_wait() {
        let paces = paces(2);
        assert_eq!(paces.take("alice", Paced::Report, 0), Ok(()));
        assert_eq!(paces.take("bob", Paced::Login, 0), Ok(()));
        assert_eq!(paces.take("carol", Paced::Report, 1), Err(Duration::from_secs(1)));
        // Who is in the table is not hindered.
        assert_eq!(paces.take("bob", Paced::Login, 1), Ok(()));
        // A second later alice's bucket is full again and makes room; bob's is not.
        assert_eq!(paces.take("carol", Paced::Report, 1_001), Ok(()));
        assert_eq!(paces.buckets(), 2);
        assert_eq!(paces.take("bob", Paced::Login, 1_001), Ok(()));
    }

    #[test]
    fn a_storm_of_logins_leaves_no_large_table_behind() {
        let paces = paces(1_000_000);
        // 10,000 a second, each user once; a bucket is full again after a second.
        for number in 0..100_000_u64 {
            let user_id = format!("user-{number}");
            assert_eq!(paces.take(&user_id, Paced::Login, number / 10), Ok(()));
        }
        assert!(paces.buckets() <= 30_000, "{}", paces.buckets());
    }

    /// A command that is added to the table has to be given its rate here.
    #[test]
    fn every_command_of_the_table_has_the_rate_that_was_chosen_for_it() {
        use command::*;
        let messages = [SEND_MESSAGE, ROOM_MESSAGE, FORWARD, REVOKE, TYPING].into_iter();
        let messages = messages.chain(CREATE_GROUP..=DISSOLVE_GROUP);
        let pulls = [
            PULL_MESSAGES,
            PULL_CONVERSATIONS,
            PULL_RECEIPTS,
            GROUP_BY_ID,
            GROUP_MEMBERS,
            GROUP_JOIN_REQUESTS,
            SEARCH_MESSAGES,
        ];
        let presence = [QUERY_PRESENCE, SUBSCRIBE_PRESENCE, UNSUBSCRIBE_PRESENCE];
        let logins = [LOGOUT_EVERYWHERE, REGISTER_PUSH, UNREGISTER_PUSH];
        let frames =
            [NOTICE_ACK, DELIVER_ACK, READ, DELETE, UPDATE_CONVERSATION, JOIN_ROOM, LEAVE_ROOM];
        // Never a client's: the gateway answers the first, and the server alone says the others.
        let not_ours = (HEARTBEAT..=REFRESH).chain([NOTICE, DELIVER, RECEIPT, PRESENCE]);
        let chosen: Vec<(u16, RequestClass)> = messages
            .map(|command| (command, RequestClass::Message))
            .chain(pulls.map(|command| (command, RequestClass::Paced(Paced::Pull))))
            .chain(presence.map(|command| (command, RequestClass::Paced(Paced::Presence))))
            .chain(logins.map(|command| (command, RequestClass::Paced(Paced::Login))))
            .chain([(REPORT, RequestClass::Paced(Paced::Report))])
            .chain(frames.map(|command| (command, RequestClass::Frame)))
            .chain(not_ours.map(|command| (command, RequestClass::Frame)))
            .collect();
        for (number, name) in ALL {
            let rates: Vec<_> = chosen.iter().filter(|(command, _)| command == number).collect();
            let [(_, rate)] = rates[..] else { panic!("{name} has {} rates", rates.len()) };
            assert_eq!(RequestClass::of(*number), *rate, "{name}");
        }
        assert_eq!(chosen.len(), ALL.len());
        assert_eq!(RequestClass::of(0x7fff), RequestClass::Frame);
    }
}
