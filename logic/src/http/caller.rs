//! What the HTTP routes that users call share: who calls and from where, the body, the query, the
//! answer. The routes of services alone are the parent's.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Query, Request},
    http::{HeaderValue, header},
    response::Response,
};
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::OwnedSemaphorePermit;

use super::{Act, HttpSettings, answer, read_body, refusal};
use crate::{
    api::{Access, Caller, CallerGuard, Principal},
    audit,
};

/// What a call says about who makes it.
pub(super) struct Origin {
    authorization: Option<HeaderValue>,
    address: Option<IpAddr>,
}

impl Origin {
    /// The same without the token that was shown.
    pub(super) fn without_token(self) -> Self {
        Self { authorization: None, ..self }
    }
}

/// A door for users and services to one of the traits of [`crate::api`].
pub(super) struct CallerDoor<A: ?Sized> {
    pub(super) api: Arc<A>,
    pub(super) guard: CallerGuard,
    pub(super) settings: HttpSettings,
}

impl<A: ?Sized> CallerDoor<A> {
    /// Admits a call with a JSON body and passes it on. An absent body is an empty message.
    pub(super) async fn call<Q, R, F>(
        &self,
        access: Access,
        call: Request,
        to: impl FnOnce(Arc<A>, Caller, Q) -> F,
    ) -> Response
    where
        Q: DeserializeOwned + Serialize + Default,
        R: Serialize,
        F: Future<Output = Result<R, Refused>>,
    {
        let origin = self.origin(&call);
        let (caller, _permit) = match self.admit(access, origin).await {
            Ok(admitted) => admitted,
            Err(refused) => return refusal(&refused),
        };
        // What users do for themselves is no administrative act.
        let act = match caller.principal {
            Principal::Service => Act::of::<Q>(&call).or_else(|| Act::of::<R>(&call)),
            Principal::User(_) | Principal::Anybody => None,
        };
        let request = match read_body::<Q>(&self.settings, call.into_body()).await {
            Ok(request) => request,
            Err(response) => return *response,
        };
        let target = act.as_ref().map(|_| audit::target_of(&request));
        let result = to(Arc::clone(&self.api), caller, request).await;
        if let Some(act) = act {
            act.note(self.guard.audit(), target.unwrap_or_default(), &result);
        }
        answer(result)
    }

    /// The same for a call that says everything in its path and query.
    pub(super) async fn query<Q, R, F>(
        &self,
        call: Request,
        to: impl FnOnce(Arc<A>, Caller, Q) -> F,
    ) -> Response
    where
        Q: DeserializeOwned,
        R: Serialize,
        F: Future<Output = Result<R, Refused>>,
    {
        let origin = self.origin(&call);
        let (caller, _permit) = match self.admit(Access::Known, origin).await {
            Ok(admitted) => admitted,
            Err(refused) => return refusal(&refused),
        };
        match query(&call) {
            Ok(query) => answer(to(Arc::clone(&self.api), caller, query).await),
            Err(refused) => refusal(&refused),
        }
    }

    pub(super) async fn admit(
        &self,
        access: Access,
        origin: Origin,
    ) -> Result<(Caller, OwnedSemaphorePermit), Refused> {
        let authorization = origin.authorization.as_ref().map(HeaderValue::as_bytes);
        self.guard.admit(access, authorization, origin.address).await
    }

    /// What a call says about who makes it.
    pub(super) fn origin(&self, call: &Request) -> Origin {
        let authorization = call.headers().get(header::AUTHORIZATION).cloned();
        Origin { authorization, address: self.address(call) }
    }

    /// Where a call comes from: what the nearest proxy says, if one is configured, else the peer.
    fn address(&self, call: &Request) -> Option<IpAddr> {
        let header = &self.settings.client_address_header;
        if !header.is_empty() {
            // The last address is the proxy's own word; those before it are what the client said.
            let value =
                call.headers().get_all(header.as_str()).iter().next_back()?.to_str().ok()?;
            return value.rsplit(',').next()?.trim().parse().ok();
        }
        call.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
    }
}

/// The query of a call's URL.
pub(super) fn query<Q: DeserializeOwned>(call: &Request) -> Result<Q, Refused> {
    Query::try_from_uri(call.uri()).map(|Query(query)| query).map_err(|error| {
        Refused::new(Code::BadRequest, format!("The query is not the one expected: {error}."))
    })
}
