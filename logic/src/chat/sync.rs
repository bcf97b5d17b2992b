//! The third stage: sends replies and deliveries, in commit order, from one task.
//!
//! Replies travel here too, and not from the stage that knows them first, because a sender's
//! `SEND_MESSAGE` reply and the deliveries of the others' messages must reach it in the order of
//! the sequences. Messages of one conversation that follow each other in a commit share a
//! `DELIVER`. It waits for no store and for no client: what it sends goes into the bounded outboxes
//! of the streams.
//!
//! Who gets what, and in whose turn, `placing` decides; `runs` has messages share a `DELIVER`.

mod placing;
mod runs;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use millrace_logic_sdk::{Batch, Inbound};
use millrace_protocol::{
    Code,
    chat::{
        DeleteReply, Deliver, GroupActReply, Message, ReadReply, RevokeReply, SendReply,
        UpdateConversation, UpdateReply,
    },
    command,
    frame::Flags,
};
use tokio::sync::mpsc;

use self::{
    placing::{Placing, Target},
    runs::Runs,
};
use super::{
    Core, forward, groups,
    online::Receiver,
    peers::{
        Heard,
        feed::{self, Feed, Turn},
        tell::Telling,
    },
    processor::{Commit, Origin, until},
    receipts::Receipts,
    search,
};
use crate::storage::{Outcome, StoreError, extras::STATE_REVOKED};

/// Runs until the processor is gone and everything it committed is sent.
/// `fleet`: what comes from the other processes, if there may be any.
pub(crate) async fn run(
    core: Arc<Core>,
    mut commits: mpsc::Receiver<Commit>,
    mut fleet: Option<Fleet>,
) {
    let settings = &core.settings;
    let mut receipts = Receipts::new(
        settings.receipt_interval,
        settings.receipt_members_max,
        settings.receipts_pending_max,
    );
    loop {
        let gives_up_at = fleet.as_ref().and_then(|fleet| fleet.feed.due());
        let due = [receipts.due(), gives_up_at].into_iter().flatten().min();
        let next = tokio::select! {
            biased;
            commit = commits.recv() => match commit {
                Some(commit) => Next::Commit(commit),
                None => break,
            },
            heard = hear(&mut fleet) => heard,
            () = until(due.map(Into::into)) => Next::Due,
        };
        match next {
            Next::Commit(Commit { origins, result: Ok(outcomes) }) => {
                Dispatch::new(&core, &mut receipts, &mut fleet).commit(origins, outcomes);
            }
            Next::Commit(Commit { origins, result: Err(error) }) => fail(&core, origins, error),
            Next::Heard(Heard::Stored(messages)) => {
                Dispatch::new(&core, &mut receipts, &mut fleet).stored_elsewhere(messages);
            }
            Next::Heard(Heard::Missed) => missed(&core, &mut fleet).await,
            Next::Due => Dispatch::new(&core, &mut receipts, &mut fleet).give_up(),
        }
        if let Some(fleet) = &fleet {
            core.metrics.peer_messages_held.set(fleet.feed.held() as i64);
        }
        if receipts.due().is_some_and(|due| due <= Instant::now()) {
            send_receipts(&core, &mut receipts);
        }
    }
    send_receipts(&core, &mut receipts);
}

/// What a turn of the loop deals with.
enum Next {
    Commit(Commit),
    Heard(Heard),
    Due,
}

/// The order of what several processes store, and what comes from the others.
pub(crate) struct Fleet {
    pub feed: Feed,
    pub heard: mpsc::Receiver<Heard>,
    telling: Telling,
}

impl Fleet {
    pub(crate) fn new(feed: Feed, heard: mpsc::Receiver<Heard>) -> Self {
        Self { feed, heard, telling: Telling::default() }
    }
}

/// Never, where nobody else is or the events have ended.
async fn hear(fleet: &mut Option<Fleet>) -> Next {
    if let Some(fleet) = fleet
        && let Some(heard) = fleet.heard.recv().await
    {
        return Next::Heard(heard);
    }
    std::future::pending().await
}

