//! `[audit]`: where the line for each administrative act goes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[audit]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditFile {
    /// The file that lines are appended to; empty: the log, with the target `millrace_audit`.
    pub file: PathBuf,
}
