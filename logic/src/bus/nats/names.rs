//! Names of streams and subjects, and back.
//!
//! A topic may be called what a NATS token may not: `.` separates tokens. It becomes `=`, which no
//! topic or consumer has in its name; so every name is one token, and can be read back.
//!
//! | what | name |
//! |---|---|
//! | a topic's stream | `<prefix>_topic_<topic>` |
//! | its records | `<prefix>.topic.<topic>.<base>`, see [`super::topics`] for the base |
//! | that a record was stored (headers alone, to whoever listens) | `<prefix>.told.<topic>` |
//! | the stream of rows | `<prefix>_state` |
//! | a topic's row | `<prefix>.state.topic.<topic>` |
//! | a consumer's row | `<prefix>.state.consumer.<topic>.<consumer>` |

/// Makes the names of one fleet.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

fn token(name: &str) -> String {
    name.replace('.', "=")
}

fn name(token: &str) -> String {
    token.replace('=', ".")
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub fn topic_stream(&self, topic: &str) -> String {
        format!("{}_topic_{}", self.prefix, token(topic))
    }

    /// The topic whose stream this is, if it is one of ours.
    pub fn topic_of_stream(&self, stream: &str) -> Option<String> {
        let rest = stream.strip_prefix(&self.prefix)?.strip_prefix("_topic_")?;
        Some(name(rest))
    }

    pub fn records(&self, topic: &str, base: u64) -> String {
        format!("{}.topic.{}.{base}", self.prefix, token(topic))
    }

    pub fn told(&self, topic: &str) -> String {
        format!("{}.told.{}", self.prefix, token(topic))
    }

    pub fn state_stream(&self) -> String {
        format!("{}_state", self.prefix)
    }

    pub fn all_state(&self) -> String {
        format!("{}.state.>", self.prefix)
    }

    pub fn topic_row(&self, topic: &str) -> String {
        format!("{}.state.topic.{}", self.prefix, token(topic))
    }

    pub fn consumer_row(&self, topic: &str, consumer: &str) -> String {
        format!("{}.state.consumer.{}.{}", self.prefix, token(topic), token(consumer))
    }

    /// The rows of a topic's consumers.
    pub fn consumer_rows(&self, topic: &str) -> String {
        format!("{}.state.consumer.{}.*", self.prefix, token(topic))
    }
}

/// The base in the subject of a record.
pub(super) fn base_of_subject(subject: &str) -> Option<u64> {
    subject.rsplit('.').next()?.parse().ok()
}

/// The consumer in the subject of its row.
pub(super) fn consumer_of_row(subject: &str) -> Option<String> {
    subject.rsplit('.').next().map(name)
}

/// A key as the value of a header: printable ASCII stays, every other byte, and `%`, becomes `%XX`.
pub(super) fn escape_key(key: &str) -> String {
    let mut escaped = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'!'..=b'~' if byte != b'%' => escaped.push(char::from(byte)),
            _ => {
                escaped.push('%');
                for digit in [byte >> 4, byte & 15] {
                    escaped.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
                }
            }
        }
    }
    escaped
}

/// The key of a header. What we did not write is taken as it is.
pub(super) fn unescape_key(escaped: &str) -> String {
    let bytes = escaped.as_bytes();
    let mut key = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                key.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                key.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&key).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_has_a_stream_of_its_own_and_is_read_back_from_it() {
        let names = Names::new("millrace");
        for topic in ["clicks", "eu.clicks", "eu-clicks", "eu_clicks", "..", ".", "a..b", "-"] {
            let stream = names.topic_stream(topic);
            assert!(!stream.contains(['.', '*', '>', ' ']), "{stream}");
            assert_eq!(names.topic_of_stream(&stream).as_deref(), Some(topic));
            let subject = names.records(topic, 17);
            assert!(subject.split('.').all(|token| !token.is_empty()), "{subject}");
            assert_eq!(subject.split('.').count(), 4);
            assert_eq!(base_of_subject(&subject), Some(17));
            let row = names.consumer_row(topic, topic);
            assert_eq!(consumer_of_row(&row).as_deref(), Some(topic));
        }
        assert_eq!(names.topic_of_stream("millrace_state"), None);
        assert_eq!(names.topic_of_stream("other_topic_clicks"), None);
        let longest = "x".repeat(crate::bus::NAME_BYTES_MAX);
        assert!(names.topic_stream(&longest).len() < 255, "NATS takes no longer name");
    }

    #[test]
    fn a_key_of_any_characters_travels_in_a_header() {
        for key in ["", "alice", "a b", "100%", "%41", "zoë", "a\r\nNats-Msg-Id: x", " \u{0}"] {
            let escaped = escape_key(key);
            assert!(escaped.bytes().all(|byte| (b'!'..=b'~').contains(&byte)), "{escaped}");
            assert_eq!(unescape_key(&escaped), key);
        }
        assert_eq!(unescape_key("50%"), "50%", "what others wrote does no harm");
    }
}
