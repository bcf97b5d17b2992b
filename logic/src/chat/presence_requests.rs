//! Presence for clients and services: questions, subscriptions, and the events that follow them.
//!
//! What is asked is who may see whom ([`PresencePolicy`]) and what the registry says; who subscribes
//! to whom, and what was told, is in [`watchers`](super::watchers). Services see everybody.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use millrace_logic_sdk::{Inbound, Refused};
use millrace_protocol::{
    Code,
    api::{QueryPresenceRequest, QueryPresenceResponse, WatchPresenceRequest},
    chat::{
        Presence, PresenceReply, QueryPresence, SubscribePresence, UnsubscribePresence,
        UserPresence,
    },
    command,
};
use tokio::{sync::mpsc, time::sleep};

use super::{
    Core,
    receiver::decode,
    watchers::{Full, SubscriberId, Ticket},
};
use crate::{
    api::sessions::PresenceUpdates, registry::SessionRecord, storage::limits::USER_ID_BYTES_MAX,
};

/// Users of one question of a client, and of one of a service.
const USERS_MAX: usize = 200;
const SERVICE_USERS_MAX: usize = 1_000;

/// Users looked up and told of in one go; others wait for the next.
const TOLD_AT_ONCE_MAX: usize = 500;

/// Platforms of one user that are shown, and the longest name that is: a client chooses it, and others
/// have to read it.
const PLATFORMS_MAX: usize = 8;
const PLATFORM_BYTES_MAX: usize = 64;

/// Events waiting for one stream of a service. Full: the stream ends.
const SERVICE_EVENTS_MAX: usize = 64;

/// Who may see whether somebody is online.
#[async_trait]
pub trait PresencePolicy: Send + Sync + 'static {
    /// Which of these users this one may see, in their order. Asked at each question and each
    /// subscription; one that was given lives on until it ends or is renewed.
    ///
    /// # Errors
    /// What the asking user is told.
    async fn visible(&self, viewer_id: &str, user_ids: &[String]) -> Result<Vec<bool>, Refused>;
}

/// Everybody sees everybody.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenPresence;

#[async_trait]
impl PresencePolicy for OpenPresence {
    async fn visible(&self, _viewer_id: &str, user_ids: &[String]) -> Result<Vec<bool>, Refused> {
        Ok(vec![true; user_ids.len()])
    }
}

/// Serves one of the presence commands.
pub(crate) async fn serve(core: &Core, inbound: &Inbound) {
    match inbound.command {
        command::QUERY_PRESENCE => {
            let Some(query) = decode::<QueryPresence>(core, inbound) else { return };
            answer(core, inbound, self::query(core, inbound, query.user_ids).await);
        }
        command::SUBSCRIBE_PRESENCE => {
            let Some(wanted) = decode::<SubscribePresence>(core, inbound) else { return };
            if let Err(refused) = subscribe(core, inbound, wanted).await {
                answer(core, inbound, Err(refused));
            }
        }
        _ => {
            let Some(unwanted) = decode::<UnsubscribePresence>(core, inbound) else { return };
            let left = core.watchers.unsubscribe(inbound.session.address, &unwanted.user_ids);
            let reply = PresenceReply { subscriptions: left as u32, ..PresenceReply::default() };
            answer(core, inbound, Ok(reply));
        }
    }
}

/// Refusals of the request itself are in its reply, failures of ours an ERROR with a delay.
fn answer(core: &Core, inbound: &Inbound, result: Result<PresenceReply, Refused>) {
    match result {
        Ok(reply) => inbound.reply_message(&reply),
        Err(refused) if refused.retry_after_ms > 0 => {
            core.refuse(inbound, refused.code, &refused.reason);
        }
        Err(Refused { code, reason, .. }) => {
            core.count_refusal(code);
            let reply = PresenceReply { code: code.number(), reason, ..PresenceReply::default() };
            inbound.reply_message(&reply);
        }
    }
}

async fn query(
    core: &Core,
    inbound: &Inbound,
    user_ids: Vec<String>,
) -> Result<PresenceReply, Refused> {
    let (visible, hidden) = visible(core, &inbound.session.user_id, user_ids).await?;
    let users = states(core, &visible).await?;
    Ok(PresenceReply { users, hidden, ..PresenceReply::default() })
}

