//! The link to the logic tier: one gRPC stream for each shard and endpoint, on threads of its own.
//!
//! A shard never waits for the network here, and a link thread never touches a shard's state.
//! Between them are two bounded rings of whole batches ([`port`]), each with a wake-up that cannot
//! be lost. [`client`] keeps the stream alive, [`outbound`] is the half that gRPC reads from.
//!
//! What a batch means is the engine's business; nothing here looks into one, besides asking whether
//! logic's first event is HelloReply.

mod client;
pub mod measuring;
mod outbound;
mod port;
mod threads;

pub use client::LinkStatusSnapshot;

pub(crate) use client::{LinkSettings, LinkStatus, endpoint};
#[cfg(test)]
pub(crate) use port::OutboundBatches;
pub(crate) use port::{FromLink, LinkPort, Outbound, ShardPort, pair};
pub(crate) use threads::{LinkThreads, LinkWork};
