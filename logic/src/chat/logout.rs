//! Logging out everywhere: a user's tokens of before are good no more, and the sessions end.
//!
//! The moment is stored first, so that a crash in the middle leaves no token that still opens. Then
//! the sessions are told to leave.
//!
//! # Logins under way
//! A login may have been decided just before the moment was stored, and start just after the
//! sessions were counted. So for a minute the user's moment is remembered here, with the sessions
//! whose tokens were found to be newer than it; any other session of the user that starts
//! meanwhile is ended. That costs nothing while nobody logs out everywhere.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use millrace_logic_sdk::{Inbound, Refused, Session, SessionAddress};
use millrace_protocol::{
    Code,
    chat::{LogoutEverywhere, LogoutEverywhereReply},
    peer::SessionName,
};

use super::{
    Core, peers,
    receiver::{decode, unix_ms},
};
use crate::{
    login::{Verified, VerifyError},
    registry::SessionRecord,
    storage::{KeptSession, Revocation, StoreError},
};

/// How long a moment is remembered: longer than any login takes.
const RECENT_MS: u64 = 60_000;

/// Users remembered. Full: the oldest goes early, which a login of that very moment could use.
const RECENT_MAX: usize = 65_536;

/// What a user reads who is told nothing better.
pub(crate) const REASON: &str = "You were logged out everywhere.";

/// Users who logged out everywhere just now; see the module.
#[derive(Default)]
pub(crate) struct Recent {
    /// Kept beside the table, so that a start asks it without a lock.
    users: AtomicUsize,
    table: Mutex<RecentTable>,
}

#[derive(Default)]
struct RecentTable {
    users: HashMap<Arc<str>, RecentUser>,
    /// When users are forgotten; all are remembered equally long, so the oldest go first.
    ends: VecDeque<(u64, Arc<str>)>,
}

struct RecentUser {
    issued_before_ms: i64,
    ends_at_ms: u64,
    /// Sessions that may stay, or were told to leave.
    stay: HashSet<SessionAddress>,
}

impl Recent {
    fn table(&self) -> MutexGuard<'_, RecentTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(
        &self,
        user_id: &str,
        issued_before_ms: i64,
        kept: Option<SessionAddress>,
        now_ms: u64,
    ) {
        let mut table = self.table();
        let table = &mut *table;
        while let Some((ends_at_ms, user)) = table.ends.front() {
            if *ends_at_ms > now_ms && table.users.len() < RECENT_MAX {
                break;
            }
            // One that was renewed has another end in the queue.
            if table.users.get(user).is_some_and(|found| found.ends_at_ms == *ends_at_ms) {
                table.users.remove(user);
            }
            table.ends.pop_front();
        }
        let user: Arc<str> = user_id.into();
        let ends_at_ms = now_ms + RECENT_MS;
        let recent = RecentUser { issued_before_ms, ends_at_ms, stay: kept.into_iter().collect() };
        table.users.insert(Arc::clone(&user), recent);
        table.ends.push_back((ends_at_ms, user));
        self.users.store(table.users.len(), Ordering::Release);
    }

    /// It was not stored, so it never was.
    fn cancel(&self, user_id: &str, issued_before_ms: i64) {
        let mut table = self.table();
        if table.users.get(user_id).is_some_and(|u| u.issued_before_ms == issued_before_ms) {
            table.users.remove(user_id);
        }
        self.users.store(table.users.len(), Ordering::Release);
    }

    /// A user's moment, also while it is being stored.
    fn moment(&self, user_id: &str) -> Option<i64> {
        if self.users.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.table().users.get(user_id).map(|user| user.issued_before_ms)
    }

    /// A login whose token is newer than `issued_before_ms`.
    fn admit(&self, user_id: &str, issued_before_ms: i64, address: SessionAddress) {
        if self.users.load(Ordering::Acquire) == 0 {
            return;
        }
        if let Some(user) = self.table().users.get_mut(user_id)
            && user.issued_before_ms <= issued_before_ms
        {
            user.stay.insert(address);
        }
    }

    /// Whether a session has a token of before.
    #[cfg(test)]
    fn is_over(&self, user_id: &str, address: SessionAddress) -> bool {
        self.users.load(Ordering::Acquire) > 0
            && self.table().users.get(user_id).is_some_and(|user| !user.stay.contains(&address))
    }

    /// Whether a session has a token of before and was not told to leave: whoever asks tells it.
    pub(crate) fn must_end(&self, user_id: &str, address: SessionAddress) -> bool {
        self.users.load(Ordering::Acquire) > 0
            && self.table().users.get_mut(user_id).is_some_and(|user| user.stay.insert(address))
    }
}

