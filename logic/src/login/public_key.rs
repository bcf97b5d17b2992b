//! Tokens signed with a private key whose public half is in a PEM file: RS256 (RSA of 2,048 bits or
//! more), ES256 (P-256), ES384 (P-384) or EdDSA (Ed25519), as the key is.
//!
//! The file may hold several keys, for the time while one follows another; a token is good if one of
//! them signed it. Nothing is fetched and nothing is read again: a new file takes a restart.

use async_trait::async_trait;

use super::{
    BadKey, ClaimRules, TokenVerifier, Verified, VerifyError, claims,
    keys::{self, VerifyingKey},
};

/// Verifies tokens with public keys.
pub struct PublicKeyVerifier {
    keys: Vec<VerifyingKey>,
}

impl PublicKeyVerifier {
    /// `pem` holds one or more blocks `-----BEGIN PUBLIC KEY-----`.
    ///
    /// # Errors
    /// [`BadKey`], if one of the blocks is not a key that tokens can be verified with.
    pub fn from_pem(pem: &str, rules: &ClaimRules) -> Result<Self, BadKey> {
        Ok(Self { keys: keys::from_pem(pem, rules)? })
    }
}

#[async_trait]
impl TokenVerifier for PublicKeyVerifier {
    async fn verify(&self, token: &str) -> Result<Verified, VerifyError> {
        let mut refused = VerifyError::BadToken("no key signed it".to_owned());
        for VerifyingKey { key, validation, .. } in &self.keys {
            match claims::verify(token, key, validation) {
                Ok(verified) => return Ok(verified),
                // Its signature is right and it is too old: no other key makes it younger.
                Err(VerifyError::Expired) => return Err(VerifyError::Expired),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
    use millrace_protocol::Code;
    use serde_json::json;

    use super::PublicKeyVerifier;
    use crate::login::{
        ClaimRules, authenticate,
        testing::{ED25519_PUB, P256_PUB, P384_PUB, RSA_PUB, sign},
    };

    async fn verify(pem: &str, token: &str) -> Result<String, Code> {
        let verifier = PublicKeyVerifier::from_pem(pem, &ClaimRules::default()).expect("a key");
        let verified = authenticate(&verifier, "", token).await;
        verified.map(|verified| verified.user_id).map_err(|error| error.code())
    }

    #[tokio::test]
    async fn each_kind_of_key_verifies_its_own_tokens_and_no_others() {
        let keys =
            [("rsa", RSA_PUB), ("p256", P256_PUB), ("p384", P384_PUB), ("ed25519", ED25519_PUB)];
        let claims = json!({"sub": "alice", "exp": get_current_timestamp() + 60});
        for (signer, _) in keys {
            let token = sign(signer, None, &claims);
            for (name, pem) in keys {
                let expected =
                    if name == signer { Ok("alice".into()) } else { Err(Code::BadToken) };
                assert_eq!(verify(pem, &token).await, expected, "{signer} by {name}");
            }
        }
        let old = sign("p256", None, &json!({"sub": "alice", "exp": 1_700_000_000}));
        assert_eq!(verify(P256_PUB, &old).await, Err(Code::TokenExpired));
    }

    #[tokio::test]
    async fn while_keys_change_tokens_of_both_are_good() {
        let both = format!("{P256_PUB}{ED25519_PUB}");
        let claims = json!({"sub": "alice", "exp": get_current_timestamp() + 60});
        for signer in ["p256", "ed25519"] {
            assert_eq!(verify(&both, &sign(signer, None, &claims)).await, Ok("alice".into()));
        }
        assert_eq!(verify(&both, &sign("rsa", None, &claims)).await, Err(Code::BadToken));
        let old = sign("p256", None, &json!({"sub": "alice", "exp": 1_700_000_000}));
        assert_eq!(verify(&both, &old).await, Err(Code::TokenExpired));
    }

    /// The attack of CVE-2015-9235: the public key, which everybody has, as an HS256 secret.
    #[tokio::test]
    async fn a_public_key_is_never_taken_for_a_secret() {
        let claims = json!({"sub": "admin", "exp": get_current_timestamp() + 60});
        for pem in [RSA_PUB, P256_PUB, ED25519_PUB] {
            for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
                for secret in [pem, pem.trim_end()] {
                    let key = EncodingKey::from_secret(secret.as_bytes());
                    let token = encode(&Header::new(algorithm), &claims, &key).expect("signed");
                    assert_eq!(verify(pem, &token).await, Err(Code::BadToken), "{algorithm:?}");
                }
            }
            let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6OTk5OTk5OTk5OX0.";
            assert_eq!(verify(pem, none).await, Err(Code::BadToken));
        }
    }

    #[tokio::test]
    async fn a_header_that_names_another_algorithm_of_the_same_key_is_refused() {
        // RS512 by the right key: the file says what is trusted, not the token.
        let claims = json!({"sub": "alice", "exp": get_current_timestamp() + 60});
        let key =
            EncodingKey::from_rsa_pem(crate::login::testing::RSA_KEY.as_bytes()).expect("a key");
        let token = encode(&Header::new(Algorithm::RS512), &claims, &key).expect("signed");
        assert_eq!(verify(RSA_PUB, &token).await, Err(Code::BadToken));
    }
}
