//! Who calls: a business service with the API token, a user with a token of their own, or somebody
//! who has not said.
//!
//! A [`CallerGuard`] finds out, bounds the calls at the same time and the pace of each user's calls.
//! Services are bounded by their own [`Guard`], so that no crowd of users can keep a service out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Guard, bearer};
use crate::{
    audit::Audit,
    login::{TokenVerifier, Verified, VerifyError},
    storage::Revocations,
};

/// Who a call comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A business service: it showed the API token and may act for everybody.
    Service,
    /// A user: it showed a token that the gateway's LOGIN would take, too.
    User(String),
    /// Somebody without a token.
    Anybody,
}

/// A call's origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub principal: Principal,
    /// Where the call comes from, if that is known.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// Whether it may act for everybody.
    pub fn is_service(&self) -> bool {
        self.principal == Principal::Service
    }

    /// The address that attempts are counted by: none of a service, whose address says nothing
    /// about its users.
    pub fn counted_address(&self) -> Option<IpAddr> {
        if self.is_service() { None } else { self.address }
    }

    /// The user id meant: a user may write "me".
    pub fn resolve(&self, user_id: &str) -> String {
        match &self.principal {
            Principal::User(own) if user_id == "me" => own.clone(),
            _ => user_id.to_owned(),
        }
    }

    /// The user that this call acts for, which must be the caller unless that is a service.
    ///
    /// # Errors
    /// `not_permitted` for somebody else, `bad_request` without a user.
    pub fn acting_as(&self, user_id: &str) -> Result<String, Refused> {
        let user_id = self.resolve(user_id);
        if user_id.is_empty() || user_id.len() > crate::storage::limits::USER_ID_BYTES_MAX {
            return Err(Refused::new(Code::BadRequest, "A user_id of 1 to 128 bytes is needed."));
        }
        match &self.principal {
            Principal::Service => Ok(user_id),
            Principal::User(own) if *own == user_id => Ok(user_id),
            _ => Err(Refused::new(Code::NotPermitted, "A user may do this for themself alone.")),
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> i64 {
    // A clock before 1970 is a machine without one; 0 says so.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// The bounds on users' calls.
#[derive(Clone, Copy, Debug)]
pub struct CallerLimits {
    /// Calls of users and of those without a token at the same time. One more is refused with
    /// `over_capacity`.
    pub calls_in_flight_max: usize,
    /// Calls a second of one user. Above: `rate_limited`.
    pub calls_per_second_max: u32,
    /// How many of those at once after a quiet time.
    pub calls_burst_max: u32,
    /// Users whose pace is kept. Full: those who are not at full pace stay, others are told to wait.
    pub users_paced_max: usize,
}

impl Default for CallerLimits {
    fn default() -> Self {
        Self {
            calls_in_flight_max: 1_024,
            calls_per_second_max: 20,
            calls_burst_max: 100,
            users_paced_max: 100_000,
        }
    }
}

/// Whether a call needs a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody may call; a token that is shown must be good.
    Anybody,
    /// A user or a service.
    Known,
}

/// See the module. Cheap to clone; clones share the bounds.
#[derive(Clone)]
pub struct CallerGuard(Arc<Inner>);

struct Inner {
    services: Guard,
    verifier: Arc<dyn TokenVerifier>,
    revocations: Arc<dyn Revocations>,
    limits: CallerLimits,
    calls: Arc<Semaphore>,
    /// By user: until when, in microseconds of `began`, the calls so far are paid for.
    paces: Mutex<HashMap<String, u64>>,
    began: Instant,
}

impl CallerGuard {
    /// Services are let in by `services`, users by what `verifier` and `revocations` say of their
    /// tokens.
    pub fn new(
        services: Guard,
        verifier: Arc<dyn TokenVerifier>,
        revocations: Arc<dyn Revocations>,
        limits: CallerLimits,
    ) -> Self {
        let permits = limits.calls_in_flight_max.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            services,
            verifier,
            revocations,
            limits,
            calls: Arc::new(Semaphore::new(permits)),
            paces: Mutex::default(),
            began: Instant::now(),
        }))
    }

    /// Where the acts of services are noted.
    pub(crate) fn audit(&self) -> &Audit {
        self.0.services.audit()
    }

    /// Who lets services in.
    pub(crate) fn services(&self) -> &Guard {
        &self.0.services
    }

    /// Lets a call in, or refuses it. `authorization` is the header's value.
    pub(crate) async fn admit(
        &self,
        access: Access,
        authorization: Option<&[u8]>,
        address: Option<IpAddr>,
    ) -> Result<(Caller, OwnedSemaphorePermit), Refused> {
        let inner = &*self.0;
        if authorization.is_some_and(|value| inner.services.is_api_token(value)) {
            let permit = inner.services.admit(authorization)?;
            return Ok((Caller { principal: Principal::Service, address }, permit));
        }
        let permit = Arc::clone(&inner.calls).try_acquire_owned().map_err(|_| {
            Refused::new(Code::OverCapacity, "Too many calls at the same time.").retry_after(1_000)
        })?;
        let principal = match authorization {
            None if access == Access::Anybody => Principal::Anybody,
            None => {
                let reason = "Show your token as Authorization: Bearer <token>.";
                return Err(Refused::new(Code::BadToken, reason));
            }
            Some(value) => Principal::User(self.user(value).await?),
        };
        Ok((Caller { principal, address }, permit))
    }

    async fn user(&self, authorization: &[u8]) -> Result<String, Refused> {
        let token = bearer(authorization).and_then(|token| std::str::from_utf8(token).ok());
        let Some(token) = token else {
            let reason = "Show your token as Authorization: Bearer <token>.";
            return Err(Refused::new(Code::BadToken, reason));
        };
        let verified = self.0.verifier.verify(token).await?;
        self.check_revoked(&verified).await?;
        let now_us = self.0.began.elapsed().as_micros() as u64;
        match self.pace(&verified.user_id, now_us) {
            Ok(()) => Ok(verified.user_id),
            Err(wait_ms) => Err(Refused::from(Code::RateLimited).retry_after(wait_ms)),
        }
    }

    /// Refuses a token of before its user logged out everywhere, or changed the password.
    async fn check_revoked(&self, verified: &Verified) -> Result<(), Refused> {
        let revocations = &self.0.revocations;
        if !revocations.may_have(&verified.user_id) {
            return Ok(());
        }
        let found = revocations.of(&verified.user_id).await.map_err(|error| {
            tracing::error!(%error, "the revocations were not read");
            Refused::from(error.code()).retry_after(1_000)
        })?;
        let issued_at_ms = verified.issued_at_ms.unwrap_or(i64::MIN);
        match found {
            Some(revocation) if issued_at_ms < revocation.issued_before_ms => {
                let reason = "it was issued before its user logged out everywhere".to_owned();
                Err(VerifyError::BadToken(reason).into())
            }
            _ => Ok(()),
        }
    }

    /// Counts a call of a user. Err: how long to wait, in milliseconds.
    fn pace(&self, user_id: &str, now_us: u64) -> Result<(), u32> {
        let limits = &self.0.limits;
        let one_us = 1_000_000 / u64::from(limits.calls_per_second_max.max(1));
        let burst_us = one_us * u64::from(limits.calls_burst_max.max(1) - 1);
        let mut paces = self.0.paces.lock().unwrap_or_else(PoisonError::into_inner);
        if paces.len() >= limits.users_paced_max && !paces.contains_key(user_id) {
            paces.retain(|_, paid_until_us| *paid_until_us > now_us);
            if paces.len() >= limits.users_paced_max {
                return Err(1_000);
            }
        }
        let paid_until_us = paces.entry(user_id.to_owned()).or_insert(now_us);
        let from_us = now_us.max(*paid_until_us);
        let wait_us = (from_us - now_us).saturating_sub(burst_us);
        if wait_us > 0 {
            return Err(u32::try_from(wait_us.div_ceil(1_000)).unwrap_or(u32::MAX));
        }
        *paid_until_us = from_us + one_us;
        Ok(())
    }
}

