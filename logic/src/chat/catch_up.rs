//! Pushes what a session has missed: the newest undelivered messages of each conversation, once
//! after a login and again whenever its gateway's link was down.
//!
//! [`super::online`] explains why nothing is pushed twice and nothing is missed.

use std::{sync::Arc, time::Duration};

use millrace_logic_sdk::Session;
use millrace_protocol::{Code, chat::Message};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use super::{
    Core, expiry,
    online::{Finished, Pushed},
    sync::send_deliver,
};
use crate::storage::StoreError;

/// A session whose catch-up has begun.
struct Begun {
    session: Arc<Session>,
    round: u64,
    /// One of `catch_ups_in_flight_max`.
    permit: OwnedSemaphorePermit,
}

/// Starts catch-ups, a bounded number at once, until [`Core::stop`]. Those that wait are read
/// together: when everybody logs in at once, nearly all of them have missed nothing.
pub(crate) async fn run(core: Arc<Core>) {
    let permits = Arc::new(Semaphore::new(core.settings.catch_ups_in_flight_max.max(1)));
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit,
            () = core.stop.said() => return,
        };
        let (session, round) = loop {
            match core.online.next_catch_up() {
                Some(next) => break next,
                None => tokio::select! {
                    () = core.catch_up_waker.notified() => {}
                    () = core.stop.said() => return,
                },
            }
        };
        // Nobody closes this semaphore.
        let Ok(permit) = permit else { return };
        let mut begun = vec![Begun { session, round, permit }];
        while let Ok(permit) = permits.clone().try_acquire_owned()
            && let Some((session, round)) = core.online.next_catch_up()
        {
            begun.push(Begun { session, round, permit });
        }
        tokio::spawn(catch_up_together(core.clone(), begun));
    }
}

/// Reads what all of these have missed, and deals with each.
async fn catch_up_together(core: Arc<Core>, begun: Vec<Begun>) {
    let user_ids: Vec<&str> = begun.iter().map(|begun| &*begun.session.user_id).collect();
    let read = async {
        // What is committed after this is held back: the rounds have begun.
        let as_of = core.store.committed_version().await?;
        let found = core
            .store
            .undelivered_of(
                &user_ids,
                as_of,
                core.settings.catch_up_messages_max,
                core.settings.catch_up_conversations_max,
            )
            .await?;
        Ok::<_, StoreError>((as_of, found))
    };
    let (as_of, found): (_, Vec<_>) = match read.await {
        Ok((as_of, found)) => (as_of, found.into_iter().map(Some).collect()),
        Err(error) => {
            tracing::error!(%error, "undelivered messages could not be read");
            (0, begun.iter().map(|_| None).collect())
        }
    };
    for (Begun { session, round, permit }, messages) in begun.into_iter().zip(found) {
        // Without messages nothing waits. Whoever has some waits for nobody else.
        if let Some(messages) = &messages
            && messages.is_empty()
            && catch_up_once(&core, &session, round, as_of, vec![]).await
        {
            continue;
        }
        let core = core.clone();
        tokio::spawn(async move {
            catch_up(&core, &session, round, messages.map(|messages| (as_of, messages))).await;
            drop(permit);
        });
    }
}

/// Catches one session up, with attempts and waits. `first` is what was read already, and from
/// which version.
async fn catch_up(
    core: &Core,
    session: &Session,
    mut round: u64,
    mut first: Option<(u64, Vec<Message>)>,
) {
    let settings = &core.settings;
    for attempt in 0..settings.catch_up_attempts_max.max(1) {
        if attempt > 0 {
            let Some(next) = core.online.begin_catch_up(session) else { return };
            round = next;
        }
        let (as_of, messages) = match first.take() {
            Some(read) => read,
            None => {
                let read = async {
                    // As above: the round has begun.
                    let as_of = core.store.committed_version().await?;
                    let undelivered = core.store.undelivered(
                        &session.user_id,
                        as_of,
                        settings.catch_up_messages_max,
                        settings.catch_up_conversations_max,
                    );
                    Ok::<_, StoreError>((as_of, undelivered.await?))
                };
                match read.await {
                    Ok(read) => read,
                    Err(error) => {
                        tracing::error!(%error, "undelivered messages could not be read");
                        sleep(Duration::from_millis(100) * 2_u32.pow(attempt.min(5))).await;
                        continue;
                    }
                }
            }
        };
        if catch_up_once(core, session, round, as_of, messages).await {
            return;
        }
    }
    core.metrics.catch_ups_failed.inc();
    tracing::warn!("a session is closed because its undelivered messages could not be pushed");
    core.gateways.close(session.address, Code::Internal, Code::Internal.sentence());
}

/// Pushes what was read and hands out what was held; false when more was held than fits, so that
/// the store has to be read again.
async fn catch_up_once(
    core: &Core,
    session: &Session,
    round: u64,
    as_of: u64,
    messages: Vec<Message>,
) -> bool {
    if !core.online.is_catching_up(session, round) {
        return true;
    }
    let mut messages = messages;
    expiry::hide(&mut messages);
    core.metrics.catch_ups.inc();
    core.metrics.catch_up_messages.inc_by(messages.len() as u64);
    let mut pushed = Pushed { as_of, highest: Default::default() };
    for message in &messages {
        let highest = pushed.highest.entry(message.conversation_id.clone()).or_default();
        *highest = message.sequence.max(*highest);
    }
    if !push(core, session, round, messages).await {
        return true;
    }
    let receiver = [(session.address, session.encoding)];
    let finished = core.online.finish_catch_up(session, round, pushed, |held| {
        let mut out = core.gateways.batch();
        for (messages, _) in chunks(core, held) {
            send_deliver(core, &mut out, &receiver, messages);
        }
    });
    match finished {
        Finished::Live | Finished::Void => true,
        Finished::Again => false,
    }
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
