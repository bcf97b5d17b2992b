//! Tokens signed with a shared secret: JWT (RFC 7519) with HS256 (RFC 7518 section 3.2). Claims
//! `sub` (the user) and `exp` (seconds) are required; `nbf` is respected if it is there.

use async_trait::async_trait;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use super::{TokenVerifier, Verified, VerifyError};
use crate::storage::limits::USER_ID_BYTES_MAX;

/// Shortest secret: HS256 needs a key of at least the size of its hash (RFC 7518 section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// The secret has less than 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret must have {SECRET_BYTES_MIN} bytes or more, not {0}")]
pub struct SecretTooShort(pub usize);

/// Verifies tokens signed with a shared secret.
pub struct Hs256Verifier {
    key: DecodingKey,
    validation: Validation,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
}

impl Hs256Verifier {
    /// `leeway_s` is how many seconds after `exp`, and before `nbf`, a token is still good, for
    /// clocks that differ.
    ///
    /// # Errors
    /// A secret of less than 32 bytes.
    pub fn new(secret: &[u8], leeway_s: u64) -> Result<Self, SecretTooShort> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(SecretTooShort(secret.len()));
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["sub", "exp"]);
        validation.leeway = leeway_s;
        validation.validate_nbf = true;
        // Whom a token is for is the business of whoever shares the secret.
        validation.validate_aud = false;
        Ok(Self { key: DecodingKey::from_secret(secret), validation })
    }
}

#[async_trait]
impl TokenVerifier for Hs256Verifier {
    async fn verify(&self, token: &str) -> Result<Verified, VerifyError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(VerifyError::BadToken("it is too long".to_owned()));
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| refusal(error.kind()))?
            .claims;
        if claims.sub.is_empty() || claims.sub.len() > USER_ID_BYTES_MAX {
            let reason = format!("sub must have 1 to {USER_ID_BYTES_MAX} bytes");
            return Err(VerifyError::BadToken(reason));
        }
        // A session lives as long as its token is accepted, which includes the leeway. The
        // conversion saturates, so a far future stays a far future.
        let expires_at_ms = (claims.exp + self.validation.leeway as f64) * 1_000.0;
        Ok(Verified { user_id: claims.sub, expires_at_ms: expires_at_ms as i64 })
    }
}

/// A sentence for each way a token can be wrong; what the library says may quote the token.
fn refusal(kind: &ErrorKind) -> VerifyError {
    let reason = match kind {
        ErrorKind::ExpiredSignature => return VerifyError::Expired,
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            "it is not signed with HS256"
        }
        ErrorKind::ImmatureSignature => "it is not good yet",
        ErrorKind::MissingRequiredClaim(claim) if claim == "sub" => "it has no sub",
        ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => "it has no exp",
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => {
            "a claim is missing or malformed"
        }
        _ => "it is not a JWT that can be read",
    };
    VerifyError::BadToken(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
    use millrace_protocol::Code;
    use serde_json::{Value, json};

    use super::{Hs256Verifier, SecretTooShort};
    use crate::login::{Verified, authenticate};

    const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

    fn token_with(algorithm: Algorithm, secret: &[u8], claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).expect("signed")
    }

    async fn verify(leeway_s: u64, claimed: &str, token: &str) -> Result<Verified, Code> {
        let verifier = Hs256Verifier::new(SECRET, leeway_s).expect("long enough");
        authenticate(&verifier, claimed, token).await.map_err(|error| error.code())
    }

    async fn verify_claims(leeway_s: u64, claims: Value) -> Result<Verified, Code> {
        verify(leeway_s, "", &token_with(Algorithm::HS256, SECRET, &claims)).await
    }

    #[tokio::test]
    async fn a_good_token_names_its_user_and_its_end() {
        let exp = get_current_timestamp() + 60;
        let expected = Verified { user_id: "alice".to_owned(), expires_at_ms: exp as i64 * 1_000 };
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

    #[test]
    fn a_short_secret_is_refused() {
        assert_eq!(Hs256Verifier::new(&[7; 31], 0).err(), Some(SecretTooShort(31)));
    }
}
