//! Measurements that decide: each program or bench answers one question of the design, and its
//! figures stand in `docs/measurements/` with the command that made them.
//!
//! - `cargo run --release -p millrace-bench --bin embedded_store`: which embedded engine holds the
//!   messages
