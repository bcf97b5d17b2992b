//! Which table and which columns a key stands for. The rules of a commit know rows by the keys of
//! the embedded store; here each part of a key is a column, so that statements can ask for it and
//! partitions go by it.

use std::sync::LazyLock;

use crate::storage::{
    StoreError,
    embedded::{
        database::corrupt,
        edit_rows::{EditRow, SequenceRow},
        encoding::DecodeError,
        keys::Table,
        rows::{MessageRow, Row as _},
    },
};

/// A table of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Conversation,
    Message,
    MessageId,
    Member,
    Group,
    GroupMember,
    JoinRequest,
    JoinedLater,
    Erased,
    Change,
    Deletion,
    Expiry,
}

/// A part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Bytes(Vec<u8>),
    Number(i64),
}

/// What a kind's table looks like, and its statements. `$1…` are arrays, one for each column of the
/// key, then of `extra` if there is one, then of `data` if there is.
pub struct Shape {
    #[cfg(test)]
    kind: Kind,
    /// The columns of the key, and whether each is a number.
    pub key: &'static [(&'static str, bool)],
    pub has_data: bool,
    /// A column that is also in the data, and how it is read there.
    pub extra: Extra,
    pub select: String,
    /// Fails when the key is there.
    pub insert: String,
    /// In place of what is there.
    pub upsert: String,
    pub update: String,
    pub delete: String,
}

type Extra = Option<(&'static str, fn(&[u8]) -> Result<i64, DecodeError>)>;

fn shape(
    kind: Kind,
    table: &'static str,
    key: &'static [(&'static str, bool)],
    has_data: bool,
    extra: Extra,
) -> Shape {
    let mut columns: Vec<&str> = key.iter().map(|(name, _)| *name).collect();
    let names = columns.join(", ");
    columns.extend(extra.map(|(name, _)| name));
    let kept = columns.len();
    if has_data {
        columns.push("data");
    }
    let arrays = |count: usize| {
        let all: Vec<String> = (0..count)
            .map(|at| {
                let is_number = key.get(at).map_or(at < kept, |(_, is_number)| *is_number);
                format!("${}::{}[]", at + 1, if is_number { "int8" } else { "bytea" })
            })
            .collect();
        all.join(", ")
    };
    let same: Vec<String> = key.iter().map(|(name, _)| format!("t.{name} = k.{name}")).collect();
    let same = same.join(" AND ");
    let set: Vec<String> =
        columns[key.len()..].iter().map(|name| format!("{name} = k.{name}")).collect();
    let set = set.join(", ");
    let all = columns.join(", ");
    let (of_key, of_all) = (arrays(key.len()), arrays(columns.len()));
    let insert = format!(
        "INSERT INTO millrace.{table} ({all}) SELECT {all} FROM unnest({of_all}) AS k({all})"
    );
    let data = if has_data { "t.data" } else { "''::bytea" };
    let instead = if set.is_empty() {
        "NOTHING".to_owned()
    } else {
        format!("UPDATE SET {}", set.replace("k.", "excluded."))
    };
    #[cfg(not(test))]
    let _ = kind;
    Shape {
        #[cfg(test)]
        kind,
        key,
        has_data,
        extra,
        select: format!(
            "SELECT k.n, {data} FROM unnest({of_key}) WITH ORDINALITY AS k({names}, n) \
             JOIN millrace.{table} t ON {same}"
        ),
        upsert: format!("{insert} ON CONFLICT ({names}) DO {instead}"),
        insert,
        update: format!(
            "UPDATE millrace.{table} t SET {set} FROM unnest({of_all}) AS k({all}) WHERE {same}"
        ),
        delete: format!(
            "DELETE FROM millrace.{table} WHERE ({names}) IN \
             (SELECT {names} FROM unnest({of_key}) AS k({names}))"
        ),
    }
}

fn version_of_message(data: &[u8]) -> Result<i64, DecodeError> {
    i64::try_from(MessageRow::version_of(data)?).map_err(|_| DecodeError::Number)
}

fn counted(data: &[u8]) -> Result<i64, DecodeError> {
    Ok(i64::from(EditRow::decode(data)?.counted))
}

