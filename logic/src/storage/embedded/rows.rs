//! The rows: compact, each beginning with its version. A reader of a newer program knows the older
//! versions; an older program refuses newer rows with an error that says so.

use millrace_protocol::chat;
use prost::Message as _;
use uuid::Uuid;

use super::encoding::{DecodeError, Reader, put_bytes, put_number, put_text};
use crate::storage::Extras;

/// The version that this program writes of every row.
pub(super) const VERSION: u8 = 1;

/// A row of a table.
pub trait Row: Sized {
    /// The row's bytes.
    fn encode(&self) -> Vec<u8>;

    /// Reads the bytes of [`Row::encode`].
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;
}

/// A stored message; its conversation and sequence are its key.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageRow {
    /// The version of the write that stored it.
    pub version: u64,
    /// Counting messages of the conversation up to and including this one.
    pub counting: u64,
    pub message_id: Uuid,
    pub sender_id: String,
    pub client_message_id: String,
    pub kind: u32,
    pub body: String,
    pub attachment: Option<chat::Attachment>,
    pub sent_at_ms: i64,
    pub state: u32,
    pub does_not_count: bool,
    pub extras: Option<Box<Extras>>,
}

const DOES_NOT_COUNT: u8 = 1;
const HAS_ATTACHMENT: u8 = 2;
const HAS_EXTRAS: u8 = 4;

impl Row for MessageRow {
    fn encode(&self) -> Vec<u8> {
        let texts = self.sender_id.len() + self.client_message_id.len() + self.body.len();
        let mut bytes = Vec::with_capacity(48 + texts);
        bytes.push(VERSION);
        let does_not_count = if self.does_not_count { DOES_NOT_COUNT } else { 0 };
        let has_attachment = if self.attachment.is_some() { HAS_ATTACHMENT } else { 0 };
        let has_extras = if self.extras.is_some() { HAS_EXTRAS } else { 0 };
        bytes.push(does_not_count | has_attachment | has_extras);
        put_number(&mut bytes, self.version);
        put_number(&mut bytes, self.counting);
        bytes.extend_from_slice(self.message_id.as_bytes());
        put_number(&mut bytes, u64::from(self.kind));
        put_number(&mut bytes, u64::from(self.state));
        put_number(&mut bytes, self.sent_at_ms as u64);
        put_text(&mut bytes, &self.sender_id);
        put_text(&mut bytes, &self.client_message_id);
        put_text(&mut bytes, &self.body);
        if let Some(attachment) = &self.attachment {
            put_text(&mut bytes, &attachment.attachment_id);
            put_text(&mut bytes, &attachment.r#type);
            put_text(&mut bytes, &attachment.name);
            put_text(&mut bytes, &attachment.url);
            put_number(&mut bytes, attachment.size);
        }
        if let Some(extras) = &self.extras {
            // As the fields of the message that they are on the wire: what is added there needs no
            // other form here.
            let mut message = chat::Message::default();
            extras.clone().put_into(&mut message);
            put_bytes(&mut bytes, &message.encode_to_vec());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        let flags = reader.byte()?;
        let row = Self {
            version: reader.number()?,
            counting: reader.number()?,
            message_id: Uuid::from_slice(reader.bytes(16)?).map_err(|_| DecodeError::Short)?,
            kind: reader.number_u32()?,
            state: reader.number_u32()?,
            sent_at_ms: reader.number()? as i64,
            sender_id: reader.text()?.to_owned(),
            client_message_id: reader.text()?.to_owned(),
            body: reader.text()?.to_owned(),
            attachment: if flags & HAS_ATTACHMENT != 0 {
                Some(chat::Attachment {
                    attachment_id: reader.text()?.to_owned(),
                    r#type: reader.text()?.to_owned(),
                    name: reader.text()?.to_owned(),
                    url: reader.text()?.to_owned(),
                    size: reader.number()?,
                })
            } else {
                None
            },
            does_not_count: flags & DOES_NOT_COUNT != 0,
            extras: if flags & HAS_EXTRAS != 0 {
                let message = chat::Message::decode(reader.counted_bytes()?);
                Extras::of(message.map_err(|_| DecodeError::Extras)?)
            } else {
                None
            },
        };
        reader.finish()?;
        Ok(row)
    }
}

impl MessageRow {
    /// The message as clients know it.
    pub fn into_message(
        self,
        conversation_id: &str,
        conversation_type: u32,
        sequence: u64,
    ) -> chat::Message {
        let mut message = chat::Message {
            conversation_id: conversation_id.to_owned(),
            conversation_type,
            sequence,
            message_id: self.message_id.to_string(),
            client_message_id: self.client_message_id,
            sender_id: self.sender_id,
            r#type: self.kind,
            body: self.body,
            attachment: self.attachment,
            sent_at_ms: self.sent_at_ms,
            state: self.state,
            does_not_count: self.does_not_count,
            ..chat::Message::default()
        };
        if let Some(extras) = self.extras {
            extras.put_into(&mut message);
        }
        message
    }

    /// The version in a row, without the rest of it.
    #[cfg(feature = "postgres")]
    pub fn version_of(bytes: &[u8]) -> Result<u64, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        reader.byte()?;
        reader.number()
    }

    /// Stands for one that is not here yet, where all answers are guesses.
    #[cfg(feature = "postgres")]
    pub fn unknown() -> Self {
        Self {
            version: 0,
            counting: 0,
            message_id: Uuid::nil(),
            sender_id: String::new(),
            client_message_id: String::new(),
            kind: 0,
            body: String::new(),
            attachment: None,
            sent_at_ms: 0,
            state: 0,
            does_not_count: false,
            extras: None,
        }
    }

    /// When its content is to be erased; 0: never.
    pub fn expires_at_ms(&self) -> i64 {
        self.extras.as_ref().map_or(0, |extras| extras.expires_at_ms)
    }
}

/// Where a client message id was stored. Kept for good: it costs about 60 bytes a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DedupeRow {
    pub conversation_id: String,
    /// Of the last message.
    pub sequence: u64,
    /// How many messages were stored under it.
    pub count: u32,
}

