//! The client's chat: the outbox with its retries, DELIVER and its acknowledgement, holes and
//! pulls, and the records for the verifier.

use millrace_protocol::{
    Code, chat, command,
    frame::{Flags, Header},
};
use prost::Message;

use super::{
    Client, Context, Conversation, NS_PER_MS, Pending, Request, Text, conversation::Arrival,
    outbox::Outgoing,
};
use crate::{
    log::{Ack, FaultKind, Key, Range, Receipt, Unanswered},
    record::{Counter, Metric},
};

/// Messages asked for in one pull: the protocol's maximum.
const PULL_LIMIT: u32 = 100;
/// Pulls of one hole that may be refused or bring nothing before the client leaves it to the
/// verifier.
const PULLS_IN_VAIN_MAX: u8 = 8;
/// Text messages (type 1).
const TYPE_TEXT: u32 = 1;

/// How a message came to us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Deliver,
    Pull,
}

impl Client {
    /// A frame of the chat logic. Answers whether it made sense.
    pub(super) fn chat_frame(
        &mut self,
        now_ns: u64,
        cx: &mut Context,
        header: Header,
        body: &[u8],
    ) -> bool {
        const SEND_REPLY: u16 = command::reply(command::SEND_MESSAGE);
        const PULL_REPLY: u16 = command::reply(command::PULL_MESSAGES);
        const JOIN_REPLY: u16 = command::reply(command::JOIN_ROOM);
        const ROOM_REPLY: u16 = command::reply(command::ROOM_MESSAGE);
        match header.command {
            command::DELIVER => {
                let Ok(deliver) = chat::Deliver::decode(body) else { return false };
                for message in &deliver.messages {
                    self.apply(now_ns, cx, message, Way::Deliver);
                }
                true
            }
            SEND_REPLY => {
                let Ok(reply) = chat::SendReply::decode(body) else { return false };
                self.send_reply(now_ns, cx, header.request_id, &reply)
            }
            PULL_REPLY => {
                let Ok(reply) = chat::PullReply::decode(body) else { return false };
                self.pull_reply(now_ns, cx, header.request_id, &reply)
            }
            command::RECEIPT => {
                cx.record.counters.add(Counter::Receipts);
                true
            }
            JOIN_REPLY | ROOM_REPLY => self.room_reply(now_ns, cx, header.request_id, body),
            command::ROOM_MESSAGE => self.room_message(now_ns, cx, body),
            command::NOTICE | command::TYPING => true,
            _ => self.custom_frame(now_ns, cx, header),
        }
    }

    // --- sending ---------------------------------------------------------------------------

    /// Writes what waits in the outbox, as far as the socket keeps up.
    pub(super) fn write_outbox(&mut self, now_ns: u64, cx: &mut Context) {
        if cx.is_verifying {
            return;
        }
        while let Some(entry) = self.next_to_write(now_ns) {
            let age_ns = now_ns.saturating_sub(entry.intended_ns);
            if entry.unanswered() > cx.settings.resends_max || age_ns >= cx.settings.send_age_max_ns
            {
                self.give_up(cx, entry.counter);
                continue;
            }
            if !self.may_write() {
                self.look_at_outbox(now_ns + 50 * NS_PER_MS);
                return;
            }
            self.write_message(now_ns, cx, entry);
        }
    }

    fn next_to_write(&self, now_ns: u64) -> Option<Outgoing> {
        self.busy.as_ref()?.outbox.next_to_write(now_ns)
    }

    fn look_at_outbox(&mut self, at_ns: u64) {
        let busy = self.busy();
        busy.outbox_due_ns = busy.outbox_due_ns.min(at_ns);
    }

