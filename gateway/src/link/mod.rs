//! The link to the logic tier: one gRPC stream for each shard and endpoint, on threads of its own.
//!
//! A shard never waits for the network here, and a link thread never touches a shard's state.
//! Between them are two bounded rings of whole batches ([`port`]), each with a wake-up that cannot
//! be lost. [`client`] keeps the stream alive, [`outbound`] is the half that gRPC reads from.
//! [`target`] is what a link connects to; [`resolve`] finds the addresses of names, [`places`] keeps them apart.
//!
//! What a batch means is the engine's business; nothing here looks into one, besides asking whether
//! logic's first event is HelloReply.

mod client;
pub mod measuring;
mod outbound;
mod places;
mod port;
mod resolve;
mod target;
mod threads;

pub use client::LinkStatusSnapshot;

pub(crate) use client::{LinkSettings, LinkStatus};
#[cfg(test)]
pub(crate) use port::OutboundBatches;
pub(crate) use port::{FromLink, LinkPort, Outbound, ShardPort, pair};
pub(crate) use resolve::{NamesStatus, PlaceOfShards, Resolver, ask, one_family};
pub(crate) use target::{Endpoints, Target};
pub(crate) use threads::{LinkThreads, LinkWork};
