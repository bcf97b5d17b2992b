//! What a message must be to be sent: its type and what that type needs, its size, its references.
//! Turns what a client or a service wants into a write; looks nothing up.

use std::time::Duration;

use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    chat::{Attachment, Location, SendMessage},
};
use uuid::Uuid;

use super::{Core, receiver::unix_ms, words::Finding};
use crate::storage::{
    Extras, Target, Write,
    limits::{
        CLIENT_MESSAGE_ID_BYTES_MAX, GROUP_ID_BYTES_MAX, MENTIONED_USERS_MAX, TEXT_BYTES_MAX,
        USER_ID_BYTES_MAX,
    },
};

/// `Message.type`: text.
pub const TYPE_TEXT: u32 = 1;
/// `Message.type`: voice.
pub const TYPE_VOICE: u32 = 2;
/// `Message.type`: image.
pub const TYPE_IMAGE: u32 = 3;
/// `Message.type`: video.
pub const TYPE_VIDEO: u32 = 4;
/// `Message.type`: a place.
pub const TYPE_LOCATION: u32 = 5;
/// `Message.type`: any other file.
pub const TYPE_ATTACHMENT: u32 = 6;
/// `Message.type`: a card, such as a contact, or messages forwarded as one.
pub const TYPE_CARD: u32 = 7;
/// `Message.type`: what happened in the conversation.
pub const TYPE_CHANNEL_NOTICE: u32 = 8;
/// `Message.type`: anything that only the clients understand.
pub const TYPE_PASS_THROUGH: u32 = 99;

/// Rules about messages. `Default` is what production starts with.
#[derive(Clone, Debug)]
pub struct MessageSettings {
    /// Types that this server does not know are stored as they come, instead of being refused.
    pub unknown_types: bool,
    /// Body of a message, in bytes. Above: `too_large`. Below what a frame may hold, so that every
    /// client can be sent it.
    pub body_bytes_max: usize,
    /// How long after sending a message its sender may revoke it. 0: not at all.
    pub revoke_limit: Duration,
    /// The longest time after which a message may be told to expire.
    pub ttl_max: Duration,
    /// How often the content of expired messages is erased.
    pub expiry_interval: Duration,
    /// Messages erased at once; while there are more, it goes on without a pause.
    pub expiry_batch_max: usize,
    /// Members up to whom TYPING is relayed in a group; in a larger one it is taken and goes
    /// nowhere.
    pub typing_members_max: usize,
    /// Members up to whom a message that is not stored is sent in a group. Above: `over_capacity`.
    pub live_members_max: usize,
}

impl Default for MessageSettings {
    fn default() -> Self {
        Self {
            unknown_types: false,
            body_bytes_max: 60 * 1024,
            revoke_limit: Duration::from_secs(120),
            ttl_max: Duration::from_secs(366 * 24 * 3_600),
            expiry_interval: Duration::from_secs(1),
            expiry_batch_max: 500,
            typing_members_max: 100,
            live_members_max: 10_000,
        }
    }
}

/// The write of a message, or why it cannot be one. A message to oneself is allowed: a note, kept
/// in the single chat of the user with itself and pushed to the user's other devices.
pub(crate) fn append(
    core: &Core,
    sender_id: String,
    mut message: SendMessage,
) -> Result<Write, Refused> {
    let sent_at_ms = unix_ms();
    let target = target(
        &message.client_message_id,
        std::mem::take(&mut message.user_id),
        std::mem::take(&mut message.group_id),
    )?;
    check_content(&core.settings.messages, &mut message)?;
    let expires_at_ms = match message.ttl_ms {
        0 => 0,
        ttl_ms => sent_at_ms.saturating_add_unsigned(ttl_ms),
    };
    let message_id = Uuid::now_v7();
    if core.words.is_on() {
        let found = screen(core, &mut message)?;
        if !found.is_empty() {
            core.words.report(Finding {
                user_id: sender_id.clone(),
                target: match &target {
                    Target::User(id) | Target::Group(id) => id.clone(),
                },
                message_id: message_id.to_string(),
                words: found,
                at_ms: sent_at_ms,
            });
        }
    }
    let extras = Extras {
        quote: message.quote.map(Box::new),
        mentions: message.mentions.map(Box::new),
        location: message.location.map(Box::new),
        expires_at_ms,
        ..Extras::default()
    };
    Ok(Write::Append {
        message_id,
        sender_id,
        client_message_id: message.client_message_id,
        target,
        kind: message.r#type,
        body: message.body,
        attachment: message.attachment,
        does_not_count: message.does_not_count,
        sent_at_ms,
        extras: extras.boxed(),
    })
}

