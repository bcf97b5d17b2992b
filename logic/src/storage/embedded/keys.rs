//! The tables and the keys of their rows. Keys sort so that one question is one range.
//!
//! | table | key, after four bytes of hash | row |
//! |---|---|---|
//! | messages | conversation, sequence (big-endian) | [`MessageRow`](super::rows::MessageRow) |
//! | dedupe | sender, client message id | [`DedupeRow`](super::rows::DedupeRow) |
//! | conversations | conversation | [`ConversationRow`](super::rows::ConversationRow) |
//! | users | user, conversation, 0 | [`MemberRow`](super::rows::MemberRow): cursors, settings |
//! | users | user, conversation, 1 | [`PointerRow`](super::rows::PointerRow): the newest message |
//! | groups | 0, group | [`GroupRow`](super::group_rows::GroupRow) |
//! | groups | 1, group, user | nothing: the user is a member now |
//! | groups | 2, group, user | [`JoinRequestRow`](super::group_rows::JoinRequestRow) |
//! | groups | 3, group, sequence (big-endian), user | nothing: the member sees what is behind it |
//! | edits | 0, conversation, sequence | [`EditRow`](super::rows::EditRow): its content was erased |
//! | edits | 1, conversation, version (big-endian) | [`SequenceRow`](super::rows::SequenceRow): what that commit erased |
//! | edits | 2, user, conversation | [`DeletedRow`](super::rows::DeletedRow) |
//! | edits | time (big-endian), conversation, sequence, without a hash behind four zeros | nothing: it expires then |
//! | conversations | "version", without a hash (nobody else's key ends so) | the version of the newest commit |
//!
//! Every id but the last of a key carries its length before it, so that no id is the beginning of
//! another's range.
//!
//! The hash is of the id that a range is asked for by (the conversation, the user, the group; of the
//! whole key where nobody asks for ranges), so that ranges stay together. It is there for the
//! engine's tables in memory: they compare the first four bytes of two keys where they lie, and
//! go to the keys themselves, mostly a cache miss each, only if these are the same. Without it
//! nearly all keys of a table begin alike.

use std::ops::RangeInclusive;

/// A table; a keyspace of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// What was said.
    Messages,
    /// Which client message ids are taken.
    Dedupe,
    /// Counters of conversations.
    Conversations,
    /// Who takes part in what, and what is new there.
    Users,
    /// Groups and who is in them.
    Groups,
    /// What became of messages after they were stored.
    Edits,
}

impl Table {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 6] =
        [Self::Messages, Self::Dedupe, Self::Conversations, Self::Users, Self::Groups, Self::Edits];

    /// The keyspace's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Dedupe => "dedupe",
            Self::Conversations => "conversations",
            Self::Users => "users",
            Self::Groups => "groups",
            Self::Edits => "edits",
        }
    }
}

/// Which of a user's two rows of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserRow {
    /// Cursors and settings.
    Member = 0,
    /// The newest message.
    Pointer = 1,
}

/// A key in [`Table::Conversations`]: the version of the newest commit.
pub const VERSION_KEY: &[u8] = b"version";

/// Begins a key with the hash of `id` (FNV-1a, which is written to disk and so never changes), with
/// room for `bytes` more.
fn hashed(id: &[&str], bytes: usize) -> Vec<u8> {
    let mut hash = 0x811c_9dc5_u32;
    for byte in id.iter().flat_map(|part| part.bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let mut key = Vec::with_capacity(4 + bytes);
    key.extend_from_slice(&hash.to_be_bytes());
    key
}

/// Two bytes of length, because a single chat's id holds two user ids.
fn with_conversation(bytes: &mut Vec<u8>, conversation_id: &str) {
    bytes.extend_from_slice(&(conversation_id.len() as u16).to_be_bytes());
    bytes.extend_from_slice(conversation_id.as_bytes());
}

fn with_id(bytes: &mut Vec<u8>, id: &str) {
    debug_assert!(id.len() <= 255, "ids are checked before keys are made");
    bytes.push(id.len() as u8);
    bytes.extend_from_slice(id.as_bytes());
}

/// A message's key.
pub fn message(conversation_id: &str, sequence: u64) -> Vec<u8> {
    let mut key = hashed(&[conversation_id], conversation_id.len() + 10);
    with_conversation(&mut key, conversation_id);
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

/// The keys of the messages `from..=to`.
pub fn messages(conversation_id: &str, from: u64, to: u64) -> RangeInclusive<Vec<u8>> {
    message(conversation_id, from)..=message(conversation_id, to)
}

/// The sequence in a message's key.
pub fn sequence_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.last_chunk()?))
}

/// The key of a client message id.
pub fn dedupe(sender_id: &str, client_message_id: &str) -> Vec<u8> {
    let bytes = sender_id.len() + client_message_id.len() + 1;
    let mut key = hashed(&[sender_id, client_message_id], bytes);
    with_id(&mut key, sender_id);
    key.extend_from_slice(client_message_id.as_bytes());
    key
}

