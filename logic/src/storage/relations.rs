//! Where friends, requests and blocks live: the trait [`RelationStore`], and [`transition`], the rules
//! that every store applies inside its transaction.
//!
//! A relation has two rows, one for what each of the two sees. Both change together. Every user has
//! a counter, which grows with each change of one of their rows, so that a device finds what it has
//! missed by its version. A relation that ended leaves an empty row behind, for the devices that
//! have to hear of it; of those only so many are kept ([`RelationLimits::ended_max`]).

use async_trait::async_trait;
use millrace_protocol::Code;

use super::StoreError;

#[cfg(test)]
pub(crate) mod conformance;

/// Longest message of a request, in bytes.
pub const REQUEST_MESSAGE_BYTES_MAX: usize = 512;

/// What one user sees of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    /// The other one.
    pub other_id: String,
    /// They are friends.
    pub friend: bool,
    /// This user blocks the other.
    pub blocked: bool,
    /// The other has asked this user.
    pub incoming: bool,
    /// This user has asked the other.
    pub outgoing: bool,
    /// Of the open request.
    pub message: String,
    /// In milliseconds since 1970; 0 if they are no friends.
    pub friends_since_ms: i64,
    /// In milliseconds since 1970.
    pub updated_at_ms: i64,
    /// Which change of this user's relations was the newest of this one; 0: never any.
    pub version: u64,
}

impl Relation {
    /// They have nothing to do with each other (any more).
    pub fn is_ended(&self) -> bool {
        !(self.friend || self.blocked || self.incoming || self.outgoing)
    }
}

/// What a user does about another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Asks to be a friend. Who was asked by the other becomes a friend at once.
    Request {
        /// Shown to the other.
        message: String,
    },
    /// Accepts the other's request.
    Accept,
    /// Rejects the other's request.
    Reject,
    /// Takes the own request back.
    Cancel,
    /// Ends the friendship, on both sides.
    Remove,
    /// Takes no more messages and requests from the other. Open requests between the two end; a
    /// friendship stays and is what it was after [`Act::Unblock`].
    Block,
    /// Takes messages and requests again.
    Unblock,
}

/// How many relations a user may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationLimits {
    /// Friends of one user. Full, on either side: `over_capacity`.
    pub friends_max: u64,
    /// Open requests to one user. Full: `over_capacity` for who asks.
    pub incoming_max: u64,
    /// Open requests of one user. Full: `over_capacity`.
    pub outgoing_max: u64,
    /// Users that one user blocks. Full: `over_capacity`.
    pub blocks_max: u64,
    /// Ended relations that are remembered for a user's devices. Full: the oldest half is forgotten,
    /// and a device that has not heard of them lists from the beginning.
    pub ended_max: u64,
}

impl Default for RelationLimits {
    fn default() -> Self {
        Self {
            friends_max: 5_000,
            incoming_max: 500,
            outgoing_max: 500,
            blocks_max: 1_000,
            ended_max: 1_000,
        }
    }
}

/// What became of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acted {
    /// It was done, or was so already.
    Done {
        /// What the acting user sees now.
        own: Relation,
        /// What the other sees now.
        others: Relation,
        /// The acting user's row changed.
        own_changed: bool,
        /// The other's row changed.
        others_changed: bool,
    },
    /// It is not possible; nothing has changed.
    Refused {
        /// `blocked`, `already_exists`, `not_found`, `bad_request` or `over_capacity`.
        code: Code,
        /// A sentence for a person.
        reason: &'static str,
    },
}

/// Which relations to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationFilter {
    /// Every one that has not ended.
    All,
    /// Friends.
    Friends,
    /// Open requests of others.
    Incoming,
    /// Own open requests.
    Outgoing,
    /// Blocked users.
    Blocked,
}

