//! The notice that tells a group's members of an act, stored with it.

use millrace_protocol::chat;

use super::{Source, Stop, Transaction, group_acts::Scene, is_member};
use crate::storage::{
    Extras, Members, StoreError, conversation_id,
    embedded::{
        keys::{self, Table, UserRow},
        rows::{MessageRow, PointerRow, Row as _},
    },
    groups::{NOTICE_TYPE, Told},
    limits::GROUP_EVENT_USERS_MAX,
};

impl<S: Source> Transaction<'_, S> {
    pub(super) fn tell_members(
        &mut self,
        scene: &mut Scene,
        event: chat::GroupEvent,
    ) -> Result<Told, Stop> {
        let recipients = scene.conversation.members.clone();
        self.tell(scene, event, recipients)
    }

    /// Stores the notice of an act. It counts for nobody's unread, and has no client message id.
    pub(super) fn tell(
        &mut self,
        scene: &mut Scene,
        mut event: chat::GroupEvent,
        recipients: Members,
    ) -> Result<Told, Stop> {
        let sender_id = scene.actor.clone().unwrap_or_default();
        event.actor_id.clone_from(&sender_id);
        let body = serde_json::to_string(&event).map_err(|error| {
            Stop::Failed(StoreError::Failed(format!("a notice has no JSON form: {error}")))
        })?;
        let Scene { conversation_id, conversation, .. } = scene;
        let row = &mut conversation.row;
        let follows = row.message_version;
        row.max_sequence += 1;
        row.message_version = self.version;
        let sequence = row.max_sequence;
        let message = MessageRow {
            version: self.version,
            counting: row.counting,
            message_id: scene.notice_id,
            sender_id,
            client_message_id: String::new(),
            kind: NOTICE_TYPE,
            body,
            attachment: None,
            sent_at_ms: scene.at_ms,
            state: 0,
            does_not_count: true,
            extras: Extras { system: true, ..Extras::default() }.boxed(),
        };
        if let Some(actor) = &scene.actor
            && is_member(&conversation.members, actor)
        {
            let mut own = self.member_or_default(actor, conversation_id)?;
            own.own_last_sent = sequence;
            self.put_member(actor, conversation_id, own);
        }
        if !conversation.row.by_cursor {
            let pointer = PointerRow { max_sequence: sequence, version: self.version }.encode();
            for user_id in conversation.members.iter() {
                let key = keys::user(user_id, conversation_id, UserRow::Pointer);
                self.changes.put(Table::Users, key, pointer.clone());
            }
        }
        self.put(Table::Messages, keys::message(conversation_id, sequence), &message);
        let conversation_type = conversation_id::CONVERSATION_TYPE_GROUP;
        let message = message.into_message(conversation_id, conversation_type, sequence);
        Ok(Told { message, follows, recipients })
    }
}

/// An event about users, as many of them as a notice names.
pub(super) fn about(event: &str, user_ids: &[String]) -> chat::GroupEvent {
    chat::GroupEvent {
        event: event.to_owned(),
        user_ids: user_ids.iter().take(GROUP_EVENT_USERS_MAX).cloned().collect(),
        user_count: user_ids.len() as u32,
        ..chat::GroupEvent::default()
    }
}
