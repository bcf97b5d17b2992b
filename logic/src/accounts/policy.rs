//! Who may write to whom in a single chat: a [`SendGate`] from the relations of the receiver.
//!
//! It costs nothing where it decides nothing. With [`SendPolicy::NotBlocked`], the default, a message
//! is only looked at if its receiver may block somebody, which a filter in memory of a fixed size
//! says: it forgets nobody until the next start, and may take somebody for a blocker who is none,
//! which costs a look-up. With [`SendPolicy::Friends`] the relations that were looked up are
//! remembered, so many and no more.
//!
//! [`FriendsPresence`] says by the same relations who sees whether somebody is online.
//!
//! What another process changes on the same store is heard of by [`Follow`], a moment later.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{Code, chat::Attachment};

use crate::{
    cache::Cache,
    chat::{PresencePolicy, SendGate},
    storage::{
        StoreError, Target,
        relations::{RelationNews, RelationStore},
        side::Follow,
    },
};

/// Who may write to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendPolicy {
    /// Everybody; relations are not looked at.
    Everyone,
    /// Everybody whom the user does not block.
    NotBlocked,
    /// Friends whom the user does not block.
    Friends,
}

/// The settings of [`FriendsPolicy`].
#[derive(Clone, Debug)]
pub struct PolicySettings {
    /// Who may write to a user.
    pub send: SendPolicy,
    /// Users who may write to everybody, a help desk say.
    pub exempt_senders: Vec<String>,
    /// Relations remembered. Full: those not used lately are looked up again.
    pub cached_relations_max: usize,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self { send: SendPolicy::NotBlocked, exempt_senders: vec![], cached_relations_max: 200_000 }
    }
}

/// Bits of the filter of blockers: 128 KiB, in which 50,000 blockers make about one user in twenty
/// look like one.
const FILTER_BITS: usize = 1 << 20;

/// See the module.
pub struct FriendsPolicy {
    store: Arc<dyn RelationStore>,
    send: SendPolicy,
    exempt_senders: HashSet<String>,
    blockers: Blockers,
    cache: Mutex<Remembered>,
}

/// What a receiver's row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    friend: bool,
    blocked: bool,
}

struct Remembered {
    /// By receiver and sender.
    verdicts: Cache<(String, String), Verdict>,
    /// Grows with every change, so that what was read before it is not remembered after it.
    changes: u64,
}

/// Users who may block somebody. A user that was put in is always found.
struct Blockers {
    any: AtomicBool,
    hasher: RandomState,
    bits: Box<[AtomicU64]>,
}

impl Blockers {
    fn new() -> Self {
        let bits = (0..FILTER_BITS / 64).map(|_| AtomicU64::new(0)).collect();
        Self { any: AtomicBool::new(false), hasher: RandomState::new(), bits }
    }

    fn place(&self, user_id: &str) -> (usize, u64) {
        let bit = self.hasher.hash_one(user_id) as usize % FILTER_BITS;
        (bit / 64, 1 << (bit % 64))
    }

    fn insert(&self, user_id: &str) {
        let (word, bit) = self.place(user_id);
        self.bits[word].fetch_or(bit, Ordering::Relaxed);
        self.any.store(true, Ordering::Release);
    }

    fn may_hold(&self, user_id: &str) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let (word, bit) = self.place(user_id);
        self.bits[word].load(Ordering::Relaxed) & bit != 0
    }
}

impl FriendsPolicy {
    /// The policy over a store; reads who blocks somebody.
    ///
    /// # Errors
    /// The store's own failures.
    pub async fn new(
        store: Arc<dyn RelationStore>,
        settings: PolicySettings,
    ) -> Result<Arc<Self>, StoreError> {
        let policy = Arc::new(Self {
            store,
            send: settings.send,
            exempt_senders: settings.exempt_senders.into_iter().collect(),
            blockers: Blockers::new(),
            cache: Mutex::new(Remembered {
                verdicts: Cache::new(settings.cached_relations_max, |_| 1),
                changes: 0,
            }),
        });
        let found = Arc::clone(&policy);
        policy.store.each_blocker(Box::new(move |user_id| found.blockers.insert(user_id))).await?;
        Ok(policy)
    }

    /// Somebody is about to block: to be said before it is stored.
    pub(super) fn will_block(&self, user_id: &str) {
        self.blockers.insert(user_id);
    }

