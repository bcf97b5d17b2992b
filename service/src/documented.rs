//! For tests: which keys of a configuration its commented file does not show, or does not explain.
//!
//! Which keys there are is asked of the parser, and not of the defaults: a key that is unset by
//! default would not show there. It takes a type that refuses unknown keys in every section.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

/// The keys that `C` understands, as `section.key`.
///
/// # Panics
/// A section takes unknown keys.
pub fn known_keys<C: DeserializeOwned>() -> BTreeSet<String> {
    keys_within::<C>("")
}

/// The keys that may stand in a section, with those of the sections within.
fn keys_within<C: DeserializeOwned>(section: &str) -> BTreeSet<String> {
    let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
    let text = format!("{header}no_such_key_at_all = 1\n");
    let Err(error) = toml::from_str::<C>(&text) else {
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
        let within = keys_within::<C>(&name);
        if within.is_empty() {
            keys.insert(name);
        } else {
            keys.extend(within);
        }
    }
    keys
}

/// The keys of `C` that a file does not show. One without a default may be shown as a comment, and
/// a table of free names by its header.
pub fn not_shown<C: DeserializeOwned>(file: &str) -> Vec<String> {
    let shown: BTreeSet<String> = shown_keys(file, 1).into_iter().map(|(key, _)| key).collect();
    let is_mentioned = |key: &str| {
        let name = key.rsplit('.').next().unwrap_or(key);
        let (value, header) = (format!("{name} = "), format!("[{key}]"));
        file.lines()
            .any(|line| line == header || line.trim_start_matches(['#', ' ']).starts_with(&value))
    };
    let keys = known_keys::<C>().into_iter();
    keys.filter(|key| !shown.contains(key) && !is_mentioned(key)).collect()
}

/// The keys of a file that no comment above speaks for; one comment speaks for up to
/// `keys_of_a_comment_max` keys that follow it without an empty line.
pub fn not_explained(file: &str, keys_of_a_comment_max: u32) -> Vec<String> {
    let keys = shown_keys(file, keys_of_a_comment_max).into_iter();
    keys.filter_map(|(key, is_commented)| (!is_commented).then_some(key)).collect()
}

/// The keys of a file, and whether each has a comment above it.
fn shown_keys(file: &str, keys_of_a_comment_max: u32) -> Vec<(String, bool)> {
    let (mut section, mut left, mut shown) = (String::new(), 0_u32, Vec::new());
    for line in file.lines() {
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
            left = keys_of_a_comment_max;
        } else if line.is_empty() {
            left = 0;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Whole {
        #[serde(default)]
        name: String,
        #[serde(default)]
        part: Part,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    #[allow(dead_code)]
    struct Part {
        first: u32,
        second: Option<u32>,
        third: u32,
    }

    #[test]
    fn keys_that_a_file_leaves_out_or_does_not_explain_are_found() {
        let file = "# A name.\nname = \"x\"\n\n[part]\n# Two of them.\nfirst = 1\n# second = 2\n\nfourth = 4\n";
        let known: Vec<String> = known_keys::<Whole>().into_iter().collect();
        assert_eq!(known, ["name", "part.first", "part.second", "part.third"]);
        assert_eq!(not_shown::<Whole>(file), ["part.third"]);
        assert_eq!(not_explained(file, 1), ["part.fourth"]);
        let two = "[part]\n# Both.\nfirst = 1\nthird = 3\n";
        assert_eq!(not_explained(two, 1), ["part.third"]);
        assert_eq!(not_explained(two, 2), [""; 0]);
    }
}
