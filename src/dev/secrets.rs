//! The secrets and the ready-made users of a development data directory.
//!
//! They are made at the first start and kept in the data directory, readable by its owner alone, so
//! that tokens survive a restart. A real deployment brings its own secrets.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::{Rng, distr::Alphanumeric};
use serde::{Deserialize, Serialize};

/// Length of a secret in characters of 62 kinds: 40 of them hold 238 bits.
const SECRET_CHARACTERS: usize = 40;

/// How long a ready-made token is good.
const TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// What signs the clients' tokens and what opens the HTTP door.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Secrets {
    pub(super) jwt_secret: String,
    pub(super) api_token: String,
}

/// A ready-made user.
#[derive(Clone, Debug, Serialize)]
pub(super) struct User {
    pub(super) user_id: String,
    pub(super) token: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: u64,
}

impl Secrets {
    /// Reads the secrets of a data directory, or makes them.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("development-secrets.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} is damaged ({error}); remove it to get new ones", path.display()),
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secrets = Self { jwt_secret: secret(), api_token: secret() };
                fs::create_dir_all(directory)?;
                let mut file =
                    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                file.write_all(&serde_json::to_vec_pretty(&secrets)?)?;
                file.sync_all()?;
                Ok(secrets)
            }
            Err(error) => Err(error),
        }
    }

    /// A user with a fresh token.
    pub(super) fn user(&self, user_id: &str) -> User {
        let expires = SystemTime::now() + TOKEN_LIFETIME;
        let exp = expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let token = jsonwebtoken::encode(
            &jsonwebtoken::Header::default(),
            &Claims { sub: user_id, exp },
            &jsonwebtoken::EncodingKey::from_secret(self.jwt_secret.as_bytes()),
        )
        .expect("HS256 with a secret of ours signs any claims");
        User { user_id: user_id.to_owned(), token }
    }
}

fn secret() -> String {
    rand::rng().sample_iter(Alphanumeric).take(SECRET_CHARACTERS).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::Secrets;

    #[test]
    fn secrets_survive_a_restart_and_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().expect("a directory");
        let first = Secrets::open(directory.path()).expect("made");
        let second = Secrets::open(directory.path()).expect("read");
        assert_eq!(first.jwt_secret, second.jwt_secret);
        assert_eq!(first.api_token, second.api_token);
        assert_ne!(first.jwt_secret, first.api_token);
        let file = directory.path().join("development-secrets.json");
        let mode = std::fs::metadata(file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
