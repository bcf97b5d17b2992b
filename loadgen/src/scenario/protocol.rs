//! What the users of a run speak, the sections that only one protocol has, and what a protocol
//! cannot do: said, and not left out in silence.

use std::collections::BTreeMap;

use millrace_service::{Duration, Invalid};
use serde::{Deserialize, Serialize};

use super::{Scenario, TransportKind};

/// Longest text that a scenario has sent before its messages, or around them.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Texts that are answered by themselves.
const REPLIES_MAX: usize = 16;
/// MQTT says the time to keep alive in 16 bits of seconds.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(65_535);

/// What the users speak, all of them in a run: who sends to whom, and what a server owes to whom,
/// has a meaning within one protocol only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Protocol {
    /// Millrace's own, over TCP and WebSocket.
    #[default]
    Millrace,
    /// WebSocket messages that come back to whoever sent them.
    WebsocketEcho,
    /// MQTT 3.1.1 over TCP.
    Mqtt,
}

impl Protocol {
    /// As scenarios write it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Millrace => "millrace",
            Self::WebsocketEcho => "websocket_echo",
            Self::Mqtt => "mqtt",
        }
    }

    /// How its connections come in; `None`: as the populations say.
    pub const fn transport(self) -> Option<TransportKind> {
        match self {
            Self::Millrace => None,
            Self::WebsocketEcho => Some(TransportKind::WebSocket),
            Self::Mqtt => Some(TransportKind::Tcp),
        }
    }
}

/// `[websocket_echo]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebsocketEchoSection {
    /// The subprotocol to ask for; the server must accept it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subprotocol: Option<String>,
    /// Text messages instead of binary ones.
    pub text: bool,
    /// Sent once after the upgrade; `{user}` becomes the user's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_message: Option<String>,
    /// What stands around each message, for servers with a protocol of their own: `{payload}` is the
    /// message, `{bytes}` its length, `{number}` its number, `{user}` the user's id. What comes back
    /// is looked through for payloads, and what holds none is left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Messages of the server that are answered: `{ "PING\r\n" = "PONG\r\n" }`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub replies: BTreeMap<String, String>,
    /// A ping so often on every connection; 0: none.
    pub ping_interval: Duration,
}

impl Default for WebsocketEchoSection {
    fn default() -> Self {
        Self {
            subprotocol: None,
            text: false,
            first_message: None,
            message: None,
            replies: BTreeMap::new(),
            ping_interval: Duration::from_secs(30),
        }
    }
}

/// `[mqtt]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MqttSection {
    /// Quality of service of every message and subscription: 0 or 1.
    pub qos: u8,
    /// What CONNECT says; a PINGREQ goes out after nine tenths of it. 0: none.
    pub keep_alive: Duration,
    /// User name of CONNECT; `{user}` becomes the user's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password of CONNECT; `{token}` becomes a token made as `[login]` says, `{user}` the user's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// First level of every topic.
    pub topic_prefix: String,
}

impl Default for MqttSection {
    fn default() -> Self {
        Self {
            qos: 1,
            keep_alive: Duration::from_secs(60),
            username: None,
            password: None,
            topic_prefix: "millrace-loadgen".to_owned(),
        }
    }
}

impl MqttSection {
    /// Whether a token is to be made for everybody.
    pub fn wants_tokens(&self) -> bool {
        self.password.as_ref().is_some_and(|password| password.contains("{token}"))
    }
}

fn bad(key: &str, message: impl Into<String>) -> Result<(), Invalid> {
    Err(Invalid::new(key, message))
}