    fn write_message(&mut self, now_ns: u64, cx: &mut Context, entry: Outgoing) {
        let key = Key::new(self.user, entry.counter);
        let written_ns = if entry.writes > 0 { entry.written_ns } else { now_ns };
        let text = Text { key, intended_ns: entry.intended_ns, written_ns };
        let mut message = chat::SendMessage {
            client_message_id: key.client_message_id(cx.population.run),
            r#type: TYPE_TEXT,
            body: text.write(cx.settings.message_bytes),
            ..chat::SendMessage::default()
        };
        if entry.target.is_group() {
            message.group_id = cx.population.group_id(entry.target.index());
        } else {
            message.user_id = cx.population.user_id(entry.target.index());
        }
        let (flags, counter) = if entry.writes > 0 {
            (Flags::RETRANSMISSION, Counter::Resent)
        } else {
            (Flags::NONE, Counter::Sent)
        };
        cx.record.counters.add(counter);
        let request_id = self.write(cx, command::SEND_MESSAGE, flags, &message.encode_to_vec());
        self.await_reply(request_id, now_ns, Request::Send(entry.counter));
        let timeout_ns = cx.settings.send_timeout_ns << entry.unanswered().min(16);
        let until_ns = now_ns + timeout_ns + cx.random.u64(0..=timeout_ns / 2);
        if let Some(entry) = self.busy().outbox.get_mut(entry.counter) {
            entry.awaited_until_ns = until_ns;
            entry.written_ns = written_ns;
            entry.writes += 1;
        }
        self.look_at_outbox(until_ns);
    }

    fn send_reply(
        &mut self,
        now_ns: u64,
        cx: &mut Context,
        request_id: u32,
        reply: &chat::SendReply,
    ) -> bool {
        let Some(pending) = self.take_pending(request_id) else { return false };
        if reply.code != 0 {
            cx.record.counters.add_code(reply.code);
            self.refused(now_ns, cx, pending, reply.code, 0);
            return true;
        }
        let conversation = cx.names.number(&reply.conversation_id);
        let sequence = reply.sequence;
        match pending.what {
            Request::Send(counter) => {
                self.acknowledged(now_ns, cx, pending.sent_ns, counter, conversation, reply);
                true
            }
            Request::Acknowledged { counter, conversation: before, sequence: earlier } => {
                if (before, earlier) != (conversation, sequence) {
                    let key = Key::new(self.user, counter);
                    cx.log.faults.add(FaultKind::StoredTwice, || {
                        let id = key.client_message_id(0);
                        format!("message {id}: acknowledged as {earlier} and as {sequence}")
                    });
                }
                true
            }
            _ => false,
        }
    }

    fn acknowledged(
        &mut self,
        now_ns: u64,
        cx: &mut Context,
        written_ns: u64,
        counter: u32,
        conversation: u32,
        reply: &chat::SendReply,
    ) {
        let Some(entry) = self.busy().outbox.remove(counter) else { return };
        let (key, sequence) = (Key::new(self.user, counter), reply.sequence);
        cx.log.acks.push(Ack { key, sequence, conversation, target: entry.target });
        cx.record.counters.add(Counter::Acked);
        if reply.duplicate {
            cx.record.counters.add(Counter::AckedDuplicate);
        }
        let recipients = cx.population.recipients_count(entry.target);
        cx.record.counters.add_many(Counter::Expected, recipients);
        let metric = if entry.target.is_group() { Metric::AckGroup } else { Metric::AckSingle };
        cx.record.record(metric, now_ns.saturating_sub(entry.intended_ns));
        cx.record.record(Metric::Service, now_ns.saturating_sub(written_ns));
        for other in &mut self.busy().pending {
            if matches!(other.what, Request::Send(same) if same == counter) {
                other.what = Request::Acknowledged { counter, conversation, sequence };
            }
        }
        let hole_grace_ns = cx.settings.hole_grace_ns;
        let conversation = self.conversation(conversation);
        conversation.learnt(sequence);
        conversation.note_hole(now_ns, hole_grace_ns);
    }

    /// A request was refused, by its own reply or by ERROR.
    pub(super) fn refused(
        &mut self,
        now_ns: u64,
        cx: &mut Context,
        pending: Pending,
        code: u32,
        retry_after_ms: u32,
    ) {
        match pending.what {
            Request::Send(counter) => {
                if !is_worth_a_retry(code) {
                    self.give_up(cx, counter);
                    return;
                }
                cx.record.counters.add(Counter::SendRefusals);
                self.send_refused(now_ns, cx, counter, retry_after_ms);
            }
            Request::Pull { conversation, .. } => {
                cx.pulls_outstanding -= 1;
                self.pull_failed(now_ns, cx, conversation);
            }
            Request::Join | Request::Publish { .. } => self.room_refused(now_ns, cx, pending),
            Request::Custom { .. } => cx.record.counters.add(Counter::CustomRefused),
            Request::Acknowledged { .. } | Request::Login => {}
        }
    }

