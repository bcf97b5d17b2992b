//! What full-text search costs: what a send pays for it, processor time and bytes on the disk for each
//! message that is indexed, and how long a search takes. On the embedded store and the index alone.
//!
//! `cargo run --release -p millrace-logic --example search_index [MESSAGES]`
//!
//! Default: 200,000 messages of 3 to 25 words, half English and half Chinese, in 1,000 conversations, a
//! thousand a commit. Words come by Zipf's law from 20,000 English ones and 3,000 characters.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_logic::{
    search::{
        Query, SearchIndex,
        full_text::{FullText, Options},
    },
    storage::{MemberRange, Outcome, Store, Target, Write, embedded},
};
use millrace_protocol::chat::Message;
use millrace_service::cpu_time;
use uuid::Uuid;

type Failure = Box<dyn Error>;

const CONVERSATIONS: usize = 1_000;
const BATCH: usize = 1_000;
const SEARCHES: usize = 200;

/// Texts that repeat in every run.
struct Texts(fastrand::Rng);

impl Texts {
    /// By Zipf's law, nearly: the logarithm is spread evenly.
    fn rank(&mut self, count: usize) -> usize {
        (count as f64).powf(self.0.f64()) as usize
    }

    fn english(&mut self) -> String {
        let rank = self.rank(20_000);
        let mut word = String::new();
        let mut rest = rank * 7 + 26;
        while rest > 0 {
            word.push(char::from(b'a' + (rest % 26) as u8));
            rest /= 26;
        }
        word
    }

    fn chinese(&mut self) -> char {
        char::from_u32(0x4e00 + self.rank(3_000) as u32).unwrap_or('中')
    }

    fn text(&mut self) -> String {
        let count = self.0.usize(3..=25);
        match self.0.bool() {
            true => (0..count).map(|_| self.english()).collect::<Vec<_>>().join(" "),
            false => (0..count).map(|_| self.chinese()).collect(),
        }
    }
}

fn main() -> Result<(), Failure> {
    let messages: usize = std::env::args().nth(1).map_or(Ok(200_000), |count| count.parse())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let lines = runtime.block_on(measure(messages))?;
    std::io::Write::write_all(&mut std::io::stdout(), (lines.join("\n") + "\n").as_bytes())?;
    Ok(())
}

/// Processor time of the whole process, which does nothing else while it is asked for.
fn spent() -> Duration {
    cpu_time::of_process(None).unwrap_or_default()
}

async fn caught_up(index: &FullText, messages: usize) {
    while index.is_behind() || index.status().messages < messages as u64 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn measure(messages: usize) -> Result<Vec<String>, Failure> {
    let folder = tempfile::tempdir()?;
    let options = embedded::Options {
        free_bytes_min: 0,
        ..embedded::Options::new(folder.path().join("data"))
    };
    let store = Arc::new(embedded::EmbeddedStore::open(options)?);
    let options = Options {
        messages_per_second_max: u32::MAX,
        notes_queued_max: usize::MAX,
        notes_queued_bytes_max: usize::MAX,
        ..Options::new(folder.path().join("search"))
    };
    let index = FullText::start(options, store.clone())?;
    let mut texts = Texts(fastrand::Rng::with_seed(1));
    let mut lines = vec![];
    let half = messages / 2;
    let mut bytes = 0;
    for searched in [false, true] {
        let began = Instant::now();
        let stored = store_some(&store, &mut texts, half, &mut bytes).await?;
        lines.push(line("commits, for comparison", began.elapsed(), half));
        let (began, cpu) = (Instant::now(), spent());
        for (message, version) in &stored {
            index.stored(message, *version);
        }
        let what = if searched { "somebody" } else { "nobody" };
        lines.push(line(
            &format!("what a send pays once {what} has searched"),
            began.elapsed(),
            half,
        ));
        if searched {
            caught_up(&index, messages).await;
            lines.push(line("indexing, time", began.elapsed(), half));
            lines.push(line("indexing, processor time", spent() - cpu, half));
        } else {
            index.search(question("", 1)).await?;
            caught_up(&index, half).await;
            lines.push(line("building the index, time", began.elapsed(), half));
            lines.push(line("building the index, processor time", spent() - cpu, half));
        }
    }
    let stored = half * 2;
    let size = index.status().bytes;
    lines.push(format!("{:>9.1} bytes a message of index", size as f64 / stored as f64));
    lines.push(format!("{:>9.1} bytes a message of text", bytes as f64 / stored as f64));
    for (what, conversations) in
        [("one conversation", 1), ("a hundred", 100), ("all", CONVERSATIONS)]
    {
        for text in ["", "word", "w", "中文", "一"] {
            let mut took = vec![];
            for _ in 0..SEARCHES {
                let began = Instant::now();
                index.search(question(text, conversations)).await?;
                took.push(began.elapsed());
            }
            took.sort_unstable();
            let ms = |at: usize| took[at].as_secs_f64() * 1e3;
            let (half, most) = (ms(SEARCHES / 2), ms(SEARCHES * 99 / 100));
            lines
                .push(format!("{half:>9.2} ms, p99 {most:.2} ms: a search for {text:?} in {what}"));
        }
    }
    index.close().await;
    store.close().await?;
    Ok(lines)
}

/// Stores messages and returns them with their versions.
async fn store_some(
    store: &embedded::EmbeddedStore,
    texts: &mut Texts,
    count: usize,
    bytes: &mut usize,
) -> Result<Vec<(Message, u64)>, Failure> {
    let mut stored = vec![];
    while stored.len() < count {
        let writes = (stored.len()..count).take(BATCH).map(|n| {
            let conversation = texts.0.usize(..CONVERSATIONS);
            let body = texts.text();
            *bytes += body.len();
            Write::Append {
                message_id: Uuid::now_v7(),
                sender_id: format!("user-{conversation}"),
                client_message_id: texts.0.u64(..).to_string(),
                target: Target::User("everybody".into()),
                kind: 1,
                body,
                attachment: None,
                does_not_count: false,
                sent_at_ms: 1_700_000_000_000 + n as i64,
                extras: None,
            }
        });
        for outcome in store.commit(writes.collect()).await? {
            let Outcome::Appended { message, version, .. } = outcome else {
                return Err(format!("not stored: {outcome:?}").into());
            };
            stored.push((message, version));
        }
    }
    Ok(stored)
}

fn question(text: &str, conversations: usize) -> Query {
    let range = |n: usize| MemberRange {
        conversation_id: millrace_logic::storage::conversation_id::single(
            &format!("user-{n}"),
            "everybody",
        ),
        after: 0,
        up_to: u64::MAX,
    };
    Query {
        conversations: (0..conversations).map(range).collect(),
        text: text.into(),
        limit: 200,
        ..Query::default()
    }
}

fn line(what: &str, time: Duration, count: usize) -> String {
    format!("{:>9.2} us a message: {what}", time.as_secs_f64() * 1e6 / count.max(1) as f64)
}
