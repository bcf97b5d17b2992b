//! Frames of a team's own backend: written on the schedule, their replies timed, their meaning
//! unknown.

use millrace_protocol::{
    command,
    frame::{Flags, Header},
};

use super::{Client, Context, Request};
use crate::{
    record::{Counter, Metric},
    scenario::plan::CustomBody,
};

impl Client {
    /// Writes a frame of the schedule. It does not wait: without a session it is counted as unsent.
    pub fn send_custom(&mut self, now_ns: u64, cx: &mut Context, number: usize, intended_ns: u64) {
        if !self.is_ready() || !self.may_write() {
            cx.record.counters.add(Counter::CustomUnsent);
            return;
        }
        let settings = cx.settings.clone();
        let frame = &settings.custom[number];
        let counter = self.next_counter;
        self.next_counter += 1;
        let body = match &frame.body {
            CustomBody::Bytes(bytes) => bytes.clone(),
            CustomBody::Template(text) => text
                .replace("{user}", &cx.population.user_id(self.user))
                .replace("{number}", &counter.to_string())
                .into_bytes(),
        };
        cx.record.counters.add(Counter::CustomSent);
        if frame.reply {
            let request_id = self.write(cx, frame.command, Flags::NONE, &body);
            self.await_reply(request_id, now_ns, Request::Custom { intended_ns });
        } else {
            self.write_as(cx, frame.command, Flags::NONE, 0, &body);
        }
    }

    /// A frame that is none of the protocol's own. Answers whether one like it was to be expected.
    pub(super) fn custom_frame(&mut self, now_ns: u64, cx: &mut Context, header: Header) -> bool {
        if cx.settings.custom.is_empty() {
            return false;
        }
        if header.command & command::REPLY_BIT == 0 {
            cx.record.counters.add(Counter::CustomReceived);
            return true;
        }
        let Some(pending) = self.take_pending(header.request_id) else { return false };
        let Request::Custom { intended_ns } = pending.what else { return false };
        cx.record.counters.add(Counter::CustomReplies);
        cx.record.record(Metric::Custom, now_ns.saturating_sub(intended_ns));
        true
    }

    /// The run is over: what was not answered never will be.
    pub(super) fn forget_custom(&mut self, cx: &mut Context) {
        let Some(busy) = &mut self.busy else { return };
        let before = busy.pending.len();
        busy.pending.retain(|pending| !matches!(pending.what, Request::Custom { .. }));
        let unanswered = (before - busy.pending.len()) as u64;
        cx.record.counters.add_many(Counter::CustomUnanswered, unanswered);
    }
}
