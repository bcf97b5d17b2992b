//! Logins, the multi-device policy, and what the registry is told of a session.
//!
//! The registry may be away; it is told a few times, then the failure is counted and the session
//! lives on, because presence is a view and not the truth: gateways list their sessions again.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use millrace_logic_sdk::{Accepted, Login, Refused, Session};
use millrace_protocol::Code;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Core, logout, moved_away::MovedAway, online::Lifecycle, paces::Paced, receiver::unix_ms,
};
use crate::{
    login::authenticate,
    registry::{RegistryError, SessionRecord},
};

/// Attempts to tell the registry one thing.
const ATTEMPTS_MAX: u32 = 3;

/// How long between them.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);

/// Decides about a login. Sessions that must make room go when the new one has started, so that a
/// login that fails elsewhere costs nobody theirs.
pub(crate) async fn login(core: &Core, login: Login) -> Result<Accepted, Refused> {
    if core.is_stopping() {
        return Err(unavailable(core));
    }
    let (timestamp_ms, nonce) = (login.timestamp_ms, &*login.nonce);
    core.logins_seen.check_time(timestamp_ms, nonce, unix_ms())?;
    let verified = authenticate(&*core.verifier, &login.user_id, &login.token)
        .await
        .map_err(|error| with_delay(core, error.into()))?;
    // After the token: nobody uses up the rate of somebody else.
    pace(core, &verified.user_id)?;
    logout::check(core, &verified, login.address).await?;
    if core.settings.sessions.may_refuse(&login.platform) {
        let new = SessionRecord {
            user_id: verified.user_id.as_str().into(),
            address: login.address,
            gateway_id: "".into(),
            device_id: login.device_id.as_str().into(),
            platform: login.platform.as_str().into(),
            logged_in_at_ms: unix_ms(),
        };
        let existing = core
            .registry
            .sessions_of(&[&verified.user_id])
            .await
            .map_err(|_| unavailable(core))?
            .pop()
            .unwrap_or_default();
        core.settings.sessions.decide(&existing, &new)?;
    }
    // Last: a login that was refused for anything else may be tried again as it is.
    core.logins_seen.take(&verified.user_id, timestamp_ms, nonce, unix_ms())?;
    Ok(Accepted {
        user_id: verified.user_id,
        expires_at_ms: verified.expires_at_ms,
        ..Accepted::default()
    })
}

/// Decides about a newer token of a live session.
pub(crate) async fn refresh(core: &Core, session: &Session, token: &str) -> Result<i64, Refused> {
    pace(core, &session.user_id)?;
    let verified = authenticate(&*core.verifier, &session.user_id, token)
        .await
        .map_err(|error| with_delay(core, error.into()))?;
    logout::check(core, &verified, session.address).await?;
    Ok(verified.expires_at_ms)
}

/// Tells the registry of every start and end, in order, and applies the device policy, until
/// [`Core::stop`]: what this process states ends with it.
pub(crate) async fn run(core: Arc<Core>) {
    let lanes = Lanes::start(&core);
    let mut moved = MovedAway::default();
    loop {
        let next = match core.online.next_lifecycle() {
            // Where no other process asks, nobody is to be waited for.
            Some(Lifecycle::Moved(session)) if lanes.is_some() => {
                let over = moved.add(session, Instant::now());
                over.filter(|session| !core.online.has(session)).map(Lifecycle::Ended)
            }
            Some(next) => Some(next),
            None => {
                let due = moved.due_at();
                tokio::select! {
                    () = core.lifecycle_waker.notified() => {}
                    () = core.stop.said() => return,
                    () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                }
                None
            }
        };
        if let Some(next) = next {
            hand_on(&core, lanes.as_ref(), next).await;
        }
        if moved.due_at().is_some() {
            let now = Instant::now();
            while let Some(session) = moved.take_due(now) {
                // It may have come back; then it ends another time.
                if !core.online.has(&session) {
                    hand_on(&core, lanes.as_ref(), Lifecycle::Ended(session)).await;
                }
            }
        }
    }
}

async fn hand_on(core: &Core, lanes: Option<&Lanes>, next: Lifecycle) {
    match lanes {
        None => deal_with(core, next).await,
        Some(lanes) => lanes.add(next).await,
    }
}

async fn deal_with(core: &Core, next: Lifecycle) {
    match next {
        Lifecycle::Started(session) => started(core, &session, false).await,
        Lifecycle::Replayed(session) => started(core, &session, true).await,
        Lifecycle::Returned(session) => logout::check_returned(core, &session).await,
        Lifecycle::Ended(session) | Lifecycle::Moved(session) => ended(core, &session).await,
    }
}

