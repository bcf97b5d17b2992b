//! [`AttachmentStore`] in a side table.
//!
//! | key | row |
//! |---|---|
//! | `a` attachment | [`Row`] |
//! | `c`, length of attachment, attachment, conversation | nothing: refers to it |
//! | `o` created at (big-endian), attachment | nothing: may have to be removed |
//! | `u` owner | [`UsageRow`] |

use async_trait::async_trait;
use prost::Message;

use super::{SideTable, SideWrites, Sides};
use crate::storage::{
    StoreError,
    attachments::{AttachmentRow, AttachmentState, AttachmentStore, Referred, Usage},
};

/// The table's name.
const NAME: &str = "attachments";

/// References removed in one transaction with their file.
const REFERENCES_MAX: usize = 100_000;

#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(string, tag = "1")]
    owner_id: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    kind: String,
    #[prost(uint64, tag = "4")]
    size: u64,
    #[prost(string, tag = "5")]
    sha256: String,
    #[prost(bool, tag = "6")]
    public: bool,
    /// 0 uploading, 1 complete, 2 being removed.
    #[prost(uint32, tag = "7")]
    state: u32,
    #[prost(uint64, tag = "8")]
    received: u64,
    #[prost(uint64, tag = "9")]
    references: u64,
    #[prost(int64, tag = "10")]
    created_at_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
struct UsageRow {
    #[prost(uint64, tag = "1")]
    files: u64,
    #[prost(uint64, tag = "2")]
    bytes: u64,
}

/// Files in a side table.
pub struct AttachmentTable {
    table: SideTable,
}

impl AttachmentTable {
    /// The files of a store.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn open(sides: &dyn Sides) -> Result<Self, StoreError> {
        Ok(Self { table: sides.side(NAME)? })
    }
}

fn key(attachment_id: &str) -> Vec<u8> {
    [b"a", attachment_id.as_bytes()].concat()
}

fn references_prefix(attachment_id: &str) -> Vec<u8> {
    let length = u16::try_from(attachment_id.len()).unwrap_or(u16::MAX).to_be_bytes();
    [b"c", &length[..], attachment_id.as_bytes()].concat()
}

fn reference_key(attachment_id: &str, conversation_id: &str) -> Vec<u8> {
    [&references_prefix(attachment_id)[..], conversation_id.as_bytes()].concat()
}

fn age_key(created_at_ms: i64, attachment_id: &str) -> Vec<u8> {
    [b"o", &created_at_ms.max(0).to_be_bytes()[..], attachment_id.as_bytes()].concat()
}

fn usage_key(owner_id: &str) -> Vec<u8> {
    [b"u", owner_id.as_bytes()].concat()
}

fn corrupt(what: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("a row of {NAME}: {what}"))
}

fn text(bytes: &[u8]) -> Result<&str, StoreError> {
    std::str::from_utf8(bytes).map_err(corrupt)
}

fn decode(attachment_id: &str, bytes: &[u8]) -> Result<AttachmentRow, StoreError> {
    let row = Row::decode(bytes).map_err(corrupt)?;
    let state = match row.state {
        0 => AttachmentState::Uploading,
        1 => AttachmentState::Complete,
        2 => AttachmentState::Removing,
        other => return Err(corrupt(format_args!("state {other} is unknown"))),
    };
    Ok(AttachmentRow {
        attachment_id: attachment_id.to_owned(),
        owner_id: row.owner_id,
        name: row.name,
        kind: row.kind,
        size: row.size,
        sha256: row.sha256,
        public: row.public,
        state,
        received: row.received,
        references: row.references,
        created_at_ms: row.created_at_ms,
    })
}

