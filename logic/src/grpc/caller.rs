//! What the gRPC services that users call share: who calls, from where, and the status of a refusal.

use std::{future::Future, sync::Arc};

use millrace_logic_sdk::Refused;
use tonic::{Request, Response, Status};

use super::status;
use crate::api::{Access, Caller, CallerGuard};

/// A door for users and services to one of the traits of [`crate::api`].
pub(super) struct CallerDoor<A: ?Sized> {
    pub(super) api: Arc<A>,
    pub(super) guard: CallerGuard,
}

impl<A: ?Sized> CallerDoor<A> {
    /// Admits a call and passes it on.
    pub(super) async fn call<Q, R, F>(
        &self,
        access: Access,
        request: Request<Q>,
        to: impl FnOnce(Arc<A>, Caller, Q) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<R, Refused>>,
    {
        let address = request.remote_addr().map(|address| address.ip());
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.map(|value| value.as_encoded_bytes());
        let admitted = self.guard.admit(access, authorization, address).await;
        let (caller, _permit) = admitted.map_err(|refused| status(&refused))?;
        let result = to(Arc::clone(&self.api), caller, request.into_inner()).await;
        result.map(Response::new).map_err(|refused| status(&refused))
    }
}

/// Implements a gRPC service for the door to a trait of [`crate::api`]: each call is admitted with the
/// access named in its row and passed on to the method of the same name.
macro_rules! serve_callers {
    ($service:ident for $api:ident; $($method:ident($access:ident): $request:ty => $response:ty;)+) => {
        #[tonic::async_trait]
        impl $service for $crate::grpc::caller::CallerDoor<dyn $api> {
            $(
                async fn $method(
                    &self,
                    request: tonic::Request<$request>,
                ) -> Result<tonic::Response<$response>, tonic::Status> {
                    let access = $crate::api::Access::$access;
                    self.call(access, request, |api, caller, request| async move {
                        api.$method(&caller, request).await
                    })
                    .await
                }
            )+
        }
    };
}

pub(super) use serve_callers;
