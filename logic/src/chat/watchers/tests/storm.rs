//! Sessions that subscribe, leave and come back while users come and go, and answers and look-ups that
//! are late: when it is quiet, each session knows how it is, and nothing is left behind.

use std::collections::HashMap;

use millrace_protocol::{chat::UserPresence, link::Encoding};

use super::{SubscriberId, Ticket, Watchers, WatchersMax, address, is_empty, names, state};

const USERS: [&str; 4] = ["a", "b", "c", "d"];
const SESSIONS: std::ops::RangeInclusive<u64> = 1..=3;

/// `MILLRACE_SEED` runs one seed alone.
#[test]
fn in_the_end_every_subscriber_knows_how_it_is() {
    let only = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let mut checked = 0;
    for seed in only.map_or(0..2_000, |seed| seed..seed + 1) {
        let mut storm = Storm::new(seed);
        for _ in 0..120 {
            storm.step();
        }
        storm.settle();
        checked += storm.check();
        for session_id in SESSIONS {
            storm.watchers.forget(SubscriberId::Session(address(session_id)));
        }
        storm.settle();
        assert!(is_empty(&storm.watchers), "seed {seed}");
    }
    assert!(only.is_some() || checked > 2_000, "the storms leave nothing to check: {checked}");
}

struct Storm {
    seed: u64,
    random: fastrand::Rng,
    watchers: Watchers,
    /// On how many platforms each user is.
    actual: [usize; 4],
    /// What each session has heard last of each user.
    known: HashMap<(u64, String), UserPresence>,
    /// Looked up for a subscription of a session, and not answered yet.
    answers: Vec<(u64, Ticket, Vec<UserPresence>)>,
    /// Looked up by the one task that tells, and not told yet.
    found: Option<(Ticket, Vec<UserPresence>)>,
}

fn described(user: usize, platforms: usize) -> UserPresence {
    state(USERS[user], &["ios", "web"][..platforms])
}

fn number(user: &str) -> usize {
    USERS.iter().position(|name| *name == user).expect("one of them")
}

impl Storm {
    fn new(seed: u64) -> Self {
        let max = WatchersMax { subscriptions_per_session: 4, subscriptions: 10, services: 0 };
        Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            watchers: Watchers::new(max, 1_000),
            actual: [0; 4],
            known: HashMap::new(),
            answers: Vec::new(),
            found: None,
        }
    }

    fn look_up(&self, users: &[&str]) -> Vec<UserPresence> {
        let found = |user: &&str| described(number(user), self.actual[number(user)]);
        users.iter().map(found).collect()
    }

    fn step(&mut self) {
        let session_id = self.random.u64(SESSIONS);
        let id = SubscriberId::Session(address(session_id));
        match self.random.u32(0..20) {
            0..6 => {
                let user = self.random.usize(0..USERS.len());
                self.actual[user] = self.random.usize(0..3);
                self.watchers.mark(USERS[user]);
            }
            6..10 => {
                let mut users = USERS;
                self.random.shuffle(&mut users);
                let users = &users[..self.random.usize(1..=USERS.len())];
                let receiver = (address(session_id), Encoding::Protobuf);
                let replace = self.random.bool();
                if let Ok(ticket) = self.watchers.subscribe(receiver, &names(users), replace, 0) {
                    self.answers.push((session_id, ticket, self.look_up(users)));
                }
            }
            10 => self.watchers.forget(id),
            11 => {
                let user = USERS[self.random.usize(0..USERS.len())];
                self.watchers.unsubscribe(address(session_id), &names(&[user]));
            }
            12..16 => self.answer(),
            _ => self.look_or_tell(),
        }
    }

    /// Answers one subscription; the others wait.
    fn answer(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let next = self.random.usize(0..self.answers.len());
        let (session_id, ticket, found) = self.answers.remove(next);
        let known = &mut self.known;
        self.watchers.confirm(ticket, found, |users| {
            known.extend(users.into_iter().map(|user| ((session_id, user.user_id.clone()), user)));
        });
    }

    fn look_or_tell(&mut self) {
        let Some((ticket, found)) = self.found.take() else {
            let (marked, ticket) = self.watchers.take_marked(self.random.usize(1..=USERS.len()));
            let marked: Vec<&str> = marked.iter().map(|user| &**user).collect();
            self.found = Some((ticket, self.look_up(&marked)));
            return;
        };
        let known = &mut self.known;
        self.watchers.tell(ticket, found, |told| {
            for (users, to) in told {
                for (address, _) in to {
                    let key = |user: &UserPresence| (address.session_id, user.user_id.clone());
                    known.extend(users.iter().map(|user| (key(user), user.clone())));
                }
            }
        });
    }

    /// Everything under way comes to its end.
    fn settle(&mut self) {
        while !self.answers.is_empty() {
            self.answer();
        }
        while self.found.is_some() || self.watchers.marked() > 0 {
            self.look_or_tell();
        }
    }

    /// Compares what is known with what is; returns how many subscriptions that were.
    fn check(&self) -> usize {
        let table = self.watchers.table();
        let mut checked = 0;
        for session_id in SESSIONS {
            let id = SubscriberId::Session(address(session_id));
            let Some(subscriber) = table.subscribers.get(&id) else { continue };
            for user in &subscriber.users {
                let known = self.known.get(&(session_id, user.to_string()));
                let expected = described(number(user), self.actual[number(user)]);
                let seed = self.seed;
                assert_eq!(known, Some(&expected), "seed {seed}: session {session_id}, {user}");
                checked += 1;
            }
        }
        checked
    }
}
