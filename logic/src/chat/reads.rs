//! Pulls, look-ups, typing, and messages that are not stored or are read before they are sent on: what
//! asks the store and changes nothing. Runs beside the chain, a bounded number at once, so that a slow
//! page delays no commit and no delivery.

use std::sync::Arc;

use millrace_logic_sdk::Inbound;
use millrace_protocol::{
    Code,
    chat::{
        Conversation, ConversationsReply, Forward, GroupById, GroupReply, Message,
        PullConversations, PullMessages, PullReply, SendMessage, SequenceRange, Typing,
    },
    command,
};
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc};

use super::{
    Core, expiry, forward, groups, live, logout, presence_requests,
    processor::Job,
    profiles,
    receiver::{self, decode, seen_before, write_on},
    search,
    sync::empty_body,
};
use crate::storage::{StoreError, conversation_id::ConversationName};

/// Rows of one page, when the client names no limit and at most.
const MESSAGES_DEFAULT: usize = 20;
const MESSAGES_MAX: usize = 100;
const CONVERSATIONS_MAX: usize = 100;

/// Runs until every sender is gone, and the reads begun are done.
pub(crate) async fn run(
    core: Arc<Core>,
    mut reads: mpsc::Receiver<Inbound>,
    writes: mpsc::Sender<Job>,
) {
    let running_max = core.settings.reads_in_flight_max.max(1);
    let permits = Arc::new(Semaphore::new(running_max));
    while let Some(inbound) = reads.recv().await {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (core, writes) = (core.clone(), writes.clone());
        tokio::spawn(async move {
            read(&core, &writes, inbound).await;
            drop(permit);
        });
    }
    // All permits back means that nothing runs any more.
    drop(permits.acquire_many(running_max as u32).await);
}

async fn read(core: &Core, writes: &mpsc::Sender<Job>, inbound: Inbound) {
    match inbound.command {
        command::SEND_MESSAGE => send_live(core, &inbound).await,
        command::FORWARD => send_on(core, writes, inbound).await,
        command::PULL_MESSAGES => pull_messages(core, &inbound).await,
        command::PULL_CONVERSATIONS => pull_conversations(core, &inbound).await,
        command::GROUP_BY_ID => group_by_id(core, &inbound).await,
        command::GROUP_MEMBERS => groups::members(core, &inbound).await,
        command::GROUP_JOIN_REQUESTS => groups::join_requests(core, &inbound).await,
        command::PULL_RECEIPTS => groups::receipts(core, &inbound).await,
        command::SEARCH_MESSAGES => search::serve(core, &inbound).await,
        command::TYPING => typing(core, &inbound).await,
        command::LOGOUT_EVERYWHERE => logout::serve(core, &inbound).await,
        command::QUERY_PRESENCE | command::SUBSCRIBE_PRESENCE | command::UNSUBSCRIBE_PRESENCE => {
            presence_requests::serve(core, &inbound).await
        }
        other => unreachable!("the receiver queues no command {other:#06x} for reading"),
    }
}

/// A failure of ours is an ERROR with a delay; what the request itself got wrong goes into its
/// reply, by `reply`.
fn refuse(core: &Core, inbound: &Inbound, error: &StoreError, reply: impl FnOnce(u32, String)) {
    let code = error.code();
    if matches!(error, StoreError::NotFound | StoreError::NotMember) {
        core.count_refusal(code);
        reply(code.number(), error.to_string());
    } else {
        tracing::error!(%error, "a read failed");
        core.refuse(inbound, code, code.sentence());
    }
}

async fn send_live(core: &Core, inbound: &Inbound) {
    let Some(message) = decode::<SendMessage>(core, inbound) else { return };
    let session = &inbound.session;
    if let Err(refused) = seen_before(core, &session.user_id, &message) {
        return receiver::refuse(core, inbound, refused.code, &refused.reason);
    }
    match live::send(core, &session.user_id, Some(session.address), message).await {
        Ok(reply) => inbound.reply_message(&reply),
        Err(refused) => receiver::refuse(core, inbound, refused.code, &refused.reason),
    }
}

