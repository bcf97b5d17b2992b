//! A logic process on a data directory of its own, and what the tests do to it as gateways,
//! clients and business services.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use millrace_logic::{
    Config, Logic,
    config::{Door, Listen},
};
use millrace_logic_sdk::{
    Encoding,
    testing::{FakeGateway, FakeGatewaySettings, Frame, login_request},
};
use millrace_protocol::{
    chat::{
        Conversation, ConversationsReply, Deliver, DeliverAck, Message, PullConversations,
        PullMessages, PullReply, SendMessage, SendReply,
    },
    command,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub const SECRET: &str = "a secret of the tests, long enough for HS256";
pub const TOKEN: &str = "a token of the tests";

/// How long a test listens to be sure that nothing comes.
pub const QUIET: Duration = Duration::from_millis(300);

pub struct World {
    folder: tempfile::TempDir,
    change: fn(&mut Config),
    /// The list of words; empty: none.
    words: std::path::PathBuf,
    pub logic: Option<Logic>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl World {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With a list of words that are not let through, looked at often.
    pub async fn start_with_words(words: &std::path::Path) -> Self {
        Self::start_as(|_| {}, words.to_owned()).await
    }

    pub async fn start_with(change: fn(&mut Config)) -> Self {
        Self::start_as(change, std::path::PathBuf::new()).await
    }

    async fn start_as(change: fn(&mut Config), words: std::path::PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut world = Self { folder, change, words, logic: None };
        world.logic = Some(Logic::start(world.config()).await.expect("logic starts"));
        world
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.link.listen = loopback();
        config.http = Door { listen: Listen(Some(loopback())) };
        config.admin = Door { listen: Listen(Some(loopback())) };
        config.store.directory = self.folder.path().join("data");
        config.login.jwt_secret = SECRET.to_owned();
        config.api.token = TOKEN.to_owned();
        // Shorter than what the tests wait for.
        config.receipts.interval = millrace_service::Duration::from_millis(200);
        config.words.file = self.words.clone();
        config.words.poll = millrace_service::Duration::from_millis(20);
        (self.change)(&mut config);
        config
    }

    pub fn logic(&self) -> &Logic {
        self.logic.as_ref().expect("logic runs")
    }

    /// Ends logic well and starts it on the same data.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.logic = Some(Logic::start(self.config()).await.expect("logic starts again"));
    }

    pub async fn stop(&mut self) {
        self.logic.take().expect("logic runs").shutdown().await.expect("logic leaves well");
    }

    pub async fn gateway(&self, gateway_id: &str) -> FakeGateway {
        let settings = FakeGatewaySettings { gateway_id: gateway_id.into(), ..Default::default() };
        self.gateway_with(settings).await
    }

    pub async fn gateway_with(&self, settings: FakeGatewaySettings) -> FakeGateway {
        FakeGateway::connect(self.logic().link_address(), settings).await.expect("linked")
    }

    /// A request to the HTTP door.
    pub async fn http(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let address = self.logic().http_address().expect("the door is open");
        let (status, text) = http(address, method, path, Some(TOKEN), &body.to_string()).await;
        (status, serde_json::from_str(&text).expect("JSON"))
    }

    pub async fn create_group(&self, group_id: &str, members: &[&str]) -> String {
        let body = json!({ "group_id": group_id, "name": group_id, "members": members });
        let (status, reply) = self.http("POST", "/v1/groups", body).await;
        assert_eq!(status, 200, "{reply}");
        reply["conversation_id"].as_str().expect("a conversation").to_owned()
    }
}

/// One HTTP/1.1 exchange on a connection of its own.
pub async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let authorization = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\n{authorization}connection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.expect("a reply");
    let (head, body) = reply.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    (status, body.to_owned())
}

pub fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64
}

pub fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

/// A token as a business service would issue it.
pub fn token(user_id: &str, expires_in_seconds: i64) -> String {
    token_with(&json!({ "sub": user_id, "exp": unix_seconds() + expires_in_seconds }))
}

/// The same with any claims.
pub fn token_with(claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).expect("a token")
}

/// What tests do with a gateway on behalf of its clients.
#[allow(async_fn_in_trait)]
pub trait Clients {
    /// Logs a user in with a device of its own; fails the test if refused.
    async fn enter(&mut self, session_id: u64, user_id: &str);
    async fn enter_as(
        &mut self,
        session_id: u64,
        user_id: &str,
        device_id: &str,
        platform: &str,
        encoding: Encoding,
    );
    async fn send_to(&mut self, session_id: u64, message: SendMessage) -> SendReply;
    async fn say(&mut self, session_id: u64, to: &str, text: &str) -> SendReply;
    async fn say_to_group(&mut self, session_id: u64, group_id: &str, text: &str) -> SendReply;
    /// The next frame of a command; others before it are passed over.
    async fn next_of(&mut self, session_id: u64, command: u16) -> Frame;
    /// The next so many messages pushed to a session.
    async fn delivered(&mut self, session_id: u64, count: usize) -> Vec<Message>;
    /// The messages of the next push.
    async fn delivered_next(&mut self, session_id: u64) -> Vec<Message>;
    /// Fails the test if a session is pushed a message within a while.
    async fn nothing_delivered(&mut self, session_id: u64);
    async fn acknowledge(&mut self, session_id: u64, conversation_id: &str, sequence: u64);
    async fn conversations(&mut self, session_id: u64, since_version: u64) -> ConversationsReply;
    async fn conversation(&mut self, session_id: u64, conversation_id: &str) -> Conversation;
    async fn pull(&mut self, session_id: u64, pull: PullMessages) -> PullReply;
}

