//! What business services ask of gateways: which there are, and which one a client should use.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::api::{
    AssignGatewayRequest, AssignGatewayResponse, ListGatewaysRequest, ListGatewaysResponse,
};

/// The calls of `gateways.proto`. As with [`Api`](super::Api), the caller has shown the token.
#[async_trait]
pub trait GatewaysApi: Send + Sync + 'static {
    /// Every gateway that is linked, or was until a moment ago.
    async fn list_gateways(
        &self,
        request: ListGatewaysRequest,
    ) -> Result<ListGatewaysResponse, Refused>;

    /// A gateway for a client that wants to connect, by load and health.
    async fn assign_gateway(
        &self,
        request: AssignGatewayRequest,
    ) -> Result<AssignGatewayResponse, Refused>;
}
