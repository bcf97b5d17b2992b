//! Removes uploads that were never completed, files that no message came to refer to, and what a
//! removal that was cut off has left, some at a time.

use std::sync::Arc;

use super::Attachments;
use crate::{api::unix_ms, storage::attachments::AttachmentState};

/// Files looked at in one go.
const BATCH: usize = 100;

/// Sweeps every `sweep_interval` until it is dropped.
pub async fn run(attachments: Arc<Attachments>) {
    loop {
        tokio::time::sleep(attachments.settings.sweep_interval).await;
        let removed = sweep(&attachments, unix_ms()).await;
        if removed > 0 {
            tracing::info!(removed, "attachments that nothing refers to were removed");
        }
    }
}

/// One sweep, as of this moment. Returns how many were removed.
async fn sweep(attachments: &Attachments, now_ms: i64) -> u64 {
    let settings = &attachments.settings;
    let before = |lifetime: std::time::Duration| {
        now_ms.saturating_sub(i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX))
    };
    let upload_before_ms = before(settings.upload_lifetime);
    let orphan_before_ms = before(settings.orphan_lifetime);
    // What is being removed already is due at any age.
    let before_ms = now_ms;
    let (mut removed, mut after) = (0, (0, String::new()));
    loop {
        let listed = attachments.rows.unreferred((after.0, &after.1), before_ms, BATCH).await;
        let rows = match listed {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(%error, "attachments were not swept");
                return removed;
            }
        };
        for row in &rows {
            let is_due = match row.state {
                AttachmentState::Uploading => row.created_at_ms < upload_before_ms,
                AttachmentState::Complete => row.created_at_ms < orphan_before_ms,
                AttachmentState::Removing => true,
            };
            if !is_due {
                continue;
            }
            // Who is sending a part at this moment is left to the next sweep.
            let Some(_claim) = attachments.uploads.claim(&row.attachment_id) else { continue };
            match attachments.discard(&row.attachment_id, true).await {
                Ok(was_there) => removed += u64::from(was_there),
                Err(refused) => {
                    let reason = refused.reason;
                    tracing::error!(reason, row.attachment_id, "an attachment was not removed");
                }
            }
        }
        match rows.last() {
            Some(last) if rows.len() == BATCH => {
                after = (last.created_at_ms, last.attachment_id.clone());
            }
            _ => return removed,
        }
    }
}
