//! Which [`TokenVerifier`] a configuration asks for.

use std::{fs, io::Read as _, path::Path, sync::Arc};

use millrace_service::Invalid;

use crate::{
    config::{Login, LoginMethod, Secrets},
    login::{ExternalVerifier, Hs256Verifier, JwksVerifier, PublicKeyVerifier, TokenVerifier},
};

/// Largest file of public keys that is read, in bytes.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Makes it. Nothing is fetched yet.
pub(super) fn verifier(
    login: &Login,
    secrets: &Secrets,
) -> Result<Arc<dyn TokenVerifier>, Invalid> {
    let wrong = |key: &str, error: &dyn std::fmt::Display| Invalid::new(key, error.to_string());
    let rules = login.rules();
    Ok(match login.method {
        LoginMethod::Secret => Arc::new(
            Hs256Verifier::new(secrets.jwt_secret.as_bytes(), &rules)
                .map_err(|error| wrong("login.jwt_secret", &error))?,
        ),
        LoginMethod::PublicKey => {
            let path = &login.public_key_file;
            let key = "login.public_key_file";
            let pem = read(path).map_err(|error| wrong(key, &named(path, &error)))?;
            let made = PublicKeyVerifier::from_pem(&pem, &rules);
            Arc::new(made.map_err(|error| wrong(key, &named(path, &error)))?)
        }
        LoginMethod::Jwks => Arc::new(
            JwksVerifier::new(login.jwks_settings(), rules)
                .map_err(|error| wrong("login.jwks.url", &error))?,
        ),
        LoginMethod::Http => Arc::new(
            ExternalVerifier::new(login.http_settings(secrets.login_http_token.clone()))
                .map_err(|error| wrong("login.http.url", &error))?,
        ),
    })
}

fn named(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(PEM_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
