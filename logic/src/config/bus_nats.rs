//! `[bus.nats]`: where NATS is, and how long it is waited for.

use std::path::PathBuf;

use millrace_service::{Duration, Invalid};
use serde::{Deserialize, Serialize};

/// `[bus.nats]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusNats {
    /// `nats://host:port`, any of the cluster.
    pub servers: Vec<String>,
    /// A `.creds` file; empty: none.
    pub credentials_file: PathBuf,
    /// Certificates (PEM) beside the system's; empty: none.
    pub certificates_file: PathBuf,
    /// What streams and subjects begin with.
    pub prefix: String,
    /// Copies of every stream.
    pub replicas: usize,
    /// How long NATS remembers ids of records.
    pub ids_kept: Duration,
    /// One question.
    pub attempt_timeout: Duration,
    /// One call.
    pub patience: Duration,
    /// Records under way at once.
    pub publishes_in_flight_max: usize,
}

impl Default for BusNats {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            credentials_file: PathBuf::new(),
            certificates_file: PathBuf::new(),
            prefix: "millrace".to_owned(),
            replicas: 1,
            ids_kept: Duration::from_secs(5 * 60),
            attempt_timeout: Duration::from_secs(2),
            patience: Duration::from_secs(10),
            publishes_in_flight_max: 1_024,
        }
    }
}

impl BusNats {
    /// Without the feature there is no such bus.
    #[cfg(not(feature = "nats"))]
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let reason = "\"nats\" is not in this build; build millrace-logic with --features nats";
        Err(Invalid::new("bus.kind", reason))
    }

    #[cfg(feature = "nats")]
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.servers.is_empty() {
            return Err(Invalid::new("bus.nats.servers", "must name at least one server"));
        }
        for server in &self.servers {
            let wrong = |reason: &str| {
                Invalid::new("bus.nats.servers", format!("{server:?} is no address: {reason}"))
            };
            let parsed = server.parse::<async_nats::ServerAddr>();
            if parsed.map_err(|error| wrong(&error.to_string()))?.host().is_empty() {
                return Err(wrong("it names no host"));
            }
        }
        crate::bus::NatsBusSettings::check_prefix(&self.prefix)
            .map_err(|reason| Invalid::new("bus.nats.prefix", reason))?;
        if ![1, 3, 5].contains(&self.replicas) {
            return Err(Invalid::new("bus.nats.replicas", "must be 1, 3 or 5"));
        }
        if self.publishes_in_flight_max == 0 {
            return Err(Invalid::new("bus.nats.publishes_in_flight_max", "must be at least 1"));
        }
        // What NATS takes as the shortest time to remember.
        if self.ids_kept.as_millis() < 100 {
            return Err(Invalid::new("bus.nats.ids_kept", "must be at least 100ms"));
        }
        if self.attempt_timeout.as_millis() == 0 || self.patience < self.attempt_timeout {
            return Err(Invalid::new(
                "bus.nats.patience",
                "must be at least attempt_timeout, and that above 0",
            ));
        }
        Ok(())
    }
}

#[cfg(feature = "nats")]
impl super::Bus {
    /// Settings of the bus on NATS.
    pub fn nats_settings(&self) -> crate::bus::NatsBusSettings {
        let BusNats { servers, credentials_file, certificates_file, prefix, replicas, .. } =
            self.nats.clone();
        crate::bus::NatsBusSettings {
            servers,
            credentials_file,
            certificates_file,
            prefix,
            replicas,
            topics_max: self.topics_max,
            consumers_per_topic_max: self.consumers_per_topic_max,
            topic_bytes_max: self.topic_bytes_max.as_bytes(),
            retention_ms: self.retention.as_millis(),
            ids_kept_ms: self.nats.ids_kept.as_millis(),
            deliveries_max: self.deliveries_max,
            attempt_timeout_ms: self.nats.attempt_timeout.as_millis(),
            patience_ms: self.nats.patience.as_millis(),
            publishes_in_flight_max: self.nats.publishes_in_flight_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn checked(toml: &str) -> Result<(), String> {
        let config: Config = toml::from_str(toml).expect("TOML of the right shape");
        config.check().map_err(|invalid| invalid.to_string())
    }

    #[cfg(not(feature = "nats"))]
    #[test]
    fn a_bus_that_was_not_compiled_in_is_refused_with_what_to_do() {
        let refused = checked("[bus]\nkind = \"nats\"").expect_err("refused");
        assert!(refused.contains("bus.kind") && refused.contains("--features nats"), "{refused}");
    }

    #[cfg(feature = "nats")]
    #[test]
    fn what_nats_would_not_take_is_refused_by_its_key() {
        assert_eq!(checked("[bus]\nkind = \"nats\""), Ok(()));
        for (key, value) in [
            ("servers", "[]"),
            ("servers", "[\"nats://\"]"),
            ("prefix", "\"a.b\""),
            ("prefix", "\"\""),
            ("replicas", "2"),
            ("publishes_in_flight_max", "0"),
            ("ids_kept", "\"1ms\""),
            ("patience", "\"1s\""),
        ] {
            let toml = format!("[bus]\nkind = \"nats\"\n[bus.nats]\n{key} = {value}");
            let refused = checked(&toml).expect_err(&toml);
            assert!(refused.contains(&format!("bus.nats.{key}")), "{toml}: {refused}");
        }
    }
}
