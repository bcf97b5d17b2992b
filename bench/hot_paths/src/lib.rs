//! The gateway's hot paths, each prepared so that it can be run any number of times: for criterion,
//! which measures nanoseconds, and for Callgrind, which counts instructions.
//!
//! Nothing here touches a socket or a clock, and nothing is random: the same run executes the same
//! instructions every time.

mod engine;
mod protocol;

/// One thing to measure.
pub struct HotPath {
    /// What one of it is, for a person.
    pub what: &'static str,
    /// How many of it are in one run.
    pub items: u64,
    run: Box<dyn FnMut(u64)>,
}

impl HotPath {
    fn new(what: &'static str, items: u64, run: impl FnMut(u64) + 'static) -> Self {
        Self { what, items, run: Box::new(run) }
    }

    /// Runs it so many times.
    pub fn run(&mut self, times: u64) {
        (self.run)(times);
    }
}

impl std::fmt::Debug for HotPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HotPath").field("what", &self.what).finish_non_exhaustive()
    }
}

/// How a path is prepared; some take a while.
pub type Prepare = fn() -> HotPath;

/// All of them, by their names in reports and in the baseline.
pub const ALL: &[(&str, Prepare)] = &[
    ("frame_decode", protocol::frame_decode),
    ("frame_encode", protocol::frame_encode),
    ("websocket_unmask", protocol::websocket_unmask),
    ("websocket_parse", protocol::websocket_parse),
    ("websocket_upgrade", protocol::websocket_upgrade),
    ("link_encode", protocol::link_encode),
    ("link_decode", protocol::link_decode),
    ("heartbeat", engine::heartbeat),
    ("frame_in", engine::frame_in),
    ("frame_out", engine::frame_out),
    ("session_lookup", engine::session_lookup),
    ("timer_fires", engine::timer_fires),
    ("fan_out", engine::fan_out),
];

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn every_path_can_be_run_again_and_again() {
        for (name, prepare) in ALL {
            let mut path = prepare();
            assert!(path.items > 0 && !path.what.is_empty(), "{name}");
            path.run(1);
            path.run(3);
        }
    }
}
