//! What is measured: one table of histograms and one table of counters, kept per thread without
//! a lock and merged when somebody looks.
//!
//! It gives no verdict and prints nothing.

use hdrhistogram::Histogram;
use millrace_protocol::Code;

use crate::windows::Windows;

/// Declares a closed set whose members are indices and have a name.
macro_rules! table {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every member, in order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in summaries, JSON and thresholds.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }
    };
}

table! {
    /// A latency with a histogram. Each is a span of time in nanoseconds, kept in microseconds.
    Metric {
        /// TCP connect: from the call to the established connection.
        Connect = "connect",
        /// WebSocket upgrade: from the request to the accepted response.
        Upgrade = "upgrade",
        /// From LOGIN to LoginReply.
        Login = "login",
        /// From the moment at which the ramp's schedule wanted the user to the user's first session:
        /// connect, upgrade, login, and whatever made them wait.
        Arrival = "arrival",
        /// The same for a user who comes back: from the connect to the next session.
        Return = "return",
        /// From HEARTBEAT to its reply.
        Heartbeat = "heartbeat",
        /// Single chat: from the intended moment to the SendReply.
        AckSingle = "ack_single",
        /// Group chat: from the intended moment to the SendReply.
        AckGroup = "ack_group",
        /// Single chat: from the intended moment to the arrival at the recipient.
        DeliverySingle = "delivery_single",
        /// Group chat: from the intended moment to the arrival at each recipient.
        DeliveryGroup = "delivery_group",
        /// A message that was meant before the recipient's present session began: it waited for the
        /// recipient to come back. In no other delivery latency.
        DeliveryOffline = "delivery_offline",
        /// From JOIN_ROOM to its reply.
        Join = "join",
        /// Room: from the intended moment to the RoomReply.
        AckRoom = "ack_room",
        /// Room: from the intended moment to the arrival at each member.
        DeliveryRoom = "delivery_room",
        /// From the actual write of the last attempt to the SendReply: what a closed-loop tool
        /// would have reported.
        Service = "service",
        /// From the first actual write to the arrival at a recipient who was there: the same for a
        /// delivery.
        ServiceDelivery = "service_delivery",
        /// A delivery, from the intended moment, to a user who reads slowly on purpose. In no other
        /// delivery latency.
        DeliverySlow = "delivery_slow",
        /// A frame of a team's own backend: from the intended moment to its reply.
        Custom = "custom",
        /// The generator's own lateness: from the intended moment to the moment at which it got
        /// round to the message.
        Late = "late",
        /// WebSocket echo: from the intended moment (or the write, without a rate) to the echo.
        Echo = "echo",
    }
}

table! {
    /// Something that is counted.
    Counter {
        /// TCP connections established.
        Connections = "connections",
        /// Connects that failed or timed out.
        ConnectFailed = "connect_failed",
        /// Upgrades that were refused.
        UpgradeFailed = "upgrade_failed",
        /// Successful logins.
        Logins = "logins",
        /// LOGINs answered with another code than 0.
        LoginsRefused = "logins_refused",
        /// Sessions that ended although we did not want them to.
        ConnectionsLost = "connections_lost",
        /// Sessions that users ended by themselves, to come back.
        Churned = "churned",
        /// Moments of a schedule for which no fitting user was found: nearly all are away.
        NobodyThere = "nobody_there",
        /// Connections that ended before their session was up, without a reason given.
        SetupsCut = "setups_cut",
        /// Logins after the first one of a user.
        Reconnects = "reconnects",
        /// Users that stopped trying to come back.
        GaveUp = "gave_up",
        /// GOAWAY frames obeyed.
        GoAways = "goaways",
        /// KICK frames received.
        Kicks = "kicks",
        /// Connections that we closed because nothing arrived within the idle timeout.
        ClientIdle = "client_idle",
        /// Bytes from the server that do not form the protocol.
        ProtocolErrors = "protocol_errors",
        /// Heartbeats answered.
        Heartbeats = "heartbeats",
        /// Of them, those of a closed loop.
        FlatOut = "flat_out",
        /// Users that a login storm called.
        Called = "called",
        /// Sessions that a reconnect storm ended.
        Stormed = "stormed",
        /// Frames of a team's own backend written.
        CustomSent = "custom_sent",
        /// Of them, those that were answered with their reply.
        CustomReplies = "custom_replies",
        /// Of them, those that were answered with ERROR.
        CustomRefused = "custom_refused",
        /// Of them, those for which there was no session, or no room in the socket.
        CustomUnsent = "custom_unsent",
        /// Of them, those whose connection ended, or that were not answered by the end of the run.
        CustomUnanswered = "custom_unanswered",
        /// Frames of a team's own backend that the server sent unasked.
        CustomReceived = "custom_received",
        /// Messages that the schedule asked for.
        Intended = "intended",
        /// SEND_MESSAGE frames written the first time.
        Sent = "sent",
        /// SEND_MESSAGE frames written again: after a timeout, a refusal or a lost connection.
        Resent = "resent",
        /// SEND_MESSAGE frames that were not answered in time.
        SendTimeouts = "send_timeouts",
        /// SEND_MESSAGE frames refused with a code that passes.
        SendRefusals = "send_refusals",
        /// Messages acknowledged as stored.
        Acked = "acked",
        /// Acknowledgements that said `duplicate`.
        AckedDuplicate = "acked_duplicate",
        /// Messages given up after the last attempt, or refused for good.
        Failed = "failed",
        /// Messages neither acknowledged nor given up when the run ended.
        Unanswered = "unanswered",
        /// Messages shed because the user's outbox was full.
        OutboxFull = "outbox_full",
        /// What the acknowledged messages should cause: one for each recipient.
        Expected = "expected",
        /// First arrivals of this run's messages at a recipient, however they came.
        Received = "received",
        /// Those of them that came by PULL_MESSAGES and not by DELIVER.
        Pulled = "pulled",
        /// DELIVERs of a message that this user had before: allowed after a reconnect.
        Redelivered = "redelivered",
        /// Messages that came to a server of others while their recipient had no session there: nobody
        /// keeps them.
        Missed = "missed",
        /// Messages of other runs, ignored.
        Foreign = "foreign",
        /// Own messages that came back to their sender.
        OwnEchoes = "own_echoes",
        /// DELIVER_ACK frames written.
        DeliverAcks = "deliver_acks",
        /// RECEIPT frames received.
        Receipts = "receipts",
        /// PULL_MESSAGES frames written.
        Pulls = "pulls",
        /// Holes in a delivered conversation that lasted longer than the grace.
        HolesSeen = "holes_seen",
        /// Members' joins, one for each session.
        RoomJoins = "room_joins",
        /// Room messages written.
        RoomSent = "room_sent",
        /// Room messages of the schedule for which the publisher had no session.
        RoomUnsent = "room_unsent",
        /// Room messages whose reply was good.
        RoomAcked = "room_acked",
        /// Room messages refused.
        RoomRefused = "room_refused",
        /// Arrivals of room messages at members.
        RoomReceived = "room_received",
        /// Frames received.
        FramesIn = "frames_in",
        /// Frames written.
        FramesOut = "frames_out",
        /// Bytes received.
        BytesIn = "bytes_in",
        /// Bytes written.
        BytesOut = "bytes_out",
        /// Echoes that came back equal.
        Echoes = "echoes",
        /// Echoes that came back different.
        EchoesWrong = "echoes_wrong",
    }
}

