//! Messages that are over at a time: hidden from that moment, their content erased soon after.
//!
//! Hiding needs no store: whoever reads messages passes them through [`hide`]. Erasing is a write
//! like others, sent through the chain in bounded batches, so that it is counted and ordered with
//! everything else of its conversation.

use std::{sync::Arc, time::Instant};

use millrace_protocol::chat::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    Core,
    processor::{Job, Origin},
    receiver::unix_ms,
};
use crate::storage::{
    Outcome, Write,
    extras::{STATE_EXPIRED, STATE_NORMAL, bury},
};

/// Takes the content out of those that are over.
pub(crate) fn hide<'a>(messages: impl IntoIterator<Item = &'a mut Message>) {
    let mut now_ms = None;
    for message in messages {
        // Nearly no message expires, so nearly nobody asks for the time.
        if message.expires_at_ms > 0
            && message.state == STATE_NORMAL
            && message.expires_at_ms <= *now_ms.get_or_insert_with(unix_ms)
        {
            bury(message, STATE_EXPIRED);
        }
    }
}

/// Erases what is over, until [`Core::stop`].
pub(crate) async fn run(core: Arc<Core>, writes: mpsc::Sender<Job>) {
    let batch_max = core.settings.messages.expiry_batch_max.max(1);
    let interval = core.settings.messages.expiry_interval;
    loop {
        tokio::select! {
            () = sleep(interval) => {}
            () = core.stop.said() => return,
        }
        while erase(&core, &writes, batch_max).await == Some(batch_max) {
            if core.is_stopping() {
                return;
            }
        }
    }
}

/// One batch; how many were erased, or nothing when that failed.
async fn erase(core: &Core, writes: &mpsc::Sender<Job>, batch_max: usize) -> Option<usize> {
    let at_ms = unix_ms();
    let over = match core.store.expired(at_ms, batch_max).await {
        Ok(over) => over,
        Err(error) => {
            tracing::warn!(%error, "expired messages were not found; they stay hidden");
            return None;
        }
    };
    let mut waiting = Vec::with_capacity(over.len());
    for (conversation_id, sequence) in over {
        let (caller, outcome) = oneshot::channel();
        let write = Write::Expire { conversation_id, sequence, at_ms };
        let job = Job { write, origin: Origin::Api(caller), received_at: Instant::now() };
        writes.send(job).await.ok()?;
        waiting.push(outcome);
    }
    let mut erased = 0;
    for outcome in waiting {
        match outcome.await.ok()? {
            Ok(Outcome::Erased { .. }) => erased += 1,
            Ok(outcome) => tracing::error!(?outcome, "a message that is over was not erased"),
            Err(error) => {
                tracing::warn!(%error, "expired messages were not erased; they stay hidden");
                return None;
            }
        }
    }
    core.metrics.messages_expired.inc_by(erased as u64);
    Some(erased)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_hidden_and_nothing_else() {
        let message = |expires_at_ms, state| Message {
            body: "x".into(),
            expires_at_ms,
            state,
            ..Message::default()
        };
        let now_ms = unix_ms();
        let mut messages = [
            message(0, 0),
            message(1, 0),
            message(now_ms - 1, 0),
            message(now_ms + 3_600_000, 0),
            message(1, 2),
        ];
        hide(&mut messages);
        assert_eq!(messages.each_ref().map(|message| message.state), [0, 3, 3, 0, 2]);
        assert_eq!(messages.each_ref().map(|message| message.body.len()), [1, 0, 0, 1, 1]);
    }
}
