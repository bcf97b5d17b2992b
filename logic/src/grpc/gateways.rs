//! Gateways over gRPC.

use std::sync::Arc;

use millrace_protocol::api::{
    AssignGatewayRequest, AssignGatewayResponse, ListGatewaysRequest, ListGatewaysResponse,
    gateway_service_server::{GatewayService, GatewayServiceServer},
};
use tonic::{Request, Response, Status};

use super::{Door, MESSAGE_BYTES_MAX};
use crate::api::{Guard, gateways::GatewaysApi};

/// The service.
pub fn service(
    api: Arc<dyn GatewaysApi>,
    guard: Guard,
) -> GatewayServiceServer<impl GatewayService + use<>> {
    GatewayServiceServer::new(Door { api, guard }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl GatewayService for Door<dyn GatewaysApi> {
    async fn list_gateways(
        &self,
        request: Request<ListGatewaysRequest>,
    ) -> Result<Response<ListGatewaysResponse>, Status> {
        self.call(request, |api, request| async move { api.list_gateways(request).await }).await
    }

    async fn assign_gateway(
        &self,
        request: Request<AssignGatewayRequest>,
    ) -> Result<Response<AssignGatewayResponse>, Status> {
        self.call(request, |api, request| async move { api.assign_gateway(request).await }).await
    }
}
