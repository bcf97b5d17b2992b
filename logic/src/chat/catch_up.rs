//! Pushes what a session has missed: the newest undelivered messages of each conversation, once
//! after a login and again whenever its gateway's link was down.
//!
//! The lifecycle task takes sessions in the order they came, tells the registry, applies the
//! device policy and starts a bounded number of catch-ups. [`super::online`] explains why nothing
//! is pushed twice and nothing is missed.

use std::{sync::Arc, time::Duration};

use millrace_logic_sdk::Session;
use millrace_protocol::{Code, chat::Message};
use prost::Message as _;
use tokio::{sync::Semaphore, time::sleep};

use super::{
    Core,
    online::{Finished, Lifecycle, Pushed},
    presence,
    sync::send_deliver,
};

/// Runs until [`Core::stop`]; then only the ends of sessions would still be interesting, and the
/// store has nothing of them.
pub(crate) async fn run_lifecycle(core: Arc<Core>) {
    let permits = Arc::new(Semaphore::new(core.settings.catch_ups_in_flight_max.max(1)));
    loop {
        let Some(next) = core.online.next_lifecycle() else {
            tokio::select! {
                () = core.lifecycle_waker.notified() => continue,
                () = core.stop.cancelled() => return,
            }
        };
        let session = match next {
            Lifecycle::Started(session) => {
                presence::started(&core, &session, false).await;
                session
            }
            Lifecycle::Replayed(session) => {
                presence::started(&core, &session, true).await;
                session
            }
            Lifecycle::Kept(session) => session,
            Lifecycle::Ended(session) => {
                presence::ended(&core, &session).await;
                continue;
            }
        };
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit,
            () = core.stop.cancelled() => return,
        };
        let core = core.clone();
        tokio::spawn(async move {
            catch_up(&core, &session).await;
            drop(permit);
        });
    }
}

async fn catch_up(core: &Core, session: &Session) {
    let settings = &core.settings;
    for attempt in 0..settings.catch_up_attempts_max.max(1) {
        let Some(round) = core.online.begin_catch_up(session) else { return };
        // After `begin`: what is committed later than this is held back for the session.
        let as_of = core.store.version();
        let undelivered = core
            .store
            .undelivered(
                &session.user_id,
                as_of,
                settings.catch_up_messages_max,
                settings.catch_up_conversations_max,
            )
            .await;
        let messages = match undelivered {
            Ok(messages) => messages,
            Err(error) => {
                tracing::error!(%error, "undelivered messages could not be read");
                sleep(Duration::from_millis(100) * 2_u32.pow(attempt.min(5))).await;
                continue;
            }
        };
        core.metrics.catch_ups.inc();
        core.metrics.catch_up_messages.inc_by(messages.len() as u64);
        let mut pushed = Pushed { as_of, highest: Default::default() };
        for message in &messages {
            let highest = pushed.highest.entry(message.conversation_id.clone()).or_default();
            *highest = message.sequence.max(*highest);
        }
        if !push(core, session, round, messages).await {
            return;
        }
        let receiver = [(session.address, session.encoding)];
        let finished = core.online.finish_catch_up(session, round, pushed, |held| {
            let mut out = core.gateways.batch();
            for (messages, _) in chunks(core, held) {
                send_deliver(core, &mut out, &receiver, messages);
            }
        });
        match finished {
            Finished::Live | Finished::Void => return,
            Finished::Again => {}
        }
    }
    core.metrics.catch_ups_failed.inc();
    tracing::warn!("a session is closed because its undelivered messages could not be pushed");
    core.gateways.close(session.address, Code::Internal, Code::Internal.sentence());
}

/// Pushes in bursts with pauses between; false when the session needs no more of this.
async fn push(core: &Core, session: &Session, round: u64, messages: Vec<Message>) -> bool {
    let settings = &core.settings;
    let mut burst = 0;
    for (messages, bytes) in chunks(core, messages) {
        if burst > 0 && burst + bytes > settings.catch_up_burst_bytes_max {
            sleep(settings.catch_up_pause).await;
            burst = 0;
            if !core.online.is_catching_up(session, round) {
                return false;
            }
        }
        burst += bytes;
        let receiver = [(session.address, session.encoding)];
        send_deliver(core, &mut core.gateways.batch(), &receiver, messages);
    }
    true
}

/// Cuts messages into what fits a `DELIVER`, with the bytes of each part.
fn chunks(core: &Core, messages: Vec<Message>) -> Vec<(Vec<Message>, usize)> {
    let settings = &core.settings;
    let mut parts: Vec<(Vec<Message>, usize)> = Vec::new();
    for message in messages {
        let bytes = message.encoded_len();
        match parts.last_mut() {
            Some((part, part_bytes))
                if part.len() < settings.deliver_messages_max
                    && *part_bytes + bytes <= settings.reply_bytes_max =>
            {
                part.push(message);
                *part_bytes += bytes;
            }
            _ => parts.push((vec![message], bytes)),
        }
    }
    parts
}