/// How many latencies there are.
pub const METRICS: usize = Metric::ALL.len();
const COUNTERS: usize = Counter::ALL.len();
/// One place for each code, and the last for numbers that the table does not know.
const CODES: usize = Code::ALL.len() + 1;
/// The largest latency told apart: ten minutes.
const HIGHEST_US: u64 = 600_000_000;

/// An empty histogram of microseconds with three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_US, 3).expect("the bounds are constants and valid")
}

impl Metric {
    /// Whether it is what a view shows as the latency of the moment: what arrives from the server.
    pub const fn is_live(self) -> bool {
        matches!(
            self,
            Self::DeliverySingle
                | Self::DeliveryGroup
                | Self::DeliveryRoom
                | Self::Custom
                | Self::Echo
        )
    }
}

/// Counters and refusals; cheap to copy.
#[derive(Clone, Debug)]
pub struct Counters {
    values: [u64; COUNTERS],
    codes: [u64; CODES],
}

impl Default for Counters {
    fn default() -> Self {
        Self { values: [0; COUNTERS], codes: [0; CODES] }
    }
}

impl Counters {
    /// Adds one.
    pub fn add(&mut self, counter: Counter) {
        self.values[counter as usize] += 1;
    }

    /// Adds `by`.
    pub fn add_many(&mut self, counter: Counter, by: u64) {
        self.values[counter as usize] += by;
    }

    /// The value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }

    /// Counts an answer that carried `code` (not 0).
    pub fn add_code(&mut self, code: u32) {
        self.codes[(code as usize).min(CODES - 1)] += 1;
    }

    /// All of them in order of their tables: counters, and answers by code.
    pub fn tables(&self) -> (&[u64], &[u64]) {
        (&self.values, &self.codes)
    }

    /// From tables that may be cut after their last number; `None`: they are longer than ours.
    pub fn of_tables(values: &[u64], codes: &[u64]) -> Option<Self> {
        let mut counters = Self::default();
        counters.values.get_mut(..values.len())?.copy_from_slice(values);
        counters.codes.get_mut(..codes.len())?.copy_from_slice(codes);
        Some(counters)
    }

