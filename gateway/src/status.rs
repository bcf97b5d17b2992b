//! What the administrative side reads: the phase, the shards' snapshots, the links' states.
//!
//! Everything here is written by its owner and only read by others; nothing lies on a shard's way.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    capacity::Capacity,
    config::Config,
    driver::Kind,
    link::{LinkStatus, NamesStatus},
    shard::{Mailbox, Published, ShardSnapshot},
};

/// Where a gateway is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It does not listen yet.
    Starting = 0,
    /// It takes connections.
    Serving = 1,
    /// It sends everybody away.
    Draining = 2,
}

/// Shared by the gateway and its administrative side.
#[derive(Debug)]
pub(crate) struct Status {
    pub config: Config,
    /// The name logic knows this gateway by.
    pub gateway_id: String,
    /// Seconds since 1970, for `process_start_time_seconds`.
    pub started_unix_seconds: f64,
    started: Instant,
    phase: AtomicU8,
    /// Of each shard, in order.
    published: Vec<Published>,
    links: Vec<Arc<LinkStatus>>,
    /// The names that some of the links' endpoints are found by.
    pub names: Arc<NamesStatus>,
    mailboxes: OnceLock<Vec<Mailbox>>,
    shards_failed: AtomicUsize,
    driver: OnceLock<(Kind, bool)>,
    /// What the process can hold.
    pub capacity: Capacity,
}

impl Status {
    pub fn new(
        config: Config,
        gateway_id: String,
        links: Vec<Arc<LinkStatus>>,
        names: Arc<NamesStatus>,
        capacity: Capacity,
    ) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            config,
            gateway_id,
            started_unix_seconds: unix.as_secs_f64(),
            started: Instant::now(),
            phase: AtomicU8::new(Phase::Starting as u8),
            published: (0..capacity.shards).map(|_| Published::default()).collect(),
            links,
            names,
            mailboxes: OnceLock::new(),
            shards_failed: AtomicUsize::new(0),
            driver: OnceLock::new(),
            capacity,
        }
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    /// What carries the connections, and whether only for want of io_uring.
    pub fn runs_over(&self, driver: Kind, is_fallback: bool) {
        // Called once, at the start.
        let _again = self.driver.set((driver, is_fallback));
    }

    /// As told by [`Self::runs_over`].
    pub fn driver(&self) -> Option<(Kind, bool)> {
        self.driver.get().copied()
    }

    /// The shards listen: they can be reached from now on.
    pub fn serving(&self, mailboxes: Vec<Mailbox>) {
        let first = self.mailboxes.set(mailboxes);
        debug_assert!(first.is_ok(), "a gateway starts once");
        self.phase.store(Phase::Serving as u8, Ordering::Release);
    }

    pub fn draining(&self) {
        self.links.iter().for_each(|link| link.drains());
        self.phase.store(Phase::Draining as u8, Ordering::Release);
    }

    pub fn shard_failed(&self) {
        self.shards_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn published(&self, shard: usize) -> Published {
        self.published[shard].clone()
    }

    pub fn snapshots(&self) -> Vec<ShardSnapshot> {
        self.published.iter().map(Published::read).collect()
    }

    pub fn links(&self) -> &[Arc<LinkStatus>] {
        &self.links
    }

    pub fn mailboxes(&self) -> &[Mailbox] {
        self.mailboxes.get().map_or(&[], Vec::as_slice)
    }

    pub fn uptime_seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Why no traffic should be sent here; empty when it should.
    pub fn unready_reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        match self.phase() {
            Phase::Starting => reasons.push("starting".to_owned()),
            Phase::Serving => {}
            Phase::Draining => reasons.push("draining".to_owned()),
        }
        let failed = self.shards_failed.load(Ordering::Relaxed);
        if failed > 0 {
            reasons.push(format!("{failed} shards failed"));
        }
        if self.config.logic.required_for_ready {
            for shard in 0..self.published.len() {
                let mut links = self.links.iter().filter(|link| usize::from(link.shard) == shard);
                if !links.any(|link| link.is_up()) {
                    reasons.push(format!("no logic for shard {shard}"));
                }
            }
        }
        reasons
    }
}