async fn subscribe(
    core: &Core,
    inbound: &Inbound,
    wanted: SubscribePresence,
) -> Result<(), Refused> {
    let SubscribePresence { user_ids, replace } = wanted;
    let (visible, hidden) = visible(core, &inbound.session.user_id, user_ids).await?;
    let address = inbound.session.address;
    let receiver = (address, inbound.session.encoding);
    let ticket = core
        .watchers
        .subscribe(receiver, &visible, replace, core.online.now_ms())
        .map_err(|full| refusal(core, full))?;
    core.watchers_waker.notify_one();
    if core.gateways.session(address).is_none() {
        // It ended just now, and its end may have come before the subscription.
        core.watchers.forget(SubscriberId::Session(address));
        inbound.reply_message(&PresenceReply::default());
        return Ok(());
    }
    let users = states(core, &visible).await?;
    let subscriptions = core.watchers.subscriptions_of(address) as u32;
    let subscribed_for_ms = core.settings.presence_subscribed_for.as_millis() as u32;
    core.watchers.confirm(ticket, users, |users| {
        let reply = PresenceReply {
            users,
            hidden,
            subscribed_for_ms,
            subscriptions,
            ..PresenceReply::default()
        };
        inbound.reply_message(&reply);
    });
    Ok(())
}

/// Splits users into those this one may see and the others, each once.
async fn visible(
    core: &Core,
    viewer_id: &str,
    user_ids: Vec<String>,
) -> Result<(Vec<String>, Vec<String>), Refused> {
    let user_ids = checked(user_ids, USERS_MAX)?;
    let verdicts = core.presence_policy.visible(viewer_id, &user_ids).await?;
    let (mut visible, mut hidden) = (Vec::new(), Vec::new());
    for (index, user_id) in user_ids.into_iter().enumerate() {
        // A policy that says too little hides the rest.
        let is_visible = verdicts.get(index).copied().unwrap_or(false);
        if is_visible { &mut visible } else { &mut hidden }.push(user_id);
    }
    Ok((visible, hidden))
}

/// The ids as asked for, each once.
fn checked(user_ids: Vec<String>, users_max: usize) -> Result<Vec<String>, Refused> {
    if !(1..=users_max).contains(&user_ids.len()) {
        let reason = format!("1 to {users_max} user_ids are needed.");
        return Err(Refused::new(Code::BadRequest, reason));
    }
    if user_ids.iter().any(|id| !(1..=USER_ID_BYTES_MAX).contains(&id.len())) {
        let reason = "Each user_id has 1 to 128 bytes.";
        return Err(Refused::new(Code::BadRequest, reason));
    }
    let mut seen = BTreeSet::new();
    let is_first: Vec<bool> = user_ids.iter().map(|id| seen.insert(id.as_str())).collect();
    drop(seen);
    Ok(user_ids.into_iter().zip(is_first).filter_map(|(id, first)| first.then_some(id)).collect())
}

fn refusal(core: &Core, full: Full) -> Refused {
    match full {
        Full::Subscriber => {
            let reason = "This would be too many subscriptions; end some first.";
            Refused::new(Code::OverCapacity, reason)
        }
        Full::All => no_room(core),
    }
}

fn no_room(core: &Core) -> Refused {
    let reason = "There is no room for more subscriptions at the moment.";
    let wait_ms = core.retry_after_ms_of(Code::OverCapacity);
    Refused::new(Code::OverCapacity, reason).retry_after(wait_ms)
}

/// How it is now, in the order asked for.
async fn states(core: &Core, user_ids: &[String]) -> Result<Vec<UserPresence>, Refused> {
    let ids: Vec<&str> = user_ids.iter().map(String::as_str).collect();
    let sessions = core.registry.sessions_of(&ids).await.map_err(|error| {
        tracing::error!(%error, "the registry was not read");
        let code = Code::LogicUnavailable;
        Refused::from(code).retry_after(core.retry_after_ms_of(code))
    })?;
    Ok(ids.iter().zip(sessions).map(|(id, sessions)| state(id, &sessions)).collect())
}