async fn send_on(core: &Core, writes: &mpsc::Sender<Job>, inbound: Inbound) {
    let Some(request) = decode::<Forward>(core, &inbound) else { return };
    match forward::prepare(core, &inbound.session.user_id, request).await {
        Ok(write) => write_on(core, writes, inbound, write).await,
        Err(forward::Failed::Refused(refused)) => {
            receiver::refuse(core, &inbound, refused.code, &refused.reason);
        }
        Err(forward::Failed::Store(error)) => {
            tracing::error!(%error, "messages to be forwarded could not be read");
            core.refuse(&inbound, error.code(), error.code().sentence());
        }
    }
}

async fn pull_messages(core: &Core, inbound: &Inbound) {
    let Some(pull) = decode::<PullMessages>(core, inbound) else { return };
    match messages_page(core, &inbound.session.user_id, pull).await {
        Ok(reply) => inbound.reply_message(&reply),
        Err(error) => refuse(core, inbound, &error, |code, reason| {
            inbound.reply_message(&PullReply { code, reason, ..PullReply::default() });
        }),
    }
}

/// What a pull finds as this user may see it, bounded in bytes.
pub(crate) async fn messages_page(
    core: &Core,
    user_id: &str,
    pull: PullMessages,
) -> Result<PullReply, StoreError> {
    let limit = match pull.limit as usize {
        0 => MESSAGES_DEFAULT,
        limit => limit.min(MESSAGES_MAX),
    };
    let PullMessages {
        conversation_id,
        from_sequence,
        to_sequence,
        newest_first,
        changed_since_version,
        limit: _,
    } = pull;
    if changed_since_version > 0 {
        let since = changed_since_version;
        let found = core.store.changes(user_id, &conversation_id, since, limit).await?;
        // What was erased is small: a page of it always fits.
        let range = |(from_sequence, to_sequence)| SequenceRange { from_sequence, to_sequence };
        return Ok(PullReply {
            messages: found.messages,
            complete: found.complete,
            version: found.version,
            deleted: found.deleted.into_iter().map(range).collect(),
            ..PullReply::default()
        });
    }
    let page = core
        .store
        .page(user_id, &conversation_id, from_sequence, to_sequence, limit, newest_first)
        .await?;
    let mut messages = page.messages;
    expiry::hide(&mut messages);
    let fitting = fitting(&messages, core.settings.reply_bytes_max, Message::encoded_len);
    let complete = page.complete && fitting == messages.len();
    messages.truncate(fitting);
    Ok(PullReply { messages, complete, ..PullReply::default() })
}

async fn pull_conversations(core: &Core, inbound: &Inbound) {
    let Some(pull) = decode::<PullConversations>(core, inbound) else { return };
    match conversations_page(core, &inbound.session.user_id, pull).await {
        Ok(reply) => inbound.reply_message(&reply),
        Err(error) => refuse(core, inbound, &error, |code, reason| {
            inbound.reply_message(&ConversationsReply {
                code,
                reason,
                ..ConversationsReply::default()
            });
        }),
    }
}

/// A page of this user's conversations, bounded in bytes.
pub(crate) async fn conversations_page(
    core: &Core,
    user_id: &str,
    pull: PullConversations,
) -> Result<ConversationsReply, StoreError> {
    let limit = match pull.limit as usize {
        0 => CONVERSATIONS_MAX,
        limit => limit.min(CONVERSATIONS_MAX),
    };
    let mut page = match pull.newest_first {
        false => core.store.conversations(user_id, pull.since_version, limit).await?,
        true => core.store.recent_conversations(user_id, pull.before_version, limit).await?,
    };
    expiry::hide(page.conversations.iter_mut().filter_map(|c| c.last_message.as_mut()));
    profiles::show(core, &mut page.conversations).await;
    let mut reply = ConversationsReply {
        conversations: page.conversations,
        version: page.version,
        complete: page.complete,
        ..ConversationsReply::default()
    };
    match pull.newest_first {
        false => trim_conversations(&mut reply, core.settings.reply_bytes_max),
        true => trim_recent(&mut reply, core.settings.reply_bytes_max),
    }
    Ok(reply)
}