    /// A message was refused for now: it comes again later, the later the more often it was.
    fn send_refused(&mut self, now_ns: u64, cx: &mut Context, counter: u32, retry_after_ms: u32) {
        let busy = self.busy();
        // An attempt that is still on its way may yet be answered; then this one is too.
        let on_its_way = busy
            .pending
            .iter()
            .any(|other| matches!(other.what, Request::Send(same) if same == counter));
        let Some(entry) = busy.outbox.get_mut(counter) else { return };
        entry.refusals += 1;
        if on_its_way {
            return;
        }
        if entry.refusals > cx.settings.refusals_max {
            self.give_up(cx, counter);
            return;
        }
        let doubled = cx.settings.refusal_base_ns << (entry.refusals - 1).min(16);
        let wait_ns = doubled.min(cx.settings.refusal_cap_ns);
        let wait_ns = wait_ns.max(u64::from(retry_after_ms) * NS_PER_MS).max(1);
        entry.awaited_until_ns = 0;
        entry.not_before_ns = now_ns + wait_ns + cx.random.u64(0..wait_ns);
        let not_before_ns = entry.not_before_ns;
        self.look_at_outbox(not_before_ns);
    }

    fn give_up(&mut self, cx: &mut Context, counter: u32) {
        if let Some(entry) = self.busy().outbox.remove(counter) {
            cx.record.counters.add(Counter::Failed);
            let key = Key::new(self.user, counter);
            cx.log.unanswered.push(Unanswered { key, target: entry.target });
        }
    }

    /// Resends what was not answered in time, gives up what is too old, writes what is due.
    fn tick_outbox(&mut self, now_ns: u64, cx: &mut Context) {
        if cx.is_verifying {
            self.busy().outbox_due_ns = u64::MAX;
            return;
        }
        let settings = cx.settings.clone();
        let mut given_up = Vec::new();
        for entry in self.busy().outbox.iter_mut() {
            if entry.awaited_until_ns > 0 && now_ns >= entry.awaited_until_ns {
                cx.record.counters.add(Counter::SendTimeouts);
                entry.awaited_until_ns = 0;
                entry.not_before_ns = now_ns;
            }
            if now_ns.saturating_sub(entry.intended_ns) >= settings.send_age_max_ns {
                given_up.push(entry.counter);
            }
        }
        for counter in given_up {
            self.give_up(cx, counter);
        }
        self.write_outbox(now_ns, cx);
        let busy = self.busy();
        let due = busy.outbox.iter().map(|entry| {
            let next_ns = match entry.awaited_until_ns {
                0 => entry.not_before_ns.max(now_ns + 50 * NS_PER_MS),
                until_ns => until_ns,
            };
            next_ns.min(entry.intended_ns.saturating_add(settings.send_age_max_ns))
        });
        busy.outbox_due_ns = due.min().unwrap_or(u64::MAX);
    }

    // --- receiving -------------------------------------------------------------------------

    fn conversation(&mut self, name: u32) -> &mut Conversation {
        let known = self.conversations.iter().position(|known| known.name == name);
        let index = known.unwrap_or_else(|| {
            self.conversations.reserve_exact(1);
            self.conversations.push(Conversation::new(name));
            self.conversations.len() - 1
        });
        &mut self.conversations[index]
    }