/// In place of [`VERSION`] where there are several messages; it tells their number after the rest.
const SEVERAL: u8 = 129;

impl Row for DedupeRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.conversation_id.len() + 12);
        bytes.push(if self.count > 1 { SEVERAL } else { VERSION });
        put_number(&mut bytes, self.sequence);
        put_text(&mut bytes, &self.conversation_id);
        if self.count > 1 {
            put_number(&mut bytes, u64::from(self.count));
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let several = bytes.first() == Some(&SEVERAL);
        let mut reader = Reader::of_version(bytes, if several { SEVERAL } else { VERSION })?;
        let sequence = reader.number()?;
        let conversation_id = reader.text()?.to_owned();
        let count = if several { reader.number_u32()? } else { 1 };
        reader.finish()?;
        Ok(Self { conversation_id, sequence, count })
    }
}

/// The counters of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConversationRow {
    pub max_sequence: u64,
    /// How many of its messages count.
    pub counting: u64,
    /// The version of the newest message, or of the newest write that erased one.
    pub message_version: u64,
    /// The last message of the first and of the second user of a single chat.
    pub sent: [u64; 2],
    /// Its group is or was too large for pointers: members find news here. It stays so, since
    /// pointers that were not written cannot be trusted again.
    pub by_cursor: bool,
    /// Its group was removed.
    pub removed: bool,
    /// Only the owner and administrators of the group speak.
    pub muted: bool,
    /// Messages of it were erased.
    pub has_edits: bool,
    /// The newest message that mentions everyone.
    pub mentioned_everyone: u64,
}

const BY_CURSOR: u8 = 1;
pub(super) const REMOVED: u8 = 2;
const MUTED: u8 = 4;
const MENTIONS_EVERYONE: u8 = 8;
const HAS_EDITS: u8 = 16;

impl Row for ConversationRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        bytes.push(VERSION);
        let by_cursor = if self.by_cursor { BY_CURSOR } else { 0 };
        let removed = if self.removed { REMOVED } else { 0 };
        let muted = if self.muted { MUTED } else { 0 };
        let has_edits = if self.has_edits { HAS_EDITS } else { 0 };
        let has_mention = if self.mentioned_everyone > 0 { MENTIONS_EVERYONE } else { 0 };
        bytes.push(by_cursor | removed | muted | has_edits | has_mention);
        put_number(&mut bytes, self.max_sequence);
        put_number(&mut bytes, self.counting);
        put_number(&mut bytes, self.message_version);
        put_number(&mut bytes, self.sent[0]);
        put_number(&mut bytes, self.sent[1]);
        if self.mentioned_everyone > 0 {
            put_number(&mut bytes, self.mentioned_everyone);
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        let flags = reader.byte()?;
        let row = Self {
            max_sequence: reader.number()?,
            counting: reader.number()?,
            message_version: reader.number()?,
            sent: [reader.number()?, reader.number()?],
            by_cursor: flags & BY_CURSOR != 0,
            removed: flags & REMOVED != 0,
            muted: flags & MUTED != 0,
            has_edits: flags & HAS_EDITS != 0,
            mentioned_everyone: if flags & MENTIONS_EVERYONE != 0 { reader.number()? } else { 0 },
        };
        reader.finish()?;
        Ok(row)
    }
}

