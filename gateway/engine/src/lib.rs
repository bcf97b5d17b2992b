//! The sans-IO gateway engine.
