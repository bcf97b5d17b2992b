//! `[attachments]`: where files are kept, how large they may be, and how long they stay.

use std::path::PathBuf;

use millrace_service::{ByteSize, Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::attachments::AttachmentSettings;

/// `[attachments]`
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attachments {
    /// Where uploads, and with `store = "directory"` files, are kept; empty: beside the store.
    pub directory: PathBuf,
    /// Where complete files are kept.
    pub store: FileStore,
    /// The bucket.
    pub s3_bucket: String,
    /// The region of the bucket.
    pub s3_region: String,
    /// The server that speaks S3; empty: Amazon's.
    pub s3_endpoint: String,
    /// What the keys in the bucket begin with.
    pub s3_prefix: String,
    /// The access key; empty: from the environment or the machine's role.
    pub s3_access_key_id: String,
    /// Its secret.
    pub s3_secret_access_key: String,
    /// Whether the server may be spoken to without TLS.
    pub s3_allow_http: bool,
    /// See [`AttachmentSettings::public_url`].
    pub public_url: String,
    /// See [`AttachmentSettings::file_bytes_max`].
    pub file_bytes_max: ByteSize,
    /// See [`AttachmentSettings::user_files_max`].
    pub user_files_max: u64,
    /// See [`AttachmentSettings::user_bytes_max`].
    pub user_bytes_max: ByteSize,
    /// See [`AttachmentSettings::types_allowed`].
    pub types_allowed: Vec<String>,
    /// See [`AttachmentSettings::free_bytes_min`].
    pub free_bytes_min: ByteSize,
    /// See [`AttachmentSettings::uploads_in_flight_max`].
    pub uploads_in_flight_max: usize,
    /// See [`AttachmentSettings::completions_in_flight_max`].
    pub completions_in_flight_max: usize,
    /// See [`AttachmentSettings::downloads_in_flight_max`].
    pub downloads_in_flight_max: usize,
    /// See [`AttachmentSettings::stall_timeout`].
    pub stall_timeout: Duration,
    /// See [`AttachmentSettings::link_lifetime`].
    pub link_lifetime: Duration,
    /// See [`AttachmentSettings::upload_lifetime`].
    pub upload_lifetime: Duration,
    /// See [`AttachmentSettings::orphan_lifetime`].
    pub orphan_lifetime: Duration,
    /// See [`AttachmentSettings::sweep_interval`].
    pub sweep_interval: Duration,
    /// See [`AttachmentSettings::references_max`].
    pub references_max: u64,
    /// See [`AttachmentSettings::foreign_allowed`].
    pub foreign_allowed: bool,
}

/// `attachments.store`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileStore {
    /// A directory of this machine.
    Directory,
    /// A bucket of a server that speaks S3.
    S3,
}

impl std::fmt::Debug for Attachments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key's secret.
        f.debug_struct("Attachments")
            .field("directory", &self.directory)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Default for Attachments {
    fn default() -> Self {
        let settings = AttachmentSettings::default();
        let duration =
            |duration: std::time::Duration| Duration::from_millis(duration.as_millis() as u64);
        Self {
            directory: PathBuf::new(),
            store: FileStore::Directory,
            s3_bucket: String::new(),
            s3_region: "us-east-1".to_owned(),
            s3_endpoint: String::new(),
            s3_prefix: String::new(),
            s3_access_key_id: String::new(),
            s3_secret_access_key: String::new(),
            s3_allow_http: false,
            public_url: settings.public_url,
            file_bytes_max: ByteSize::from_bytes(settings.file_bytes_max),
            user_files_max: settings.user_files_max,
            user_bytes_max: ByteSize::from_bytes(settings.user_bytes_max),
            types_allowed: settings.types_allowed,
            free_bytes_min: ByteSize::from_bytes(settings.free_bytes_min),
            uploads_in_flight_max: settings.uploads_in_flight_max,
            completions_in_flight_max: settings.completions_in_flight_max,
            downloads_in_flight_max: settings.downloads_in_flight_max,
            stall_timeout: duration(settings.stall_timeout),
            link_lifetime: duration(settings.link_lifetime),
            upload_lifetime: duration(settings.upload_lifetime),
            orphan_lifetime: duration(settings.orphan_lifetime),
            sweep_interval: duration(settings.sweep_interval),
            references_max: settings.references_max,
            foreign_allowed: settings.foreign_allowed,
        }
    }
}

