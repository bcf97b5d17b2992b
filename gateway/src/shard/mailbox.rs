//! Commands to a shard from other threads: few, bounded, looked at once a loop.

use std::sync::mpsc::{SyncSender, TrySendError};

use millrace_engine::{ConnectionInfo, Drain};
use millrace_uring::Waker;
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
#[derive(Clone, Debug)]
pub(crate) struct Mailbox {
    commands: SyncSender<Command>,
    waker: Waker,
}

impl Mailbox {
    pub fn new(commands: SyncSender<Command>, waker: Waker) -> Self {
        Self { commands, waker }
    }

    /// Puts a command in and wakes the shard. Returns whether the shard will see it: not if it has
    /// left, or if too many commands wait already.
    pub fn send(&self, command: Command) -> bool {
        match self.commands.try_send(command) {
            Ok(()) => {
                self.waker.wake();
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}
