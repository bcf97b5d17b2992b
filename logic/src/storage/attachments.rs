//! Where it is kept what files there are, whose, and which conversations refer to them: the trait
//! [`AttachmentStore`]. The bytes of the files are elsewhere; see [`crate::attachments`].
//!
//! A file that nobody refers to, and that is not public, is listed by its age until a conversation
//! refers to it, so that what was never used can be found and removed.

use async_trait::async_trait;

use super::StoreError;

#[cfg(test)]
pub(crate) mod conformance;

/// How far a file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachmentState {
    /// Parts of it have arrived.
    #[default]
    Uploading,
    /// It is complete.
    Complete,
    /// Its bytes are being removed, and then this row.
    Removing,
}

/// A file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachmentRow {
    /// Unique, and not to be guessed.
    pub attachment_id: String,
    /// Whose it is, and whose quota it counts against.
    pub owner_id: String,
    /// Shown to people.
    pub name: String,
    /// The media type.
    pub kind: String,
    /// Bytes, as declared; when it is complete, as they are.
    pub size: u64,
    /// Of the content, in hexadecimal digits: as declared, or empty; when it is complete, as it is.
    pub sha256: String,
    /// Everybody may read it, and it stays without a reference.
    pub public: bool,
    /// How far it is.
    pub state: AttachmentState,
    /// Bytes that have arrived and are on the disk for good.
    pub received: u64,
    /// Conversations that refer to it.
    pub references: u64,
    /// In milliseconds since 1970.
    pub created_at_ms: i64,
}

/// What a user's files amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many.
    pub files: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// What became of a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Referred {
    /// The conversation refers to the file, now or already before.
    Done,
    /// There is no such complete file.
    Missing,
    /// As many conversations refer to it as may.
    Full,
}

/// A durable store of what files there are. Every change is durable when it is answered.
#[async_trait]
pub trait AttachmentStore: Send + Sync + 'static {
    /// Stores a new file if its owner's files stay within `quota`; false when they would not.
    ///
    /// # Errors
    /// The store's own failures, here and everywhere below.
    async fn create(&self, row: AttachmentRow, quota: Usage) -> Result<bool, StoreError>;

    /// A file.
    async fn attachment(&self, attachment_id: &str) -> Result<Option<AttachmentRow>, StoreError>;

    /// So much of an upload has arrived; false when there is no such upload.
    async fn received(&self, attachment_id: &str, received: u64) -> Result<bool, StoreError>;

    /// An upload is complete, with this hash; false when there is no such upload.
    async fn complete(&self, attachment_id: &str, sha256: &str) -> Result<bool, StoreError>;

    /// A conversation refers to a complete file.
    async fn refer(
        &self,
        attachment_id: &str,
        conversation_id: &str,
        references_max: u64,
    ) -> Result<Referred, StoreError>;

    /// At most `limit` conversations that refer to a file.
    async fn references(
        &self,
        attachment_id: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError>;

    /// Files that nothing refers to, that are not public or not complete, and those being removed,
    /// created before this time: at most `limit`, the oldest first, behind `after`, which is the
    /// creation and the id of the last one listed before, or 0 and nothing.
    async fn unreferred(
        &self,
        after: (i64, &str),
        before_ms: i64,
        limit: usize,
    ) -> Result<Vec<AttachmentRow>, StoreError>;

    /// Begins to remove a file; from now on nobody can refer to it. With `only_unreferred` not if
    /// anything refers to it by now. Returns the file, or `None` when nothing is to be removed.
    async fn begin_removal(
        &self,
        attachment_id: &str,
        only_unreferred: bool,
    ) -> Result<Option<AttachmentRow>, StoreError>;

    /// Ends the removal: forgets the file and its references, and frees the owner's quota.
    async fn end_removal(&self, attachment_id: &str) -> Result<(), StoreError>;

    /// What a user's files amount to.
    async fn usage(&self, owner_id: &str) -> Result<Usage, StoreError>;
}
