//! Every key that the process understands stands in `configs/gateway.toml`, with a comment above it.

use millrace_gateway::config::{Config, DEFAULT_TOML};
use millrace_service::documented;

/// Keys that one comment may speak for.
const KEYS_OF_A_COMMENT_MAX: u32 = 1;

#[test]
fn every_key_stands_in_the_commented_file() {
    let known = documented::known_keys::<Config>();
    assert!(known.len() > 40, "the parser names its keys: {known:?}");
    let missing = documented::not_shown::<Config>(DEFAULT_TOML);
    assert!(missing.is_empty(), "not in configs/gateway.toml: {missing:?}");
}

#[test]
fn every_key_has_a_comment_above_it() {
    let bare = documented::not_explained(DEFAULT_TOML, KEYS_OF_A_COMMENT_MAX);
    assert!(bare.is_empty(), "without a comment in configs/gateway.toml: {bare:?}");
}