fn put(rows: &mut SideWrites<'_>, attachment: &AttachmentRow) {
    let row = Row {
        owner_id: attachment.owner_id.clone(),
        name: attachment.name.clone(),
        kind: attachment.kind.clone(),
        size: attachment.size,
        sha256: attachment.sha256.clone(),
        public: attachment.public,
        state: match attachment.state {
            AttachmentState::Uploading => 0,
            AttachmentState::Complete => 1,
            AttachmentState::Removing => 2,
        },
        received: attachment.received,
        references: attachment.references,
        created_at_ms: attachment.created_at_ms,
    };
    rows.put(key(&attachment.attachment_id), row.encode_to_vec());
    // Kept in step with the row, so that nothing that may have to be removed is ever not listed.
    let age = age_key(attachment.created_at_ms, &attachment.attachment_id);
    let stays = attachment.state == AttachmentState::Complete
        && (attachment.public || attachment.references > 0);
    if stays {
        rows.remove(age);
    } else {
        rows.put(age, vec![]);
    }
}

fn get(rows: &SideWrites<'_>, attachment_id: &str) -> Result<Option<AttachmentRow>, StoreError> {
    rows.get(&key(attachment_id))?.map(|bytes| decode(attachment_id, &bytes)).transpose()
}

fn usage(bytes: Option<Vec<u8>>) -> Result<Usage, StoreError> {
    let Some(bytes) = bytes else { return Ok(Usage::default()) };
    let row = UsageRow::decode(&bytes[..]).map_err(corrupt)?;
    Ok(Usage { files: row.files, bytes: row.bytes })
}

fn put_usage(rows: &mut SideWrites<'_>, owner_id: &str, Usage { files, bytes }: Usage) {
    rows.put(usage_key(owner_id), UsageRow { files, bytes }.encode_to_vec());
}

#[async_trait]
impl AttachmentStore for AttachmentTable {
    async fn create(&self, row: AttachmentRow, quota: Usage) -> Result<bool, StoreError> {
        self.table
            .write(move |rows| {
                let before = usage(rows.get(&usage_key(&row.owner_id))?)?;
                let after = Usage {
                    files: before.files.saturating_add(1),
                    bytes: before.bytes.saturating_add(row.size),
                };
                if after.files > quota.files || after.bytes > quota.bytes {
                    return Ok(false);
                }
                put_usage(rows, &row.owner_id, after);
                put(rows, &row);
                Ok(true)
            })
            .await
    }

    async fn attachment(&self, attachment_id: &str) -> Result<Option<AttachmentRow>, StoreError> {
        let attachment_id = attachment_id.to_owned();
        self.table
            .read(move |rows| {
                let found = rows.get(&key(&attachment_id))?;
                found.map(|bytes| decode(&attachment_id, &bytes)).transpose()
            })
            .await
    }

    async fn received(&self, attachment_id: &str, received: u64) -> Result<bool, StoreError> {
        let attachment_id = attachment_id.to_owned();
        self.table
            .write(move |rows| match get(rows, &attachment_id)? {
                Some(mut row) if row.state == AttachmentState::Uploading => {
                    row.received = received;
                    put(rows, &row);
                    Ok(true)
                }
                _ => Ok(false),
            })
            .await
    }

    async fn complete(&self, attachment_id: &str, sha256: &str) -> Result<bool, StoreError> {
        let (attachment_id, sha256) = (attachment_id.to_owned(), sha256.to_owned());
        self.table
            .write(move |rows| match get(rows, &attachment_id)? {
                Some(mut row) if row.state == AttachmentState::Uploading => {
                    row.state = AttachmentState::Complete;
                    row.received = row.size;
                    row.sha256 = sha256;
                    put(rows, &row);
                    Ok(true)
                }
                _ => Ok(false),
            })
            .await
    }

    async fn refer(
        &self,
        attachment_id: &str,
        conversation_id: &str,
        references_max: u64,
    ) -> Result<Referred, StoreError> {
        let (attachment_id, conversation_id) =
            (attachment_id.to_owned(), conversation_id.to_owned());
        self.table
            .write(move |rows| {
                let Some(mut row) = get(rows, &attachment_id)? else {
                    return Ok(Referred::Missing);
                };
                if row.state != AttachmentState::Complete {
                    return Ok(Referred::Missing);
                }
                let reference = reference_key(&attachment_id, &conversation_id);
                if rows.get(&reference)?.is_some() {
                    return Ok(Referred::Done);
                }
                if row.references >= references_max {
                    return Ok(Referred::Full);
                }
                row.references += 1;
                rows.put(reference, vec![]);
                put(rows, &row);
                Ok(Referred::Done)
            })
            .await
    }

