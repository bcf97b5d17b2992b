//! The list of words that are not let through: a file of rules, searched in one pass over each text,
//! read again when it changes.
//!
//! - `fold`: what is the same to a reader becomes the same bytes
//! - `list`: the rules, and the search
//! - [`WordFile`]: the file, watched
//!
//! It does not decide what becomes of a message: that is [`chat`](crate::chat)'s.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;

use crate::chat::{Verdict, WordFilter, WordStatus};
pub use list::{ListError, WordList};

mod fold;
mod list;

/// How a [`WordFile`] is read.
#[derive(Clone, Debug)]
pub struct WordFileSettings {
    /// The file.
    pub path: PathBuf,
    /// How often it is looked at.
    pub poll: Duration,
    /// Largest file, in bytes; a larger one is refused.
    pub bytes_max: u64,
    /// Most rules; a file with more is refused.
    pub rules_max: usize,
}

/// Why a file of words was not taken.
#[derive(Debug, thiserror::Error)]
pub enum WordFileError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is too large.
    #[error("{}: the file has {bytes} bytes, and {bytes_max} are allowed", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// A line of it makes no sense.
    #[error("{}:{error}", path.display())]
    List {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        error: ListError,
    },
}

/// What tells one state of the file from another.
type Seen = Option<(SystemTime, u64)>;

/// A [`WordFilter`] from a file. What is found wrong when it is read again is logged, and the list
/// from before goes on.
pub struct WordFile {
    settings: WordFileSettings,
    /// The file's state just before it was read for the first time.
    opened: Seen,
    list: ArcSwap<WordList>,
    reloads: AtomicU64,
    reloads_failed: AtomicU64,
}

impl WordFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`WordFileError`]: a process that was told to watch its words must not start without them.
    pub fn open(settings: WordFileSettings) -> Result<Arc<Self>, WordFileError> {
        let opened = look(&settings.path);
        let list = read(&settings)?;
        Ok(Arc::new(Self {
            settings,
            opened,
            list: ArcSwap::from_pointee(list),
            reloads: AtomicU64::new(0),
            reloads_failed: AtomicU64::new(0),
        }))
    }

    /// Looks at the file again and again, until the last other owner is gone.
    pub async fn watch(self: Arc<Self>) {
        let (poll, path) = (self.settings.poll, self.settings.path.clone());
        let mut seen = self.opened;
        let this = Arc::downgrade(&self);
        drop(self);
        loop {
            tokio::time::sleep(poll).await;
            let Some(this) = this.upgrade() else { return };
            let now = look(&path);
            if now != seen {
                seen = now;
                // Reading and building take a while; not on a thread that serves others.
                let reloaded = tokio::task::spawn_blocking(move || this.reload()).await;
                if let Err(error) = reloaded {
                    tracing::error!(%error, "reading the list of words ended early");
                }
            }
        }
    }

    fn reload(&self) {
        match read(&self.settings) {
            Ok(list) => {
                tracing::info!(rules = list.len(), "the list of words was read again");
                self.list.store(Arc::new(list));
                self.reloads.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::error!(%error, "the list of words was not taken; the one from before goes on");
                self.reloads_failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl WordFilter for WordFile {
    fn is_on(&self) -> bool {
        !self.list.load().is_empty()
    }

    fn check(&self, text: &str) -> Verdict {
        self.list.load().check(text)
    }

    fn status(&self) -> WordStatus {
        WordStatus {
            rules: self.list.load().len() as u64,
            reloads: self.reloads.load(Ordering::Relaxed),
            reloads_failed: self.reloads_failed.load(Ordering::Relaxed),
        }
    }
}

/// A file that is not there looks different from every file.
fn look(path: &Path) -> Seen {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(settings: &WordFileSettings) -> Result<WordList, WordFileError> {
    let path = settings.path.clone();
    let failed = |error| WordFileError::Io { path: path.clone(), error };
    let bytes = fs::metadata(&path).map_err(failed)?.len();
    if bytes > settings.bytes_max {
        return Err(WordFileError::TooLarge { path, bytes, bytes_max: settings.bytes_max });
    }
    let text = fs::read_to_string(&path).map_err(failed)?;
    WordList::parse(&text, settings.rules_max)
        .map_err(|error| WordFileError::List { path: settings.path.clone(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(path: PathBuf) -> WordFileSettings {
        let poll = Duration::from_millis(20);
        WordFileSettings { path, poll, bytes_max: 1_000, rules_max: 10 }
    }

    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..1_000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it did not happen: {what}");
    }

    #[tokio::test]
    async fn the_list_follows_its_file_and_survives_a_bad_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        fs::write(&path, "block apple\n").unwrap();
        let words = WordFile::open(settings(path.clone())).unwrap();
        let watching = tokio::spawn(words.clone().watch());
        let blocked = |text: &str| words.check(text).is_blocked;
        assert!(blocked("an Apple") && !blocked("a pear"));
        fs::write(&path, "block apple\nblock pear\n").unwrap();
        until("the longer list", || blocked("a pear")).await;
        fs::write(&path, "forbid everything that is bad\n").unwrap();
        until("the bad list", || words.status().reloads_failed == 1).await;
        assert!(blocked("a pear"), "the list from before goes on");
        fs::remove_file(&path).unwrap();
        until("no list", || words.status().reloads_failed == 2).await;
        assert!(blocked("a pear"));
        fs::write(&path, "# nothing any more\n").unwrap();
        until("the empty list", || !words.is_on()).await;
        assert!(!blocked("an apple"));
        drop(words);
        watching.await.unwrap();
    }

    #[test]
    fn a_file_that_is_missing_too_large_or_wrong_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        let refusal = || WordFile::open(settings(path.clone())).err().expect("refused").to_string();
        assert!(refusal().contains("words: "), "{}", refusal());
        fs::write(&path, "flag ".repeat(300)).unwrap();
        assert!(refusal().contains("1500 bytes"), "{}", refusal());
        fs::write(&path, "flag a\n\nblok b\n").unwrap();
        assert!(refusal().contains("words:3: "), "{}", refusal());
        fs::write(&path, [b'f', b'l', b'a', b'g', b' ', 0xff]).unwrap();
        assert!(refusal().contains("UTF-8"), "{}", refusal());
    }
}
