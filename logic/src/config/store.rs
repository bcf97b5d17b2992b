//! `[store]`: where messages, groups, users and everything else that is kept lie.

use std::{fmt, path::PathBuf};

use millrace_service::{ByteSize, Duration, Invalid};
use serde::{Deserialize, Serialize};

use crate::storage::embedded::Options;

/// What keeps everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A directory of this process's own.
    #[default]
    Embedded,
    /// A PostgreSQL database, which several processes may share.
    Postgres,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// What keeps everything.
    pub kind: StoreKind,
    /// The data directory; created if it is missing.
    pub directory: PathBuf,
    /// A table in memory is written to a file above this size.
    pub memtable_bytes_max: ByteSize,
    /// See [`Options::engine_nice`].
    pub engine_nice: u8,
    /// See [`Options::fan_out_members_max`].
    pub fan_out_members_max: usize,
    /// With `kind = "postgres"`.
    pub postgres: StorePostgres,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::default(),
            directory: PathBuf::from("data"),
            memtable_bytes_max: ByteSize::from_bytes(Options::new("").memtable_bytes_max),
            engine_nice: Options::new("").engine_nice,
            fan_out_members_max: Options::new("").fan_out_members_max,
            postgres: StorePostgres::default(),
        }
    }
}

/// `[store.postgres]`
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorePostgres {
    /// `postgresql://user:password@host:port/database`.
    pub url: String,
    /// A file with it; the environment variable `MILLRACE_STORE__POSTGRES__URL` comes before both.
    pub url_file: PathBuf,
    /// Connections for questions.
    pub connections_max: usize,
    /// How long a question waits for a connection, and how long connecting may take.
    pub connection_wait: Duration,
    /// How long one attempt of a question may take.
    pub read_timeout: Duration,
    /// How long one attempt of a commit may take.
    pub commit_timeout: Duration,
    /// How long the database works on one statement, and waits for a lock.
    pub statement_timeout: Duration,
    /// How long a transaction of a process that says nothing keeps its locks.
    pub idle_in_transaction_timeout: Duration,
    /// How often a commit or a question is tried.
    pub attempts_max: usize,
    /// After this long no further attempt is begun.
    pub give_up_after: Duration,
    /// Most writes gathered into one commit.
    pub commit_writes_max: usize,
    /// Bytes of bodies of which a commit takes no more callers in.
    pub commit_bytes_max: ByteSize,
    /// Most callers that wait for the writer.
    pub commits_waiting_max: usize,
    /// Members that are remembered over all conversations.
    pub cached_members_max: usize,
    /// How often the process looks for what others have changed beside the messages.
    pub follow_interval: Duration,
}

impl Default for StorePostgres {
    fn default() -> Self {
        Self {
            url: String::new(),
            url_file: PathBuf::new(),
            connections_max: 16,
            connection_wait: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            commit_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(5),
            attempts_max: 8,
            give_up_after: Duration::from_secs(15),
            commit_writes_max: 1_000,
            commit_bytes_max: ByteSize::from_mib(16),
            commits_waiting_max: 64,
            cached_members_max: 1_000_000,
            follow_interval: Duration::from_secs(1),
        }
    }
}

impl fmt::Debug for StorePostgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("StorePostgres").field("url_file", &self.url_file).finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.directory.as_os_str().is_empty() {
            return Err(Invalid::new("store.directory", "must not be empty"));
        }
        if !(1 << 20..=1 << 30).contains(&self.memtable_bytes_max.as_bytes()) {
            let reason = "must be between 1MiB and 1024MiB";
            return Err(Invalid::new("store.memtable_bytes_max", reason));
        }
        if self.engine_nice > 19 {
            return Err(Invalid::new("store.engine_nice", "must be between 0 and 19"));
        }
        match self.kind {
            StoreKind::Embedded => Ok(()),
            StoreKind::Postgres => self.postgres.check(),
        }
    }
}

impl StorePostgres {
    #[cfg(not(feature = "postgres"))]
    fn check(&self) -> Result<(), Invalid> {
        let reason =
            "\"postgres\" is not in this build; build millrace-logic with --features postgres";
        Err(Invalid::new("store.kind", reason))
    }

