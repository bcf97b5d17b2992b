//! Sessions that come and go at two processes while something happens to Redis.

use super::*;

/// Sessions that come and go at two processes, and what is then true.
pub(super) struct Load {
    pair: Arc<Pair>,
    random: fastrand::Rng,
    online: BTreeMap<(String, u64), SessionRecord>,
    now_ms: i64,
}

impl Load {
    pub(super) fn new(pair: &Arc<Pair>, seed: u64) -> Self {
        println!("seed {seed}");
        let random = fastrand::Rng::with_seed(seed);
        Self { pair: Arc::clone(pair), random, online: BTreeMap::new(), now_ms: 0 }
    }

    /// Some starts and ends at once, each of another user.
    pub(super) async fn go_on(&mut self, acts: usize) {
        let mut users: Vec<u32> = (0..300).collect();
        self.random.shuffle(&mut users);
        let mut calls = Vec::new();
        for user in users.into_iter().take(acts) {
            let (user, id) = (format!("user-{user}"), self.random.u64(..4));
            let key = (user.clone(), id);
            self.now_ms += 1;
            let pair = Arc::clone(&self.pair);
            if let Some(session) = self.online.remove(&key) {
                calls.push(tokio::spawn(async move {
                    assert_eq!(pair.offline(&session).await, Ok(true), "its own end is known");
                }));
            } else {
                let session = record(&user, id, self.now_ms);
                self.online.insert(key, session.clone());
                calls.push(tokio::spawn(async move {
                    pair.online(session).await.expect("a start never fails");
                }));
            }
        }
        for call in calls {
            call.await.expect("no panic");
        }
    }

    fn expected(&self) -> Vec<SessionRecord> {
        let mut all: Vec<_> = self.online.values().cloned().collect();
        all.sort_by(|a, b| (&a.user_id, a.logged_in_at_ms).cmp(&(&b.user_id, b.logged_in_at_ms)));
        all
    }

    /// Both, and one that serves nobody, come to say what is so.
    pub(super) async fn settles(&self, settings: &RedisSettings, what: &str) {
        let watching = started(settings).await;
        for registry in self.pair.both.iter().chain([&watching]) {
            let expected = self.expected();
            // Only what differs, so that it can be read.
            let wrong = async || {
                let found = registry.list("", 1_000).await.expect("listed");
                let mut wrong: Vec<String> = Vec::new();
                let missing = expected.iter().filter(|session| !found.contains(session));
                wrong.extend(missing.map(|session| format!("missing: {session:?}")));
                let invented = found.iter().filter(|session| !expected.contains(session));
                wrong.extend(invented.map(|session| format!("invented: {session:?}")));
                if wrong.is_empty() && found != expected {
                    wrong.push("all there, but in a wrong order or twice".to_owned());
                }
                wrong
            };
            eventually(what, wrong, Vec::<String>::new()).await;
            let users: std::collections::BTreeSet<_> = self.online.keys().map(|(u, _)| u).collect();
            let count = Online { users: users.len(), sessions: self.online.len() };
            eventually(what, async || registry.count().await.expect("counted"), count).await;
        }
    }
}
