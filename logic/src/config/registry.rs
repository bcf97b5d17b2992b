//! `[registry]`: who is online, in this process alone or in a Redis that several share.

use std::{fmt, path::PathBuf};

use millrace_service::{Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::registry::MemoryRegistrySettings;

/// Where it is kept who is online.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistryKind {
    /// In this process: for one logic process.
    #[default]
    Memory,
    /// In Redis: for any number of them.
    Redis,
}

/// `[registry]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Where it is kept.
    pub kind: RegistryKind,
    /// See [`MemoryRegistrySettings::sessions_max`].
    pub sessions_max: usize,
    /// See [`MemoryRegistrySettings::sessions_per_user_max`].
    pub sessions_per_user_max: usize,
    /// Where Redis is, and its bounds.
    pub redis: RegistryRedis,
}

/// What kind of Redis it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedisMode {
    /// One server.
    #[default]
    Single,
    /// The master that Sentinels name.
    Sentinel,
    /// A Cluster.
    Cluster,
}

/// `[registry.redis]`
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryRedis {
    /// What kind it is.
    pub mode: RedisMode,
    /// The server, the Sentinels, or some nodes of the Cluster: `redis://[user@]host[:port][/database]`.
    pub urls: Vec<String>,
    /// The name of the master that Sentinels watch.
    pub master: String,
    /// The password of the servers.
    pub password: String,
    /// A file that holds it instead.
    pub password_file: PathBuf,
    /// What all keys begin with.
    pub key_prefix: String,
    /// How long one call may take.
    pub timeout: Duration,
    /// How long a process that is not heard is taken to live.
    pub lease: Duration,
    /// How long what it stated counts after that.
    pub grace: Duration,
    /// How often a process is heard.
    pub beat_interval: Duration,
    /// The longest pause between two attempts to connect.
    pub reconnect_max: Duration,
    /// Users that may wait to be stated.
    pub users_waiting_max: usize,
    /// Users stated in one go, by each of eight writers.
    pub users_per_batch_max: usize,
    /// Look-ups under way.
    pub reads_in_flight_max: usize,
    /// Starts and ends of sessions under way.
    pub sessions_in_flight_max: usize,
}

impl Default for Registry {
    fn default() -> Self {
        let memory = MemoryRegistrySettings::default();
        Self {
            kind: RegistryKind::default(),
            sessions_max: memory.sessions_max,
            sessions_per_user_max: memory.sessions_per_user_max,
            redis: RegistryRedis::default(),
        }
    }
}

impl Default for RegistryRedis {
    fn default() -> Self {
        Self {
            mode: RedisMode::default(),
            urls: vec!["redis://127.0.0.1:6379".to_owned()],
            master: "mymaster".to_owned(),
            password: String::new(),
            password_file: PathBuf::new(),
            key_prefix: "millrace".to_owned(),
            timeout: Duration::from_secs(1),
            lease: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            beat_interval: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(1),
            users_waiting_max: 262_144,
            users_per_batch_max: 256,
            reads_in_flight_max: 1_024,
            sessions_in_flight_max: 512,
        }
    }
}

impl fmt::Debug for RegistryRedis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("RegistryRedis")
            .field("mode", &self.mode)
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

/// Most starts and ends under way: each has a task of its own.
const SESSIONS_IN_FLIGHT_MAX: usize = 4_096;

impl Registry {
    /// Bounds of what is kept in this process.
    pub fn memory(&self) -> MemoryRegistrySettings {
        MemoryRegistrySettings {
            sessions_max: self.sessions_max,
            sessions_per_user_max: self.sessions_per_user_max,
        }
    }

