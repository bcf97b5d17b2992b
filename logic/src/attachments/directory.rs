//! Files in a directory of this machine: `ab/at_…ab`, spread over 256 folders by the end of the key.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream;

use super::blobs::{BlobError, BlobStore, BlobStream};

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// See the module.
pub struct DirectoryBlobs {
    directory: PathBuf,
}

impl DirectoryBlobs {
    /// Files in this directory, which is made if it is not there.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, key: &str) -> PathBuf {
        let spread = key.get(key.len().saturating_sub(2)..).unwrap_or("__");
        self.directory.join(spread).join(key)
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Moves a file and makes the move durable. Across file systems it is copied aside first, so that the
/// blob is there whole or not at all.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(folder)?;
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let aside = to.with_extension("new");
            let copied = std::fs::copy(from, &aside)
                .and_then(|_bytes| File::open(&aside)?.sync_all())
                .and_then(|()| std::fs::rename(&aside, to));
            if copied.is_err() {
                // What is left of a copy that failed, on a full disk say, is in nobody's way.
                let _removed = std::fs::remove_file(&aside);
            }
            copied?;
        }
        renamed => renamed?,
    }
    File::open(folder)?.sync_all()?;
    if let Some(parent) = folder.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[async_trait]
impl BlobStore for DirectoryBlobs {
    async fn put(&self, key: &str, file: &Path, _size: u64) -> Result<(), BlobError> {
        let (from, to) = (file.to_owned(), self.path(key));
        let moved = blocking(move || {
            File::open(&from)?.sync_all()?;
            move_file(&from, &to)
        });
        Ok(moved.await?)
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, BlobError> {
        let path = self.path(key);
        match blocking(move || std::fs::metadata(path)).await {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<BlobStream, BlobError> {
        let path = self.path(key);
        let file = blocking(move || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(range.start))?;
            Ok(file)
        })
        .await?;
        let left = range.end - range.start;
        let chunks = stream::try_unfold((file, left), |(mut file, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let read = blocking(move || {
                let wanted = left.min(CHUNK_BYTES as u64) as usize;
                let mut chunk = BytesMut::zeroed(wanted);
                file.read_exact(&mut chunk)?;
                Ok((file, chunk.freeze()))
            });
            let (file, chunk): (File, Bytes) = read.await?;
            let left = left - chunk.len() as u64;
            Ok(Some((chunk, (file, left))))
        });
        Ok(Box::pin(chunks))
    }

    async fn remove(&self, key: &str) -> Result<(), BlobError> {
        let path = self.path(key);
        match blocking(move || std::fs::remove_file(path)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::blobs::conformance, DirectoryBlobs};

    #[tokio::test]
    async fn a_directory_keeps_blobs() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = DirectoryBlobs::open(folder.path().join("files")).unwrap();
        conformance::blobs_are_kept_byte_for_byte(&blobs, folder.path()).await;
    }
}
