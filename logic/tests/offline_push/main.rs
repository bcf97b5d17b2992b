//! Offline push against a server that speaks the providers' protocols: who is told, of what, how
//! often, and what becomes of tokens that reach nothing.

mod provider;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_logic::{
    Config, Logic,
    config::{Door, Listen},
    push::{
        Apns, ApnsSettings, Client, ClientSettings, Delivery, Fcm, FcmSettings, Note, PushProvider,
    },
};
use millrace_logic_sdk::{
    Encoding,
    testing::{FakeGateway, FakeGatewaySettings, login_request},
};
use millrace_protocol::{
    Code,
    chat::{
        Forward, PullConversations, Read, ReadReply, RegisterPush, RegisterPushReply, Revoke,
        RevokeReply, SendMessage, SendReply, UnregisterPush, UnregisterPushReply,
        UpdateConversation,
    },
    command,
};
use provider::{ACCOUNT, KEY_ID, PROJECT, Provider, TEAM, TOPIC};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

const SECRET: &str = "a secret of the tests, long enough for HS256";
const TOKEN: &str = "a token of the tests";

/// How long a test waits for what must come; a slow machine may need some of it.
const PATIENCE: Duration = Duration::from_secs(60);

fn keys() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys")
}

fn client() -> Client {
    let settings = ClientSettings { ca_file: keys().join("ca.pem"), ..ClientSettings::default() };
    Client::new(&settings).expect("a client")
}

fn account(folder: &Path, provider: &Provider) -> PathBuf {
    let file = folder.join("account.json");
    let account = json!({
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "1",
        "private_key": fs::read_to_string(keys().join("fcm.pem")).expect("a key"),
        "client_email": ACCOUNT,
        "token_uri": format!("{}/token", provider.url()),
    });
    fs::write(&file, account.to_string()).expect("written");
    file
}

fn apns(provider: &Provider) -> Apns {
    let settings = ApnsSettings {
        endpoint: provider.url(),
        team_id: TEAM.into(),
        key_id: KEY_ID.into(),
        topic: TOPIC.into(),
    };
    Apns::new(client(), settings, &keys().join("apns.p8")).expect("a key")
}

fn note(token: &str) -> Note {
    Note {
        user_id: "ann".into(),
        device_id: "phone".into(),
        token: token.into(),
        title: "bob".into(),
        body: "New message".into(),
        badge: 3,
        collapse_id: "c0ffee".into(),
        conversation_id: "s:3:ann:bob".into(),
        sequence: 7,
        sender_id: "bob".into(),
        expires_at_s: u64::from(u32::MAX),
        ..Note::default()
    }
}

#[tokio::test]
async fn apns_takes_notes_with_one_token_for_all_and_its_refusals_are_understood() {
    let provider = Provider::start().await;
    let apns = apns(&provider);
    for token in ["a1", "a2", "a3"] {
        assert_eq!(apns.push(&note(token)).await, Delivery::Taken);
    }
    assert_eq!(provider.provider_tokens(), 1, "APNs refuses whoever makes them anew each time");
    let taken = provider.taken();
    assert_eq!((taken[0].provider, &*taken[0].token), ("apns", "a1"));
    assert_eq!(taken[0].headers["apns-collapse-id"], "c0ffee");
    let aps = &taken[0].body["aps"];
    assert_eq!(aps["alert"], json!({ "title": "bob", "body": "New message" }));
    assert_eq!((&aps["badge"], &taken[0].body["sequence"]), (&json!(3), &json!(7)));
    let gone = apns.push(&note("dead01")).await;
    assert!(
        matches!(gone, Delivery::Gone(Some(time_ms)) if time_ms > 1_600_000_000_000),
        "{gone:?}"
    );
    assert_eq!(apns.push(&note("bad001")).await, Delivery::Gone(None));
    let requests = provider.requests("");
    for token in ["", "../x", "zz"] {
        assert_eq!(apns.push(&note(token)).await, Delivery::Gone(None), "{token:?} is no token");
    }
    assert_eq!(provider.requests(""), requests, "and is not asked for");
    let topic = Note { app_id: "com.example.other".into(), ..note("a4") };
    assert_eq!(apns.push(&topic).await, Delivery::Gone(None), "a token of another app");
    assert!(matches!(apns.push(&note("b003")).await, Delivery::Later(..)));
    let refused = apns.push(&note("b004")).await;
    assert!(matches!(&refused, Delivery::Refused(why) if why.contains("PayloadTooLarge")));
}

