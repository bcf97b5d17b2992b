//! What a search index reads from the store: conversations that changed, and their messages.

use async_trait::async_trait;
use millrace_protocol::chat;

use super::{
    EmbeddedStore,
    database::{Tables, corrupt},
    edit_rows::SequenceRow,
    encoding::DecodeError,
    keys::{self, Table, VERSION_KEY},
    rows::{ConversationRow, MessageRow},
};
use crate::{
    search::{News, SearchSource},
    storage::{StoreError, conversation_id::ConversationName},
};

/// Bytes of hash before every key.
const HASH_BYTES: usize = 4;

fn news(
    tables: &Tables,
    since_version: u64,
    after: Vec<u8>,
    look_max: usize,
) -> Result<(Vec<News>, Option<Vec<u8>>), StoreError> {
    let mut found = vec![];
    let (mut looked, mut last, mut damaged) = (0, None, false);
    // The next key after one is the same with a zero byte; all are shorter than the last one here.
    let first = if after.is_empty() { vec![] } else { [&after[..], &[0]].concat() };
    let range = first..=vec![0xff; 1_024];
    tables.view().raw_range(Table::Conversations, range, |key, value| {
        if key == VERSION_KEY {
            return Ok(true);
        }
        if looked == look_max.max(1) {
            return Ok(false);
        }
        looked += 1;
        last = Some(key.to_vec());
        let row: ConversationRow = super::database::decode(Table::Conversations, value)?;
        match key.get(HASH_BYTES..).map(std::str::from_utf8) {
            Some(Ok(conversation_id)) if row.message_version > since_version => {
                found.push(News {
                    conversation_id: conversation_id.to_owned(),
                    max_sequence: row.max_sequence,
                    has_erased: row.has_edits,
                });
            }
            Some(Ok(_)) => {}
            _ => damaged = true,
        }
        Ok(!damaged)
    })?;
    match damaged {
        true => Err(corrupt(Table::Conversations, DecodeError::Text)),
        false => Ok((found, last.filter(|_| looked == look_max.max(1)))),
    }
}

fn messages(
    tables: &Tables,
    conversation_id: &str,
    up_to: u64,
    limit: usize,
) -> Result<Vec<(chat::Message, u64)>, StoreError> {
    let name = ConversationName::parse(conversation_id).ok_or(StoreError::NotFound)?;
    let mut found = vec![];
    let range = keys::messages(conversation_id, 1, up_to);
    tables.view().range(Table::Messages, range, true, |key, row: MessageRow| {
        let (version, sequence) = (row.version, keys::sequence_of(key).unwrap_or_default());
        let message = row.into_message(conversation_id, name.conversation_type(), sequence);
        found.push((message, version));
        found.len() < limit
    })?;
    Ok(found)
}

fn erased(
    tables: &Tables,
    conversation_id: &str,
    since_version: u64,
    limit: usize,
) -> Result<Vec<(u64, u64)>, StoreError> {
    let first = keys::change(conversation_id, since_version.saturating_add(1));
    let mut found = vec![];
    let range = first..=keys::change(conversation_id, u64::MAX);
    tables.view().range(Table::Edits, range, false, |key, row: SequenceRow| {
        // A change's key ends with its version as a message's does with its sequence.
        found.push((row.sequence, keys::sequence_of(key).unwrap_or_default()));
        found.len() < limit
    })?;
    Ok(found)
}

#[async_trait]
impl SearchSource for EmbeddedStore {
    fn newest_version(&self) -> u64 {
        crate::storage::Store::version(self)
    }

    async fn news(
        &self,
        since_version: u64,
        after: Vec<u8>,
        look_max: usize,
    ) -> Result<(Vec<News>, Option<Vec<u8>>), StoreError> {
        self.read(move |tables, _| news(tables, since_version, after, look_max)).await
    }

    async fn messages(
        &self,
        conversation_id: &str,
        up_to: u64,
        limit: usize,
    ) -> Result<Vec<(chat::Message, u64)>, StoreError> {
        let conversation_id = conversation_id.to_owned();
        self.read(move |tables, _| messages(tables, &conversation_id, up_to, limit)).await
    }

    async fn erased(
        &self,
        conversation_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<Vec<(u64, u64)>, StoreError> {
        let conversation_id = conversation_id.to_owned();
        self.read(move |tables, _| erased(tables, &conversation_id, since_version, limit)).await
    }
}
