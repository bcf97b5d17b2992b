//! Against a real HTTP server on a port of its own.

use std::time::Duration;

use jsonwebtoken::get_current_timestamp;
use millrace_protocol::Code;
use serde_json::{Value, json};

use super::{JwksSettings, JwksVerifier};
use crate::login::{
    ClaimRules, authenticate,
    testing::{Answer, HttpServer, jwk, sign},
};

fn settings(server: &HttpServer) -> JwksSettings {
    JwksSettings { url: server.url("/keys"), ..JwksSettings::default() }
}

fn verifier(settings: JwksSettings) -> JwksVerifier {
    JwksVerifier::new(settings, ClaimRules::default()).expect("a verifier")
}

fn set(keys: &[Value]) -> Answer {
    Answer::json(200, &json!({ "keys": keys }))
}

fn token(signer: &str, kid: Option<&str>) -> String {
    sign(signer, kid, &json!({"sub": "alice", "exp": get_current_timestamp() + 60}))
}

async fn verify(verifier: &JwksVerifier, token: &str) -> Result<String, Code> {
    let verified = authenticate(verifier, "", token).await;
    verified.map(|verified| verified.user_id).map_err(|error| error.code())
}

#[tokio::test]
async fn tokens_are_verified_with_the_key_they_name_and_the_set_is_fetched_once() {
    let server = HttpServer::start().await;
    server.answer(set(&[jwk("rsa", "r"), jwk("p256", "p"), jwk("ed25519", "e")]));
    let verifier = verifier(settings(&server));
    for (signer, kid) in [("rsa", "r"), ("p256", "p"), ("ed25519", "e")] {
        assert_eq!(verify(&verifier, &token(signer, Some(kid))).await, Ok("alice".into()));
        // Each algorithm has one key here, so a token need not name it.
        assert_eq!(verify(&verifier, &token(signer, None)).await, Ok("alice".into()));
    }
    // The right key under another's name, and a key that is not in the set.
    assert_eq!(verify(&verifier, &token("rsa", Some("p"))).await, Err(Code::BadToken));
    assert_eq!(verify(&verifier, &token("p384", None)).await, Err(Code::BadToken));
    let old = sign("rsa", Some("r"), &json!({"sub": "alice", "exp": 1_700_000_000}));
    assert_eq!(verify(&verifier, &old).await, Err(Code::TokenExpired));
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_token_without_a_name_is_refused_where_two_keys_could_be_meant() {
    let server = HttpServer::start().await;
    server.answer(set(&[jwk("p256", "1"), jwk("p256", "2")]));
    let verifier = verifier(settings(&server));
    assert_eq!(verify(&verifier, &token("p256", None)).await, Err(Code::BadToken));
    assert_eq!(verify(&verifier, &token("p256", Some("2"))).await, Ok("alice".into()));
}

#[tokio::test]
async fn a_new_key_is_found_at_once_and_unknown_names_cause_no_storm() {
    let server = HttpServer::start().await;
    server.answer(set(&[jwk("p256", "old")]));
    let paced =
        JwksSettings { refetch_interval_min: Duration::from_millis(300), ..settings(&server) };
    let verifier = verifier(paced);
    assert_eq!(verify(&verifier, &token("p256", Some("old"))).await, Ok("alice".into()));
    server.answer(set(&[jwk("p256", "old"), jwk("ed25519", "new")]));
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(verify(&verifier, &token("ed25519", Some("new"))).await, Ok("alice".into()));
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn names_that_nobody_knows_are_refused_without_a_fetch_each() {
    let server = HttpServer::start().await;
    server.answer(set(&[jwk("p256", "1")]));
    // The default least interval is 30 s: only the first of these may ask.
    let verifier = verifier(settings(&server));
    for attempt in 0..50 {
        let kid = format!("made-up-{attempt}");
        assert_eq!(verify(&verifier, &token("p256", Some(&kid))).await, Err(Code::BadToken));
    }
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn logins_at_the_same_time_share_one_fetch() {
    let server = HttpServer::start().await;
    server.answer(set(&[jwk("p256", "1")]).after(Duration::from_millis(100)));
    let verifier = verifier(settings(&server));
    let token = token("p256", Some("1"));
    let all = futures::future::join_all((0..32).map(|_| verify(&verifier, &token))).await;
    assert!(all.iter().all(|verdict| *verdict == Ok("alice".into())), "{all:?}");
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn the_set_goes_on_being_used_while_the_url_is_away() {
    let server = HttpServer::start().await;
    server.answer(set(&[jwk("p256", "1")]));
    let eager = JwksSettings {
        refresh_interval: Duration::ZERO,
        refetch_interval_min: Duration::ZERO,
        ..settings(&server)
    };
    let verifier = verifier(eager);
    let token_1 = token("p256", Some("1"));
    assert_eq!(verify(&verifier, &token_1).await, Ok("alice".into()));
    for broken in [
        Answer::json(500, &json!({})),
        Answer::text(200, "not JSON"),
        Answer::json(200, &json!({"keys": []})),
        Answer::json(200, &json!({"nothing": 1})),
        Answer::text(200, &"x".repeat(300_000)),
        Answer::json(302, &json!({})),
    ] {
        server.answer(broken);
        let before = server.requests();
        assert_eq!(verify(&verifier, &token_1).await, Ok("alice".into()));
        server.until_requests(before + 1).await;
        // A key that may be in a set nobody can read is not called unknown.
        let unknown = verify(&verifier, &token("ed25519", Some("2"))).await;
        assert_eq!(unknown, Err(Code::LogicUnavailable));
    }
    drop(server);
    assert_eq!(verify(&verifier, &token_1).await, Ok("alice".into()));
    let unknown = verify(&verifier, &token("ed25519", Some("2"))).await;
    assert_eq!(unknown, Err(Code::LogicUnavailable));
}

#[tokio::test]
async fn nobody_is_let_in_before_there_is_a_set_or_when_it_is_too_old() {
    let server = HttpServer::start().await;
    server.answer(Answer::json(503, &json!({})));
    let impatient = JwksSettings { refetch_interval_min: Duration::ZERO, ..settings(&server) };
    let never = verifier(impatient.clone());
    let token = token("p256", Some("1"));
    assert_eq!(verify(&never, &token).await, Err(Code::LogicUnavailable));
    server.answer(set(&[jwk("p256", "1")]));
    assert_eq!(verify(&never, &token).await, Ok("alice".into()));

    let stale = verifier(JwksSettings { stale_max: Duration::from_millis(200), ..impatient });
    assert_eq!(verify(&stale, &token).await, Ok("alice".into()));
    server.answer(Answer::json(503, &json!({})));
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(verify(&stale, &token).await, Err(Code::LogicUnavailable));
}

#[tokio::test]
async fn a_url_that_never_answers_holds_a_login_no_longer_than_the_timeout() {
    let server = HttpServer::start().await;
    server.answer(set(&[jwk("p256", "1")]).after(Duration::from_secs(600)));
    let verifier =
        verifier(JwksSettings { timeout: Duration::from_millis(200), ..settings(&server) });
    let token = token("p256", Some("1"));
    let verdict = tokio::time::timeout(Duration::from_secs(60), verify(&verifier, &token)).await;
    assert_eq!(verdict.expect("long before"), Err(Code::LogicUnavailable));
}

#[tokio::test]
async fn issuer_and_audience_are_checked_here_too() {
    let server = HttpServer::start().await;
    server.answer(set(&[jwk("p256", "1")]));
    let rules = ClaimRules { issuer: "us".into(), audience: "chat".into(), leeway_s: 0 };
    let verifier = JwksVerifier::new(settings(&server), rules).expect("a verifier");
    let exp = get_current_timestamp() + 60;
    for (iss, aud, expected) in [
        ("us", "chat", Ok("alice".to_owned())),
        ("them", "chat", Err(Code::BadToken)),
        ("us", "mail", Err(Code::BadToken)),
    ] {
        let claims = json!({"sub": "alice", "exp": exp, "iss": iss, "aud": aud});
        assert_eq!(verify(&verifier, &sign("p256", Some("1"), &claims)).await, expected);
    }
}

#[test]
fn an_address_that_is_no_url_is_refused_at_the_start() {
    for url in ["", "keys.json", "ftp://host/keys", "http://", "https//host"] {
        let settings = JwksSettings { url: url.to_owned(), ..JwksSettings::default() };
        assert!(JwksVerifier::new(settings, ClaimRules::default()).is_err(), "{url}");
    }
}
