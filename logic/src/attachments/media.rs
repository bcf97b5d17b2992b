//! Whether a file may be here, and whether it is what it says it is.
//!
//! The first bytes of a file tell many formats; what they do not tell is believed, except for
//! pictures, whose formats are all told. A file that says to be a picture and is a program is not
//! taken, whoever sends it.

/// Bytes of a file's beginning that are looked at.
pub(super) const HEAD_BYTES: usize = 8 * 1024;

/// What a file is when nobody says.
pub(super) const UNKNOWN: &str = "application/octet-stream";

/// Whether a text is a media type (RFC 9110 section 8.3.1), without parameters.
pub(super) fn is_media_type(text: &str) -> bool {
    let is_token = |part: &str| {
        let fits = |c: u8| c.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&c);
        !part.is_empty() && part.bytes().all(fits)
    };
    text.len() <= 127
        && text.split_once('/').is_some_and(|(kind, sub)| is_token(kind) && is_token(sub))
}

/// Whether a media type is one of those: `image/png`, `image/*` or `*/*`.
pub(super) fn is_allowed(kind: &str, allowed: &[String]) -> bool {
    allowed.iter().any(|pattern| {
        pattern == "*/*"
            || pattern.eq_ignore_ascii_case(kind)
            || pattern.strip_suffix('*').is_some_and(|prefix| {
                kind.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            })
    })
}

/// Whether a file that begins so is what it says. Err: a sentence.
pub(super) fn check(declared: &str, head: &[u8], allowed: &[String]) -> Result<(), String> {
    let family = |kind: &str| kind.split('/').next().unwrap_or_default().to_ascii_lowercase();
    let found = infer::get(head).map(|found| found.mime_type());
    let declared_family = family(declared);
    let is_media = |family: &str| matches!(family, "image" | "audio" | "video");
    match found {
        Some(found) => {
            let found_family = family(found);
            // A container such as MP4, Ogg or WebM holds sound or pictures, and begins alike.
            let alike = declared_family == found_family
                || (declared_family == "audio" && found_family == "video")
                || (declared_family == "video" && found_family == "audio");
            if (is_media(&declared_family) || is_media(&found_family))
                && !alike
                && declared != UNKNOWN
            {
                return Err(format!("The content is {found}, not {declared}."));
            }
            if !alike && !is_allowed(found, allowed) {
                return Err(format!("Files of type {found} are not taken here."));
            }
            Ok(())
        }
        // SVG is text, and the only picture that does not begin with a mark of its own.
        None if declared_family == "image" && declared != "image/svg+xml" => {
            Err(format!("The content does not look like {declared}."))
        }
        None => Ok(()),
    }
}

/// Whether a browser may show a file of this type in its place, rather than save it: nothing that can
/// hold a script.
pub(super) fn is_shown_inline(kind: &str) -> bool {
    let is_media = ["image/", "audio/", "video/"].iter().any(|family| kind.starts_with(family));
    is_media && kind != "image/svg+xml"
}

#[cfg(test)]
mod tests {
    use super::{check, is_allowed, is_media_type, is_shown_inline};

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
    const ELF: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    const MP4: &[u8] = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41";

    #[test]
    fn a_file_must_be_what_it_says() {
        let all = ["*/*".to_owned()];
        for (declared, head, fits) in [
            ("image/png", PNG, true),
            ("image/jpeg", PNG, true),
            ("application/octet-stream", PNG, true),
            ("text/plain", PNG, false),
            ("image/png", ELF, false),
            ("application/octet-stream", ELF, true),
            ("video/mp4", MP4, true),
            ("audio/mp4", MP4, true),
            ("image/png", MP4, false),
            ("image/png", b"hello", false),
            ("image/png", b"", false),
            ("image/svg+xml", b"<svg xmlns='...'/>", true),
            ("audio/x-raw", b"hello", true),
            ("text/plain", b"hello", true),
        ] {
            assert_eq!(check(declared, head, &all).is_ok(), fits, "{declared} {head:?}");
        }
        // What is found has to be allowed, whatever was said.
        let documents = ["text/*".to_owned(), "application/pdf".to_owned()];
        assert!(check("text/plain", ELF, &documents).is_err());
        assert!(check("application/pdf", b"%PDF-1.7\n", &documents).is_ok());
    }

    #[test]
    fn patterns_allow_types() {
        let allowed = ["image/*".to_owned(), "application/pdf".to_owned()];
        for (kind, is) in [
            ("image/png", true),
            ("IMAGE/PNG", true),
            ("application/pdf", true),
            ("application/pdfx", false),
            ("imagery/png", false),
            ("video/mp4", false),
        ] {
            assert_eq!(is_allowed(kind, &allowed), is, "{kind}");
        }
        assert!(!is_allowed("image/png", &[]));
    }

    #[test]
    fn only_media_types_without_parameters_are_types() {
        for good in ["image/png", "application/vnd.ms-excel", "image/svg+xml"] {
            assert!(is_media_type(good), "{good}");
        }
        for bad in
            ["", "png", "image/", "/png", "a/b/c", "text/html; charset=x", "a/b\r\nc: d", "a b/c"]
        {
            assert!(!is_media_type(bad), "{bad}");
        }
        assert!(is_shown_inline("image/png") && !is_shown_inline("image/svg+xml"));
        assert!(!is_shown_inline("text/html"));
    }
}
