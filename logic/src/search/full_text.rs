//! The index on the disk: tantivy, in a directory of its own beside the store's data.
//!
//! One document a message: its terms, and what can be filtered by. Nothing of a text is kept but
//! its terms. One thread owns the writer ([`keeper`]); it takes notes from a bounded queue, commits
//! once an interval, and reads from the store what it has missed.
//!
//! # Until somebody searches
//! A store in which nobody ever searched has no index, and noting a message is a look at one flag.
//! The first search begins the index; answers are incomplete, and say so, until it is built.
//!
//! # After a crash
//! Each commit of the index holds the version of the store up to which it is whole. What came later
//! is read from the store again, conversation by conversation, only from those that changed. An
//! index that cannot be opened is thrown away and built anew.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    ops::Bound,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use millrace_protocol::chat;
use tantivy::{
    IndexReader, Order, Term,
    collector::TopDocs,
    query::{BooleanQuery, RangeQuery, RegexQuery, TermQuery, TermSetQuery},
    schema::{FAST, Field, INDEXED, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
};
use tokio::{runtime::Handle, sync::Semaphore};

use super::{
    Hit, Query, SearchError, SearchIndex, SearchSource, SearchStatus,
    notes::{self, Note, Notes},
    terms,
};

mod keeper;

/// How the index works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it lies; made with the first search.
    pub directory: PathBuf,
    /// Notes that wait for the index. Full: the index reads what it missed from the store.
    pub notes_queued_max: usize,
    /// The same in bytes.
    pub notes_queued_bytes_max: usize,
    /// Messages indexed in a second at most, so that indexing takes a bounded part of a core. More
    /// wait, and are found later.
    pub messages_per_second_max: u32,
    /// What the index gathers in memory before it writes a file; at least 15 MB.
    pub memory_bytes_max: usize,
    /// How long a message may wait until it is found.
    pub commit_interval: Duration,
    /// Searches at once; one more is refused with `over_capacity`.
    pub searches_in_flight_max: usize,
}

impl Options {
    /// The defaults, in a directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            notes_queued_max: 16_384,
            notes_queued_bytes_max: 16 << 20,
            messages_per_second_max: 5_000,
            memory_bytes_max: 32 << 20,
            commit_interval: Duration::from_secs(1),
            searches_in_flight_max: 4,
        }
    }
}

/// The fields of a document.
#[derive(Clone, Copy)]
struct Fields {
    /// Conversation and sequence together: which message it is.
    key: Field,
    conversation: Field,
    sequence: Field,
    order: Field,
    sender: Field,
    kind: Field,
    sent_at_ms: Field,
    terms: Field,
}

/// Columns that hits are read from.
const CONVERSATION: &str = "conversation";
const SEQUENCE: &str = "sequence";
const ORDER: &str = "order";

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    // Asked for as they are; nothing is ranked, so nothing is counted. No document is stored: what
    // is to be known of a hit lies in columns.
    let whole = TextOptions::default().set_indexing_options(
        TextFieldIndexing::default()
            .set_tokenizer("raw")
            .set_fieldnorms(false)
            .set_index_option(IndexRecordOption::Basic),
    );
    let fields = Fields {
        key: schema.add_text_field("key", whole.clone()),
        conversation: schema.add_text_field(CONVERSATION, whole.clone().set_fast(None)),
        sequence: schema.add_u64_field(SEQUENCE, FAST),
        order: schema.add_u64_field(ORDER, FAST),
        sender: schema.add_text_field("sender", whole.clone()),
        kind: schema.add_u64_field("kind", INDEXED),
        sent_at_ms: schema.add_i64_field("sent_at_ms", FAST),
        terms: schema.add_text_field("terms", whole),
    };
    (schema.build(), fields)
}

