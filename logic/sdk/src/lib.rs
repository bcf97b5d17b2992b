//! Serve the link contract in Rust.
