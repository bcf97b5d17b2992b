//! Where complete files are: the trait [`BlobStore`].
//!
//! A blob store knows keys and bytes. Who may read what, and what is still an upload, is not its
//! business.

use std::{io, ops::Range, path::Path, pin::Pin};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

/// A part of a file, as it is read.
pub type BlobStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Why a blob store could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no such blob.
    #[error("there is no such file")]
    NotFound,
    /// No space is left.
    #[error("no space is left for files: {0}")]
    Full(String),
    /// The disk, the network or the other side failed.
    #[error("the files' store failed: {0}")]
    Failed(String),
}

impl From<io::Error> for BlobError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Where complete files are. Keys are ours: letters, digits and `_`.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Takes a complete file of this size; it is there, whole and for good, when this is answered.
    /// The file may be moved away or stay. An earlier blob of this key is replaced.
    ///
    /// # Errors
    /// [`BlobError`]; then there is no such blob, or the earlier one.
    async fn put(&self, key: &str, file: &Path, size: u64) -> Result<(), BlobError>;

    /// The size of a blob, or `None` when there is none.
    ///
    /// # Errors
    /// [`BlobError`].
    async fn size(&self, key: &str) -> Result<Option<u64>, BlobError>;

    /// Bytes of a blob. The range lies within its size and is not empty.
    ///
    /// # Errors
    /// [`BlobError`]; later failures are in the stream.
    async fn read(&self, key: &str, range: Range<u64>) -> Result<BlobStream, BlobError>;

    /// Removes a blob; it is no error if there is none.
    ///
    /// # Errors
    /// [`BlobError`].
    async fn remove(&self, key: &str) -> Result<(), BlobError>;
}

/// What every blob store must do; run by the tests of each.
#[cfg(test)]
pub(crate) mod conformance {
    use futures::TryStreamExt as _;

    use super::{BlobError, BlobStore};

    async fn all(store: &dyn BlobStore, key: &str, range: std::ops::Range<u64>) -> Vec<u8> {
        let parts: Vec<_> = store.read(key, range).await.unwrap().try_collect().await.unwrap();
        parts.concat()
    }

    /// Puts, reads in parts, replaces and removes. `folder` is on the disk of the uploads.
    pub(crate) async fn blobs_are_kept_byte_for_byte(
        store: &dyn BlobStore,
        folder: &std::path::Path,
    ) {
        // More than one part of a multipart upload, and no multiple of a block.
        let content: Vec<u8> = (0..11_000_003_u32).map(|n| (n * 7 + n / 255) as u8).collect();
        let file = folder.join("upload");
        std::fs::write(&file, &content).unwrap();
        assert_eq!(store.size("at_1").await.unwrap(), None);
        store.put("at_1", &file, content.len() as u64).await.unwrap();
        assert_eq!(store.size("at_1").await.unwrap(), Some(content.len() as u64));
        assert!(all(store, "at_1", 0..content.len() as u64).await == content);
        for range in [0..1, 1..70_000, 5_242_879..5_242_882, 11_000_002..11_000_003] {
            let wanted = &content[range.start as usize..range.end as usize];
            assert!(all(store, "at_1", range.clone()).await == wanted, "{range:?}");
        }
        std::fs::write(&file, b"small").unwrap();
        store.put("at_1", &file, 5).await.unwrap();
        assert_eq!(all(store, "at_1", 0..5).await, b"small");
        store.put("at_2", &file, 5).await.ok();
        for _ in 0..2 {
            store.remove("at_1").await.unwrap();
        }
        assert_eq!(store.size("at_1").await.unwrap(), None);
        let missing = store.read("at_1", 0..1).await.err();
        assert!(matches!(missing, Some(BlobError::NotFound)), "{missing:?}");
    }
}