/// What callers and the thread share.
struct Shared {
    options: Options,
    /// Somebody has searched, now or in an earlier life.
    wanted: AtomicBool,
    /// The index lacks what the store has, apart from what waits in `notes`.
    behind: AtomicBool,
    notes: Notes,
    view: Mutex<View>,
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// What of the index can be searched.
#[derive(Default)]
struct View {
    /// `None` until there is an index.
    reader: Option<(IndexReader, Fields)>,
    /// Since when the oldest message waits that the thread has taken, and that is not found yet.
    waiting_since: Option<Instant>,
}

impl Shared {
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub struct FullText {
    shared: Arc<Shared>,
    searches: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl FullText {
    /// Starts the thread of the index; it reads from `source`. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// The system starts no thread.
    pub fn start(options: Options, source: Arc<dyn SearchSource>) -> io::Result<Self> {
        let searches = Arc::new(Semaphore::new(options.searches_in_flight_max.max(1)));
        let wanted = options.directory.join("meta.json").exists();
        let notes = Notes::new(options.notes_queued_max.max(1), options.notes_queued_bytes_max);
        let shared = Arc::new(Shared {
            options,
            wanted: AtomicBool::new(wanted),
            behind: AtomicBool::new(true),
            notes,
            view: Mutex::default(),
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let thread = {
            let (shared, runtime) = (shared.clone(), Handle::current());
            std::thread::Builder::new()
                .name("search-index".into())
                .spawn(move || keeper::run(&shared, &*source, &runtime))?
        };
        Ok(Self { shared, searches, thread: Mutex::new(Some(thread)) })
    }

    /// Nearly free where nobody searches.
    fn is_wanted(&self) -> bool {
        self.shared.wanted.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl SearchIndex for FullText {
    fn stored(&self, message: &chat::Message, version: u64) {
        if self.is_wanted() {
            self.shared.notes.put(Note::Stored(notes::Entry::of(message), version));
        }
    }

    fn erased(&self, conversation_id: &str, sequence: u64, version: u64) {
        if self.is_wanted() {
            self.shared.notes.put(Note::Erased(conversation_id.to_owned(), sequence, version));
        }
    }

    async fn search(&self, query: Query) -> Result<Vec<Hit>, SearchError> {
        if !self.shared.wanted.swap(true, Ordering::AcqRel) {
            self.shared.notes.wake();
        }
        let permit = self.searches.clone().try_acquire_owned().map_err(|_| SearchError::Busy)?;
        let Some((reader, fields)) = self.shared.view().reader.clone() else { return Ok(vec![]) };
        let found = tokio::task::spawn_blocking(move || {
            let found = search(&reader, fields, &query);
            drop(permit);
            found
        });
        match found.await {
            Ok(Ok(hits)) => Ok(hits),
            Ok(Err(error)) => Err(SearchError::Failed(error.to_string())),
            Err(error) => Err(SearchError::Failed(error.to_string())),
        }
    }

    fn is_behind(&self) -> bool {
        self.shared.behind.load(Ordering::Acquire) || self.shared.notes.dropped().is_some()
    }

    fn status(&self) -> SearchStatus {
        let notes = self.shared.notes.status();
        let since = [notes.waiting_since, self.shared.view().waiting_since];
        let lag = since.into_iter().flatten().min().map(|since| since.elapsed());
        SearchStatus {
            messages: self.shared.messages.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            waiting: notes.waiting,
            dropped: notes.dropped,
            lag_ms: lag.unwrap_or_default().as_millis() as u64,
        }
    }

    async fn close(&self) {
        self.shared.notes.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = tokio::task::spawn_blocking(move || thread.map(JoinHandle::join)).await;
        if !matches!(ended, Ok(Some(Ok(())) | None)) {
            tracing::error!("the search index did not end well; it mends itself at the next start");
        }
    }
}

impl Drop for FullText {
    fn drop(&mut self) {
        self.shared.notes.stop();
    }
}

fn search(reader: &IndexReader, fields: Fields, query: &Query) -> tantivy::Result<Vec<Hit>> {
    let is = |field, text: &str| -> Box<dyn tantivy::query::Query> {
        Box::new(TermQuery::new(Term::from_field_text(field, text), IndexRecordOption::Basic))
    };
    let mut all: Vec<Box<dyn tantivy::query::Query>> = vec![];
    match &query.conversations[..] {
        [one] => {
            all.push(is(fields.conversation, &one.conversation_id));
            if one.after > 0 || one.up_to < u64::MAX {
                let at = |sequence| Term::from_field_u64(fields.sequence, sequence);
                let up_to = Bound::Included(at(one.up_to));
                all.push(Box::new(RangeQuery::new(Bound::Excluded(at(one.after)), up_to)));
            }
        }
        several => {
            let term = |one: &crate::storage::MemberRange| {
                Term::from_field_text(fields.conversation, &one.conversation_id)
            };
            all.push(Box::new(TermSetQuery::new(several.iter().map(term))));
        }
    }
    if let Some(wanted) = terms::Wanted::new(&query.text) {
        for term in wanted.terms() {
            all.push(match term {
                terms::Term::Whole(term) => is(fields.terms, &term),
                // Letters and digits only, which mean themselves.
                terms::Term::Beginning(begin) => {
                    Box::new(RegexQuery::from_pattern(&format!("{begin}.*"), fields.terms)?)
                }
            });
        }
    }
    if !query.sender_id.is_empty() {
        all.push(is(fields.sender, &query.sender_id));
    }
    if !query.types.is_empty() {
        let kind = |kind: &u32| Term::from_field_u64(fields.kind, u64::from(*kind));
        all.push(Box::new(TermSetQuery::new(query.types.iter().map(kind))));
    }
    if query.from_ms != 0 || query.to_ms != 0 {
        let at = |ms| Term::from_field_i64(fields.sent_at_ms, ms);
        let from = if query.from_ms == 0 { i64::MIN } else { query.from_ms };
        let to = if query.to_ms == 0 { i64::MAX } else { query.to_ms };
        all.push(Box::new(RangeQuery::new(Bound::Included(at(from)), Bound::Excluded(at(to)))));
    }
    if query.before != 0 {
        let order = |order| Term::from_field_u64(fields.order, order);
        let below = Bound::Excluded(order(query.before));
        all.push(Box::new(RangeQuery::new(Bound::Included(order(0)), below)));
    }
    let searcher = reader.searcher();
    let newest = TopDocs::with_limit(query.limit.max(1)).order_by_u64_field(ORDER, Order::Desc);
    let all = BooleanQuery::intersection(all);
    let mut hits = vec![];
    let mut columns = HashMap::new();
    for (order, address) in searcher.search(&all, &newest)? {
        let (conversations, sequences) = match columns.entry(address.segment_ord) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let fast = searcher.segment_reader(address.segment_ord).fast_fields();
                unknown.insert((fast.str(CONVERSATION)?, fast.u64(SEQUENCE)?))
            }
        };
        let Some(conversations) = conversations else { continue };
        let mut conversation_id = String::new();
        if let (Some(order), Some(sequence), Some(ordinal)) =
            (order, sequences.first(address.doc_id), conversations.ords().first(address.doc_id))
            && conversations.ord_to_str(ordinal, &mut conversation_id)?
        {
            hits.push(Hit { conversation_id, sequence, order });
        }
    }
    Ok(hits)
}
