//! Tokens signed with a shared secret: JWT (RFC 7519) with HS256 (RFC 7518 section 3.2). Claims
//! `sub` (the user) and `exp` (seconds) are required; `nbf` and `iat` are respected if they are there.

use async_trait::async_trait;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

use super::{ClaimRules, TokenVerifier, Verified, VerifyError, claims};

/// Shortest secret: HS256 needs a key of at least the size of its hash (RFC 7518 section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// The secret has less than 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret must have {SECRET_BYTES_MIN} bytes or more, not {0}")]
pub struct SecretTooShort(pub usize);

/// Verifies tokens signed with a shared secret.
pub struct Hs256Verifier {
    key: DecodingKey,
    validation: Validation,
}

impl Hs256Verifier {
    /// What is asked of the tokens beside their signature is in `rules`.
    ///
    /// # Errors
    /// A secret of less than 32 bytes.
    pub fn new(secret: &[u8], rules: &ClaimRules) -> Result<Self, SecretTooShort> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(SecretTooShort(secret.len()));
        }
        let validation = rules.validation(Algorithm::HS256);
        Ok(Self { key: DecodingKey::from_secret(secret), validation })
    }
}

#[async_trait]
impl TokenVerifier for Hs256Verifier {
    async fn verify(&self, token: &str) -> Result<Verified, VerifyError> {
        claims::verify(token, &self.key, &self.validation)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
    use millrace_protocol::Code;
    use serde_json::{Value, json};

    use super::{Hs256Verifier, SecretTooShort};
    use crate::login::{ClaimRules, Verified, authenticate};

    const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

    fn token_with(algorithm: Algorithm, secret: &[u8], claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).expect("signed")
    }

    async fn verify(leeway_s: u64, claimed: &str, token: &str) -> Result<Verified, Code> {
        let rules = ClaimRules { leeway_s, ..ClaimRules::default() };
        let verifier = Hs256Verifier::new(SECRET, &rules).expect("long enough");
        authenticate(&verifier, claimed, token).await.map_err(|error| error.code())
    }

    async fn verify_claims(leeway_s: u64, claims: Value) -> Result<Verified, Code> {
        verify(leeway_s, "", &token_with(Algorithm::HS256, SECRET, &claims)).await
    }

    #[tokio::test]
    async fn a_good_token_names_its_user_and_its_end() {
        let exp = get_current_timestamp() + 60;
        let expected = Verified {
            user_id: "alice".to_owned(),
            expires_at_ms: exp as i64 * 1_000,
            issued_at_ms: None,
        };
        let token = token_with(Algorithm::HS256, SECRET, &json!({"sub": "alice", "exp": exp}));
        assert_eq!(verify(0, "", &token).await, Ok(expected.clone()));
        assert_eq!(verify(0, "alice", &token).await, Ok(expected));
        assert_eq!(verify(0, "bob", &token).await, Err(Code::BadToken));
        assert_eq!(verify(0, "Alice", &token).await, Err(Code::BadToken));
    }

    #[tokio::test]
    async fn an_expired_token_is_told_from_a_bad_one() {
        let now = get_current_timestamp();
        let expired = json!({"sub": "alice", "exp": now - 30});
        assert_eq!(verify_claims(0, expired.clone()).await, Err(Code::TokenExpired));
        let good = verify_claims(60, expired).await.expect("within the leeway");
        assert_eq!(good.expires_at_ms, (now as i64 + 30) * 1_000);
    }

    #[tokio::test]
    async fn whatever_is_wrong_makes_a_bad_token() {
        let exp = get_current_timestamp() + 60;
        for claims in [
            json!({"exp": exp}),
            json!({"sub": "alice"}),
            json!({"sub": "", "exp": exp}),
            json!({"sub": "x".repeat(129), "exp": exp}),
            json!({"sub": 7, "exp": exp}),
            json!({"sub": "alice", "exp": "soon"}),
            json!({"sub": "alice", "exp": exp, "nbf": exp}),
        ] {
            assert_eq!(verify_claims(0, claims.clone()).await, Err(Code::BadToken), "{claims}");
        }
        let claims = json!({"sub": "alice", "exp": exp});
        let good = token_with(Algorithm::HS256, SECRET, &claims);
        let (_, signature) = good.rsplit_once('.').expect("three parts");
        // {"alg":"none","typ":"JWT"} and the claims of somebody else.
        let none =
            "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6OTk5OTk5OTk5OX0.";
        for token in [
            String::new(),
            "...".to_owned(),
            "not a token".to_owned(),
            none.to_owned(),
            format!("{none}{signature}"),
            token_with(Algorithm::HS512, SECRET, &claims),
            token_with(Algorithm::HS256, b"another secret of thirty-two bytes!!", &claims),
            good.replace('.', ".."),
            "x".repeat(1 << 20),
        ] {
            assert_eq!(verify(0, "", &token).await, Err(Code::BadToken), "{:.40}", token);
        }
    }

    #[tokio::test]
    async fn the_moment_of_issue_is_read_as_precisely_as_it_is_told() {
        let exp = get_current_timestamp() + 60;
        for (iat, expected) in [
            (json!(null), Ok(None)),
            (json!(1_700_000_000), Ok(Some(1_700_000_000_000))),
            (json!(1_700_000_000.25), Ok(Some(1_700_000_000_250))),
            (json!(1_795_277_184.001), Ok(Some(1_795_277_184_001))),
            (json!(1_795_277_184.123), Ok(Some(1_795_277_184_123))),
            (json!("yesterday"), Err(Code::BadToken)),
        ] {
            let claims = json!({"sub": "alice", "exp": exp, "iat": iat});
            let found = verify_claims(0, claims).await.map(|verified| verified.issued_at_ms);
            assert_eq!(found, expected, "{iat}");
        }
    }

    #[tokio::test]
    async fn issuer_and_audience_count_once_they_are_asked_for() {
        let exp = get_current_timestamp() + 60;
        let rules = ClaimRules {
            issuer: "https://sso.example".to_owned(),
            audience: "chat".to_owned(),
            leeway_s: 0,
        };
        let strict = Hs256Verifier::new(SECRET, &rules).expect("long enough");
        for (iss, aud, good) in [
            (json!("https://sso.example"), json!("chat"), true),
            (json!("https://sso.example"), json!(["mail", "chat"]), true),
            (json!("https://sso.example"), json!("mail"), false),
            (json!("https://sso.example"), json!([]), false),
            (json!("https://sso.example"), json!(null), false),
            (json!("https://else.example"), json!("chat"), false),
            (json!(null), json!("chat"), false),
            (json!(7), json!("chat"), false),
        ] {
            let claims = json!({"sub": "alice", "exp": exp, "iss": iss, "aud": aud});
            let token = token_with(Algorithm::HS256, SECRET, &claims);
            let found = authenticate(&strict, "", &token).await.map_err(|error| error.code());
            assert_eq!(found.err(), (!good).then_some(Code::BadToken), "{claims}");
            // Who does not ask does not care.
            assert!(verify(0, "", &token).await.is_ok(), "{claims}");
        }
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert_eq!(
            Hs256Verifier::new(&[7; 31], &ClaimRules::default()).err(),
            Some(SecretTooShort(31))
        );
    }
}
