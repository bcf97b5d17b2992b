//! Every key that the process understands stands in `configs/logic.toml`, with a comment above it
//! or above it and the few that belong to it.
//!
//! Which keys there are is asked of the parser, and not of the defaults: a key that is unset by
//! default would not show there.

use std::collections::BTreeSet;

use millrace_logic::config::{Config, DEFAULT_TOML};

/// The keys that may stand in a section, as `section.key`, with those of the sections within.
fn known_keys(section: &str) -> BTreeSet<String> {
    let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
    let text = format!("{header}no_such_key_at_all = 1\n");
    let Err(error) = toml::from_str::<Config>(&text) else {
        panic!("[{section}] takes unknown keys");
    };
    let message = error.message().to_owned();
    let Some((_, expected)) = message.split_once("expected") else {
        // Not a section, but a value.
        return BTreeSet::new();
    };
    if !message.starts_with("unknown field") {
        return BTreeSet::new();
    }
    let names = expected.split('`').skip(1).step_by(2);
    let path = |name: &str| {
        if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
    };
    let mut keys = BTreeSet::new();
    for name in names.map(path) {
        let within = known_keys(&name);
        if within.is_empty() {
            keys.insert(name);
        } else {
            keys.extend(within);
        }
    }
    keys
}

/// Keys that one comment may speak for.
const KEYS_OF_A_COMMENT_MAX: u32 = 6;

/// The keys of the file, and whether each has a comment above it.
fn shown_keys() -> Vec<(String, bool)> {
    let (mut section, mut left, mut shown) = (String::new(), 0_u32, Vec::new());
    for line in DEFAULT_TOML.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned() + ".";
        } else if !line.starts_with('#')
            && let Some((key, _)) = line.split_once(" = ")
            && key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
        {
            shown.push((format!("{section}{key}"), left > 0));
            left = left.saturating_sub(1);
        }
        if line.starts_with('#') {
            left = KEYS_OF_A_COMMENT_MAX;
        } else if line.is_empty() {
            left = 0;
        }
    }
    shown
}

#[test]
fn every_key_stands_in_the_commented_file() {
    let known = known_keys("");
    assert!(known.len() > 40, "the parser names its keys: {known:?}");
    let shown: BTreeSet<String> = shown_keys().into_iter().map(|(key, _)| key).collect();
    // A key without a default may be shown as a comment, and a table of free names by its header.
    let is_mentioned = |key: &str| {
        let name = key.rsplit('.').next().unwrap_or(key);
        let (value, header) = (format!("{name} = "), format!("[{key}]"));
        DEFAULT_TOML
            .lines()
            .any(|line| line == header || line.trim_start_matches(['#', ' ']).starts_with(&value))
    };
    let missing: Vec<&String> =
        known.iter().filter(|key| !shown.contains(*key) && !is_mentioned(key)).collect();
    assert!(missing.is_empty(), "not in configs/logic.toml: {missing:?}");
}

#[test]
fn every_key_has_a_comment_above_it() {
    let bare: Vec<String> = shown_keys()
        .into_iter()
        .filter_map(|(key, is_commented)| (!is_commented).then_some(key))
        .collect();
    assert!(bare.is_empty(), "without a comment in configs/logic.toml: {bare:?}");
}
