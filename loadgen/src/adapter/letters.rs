//! The messages of a guest: those of the schedule until the server has answered for them, and those
//! that arrive. Nothing here knows the protocol.

use std::collections::VecDeque;

use super::{
    Adapter, Answer, Outgoing,
    guest::Guest,
    payload::Payload,
    streams::{Arrival, ROOM, StreamGap, Streams, Track},
};
use crate::{
    client::{Context, NS_PER_MS, OUTBOX_MAX},
    log::FaultKind,
    population::Target,
    record::{Counter, Metric},
};

/// Labels go from 1 to this, and begin again: far more than are on their way at once.
const LABEL_MAX: u16 = 60_000;
/// When a socket that was full is tried again.
const SOCKET_FULL_NS: u64 = 50 * NS_PER_MS;

/// A message until its sender has heard of its arrival.
#[derive(Debug, Clone, Copy)]
struct Letter {
    target: Target,
    stream: u32,
    /// In its stream; 0: it was never written.
    number: u32,
    /// On the present connection.
    label: u16,
    intended_ns: u64,
    /// The first time.
    written_ns: u64,
    /// The last time.
    sent_ns: u64,
}

/// Messages of a stream that no later answer of the server has proven to have arrived there.
#[derive(Debug)]
struct Unproven {
    stream: u32,
    from: u32,
    /// The last one before the ping that waits for its answer; 0: none does.
    pinged: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Letters {
    list: VecDeque<Letter>,
    /// The first so many are on their way; the others wait.
    on_way: usize,
    next_label: u16,
    /// When those that wait are to be tried again.
    pub due_ns: u64,
    unproven: Vec<Unproven>,
}

impl Default for Letters {
    fn default() -> Self {
        let (list, unproven) = (VecDeque::new(), Vec::new());
        Self { list, on_way: 0, next_label: 1, due_ns: u64::MAX, unproven }
    }
}

impl Letters {
    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing is to be remembered.
    pub fn is_over(&self) -> bool {
        self.list.is_empty() && self.unproven.is_empty()
    }

    /// A ping was written: its answer proves what was written before.
    pub fn pinged(&mut self, streams: &Streams) {
        self.unproven.iter_mut().for_each(|one| one.pinged = streams.written(one.stream));
    }

    /// It was answered.
    pub fn ponged(&mut self, streams: &Streams) {
        for one in &mut self.unproven {
            one.from = one.from.max(one.pinged + 1);
            one.pinged = 0;
        }
        self.unproven.retain(|one| one.from <= streams.written(one.stream));
    }

    /// The connection ended. Answers how many messages are forgotten.
    pub fn connection_ended(&mut self, answer: Answer, streams: &Streams) -> u64 {
        let on_way = std::mem::take(&mut self.on_way);
        match answer {
            // They are written again.
            Answer::Acknowledgement => 0,
            Answer::Echo => {
                let gone = self.list.drain(..on_way);
                gone.for_each(|letter| streams.doubt(letter.stream, letter.number, letter.number));
                on_way as u64
            }
            Answer::None => {
                for one in self.unproven.drain(..) {
                    streams.doubt(one.stream, one.from, streams.written(one.stream));
                }
                0
            }
        }
    }

    /// Nobody is owed what was written and is not acknowledged.
    pub fn doubt_written(&self, streams: &Streams) {
        let written = self.list.iter().filter(|letter| letter.number > 0);
        written.for_each(|letter| streams.doubt(letter.stream, letter.number, letter.number));
    }

    fn take(&mut self, is_it: impl Fn(&Letter) -> bool) -> Option<Letter> {
        let at = self.list.iter().take(self.on_way).position(is_it)?;
        self.on_way -= 1;
        let letter = self.list.remove(at);
        if self.list.is_empty() {
            // An idle user owns no buffer.
            self.list = VecDeque::new();
        }
        letter
    }

