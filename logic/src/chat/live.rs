//! Messages that are not stored (frame flag `no_store`): handed to whoever is online, once.
//!
//! They have no sequence (0), so they leave no gap and cannot be revoked, deleted, quoted or
//! forwarded; a retry of one is a second one. They run beside the chain, so their order among stored
//! messages is not kept.

use std::sync::Arc;

use millrace_logic_sdk::{Refused, SessionAddress};
use millrace_protocol::{
    Code,
    chat::{Deliver, Message, SendMessage, SendReply},
    command,
};

use super::{Core, expiry, gate, messages};
use crate::storage::{
    Members, StoreError, Target, Write,
    conversation_id::{self, CONVERSATION_TYPE_GROUP, CONVERSATION_TYPE_SINGLE},
    extras::STATE_NORMAL,
};

/// Sends a message to every session of the conversation's members, but for `except`.
///
/// # Errors
/// What storing it would have been refused for.
pub(crate) async fn send(
    core: &Core,
    sender_id: &str,
    except: Option<SessionAddress>,
    message: SendMessage,
) -> Result<SendReply, Refused> {
    let mut write = messages::append(core, sender_id.to_owned(), message)?;
    gate::admit_write(core, &mut write).await?;
    let Write::Append {
        message_id,
        sender_id,
        client_message_id,
        target,
        kind,
        body,
        attachment,
        does_not_count,
        sent_at_ms,
        extras,
    } = write
    else {
        return Err(Refused::from(Code::Internal));
    };
    let (conversation_id, conversation_type) = match &target {
        Target::User(user_id) => {
            (conversation_id::single(&sender_id, user_id), CONVERSATION_TYPE_SINGLE)
        }
        Target::Group(group_id) => (conversation_id::group(group_id), CONVERSATION_TYPE_GROUP),
    };
    let recipients: Members = match &target {
        Target::User(user_id) if *user_id == sender_id => [Arc::from(&sender_id[..])].into(),
        Target::User(user_id) => [Arc::from(&sender_id[..]), Arc::from(&user_id[..])].into(),
        Target::Group(group_id) => {
            let members = core.store.members(&conversation_id).await;
            let members = members.map_err(|error| unread(core, &error))?;
            let Some(members) = members else { return Err(Refused::from(Code::NotFound)) };
            if !members.iter().any(|member| **member == *sender_id) {
                let reason = "Only members send to a group.";
                return Err(Refused::new(Code::NotPermitted, reason));
            }
            let may_speak = core.store.may_speak(group_id, &sender_id, sent_at_ms).await;
            if !may_speak.map_err(|error| unread(core, &error))? {
                return Err(Refused::from(Code::Muted));
            }
            let max = core.settings.messages.live_members_max;
            if members.len() > max {
                let reason =
                    format!("What is not stored can be sent to groups of at most {max} members.");
                return Err(Refused::new(Code::OverCapacity, reason));
            }
            members
        }
    };
    let mut message = Message {
        conversation_id,
        conversation_type,
        message_id: message_id.to_string(),
        client_message_id,
        sender_id,
        r#type: kind,
        body,
        attachment,
        sent_at_ms,
        does_not_count,
        ..Message::default()
    };
    if let Some(extras) = extras {
        extras.put_into(&mut message);
        check_quote(core, &mut message).await?;
    }
    let reply = SendReply {
        message_id: message.message_id.clone(),
        conversation_id: message.conversation_id.clone(),
        sent_at_ms,
        not_stored: true,
        ..SendReply::default()
    };
    core.metrics.messages_live.inc();
    let deliver = Deliver { messages: vec![message] };
    let sessions = core.send_to_users(&recipients, except, command::DELIVER, &deliver);
    core.metrics.deliveries.inc_by(sessions as u64);
    Ok(reply)
}

/// As the store does it for messages that are stored.
async fn check_quote(core: &Core, message: &mut Message) -> Result<(), Refused> {
    let Some(quote) = &mut message.quote else { return Ok(()) };
    if quote.conversation_id.is_empty() {
        quote.conversation_id = message.conversation_id.clone();
    }
    let wanted = [quote.sequence];
    let found = core.store.messages(&message.sender_id, &quote.conversation_id, &wanted).await;
    let mut found = match found {
        Ok(found) => found,
        Err(error @ (StoreError::NotFound | StoreError::NotMember)) => {
            return Err(Refused::new(error.code(), error.to_string()));
        }
        Err(error) => return Err(unread(core, &error)),
    };
    expiry::hide(&mut found);
    match found.pop() {
        Some(quoted) if quoted.state == STATE_NORMAL => {
            quote.sender_id = quoted.sender_id;
            Ok(())
        }
        _ => Err(Refused::new(Code::NotFound, "The quoted message is not there.")),
    }
}

fn unread(core: &Core, error: &StoreError) -> Refused {
    tracing::error!(%error, "a read failed");
    Refused::from(error.code()).retry_after(core.retry_after_ms_of(error.code()))
}
