//! Friends, requests and blocks: answers [`FriendsApi`], tells both sides' devices, and keeps the
//! policy's memory true.
//!
//! # Notices
//! Each act pushes a NOTICE to the devices of whom it concerns, of one of these types. The body is
//! JSON: `{"event", "user_id", "by", "message", "version"}`, where `user_id` is the other one as the
//! receiver sees it, `by` who acted, and `version` that of the receiver's list.
//!
//! | type | event | who hears it |
//! |---|---|---|
//! | 100 | `friend_requested` | both |
//! | 101 | `friend_accepted` | both |
//! | 102 | `friend_rejected` | both |
//! | 103 | `friend_request_cancelled` | both |
//! | 104 | `friend_removed` | both |
//! | 105 | `user_blocked` | who blocked; the other only if an open request ended, as 102 or 103 |
//! | 106 | `user_unblocked` | who blocked |
//!
//! A device that was away finds the same by its version.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        ListRelationsRequest, ListRelationsResponse, Relation as ShownRelation, RelationRequest,
        RelationResponse, RequestFriendRequest,
    },
};
use serde::Serialize;

use super::{TextScreen, failed, policy::FriendsPolicy};
use crate::{
    api::{Caller, FriendsApi, unix_ms},
    storage::{
        accounts::AccountStore,
        limits::USER_ID_BYTES_MAX,
        relations::{
            Act, Acted, REQUEST_MESSAGE_BYTES_MAX, Relation, RelationFilter, RelationLimits,
            RelationStore,
        },
    },
};

/// Relations on one page.
const LIST_LIMIT_MAX: u32 = 100;

/// Takes what users' devices are to be told.
#[async_trait]
pub trait NoticeSink: Send + Sync + 'static {
    /// Pushes a NOTICE to a user's devices, those online at least. `body` is JSON.
    async fn notify(&self, user_id: &str, kind: u32, body: String);
}

/// The settings of [`Friends`].
#[derive(Clone, Copy, Debug)]
pub struct FriendsSettings {
    /// How many relations a user may have.
    pub limits: RelationLimits,
    /// Only registered users can be asked and blocked.
    pub registered_only: bool,
}

impl Default for FriendsSettings {
    fn default() -> Self {
        Self { limits: RelationLimits::default(), registered_only: true }
    }
}

/// See the module.
pub struct Friends {
    store: Arc<dyn RelationStore>,
    accounts: Arc<dyn AccountStore>,
    policy: Arc<FriendsPolicy>,
    notices: Arc<dyn NoticeSink>,
    screen: Arc<dyn TextScreen>,
    settings: FriendsSettings,
}

#[derive(Serialize)]
struct NoticeBody<'a> {
    event: &'static str,
    user_id: &'a str,
    by: &'a str,
    message: &'a str,
    version: u64,
}

impl Friends {
    /// Friends in a store; names come from `accounts`.
    pub fn new(
        store: Arc<dyn RelationStore>,
        accounts: Arc<dyn AccountStore>,
        policy: Arc<FriendsPolicy>,
        notices: Arc<dyn NoticeSink>,
        screen: Arc<dyn TextScreen>,
        settings: FriendsSettings,
    ) -> Self {
        Self { store, accounts, policy, notices, screen, settings }
    }

    async fn act(
        &self,
        caller: &Caller,
        request: RelationRequest,
        act: Act,
    ) -> Result<RelationResponse, Refused> {
        let RelationRequest { user_id, other_id } = request;
        let user_id = caller.acting_as(&user_id)?;
        let other_id = self.check_other(&user_id, other_id)?;
        let may_be_anybody = !matches!(act, Act::Request { .. } | Act::Block);
        if self.settings.registered_only && !may_be_anybody {
            let found = self.accounts.accounts(vec![other_id.clone()]).await;
            if !matches!(found.map_err(|error| failed(&error))?.pop(), Some(Some(_))) {
                return Err(Refused::new(Code::NotFound, "There is no such user."));
            }
        }
        if act == Act::Block {
            self.policy.will_block(&user_id);
        }
        let acted =
            self.store.act(&user_id, &other_id, act.clone(), self.settings.limits, unix_ms()).await;
        match acted.map_err(|error| failed(&error))? {
            Acted::Refused { code, reason } => Err(Refused::new(code, reason)),
            Acted::Done { own, others, own_changed, others_changed } => {
                if own_changed || others_changed {
                    self.policy.forget(&user_id, &other_id);
                }
                if own_changed {
                    self.tell(&user_id, &own, &user_id, &act).await;
                }
                if others_changed {
                    self.tell(&other_id, &others, &user_id, &act).await;
                }
                let relation = self.shown(vec![own]).await?.pop();
                Ok(RelationResponse { relation })
            }
        }
    }

    fn check_other(&self, user_id: &str, other_id: String) -> Result<String, Refused> {
        if !(1..=USER_ID_BYTES_MAX).contains(&other_id.len()) {
            let reason = "An other_id of 1 to 128 bytes is needed.";
            return Err(Refused::new(Code::BadRequest, reason));
        }
        if other_id == user_id {
            return Err(Refused::new(Code::BadRequest, "One cannot do that with oneself."));
        }
        Ok(other_id)
    }