/// What a user has of a conversation, apart from its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRow {
    /// The version of the last change of this row that the user can see.
    pub version: u64,
    pub init_sequence: u64,
    pub delivered: u64,
    pub read: u64,
    /// The user's last message in a group; of a single chat the conversation knows it.
    pub own_last_sent: u64,
    /// The newest sequence when the user left.
    pub quit_sequence: Option<u64>,
    pub do_not_disturb: bool,
    /// As in [`ConversationRow`].
    pub by_cursor: bool,
    /// The user has deleted messages, which another row lists.
    pub has_deleted: bool,
    /// The newest message that mentions the user by name.
    pub mentioned: u64,
    /// `Conversation.quit_reason`.
    pub quit_reason: u8,
    pub pinned: bool,
    /// The newest sequence when the user took the conversation off the list; a newer message brings
    /// it back.
    pub hidden_sequence: Option<u64>,
    /// Until when the member may not speak, in milliseconds since 1970; 0: may.
    pub muted_until_ms: i64,
}

const QUIT: u8 = 2;
const DO_NOT_DISTURB: u8 = 4;
const HAS_DELETED: u8 = 16;
const HAS_MENTION: u8 = 32;
/// A second byte of flags, and what they say is there, follows. Few rows have it.
const MORE: u8 = 8;

const MORE_PINNED: u8 = 1;
const MORE_HIDDEN: u8 = 2;
const MORE_MUTED: u8 = 4;
const MORE_QUIT_REASON_SHIFT: u8 = 4;

impl Row for MemberRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        bytes.push(VERSION);
        let by_cursor = if self.by_cursor { BY_CURSOR } else { 0 };
        let quit = if self.quit_sequence.is_some() { QUIT } else { 0 };
        let do_not_disturb = if self.do_not_disturb { DO_NOT_DISTURB } else { 0 };
        let has_deleted = if self.has_deleted { HAS_DELETED } else { 0 };
        let has_mention = if self.mentioned > 0 { HAS_MENTION } else { 0 };
        let more = self.more();
        let has_more = if more != 0 { MORE } else { 0 };
        bytes.push(by_cursor | quit | do_not_disturb | has_more | has_deleted | has_mention);
        put_number(&mut bytes, self.version);
        put_number(&mut bytes, self.init_sequence);
        put_number(&mut bytes, self.delivered);
        put_number(&mut bytes, self.read);
        put_number(&mut bytes, self.own_last_sent);
        put_number(&mut bytes, self.quit_sequence.unwrap_or_default());
        if self.mentioned > 0 {
            put_number(&mut bytes, self.mentioned);
        }
        if more != 0 {
            bytes.push(more);
            if let Some(hidden_sequence) = self.hidden_sequence {
                put_number(&mut bytes, hidden_sequence);
            }
            if self.muted_until_ms != 0 {
                put_number(&mut bytes, self.muted_until_ms as u64);
            }
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        let flags = reader.byte()?;
        let mut row = Self {
            version: reader.number()?,
            init_sequence: reader.number()?,
            delivered: reader.number()?,
            read: reader.number()?,
            own_last_sent: reader.number()?,
            quit_sequence: Some(reader.number()?),
            do_not_disturb: flags & DO_NOT_DISTURB != 0,
            by_cursor: flags & BY_CURSOR != 0,
            has_deleted: flags & HAS_DELETED != 0,
            mentioned: if flags & HAS_MENTION != 0 { reader.number()? } else { 0 },
            ..Self::default()
        };
        row.quit_sequence.take_if(|_| flags & QUIT == 0);
        if flags & MORE != 0 {
            let more = reader.byte()?;
            row.pinned = more & MORE_PINNED != 0;
            row.quit_reason = more >> MORE_QUIT_REASON_SHIFT & 3;
            if more & MORE_HIDDEN != 0 {
                row.hidden_sequence = Some(reader.number()?);
            }
            if more & MORE_MUTED != 0 {
                row.muted_until_ms = reader.number()? as i64;
            }
        }
        reader.finish()?;
        Ok(row)
    }
}