/// How many items fit, at least one.
fn fitting<T>(items: &[T], bytes_max: usize, len: impl Fn(&T) -> usize) -> usize {
    let mut bytes = 0;
    let over = items.iter().position(|item| {
        bytes += len(item);
        bytes > bytes_max
    });
    over.map_or(items.len(), |index| index.max(1))
}

/// Cuts the reply to its size. Rows of one version stay together, because the client goes on after
/// the version of the last row.
fn trim_conversations(reply: &mut ConversationsReply, bytes_max: usize) {
    let rows = &reply.conversations;
    let fitting = fitting(rows, bytes_max, Conversation::encoded_len);
    if fitting == rows.len() {
        return;
    }
    let next = rows[fitting].version;
    let mut end = rows[..fitting].iter().rposition(|row| row.version < next).map_or(0, |i| i + 1);
    if end == 0 {
        end = rows.iter().position(|row| row.version > next).unwrap_or(rows.len());
    }
    if end == rows.len() {
        return;
    }
    reply.conversations.truncate(end);
    reply.version = reply.conversations[end - 1].version;
    reply.complete = false;
}

/// The same for recent contacts, where versions fall and the reply's version stays.
fn trim_recent(reply: &mut ConversationsReply, bytes_max: usize) {
    let rows = &reply.conversations;
    let mut end = fitting(rows, bytes_max, Conversation::encoded_len);
    if end == rows.len() {
        return;
    }
    let next = rows[end].version;
    let whole = rows[..end].iter().rposition(|row| row.version > next).map_or(0, |i| i + 1);
    if whole > 0 {
        end = whole;
    } else {
        end = rows.iter().position(|row| row.version < next).unwrap_or(rows.len());
    }
    reply.complete &= end == rows.len();
    reply.conversations.truncate(end);
}