/// What others stored was lost on its way: everybody is caught up from the store.
async fn missed(core: &Core, fleet: &mut Option<Fleet>) {
    let Some(fleet) = fleet else { return };
    // Before the catch-ups begin: they read at least this much.
    let version = core.readable_version().await;
    fleet.feed.begin_anew(version);
    core.online.catch_up_everybody();
    core.catch_up_waker.notify_one();
}

fn send_receipts(core: &Core, receipts: &mut Receipts) {
    let taken = receipts.take(&core.online.deliveries(), |receipt, users| {
        if let Some(peers) = &core.peers {
            peers.to_users(users, command::RECEIPT, receipt);
        }
    });
    let mut out = core.gateways.batch();
    for (receipt, receivers) in taken {
        core.metrics.receipts.inc_by(receivers.len() as u64);
        out.send_message(&receivers, command::RECEIPT, &receipt);
    }
}

/// Nothing of a commit was stored: whoever waits is told so.
fn fail(core: &Core, origins: Vec<(Origin, Instant)>, error: StoreError) {
    let error = Arc::new(error);
    let code = error.code();
    for (origin, _) in origins {
        match origin {
            Origin::Frame(inbound) => core.refuse(&inbound, code, code.sentence()),
            // The caller may have gone away; that is its choice.
            Origin::Api(caller) => drop(caller.send(Err(error.clone()))),
        }
    }
}

struct Dispatch<'a> {
    core: &'a Core,
    receipts: &'a mut Receipts,
    runs: Runs,
    /// Handed to the streams, in order, when the commit is dealt with.
    out: Batch<'a>,
    fleet: Option<&'a mut Fleet>,
}

impl<'a> Dispatch<'a> {
    fn new(core: &'a Core, receipts: &'a mut Receipts, fleet: &'a mut Option<Fleet>) -> Self {
        let out = core.gateways.batch();
        Self { core, receipts, runs: Runs::default(), out, fleet: fleet.as_mut() }
    }

