//! What the attachments' service answers, whatever the door; the messages are those of
//! `attachments.proto`. The bytes of files travel over HTTP alone.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::api::{
    AttachmentInfo, AttachmentLink, AttachmentRequest, AttachmentUsage, AttachmentUsageRequest,
    CreateAttachmentRequest, RemoveAttachmentResponse,
};

use super::Caller;

/// Files that messages refer to. Every call fails with [`Refused`], with `not_found` also for files
/// that are not the caller's to see.
#[async_trait]
pub trait AttachmentsApi: Send + Sync + 'static {
    /// Begins an upload.
    async fn create_attachment(
        &self,
        caller: &Caller,
        request: CreateAttachmentRequest,
    ) -> Result<AttachmentInfo, Refused>;

    /// What a file is, and how much of it has arrived.
    async fn get_attachment(
        &self,
        caller: &Caller,
        request: AttachmentRequest,
    ) -> Result<AttachmentInfo, Refused>;

    /// A URL that is good without a token, for a while.
    async fn get_attachment_link(
        &self,
        caller: &Caller,
        request: AttachmentRequest,
    ) -> Result<AttachmentLink, Refused>;

    /// Removes a file for everybody. Its owner may.
    async fn remove_attachment(
        &self,
        caller: &Caller,
        request: AttachmentRequest,
    ) -> Result<RemoveAttachmentResponse, Refused>;

    /// What a user's files amount to.
    async fn get_attachment_usage(
        &self,
        caller: &Caller,
        request: AttachmentUsageRequest,
    ) -> Result<AttachmentUsage, Refused>;
}
