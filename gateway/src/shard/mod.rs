//! One shard: a thread with a driver, an engine and one loop. Nothing of it is shared.
//!
//! The loop waits in the driver, lets the engine deal with what came, hands batches between the
//! engine and the links, and performs the engine's effects. Whoever wants something from a shard
//! puts a command into its [`mailbox`]; what others may know of it lies in its [`snapshot`].

mod clock;
mod events;
mod mailbox;
mod run;
#[cfg(test)]
mod simulation;
mod snapshot;

pub use snapshot::ShardSnapshot;

pub(crate) use mailbox::{Command, Mailbox, NotSent};
pub(crate) use run::{Listening, Run, ShardError, ShardPlan, over};
pub(crate) use snapshot::Published;