    /// Tells one side's devices.
    async fn tell(&self, receiver: &str, relation: &Relation, by: &str, act: &Act) {
        let is_own = receiver == by;
        let (kind, event) = match act {
            // Whoever asks somebody who has asked them has accepted.
            Act::Request { .. } if relation.friend => (101, "friend_accepted"),
            Act::Request { .. } => (100, "friend_requested"),
            Act::Accept => (101, "friend_accepted"),
            Act::Reject => (102, "friend_rejected"),
            Act::Cancel => (103, "friend_request_cancelled"),
            Act::Remove => (104, "friend_removed"),
            Act::Block if is_own => (105, "user_blocked"),
            // The other hears of the request that ended, not of the block.
            Act::Block => (102, "friend_rejected"),
            Act::Unblock => (106, "user_unblocked"),
        };
        let body = NoticeBody {
            event,
            user_id: &relation.other_id,
            by,
            message: &relation.message,
            version: relation.version,
        };
        match serde_json::to_string(&body) {
            Ok(body) => self.notices.notify(receiver, kind, body).await,
            Err(error) => tracing::error!(%error, "a notice has no JSON form"),
        }
    }

    /// Relations as callers see them, with names and avatars.
    async fn shown(&self, relations: Vec<Relation>) -> Result<Vec<ShownRelation>, Refused> {
        let ids = relations.iter().map(|relation| relation.other_id.clone()).collect();
        let accounts = self.accounts.accounts(ids).await.map_err(|error| failed(&error))?;
        let shown = relations.into_iter().zip(accounts).map(|(relation, account)| {
            let account = account.unwrap_or_default();
            ShownRelation {
                user_id: relation.other_id,
                friend: relation.friend,
                blocked: relation.blocked,
                request_incoming: relation.incoming,
                request_outgoing: relation.outgoing,
                message: relation.message,
                friends_since_ms: relation.friends_since_ms,
                updated_at_ms: relation.updated_at_ms,
                version: relation.version,
                name: account.name,
                avatar: account.avatar,
            }
        });
        Ok(shown.collect())
    }
}

#[async_trait]
impl FriendsApi for Friends {
    async fn request_friend(
        &self,
        caller: &Caller,
        request: RequestFriendRequest,
    ) -> Result<RelationResponse, Refused> {
        let RequestFriendRequest { user_id, other_id, mut message } = request;
        if message.len() > REQUEST_MESSAGE_BYTES_MAX {
            let bytes = message.len();
            let reason =
                format!("The message has {bytes} bytes; it may have {REQUEST_MESSAGE_BYTES_MAX}.");
            return Err(Refused::new(Code::TooLarge, reason));
        }
        let asking = caller.acting_as(&user_id)?;
        self.screen.screen(&asking, &other_id, &mut message)?;
        self.act(caller, RelationRequest { user_id, other_id }, Act::Request { message }).await
    }

    async fn accept_friend(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused> {
        self.act(caller, request, Act::Accept).await
    }

    async fn reject_friend(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused> {
        self.act(caller, request, Act::Reject).await
    }

    async fn cancel_friend_request(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused> {
        self.act(caller, request, Act::Cancel).await
    }

    async fn remove_friend(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused> {
        self.act(caller, request, Act::Remove).await
    }

    async fn block_user(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused> {
        self.act(caller, request, Act::Block).await
    }

    async fn unblock_user(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<RelationResponse, Refused> {
        self.act(caller, request, Act::Unblock).await
    }

    async fn get_relation(
        &self,
        caller: &Caller,
        request: RelationRequest,
    ) -> Result<ShownRelation, Refused> {
        let user_id = caller.acting_as(&request.user_id)?;
        let other_id = self.check_other(&user_id, request.other_id)?;
        let found = self.store.relation(&user_id, &other_id).await;
        let relation = found.map_err(|error| failed(&error))?;
        self.shown(vec![relation]).await?.pop().ok_or_else(|| Refused::from(Code::Internal))
    }

    async fn list_relations(
        &self,
        caller: &Caller,
        request: ListRelationsRequest,
    ) -> Result<ListRelationsResponse, Refused> {
        let ListRelationsRequest { user_id, filter, since_version, after, limit } = request;
        let user_id = caller.acting_as(&user_id)?;
        let filter = match &*filter {
            "" => RelationFilter::All,
            "friends" => RelationFilter::Friends,
            "requests_incoming" => RelationFilter::Incoming,
            "requests_outgoing" => RelationFilter::Outgoing,
            "blocked" => RelationFilter::Blocked,
            other => {
                let reason = format!(
                    "There is no filter {other:?}; there are friends, requests_incoming, \
                     requests_outgoing and blocked."
                );
                return Err(Refused::new(Code::BadRequest, reason));
            }
        };
        let limit = if limit == 0 { LIST_LIMIT_MAX } else { limit.min(LIST_LIMIT_MAX) };
        let listed =
            self.store.relations(&user_id, filter, since_version, after, limit as usize).await;
        let page = listed.map_err(|error| failed(&error))?;
        Ok(ListRelationsResponse {
            relations: self.shown(page.relations).await?,
            next: page.next,
            version: page.version,
            reset: page.reset,
        })
    }
}