#[tokio::test]
async fn another_teams_key_is_refused_and_nothing_is_taken() {
    let provider = Provider::start().await;
    let settings = ApnsSettings {
        endpoint: provider.url(),
        team_id: "OTHER".into(),
        key_id: KEY_ID.into(),
        topic: TOPIC.into(),
    };
    let apns = Apns::new(client(), settings, &keys().join("apns.p8")).expect("a key");
    let refused = apns.push(&note("a1")).await;
    assert!(matches!(&refused, Delivery::Refused(why) if why.contains("InvalidProviderToken")));
    let wrong = Apns::new(
        client(),
        ApnsSettings {
            endpoint: provider.url(),
            team_id: TEAM.into(),
            key_id: KEY_ID.into(),
            topic: TOPIC.into(),
        },
        &keys().join("server.key"),
    );
    let refused = wrong.expect("a key, but another").push(&note("a1")).await;
    assert!(matches!(&refused, Delivery::Refused(why) if why.contains("InvalidProviderToken")));
    assert!(provider.taken().is_empty());
}

#[tokio::test]
async fn fcm_exchanges_its_assertion_once_and_again_when_access_was_revoked() {
    let folder = tempfile::tempdir().expect("a folder");
    let provider = Provider::start().await;
    let settings = FcmSettings { endpoint: provider.url() };
    let fcm = Fcm::new(client(), settings, &account(folder.path(), &provider)).expect("an account");
    for token in ["f:1", "f:2"] {
        assert_eq!(fcm.push(&note(token)).await, Delivery::Taken);
    }
    assert_eq!(provider.requests("/token"), 1);
    provider.revoke_access();
    assert_eq!(fcm.push(&note("f:3")).await, Delivery::Taken);
    assert_eq!(provider.requests("/token"), 2);
    let taken = provider.taken();
    let message = &taken[0].body["message"];
    assert_eq!(message["notification"], json!({ "title": "bob", "body": "New message" }));
    assert_eq!(message["data"]["sequence"], json!("7"));
    assert_eq!(message["android"]["collapse_key"], json!("c0ffee"));
    assert_eq!(fcm.push(&note("gone:1")).await, Delivery::Gone(None));
    assert_eq!(fcm.push(&note("other:1")).await, Delivery::Gone(None));
    let busy = fcm.push(&note("quota:1")).await;
    let second = Some(Duration::from_secs(1));
    assert!(
        matches!(&busy, Delivery::Later(why, after) if why.contains("QUOTA") && *after == second)
    );
    assert!(matches!(fcm.push(&note("wrong:1")).await, Delivery::Refused(_)));
}

#[tokio::test]
async fn who_cannot_be_reached_or_trusted_is_tried_again_later() {
    let provider = Provider::start().await;
    let settings = ApnsSettings {
        endpoint: provider.url(),
        team_id: TEAM.into(),
        key_id: KEY_ID.into(),
        topic: TOPIC.into(),
    };
    let untrusting = Client::new(&ClientSettings::default()).expect("a client");
    let apns = Apns::new(untrusting, settings.clone(), &keys().join("apns.p8")).expect("a key");
    let failed = apns.push(&note("a1")).await;
    assert!(
        matches!(&failed, Delivery::Later(why, None) if why.to_lowercase().contains("certificate")),
        "{failed:?}"
    );
    let nowhere = ApnsSettings { endpoint: "https://127.0.0.1:1".into(), ..settings };
    let apns = Apns::new(client(), nowhere, &keys().join("apns.p8")).expect("a key");
    assert!(matches!(apns.push(&note("a1")).await, Delivery::Later(..)));
    assert!(provider.taken().is_empty());
}

/// A logic process with APNs and FCM at the test's provider.
struct World {
    _folder: tempfile::TempDir,
    logic: Logic,
    gateway: FakeGateway,
    next: u32,
}

impl World {
    async fn start(provider: &Provider, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::default();
        config.link.listen = loopback;
        config.http = Door { listen: Listen(Some(loopback)) };
        config.admin = Door { listen: Listen(Some(loopback)) };
        config.store.directory = folder.path().join("data");
        config.login.jwt_secret = SECRET.to_owned();
        config.api.token = TOKEN.to_owned();
        config.push.ca_file = keys().join("ca.pem");
        config.push.delay = millrace_service::Duration::from_millis(100);
        config.push.retry_min = millrace_service::Duration::from_millis(20);
        config.push.apns.endpoint = provider.url();
        config.push.apns.team_id = TEAM.to_owned();
        config.push.apns.key_id = KEY_ID.to_owned();
        config.push.apns.topic = TOPIC.to_owned();
        config.push.apns.key_file = keys().join("apns.p8");
        config.push.fcm.endpoint = provider.url();
        config.push.fcm.account_file = account(folder.path(), provider);
        change(&mut config);
        let logic = Logic::start(config).await.expect("logic starts");
        let settings =
            FakeGatewaySettings { gateway_id: "g".into(), ..FakeGatewaySettings::default() };
        let gateway = FakeGateway::connect(logic.link_address(), settings).await.expect("linked");
        Self { _folder: folder, logic, gateway, next: 1 }
    }

