//! What the tests share whose gateway is a process of its own: that process, a logic that echoes, many
//! clients, and how long anything may take.
#![allow(dead_code, reason = "each test that has this uses a part of it")]

pub mod clients;
pub mod gateway;
pub mod logic;

use std::time::{Duration, Instant};

/// How long something may take that should happen soon; a machine five times slower still passes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `holds`; fails with `what` if it never does.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
