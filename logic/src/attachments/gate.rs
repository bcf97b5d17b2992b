//! What a message with an attachment has to pass: a file of ours must be complete, and the sender's
//! to send. What the message says of it then comes from the file and not from the sender.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{Code, chat::Attachment};

use super::{
    Attachments, ID_PREFIX,
    service::{failed, no_such_file},
};
use crate::{
    chat::SendGate,
    storage::{Target, attachments::AttachmentState, attachments::Referred, conversation_id},
};

#[async_trait]
impl SendGate for Attachments {
    fn needs_check(&self, _: &str, _: &Target, attachment: Option<&Attachment>) -> bool {
        attachment.is_some_and(|attachment| {
            !self.settings.foreign_allowed || attachment.attachment_id.starts_with(ID_PREFIX)
        })
    }

    async fn check(
        &self,
        sender_id: &str,
        target: &Target,
        attachment: &mut Option<Attachment>,
    ) -> Result<(), Refused> {
        let Some(attachment) = attachment else { return Ok(()) };
        if !attachment.attachment_id.starts_with(ID_PREFIX) {
            let reason = "Attachments are uploaded here first; this attachment_id is unknown.";
            return Err(Refused::new(Code::BadRequest, reason));
        }
        let row = self.row(&attachment.attachment_id).await?;
        // Ids of others' files are neither confirmed nor denied.
        if !self.may_read(sender_id, &row).await? {
            return Err(no_such_file());
        }
        if row.state != AttachmentState::Complete {
            let reason = "The attachment is not complete; upload the rest first.";
            return Err(Refused::new(Code::BadRequest, reason));
        }
        let conversation = match target {
            Target::User(user_id) => conversation_id::single(sender_id, user_id),
            Target::Group(group_id) => conversation_id::group(group_id),
        };
        let max = self.settings.references_max;
        let referred = self.rows.refer(&row.attachment_id, &conversation, max).await;
        match referred.map_err(|error| failed(&error))? {
            Referred::Done => {}
            Referred::Missing => return Err(no_such_file()),
            Referred::Full => {
                let reason = "This file is in as many conversations as it may be; upload it again.";
                return Err(Refused::new(Code::OverCapacity, reason));
            }
        }
        if attachment.name.is_empty() {
            attachment.name = row.name;
        }
        attachment.url = self.url(&row.attachment_id);
        attachment.r#type = row.kind;
        attachment.size = row.size;
        Ok(())
    }
}
