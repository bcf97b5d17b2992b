//! Hearing: what others have told is passed to the sessions of this process, or to the third stage
//! where its order matters.

use std::{collections::HashMap, sync::Arc};

use millrace_protocol::{
    Code,
    chat::{Deliver, Notice, Receipt, Typing, UpdateConversation},
    command,
    peer::{CloseSessions, LoggedOut, PeerEvents, Stored, ToUsers, peer_event::Kind},
};
use prost::Message as _;
use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};

use super::{
    super::{Core, logout, notices, presence},
    Heard,
    feed::Told,
};
use crate::events::{self, Event};

/// A message whose recipients come in several events, by who tells it.
type Parts = HashMap<Arc<str>, (Told, Vec<Arc<str>>)>;

/// Listens until the events end or the process leaves. `to_sync`: the third stage.
pub(crate) async fn run(
    core: Arc<Core>,
    mut listener: Box<dyn events::Listener>,
    to_sync: mpsc::Sender<Heard>,
) {
    let Some(peers) = &core.peers else { return };
    let mut parts = Parts::new();
    loop {
        let heard = tokio::select! {
            heard = listener.next() => heard,
            () = core.stop.said() => return,
        };
        let event = match heard {
            Some(events::Heard::Event(event)) => Some(event),
            Some(events::Heard::Missed(_)) => None,
            None => return,
        };
        core.metrics.peer_events_heard.inc();
        let decoded = event.map(|Event { node, payload }| {
            PeerEvents::decode(payload).map(|events| (node, events)).inspect_err(|error| {
                tracing::error!(%error, "another process told what this one does not understand");
            })
        });
        // What cannot be read may have been anything.
        let Some(Ok((node, events))) = decoded else {
            core.metrics.peer_events_missed.inc();
            parts.clear();
            if to_sync.send(Heard::Missed).await.is_err() {
                return;
            }
            continue;
        };
        let mut stored = Vec::new();
        for event in events.events {
            match event.kind {
                Some(Kind::Stored(part)) => stored.extend(gather(&mut parts, &node, part)),
                Some(Kind::RoomCounts(counts)) => {
                    let max = peers.settings.room_counts_max;
                    peers.elsewhere.hear(&node, counts, max, Instant::now());
                }
                Some(kind) => pass_on(&core, kind),
                // Of a later release.
                None => {}
            }
        }
        if !stored.is_empty() && to_sync.send(Heard::Stored(stored)).await.is_err() {
            return;
        }
    }
}

/// A message, once all of its recipients have come.
fn gather(parts: &mut Parts, node: &Arc<str>, part: Stored) -> Option<Told> {
    let Stored { message, version, follows, rewritten, recipients, more, omitted } = part;
    let message = message?;
    let begun = parts.remove(node);
    let mut all = match begun {
        Some((told, all)) if told.message.message_id == message.message_id => all,
        // The rest of what was begun was lost; that is noticed elsewhere.
        _ => Vec::new(),
    };
    all.extend(recipients.into_iter().map(Arc::from));
    let nobody = Arc::from([]);
    let told =
        Told { message, version, follows, rewritten, omitted, recipients: nobody, except: None };
    if more {
        parts.insert(node.clone(), (told, all));
        return None;
    }
    Some(Told { recipients: all.into(), ..told })
}

/// What has no order of its own.
fn pass_on(core: &Arc<Core>, kind: Kind) {
    match kind {
        Kind::Stored(_) | Kind::RoomCounts(_) => {}
        Kind::ToUsers(frame) => match frame.command as u16 {
            command::TYPING => to_users::<Typing>(core, &frame),
            command::RECEIPT => to_users::<Receipt>(core, &frame),
            command::DELIVER => to_users::<Deliver>(core, &frame),
            command::UPDATE_CONVERSATION => to_users::<UpdateConversation>(core, &frame),
            command::NOTICE => notice(core, &frame),
            // Of a later release.
            other => tracing::debug!(command = other, "a frame of another process is not known"),
        },
        Kind::CloseSessions(close) => close_sessions(core, &close),
        Kind::PresenceChanged(changed) => {
            for user_id in &changed.user_ids {
                presence::changed_here(core, user_id);
            }
        }
        Kind::LoggedOut(LoggedOut { user_id, moment_ms, kept, reason }) => {
            logout::heard(core, &user_id, moment_ms, kept.as_ref(), &reason);
        }
    }
}

fn to_users<M: prost::Message + Default + Serialize>(core: &Core, frame: &ToUsers) {
    let mut receivers = Vec::new();
    core.online.deliveries().everybody(&frame.user_ids, None, &mut receivers);
    if receivers.is_empty() {
        return;
    }
    match M::decode(&frame.body[..]) {
        Ok(message) => core.gateways.send_message(&receivers, frame.command as u16, &message),
        Err(error) => tracing::error!(%error, "a frame of another process cannot be read"),
    }
}

/// A notice notes that it was delivered, if it is one of those that are kept.
fn notice(core: &Arc<Core>, frame: &ToUsers) {
    let notice = match Notice::decode(&frame.body[..]) {
        Ok(notice) => notice,
        Err(error) => {
            return tracing::error!(%error, "a notice of another process cannot be read");
        }
    };
    let (_, marks) = notices::push_live(core, &frame.user_ids, &notice);
    if !marks.is_empty() {
        let core = core.clone();
        tokio::spawn(async move { notices::mark(&core, marks).await });
    }
}

fn close_sessions(core: &Core, close: &CloseSessions) {
    let code = Code::from_number(close.code).unwrap_or(Code::Kicked);
    for name in &close.sessions {
        if let Some(address) = core.online.find(name) {
            core.metrics.kicked.inc();
            core.gateways.close(address, code, &close.reason);
        }
    }
}
