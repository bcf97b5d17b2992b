//! What logic nodes tell each other at once: that a message was stored for users who are at home
//! there, that a group has changed, that somebody types. Lossy and fast, beside the
//! [bus](crate::bus), which is durable and for services.
//!
//! # What is promised
//! - An event goes to whoever listens to its subject at that moment, on every node but the teller's own,
//!   which knows it already. It is kept nowhere. What is for one node alone goes to the subject that
//!   this node listens to ([`Events::tell_node`]).
//! - Telling never waits. What cannot be taken is dropped.
//! - The events of one teller on one subject are heard in the order told, none twice.
//! - **Losing is never silent.** A listener that may have missed an event hears [`Heard::Missed`] with the
//!   name of the teller: before the next event of that teller, or at the latest a pulse (`pulse_ms`) after
//!   it is connected again. So it is when its own queue overflowed, or the teller's, when the network
//!   was away, and when a teller spoke before it listened. A teller that falls silent for
//!   `silence_ms` without having [closed](Events::close) may have died with events untold: `Missed`, too.
//!   What was derived from events, a cache say, is then dropped or read again. `Missed` may come
//!   without need; an event is never missed without it.
//!
//! So nothing may *depend* on an event: what must not be lost is in the store or on the bus, and an event
//! only says where to look sooner.
//!
//! - [`Events`], [`Listener`]: the traits
//! - [`MemoryEvents`]: nodes of one process
//! - `NatsEvents` (feature `nats`): a fleet, on core NATS (no JetStream)

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

#[cfg(test)]
mod conformance;
#[cfg(feature = "nats")]
mod frame;
mod memory;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "nats")]
mod tellers;
#[cfg(feature = "nats")]
mod telling;

pub use memory::MemoryEvents;
#[cfg(feature = "nats")]
pub use nats::{NatsEvents, NatsEventsSettings};

use crate::bus::{BusError, NAME_BYTES_MAX, check_name};

/// Longest name of a node, in bytes: with what stands before it, it must be a subject.
pub const NODE_BYTES_MAX: usize = NAME_BYTES_MAX - NODE_SUBJECT.len();

/// What the subject of one node's events begins with.
const NODE_SUBJECT: &str = "node.";

/// Something that a node told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which node.
    pub node: Arc<str>,
    /// What; opaque here.
    pub payload: Bytes,
}

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// An event.
    Event(Event),
    /// There may have been events that will not come: of this node, or of any.
    Missed(Option<Arc<str>>),
}

/// What happened since the start, for metrics. Listeners count what they have heard on every subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventsCounts {
    /// Events that were taken to be told.
    pub told: u64,
    /// Events that were dropped because too many waited to be told.
    pub dropped: u64,
    /// Events that were heard.
    pub heard: u64,
    /// Times that a listener was told that it may have missed some.
    pub missed: u64,
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventsError {
    /// The subject is empty, too long, or has other characters than letters, digits, `.`, `_`, `-`.
    #[error("{0:?} is no subject of events: 1 to 128 of A-Z a-z 0-9 . _ - are")]
    BadSubject(String),
    /// The node has told on as many subjects as it may.
    #[error("this node tells on {0} subjects already, and may not on one more")]
    TooManySubjects(usize),
    /// Dropped: too much waits to be told. Listeners will know.
    #[error("too many events wait to be told; this one was dropped")]
    Full,
    /// The event is larger than what is carried.
    #[error("an event of {0} bytes is too large")]
    TooLarge(usize),
    /// It has ended.
    #[error("the events have ended")]
    Closed,
}

/// Events among the nodes of a fleet, as one node sees them.
#[async_trait]
pub trait Events: Send + Sync + 'static {
    /// This node's name, which its events carry.
    fn node(&self) -> &str;

    /// Tells whoever listens. Does not wait.
    ///
    /// # Errors
    /// [`EventsError`]; nobody hears it then. Ok is no promise that anybody does.
    fn tell(&self, subject: &str, payload: Bytes) -> Result<(), EventsError>;

    /// Tells one node, which hears it where it [listens to its own](Events::listen_own).
    ///
    /// # Errors
    /// As [`tell`](Events::tell).
    fn tell_node(&self, node: &str, payload: Bytes) -> Result<(), EventsError> {
        self.tell(&node_subject(node), payload)
    }

    /// Listens to a subject from now on: what is told after this has returned is heard, or missed
    /// with notice.
    ///
    /// # Errors
    /// [`EventsError::BadSubject`], or `Closed`.
    async fn listen(&self, subject: &str) -> Result<Box<dyn Listener>, EventsError>;

    /// Listens to what is told this node alone.
    ///
    /// # Errors
    /// As [`listen`](Events::listen).
    async fn listen_own(&self) -> Result<Box<dyn Listener>, EventsError> {
        self.listen(&node_subject(self.node())).await
    }

    /// What happened since the start.
    fn counts(&self) -> EventsCounts;

    /// Tells what waits, and that nothing follows, so that the silence after it alarms nobody. Whatever
    /// is told later is refused. Waits a bounded time for the server.
    async fn close(&self);
}

/// An ear for one subject. Dropping it ends it.
#[async_trait]
pub trait Listener: Send {
    /// Waits for what comes next. May be cancelled without losing any. `None`: the events have ended.
    async fn next(&mut self) -> Option<Heard>;
}

/// Checks the name of a node.
///
/// # Errors
/// [`BusError::BadName`].
pub fn check_node(node: &str) -> Result<(), BusError> {
    check_name(node)?;
    match node.len() > NODE_BYTES_MAX {
        true => Err(BusError::BadName(node.to_owned())),
        false => Ok(()),
    }
}

fn node_subject(node: &str) -> String {
    format!("{NODE_SUBJECT}{node}")
}

fn check_subject(subject: &str) -> Result<(), EventsError> {
    check_name(subject).map_err(|_| {
        let shown = subject.chars().take(NAME_BYTES_MAX).collect();
        EventsError::BadSubject(shown)
    })
}
