//! SEARCH_MESSAGES: candidates of the index, read from the store as the user may see them.
//!
//! Whatever the index holds, only what the store shows this user goes out, and only if it has what
//! was asked for: a candidate that was revoked, deleted or said before the user came is passed over.

use std::collections::HashMap;

use async_trait::async_trait;
use millrace_logic_sdk::{Inbound, Refused};
use millrace_protocol::{
    Code,
    api::SearchMessagesRequest,
    chat::{Message, SearchMessages, SearchReply},
};
use prost::Message as _;

use super::{Chat, Core, expiry, groups::answer_refused, receiver::decode};
use crate::{
    api::search::SearchApi,
    search::{Hit, Query, SearchError, SearchIndex, searched_text, terms::Wanted},
    storage::{Outcome, StoreError, extras::STATE_NORMAL, limits::USER_ID_BYTES_MAX},
};

const LIMIT_DEFAULT: usize = 20;
const LIMIT_MAX: usize = 50;

/// Longest text to look for, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// Types in one question.
const TYPES_MAX: usize = 16;

/// Candidates that one question reads from the store, and how many at a time.
const CANDIDATES_MAX: usize = 200;
const CANDIDATES_READ: usize = 50;

/// Tells the index what was stored and what was erased, without waiting. What one user has deleted
/// others still find; it is passed over when that user asks.
pub(crate) fn note(index: &dyn SearchIndex, outcome: &Outcome) {
    match outcome {
        Outcome::Appended { message, duplicate: false, version, .. } => {
            index.stored(message, *version);
        }
        Outcome::Forwarded { messages, duplicate: false, version, .. } => {
            // The version is that of the last; each has one more than the one before.
            let first = (version + 1).saturating_sub(messages.len() as u64);
            for (message, version) in messages.iter().zip(first..) {
                index.stored(message, version);
            }
        }
        Outcome::Erased { message, changed: true, version, .. } => {
            index.erased(&message.conversation_id, message.sequence, *version);
        }
        Outcome::GroupChanged(changed) => {
            if let Some(told) = &changed.told {
                index.stored(&told.message, changed.version);
            }
        }
        _ => {}
    }
}

/// Answers SEARCH_MESSAGES.
pub(crate) async fn serve(core: &Core, inbound: &Inbound) {
    let Some(request) = decode(core, inbound) else { return };
    match page(core, &inbound.session.user_id, request).await {
        Ok(reply) => inbound.reply_message(&reply),
        Err(refused) => answer_refused(core, inbound, refused, |code, reason| {
            inbound.reply_message(&SearchReply { code, reason, ..SearchReply::default() });
        }),
    }
}