    async fn enter(&mut self, session_id: u64, user_id: &str, device_id: &str) {
        let expires = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs()
            + 3_600;
        let claims = json!({ "sub": user_id, "exp": expires, "iat": expires - 3_600 });
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key);
        let token = token.expect("a token");
        let request = login_request(session_id, user_id, &token, device_id, "", Encoding::Protobuf);
        let result = self.gateway.login(request).await;
        assert_eq!(result.code, 0, "{}", result.reason);
    }

    fn id(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    async fn register(
        &mut self,
        session_id: u64,
        provider: &str,
        token: &str,
    ) -> RegisterPushReply {
        let id = self.id();
        let register =
            RegisterPush { provider: provider.into(), token: token.into(), app_id: String::new() };
        self.gateway.request(session_id, command::REGISTER_PUSH, id, &register).await.decode()
    }

    /// A user with a registered device who has gone.
    async fn away(&mut self, session_id: u64, user_id: &str, provider: &str, token: &str) {
        self.enter(session_id, user_id, "phone").await;
        let reply = self.register(session_id, provider, token).await;
        assert_eq!(reply.code, 0, "{}", reply.reason);
        self.gateway.end_session(session_id, Code::Ok).await;
        self.until_sessions(user_id, 0).await;
    }

    async fn until_sessions(&self, user_id: &str, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, presence) =
                self.http("GET", &format!("/v1/users/{user_id}/presence"), Value::Null).await;
            if presence["sessions"].as_array().map(Vec::len) == Some(count) {
                return;
            }
            assert!(Instant::now() < deadline, "{presence}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn say(&mut self, session_id: u64, to: &str, text: &str) -> SendReply {
        let id = self.id();
        let message = SendMessage {
            client_message_id: format!("c{id}"),
            user_id: to.into(),
            r#type: 1,
            body: text.into(),
            ..SendMessage::default()
        };
        let reply: SendReply =
            self.gateway.request(session_id, command::SEND_MESSAGE, id, &message).await.decode();
        assert_eq!(reply.code, 0, "{}", reply.reason);
        reply
    }

    async fn http(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let address = self.logic.http_address().expect("the door is open");
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {TOKEN}\r\n\
             connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.expect("a reply");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        (status, serde_json::from_str(body).expect("JSON"))
    }

    async fn tokens(&self, user_id: &str) -> usize {
        let (_, found) =
            self.http("GET", &format!("/v1/users/{user_id}/push_tokens"), Value::Null).await;
        found["tokens"].as_array().map_or(0, Vec::len)
    }
}

async fn taken(provider: &Provider, count: usize) -> Vec<provider::Taken> {
    let deadline = Instant::now() + PATIENCE;
    while provider.taken().len() < count {
        assert!(Instant::now() < deadline, "{:?}", provider.taken());
        sleep(Duration::from_millis(10)).await;
    }
    provider.taken()
}

