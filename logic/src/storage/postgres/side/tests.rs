//! What is kept beside the messages, on PostgreSQL: the suites of the embedded store's tables, and what
//! several processes on one database see of each other. Two stores here are as two processes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::super::{PostgresStore, migrate, tests::Database};
use crate::{
    accounts::{FriendsPolicy, PolicySettings, ProfileNames},
    chat::{Profiles as _, SendGate as _},
    notices::{self, Audience, NewNotice, NoticeLimits, NoticeStore, NoticeTables, Stored},
    push::{ProviderKind, Token, TokenStore as _, TokenTable},
    rooms::{RoomDirectory, RoomError, RoomLimits, RoomSettings, RoomTable},
    storage::{
        Revocations as _, Store as _, StoreError, Target,
        accounts::{self, Account, AccountStore as _, ProfileChange},
        attachments,
        conformance::revocations,
        postgres::Options,
        relations::{self, Act, RelationLimits, RelationStore},
        side::{
            AccountTable, AttachmentTable, Cursor, Follow as _, GroupWrites, RelationTable,
            RevocationTable, SideTable, Sides as _,
        },
    },
    testing::services::postgres::PostgresServer,
};

/// A database, and the store that was opened on it last.
struct Home {
    database: Database,
    store: Mutex<Option<Arc<PostgresStore>>>,
}

impl Home {
    async fn new() -> Self {
        Self { database: Database::new(0).await, store: Mutex::default() }
    }

    /// Closes what was opened before.
    async fn store(&self) -> Arc<PostgresStore> {
        let earlier = self.store.lock().unwrap().take();
        if let Some(earlier) = earlier {
            earlier.close().await.expect("closed");
        }
        let store = Arc::new(self.database.store().await);
        *self.store.lock().unwrap() = Some(store.clone());
        store
    }

    /// Makes tables that only a test has.
    async fn add(&self, name: &str) {
        let sql = format!(
            "{}; INSERT INTO millrace.sides (name, version) VALUES ('{name}', 0)",
            migrate::side_table(name).trim_end_matches(';')
        );
        self.database.server.run(&self.database.name, &sql).await;
    }
}

mod account_table {
    use super::*;

    impl accounts::conformance::Bed for Home {
        type Store = AccountTable;

        async fn open(&self) -> AccountTable {
            AccountTable::open(&*self.store().await).await.expect("opened")
        }
    }

    accounts::conformance::account_store_conformance_tests!(Home::new().await);
}

mod relation_table {
    use super::*;

    impl relations::conformance::Bed for Home {
        type Store = RelationTable;

        async fn open(&self) -> RelationTable {
            RelationTable::open(&*self.store().await).await.expect("opened")
        }
    }

    relations::conformance::relation_store_conformance_tests!(Home::new().await);
}

mod attachment_table {
    use super::*;

    impl attachments::conformance::Bed for Home {
        type Store = AttachmentTable;

        async fn open(&self) -> AttachmentTable {
            AttachmentTable::open(&*self.store().await).expect("opened")
        }
    }

