//! Ranges of bytes in headers (RFC 9110 sections 13 and 14): which bytes a download wants, and which
//! an upload brings.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderName, header};

/// What a download asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The caller has it already.
    Nothing,
    /// The whole file.
    All,
    /// These bytes of it.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Beyond,
}

/// What a download asks for, of a file with this tag and size. A `Range` that is not understood, or
/// that wants several parts, asks for the whole file, as the RFC says.
pub(super) fn asked(headers: &HeaderMap, tag: &str, size: u64) -> Asked {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_tag = |shown: &str| shown.trim().trim_start_matches("W/").trim_matches('"') == tag;
    if let Some(tags) = text(header::IF_NONE_MATCH)
        && tags.split(',').any(|shown| shown.trim() == "*" || is_tag(shown))
    {
        return Asked::Nothing;
    }
    let Some(range) = text(header::RANGE) else { return Asked::All };
    // A weak tag does not do for parts, but ours are all strong.
    if text(header::IF_RANGE).is_some_and(|shown| !is_tag(shown)) {
        return Asked::All;
    }
    let Some((first, last)) = range
        .strip_prefix("bytes=")
        .filter(|range| !range.contains(','))
        .and_then(|range| range.split_once('-'))
    else {
        return Asked::All;
    };
    let parsed = |text: &str| text.trim().parse::<u64>();
    match (first.trim(), last.trim()) {
        ("", last) => match parsed(last) {
            Ok(0) => Asked::Beyond,
            Ok(last_bytes) => Asked::Part(size.saturating_sub(last_bytes)..size),
            Err(_) => Asked::All,
        },
        (first, last) => {
            let last = if last.is_empty() { Ok(u64::MAX) } else { parsed(last) };
            match (parsed(first), last) {
                (Ok(first), Ok(last)) if first > last => Asked::All,
                (Ok(first), Ok(_)) if first >= size => Asked::Beyond,
                (Ok(first), Ok(last)) => Asked::Part(first..last.saturating_add(1).min(size)),
                _ => Asked::All,
            }
        }
    }
}

/// The bytes of `Content-Range: bytes <first>-<last>/<size or *>`.
pub(super) fn content_range(text: &str) -> Option<Range<u64>> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
    let end = last.checked_add(1)?;
    let fits = size.trim() == "*" || size.trim().parse::<u64>().ok()? >= end;
    (first <= last && fits).then_some(first..end)
}

#[cfg(test)]
mod tests {
    use super::{Asked, asked, content_range};
    use axum::http::{HeaderMap, HeaderName, header};

    fn ask(pairs: &[(HeaderName, &str)]) -> Asked {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(name, value.parse().unwrap());
        }
        asked(&headers, "tag", 100)
    }

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        assert_eq!(ask(&[]), Asked::All);
        for (range, wanted) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=10-19", Asked::Part(10..20)),
            ("bytes=90-", Asked::Part(90..100)),
            ("bytes=90-500", Asked::Part(90..100)),
            ("bytes=-10", Asked::Part(90..100)),
            ("bytes=-500", Asked::Part(0..100)),
            ("bytes=0-18446744073709551615", Asked::Part(0..100)),
            ("bytes=100-", Asked::Beyond),
            ("bytes=-0", Asked::Beyond),
            ("bytes=5-4", Asked::All),
            ("bytes=0-1,3-4", Asked::All),
            ("bytes=a-b", Asked::All),
            ("lines=1-2", Asked::All),
            ("bytes=99999999999999999999-", Asked::All),
        ] {
            assert_eq!(ask(&[(header::RANGE, range)]), wanted, "{range}");
        }
    }

    #[test]
    fn tags_decide_whether_anything_is_sent() {
        for tag in ["\"tag\"", "W/\"tag\"", "\"x\", \"tag\"", "*"] {
            assert_eq!(ask(&[(header::IF_NONE_MATCH, tag)]), Asked::Nothing, "{tag}");
        }
        assert_eq!(ask(&[(header::IF_NONE_MATCH, "\"x\"")]), Asked::All);
        let range = (header::RANGE, "bytes=1-2");
        assert_eq!(ask(&[range.clone(), (header::IF_RANGE, "\"tag\"")]), Asked::Part(1..3));
        assert_eq!(ask(&[range, (header::IF_RANGE, "\"older\"")]), Asked::All);
    }

    #[test]
    fn parts_of_an_upload_say_where_they_go() {
        assert_eq!(content_range("bytes 0-9/100"), Some(0..10));
        assert_eq!(content_range("bytes 5-9/*"), Some(5..10));
        for bad in [
            "bytes 9-5/100",
            "bytes 0-100/100",
            "bytes */100",
            "0-9/100",
            "bytes 0-9",
            "bytes 0-18446744073709551615/*",
            "",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
