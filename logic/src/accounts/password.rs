//! Hashing and checking of passwords: argon2id (RFC 9106), off the threads that serve others, so
//! many at once and no more.

use std::sync::Arc;

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use tokio::sync::Semaphore;

use super::UsersSettings;

/// Longest password, in bytes: argon2 takes more, and nobody types it.
pub(super) const PASSWORD_BYTES_MAX: usize = 256;

/// See the module.
pub(super) struct Passwords {
    argon2: Argon2<'static>,
    in_flight: Arc<Semaphore>,
    /// Running and waiting.
    admitted: Arc<Semaphore>,
    /// The hash of no password, for users that do not exist.
    nobody: Arc<str>,
}

impl Passwords {
    /// # Errors
    /// Parameters that argon2 does not take.
    pub(super) fn new(settings: &UsersSettings) -> Result<Self, String> {
        let params = Params::new(
            settings.argon2_memory_kib,
            settings.argon2_iterations,
            settings.argon2_lanes,
            None,
        )
        .map_err(|error| format!("argon2 does not take these parameters: {error}"))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let nobody = argon2
            .hash_password(b"nobody has this password")
            .map_err(|error| format!("argon2 cannot hash: {error}"))?
            .to_string();
        let in_flight = settings.hashes_in_flight_max.max(1);
        Ok(Self {
            argon2,
            in_flight: Arc::new(Semaphore::new(in_flight)),
            admitted: Arc::new(Semaphore::new(in_flight + settings.hashes_waiting_max)),
            nobody: nobody.into(),
        })
    }

    /// The hash of a new password, in the PHC string format.
    ///
    /// # Errors
    /// `over_capacity` when too many wait already.
    pub(super) async fn hash(&self, password: String) -> Result<String, Refused> {
        let argon2 = self.argon2.clone();
        let hashed =
            self.run(move || argon2.hash_password(password.as_bytes()).map(|h| h.to_string()));
        hashed.await?.map_err(|error| {
            tracing::error!(%error, "a password was not hashed");
            Refused::from(Code::Internal)
        })
    }

    /// Whether this is the password of the hash. An empty hash is nobody's, and takes as long.
    ///
    /// # Errors
    /// `over_capacity` when too many wait already.
    pub(super) async fn verify(&self, password: String, hash: &str) -> Result<bool, Refused> {
        let is_somebody = !hash.is_empty();
        let hash: Arc<str> = if is_somebody { hash.into() } else { Arc::clone(&self.nobody) };
        let argon2 = self.argon2.clone();
        let verified = self.run(move || {
            // The parameters of the hash count, so that passwords survive a change of settings.
            PasswordHash::new(&hash)
                .is_ok_and(|hash| argon2.verify_password(password.as_bytes(), &hash).is_ok())
        });
        Ok(verified.await? && is_somebody)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let busy = || {
            let reason = "Too many passwords are being checked; try again in a moment.";
            Refused::new(Code::OverCapacity, reason).retry_after(1_000)
        };
        let admitted = Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| busy())?;
        let permit = Arc::clone(&self.in_flight).acquire_owned().await.map_err(|_| busy())?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop((permit, admitted));
            done
        });
        done.await.map_err(|error| {
            tracing::error!(%error, "hashing ended");
            Refused::from(Code::Internal)
        })
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::Code;

    use super::{Passwords, UsersSettings};

    fn passwords(hashes_waiting_max: usize) -> Passwords {
        let settings = UsersSettings {
            argon2_memory_kib: 64,
            argon2_iterations: 1,
            hashes_in_flight_max: 1,
            hashes_waiting_max,
            ..UsersSettings::default()
        };
        Passwords::new(&settings).unwrap()
    }

    #[tokio::test]
    async fn a_password_is_recognised_and_no_other() {
        let passwords = passwords(8);
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{hash}");
        assert_ne!(hash, passwords.hash("correct horse".into()).await.unwrap(), "salted");
        assert!(passwords.verify("correct horse".into(), &hash).await.unwrap());
        for wrong in ["correct horsf", "", "correct horse "] {
            assert!(!passwords.verify(wrong.into(), &hash).await.unwrap(), "{wrong}");
        }
        assert!(!passwords.verify("nobody has this password".into(), "").await.unwrap());
        assert!(!passwords.verify("x".into(), "not a hash").await.unwrap());
        // Hashes of earlier settings go on working.
        let before =
            Passwords::new(&UsersSettings { argon2_memory_kib: 128, ..UsersSettings::default() });
        let hash = before.unwrap().hash("old".into()).await.unwrap();
        assert!(passwords.verify("old".into(), &hash).await.unwrap());
    }

    #[tokio::test]
    async fn more_than_may_wait_are_refused() {
        let passwords = passwords(2);
        let held = passwords.in_flight.acquire().await.unwrap();
        let asked = (0..5).map(|_| passwords.hash("password".into()));
        let mut asked: Vec<_> = asked.map(Box::pin).collect();
        let mut refused = 0;
        for one in &mut asked {
            match futures::poll!(one) {
                std::task::Poll::Ready(Err(error)) => {
                    assert_eq!((error.code, error.retry_after_ms), (Code::OverCapacity, 1_000));
                    refused += 1;
                }
                std::task::Poll::Ready(Ok(_)) => panic!("nothing may run"),
                std::task::Poll::Pending => {}
            }
        }
        assert_eq!(refused, 2, "one may run and two may wait");
        drop(held);
        for one in asked.into_iter().take(3) {
            one.await.unwrap();
        }
    }
}
