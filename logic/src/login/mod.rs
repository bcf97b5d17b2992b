//! Who may come in: whose a token is, and how many sessions a user may have.
//!
//! Both are decisions only. Who asks for them, and who tells the client, is the chat domain.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;

mod claims;
mod external;
mod fetch;
mod hs256;
mod jwks;
mod keys;
mod policy;
mod public_key;
mod replay;
#[cfg(test)]
mod testing;

pub use claims::ClaimRules;
pub use external::{ExternalVerifier, ExternalVerifierSettings};
pub use fetch::FetchError;
pub use hs256::{Hs256Verifier, SecretTooShort};
pub use jwks::{JwksSettings, JwksVerifier};
pub use keys::BadKey;
pub use policy::{DeviceClass, Kick, SessionPolicy, WhenFull};
pub use public_key::PublicKeyVerifier;
pub use replay::{ReplayCheck, ReplayGuard, ReplaySettings};

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The user; never empty.
    pub user_id: String,
    /// Until when, milliseconds since 1970; 0: for ever.
    pub expires_at_ms: i64,
    /// When the token was issued, milliseconds since 1970; `None`: it does not say.
    pub issued_at_ms: Option<i64>,
}

/// Why a token was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It was never good: the sentence says what is wrong and gives no secret away.
    #[error("The token is not valid: {0}.")]
    BadToken(String),
    /// It was good once.
    #[error("The token has expired; log in with a new one.")]
    Expired,
    /// Nobody can tell at the moment.
    #[error("Tokens cannot be checked at the moment: {0}.")]
    Unavailable(String),
}

impl VerifyError {
    /// The code of the refusal.
    pub const fn code(&self) -> Code {
        match self {
            Self::BadToken(_) => Code::BadToken,
            Self::Expired => Code::TokenExpired,
            Self::Unavailable(_) => Code::LogicUnavailable,
        }
    }
}

impl From<VerifyError> for Refused {
    fn from(error: VerifyError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Tells whose a token is.
#[async_trait]
pub trait TokenVerifier: Send + Sync + 'static {
    /// Verifies a token. May wait, for a key server say.
    ///
    /// # Errors
    /// [`VerifyError`].
    async fn verify(&self, token: &str) -> Result<Verified, VerifyError>;
}

/// Verifies a token and that it belongs to the user the client claims to be; a client need not
/// claim anything.
///
/// # Errors
/// [`VerifyError`]; a claim that is not the token's user is a bad token.
pub async fn authenticate(
    verifier: &dyn TokenVerifier,
    claimed_user_id: &str,
    token: &str,
) -> Result<Verified, VerifyError> {
    let verified = verifier.verify(token).await?;
    if !claimed_user_id.is_empty() && claimed_user_id != verified.user_id {
        return Err(VerifyError::BadToken("it belongs to another user".to_owned()));
    }
    Ok(verified)
}
