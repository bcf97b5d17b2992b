//! Notices of business services: pushed to every device that is online, kept for whoever has not
//! acknowledged them, and pushed again at the next login.
//!
//! A notice is durable before anybody gets it, so an acknowledgement always finds it. Who logs in is
//! looked up only if a filter in memory says that something may wait. What is sent twice (live and
//! at a login that happens at the same moment) has the same id; what must be sent is never missed,
//! because a session is in the table of sessions before it is looked up here.
//!
//! States: `delivered` says that a gateway with a device of the user was given the notice; only
//! `acked` says that the device has it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use millrace_logic_sdk::{Inbound, Session};
use millrace_protocol::{Code, chat, command};
use prost::Message as _;
use tokio::{
    sync::{Notify, Semaphore, broadcast, mpsc},
    time::sleep,
};

use super::{Core, receiver::unix_ms, sync::empty_body};
use crate::notices::{Mark, NoticeStore, State};

/// Sessions whose notices are read together.
const READ_TOGETHER_MAX: usize = 64;

/// Sessions that are pushed more than one burst at once.
const LONG_PUSHES_MAX: usize = 64;

/// Acknowledgements that are made durable together.
const ACKS_TOGETHER_MAX: usize = 256;

/// The pause after a failure to read.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What the chat keeps about notices.
pub(crate) struct Notices {
    pub store: Arc<dyn NoticeStore>,
    /// Sessions that may have something waiting: at most a few entries for each live session.
    waiting: Mutex<VecDeque<Arc<Session>>>,
    waker: Notify,
    pub events: broadcast::Sender<Mark>,
}

/// A client's acknowledgement, and the request to be answered.
pub(crate) struct Ack {
    pub notice_id: String,
    pub inbound: Inbound,
}

impl Notices {
    pub(crate) fn new(store: Arc<dyn NoticeStore>, events_queued_max: usize) -> Self {
        Self {
            store,
            waiting: Mutex::default(),
            waker: Notify::new(),
            events: broadcast::Sender::new(events_queued_max.max(1)),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Arc<Session>>> {
        // Whole after every statement, so a panic elsewhere spoils nothing.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session has started, or its link was away.
    pub(crate) fn session_up(&self, session: &Arc<Session>) {
        if self.store.may_have_pending(&session.user_id) {
            self.waiting().push_back(session.clone());
            self.waker.notify_one();
        }
    }

    /// Tells the watchers, if there are any.
    pub(crate) fn tell(&self, core: &Core, marks: Vec<Mark>) {
        for mark in marks {
            match mark.state {
                State::Acked => core.metrics.notices_acked.inc(),
                State::Dropped => core.metrics.notices_dropped.inc(),
                State::Stored | State::Delivered => 0,
            };
            // Nobody watches: nobody is told.
            self.events.send(mark).ok();
        }
    }
}

/// Pushes a notice to every session of these users. Returns how many sessions that were, and whom
/// it was delivered to.
pub(crate) fn push_live(
    core: &Core,
    user_ids: &[String],
    notice: &chat::Notice,
) -> (u64, Vec<Mark>) {
    let mut receivers = Vec::new();
    let mut marks = Vec::new();
    {
        let deliveries = core.online.deliveries();
        let at_ms = unix_ms();
        for user_id in user_ids {
            let before = receivers.len();
            deliveries.everybody([user_id], None, &mut receivers);
            if receivers.len() > before {
                let (notice_id, user_id) = (notice.notice_id.clone(), user_id.clone());
                marks.push(Mark { notice_id, user_id, state: State::Delivered, at_ms });
            }
        }
    }
    core.metrics.notices_pushed.inc_by(receivers.len() as u64);
    core.gateways.send_message(&receivers, command::NOTICE, notice);
    (receivers.len() as u64, marks)
}

/// Makes states durable and tells the watchers. A failure costs a state and nothing else: what is
/// not marked is pushed again.
pub(crate) async fn mark(core: &Core, marks: Vec<Mark>) {
    if marks.is_empty() {
        return;
    }
    match core.notices.store.mark(marks).await {
        Ok(changed) => core.notices.tell(core, changed),
        Err(error) => tracing::warn!(%error, "that notices were delivered was not noted"),
    }
}

/// Pushes what waits for sessions that have come, until [`Core::stop`].
pub(crate) async fn run(core: Arc<Core>) {
    let long_pushes = Arc::new(Semaphore::new(LONG_PUSHES_MAX));
    loop {
        let sessions: Vec<Arc<Session>> = {
            let mut waiting = core.notices.waiting();
            let count = waiting.len().min(READ_TOGETHER_MAX);
            waiting.drain(..count).collect()
        };
        if sessions.is_empty() {
            tokio::select! {
                () = core.notices.waker.notified() => continue,
                () = core.stop.said() => return,
            }
        }
        if core.is_stopping() {
            return;
        }
        let user_ids = sessions.iter().map(|session| session.user_id.to_string()).collect();
        let found = match core.notices.store.pending(user_ids, unix_ms()).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "waiting notices could not be read; this is tried again");
                core.notices.waiting().extend(sessions);
                tokio::select! {
                    () = sleep(RETRY_PAUSE) => continue,
                    () = core.stop.said() => return,
                }
            }
        };
        let mut marks = Vec::new();
        for (session, notices) in sessions.into_iter().zip(found) {
            let bytes: usize = notices.iter().map(chat::Notice::encoded_len).sum();
            if bytes <= core.settings.catch_up_burst_bytes_max {
                marks.extend(push_to(&core, &session, notices));
                continue;
            }
            // Nobody closes this semaphore.
            let Ok(permit) = long_pushes.clone().acquire_owned().await else { return };
            let core = core.clone();
            tokio::spawn(async move {
                push_in_bursts(&core, &session, notices).await;
                drop(permit);
            });
        }
        mark(&core, marks).await;
    }
}

