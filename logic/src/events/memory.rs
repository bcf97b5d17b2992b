//! Events among the nodes of one process: a channel of bounded length for each subject.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{Event, Events, EventsCounts, EventsError, Heard, Listener, check_subject};

/// Events of one subject that a listener may be behind; above, it misses the oldest.
pub const EVENTS_QUEUED_MAX: usize = 4_096;

/// Subjects there may be.
pub const SUBJECTS_MAX: usize = 256;

/// See the module. [`MemoryEvents::join`] adds a node.
#[derive(Clone)]
pub struct MemoryEvents {
    node: Arc<str>,
    subjects: Arc<Mutex<HashMap<String, broadcast::Sender<Event>>>>,
    own: Arc<Own>,
}

/// Of one node.
#[derive(Default)]
struct Own {
    closed: AtomicBool,
    told: AtomicU64,
    heard: AtomicU64,
    missed: AtomicU64,
}

impl MemoryEvents {
    /// A fleet with one node.
    pub fn new(node: &str) -> Self {
        Self { node: node.into(), subjects: Arc::default(), own: Arc::default() }
    }

    /// Another node of the same fleet.
    pub fn join(&self, node: &str) -> Self {
        Self { node: node.into(), subjects: self.subjects.clone(), own: Arc::default() }
    }

    fn channel(&self, subject: &str) -> Result<broadcast::Sender<Event>, EventsError> {
        check_subject(subject)?;
        // Whole after every statement, so a panic elsewhere spoils nothing.
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = subjects.get(subject) {
            return Ok(channel.clone());
        }
        if subjects.len() >= SUBJECTS_MAX {
            return Err(EventsError::TooManySubjects(SUBJECTS_MAX));
        }
        let (channel, _) = broadcast::channel(EVENTS_QUEUED_MAX);
        subjects.insert(subject.to_owned(), channel.clone());
        Ok(channel)
    }
}

#[async_trait]
impl Events for MemoryEvents {
    fn node(&self) -> &str {
        &self.node
    }

    fn tell(&self, subject: &str, payload: Bytes) -> Result<(), EventsError> {
        let channel = self.channel(subject)?;
        if self.own.closed.load(Ordering::Relaxed) {
            return Err(EventsError::Closed);
        }
        self.own.told.fetch_add(1, Ordering::Relaxed);
        // Nobody listening is no failure.
        let _listeners = channel.send(Event { node: self.node.clone(), payload });
        Ok(())
    }

    async fn listen(&self, subject: &str) -> Result<Box<dyn Listener>, EventsError> {
        let events = self.channel(subject)?.subscribe();
        let (node, own) = (self.node.clone(), self.own.clone());
        Ok(Box::new(MemoryListener { node, events, own }))
    }

    fn counts(&self) -> EventsCounts {
        EventsCounts {
            told: self.own.told.load(Ordering::Relaxed),
            dropped: 0,
            heard: self.own.heard.load(Ordering::Relaxed),
            missed: self.own.missed.load(Ordering::Relaxed),
        }
    }

    async fn close(&self) {
        self.own.closed.store(true, Ordering::Relaxed);
    }
}

struct MemoryListener {
    /// Whose own events are passed over: this very node's, and not those of one of the same name.
    node: Arc<str>,
    events: broadcast::Receiver<Event>,
    own: Arc<Own>,
}

#[async_trait]
impl Listener for MemoryListener {
    async fn next(&mut self) -> Option<Heard> {
        loop {
            match self.events.recv().await {
                Ok(event) if Arc::ptr_eq(&event.node, &self.node) => {}
                Ok(event) => {
                    self.own.heard.fetch_add(1, Ordering::Relaxed);
                    return Some(Heard::Event(event));
                }
                Err(RecvError::Lagged(_)) => {
                    self.own.missed.fetch_add(1, Ordering::Relaxed);
                    return Some(Heard::Missed(None));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_keeps_the_contract_of_events() {
        let fleet = || async {
            let one = MemoryEvents::new("one");
            let other = one.join("other");
            (one, other)
        };
        super::super::conformance::run(fleet).await;
    }

    #[tokio::test]
    async fn a_listener_that_is_too_far_behind_is_told_that_it_missed_and_hears_the_newest() {
        let events = MemoryEvents::new("one");
        let mut listener = events.join("other").listen("s").await.expect("listens");
        for number in 0..EVENTS_QUEUED_MAX + 10 {
            events.tell("s", Bytes::from(number.to_string())).expect("told");
        }
        assert_eq!(listener.next().await, Some(Heard::Missed(None)));
        let Some(Heard::Event(oldest)) = listener.next().await else { panic!("an event") };
        assert_eq!(oldest.payload, "10");
    }
}
