//! What business services ask of notices: whom they are for, how long they are kept, and what has
//! become of them.

use std::{collections::VecDeque, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        GetPushRequest, GetPushResponse, PushEvent, PushRequest, PushResponse, PushState,
        PushTargets, WatchPushRequest,
    },
    chat, command,
};
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use uuid::Uuid;

use super::{Chat, Core, notices, receiver::unix_ms, rooms};
use crate::{
    api::push::{PushApi, PushEvents},
    notices::{Audience, Mark, NOTICE_ID_BYTES_MAX, NewNotice, State, Stored},
    storage::{StoreError, conversation_id, limits::USER_ID_BYTES_MAX},
};

/// States of one answer.
const STATES_MAX: usize = 1_000;
const STATES_DEFAULT: usize = 100;

/// Whom a push is for.
enum Targets {
    Users(Vec<String>),
    Rooms(Vec<String>),
    Everyone,
}

fn bad(reason: impl Into<String>) -> Refused {
    Refused::new(Code::BadRequest, reason)
}

impl Core {
    /// A failure of ours, as the caller of the API sees it.
    fn failed(&self, error: &StoreError) -> Refused {
        tracing::error!(%error, "the notices were not read or written");
        let code = error.code();
        Refused::from(code).retry_after(self.retry_after_ms_of(code))
    }

    async fn targets_of(&self, targets: PushTargets) -> Result<Targets, Refused> {
        let PushTargets { mut user_ids, group_ids, room_ids, everyone } = targets;
        let to_users = !user_ids.is_empty() || !group_ids.is_empty();
        match (to_users, !room_ids.is_empty(), everyone) {
            (false, false, true) => return Ok(Targets::Everyone),
            (false, true, false) => {
                if room_ids.len() > self.settings.notice_targets_max {
                    return Err(self.too_many_targets());
                }
                room_ids.iter().try_for_each(|room_id| rooms::check_room_id(room_id))?;
                return Ok(Targets::Rooms(room_ids));
            }
            (true, false, false) => {}
            _ => {
                let reason =
                    "Exactly one is needed: user_ids and group_ids, room_ids, or everyone.";
                return Err(bad(reason));
            }
        }
        if user_ids.iter().any(|id| !(1..=USER_ID_BYTES_MAX).contains(&id.len())) {
            return Err(bad("Each of the user_ids needs 1 to 128 bytes."));
        }
        for group_id in group_ids {
            let members = self.store.members(&conversation_id::group(&group_id)).await;
            let Some(members) = members.map_err(|error| self.failed(&error))? else {
                let reason = format!("There is no group {group_id:?}.");
                return Err(Refused::new(Code::NotFound, reason));
            };
            if user_ids.len() + members.len() > 2 * self.settings.notice_targets_max {
                return Err(self.too_many_targets());
            }
            user_ids.extend(members.iter().map(|user_id| user_id.to_string()));
        }
        user_ids.sort_unstable();
        user_ids.dedup();
        if user_ids.len() > self.settings.notice_targets_max {
            return Err(self.too_many_targets());
        }
        Ok(Targets::Users(user_ids))
    }

    fn too_many_targets(&self) -> Refused {
        let max = self.settings.notice_targets_max;
        let reason = format!("One push may have {max} targets; send several, or to everyone.");
        Refused::new(Code::TooLarge, reason)
    }