/// A conversation's key.
pub fn conversation(conversation_id: &str) -> Vec<u8> {
    let mut key = hashed(&[conversation_id], conversation_id.len());
    key.extend_from_slice(conversation_id.as_bytes());
    key
}

/// The key of one of a user's rows of a conversation.
pub fn user(user_id: &str, conversation_id: &str, row: UserRow) -> Vec<u8> {
    let mut key = hashed(&[user_id], user_id.len() + conversation_id.len() + 2);
    with_id(&mut key, user_id);
    key.extend_from_slice(conversation_id.as_bytes());
    key.push(row as u8);
    key
}

/// What the keys of all rows of a user begin with.
pub fn user_prefix(user_id: &str) -> Vec<u8> {
    let mut key = hashed(&[user_id], user_id.len() + 1);
    with_id(&mut key, user_id);
    key
}

/// Reads the conversation out of a key of [`user`] behind its [`user_prefix`].
pub fn conversation_of(key: &[u8], prefix_bytes: usize) -> Option<(&str, UserRow)> {
    let (row, conversation_id) = key.get(prefix_bytes..)?.split_last()?;
    let row = match row {
        0 => UserRow::Member,
        1 => UserRow::Pointer,
        _ => return None,
    };
    Some((std::str::from_utf8(conversation_id).ok()?, row))
}

/// A group's key.
pub fn group(group_id: &str) -> Vec<u8> {
    let mut key = hashed(&[group_id], group_id.len() + 1);
    key.push(0);
    key.extend_from_slice(group_id.as_bytes());
    key
}

/// What the keys of a group's members begin with.
pub fn group_members_prefix(group_id: &str) -> Vec<u8> {
    let mut key = hashed(&[group_id], group_id.len() + 2);
    key.push(1);
    with_id(&mut key, group_id);
    key
}

/// The key of one member.
pub fn group_member(group_id: &str, user_id: &str) -> Vec<u8> {
    let mut key = group_members_prefix(group_id);
    key.extend_from_slice(user_id.as_bytes());
    key
}

/// The keys of a group's members behind one of them in byte order; behind none: all.
pub fn group_members_after(group_id: &str, user_id: &str) -> RangeInclusive<Vec<u8>> {
    users_after(group_members_prefix(group_id), user_id)
}

/// What the keys of a group's requests to join begin with.
pub fn join_requests_prefix(group_id: &str) -> Vec<u8> {
    let mut key = hashed(&[group_id], group_id.len() + 2);
    key.push(2);
    with_id(&mut key, group_id);
    key
}

/// The key of somebody's request to join.
pub fn join_request(group_id: &str, user_id: &str) -> Vec<u8> {
    let mut key = join_requests_prefix(group_id);
    key.extend_from_slice(user_id.as_bytes());
    key
}

/// The keys of a group's requests behind somebody's in byte order; behind nobody's: all.
pub fn join_requests_after(group_id: &str, user_id: &str) -> RangeInclusive<Vec<u8>> {
    users_after(join_requests_prefix(group_id), user_id)
}

fn joined_prefix(group_id: &str) -> Vec<u8> {
    let mut key = hashed(&[group_id], group_id.len() + 10);
    key.push(3);
    with_id(&mut key, group_id);
    key
}

/// The key of a member who sees what is behind `sequence`, which is not 0.
pub fn joined(group_id: &str, sequence: u64, user_id: &str) -> Vec<u8> {
    let mut key = joined_prefix(group_id);
    key.extend_from_slice(&sequence.to_be_bytes());
    key.extend_from_slice(user_id.as_bytes());
    key
}

/// The keys of the members who do not see the message `sequence`, and how many bytes of each are
/// before the user's id.
pub fn joined_since(group_id: &str, sequence: u64) -> (RangeInclusive<Vec<u8>>, usize) {
    let prefix = joined_prefix(group_id);
    let bytes = prefix.len() + size_of::<u64>();
    let last = [&prefix[..], &[0xff; 9]].concat();
    (joined(group_id, sequence, "")..=last, bytes)
}

/// The range behind one user among keys that end with user ids.
fn users_after(prefix: Vec<u8>, user_id: &str) -> RangeInclusive<Vec<u8>> {
    // The next key after `id` is `id` and a zero byte; no id is empty, and none has the byte 0xff.
    let behind = if user_id.is_empty() { &[][..] } else { &[0][..] };
    let first = [&prefix[..], user_id.as_bytes(), behind].concat();
    first..=[&prefix[..], &[0xff]].concat()
}

