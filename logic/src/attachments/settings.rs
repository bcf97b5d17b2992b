//! The bounds and choices of the attachments' service, with their defaults. Values only; see
//! [`crate::config`] for the file.

use std::{path::PathBuf, time::Duration};

/// The settings of [`Attachments`](super::Attachments).
#[derive(Clone, Debug)]
pub struct AttachmentSettings {
    /// Where uploads lie until they are complete.
    pub upload_directory: PathBuf,
    /// What URLs begin with, without a slash at the end; empty: they begin with the path.
    pub public_url: String,
    /// Largest file, in bytes. Above: `too_large`.
    pub file_bytes_max: u64,
    /// Files of one user. Full: `over_capacity`.
    pub user_files_max: u64,
    /// Bytes of one user's files. Full: `over_capacity`.
    pub user_bytes_max: u64,
    /// Media types that may be uploaded, such as `image/*`. Others: `bad_request`.
    pub types_allowed: Vec<String>,
    /// Uploads are refused with `over_capacity` while the file system has less free space.
    pub free_bytes_min: u64,
    /// Parts being received at once. One more is refused with `over_capacity`.
    pub uploads_in_flight_max: usize,
    /// Uploads being hashed and handed to the blob store at once; others wait.
    pub completions_in_flight_max: usize,
    /// Downloads at once. One more is refused with `over_capacity`.
    pub downloads_in_flight_max: usize,
    /// How long a connection may give or take nothing while a file is transferred.
    pub stall_timeout: Duration,
    /// How long a link is good.
    pub link_lifetime: Duration,
    /// How long an upload may take from its creation.
    pub upload_lifetime: Duration,
    /// How long a complete file stays without a message that refers to it.
    pub orphan_lifetime: Duration,
    /// How often what is too old is looked for.
    pub sweep_interval: Duration,
    /// Conversations that may refer to one file. Full: `over_capacity`, and the file has to be
    /// uploaded again.
    pub references_max: u64,
    /// Whether messages may have attachments that are not of this service.
    pub foreign_allowed: bool,
}

impl Default for AttachmentSettings {
    fn default() -> Self {
        Self {
            upload_directory: PathBuf::from("attachments/uploads"),
            public_url: String::new(),
            file_bytes_max: 100 << 20,
            user_files_max: 10_000,
            user_bytes_max: 2 << 30,
            types_allowed: vec!["*/*".to_owned()],
            free_bytes_min: 256 << 20,
            uploads_in_flight_max: 64,
            completions_in_flight_max: 2,
            downloads_in_flight_max: 256,
            stall_timeout: Duration::from_secs(30),
            link_lifetime: Duration::from_secs(3_600),
            upload_lifetime: Duration::from_secs(24 * 3_600),
            orphan_lifetime: Duration::from_secs(24 * 3_600),
            sweep_interval: Duration::from_secs(600),
            references_max: 1_000,
            foreign_allowed: true,
        }
    }
}
