//! The rows of what became of messages after they were stored: erased for everybody, or deleted by
//! one user.

use super::{
    encoding::{DecodeError, Reader, put_number},
    rows::{Row, VERSION},
};

/// A message whose content is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EditRow {
    /// The version of the write that erased it.
    pub version: u64,
    /// It counts as unread no more, but did before.
    pub counted: bool,
}

const COUNTED: u8 = 1;

impl Row for EditRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, if self.counted { COUNTED } else { 0 }];
        put_number(&mut bytes, self.version);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        let flags = reader.byte()?;
        let row = Self { version: reader.number()?, counted: flags & COUNTED != 0 };
        reader.finish()?;
        Ok(row)
    }
}

/// Which message a change was about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceRow {
    pub sequence: u64,
}

impl Row for SequenceRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        put_number(&mut bytes, self.sequence);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        let row = Self { sequence: reader.number()? };
        reader.finish()?;
        Ok(row)
    }
}

/// A row that says by its key alone what there is to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark;

impl Row for Mark {
    fn encode(&self) -> Vec<u8> {
        vec![]
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() { Ok(Self) } else { Err(DecodeError::Long) }
    }
}

/// What a user has deleted in a conversation.
///
/// Invariant: each range begins at 1 or above, ends at or after its beginning, and at least one
/// sequence lies between it and the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeletedRow {
    ranges: Vec<(u64, u64)>,
}

impl DeletedRow {
    /// The ranges, in order.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Whether it was deleted.
    pub fn contains(&self, sequence: u64) -> bool {
        let after = self.ranges.partition_point(|(from, _)| *from <= sequence);
        after > 0 && sequence <= self.ranges[after - 1].1
    }

    /// Adds one sequence; false if it was there.
    pub fn insert(&mut self, sequence: u64) -> bool {
        let after = self.ranges.partition_point(|(from, _)| *from <= sequence);
        let touches_before = after > 0 && self.ranges[after - 1].1.saturating_add(1) >= sequence;
        if touches_before && sequence <= self.ranges[after - 1].1 {
            return false;
        }
        let touches_after =
            after < self.ranges.len() && sequence.saturating_add(1) == self.ranges[after].0;
        match (touches_before, touches_after) {
            (true, true) => {
                self.ranges[after - 1].1 = self.ranges[after].1;
                self.ranges.remove(after);
            }
            (true, false) => self.ranges[after - 1].1 = sequence,
            (false, true) => self.ranges[after].0 = sequence,
            (false, false) => self.ranges.insert(after, (sequence, sequence)),
        }
        true
    }
}

impl Row for DeletedRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 4 * self.ranges.len());
        bytes.push(VERSION);
        put_number(&mut bytes, self.ranges.len() as u64);
        let mut end = 0;
        for (from, to) in &self.ranges {
            put_number(&mut bytes, from - end);
            put_number(&mut bytes, to - from);
            end = *to;
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        let count = reader.number()?;
        let mut ranges = vec![];
        let mut end = 0_u64;
        for _ in 0..count {
            let gap = reader.number()?;
            if gap < if end == 0 { 1 } else { 2 } {
                return Err(DecodeError::Ranges);
            }
            let from = end.checked_add(gap).ok_or(DecodeError::Number)?;
            end = from.checked_add(reader.number()?).ok_or(DecodeError::Number)?;
            ranges.push((from, end));
        }
        reader.finish()?;
        Ok(Self { ranges })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::storage::embedded::rows::tests::survives;

    #[test]
    fn rows_round_trip_and_damage_is_an_error() {
        survives(EditRow { version: 1 << 40, counted: true });
        survives(SequenceRow { sequence: 300 });
        survives(DeletedRow { ranges: vec![(1, 1), (3, 500), (502, 502)] });
        survives(DeletedRow::default());
        assert_eq!(Mark::decode(&Mark.encode()), Ok(Mark));
        assert_eq!(Mark::decode(&[0]), Err(DecodeError::Long));
        let touching = [VERSION, 2, 1, 0, 1, 0];
        assert_eq!(DeletedRow::decode(&touching), Err(DecodeError::Ranges));
    }

    #[test]
    fn deleted_ranges_hold_exactly_what_was_put_in() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let (mut row, mut model) = (DeletedRow::default(), BTreeSet::new());
            for _ in 0..random.usize(..60) {
                let sequence = random.u64(1..40);
                assert_eq!(row.insert(sequence), model.insert(sequence));
            }
            assert!((0..50).all(|sequence| row.contains(sequence) == model.contains(&sequence)));
            assert_eq!(DeletedRow::decode(&row.encode()).as_ref(), Ok(&row));
            assert!(row.ranges.windows(2).all(|two| two[0].1 + 1 < two[1].0));
        }
    }
}
