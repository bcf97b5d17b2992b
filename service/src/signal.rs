//! SIGTERM and SIGINT as a future, for the binaries. Libraries never listen for signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for the signals that ask a process to end.
#[derive(Debug)]
pub struct Termination {
    terminate: Signal,
    interrupt: Signal,
}

impl Termination {
    /// Starts to listen; from now on the signals no longer kill the process.
    ///
    /// # Errors
    /// When the handler cannot be installed.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver enabled.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and returns its name. Call it again for the second one.
    pub async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Runs `leave`, the orderly way out, unless another signal arrives first: that one ends the
    /// process at once with status 130, so that a person at a terminal is never held.
    pub async fn or_exit_at_once<T>(mut self, leave: impl Future<Output = T>) -> T {
        tokio::select! {
            done = leave => done,
            name = self.received() => {
                tracing::warn!(signal = name, "second signal: leaving at once");
                std::process::exit(130)
            }
        }
    }
}