impl Scenario {
    /// Finds what the protocol cannot do, and sections of another one.
    ///
    /// # Errors
    /// The first such key, and why.
    pub(super) fn check_protocol(&self) -> Result<(), Invalid> {
        let name = self.protocol.label();
        let sections = [
            (Protocol::WebsocketEcho, self.websocket_echo.is_some()),
            (Protocol::Mqtt, self.mqtt.is_some()),
        ];
        for (protocol, is_there) in sections {
            if is_there && protocol != self.protocol {
                let section = protocol.label();
                let message = format!("only protocol = \"{section}\" has it, and this is {name}");
                return bad(section, message);
            }
        }
        match self.protocol {
            Protocol::Millrace => return Ok(()),
            Protocol::WebsocketEcho => self.check_websocket_echo()?,
            Protocol::Mqtt => self.check_mqtt()?,
        }
        if self.group_chat.as_ref().is_some_and(|chat| chat.per_second > 0.0) {
            let instead = match self.protocol {
                Protocol::Mqtt => "; a topic with many subscribers is room_broadcast",
                _ => "",
            };
            return bad("group_chat", format!("{name} has no groups{instead}"));
        }
        if !self.custom.is_empty() {
            return bad("custom", format!("{name} has no frames of Millrace's protocol"));
        }
        if self.heartbeat.as_ref().is_some_and(|beat| beat.closed_loop > 0) {
            return bad("heartbeat.closed_loop", format!("{name} has no closed loop of pings"));
        }
        for part in &self.population {
            let (kind, own) = (part.transport, self.protocol.transport());
            if kind != TransportKind::Mixed && Some(kind) != own {
                let message = format!("{}: {name} has a transport of its own", part.name);
                return bad("population", message);
            }
            if !part.devices.is_empty() {
                let message = format!("{}: {name} has no LOGIN that names devices", part.name);
                return bad("population", message);
            }
        }
        Ok(())
    }

    fn check_websocket_echo(&self) -> Result<(), Invalid> {
        if self.room_broadcast.as_ref().is_some_and(|room| room.per_second > 0.0) {
            return bad("room_broadcast", "an echo goes to its sender only: there are no rooms");
        }
        let Some(echo) = &self.websocket_echo else { return Ok(()) };
        let texts = [&echo.first_message, &echo.message].into_iter().flatten();
        let texts = texts.chain(echo.replies.keys()).chain(echo.replies.values());
        if texts.into_iter().any(|text| text.is_empty() || text.len() > TEXT_BYTES_MAX) {
            return bad("websocket_echo", format!("texts must have 1 to {TEXT_BYTES_MAX} bytes"));
        }
        if echo.replies.len() > REPLIES_MAX {
            return bad("websocket_echo.replies", format!("at most {REPLIES_MAX}"));
        }
        if echo.message.as_ref().is_some_and(|text| text.matches("{payload}").count() != 1) {
            return bad("websocket_echo.message", "must hold {payload} once");
        }
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if echo.subprotocol.as_ref().is_some_and(|it| it.is_empty() || !it.bytes().all(is_token)) {
            return bad("websocket_echo.subprotocol", "is no name of a subprotocol");
        }
        Ok(())
    }

    fn check_mqtt(&self) -> Result<(), Invalid> {
        let mqtt = self.mqtt.clone().unwrap_or_default();
        if mqtt.qos > 1 {
            let message = "must be 0 or 1: quality of service 2 is not spoken here";
            return bad("mqtt.qos", message);
        }
        if mqtt.keep_alive > KEEP_ALIVE_MAX || !mqtt.keep_alive.as_millis().is_multiple_of(1000) {
            return bad(
                "mqtt.keep_alive",
                format!("must be whole seconds, at most {KEEP_ALIVE_MAX}"),
            );
        }
        let prefix = &mqtt.topic_prefix;
        if prefix.is_empty() || prefix.len() > 1000 || prefix.contains(['+', '#', '\0']) {
            return bad("mqtt.topic_prefix", "must have 1 to 1000 bytes without +, # and zeros");
        }
        if self.user_prefix.contains(['+', '#', '\0']) {
            return bad("user_prefix", "is a part of topics: without +, # and zeros");
        }
        if mqtt.password.is_some() && mqtt.username.is_none() {
            return bad("mqtt.password", "MQTT 3.1.1 has no password without a user name");
        }
        let texts = [&mqtt.username, &mqtt.password];
        if texts.into_iter().flatten().any(|text| text.len() > 60_000) {
            return bad("mqtt", "user name and password have at most 60000 bytes");
        }
        let closed_loop = self.single_chat.as_ref().map_or(0, |chat| chat.closed_loop);
        if mqtt.qos == 0 && closed_loop > 0 {
            let message =
                "at quality of service 0 nothing is acknowledged: there is no closed loop";
            return bad("single_chat.closed_loop", message);
        }
        Ok(())
    }
}
