//! Messages sent on: one by one, in order, or as one with their beginnings. Only what the forwarder
//! sees can be forwarded; what was revoked or deleted, or is over, cannot.
//!
//! The messages are read beside the chain, and stored through it. A message revoked between the two
//! was forwarded before it was revoked. The copies carry no quote, no mention and no time of their
//! own, and count as new messages of the forwarder.

use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    chat::{Forward, Forwarded, Merged, MergedItem, Message, SendReply},
};
use prost::Message as _;
use uuid::Uuid;

use super::{
    Core, expiry, gate,
    messages::{TYPE_CARD, screen_text, target},
    receiver::unix_ms,
    sync::send_reply,
    words::Finding,
};
use crate::storage::{
    Copied, Extras, Outcome, StoreError, Target, Write,
    extras::STATE_NORMAL,
    limits::{FORWARDED_MESSAGES_MAX, TEXT_BYTES_MAX},
};

/// The beginning of a body that a merged message shows, in bytes.
const EXCERPT_BYTES_MAX: usize = 256;

/// All of a merged message, in bytes, so that it fits a frame of every client.
const MERGED_BYTES_MAX: usize = 48 * 1024;

/// Why there is no write.
pub(crate) enum Failed {
    /// The request cannot be.
    Refused(Refused),
    /// The store could not be read.
    Store(StoreError),
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Reads what is to be forwarded, and makes the write that stores it.
pub(crate) async fn prepare(
    core: &Core,
    sender_id: &str,
    forward: Forward,
) -> Result<Write, Failed> {
    let bad = |reason: &str| Refused::new(Code::BadRequest, reason);
    let Forward { conversation_id, sequences, user_id, group_id, client_message_id, merged, title } =
        forward;
    let target = target(&client_message_id, user_id, group_id)?;
    if !(1..=FORWARDED_MESSAGES_MAX).contains(&sequences.len()) {
        return Err(bad("1 to 100 sequences can be forwarded at once.").into());
    }
    if !sequences.is_sorted_by(|one, next| one < next) {
        return Err(bad("The sequences must be in increasing order, each once.").into());
    }
    if title.len() > TEXT_BYTES_MAX || (!merged && !title.is_empty()) {
        return Err(bad("Only a merged message has a title, of at most 4096 bytes.").into());
    }
    let mut messages = match core.store.messages(sender_id, &conversation_id, &sequences).await {
        Ok(messages) => messages,
        Err(error @ (StoreError::NotFound | StoreError::NotMember)) => {
            return Err(Refused::new(error.code(), error.to_string()).into());
        }
        Err(error) => return Err(Failed::Store(error)),
    };
    expiry::hide(&mut messages);
    if messages.len() != sequences.len() || messages.iter().any(|m| m.state != STATE_NORMAL) {
        let reason = "A message of these is not there, or was revoked or deleted, or is over.";
        return Err(Refused::new(Code::NotFound, reason).into());
    }
    if messages.iter().any(|message| message.system) {
        return Err(bad("What the server itself says cannot be forwarded.").into());
    }
    // The list of words may have grown since the messages were sent.
    let mut found = Vec::new();
    let mut title = title;
    screen_text(core, &mut title, &mut found)?;
    for message in &mut messages {
        screen_text(core, &mut message.body, &mut found)?;
        if let Some(attachment) = &mut message.attachment {
            screen_text(core, &mut attachment.name, &mut found)?;
        }
    }
    let sent_at_ms = unix_ms();
    let mut write = if merged {
        merge(sender_id, client_message_id, target, title, messages, sent_at_ms)?
    } else {
        copy(sender_id, client_message_id, target, messages, sent_at_ms)
    };
    gate::admit_write(core, &mut write).await?;
    if !found.is_empty() {
        report(core, &write, found, sent_at_ms);
    }
    Ok(write)
}

fn report(core: &Core, write: &Write, words: Vec<(String, &'static str)>, at_ms: i64) {
    let (sender_id, target, message_id) = match write {
        Write::Append { sender_id, target, message_id, .. } => (sender_id, target, message_id),
        Write::Forward { sender_id, target, messages, .. } => match &messages[..] {
            [first, ..] => (sender_id, target, &first.message_id),
            [] => return,
        },
        _ => return,
    };
    core.words.report(Finding {
        user_id: sender_id.clone(),
        target: match target {
            Target::User(id) | Target::Group(id) => id.clone(),
        },
        message_id: message_id.to_string(),
        words,
        at_ms,
    });
}

/// Each message again, in order. Whoever was the first to say it stays named, also when it is
/// forwarded on.
fn copy(
    sender_id: &str,
    client_message_id: String,
    target: Target,
    messages: Vec<Message>,
    sent_at_ms: i64,
) -> Write {
    let copied = |message: Message| {
        let first = Forwarded { sender_id: message.sender_id, sent_at_ms: message.sent_at_ms };
        let forwarded = message.forwarded.unwrap_or_else(|| Box::new(first));
        let extras = Extras {
            location: message.location,
            merged: message.merged,
            forwarded: Some(forwarded),
            ..Extras::default()
        };
        Copied {
            message_id: Uuid::now_v7(),
            kind: message.r#type,
            body: message.body,
            attachment: message.attachment,
            extras: extras.boxed(),
        }
    };
    Write::Forward {
        sender_id: sender_id.to_owned(),
        client_message_id,
        target,
        messages: messages.into_iter().map(copied).collect(),
        sent_at_ms,
    }
}

/// One message with the beginnings of all.
fn merge(
    sender_id: &str,
    client_message_id: String,
    target: Target,
    title: String,
    messages: Vec<Message>,
    sent_at_ms: i64,
) -> Result<Write, Refused> {
    let item = |message: Message| {
        let attachment = message.attachment.unwrap_or_default();
        MergedItem {
            sender_id: message.sender_id,
            r#type: message.r#type,
            excerpt: beginning(&message.body, EXCERPT_BYTES_MAX).to_owned(),
            sent_at_ms: message.sent_at_ms,
            attachment_name: beginning(&attachment.name, EXCERPT_BYTES_MAX).to_owned(),
            attachment_type: beginning(&attachment.r#type, EXCERPT_BYTES_MAX).to_owned(),
        }
    };
    let items: Vec<MergedItem> = messages.into_iter().map(item).collect();
    let title = match title {
        title if title.is_empty() => format!("{} messages", items.len()),
        title => title,
    };
    let merged = Merged { title: title.clone(), items };
    if merged.encoded_len() > MERGED_BYTES_MAX {
        let reason = "These messages are too many or too long to be forwarded as one.";
        return Err(Refused::new(Code::TooLarge, reason));
    }
    let extras = Extras { merged: Some(Box::new(merged)), ..Extras::default() };
    Ok(Write::Append {
        message_id: Uuid::now_v7(),
        sender_id: sender_id.to_owned(),
        client_message_id,
        target,
        kind: TYPE_CARD,
        body: title,
        attachment: None,
        does_not_count: false,
        sent_at_ms,
        extras: extras.boxed(),
    })
}

/// As many whole characters as fit.
fn beginning(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The reply to what [`prepare`] made, once it is stored; `None` of another outcome.
pub(crate) fn reply(outcome: &Outcome) -> Option<SendReply> {
    match outcome {
        Outcome::Appended { message, duplicate, .. } => Some(send_reply(message, *duplicate)),
        Outcome::Forwarded { messages, duplicate, .. } => messages
            .last()
            .map(|last| SendReply { count: messages.len() as u32, ..send_reply(last, *duplicate) }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::beginning;

    #[test]
    fn an_excerpt_ends_with_a_whole_character() {
        assert_eq!(beginning("abc", 2), "ab");
        assert_eq!(beginning("海海", 5), "海");
        assert_eq!(beginning("é", 1), "");
        assert_eq!(beginning("", 5), "");
    }
}