    async fn references(
        &self,
        attachment_id: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let prefix = references_prefix(attachment_id);
        self.table
            .read(move |rows| {
                let mut found = Vec::new();
                rows.prefix(&prefix, |key, _| {
                    found.push(text(&key[prefix.len()..])?.to_owned());
                    Ok(found.len() < limit)
                })?;
                Ok(found)
            })
            .await
    }

    async fn unreferred(
        &self,
        (after_ms, after_id): (i64, &str),
        before_ms: i64,
        limit: usize,
    ) -> Result<Vec<AttachmentRow>, StoreError> {
        // No id holds the byte that makes this the next key.
        let first = [&age_key(after_ms, after_id)[..], &[0]].concat();
        let last = age_key(before_ms.saturating_sub(1), "\u{10ffff}");
        if first > last {
            return Ok(vec![]);
        }
        self.table
            .read(move |rows| {
                let mut found = Vec::new();
                rows.range(first..=last, |age, _| {
                    let attachment_id = text(&age[9..])?;
                    if let Some(bytes) = rows.get(&key(attachment_id))? {
                        found.push(decode(attachment_id, &bytes)?);
                    }
                    Ok(found.len() < limit)
                })?;
                Ok(found)
            })
            .await
    }

    async fn begin_removal(
        &self,
        attachment_id: &str,
        only_unreferred: bool,
    ) -> Result<Option<AttachmentRow>, StoreError> {
        let attachment_id = attachment_id.to_owned();
        self.table
            .write(move |rows| {
                let Some(mut row) = get(rows, &attachment_id)? else { return Ok(None) };
                if only_unreferred && row.references > 0 && row.state == AttachmentState::Complete {
                    return Ok(None);
                }
                row.state = AttachmentState::Removing;
                put(rows, &row);
                Ok(Some(row))
            })
            .await
    }

    async fn end_removal(&self, attachment_id: &str) -> Result<(), StoreError> {
        let attachment_id = attachment_id.to_owned();
        self.table
            .write(move |rows| {
                let Some(row) = get(rows, &attachment_id)? else { return Ok(()) };
                let mut references = Vec::new();
                rows.before().prefix(&references_prefix(&attachment_id), |key, _| {
                    references.push(key.to_vec());
                    Ok(references.len() < REFERENCES_MAX)
                })?;
                for reference in references {
                    rows.remove(reference);
                }
                let before = usage(rows.get(&usage_key(&row.owner_id))?)?;
                let after = Usage {
                    files: before.files.saturating_sub(1),
                    bytes: before.bytes.saturating_sub(row.size),
                };
                put_usage(rows, &row.owner_id, after);
                rows.remove(age_key(row.created_at_ms, &attachment_id));
                rows.remove(key(&attachment_id));
                Ok(())
            })
            .await
    }

    async fn usage(&self, owner_id: &str) -> Result<Usage, StoreError> {
        let key = usage_key(owner_id);
        self.table.read(move |rows| usage(rows.get(&key)?)).await
    }
}

#[cfg(test)]
mod tests {
    use super::AttachmentTable;
    use crate::storage::{
        Store as _,
        attachments::conformance::{Bed, attachment_store_conformance_tests},
        embedded::{EmbeddedStore, tests::options},
    };

    struct Directory {
        directory: tempfile::TempDir,
        store: std::sync::Mutex<Option<EmbeddedStore>>,
    }

    impl Bed for Directory {
        type Store = AttachmentTable;

        async fn open(&self) -> AttachmentTable {
            let earlier = self.store.lock().unwrap().take();
            if let Some(earlier) = earlier {
                earlier.close().await.unwrap();
            }
            let store = EmbeddedStore::open(options(self.directory.path())).unwrap();
            let attachments = AttachmentTable::open(&store).unwrap();
            *self.store.lock().unwrap() = Some(store);
            attachments
        }
    }

    attachment_store_conformance_tests!(Directory {
        directory: tempfile::tempdir().unwrap(),
        store: std::sync::Mutex::new(None),
    });
}