fn sequence_of_change(data: &[u8]) -> Result<i64, DecodeError> {
    i64::try_from(SequenceRow::decode(data)?.sequence).map_err(|_| DecodeError::Number)
}

static SHAPES: LazyLock<[Shape; 12]> = LazyLock::new(|| {
    const CONVERSATION: (&str, bool) = ("conversation_id", false);
    const SEQUENCE: (&str, bool) = ("sequence", true);
    const USER: (&str, bool) = ("user_id", false);
    const GROUP: (&str, bool) = ("group_id", false);
    [
        shape(Kind::Conversation, "conversations", &[CONVERSATION], true, None),
        shape(
            Kind::Message,
            "messages",
            &[CONVERSATION, SEQUENCE],
            true,
            Some(("version", version_of_message)),
        ),
        shape(
            Kind::MessageId,
            "message_ids",
            &[("sender_id", false), ("client_message_id", false)],
            true,
            None,
        ),
        shape(Kind::Member, "members", &[USER, CONVERSATION], true, None),
        shape(Kind::Group, "groups", &[GROUP], true, None),
        shape(Kind::GroupMember, "group_members", &[GROUP, USER], false, None),
        shape(Kind::JoinRequest, "join_requests", &[GROUP, USER], true, None),
        shape(Kind::JoinedLater, "joined_later", &[GROUP, SEQUENCE, USER], false, None),
        shape(Kind::Erased, "erased", &[CONVERSATION, SEQUENCE], true, Some(("counted", counted))),
        shape(
            Kind::Change,
            "changes",
            &[CONVERSATION, ("version", true)],
            true,
            Some(("sequence", sequence_of_change)),
        ),
        shape(Kind::Deletion, "deletions", &[USER, CONVERSATION], true, None),
        shape(
            Kind::Expiry,
            "expiries",
            &[("expires_at_ms", true), CONVERSATION, SEQUENCE],
            false,
            None,
        ),
    ]
});

/// The shape of a kind's table.
pub fn shape_of(kind: Kind) -> &'static Shape {
    &SHAPES[kind as usize]
}

/// Bytes of hash before every key; the database has its own.
const HASH_BYTES: usize = 4;

/// Takes a key apart.
struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    /// An id behind one byte of length.
    fn id(&mut self) -> Option<Part> {
        let length = usize::from(self.byte()?);
        Some(Part::Bytes(self.take(length)?.to_vec()))
    }

    /// An id behind two bytes of length.
    fn conversation(&mut self) -> Option<Part> {
        let length = u16::from_be_bytes(self.take(2)?.try_into().ok()?);
        Some(Part::Bytes(self.take(usize::from(length))?.to_vec()))
    }

    fn number(&mut self) -> Option<Part> {
        let number = u64::from_be_bytes(self.take(8)?.try_into().ok()?);
        // No counter gets there; what a client asks for above it is not there.
        Some(Part::Number(i64::try_from(number).unwrap_or(i64::MAX)))
    }

    fn rest(&mut self) -> Part {
        Part::Bytes(std::mem::take(&mut self.0).to_vec())
    }
}

/// What a key of [`keys`](crate::storage::embedded::keys) stands for.
pub fn place_of(table: Table, key: &[u8]) -> Result<(Kind, Vec<Part>), StoreError> {
    place(table, key).ok_or_else(|| corrupt(table, DecodeError::Short))
}

