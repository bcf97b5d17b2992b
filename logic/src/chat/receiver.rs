//! The first stage: takes clients' frames off the link, refuses what is not allowed or not well
//! formed, and turns the rest into writes, reads, room changes and reports.
//!
//! It stores nothing and looks nothing up: what needs the store to decide (membership, duplicates)
//! is decided there. Its queues are bounded; when one is full it waits, the link's credit runs
//! out, and the clients' TCP windows close.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use millrace_logic_sdk::{Inbound, Refused};
use millrace_protocol::{
    Code,
    chat::{Delete, DeliverAck, NoticeAck, Read, Report, Revoke, SendMessage, UpdateConversation},
    command,
    frame::Flags,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Chat, Core, Intake, gate, groups, messages,
    notices::{self, Ack},
    paces::RequestClass,
    processor::{Job, Origin},
    reports::Business,
    rooms, sync,
};
use crate::{
    bus::{DEAD_LETTERS_TOPIC, check_name},
    storage::{Actor, Write},
};

impl Chat {
    /// Frames of one stream, in the order received.
    pub(crate) async fn receive(&self, frames: Vec<Inbound>) {
        let core = &self.core;
        core.metrics.frames_received.inc_by(frames.len() as u64);
        let Some(intake) = self.intake() else {
            let code = Code::LogicUnavailable;
            return frames.iter().for_each(|f| core.refuse(f, code, code.sentence()));
        };
        let mut verdicts = Vec::with_capacity(frames.len());
        core.online.admit(
            frames.iter().map(|f| (&*f.session.user_id, RequestClass::of(f.command))),
            &mut verdicts,
        );
        for (inbound, verdict) in frames.into_iter().zip(verdicts) {
            match verdict {
                Ok(()) => self.receive_one(&intake, inbound).await,
                Err(wait_ms) => {
                    core.count_refusal(Code::RateLimited);
                    inbound.refuse(Code::RateLimited, Code::RateLimited.sentence(), wait_ms);
                }
            }
        }
    }

    async fn receive_one(&self, intake: &Intake, inbound: Inbound) {
        let core = &*self.core;
        let writes = &intake.writes;
        match inbound.command {
            command::SEND_MESSAGE if !inbound.flags.contains(Flags::NO_STORE) => {
                let Some(message) = decode::<SendMessage>(core, &inbound) else { return };
                if let Err(refused) = seen_before(core, &inbound.session.user_id, &message) {
                    return refuse(core, &inbound, refused.code, &refused.reason);
                }
                match messages::append(core, inbound.session.user_id.to_string(), message) {
                    Ok(mut write) => match gate::admit_write(core, &mut write).await {
                        Ok(()) => write_on(core, writes, inbound, write).await,
                        Err(refused) => refuse(core, &inbound, refused.code, &refused.reason),
                    },
                    Err(refused) => refuse(core, &inbound, refused.code, &refused.reason),
                }
            }
            command::REVOKE => {
                let Some(revoke) = decode::<Revoke>(core, &inbound) else { return };
                let write = Write::Revoke {
                    actor: Actor::User(inbound.session.user_id.to_string()),
                    conversation_id: revoke.conversation_id,
                    sequence: revoke.sequence,
                    at_ms: unix_ms(),
                    limit_ms: core.settings.messages.revoke_limit.as_millis() as u64,
                };
                write_on(core, writes, inbound, write).await;
            }
            command::DELETE => {
                let Some(delete) = decode::<Delete>(core, &inbound) else { return };
                let write = Write::Delete {
                    user_id: inbound.session.user_id.to_string(),
                    conversation_id: delete.conversation_id,
                    sequences: delete.sequences,
                };
                write_on(core, writes, inbound, write).await;
            }
            command::DELIVER_ACK => {
                let Some(ack) = decode::<DeliverAck>(core, &inbound) else { return };
                move_cursor(core, writes, inbound, ack.conversation_id, ack.sequence, 0).await;
            }
            command::READ => {
                let Some(read) = decode::<Read>(core, &inbound) else { return };
                move_cursor(
                    core,
                    writes,
                    inbound,
                    read.conversation_id,
                    read.sequence,
                    read.sequence,
                )
                .await;
            }
            command::UPDATE_CONVERSATION => {
                let Some(update) = decode::<UpdateConversation>(core, &inbound) else { return };
                let UpdateConversation { conversation_id, do_not_disturb, pinned, hidden } = update;
                // Proto3 clients of the message's first form send nothing for "off".
                let absent = if pinned.is_some() || hidden.is_some() { None } else { Some(false) };
                let write = Write::SetConversation {
                    user_id: inbound.session.user_id.to_string(),
                    conversation_id,
                    do_not_disturb: do_not_disturb.or(absent),
                    pinned,
                    hidden,
                };
                write_on(core, writes, inbound, write).await;
            }
            act if groups::is_act(act) => match groups::from_frame(core, &inbound) {
                Some(Ok(mut change)) => match groups::screen(core, &mut change) {
                    Ok(()) => {
                        let write = Write::ChangeGroup(Box::new(change));
                        write_on(core, writes, inbound, write).await;
                    }
                    Err(refused) => refuse(core, &inbound, refused.code, &refused.reason),
                },
                Some(Err(reason)) => refuse(core, &inbound, Code::BadRequest, &reason),
                None => {}
            },
            // What is left of the first is live, and goes to nobody's disk.
            command::SEND_MESSAGE
            | command::FORWARD
            | command::PULL_MESSAGES
            | command::PULL_CONVERSATIONS
            | command::GROUP_BY_ID
            | command::LOGOUT_EVERYWHERE
            | command::QUERY_PRESENCE
            | command::SUBSCRIBE_PRESENCE
            | command::UNSUBSCRIBE_PRESENCE
            | command::GROUP_MEMBERS
            | command::GROUP_JOIN_REQUESTS
            | command::PULL_RECEIPTS
            | command::SEARCH_MESSAGES
            | command::TYPING => {
                if let Err(inbound) = enqueue(&intake.reads, inbound).await {
                    core.refuse(&inbound, Code::Internal, Code::Internal.sentence());
                }
            }
            command::JOIN_ROOM => rooms::join(core, &inbound),
            command::LEAVE_ROOM => rooms::leave(core, &inbound),
            command::ROOM_MESSAGE => rooms::publish(core, &inbound),
            command::NOTICE_ACK => acknowledge(core, intake, inbound).await,
            command::REPORT => report(core, intake, inbound).await,
            command::REGISTER_PUSH | command::UNREGISTER_PUSH => {
                if let Err(inbound) = enqueue(&intake.push_tokens, inbound).await {
                    core.refuse(&inbound, Code::Internal, Code::Internal.sentence());
                }
            }
            _ => {
                let code = Code::UnknownCommand;
                let name = command::name(inbound.command);
                let reason = match name {
                    Some(name) => format!("This server does not serve {name} yet."),
                    None => code.sentence().to_owned(),
                };
                core.refuse(&inbound, code, &reason);
            }
        }
    }
}