fn state(user_id: &str, sessions: &[SessionRecord]) -> UserPresence {
    let is_shown = |platform: &&str| (1..=PLATFORM_BYTES_MAX).contains(&platform.len());
    let platforms: BTreeSet<&str> =
        sessions.iter().map(|session| &*session.platform).filter(is_shown).collect();
    UserPresence {
        user_id: user_id.to_owned(),
        online: !sessions.is_empty(),
        platforms: platforms.into_iter().take(PLATFORMS_MAX).map(str::to_owned).collect(),
    }
}

/// What a service asks once.
pub(crate) async fn query_for(
    core: &Core,
    request: QueryPresenceRequest,
) -> Result<QueryPresenceResponse, Refused> {
    let user_ids = checked(request.user_ids, SERVICE_USERS_MAX)?;
    Ok(QueryPresenceResponse { users: states(core, &user_ids).await? })
}

/// What a service wants to go on hearing.
pub(crate) async fn watch_for(
    core: &Arc<Core>,
    request: WatchPresenceRequest,
) -> Result<PresenceUpdates, Refused> {
    let user_ids = checked(request.user_ids, SERVICE_USERS_MAX)?;
    let (events, updates) = mpsc::channel(SERVICE_EVENTS_MAX);
    let (id, ticket) =
        core.watchers.subscribe_service(events.clone(), &user_ids).map_err(|full| match full {
            Full::Subscriber => {
                let wait_ms = core.retry_after_ms_of(Code::OverCapacity);
                let reason = "There are too many streams already.";
                Refused::new(Code::OverCapacity, reason).retry_after(wait_ms)
            }
            Full::All => no_room(core),
        })?;
    let watcher = Arc::clone(core);
    let updates = PresenceUpdates::new(updates, move || watcher.watchers.forget(id));
    let users = states(core, &user_ids).await?;
    core.watchers.confirm(ticket, users, |users| {
        // The channel is new, so there is room; a receiver that is gone needs nothing.
        let _first = events.try_send(users);
    });
    Ok(updates)
}

/// Tells subscribers of changes, once in an interval, until [`Core::stop`].
pub(crate) async fn run(core: Arc<Core>) {
    let mut ends_at_ms = None;
    loop {
        let next_end = async {
            match ends_at_ms {
                None => std::future::pending().await,
                Some(at) => {
                    let wait_ms = u64::saturating_sub(at, core.online.now_ms());
                    sleep(Duration::from_millis(wait_ms.max(1))).await;
                }
            }
        };
        tokio::select! {
            () = core.watchers_waker.notified() => {}
            () = next_end => {}
            () = core.stop.said() => return core.watchers.forget_services(),
        }
        ends_at_ms = core.watchers.expire(core.online.now_ms());
        if core.watchers.marked() == 0 {
            continue;
        }
        tokio::select! {
            () = sleep(core.settings.presence_interval) => {}
            () = core.stop.said() => return core.watchers.forget_services(),
        }
        tell_marked(&core).await;
    }
}

/// Looks up who is marked now, in bounded steps, and tells.
async fn tell_marked(core: &Core) {
    let mut left = core.watchers.marked();
    while left > 0 {
        let (users, ticket) = core.watchers.take_marked(TOLD_AT_ONCE_MAX.min(left));
        left = left.saturating_sub(TOLD_AT_ONCE_MAX);
        let ids: Vec<String> = users.iter().map(|user| String::from(&**user)).collect();
        if ids.is_empty() {
            continue;
        }
        match states(core, &ids).await {
            Ok(found) => tell(core, ticket, found),
            Err(_) => {
                // The registry is away: these are looked up again in the next interval.
                for user in &users {
                    core.watchers.mark(user);
                }
                core.watchers_waker.notify_one();
                return;
            }
        }
        tokio::task::yield_now().await;
    }
    if core.watchers.marked() > 0 {
        core.watchers_waker.notify_one();
    }
}

fn tell(core: &Core, ticket: Ticket, found: Vec<UserPresence>) {
    let slow = core.watchers.tell(ticket, found, |told| {
        let mut out = core.gateways.batch();
        for (users, receivers) in told {
            core.metrics.presence_events.inc_by(receivers.len() as u64);
            out.send_message(&receivers, command::PRESENCE, &Presence { users });
        }
    });
    if slow > 0 {
        core.metrics.presence_streams_ended.inc_by(slow as u64);
        tracing::warn!(streams = slow, "a service reads presence too slowly; its stream is ended");
    }
}
