//! What all operations share: who calls and from where, the request out of path, query and body, the
//! audit line of an administrative act, the answer.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::{ConnectInfo, Query, Request},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    HttpSettings, answer,
    binding::Binding,
    operation::{Operation, Who},
    refusal, with_status,
};
use crate::{
    api::{Access, Caller, CallerGuard, Guard, Principal},
    audit,
};

/// In whose name a service acts, as it says itself; for the audit line alone.
const ACTOR: &str = "x-millrace-actor";

/// Who lets calls in: services alone, or users too.
#[derive(Clone)]
pub(super) enum Entry {
    Services(Guard),
    Callers(CallerGuard),
}

impl From<Guard> for Entry {
    fn from(guard: Guard) -> Self {
        Self::Services(guard)
    }
}

impl From<CallerGuard> for Entry {
    fn from(guard: CallerGuard) -> Self {
        Self::Callers(guard)
    }
}

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

/// A door to one of the traits of [`crate::api`].
pub(super) struct Door<A: ?Sized> {
    pub(super) api: Arc<A>,
    pub(super) entry: Entry,
    pub(super) settings: HttpSettings,
}

/// A call's path, decoded: names and values. None: it is not UTF-8.
pub(super) type Parts = Option<Vec<(String, String)>>;

impl<A: ?Sized> Door<A> {
    pub(super) fn new(api: Arc<A>, entry: impl Into<Entry>, settings: HttpSettings) -> Arc<Self> {
        Arc::new(Self { api, entry: entry.into(), settings })
    }

    /// Admits a call, reads its request and passes it on.
    pub(super) async fn call<Q, R, F>(
        &self,
        (operation, binding): (&Operation, &Binding),
        parts: Parts,
        call: Request,
        to: impl FnOnce(Arc<A>, Caller, Q) -> F,
    ) -> Response
    where
        Q: Message + Default + DeserializeOwned + Serialize,
        R: Serialize,
        F: Future<Output = Result<R, Refused>>,
    {
        let (caller, _permit) = match self.admit(operation.who, self.origin(&call)).await {
            Ok(admitted) => admitted,
            Err(refused) => return refusal(&refused),
        };
        let act = Act::of(operation, &caller, &call);
        let request: Q = match self.request(binding, parts, call).await {
            Ok(request) => request,
            Err(response) => return *response,
        };
        let target = act.as_ref().map(|_| audit::target_of(&request));
        let result = to(Arc::clone(&self.api), caller, request).await;
        if let (Some(act), Some(target)) = (act, target) {
            act.note(self.services().audit(), target, &result);
        }
        answer(result)
    }

    /// The request that path, query and body say.
    pub(super) async fn request<Q>(
        &self,
        binding: &Binding,
        parts: Parts,
        call: Request,
    ) -> Result<Q, Box<Response>>
    where
        Q: Message + Default + DeserializeOwned,
    {
        let bad = |reason: String| Box::new(refusal(&Refused::new(Code::BadRequest, reason)));
        let parts = parts.ok_or_else(|| bad("The path is not UTF-8.".to_owned()))?;
        let parts = parts.iter().map(|(name, text)| (&**name, &**text));
        let encoded = binding.encode(parts, call.uri().query().unwrap_or_default()).map_err(bad)?;
        let mut request = match &binding.within {
            Some(field) => {
                let body = read_body(&self.settings, call.into_body()).await?;
                let others = binding.body.iter().map(|field| (field.name(), field.json_name()));
                let request = wrapped(field.name(), others, body);
                serde_json::from_value(request).map_err(|error| bad(not_expected(&error)))?
            }
            None if binding.has_body() => read_body(&self.settings, call.into_body()).await?,
            None => Q::default(),
        };
        // What the path says wins over the body.
        request.merge(&*encoded).map_err(|error| {
            tracing::error!(%error, "a path and a query were encoded badly");
            Box::new(refusal(&Refused::from(Code::Internal)))
        })?;
        Ok(request)
    }

    /// Lets a call in, or refuses it.
    pub(super) async fn admit(
        &self,
        who: Who,
        origin: Origin,
    ) -> Result<(Caller, Option<OwnedSemaphorePermit>), Refused> {
        let authorization = origin.authorization.as_ref().map(HeaderValue::as_bytes);
        let address = origin.address;
        let (access, guard) = match (who, &self.entry) {
            (Who::Everyone, _) => {
                return Ok((Caller { principal: Principal::Anybody, address }, None));
            }
            (Who::Anybody, Entry::Callers(guard)) => (Access::Anybody, guard),
            (Who::Known, Entry::Callers(guard)) => (Access::Known, guard),
            // Where users are not known at all, services alone are let in.
            (Who::Services, _) | (_, Entry::Services(_)) => {
                let permit = self.services().admit(authorization)?;
                return Ok((Caller { principal: Principal::Service, address }, Some(permit)));
            }
        };
        let (caller, permit) = guard.admit(access, authorization, address).await?;
        Ok((caller, Some(permit)))
    }

