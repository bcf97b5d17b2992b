//! What every JWT (RFC 7519) has to say, whoever signed it: which claims are read, and a sentence
//! for each way in which they can be wrong. Signatures and keys are the callers' business.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::Deserialize;

use super::{Verified, VerifyError};
use crate::storage::limits::USER_ID_BYTES_MAX;

/// Longest token that is looked at, in bytes.
pub(super) const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// What is asked of a token beside its signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimRules {
    /// How many seconds after `exp`, and before `nbf`, a token is still good, for clocks that
    /// differ.
    pub leeway_s: u64,
    /// What `iss` must be; empty: it is not looked at.
    pub issuer: String,
    /// What `aud` must be or hold; empty: it is not looked at.
    pub audience: String,
}

impl ClaimRules {
    /// The rules for tokens signed with one of these algorithms and no other.
    pub(super) fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.leeway_s;
        validation.validate_nbf = true;
        let mut required = vec!["sub", "exp"];
        if !self.issuer.is_empty() {
            validation.set_issuer(&[&self.issuer]);
            required.push("iss");
        }
        if self.audience.is_empty() {
            // Whom a token is for is the business of whoever shares the key.
            validation.validate_aud = false;
        } else {
            validation.set_audience(&[&self.audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    iat: Option<f64>,
}

/// Refuses what is too long to be looked at.
pub(super) fn check_length(token: &str) -> Result<(), VerifyError> {
    match token.len() > TOKEN_BYTES_MAX {
        true => Err(VerifyError::BadToken("it is too long".to_owned())),
        false => Ok(()),
    }
}

/// Verifies the signature and the claims, and says whose the token is.
pub(super) fn verify(
    token: &str,
    key: &DecodingKey,
    validation: &Validation,
) -> Result<Verified, VerifyError> {
    check_length(token)?;
    let claims = jsonwebtoken::decode::<Claims>(token, key, validation)
        .map_err(|error| refusal(error.kind(), validation))?
        .claims;
    check_user_id(&claims.sub)?;
    // A session lives as long as its token is accepted, which includes the leeway. The conversions
    // saturate, so a far future stays a far future.
    let expires_at_ms = (claims.exp + validation.leeway as f64) * 1_000.0;
    Ok(Verified {
        user_id: claims.sub,
        expires_at_ms: expires_at_ms as i64,
        // To the nearest, because a fraction of a second has no exact binary form.
        issued_at_ms: claims.iat.map(|seconds| (seconds * 1_000.0).round() as i64),
    })
}

fn check_user_id(user_id: &str) -> Result<(), VerifyError> {
    match (1..=USER_ID_BYTES_MAX).contains(&user_id.len()) {
        true => Ok(()),
        false => {
            Err(VerifyError::BadToken(format!("sub must have 1 to {USER_ID_BYTES_MAX} bytes")))
        }
    }
}

/// A sentence for each way a token can be wrong; what the library says may quote the token.
pub(super) fn refusal(kind: &ErrorKind, validation: &Validation) -> VerifyError {
    let reason = match kind {
        ErrorKind::ExpiredSignature => return VerifyError::Expired,
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            let expected = validation.algorithms.first();
            let reason = expected.map(|algorithm| format!("it is not signed with {algorithm:?}"));
            return VerifyError::BadToken(reason.unwrap_or_default());
        }
        ErrorKind::ImmatureSignature => "it is not good yet",
        ErrorKind::InvalidIssuer => "it is not from the issuer that is trusted here (iss)",
        ErrorKind::InvalidAudience => "it is not meant for this service (aud)",
        ErrorKind::MissingRequiredClaim(claim) => {
            return VerifyError::BadToken(match claim.as_str() {
                "sub" | "exp" | "iss" | "aud" => format!("it has no {claim}"),
                _ => "a claim is missing".to_owned(),
            });
        }
        ErrorKind::InvalidClaimFormat(_) => "a claim is malformed",
        _ => "it is not a JWT that can be read",
    };
    VerifyError::BadToken(reason.to_owned())
}
