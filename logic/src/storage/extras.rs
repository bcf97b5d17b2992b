//! What few messages carry, kept out of the way of all the others: an absent [`Extras`] is a null
//! pointer in memory and nothing at all on the disk.

use millrace_protocol::chat;

/// See the module. Every field as in `chat.Message`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// The message that this one answers; the store fills in who said it.
    pub quote: Option<Box<chat::Quote>>,
    /// Who is called by name.
    pub mentions: Option<Box<chat::Mentions>>,
    /// A place.
    pub location: Option<Box<chat::Location>>,
    /// When its content is to be erased, in milliseconds since 1970; 0: never.
    pub expires_at_ms: i64,
    /// Where a forwarded message comes from.
    pub forwarded: Option<Box<chat::Forwarded>>,
    /// Several messages forwarded as one.
    pub merged: Option<Box<chat::Merged>>,
    /// Who revoked the message.
    pub revoked_by: String,
    /// The server itself says it.
    pub system: bool,
}

impl Extras {
    /// Itself on the heap, or nothing if there is nothing in it.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }

    /// What is extra in a message.
    pub fn of(message: chat::Message) -> Option<Box<Self>> {
        let chat::Message {
            quote,
            mentions,
            location,
            expires_at_ms,
            forwarded,
            merged,
            revoked_by,
            system,
            ..
        } = message;
        Self { quote, mentions, location, expires_at_ms, forwarded, merged, revoked_by, system }
            .boxed()
    }

    /// Adds it to a message.
    pub fn put_into(self, message: &mut chat::Message) {
        let Self {
            quote,
            mentions,
            location,
            expires_at_ms,
            forwarded,
            merged,
            revoked_by,
            system,
        } = self;
        message.quote = quote;
        message.mentions = mentions;
        message.location = location;
        message.expires_at_ms = expires_at_ms;
        message.forwarded = forwarded;
        message.merged = merged;
        message.revoked_by = revoked_by;
        message.system = system;
    }
}

/// `Message.state`: as it was sent.
pub const STATE_NORMAL: u32 = 0;
/// `Message.state`: this user has deleted it.
pub const STATE_DELETED: u32 = 1;
/// `Message.state`: taken back, for everybody.
pub const STATE_REVOKED: u32 = 2;
/// `Message.state`: its time is over.
pub const STATE_EXPIRED: u32 = 3;

/// Takes the content out of a message. What is left keeps its place in the sequence, so that nobody
/// sees a gap.
pub fn bury(message: &mut chat::Message, state: u32) {
    message.state = state;
    message.body = String::new();
    message.attachment = None;
    let revoked_by = std::mem::take(&mut message.revoked_by);
    Extras::default().put_into(message);
    message.revoked_by = revoked_by;
}