async fn until(what: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !what().await {
        assert!(Instant::now() < deadline, "not in time");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Longer than what is missed waits, and than its note needs; what does not come then does not come.
const QUIET: Duration = Duration::from_millis(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_on_no_device_is_told_once_of_a_conversation_with_what_is_unread() {
    let provider = Provider::start().await;
    let slower = |config: &mut Config| {
        config.push.delay = millrace_service::Duration::from_millis(500);
    };
    let mut world = World::start(&provider, slower).await;
    world.away(1, "ann", "apns", "a1a1").await;
    world.enter(2, "bob", "laptop").await;
    world.enter(3, "cid", "laptop").await;
    world.say(3, "ann", "not one of bob's").await;
    let first = taken(&provider, 1).await;
    assert_eq!(first[0].body["aps"]["badge"], json!(1));
    for n in 0..5 {
        world.say(2, "ann", &format!("message {n}")).await;
    }
    // However the five fall into moments, the last note is of the last message and counts all six.
    until(async || {
        let notes = provider.taken();
        let last = notes.last().map(|note| note.body.clone()).unwrap_or_default();
        last["sequence"] == json!(5) && last["aps"]["badge"] == json!(6)
    })
    .await;
    let notes = provider.taken();
    let of_bob: Vec<_> = notes.iter().filter(|note| note.body["sender_id"] == "bob").collect();
    assert!(of_bob.len() < 5, "they collapse: {}", of_bob.len());
    let collapse = |note: &provider::Taken| note.headers["apns-collapse-id"].clone();
    assert!(of_bob.iter().all(|note| collapse(note) == collapse(of_bob[0])));
    assert_ne!(collapse(&notes[0]), collapse(of_bob[0]), "another conversation");
    assert_eq!(of_bob[0].body["aps"]["alert"]["body"], json!("New message"), "no word of bob's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_online_is_not_disturbed_or_wants_not_to_be_is_not_told() {
    let provider = Provider::start().await;
    let mut world = World::start(&provider, |_| {}).await;
    world.away(1, "ann", "fcm", "f:ann").await;
    world.enter(2, "bob", "laptop").await;
    // Online on another device.
    world.enter(3, "ann", "laptop").await;
    let sent = world.say(2, "ann", "here?").await;
    sleep(QUIET).await;
    assert!(provider.taken().is_empty(), "{:?}", provider.taken());
    // Do not disturb.
    let id = world.id();
    let quiet = UpdateConversation {
        conversation_id: sent.conversation_id.clone(),
        do_not_disturb: Some(true),
        ..Default::default()
    };
    world.gateway.request(3, command::UPDATE_CONVERSATION, id, &quiet).await;
    world.gateway.end_session(3, Code::Ok).await;
    world.until_sessions("ann", 0).await;
    world.say(2, "ann", "shh").await;
    sleep(QUIET).await;
    assert!(provider.taken().is_empty(), "{:?}", provider.taken());
    // A conversation that may disturb does, and the quiet one is not in its badge.
    world.enter(4, "cid", "laptop").await;
    world.say(4, "ann", "loud").await;
    let told = taken(&provider, 1).await;
    let message = &told[0].body["message"];
    assert_eq!(message["data"]["badge"], json!("1"));
    assert_eq!(message["data"]["sender_id"], json!("cid"));
    // The sender's own devices are not told of what it said.
    assert_eq!(provider.taken().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_reaches_nothing_goes_and_a_busy_provider_is_tried_again() {
    let provider = Provider::start().await;
    let mut world = World::start(&provider, |_| {}).await;
    world.enter(100, "bob", "laptop").await;
    let users = [
        ("dead", "apns", "dead01", 0),
        ("newer", "apns", "0ded01", 1),
        ("gone", "fcm", "gone:1", 0),
        ("busy", "apns", "b00101", 1),
        ("down", "apns", "b00201", 1),
        ("quota", "fcm", "quota:1", 1),
    ];
    for (number, (user_id, kind, token, _)) in users.iter().enumerate() {
        world.away(number as u64 + 1, user_id, kind, token).await;
        world.say(100, user_id, "hello").await;
    }
    let told = taken(&provider, 3).await;
    let mut tokens: Vec<_> = told.iter().map(|note| &*note.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, ["b00101", "b00201", "quota:1"], "after two refusals, two, and one");
    assert_eq!(provider.requests("/3/device/b00101"), 3);
    for (user_id, _, _, left) in users {
        until(async || world.tokens(user_id).await == left).await;
    }
    assert_eq!(world.tokens("newer").await, 1, "given up before it was registered again");
    let requests = provider.requests("/3/device/dead01");
    world.say(100, "dead", "again").await;
    sleep(QUIET).await;
    assert_eq!(provider.requests("/3/device/dead01"), requests, "nobody asks for it again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_register_for_themselves_and_services_for_anybody() {
    let provider = Provider::start().await;
    let mut world = World::start(&provider, |_| {}).await;
    world.enter(1, "ann", "phone").await;
    world.enter(2, "nameless", "").await;
    for (session_id, kind, token, code) in [
        (1, "pigeon", "t", Code::BadRequest),
        (1, "webhook", "t", Code::NotFound),
        (1, "apns", "", Code::BadRequest),
        (1, "apns", "not hexadecimal", Code::BadRequest),
        (1, "fcm", &*"x".repeat(4_097), Code::BadRequest),
        (2, "apns", "a1", Code::BadRequest),
        (1, "apns", "a1", Code::Ok),
        (1, "fcm", "f:1", Code::Ok),
    ] {
        let reply = world.register(session_id, kind, token).await;
        assert_eq!(reply.code, code.number(), "{kind} {token:.9} {}", reply.reason);
        assert_eq!(reply.reason.is_empty(), code == Code::Ok);
    }
    assert_eq!(world.tokens("ann").await, 1, "one for a device");
    let id = world.id();
    let frame = world.gateway.request(1, command::UNREGISTER_PUSH, id, &UnregisterPush {}).await;
    assert_eq!(frame.decode::<UnregisterPushReply>().code, 0);
    assert_eq!(world.tokens("ann").await, 0);
    let path = "/v1/users/ann/push_tokens";
    let token = json!({ "device_id": "pad", "provider": "apns", "token": "a2" });
    assert_eq!(world.http("POST", path, token).await.0, 200);
    let (_, listed) = world.http("GET", path, Value::Null).await;
    let listed = &listed["tokens"][0];
    assert_eq!((&listed["device_id"], &listed["token"]), (&json!("pad"), &json!("a2")));
    let (status, refusal) = world.http("POST", path, json!({ "device_id": "pad" })).await;
    assert_eq!((status, &refusal["code"]), (400, &json!(Code::BadRequest.number())));
    let removed = world.http("DELETE", &format!("{path}/pad"), Value::Null).await;
    assert_eq!(removed, (200, json!({ "code": 0, "reason": "", "removed": true })));
    assert_eq!(world.tokens("ann").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_on_another_device_meanwhile_is_not_told() {
    let provider = Provider::start().await;
    let long = |config: &mut Config| {
        config.push.delay = millrace_service::Duration::from_secs(4);
    };
    let mut world = World::start(&provider, long).await;
    world.away(1, "ann", "apns", "a1a1").await;
    world.enter(2, "bob", "laptop").await;
    let sent = world.say(2, "ann", "quick").await;
    world.enter(3, "ann", "laptop").await;
    let id = world.id();
    let read = Read { conversation_id: sent.conversation_id, sequence: sent.sequence };
    let reply: ReadReply = world.gateway.request(3, command::READ, id, &read).await.decode();
    assert_eq!(reply.code, 0);
    let id = world.id();
    let pull = PullConversations { since_version: 0, limit: 0, ..Default::default() };
    world.gateway.request(3, command::PULL_CONVERSATIONS, id, &pull).await;
    world.gateway.end_session(3, Code::Ok).await;
    world.until_sessions("ann", 0).await;
    sleep(Duration::from_secs(4) + QUIET).await;
    assert!(provider.taken().is_empty(), "{:?}", provider.taken());
    world.logic.shutdown().await.expect("it leaves well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_revoked_meanwhile_is_not_told_and_its_words_never_are() {
    let provider = Provider::start().await;
    let change = |config: &mut Config| {
        config.push.delay = millrace_service::Duration::from_secs(4);
        config.push.show_body = true;
    };
    let mut world = World::start(&provider, change).await;
    world.away(1, "ann", "apns", "a2a2").await;
    world.away(2, "cid", "apns", "c2c2").await;
    world.enter(3, "bob", "laptop").await;
    let to_ann = world.say(3, "ann", "a slip").await;
    // To cid there is one more that stands before it.
    world.say(3, "cid", "stands").await;
    let to_cid = world.say(3, "cid", "another slip").await;
    for slip in [to_ann, to_cid] {
        let id = world.id();
        let revoke = Revoke { conversation_id: slip.conversation_id, sequence: slip.sequence };
        let reply: RevokeReply =
            world.gateway.request(3, command::REVOKE, id, &revoke).await.decode();
        assert_eq!(reply.code, 0, "{}", reply.reason);
    }
    let told = taken(&provider, 1).await;
    assert_eq!(told[0].token, "c2c2");
    assert_eq!(told[0].body["aps"]["alert"]["body"], json!("New message"), "not the slip");
    sleep(QUIET).await;
    assert_eq!(provider.taken().len(), 1, "{:?}", provider.taken());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_missed_a_forwarded_message_is_told_of_it() {
    let provider = Provider::start().await;
    let mut world = World::start(&provider, |_| {}).await;
    world.away(1, "ann", "apns", "a3a3").await;
    world.enter(2, "bob", "laptop").await;
    let note = world.say(2, "bob", "a note to myself").await;
    let id = world.id();
    let forward = Forward {
        conversation_id: note.conversation_id,
        sequences: vec![note.sequence],
        user_id: "ann".into(),
        client_message_id: "forwarded".into(),
        ..Forward::default()
    };
    world.gateway.request(2, command::FORWARD, id, &forward).await;
    let told = taken(&provider, 1).await;
    assert_eq!((&*told[0].token, &told[0].body["sender_id"]), ("a3a3", &json!("bob")));
}
