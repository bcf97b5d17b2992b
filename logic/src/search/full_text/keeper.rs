//! The thread of the index: the only one that writes it.
//!
//! It takes notes in batches, with a moment between two of them, so that a busy chain wakes it some
//! fifty times a second and not for every message; commits once an interval; and reads from the
//! store what no note told of.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use tantivy::{
    Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument, Term,
    indexer::IndexWriterOptions, schema::Schema,
};
use tokio::runtime::Handle;

use super::{Fields, Options, Shared, schema};
use crate::search::{
    News, SearchSource,
    notes::{Entry, Note},
    terms,
};

/// Changes when an older index cannot be read any more.
const FORMAT: &str = "1";

/// Notes taken at once.
const NOTES_TAKEN_MAX: usize = 1_024;

/// For how long notes gather.
const GATHER: Duration = Duration::from_millis(20);

/// Messages of one reading of the store.
const READ_MESSAGES: usize = 500;

/// Conversations of one reading of the store.
const READ_CONVERSATIONS: usize = 5_000;

/// How often a long reading of the store is committed, so that it is found and not done again.
const READING_COMMITTED_EVERY: Duration = Duration::from_secs(5);

/// The wait before a failed index is opened again, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Failures one soon after the other, after which the index is built anew.
const FAILURES_MAX: u32 = 3;

/// How often the thread looks whether it is to end, while it waits for the disk to mend.
const LOOK: Duration = Duration::from_millis(50);

