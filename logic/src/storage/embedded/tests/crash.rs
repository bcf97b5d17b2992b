//! What is left after kill -9, a torn journal and a disk that fails. The writers are child
//! processes of this very test program, so that nothing of them survives but their files.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::*;
use crate::storage::{
    conformance::{to_group, to_user},
    conversation_id,
};

/// Tells the child where to write and what to call its messages.
const DIRECTORY: &str = "MILLRACE_TEST_STORE_DIRECTORY";
const NAME: &str = "MILLRACE_TEST_STORE_NAME";

/// What a child said it was told: sender, client message id, conversation, sequence.
type Acknowledged = (String, String, String, u64);

fn create_group() -> Write {
    Write::CreateGroup {
        group_id: "g".into(),
        name: String::new(),
        avatar: String::new(),
        members: (0..8).map(|n| format!("user{n}")).collect(),
        members_max: 0,
        created_at_ms: 0,
    }
}

/// Several senders, each message sent again now and then, every acknowledgement printed after it
/// came. Ends by being killed, or with "failed" when a commit fails, or when it has written enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child process of the other tests of this file"]
async fn child() {
    let (Ok(directory), Ok(name)) = (std::env::var(DIRECTORY), std::env::var(NAME)) else {
        return;
    };
    let large = name.starts_with("large");
    // Whatever goes wrong, a child must not fill the disk: 51 MB, or 40 MB of small messages.
    let messages_max = if large { 200 } else { 20_000 };
    // Large messages are for filling the journal, so nothing may be moved out of it.
    let memtable_bytes_max = if large { 1 << 30 } else { 1 << 20 };
    let options = Options { memtable_bytes_max, ..options(Path::new(&directory)) };
    let store = Arc::new(EmbeddedStore::open(options).unwrap());
    store.commit(vec![create_group()]).await.unwrap();
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let (store, name) = (store.clone(), name.clone());
            tokio::spawn(async move {
                for n in 0..messages_max {
                    let id = format!("{name}/{n}");
                    let user = format!("user{sender}");
                    let mut write = match n % 3 {
                        0 => to_group(&user, "g", &id),
                        _ => to_user(&user, &format!("user{}", (sender + n) % 8), &id),
                    };
                    if let (Write::Append { body, .. }, true) = (&mut write, large) {
                        *body = "x".repeat(32 << 10);
                    }
                    let writes = vec![write; if n % 5 == 0 { 2 } else { 1 }];
                    let Ok(outcomes) = store.commit(writes).await else {
                        say("failed");
                        return;
                    };
                    for outcome in outcomes {
                        let Outcome::Appended { message, .. } = outcome else {
                            panic!("{outcome:?}")
                        };
                        let conversation_id = message.conversation_id;
                        say(&format!("{user} {id} {conversation_id} {}", message.sequence));
                    }
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{line}").unwrap();
    out.flush().unwrap();
}

fn start(directory: &Path, name: &str, mut command: Command) -> Child {
    command
        .args(["--exact", "storage::embedded::tests::crash::child"])
        .args(["--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .env(NAME, name)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn acknowledged(line: &str) -> Option<Acknowledged> {
    let mut words = line.split(' ');
    let sender = words.next().filter(|word| word.starts_with("user"))?;
    let (id, conversation_id) = (words.next()?, words.next()?);
    // The kill may cut the last line short; a sequence without its newline is not believed.
    let sequence = words.next()?.strip_suffix('\n')?.parse().ok()?;
    Some((sender.into(), id.into(), conversation_id.into(), sequence))
}

/// Reads what a child says until `enough`, then kills it and reads the rest.
fn listen(mut child: Child, enough: usize) -> (HashSet<Acknowledged>, bool) {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let (mut all, mut failed, mut killed) = (HashSet::new(), false, false);
    let mut line = String::new();
    while out.read_line(&mut line).unwrap() > 0 {
        failed |= line == "failed\n";
        all.extend(acknowledged(&line));
        line.clear();
        if all.len() >= enough && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    (all, failed)
}

/// Everything acknowledged is there, once, under its sequence; sequences have no gaps; retries find
/// the first attempt.
async fn verify(directory: &Path, all: &HashSet<Acknowledged>) -> usize {
    let store = EmbeddedStore::open(options(directory)).unwrap();
    let mut conversations = HashSet::from([conversation_id::group("g")]);
    for a in 0..8 {
        for b in 0..8 {
            conversations.insert(conversation_id::single(&format!("user{a}"), &format!("user{b}")));
        }
    }
    let mut stored: HashMap<(String, String), (String, u64)> = HashMap::new();
    for id in conversations {
        let Some(members) = store.members(&id).await.unwrap() else { continue };
        let page = store.page(&members[0], &id, 0, 0, usize::MAX, false).await.unwrap();
        for (index, message) in page.messages.into_iter().enumerate() {
            assert_eq!(message.sequence, index as u64 + 1, "a gap in {id}");
            let key = (message.sender_id, message.client_message_id);
            let twice = stored.insert(key, (id.clone(), message.sequence));
            assert_eq!(twice, None, "stored twice");
        }
    }
    for (sender, id, conversation_id, sequence) in all {
        let found = stored.get(&(sender.clone(), id.clone()));
        assert_eq!(found, Some(&(conversation_id.clone(), *sequence)), "{sender} {id} is lost");
    }
    for (sender, id, _, sequence) in all.iter().take(100) {
        let outcomes = store.commit(vec![to_user(sender, "other", id)]).await.unwrap();
        let [Outcome::Appended { message, duplicate: true, .. }] = &outcomes[..] else {
            panic!("{outcomes:?}")
        };
        assert_eq!(message.sequence, *sequence);
    }
    store.close().await.unwrap();
    stored.len()
}

#[tokio::test]
async fn kill_9_loses_nothing_acknowledged_and_stores_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let mut all = HashSet::new();
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    for round in 0..12 {
        let command = Command::new(std::env::current_exe().unwrap());
        let child = start(directory.path(), &format!("round{round}"), command);
        let (acknowledged, failed) = listen(child, random.usize(1..1_500));
        assert!(!failed && !acknowledged.is_empty());
        all.extend(acknowledged);
        let stored = verify(directory.path(), &all).await;
        println!("round {round}: {} acknowledged, {stored} stored", all.len());
    }
}

#[tokio::test]
async fn a_failing_disk_acknowledges_nothing_and_the_next_start_mends_it() {
    let directory = tempfile::tempdir().unwrap();
    EmbeddedStore::open(options(directory.path())).unwrap().close().await.unwrap();
    // The journal is there; writing beyond 4 MiB fails, as on a disk that fills up meanwhile.
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"trap "" XFSZ; ulimit -f 8192; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap());
    let (all, failed) = listen(start(directory.path(), "large", command), usize::MAX);
    assert!(failed, "the limit was not met");
    assert!(all.len() > 50, "{} acknowledged", all.len());
    verify(directory.path(), &all).await;
    let command = Command::new(std::env::current_exe().unwrap());
    let (more, failed) = listen(start(directory.path(), "after", command), 100);
    assert!(!failed && more.len() >= 100);
    verify(directory.path(), &all.union(&more).cloned().collect()).await;
}

fn journal(directory: &Path) -> PathBuf {
    let entries = std::fs::read_dir(directory.join("data")).unwrap();
    let mut journals: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .collect();
    journals.sort();
    journals.pop().expect("the engine has a journal")
}

#[tokio::test]
async fn a_torn_commit_disappears_as_a_whole() {
    // The journal is longer than what was written into it; the rest is zeros.
    let written = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    for torn_bytes in [1, 5, 60, 400] {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(options(directory.path())).unwrap();
        store.commit(vec![append("a", "b", "1"), append("a", "b", "2")]).await.unwrap();
        store.commit(vec![append("a", "b", "3"), append("a", "b", "4")]).await.unwrap();
        let version = store.version();
        let last: Vec<Write> = (5..20).map(|n| append("a", "b", &n.to_string())).collect();
        store.commit(last).await.unwrap();
        store.close().await.unwrap();

        let path = journal(directory.path());
        let mut bytes = std::fs::read(&path).unwrap();
        let end = written(&bytes);
        bytes[end - torn_bytes..end].fill(0);
        std::fs::write(&path, bytes).unwrap();

        let store = EmbeddedStore::open(options(directory.path())).unwrap();
        assert_eq!(store.version(), version);
        let id = conversation_id::single("a", "b");
        let page = store.page("a", &id, 0, 0, 100, false).await.unwrap();
        assert_eq!(page.messages.len(), 4, "torn by {torn_bytes} bytes");
        let outcomes = store.commit(vec![append("a", "b", "5")]).await.unwrap();
        let [Outcome::Appended { message, duplicate: false, .. }] = &outcomes[..] else {
            panic!("{outcomes:?}")
        };
        assert_eq!(message.sequence, 5);
        store.close().await.unwrap();
        let store = EmbeddedStore::open(options(directory.path())).unwrap();
        let page = store.page("a", &id, 0, 0, 100, false).await.unwrap();
        assert_eq!(page.messages.len(), 5, "what is written after a mend stays");
        store.close().await.unwrap();
    }
}
