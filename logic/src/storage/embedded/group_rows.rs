//! The rows of groups: what they are called and who runs them, who is in, and who asks to be.

use super::{
    encoding::{DecodeError, Reader, put_number, put_text},
    rows::{REMOVED, Row, VERSION},
};
use crate::storage::groups::Role;

/// A group. A removed one keeps its name, for those who still see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupRow {
    pub name: String,
    pub avatar: String,
    pub members_max: u32,
    pub created_at_ms: i64,
    pub removed: bool,
    /// Empty: nobody.
    pub owner: String,
    /// In byte order.
    pub administrators: Vec<String>,
    pub join_rule: u32,
    pub invite_rule: u32,
    pub announcement: String,
    pub announced_at_ms: i64,
    /// Empty: a service.
    pub announced_by: String,
}

impl Row for GroupRow {
    fn encode(&self) -> Vec<u8> {
        let texts = self.name.len() + self.avatar.len() + self.announcement.len();
        let mut bytes = Vec::with_capacity(64 + texts);
        bytes.push(VERSION);
        bytes.push(if self.removed { REMOVED } else { 0 });
        put_number(&mut bytes, u64::from(self.members_max));
        put_number(&mut bytes, self.created_at_ms as u64);
        put_text(&mut bytes, &self.name);
        put_text(&mut bytes, &self.avatar);
        put_text(&mut bytes, &self.owner);
        put_number(&mut bytes, self.administrators.len() as u64);
        for administrator in &self.administrators {
            put_text(&mut bytes, administrator);
        }
        put_number(&mut bytes, u64::from(self.join_rule));
        put_number(&mut bytes, u64::from(self.invite_rule));
        put_text(&mut bytes, &self.announcement);
        put_number(&mut bytes, self.announced_at_ms as u64);
        put_text(&mut bytes, &self.announced_by);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        let flags = reader.byte()?;
        let row = Self {
            members_max: reader.number_u32()?,
            created_at_ms: reader.number()? as i64,
            name: reader.text()?.to_owned(),
            avatar: reader.text()?.to_owned(),
            removed: flags & REMOVED != 0,
            owner: reader.text()?.to_owned(),
            administrators: {
                // Each takes a byte at least, so a damaged count ends soon.
                let count = reader.number()?;
                (0..count).map(|_| reader.text().map(str::to_owned)).collect::<Result<_, _>>()?
            },
            join_rule: reader.number_u32()?,
            invite_rule: reader.number_u32()?,
            announcement: reader.text()?.to_owned(),
            announced_at_ms: reader.number()? as i64,
            announced_by: reader.text()?.to_owned(),
        };
        reader.finish()?;
        Ok(row)
    }
}

impl GroupRow {
    /// The role of somebody who is a member.
    pub fn role(&self, user_id: &str) -> Role {
        if self.owner == user_id {
            Role::Owner
        } else if self.administrators.iter().any(|id| id == user_id) {
            Role::Administrator
        } else {
            Role::Member
        }
    }
}

/// Somebody who wants to become a member of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinRequestRow {
    pub asked_at_ms: i64,
    pub message: String,
    /// Empty: they asked themselves.
    pub invited_by: String,
}

impl Row for JoinRequestRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + self.message.len() + self.invited_by.len());
        bytes.push(VERSION);
        put_number(&mut bytes, self.asked_at_ms as u64);
        put_text(&mut bytes, &self.message);
        put_text(&mut bytes, &self.invited_by);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_version(bytes, VERSION)?;
        let row = Self {
            asked_at_ms: reader.number()? as i64,
            message: reader.text()?.to_owned(),
            invited_by: reader.text()?.to_owned(),
        };
        reader.finish()?;
        Ok(row)
    }
}

/// That somebody is a member: the key says it all, and the row is empty.
pub struct MarkRow;

impl Row for MarkRow {
    fn encode(&self) -> Vec<u8> {
        vec![]
    }

    fn decode(_bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::embedded::rows::tests::survives;

    #[test]
    fn rows_of_groups_round_trip_and_damage_is_an_error() {
        survives(GroupRow {
            name: "n".into(),
            avatar: String::new(),
            members_max: 500,
            created_at_ms: 1_700_000_000_000,
            removed: true,
            owner: "ann".into(),
            administrators: vec!["bob".into(), "carol".into()],
            join_rule: 2,
            invite_rule: 1,
            announcement: "hear".into(),
            announced_at_ms: -7,
            announced_by: "bob".into(),
        });
        survives(GroupRow::default());
        survives(JoinRequestRow {
            asked_at_ms: 9,
            message: "please".into(),
            invited_by: "ann".into(),
        });
    }
}