impl std::fmt::Debug for CallerGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallerGuard").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use millrace_protocol::Code;

    use super::{Access, Caller, CallerGuard, CallerLimits, Guard, Principal};
    use crate::{
        login::{TokenVerifier, Verified, VerifyError},
        storage::{Revocation, Revocations, StoreError},
    };

    struct TokenIsName;

    #[async_trait]
    impl TokenVerifier for TokenIsName {
        async fn verify(&self, token: &str) -> Result<Verified, VerifyError> {
            match token {
                "expired" => Err(VerifyError::Expired),
                token => {
                    let (user_id, issued_at) = token.split_once('@').unwrap_or((token, ""));
                    let issued_at_ms = issued_at.parse().ok();
                    Ok(Verified { user_id: user_id.to_owned(), expires_at_ms: 0, issued_at_ms })
                }
            }
        }
    }

    /// "zoe" has logged out everywhere at 1,000.
    struct ZoeLeft;

    #[async_trait]
    impl Revocations for ZoeLeft {
        async fn revoke(&self, _: &str, new: Revocation) -> Result<Revocation, StoreError> {
            Ok(new)
        }

        async fn of(&self, user_id: &str) -> Result<Option<Revocation>, StoreError> {
            let zoes = Revocation { issued_before_ms: 1_000, kept: None };
            Ok((user_id == "zoe").then_some(zoes))
        }

        fn may_have(&self, user_id: &str) -> bool {
            user_id.starts_with('z')
        }

        async fn forget_before(&self, _: i64) -> Result<u64, StoreError> {
            Ok(0)
        }
    }

    #[tokio::test]
    async fn a_token_of_before_logging_out_everywhere_is_refused() {
        let guard = guard(CallerLimits::default());
        for (shown, wanted) in [
            ("Bearer zoe", Err(Code::BadToken)),
            ("Bearer zoe@999", Err(Code::BadToken)),
            ("Bearer zoe@1000", Ok(Principal::User("zoe".into()))),
            ("Bearer zac", Ok(Principal::User("zac".into()))),
            ("Bearer alice", Ok(Principal::User("alice".into()))),
        ] {
            assert_eq!(admit(&guard, Access::Known, shown).await, wanted, "{shown}");
        }
    }

    fn guard(limits: CallerLimits) -> CallerGuard {
        let services = Guard::new("the api token", 1);
        CallerGuard::new(services, Arc::new(TokenIsName), Arc::new(ZoeLeft), limits)
    }

    async fn admit(guard: &CallerGuard, access: Access, shown: &str) -> Result<Principal, Code> {
        let shown = (!shown.is_empty()).then_some(shown.as_bytes());
        let admitted = guard.admit(access, shown, None).await;
        admitted.map(|(caller, _)| caller.principal).map_err(|refused| refused.code)
    }

    #[tokio::test]
    async fn services_users_and_anybody_are_told_apart() {
        let guard = guard(CallerLimits::default());
        for access in [Access::Anybody, Access::Known] {
            let service = admit(&guard, access, "Bearer the api token").await;
            assert_eq!(service, Ok(Principal::Service));
            let user = admit(&guard, access, "bearer alice").await;
            assert_eq!(user, Ok(Principal::User("alice".into())));
            assert_eq!(admit(&guard, access, "Bearer expired").await, Err(Code::TokenExpired));
            assert_eq!(admit(&guard, access, "Basic abc").await, Err(Code::BadToken));
        }
        assert_eq!(admit(&guard, Access::Anybody, "").await, Ok(Principal::Anybody));
        assert_eq!(admit(&guard, Access::Known, "").await, Err(Code::BadToken));
    }

    #[tokio::test]
    async fn users_and_services_have_bounds_of_their_own() {
        let guard = guard(CallerLimits { calls_in_flight_max: 1, ..CallerLimits::default() });
        let user = guard.admit(Access::Known, Some(b"Bearer alice"), None).await.unwrap();
        assert_eq!(admit(&guard, Access::Known, "Bearer bob").await, Err(Code::OverCapacity));
        let service = guard.admit(Access::Known, Some(b"Bearer the api token"), None).await;
        let again = admit(&guard, Access::Known, "Bearer the api token").await;
        assert_eq!(again, Err(Code::OverCapacity));
        drop((user, service));
        assert!(admit(&guard, Access::Known, "Bearer bob").await.is_ok());
    }

    #[test]
    fn every_user_has_a_pace_and_the_table_is_bounded() {
        let limits = CallerLimits {
            calls_per_second_max: 10,
            calls_burst_max: 2,
            users_paced_max: 2,
            ..CallerLimits::default()
        };
        let guard = guard(limits);
        for user in ["a", "b"] {
            assert_eq!(guard.pace(user, 0), Ok(()));
            assert_eq!(guard.pace(user, 0), Ok(()));
            assert_eq!(guard.pace(user, 0), Err(100));
            assert_eq!(guard.pace(user, 100_000), Ok(()));
        }
        assert!(guard.pace("c", 150_000).is_err(), "both are not at full pace");
        assert_eq!(guard.pace("c", 400_000), Ok(()));
    }

    #[test]
    fn a_user_acts_for_themself_and_a_service_for_everybody() {
        let caller = |principal| Caller { principal, address: Some([10, 0, 0, 1].into()) };
        let alice = caller(Principal::User("alice".into()));
        assert_eq!(alice.acting_as("me").unwrap(), "alice");
        assert_eq!(alice.acting_as("alice").unwrap(), "alice");
        assert_eq!(alice.acting_as("bob").unwrap_err().code, Code::NotPermitted);
        assert!(alice.counted_address().is_some());
        let service = caller(Principal::Service);
        assert_eq!(service.acting_as("bob").unwrap(), "bob");
        assert_eq!(service.acting_as("").unwrap_err().code, Code::BadRequest);
        assert_eq!(service.counted_address(), None);
        let anybody = caller(Principal::Anybody);
        assert_eq!(anybody.acting_as("bob").unwrap_err().code, Code::NotPermitted);
        assert_eq!(anybody.acting_as("me").unwrap_err().code, Code::NotPermitted);
    }
}
