//! What one user knows of one conversation: which sequences have arrived, what is to be
//! acknowledged, and where holes are.
//!
//! It judges the order of arrival but sends nothing; the client turns its answers into frames.

/// A set of sequences as sorted, disjoint, non-adjacent ranges (both ends inclusive). A
/// conversation without holes is one range, however long it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SequenceSet {
    ranges: Vec<(u64, u64)>,
}

impl SequenceSet {
    /// Adds a sequence; answers `false` if it was there.
    pub fn insert(&mut self, sequence: u64) -> bool {
        // Nearly every sequence is the next one of the last range.
        let after = self.ranges.partition_point(|(start, _)| *start <= sequence);
        if after > 0 && self.ranges[after - 1].1 >= sequence {
            return false;
        }
        let joins_left = after > 0 && self.ranges[after - 1].1 + 1 == sequence;
        let joins_right = self
            .ranges
            .get(after)
            .is_some_and(|(start, _)| sequence.checked_add(1) == Some(*start));
        match (joins_left, joins_right) {
            (true, true) => {
                self.ranges[after - 1].1 = self.ranges[after].1;
                self.ranges.remove(after);
            }
            (true, false) => self.ranges[after - 1].1 = sequence,
            (false, true) => self.ranges[after].0 = sequence,
            (false, false) => {
                // Nearly every set stays with one range.
                self.ranges.reserve_exact(1);
                self.ranges.insert(after, (sequence, sequence));
            }
        }
        true
    }

    /// Whether a sequence is there.
    pub fn contains(&self, sequence: u64) -> bool {
        let after = self.ranges.partition_point(|(start, _)| *start <= sequence);
        after > 0 && self.ranges[after - 1].1 >= sequence
    }

    /// The first hole between known sequences.
    pub fn first_hole(&self) -> Option<(u64, u64)> {
        match self.ranges.as_slice() {
            [(_, end), (start, _), ..] => Some((end + 1, start - 1)),
            _ => None,
        }
    }

    /// The last sequence before the first hole.
    pub fn contiguous_end(&self) -> Option<u64> {
        self.ranges.first().map(|(_, end)| *end)
    }

    /// The highest sequence.
    pub fn last(&self) -> Option<u64> {
        self.ranges.last().map(|(_, end)| *end)
    }
}

/// How a sequence came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The first time.
    New,
    /// The first time, but after a higher sequence of the same connection: the promise of
    /// increasing DELIVERs is broken.
    NewOutOfOrder,
    /// Known, and the connection's stream has not passed it: a redelivery after a reconnect, a
    /// pull or our own SendReply.
    Again,
    /// Known by a pull, and delivered after a higher sequence all the same.
    AgainOutOfOrder,
    /// Known, and this connection has delivered it before.
    AgainOnSameConnection,
}

/// See the module.
#[derive(Debug)]
pub struct Conversation {
    /// The interned conversation id.
    pub name: u32,
    applied: SequenceSet,
    /// Those that came by a pull and not by DELIVER.
    pulled: SequenceSet,
    /// The highest sequence that this connection's DELIVERs have reached; 0 on a new connection.
    stream: u64,
    /// What the last DELIVER_ACK said.
    acked: u64,
    /// When the next DELIVER_ACK is due; 0: nothing to acknowledge.
    pub ack_due_ns: u64,
    /// When the present hole becomes a reason to pull; 0: there is none.
    pub hole_due_ns: u64,
    /// Pulls for this conversation under way.
    pub pulling: bool,
    /// Pulls for the same hole that were refused or brought nothing.
    pub pulls_in_vain: u8,
}

impl Conversation {
    /// A conversation of which nothing is known.
    pub fn new(name: u32) -> Self {
        Self {
            name,
            applied: SequenceSet::default(),
            pulled: SequenceSet::default(),
            stream: 0,
            acked: 0,
            ack_due_ns: 0,
            hole_due_ns: 0,
            pulling: false,
            pulls_in_vain: 0,
        }
    }

    /// A DELIVER on the present connection.
    pub fn delivered(&mut self, sequence: u64) -> Arrival {
        let behind = sequence <= self.stream;
        self.stream = self.stream.max(sequence);
        match (self.applied.insert(sequence), behind) {
            (true, false) => Arrival::New,
            (true, true) => Arrival::NewOutOfOrder,
            (false, false) => Arrival::Again,
            (false, true) if self.pulled.contains(sequence) => Arrival::AgainOutOfOrder,
            (false, true) => Arrival::AgainOnSameConnection,
        }
    }

