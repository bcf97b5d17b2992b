//! Keys and rows of notices, byte by byte.
//!
//! | table | key | row |
//! |---|---|---|
//! | notices | notice | [`NoticeRow`] |
//! | states | length of the notice's id, notice, user | [`StateRow`] |
//! | pending | length of the user's id, user, number (big-endian) | [`PendingRow`] |
//! | ends | time (big-endian), notice | nothing: then the notice can be forgotten |
//! | counters | "number" | the number of the newest pending row |
//! | counters | "kept" | how many notices are kept, where several processes write |

use millrace_protocol::chat;

use super::{State, Summary};
use crate::storage::{
    StoreError,
    embedded::encoding::{DecodeError, Reader, put_number, put_text},
};

/// Places of the tables in the list they are opened with.
pub const NOTICES: usize = 0;
pub const STATES: usize = 1;
pub const PENDING: usize = 2;
pub const ENDS: usize = 3;
pub const COUNTERS: usize = 4;

/// Their names.
pub const TABLES: [&str; 5] = ["notices", "states", "pending", "ends", "counters"];

/// The key of how many notices are kept.
pub const KEPT_KEY: &[u8] = b"kept";

/// The key of the newest pending row's number.
pub const NUMBER_KEY: &[u8] = b"number";

/// First byte of every row.
const VERSION: u8 = 1;

/// Whom a notice is for, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Users = 1,
    Everyone = 2,
    Live = 3,
}

/// A notice.
#[derive(Clone, Debug, PartialEq)]
pub struct NoticeRow {
    pub scope: Scope,
    pub summary: Summary,
    pub body: String,
}

/// A notice with one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRow {
    pub state: State,
    pub at_ms: i64,
    /// Of its pending row; 0 when it has none.
    pub number: u64,
}

/// What a user has not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRow {
    pub notice_id: String,
    pub expires_at_ms: i64,
    pub collapse_key: String,
}

fn corrupt(error: DecodeError) -> StoreError {
    StoreError::Corrupt(format!("a row of the notices: {error}"))
}

impl NoticeRow {
    pub fn encode(&self) -> Vec<u8> {
        let mut row = vec![VERSION, self.scope as u8];
        let Summary { kind, sent_at_ms, expires_at_ms, targets, counts } = &self.summary;
        for number in [u64::from(*kind), *sent_at_ms as u64, *expires_at_ms as u64, *targets] {
            put_number(&mut row, number);
        }
        for count in counts {
            put_number(&mut row, *count);
        }
        put_text(&mut row, &self.body);
        row
    }

    pub fn decode(row: &[u8]) -> Result<Self, StoreError> {
        let read = || {
            let mut reader = Reader::of_version(row, VERSION)?;
            let scope = match reader.byte()? {
                1 => Scope::Users,
                2 => Scope::Everyone,
                3 => Scope::Live,
                _ => return Err(DecodeError::Number),
            };
            let mut summary = Summary {
                kind: reader.number_u32()?,
                sent_at_ms: reader.number()? as i64,
                expires_at_ms: reader.number()? as i64,
                targets: reader.number()?,
                counts: [0; 4],
            };
            for count in &mut summary.counts {
                *count = reader.number()?;
            }
            let body = reader.text()?.to_owned();
            reader.finish()?;
            Ok(Self { scope, summary, body })
        };
        read().map_err(corrupt)
    }

    /// As clients get it.
    pub fn notice(&self, notice_id: &str) -> chat::Notice {
        chat::Notice {
            notice_id: notice_id.to_owned(),
            r#type: self.summary.kind,
            body: self.body.clone(),
            sent_at_ms: self.summary.sent_at_ms,
        }
    }

    /// One user more in `to`, one fewer in `from`.
    pub fn move_one(&mut self, from: Option<State>, to: State) {
        if let Some(from) = from {
            let count = &mut self.summary.counts[from as usize - 1];
            *count = count.saturating_sub(1);
        }
        self.summary.counts[to as usize - 1] += 1;
    }
}

impl StateRow {
    pub fn encode(self) -> Vec<u8> {
        let mut row = vec![VERSION, self.state as u8];
        put_number(&mut row, self.at_ms as u64);
        put_number(&mut row, self.number);
        row
    }

    pub fn decode(row: &[u8]) -> Result<Self, StoreError> {
        let read = || {
            let mut reader = Reader::of_version(row, VERSION)?;
            let state = match reader.byte()? {
                1 => State::Stored,
                2 => State::Delivered,
                3 => State::Acked,
                4 => State::Dropped,
                _ => return Err(DecodeError::Number),
            };
            let row = Self { state, at_ms: reader.number()? as i64, number: reader.number()? };
            reader.finish()?;
            Ok(row)
        };
        read().map_err(corrupt)
    }
}

impl PendingRow {
    pub fn encode(&self) -> Vec<u8> {
        let mut row = vec![VERSION];
        put_number(&mut row, self.expires_at_ms as u64);
        put_text(&mut row, &self.notice_id);
        put_text(&mut row, &self.collapse_key);
        row
    }

    pub fn decode(row: &[u8]) -> Result<Self, StoreError> {
        let read = || {
            let mut reader = Reader::of_version(row, VERSION)?;
            let row = Self {
                expires_at_ms: reader.number()? as i64,
                notice_id: reader.text()?.to_owned(),
                collapse_key: reader.text()?.to_owned(),
            };
            reader.finish()?;
            Ok(row)
        };
        read().map_err(corrupt)
    }
}

/// A number alone.
pub fn number_row(number: u64) -> Vec<u8> {
    let mut row = vec![VERSION];
    put_number(&mut row, number);
    row
}

/// Reads it.
pub fn number(row: &[u8]) -> Result<u64, StoreError> {
    let read = || {
        let mut reader = Reader::of_version(row, VERSION)?;
        let number = reader.number()?;
        reader.finish()?;
        Ok(number)
    };
    read().map_err(corrupt)
}

/// What the keys of a notice's states, or of a user's pending rows, begin with.
pub fn prefix(id: &str) -> Vec<u8> {
    debug_assert!(id.len() <= 255, "ids are checked before keys are made");
    let mut key = Vec::with_capacity(id.len() + 9);
    key.push(id.len() as u8);
    key.extend_from_slice(id.as_bytes());
    key
}

pub fn state_key(notice_id: &str, user_id: &str) -> Vec<u8> {
    let mut key = prefix(notice_id);
    key.extend_from_slice(user_id.as_bytes());
    key
}

pub fn pending_key(user_id: &str, number: u64) -> Vec<u8> {
    let mut key = prefix(user_id);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

pub fn end_key(at_ms: i64, notice_id: &str) -> Vec<u8> {
    let mut key = (at_ms.max(0) as u64).to_be_bytes().to_vec();
    key.extend_from_slice(notice_id.as_bytes());
    key
}

/// The text after the first `bytes` of a key.
pub fn text_after(key: &[u8], bytes: usize) -> Result<&str, StoreError> {
    let rest = key.get(bytes..).and_then(|rest| std::str::from_utf8(rest).ok());
    rest.ok_or_else(|| corrupt(DecodeError::Text))
}