/// Lives as long as the index: waits until it is wanted, then keeps it. A failure ends an attempt; the
/// next begins where the last commit was, and after several there is nothing left of what may be
/// damaged.
pub(super) fn run(shared: &Shared, source: &dyn SearchSource, runtime: &Handle) {
    while !shared.wanted.load(Ordering::Acquire) {
        if shared.notes.is_stopped() {
            return;
        }
        shared.notes.take(0, None);
    }
    let (mut pause, mut failures) = (PAUSE, 0);
    while !shared.notes.is_stopped() {
        let began = Instant::now();
        // Damaged files make the library panic in places.
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            Keeper::open(shared, source, runtime).and_then(|mut keeper| keeper.keep())
        }));
        let error = match attempt {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => KeeperError::Panicked,
        };
        shared.behind.store(true, Ordering::Release);
        if began.elapsed() > PAUSE_MAX {
            (pause, failures) = (PAUSE, 0);
        }
        failures += 1;
        let seconds = pause.as_secs();
        tracing::error!(%error, seconds, failures, "the search index failed; it is opened again");
        if failures % FAILURES_MAX == 0 {
            tracing::warn!("the search index is built anew");
            shared.view().reader = None;
            if let Err(error) = remove(&shared.options.directory) {
                tracing::error!(%error, "the search index could not be removed");
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < pause && !shared.notes.is_stopped() {
            std::thread::sleep(LOOK);
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Why the thread cannot go on.
#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error(transparent)]
    Index(#[from] tantivy::TantivyError),
    #[error(transparent)]
    Store(#[from] crate::storage::StoreError),
    #[error("the directory of the index: {0}")]
    Io(#[from] io::Error),
    #[error("it panicked, most likely over damaged files")]
    Panicked,
}

struct Keeper<'a> {
    shared: &'a Shared,
    source: &'a dyn SearchSource,
    runtime: &'a Handle,
    fields: Fields,
    writer: IndexWriter,
    reader: IndexReader,
    /// The store's version up to which everything is in the index, or will be with the next commit,
    /// apart from notes that were dropped.
    whole_to: u64,
    /// Up to here it is whole in any case: the store was read.
    read_to: u64,
    /// Nothing was ever written, so nothing can be there twice.
    is_empty: bool,
    /// Something was written since the last commit.
    dirty: bool,
    /// Since when the oldest note waits that was taken and is not committed.
    waiting_since: Option<Instant>,
    committed_at: Instant,
    /// How many messages may be indexed now.
    allowance: f64,
    paced_at: Instant,
}

impl<'a> Keeper<'a> {
    fn open(
        shared: &'a Shared,
        source: &'a dyn SearchSource,
        runtime: &'a Handle,
    ) -> Result<Self, KeeperError> {
        let (schema, fields) = schema();
        let newest = source.newest_version();
        let (writer, reader, whole_to) = match open_index(&shared.options, &schema, newest) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(%error, "the search index is built anew");
                remove(&shared.options.directory)?;
                open_index(&shared.options, &schema, newest)?
            }
        };
        let is_empty = whole_to == 0 && reader.searcher().segment_readers().is_empty();
        shared.view().reader = Some((reader.clone(), fields));
        let keeper = Self {
            shared,
            source,
            runtime,
            fields,
            writer,
            reader,
            whole_to,
            read_to: 0,
            is_empty,
            dirty: false,
            waiting_since: None,
            committed_at: Instant::now(),
            allowance: 0.0,
            paced_at: Instant::now(),
        };
        keeper.publish(false);
        Ok(keeper)
    }

    fn is_stopping(&self) -> bool {
        self.shared.notes.is_stopped()
    }

    /// Until the end of the process.
    fn keep(&mut self) -> Result<(), KeeperError> {
        self.shared.behind.store(true, Ordering::Release);
        loop {
            if self.is_stopping() {
                return self.commit();
            }
            if self.shared.behind.load(Ordering::Acquire) || self.shared.notes.dropped().is_some() {
                self.read_what_was_missed()?;
                continue;
            }
            let interval = self.shared.options.commit_interval;
            let due = interval.saturating_sub(self.committed_at.elapsed());
            let taken = self.shared.notes.take(NOTES_TAKEN_MAX, self.dirty.then_some(due));
            if let Some(since) = taken.waiting_since {
                self.waiting_since.get_or_insert(since);
                self.publish(false);
            }
            let count = taken.notes.len();
            for note in taken.notes {
                self.take(note)?;
            }
            if self.dirty && self.committed_at.elapsed() >= interval {
                self.commit()?;
            }
            if (1..NOTES_TAKEN_MAX).contains(&count) && !self.is_stopping() {
                std::thread::sleep(GATHER.min(interval));
            }
        }
    }

    fn take(&mut self, note: Note) -> Result<(), KeeperError> {
        match note {
            Note::Stored(entry, version) if version > self.whole_to => {
                self.add(&entry, version)?;
                self.whole_to = version;
            }
            // It was read from the store before its note came.
            Note::Stored(..) => {}
            Note::Erased(conversation_id, sequence, version) => {
                self.delete(&conversation_id, sequence);
                self.whole_to = self.whole_to.max(version);
            }
        }
        Ok(())
    }

    /// The version behind which the index may lack something.
    fn whole_to(&self, dropped: Option<u64>) -> u64 {
        let before_dropped = dropped.map_or(u64::MAX, |version| version.saturating_sub(1));
        self.whole_to.min(before_dropped.max(self.read_to))
    }

    /// Reads from the store what no note told of. What is there twice replaces itself.
    fn read_what_was_missed(&mut self) -> Result<(), KeeperError> {
        let began = Instant::now();
        self.waiting_since.get_or_insert(began);
        self.publish(false);
        // In this order: what is forgotten here is in the store by now, since notes follow commits.
        let dropped = self.shared.notes.forgive();
        let since = self.whole_to(dropped);
        let to = self.source.newest_version();
        self.whole_to = since;
        let (mut after, mut messages) = (vec![], 0_u64);
        loop {
            let page = self.source.news(since, after, READ_CONVERSATIONS);
            let (news, next) = self.runtime.block_on(page)?;
            for news in news {
                messages += self.read_conversation(&news, since, to)?;
                if self.is_stopping() {
                    // The next start goes on from `since`.
                    return Ok(());
                }
                if self.committed_at.elapsed() >= READING_COMMITTED_EVERY {
                    self.commit()?;
                    self.waiting_since = Some(began);
                    self.publish(false);
                }
            }
            match next {
                Some(next) => after = next,
                None => break,
            }
        }
        self.whole_to = to.max(since);
        self.read_to = self.whole_to;
        self.dirty = true;
        self.commit()?;
        self.is_empty = false;
        self.shared.behind.store(false, Ordering::Release);
        if messages > 0 {
            let ms = began.elapsed().as_millis() as u64;
            tracing::info!(messages, ms, "the search index has caught up with the store");
        }
        Ok(())
    }

    /// What was stored and erased in a conversation after `since`; how many messages that were.
    fn read_conversation(&mut self, news: &News, since: u64, to: u64) -> Result<u64, KeeperError> {
        let (mut up_to, mut count) = (news.max_sequence, 0);
        while up_to > 0 && !self.is_stopping() {
            let page = self.source.messages(&news.conversation_id, up_to, READ_MESSAGES);
            let page = self.runtime.block_on(page)?;
            let Some((oldest, oldest_version)) = page.last() else { break };
            let is_last = *oldest_version <= since;
            up_to = oldest.sequence.saturating_sub(1);
            for (message, version) in &page {
                if *version <= since || *version > to {
                    continue;
                }
                if !self.is_empty {
                    self.delete(&message.conversation_id, message.sequence);
                }
                if message.state == 0 {
                    self.add(&Entry::of(message), *version)?;
                    count += 1;
                }
            }
            if is_last {
                break;
            }
        }
        let mut since = since;
        while news.has_erased && !self.is_empty && !self.is_stopping() {
            let page = self.source.erased(&news.conversation_id, since, READ_MESSAGES);
            let page = self.runtime.block_on(page)?;
            let Some((_, newest)) = page.last() else { break };
            since = *newest;
            for (sequence, _) in &page {
                self.delete(&news.conversation_id, *sequence);
            }
        }
        Ok(count)
    }

    fn add(&mut self, entry: &Entry, version: u64) -> Result<(), KeeperError> {
        self.pace();
        let fields = self.fields;
        let mut document = TantivyDocument::new();
        document.add_text(fields.key, key_of(&entry.conversation_id, entry.sequence));
        document.add_text(fields.conversation, &entry.conversation_id);
        document.add_u64(fields.sequence, entry.sequence);
        document.add_u64(fields.order, version);
        document.add_text(fields.sender, &entry.sender_id);
        document.add_u64(fields.kind, u64::from(entry.kind));
        document.add_i64(fields.sent_at_ms, entry.sent_at_ms);
        for term in terms::terms(&entry.text) {
            document.add_text(fields.terms, term);
        }
        self.writer.add_document(document)?;
        self.dirty = true;
        Ok(())
    }

    fn delete(&mut self, conversation_id: &str, sequence: u64) {
        let key = key_of(conversation_id, sequence);
        self.writer.delete_term(Term::from_field_text(self.fields.key, &key));
        self.dirty = true;
    }

    /// Waits until the next message may be indexed.
    fn pace(&mut self) {
        let rate = f64::from(self.shared.options.messages_per_second_max.max(1));
        self.allowance -= 1.0;
        while self.allowance < 0.0 && !self.is_stopping() {
            // A tenth of a second's messages at once.
            self.allowance =
                (self.allowance + self.paced_at.elapsed().as_secs_f64() * rate).min(rate / 10.0);
            self.paced_at = Instant::now();
            if self.allowance < 0.0 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn commit(&mut self) -> Result<(), KeeperError> {
        if self.dirty {
            // What was dropped meanwhile is not there yet, though what came after it is.
            let whole_to = self.whole_to(self.shared.notes.dropped());
            let mut prepared = self.writer.prepare_commit()?;
            prepared.set_payload(&format!("{FORMAT} {whole_to}"));
            prepared.commit()?;
            self.reader.reload()?;
            self.dirty = false;
        }
        self.waiting_since = None;
        self.committed_at = Instant::now();
        self.publish(true);
        Ok(())
    }

    /// Shows the metrics how the index is; its size on the disk only when that may have changed.
    fn publish(&self, has_changed: bool) {
        self.shared.view().waiting_since = self.waiting_since;
        if has_changed {
            let messages = self.reader.searcher().num_docs();
            self.shared.messages.store(messages, Ordering::Relaxed);
            let bytes = bytes_of(&self.shared.options.directory);
            self.shared.bytes.store(bytes, Ordering::Relaxed);
        }
    }
}

fn key_of(conversation_id: &str, sequence: u64) -> String {
    // The conversation first: neighbours in the dictionary share what they begin with.
    format!("{conversation_id} {sequence}")
}

/// The version in a commit's payload; 0 when it has none.
fn whole_to_of(payload: Option<&str>) -> u64 {
    let version = payload.and_then(|payload| payload.strip_prefix(FORMAT)?.trim().parse().ok());
    version.unwrap_or(0)
}

/// Opens the index, or makes an empty one where there is none, for writing and for reading, and says
/// up to which version it is whole. One that does not fit this program or this store is an error.
fn open_index(
    options: &Options,
    schema: &Schema,
    newest: u64,
) -> Result<(IndexWriter, IndexReader, u64), KeeperError> {
    let index = index_in(&options.directory, schema, newest)?;
    let writing = IndexWriterOptions::builder()
        .num_worker_threads(1)
        .num_merge_threads(1)
        .memory_budget_per_thread(options.memory_bytes_max)
        .build();
    let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
    let whole_to = whole_to_of(index.load_metas()?.payload.as_deref());
    Ok((index.writer_with_options(writing)?, reader, whole_to))
}

fn index_in(directory: &Path, schema: &Schema, newest: u64) -> Result<Index, KeeperError> {
    if !directory.join("meta.json").exists() {
        remove(directory)?;
        fs::create_dir_all(directory)?;
        return Ok(Index::create_in_dir(directory, schema.clone())?);
    }
    let index = Index::open_in_dir(directory)?;
    let payload = index.load_metas()?.payload;
    let known = payload.as_deref().is_none_or(|payload| payload.split(' ').next() == Some(FORMAT));
    if index.schema() != *schema || !known {
        let other = "it was written by another version of this program";
        return Err(KeeperError::Io(io::Error::other(other)));
    }
    if whole_to_of(payload.as_deref()) > newest {
        let ahead = "it knows more than the store, which is another one or was put back";
        return Err(KeeperError::Io(io::Error::other(ahead)));
    }
    Ok(index)
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Of all files of the index; those that vanish meanwhile count nothing.
fn bytes_of(directory: &Path) -> u64 {
    let Ok(files) = fs::read_dir(directory) else { return 0 };
    files.flatten().filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}
