//! Where a transaction reads what is stored. The rules of a commit are the same wherever the rows
//! lie; a store that cannot answer at once (its rows are behind a network) runs a transaction on
//! what it has fetched, fetches what was missing, and runs it again.

use super::{Members, Row, StoreError, stored_members};
use crate::storage::embedded::{
    database::Tables,
    keys::{self, Table},
};

/// What is stored, without the changes of the transaction that asks.
pub trait Source {
    /// One row.
    fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError>;

    /// The members of a conversation that exists, in byte order.
    fn members(&self, conversation_id: &str) -> Result<Members, StoreError>;

    /// Who has asked to join a group, in any order.
    fn waiting_to_join(&self, group_id: &str) -> Result<Vec<String>, StoreError>;

    /// The ids of the members who joined a group when the message `sequence` was there, in any
    /// order.
    fn joined_since(&self, group_id: &str, sequence: u64) -> Result<Vec<Vec<u8>>, StoreError>;

    /// Something that was asked for is not here yet, so that all answers are guesses and the
    /// transaction will be dropped.
    fn is_incomplete(&self) -> bool {
        false
    }
}

impl Source for Tables {
    fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        Tables::get(self, table, key)
    }

    fn members(&self, conversation_id: &str) -> Result<Members, StoreError> {
        stored_members(self, conversation_id)
    }

    fn waiting_to_join(&self, group_id: &str) -> Result<Vec<String>, StoreError> {
        let prefix = keys::join_requests_prefix(group_id);
        let mut waiting = vec![];
        self.view().prefix(Table::Groups, &prefix, |key, _| {
            waiting.push(String::from_utf8_lossy(&key[prefix.len()..]).into_owned());
            Ok(())
        })?;
        Ok(waiting)
    }

    fn joined_since(&self, group_id: &str, sequence: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let (range, before_id) = keys::joined_since(group_id, sequence);
        let mut later = vec![];
        self.view().raw_range(Table::Groups, range, |key, _| {
            later.push(key[before_id..].to_vec());
            Ok(true)
        })?;
        Ok(later)
    }
}