/// Pushes notices to one session, if it is still there.
fn push_to(core: &Core, session: &Session, notices: Vec<chat::Notice>) -> Vec<Mark> {
    if notices.is_empty() || core.gateways.session(session.address).is_none() {
        return vec![];
    }
    let receiver = [(session.address, session.encoding)];
    core.metrics.notices_pushed.inc_by(notices.len() as u64);
    let at_ms = unix_ms();
    let mut out = core.gateways.batch();
    let push = |notice: chat::Notice| {
        out.send_message(&receiver, command::NOTICE, &notice);
        let user_id = session.user_id.to_string();
        Mark { notice_id: notice.notice_id, user_id, state: State::Delivered, at_ms }
    };
    notices.into_iter().map(push).collect()
}

/// The same with pauses, so that the send queue that the gateway keeps for the connection is not
/// overrun.
async fn push_in_bursts(core: &Core, session: &Session, notices: Vec<chat::Notice>) {
    let mut burst = Vec::new();
    let mut bytes = 0;
    for notice in notices {
        let size = notice.encoded_len();
        if bytes + size > core.settings.catch_up_burst_bytes_max && !burst.is_empty() {
            let marks = push_to(core, session, std::mem::take(&mut burst));
            if marks.is_empty() {
                return;
            }
            mark(core, marks).await;
            sleep(core.settings.catch_up_pause).await;
            bytes = 0;
        }
        bytes += size;
        burst.push(notice);
    }
    mark(core, push_to(core, session, burst)).await;
}

/// Makes acknowledgements durable, many together, and answers them; until every sender is gone.
pub(crate) async fn acknowledge(core: Arc<Core>, mut acks: mpsc::Receiver<Ack>) {
    let mut batch = Vec::with_capacity(ACKS_TOGETHER_MAX);
    while acks.recv_many(&mut batch, ACKS_TOGETHER_MAX).await > 0 {
        let at_ms = unix_ms();
        let mark = |ack: &Ack| Mark {
            notice_id: ack.notice_id.clone(),
            user_id: ack.inbound.session.user_id.to_string(),
            state: State::Acked,
            at_ms,
        };
        let marked = core.notices.store.mark(batch.iter().map(mark).collect()).await;
        match marked {
            Ok(changed) => {
                core.notices.tell(&core, changed);
                for Ack { inbound, .. } in batch.drain(..) {
                    inbound.reply(empty_body(&inbound));
                }
            }
            Err(error) => {
                tracing::error!(%error, "acknowledgements of notices were not stored");
                let code = error.code();
                for Ack { inbound, .. } in batch.drain(..) {
                    core.refuse(&inbound, code, code.sentence());
                }
            }
        }
    }
}

/// Whether an id is one that a notice may have.
pub(crate) fn check_id(notice_id: &str) -> Result<(), (Code, &'static str)> {
    if (1..=crate::notices::NOTICE_ID_BYTES_MAX).contains(&notice_id.len()) {
        return Ok(());
    }
    Err((Code::BadRequest, "A notice_id of 1 to 128 bytes is needed."))
}
