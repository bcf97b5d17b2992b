//! Public keys that tokens are verified with, from PEM or from a JSON Web Key (RFC 7517).
//!
//! A key knows the one algorithm its tokens are signed with; what a token's header claims never
//! chooses it. So a public key can never be taken for an HS256 secret.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde_json::Value;

use super::ClaimRules;

/// Most keys of one file or set; further ones are refused (file) or left out (set).
pub const KEYS_MAX: usize = 64;

/// Shortest RSA modulus, in bits (RFC 7518 section 3.3).
const RSA_BITS_MIN: usize = 2_048;

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// There is no PEM block.
    #[error("there is no block -----BEGIN PUBLIC KEY-----")]
    NoPem,
    /// A private key has no place here.
    #[error("it holds a private key; only the public half belongs here")]
    Private,
    /// More than [`KEYS_MAX`].
    #[error("it holds more than {KEYS_MAX} keys")]
    TooMany,
    /// The block cannot be read, or its kind is not one of those known.
    #[error("it is not an RSA, P-256, P-384 or Ed25519 public key")]
    Unknown,
    /// An RSA key of less than 2,048 bits.
    #[error("its RSA key has {0} bits; {RSA_BITS_MIN} is the least")]
    TooShort(usize),
}

/// A key, with what is asked of the tokens that it signed.
#[derive(Clone)]
pub(super) struct VerifyingKey {
    pub id: Option<String>,
    pub key: DecodingKey,
    pub validation: Validation,
}

impl VerifyingKey {
    /// The one algorithm of its tokens.
    pub(super) fn algorithm(&self) -> Algorithm {
        self.validation.algorithms[0]
    }
}

