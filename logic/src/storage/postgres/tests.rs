//! The promises of every store, on PostgreSQL; and those of several processes on one database: two
//! stores here are as two processes, since nothing but the database is between them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::{AtomicBool, AtomicUsize},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    storage::conformance,
    testing::services::postgres::{PgBouncer, PostgresServer, url},
};

/// An empty, migrated database of a shared server.
pub(super) struct Database {
    pub server: Arc<PostgresServer>,
    pub name: String,
}

impl Database {
    pub async fn new(partitions: u32) -> Self {
        let server = PostgresServer::shared();
        let name = server.database().await;
        migrate(&server.url(&name), partitions).await.expect("migrated");
        Self { server, name }
    }

    pub async fn store(&self) -> PostgresStore {
        PostgresStore::open(Options::new(self.server.url(&self.name))).await.expect("opened")
    }
}

impl conformance::Bed for Database {
    type Store = PostgresStore;

    async fn open(&self) -> PostgresStore {
        self.store().await
    }
}

mod partitioned {
    use super::*;
    conformance::conformance_tests!(Database::new(4).await);
}

/// As on a database that spreads tables by itself.
mod plain {
    use super::*;
    conformance::conformance_tests!(Database::new(0).await);
}

/// The same through PgBouncer, where each transaction may have another server connection.
mod through_pgbouncer {
    use super::*;

    struct Bounced {
        bouncer: PgBouncer,
        database: Database,
    }

    impl Bounced {
        async fn new() -> Self {
            let database = Database::new(4).await;
            Self { bouncer: PgBouncer::start(&database.server), database }
        }
    }

    impl conformance::Bed for Bounced {
        type Store = PostgresStore;

        async fn open(&self) -> PostgresStore {
            let url = self.bouncer.url(&self.database.name);
            PostgresStore::open(Options::new(url)).await.expect("opened")
        }
    }

    conformance::conformance_tests! { Bounced::new().await;
        random_writes_agree_with_the_model,
        concurrent_commits_lose_and_double_nothing,
        everything_is_there_after_reopening,
        undelivered_is_the_newest_of_each_conversation_up_to_as_of,
        expired_content_is_found_and_erased_once,
        pages_of_members_and_receipts_are_bounded_and_whole,
    }
}

fn append(sender: &str, user: &str, id: &str) -> Write {
    conformance::to_user(sender, user, id)
}

fn group(group_id: &str, members: &[&str]) -> Write {
    Write::CreateGroup {
        group_id: group_id.into(),
        name: String::new(),
        avatar: String::new(),
        members: members.iter().map(|id| (*id).to_owned()).collect(),
        members_max: 0,
        created_at_ms: 0,
    }
}

async fn committed(store: &PostgresStore, write: Write) -> Outcome {
    store.commit(vec![write]).await.expect("committed").remove(0)
}