    /// A sequence that a pull brought. Answers whether it is new.
    pub fn pulled(&mut self, sequence: u64) -> bool {
        let is_new = self.applied.insert(sequence);
        if is_new {
            self.pulled.insert(sequence);
        }
        is_new
    }

    /// A sequence that our own SendReply named. Answers whether it is new.
    pub fn learnt(&mut self, sequence: u64) -> bool {
        self.applied.insert(sequence)
    }

    /// The connection ended; a new one starts a new stream.
    pub fn connection_ended(&mut self) {
        self.stream = 0;
        self.ack_due_ns = 0;
        self.hole_due_ns = 0;
        self.pulling = false;
        self.pulls_in_vain = 0;
    }

    /// Arms the acknowledgement and the look at holes after something arrived.
    pub fn note_arrival(&mut self, now_ns: u64, ack_delay_ns: u64, hole_grace_ns: u64) {
        if self.ack_due_ns == 0 {
            self.ack_due_ns = now_ns + ack_delay_ns;
        }
        self.note_hole(now_ns, hole_grace_ns);
    }

    /// Arms or disarms the look at holes. The grace doubles with every pull in vain.
    pub fn note_hole(&mut self, now_ns: u64, hole_grace_ns: u64) {
        if self.applied.first_hole().is_none() {
            self.hole_due_ns = 0;
            self.pulls_in_vain = 0;
        } else if self.hole_due_ns == 0 {
            self.hole_due_ns = now_ns + (hole_grace_ns << self.pulls_in_vain.min(5));
        }
    }

    /// The sequence to acknowledge, if it says anything new. Everything up to it has arrived.
    pub fn take_ack(&mut self) -> Option<u64> {
        self.ack_due_ns = 0;
        let end = self.applied.contiguous_end()?;
        if end <= self.acked {
            return None;
        }
        self.acked = end;
        Some(end)
    }

    /// The first hole.
    pub fn first_hole(&self) -> Option<(u64, u64)> {
        self.applied.first_hole()
    }

    /// The sequence after which a returning client asks for more.
    pub fn resume_from(&self) -> u64 {
        self.applied.contiguous_end().unwrap_or(0) + 1
    }

    /// The highest sequence known.
    pub fn last(&self) -> u64 {
        self.applied.last().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Arrival, Conversation, SequenceSet};

    #[test]
    fn a_sequence_set_agrees_with_a_plain_set_whatever_the_order() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut set, mut plain) = (SequenceSet::default(), BTreeSet::new());
            for _ in 0..100 {
                let sequence = random.u64(1..60);
                assert_eq!(set.contains(sequence), plain.contains(&sequence), "seed {seed}");
                assert_eq!(set.insert(sequence), plain.insert(sequence), "seed {seed}");
            }
            let first = *plain.first().expect("not empty");
            let end = (first..).take_while(|s| plain.contains(s)).last().expect("first");
            assert_eq!(set.contiguous_end(), Some(end), "seed {seed}");
            assert_eq!(set.last(), plain.last().copied(), "seed {seed}");
            let hole = plain.range(end + 1..).next().map(|next| (end + 1, next - 1));
            assert_eq!(set.first_hole(), hole, "seed {seed}");
        }
    }

    #[test]
    fn order_is_judged_within_one_connection() {
        let mut conversation = Conversation::new(0);
        assert_eq!(conversation.delivered(5), Arrival::New);
        assert_eq!(conversation.delivered(7), Arrival::New);
        assert_eq!(conversation.delivered(6), Arrival::NewOutOfOrder);
        assert_eq!(conversation.delivered(7), Arrival::AgainOnSameConnection);
        conversation.connection_ended();
        assert_eq!(conversation.delivered(6), Arrival::Again);
        assert_eq!(conversation.delivered(7), Arrival::Again);
        assert_eq!(conversation.delivered(8), Arrival::New);
        assert_eq!(conversation.delivered(10), Arrival::New);
        assert!(conversation.pulled(9));
        assert_eq!(conversation.delivered(9), Arrival::AgainOutOfOrder);
    }

    #[test]
    fn an_acknowledgement_stops_before_the_first_hole_and_is_not_repeated() {
        let mut conversation = Conversation::new(0);
        for sequence in [1, 2, 3, 5] {
            conversation.delivered(sequence);
        }
        assert_eq!(conversation.take_ack(), Some(3));
        assert_eq!(conversation.take_ack(), None);
        assert!(conversation.pulled(4));
        assert_eq!(conversation.take_ack(), Some(5));
    }
}