    fn services(&self) -> &Guard {
        match &self.entry {
            Entry::Services(guard) => guard,
            Entry::Callers(guard) => guard.services(),
        }
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

/// An administrative act under way.
struct Act {
    name: String,
    actor: String,
    path: String,
}

impl Act {
    fn of(operation: &Operation, caller: &Caller, call: &Request) -> Option<Self> {
        let name = operation.call.as_ref()?.name();
        if !audit::is_act(name) || !caller.is_service() {
            return None;
        }
        let name = name.to_owned();
        let actor = call.headers().get(ACTOR).and_then(|value| value.to_str().ok());
        let (actor, path) = (actor.unwrap_or_default().to_owned(), call.uri().path().to_owned());
        Some(Self { name, actor, path })
    }

    fn note<R>(self, audit: &audit::Audit, target: Value, result: &Result<R, Refused>) {
        let mut target = match target {
            Value::Object(ids) => ids,
            _ => Map::new(),
        };
        target.insert("path".to_owned(), Value::from(self.path));
        let code = result.as_ref().map_or_else(|refused| refused.code, |_| Code::Ok);
        audit.note("http", &self.actor, &self.name, &Value::Object(target), code);
    }
}

/// Puts a body where the request has it: the fields named in `others` stay outside, the rest goes
/// into `field`.
fn wrapped<'a>(
    field: &str,
    others: impl Iterator<Item = (&'a str, &'a str)>,
    mut body: Map<String, Value>,
) -> Value {
    let mut request = Map::new();
    for (name, json_name) in others {
        if let Some(value) = body.remove(name).or_else(|| body.remove(json_name)) {
            request.insert(name.to_owned(), value);
        }
    }
    request.insert(field.to_owned(), Value::Object(body));
    Value::Object(request)
}

fn not_expected(error: &serde_json::Error) -> String {
    format!("The body is not the JSON expected: {error}.")
}

/// Reads a JSON body within the bounds. An absent one is an empty message.
async fn read_body<Q: DeserializeOwned + Default>(
    settings: &HttpSettings,
    body: Body,
) -> Result<Q, Box<Response>> {
    let max = settings.body_bytes_max;
    let patience = Duration::from_millis(u64::from(settings.body_ms_max));
    let body = match timeout(patience, axum::body::to_bytes(body, max)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => {
            // The cause tells a body that is too large from one that broke off; its type is
            // private to a crate below, so the sentence covers both.
            let reason = format!("The body is above {max} bytes or broke off: {error}.");
            return Err(Box::new(refusal(&Refused::new(Code::TooLarge, reason))));
        }
        Err(_) => {
            let refused = Refused::new(Code::BadRequest, "The body did not arrive in time.");
            return Err(Box::new(with_status(StatusCode::REQUEST_TIMEOUT, &refused)));
        }
    };
    if body.is_empty() {
        return Ok(Q::default());
    }
    serde_json::from_slice(&body)
        .map_err(|error| Box::new(refusal(&Refused::new(Code::BadRequest, not_expected(&error)))))
}

/// The query of a call's URL, where it is no message.
pub(super) fn query<Q: DeserializeOwned>(call: &Request) -> Result<Q, Refused> {
    Query::try_from_uri(call.uri()).map(|Query(query)| query).map_err(|error| {
        Refused::new(Code::BadRequest, format!("The query is not the one expected: {error}."))
    })
}

#[cfg(test)]
mod tests {
    use millrace_protocol::api::{ChangeGroupRequest, change_group_request::Act};
    use serde_json::json;

    use super::*;

    fn announced(body: Value) -> Result<ChangeGroupRequest, serde_json::Error> {
        let Value::Object(body) = body else { panic!("{body} is no object") };
        let others = [("actor_user_id", "actorUserId")].into_iter();
        serde_json::from_value(wrapped("announce", others, body))
    }

    #[test]
    fn the_body_of_an_act_is_that_of_its_field_with_the_actor_beside_it() {
        for actor in ["actor_user_id", "actorUserId"] {
            let request = announced(json!({ "text": "hear", actor: "ann" })).expect("an act");
            assert_eq!(request.actor_user_id, "ann");
            assert!(matches!(request.act, Some(Act::Announce(act)) if act.text == "hear"));
        }
        let nobody = announced(json!({})).expect("an act");
        assert_eq!(nobody.act, Some(Act::Announce(Default::default())));
        announced(json!({ "text": 7 })).expect_err("no text");
    }
}
