//! The connection gateway.
