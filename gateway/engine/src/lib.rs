//! The sans-IO gateway engine: everything a shard of the gateway decides, and nothing it does.
//!
//! [`Engine`] is handed what happened (`accepted`, `received`, `sent`, `closed`, `tick`,
//! `from_logic`) with the time at which it happened, and says what is to be done: effects on
//! sockets ([`Engine::poll_effect`]), bytes to send ([`Engine::take_send`]) and batches for logic
//! ([`Engine::take_link_batch`]). It opens no socket, reads no clock and rolls no dice, so the
//! same code runs over io_uring and under a simulator.
//!
//! The rooms, from the outside in:
//! - [`Settings`], [`Effect`], [`Counters`]: the boundary
//! - [`transport`]: bytes to messages and back, without sessions; usable on its own
//! - `engine/`: what a connection goes through, one file for each part of its life
//! - `connection`, `identity`, `work`, `link`, `room`: what is kept for a connection, who it is, what
//!   it has going on; the streams to logic, a room
//! - `slab`, `arena`, `timer_wheel`: where it is kept
//!
//! Bodies of commands from 0x0100 on are never looked into. Logic decides about every login.

mod arena;
mod connection;
mod counters;
mod durations;
mod effect;
mod engine;
mod identity;
mod link;
mod room;
mod settings;
mod slab;
mod timer_wheel;
pub mod transport;
mod work;

pub use counters::{Counters, Dropped, Traffic};
pub use durations::Durations;
pub use effect::{ConnectionId, Effect, LinkId, Now, TransportKind};
pub use engine::{ConnectionInfo, Engine, LinkInfo, LinkPhase, Memory};
pub use settings::{Drain, GatewayIdentity, Settings, SlowConsumer};
