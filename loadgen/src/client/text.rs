//! The text of a generated message: it carries who sent it, its number, the intended moment and
//! that of its first write, so that whoever receives it can tell the latency and whether it is what it claims to be.

use crate::log::Key;

/// What a message's text says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Which message it is.
    pub key: Key,
    /// When the schedule wanted it sent, in nanoseconds of the run.
    pub intended_ns: u64,
    /// When it was first written, in the same.
    pub written_ns: u64,
}

impl Text {
    /// The text, padded to at least `bytes_min`.
    pub fn write(self, bytes_min: usize) -> String {
        let Self { key, intended_ns, written_ns } = self;
        let (sender, counter) = (key.sender(), key.counter());
        let mut text = format!("{sender} {counter} {intended_ns} {written_ns} ");
        text.reserve(bytes_min.saturating_sub(text.len()));
        while text.len() < bytes_min {
            text.push('.');
        }
        text
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(5, ' ');
        let sender = words.next()?.parse().ok()?;
        let counter = words.next()?.parse().ok()?;
        let intended_ns = words.next()?.parse().ok()?;
        let written_ns = words.next()?.parse().ok()?;
        Some(Self { key: Key::new(sender, counter), intended_ns, written_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::Text;
    use crate::log::Key;

    #[test]
    fn a_text_survives_a_round_trip_at_any_length() {
        let (intended_ns, written_ns) = (56_789_000_111, 56_789_100_222);
        let text = Text { key: Key::new(12, 34), intended_ns, written_ns };
        for bytes in [0, 1, 20, 100, 5000] {
            let written = text.write(bytes);
            assert!(written.len() >= bytes);
            assert_eq!(Text::parse(&written), Some(text));
        }
        assert_eq!(Text::parse("hello"), None);
        assert_eq!(Text::parse(""), None);
    }
}
