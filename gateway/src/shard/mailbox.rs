//! Commands to a shard from other threads: few, bounded, looked at once a loop.

use std::fmt;
use std::sync::{
    Arc,
    mpsc::{SyncSender, TrySendError},
};

use millrace_engine::{ConnectionInfo, Drain};
use tokio::sync::oneshot;

/// Commands that wait for a shard. Above it the sender is told that the shard is busy.
pub(crate) const COMMANDS_MAX: usize = 64;

/// What a shard can be asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// Stop accepting, send everybody away, then leave; at the latest after `deadline_ms`.
    Drain { drain: Drain, deadline_ms: u64 },
    /// Leave at once. Connections are reset by the kernel.
    Stop,
    /// List up to so many connections.
    Connections { connections_max: usize, reply: oneshot::Sender<Vec<ConnectionInfo>> },
}

/// The way into a shard.
#[derive(Clone)]
pub(crate) struct Mailbox {
    commands: SyncSender<Command>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

impl Mailbox {
    /// `wake` ends the wait of the shard that has the other end.
    pub fn new(commands: SyncSender<Command>, wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { commands, wake }
    }

    /// Puts a command in and wakes the shard.
    pub fn send(&self, command: Command) -> Result<(), NotSent> {
        match self.commands.try_send(command) {
            Ok(()) => {
                (self.wake)();
                Ok(())
            }
            Err(TrySendError::Full(command)) => Err(NotSent::Busy(command)),
            Err(TrySendError::Disconnected(_)) => Err(NotSent::Left),
        }
    }
}

/// Why a command did not reach its shard.
#[derive(Debug)]
pub(crate) enum NotSent {
    /// Too many commands wait already; here it is back.
    Busy(Command),
    /// The shard has left.
    Left,
}