/// Whether a token is still good. `address`: where the session is that it opens or prolongs.
pub(crate) async fn check(
    core: &Core,
    verified: &Verified,
    address: SessionAddress,
) -> Result<(), Refused> {
    let recent = core.recent_logouts.moment(&verified.user_id);
    if recent.is_none() && !core.revocations.may_have(&verified.user_id) {
        return Ok(());
    }
    let found = core.revocations.of(&verified.user_id).await;
    let stored = found.map_err(|error| unread(core, &error))?.map(|found| found.issued_before_ms);
    // Looked at again: it may have come while the store was read.
    let recent = core.recent_logouts.moment(&verified.user_id);
    let Some(before_ms) = stored.max(recent) else { return Ok(()) };
    match verified.issued_at_ms {
        Some(issued_at_ms) if issued_at_ms >= before_ms => {
            core.recent_logouts.admit(&verified.user_id, before_ms, address);
            Ok(())
        }
        Some(_) => {
            let reason = "it was issued before its user logged out everywhere".to_owned();
            Err(VerifyError::BadToken(reason).into())
        }
        None => {
            let reason =
                "its user has logged out everywhere, and it does not say when it was issued (iat)";
            Err(VerifyError::BadToken(reason.to_owned()).into())
        }
    }
}

/// Ends a session that a gateway lists again, if its user has logged out everywhere since it began.
pub(crate) async fn check_returned(core: &Core, session: &Session) {
    if !core.revocations.may_have(&session.user_id) {
        return;
    }
    match core.revocations.of(&session.user_id).await {
        Ok(Some(revocation)) if is_over(&revocation, session) => {
            end(core, session.address, REASON);
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "it is not known whether a session is still good"),
    }
}

fn is_over(revocation: &Revocation, session: &Session) -> bool {
    let is_kept = revocation.kept.as_ref().is_some_and(|kept| {
        kept.session_id == session.address.session_id
            && kept.logged_in_at_ms == session.logged_in_at_ms
            && *kept.gateway_id == *session.gateway_id
    });
    session.logged_in_at_ms < revocation.issued_before_ms && !is_kept
}