async fn group_by_id(core: &Core, inbound: &Inbound) {
    let Some(GroupById { group_id }) = decode(core, inbound) else { return };
    let refuse_with = |code: Code, reason: &str| {
        core.count_refusal(code);
        inbound.reply_message(&GroupReply {
            code: code.number(),
            reason: reason.to_owned(),
            group: None,
        });
    };
    let found = match core.store.group(&group_id).await {
        Ok(Some(group)) => match core.store.group_role(&group_id, &inbound.session.user_id).await {
            Ok(role) => Ok(Some((group, role))),
            Err(error) => Err(error),
        },
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    match found {
        Ok(Some((mut group, Some(_)))) => {
            // A page that fits; GROUP_MEMBERS has the others.
            let shown =
                fitting(&group.members, core.settings.reply_bytes_max / 2, |id| id.len() + 2);
            group.members.truncate(shown);
            inbound.reply_message(&GroupReply { group: Some(group), ..GroupReply::default() });
        }
        Ok(Some(_)) => refuse_with(Code::NotPermitted, "Only members may look at a group."),
        Ok(None) => refuse_with(Code::NotFound, "There is no such group."),
        Err(error) => refuse(core, inbound, &error, |code, reason| {
            inbound.reply_message(&GroupReply { code, reason, group: None });
        }),
    }
}

/// Relays to the other members. A single chat needs no message yet: its id names both users.
async fn typing(core: &Core, inbound: &Inbound) {
    let Some(Typing { conversation_id, .. }) = decode(core, inbound) else { return };
    let user_id = &*inbound.session.user_id;
    let others: Vec<Arc<str>> = match ConversationName::parse(&conversation_id) {
        Some(name @ ConversationName::Single(..)) => {
            let Some(peer) = name.peer_of(user_id) else {
                return core.refuse(inbound, Code::NotPermitted, NOT_A_MEMBER);
            };
            if peer == user_id { vec![] } else { vec![Arc::from(peer)] }
        }
        Some(ConversationName::Group(_)) => match core.store.members(&conversation_id).await {
            Ok(Some(members)) if members.iter().any(|m| **m == *user_id) => {
                // In a large group somebody is always typing, and nobody wants to know.
                let is_small = members.len() <= core.settings.messages.typing_members_max;
                let members = if is_small { &members[..] } else { &[] };
                members.iter().filter(|m| ***m != *user_id).cloned().collect()
            }
            Ok(Some(_)) => return core.refuse(inbound, Code::NotPermitted, NOT_A_MEMBER),
            Ok(None) => return core.refuse(inbound, Code::NotFound, Code::NotFound.sentence()),
            Err(error) => {
                tracing::error!(%error, "the members of a group could not be read");
                return core.refuse(inbound, error.code(), error.code().sentence());
            }
        },
        None => {
            let reason = "This is not the id of a conversation.";
            return core.refuse(inbound, Code::BadRequest, reason);
        }
    };
    let typing = Typing { conversation_id, user_id: user_id.to_owned() };
    core.send_to_users(&others, None, command::TYPING, &typing);
    inbound.reply(empty_body(inbound));
}

const NOT_A_MEMBER: &str = "Only members of the conversation may do this.";

#[cfg(test)]
mod tests {
    use super::{fitting, trim_conversations, trim_recent};
    use millrace_protocol::chat::{Conversation, ConversationsReply};
    use prost::Message as _;

    #[test]
    fn a_page_holds_what_fits_and_at_least_one() {
        let len = |item: &usize| *item;
        assert_eq!(fitting(&[], 10, len), 0);
        assert_eq!(fitting(&[50], 10, len), 1);
        assert_eq!(fitting(&[5, 5], 10, len), 2);
        assert_eq!(fitting(&[5, 6, 1], 10, len), 1);
    }

    #[test]
    fn rows_of_one_version_are_never_torn_apart() {
        let row =
            |version| Conversation { conversation_id: "c".into(), version, ..Default::default() };
        let bytes = row(1).encoded_len();
        let reply = |versions: &[u64]| ConversationsReply {
            conversations: versions.iter().map(|v| row(*v)).collect(),
            version: 99,
            complete: true,
            ..Default::default()
        };
        let trimmed = |versions: &[u64], rows_max: usize| {
            let mut reply = reply(versions);
            trim_conversations(&mut reply, rows_max * bytes);
            (reply.conversations.len(), reply.version, reply.complete)
        };
        assert_eq!(trimmed(&[1, 2, 3], 3), (3, 99, true));
        assert_eq!(trimmed(&[1, 2, 3], 2), (2, 2, false));
        assert_eq!(trimmed(&[1, 2, 2], 2), (1, 1, false));
        assert_eq!(trimmed(&[1, 1, 2], 1), (2, 1, false));
        assert_eq!(trimmed(&[1, 1, 1], 1), (3, 99, true));
        let recent = |versions: &[u64], rows_max: usize| {
            let mut reply = reply(versions);
            trim_recent(&mut reply, rows_max * bytes);
            (reply.conversations.len(), reply.version, reply.complete)
        };
        assert_eq!(recent(&[3, 2, 1], 3), (3, 99, true));
        assert_eq!(recent(&[3, 2, 1], 2), (2, 99, false));
        assert_eq!(recent(&[3, 2, 2], 2), (1, 99, false));
        assert_eq!(recent(&[2, 2, 1], 1), (2, 99, false));
        assert_eq!(recent(&[2, 2, 2], 1), (3, 99, true));
    }
}