/// Where a message goes.
pub(crate) fn target(
    client_message_id: &str,
    user_id: String,
    group_id: String,
) -> Result<Target, Refused> {
    let fits = |id: &str, bytes_max: usize| (1..=bytes_max).contains(&id.len());
    if !fits(client_message_id, CLIENT_MESSAGE_ID_BYTES_MAX) {
        return Err(bad("A client_message_id of 1 to 128 bytes is needed."));
    }
    match (user_id.is_empty(), group_id.is_empty()) {
        (false, true) if fits(&user_id, USER_ID_BYTES_MAX) => Ok(Target::User(user_id)),
        (true, false) if fits(&group_id, GROUP_ID_BYTES_MAX) => Ok(Target::Group(group_id)),
        (true, true) | (false, false) => Err(bad("Exactly one of user_id and group_id is needed.")),
        _ => Err(bad("The user_id or group_id is longer than 128 bytes.")),
    }
}

fn bad(reason: impl Into<String>) -> Refused {
    Refused::new(Code::BadRequest, reason)
}

/// Whether a message has what its type needs. A message without a type is a text.
fn check_content(settings: &MessageSettings, message: &mut SendMessage) -> Result<(), Refused> {
    if message.body.len() > settings.body_bytes_max {
        let (found, max) = (message.body.len(), settings.body_bytes_max);
        let reason = format!("The body has {found} bytes; a message may have {max}.");
        return Err(Refused::new(Code::TooLarge, reason));
    }
    if message.r#type == 0 {
        message.r#type = TYPE_TEXT;
    }
    match message.r#type {
        TYPE_TEXT | TYPE_PASS_THROUGH => {}
        TYPE_VOICE | TYPE_IMAGE | TYPE_VIDEO | TYPE_ATTACHMENT => {
            let names_a_file = |a: &Attachment| !(a.attachment_id.is_empty() && a.url.is_empty());
            if !message.attachment.as_ref().is_some_and(names_a_file) {
                let kind = message.r#type;
                let reason = format!(
                    "A message of type {kind} needs an attachment with an attachment_id or a url."
                );
                return Err(bad(reason));
            }
        }
        TYPE_LOCATION => check_location(message)?,
        TYPE_CARD | TYPE_CHANNEL_NOTICE if message.body.is_empty() => {
            return Err(bad(format!("A message of type {} needs a body.", message.r#type)));
        }
        TYPE_CARD | TYPE_CHANNEL_NOTICE => {}
        unknown if !settings.unknown_types => {
            return Err(bad(format!("This server has no message type {unknown}.")));
        }
        _ => {}
    }
    if message.location.is_some() && message.r#type != TYPE_LOCATION {
        return Err(bad("Only a message of type 5 has a location."));
    }
    if message.ttl_ms > settings.ttl_max.as_millis().min(u128::from(u64::MAX)) as u64 {
        let max = settings.ttl_max.as_millis();
        return Err(bad(format!("ttl_ms is at most {max}.")));
    }
    if let Some(mentions) = &message.mentions {
        let fits = |id: &String| (1..=USER_ID_BYTES_MAX).contains(&id.len());
        if mentions.user_ids.len() > MENTIONED_USERS_MAX || !mentions.user_ids.iter().all(fits) {
            return Err(bad("A message mentions at most 100 user ids of 1 to 128 bytes."));
        }
    }
    Ok(())
}

/// A place is a field of its own; a client that knows only the body puts a JSON object with the same
/// names there.
fn check_location(message: &SendMessage) -> Result<(), Refused> {
    #[derive(serde::Deserialize)]
    struct Place {
        latitude: f64,
        longitude: f64,
    }
    let needs = "A message of type 5 needs a location: latitude from -90 to 90, longitude from -180 to 180.";
    let (latitude, longitude) = match &message.location {
        Some(Location { latitude, longitude, name, address }) => {
            if name.len() > TEXT_BYTES_MAX || address.len() > TEXT_BYTES_MAX {
                return Err(bad("A text of the location is longer than 4096 bytes."));
            }
            (*latitude, *longitude)
        }
        None => match serde_json::from_str::<Place>(&message.body) {
            Ok(Place { latitude, longitude }) => (latitude, longitude),
            Err(_) => return Err(bad(needs)),
        },
    };
    // NaN is in no range.
    if (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude) {
        Ok(())
    } else {
        Err(bad(needs))
    }
}

/// Looks for words that are not let through in everything of a message that people read, and masks
/// those that are to be masked. What was found is returned.
fn screen(core: &Core, message: &mut SendMessage) -> Result<Vec<(String, &'static str)>, Refused> {
    let mut found = Vec::new();
    let mut texts = vec![&mut message.body];
    if let Some(attachment) = &mut message.attachment {
        texts.push(&mut attachment.name);
    }
    if let Some(location) = &mut message.location {
        texts.push(&mut location.name);
        texts.push(&mut location.address);
    }
    for text in texts {
        screen_text(core, text, &mut found)?;
    }
    Ok(found)
}

