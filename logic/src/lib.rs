//! The reference instant-messaging logic.

pub mod storage;
