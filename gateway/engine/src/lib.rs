//! The sans-IO gateway engine.

pub mod transport;