    fn apply(&mut self, now_ns: u64, cx: &mut Context, message: &chat::Message, way: Way) {
        let name = cx.names.number(&message.conversation_id);
        let (user, sequence) = (self.user, message.sequence);
        let (ack_delay_ns, hole_grace_ns) = (cx.settings.ack_delay_ns, cx.settings.hole_grace_ns);
        let conversation = self.conversation(name);
        let arrival = match way {
            Way::Deliver => conversation.delivered(sequence),
            Way::Pull if conversation.pulled(sequence) => Arrival::New,
            Way::Pull => return,
        };
        conversation.note_arrival(now_ns, ack_delay_ns, hole_grace_ns);
        let key = Key::parse(&message.client_message_id, cx.population.run);
        let place = || format!("user {user}, {} sequence {sequence}", message.conversation_id);
        match arrival {
            Arrival::New => {}
            Arrival::NewOutOfOrder | Arrival::AgainOutOfOrder => {
                cx.log.faults.add(FaultKind::OutOfOrder, || {
                    format!("{}: delivered after a higher sequence", place())
                });
                if arrival == Arrival::AgainOutOfOrder {
                    return;
                }
            }
            Arrival::Again | Arrival::AgainOnSameConnection => {
                if key.is_some_and(|key| key.sender() == user) {
                    cx.record.counters.add(Counter::OwnEchoes);
                } else if arrival == Arrival::AgainOnSameConnection && !cx.settings.expect_faults {
                    cx.log.faults.add(FaultKind::Duplicated, || {
                        format!("{}: delivered twice on one connection", place())
                    });
                } else {
                    cx.record.counters.add(Counter::Redelivered);
                }
                return;
            }
        }
        let Some(key) = key else {
            cx.record.counters.add(Counter::Foreign);
            cx.log.receipts.push(Receipt { key: Key::FOREIGN, sequence, conversation: name, user });
            return;
        };
        cx.log.receipts.push(Receipt { key, sequence, conversation: name, user });
        let text = Text::parse(&message.body);
        if text.map(|text| text.key) != Some(key)
            || cx.population.user_index(&message.sender_id) != Some(key.sender())
        {
            cx.log.faults.add(FaultKind::WrongMessage, || {
                let (id, sender) = (&message.client_message_id, &message.sender_id);
                format!("{}: id {id}, sender {sender} and body do not match", place())
            });
            return;
        }
        if key.sender() == user {
            cx.record.counters.add(Counter::OwnEchoes);
            return;
        }
        cx.record.counters.add(Counter::Received);
        if way == Way::Pull {
            cx.record.counters.add(Counter::Pulled);
        }
        let is_group = message.conversation_type == 2;
        let intended_ns = text.map_or(now_ns, |text| text.intended_ns);
        let reads_slowly = cx.population.part(user).slow_reader_pause_ms > 0;
        // What was meant before this session began waited for the user, not for the server.
        let metric = match (self.is_ready() && intended_ns < self.stage_since_ns, is_group) {
            (true, _) => Metric::DeliveryOffline,
            (false, _) if reads_slowly => Metric::DeliverySlow,
            (false, true) => Metric::DeliveryGroup,
            (false, false) => Metric::DeliverySingle,
        };
        cx.record.record(metric, now_ns.saturating_sub(intended_ns));
        if let Some(text) = text
            && matches!(metric, Metric::DeliveryGroup | Metric::DeliverySingle)
        {
            cx.record.record(Metric::ServiceDelivery, now_ns.saturating_sub(text.written_ns));
        }
    }

    // --- acknowledging and pulling ---------------------------------------------------------

    pub(super) fn tick_chat(&mut self, now_ns: u64, cx: &mut Context) {
        if self.busy.as_ref().is_some_and(|busy| now_ns >= busy.outbox_due_ns) {
            self.tick_outbox(now_ns, cx);
        }
        for index in 0..self.conversations.len() {
            let conversation = &mut self.conversations[index];
            if conversation.ack_due_ns > 0 && now_ns >= conversation.ack_due_ns {
                self.acknowledge(now_ns, cx, index);
            }
            let conversation = &mut self.conversations[index];
            if conversation.hole_due_ns > 0 && now_ns >= conversation.hole_due_ns {
                conversation.hole_due_ns = 0;
                self.pull_hole(now_ns, cx, index);
            }
        }
    }

    fn acknowledge(&mut self, now_ns: u64, cx: &mut Context, index: usize) {
        if !self.may_write() {
            self.conversations[index].ack_due_ns = now_ns + cx.settings.ack_delay_ns;
            return;
        }
        let conversation = &mut self.conversations[index];
        let Some(sequence) = conversation.take_ack() else { return };
        let conversation_id = cx.names.name(conversation.name);
        let ack = chat::DeliverAck { conversation_id, sequence };
        cx.record.counters.add(Counter::DeliverAcks);
        self.write_as(cx, command::DELIVER_ACK, Flags::NONE, 0, &ack.encode_to_vec());
    }

    fn pull_hole(&mut self, now_ns: u64, cx: &mut Context, index: usize) {
        let conversation = &mut self.conversations[index];
        if conversation.pulling || conversation.pulls_in_vain >= PULLS_IN_VAIN_MAX {
            return;
        }
        if let Some((from, to)) = conversation.first_hole() {
            conversation.pulling = true;
            cx.record.counters.add(Counter::HolesSeen);
            let range = Range { user: self.user, conversation: conversation.name, from, to };
            self.write_pull(now_ns, cx, range, false);
        }
    }