    /// Answers with a code other than 0, by label; `unknown` collects foreign numbers.
    pub fn codes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let labels = Code::ALL.iter().map(|code| code.label()).chain(["unknown"]);
        labels.zip(self.codes).filter(|(_, count)| *count > 0)
    }

    /// All answers with a code other than 0.
    pub fn codes_total(&self) -> u64 {
        self.codes.iter().sum()
    }

    /// What they grew by since an earlier state.
    pub fn since(&self, before: &Self) -> Self {
        let mut growth = self.clone();
        let less = |mine: &mut u64, theirs: u64| *mine = mine.saturating_sub(theirs);
        growth.values.iter_mut().zip(before.values).for_each(|(mine, theirs)| less(mine, theirs));
        growth.codes.iter_mut().zip(before.codes).for_each(|(mine, theirs)| less(mine, theirs));
        growth
    }

    /// Those that are not 0, by label.
    pub fn present(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let values = Counter::ALL.iter().map(|counter| (counter.label(), self.get(*counter)));
        values.filter(|(_, value)| *value > 0)
    }

    /// Adds another thread's counters.
    pub fn merge(&mut self, other: &Self) {
        self.values.iter_mut().zip(other.values).for_each(|(mine, theirs)| *mine += theirs);
        self.codes.iter_mut().zip(other.codes).for_each(|(mine, theirs)| *mine += theirs);
    }
}

/// What was recorded since somebody last took it, for whoever watches the run.
#[derive(Clone, Debug)]
pub struct Recent {
    /// Latencies of deliveries and echoes.
    pub latency: Histogram<u64>,
    /// The generator's own lateness.
    pub late: Histogram<u64>,
}

impl Default for Recent {
    fn default() -> Self {
        Self { latency: histogram(), late: histogram() }
    }
}

impl Recent {
    /// Moves everything into `into`.
    pub fn take(&mut self, into: &mut Self) {
        for (from, into) in
            [(&mut self.latency, &mut into.latency), (&mut self.late, &mut into.late)]
        {
            if !from.is_empty() {
                into.add(&*from).expect("all histograms have the same bounds");
                from.reset();
            }
        }
    }
}

/// Histograms and counters of one thread.
#[derive(Clone, Debug)]
pub struct Recorder {
    histograms: Vec<Histogram<u64>>,
    recent: Recent,
    /// The counters.
    pub counters: Counters,
    /// The same second by second.
    pub windows: Windows,
    /// The present moment of the run: where spans end. Whoever records keeps it up.
    pub now_ns: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            histograms: (0..METRICS).map(|_| histogram()).collect(),
            recent: Recent::default(),
            counters: Counters::default(),
            windows: Windows::default(),
            now_ns: 0,
        }
    }
}

impl Recorder {
    /// What windows have recorded, in all.
    pub fn of_windows(windows: Windows) -> Self {
        let mut recorder = Self::default();
        for window in windows.parts().iter().flat_map(|part| &part.windows) {
            recorder.counters.merge(&window.counters);
            for (metric, sparse) in window.latencies() {
                sparse.add_to(&mut recorder.histograms[*metric as usize]);
            }
        }
        recorder.windows = windows;
        recorder
    }

    /// Records a span of `ns` nanoseconds that ends now.
    pub fn record(&mut self, metric: Metric, ns: u64) {
        let us = (ns / 1000).max(1);
        self.histograms[metric as usize].saturating_record(us);
        self.windows.record(metric, us, self.now_ns.saturating_sub(ns));
        if metric.is_live() {
            self.recent.latency.saturating_record(us);
        } else if metric == Metric::Late {
            self.recent.late.saturating_record(us);
        }
    }

    /// The histogram of one metric, in microseconds.
    pub fn of(&self, metric: Metric) -> &Histogram<u64> {
        &self.histograms[metric as usize]
    }

    /// Several metrics in one histogram.
    pub fn merged(&self, metrics: &[Metric]) -> Histogram<u64> {
        let mut sum = histogram();
        for metric in metrics {
            sum.add(self.of(*metric)).expect("all histograms have the same bounds");
        }
        sum
    }

    /// Moves what is recent into `into`.
    pub fn take_recent(&mut self, into: &mut Recent) {
        self.recent.take(into);
    }

    /// Adds another thread's records.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.histograms.iter_mut().zip(&other.histograms) {
            mine.add(theirs).expect("all histograms have the same bounds");
        }
        self.counters.merge(&other.counters);
        self.windows.merge(&other.windows);
    }
}

#[cfg(test)]
mod tests {
    use super::{Counter, Counters, Metric, Recorder};

    #[test]
    fn merged_threads_give_the_percentiles_of_all_values_together() {
        let (mut one, mut two) = (Recorder::default(), Recorder::default());
        for value in 1..=1000_u64 {
            let recorder = if value % 2 == 0 { &mut one } else { &mut two };
            recorder.record(Metric::AckSingle, value * 1_000_000);
        }
        one.merge(&two);
        let all = one.merged(&[Metric::AckSingle, Metric::AckGroup]);
        assert_eq!(all.len(), 1000);
        let p99 = all.value_at_quantile(0.99) as f64;
        assert!((p99 / 990_000.0 - 1.0).abs() < 0.002, "{p99}");
    }

    #[test]
    fn refusals_are_counted_by_label_and_foreign_numbers_are_kept() {
        let mut counters = Counters::default();
        counters.add_code(10);
        counters.add_code(10);
        counters.add_code(4_000_000);
        counters.add(Counter::Acked);
        let codes: Vec<_> = counters.codes().collect();
        assert_eq!(codes, [("logic_unavailable", 2), ("unknown", 1)]);
    }
}