    fn commit(mut self, origins: Vec<(Origin, Instant)>, outcomes: Vec<Outcome>) {
        // Whom everything goes to is decided in one go under the table's lock, and sent after it.
        let (targets, receivers) = self.resolve(&origins, &outcomes);
        let now = Instant::now();
        for (((origin, received_at), outcome), target) in
            origins.into_iter().zip(outcomes).zip(targets)
        {
            let Target { receivers: range, followers } = target;
            match (outcome, origin) {
                (Outcome::Appended { message, duplicate, .. }, origin) => {
                    let inbound = match &origin {
                        Origin::Frame(inbound) => Some(inbound),
                        Origin::Api(_) => None,
                    };
                    let sender = inbound.map(|i| i.session.address);
                    if !duplicate {
                        // What others said before in this conversation comes before the reply.
                        let receivers = &receivers[range.clone()];
                        self.runs.make_way(self.core, &mut self.out, &message, sender, receivers);
                        self.core.metrics.messages_stored.inc();
                    } else {
                        self.core.metrics.message_duplicates.inc();
                    }
                    match origin {
                        Origin::Frame(inbound) => {
                            let reply = send_reply(&message, duplicate);
                            self.out.reply_message(&inbound, &reply);
                        }
                        Origin::Api(caller) => {
                            let outcome = Outcome::Appended {
                                message: message.clone(),
                                duplicate,
                                version: 0,
                                follows: 0,
                                recipients: Arc::from([]),
                            };
                            drop(caller.send(Ok(outcome)));
                        }
                    }
                    let took = now.saturating_duration_since(received_at);
                    self.core.metrics.send_seconds.observe(took.as_secs_f64());
                    if !duplicate {
                        self.runs.add(message, sender, &receivers[range]);
                    }
                }
                (
                    Outcome::CursorMoved {
                        conversation_id,
                        user_id,
                        delivered,
                        read,
                        changed: true,
                        members,
                        ..
                    },
                    origin,
                ) => {
                    let from = match &origin {
                        Origin::Frame(inbound) => Some(inbound.session.address),
                        Origin::Api(_) => None,
                    };
                    self.receipts.note(
                        now,
                        conversation_id,
                        user_id,
                        delivered,
                        read,
                        members,
                        from,
                    );
                    if let Origin::Frame(inbound) = origin {
                        reply_ok(&mut self.out, &inbound);
                    }
                }
                (outcome @ Outcome::Forwarded { .. }, origin) => {
                    self.forwarded(outcome, origin, &receivers[range]);
                }
                (Outcome::Erased { message, changed, version, recipients }, origin) => {
                    self.rewritten(&origin, std::slice::from_ref(&message), &receivers[range]);
                    if changed && message.state == STATE_REVOKED {
                        self.core.metrics.messages_revoked.inc();
                    }
                    match origin {
                        Origin::Frame(inbound) => reply_ok(&mut self.out, &inbound),
                        Origin::Api(caller) => drop(caller.send(Ok(Outcome::Erased {
                            message,
                            changed,
                            version,
                            recipients,
                        }))),
                    }
                }
                (Outcome::Deleted { user_id, messages, version }, origin) => {
                    self.rewritten(&origin, &messages, &receivers[range]);
                    self.core.metrics.messages_deleted.inc_by(messages.len() as u64);
                    match origin {
                        Origin::Frame(inbound) => reply_ok(&mut self.out, &inbound),
                        Origin::Api(caller) => {
                            drop(caller.send(Ok(Outcome::Deleted { user_id, messages, version })));
                        }
                    }
                }
                (Outcome::GroupChanged(mut changed), origin) => {
                    if let Some(told) = &changed.told {
                        let receivers = &receivers[range.clone()];
                        let message = &told.message;
                        self.runs.make_way(self.core, &mut self.out, message, None, receivers);
                        self.core.metrics.messages_stored.inc();
                    }
                    groups::notify(self.core, &mut self.out, &changed);
                    // The acting session sees the notice too: its reply says only where it is.
                    let message = match origin {
                        Origin::Frame(inbound) => {
                            self.out.reply_message(&inbound, &groups::reply_of(&changed));
                            changed.told.take().map(|told| told.message)
                        }
                        Origin::Api(caller) => {
                            let message = changed.told.as_ref().map(|told| told.message.clone());
                            drop(caller.send(Ok(Outcome::GroupChanged(changed))));
                            message
                        }
                    };
                    if let Some(message) = message {
                        self.runs.add(message, None, &receivers[range]);
                    }
                }
                (Outcome::Updated { .. }, Origin::Frame(inbound)) => {
                    reply_ok(&mut self.out, &inbound);
                    tell_own_devices(self.core, &mut self.out, &inbound);
                }
                (Outcome::Refused { code, reason }, Origin::Frame(inbound)) => {
                    refuse(self.core, &mut self.out, &inbound, code, reason);
                }
                (_, Origin::Frame(inbound)) => reply_ok(&mut self.out, &inbound),
                (outcome, Origin::Api(caller)) => drop(caller.send(Ok(outcome))),
            }
            for (message, range) in followers {
                self.deliver(message, &receivers[range]);
            }
        }
        self.runs.flush(self.core, &mut self.out);
    }

    /// A message that another process has stored.
    fn deliver(&mut self, message: Message, receivers: &[Receiver]) {
        self.runs.make_way(self.core, &mut self.out, &message, None, receivers);
        self.runs.add(message, None, receivers);
    }

    /// Hands out what other processes have stored, as far as its turn has come.
    fn stored_elsewhere(mut self, messages: Vec<feed::Told>) {
        let Some(fleet) = &mut self.fleet else { return };
        let now = Instant::now();
        let mut ready = Vec::with_capacity(messages.len());
        for told in messages {
            match fleet.feed.turn(now, told.place()) {
                Turn::Now => {
                    let conversation_id = told.message.conversation_id.clone();
                    ready.push(told);
                    ready.extend(fleet.feed.followers(now, &conversation_id));
                }
                Turn::Later => fleet.feed.hold(now, told),
                Turn::Past => {}
            }
        }
        let settled = fleet.feed.settled();
        self.hand_out(ready, settled);
    }