    fn write_pull(&mut self, now_ns: u64, cx: &mut Context, range: Range, verifies: bool) {
        let Range { conversation, from, to, .. } = range;
        let pull = chat::PullMessages {
            conversation_id: cx.names.name(conversation),
            from_sequence: from,
            to_sequence: to,
            limit: PULL_LIMIT,
            ..chat::PullMessages::default()
        };
        cx.record.counters.add(Counter::Pulls);
        cx.pulls_outstanding += 1;
        let request_id = self.write(cx, command::PULL_MESSAGES, Flags::NONE, &pull.encode_to_vec());
        self.await_reply(request_id, now_ns, Request::Pull { conversation, from, to, verifies });
    }

    /// Pulls a range for the verifier, if there is a session to do it on. The log gets the range
    /// when a good answer has come, and only then.
    pub fn pull_for_verifier(&mut self, now_ns: u64, cx: &mut Context, range: Range) {
        debug_assert_eq!(range.user, self.user, "users pull their own");
        if self.is_ready() && self.may_write() {
            self.write_pull(now_ns, cx, range, true);
        }
    }

    /// After a reconnect: everything after what was applied, in every known conversation.
    pub(super) fn catch_up(&mut self, now_ns: u64, cx: &mut Context) {
        for index in 0..self.conversations.len() {
            let conversation = &mut self.conversations[index];
            if conversation.last() > 0 {
                conversation.pulling = true;
                let (conversation, from) = (conversation.name, conversation.resume_from());
                let range = Range { user: self.user, conversation, from, to: 0 };
                self.write_pull(now_ns, cx, range, false);
            }
        }
    }

    fn pull_reply(
        &mut self,
        now_ns: u64,
        cx: &mut Context,
        request_id: u32,
        reply: &chat::PullReply,
    ) -> bool {
        let Some(pending) = self.take_pending(request_id) else { return false };
        let Request::Pull { conversation: name, from, to, verifies } = pending.what else {
            return false;
        };
        cx.pulls_outstanding -= 1;
        if reply.code != 0 {
            cx.record.counters.add_code(reply.code);
            self.pull_failed(now_ns, cx, name);
            return true;
        }
        for message in &reply.messages {
            self.apply(now_ns, cx, message, Way::Pull);
        }
        let last = reply.messages.last().map_or(0, |message| message.sequence);
        let range = Range { user: self.user, conversation: name, from, to };
        if verifies && (reply.complete || last >= from) {
            let to = if reply.complete { to } else { last.min(to) };
            cx.log.answered.push(Range { to, ..range });
        }
        if !reply.complete && last >= from && (to == 0 || last < to) {
            self.write_pull(now_ns, cx, Range { from: last + 1, ..range }, verifies);
            return true;
        }
        let hole_grace_ns = cx.settings.hole_grace_ns;
        let conversation = self.conversation(name);
        conversation.pulling = false;
        if reply.messages.is_empty() {
            conversation.pulls_in_vain = conversation.pulls_in_vain.saturating_add(1);
        }
        conversation.note_hole(now_ns, hole_grace_ns);
        true
    }

    fn pull_failed(&mut self, now_ns: u64, cx: &mut Context, name: u32) {
        let hole_grace_ns = cx.settings.hole_grace_ns;
        let conversation = self.conversation(name);
        conversation.pulling = false;
        conversation.pulls_in_vain = conversation.pulls_in_vain.saturating_add(1);
        conversation.note_hole(now_ns, hole_grace_ns);
    }
}

/// Whether the same request may succeed later.
fn is_worth_a_retry(code: u32) -> bool {
    matches!(
        Code::from_number(code),
        Some(
            Code::RateLimited
                | Code::LogicUnavailable
                | Code::OverCapacity
                | Code::Internal
                | Code::Draining
        )
    )
}

#[cfg(test)]
mod tests {
    use millrace_protocol::Code;

    use super::is_worth_a_retry;

    #[test]
    fn only_passing_refusals_are_retried() {
        assert!(is_worth_a_retry(Code::LogicUnavailable.number()));
        assert!(is_worth_a_retry(Code::RateLimited.number()));
        assert!(!is_worth_a_retry(Code::NotPermitted.number()));
        assert!(!is_worth_a_retry(999));
    }
}
