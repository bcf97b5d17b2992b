//! Where NATS is, and the bounds of what we ask of it.

use std::{path::PathBuf, time::Duration};

use super::super::EmbeddedBusSettings;

/// Longest [`NatsBusSettings::prefix`], in bytes, so that every name stays below what NATS takes.
pub const PREFIX_BYTES_MAX: usize = 64;

/// Bounds and addresses of a [`NatsBus`](super::NatsBus).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsBusSettings {
    /// `nats://host:port`, `tls://…`, with `user:password@` if NATS asks for it. Any of a cluster
    /// leads to the others.
    pub servers: Vec<String>,
    /// A `.creds` file (JWT and seed), as `nsc` writes it; empty: none.
    pub credentials_file: PathBuf,
    /// Certificates (PEM) that the servers' are checked against, besides the system's; empty: none.
    pub certificates_file: PathBuf,
    /// What every stream and subject begins with, so that several fleets may share a NATS: letters,
    /// digits and `-`. Default `millrace`.
    pub prefix: String,
    /// Copies of every stream in a cluster: 1, 3 or 5. Default 1; a topic that shall outlive the
    /// loss of a machine needs 3.
    pub replicas: usize,
    /// Topics. A record for one more is refused. Each is a stream, so hundreds, not millions.
    /// Several logics that make topics at the same moment may exceed it by one each.
    pub topics_max: usize,
    /// Consumers of one topic. One more is refused.
    pub consumers_per_topic_max: usize,
    /// Bytes that one topic keeps, as NATS counts them; above, its oldest records go.
    pub topic_bytes_max: u64,
    /// How long a record is kept, in milliseconds.
    pub retention_ms: u64,
    /// How long NATS remembers the ids of records, in milliseconds: a record tried again within this
    /// time is kept once. It costs NATS about 100 bytes a record. Default 5 minutes.
    pub ids_kept_ms: u64,
    /// With how many subscriptions in a row a record may be the first one given, and none of them get
    /// beyond it, before it is put aside among the dead letters. 0: any number. Default 16.
    pub deliveries_max: u32,
    /// How long one question to NATS may take, in milliseconds, before it is asked again. Default 2 s.
    pub attempt_timeout_ms: u64,
    /// How long a call waits for NATS altogether, in milliseconds, before it is refused with
    /// [`Unavailable`](crate::bus::BusError::Unavailable). Default 10 s.
    pub patience_ms: u64,
    /// Records under way to NATS at once, over all topics; further ones wait. Default 1,024.
    pub publishes_in_flight_max: usize,
}

impl Default for NatsBusSettings {
    fn default() -> Self {
        let embedded = EmbeddedBusSettings::default();
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            credentials_file: PathBuf::new(),
            certificates_file: PathBuf::new(),
            prefix: "millrace".to_owned(),
            replicas: 1,
            topics_max: embedded.topics_max,
            consumers_per_topic_max: embedded.consumers_per_topic_max,
            topic_bytes_max: embedded.topic_bytes_max,
            retention_ms: embedded.retention_ms,
            ids_kept_ms: 5 * 60 * 1_000,
            deliveries_max: embedded.deliveries_max,
            attempt_timeout_ms: 2_000,
            patience_ms: 10_000,
            publishes_in_flight_max: 1_024,
        }
    }
}

impl NatsBusSettings {
    /// Says what is wrong with the prefix, if anything is.
    ///
    /// # Errors
    /// A sentence.
    pub fn check_prefix(prefix: &str) -> Result<(), String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(fits) {
            return Err(format!("must be 1 to {PREFIX_BYTES_MAX} of A-Z a-z 0-9 -"));
        }
        Ok(())
    }

    pub(super) fn attempt_timeout(&self) -> Duration {
        Duration::from_millis(self.attempt_timeout_ms)
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms)
    }
}
