//! Where the system under test is: addresses and secrets, from arguments or from the ready line
//! of `millrace dev --json`.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::Path,
};

use crate::{client::Endpoint, exit::RunError};

/// Addresses and secrets, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct Target {
    /// `host:port` of the TCP listener.
    pub tcp: Option<String>,
    /// `ws://host:port/ws`.
    pub websocket: Option<String>,
    /// `http://host:port` of the logic tier.
    pub http: Option<String>,
    /// HS256 secret of development tokens.
    pub jwt_secret: Option<String>,
    /// Bearer token of the HTTP API.
    pub api_token: Option<String>,
    /// Where to connect from; empty: the kernel's choice, or as many loopback addresses as it takes.
    pub source_addresses: Vec<IpAddr>,
}

impl Target {
    /// Reads the first line of JSON from a file, or from standard input for `-`.
    ///
    /// # Errors
    /// The file cannot be read, or holds no ready line.
    pub fn from_ready_line(path: &Path) -> Result<Self, RunError> {
        let explain = |what: String| {
            RunError::bad_arguments(format!("--dev-json {}: {what}", path.display()))
        };
        let mut line = String::new();
        if path.as_os_str() == "-" {
            std::io::stdin().lock().read_line(&mut line)
        } else {
            std::fs::File::open(path).and_then(|file| BufReader::new(file).read_line(&mut line))
        }
        .map_err(|error| explain(error.to_string()))?;
        serde_json::from_str(&line)
            .map_err(|error| explain(format!("not the ready line of `dev --json`: {error}")))
    }

    /// These values, with `other`'s where they are missing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            tcp: self.tcp.or(other.tcp),
            websocket: self.websocket.or(other.websocket),
            http: self.http.or(other.http),
            jwt_secret: self.jwt_secret.or(other.jwt_secret),
            api_token: self.api_token.or(other.api_token),
            source_addresses: if self.source_addresses.is_empty() {
                other.source_addresses
            } else {
                self.source_addresses
            },
        }
    }

    /// The TCP listener.
    ///
    /// # Errors
    /// No address is given, or it is not one.
    pub fn tcp_endpoint(&self) -> Result<Endpoint, RunError> {
        let text = required(self.tcp.as_ref(), "--tcp")?;
        Ok(Endpoint { address: resolve(text, "--tcp")?, host: text.clone(), path: String::new() })
    }

    /// The WebSocket listener.
    ///
    /// # Errors
    /// No address is given, or it is not one.
    pub fn websocket_endpoint(&self) -> Result<Endpoint, RunError> {
        websocket_endpoint(required(self.websocket.as_ref(), "--websocket")?)
    }

    /// The base of the HTTP API, without a slash at the end.
    ///
    /// # Errors
    /// No address is given, or it is not one.
    pub fn http_base(&self) -> Result<String, RunError> {
        let text = required(self.http.as_ref(), "--http")?;
        if !text.starts_with("http://") {
            return Err(RunError::bad_arguments(format!(
                "--http {text}: must be http://host:port"
            )));
        }
        Ok(text.trim_end_matches('/').to_owned())
    }

    /// The secret of the tokens.
    ///
    /// # Errors
    /// None is given.
    pub fn secret(&self) -> Result<&str, RunError> {
        required(self.jwt_secret.as_ref(), "--jwt-secret").map(String::as_str)
    }

    /// The token of the HTTP API.
    ///
    /// # Errors
    /// None is given.
    pub fn api_token(&self) -> Result<&str, RunError> {
        required(self.api_token.as_ref(), "--api-token").map(String::as_str)
    }
}

fn required<'a>(value: Option<&'a String>, option: &str) -> Result<&'a String, RunError> {
    value.ok_or_else(|| {
        RunError::bad_arguments(format!("{option} is missing; give it, or --dev-json FILE"))
    })
}

/// Reads `ws://host:port/path`.
///
/// # Errors
/// It is none.
pub fn websocket_endpoint(url: &str) -> Result<Endpoint, RunError> {
    let Some(rest) = url.strip_prefix("ws://") else {
        return Err(RunError::bad_arguments(format!("{url}: must be ws://host:port/path")));
    };
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, format!("/{path}")),
        None => (rest, "/".to_owned()),
    };
    Ok(Endpoint { address: resolve(authority, url)?, host: authority.to_owned(), path })
}

fn resolve(authority: &str, what: &str) -> Result<SocketAddr, RunError> {
    let resolved = authority.to_socket_addrs();
    resolved.ok().and_then(|mut addresses| addresses.next()).ok_or_else(|| {
        RunError::bad_arguments(format!("{what}: {authority} is not host:port, or unknown"))
    })
}

#[cfg(test)]
mod tests {
    use super::{Target, websocket_endpoint};

    #[test]
    fn a_ready_line_fills_what_the_arguments_leave_open() {
        let line = r#"{"ready": true, "websocket": "ws://127.0.0.1:8080/ws",
            "tcp": "127.0.0.1:8081", "http": "http://127.0.0.1:8082", "admin": "x",
            "jwt_secret": "s", "api_token": "t", "users": [{"user_id": "alice", "token": "u"}]}"#;
        let ready: Target = serde_json::from_str(line).expect("a ready line");
        let given = Target { tcp: Some("127.0.0.1:9".into()), ..Target::default() };
        let target = given.or(ready);
        assert_eq!(target.tcp_endpoint().expect("tcp").address.port(), 9);
        let websocket = target.websocket_endpoint().expect("websocket");
        assert_eq!((websocket.address.port(), websocket.path.as_str()), (8080, "/ws"));
        assert_eq!(target.secret().expect("secret"), "s");
    }

    #[test]
    fn a_missing_address_names_the_option() {
        let error = Target::default().tcp_endpoint().expect_err("missing");
        assert!(error.to_string().contains("--tcp"), "{error}");
        assert!(websocket_endpoint("http://127.0.0.1:1/").is_err());
        assert!(websocket_endpoint("ws://no port").is_err());
    }
}