fn place(table: Table, key: &[u8]) -> Option<(Kind, Vec<Part>)> {
    let mut cut = Cut(key);
    cut.take(HASH_BYTES)?;
    let found = match table {
        Table::Messages => (Kind::Message, vec![cut.conversation()?, cut.number()?]),
        Table::Dedupe => (Kind::MessageId, vec![cut.id()?, cut.rest()]),
        Table::Conversations => (Kind::Conversation, vec![cut.rest()]),
        Table::Users => {
            let user_id = cut.id()?;
            // The last byte says which of the two rows; of the other one there are none here.
            let (row, conversation_id) = cut.0.split_last()?;
            let conversation_id = Part::Bytes(conversation_id.to_vec());
            cut.0 = &[];
            if *row != 0 {
                return None;
            }
            (Kind::Member, vec![user_id, conversation_id])
        }
        Table::Groups => match cut.byte()? {
            0 => (Kind::Group, vec![cut.rest()]),
            1 => (Kind::GroupMember, vec![cut.id()?, cut.rest()]),
            2 => (Kind::JoinRequest, vec![cut.id()?, cut.rest()]),
            3 => (Kind::JoinedLater, vec![cut.id()?, cut.number()?, cut.rest()]),
            _ => return None,
        },
        Table::Edits => match cut.byte()? {
            0 => (Kind::Erased, vec![cut.conversation()?, cut.number()?]),
            1 => (Kind::Change, vec![cut.conversation()?, cut.number()?]),
            2 => (Kind::Deletion, vec![cut.id()?, cut.rest()]),
            3 => (Kind::Expiry, vec![cut.number()?, cut.conversation()?, cut.number()?]),
            _ => return None,
        },
    };
    cut.0.is_empty().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::embedded::keys::{self, UserRow};

    #[test]
    fn every_key_falls_apart_into_what_it_was_made_of() {
        let text = |text: &str| Part::Bytes(text.as_bytes().to_vec());
        let (seven, nine) = (Part::Number(7), Part::Number(9));
        let (id, user, group) = ("s:2:a\0:bé", "u:\0ser", "g\u{1}");
        for (table, key, kind, parts) in [
            (Table::Conversations, keys::conversation(id), Kind::Conversation, vec![text(id)]),
            (Table::Messages, keys::message(id, 7), Kind::Message, vec![text(id), seven.clone()]),
            (Table::Dedupe, keys::dedupe(user, "c"), Kind::MessageId, vec![text(user), text("c")]),
            (
                Table::Users,
                keys::user(user, id, UserRow::Member),
                Kind::Member,
                vec![text(user), text(id)],
            ),
            (Table::Groups, keys::group(group), Kind::Group, vec![text(group)]),
            (
                Table::Groups,
                keys::group_member(group, user),
                Kind::GroupMember,
                vec![text(group), text(user)],
            ),
            (
                Table::Groups,
                keys::join_request(group, user),
                Kind::JoinRequest,
                vec![text(group), text(user)],
            ),
            (
                Table::Groups,
                keys::joined(group, 7, user),
                Kind::JoinedLater,
                vec![text(group), seven.clone(), text(user)],
            ),
            (Table::Edits, keys::erased(id, 7), Kind::Erased, vec![text(id), seven.clone()]),
            (Table::Edits, keys::change(id, 7), Kind::Change, vec![text(id), seven.clone()]),
            (Table::Edits, keys::deleted(user, id), Kind::Deletion, vec![text(user), text(id)]),
            (
                Table::Edits,
                keys::expiry(9, id, 7),
                Kind::Expiry,
                vec![nine.clone(), text(id), seven.clone()],
            ),
        ] {
            assert_eq!(place_of(table, &key).unwrap(), (kind, parts));
            assert_eq!(shape_of(kind).kind, kind);
            assert!(place(table, &key[..HASH_BYTES]).is_none() || kind == Kind::Conversation);
        }
        assert!(place_of(Table::Users, &keys::user(user, id, UserRow::Pointer)).is_err());
        assert!(place_of(Table::Edits, &[0, 0, 0, 0, 9]).is_err());
    }

    #[test]
    fn statements_are_those_of_their_columns() {
        let message = shape_of(Kind::Message);
        assert_eq!(
            message.upsert,
            "INSERT INTO millrace.messages (conversation_id, sequence, version, data) SELECT \
             conversation_id, sequence, version, data FROM unnest($1::bytea[], $2::int8[], \
             $3::int8[], $4::bytea[]) AS k(conversation_id, sequence, version, data) ON CONFLICT \
             (conversation_id, sequence) DO UPDATE SET version = excluded.version, data = \
             excluded.data"
        );
        assert!(shape_of(Kind::GroupMember).upsert.ends_with("DO NOTHING"));
    }
}
