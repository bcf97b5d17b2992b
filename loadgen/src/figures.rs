//! Numbers as people write and read them: `10M`, `24GiB`, `1,000,000`, `5.3 GB`.

/// Reads `1000`, `1_000_000`, `1,000,000`, `50k`, `10M`, `1.5M`.
///
/// # Errors
/// A sentence, if it is none of these.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let value = parse_rate(text)?;
    let rounded = value.round();
    if (value - rounded).abs() > 1e-6 || rounded > 1e15 {
        return Err(format!("{text}: write a whole number, as in 1000000, 50k or 10M"));
    }
    Ok(rounded as u64)
}

/// The same with a fraction.
///
/// # Errors
/// A sentence, if it is no number.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let plain: String = text.trim().chars().filter(|c| !matches!(c, '_' | ',')).collect();
    let (digits, factor) = match plain.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&plain[..at], 1e3),
        Some((at, 'm' | 'M')) => (&plain[..at], 1e6),
        Some((at, 'g' | 'G')) => (&plain[..at], 1e9),
        _ => (plain.as_str(), 1.0),
    };
    let number = digits.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number
        .map(|number| number * factor)
        .ok_or_else(|| format!("{text}: write a number, as in 1000, 50k or 10M"))
}

/// Reads a size of memory: `24GiB`, `512MiB`, or a number of bytes.
///
/// # Errors
/// A sentence, if it is none.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    text.trim()
        .parse::<millrace_service::ByteSize>()
        .map(millrace_service::ByteSize::as_bytes)
        .map_err(|error| format!("{text}: {error}"))
}

/// `1,234,567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `4.9 kB`, `5.3 GB`: powers of ten, as disks and the measurements have them.
pub fn bytes(value: f64) -> String {
    let (scaled, unit) = match value {
        value if value >= 1e12 => (value / 1e12, "TB"),
        value if value >= 1e9 => (value / 1e9, "GB"),
        value if value >= 1e6 => (value / 1e6, "MB"),
        value if value >= 1e4 => (value / 1e3, "kB"),
        value => return format!("{value:.0} B"),
    };
    if scaled >= 100.0 { format!("{scaled:.0} {unit}") } else { format!("{scaled:.1} {unit}") }
}

/// Microseconds as `12 µs`, `3.42 ms`, `1.2 s`: three significant digits.
pub fn micros(us: f64) -> String {
    let (scaled, unit) = match us {
        us if us >= 1e6 => (us / 1e6, "s"),
        us if us >= 1e3 => (us / 1e3, "ms"),
        us => (us, "µs"),
    };
    format!("{} {unit}", significant(scaled))
}

/// Three significant digits, without an exponent, with separators from 1,000 on.
pub fn significant(value: f64) -> String {
    let size = value.abs();
    if !size.is_finite() {
        return "–".to_owned();
    }
    if size >= 999.5 {
        let sign = if value < 0.0 { "-" } else { "" };
        format!("{sign}{}", count(size.round() as u64))
    } else if size >= 99.95 || size == 0.0 {
        format!("{value:.0}")
    } else if size >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// The same without zeros at the end that say nothing: `1` and not `1.00`.
pub fn plain(value: f64) -> String {
    let text = significant(value);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{bytes, count, micros, parse_bytes, parse_count, parse_rate, plain, significant};

    #[test]
    fn counts_are_read_as_people_write_them() {
        let cases =
            [("1000", 1000), ("1_000", 1000), ("1,000,000", 1_000_000), ("10M", 10_000_000)];
        for (text, value) in cases.into_iter().chain([("1.5M", 1_500_000), ("50k", 50_000)]) {
            assert_eq!(parse_count(text), Ok(value), "{text}");
        }
        assert_eq!(parse_rate("2.5"), Ok(2.5));
        for text in ["", "M", "-1", "ten", "1.5", "1e400", "nan", "inf"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
        assert_eq!(parse_bytes("24GiB"), Ok(24 << 30));
        assert!(parse_bytes("24 apples").is_err());
    }

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!([count(0), count(999), count(1000)], ["0", "999", "1,000"]);
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!([bytes(158.0), bytes(4846.0)], ["158 B", "4846 B"]);
        assert_eq!([bytes(5.3e9), bytes(2.46e11)], ["5.3 GB", "246 GB"]);
        assert_eq!([micros(12.0), micros(3420.0), micros(1.2e6)], ["12.0 µs", "3.42 ms", "1.20 s"]);
        assert_eq!(
            [significant(0.0), significant(1234.5), significant(99.99)],
            ["0", "1,235", "100"]
        );
        assert_eq!(
            [plain(1.0), plain(2.5), plain(100.0), plain(0.05)],
            ["1", "2.5", "100", "0.05"]
        );
    }
}
