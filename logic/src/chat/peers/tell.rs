//! Telling: what happened here, as events of bounded size.

use bytes::Bytes;
use millrace_protocol::{
    Code,
    chat::Message,
    peer::{
        CloseSessions, LoggedOut, PeerEvent, PeerEvents, PresenceChanged, SessionName, Stored,
        ToUsers, peer_event::Kind,
    },
};
use prost::Message as _;

use super::{Peers, SUBJECT, feed::Place};
use crate::storage::Members;

/// More than a `Stored` needs beside its message and the recipients.
const STORED_BYTES: usize = 64;

/// What a commit stored, gathered to be told at once.
#[derive(Default)]
pub(crate) struct Telling {
    events: PeerEvents,
    bytes: usize,
}

impl Peers {
    /// Adds a message to what is told; what has become too large goes out.
    pub(crate) fn add(
        &self,
        telling: &mut Telling,
        message: &Message,
        place: Place<'_>,
        recipients: &Members,
    ) {
        let max = self.settings.event_bytes_max;
        let whole_bytes = message.encoded_len() + STORED_BYTES;
        // Half is left for the recipients.
        let omitted = whole_bytes > max / 2;
        let told = match omitted {
            false => message.clone(),
            true => Message {
                conversation_id: message.conversation_id.clone(),
                message_id: message.message_id.clone(),
                sequence: message.sequence,
                ..Message::default()
            },
        };
        let message_bytes = told.encoded_len() + STORED_BYTES;
        let mut rest = &recipients[..];
        loop {
            let mut bytes = message_bytes;
            let fitting = rest.iter().take_while(|user_id| {
                bytes += user_id.len() + 4;
                bytes <= max
            });
            // One at least, so that this ends.
            let count = fitting.count().max(1).min(rest.len());
            let (part, others) = rest.split_at(count);
            rest = others;
            if telling.bytes > 0 && telling.bytes + bytes > max {
                self.send(telling);
            }
            telling.bytes += bytes;
            let stored = Stored {
                message: Some(told.clone()),
                version: place.version,
                follows: place.follows,
                rewritten: place.rewritten,
                recipients: part.iter().map(|user_id| user_id.to_string()).collect(),
                more: !rest.is_empty(),
                omitted,
            };
            telling.events.events.push(PeerEvent { kind: Some(Kind::Stored(stored)) });
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Tells what was gathered.
    pub(crate) fn send(&self, telling: &mut Telling) {
        telling.bytes = 0;
        let events = std::mem::take(&mut telling.events);
        if !events.events.is_empty() {
            self.tell(&events);
        }
    }

    /// A frame to every session of these users that has its home elsewhere.
    pub(crate) fn to_users<M: prost::Message>(
        &self,
        user_ids: impl IntoIterator<Item = impl AsRef<str>>,
        command: u16,
        message: &M,
    ) {
        let body = Bytes::from(message.encode_to_vec());
        let mut user_ids =
            user_ids.into_iter().map(|user_id| user_id.as_ref().to_owned()).peekable();
        while user_ids.peek().is_some() {
            let mut bytes = body.len() + 64;
            let mut part = Vec::new();
            while let Some(user_id) = user_ids.next_if(|user_id| {
                bytes += user_id.len() + 4;
                part.is_empty() || bytes <= self.settings.event_bytes_max
            }) {
                part.push(user_id);
            }
            let command = u32::from(command);
            self.one(Kind::ToUsers(ToUsers { user_ids: part, command, body: body.clone() }));
        }
    }

    /// Sessions that are to end, wherever their home is.
    pub(crate) fn close(&self, sessions: Vec<SessionName>, code: Code, reason: &str) {
        let (code, reason) = (code.number(), reason.to_owned());
        self.one(Kind::CloseSessions(CloseSessions { sessions, code, reason }));
    }

    /// Sessions of these users have come or gone.
    pub(crate) fn presence_changed(&self, user_ids: Vec<String>) {
        self.one(Kind::PresenceChanged(PresenceChanged { user_ids }));
    }

    /// A user has logged out everywhere.
    pub(crate) fn logged_out(
        &self,
        user_id: &str,
        moment_ms: i64,
        kept: Option<SessionName>,
        reason: &str,
    ) {
        let (user_id, reason) = (user_id.to_owned(), reason.to_owned());
        self.one(Kind::LoggedOut(LoggedOut { user_id, moment_ms, kept, reason }));
    }

    pub(super) fn one(&self, kind: Kind) {
        self.tell(&PeerEvents { events: vec![PeerEvent { kind: Some(kind) }] });
    }

    fn tell(&self, events: &PeerEvents) {
        if let Err(error) = self.events.tell(SUBJECT, Bytes::from(events.encode_to_vec())) {
            // What is stored is found by the gap; anything else is lost, as the trait says.
            tracing::warn!(%error, "an event for other logic processes was not told");
        }
    }
}