/// Looks for words that are not let through in one text.
///
/// # Errors
/// `word_blocked`.
pub(crate) fn screen_text(
    core: &Core,
    text: &mut String,
    found: &mut Vec<(String, &'static str)>,
) -> Result<(), Refused> {
    let mut verdict = core.words.check(text);
    if verdict.is_blocked {
        return Err(Refused::from(Code::WordBlocked));
    }
    if let Some(masked) = verdict.masked.take() {
        *text = masked;
    }
    found.append(&mut verdict.found);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(settings: &MessageSettings, mut message: SendMessage) -> Result<u32, Code> {
        let checked = check_content(settings, &mut message);
        checked.map(|()| message.r#type).map_err(|refused| {
            assert!(refused.reason.len() > 20, "{}", refused.reason);
            refused.code
        })
    }

    fn of_type(kind: u32) -> SendMessage {
        SendMessage { r#type: kind, ..SendMessage::default() }
    }

    #[test]
    fn every_type_needs_what_it_is_about() {
        let settings = MessageSettings::default();
        let file = |attachment_id: &str, url: &str| {
            Some(Attachment {
                attachment_id: attachment_id.into(),
                url: url.into(),
                ..Attachment::default()
            })
        };
        assert_eq!(checked(&settings, of_type(0)), Ok(TYPE_TEXT));
        assert_eq!(checked(&settings, of_type(99)), Ok(99));
        for kind in [2, 3, 4, 6] {
            assert_eq!(checked(&settings, of_type(kind)), Err(Code::BadRequest), "{kind}");
            let with = |attachment| SendMessage { attachment, ..of_type(kind) };
            assert_eq!(checked(&settings, with(file("", ""))), Err(Code::BadRequest));
            assert_eq!(checked(&settings, with(file("7", ""))), Ok(kind));
            assert_eq!(checked(&settings, with(file("", "https://x/7"))), Ok(kind));
        }
        for kind in [7, 8] {
            assert_eq!(checked(&settings, of_type(kind)), Err(Code::BadRequest), "{kind}");
            let card = SendMessage { body: "{}".into(), ..of_type(kind) };
            assert_eq!(checked(&settings, card), Ok(kind));
        }
        for unknown in [9, 50, 98, 100, u32::MAX] {
            assert_eq!(checked(&settings, of_type(unknown)), Err(Code::BadRequest));
            let lenient = MessageSettings { unknown_types: true, ..settings.clone() };
            assert_eq!(checked(&lenient, of_type(unknown)), Ok(unknown));
        }
    }

    #[test]
    fn a_location_lies_on_the_earth() {
        let settings = MessageSettings::default();
        let at = |latitude, longitude| {
            let location = Location { latitude, longitude, ..Location::default() };
            checked(&settings, SendMessage { location: Some(location), ..of_type(5) })
        };
        for (latitude, longitude) in [(0.0, 0.0), (90.0, 180.0), (-90.0, -180.0), (52.5, 13.4)] {
            assert_eq!(at(latitude, longitude), Ok(5));
        }
        for (latitude, longitude) in
            [(90.1, 0.0), (0.0, -180.1), (f64::NAN, 0.0), (0.0, f64::INFINITY)]
        {
            assert_eq!(at(latitude, longitude), Err(Code::BadRequest));
        }
        let in_body =
            |body: &str| checked(&settings, SendMessage { body: body.into(), ..of_type(5) });
        assert_eq!(in_body(r#"{"latitude": 1, "longitude": 2.5, "name": "x"}"#), Ok(5));
        for body in ["", "here", "[]", r#"{"latitude": 1}"#, r#"{"latitude": 91, "longitude": 0}"#]
        {
            assert_eq!(in_body(body), Err(Code::BadRequest), "{body}");
        }
        let misplaced = SendMessage { location: Some(Location::default()), ..of_type(1) };
        assert_eq!(checked(&settings, misplaced), Err(Code::BadRequest));
    }

    #[test]
    fn sizes_and_times_have_bounds() {
        let settings = MessageSettings::default();
        let text = |bytes| SendMessage { body: "x".repeat(bytes), ..of_type(1) };
        assert_eq!(checked(&settings, text(settings.body_bytes_max)), Ok(1));
        assert_eq!(checked(&settings, text(settings.body_bytes_max + 1)), Err(Code::TooLarge));
        let lasting = |ttl_ms| SendMessage { ttl_ms, ..of_type(1) };
        assert_eq!(checked(&settings, lasting(1)), Ok(1));
        assert_eq!(checked(&settings, lasting(u64::MAX)), Err(Code::BadRequest));
    }
}
