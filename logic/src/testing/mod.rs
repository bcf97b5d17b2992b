//! What tests of this crate share.

pub(crate) mod services;
#[cfg(feature = "redis")]
pub(crate) mod wire;