    /// Pushes a notice.
    pub(super) async fn push_notice(&self, request: PushRequest) -> Result<PushResponse, Refused> {
        let PushRequest { targets, r#type, body, ttl_ms, notice_id, collapse_key } = request;
        rooms::check_body(self, &body)?;
        if notice_id.len() > NOTICE_ID_BYTES_MAX || collapse_key.len() > NOTICE_ID_BYTES_MAX {
            return Err(bad("notice_id and collapse_key may have 128 bytes each."));
        }
        let ttl_max_ms = self.settings.notice_ttl_max.as_millis() as i64;
        if !(0..=ttl_max_ms).contains(&ttl_ms) {
            return Err(bad(format!("The ttl_ms must be between 0 and {ttl_max_ms}.")));
        }
        let targets = self.targets_of(targets.unwrap_or_default()).await?;
        let default_ms = self.settings.notice_ttl.as_millis() as i64;
        let (audience, kept_ms) = match &targets {
            Targets::Users(user_ids) => {
                (Audience::Users(user_ids.clone()), if ttl_ms == 0 { default_ms } else { ttl_ms })
            }
            Targets::Everyone if ttl_ms > 0 => (Audience::Everyone, ttl_ms),
            Targets::Everyone | Targets::Rooms(_) => (Audience::Live, 0),
        };
        if matches!(targets, Targets::Everyone) {
            rooms::pace_broadcast(self)?;
        }
        let sent_at_ms = unix_ms();
        let notice_id = match notice_id {
            chosen if !chosen.is_empty() => chosen,
            _ => Uuid::now_v7().to_string(),
        };
        let notice = chat::Notice { notice_id: notice_id.clone(), r#type, body, sent_at_ms };
        let new = NewNotice {
            notice: notice.clone(),
            audience,
            expires_at_ms: sent_at_ms.saturating_add(kept_ms),
            collapse_key,
        };
        let mut response = PushResponse {
            notice_id,
            sent_at_ms,
            expires_at_ms: if kept_ms > 0 { sent_at_ms.saturating_add(kept_ms) } else { 0 },
            ..PushResponse::default()
        };
        match self.notices.store.store(new).await.map_err(|error| self.failed(&error))? {
            Stored::New { dropped } => self.notices.tell(self, dropped),
            Stored::Duplicate(known) => {
                response.sent_at_ms = known.sent_at_ms;
                response.expires_at_ms = known.expires_at_ms;
                if known.expires_at_ms == known.sent_at_ms {
                    response.expires_at_ms = 0;
                }
                response.targets = known.targets;
                response.duplicate = true;
                return Ok(response);
            }
            Stored::Full(reason) => {
                let code = Code::OverCapacity;
                let refused = Refused::new(code, format!("No more notices are taken: {reason}."));
                return Err(refused.retry_after(self.retry_after_ms_of(code)));
            }
        }
        self.metrics.notices_stored.inc();
        match targets {
            Targets::Users(user_ids) => {
                let (sessions, marks) = notices::push_live(self, &user_ids, &notice);
                response.targets = user_ids.len() as u64;
                response.sessions = sessions;
                if let Some(peers) = &self.peers {
                    peers.to_users(&user_ids, command::NOTICE, &notice);
                }
                notices::mark(self, marks).await;
            }
            Targets::Rooms(room_ids) => {
                for room_id in room_ids {
                    let publish =
                        self.gateways.publish_room(&room_id, command::NOTICE, &notice, None);
                    response.sessions += publish + self.members_elsewhere(&room_id);
                }
            }
            Targets::Everyone => {
                self.metrics.broadcasts.inc();
                let here = self.gateways.broadcast(command::NOTICE, &notice);
                response.sessions = here + self.sessions_elsewhere();
            }
        }
        Ok(response)
    }
}

#[async_trait]
impl PushApi for Chat {
    async fn push(&self, request: PushRequest) -> Result<PushResponse, Refused> {
        if self.core.is_stopping() {
            let code = Code::LogicUnavailable;
            return Err(Refused::from(code).retry_after(self.core.retry_after_ms_of(code)));
        }
        let pushed = self.core.push_notice(request).await;
        pushed.inspect_err(|refused| self.core.count_refusal(refused.code))
    }

    async fn get_push(&self, request: GetPushRequest) -> Result<GetPushResponse, Refused> {
        let GetPushRequest { notice_id, after_user_id, limit } = request;
        let limit = match limit as usize {
            0 => STATES_DEFAULT,
            limit => limit.min(STATES_MAX),
        };
        let found = self.core.notices.store.states(&notice_id, &after_user_id, limit).await;
        let found = found.map_err(|error| self.core.failed(&error))?.ok_or_else(|| {
            self.core.count_refusal(Code::NotFound);
            Refused::new(Code::NotFound, "There is no such notice, or it was forgotten.")
        })?;
        let summary = &found.summary;
        let has_ended = unix_ms() >= summary.expires_at_ms;
        let shown = |mark: &Mark| {
            let waits = matches!(mark.state, State::Stored | State::Delivered);
            let state = if waits && has_ended { "expired" } else { mark.state.label() };
            PushState { user_id: mark.user_id.clone(), state: state.to_owned(), at_ms: mark.at_ms }
        };
        Ok(GetPushResponse {
            notice_id,
            r#type: summary.kind,
            sent_at_ms: summary.sent_at_ms,
            expires_at_ms: summary.expires_at_ms,
            targets: summary.targets,
            stored: summary.count(State::Stored),
            delivered: summary.count(State::Delivered),
            acked: summary.count(State::Acked),
            dropped: summary.count(State::Dropped),
            states: found.marks.iter().map(shown).collect(),
            complete: found.complete,
        })
    }

    async fn watch_push(&self, request: WatchPushRequest) -> Result<PushEvents, Refused> {
        let core = self.core.clone();
        let place = core.waiting_place()?;
        // Before what has happened is read, so that nothing falls in between.
        let events = core.notices.events.subscribe();
        let mut before = VecDeque::new();
        let notice_id = request.notice_id;
        let mut after = String::new();
        while !notice_id.is_empty() {
            let page = core.notices.store.states(&notice_id, &after, STATES_MAX).await;
            let page = page.map_err(|error| core.failed(&error))?;
            let Some(page) = page else {
                return Err(Refused::new(Code::NotFound, "There is no such notice."));
            };
            if let Some(last) = page.marks.last() {
                after.clone_from(&last.user_id);
            }
            before.extend(page.marks.into_iter().filter(|mark| mark.state != State::Stored));
            if page.complete || before.len() > core.settings.notice_targets_max {
                break;
            }
        }
        let watching = Watching { core, notice_id, before, events, _place: place };
        Ok(stream::unfold(Some(watching), Watching::next).boxed())
    }
}

/// A stream of events.
struct Watching {
    core: Arc<Core>,
    /// Empty: all.
    notice_id: String,
    before: VecDeque<Mark>,
    events: broadcast::Receiver<Mark>,
    _place: OwnedSemaphorePermit,
}

impl Watching {
    /// The next event, or the refusal that ends the stream.
    async fn next(this: Option<Self>) -> Option<(Result<PushEvent, Refused>, Option<Self>)> {
        let mut this = this?;
        loop {
            let mark = match this.before.pop_front() {
                Some(mark) => Ok(mark),
                None => tokio::select! {
                    event = this.events.recv() => event,
                    () = this.core.stop.said() => return None,
                },
            };
            match mark {
                Ok(mark) if this.notice_id.is_empty() || mark.notice_id == this.notice_id => {
                    let Mark { notice_id, user_id, state, at_ms } = mark;
                    let state = state.label().to_owned();
                    return Some((Ok(PushEvent { notice_id, user_id, state, at_ms }), Some(this)));
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let reason =
                        format!("{missed} events were missed: read the states, watch again.");
                    let refused = Refused::new(Code::OverCapacity, reason);
                    this.core.count_refusal(refused.code);
                    return Some((Err(refused), None));
                }
            }
        }
    }
}