impl Attachments {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        for (key, value) in [
            ("attachments.file_bytes_max", self.file_bytes_max.as_bytes()),
            ("attachments.user_files_max", self.user_files_max),
            ("attachments.user_bytes_max", self.user_bytes_max.as_bytes()),
            ("attachments.uploads_in_flight_max", self.uploads_in_flight_max as u64),
            ("attachments.completions_in_flight_max", self.completions_in_flight_max as u64),
            ("attachments.downloads_in_flight_max", self.downloads_in_flight_max as u64),
            ("attachments.references_max", self.references_max),
            ("attachments.stall_timeout", self.stall_timeout.as_millis()),
            ("attachments.sweep_interval", self.sweep_interval.as_millis()),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be more than 0"));
            }
        }
        let url = &self.public_url;
        let is_url = url.starts_with("http://") || url.starts_with("https://");
        if !url.is_empty() && (!is_url || url.ends_with('/')) {
            let reason = "must begin with http:// or https:// and not end with a slash";
            return Err(Invalid::new("attachments.public_url", reason));
        }
        if self.store == FileStore::S3 {
            if cfg!(not(feature = "s3")) {
                let reason = "this program was built without the feature `s3`";
                return Err(Invalid::new("attachments.store", reason));
            }
            if self.s3_bucket.is_empty() {
                return Err(Invalid::new("attachments.s3_bucket", "must not be empty"));
            }
        }
        Ok(())
    }

    /// Where uploads and files are kept.
    pub(crate) fn resolved_directory(&self, store: &std::path::Path) -> PathBuf {
        if self.directory.as_os_str().is_empty() {
            store.with_file_name("attachments")
        } else {
            self.directory.clone()
        }
    }

    /// Where the bucket is.
    #[cfg(feature = "s3")]
    pub(crate) fn s3(&self) -> crate::attachments::S3Settings {
        crate::attachments::S3Settings {
            bucket: self.s3_bucket.clone(),
            region: self.s3_region.clone(),
            endpoint: self.s3_endpoint.clone(),
            prefix: self.s3_prefix.clone(),
            access_key_id: self.s3_access_key_id.clone(),
            secret_access_key: self.s3_secret_access_key.clone(),
            allow_http: self.s3_allow_http,
        }
    }

    /// Settings of the attachments' service.
    pub(crate) fn settings(&self, directory: &std::path::Path) -> AttachmentSettings {
        AttachmentSettings {
            upload_directory: directory.join("uploads"),
            public_url: self.public_url.clone(),
            file_bytes_max: self.file_bytes_max.as_bytes(),
            user_files_max: self.user_files_max,
            user_bytes_max: self.user_bytes_max.as_bytes(),
            types_allowed: self.types_allowed.clone(),
            free_bytes_min: self.free_bytes_min.as_bytes(),
            uploads_in_flight_max: self.uploads_in_flight_max,
            completions_in_flight_max: self.completions_in_flight_max,
            downloads_in_flight_max: self.downloads_in_flight_max,
            stall_timeout: self.stall_timeout.as_std(),
            link_lifetime: self.link_lifetime.as_std(),
            upload_lifetime: self.upload_lifetime.as_std(),
            orphan_lifetime: self.orphan_lifetime.as_std(),
            sweep_interval: self.sweep_interval.as_std(),
            references_max: self.references_max,
            foreign_allowed: self.foreign_allowed,
        }
    }
}
