//! The connection gateway: clients on one side, the logic tier on the other.
//!
//! A tour, from the outside in:
//! - [`config`]: the TOML file, its defaults and checks; [`capacity`]: what they hold here
//! - [`Fleet`]: the logic endpoints and what several gateways need, for `check` and the log
//! - [`Gateway`]: starts everything, and ends it
//! - `shard`: one thread, one driver, one engine, one loop; shares nothing
//! - [`driver`]: what a shard needs of the world of sockets, and what provides it
//! - `link`: the gRPC streams to logic, on threads of their own, behind bounded rings
//! - `admin`: probes, metrics and inspection, on an address and a thread of its own
//! - `status`: what `admin` may know of the others
//!
//! What a connection goes through is decided in `millrace_engine`, how its bytes move in
//! `millrace_uring`; this crate introduces them to each other. The arrows run downward: `Gateway`
//! knows everyone, `admin` knows the shards' mailboxes, shards know their ends of the links, and
//! nobody knows `Gateway`.

mod admin;
pub mod capacity;
pub mod config;
pub mod driver;
mod fleet;
mod gateway;
mod link;
mod shard;
mod status;

pub use config::Config;
pub use fleet::{Fleet, Note};
pub use gateway::{Addresses, Gateway, RunError, StartError};
pub use link::LinkStatusSnapshot;
#[doc(hidden)]
pub use link::measuring as link_measuring;
pub use status::Phase;