    fn prove_later(&mut self, stream: u32, number: u32) {
        if !self.unproven.iter().any(|one| one.stream == stream) {
            self.unproven.push(Unproven { stream, from: number, pinged: 0 });
        }
    }
}

impl<A: Adapter> Guest<A> {
    /// A message of the schedule.
    pub(super) fn send_letter(
        &mut self,
        now_ns: u64,
        cx: &mut Context,
        target: Target,
        intended_ns: u64,
    ) {
        cx.record.counters.add(Counter::Intended);
        cx.record.windows.meant(intended_ns);
        if !self.push(cx, target, intended_ns) {
            cx.record.counters.add(Counter::OutboxFull);
        } else if self.is_up() {
            self.write_letters(now_ns, cx);
        }
    }

    /// The next message to the room. Live messages do not wait: without a session it is counted as
    /// unsent.
    pub(super) fn publish_letter(&mut self, now_ns: u64, cx: &mut Context, intended_ns: u64) {
        if !self.is_up() || !self.may_write() || !self.push(cx, ROOM, intended_ns) {
            cx.record.counters.add(Counter::RoomUnsent);
            return;
        }
        cx.record.counters.add(Counter::RoomSent);
        self.write_letters(now_ns, cx);
    }

    fn push(&mut self, cx: &Context, target: Target, intended_ns: u64) -> bool {
        let Some(stream) = cx.streams.of(&cx.population, self.user, target) else { return false };
        let letters = self.letters.get_or_insert_default();
        if letters.list.len() >= OUTBOX_MAX {
            return false;
        }
        let (number, label, written_ns, sent_ns) = (0, 0, 0, 0);
        letters.list.push_back(Letter {
            target,
            stream,
            number,
            label,
            intended_ns,
            written_ns,
            sent_ns,
        });
        true
    }

    /// Writes what waits, as far as the socket keeps up.
    pub(super) fn write_letters(&mut self, now_ns: u64, cx: &mut Context) {
        if cx.is_verifying {
            return;
        }
        let Some(mut letters) = self.letters.take() else { return };
        let answer = A::answer(&cx.settings);
        letters.due_ns = u64::MAX;
        while let Some(letter) = letters.list.get_mut(letters.on_way) {
            if now_ns.saturating_sub(letter.intended_ns) >= cx.settings.send_age_max_ns {
                cx.record.counters.add(Counter::Failed);
                if letter.number > 0 {
                    cx.streams.doubt(letter.stream, letter.number, letter.number);
                }
                letters.list.remove(letters.on_way);
                continue;
            }
            if !self.may_write() {
                letters.due_ns = now_ns + SOCKET_FULL_NS;
                break;
            }
            let is_again = letter.number > 0;
            if !is_again {
                letter.number = cx.streams.next(letter.stream);
                letter.written_ns = now_ns;
            }
            letter.sent_ns = now_ns;
            letter.label = letters.next_label;
            letters.next_label = letters.next_label % LABEL_MAX + 1;
            let letter = *letter;
            self.write_letter(cx, &letter, is_again);
            let is_single = letter.target != ROOM;
            if is_single {
                let counter = if is_again { Counter::Resent } else { Counter::Sent };
                cx.record.counters.add(counter);
            }
            if answer == Answer::None {
                letters.list.remove(letters.on_way);
                letters.prove_later(letter.stream, letter.number);
            } else {
                letters.on_way += 1;
            }
            if answer != Answer::Acknowledgement && is_single {
                cx.record.counters.add(Counter::Expected);
            }
        }
        self.letters = Some(letters);
    }

    fn write_letter(&mut self, cx: &mut Context, letter: &Letter, is_again: bool) {
        let Letter { number, intended_ns, written_ns, .. } = *letter;
        let payload = Payload { sender: self.user, number, intended_ns, written_ns };
        let mut bytes = std::mem::take(&mut cx.scratch);
        bytes.clear();
        payload.write(cx.settings.message_bytes, &mut bytes);
        let message = Outgoing {
            user: self.user,
            target: letter.target,
            number,
            label: letter.label,
            is_again,
            payload: &bytes,
        };
        A::write_message(cx, &mut self.output, &message);
        cx.scratch = bytes;
    }

