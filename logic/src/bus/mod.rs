//! Topics between the chat logic and business services.
//!
//! A topic is an ordered log. A group reads it from its oldest record on, remembers how far it has
//! acknowledged, and is given again what it has not: at least once, in order. A group has one
//! subscription at a time, because two could not keep the order; a newer one takes over.

use async_trait::async_trait;
use bytes::Bytes;

#[cfg(test)]
mod conformance;
mod memory;

pub use memory::{MemoryBus, MemoryBusSettings};

/// Longest name of a topic or a group, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// A record of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the topic: 1 for the first, without gaps.
    pub offset: u64,
    /// What it belongs to: records of one key are read in the order they were published.
    pub key: String,
    /// Opaque to the bus.
    pub payload: Bytes,
}

/// Why a bus did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The name is empty, too long, or has other characters than letters, digits, `.`, `_`, `-`.
    #[error("{0:?} is no name for a topic or group: 1 to 128 of A-Z a-z 0-9 . _ - are")]
    BadName(String),
    /// A bound is reached, because a group does not keep up; try again later.
    #[error("the bus is full: {0}")]
    Full(String),
    /// A newer subscription of the group has taken over.
    #[error("a newer subscription of this group has taken over")]
    Superseded,
    /// The bus cannot be reached; whether the record was taken is unknown.
    #[error("the bus cannot be reached: {0}")]
    Unavailable(String),
}

/// Topics, published to and read by groups.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Appends a record and returns its offset.
    ///
    /// # Errors
    /// [`BusError`]; the record was not taken, except that after `Unavailable` it may have been.
    async fn publish(&self, topic: &str, key: &str, payload: Bytes) -> Result<u64, BusError>;

    /// Reads a topic as a group, from the first record it has not acknowledged. A group that was
    /// never seen begins at the oldest record that is kept. The subscription of the group before
    /// this one ends with [`BusError::Superseded`].
    ///
    /// # Errors
    /// [`BusError`].
    async fn subscribe(&self, topic: &str, group: &str) -> Result<Box<dyn Subscription>, BusError>;
}

/// A group's place in a topic. Dropping it gives back what was not acknowledged.
#[async_trait]
pub trait Subscription: Send {
    /// Waits for the next record. May be cancelled without losing one.
    ///
    /// # Errors
    /// `Superseded` or `Unavailable`.
    async fn next(&mut self) -> Result<Record, BusError>;

    /// The group is done with every record up to and including `offset`. An offset below an earlier
    /// one changes nothing; one that was not read yet counts as the last that was.
    ///
    /// # Errors
    /// `Superseded` or `Unavailable`.
    async fn acknowledge(&mut self, offset: u64) -> Result<(), BusError>;
}

/// Checks the name of a topic or a group.
///
/// # Errors
/// [`BusError::BadName`].
pub fn check_name(name: &str) -> Result<(), BusError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
        let shown = name.chars().take(NAME_BYTES_MAX).collect();
        return Err(BusError::BadName(shown));
    }
    Ok(())
}