    /// The relation of two users has changed.
    pub(super) fn forget(&self, user_id: &str, other_id: &str) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.changes += 1;
        cache.verdicts.remove(&(user_id.to_owned(), other_id.to_owned()));
        cache.verdicts.remove(&(other_id.to_owned(), user_id.to_owned()));
    }

    /// What the receiver's row says of the sender.
    async fn verdict(&self, sender_id: &str, receiver_id: &str) -> Result<Verdict, StoreError> {
        let key = (receiver_id.to_owned(), sender_id.to_owned());
        let changes = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(verdict) = cache.verdicts.get(&key) {
                return Ok(*verdict);
            }
            cache.changes
        };
        let relation = self.store.relation(receiver_id, sender_id).await?;
        let verdict = Verdict { friend: relation.friend, blocked: relation.blocked };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.changes == changes {
            cache.verdicts.insert(key, verdict);
        }
        Ok(verdict)
    }
}

#[async_trait]
impl Follow for FriendsPolicy {
    async fn follow(&self) -> Result<(), StoreError> {
        loop {
            let RelationNews { rows, blockers, relations } = self.store.changed().await?;
            if rows == 0 {
                return Ok(());
            }
            blockers.iter().for_each(|user_id| self.blockers.insert(user_id));
            for (user_id, other_id) in relations {
                self.forget(&user_id, &other_id);
            }
        }
    }
}

#[async_trait]
impl SendGate for FriendsPolicy {
    fn needs_check(&self, sender_id: &str, target: &Target, _: Option<&Attachment>) -> bool {
        let Target::User(receiver_id) = target else { return false };
        match self.send {
            SendPolicy::Everyone => false,
            SendPolicy::NotBlocked => self.blockers.may_hold(receiver_id),
            SendPolicy::Friends => receiver_id != sender_id,
        }
    }

    async fn check(
        &self,
        sender_id: &str,
        target: &Target,
        _: &mut Option<Attachment>,
    ) -> Result<(), Refused> {
        let Target::User(receiver_id) = target else { return Ok(()) };
        // A note to oneself asks nobody.
        if receiver_id == sender_id || self.exempt_senders.contains(sender_id) {
            return Ok(());
        }
        let verdict = self.verdict(sender_id, receiver_id).await.map_err(|error| {
            tracing::error!(%error, "a relation was not read");
            Refused::from(error.code())
        })?;
        if verdict.blocked {
            return Err(Refused::from(Code::Blocked));
        }
        if self.send == SendPolicy::Friends && !verdict.friend {
            return Err(Refused::from(Code::NotFriends));
        }
        Ok(())
    }
}

/// Friends, whom one does not block, see whether one is online; others do not.
pub struct FriendsPresence(pub Arc<FriendsPolicy>);

#[async_trait]
impl PresencePolicy for FriendsPresence {
    async fn visible(&self, viewer_id: &str, user_ids: &[String]) -> Result<Vec<bool>, Refused> {
        let mut visible = Vec::with_capacity(user_ids.len());
        for user_id in user_ids {
            let verdict = self.0.verdict(viewer_id, user_id).await.map_err(|error| {
                tracing::error!(%error, "a relation was not read");
                Refused::from(error.code())
            })?;
            visible.push(viewer_id == user_id || (verdict.friend && !verdict.blocked));
        }
        Ok(visible)
    }
}

#[cfg(test)]
mod tests {
    use super::{FriendsPolicy, FriendsPresence, PolicySettings, SendPolicy};
    use crate::{
        chat::{PresencePolicy as _, SendGate as _},
        storage::{
            Store as _, Target,
            embedded::{EmbeddedStore, tests::options},
            relations::{Act, RelationLimits, RelationStore},
            side::RelationTable,
        },
    };
    use millrace_protocol::Code;
    use std::sync::Arc;

    async fn may(policy: &FriendsPolicy, sender: &str, receiver: &str) -> Result<(), Code> {
        let target = Target::User(receiver.to_owned());
        if !policy.needs_check(sender, &target, None) {
            return Ok(());
        }
        policy.check(sender, &target, &mut None).await.map_err(|refused| refused.code)
    }

    async fn act(store: &RelationTable, policy: &FriendsPolicy, a: &str, b: &str, what: Act) {
        if what == Act::Block {
            policy.will_block(a);
        }
        store.act(a, b, what, RelationLimits::default(), 1).await.unwrap();
        policy.forget(a, b);
    }