    /// The server has taken a message.
    pub(super) fn acknowledged(&mut self, now_ns: u64, cx: &mut Context, label: u16) {
        let letters = self.letters.as_mut();
        let Some(letter) = letters.and_then(|all| all.take(|one| one.label == label)) else {
            // It answers for something that was not asked.
            cx.record.counters.add(Counter::ProtocolErrors);
            cx.note_error(format!("the server acknowledged {label}, which is not on its way"));
            return;
        };
        let latency_ns = now_ns.saturating_sub(letter.intended_ns);
        if letter.target == ROOM {
            cx.record.counters.add(Counter::RoomAcked);
            cx.record.record(Metric::AckRoom, latency_ns);
            return;
        }
        cx.record.counters.add(Counter::Acked);
        cx.record.counters.add(Counter::Expected);
        cx.record.record(Metric::AckSingle, latency_ns);
        cx.record.record(Metric::Service, now_ns.saturating_sub(letter.sent_ns));
    }

    /// A message came. `target`: whom it is for, as far as the protocol says.
    pub(super) fn arrived(
        &mut self,
        now_ns: u64,
        cx: &mut Context,
        target: Option<Target>,
        bytes: &[u8],
    ) {
        let user = self.user;
        let target = target.unwrap_or(Target::user(user));
        let is_room = target == ROOM;
        let of_room = |room, single| if is_room { room } else { single };
        let payload = Payload::parse(bytes, cx.settings.message_bytes);
        let payload = payload.filter(|payload| payload.number > 0);
        let Some(payload) = payload else {
            let kind = of_room(FaultKind::RoomWrong, FaultKind::WrongMessage);
            cx.log.faults.add(kind, || {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
                format!("user {user} got {} bytes that nobody sent: {text}", bytes.len())
            });
            return;
        };
        let Payload { sender, number, intended_ns, written_ns } = payload;
        let stream = cx.streams.of(&cx.population, sender, target);
        let is_mine = if is_room {
            cx.population.is_room_member(user) && !cx.population.is_publisher(user)
        } else {
            target.index() == user
        };
        let Some(stream) = stream.filter(|_| is_mine) else {
            let kind = of_room(FaultKind::RoomWrong, FaultKind::Misdelivered);
            cx.log.faults.add(kind, || format!("user {user} got {sender}'s message {number}"));
            return;
        };
        if number > cx.streams.written(stream) {
            let kind = of_room(FaultKind::RoomWrong, FaultKind::WrongMessage);
            cx.log.faults.add(kind, || {
                format!("user {user} got {sender}'s message {number}, which was never sent")
            });
            return;
        }
        let at = self.tracks.iter().position(|track| track.stream == stream).unwrap_or_else(|| {
            self.tracks.reserve_exact(1);
            self.tracks.push(Track::new(stream, 0));
            self.tracks.len() - 1
        });
        let (arrival, forgotten) = self.tracks[at].arrived(number);
        cx.log.stream_gaps.extend(forgotten.map(|(from, to)| StreamGap { user, stream, from, to }));
        match arrival {
            Arrival::New => {}
            Arrival::Again if A::is_at_least_once(&cx.settings) || cx.settings.expect_faults => {
                cx.record.counters.add(Counter::Redelivered);
                return;
            }
            Arrival::Again => {
                let kind = of_room(FaultKind::RoomDuplicated, FaultKind::Duplicated);
                cx.log.faults.add(kind, || format!("user {user} got {sender}'s {number} twice"));
                return;
            }
            Arrival::Late => {
                let kind = of_room(FaultKind::RoomOutOfOrder, FaultKind::OutOfOrder);
                cx.log
                    .faults
                    .add(kind, || format!("user {user} got {sender}'s {number} after a later one"));
            }
        }
        let latency_ns = now_ns.saturating_sub(intended_ns);
        if is_room {
            cx.record.counters.add(Counter::RoomReceived);
            cx.record.record(Metric::DeliveryRoom, latency_ns);
            return;
        }
        cx.record.counters.add(Counter::Received);
        if cx.population.part(user).slow_reader_pause_ms > 0 {
            cx.record.record(Metric::DeliverySlow, latency_ns);
        } else {
            cx.record.record(Metric::DeliverySingle, latency_ns);
            cx.record.record(Metric::ServiceDelivery, now_ns.saturating_sub(written_ns));
        }
        if A::answer(&cx.settings) == Answer::Echo
            && let Some(letters) = &mut self.letters
            && letters.take(|one| one.number == number).is_some()
        {
            cx.record.counters.add(Counter::Acked);
        }
    }
}