    /// Whether the values make sense, and whether this program has what they ask for.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let redis = &self.redis;
        for (key, value) in [
            ("registry.sessions_max", self.sessions_max),
            ("registry.sessions_per_user_max", self.sessions_per_user_max),
            ("registry.redis.users_waiting_max", redis.users_waiting_max),
            ("registry.redis.users_per_batch_max", redis.users_per_batch_max),
            ("registry.redis.reads_in_flight_max", redis.reads_in_flight_max),
            ("registry.redis.sessions_in_flight_max", redis.sessions_in_flight_max),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        if redis.sessions_in_flight_max > SESSIONS_IN_FLIGHT_MAX {
            let reason = format!("must be at most {SESSIONS_IN_FLIGHT_MAX}");
            return Err(Invalid::new("registry.redis.sessions_in_flight_max", reason));
        }
        for (key, value) in [
            ("registry.redis.timeout", redis.timeout),
            ("registry.redis.beat_interval", redis.beat_interval),
            ("registry.redis.reconnect_max", redis.reconnect_max),
        ] {
            if value.as_millis() < 10 {
                return Err(Invalid::new(key, "must be at least 10ms"));
            }
        }
        if redis.lease.as_millis() < 3 * redis.beat_interval.as_millis() {
            let reason = "must be at least three times registry.redis.beat_interval";
            return Err(Invalid::new("registry.redis.lease", reason));
        }
        // Between two beats Redis may take that long to say that it lost nothing, and to take the beat.
        if redis.lease.as_millis()
            <= redis.beat_interval.as_millis() + 2 * redis.timeout.as_millis()
        {
            let reason = "must be longer than registry.redis.beat_interval and twice its timeout";
            return Err(Invalid::new("registry.redis.lease", reason));
        }
        if redis.key_prefix.is_empty() || redis.key_prefix.contains(['{', '}']) {
            let reason = "must not be empty, and { and } have a meaning of their own in keys";
            return Err(Invalid::new("registry.redis.key_prefix", reason));
        }
        if self.kind == RegistryKind::Memory {
            return Ok(());
        }
        if redis.urls.is_empty() || (redis.mode == RedisMode::Single && redis.urls.len() > 1) {
            let reason = "one is needed, or with sentinel and cluster some of them";
            return Err(Invalid::new("registry.redis.urls", reason));
        }
        for url in &redis.urls {
            let Some(rest) = url.strip_prefix("redis://") else {
                let reason = format!("{url} is not redis://[user@]host[:port][/database]");
                return Err(Invalid::new("registry.redis.urls", reason));
            };
            if rest.split_once('@').is_some_and(|(user, _)| user.contains(':')) {
                let reason = "a password belongs into registry.redis.password or password_file";
                return Err(Invalid::new("registry.redis.urls", reason));
            }
        }
        if redis.mode == RedisMode::Sentinel && redis.master.is_empty() {
            return Err(Invalid::new("registry.redis.master", "must not be empty"));
        }
        if cfg!(not(feature = "redis")) {
            let reason = "this program was built without the feature `redis`";
            return Err(Invalid::new("registry.kind", reason));
        }
        Ok(())
    }

    /// Settings of the registry on Redis.
    #[cfg(feature = "redis")]
    pub fn redis_settings(&self, password: &str) -> crate::registry::redis::RedisSettings {
        use crate::registry::redis::{RedisSettings, RedisTopology};
        let redis = &self.redis;
        let urls = redis.urls.clone();
        let topology = match redis.mode {
            // The check has seen to it that there is one.
            RedisMode::Single => {
                RedisTopology::Single { url: urls.into_iter().next().unwrap_or_default() }
            }
            RedisMode::Sentinel => RedisTopology::Sentinel { urls, master: redis.master.clone() },
            RedisMode::Cluster => RedisTopology::Cluster { urls },
        };
        RedisSettings {
            password: password.into(),
            key_prefix: redis.key_prefix.clone(),
            timeout: redis.timeout.as_std(),
            lease: redis.lease.as_std(),
            grace: redis.grace.as_std(),
            beat_interval: redis.beat_interval.as_std(),
            reconnect_max: redis.reconnect_max.as_std(),
            users_waiting_max: redis.users_waiting_max,
            users_per_batch_max: redis.users_per_batch_max,
            reads_in_flight_max: redis.reads_in_flight_max,
            sessions_in_flight_max: redis.sessions_in_flight_max,
            memory: self.memory(),
            ..RedisSettings::new(topology)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn refused(lines: &str) -> Option<String> {
        let config: Config =
            millrace_service::config::parse(lines, "logic.toml").expect("well formed");
        config.registry.check().err().map(|invalid| invalid.key)
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        let redis = |lines: &str| refused(&format!("[registry.redis]\n{lines}\n"));
        assert_eq!(redis("lease = \"2s\""), Some("registry.redis.lease".into()));
        assert_eq!(redis("timeout = \"5s\""), Some("registry.redis.lease".into()));
        assert_eq!(redis("lease = \"3s\"\nbeat_interval = \"500ms\""), None);
        assert_eq!(redis("key_prefix = \"a{b\""), Some("registry.redis.key_prefix".into()));
        assert_eq!(
            redis("users_waiting_max = 0").as_deref(),
            Some("registry.redis.users_waiting_max")
        );
        assert_eq!(refused("[registry]\nsessions_max = 0"), Some("registry.sessions_max".into()));
        let kind = |lines: &str| {
            refused(&format!("[registry]\nkind = \"redis\"\n[registry.redis]\n{lines}\n"))
        };
        let urls = Some("registry.redis.urls".to_owned());
        assert_eq!(kind("urls = []"), urls);
        assert_eq!(kind("urls = [\"http://x\"]"), urls);
        assert_eq!(kind("urls = [\"redis://x\", \"redis://y\"]"), urls);
        assert_eq!(kind("urls = [\"redis://me:secret@x\"]"), urls);
    }

    #[test]
    fn redis_is_refused_by_a_program_that_was_built_without_it() {
        let built_with = cfg!(feature = "redis");
        let kind = refused("[registry]\nkind = \"redis\"");
        assert_eq!(kind.is_none(), built_with, "{kind:?}");
    }
}
