//! Measurements that decide: each program or bench answers one question of the design, and its
//! figures stand in `docs/measurements/` with the command that made them.
//!
//! - `cargo run --release -p millrace-bench --bin embedded_store`: which embedded engine holds the
//!   messages
//!
//! Beside this crate: `hot_paths/`, the gateway's hot paths timed by criterion and counted by
//! Callgrind; `edge/`, servers measured over real sockets and the report; `runtimes/`, the servers
//! of others. `scripts/bench.sh` runs all of it and writes the report.
