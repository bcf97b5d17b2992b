//! What the rest of the process may know of a shard: a copy, renewed at most every 100 ms.
//!
//! The shard only ever tries the lock. If a reader holds it, the copy is made a loop later; so
//! nobody who looks at metrics can hold a shard up.

use std::sync::{Arc, Mutex, PoisonError};

use millrace_engine::{Counters, Engine, LinkInfo, Memory};

use crate::driver::{Driver, Statistics};

/// How old a snapshot may become while things happen.
const PUBLISH_INTERVAL_MS: u64 = 100;

/// A shard at one moment.
#[derive(Clone, Debug, Default)]
pub struct ShardSnapshot {
    /// What the engine counted.
    pub counters: Counters,
    /// What the engine holds.
    pub memory: Memory,
    /// The links that are up.
    pub links: Vec<LinkInfo>,
    /// What the driver counted.
    pub driver: Statistics,
    /// Sockets of the driver.
    pub sockets: usize,
    /// Turns of the loop.
    pub loops: u64,
    /// The thread's CPU accounting in `/proc`; empty where that cannot be found.
    pub thread_path: String,
}

/// The place where a shard's snapshot lies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published(Arc<Mutex<ShardSnapshot>>);

impl Published {
    /// The newest copy.
    pub fn read(&self) -> ShardSnapshot {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The shard's side: when to copy.
pub(super) struct Publisher {
    place: Published,
    due_ms: u64,
    is_dirty: bool,
    loops: u64,
}

impl Publisher {
    pub fn new(place: Published) -> Self {
        if let Ok(mut snapshot) = place.0.lock() {
            let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
            snapshot.thread_path = format!("/proc/{}", thread.display());
        }
        Self { place, due_ms: 0, is_dirty: true, loops: 0 }
    }

    /// Copies, if it is time.
    pub fn publish(&mut self, now_ms: u64, engine: &Engine, driver: &impl Driver) {
        self.loops += 1;
        if now_ms < self.due_ms {
            self.is_dirty = true;
        } else {
            self.publish_now(now_ms, engine, driver);
        }
    }

    /// Copies, unless somebody is reading.
    pub fn publish_now(&mut self, now_ms: u64, engine: &Engine, driver: &impl Driver) {
        let Ok(mut snapshot) = self.place.0.try_lock() else {
            self.is_dirty = true;
            return;
        };
        snapshot.counters.clone_from(engine.counters());
        snapshot.memory = engine.memory();
        snapshot.links.clear();
        snapshot.links.extend(engine.links());
        snapshot.driver = driver.statistics();
        snapshot.sockets = driver.sockets();
        snapshot.loops = self.loops;
        self.is_dirty = false;
        self.due_ms = now_ms + PUBLISH_INTERVAL_MS;
    }

    /// When the loop should turn again for a copy's sake.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.is_dirty.then_some(self.due_ms)
    }
}
