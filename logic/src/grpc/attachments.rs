//! The gRPC service of attachments, `AttachmentService` of `attachments.proto`. The bytes of files
//! travel over HTTP.

use millrace_protocol::api::{
    AttachmentInfo, AttachmentLink, AttachmentRequest, AttachmentUsage, AttachmentUsageRequest,
    CreateAttachmentRequest, RemoveAttachmentResponse,
    attachment_service_server::AttachmentService,
};

use super::caller::serve_callers;
use crate::api::AttachmentsApi;

serve_callers! { AttachmentService for AttachmentsApi;
    create_attachment(Known): CreateAttachmentRequest => AttachmentInfo;
    get_attachment(Known): AttachmentRequest => AttachmentInfo;
    get_attachment_link(Known): AttachmentRequest => AttachmentLink;
    remove_attachment(Known): AttachmentRequest => RemoveAttachmentResponse;
    get_attachment_usage(Known): AttachmentUsageRequest => AttachmentUsage;
}
