//! Which masters of a Cluster are left alone for a while, because they do not answer. No I/O; time comes
//! in as an argument.
//!
//! What is not asked costs nothing, and that is more than it seems: to find a slot of a master that
//! cannot be reached, the client asks every other master where it is and connects to all of them
//! again, one after the other, and every call waits meanwhile. If all slots of that master were asked
//! for all the time, as they are, calls to the masters that do answer would find no time between.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use redis::Value;

/// How often one call goes to a silent master, to see whether it answers again.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Slots of a Cluster.
const SLOTS: u16 = 16_384;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// First and last slot of each range, and who had it when the connection was made. It only says
    /// which slots are silent together, so that one which has moved since does no harm.
    ranges: Vec<(u16, u16, usize)>,
    masters: HashMap<usize, Master>,
}

#[derive(Debug, Default)]
struct Master {
    answered: Option<Instant>,
    /// It is silent, and is asked again then.
    next_probe: Option<Instant>,
}

impl Silence {
    /// With the reply to CLUSTER SLOTS; what cannot be read is one master's.
    pub(super) fn new(slots: &Value) -> Self {
        let mut names: Vec<&Value> = Vec::new();
        let mut ranges = Vec::new();
        for range in items(slots) {
            let [Value::Int(first), Value::Int(last), master, ..] = items(range) else { continue };
            let (Ok(first), Ok(last)) = (u16::try_from(*first), u16::try_from(*last)) else {
                continue;
            };
            let known = names.iter().position(|name| *name == master);
            ranges.push((first, last, known.unwrap_or(names.len())));
            if known.is_none() {
                names.push(master);
            }
        }
        Self { ranges, masters: HashMap::new() }
    }

    /// The master of a slot, by a number that means nothing elsewhere.
    pub(super) fn master_of(&self, slot: u16) -> usize {
        let has = |range: &&(u16, u16, usize)| (range.0..=range.1).contains(&slot);
        self.ranges.iter().find(has).map_or(usize::MAX, |range| range.2)
    }

    /// Whether this master may be asked now.
    pub(super) fn may_ask(&mut self, master: usize, now: Instant) -> bool {
        let master = self.masters.entry(master).or_default();
        let Some(at) = master.next_probe else { return true };
        let is_due = now >= at;
        if is_due {
            master.next_probe = Some(now + PROBE_INTERVAL);
        }
        is_due
    }

    /// It did not answer what it was asked at that time. If it has answered anything since, it is slow.
    pub(super) fn is_silent(&mut self, master: usize, asked: Instant, now: Instant) {
        let master = self.masters.entry(master).or_default();
        if master.answered.is_none_or(|at| at < asked) {
            master.next_probe = Some(now + PROBE_INTERVAL);
        }
    }

    /// It answers.
    pub(super) fn answers(&mut self, master: usize, now: Instant) {
        *self.masters.entry(master).or_default() = Master { answered: Some(now), next_probe: None };
    }
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        _ => &[],
    }
}

/// The slot of a command's key, by its hash tag; all of our keys begin with one.
pub(super) fn slot_of(command: &redis::Cmd) -> u16 {
    let tag = command.args_iter().find_map(|argument| match argument {
        redis::Arg::Simple(text) => text.strip_prefix(b"{")?.split(|byte| *byte == b'}').next(),
        _ => None,
    });
    // CRC-16/XMODEM, as the specification of Redis Cluster has it.
    let crc = tag.unwrap_or_default().iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::redis::{
        connection::{Scripts, call},
        entry::Keys,
    };

    fn range(first: i64, last: i64, port: i64) -> Value {
        let master = vec![Value::BulkString(b"127.0.0.1".to_vec()), Value::Int(port)];
        Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(master)])
    }

    #[test]
    fn a_silent_master_is_asked_once_a_second_until_it_answers_and_the_others_as_ever() {
        let ranges = vec![range(0, 99, 1), range(100, 199, 2), range(200, 16_383, 1)];
        let mut silence = Silence::new(&Value::Array(ranges));
        let masters = [0, 99, 100, 199, 200, 16_383].map(|slot| silence.master_of(slot));
        assert_eq!(masters, [0, 0, 1, 1, 0, 0]);
        let began = Instant::now();
        let after = |ms| began + Duration::from_millis(ms);
        assert!(silence.may_ask(0, began) && silence.may_ask(1, began));
        silence.answers(1, after(10));
        silence.is_silent(0, began, after(750));
        silence.is_silent(1, began, after(750));
        assert!(silence.may_ask(1, after(751)), "it has answered another call");
        assert!(!silence.may_ask(0, after(1_749)));
        assert!(silence.may_ask(0, after(1_750)) && !silence.may_ask(0, after(1_751)), "once");
        silence.answers(0, after(1_800));
        assert!(silence.may_ask(0, after(1_801)) && silence.may_ask(0, after(1_801)));
        assert_eq!(Silence::new(&Value::Nil).master_of(7), usize::MAX);
    }

    #[test]
    fn a_slot_is_the_one_that_redis_would_take() {
        let slot = |tag: &str| slot_of(redis::cmd("GET").arg(format!("{{{tag}}}:x")));
        // The check value of the specification, and two that a server told.
        assert_eq!([slot("123456789"), slot("foo"), slot("bar")], [0x31c3, 12_182, 5_061]);
        let keys = Keys::new("millrace");
        let mut of_entries = redis::cmd("ZRANGEBYLEX");
        of_entries.arg(keys.entries(7)).arg("[{x}").arg("+");
        let of_put = call(&Scripts::default().put, &[&keys.entries(7), &keys.owners(7)]);
        assert_eq!(slot_of(&of_put), slot_of(&of_entries));
    }
}
