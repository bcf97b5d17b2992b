//! WebSocket messages that come back to whoever sent them: raw, or wrapped in a server's own protocol.
//!
//! It speaks RFC 6455 without extensions. Texts of the scenario stand around each message and before
//! the first one, so that servers which are no plain echo (a publication on a channel of one's own)
//! give one all the same.

use millrace_protocol::websocket::{self, Limits, Message, MessageReader, Opcode, Role};

use super::{Adapter, Answer, Event, Outgoing, payload::Payload};
use crate::{
    client::{Context, Endpoint, Settings},
    population::Transport,
    record::Metric,
    scenario::WebsocketEchoSection,
};

const LIMITS: Limits = Limits { message_bytes_max: 16 * 1024 * 1024 };

/// Where the connection stands.
#[derive(Debug)]
enum Stage {
    /// The upgrade request is out.
    Upgrading(Box<Upgrading>),
    /// The upgrade was accepted; nobody was told yet that the session is up.
    Accepted,
    /// Messages.
    Open(MessageReader),
}

#[derive(Debug)]
struct Upgrading {
    key: [u8; 16],
    head: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct WebsocketEcho {
    stage: Stage,
    /// Payloads of one message that are still to be told: the message, and where to look on. Only
    /// where a server may put several into one.
    found: Option<Box<(Vec<u8>, usize)>>,
}

fn write(cx: &mut Context, out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let mask = Some(cx.random.u32(..).to_ne_bytes());
    websocket::write_frame(out, opcode, true, mask, payload);
}

fn opcode(echo: &WebsocketEchoSection) -> Opcode {
    if echo.text { Opcode::Text } else { Opcode::Binary }
}

impl WebsocketEcho {
    /// The way to a session.
    fn shake_hands(
        &mut self,
        user: u32,
        cx: &mut Context,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Event<'static>>), String> {
        let Stage::Upgrading(upgrading) = &mut self.stage else {
            self.stage = Stage::Open(MessageReader::new());
            let settings = cx.settings.clone();
            if let Some(text) = &settings.websocket_echo.first_message {
                let text = text.replace("{user}", &cx.population.user_id(user));
                write(cx, out, opcode(&settings.websocket_echo), text.as_bytes());
            }
            return Ok((0, Some(Event::Ready)));
        };
        let Upgrading { key, head } = upgrading.as_mut();
        let before = head.len();
        head.extend_from_slice(bytes);
        let read = websocket::read_upgrade_response(head, key);
        let Some((used, chosen)) = read.map_err(|error| format!("upgrade: {error}"))? else {
            return Ok((bytes.len(), None));
        };
        let asked = &cx.settings.websocket_echo.subprotocol;
        if *asked != chosen {
            let name = |one: &Option<String>| one.clone().unwrap_or("none".to_owned());
            let (asked, chosen) = (name(asked), name(&chosen));
            return Err(format!("upgrade: asked for subprotocol {asked}, got {chosen}"));
        }
        self.stage = Stage::Accepted;
        Ok((used - before, Some(Event::Passed(Metric::Upgrade))))
    }

    /// The next payload of the message that is looked through.
    fn next_found(&mut self) -> Option<Event<'_>> {
        let (message, at) = self.found.as_deref_mut()?;
        let (found, after) = Payload::find(&message[*at..])?;
        *at += after;
        Some(Event::Message { target: None, payload: found })
    }
}

impl Adapter for WebsocketEcho {
    fn endpoint(settings: &Settings) -> Option<&Endpoint> {
        settings.endpoint(Transport::WebSocket)
    }

    fn open(_: u32, cx: &mut Context, out: &mut Vec<u8>) -> Self {
        let mut key = [0; 16];
        cx.random.fill(&mut key);
        let endpoint = Self::endpoint(&cx.settings);
        let (host, path) = endpoint.map_or(("", "/"), |to| (to.host.as_str(), to.path.as_str()));
        let subprotocol = cx.settings.websocket_echo.subprotocol.as_deref();
        websocket::write_upgrade_request(out, host, path, subprotocol, &key);
        Self { stage: Stage::Upgrading(Box::new(Upgrading { key, head: Vec::new() })), found: None }
    }

