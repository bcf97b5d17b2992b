//! Against a real HTTP server on a port of its own.

use std::time::Duration;

use millrace_protocol::Code;
use serde_json::json;

use super::{ExternalVerifier, ExternalVerifierSettings};
use crate::login::{
    Verified, VerifyError, authenticate,
    testing::{Answer, HttpServer},
};

const FAR_MS: i64 = 32_503_680_000_000;

fn settings(server: &HttpServer) -> ExternalVerifierSettings {
    ExternalVerifierSettings { url: server.url("/verify"), ..ExternalVerifierSettings::default() }
}

fn verifier(settings: ExternalVerifierSettings) -> ExternalVerifier {
    ExternalVerifier::new(settings).expect("a verifier")
}

fn good(user_id: &str) -> Answer {
    Answer::json(200, &json!({"user_id": user_id, "expires_at_ms": FAR_MS}))
}

async fn code(verifier: &ExternalVerifier, token: &str) -> Result<String, Code> {
    let verified = authenticate(verifier, "", token).await;
    verified.map(|verified| verified.user_id).map_err(|error| error.code())
}

#[tokio::test]
async fn the_service_gets_the_token_and_says_whose_it_is() {
    let server = HttpServer::start().await;
    let body = json!({"user_id": "alice", "expires_at_ms": FAR_MS, "issued_at_ms": 5, "new": 1});
    server.answer(Answer::json(200, &body));
    let with_secret =
        ExternalVerifierSettings { authorization: "our secret".into(), ..settings(&server) };
    let verified = authenticate(&verifier(with_secret), "alice", "opaque \"token\"").await;
    let expected =
        Verified { user_id: "alice".to_owned(), expires_at_ms: FAR_MS, issued_at_ms: Some(5) };
    assert_eq!(verified, Ok(expected));
    let request = server.last_request();
    assert!(request.starts_with("POST /verify HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("authorization: Bearer our secret\r\n"), "{request}");
    assert!(request.ends_with(r#"{"token":"opaque \"token\""}"#), "{request}");
}

#[tokio::test]
async fn a_refusal_is_told_from_a_service_that_cannot_say() {
    let server = HttpServer::start().await;
    let verifier = verifier(settings(&server));
    for (answer, expected) in [
        (Answer::json(401, &json!({"reason": "it was taken back."})), Code::BadToken),
        (Answer::text(403, ""), Code::BadToken),
        (Answer::text(404, "<html>"), Code::BadToken),
        (Answer::json(401, &json!({"code": 6})), Code::TokenExpired),
        (Answer::json(200, &json!({"user_id": "a", "expires_at_ms": 1})), Code::TokenExpired),
        (Answer::text(500, ""), Code::LogicUnavailable),
        (Answer::text(302, ""), Code::LogicUnavailable),
        (Answer::text(200, "not JSON"), Code::LogicUnavailable),
        (Answer::json(200, &json!({"user_id": ""})), Code::LogicUnavailable),
        (Answer::json(200, &json!({"user_id": "u".repeat(129)})), Code::LogicUnavailable),
        (Answer::text(200, &" ".repeat(20_000)), Code::LogicUnavailable),
    ] {
        server.answer(answer);
        assert_eq!(code(&verifier, "a token").await, Err(expected), "{}", server.last_answer());
    }
    server.answer(Answer::json(401, &json!({"reason": "it was\r\ntaken back."})));
    let refused = authenticate(&verifier, "", "a token").await;
    assert_eq!(refused, Err(VerifyError::BadToken("it wastaken back".to_owned())));
    let asked = server.requests();
    let long = code(&verifier, &"x".repeat(9_000)).await;
    assert_eq!((long, server.requests()), (Err(Code::BadToken), asked));
    drop(server);
    assert_eq!(code(&verifier, "a token").await, Err(Code::LogicUnavailable));
}

#[tokio::test]
async fn a_good_answer_is_kept_for_a_while_and_a_bad_one_never() {
    let server = HttpServer::start().await;
    server.answer(good("alice"));
    let brief = ExternalVerifierSettings {
        cache_time: Duration::from_millis(500),
        cache_entries_max: 2,
        ..settings(&server)
    };
    let verifier = verifier(brief);
    assert_eq!(code(&verifier, "1").await, Ok("alice".into()));
    server.answer(Answer::text(401, ""));
    assert_eq!(code(&verifier, "1").await, Ok("alice".into()));
    assert_eq!(code(&verifier, "2").await, Err(Code::BadToken));
    assert_eq!(code(&verifier, "2").await, Err(Code::BadToken));
    assert_eq!(server.requests(), 3);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(code(&verifier, "1").await, Err(Code::BadToken));
}

#[tokio::test]
async fn a_full_cache_forgets_the_oldest() {
    let server = HttpServer::start().await;
    server.answer(good("alice"));
    let small = ExternalVerifierSettings {
        cache_time: Duration::from_secs(600),
        cache_entries_max: 2,
        ..settings(&server)
    };
    let verifier = verifier(small);
    for token in ["1", "2", "3", "2", "3", "1"] {
        assert_eq!(code(&verifier, token).await, Ok("alice".into()));
    }
    // 1, 2, 3, and 1 again, which 3 had pushed out.
    assert_eq!(server.requests(), 4);
    assert_eq!(verifier.cache().answers.len(), 2);
}

#[tokio::test]
async fn above_the_bound_nobody_waits_for_a_slow_service() {
    let server = HttpServer::start().await;
    server.answer(good("alice").after(Duration::from_secs(600)));
    let one = ExternalVerifierSettings {
        in_flight_max: 1,
        timeout: Duration::from_millis(500),
        ..settings(&server)
    };
    let verifier = verifier(one);
    let second = async {
        server.until_requests(1).await;
        code(&verifier, "2").await
    };
    let both = async { tokio::join!(code(&verifier, "1"), second) };
    let (first, second) =
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("long before");
    assert_eq!((first, second), (Err(Code::LogicUnavailable), Err(Code::LogicUnavailable)));
    assert_eq!(server.requests(), 1);
    server.answer(good("alice"));
    assert_eq!(code(&verifier, "3").await, Ok("alice".into()));
}
