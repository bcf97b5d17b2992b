//! Servers of others, as Debian packages them, started for a test on a private port with their data
//! in a temporary folder, and ended with it.

#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;