    fn read<'a>(
        &'a mut self,
        user: u32,
        cx: &mut Context,
        bytes: &'a mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Event<'a>>), String> {
        // Looked for twice, since what is found borrows all of it.
        if self.next_is_found() {
            return Ok((0, self.next_found()));
        }
        self.found = None;
        if !matches!(self.stage, Stage::Open(_)) {
            return self.shake_hands(user, cx, bytes, out);
        }
        let Stage::Open(reader) = &mut self.stage else { return Ok((bytes.len(), None)) };
        let (used, message) =
            reader.read(Role::Client, &LIMITS, bytes).map_err(|error| error.to_string())?;
        let Some(message) = message else { return Ok((used, None)) };
        let settings = cx.settings.clone();
        let echo = &settings.websocket_echo;
        let (is_text, payload) = match message {
            Message::Text(text) => (true, text.as_bytes()),
            Message::Binary(bytes) => (false, &*bytes),
            Message::Ping(payload) => {
                write(cx, out, Opcode::Pong, payload);
                return Ok((used, Some(Event::Other)));
            }
            Message::Pong(_) => return Ok((used, Some(Event::Pong))),
            Message::Close(close) => {
                let code = close.map_or(1005, |close| close.code);
                return Ok((used, Some(Event::Closing(format!("close code {code}")))));
            }
        };
        let text = if echo.replies.is_empty() { None } else { str::from_utf8(payload).ok() };
        if let Some(answer) = text.and_then(|text| echo.replies.get(text)) {
            write(cx, out, opcode(echo), answer.as_bytes());
            return Ok((used, Some(Event::Other)));
        }
        if echo.message.is_none() {
            // A plain echo is the same in kind, too; else it is told as something else.
            let payload = if is_text == echo.text { payload } else { &[] };
            return Ok((used, Some(Event::Message { target: None, payload })));
        }
        self.found = Some(Box::new((payload.to_vec(), 0)));
        Ok((used, Some(Event::Other)))
    }

    fn write_message(cx: &mut Context, out: &mut Vec<u8>, message: &Outgoing<'_>) {
        let settings = cx.settings.clone();
        let echo = &settings.websocket_echo;
        let Some(around) = &echo.message else {
            return write(cx, out, opcode(echo), message.payload);
        };
        // The check of the scenario saw to it that the payload stands there once.
        let (head, tail) = around.split_once("{payload}").unwrap_or((around, ""));
        let fill = |text: &str| {
            text.replace("{bytes}", &message.payload.len().to_string())
                .replace("{number}", &message.number.to_string())
                .replace("{user}", &cx.population.user_id(message.user))
        };
        let mut whole = fill(head).into_bytes();
        whole.extend_from_slice(message.payload);
        whole.extend_from_slice(fill(tail).as_bytes());
        write(cx, out, opcode(echo), &whole);
    }

    fn write_ping(cx: &mut Context, out: &mut Vec<u8>) {
        write(cx, out, Opcode::Ping, &[]);
    }

    fn farewell(cx: &mut Context) -> Vec<u8> {
        let mut out = Vec::new();
        websocket::write_close(&mut out, Some(cx.random.u32(..).to_ne_bytes()), 1000, "");
        out
    }

    fn answer(_: &Settings) -> Answer {
        Answer::Echo
    }

    fn is_at_least_once(_: &Settings) -> bool {
        false
    }

    fn ping_interval_ns(settings: &Settings) -> u64 {
        settings.websocket_echo.ping_interval.as_millis() * 1_000_000
    }
}

impl WebsocketEcho {
    fn next_is_found(&self) -> bool {
        self.found.as_ref().is_some_and(|found| Payload::find(&found.0[found.1..]).is_some())
    }
}
