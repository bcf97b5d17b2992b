//! Uploads: files of the upload directory that grow part by part.
//!
//! What the store says has arrived (`received`) is on the disk for good. What the file holds beyond
//! it is of a part that did not end well; the next part overwrites it. One part of a file at a time.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::{links::hex, media::HEAD_BYTES};

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 256 * 1024;

/// Bytes written between two looks at the free space.
const SPACE_INTERVAL_BYTES: u64 = 8 << 20;

/// See the module.
pub(super) struct Uploads {
    directory: PathBuf,
    free_bytes_min: u64,
    stall_timeout: Duration,
    busy: Arc<Mutex<HashSet<String>>>,
}

/// An upload that nobody else works at, until this is dropped.
pub(super) struct Claim {
    busy: Arc<Mutex<HashSet<String>>>,
    attachment_id: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.attachment_id);
    }
}

/// How a part ended.
pub(super) struct Part {
    /// Bytes of it that are on the disk for good.
    pub written: u64,
    /// Why it ended early, if it did.
    pub failure: Option<Refused>,
}

/// What a complete upload is.
pub(super) struct Inspected {
    /// In hexadecimal digits.
    pub sha256: String,
    /// The first bytes.
    pub head: Vec<u8>,
}

fn full(reason: &dyn std::fmt::Display) -> Refused {
    tracing::error!(%reason, "no space is left for uploads");
    let reason = "No space is left for files at the moment; try again later.";
    Refused::new(Code::OverCapacity, reason).retry_after(60_000)
}

