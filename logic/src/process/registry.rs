//! The registry that the configuration wants.

use std::sync::Arc;

use millrace_logic_sdk::Gateways;

use super::StartError;
use crate::{
    config::{Config, RegistryKind, Secrets},
    registry::{MemoryRegistry, Registry},
};

/// A registry, and what else has to be told of the gateways.
pub(super) struct Opened {
    pub(super) registry: Arc<dyn Registry>,
    #[cfg(feature = "redis")]
    redis: Option<Arc<crate::registry::redis::RedisRegistry>>,
}

impl Opened {
    /// Says where the lives of gateways are known, before the first of them connects.
    #[cfg_attr(not(feature = "redis"), allow(unused_variables, clippy::unused_self))]
    pub(super) fn attach(&self, gateways: &Gateways) {
        #[cfg(feature = "redis")]
        if let Some(redis) = &self.redis {
            redis.attach(Arc::new(gateways.clone()));
        }
    }
}

/// Redis need not answer yet: until it does, presence is what this process knows.
#[cfg(feature = "redis")]
pub(super) fn open(config: &Config, secrets: &Secrets) -> Result<Opened, StartError> {
    use crate::registry::redis::RedisRegistry;
    if config.registry.kind == RegistryKind::Memory {
        return Ok(Opened { registry: memory(config), redis: None });
    }
    let settings = config.registry.redis_settings(&secrets.redis_password);
    let redis = RedisRegistry::start(settings)
        .map_err(|reason| millrace_service::Invalid::new("registry.redis.urls", reason))?;
    let redis = Arc::new(redis);
    Ok(Opened { registry: redis.clone(), redis: Some(redis) })
}

#[cfg(not(feature = "redis"))]
pub(super) fn open(config: &Config, _secrets: &Secrets) -> Result<Opened, StartError> {
    // The check has refused every other.
    debug_assert_eq!(config.registry.kind, RegistryKind::Memory);
    Ok(Opened { registry: memory(config) })
}

fn memory(config: &Config) -> Arc<dyn Registry> {
    Arc::new(MemoryRegistry::new(config.registry.memory()))
}
