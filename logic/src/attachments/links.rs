//! Links: URLs that are good without a token until they expire, signed with HMAC-SHA-256.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// Signs and checks links.
pub(super) struct Links {
    key: [u8; 32],
}

impl Links {
    /// The key of links is derived, so that a link tells nothing about the secret's other uses.
    pub(super) fn new(secret: &[u8]) -> Self {
        Self { key: sign(secret, b"millrace attachment links") }
    }

    /// The query of a link that is good until then, in milliseconds since 1970.
    pub(super) fn query(&self, attachment_id: &str, expires_at_ms: i64) -> String {
        let signature = hex(&self.signature(attachment_id, expires_at_ms));
        format!("expires={expires_at_ms}&signature={signature}")
    }

    /// Whether this is the signature of a link that is good now.
    pub(super) fn is_good(
        &self,
        attachment_id: &str,
        expires_at_ms: i64,
        signature: &str,
        now_ms: i64,
    ) -> bool {
        use subtle::ConstantTimeEq as _;
        let wanted = hex(&self.signature(attachment_id, expires_at_ms));
        let fits = bool::from(wanted.as_bytes().ct_eq(signature.as_bytes()));
        fits && now_ms < expires_at_ms
    }

    fn signature(&self, attachment_id: &str, expires_at_ms: i64) -> [u8; 32] {
        sign(&self.key, format!("{attachment_id}\n{expires_at_ms}").as_bytes())
    }
}

fn sign(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length (RFC 2104)");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::Links;

    #[test]
    fn a_link_is_good_for_its_file_until_its_time() {
        let links = Links::new(b"secret");
        let query = links.query("at_1", 1_000);
        let signature = query.split_once("signature=").unwrap().1;
        assert!(links.is_good("at_1", 1_000, signature, 999));
        assert!(!links.is_good("at_1", 1_000, signature, 1_000), "expired");
        assert!(!links.is_good("at_1", 2_000, signature, 999), "prolonged");
        assert!(!links.is_good("at_2", 1_000, signature, 999), "another file");
        assert!(!links.is_good("at_1", 1_000, "", 999));
        assert!(!Links::new(b"other").is_good("at_1", 1_000, signature, 999));
    }
}