impl MemberRow {
    /// The second byte of flags; 0: it is not written.
    fn more(&self) -> u8 {
        let pinned = if self.pinned { MORE_PINNED } else { 0 };
        let hidden = if self.hidden_sequence.is_some() { MORE_HIDDEN } else { 0 };
        let muted = if self.muted_until_ms != 0 { MORE_MUTED } else { 0 };
        pinned | hidden | muted | (self.quit_reason & 3) << MORE_QUIT_REASON_SHIFT
    }
}

/// A user's pointer to the newest message of a conversation, written with every message, unread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PointerRow {
    pub max_sequence: u64,
    /// The version of the message.
    pub version: u64,
}

impl Row for PointerRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16);
        bytes.push(VERSION);
        put_number(&mut bytes, self.max_sequence);
        put_number(&mut bytes, self.version);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        let row = Self { max_sequence: reader.number()?, version: reader.number()? };
        reader.finish()?;
        Ok(row)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fmt::Debug;

    fn message() -> MessageRow {
        MessageRow {
            version: u64::MAX,
            counting: 300,
            message_id: Uuid::from_u128(0x1234_5678),
            sender_id: "ann".into(),
            client_message_id: "ü".into(),
            kind: 99,
            body: "x".repeat(1000),
            attachment: None,
            sent_at_ms: -1,
            state: 2,
            does_not_count: true,
            extras: None,
        }
    }

    /// What was encoded comes back, and no damaged form of it panics or passes for the original.
    pub fn survives<R: Row + PartialEq + Debug>(row: R) {
        let bytes = row.encode();
        assert_eq!(R::decode(&bytes).as_ref(), Ok(&row));
        for length in 0..bytes.len() {
            assert!(R::decode(&bytes[..length]).is_err(), "{row:?} cut to {length}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(R::decode(&longer), Err(DecodeError::Long));
        let newer = [&[VERSION + 1], &bytes[1..]].concat();
        assert_eq!(R::decode(&newer), Err(DecodeError::Version(VERSION + 1)));
        for at in 1..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            assert_ne!(R::decode(&damaged).as_ref(), Ok(&row));
        }
    }

    #[test]
    fn rows_round_trip_and_damage_is_an_error() {
        survives(message());
        survives(MessageRow {
            attachment: Some(chat::Attachment {
                attachment_id: "1".into(),
                r#type: "image/png".into(),
                name: "sea.png".into(),
                url: "https://example.org/sea.png".into(),
                size: 1 << 40,
            }),
            does_not_count: false,
            ..message()
        });
        let extras = Extras {
            quote: Some(Box::new(chat::Quote { sequence: 9, ..chat::Quote::default() })),
            expires_at_ms: 1_800_000_000_000,
            revoked_by: "bob".into(),
            system: true,
            ..Extras::default()
        };
        survives(MessageRow { extras: extras.boxed(), ..message() });
        survives(DedupeRow { conversation_id: "g:x".into(), sequence: 1 << 33, count: 1 });
        survives(DedupeRow { conversation_id: "g:x".into(), sequence: 1 << 33, count: 100 });
        survives(ConversationRow {
            max_sequence: 1000,
            counting: 900,
            message_version: 70_000,
            sent: [1000, 0],
            by_cursor: true,
            removed: false,
            muted: true,
            has_edits: true,
            mentioned_everyone: 999,
        });
        survives(ConversationRow::default());
        survives(MemberRow {
            version: 9,
            init_sequence: 8,
            delivered: 700,
            read: 600,
            own_last_sent: 5,
            quit_sequence: Some(800),
            do_not_disturb: true,
            by_cursor: false,
            has_deleted: true,
            mentioned: 900,
            ..MemberRow::default()
        });
        survives(MemberRow {
            quit_sequence: Some(3),
            mentioned: 2,
            quit_reason: 2,
            pinned: true,
            hidden_sequence: Some(0),
            muted_until_ms: i64::MAX,
            ..MemberRow::default()
        });
        survives(MemberRow::default());
        survives(PointerRow { max_sequence: 5, version: 1 << 20 });
    }
}
