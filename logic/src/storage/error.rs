//! Why a store could not do its work, and what a client is told then.

use std::{io, path::PathBuf};

use millrace_protocol::Code;

/// Why a store could not do its work. [`StoreError::code`] is what a client is told.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// [`Store::page`](super::Store::page): no such conversation.
    #[error("There is no such conversation.")]
    NotFound,
    /// [`Store::page`](super::Store::page): the user never was a member.
    #[error("The user is not a member of this conversation.")]
    NotMember,
    /// No space is left for writing. Reading goes on, and writing too once there is space.
    #[error("no space is left for the store: {0}")]
    Full(String),
    /// The database cannot be reached, or did not answer in time. What was asked for may have been
    /// done all the same; asking again finds out.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The disk or the engine failed. Nothing of the commit was applied.
    #[error("the store failed: {0}")]
    Failed(String),
    /// Stored bytes do not say what they should.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Another process has the data directory.
    #[error("the data directory {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The data directory was written by another version, or by something else.
    #[error("the data directory {}: {reason}", .directory.display())]
    Format {
        /// Which directory.
        directory: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

impl StoreError {
    /// The code for the client whose request this broke.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound => Code::NotFound,
            Self::NotMember => Code::NotPermitted,
            Self::Full(_) => Code::OverCapacity,
            Self::Unavailable(_) => Code::LogicUnavailable,
            _ => Code::Internal,
        }
    }

    /// The same error for another of those whom it hit.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::NotFound => Self::NotFound,
            Self::NotMember => Self::NotMember,
            Self::Full(reason) => Self::Full(reason.clone()),
            Self::Unavailable(reason) => Self::Unavailable(reason.clone()),
            Self::Corrupt(reason) => Self::Corrupt(reason.clone()),
            Self::Closed => Self::Closed,
            Self::InUse(directory) => Self::InUse(directory.clone()),
            other => Self::Failed(other.to_string()),
        }
    }
}
