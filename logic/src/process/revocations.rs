//! Forgets, now and then, who logged out everywhere so long ago that no token of before lives.

use std::{future::Future, sync::Arc, time::Duration};

use crate::storage::Revocations;

/// How often.
const INTERVAL: Duration = Duration::from_secs(3_600);

/// Runs until the process leaves. `now_ms`: milliseconds since 1970.
pub(super) async fn forget_old(
    revocations: Arc<dyn Revocations>,
    kept: Duration,
    now_ms: fn() -> i64,
    leaving: impl Future<Output = ()>,
) {
    tokio::pin!(leaving);
    let kept_ms = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
    loop {
        match revocations.forget_before(now_ms().saturating_sub(kept_ms)).await {
            Ok(0) => {}
            Ok(users) => tracing::info!(users, "old logouts were forgotten"),
            Err(error) => tracing::warn!(%error, "old logouts were not forgotten; tried again"),
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = &mut leaving => return,
        }
    }
}
