//! The bus that is configured, opened.

use std::sync::Arc;

#[cfg(feature = "nats")]
use millrace_service::Invalid;

use super::StartError;
#[cfg(feature = "nats")]
use crate::bus::NatsBus;
use crate::{
    bus::{Bus, BusError, EmbeddedBus},
    config::{self, BusKind},
    storage::{StoreError, embedded::EmbeddedStore},
};

/// One of the buses there are.
#[derive(Clone)]
pub(super) enum OpenBus {
    Embedded(EmbeddedBus),
    #[cfg(feature = "nats")]
    Nats(NatsBus),
}

impl OpenBus {
    pub(super) async fn open(
        config: &config::Bus,
        embedded: &EmbeddedStore,
    ) -> Result<Self, StartError> {
        match config.kind {
            BusKind::Embedded => {
                Ok(Self::Embedded(EmbeddedBus::open(embedded, config.settings())?))
            }
            #[cfg(feature = "nats")]
            BusKind::Nats => {
                let connected = NatsBus::connect(config.nats_settings()).await;
                let wrong = |error: BusError| Invalid::new("bus.nats", error.to_string());
                Ok(Self::Nats(connected.map_err(wrong)?))
            }
            #[cfg(not(feature = "nats"))]
            BusKind::Nats => unreachable!("the configuration was checked"),
        }
    }

    pub(super) fn shared(&self) -> Arc<dyn Bus> {
        match self {
            Self::Embedded(bus) => Arc::new(bus.clone()),
            #[cfg(feature = "nats")]
            Self::Nats(bus) => Arc::new(bus.clone()),
        }
    }

    /// Drops what is older than the retention; a server of its own does so itself.
    pub(super) async fn expire(&self, now_ms: i64) -> Result<u64, BusError> {
        match self {
            Self::Embedded(bus) => bus.expire(now_ms).await,
            #[cfg(feature = "nats")]
            Self::Nats(_) => {
                let _ = now_ms;
                Ok(0)
            }
        }
    }

    pub(super) async fn close(&self) -> Result<(), StoreError> {
        match self {
            Self::Embedded(bus) => bus.close().await,
            // What was acknowledged is stored, and nothing else is waited for.
            #[cfg(feature = "nats")]
            Self::Nats(_) => Ok(()),
        }
    }
}