    fn hand_out(mut self, ready: Vec<feed::Told>, settled: u64) {
        let mut receivers = Vec::new();
        let mut targets = Vec::with_capacity(ready.len());
        let mut anybody = false;
        let mut deliveries = self.core.online.deliveries();
        for told in ready {
            if told.omitted {
                anybody |= deliveries.catch_up(&told.recipients);
                continue;
            }
            let from = receivers.len();
            let feed::Told { message, recipients, except, .. } = told;
            deliveries.targets(&message, settled, &recipients, except, &mut receivers);
            targets.push((message, from..receivers.len()));
        }
        deliveries.done(settled);
        if anybody {
            self.core.catch_up_waker.notify_one();
        }
        for (message, range) in targets {
            self.deliver(message, &receivers[range]);
        }
        self.runs.flush(self.core, &mut self.out);
    }

    /// What was waited for did not come in time: whoever the rest is for is caught up.
    fn give_up(mut self) {
        let Some(fleet) = &mut self.fleet else { return };
        let (rewritten, missing): (Vec<_>, Vec<_>) =
            fleet.feed.give_up(Instant::now()).into_iter().partition(|told| told.rewritten);
        let settled = fleet.feed.settled();
        let mut anybody = false;
        for told in &missing {
            self.core.metrics.peer_gaps.inc();
            anybody |= self.core.online.deliveries().catch_up(&told.recipients);
        }
        if anybody {
            self.core.catch_up_waker.notify_one();
        }
        // What is left of messages no catch-up has; it goes out after that.
        self.hand_out(rewritten, settled);
    }

    /// The reply and the deliveries of several messages that were stored as one write.
    fn forwarded(&mut self, outcome: Outcome, origin: Origin, receivers: &[Receiver]) {
        let reply = forward::reply(&outcome).unwrap_or_default();
        let Outcome::Forwarded { messages, duplicate, .. } = &outcome else { return };
        let messages = if *duplicate { vec![] } else { messages.clone() };
        let sender = match &origin {
            Origin::Frame(inbound) => Some(inbound.session.address),
            Origin::Api(_) => None,
        };
        if let Some(first) = messages.first() {
            self.runs.make_way(self.core, &mut self.out, first, sender, receivers);
            self.core.metrics.messages_stored.inc_by(messages.len() as u64);
            self.core.metrics.messages_forwarded.inc_by(messages.len() as u64);
        } else {
            self.core.metrics.message_duplicates.inc();
        }
        match origin {
            Origin::Frame(inbound) => self.out.reply_message(&inbound, &reply),
            Origin::Api(caller) => drop(caller.send(Ok(outcome))),
        }
        for message in messages {
            self.runs.make_way(self.core, &mut self.out, &message, sender, receivers);
            self.runs.add(message, sender, receivers);
        }
    }

    /// The deliveries of what is left of messages.
    fn rewritten(&mut self, origin: &Origin, messages: &[Message], receivers: &[Receiver]) {
        let from = match origin {
            Origin::Frame(inbound) => Some(inbound.session.address),
            Origin::Api(_) => None,
        };
        for message in messages {
            self.runs.make_way(self.core, &mut self.out, message, from, receivers);
            self.runs.add(message.clone(), from, receivers);
        }
    }

    /// The receivers of each outcome, as ranges of one list.
    fn resolve(
        &mut self,
        origins: &[(Origin, Instant)],
        outcomes: &[Outcome],
    ) -> (Vec<Target>, Vec<Receiver>) {
        let core = self.core;
        let mut placing = Placing::new(core, self.fleet.as_deref_mut());
        let mut targets = Vec::with_capacity(outcomes.len());
        for ((origin, _), outcome) in origins.iter().zip(outcomes) {
            if let Some(index) = &core.search {
                search::note(&**index, outcome);
            }
            let except = match origin {
                Origin::Frame(inbound) => Some(inbound.session.address),
                Origin::Api(_) => None,
            };
            targets.push(placing.outcome(outcome, except));
        }
        placing.finish(targets)
    }
}

