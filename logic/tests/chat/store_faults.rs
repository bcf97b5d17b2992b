//! A store that fails or stalls: nothing is acknowledged that was not stored, and a stall pushes
//! back on the gateways instead of filling memory.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use millrace_logic::{
    bus::{EmbeddedBus, EmbeddedBusSettings},
    chat::{Chat, ChatSettings, Foundation, NoProfiles, NoWords, OpenPresence, OpenRooms},
    login::{ClaimRules, Hs256Verifier},
    notices::{NoticeLimits, NoticeTables},
    registry::{MemoryRegistry, MemoryRegistrySettings, Registry},
    rooms::{RoomDirectory, RoomLimits, RoomTable},
    storage::{
        Changes, ConversationPage, MemberRange, Members, Outcome, Page, Store, StoreError, Write,
        embedded::{EmbeddedStore, Options},
        groups::{GroupStore, JoinRequestPage, MemberPage, ReceiptFilter, ReceiptPage, Role},
        side::RevocationTable,
    },
};
use millrace_logic_sdk::{Server, ServerSettings, testing::FakeGateway};
use millrace_protocol::{Code, chat, command, session};
use prost::Message as _;
use tokio::sync::Semaphore;

use crate::world::{Clients, QUIET, SECRET, request_id, to_user};

/// The embedded store with a hand on its commits.
struct Handled {
    inner: EmbeddedStore,
    full: AtomicBool,
    broken: AtomicBool,
    /// Each commit takes a permit for ever.
    commits: Semaphore,
}