/// A page of a user's messages.
pub(crate) async fn page(
    core: &Core,
    user_id: &str,
    request: SearchMessages,
) -> Result<SearchReply, Refused> {
    let Some(index) = &core.search else {
        let reason = "This server keeps no search index.";
        return Err(Refused::new(Code::UnknownCommand, reason));
    };
    let SearchMessages { text, conversation_id, sender_id, types, from_ms, to_ms, limit, before } =
        request;
    let wanted = Wanted::new(&text);
    let bad = |reason: &str| Err(Refused::new(Code::BadRequest, reason));
    if text.len() > TEXT_BYTES_MAX {
        return bad("The text to look for is longer than 256 bytes.");
    }
    if !text.is_empty() && wanted.is_none() {
        return bad("The text to look for has no letter and no digit.");
    }
    if types.len() > TYPES_MAX {
        return bad("More than 16 types.");
    }
    if sender_id.len() > USER_ID_BYTES_MAX {
        return bad("The sender_id is longer than 128 bytes.");
    }
    if from_ms != 0 && to_ms != 0 && from_ms >= to_ms {
        return bad("No time lies between from_ms and to_ms.");
    }
    let limit = match limit as usize {
        0 => LIMIT_DEFAULT,
        limit => limit.min(LIMIT_MAX),
    };
    let mut conversations =
        core.store.member_ranges(user_id).await.map_err(|error| unread(core, &error))?;
    if !conversation_id.is_empty() {
        conversations.retain(|range| range.conversation_id == conversation_id);
        if conversations.is_empty() {
            let reason = "The user is not a member of this conversation.";
            return Err(Refused::new(Code::NotPermitted, reason));
        }
    }
    // Before the question, so that an answer that was incomplete says so.
    let behind = index.is_behind();
    let query = Query {
        conversations,
        text,
        sender_id,
        types,
        from_ms,
        to_ms,
        before,
        limit: CANDIDATES_MAX,
    };
    let hits = index.search(query).await.map_err(|error| match error {
        SearchError::Busy => {
            let code = Code::OverCapacity;
            Refused::new(code, "Too many searches at the same time.")
                .retry_after(core.retry_after_ms_of(code))
        }
        SearchError::Failed(_) => {
            tracing::error!(%error, "a search failed");
            let code = Code::Internal;
            Refused::new(code, code.sentence()).retry_after(core.retry_after_ms_of(code))
        }
    })?;
    let mut reply =
        SearchReply { complete: hits.len() < CANDIDATES_MAX, behind, ..SearchReply::default() };
    let mut bytes = 0;
    for hits in hits.chunks(CANDIDATES_READ) {
        let mut found = visible(core, user_id, hits).await.map_err(|error| unread(core, &error))?;
        for hit in hits {
            if let Some(message) = found.remove(&(&hit.conversation_id[..], hit.sequence))
                && wanted.as_ref().is_none_or(|wanted| wanted.fits(&searched_text(&message)))
            {
                bytes += message.encoded_len();
                let full = reply.messages.len() == limit
                    || bytes > core.settings.reply_bytes_max && !reply.messages.is_empty();
                if full {
                    reply.complete = false;
                    return Ok(reply);
                }
                reply.messages.push(message);
            }
            reply.next = hit.order;
        }
    }
    Ok(reply)
}

/// Those of the candidates that this user sees and whose content is still there.
async fn visible<'a>(
    core: &Core,
    user_id: &str,
    hits: &'a [Hit],
) -> Result<HashMap<(&'a str, u64), Message>, StoreError> {
    let mut wanted: HashMap<&str, Vec<u64>> = HashMap::new();
    for hit in hits {
        wanted.entry(&hit.conversation_id).or_default().push(hit.sequence);
    }
    let mut found = HashMap::with_capacity(hits.len());
    for (conversation_id, sequences) in wanted {
        let mut messages = match core.store.messages(user_id, conversation_id, &sequences).await {
            Ok(messages) => messages,
            // Not a member any more, or never: the question was asked a moment ago.
            Err(StoreError::NotFound | StoreError::NotMember) => continue,
            Err(error) => return Err(error),
        };
        expiry::hide(&mut messages);
        messages.retain(|message| message.state == STATE_NORMAL);
        let by_place = |message: Message| ((conversation_id, message.sequence), message);
        found.extend(messages.into_iter().map(by_place));
    }
    Ok(found)
}

fn unread(core: &Core, error: &StoreError) -> Refused {
    super::groups::unread(core, error)
}

#[async_trait]
impl SearchApi for Chat {
    async fn search_messages(
        &self,
        request: SearchMessagesRequest,
    ) -> Result<SearchReply, Refused> {
        if !(1..=USER_ID_BYTES_MAX).contains(&request.user_id.len()) {
            let reason = format!("A user_id of 1 to {USER_ID_BYTES_MAX} bytes is needed.");
            return Err(self.refused(Code::BadRequest, reason));
        }
        let found = page(&self.core, &request.user_id, request.search.unwrap_or_default()).await;
        found.inspect_err(|refused| self.core.count_refusal(refused.code))
    }
}