    attachments::conformance::attachment_store_conformance_tests!(Home::new().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_of_revocations() {
    let home = Home::new().await;
    let store = home.store().await;
    let table = RevocationTable::open(&*store).await.expect("opened");
    revocations::run(&table).await;
    store.close().await.expect("closed");
    assert!(matches!(table.of("alice").await, Err(StoreError::Closed)));
    let later = revocations::revocation(i64::MAX, None);
    assert!(matches!(table.revoke("alice", later).await, Err(StoreError::Closed)));
}

mod notice_tables {
    use super::*;

    pub struct Opened {
        store: PostgresStore,
        notices: NoticeTables,
    }

    impl notices::conformance::Bed for Database {
        type Store = Opened;

        async fn open(&self, limits: NoticeLimits) -> Opened {
            let store = self.store().await;
            let notices = NoticeTables::open(&store, limits).await.expect("opened");
            Opened { store, notices }
        }

        async fn close(&self, Opened { store, notices }: Opened) {
            notices.close().await.expect("closed");
            store.close().await.expect("closed");
        }

        fn notices(store: &Opened) -> &dyn NoticeStore {
            &store.notices
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_the_contract_of_notices() {
        notices::conformance::run(async || Database::new(0).await).await;
    }
}

async fn add_one(table: &SideTable) {
    let add = table.write(|rows| {
        let n = rows.get(b"n")?.map_or(0, |n| u64::from_be_bytes(n.try_into().unwrap()));
        rows.put(b"n".to_vec(), (n + 1).to_be_bytes().to_vec());
        Ok(())
    });
    add.await.expect("written");
}

async fn count(table: &SideTable) -> u64 {
    let n = table.read(|rows| rows.get(b"n")).await.expect("read");
    n.map_or(0, |n| u64::from_be_bytes(n.try_into().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_several_processes_happen_one_after_another() {
    let home = Home::new().await;
    home.add("counters").await;
    let mut tasks = vec![];
    let mut stores = vec![];
    for _ in 0..3 {
        let store = home.database.store().await;
        let table = store.side("counters").expect("opened");
        tasks.extend((0..20).map(|_| {
            let table = table.clone();
            tokio::spawn(async move { add_one(&table).await })
        }));
        stores.push(store);
    }
    for task in tasks {
        task.await.expect("a task");
    }
    let table = stores[0].side("counters").expect("opened");
    assert_eq!(count(&table).await, 60);
    // A change that is refused leaves nothing, whoever shares its transaction.
    let refused = table.write(|rows| {
        rows.remove(b"n".to_vec());
        Err::<(), _>(StoreError::NotFound)
    });
    let (refused, ()) = tokio::join!(refused, add_one(&table));
    assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
    assert_eq!(count(&table).await, 61);
    for store in stores {
        store.close().await.expect("closed");
    }
    assert!(matches!(table.read(|_| Ok(())).await, Err(StoreError::Closed)));
    assert!(matches!(table.write(|_| Ok(())).await, Err(StoreError::Closed)));
}

/// Against a map: what is written and removed, ranges longer than a page, and what a change sees of
/// those before it in the same transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_those_of_a_sorted_map() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let home = Home::new().await;
    home.add("counters").await;
    let store = home.store().await;
    let group = Arc::new(store.side_group("counters", &["one", "two"]).expect("opened"));
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let key = |random: &mut fastrand::Rng| vec![b'k', random.u8(..9), random.u8(..)];
    for round in 0..12_u8 {
        let changes: Vec<(Vec<u8>, Option<Vec<u8>>)> = (0..random.usize(..400))
            .map(|_| (key(&mut random), (random.u8(..4) > 0).then(|| vec![round])))
            .collect();
        for (key, value) in &changes {
            match value {
                Some(value) => drop(model.insert(key.clone(), value.clone())),
                None => drop(model.remove(key)),
            }
        }
        // Several at once, of which some share a transaction; each sees those before it.
        let change = move |rows: &mut GroupWrites<'_>| {
            for (key, value) in changes {
                match value {
                    Some(value) => rows.put(1, key, value),
                    None => rows.remove(1, key),
                }
            }
            Ok::<_, StoreError>(())
        };
        let (from, prefix) = (key(&mut random), random.u8(..9));
        let expected: Vec<_> = model
            .range(vec![b'k', prefix]..)
            .filter(|(key, _)| key[1] == prefix && (from[1] != prefix || **key >= from))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let seen = {
            let from = if from[1] == prefix { from } else { vec![] };
            move |rows: &mut GroupWrites<'_>| {
                let mut seen = vec![];
                rows.scan(1, &[b'k', prefix], &from, |key, value| {
                    seen.push((key.to_vec(), value.to_vec()));
                    Ok(true)
                })?;
                assert_eq!(rows.get(0, b"k")?, None, "the other table is another");
                Ok::<_, StoreError>(seen)
            }
        };
        let (changed, seen) = tokio::join!(group.write(change), group.write(seen));
        changed.expect("written");
        assert_eq!(seen.expect("read"), expected, "round {round}");
        let all = group.read(|rows| {
            let mut all = BTreeMap::new();
            rows.scan(1, b"", b"", |key, value| {
                all.insert(key.to_vec(), value.to_vec());
                Ok(true)
            })?;
            Ok::<_, StoreError>(all)
        });
        assert_eq!(all.await.expect("read"), model, "round {round}");
    }
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_are_what_was_written_once_each_and_never_skipped() {
    let home = Home::new().await;
    home.add("counters").await;
    let stores = [home.database.store().await, home.database.store().await];
    let reader = stores[0].side("counters").expect("opened");
    let mut cursor = reader.cursor().await.expect("read");
    assert_eq!(reader.news(&mut cursor).await.expect("read"), []);
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = stores
        .iter()
        .enumerate()
        .map(|(process, store)| {
            let table = store.side("counters").expect("opened");
            tokio::spawn(async move {
                for n in 0..60_u8 {
                    let put = table.write(move |rows| {
                        (0..n % 7).for_each(|i| rows.put(vec![process as u8, n, i], vec![n]));
                        rows.put(vec![process as u8, n], vec![n]);
                        Ok(())
                    });
                    put.await.expect("written");
                }
            })
        })
        .collect();
    let over = is_over.clone();
    let written = tokio::spawn(async move {
        for writer in writers {
            writer.await.expect("a writer");
        }
        over.store(true, std::sync::atomic::Ordering::Release);
    });
    let mut found: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    loop {
        let was_over = is_over.load(std::sync::atomic::Ordering::Acquire);
        let news = reader.news(&mut cursor).await.expect("read");
        if news.is_empty() && was_over {
            break;
        }
        for row in news {
            *found.entry(row.key).or_default() += 1;
        }
    }
    written.await.expect("all writers");
    let each = |n: u64| 1 + n % 7;
    assert_eq!(found.len() as u64, 2 * (0..60).map(each).sum::<u64>());
    assert!(found.values().all(|times| *times == 1), "{found:?}");
    // From the beginning it is all of it again.
    let mut from_the_start = Cursor::default();
    let all = reader.news(&mut from_the_start).await.expect("read");
    assert_eq!((all.len(), from_the_start), (found.len(), cursor));
}

fn account(user_id: &str, name: &str) -> Account {
    Account { user_id: user_id.into(), name: name.into(), ..Account::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_takes_in_what_another_has_changed() {
    let database = Database::new(0).await;
    let (here, there) = (database.store().await, database.store().await);

    // Who logged out everywhere.
    let revocations = RevocationTable::open(&here).await.expect("opened");
    let theirs = RevocationTable::open(&there).await.expect("opened");
    theirs.revoke("alice", revocations::revocation(7, None)).await.expect("stored");
    assert_eq!(revocations.of("alice").await.expect("read"), None, "not heard of yet");
    revocations.follow().await.expect("followed");
    let known = revocations.of("alice").await.expect("read").expect("heard of");
    assert_eq!(known.issued_before_ms, 7);

    // Who blocks whom, and who is whose friend.
    let relations: Arc<dyn RelationStore> =
        Arc::new(RelationTable::open(&here).await.expect("opened"));
    let settings = PolicySettings::default();
    let policy = FriendsPolicy::new(relations, settings).await.expect("opened");
    let theirs = RelationTable::open(&there).await.expect("opened");
    let bob = Target::User("bob".into());
    for (act, refused) in [(Act::Block, true), (Act::Unblock, false), (Act::Block, true)] {
        theirs.act("bob", "eve", act, RelationLimits::default(), 1).await.expect("stored");
        policy.follow().await.expect("followed");
        assert!(policy.needs_check("eve", &bob, None));
        assert_eq!(policy.check("eve", &bob, &mut None).await.is_err(), refused);
    }

    // Names.
    let accounts = Arc::new(AccountTable::open(&here).await.expect("opened"));
    let names = ProfileNames::new(accounts, 1 << 20).await.expect("opened");
    assert!(!names.any());
    let theirs = AccountTable::open(&there).await.expect("opened");
    assert!(theirs.create(account("carol", "Carol")).await.expect("stored"));
    names.follow().await.expect("followed");
    assert!(names.any());
    assert_eq!(names.profiles(vec!["carol".into()]).await[0].name, "Carol");
    let change = ProfileChange { name: Some("Caroline".into()), ..ProfileChange::default() };
    theirs.update("carol", change, 2).await.expect("stored");
    names.follow().await.expect("followed");
    assert_eq!(names.profiles(vec!["carol".into()]).await[0].name, "Caroline");

    // Tokens for offline push.
    let tokens = TokenTable::open(&here).await.expect("opened");
    let theirs = TokenTable::open(&there).await.expect("opened");
    let token = |device_id: &str, token: &str| Token {
        device_id: device_id.into(),
        provider: ProviderKind::Webhook,
        token: token.into(),
        app_id: String::new(),
        registered_at_ms: 1,
    };
    theirs.put("dora", token("phone", "t")).await.expect("stored");
    assert!(!tokens.may_have("dora"));
    tokens.follow().await.expect("followed");
    assert!(tokens.may_have("dora"));
    assert_eq!(tokens.of("dora").await.expect("read"), [token("phone", "t")]);
    // One process removes what the other has put; nobody is passed over for that.
    theirs.put("emil", token("pad", "u")).await.expect("stored");
    assert!(tokens.remove("dora", "phone", None).await.expect("removed"));
    tokens.follow().await.expect("followed");
    assert!(tokens.may_have("emil"));

    here.close().await.expect("closed");
    there.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notices_of_one_process_wait_for_users_of_another() {
    let database = Database::new(0).await;
    let (here, there) = (database.store().await, database.store().await);
    let limits = NoticeLimits { notices_max: 3, ..NoticeLimits::default() };
    let notices = NoticeTables::open(&here, limits).await.expect("opened");
    let theirs = NoticeTables::open(&there, limits).await.expect("opened");
    let new = |notice_id: &str, audience: Audience| NewNotice {
        notice: millrace_protocol::chat::Notice {
            notice_id: notice_id.into(),
            r#type: 1,
            body: "body".into(),
            sent_at_ms: 1_000,
        },
        audience,
        expires_at_ms: 5_000,
        collapse_key: String::new(),
    };
    let is_new = |stored: Stored| matches!(stored, Stored::New { .. });
    let ann = Audience::Users(vec!["ann".into()]);
    assert!(is_new(theirs.store(new("n1", ann.clone())).await.expect("stored")));
    notices.follow().await.expect("followed");
    assert!(notices.may_have_pending("ann") && !notices.is_empty());
    assert!(!notices.may_have_pending("somebody else"));
    assert!(is_new(theirs.store(new("n2", Audience::Everyone)).await.expect("stored")));
    notices.follow().await.expect("followed");
    let pending = notices.pending(vec!["ann".into(), "bob".into()], 2_000).await.expect("read");
    let ids = |notices: &[millrace_protocol::chat::Notice]| -> Vec<String> {
        notices.iter().map(|notice| notice.notice_id.clone()).collect()
    };
    assert_eq!(
        (ids(&pending[0]), ids(&pending[1])),
        (vec!["n1".into(), "n2".into()], vec!["n2".into()])
    );
    // An id is kept once over all processes, and the bound counts what all of them keep.
    assert!(matches!(notices.store(new("n1", ann.clone())).await, Ok(Stored::Duplicate(_))));
    assert!(is_new(notices.store(new("n3", ann.clone())).await.expect("stored")));
    notices.follow().await.expect("followed");
    assert!(matches!(notices.store(new("n4", ann.clone())).await, Ok(Stored::Full(_))));
    // What one forgets makes room for the others.
    while theirs.expire(i64::MAX / 2).await.expect("forgotten") {}
    notices.follow().await.expect("followed");
    assert!(is_new(notices.store(new("n4", ann)).await.expect("stored")));
    here.close().await.expect("closed");
    there.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_are_the_same_in_every_process() {
    let database = Database::new(0).await;
    let (here, there) = (database.store().await, database.store().await);
    let open = async |store: &PostgresStore| {
        let rooms = Arc::new(RoomTable::open(store).await.expect("opened"));
        RoomDirectory::open(rooms, RoomLimits::default()).await.expect("read")
    };
    let (rooms, theirs) = (open(&here).await, open(&there).await);
    let room =
        RoomSettings { name: "a room".into(), members_max: 3, closed: true, created_at_ms: 7 };
    let ids = |ids: &[&str]| -> Vec<String> { ids.iter().map(|id| (*id).to_owned()).collect() };
    theirs.create("r", room.clone(), &ids(&["ann", "bob"])).await.expect("made");
    // Who changes something knows what the others have done before.
    let again = rooms.create("r", room.clone(), &[]).await;
    assert!(matches!(again, Err(RoomError::AlreadyExists)));
    assert_eq!(rooms.get("r"), Some((room.clone(), 2)));
    assert_eq!(rooms.add("r", &ids(&["ann", "cid"])).await.expect("added"), ["cid"]);
    assert!(matches!(theirs.add("r", &ids(&["dan"])).await, Err(RoomError::Full(_))));
    assert_eq!(theirs.take("r", &ids(&["bob"])).await.expect("taken"), ["bob"]);
    assert!(rooms.may_join("r", "bob"), "not heard of yet");
    rooms.follow().await.expect("followed");
    assert!(!rooms.may_join("r", "bob") && rooms.may_join("r", "cid"));
    assert!(rooms.rooms_of("bob").is_empty());
    rooms.remove("r").await.expect("removed");
    theirs.follow().await.expect("followed");
    assert_eq!((theirs.get("r"), theirs.rooms_of("ann").len()), (None, 0));
    // Made anew it has only whom it was made with, also for who starts now.
    theirs.create("r", room.clone(), &ids(&["ann"])).await.expect("made");
    rooms.follow().await.expect("followed");
    assert_eq!(rooms.accounts("r", "", 9), [Arc::<str>::from("ann")]);
    let late = open(&here).await;
    assert_eq!(
        (late.get("r"), late.accounts("r", "", 9)),
        (Some((room, 1)), vec![Arc::<str>::from("ann")])
    );
    here.close().await.expect("closed");
    there.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beside_the_messages_outlives_a_restart_of_the_database() {
    let mut server = PostgresServer::start();
    let name = server.database().await;
    let url = server.url(&name);
    migrate(&url, 0).await.expect("migrated");
    let options = Options { give_up_after: Duration::from_millis(500), ..Options::new(&url) };
    let store = PostgresStore::open(options).await.expect("opened");
    let table = AccountTable::open(&store).await.expect("opened");
    assert!(table.create(account("ann", "Ann")).await.expect("stored"));
    server.kill();
    let error = table.create(account("bob", "Bob")).await.expect_err("it is away");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let error = table.accounts(vec!["ann".into()]).await.expect_err("it is away");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    server.start_again();
    let found = table.accounts(vec!["ann".into(), "bob".into()]).await.expect("read");
    assert_eq!(found[0].as_ref().map(|account| &account.name[..]), Some("Ann"));
    assert_eq!(found[1], None, "nothing of it was done");
    assert!(table.create(account("bob", "Bob")).await.expect("stored"));
    store.close().await.expect("closed");
}
