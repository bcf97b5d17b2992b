//! Reads a process's TOML file and says in one line what is wrong with it.
//!
//! Every error names `file:line:column`; for an unknown key it also names the nearest key that
//! exists. Structures must use `#[serde(deny_unknown_fields)]`: a misspelt limit that is silently
//! ignored is a limit that is not there. What the keys mean is the business of each process.

use std::{
    fmt, fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// Largest configuration file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a configuration cannot be used. It prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", .file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is not TOML, or a key or a value is not one we know.
    #[error("{}:{line}:{column}: {message}", .file.display())]
    Refused {
        /// Which file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong, on one line.
        message: String,
    },
}

/// A value that is well formed but makes no sense, found by a process's own check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The key's path, as `section.key`.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

impl Invalid {
    /// The value of `key` is wrong because of `message`.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl std::error::Error for Invalid {}

/// Reads a file.
///
/// # Errors
/// See [`ConfigError`].
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, ConfigError> {
    load_checked(path, |_| Ok(()))
}

/// Reads a file and lets `check` judge the values; what it refuses is reported with the place of
/// the key in the file (or the top of the file, if a default is at fault).
///
/// # Errors
/// See [`ConfigError`].
pub fn load_checked<T: DeserializeOwned>(
    path: impl AsRef<Path>,
    check: impl FnOnce(&T) -> Result<(), Invalid>,
) -> Result<T, ConfigError> {
    let path = path.as_ref();
    let unreadable = |source| ConfigError::Unreadable { file: path.to_owned(), source };
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        let message = format!("{size} bytes are too many for a configuration ({FILE_BYTES_MAX})");
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, message)));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    parse_checked(&text, path, check)
}

/// The same for a text, as if it were the file `name`.
///
/// # Errors
/// See [`ConfigError`]; never [`ConfigError::Unreadable`].
pub fn parse_checked<T: DeserializeOwned>(
    text: &str,
    name: impl AsRef<Path>,
    check: impl FnOnce(&T) -> Result<(), Invalid>,
) -> Result<T, ConfigError> {
    let name = name.as_ref();
    let value = parse(text, name)?;
    match check(&value) {
        Ok(()) => Ok(value),
        Err(invalid) => {
            let span = locate(text, &invalid.key).unwrap_or_default();
            Err(refused(name, text, span.start, invalid.to_string()))
        }
    }
}

/// A value as TOML that reads back as the same value.
///
/// # Panics
/// The type has keys that are no strings, or something else that TOML cannot say: a mistake in the
/// type and not in the value.
pub fn to_toml(value: &impl serde::Serialize) -> String {
    toml::to_string_pretty(value).expect("configuration types can be said in TOML")
}

/// Reads a text as if it were the file `name`.
///
/// # Errors
/// See [`ConfigError`]; never [`ConfigError::Unreadable`].
pub fn parse<T: DeserializeOwned>(text: &str, name: impl AsRef<Path>) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        refused(name.as_ref(), text, start, sentence(error.message()))
    })
}

fn refused(file: &Path, text: &str, offset: usize, message: String) -> ConfigError {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    ConfigError::Refused {
        file: file.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message,
    }
}

/// The parser's message on one line, and friendlier where the key is unknown.
fn sentence(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some(rest) = message.strip_prefix("unknown field `") else { return message };
    let mut quoted = rest.split('`');
    let unknown = quoted.next().unwrap_or_default();
    // What follows is: , expected one of `a`, `b` – so every second piece is a known key.
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    match nearest(unknown, &known) {
        Some(key) => format!("unknown key `{unknown}`; did you mean `{key}`?"),
        None if known.is_empty() => format!("unknown key `{unknown}`; no key is expected here"),
        None => format!("unknown key `{unknown}`; known here: {}", known.join(", ")),
    }
}

/// The known key that is at most a third of its letters away.
fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|key| (distance(unknown, key), *key))
        .filter(|(distance, key)| *distance <= key.chars().count().max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

/// How many letters must be put in, left out, changed or swapped with their neighbour.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    // Row i holds the distances from the first i letters of `left`; three rows are alive at a time.
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for i in 1..=left.len() {
        let mut row = vec![i; right.len() + 1];
        for j in 1..=right.len() {
            let is_changed = usize::from(left[i - 1] != right[j - 1]);
            row[j] = (above[j - 1] + is_changed).min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[right.len()]
}

/// Where the key `section.key` stands in a TOML text.
fn locate(text: &str, path: &str) -> Option<Range<usize>> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut span = None;
    for name in path.split('.') {
        let (key, value) = table.iter().find(|(key, _)| key.get_ref().as_ref() == name)?;
        span = Some(key.span());
        match value.get_ref() {
            toml::de::DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    span
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::{Invalid, load, load_checked, parse};
    use crate::{ByteSize, Duration};

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Example {
        listen: Listen,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Listen {
        idle_timeout: Duration,
        body_bytes_max: ByteSize,
    }

    fn refusal(text: &str) -> String {
        parse::<Example>(text, "gateway.toml").expect_err("refused").to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_known_one() {
        let text = "# a comment\n[listen]\nidle_timeot = \"15s\"\n";
        assert_eq!(
            refusal(text),
            "gateway.toml:3:1: unknown key `idle_timeot`; did you mean `idle_timeout`?"
        );
    }

    #[test]
    fn an_unknown_key_like_no_other_lists_what_is_known() {
        assert_eq!(
            refusal("[listen]\n  colour = 1\n"),
            "gateway.toml:2:3: unknown key `colour`; known here: idle_timeout, body_bytes_max"
        );
        assert!(refusal("[listne]\n").starts_with("gateway.toml:1:2: unknown key `listne`; did"));
    }

    #[test]
    fn a_slip_of_the_finger_is_one_letter_away() {
        for (typed, meant, letters) in [
            ("tpc", "tcp", 1),
            ("timout", "timeout", 1),
            ("tcpp", "tcp", 1),
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("same", "same", 0),
        ] {
            assert_eq!(super::distance(typed, meant), letters, "{typed} {meant}");
            assert_eq!(super::distance(meant, typed), letters, "{meant} {typed}");
        }
    }

    #[test]
    fn a_value_without_its_unit_is_named_with_its_place() {
        let refused = refusal("[listen]\nidle_timeout = 15\n");
        assert!(refused.starts_with("gateway.toml:2:16: 15 has no unit"), "{refused}");
        let refused = refusal("[listen]\nbody_bytes_max = \"64KB\"\n");
        assert!(refused.starts_with("gateway.toml:2:18: \"64KB\" is not a size"), "{refused}");
    }

    #[test]
    fn broken_toml_is_one_line() {
        let refused = refusal("[listen\nidle_timeout = 1");
        assert!(refused.starts_with("gateway.toml:1:"), "{refused}");
        assert_eq!(refused.lines().count(), 1);
    }

    #[test]
    fn a_value_that_a_check_refuses_is_named_with_its_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.toml");
        std::fs::write(&file, "\n[listen]\n# why\nidle_timeout = \"1ms\"\n").expect("written");
        let error = load_checked::<Example>(&file, |example| {
            assert_eq!(example.listen.idle_timeout.as_millis(), 1);
            Err(Invalid::new("listen.idle_timeout", "must be at least 100ms"))
        })
        .expect_err("refused")
        .to_string();
        let expected = ":4:1: listen.idle_timeout: must be at least 100ms";
        assert!(error.ends_with(expected), "{error}");
        assert!(load::<Example>(&file).is_ok());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Example>("/nonexistent/a.toml").expect_err("missing").to_string();
        assert!(error.starts_with("/nonexistent/a.toml: "), "{error}");
    }
}
