//! The store that is configured, opened, and what keeps up with other processes on it.

use std::{future::Future, sync::Arc, time::Duration};

use super::StartError;
#[cfg(feature = "postgres")]
use crate::storage::postgres::PostgresStore;
use crate::{
    config::{Config, Secrets, StoreKind},
    storage::{
        Store, StoreError,
        embedded::{EmbeddedStore, Options},
        side::{Follow, Sides},
    },
};

/// What everything lies on.
pub(super) struct OpenStore {
    kind: Kind,
    /// The directory of this process: the store itself, or what lies beside a shared one.
    own: Arc<EmbeddedStore>,
}

enum Kind {
    Embedded,
    #[cfg(feature = "postgres")]
    Postgres(Arc<PostgresStore>),
}

impl OpenStore {
    /// Opens it. With a shared store the process keeps its own directory for what is its own.
    pub(super) async fn open(config: &Config, secrets: &Secrets) -> Result<Self, StartError> {
        let kind = match config.store.kind {
            StoreKind::Embedded => Kind::Embedded,
            #[cfg(feature = "postgres")]
            StoreKind::Postgres => {
                let options = config.store.postgres.options(&secrets.store_url);
                Kind::Postgres(Arc::new(PostgresStore::open(options).await?))
            }
            #[cfg(not(feature = "postgres"))]
            StoreKind::Postgres => {
                // The configuration was checked.
                let _ = secrets;
                return Err(StoreError::Failed("this build has no PostgreSQL".into()).into());
            }
        };
        let own = open_directory(config).await?;
        Ok(Self { kind, own })
    }

    /// Messages, conversations, groups.
    pub(super) fn chat(&self) -> Arc<dyn Store> {
        match &self.kind {
            Kind::Embedded => self.own.clone(),
            #[cfg(feature = "postgres")]
            Kind::Postgres(store) => store.clone(),
        }
    }

    /// Everything beside them.
    pub(super) fn sides(&self) -> &dyn Sides {
        match &self.kind {
            Kind::Embedded => &*self.own,
            #[cfg(feature = "postgres")]
            Kind::Postgres(store) => &**store,
        }
    }

    /// The store of this process alone, if messages lie there.
    pub(super) fn embedded(&self) -> Option<&Arc<EmbeddedStore>> {
        match &self.kind {
            Kind::Embedded => Some(&self.own),
            #[cfg(feature = "postgres")]
            Kind::Postgres(_) => None,
        }
    }

    /// What is this process's own in any case: topics that are not on a bus of their own.
    pub(super) fn own(&self) -> &EmbeddedStore {
        &self.own
    }

    /// Finishes what was begun, durably.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        match &self.kind {
            Kind::Embedded => {}
            #[cfg(feature = "postgres")]
            Kind::Postgres(store) => store.close().await?,
        }
        self.own.close().await
    }
}

/// Opening reads the journal, which may take seconds: not on a thread that serves others.
async fn open_directory(config: &Config) -> Result<Arc<EmbeddedStore>, StartError> {
    let options = Options {
        memtable_bytes_max: config.store.memtable_bytes_max.as_bytes(),
        engine_nice: config.store.engine_nice,
        fan_out_members_max: config.store.fan_out_members_max,
        ..Options::new(&config.store.directory)
    };
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(options)).await;
    match opened {
        Ok(store) => Ok(Arc::new(store?)),
        Err(error) => Err(StoreError::Failed(format!("opening it ended: {error}")).into()),
    }
}

/// Keeps what is in memory up with what other processes have written, until the process leaves.
pub(super) async fn follow(
    matters: Vec<(&'static str, Arc<dyn Follow>)>,
    interval: Duration,
    leaving: impl Future<Output = ()>,
) {
    tokio::pin!(leaving);
    let mut failing = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = &mut leaving => return,
        }
        let mut failed = false;
        for (matter, follow) in &matters {
            match follow.follow().await {
                Ok(()) | Err(StoreError::Closed) => {}
                Err(error) => {
                    failed = true;
                    if !failing {
                        tracing::warn!(
                            %error,
                            matter,
                            "what other processes changed was not read; this is tried again"
                        );
                    }
                }
            }
        }
        failing = failed;
    }
}
