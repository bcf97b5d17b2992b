//! The gRPC service of attachments, `AttachmentService` of `attachments.proto`. The bytes of files
//! travel over HTTP.

use millrace_protocol::api::{
    AttachmentInfo, AttachmentLink, AttachmentRequest, AttachmentUsage, AttachmentUsageRequest,
    CreateAttachmentRequest, RemoveAttachmentResponse,
    attachment_service_server::AttachmentService,
};
use tonic::{Request, Response, Status};

use super::caller::CallerDoor;
use crate::api::{Access, AttachmentsApi};

/// Passes a call on to the method of the same name.
macro_rules! pass_on {
    ($($method:ident: $request:ty => $response:ty;)+) => {
        #[tonic::async_trait]
        impl AttachmentService for CallerDoor<dyn AttachmentsApi> {
            $(
                async fn $method(
                    &self,
                    request: Request<$request>,
                ) -> Result<Response<$response>, Status> {
                    self.call(Access::Known, request, |api, caller, request| async move {
                        api.$method(&caller, request).await
                    })
                    .await
                }
            )+
        }
    };
}

pass_on! {
    create_attachment: CreateAttachmentRequest => AttachmentInfo;
    get_attachment: AttachmentRequest => AttachmentInfo;
    get_attachment_link: AttachmentRequest => AttachmentLink;
    remove_attachment: AttachmentRequest => RemoveAttachmentResponse;
    get_attachment_usage: AttachmentUsageRequest => AttachmentUsage;
}