impl RelationFilter {
    /// Whether a relation is one of those.
    pub fn matches(self, relation: &Relation) -> bool {
        match self {
            Self::All => !relation.is_ended(),
            Self::Friends => relation.friend,
            Self::Incoming => relation.incoming,
            Self::Outgoing => relation.outgoing,
            Self::Blocked => relation.blocked,
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelationPage {
    /// By increasing version.
    pub relations: Vec<Relation>,
    /// What to pass as `after` for the next page; 0 when this was the last.
    pub next: u64,
    /// The user's counter when this page was read.
    pub version: u64,
    /// The changes since `since_version` are not known any more.
    pub reset: bool,
}

/// Of [`RelationStore::changed`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelationNews {
    /// Rows that were looked at.
    pub rows: usize,
    /// Users who block somebody.
    pub blockers: Vec<String>,
    /// Relations that changed: whose they are, and to whom.
    pub relations: Vec<(String, String)>,
}

/// A durable store of relations. Every change is durable when it is answered.
#[async_trait]
pub trait RelationStore: Send + Sync + 'static {
    /// Applies [`transition`] and the limits in one transaction. The two users differ.
    ///
    /// # Errors
    /// The store's own failures, here and everywhere below.
    async fn act(
        &self,
        user_id: &str,
        other_id: &str,
        act: Act,
        limits: RelationLimits,
        now_ms: i64,
    ) -> Result<Acted, StoreError>;

    /// What a user sees of another; an empty relation of version 0 if there never was any.
    async fn relation(&self, user_id: &str, other_id: &str) -> Result<Relation, StoreError>;

    /// A user's relations with a version above `since_version` and `after`, at most `limit`. With a
    /// `since_version` of 0 those that the filter matches; else all that changed, ended ones too.
    async fn relations(
        &self,
        user_id: &str,
        filter: RelationFilter,
        since_version: u64,
        after: u64,
        limit: usize,
    ) -> Result<RelationPage, StoreError>;

    /// Calls `each` for every user who blocks somebody.
    async fn each_blocker(
        &self,
        each: Box<dyn for<'a> FnMut(&'a str) + Send>,
    ) -> Result<(), StoreError>;

    /// Some of what was changed, by whomever, since the store was opened or since the last call;
    /// without rows when there is no more. Where nobody else writes there is nothing.
    async fn changed(&self) -> Result<RelationNews, StoreError> {
        Ok(RelationNews::default())
    }
}

/// What an act does to the two rows of a relation, apart from versions, times and limits. Err: the
/// code and the sentence of the refusal.
pub fn transition(
    act: &Act,
    own: &mut Relation,
    others: &mut Relation,
) -> Result<(), (Code, &'static str)> {
    match act {
        Act::Request { message } => {
            if own.blocked {
                let reason = "You block this user; unblock them first.";
                return Err((Code::BadRequest, reason));
            }
            if others.blocked {
                return Err((Code::Blocked, "This user does not take requests from you."));
            }
            if own.friend {
                return Err((Code::AlreadyExists, "You are friends already."));
            }
            if own.incoming {
                befriend(own, others);
            } else {
                (own.outgoing, others.incoming) = (true, true);
                message.clone_into(&mut own.message);
                message.clone_into(&mut others.message);
            }
        }
        Act::Accept if own.incoming => befriend(own, others),
        Act::Reject if own.incoming => end_requests(own, others),
        Act::Accept | Act::Reject => {
            return Err((Code::NotFound, "There is no open request from this user."));
        }
        Act::Cancel if own.outgoing => end_requests(own, others),
        Act::Cancel => return Err((Code::NotFound, "You have no open request to this user.")),
        Act::Remove if own.friend => (own.friend, others.friend) = (false, false),
        Act::Remove => return Err((Code::NotFound, "You are not friends.")),
        Act::Block => {
            end_requests(own, others);
            own.blocked = true;
        }
        Act::Unblock => own.blocked = false,
    }
    Ok(())
}

fn befriend(own: &mut Relation, others: &mut Relation) {
    end_requests(own, others);
    (own.friend, others.friend) = (true, true);
}

fn end_requests(own: &mut Relation, others: &mut Relation) {
    for relation in [own, others] {
        (relation.incoming, relation.outgoing) = (false, false);
        relation.message.clear();
    }
}
