//! What the verifiers' tests share: keys that protect nothing, and an HTTP server that answers as it
//! is told, over real sockets.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub(super) const RSA_KEY: &str = include_str!("testdata/rsa.key");
pub(super) const RSA_PUB: &str = include_str!("testdata/rsa.pub");
const P256_KEY: &str = include_str!("testdata/p256.key");
pub(super) const P256_PUB: &str = include_str!("testdata/p256.pub");
const P384_KEY: &str = include_str!("testdata/p384.key");
pub(super) const P384_PUB: &str = include_str!("testdata/p384.pub");
const ED25519_KEY: &str = include_str!("testdata/ed25519.key");
pub(super) const ED25519_PUB: &str = include_str!("testdata/ed25519.pub");
pub(super) const WEAK_PUB: &str = include_str!("testdata/weak.pub");

fn signer(name: &str) -> (Algorithm, EncodingKey) {
    let (algorithm, key) = match name {
        "rsa" => (Algorithm::RS256, EncodingKey::from_rsa_pem(RSA_KEY.as_bytes())),
        "p256" => (Algorithm::ES256, EncodingKey::from_ec_pem(P256_KEY.as_bytes())),
        "p384" => (Algorithm::ES384, EncodingKey::from_ec_pem(P384_KEY.as_bytes())),
        "ed25519" => (Algorithm::EdDSA, EncodingKey::from_ed_pem(ED25519_KEY.as_bytes())),
        other => panic!("no key is called {other}"),
    };
    (algorithm, key.expect("a key"))
}

/// A token signed with one of the keys, which it names if `kid` does.
pub(super) fn sign(name: &str, kid: Option<&str>, claims: &Value) -> String {
    let (algorithm, key) = signer(name);
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &key).expect("signed")
}

/// The public half as a key of a set.
pub(super) fn jwk(name: &str, kid: &str) -> Value {
    let (algorithm, key) = signer(name);
    let mut jwk = if name == "ed25519" {
        // The last 32 bytes of the DER form are the key.
        let der: String = ED25519_PUB.lines().filter(|line| !line.starts_with('-')).collect();
        let der = base64::engine::general_purpose::STANDARD.decode(der).expect("base64");
        let x = URL_SAFE_NO_PAD.encode(&der[der.len() - 32..]);
        serde_json::json!({"kty": "OKP", "crv": "Ed25519", "x": x})
    } else {
        let jwk = Jwk::from_encoding_key(&key, algorithm).expect("a public half");
        serde_json::to_value(jwk).expect("JSON")
    };
    let object = jwk.as_object_mut().expect("an object");
    object.remove("alg");
    object.insert("kid".to_owned(), kid.into());
    jwk
}

/// What the server says.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    status: u16,
    body: String,
    after: Duration,
}

impl Answer {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self::text(status, &body.to_string())
    }

    pub(super) fn text(status: u16, body: &str) -> Self {
        Self { status, body: body.to_owned(), after: Duration::ZERO }
    }

    pub(super) fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }
}

/// An HTTP/1.1 server; it ends when it is dropped.
pub(super) struct HttpServer {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    requests: watch::Receiver<Vec<String>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl HttpServer {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let answer = Arc::new(Mutex::new(Answer::text(500, "")));
        let (counting, requests) = watch::channel(Vec::new());
        let next = Arc::clone(&answer);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&next), counting.clone()));
            }
        });
        Self { port, answer, requests, accepting }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What it says from now on.
    pub(super) fn answer(&self, answer: Answer) {
        *self.answer.lock().expect("whole") = answer;
    }

    pub(super) fn last_answer(&self) -> String {
        format!("{:?}", self.answer.lock().expect("whole"))
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.borrow().len()
    }

    pub(super) fn last_request(&self) -> String {
        self.requests.borrow().last().cloned().unwrap_or_default()
    }

    /// Waits until so many requests have come.
    pub(super) async fn until_requests(&self, count: usize) {
        let mut requests = self.requests.clone();
        requests.wait_for(|requests| requests.len() >= count).await.expect("the server lives");
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One exchange on a connection of its own.
async fn serve(
    mut stream: TcpStream,
    answer: Arc<Mutex<Answer>>,
    requests: watch::Sender<Vec<String>>,
) {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok()
                })
                .unwrap_or(0);
            if body.len() >= length {
                break requests.send_modify(|requests| requests.push(text));
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
    }
    let Answer { status, body, after } = answer.lock().expect("whole").clone();
    tokio::time::sleep(after).await;
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} As told\r\ncontent-length: {length}\r\nlocation: /elsewhere\r\nconnection: close\r\n\r\n"
    );
    // The client may be gone, which is its right.
    let _sent = stream.write_all(format!("{head}{body}").as_bytes()).await;
}
