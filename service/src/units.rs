//! Values with units, as people write them in configuration: `"250ms"`, `"64KiB"`.
//!
//! Both types refuse a bare number, since nobody can see its unit; only `0` needs none. They print
//! in the same form, so what is shown can be pasted back.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time in configuration: `"250ms"`, `"10s"`, `"2m"`, `"1h"`, or `0`.
///
/// Its precision is the millisecond, which is also that of every timer it configures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(u64);

impl Duration {
    /// So many milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds * 1_000)
    }

    /// The number of milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The number of milliseconds, at most `u32::MAX` (49 days), as the wire carries it.
    pub const fn as_millis_u32(self) -> u32 {
        if self.0 > u32::MAX as u64 { u32::MAX } else { self.0 as u32 }
    }

    /// As the standard library's type.
    pub const fn as_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.as_std()
    }
}

impl FromStr for Duration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
        parse(text, &units, "a time such as \"250ms\", \"10s\", \"2m\" or \"1h\"").map(Self)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
        display(self.0, &units, f)
    }
}

/// A size in configuration: `"512B"`, `"64KiB"`, `"1MiB"`, `"2GiB"`, or `0`.
///
/// Only binary multiples exist: a `"64KB"` that might mean 64,000 is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many times 1,024 bytes.
    pub const fn from_kib(kib: u64) -> Self {
        Self(kib * 1024)
    }

    /// So many times 1,048,576 bytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib * 1024 * 1024)
    }

    /// The number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes, at most `u32::MAX`.
    pub const fn as_bytes_u32(self) -> u32 {
        if self.0 > u32::MAX as u64 { u32::MAX } else { self.0 as u32 }
    }

    /// The number of bytes as a length in memory.
    pub const fn as_usize(self) -> usize {
        if self.0 > usize::MAX as u64 { usize::MAX } else { self.0 as usize }
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let units = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
        parse(text, &units, "a size such as \"512B\", \"64KiB\", \"1MiB\" or \"2GiB\"").map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
        display(self.0, &units, f)
    }
}

/// Why a text is not a value with a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError {
    found: String,
    expected: &'static str,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not {}", self.found, self.expected)
    }
}

impl std::error::Error for UnitError {}

fn parse(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, UnitError> {
    let refuse = || UnitError { found: format!("{text:?}"), expected };
    let text_trimmed = text.trim();
    let digits = text_trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text_trimmed.split_at(digits);
    let number = number.parse::<u64>().map_err(|_| refuse())?;
    let unit = unit.trim_start();
    if unit.is_empty() && number == 0 {
        return Ok(0);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
    number.checked_mul(*factor).ok_or_else(refuse)
}

fn display(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let fits = units.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    match fits.or(units.last()) {
        Some((name, factor)) => write!(f, "{}{name}", value / factor),
        None => write!(f, "{value}"),
    }
}

/// Serde for both: strings in, strings out, and the integer 0.
macro_rules! as_text {
    ($name:ident, $expected:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$name, E> {
                        match number {
                            0 => Ok($name(0)),
                            _ => Err(E::custom(format_args!(
                                "{number} has no unit; write {}",
                                $expected
                            ))),
                        }
                    }

                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$name, E> {
                        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

as_text!(Duration, "a time with its unit, such as \"10s\"");
as_text!(ByteSize, "a size with its unit, such as \"64KiB\"");

#[cfg(test)]
mod tests {
    use super::{ByteSize, Duration};

    #[test]
    fn times_are_read_with_every_unit_and_printed_in_the_largest_that_fits() {
        for (text, milliseconds, printed) in [
            ("250ms", 250, "250ms"),
            ("10s", 10_000, "10s"),
            ("120s", 120_000, "2m"),
            ("1h", 3_600_000, "1h"),
            (" 5 s ", 5_000, "5s"),
            ("0", 0, "0ms"),
        ] {
            let duration: Duration = text.parse().expect(text);
            assert_eq!(duration.as_millis(), milliseconds, "{text}");
            assert_eq!(duration.to_string(), printed);
            assert_eq!(duration.to_string().parse::<Duration>(), Ok(duration));
        }
    }

    #[test]
    fn sizes_are_binary_only() {
        assert_eq!("64KiB".parse::<ByteSize>().expect("valid").as_bytes(), 65_536);
        assert_eq!(ByteSize::from_mib(3).to_string(), "3MiB");
        assert_eq!(ByteSize::from_bytes(1_500).to_string(), "1500B");
        for refused in ["64KB", "64k", "64", "-1B", "", "KiB", "99999999999999GiB"] {
            assert!(refused.parse::<ByteSize>().is_err(), "{refused}");
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused_unless_it_is_zero() {
        for refused in ["10", "1.5s", "10 sec", "s", ""] {
            assert!(refused.parse::<Duration>().is_err(), "{refused}");
        }
        assert_eq!(serde_json::from_str::<Duration>("0").expect("zero"), Duration::default());
        let error = serde_json::from_str::<Duration>("10").expect_err("no unit").to_string();
        assert!(error.contains("no unit") && error.contains("\"10s\""), "{error}");
    }
}