/// What an uploader is told of a disk that failed.
pub(super) fn failed(error: &io::Error) -> Refused {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => full(error),
        _ => {
            tracing::error!(%error, "an upload was not written");
            Refused::from(Code::Internal).retry_after(1_000)
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Uploads {
    pub(super) fn open(
        directory: PathBuf,
        free_bytes_min: u64,
        stall_timeout: Duration,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory, free_bytes_min, stall_timeout, busy: Arc::default() })
    }

    pub(super) fn path(&self, attachment_id: &str) -> PathBuf {
        self.directory.join(attachment_id)
    }

    /// Takes an upload for oneself; `None` while somebody else works at it.
    pub(super) fn claim(&self, attachment_id: &str) -> Option<Claim> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(attachment_id.to_owned()).then(|| Claim {
            busy: Arc::clone(&self.busy),
            attachment_id: attachment_id.to_owned(),
        })
    }

    /// Refuses what would take the last free space.
    pub(super) fn check_space(&self, bytes: u64) -> Result<(), Refused> {
        let space = rustix::fs::statvfs(&self.directory).map_err(|error| failed(&error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < self.free_bytes_min.saturating_add(bytes) {
            return Err(full(&format_args!("{} has {free} bytes left", self.directory.display())));
        }
        Ok(())
    }

    /// Writes a part at an offset, at most `bytes_max` of it, and makes it durable. What has arrived
    /// before a failure counts.
    pub(super) async fn write<E: std::fmt::Display>(
        &self,
        claim: &Claim,
        offset: u64,
        bytes_max: u64,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Part {
        let path = self.path(&claim.attachment_id);
        let opened = blocking(move || {
            let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(file)
        });
        let mut file = match opened.await {
            Ok(file) => file,
            Err(error) => return Part { written: 0, failure: Some(failed(&error)) },
        };
        let (mut arrived, mut written, mut looked_at) = (0_u64, 0_u64, 0_u64);
        let mut gathered: Vec<u8> = Vec::with_capacity(WRITE_BYTES);
        let mut is_over = false;
        let mut failure = None;
        while !is_over && failure.is_none() {
            match timeout(self.stall_timeout, body.next()).await {
                Ok(Some(Ok(bytes))) => {
                    arrived += bytes.len() as u64;
                    if arrived > bytes_max {
                        let reason = "More bytes arrived than this part may have.";
                        failure = Some(Refused::new(Code::TooLarge, reason));
                    } else {
                        gathered.extend_from_slice(&bytes);
                    }
                }
                Ok(Some(Err(error))) => {
                    let reason = format!("The body broke off: {error}.");
                    failure = Some(Refused::new(Code::BadRequest, reason));
                }
                Ok(None) => is_over = true,
                Err(_) => {
                    let reason = "The body did not go on in time.";
                    failure = Some(Refused::new(Code::BadRequest, reason));
                }
            }
            let is_due = gathered.len() >= WRITE_BYTES || is_over || failure.is_some();
            if !is_due || gathered.is_empty() {
                continue;
            }
            if written >= looked_at {
                looked_at = written + SPACE_INTERVAL_BYTES;
                if let Err(refused) = self.check_space(0) {
                    failure = Some(refused);
                    break;
                }
            }
            let chunk = std::mem::take(&mut gathered);
            let wrote = blocking(move || {
                file.write_all(&chunk)?;
                Ok((file, chunk))
            });
            match wrote.await {
                Ok((back, chunk)) => {
                    file = back;
                    written += chunk.len() as u64;
                    gathered = chunk;
                    gathered.clear();
                }
                // The file went with the failure; what was written before it is synced anew.
                Err(error) => {
                    let path = self.path(&claim.attachment_id);
                    let synced = blocking(move || File::open(path)?.sync_data()).await;
                    let written = if synced.is_ok() { written } else { 0 };
                    return Part { written, failure: Some(failed(&error)) };
                }
            }
        }
        match blocking(move || file.sync_data()).await {
            Ok(()) => Part { written, failure },
            Err(error) => Part { written: 0, failure: Some(failed(&error)) },
        }
    }

    /// Cuts off what lies beyond the end, hashes the content and reads its beginning.
    pub(super) async fn inspect(&self, claim: &Claim, size: u64) -> io::Result<Inspected> {
        let path = self.path(&claim.attachment_id);
        blocking(move || {
            let mut file = File::options().read(true).write(true).open(path)?;
            file.set_len(size)?;
            let mut hash = Sha256::new();
            let mut head = Vec::with_capacity(HEAD_BYTES);
            let mut chunk = vec![0; WRITE_BYTES];
            loop {
                let read = file.read(&mut chunk)?;
                if read == 0 {
                    break;
                }
                let missing = HEAD_BYTES.saturating_sub(head.len()).min(read);
                head.extend_from_slice(&chunk[..missing]);
                hash.update(&chunk[..read]);
            }
            Ok(Inspected { sha256: hex(&hash.finalize()), head })
        })
        .await
    }

    /// Whether a file of this upload is there.
    pub(super) async fn exists(&self, attachment_id: &str) -> bool {
        let path = self.path(attachment_id);
        blocking(move || std::fs::metadata(path)).await.is_ok()
    }

    /// Removes what is left of an upload; it is no error if there is nothing.
    pub(super) async fn remove(&self, attachment_id: &str) -> io::Result<()> {
        let path = self.path(attachment_id);
        match blocking(move || std::fs::remove_file(path)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use bytes::Bytes;
    use futures::{StreamExt as _, stream};
    use millrace_protocol::Code;

    use super::Uploads;

    fn uploads(folder: &std::path::Path, free_bytes_min: u64) -> Uploads {
        Uploads::open(folder.to_owned(), free_bytes_min, Duration::from_millis(200)).unwrap()
    }

    fn body(
        parts: &[&'static [u8]],
    ) -> impl futures::Stream<Item = Result<Bytes, Infallible>> + Unpin {
        stream::iter(parts.to_vec()).map(|part| Ok(Bytes::from_static(part)))
    }

    #[tokio::test]
    async fn parts_are_put_together_and_a_broken_one_counts_as_far_as_it_came() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path(), 0);
        let claim = uploads.claim("at_1").unwrap();
        assert!(uploads.claim("at_1").is_none(), "one at a time");
        let part = uploads.write(&claim, 0, 99, body(&[b"hello ", b"wor"])).await;
        assert!(part.written == 9 && part.failure.is_none());
        let broken = stream::iter([Ok(Bytes::from_static(b"ld!")), Err("reset")]);
        let part = uploads.write(&claim, 9, 99, broken).await;
        assert_eq!((part.written, part.failure.unwrap().code), (3, Code::BadRequest));
        let part = uploads.write(&claim, 12, 2, body(&[b"ab", b"cd"])).await;
        assert_eq!((part.written, part.failure.unwrap().code), (2, Code::TooLarge));
        let stalled = body(&[b"xyz"]).chain(stream::pending());
        let part = uploads.write(&claim, 12, 99, stalled).await;
        assert_eq!((part.written, part.failure.unwrap().code), (3, Code::BadRequest));
        let inspected = uploads.inspect(&claim, 12).await.unwrap();
        assert_eq!(inspected.head, b"hello world!");
        assert_eq!(
            inspected.sha256,
            "7509e5bda0c762d2bac7f90d758b5b2263fa01ccbc542ab5e3df163be08e6ca9"
        );
        assert_eq!(std::fs::read(uploads.path("at_1")).unwrap(), b"hello world!", "cut off");
        drop(claim);
        assert!(uploads.claim("at_1").is_some());
        for _ in 0..2 {
            uploads.remove("at_1").await.unwrap();
            assert!(!uploads.exists("at_1").await);
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_said_and_nothing_counts_that_was_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let uploads_without_room = uploads(folder.path(), u64::MAX);
        assert_eq!(uploads_without_room.check_space(1).unwrap_err().code, Code::OverCapacity);
        let claim = uploads_without_room.claim("at_1").unwrap();
        let part = uploads_without_room.write(&claim, 0, 99, body(&[b"hello"])).await;
        assert_eq!((part.written, part.failure.unwrap().code), (0, Code::OverCapacity));
        // A disk that says so in the middle of a write.
        let uploads = uploads(folder.path(), 0);
        std::os::unix::fs::symlink("/dev/full", uploads.path("at_2")).unwrap();
        let claim = uploads.claim("at_2").unwrap();
        let part = uploads.write(&claim, 0, 99, body(&[b"hello"])).await;
        let refused = part.failure.unwrap();
        assert_eq!((part.written, refused.code), (0, Code::OverCapacity));
        assert!(refused.retry_after_ms > 0);
    }
}