/// Which session stays.
pub(crate) enum Keep<'a> {
    None,
    Session(&'a Session),
    Device(&'a str),
}

/// Logs a user out everywhere. Returns how many sessions were told, and the moment. The session that
/// is `asking` is left to the caller.
pub(crate) async fn everywhere(
    core: &Core,
    user_id: &str,
    keep: Keep<'_>,
    asking: Option<SessionAddress>,
    reason: &str,
) -> Result<(u32, i64), Refused> {
    let kept = match keep {
        Keep::None => None,
        Keep::Session(session) => Some(SessionRecord::from(session)),
        Keep::Device(device_id) => {
            let mut found = core.registry.sessions_of(&[user_id]).await.map_err(|error| {
                tracing::error!(%error, "the registry was not read");
                delayed(core, Code::LogicUnavailable)
            })?;
            let sessions = found.pop().unwrap_or_default();
            sessions.into_iter().rfind(|session| *session.device_id == *device_id)
        }
    };
    let address = kept.as_ref().map(|kept| kept.address);
    let kept_name = kept.as_ref().map(peers::name_of);
    let moment_ms = unix_ms();
    let wanted = Revocation {
        issued_before_ms: moment_ms,
        kept: kept.map(|kept| KeptSession {
            gateway_id: kept.gateway_id.to_string(),
            session_id: kept.address.session_id,
            logged_in_at_ms: kept.logged_in_at_ms,
        }),
    };
    // Before it is stored: what a login decides from here on is decided by it.
    let now_ms = core.online.now_ms();
    core.recent_logouts.begin(user_id, moment_ms, address, now_ms);
    let stored = core.revocations.revoke(user_id, wanted).await;
    let in_force = stored.map_err(|error| {
        core.recent_logouts.cancel(user_id, moment_ms);
        unread(core, &error)
    })?;
    let mut told = 0;
    for address in core.online.sessions_of(user_id) {
        if Some(address) != asking && core.recent_logouts.must_end(user_id, address) {
            end(core, address, if reason.is_empty() { REASON } else { reason });
            told += 1;
        }
    }
    if let Some(peers) = &core.peers {
        peers.logged_out(user_id, moment_ms, kept_name, reason);
    }
    Ok((told, in_force.issued_before_ms))
}

/// LOGOUT_EVERYWHERE.
pub(crate) async fn serve(core: &Core, inbound: &Inbound) {
    let Some(wanted) = decode::<LogoutEverywhere>(core, inbound) else { return };
    let session = &inbound.session;
    let keep = if wanted.keep_this_session { Keep::Session(session) } else { Keep::None };
    // It is answered before it ends.
    match everywhere(core, &session.user_id, keep, Some(session.address), "").await {
        Ok((others, issued_before_ms)) => {
            let too = !wanted.keep_this_session;
            inbound.reply_message(&LogoutEverywhereReply {
                sessions: others + u32::from(too),
                issued_before_ms,
                ..LogoutEverywhereReply::default()
            });
            if too {
                end(core, session.address, REASON);
            }
        }
        Err(refused) => core.refuse(inbound, refused.code, &refused.reason),
    }
}

/// A user has logged out everywhere through another process: as there.
pub(crate) fn heard(
    core: &Core,
    user_id: &str,
    moment_ms: i64,
    kept: Option<&SessionName>,
    reason: &str,
) {
    let kept = kept.and_then(|name| core.online.find(name));
    core.recent_logouts.begin(user_id, moment_ms, kept, core.online.now_ms());
    for address in core.online.sessions_of(user_id) {
        if core.recent_logouts.must_end(user_id, address) {
            end(core, address, if reason.is_empty() { REASON } else { reason });
        }
    }
}

fn end(core: &Core, address: SessionAddress, reason: &str) {
    core.metrics.kicked.inc();
    core.gateways.close(address, Code::Kicked, reason);
}

fn unread(core: &Core, error: &StoreError) -> Refused {
    tracing::error!(%error, "whether a user has logged out everywhere was not read or written");
    delayed(core, error.code())
}

fn delayed(core: &Core, code: Code) -> Refused {
    Refused::from(code).retry_after(core.retry_after_ms_of(code))
}

#[cfg(test)]
mod tests {
    use millrace_logic_sdk::{GatewayKey, SessionAddress};

    use super::{RECENT_MAX, RECENT_MS, Recent};

    fn address(session_id: u64) -> SessionAddress {
        SessionAddress { gateway: GatewayKey(1), shard: 0, session_id }
    }

    #[test]
    fn a_login_decided_before_the_moment_ends_and_one_after_it_stays() {
        let recent = Recent::default();
        assert!(!recent.is_over("alice", address(1)));
        recent.begin("alice", 1_000, Some(address(7)), 0);
        // Decided on what was stored before.
        recent.admit("alice", 999, address(1));
        recent.admit("alice", 1_000, address(2));
        assert!(recent.is_over("alice", address(1)));
        assert!(!recent.is_over("alice", address(2)));
        assert!(!recent.is_over("alice", address(7)), "it was kept");
        assert!(!recent.is_over("bob", address(1)));
    }

    #[test]
    fn a_session_is_told_once() {
        let recent = Recent::default();
        recent.begin("alice", 1_000, None, 0);
        assert!(recent.must_end("alice", address(1)));
        assert!(!recent.must_end("alice", address(1)));
        assert!(recent.must_end("alice", address(2)));
    }

    #[test]
    fn a_moment_that_could_not_be_stored_ends_nobody() {
        let recent = Recent::default();
        recent.begin("alice", 1_000, None, 0);
        assert_eq!(recent.moment("alice"), Some(1_000));
        recent.cancel("alice", 999);
        assert!(recent.is_over("alice", address(1)));
        recent.cancel("alice", 1_000);
        assert_eq!(recent.moment("alice"), None);
        assert!(!recent.is_over("alice", address(1)));
    }

    #[test]
    fn a_second_time_counts_from_the_second_moment() {
        let recent = Recent::default();
        recent.begin("alice", 1_000, None, 0);
        recent.admit("alice", 1_000, address(2));
        recent.begin("alice", 2_000, None, 30_000);
        assert!(recent.is_over("alice", address(2)));
        // The end of the first does not take the second away.
        recent.begin("bob", 1, None, RECENT_MS);
        assert!(recent.is_over("alice", address(2)));
        recent.begin("bob", 2, None, 30_000 + RECENT_MS);
        assert!(!recent.is_over("alice", address(2)));
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_go_first() {
        let recent = Recent::default();
        for number in 0..=RECENT_MAX {
            recent.begin(&format!("user-{number}"), 1, None, 0);
        }
        assert!(!recent.is_over("user-0", address(1)));
        assert!(recent.is_over("user-1", address(1)));
        assert_eq!(recent.table().users.len(), RECENT_MAX);
    }
}
