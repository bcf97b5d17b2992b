//! What all threads know of the run's one room: how far its publisher is, and which of its messages
//! nobody may rely on.
//!
//! Room messages are live and not stored, so there is nothing to pull: whether a member got every
//! message is judged as they arrive, by their number. One user publishes, since order is promised
//! for one sender: the first member, who never goes away.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// See the module.
#[derive(Debug, Default)]
pub struct Board {
    written: AtomicU32,
    uncertain: Mutex<BTreeSet<u32>>,
}

impl Board {
    /// The number of the message that is to be written next. The first one is 1.
    pub fn next(&self) -> u32 {
        self.written.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the last message written; a member who hears now that it has joined must get
    /// every later one.
    pub fn written(&self) -> u32 {
        self.written.load(Ordering::Acquire)
    }

    /// A message that was refused, or whose reply never came: members may lack it. There are at
    /// most as many as messages were published.
    pub fn doubt(&self, number: u32) {
        self.uncertain().insert(number);
    }

    /// How many numbers of a range (both ends inclusive) every member must have.
    pub fn certain_in(&self, from: u32, to: u32) -> u32 {
        if from > to {
            return 0;
        }
        to - from + 1 - self.uncertain().range(from..=to).count() as u32
    }

    fn uncertain(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        // A set of numbers is whole whatever a thread was doing to it.
        self.uncertain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member's stay in the room, from the moment it asked to join until its connection ends.
#[derive(Debug, Default)]
pub struct Seat {
    /// The server said that it has joined.
    joined: bool,
    /// The first number that must arrive, once it has joined.
    certain_from: u32,
    /// The last number that arrived; 0: none.
    last: u32,
}

/// How a room message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// As it should.
    InOrder,
    /// After a hole: the numbers from the first to the second are missing.
    AfterHole(u32, u32),
    /// The last one once more.
    Again,
    /// After a higher number.
    Late,
}

impl Seat {
    /// The server says that the member has joined. Answers whether that is news.
    pub fn join(&mut self, board: &Board) -> bool {
        self.certain_from = board.written() + 1;
        !std::mem::replace(&mut self.joined, true)
    }

    /// Whether the server says that the member has joined.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// A message arrived.
    pub fn arrived(&mut self, number: u32) -> Arrival {
        if number <= self.last {
            return if number == self.last { Arrival::Again } else { Arrival::Late };
        }
        let (from, to) = (self.owed_from(), number - 1);
        self.last = number;
        if from <= to { Arrival::AfterHole(from, to) } else { Arrival::InOrder }
    }

    /// The first number that must still arrive. Before the join nothing must.
    fn owed_from(&self) -> u32 {
        if self.joined { self.certain_from.max(self.last + 1) } else { u32::MAX }
    }

    /// The numbers up to `written` that must still arrive, both ends inclusive.
    pub fn owed(&self, written: u32) -> Option<(u32, u32)> {
        let from = self.owed_from();
        (from <= written).then_some((from, written))
    }
}

#[cfg(test)]
mod tests {
    use super::{Arrival, Board, Seat};

    #[test]
    fn a_member_is_owed_what_was_written_after_it_joined_and_nothing_else() {
        let (board, mut seat) = (Board::default(), Seat::default());
        for _ in 1..=5 {
            board.next();
        }
        assert_eq!(seat.owed(board.written()), None, "it has not joined");
        assert_eq!(seat.arrived(4), Arrival::InOrder, "the join may take effect before its reply");
        assert!(seat.join(&board) && !seat.join(&board));
        assert_eq!(seat.owed(board.written()), None);
        assert_eq!((board.next(), board.next(), board.next()), (6, 7, 8));
        assert_eq!(seat.owed(board.written()), Some((6, 8)));
        assert_eq!(seat.arrived(6), Arrival::InOrder);
        assert_eq!(seat.arrived(8), Arrival::AfterHole(7, 7));
        assert_eq!(seat.arrived(7), Arrival::Late);
        assert_eq!(seat.arrived(8), Arrival::Again);
        assert_eq!(seat.owed(board.written()), None);
    }

    #[test]
    fn refused_messages_are_owed_to_nobody() {
        let board = Board::default();
        for _ in 1..=10 {
            board.next();
        }
        board.doubt(3);
        board.doubt(3);
        board.doubt(9);
        assert_eq!(board.certain_in(1, 10), 8);
        assert_eq!(board.certain_in(3, 3), 0);
        assert_eq!(board.certain_in(5, 4), 0);
    }
}
