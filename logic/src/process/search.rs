//! The search index beside the store's data, if this build has it and the configuration wants it.

use std::sync::Arc;

use super::{StartError, store::OpenStore};
use crate::{config::Config, search::SearchIndex};

#[cfg(feature = "search")]
pub(super) fn start(
    config: &Config,
    store: &OpenStore,
) -> Result<Option<Arc<dyn SearchIndex>>, StartError> {
    use crate::{
        search::full_text::{FullText, Options},
        storage::StoreError,
    };
    if !config.search.enabled {
        return Ok(None);
    }
    let Some(store) = store.embedded() else {
        // The configuration was checked.
        return Ok(None);
    };
    let options = Options {
        directory: config.store.directory.join("search"),
        notes_queued_max: config.search.notes_queued_max,
        notes_queued_bytes_max: config.search.notes_queued_bytes_max.as_usize(),
        messages_per_second_max: config.search.messages_per_second_max,
        memory_bytes_max: config.search.memory_bytes_max.as_usize(),
        commit_interval: config.search.commit_interval.as_std(),
        searches_in_flight_max: config.search.in_flight_max,
    };
    let started = FullText::start(options, store.clone())
        .map_err(|error| StoreError::Io("starting the search index".into(), error))?;
    Ok(Some(Arc::new(started)))
}

#[cfg(not(feature = "search"))]
pub(super) fn start(
    _config: &Config,
    _store: &OpenStore,
) -> Result<Option<Arc<dyn SearchIndex>>, StartError> {
    Ok(None)
}
