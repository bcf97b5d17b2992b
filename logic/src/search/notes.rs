//! The notes that an index is told by: a queue that is bounded in notes and in bytes, and remembers
//! what it had no room for.
//!
//! Who puts a note never waits and seldom wakes anybody: only a reader that sleeps is woken.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use millrace_protocol::chat;

use super::searched_text;

/// What an index keeps of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the message is.
    pub conversation_id: String,
    /// Which one it is there.
    pub sequence: u64,
    /// Who sent it.
    pub sender_id: String,
    /// `Message.type`.
    pub kind: u32,
    /// In milliseconds since 1970.
    pub sent_at_ms: i64,
    /// What is searched of it.
    pub text: String,
}

impl Entry {
    /// What an index keeps of this message.
    pub fn of(message: &chat::Message) -> Self {
        Self {
            conversation_id: message.conversation_id.clone(),
            sequence: message.sequence,
            sender_id: message.sender_id.clone(),
            kind: message.r#type,
            sent_at_ms: message.sent_at_ms,
            text: searched_text(message),
        }
    }
}

/// What happened to a message, with the version of the write that did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It was stored.
    Stored(Entry, u64),
    /// Its content was erased: conversation, sequence.
    Erased(String, u64, u64),
}

impl Note {
    fn version(&self) -> u64 {
        match self {
            Self::Stored(_, version) | Self::Erased(_, _, version) => *version,
        }
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Stored(entry, _) => {
                    entry.conversation_id.len() + entry.sender_id.len() + entry.text.len()
                }
                Self::Erased(conversation_id, ..) => conversation_id.len(),
            }
    }
}

#[derive(Default)]
struct State {
    notes: VecDeque<Note>,
    bytes: usize,
    /// Since when the oldest of the notes waits.
    waiting_since: Option<Instant>,
    /// The lowest version of what was dropped.
    dropped: Option<u64>,
    dropped_count: u64,
    is_reader_asleep: bool,
    is_woken: bool,
    is_stopped: bool,
}

/// See the module.
pub struct Notes {
    state: Mutex<State>,
    arrived: Condvar,
    count_max: usize,
    bytes_max: usize,
}

/// Of [`Notes::take`].
#[derive(Debug, Default)]
pub struct Taken {
    /// In the order in which they were put.
    pub notes: Vec<Note>,
    /// Since when the oldest of them waited.
    pub waiting_since: Option<Instant>,
}

/// How the queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotesStatus {
    /// Notes that wait.
    pub waiting: usize,
    /// Since when the oldest of them waits.
    pub waiting_since: Option<Instant>,
    /// Notes that found no room, ever.
    pub dropped: u64,
}

