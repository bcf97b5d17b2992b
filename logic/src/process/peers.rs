//! The other logic processes, as the configuration has them.

use std::sync::Arc;

use super::StartError;
use crate::{
    chat::PeerEvents,
    config::{Config, PeersKind},
};

/// Listens to the others, if there may be any. Before anything else is opened that they write to.
pub(super) async fn open(config: &Config) -> Result<Option<PeerEvents>, StartError> {
    match config.peers.kind {
        PeersKind::None => Ok(None),
        #[cfg(feature = "nats")]
        PeersKind::Nats => {
            use millrace_service::Invalid;

            use crate::{
                bus::BusError,
                events::{EventsError, NatsEvents, NatsEventsSettings},
            };

            let wrong = |error: BusError| Invalid::new("bus.nats", error.to_string());
            let unheard = |error: EventsError| Invalid::new("peers", error.to_string());
            let settings = NatsEventsSettings::of(&config.logic_id());
            let nats = config.bus.nats_settings();
            let events = NatsEvents::connect(&nats, settings).await.map_err(wrong)?;
            let events = Arc::new(events);
            Ok(Some(PeerEvents::listen(events).await.map_err(unheard)?))
        }
        #[cfg(not(feature = "nats"))]
        PeersKind::Nats => unreachable!("the configuration was checked"),
    }
}
