//! A server that speaks APNs, FCM and the token exchange before it, over HTTP/2 and TLS, and checks
//! what it is sent as those do. What a device token begins with says how it behaves.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use h2::{RecvStream, server};
use http::{HeaderMap, Method, Request, Response, Version};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

pub const TEAM: &str = "TEAM123456";
pub const KEY_ID: &str = "KEY1234567";
pub const TOPIC: &str = "com.example.chat";
pub const PROJECT: &str = "a-project";
pub const ACCOUNT: &str = "push@a-project.example";

const CERTIFICATE: &[u8] = include_bytes!("../keys/server.pem");
const KEY: &[u8] = include_bytes!("../keys/server.key");
const APNS_PUBLIC: &[u8] = include_bytes!("../keys/apns.pub.pem");
const FCM_PUBLIC: &[u8] = include_bytes!("../keys/fcm.pub.pem");

/// A note that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub provider: &'static str,
    pub token: String,
    pub headers: HeaderMap,
    pub body: Value,
}

#[derive(Default)]
struct State {
    taken: Vec<Taken>,
    /// Every request, by its path.
    requests: HashMap<String, u32>,
    provider_tokens: Vec<String>,
    access_tokens: u32,
    /// Access tokens up to this one are not good any more.
    revoked: u32,
}

#[derive(Clone)]
pub struct Provider {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Value,
}

fn answer(status: u16, body: Value) -> Answer {
    Answer { status, headers: vec![], body }
}

fn refuse(status: u16, reason: &str) -> Answer {
    answer(status, json!({ "reason": reason }))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

fn now_s() -> u64 {
    now_ms() / 1_000
}

impl Provider {
    pub async fn start() -> Self {
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("they fit");
        // APNs speaks nothing else.
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let provider = Self { address, state: Arc::default() };
        let serving = provider.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(acceptor.clone(), stream));
            }
        });
        provider
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.state.lock().expect("no panic").taken.clone()
    }

    /// Requests to paths that end so.
    pub fn requests(&self, end: &str) -> u32 {
        let state = self.state.lock().expect("no panic");
        state.requests.iter().filter(|(path, _)| path.ends_with(end)).map(|(_, n)| n).sum()
    }

    /// Different provider tokens that were shown.
    pub fn provider_tokens(&self) -> usize {
        self.state.lock().expect("no panic").provider_tokens.len()
    }

    /// Makes the access tokens of until now worthless.
    pub fn revoke_access(&self) {
        let mut state = self.state.lock().expect("no panic");
        state.revoked = state.access_tokens;
    }

    async fn serve(self, acceptor: TlsAcceptor, stream: TcpStream) {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let Ok(mut connection) = server::handshake(stream).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let provider = self.clone();
            tokio::spawn(async move {
                assert_eq!(request.version(), Version::HTTP_2);
                let (parts, body) = request.into_parts();
                let body = read(body).await;
                let Answer { status, headers, body } =
                    provider.answer(Request::from_parts(parts, body));
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                let response = response.body(()).expect("a response");
                let text = if body.is_null() { String::new() } else { body.to_string() };
                // A client that went away is its own business.
                if let Ok(mut stream) = respond.send_response(response, text.is_empty())
                    && !text.is_empty()
                {
                    stream.send_data(Bytes::from(text), true).ok();
                }
            });
        }
    }

    fn answer(&self, request: Request<Vec<u8>>) -> Answer {
        let path = request.uri().path().to_owned();
        let mut state = self.state.lock().expect("no panic");
        let count = state.requests.entry(path.clone()).or_default();
        *count += 1;
        let attempt = *count;
        if request.method() != Method::POST {
            return refuse(405, "MethodNotAllowed");
        }
        if let Some(token) = path.strip_prefix("/3/device/") {
            return apns(&mut state, token, attempt, &request);
        }
        match &*path {
            "/token" => exchange(&mut state, &self.url(), request.body()),
            path if path == format!("/v1/projects/{PROJECT}/messages:send") => {
                fcm(&mut state, &request)
            }
            _ => answer(404, Value::Null),
        }
    }
}

async fn read(mut body: RecvStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.expect("the request is whole");
        body.flow_control().release_capacity(part.len()).expect("it was received");
        bytes.extend_from_slice(&part);
    }
    bytes
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn bearer(headers: &HeaderMap) -> &str {
    let authorization = text(headers, "authorization");
    authorization
        .split_once(' ')
        .filter(|(s, _)| s.eq_ignore_ascii_case("bearer"))
        .map_or("", |b| b.1)
}

/// Whether a provider token is one: header, signature, issuer, age.
fn check_provider_token(token: &str) -> Result<(), &'static str> {
    let header = decode_header(token).map_err(|_| "InvalidProviderToken")?;
    if header.alg != Algorithm::ES256 || header.kid.as_deref() != Some(KEY_ID) {
        return Err("InvalidProviderToken");
    }
    let mut validation = Validation::new(Algorithm::ES256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    let key = DecodingKey::from_ec_pem(APNS_PUBLIC).expect("a key");
    let claims = decode::<Value>(token, &key, &validation).map_err(|_| "InvalidProviderToken")?;
    let issued_s = claims.claims["iat"].as_u64().ok_or("InvalidProviderToken")?;
    if claims.claims["iss"] != json!(TEAM) {
        return Err("InvalidProviderToken");
    }
    if now_s().abs_diff(issued_s) > 3_600 { Err("ExpiredProviderToken") } else { Ok(()) }
}

