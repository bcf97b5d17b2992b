//! The third stage: sends replies and deliveries, in commit order, from one task.
//!
//! Replies travel here too, and not from the stage that knows them first, because a sender's
//! `SEND_MESSAGE` reply and the deliveries of the others' messages must reach it in the order of
//! the sequences. Messages of one conversation that follow each other in a commit share a
//! `DELIVER`. It waits for no store and for no client: what it sends goes into the bounded outboxes
//! of the streams.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Instant};

use bytes::Bytes;
use millrace_logic_sdk::{Batch, Inbound, SessionAddress};
use millrace_protocol::{
    Code,
    chat::{
        DeleteReply, Deliver, GroupActReply, Message, ReadReply, RevokeReply, SendReply,
        UpdateConversation, UpdateReply,
    },
    command,
    frame::Flags,
};
use prost::Message as _;
use tokio::{sync::mpsc, time::timeout_at};

use super::{
    Core, forward, groups,
    online::Receiver,
    processor::{Commit, Origin},
    receipts::Receipts,
    search,
};
use crate::storage::{Outcome, StoreError, extras::STATE_REVOKED, groups::Told};

/// Runs until the processor is gone and everything it committed is sent.
pub(crate) async fn run(core: Arc<Core>, mut commits: mpsc::Receiver<Commit>) {
    let settings = &core.settings;
    let mut receipts = Receipts::new(
        settings.receipt_interval,
        settings.receipt_members_max,
        settings.receipts_pending_max,
    );
    loop {
        let next = match receipts.due() {
            None => Ok(commits.recv().await),
            Some(due) => timeout_at(due.into(), commits.recv()).await,
        };
        match next {
            Ok(Some(Commit { origins, result: Ok(outcomes) })) => {
                let dispatch = Dispatch {
                    core: &core,
                    receipts: &mut receipts,
                    runs: Runs::default(),
                    out: core.gateways.batch(),
                };
                dispatch.commit(origins, outcomes);
            }
            Ok(Some(Commit { origins, result: Err(error) })) => fail(&core, origins, error),
            Ok(None) => break,
            Err(_elapsed) => {}
        }
        if receipts.due().is_some_and(|due| due <= Instant::now()) {
            send_receipts(&core, &mut receipts);
        }
    }
    send_receipts(&core, &mut receipts);
}

fn send_receipts(core: &Core, receipts: &mut Receipts) {
    let taken = receipts.take(&core.online.deliveries());
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
}

impl Dispatch<'_> {
    fn commit(mut self, origins: Vec<(Origin, Instant)>, outcomes: Vec<Outcome>) {
        // Whom everything goes to is decided in one go under the table's lock, and sent after it.
        let (targets, receivers) = self.resolve(&origins, &outcomes);
        let now = Instant::now();
        for (((origin, received_at), outcome), range) in
            origins.into_iter().zip(outcomes).zip(targets)
        {
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
        }
        self.runs.flush(self.core, &mut self.out);
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
        &self,
        origins: &[(Origin, Instant)],
        outcomes: &[Outcome],
    ) -> (Vec<Range<usize>>, Vec<Receiver>) {
        let mut receivers = Vec::new();
        let mut targets = Vec::with_capacity(outcomes.len());
        let mut newest = 0;
        let mut deliveries = self.core.online.deliveries();
        for ((origin, _), outcome) in origins.iter().zip(outcomes) {
            if let Some(index) = &self.core.search {
                search::note(&**index, outcome);
            }
            let from = receivers.len();
            let except = match origin {
                Origin::Frame(inbound) => Some(inbound.session.address),
                Origin::Api(_) => None,
            };
            match outcome {
                Outcome::Appended { message, duplicate: false, version, recipients } => {
                    deliveries.targets(message, *version, recipients, except, &mut receivers);
                    if let Some(pusher) = &self.core.pusher
                        && !message.does_not_count
                    {
                        pusher.missed(self.core, &deliveries, message, recipients);
                    }
                    newest = newest.max(*version);
                }
                Outcome::Forwarded { messages, duplicate: false, version, recipients } => {
                    // All of them are in this commit, so they have the same receivers.
                    for message in messages {
                        receivers.truncate(from);
                        deliveries.targets(message, *version, recipients, except, &mut receivers);
                        if let Some(pusher) = &self.core.pusher
                            && !message.does_not_count
                        {
                            pusher.missed(self.core, &deliveries, message, recipients);
                        }
                    }
                    newest = newest.max(*version);
                }
                // What is over its receivers know themselves.
                Outcome::Erased { message, changed: true, version, recipients }
                    if message.state == STATE_REVOKED =>
                {
                    deliveries.targets(message, *version, recipients, except, &mut receivers);
                    newest = newest.max(*version);
                }
                Outcome::Deleted { user_id, messages, version } => {
                    let own = [Arc::from(&user_id[..])];
                    for message in messages {
                        receivers.truncate(from);
                        deliveries.targets(message, *version, &own, except, &mut receivers);
                    }
                    newest = newest.max(*version);
                }
                Outcome::GroupChanged(changed) => {
                    if let Some(Told { message, recipients }) = &changed.told {
                        let version = changed.version;
                        deliveries.targets(message, version, recipients, None, &mut receivers);
                        newest = newest.max(version);
                    }
                }
                _ => {}
            }
            targets.push(from..receivers.len());
        }
        deliveries.done(newest);
        (targets, receivers)
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

/// Messages of the commit at hand that wait to share a `DELIVER`, by conversation.
#[derive(Default)]
struct Runs {
    index: HashMap<String, usize>,
    runs: Vec<Run>,
}

/// Consecutive messages of one conversation from one origin to the same receivers.
#[derive(Default)]
struct Run {
    sender: Option<SessionAddress>,
    receivers: Vec<Receiver>,
    messages: Vec<Message>,
    bytes: usize,
}

impl Runs {
    /// Sends what is waiting in the message's conversation, unless the message may join it.
    fn make_way(
        &mut self,
        core: &Core,
        out: &mut Batch<'_>,
        message: &Message,
        sender: Option<SessionAddress>,
        receivers: &[Receiver],
    ) {
        let Some(&index) = self.index.get(&message.conversation_id) else { return };
        let run = &mut self.runs[index];
        let settings = &core.settings;
        let joins = run.sender == sender
            && run.receivers == receivers
            && run.messages.len() < settings.deliver_messages_max
            && run.bytes + message.encoded_len() <= settings.reply_bytes_max;
        if !joins {
            run.send(core, out);
        }
    }

    /// Adds a message, after [`Runs::make_way`] for it.
    fn add(&mut self, message: Message, sender: Option<SessionAddress>, receivers: &[Receiver]) {
        if receivers.is_empty() {
            return;
        }
        let index = match self.index.get(&message.conversation_id) {
            Some(&index) => index,
            None => {
                self.index.insert(message.conversation_id.clone(), self.runs.len());
                self.runs.push(Run::default());
                self.runs.len() - 1
            }
        };
        let run = &mut self.runs[index];
        if run.messages.is_empty() {
            run.sender = sender;
            run.receivers.clear();
            run.receivers.extend_from_slice(receivers);
        }
        run.bytes += message.encoded_len();
        run.messages.push(message);
    }

    fn flush(&mut self, core: &Core, out: &mut Batch<'_>) {
        for run in &mut self.runs {
            run.send(core, out);
        }
    }
}

impl Run {
    fn send(&mut self, core: &Core, out: &mut Batch<'_>) {
        let messages = std::mem::take(&mut self.messages);
        self.bytes = 0;
        send_deliver(core, out, &self.receivers, messages);
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