/// Each message begins a chat of its own, so that one that a reader skips is never mentioned again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_who_follows_versions_skips_nothing_of_several_processes() {
    const PROCESSES: usize = 3;
    const CHATS: usize = 150;
    let database = Database::new(4).await;
    let ended = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..PROCESSES)
        .map(|process| {
            let (options, ended) =
                (Options::new(database.server.url(&database.name)), ended.clone());
            tokio::spawn(async move {
                let store = PostgresStore::open(options).await.expect("opened");
                for chat in 0..CHATS {
                    // Commits of different sizes take different times.
                    let others = (0..fastrand::usize(..20)).map(|other| {
                        append(&format!("x{process}"), "y", &format!("{chat}/{other}"))
                    });
                    let mut writes: Vec<Write> = others.collect();
                    writes.push(append(&format!("s{process}-{chat}"), "reader", "1"));
                    store.commit(writes).await.expect("committed");
                }
                ended.fetch_add(1, Ordering::AcqRel);
                store.close().await.expect("closed");
            })
        })
        .collect();
    let reader = database.store().await;
    let (mut since, mut seen) = (0, HashSet::new());
    loop {
        let is_last = ended.load(Ordering::Acquire) == PROCESSES;
        let page = reader.conversations("reader", since, 7).await.expect("read");
        assert!(page.version >= since);
        for row in page.conversations {
            assert!(row.version > since && row.version <= page.version);
            seen.insert(row.user_id);
        }
        since = page.version;
        if is_last && page.complete {
            break;
        }
    }
    for writer in writers {
        writer.await.expect("a writer ended");
    }
    assert_eq!(seen.len(), PROCESSES * CHATS);
    assert_eq!(reader.committed_version().await.expect("read"), since);
    reader.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_processes_share_conversations_without_gaps_doubles_or_deadlocks() {
    const PROCESSES: usize = 3;
    const ROUNDS: usize = 60;
    let database = Database::new(4).await;
    let first = database.store().await;
    let names: Vec<String> = (0..8).map(|n| format!("g{n}")).collect();
    first.commit(names.iter().map(|name| group(name, &["ann"])).collect()).await.expect("made");
    let writers: Vec<_> = (0..PROCESSES)
        .map(|process| {
            let options = Options::new(database.server.url(&database.name));
            let mut names = names.clone();
            tokio::spawn(async move {
                let store = PostgresStore::open(options).await.expect("opened");
                let mut duplicates = 0;
                for round in 0..ROUNDS {
                    fastrand::shuffle(&mut names);
                    // The same messages from all processes, each in another order, and new chats.
                    let mut writes: Vec<Write> = names
                        .iter()
                        .map(|name| conformance::to_group("ann", name, &format!("{name}/{round}")))
                        .collect();
                    writes.push(append("ann", &format!("user {round}"), &format!("u{round}")));
                    writes.push(append("ann", "bob", &format!("{process}/{round}")));
                    for outcome in store.commit(writes).await.expect("committed") {
                        let Outcome::Appended { duplicate, .. } = outcome else {
                            panic!("{outcome:?}")
                        };
                        duplicates += usize::from(duplicate);
                    }
                }
                store.close().await.expect("closed");
                duplicates
            })
        })
        .collect();
    let mut duplicates = 0;
    for writer in writers {
        duplicates += writer.await.expect("a writer ended");
    }
    assert_eq!(duplicates, (PROCESSES - 1) * ROUNDS * (names.len() + 1));
    let expected = |count: usize| (1..=count as u64).collect::<Vec<u64>>();
    for name in &names {
        let id = conversation_id::group(name);
        let page = first.page("ann", &id, 0, 0, 10_000, false).await.expect("read");
        let found: Vec<u64> = page.messages.iter().map(|message| message.sequence).collect();
        assert_eq!(found, expected(ROUNDS));
    }
    let id = conversation_id::single("ann", "bob");
    let page = first.page("ann", &id, 0, 0, 10_000, false).await.expect("read");
    let found: Vec<u64> = page.messages.iter().map(|message| message.sequence).collect();
    assert_eq!(found, expected(PROCESSES * ROUNDS));
    first.close().await.expect("closed");
}

