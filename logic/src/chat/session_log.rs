//! What this process hears of sessions, as lines of its log at the level debug: for operators who look for one session, and for the
//! cluster test, which proves from them that each end is heard once. Off unless the log's filter asks for
//! `millrace_sessions=debug`.

use millrace_logic_sdk::Session;
use millrace_protocol::Code;

/// A session that has just logged in.
pub(super) const STARTED: &str = "started";
/// One that a gateway listed and this process did not know, or that came from another logic process.
pub(super) const LISTED: &str = "listed";
/// One that is over.
pub(super) const ENDED: &str = "ended";

/// One that another logic process has from now on.
pub(super) const MOVED: &str = "moved";

/// Notes what happened to a session; `code` says why it ended.
pub(super) fn note(act: &'static str, session: &Session, code: Option<Code>) {
    tracing::debug!(
        target: "millrace_sessions",
        act,
        gateway = &*session.gateway_id,
        shard = session.address.shard,
        sid = session.address.session_id,
        at_ms = session.logged_in_at_ms,
        user = &*session.user_id,
        device = &*session.device_id,
        code = code.map(Code::label),
        "session"
    );
}