/// All keys of a PEM file, in order. More than one is for the time while keys change.
pub(super) fn from_pem(text: &str, rules: &ClaimRules) -> Result<Vec<VerifyingKey>, BadKey> {
    const BEGIN: &str = "-----BEGIN ";
    let starts: Vec<usize> = text.match_indices(BEGIN).map(|(start, _)| start).collect();
    if starts.is_empty() {
        return Err(BadKey::NoPem);
    }
    if starts.len() > KEYS_MAX {
        return Err(BadKey::TooMany);
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let key = |(start, end): (&usize, usize)| one_pem(&text[*start..end], rules);
    starts.iter().zip(ends).map(key).collect()
}

fn one_pem(block: &str, rules: &ClaimRules) -> Result<VerifyingKey, BadKey> {
    let label = block.lines().next().unwrap_or_default();
    if label.contains("PRIVATE KEY") {
        return Err(BadKey::Private);
    }
    // A certificate has several bit strings, and the first is not its key.
    if !label.contains("PUBLIC KEY") {
        return Err(BadKey::Unknown);
    }
    let bytes = block.as_bytes();
    let (algorithm, key) = if let Ok(key) = DecodingKey::from_ed_pem(bytes) {
        (Algorithm::EdDSA, key)
    } else if let Ok(key) = DecodingKey::from_ec_pem(bytes) {
        // An uncompressed point: 4, x, y.
        match key.try_get_as_bytes().map_err(|_| BadKey::Unknown)?.len() {
            65 => (Algorithm::ES256, key),
            97 => (Algorithm::ES384, key),
            _ => return Err(BadKey::Unknown),
        }
    } else {
        let key = DecodingKey::from_rsa_pem(bytes).map_err(|_| BadKey::Unknown)?;
        let der = key.try_get_as_bytes().map_err(|_| BadKey::Unknown)?;
        let bits = rsa_bits(der).ok_or(BadKey::Unknown)?;
        if bits < RSA_BITS_MIN {
            return Err(BadKey::TooShort(bits));
        }
        (Algorithm::RS256, key)
    };
    Ok(VerifyingKey { id: None, key, validation: rules.validation(algorithm) })
}

/// The bits of the modulus of a PKCS #1 key: a sequence whose first member is the modulus.
fn rsa_bits(der: &[u8]) -> Option<usize> {
    let (tag, sequence) = der_value(der)?;
    let (inner, modulus) = der_value(sequence)?;
    if (tag, inner) != (0x30, 0x02) {
        return None;
    }
    Some(bits(modulus))
}

/// The tag and the contents of the first DER value.
fn der_value(der: &[u8]) -> Option<(u8, &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    Some((tag, rest.get(..length)?))
}

fn bits(number: &[u8]) -> usize {
    let significant = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let number = &number[significant..];
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

/// A key of a set; `None` for those that are not for verifying tokens, or of a kind not known.
/// Symmetric keys (`oct`) never are: who publishes one has published a secret.
pub(super) fn from_jwk(key: &Value, rules: &ClaimRules) -> Option<VerifyingKey> {
    let jwk: Jwk = serde_json::from_value(key.clone()).ok()?;
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => {
            let modulus = URL_SAFE_NO_PAD.decode(&rsa.n).ok()?;
            if bits(&modulus) < RSA_BITS_MIN {
                return None;
            }
            match jwk.common.key_algorithm {
                None | Some(KeyAlgorithm::RS256) => Algorithm::RS256,
                Some(KeyAlgorithm::RS384) => Algorithm::RS384,
                Some(KeyAlgorithm::RS512) => Algorithm::RS512,
                Some(KeyAlgorithm::PS256) => Algorithm::PS256,
                Some(KeyAlgorithm::PS384) => Algorithm::PS384,
                Some(KeyAlgorithm::PS512) => Algorithm::PS512,
                Some(_) => return None,
            }
        }
        AlgorithmParameters::EllipticCurve(ec) => match (&ec.curve, jwk.common.key_algorithm) {
            (EllipticCurve::P256, None | Some(KeyAlgorithm::ES256)) => Algorithm::ES256,
            (EllipticCurve::P384, None | Some(KeyAlgorithm::ES384)) => Algorithm::ES384,
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(pair) => match (&pair.curve, jwk.common.key_algorithm) {
            (EllipticCurve::Ed25519, None | Some(KeyAlgorithm::EdDSA)) => Algorithm::EdDSA,
            _ => return None,
        },
        _ => return None,
    };
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    let validation = rules.validation(algorithm);
    Some(VerifyingKey { id: jwk.common.key_id, key: decoding, validation })
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;
    use serde_json::json;

    use super::{BadKey, KEYS_MAX, from_jwk, from_pem};
    use crate::login::{
        ClaimRules,
        testing::{ED25519_PUB, P256_PUB, P384_PUB, RSA_KEY, RSA_PUB, WEAK_PUB, jwk},
    };

    fn algorithms(text: &str) -> Result<Vec<Algorithm>, BadKey> {
        let keys = from_pem(text, &ClaimRules::default())?;
        Ok(keys.iter().map(super::VerifyingKey::algorithm).collect())
    }

    #[test]
    fn a_pem_key_knows_its_one_algorithm() {
        assert_eq!(algorithms(RSA_PUB), Ok(vec![Algorithm::RS256]));
        assert_eq!(algorithms(P256_PUB), Ok(vec![Algorithm::ES256]));
        assert_eq!(algorithms(P384_PUB), Ok(vec![Algorithm::ES384]));
        assert_eq!(algorithms(ED25519_PUB), Ok(vec![Algorithm::EdDSA]));
        let both = format!("# while keys change\n{P256_PUB}{RSA_PUB}");
        assert_eq!(algorithms(&both), Ok(vec![Algorithm::ES256, Algorithm::RS256]));
    }

    #[test]
    fn what_is_no_public_key_is_refused_with_the_reason() {
        assert_eq!(algorithms(""), Err(BadKey::NoPem));
        assert_eq!(algorithms("a secret of thirty-two bytes, no key"), Err(BadKey::NoPem));
        assert_eq!(algorithms(RSA_KEY), Err(BadKey::Private));
        assert_eq!(algorithms(&format!("{RSA_PUB}{RSA_KEY}")), Err(BadKey::Private));
        assert_eq!(algorithms(WEAK_PUB), Err(BadKey::TooShort(1_024)));
        assert_eq!(algorithms(&P256_PUB.repeat(KEYS_MAX + 1)), Err(BadKey::TooMany));
        let cut = RSA_PUB.replace('M', "");
        for text in [&cut, "-----BEGIN PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
            assert_eq!(algorithms(text), Err(BadKey::Unknown), "{text}");
        }
    }

    #[test]
    fn only_keys_that_verify_tokens_are_taken_from_a_set() {
        let rules = ClaimRules::default();
        let algorithm = |key| from_jwk(&key, &rules).map(|key| key.algorithm());
        let with = |mut key: serde_json::Value, name: &str, value: &str| {
            key[name] = json!(value);
            key
        };
        let rsa = jwk("rsa", "1");
        assert_eq!(algorithm(rsa.clone()), Some(Algorithm::RS256));
        assert_eq!(algorithm(with(rsa.clone(), "alg", "PS512")), Some(Algorithm::PS512));
        assert_eq!(algorithm(jwk("p256", "1")), Some(Algorithm::ES256));
        assert_eq!(algorithm(jwk("ed25519", "1")), Some(Algorithm::EdDSA));
        for useless in [
            with(rsa.clone(), "alg", "HS256"),
            with(rsa.clone(), "alg", "ES256"),
            with(rsa.clone(), "alg", "RSA-OAEP"),
            with(rsa.clone(), "use", "enc"),
            with(rsa.clone(), "n", "AQAB"),
            with(rsa, "n", "not base64!"),
            with(jwk("p256", "1"), "alg", "ES384"),
            with(jwk("p256", "1"), "crv", "P-521"),
            json!({"kty": "oct", "k": "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldA", "kid": "1"}),
            json!({"kty": "a kind of the future"}),
            json!("no object"),
        ] {
            assert_eq!(algorithm(useless.clone()), None, "{useless}");
        }
    }
}