/// A client that sends again through another logic process, even with another target.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_message_sent_to_two_processes_at_once_is_stored_once() {
    let database = Database::new(4).await;
    let stores = [database.store().await, database.store().await];
    for n in 0..60 {
        let id = format!("{n}");
        let (one, other) = tokio::join!(
            stores[0].commit(vec![append("ann", "bob", &id)]),
            stores[1].commit(vec![append("ann", "carol", &id)])
        );
        let of = |outcomes: Result<Vec<Outcome>, StoreError>| match &outcomes.expect("done")[0] {
            Outcome::Appended { message, duplicate, .. } => (message.clone(), *duplicate),
            other => panic!("{other:?}"),
        };
        let ((one, a), (other, b)) = (of(one), of(other));
        assert_eq!(one, other);
        assert!(a != b, "exactly one of them is the duplicate");
    }
    for store in stores {
        store.close().await.expect("closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_another_process_changed_are_known_at_once() {
    let database = Database::new(4).await;
    let (one, other) = (database.store().await, database.store().await);
    committed(&one, group("g", &["ann"])).await;
    for n in 0..20 {
        let user = format!("user {n}");
        assert_eq!(other.members("g:g").await.expect("read").expect("there").len(), 1);
        let users = || vec![user.clone()];
        let added = Write::AddMembers { group_id: "g".into(), user_ids: users() };
        committed(&one, added).await;
        assert_eq!(other.members("g:g").await.expect("read").expect("there").len(), 2);
        let sent = committed(&other, conformance::to_group(&user, "g", "1")).await;
        let Outcome::Appended { recipients, .. } = sent else { panic!("{sent:?}") };
        assert_eq!(recipients.len(), 2);
        let removed = Write::RemoveMembers { group_id: "g".into(), user_ids: users() };
        committed(&other, removed).await;
        let sent = committed(&one, conformance::to_group(&user, "g", "2")).await;
        assert!(matches!(sent, Outcome::Refused { .. }), "{sent:?}");
    }
    assert_eq!(one.committed_version().await.expect("read"), other.version());
    one.close().await.expect("closed");
    other.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_character_may_be_in_a_message_and_in_an_id() {
    let database = Database::new(4).await;
    let store = database.store().await;
    let (user, id) = ("b\0b", "\0\u{ffff}");
    let mut write = append("ann", user, id);
    if let Write::Append { body, .. } = &mut write {
        *body = "nothing\0follows".into();
    }
    let Outcome::Appended { message, .. } = committed(&store, write).await else { panic!() };
    assert_eq!(message.body, "nothing\0follows");
    let found = store.undelivered(user, u64::MAX, 9, 9).await.expect("read");
    assert_eq!(found, [message]);
    // Numbers that no column holds are nobody's.
    let id = conversation_id::single("ann", user);
    let page = store.page(user, &id, u64::MAX - 1, u64::MAX, 9, false).await.expect("read");
    assert!(page.messages.is_empty() && page.complete);
    assert!(store.messages(user, &id, &[u64::MAX]).await.expect("read").is_empty());
    let moved = Write::MoveCursor {
        user_id: user.into(),
        conversation_id: id,
        delivered: u64::MAX,
        read: u64::MAX,
    };
    let Outcome::CursorMoved { read: 1, .. } = committed(&store, moved).await else { panic!() };
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_is_made_once_by_whoever_comes_and_refused_if_it_does_not_fit() {
    let server = PostgresServer::shared();
    let name = server.database().await;
    let url = server.url(&name);
    let error = PostgresStore::open(Options::new(&url)).await.err().expect("refused");
    assert!(error.to_string().contains("run `millrace-logic migrate`"), "{error}");
    let several = futures::future::join_all((0..4).map(|_| migrate(&url, 2))).await;
    for migrated in several {
        assert_eq!(migrated.expect("migrated").to, migrate::NEWEST);
    }
    let newest = migrate::NEWEST;
    let again = migrate(&url, 9).await.expect("nothing to do");
    assert_eq!(again, Migrated { from: newest, to: newest });
    let store = PostgresStore::open(Options::new(&url)).await.expect("opened");
    store.close().await.expect("closed");
    // A newer program that says this one may still run, and one that does not.
    let add = |number: i32, program_min: i32| {
        format!(
            "INSERT INTO millrace.schema_versions (number, name, program_min) \
             VALUES ({number}, 'later', {program_min})"
        )
    };
    server.run(&name, &add(newest + 1, 1)).await;
    let stays = migrate(&url, 2).await.expect("nothing to do");
    assert_eq!(stays, Migrated { from: newest + 1, to: newest + 1 });
    PostgresStore::open(Options::new(&url)).await.expect("opened").close().await.expect("closed");
    server.run(&name, &add(newest + 2, newest + 2)).await;
    let error = PostgresStore::open(Options::new(&url)).await.err().expect("refused");
    assert!(error.to_string().contains("start a newer program"), "{error}");
    assert!(migrate(&url, 2).await.is_err());
}

/// Hands bytes on between a store and the server. Once armed it cuts a connection when a commit was
/// handed to the server, without its answer.
struct Wire {
    port: u16,
    is_armed: Arc<AtomicBool>,
    cuts: Arc<AtomicUsize>,
}

impl Wire {
    async fn before(server: &PostgresServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let is_armed = Arc::new(AtomicBool::new(false));
        let cuts = Arc::new(AtomicUsize::new(0));
        let (armed, cut, to) = (is_armed.clone(), cuts.clone(), server.port());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (armed, cut) = (armed.clone(), cut.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    Self::hand_on(client, server, &armed, &cut).await;
                });
            }
        });
        Self { port, is_armed, cuts }
    }

    async fn hand_on(
        client: TcpStream,
        server: TcpStream,
        is_armed: &AtomicBool,
        cuts: &AtomicUsize,
    ) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let back = tokio::spawn(async move {
            tokio::io::copy(&mut from_server, &mut to_client).await.ok();
        });
        let mut buffer = vec![0; 1 << 20];
        let mut sent: Vec<u8> = vec![];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            sent.extend_from_slice(&buffer[..count]);
            // The end of a transaction that wrote comes behind the mark of its writer. A whole
            // statement: a transaction that begins says READ COMMITTED.
            let has = |bytes: &[u8]| sent.windows(bytes.len()).any(|window| window == bytes);
            let ends = has(b"COMMIT\0");
            if ends
                && has(b"INSERT INTO millrace.writers")
                && is_armed.swap(false, Ordering::AcqRel)
            {
                cuts.fetch_add(1, Ordering::AcqRel);
                back.abort();
                to_server.write_all(&buffer[..count]).await.ok();
                // Until the server has read it; what it says is heard by nobody.
                sleep(Duration::from_millis(200)).await;
                return;
            }
            if ends {
                sent.clear();
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        back.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_lost_is_answered_as_what_it_was() {
    let database = Database::new(4).await;
    let wire = Wire::before(&database.server).await;
    let store =
        PostgresStore::open(Options::new(url(wire.port, &database.name))).await.expect("opened");
    for n in 0..5 {
        wire.is_armed.store(true, Ordering::Release);
        let name = format!("g{n}");
        let writes = vec![
            group(&name, &["ann", "bob"]),
            conformance::to_group("ann", &name, &name),
            append("ann", "bob", &format!("u{n}")),
        ];
        let outcomes = store.commit(writes).await.expect("committed");
        assert_eq!(wire.cuts.load(Ordering::Acquire), n + 1, "the connection was cut");
        assert!(matches!(outcomes[0], Outcome::GroupCreated { .. }), "{outcomes:?}");
        for outcome in &outcomes[1..] {
            assert!(matches!(outcome, Outcome::Appended { duplicate: false, .. }), "{outcome:?}");
        }
        let members = store.members(&conversation_id::group(&name)).await.expect("read");
        assert_eq!(members.map(|members| members.len()), Some(2));
    }
    let id = conversation_id::single("ann", "bob");
    let page = store.page("ann", &id, 0, 0, 100, false).await.expect("read");
    let found: Vec<u64> = page.messages.iter().map(|message| message.sequence).collect();
    assert_eq!(found, [1, 2, 3, 4, 5]);
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_database_under_load_loses_and_doubles_nothing() {
    let mut server = PostgresServer::start();
    let name = server.database().await;
    let url = server.url(&name);
    migrate(&url, 4).await.expect("migrated");
    let store = Arc::new(PostgresStore::open(Options::new(&url)).await.expect("opened"));
    let is_over = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..4)
        .map(|sender| {
            let (store, is_over) = (store.clone(), is_over.clone());
            tokio::spawn(async move {
                let user = format!("sender {sender}");
                let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
                let mut n = 0;
                while !is_over.load(Ordering::Acquire) {
                    n += 1;
                    let id = n.to_string();
                    // A client that is not answered sends again.
                    let message = loop {
                        match store.commit(vec![append(&user, "receiver", &id)]).await {
                            Ok(mut outcomes) => match outcomes.remove(0) {
                                Outcome::Appended { message, .. } => break message,
                                other => panic!("{other:?}"),
                            },
                            Err(StoreError::Unavailable(_)) => {}
                            Err(error) => panic!("{error}"),
                        }
                    };
                    assert!(acknowledged.insert(id, message.sequence).is_none());
                }
                (user, acknowledged)
            })
        })
        .collect();
    for _ in 0..3 {
        let before = store.version();
        server.kill();
        server.start_again();
        // It goes on.
        while store.version() < before + 20 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    is_over.store(true, Ordering::Release);
    for sender in senders {
        let (user, acknowledged) = sender.await.expect("a sender ended");
        let id = conversation_id::single(&user, "receiver");
        let page = store.page("receiver", &id, 0, 0, 1_000_000, false).await.expect("read");
        assert_eq!(page.messages.len(), acknowledged.len(), "{user}");
        for (at, message) in page.messages.iter().enumerate() {
            assert_eq!(message.sequence, at as u64 + 1);
            assert_eq!(acknowledged.get(&message.client_message_id), Some(&message.sequence));
        }
    }
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_an_error_in_bounded_time_and_no_more() {
    let mut server = PostgresServer::start();
    let name = server.database().await;
    let url = server.url(&name);
    migrate(&url, 0).await.expect("migrated");
    let options = Options { attempts_max: 3, ..Options::new(&url) };
    let store = PostgresStore::open(options).await.expect("opened");
    committed(&store, append("ann", "bob", "1")).await;
    server.kill();
    let id = conversation_id::single("ann", "bob");
    let error = store.commit(vec![append("ann", "bob", "2")]).await.expect_err("it is away");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert_eq!(error.code(), millrace_protocol::Code::LogicUnavailable);
    let error = store.page("ann", &id, 0, 0, 9, false).await.expect_err("it is away");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    server.start_again();
    let outcome = committed(&store, append("ann", "bob", "2")).await;
    assert!(matches!(outcome, Outcome::Appended { duplicate: false, .. }), "{outcome:?}");
    assert_eq!(store.page("ann", &id, 0, 0, 9, false).await.expect("read").messages.len(), 2);
    store.close().await.expect("closed");
    let error = store.commit(vec![append("ann", "bob", "3")]).await.expect_err("closed");
    assert!(matches!(error, StoreError::Closed), "{error}");
    assert!(matches!(store.members(&id).await, Err(StoreError::Closed)));
    assert!(matches!(store.close().await, Err(StoreError::Closed)));
}

/// A process that stands still in the middle of a commit, with all locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stands_still_loses_its_locks() {
    let database = Database::new(0).await;
    let url = database.server.url(&database.name);
    let options =
        Options { idle_in_transaction_timeout: Duration::from_millis(300), ..Options::new(&url) };
    let begin = writer::begin_sql(&options);
    let (still, connection) =
        tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("connected");
    tokio::spawn(connection);
    still.batch_execute(&begin).await.expect("begun");
    still.batch_execute("UPDATE millrace.clock SET version = version + 7").await.expect("locked");
    let store = PostgresStore::open(options).await.expect("opened");
    let outcome = committed(&store, append("ann", "bob", "1")).await;
    let Outcome::Appended { version, duplicate: false, .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(version, 1, "what it had begun is undone");
    assert!(still.batch_execute("COMMIT").await.is_err(), "it has no transaction any more");
    store.close().await.expect("closed");
}

/// A group of several senders and targets in one commit, as [`Needs`](wanted::Needs) sees it: what
/// writes ask for in common cases is fetched at once.
#[test]
fn what_common_writes_read_is_known_before() {
    let needs = wanted::Needs::of(
        [
            append("ann", "bob", "1"),
            conformance::to_group("ann", "g", "2"),
            Write::MoveCursor {
                user_id: "bob".into(),
                conversation_id: "g:g".into(),
                delivered: 1,
                read: 0,
            },
            conformance::to_user("ann", &"x".repeat(999), "3"),
        ]
        .iter(),
    );
    let locks: Vec<&str> = needs.locks.iter().map(|id| &id[..]).collect();
    assert_eq!(locks, ["g:g", "s:3:ann:bob"]);
    assert_eq!(needs.wanted.members.len(), 1);
    // Three message ids, the group, and two members.
    assert_eq!(needs.wanted.rows.len(), 6);
}
