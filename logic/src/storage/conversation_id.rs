//! How a conversation gets its id, and what an id says.
//!
//! Pure functions: no store, no clock. A single chat's id is `s:<n>:<a>:<b>` where `a` ≤ `b` are
//! the two user ids in byte order and `n` is the length of `a` in bytes, so that a user id may
//! hold any character, colons included, and no two pairs share an id. A group's is `g:<group_id>`.

use super::limits::{GROUP_ID_BYTES_MAX, USER_ID_BYTES_MAX};

/// What a conversation id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConversationName<'a> {
    /// A single chat of two users in byte order; both are the same in a note to oneself.
    Single(&'a str, &'a str),
    /// A group, by its group id.
    Group(&'a str),
}

impl<'a> ConversationName<'a> {
    /// Reads an id. `None` when it is not one that [`single`] or [`group`] would have made.
    pub fn parse(conversation_id: &'a str) -> Option<Self> {
        if let Some(group_id) = conversation_id.strip_prefix("g:") {
            let fits = (1..=GROUP_ID_BYTES_MAX).contains(&group_id.len());
            return fits.then_some(Self::Group(group_id));
        }
        let (digits, users) = conversation_id.strip_prefix("s:")?.split_once(':')?;
        let canonical = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        let first_bytes: usize = if canonical { digits.parse().ok()? } else { return None };
        let (first, rest) = users.split_at_checked(first_bytes)?;
        let second = rest.strip_prefix(':')?;
        let fit = [first, second].iter().all(|id| (1..=USER_ID_BYTES_MAX).contains(&id.len()));
        (fit && first <= second).then_some(Self::Single(first, second))
    }

    /// 1 single, 2 group: the numbers of `Message.conversation_type`.
    pub fn conversation_type(&self) -> u32 {
        match self {
            Self::Single(..) => CONVERSATION_TYPE_SINGLE,
            Self::Group(_) => CONVERSATION_TYPE_GROUP,
        }
    }

    /// The other user of a single chat (the same one in a note to oneself); `None` in a group, or
    /// when the user is not one of the two.
    pub fn peer_of(&self, user_id: &str) -> Option<&'a str> {
        match *self {
            Self::Single(first, second) if first == user_id => Some(second),
            Self::Single(first, second) if second == user_id => Some(first),
            _ => None,
        }
    }
}

/// `Message.conversation_type` of a single chat.
pub const CONVERSATION_TYPE_SINGLE: u32 = 1;
/// `Message.conversation_type` of a group.
pub const CONVERSATION_TYPE_GROUP: u32 = 2;

/// The id of the single chat of two users, the same whichever comes first.
pub fn single(one: &str, other: &str) -> String {
    let (first, second) = if one <= other { (one, other) } else { (other, one) };
    format!("s:{}:{first}:{second}", first.len())
}

/// The id of a group's conversation.
pub fn group(group_id: &str) -> String {
    format!("g:{group_id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn both_users_get_the_same_id_and_it_names_them() {
        assert_eq!(single("alice", "bob"), "s:5:alice:bob");
        assert_eq!(single("bob", "alice"), single("alice", "bob"));
        let id = single("bob", "alice");
        let name = ConversationName::parse(&id).unwrap();
        assert_eq!(name, ConversationName::Single("alice", "bob"));
        assert_eq!(name.peer_of("alice"), Some("bob"));
        assert_eq!(name.peer_of("carol"), None);
        assert_eq!(ConversationName::parse("g:team"), Some(ConversationName::Group("team")));
    }

    #[test]
    fn no_two_pairs_collide_even_with_separators_inside() {
        let parts = ["a", ":", "1", "é"];
        let mut ids = vec![];
        for a in parts {
            ids.push(a.to_owned());
            for b in parts {
                ids.push(format!("{a}{b}"));
                for c in parts {
                    ids.push(format!("{a}{b}{c}"));
                }
            }
        }
        let mut seen: HashMap<String, (String, String)> = HashMap::new();
        for a in &ids {
            for b in ids.iter().filter(|b| a <= *b) {
                let id = single(a, b);
                assert_eq!(
                    ConversationName::parse(&id),
                    Some(ConversationName::Single(a.as_str(), b.as_str()))
                );
                if let Some(other) = seen.insert(id, (a.clone(), b.clone())) {
                    panic!("{a:?} {b:?} collide with {other:?}");
                }
            }
        }
    }

    #[test]
    fn ids_that_nobody_made_are_refused() {
        let long = "x".repeat(USER_ID_BYTES_MAX + 1);
        let too_long = single("a", &long);
        for id in [
            "", "s", "s:", "s:1", "s:1:a", "s:1:a:", "s:01:a:b", "s:+1:a:b", "s:1:b:a", "s:9:a:b",
            "s:0::b", "s:1:é:b", "g:", "x:1", &too_long,
        ] {
            assert_eq!(ConversationName::parse(id), None, "{id:?}");
        }
    }
}