/// What waits in one lane. Full: all lanes wait; the rest is in the table of sessions.
const LANE_QUEUED_MAX: usize = 16;

/// Tasks that tell a registry which takes its time: of one user in order, of different ones at once.
struct Lanes {
    hasher: RandomState,
    lanes: Vec<mpsc::Sender<Lifecycle>>,
}

impl Lanes {
    /// None where the registry answers at once: then one after the other is the fastest.
    fn start(core: &Arc<Core>) -> Option<Self> {
        let count = core.registry.in_flight_max();
        let lane = |_| {
            let (lane, mut queued) = mpsc::channel(LANE_QUEUED_MAX);
            let core = Arc::clone(core);
            tokio::spawn(async move {
                while let Some(next) = queued.recv().await {
                    deal_with(&core, next).await;
                }
            });
            lane
        };
        (count > 1)
            .then(|| Self { hasher: RandomState::new(), lanes: (0..count).map(lane).collect() })
    }

    async fn add(&self, next: Lifecycle) {
        let lane = self.hasher.hash_one(next.user_id()) as usize % self.lanes.len();
        // A lane that panicked is a bug of ours, and that session's presence is what it costs.
        if self.lanes[lane].send(next).await.is_err() {
            tracing::error!("a task that tells the registry of sessions had failed");
        }
    }
}

/// A session has started: it is online, and others may have to go.
async fn started(core: &Core, session: &Arc<Session>, replayed: bool) {
    if replayed {
        logout::check_returned(core, session).await;
    } else if core.recent_logouts.must_end(&session.user_id, session.address) {
        core.metrics.kicked.inc();
        core.gateways.close(session.address, Code::Kicked, logout::REASON);
    }
    let new = SessionRecord::from(&**session);
    let online = told(core, || core.registry.online(new.clone())).await;
    changed(core, &session.user_id);
    let Some(mut others) = online else { return };
    // Who logs in is the newest by definition, whatever the clocks of two gateways say. Sessions
    // that are listed after a restart come in any order, so there the login times decide.
    let mut newest = new.clone();
    if replayed {
        let age = |record: &SessionRecord| (record.logged_in_at_ms, record.address);
        others.push(new.clone());
        if let Some(found) = others.iter().max_by_key(|record| age(record)) {
            newest = found.clone();
        }
    }
    match core.settings.sessions.decide(&others, &newest) {
        Ok(kicks) => {
            for kick in kicks {
                if let Some(other) = others.iter().find(|other| other.address == kick.address) {
                    core.close_session(other, Code::Replaced, kick.reason);
                }
            }
        }
        // Two logins at once passed the bound together.
        Err(refused) => core.gateways.close(session.address, refused.code, &refused.reason),
    }
}

/// A session is over.
async fn ended(core: &Core, session: &Arc<Session>) {
    let record = SessionRecord::from(&**session);
    told(core, || core.registry.offline(&record)).await;
    changed(core, &session.user_id);
}

/// Somebody may want to know, here or elsewhere.
fn changed(core: &Core, user_id: &str) {
    if let Some(peers) = &core.peers {
        peers.presence_changed(vec![user_id.to_owned()]);
    }
    changed_here(core, user_id);
}

/// Somebody may want to know.
pub(crate) fn changed_here(core: &Core, user_id: &str) {
    if core.watchers.mark(user_id) {
        core.watchers_waker.notify_one();
    }
}

/// Takes a login or a refresh off the user's rate.
fn pace(core: &Core, user_id: &str) -> Result<(), Refused> {
    core.online.pace(user_id, Paced::Login).map_err(|wait_ms| {
        let reason = "Too many logins of this user; wait a little.";
        Refused::new(Code::RateLimited, reason).retry_after(wait_ms)
    })
}

/// Tells the registry something, again if it is away for a moment.
async fn told<T, F>(core: &Core, tell: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    for attempt in 1..=ATTEMPTS_MAX {
        match tell().await {
            Ok(done) => return Some(done),
            Err(RegistryError::Unavailable(_)) if attempt < ATTEMPTS_MAX => {
                sleep(ATTEMPT_PAUSE).await;
            }
            Err(error) => {
                core.metrics.presence_failed.inc();
                tracing::error!(%error, "the registry was not told of a session");
                return None;
            }
        }
    }
    None
}

fn unavailable(core: &Core) -> Refused {
    with_delay(core, Refused::from(Code::LogicUnavailable))
}

fn with_delay(core: &Core, mut refused: Refused) -> Refused {
    refused.retry_after_ms = core.retry_after_ms_of(refused.code);
    refused
}