fn edit(kind: u8, conversation_id: &str, number: u64) -> Vec<u8> {
    let mut key = hashed(&[conversation_id], conversation_id.len() + 11);
    key.push(kind);
    with_conversation(&mut key, conversation_id);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// The key of an erased message.
pub fn erased(conversation_id: &str, sequence: u64) -> Vec<u8> {
    edit(0, conversation_id, sequence)
}

/// The key of the change that erased one.
pub fn change(conversation_id: &str, version: u64) -> Vec<u8> {
    edit(1, conversation_id, version)
}

/// The key of what a user has deleted in a conversation.
pub fn deleted(user_id: &str, conversation_id: &str) -> Vec<u8> {
    let mut key = hashed(&[user_id], user_id.len() + conversation_id.len() + 2);
    key.push(2);
    with_id(&mut key, user_id);
    key.extend_from_slice(conversation_id.as_bytes());
    key
}

/// What the keys of expiries begin with; hashes are followed by 0, 1 or 2.
const EXPIRY: [u8; 5] = [0, 0, 0, 0, 3];

/// The key of the time at which a message expires.
pub fn expiry(expires_at_ms: i64, conversation_id: &str, sequence: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(EXPIRY.len() + conversation_id.len() + 18);
    key.extend_from_slice(&EXPIRY);
    key.extend_from_slice(&expires_at_ms.max(0).to_be_bytes());
    with_conversation(&mut key, conversation_id);
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

/// The keys of everything that expires at this time or before.
pub fn expiries_until(now_ms: i64) -> RangeInclusive<Vec<u8>> {
    let mut end = EXPIRY.to_vec();
    end.extend_from_slice(&now_ms.max(0).saturating_add(1).to_be_bytes());
    EXPIRY.to_vec()..=end
}

/// Reads conversation and sequence out of a key of [`expiry`].
pub fn expiry_of(key: &[u8]) -> Option<(&str, u64)> {
    let rest = key.get(EXPIRY.len() + 8..)?;
    let (length, rest) = rest.split_first_chunk()?;
    let (conversation_id, sequence) =
        rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    let sequence = u64::from_be_bytes(sequence.try_into().ok()?);
    Some((std::str::from_utf8(conversation_id).ok()?, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_one_range_in_sequence_order() {
        let range = messages("g:a", 2, 300);
        let inside: Vec<u64> =
            (0..400).filter(|sequence| range.contains(&message("g:a", *sequence))).collect();
        assert_eq!(inside, (2..=300).collect::<Vec<u64>>());
        for other in ["g:", "g:a\0", "g:ab", "g:b", "g:a\u{1}"] {
            assert!((0..400).all(|sequence| !range.contains(&message(other, sequence))), "{other}");
        }
        assert_eq!(sequence_of(&message("g:a", 77)), Some(77));
    }

    #[test]
    fn keys_on_disk_do_not_change() {
        assert_eq!(conversation("s:1:a:b"), *b"\xf0\xae\xa9\xd2s:1:a:b");
        assert_eq!(message("g:a", 1), *b"\x56\xab\xb1\x0f\0\x03g:a\0\0\0\0\0\0\0\x01");
        assert_eq!(user("a", "g:a", UserRow::Pointer), *b"\xe4\x0c\x29\x2c\x01ag:a\x01");
        assert_eq!(dedupe("a", "b"), *b"\x4d\x25\x05\xca\x01ab");
        assert_eq!(group_member("a", "b"), *b"\xe4\x0c\x29\x2c\x01\x01ab");
    }

    #[test]
    fn expiries_sort_by_time_and_name_their_message() {
        let key = expiry(1_700, "g:a", 7);
        assert_eq!(expiry_of(&key), Some(("g:a", 7)));
        assert!(expiries_until(1_700).contains(&key) && expiries_until(i64::MAX).contains(&key));
        assert!(!expiries_until(1_699).contains(&key) && !expiries_until(-1).contains(&key));
        assert!(expiry(1_699, "z", 9) < key);
        for cut in 0..key.len() {
            assert_eq!(expiry_of(&key[..cut]), None);
        }
        // No other row of the table lies among them, whatever its hash.
        for kind in 0..3 {
            assert!(!expiries_until(i64::MAX).contains(&vec![0, 0, 0, 0, kind, 9, 9]));
        }
    }

    #[test]
    fn rows_of_one_id_never_fall_into_the_range_of_another() {
        let ids = ["a", "ab", "a\0", "a\u{1}", "b", "aa", "\u{1}a"];
        for one in ids {
            for other in ids.iter().filter(|other| **other != one) {
                assert!(!user(other, "g:x", UserRow::Member).starts_with(&user_prefix(one)));
                assert!(!group_member(other, "x").starts_with(&group_members_prefix(one)));
                assert!(!group(other).starts_with(&group_members_prefix(one)));
                assert_ne!(dedupe(one, other), dedupe(other, one));
            }
        }
        let prefix = user_prefix("ann");
        for (conversation_id, row) in [("g:x", UserRow::Member), ("g:\0", UserRow::Pointer)] {
            let key = user("ann", conversation_id, row);
            assert!(key.starts_with(&prefix));
            assert_eq!(conversation_of(&key, prefix.len()), Some((conversation_id, row)));
        }
    }
}
