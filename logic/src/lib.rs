//! The reference instant-messaging logic.