fn apns(state: &mut State, token: &str, attempt: u32, request: &Request<Vec<u8>>) -> Answer {
    let headers = request.headers();
    let shown = bearer(headers).to_owned();
    if let Err(reason) = check_provider_token(&shown) {
        return refuse(403, reason);
    }
    if !state.provider_tokens.contains(&shown) {
        state.provider_tokens.push(shown);
    }
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return refuse(400, "BadDeviceToken");
    }
    if text(headers, "apns-topic") != TOPIC {
        return refuse(400, "DeviceTokenNotForTopic");
    }
    let collapse_id = text(headers, "apns-collapse-id");
    let expiration: u64 = text(headers, "apns-expiration").parse().unwrap_or(0);
    let fits = text(headers, "apns-push-type") == "alert"
        && text(headers, "apns-priority") == "10"
        && (1..=64).contains(&collapse_id.len())
        && expiration > now_s();
    if !fits {
        return refuse(400, "BadHeaders");
    }
    let Ok(body) = serde_json::from_slice::<Value>(request.body()) else {
        return refuse(400, "PayloadEmpty");
    };
    if !body["aps"]["alert"]["body"].is_string() || !body["aps"]["badge"].is_u64() {
        return refuse(400, "BadPayload");
    }
    match &token[..4.min(token.len())] {
        "dead" => {
            let timestamp = now_ms();
            return answer(410, json!({ "reason": "Unregistered", "timestamp": timestamp }));
        }
        // Given up by APNs long before it was registered again.
        "0ded" => {
            return answer(410, json!({ "reason": "Unregistered", "timestamp": 1_000 }));
        }
        "bad0" => return refuse(400, "BadDeviceToken"),
        "b001" if attempt <= 2 => return refuse(429, "TooManyRequests"),
        "b002" if attempt <= 2 => return refuse(503, "ServiceUnavailable"),
        "b003" => return refuse(500, "InternalServerError"),
        "b004" => return refuse(413, "PayloadTooLarge"),
        _ => {}
    }
    let (token, headers) = (token.to_owned(), headers.clone());
    state.taken.push(Taken { provider: "apns", token, headers, body });
    answer(200, Value::Null)
}

/// The exchange of an assertion for an access token (RFC 7523).
fn exchange(state: &mut State, url: &str, body: &[u8]) -> Answer {
    let body = String::from_utf8_lossy(body).into_owned();
    let fields: HashMap<&str, &str> = body.split('&').filter_map(|f| f.split_once('=')).collect();
    let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[format!("{url}/token")]);
    validation.set_issuer(&[ACCOUNT]);
    let key = DecodingKey::from_rsa_pem(FCM_PUBLIC).expect("a key");
    let assertion = fields.get("assertion").copied().unwrap_or_default();
    let claims = decode::<Value>(assertion, &key, &validation);
    let scope = "https://www.googleapis.com/auth/firebase.messaging";
    let is_good = fields.get("grant_type") == Some(&grant)
        && claims.is_ok_and(|claims| {
            let lasts = claims.claims["exp"].as_u64().unwrap_or(0)
                - claims.claims["iat"].as_u64().unwrap_or(0);
            claims.claims["scope"] == json!(scope) && lasts <= 3_600
        });
    if !is_good {
        return answer(400, json!({ "error": "invalid_grant" }));
    }
    state.access_tokens += 1;
    let access_token = format!("access-{}", state.access_tokens);
    let body = json!({ "access_token": access_token, "expires_in": 3_599, "token_type": "Bearer" });
    answer(200, body)
}

fn fcm(state: &mut State, request: &Request<Vec<u8>>) -> Answer {
    let error = |status: u16, name: &str, code: Option<&str>| {
        let details: Vec<Value> = code
            .map(|code| {
                let kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError";
                json!({ "@type": kind, "errorCode": code })
            })
            .into_iter()
            .collect();
        answer(status, json!({ "error": { "code": status, "status": name, "details": details } }))
    };
    let number = bearer(request.headers()).strip_prefix("access-").and_then(|n| n.parse().ok());
    if !number.is_some_and(|number: u32| number > state.revoked && number <= state.access_tokens) {
        return error(401, "UNAUTHENTICATED", None);
    }
    let Ok(body) = serde_json::from_slice::<Value>(request.body()) else {
        return error(400, "INVALID_ARGUMENT", None);
    };
    let message = &body["message"];
    let data = message["data"].as_object();
    let fits = message["notification"]["body"].is_string()
        && data.is_some_and(|data| data.values().all(Value::is_string))
        && message["android"]["ttl"].as_str().is_some_and(|ttl| ttl.ends_with('s'));
    let (true, Some(token)) = (fits, message["token"].as_str()) else {
        return error(400, "INVALID_ARGUMENT", None);
    };
    let token = token.to_owned();
    let count = state.requests.entry(format!("fcm {token}")).or_default();
    *count += 1;
    let attempt = *count;
    match token.split(':').next() {
        Some("gone") => return error(404, "NOT_FOUND", Some("UNREGISTERED")),
        Some("other") => return error(403, "PERMISSION_DENIED", Some("SENDER_ID_MISMATCH")),
        Some("quota") if attempt <= 1 => {
            let mut busy = error(429, "RESOURCE_EXHAUSTED", Some("QUOTA_EXCEEDED"));
            busy.headers.push(("retry-after", "1".to_owned()));
            return busy;
        }
        Some("wrong") => return error(400, "INVALID_ARGUMENT", Some("INVALID_ARGUMENT")),
        _ => {}
    }
    state.taken.push(Taken { provider: "fcm", token, headers: request.headers().clone(), body });
    answer(200, json!({ "name": format!("projects/{PROJECT}/messages/1") }))
}