/// A request id that no other request of the test has.
pub fn request_id() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Clients for FakeGateway {
    async fn enter(&mut self, session_id: u64, user_id: &str) {
        let device_id = format!("device-{session_id}");
        self.enter_as(session_id, user_id, &device_id, "", Encoding::Protobuf).await;
    }

    async fn enter_as(
        &mut self,
        session_id: u64,
        user_id: &str,
        device_id: &str,
        platform: &str,
        encoding: Encoding,
    ) {
        let token = token(user_id, 3_600);
        let request = login_request(session_id, user_id, &token, device_id, platform, encoding);
        let result = self.login(request).await;
        assert_eq!(result.code, 0, "{}", result.reason);
    }

    async fn send_to(&mut self, session_id: u64, message: SendMessage) -> SendReply {
        self.request(session_id, command::SEND_MESSAGE, request_id(), &message).await.decode()
    }

    async fn say(&mut self, session_id: u64, to: &str, text: &str) -> SendReply {
        let reply = self.send_to(session_id, to_user(to, text)).await;
        assert_eq!(reply.code, 0, "{}", reply.reason);
        reply
    }

    async fn say_to_group(&mut self, session_id: u64, group_id: &str, text: &str) -> SendReply {
        let reply = self.send_to(session_id, to_group(group_id, text)).await;
        assert_eq!(reply.code, 0, "{}", reply.reason);
        reply
    }

    async fn next_of(&mut self, session_id: u64, command: u16) -> Frame {
        loop {
            let frame = self.next_frame(session_id).await.expect("the stream lives");
            if frame.command == command {
                return frame;
            }
        }
    }

    async fn delivered(&mut self, session_id: u64, count: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.len() < count {
            messages.extend(self.delivered_next(session_id).await);
        }
        assert_eq!(messages.len(), count, "more messages than expected: {messages:?}");
        messages
    }

    async fn delivered_next(&mut self, session_id: u64) -> Vec<Message> {
        self.next_of(session_id, command::DELIVER).await.decode::<Deliver>().messages
    }

    async fn nothing_delivered(&mut self, session_id: u64) {
        self.read_for(QUIET).await;
        while self.inbox(session_id) > 0 {
            let frame = self.next_frame(session_id).await.expect("it is there");
            assert_ne!(frame.command, command::DELIVER, "{:?}", frame.decode::<Deliver>());
        }
    }

    async fn acknowledge(&mut self, session_id: u64, conversation_id: &str, sequence: u64) {
        // With a request id the (empty) reply says that the cursor has moved.
        let ack = DeliverAck { conversation_id: conversation_id.into(), sequence };
        let reply = self.request(session_id, command::DELIVER_ACK, request_id(), &ack).await;
        assert_eq!(reply.command, command::reply(command::DELIVER_ACK), "{:?}", reply.error());
    }

    async fn conversations(&mut self, session_id: u64, since_version: u64) -> ConversationsReply {
        let pull = PullConversations { since_version, ..PullConversations::default() };
        let frame =
            self.request(session_id, command::PULL_CONVERSATIONS, request_id(), &pull).await;
        frame.decode()
    }

    async fn conversation(&mut self, session_id: u64, conversation_id: &str) -> Conversation {
        let reply = self.conversations(session_id, 0).await;
        let found = reply.conversations.into_iter().find(|c| c.conversation_id == conversation_id);
        found.expect("the user has this conversation")
    }

    async fn pull(&mut self, session_id: u64, pull: PullMessages) -> PullReply {
        self.request(session_id, command::PULL_MESSAGES, request_id(), &pull).await.decode()
    }
}

/// A text message with a client id that no other has.
pub fn to_user(user_id: &str, text: &str) -> SendMessage {
    SendMessage {
        client_message_id: format!("c{}", request_id()),
        user_id: user_id.into(),
        r#type: 1,
        body: text.into(),
        ..SendMessage::default()
    }
}

/// The same to a group.
pub fn to_group(group_id: &str, text: &str) -> SendMessage {
    SendMessage { user_id: String::new(), group_id: group_id.into(), ..to_user("", text) }
}
