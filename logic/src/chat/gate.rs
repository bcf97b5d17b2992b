//! What is asked before a message is stored: whether this sender may send it at all.
//!
//! The chat domain knows the trait [`SendGate`]; relations and attachments implement it. A gate that
//! has nothing to say about a message costs it one call and no await. Every way in passes here:
//! clients' sends, forwards, and services.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::chat::Attachment;

use super::Core;
use crate::storage::{Target, Write};

/// Decides about messages before they are stored.
#[async_trait]
pub trait SendGate: Send + Sync + 'static {
    /// Whether [`SendGate::check`] has to see this message. Called for every message, so it must be
    /// cheap and must not block.
    fn needs_check(
        &self,
        sender_id: &str,
        target: &Target,
        attachment: Option<&Attachment>,
    ) -> bool;

    /// Lets a message pass, or refuses it. May complete the attachment. May read the store: the
    /// messages of one link wait meanwhile, so that they keep their order.
    ///
    /// # Errors
    /// The refusal that the sender is told.
    async fn check(
        &self,
        sender_id: &str,
        target: &Target,
        attachment: &mut Option<Attachment>,
    ) -> Result<(), Refused>;
}

/// Asks every gate.
pub(crate) async fn admit(
    core: &Core,
    sender_id: &str,
    target: &Target,
    attachment: &mut Option<Attachment>,
) -> Result<(), Refused> {
    for gate in &core.gates {
        if gate.needs_check(sender_id, target, attachment.as_ref()) {
            gate.check(sender_id, target, attachment).await?;
        }
    }
    Ok(())
}

/// Asks every gate about a message that is about to be written; other writes pass.
pub(crate) async fn admit_write(core: &Core, write: &mut Write) -> Result<(), Refused> {
    match write {
        Write::Append { sender_id, target, attachment, .. } => {
            admit(core, sender_id, target, attachment).await
        }
        Write::Forward { sender_id, target, messages, .. } => {
            for copied in messages {
                admit(core, sender_id, target, &mut copied.attachment).await?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The gates of a process, in the order asked.
pub type SendGates = Vec<Arc<dyn SendGate>>;
