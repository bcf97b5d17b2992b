//! What the gRPC services that users call share: who calls, from where, and the status of a refusal.

use std::{future::Future, sync::Arc};

use millrace_logic_sdk::Refused;
use serde::Serialize;
use tonic::{Request, Response, Status};

use super::{noted, status};
use crate::{
    api::{Access, Caller, CallerGuard, call_name},
    audit,
};

/// A door for users and services to one of the traits of [`crate::api`].
pub(super) struct CallerDoor<A: ?Sized> {
    pub(super) api: Arc<A>,
    pub(super) guard: CallerGuard,
}

impl<A: ?Sized> CallerDoor<A> {
    /// Admits a call and passes it on.
    pub(super) async fn call<Q, R, F>(
        &self,
        (name, access): (&str, Access),
        request: Request<Q>,
        to: impl FnOnce(Arc<A>, Caller, Q) -> F,
    ) -> Result<Response<R>, Status>
    where
        Q: Serialize,
        F: Future<Output = Result<R, Refused>>,
    {
        let address = request.remote_addr().map(|address| address.ip());
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.map(|value| value.as_encoded_bytes());
        let admitted = self.guard.admit(access, authorization, address).await;
        let (caller, _permit) = admitted.map_err(|refused| status(&refused))?;
        // What users do for themselves is no administrative act.
        let name = call_name(name);
        let act = Some(name).filter(|name| audit::is_act(name) && caller.is_service());
        let run = |request| to(Arc::clone(&self.api), caller, request);
        noted(self.guard.audit(), act.as_deref(), request, run).await
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
                    let call = (stringify!($method), $crate::api::Access::$access);
                    self.call(call, request, |api, caller, request| async move {
                        api.$method(&caller, request).await
                    })
                    .await
                }
            )+
        }
    };
}

pub(super) use serve_callers;