/// The reply of `SEND_MESSAGE`.
pub(crate) fn send_reply(message: &Message, duplicate: bool) -> SendReply {
    SendReply {
        code: Code::Ok.number(),
        reason: String::new(),
        message_id: message.message_id.clone(),
        conversation_id: message.conversation_id.clone(),
        sequence: message.sequence,
        sent_at_ms: message.sent_at_ms,
        duplicate,
        ..SendReply::default()
    }
}

/// The user's other devices learn of a setting at once.
fn tell_own_devices(core: &Core, out: &mut Batch<'_>, inbound: &Inbound) {
    // It was understood when it came.
    let Ok(update) = inbound.decode::<UpdateConversation>() else { return };
    let mut receivers = Vec::new();
    let own = Some(inbound.session.address);
    core.online.deliveries().everybody([&inbound.session.user_id], own, &mut receivers);
    if !receivers.is_empty() {
        out.send_message(&receivers, command::UPDATE_CONVERSATION, &update);
    }
    if let Some(peers) = &core.peers {
        peers.to_users([&inbound.session.user_id], command::UPDATE_CONVERSATION, &update);
    }
}

/// Success, in the shape the command's reply has.
fn reply_ok(out: &mut Batch<'_>, inbound: &Inbound) {
    match inbound.command {
        command::READ => out.reply_message(inbound, &ReadReply::default()),
        command::UPDATE_CONVERSATION => out.reply_message(inbound, &UpdateReply::default()),
        command::REVOKE => out.reply_message(inbound, &RevokeReply::default()),
        command::DELETE => out.reply_message(inbound, &DeleteReply::default()),
        _ => out.reply(inbound, empty_body(inbound)),
    }
}

/// The reply of commands that have none of their own, so that a request with an id is never left
/// without an answer.
pub(crate) fn empty_body(inbound: &Inbound) -> Bytes {
    if inbound.flags.contains(Flags::JSON) { Bytes::from_static(b"{}") } else { Bytes::new() }
}

/// A refusal, in the shape the command's reply has, or as ERROR where it has none.
pub(crate) fn refuse(
    core: &Core,
    out: &mut Batch<'_>,
    inbound: &Inbound,
    code: Code,
    reason: String,
) {
    core.count_refusal(code);
    let number = code.number();
    match inbound.command {
        command::SEND_MESSAGE | command::FORWARD if inbound.request_id != 0 => {
            out.reply_message(inbound, &SendReply { code: number, reason, ..SendReply::default() });
        }
        command::READ if inbound.request_id != 0 => {
            out.reply_message(inbound, &ReadReply { code: number, reason });
        }
        command::REVOKE if inbound.request_id != 0 => {
            out.reply_message(inbound, &RevokeReply { code: number, reason });
        }
        command::DELETE if inbound.request_id != 0 => {
            out.reply_message(inbound, &DeleteReply { code: number, reason });
        }
        command::UPDATE_CONVERSATION if inbound.request_id != 0 => {
            out.reply_message(inbound, &UpdateReply { code: number, reason });
        }
        act if groups::is_act(act) && inbound.request_id != 0 => {
            let reply = GroupActReply { code: number, reason, ..GroupActReply::default() };
            out.reply_message(inbound, &reply);
        }
        _ => out.refuse(inbound, code, &reason, core.retry_after_ms_of(code)),
    }
}

/// One `DELIVER` to many sessions.
pub(crate) fn send_deliver(
    core: &Core,
    out: &mut Batch<'_>,
    receivers: &[Receiver],
    messages: Vec<Message>,
) {
    if messages.is_empty() || receivers.is_empty() {
        return;
    }
    core.metrics.deliveries.inc_by((messages.len() * receivers.len()) as u64);
    out.send_message(receivers, command::DELIVER, &Deliver { messages });
}
