//! The reference instant-messaging logic: what stands behind the gateways.
//!
//! - [`chat`]: the domain; what the commands mean. It uses the SDK and knows only traits
//! - [`storage`]: the trait `Store`, and the embedded store
//! - [`registry`]: the trait `Registry` (who is online where), and one in memory
//! - [`bus`]: the trait `Bus` (topics for business services), the log on the embedded store, and NATS
//! - [`events`]: the trait `Events`: what logic nodes tell each other at once; lossy, with notice
//! - [`words`]: the list of words that are not let through
//! - [`login`]: whose token it is, and how many sessions a user may have
//! - [`api`]: what business services may ask; [`http`] and [`grpc`] are its doors
//! - [`accounts`]: users with a password
//! - [`attachments`]: files that messages refer to
//! - [`notices`]: the trait `NoticeStore`, and the embedded one
//! - [`rooms`]: rooms that business services have made, and who belongs there
//! - [`audit`]: a line for each administrative act
//! - [`push`]: how devices that are offline are reached: APNs, FCM, a webhook
//! - [`search`]: full-text search
//! - [`config`]: the TOML file
//! - [`Logic`]: all of it, put together as one process
//!
//! The arrows run downward: `chat` knows no implementation, and nothing below knows `chat`.

pub mod accounts;
mod admin;
pub mod api;
pub mod attachments;
pub mod audit;
pub mod bus;
mod cache;
pub mod chat;
pub mod config;
pub mod events;
pub mod grpc;
pub mod http;
pub mod login;
pub mod notices;
mod planted_faults;
mod process;
pub mod push;
pub mod registry;
pub mod rooms;
pub mod search;
pub mod storage;
#[cfg(test)]
mod testing;
mod user_filter;
pub mod words;

pub use config::{Config, DEFAULT_TOML};
pub use process::{Addresses, Logic, ShutdownError, StartError};