    #[cfg(feature = "postgres")]
    fn check(&self) -> Result<(), Invalid> {
        for (key, value) in [
            ("store.postgres.connections_max", self.connections_max),
            ("store.postgres.attempts_max", self.attempts_max),
            ("store.postgres.commit_writes_max", self.commit_writes_max),
            ("store.postgres.commits_waiting_max", self.commits_waiting_max),
        ] {
            if value == 0 {
                return Err(Invalid::new(key, "must be at least 1"));
            }
        }
        for (key, value) in [
            ("store.postgres.connection_wait", self.connection_wait),
            ("store.postgres.read_timeout", self.read_timeout),
            ("store.postgres.commit_timeout", self.commit_timeout),
            ("store.postgres.statement_timeout", self.statement_timeout),
            ("store.postgres.idle_in_transaction_timeout", self.idle_in_transaction_timeout),
            ("store.postgres.follow_interval", self.follow_interval),
        ] {
            if !(10..=3_600_000).contains(&value.as_millis()) {
                return Err(Invalid::new(key, "must be between 10ms and 1h"));
            }
        }
        Ok(())
    }

    /// Settings of the store.
    #[cfg(feature = "postgres")]
    pub fn options(&self, url: &str) -> crate::storage::postgres::Options {
        use std::num::NonZeroUsize;
        let positive = |value| NonZeroUsize::new(value).unwrap_or(NonZeroUsize::MIN);
        crate::storage::postgres::Options {
            connections_max: positive(self.connections_max),
            connection_wait: self.connection_wait.as_std(),
            read_timeout: self.read_timeout.as_std(),
            commit_timeout: self.commit_timeout.as_std(),
            statement_timeout: self.statement_timeout.as_std(),
            idle_in_transaction_timeout: self.idle_in_transaction_timeout.as_std(),
            attempts_max: self.attempts_max,
            give_up_after: self.give_up_after.as_std(),
            commit_writes_max: self.commit_writes_max,
            commit_bytes_max: self.commit_bytes_max.as_usize(),
            commits_waiting_max: positive(self.commits_waiting_max),
            cached_members_max: self.cached_members_max,
            ..crate::storage::postgres::Options::new(url)
        }
    }
}

#[cfg(all(test, feature = "postgres"))]
mod tests {
    use super::StorePostgres;
    use crate::{config::Config, storage::postgres::Options};

    #[test]
    fn the_defaults_are_those_of_the_store() {
        assert!(StorePostgres::default().options("u") == Options::new("u"));
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        let check = |lines: &str| {
            let text = format!(
                "[search]\nenabled = false\n[store]\nkind = \"postgres\"\n[store.postgres]\n{lines}"
            );
            toml::from_str::<Config>(&text).expect("TOML of the right shape").check()
        };
        assert!(check("").is_ok());
        let text = "[store]\nkind = \"postgres\"";
        let with_search = toml::from_str::<Config>(text).expect("TOML").check();
        assert_eq!(
            with_search.err().map(|invalid| invalid.key),
            cfg!(feature = "search").then(|| "search.enabled".to_owned())
        );
        for (key, value) in
            [("connections_max", "0"), ("attempts_max", "0"), ("follow_interval", "\"1ms\"")]
        {
            let refused = check(&format!("{key} = {value}\n")).expect_err(key);
            assert_eq!(refused.key, format!("store.postgres.{key}"));
        }
    }

    #[test]
    fn the_database_is_named_by_environment_file_or_value_and_its_url_is_never_printed() {
        let mut config = Config::default();
        config.store.kind = super::StoreKind::Postgres;
        config.login.jwt_secret = "0123456789abcdef0123456789abcdef".to_owned();
        config.http.listen = crate::config::Listen(None);
        let none = |_: &str| None;
        assert_eq!(config.secrets_from(none).expect_err("no URL").key, "store.postgres.url");
        config.store.postgres.url = "postgresql://one:hidden@host/db".to_owned();
        let secrets = config.secrets_from(none).expect("good");
        assert_eq!(secrets.store_url, config.store.postgres.url);
        assert!(!format!("{config:?} {secrets:?}").contains("hidden"));
        let given = |name: &str| {
            (name == "MILLRACE_STORE__POSTGRES__URL").then(|| "postgresql://two".to_owned())
        };
        assert_eq!(config.secrets_from(given).expect("good").store_url, "postgresql://two");
    }
}
