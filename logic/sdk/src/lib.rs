//! Serve the link contract (`millrace.link.v1`) in Rust: what a backend team needs to put its own
//! logic behind the gateway.
//!
//! - [`Backend`] is what one implements: logins, frames, the start and end of sessions.
//! - [`Gateways`] is the way out: frames to sessions and live rooms, and the end of sessions.
//! - [`Server`] listens and brings the two together; [`ServerSettings`] holds every bound.
//!
//! What it takes care of: streams and their numbering, credits in both directions, batches that
//! grow with load, bounded outboxes, leases, the fencing of a gateway's earlier lives, and that the
//! end of each session is told exactly once. What it does not: store anything, know what a command
//! means, or send again what was lost with a stream. After a break the backend is told which
//! sessions live on and sends what they have not acknowledged.
//!
//! Several logic processes: each session is at home with one of them, and the gateways move sessions
//! from one to another. [`Server::hand_over`] asks them to, before a process leaves.
//!
//! Live rooms: membership is kept here and at the gateways. After a break the two are compared;
//! after a restart of this process it is taken over from the gateways, so members hear on.

mod backend;
mod counters;
mod encode;
mod gateways;
mod hub;
mod outbox;
mod reader;
mod rooms;
mod server;
mod session;
mod settings;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;

pub use backend::{Accepted, Backend, Ended, Inbound, Login, Refused};
pub use counters::CountersSnapshot;
pub use gateways::{Batch, GatewayStatus, Gateways};
pub use server::{HandedOver, Server, ServerError};
pub use session::{Encoding, GatewayKey, Session, SessionAddress, Transport};
pub use settings::ServerSettings;