#[async_trait]
impl Store for Handled {
    async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, StoreError> {
        self.commits.acquire().await.expect("never closed").forget();
        if self.full.load(Ordering::Relaxed) {
            return Err(StoreError::Full("no space".to_owned()));
        }
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Failed("broken".to_owned()));
        }
        self.inner.commit(writes).await
    }

    async fn page(
        &self,
        user_id: &str,
        conversation_id: &str,
        from: u64,
        to: u64,
        limit: usize,
        newest_first: bool,
    ) -> Result<Page, StoreError> {
        self.inner.page(user_id, conversation_id, from, to, limit, newest_first).await
    }

    async fn messages(
        &self,
        user_id: &str,
        conversation_id: &str,
        sequences: &[u64],
    ) -> Result<Vec<chat::Message>, StoreError> {
        self.inner.messages(user_id, conversation_id, sequences).await
    }

    async fn changes(
        &self,
        user_id: &str,
        conversation_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.inner.changes(user_id, conversation_id, since_version, limit).await
    }

    async fn expired(&self, now_ms: i64, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        self.inner.expired(now_ms, limit).await
    }

    async fn conversations(
        &self,
        user_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError> {
        self.inner.conversations(user_id, since_version, limit).await
    }

    async fn member_ranges(&self, user_id: &str) -> Result<Vec<MemberRange>, StoreError> {
        self.inner.member_ranges(user_id).await
    }

    async fn recent_conversations(
        &self,
        user_id: &str,
        before_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError> {
        self.inner.recent_conversations(user_id, before_version, limit).await
    }

    async fn undelivered(
        &self,
        user_id: &str,
        as_of: u64,
        per_conversation_max: usize,
        conversations_max: usize,
    ) -> Result<Vec<chat::Message>, StoreError> {
        self.inner.undelivered(user_id, as_of, per_conversation_max, conversations_max).await
    }

    fn version(&self) -> u64 {
        self.inner.version()
    }

    async fn group(&self, group_id: &str) -> Result<Option<chat::Group>, StoreError> {
        self.inner.group(group_id).await
    }

    async fn members(&self, conversation_id: &str) -> Result<Option<Members>, StoreError> {
        self.inner.members(conversation_id).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }
}

#[async_trait]
impl GroupStore for Handled {
    async fn group_members(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<MemberPage>, StoreError> {
        self.inner.group_members(group_id, after, limit).await
    }

    async fn join_requests(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<JoinRequestPage>, StoreError> {
        self.inner.join_requests(group_id, after, limit).await
    }

    async fn receipts(
        &self,
        conversation_id: &str,
        sequence: u64,
        filter: ReceiptFilter,
        after: &str,
        limit: usize,
        look_max: usize,
    ) -> Result<ReceiptPage, StoreError> {
        self.inner.receipts(conversation_id, sequence, filter, after, limit, look_max).await
    }

    async fn group_role(&self, group_id: &str, user_id: &str) -> Result<Option<Role>, StoreError> {
        self.inner.group_role(group_id, user_id).await
    }

    async fn may_speak(
        &self,
        group_id: &str,
        user_id: &str,
        at_ms: i64,
    ) -> Result<bool, StoreError> {
        self.inner.may_speak(group_id, user_id, at_ms).await
    }
}

pub struct Bench {
    _folder: tempfile::TempDir,
    server: Server,
    store: Arc<Handled>,
}

impl Bench {
    async fn start(settings: ChatSettings, server: ServerSettings, commits: usize) -> Self {
        let registry = Arc::new(MemoryRegistry::new(MemoryRegistrySettings::default()));
        Self::start_with(settings, server, commits, registry).await
    }

    /// With a registry of the caller's.
    pub async fn start_with(
        settings: ChatSettings,
        server: ServerSettings,
        commits: usize,
        registry: Arc<dyn Registry>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = EmbeddedStore::open(Options::new(folder.path().join("data"))).expect("opened");
        let revocations = RevocationTable::open(&inner);
        let revocations = Arc::new(revocations.await.expect("read"));
        let bus = EmbeddedBus::open(&inner, EmbeddedBusSettings::default()).expect("opened");
        let notices = NoticeTables::open(&inner, NoticeLimits::default()).await.expect("opened");
        let rooms = Arc::new(RoomTable::open(&inner).await.expect("opened"));
        let directory = RoomDirectory::open(rooms, RoomLimits::default()).await.expect("read");
        let store = Arc::new(Handled {
            inner,
            full: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            commits: Semaphore::new(commits),
        });
        let foundation = Foundation {
            search: None,
            store: store.clone(),
            registry,
            bus: Arc::new(bus),
            notices: Arc::new(notices),
            verifier: Arc::new(
                Hs256Verifier::new(SECRET.as_bytes(), &ClaimRules::default()).expect("long enough"),
            ),
            rooms: Arc::new(OpenRooms),
            revocations,
            presence: Arc::new(OpenPresence),
            gates: vec![],
            words: Arc::new(NoWords),
            directory: Arc::new(directory),
            push: None,
            profiles: Arc::new(NoProfiles),
            peers: None,
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let server =
            Server::bind(address, server, |gateways| Chat::start(foundation, settings, gateways))
                .await
                .expect("bound");
        Self { _folder: folder, server, store }
    }

    pub async fn gateway(&self) -> FakeGateway {
        FakeGateway::connect(self.server.address(), Default::default()).await.expect("linked")
    }
}

#[tokio::test]
async fn nothing_is_acknowledged_that_was_not_stored() {
    let bench = Bench::start(ChatSettings::default(), ServerSettings::default(), 1_000).await;
    let mut gateway = bench.gateway().await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let message = to_user("bob", "kept by the sender");
    for (fault, code) in
        [(&bench.store.full, Code::OverCapacity), (&bench.store.broken, Code::Internal)]
    {
        fault.store(true, Ordering::Relaxed);
        let reply = gateway.request(1, command::SEND_MESSAGE, request_id(), &message).await;
        assert_eq!(reply.error(), Some(code));
        let error: session::Error = reply.decode();
        assert!(error.retry_after_ms > 0 && !error.reason.is_empty());
        fault.store(false, Ordering::Relaxed);
    }
    gateway.nothing_delivered(2).await;
    // The client tries again when told to, and now it is stored: the first of its conversation.
    let reply = gateway.send_to(1, message).await;
    assert_eq!((reply.code, reply.sequence, reply.duplicate), (0, 1, false));
    assert_eq!(gateway.delivered(2, 1).await[0].sequence, 1);
}

#[tokio::test]
async fn a_store_that_stalls_uses_up_the_credit_and_everything_arrives_once_it_goes_on() {
    let settings = ChatSettings {
        writes_queued_max: 8,
        commit_writes_max: 4,
        commits_queued_max: 1,
        messages_burst_max: 10_000,
        ..ChatSettings::default()
    };
    let server = ServerSettings { window_frames_max: 40, ..ServerSettings::default() };
    let bench = Bench::start(settings, server, 0).await;
    let mut gateway = bench.gateway().await;
    gateway.enter(1, "alice").await;
    // No commit gets through: the gateway may send its window, and not one frame more.
    let mut sent = 0;
    loop {
        let body = to_user("bob", "x").encode_to_vec().into();
        if !gateway.try_send(1, command::SEND_MESSAGE, sent + 1, body).await {
            break;
        }
        sent += 1;
        assert!(sent <= 40, "more than the window was taken");
    }
    assert_eq!(sent, 40);
    gateway.read_for(QUIET).await;
    assert_eq!((gateway.inbox(1), gateway.credit().frames), (0, 0));

    bench.store.commits.add_permits(1_000);
    for request_id in 1..=sent {
        let reply = gateway.reply(1, request_id).await.expect("the stream lives");
        let reply: chat::SendReply = reply.decode();
        assert_eq!((reply.code, reply.sequence), (0, u64::from(request_id)));
    }
    // The credit is back, so work goes on.
    assert_eq!(gateway.say(1, "bob", "after the stall").await.sequence, 41);
}
