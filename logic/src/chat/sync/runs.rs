//! Messages of one conversation that follow each other in a commit share a `DELIVER`.

use std::collections::HashMap;

use millrace_logic_sdk::{Batch, SessionAddress};
use millrace_protocol::chat::Message;
use prost::Message as _;

use super::{
    super::{Core, online::Receiver},
    send_deliver,
};

/// Messages of the commit at hand that wait to share a `DELIVER`, by conversation.
#[derive(Default)]
pub(super) struct Runs {
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
    pub(super) fn make_way(
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
    pub(super) fn add(
        &mut self,
        message: Message,
        sender: Option<SessionAddress>,
        receivers: &[Receiver],
    ) {
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

    pub(super) fn flush(&mut self, core: &Core, out: &mut Batch<'_>) {
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