/// Refuses a message that was played again, if this process looks for that.
pub(crate) fn seen_before(
    core: &Core,
    sender_id: &str,
    message: &SendMessage,
) -> Result<(), Refused> {
    if !core.sends_seen.is_on() {
        return Ok(());
    }
    let (timestamp_ms, nonce, now_ms) = (message.timestamp_ms, &*message.nonce, unix_ms());
    core.sends_seen.check_time(timestamp_ms, nonce, now_ms)?;
    core.sends_seen.take(sender_id, timestamp_ms, nonce, now_ms)
}

/// Queues the acknowledgement of a notice. While none is kept there is nothing to remember.
async fn acknowledge(core: &Core, intake: &Intake, inbound: Inbound) {
    let Some(NoticeAck { notice_id }) = decode(core, &inbound) else { return };
    if let Err((code, reason)) = notices::check_id(&notice_id) {
        return core.refuse(&inbound, code, reason);
    }
    if core.notices.store.is_empty() {
        return inbound.reply(sync::empty_body(&inbound));
    }
    if let Err(Ack { inbound, .. }) = enqueue(&intake.acks, Ack { notice_id, inbound }).await {
        core.refuse(&inbound, Code::Internal, Code::Internal.sentence());
    }
}

/// Queues a report for the bus.
async fn report(core: &Core, intake: &Intake, inbound: Inbound) {
    let Some(report) = decode::<Report>(core, &inbound) else { return };
    if let Err(error) = check_name(&report.destination) {
        return core.refuse(&inbound, Code::BadRequest, &error.to_string());
    }
    let topics = &core.settings.report_topics;
    // What lies among the dead letters was put there by the bus, and by nobody else.
    let forged = report.destination == DEAD_LETTERS_TOPIC;
    if forged || !topics.is_empty() && !topics.contains(&report.destination) {
        return core.refuse(&inbound, Code::NotPermitted, "Nobody takes reports for this topic.");
    }
    let business = Business { report, inbound, id: Uuid::now_v7() };
    if let Err(business) = enqueue(&intake.reports, business).await {
        core.refuse(&business.inbound, Code::Internal, Code::Internal.sentence());
    }
}

/// Queues a cursor move.
async fn move_cursor(
    core: &Core,
    writes: &mpsc::Sender<Job>,
    inbound: Inbound,
    conversation_id: String,
    delivered: u64,
    read: u64,
) {
    if conversation_id.is_empty() || delivered == 0 {
        let reason = "A conversation_id and a sequence above 0 are needed.";
        return refuse(core, &inbound, Code::BadRequest, reason);
    }
    let user_id = inbound.session.user_id.to_string();
    let write = Write::MoveCursor { user_id, conversation_id, delivered, read };
    write_on(core, writes, inbound, write).await;
}

/// Queues a write for the processor.
pub(crate) async fn write_on(
    core: &Core,
    writes: &mpsc::Sender<Job>,
    inbound: Inbound,
    write: Write,
) {
    let job = Job { write, origin: Origin::Frame(inbound), received_at: Instant::now() };
    if let Err(job) = enqueue(writes, job).await
        && let Origin::Frame(inbound) = &job.origin
    {
        // The processor is gone, which is our own failure.
        core.refuse(inbound, Code::Internal, Code::Internal.sentence());
    }
}

/// Refuses a request before it becomes a write, in the shape its reply has.
pub(crate) fn refuse(core: &Core, inbound: &Inbound, code: Code, reason: &str) {
    sync::refuse(core, &mut core.gateways.batch(), inbound, code, reason.to_owned());
}

/// Puts something into a bounded queue, waiting while it is full. Err gives it back when nobody
/// reads the queue any more.
async fn enqueue<T>(queue: &mpsc::Sender<T>, item: T) -> Result<(), T> {
    match queue.try_send(item) {
        Ok(()) => Ok(()),
        Err(mpsc::error::TrySendError::Closed(item)) => Err(item),
        Err(mpsc::error::TrySendError::Full(item)) => queue.send(item).await.map_err(|e| e.0),
    }
}

/// The body, or a refusal and nothing.
pub(crate) fn decode<M>(core: &Core, inbound: &Inbound) -> Option<M>
where
    M: prost::Message + Default + serde::de::DeserializeOwned,
{
    match inbound.decode::<M>() {
        Ok(message) => Some(message),
        Err(refused) => {
            core.refuse(inbound, refused.code, &refused.reason);
            None
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> i64 {
    // A clock before 1970 is a machine without one; 0 says so.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