impl Notes {
    /// An empty queue with these bounds.
    pub fn new(count_max: usize, bytes_max: usize) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), count_max, bytes_max }
    }

    /// Puts a note, or remembers from which version on something is missing.
    pub fn put(&self, note: Note) {
        let bytes = note.bytes();
        let mut state = self.state();
        if state.notes.len() >= self.count_max || state.bytes + bytes > self.bytes_max {
            let version = note.version();
            state.dropped = Some(state.dropped.map_or(version, |lowest| lowest.min(version)));
            state.dropped_count += 1;
        } else {
            if state.notes.is_empty() {
                state.waiting_since = Some(Instant::now());
            }
            state.bytes += bytes;
            state.notes.push_back(note);
        }
        self.wake_reader(&mut state);
    }

    /// Takes the oldest notes; when there are none waits for one, for [`Notes::wake`], for the end,
    /// or until something was dropped, at most for `patience` (`None`: as long as it takes).
    pub fn take(&self, count_max: usize, patience: Option<Duration>) -> Taken {
        let mut state = self.state();
        let until = patience.map(|patience| Instant::now() + patience);
        while state.notes.is_empty()
            && state.dropped.is_none()
            && !state.is_woken
            && !state.is_stopped
        {
            state.is_reader_asleep = true;
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                Some(rest) => {
                    let waited = self.arrived.wait_timeout(state, rest);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.is_reader_asleep = false;
        state.is_woken = false;
        let count = count_max.min(state.notes.len());
        let notes: Vec<Note> = state.notes.drain(..count).collect();
        state.bytes -= notes.iter().map(Note::bytes).sum::<usize>();
        let waiting_since = state.waiting_since;
        if state.notes.is_empty() {
            state.waiting_since = None;
        }
        Taken { notes, waiting_since: waiting_since.filter(|_| count > 0) }
    }

    /// The lowest version of what was dropped since the last [`Notes::forgive`].
    pub fn dropped(&self) -> Option<u64> {
        self.state().dropped
    }

    /// Forgets what waits and what was dropped, because all of it is read from the store now.
    pub fn forgive(&self) -> Option<u64> {
        let mut state = self.state();
        state.notes.clear();
        state.bytes = 0;
        state.waiting_since = None;
        state.dropped.take()
    }

    /// Ends the wait of [`Notes::take`], the next one if there is none now.
    pub fn wake(&self) {
        let mut state = self.state();
        state.is_woken = true;
        self.wake_reader(&mut state);
    }

    /// Ends every wait, now and later.
    pub fn stop(&self) {
        let mut state = self.state();
        state.is_stopped = true;
        self.wake_reader(&mut state);
    }

    /// Whether [`Notes::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.state().is_stopped
    }

    /// How the queue is.
    pub fn status(&self) -> NotesStatus {
        let state = self.state();
        NotesStatus {
            waiting: state.notes.len(),
            waiting_since: state.waiting_since,
            dropped: state.dropped_count,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_reader(&self, state: &mut State) {
        if std::mem::take(&mut state.is_reader_asleep) {
            self.arrived.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(version: u64, text: &str) -> Note {
        let entry = Entry {
            conversation_id: "g:a".into(),
            sequence: version,
            sender_id: "ann".into(),
            kind: 1,
            sent_at_ms: 0,
            text: text.into(),
        };
        Note::Stored(entry, version)
    }

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn notes_come_out_in_order_and_what_finds_no_room_is_remembered() {
        let notes = Notes::new(2, 1 << 20);
        assert!(notes.take(9, NOW).notes.is_empty());
        for version in 1..=4 {
            notes.put(note(version, "x"));
        }
        let status = notes.status();
        assert_eq!((status.waiting, status.dropped), (2, 2));
        assert_eq!(notes.dropped(), Some(3));
        let taken = notes.take(1, NOW);
        assert_eq!(taken.notes, [note(1, "x")]);
        assert!(taken.waiting_since.is_some());
        assert_eq!(notes.take(9, NOW).notes, [note(2, "x")]);
        notes.put(note(5, "x"));
        assert_eq!((notes.forgive(), notes.dropped()), (Some(3), None));
        assert!(notes.take(9, NOW).notes.is_empty(), "what waits is read from the store as well");
        assert_eq!(notes.status().waiting_since, None);
    }

    #[test]
    fn long_texts_are_bounded_in_bytes_too_and_room_comes_back() {
        let notes = Notes::new(100, 10_000);
        for round in 0..3 {
            notes.put(note(1, &"x".repeat(6_000)));
            notes.put(note(2, &"x".repeat(6_000)));
            assert_eq!(notes.take(9, NOW).notes.len(), 1);
            assert_eq!(notes.forgive(), Some(2), "round {round}");
        }
    }

    #[test]
    fn a_sleeping_reader_is_woken_by_a_note_and_by_the_end() {
        let notes = std::sync::Arc::new(Notes::new(10, 1 << 20));
        let reader = {
            let notes = notes.clone();
            std::thread::spawn(move || {
                let mut count = 0;
                while !notes.is_stopped() {
                    count += notes.take(9, None).notes.len();
                }
                count
            })
        };
        for version in 0..3 {
            notes.put(note(version, "x"));
            while notes.status().waiting > 0 {
                std::thread::yield_now();
            }
        }
        notes.wake();
        notes.stop();
        assert_eq!(reader.join().expect("no panic"), 3);
    }
}