    #[tokio::test]
    async fn each_policy_decides_by_what_the_receiver_says_at_that_moment() {
        let directory = tempfile::tempdir().unwrap();
        let embedded = EmbeddedStore::open(options(directory.path())).unwrap();
        let store = Arc::new(RelationTable::open(&embedded).await.unwrap());
        let policy = async |send, exempt: &[&str]| {
            let exempt_senders = exempt.iter().map(|id| (*id).to_owned()).collect();
            let settings = PolicySettings { send, exempt_senders, cached_relations_max: 8 };
            FriendsPolicy::new(store.clone(), settings).await.unwrap()
        };
        let open = policy(SendPolicy::NotBlocked, &[]).await;
        assert!(!open.needs_check("a", &Target::User("b".into()), None), "nobody blocks anybody");
        act(&store, &open, "b", "a", Act::Block).await;
        assert_eq!(may(&open, "a", "b").await, Err(Code::Blocked));
        assert_eq!(may(&open, "c", "b").await, Ok(()));
        assert_eq!(may(&open, "b", "a").await, Ok(()), "who blocks may write all the same");
        // A later start knows who blocks.
        let again = policy(SendPolicy::NotBlocked, &[]).await;
        assert_eq!(may(&again, "a", "b").await, Err(Code::Blocked));
        let group = Target::Group("b".into());
        assert!(!again.needs_check("a", &group, None));
        act(&store, &open, "b", "a", Act::Unblock).await;
        assert_eq!(may(&open, "a", "b").await, Ok(()));

        let friends = policy(SendPolicy::Friends, &["help-desk"]).await;
        assert_eq!(may(&friends, "a", "b").await, Err(Code::NotFriends));
        assert_eq!(may(&friends, "a", "a").await, Ok(()), "a note to oneself");
        assert_eq!(may(&friends, "help-desk", "b").await, Ok(()));
        act(&store, &friends, "a", "b", Act::Request { message: String::new() }).await;
        assert_eq!(may(&friends, "b", "a").await, Err(Code::NotFriends));
        act(&store, &friends, "b", "a", Act::Accept).await;
        assert_eq!(
            (may(&friends, "a", "b").await, may(&friends, "b", "a").await),
            (Ok(()), Ok(()))
        );
        act(&store, &friends, "a", "b", Act::Block).await;
        assert_eq!(may(&friends, "b", "a").await, Err(Code::Blocked), "a block wins");
        assert_eq!(may(&friends, "a", "b").await, Ok(()));
        act(&store, &friends, "a", "b", Act::Remove).await;
        assert_eq!(may(&friends, "a", "b").await, Err(Code::NotFriends));

        let everyone = policy(SendPolicy::Everyone, &[]).await;
        assert_eq!(may(&everyone, "b", "a").await, Ok(()));
        embedded.close().await.unwrap();
    }

    #[tokio::test]
    async fn friends_who_are_not_blocked_see_who_is_online() {
        let directory = tempfile::tempdir().unwrap();
        let embedded = EmbeddedStore::open(options(directory.path())).unwrap();
        let store = Arc::new(RelationTable::open(&embedded).await.unwrap());
        let policy = FriendsPolicy::new(store.clone(), PolicySettings::default()).await.unwrap();
        let presence = FriendsPresence(policy.clone());
        for other in ["b", "c"] {
            act(&store, &policy, "a", other, Act::Request { message: String::new() }).await;
            act(&store, &policy, other, "a", Act::Accept).await;
        }
        act(&store, &policy, "c", "a", Act::Block).await;
        let users = ["a", "b", "c", "d"].map(str::to_owned);
        assert_eq!(presence.visible("a", &users).await.unwrap(), [true, true, false, false]);
        assert_eq!(presence.visible("c", &users).await.unwrap(), [true, false, true, false]);
        embedded.close().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let embedded = EmbeddedStore::open(options(directory.path())).unwrap();
        let store = Arc::new(RelationTable::open(&embedded).await.unwrap());
        let settings = PolicySettings {
            send: SendPolicy::Friends,
            cached_relations_max: 4,
            ..PolicySettings::default()
        };
        let policy = FriendsPolicy::new(store, settings).await.unwrap();
        for n in 0..20 {
            assert_eq!(may(&policy, &format!("sender{n}"), "b").await, Err(Code::NotFriends));
        }
        assert!(policy.cache.lock().unwrap().verdicts.len() <= 4);
        embedded.close().await.unwrap();
    }
}
