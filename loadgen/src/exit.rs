//! How a run ends for a script: the exit codes, and the error that carries one.

/// The exit code of the process. The numbers up to 105 are those that load-testing people know
/// from k6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything arrived as promised and every threshold was met.
    Ok = 0,
    /// A threshold was missed, or the verification found a fault.
    Failed = 99,
    /// The arguments make no sense.
    BadArguments = 104,
    /// The run could not be finished.
    Aborted = 105,
    /// The generator itself could not keep the schedule; its figures say nothing.
    Saturated = 120,
    /// The run could not begin: descriptors, ports, an unreachable target.
    Preflight = 121,
}

/// A run that gave no result, in one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RunError {
    /// What the process exits with.
    pub exit: Exit,
    /// What happened and what to do.
    pub message: String,
}

impl RunError {
    /// The arguments make no sense.
    pub fn bad_arguments(message: impl Into<String>) -> Self {
        Self { exit: Exit::BadArguments, message: message.into() }
    }

    /// The run could not be finished.
    pub fn aborted(message: impl Into<String>) -> Self {
        Self { exit: Exit::Aborted, message: message.into() }
    }

    /// The run could not begin.
    pub fn preflight(message: impl Into<String>) -> Self {
        Self { exit: Exit::Preflight, message: message.into() }
    }
}
