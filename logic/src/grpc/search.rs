//! Searching in a user's messages over gRPC.

use std::sync::Arc;

use millrace_protocol::{
    api::{
        SearchMessagesRequest,
        search_service_server::{SearchService, SearchServiceServer},
    },
    chat::SearchReply,
};
use tonic::{Request, Response, Status, service::Routes};

use super::{Door, MESSAGE_BYTES_MAX};
use crate::api::{Guard, search::SearchApi};

/// Adds the service to others.
pub fn add_to(routes: Routes, api: Arc<dyn SearchApi>, guard: Guard) -> Routes {
    let search = SearchServiceServer::from_arc(Arc::new(Door { api, guard }));
    routes.add_service(search.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

#[tonic::async_trait]
impl SearchService for Door<dyn SearchApi> {
    async fn search_messages(
        &self,
        request: Request<SearchMessagesRequest>,
    ) -> Result<Response<SearchReply>, Status> {
        self.call(request, |api, request| async move { api.search_messages(request).await }).await
    }
}
