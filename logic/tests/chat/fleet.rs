//! Two logic processes on one store: what one of them stores reaches the sessions of the other, in
//! order and once, whatever becomes of the events between them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use millrace_logic::{
    bus::{EmbeddedBus, EmbeddedBusSettings},
    chat::{
        Chat, ChatSettings, Foundation, NoProfiles, NoWords, OpenPresence, OpenRooms, PeerEvents,
        PeerSettings,
    },
    events::{Event, Events, EventsCounts, EventsError, Heard, Listener},
    login::{ClaimRules, Hs256Verifier},
    notices::{NoticeLimits, NoticeTables},
    registry::{MemoryRegistry, MemoryRegistrySettings},
    rooms::{RoomDirectory, RoomLimits, RoomTable},
    storage::{
        Store, Write,
        embedded::{EmbeddedStore, Options},
        side::RevocationTable,
    },
};
use millrace_logic_sdk::{
    Encoding, Server, ServerSettings,
    testing::{FakeGateway, FakeGatewaySettings},
};
use millrace_protocol::{
    chat::{
        Deliver, LogoutEverywhere, Read, Receipt, Revoke, SendMessage, Typing, UpdateConversation,
    },
    command,
};
use tokio::sync::mpsc;

use crate::world::{Clients, SECRET, request_id, to_group, to_user};

/// Events that a test lets through, holds back or loses.
#[derive(Clone)]
struct Wire {
    node: &'static str,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    ears: Vec<mpsc::UnboundedSender<Heard>>,
    /// Of these nodes nothing gets through for now.
    held: BTreeMap<&'static str, Vec<Event>>,
}

struct Ear(mpsc::UnboundedReceiver<Heard>);

impl Wire {
    fn join(&self, node: &'static str) -> Self {
        Self { node, shared: self.shared.clone() }
    }

    fn hold(&self, node: &'static str) {
        self.shared.lock().expect("whole").held.insert(node, vec![]);
    }

    /// How many events are held back.
    fn held(&self, node: &'static str) -> usize {
        self.shared.lock().expect("whole").held.get(node).map_or(0, Vec::len)
    }

    fn release(&self, node: &'static str) {
        let mut shared = self.shared.lock().expect("whole");
        for event in shared.held.remove(node).unwrap_or_default() {
            shared.send(Heard::Event(event));
        }
    }

    /// What is held back never comes; `noticed`: the listeners are told so.
    fn lose(&self, node: &'static str, noticed: bool) {
        let mut shared = self.shared.lock().expect("whole");
        shared.held.remove(node);
        if noticed {
            shared.send(Heard::Missed(None));
        }
    }
}

impl Shared {
    fn send(&mut self, heard: Heard) {
        self.ears.retain(|ear| ear.send(heard.clone()).is_ok());
    }
}

#[async_trait]
impl Events for Wire {
    fn node(&self) -> &str {
        self.node
    }

    fn tell(&self, _subject: &str, payload: Bytes) -> Result<(), EventsError> {
        let event = Event { node: self.node.into(), payload };
        let mut shared = self.shared.lock().expect("whole");
        match shared.held.get_mut(self.node) {
            Some(held) => held.push(event),
            None => shared.send(Heard::Event(event)),
        }
        Ok(())
    }

    async fn listen(&self, _subject: &str) -> Result<Box<dyn Listener>, EventsError> {
        let (ear, heard) = mpsc::unbounded_channel();
        self.shared.lock().expect("whole").ears.push(ear);
        Ok(Box::new(Ear(heard)))
    }

    fn counts(&self) -> EventsCounts {
        EventsCounts::default()
    }

    async fn close(&self) {}
}

#[async_trait]
impl Listener for Ear {
    async fn next(&mut self) -> Option<Heard> {
        self.0.recv().await
    }
}

/// Two processes, "a" and "b", each with a gateway of its own.
struct Fleet {
    _folder: tempfile::TempDir,
    store: Arc<EmbeddedStore>,
    wire: Wire,
    processes: Vec<Server>,
    a: FakeGateway,
    b: FakeGateway,
}

impl Fleet {
    async fn start(peers: PeerSettings) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(Options::new(folder.path().join("data"))).expect("opened");
        let store = Arc::new(store);
        let wire = Wire { node: "a", shared: Arc::default() };
        let mut processes = Vec::new();
        for wire in [wire.clone(), wire.join("b")] {
            processes.push(process(&store, wire, peers).await);
        }
        let a = gateway(&processes[0], "gateway-a").await;
        let b = gateway(&processes[1], "gateway-b").await;
        Self { _folder: folder, store, wire, processes, a, b }
    }

    /// Alice and her second device are at a, bob and carol at b; sessions 1 to 4. All are members of
    /// a group.
    async fn with_people(peers: PeerSettings) -> Self {
        let mut fleet = Self::start(peers).await;
        let members = ["alice", "bob", "carol"].map(String::from).to_vec();
        let create = Write::CreateGroup {
            group_id: "g".into(),
            name: "g".into(),
            avatar: String::new(),
            members,
            members_max: 0,
            created_at_ms: 1,
        };
        fleet.store.commit(vec![create]).await.expect("stored");
        fleet.a.enter(1, "alice").await;
        fleet.a.enter_as(2, "alice", "second", "", Encoding::Json).await;
        fleet.b.enter(3, "bob").await;
        fleet.b.enter(4, "carol").await;
        fleet
    }
}

async fn gateway(process: &Server, gateway_id: &str) -> FakeGateway {
    let settings = FakeGatewaySettings { gateway_id: gateway_id.into(), ..Default::default() };
    FakeGateway::connect(process.address(), settings).await.expect("linked")
}

async fn process(store: &Arc<EmbeddedStore>, wire: Wire, peers: PeerSettings) -> Server {
    let shared = store.clone();
    let store = &**store;
    let rooms = Arc::new(RoomTable::open(store).await.expect("opened"));
    let foundation = Foundation {
        store: shared,
        registry: Arc::new(MemoryRegistry::new(MemoryRegistrySettings::default())),
        bus: Arc::new(EmbeddedBus::open(store, EmbeddedBusSettings::default()).expect("opened")),
        notices: Arc::new(
            NoticeTables::open(store, NoticeLimits::default()).await.expect("opened"),
        ),
        verifier: Arc::new(
            Hs256Verifier::new(SECRET.as_bytes(), &ClaimRules::default()).expect("long enough"),
        ),
        rooms: Arc::new(OpenRooms),
        search: None,
        revocations: Arc::new(RevocationTable::open(store).await.expect("read")),
        presence: Arc::new(OpenPresence),
        gates: vec![],
        words: Arc::new(NoWords),
        directory: Arc::new(RoomDirectory::open(rooms, RoomLimits::default()).await.expect("read")),
        push: None,
        profiles: Arc::new(NoProfiles),
        peers: Some(PeerEvents::listen(Arc::new(wire)).await.expect("heard")),
    };
    let settings = ChatSettings {
        peers,
        receipt_interval: Duration::from_millis(50),
        messages_burst_max: 10_000,
        frames_burst_max: 20_000,
        ..ChatSettings::default()
    };
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    Server::bind(address, ServerSettings::default(), |gateways| {
        Chat::start(foundation, settings, gateways)
    })
    .await
    .expect("bound")
}

/// Long enough that nothing is given up in a test that does not want it.
fn patient() -> PeerSettings {
    PeerSettings { hold_max: Duration::from_secs(60), ..PeerSettings::default() }
}

fn impatient() -> PeerSettings {
    PeerSettings { hold_max: Duration::from_millis(50), ..PeerSettings::default() }
}

async fn sequences(gateway: &mut FakeGateway, session_id: u64, count: usize) -> Vec<u64> {
    gateway.delivered(session_id, count).await.iter().map(|message| message.sequence).collect()
}

#[tokio::test]
async fn a_message_reaches_the_sessions_of_every_process_once() {
    let mut fleet = Fleet::with_people(patient()).await;
    fleet.a.say(1, "bob", "hello").await;
    assert_eq!(fleet.b.delivered(3, 1).await[0].body, "hello");
    assert_eq!(fleet.a.delivered(2, 1).await[0].body, "hello", "her other device, in JSON");
    fleet.b.say(3, "alice", "hello back").await;
    for session_id in [1, 2] {
        let delivered = fleet.a.delivered(session_id, 1).await;
        assert_eq!((delivered[0].sequence, &*delivered[0].body), (2, "hello back"));
    }
    fleet.b.say_to_group(4, "g", "all").await;
    fleet.b.delivered(3, 1).await;
    fleet.a.delivered(1, 1).await;
    fleet.a.delivered(2, 1).await;
    for session_id in [1, 2] {
        fleet.a.nothing_delivered(session_id).await;
    }
    for session_id in [3, 4] {
        fleet.b.nothing_delivered(session_id).await;
    }
}

/// Everybody talks to everybody at once; each session gets each conversation in increasing sequence,
/// without a gap but for what it sent itself.
#[tokio::test]
async fn many_at_once_from_both_sides_come_in_order_without_a_gap_and_once() {
    const MESSAGES: u32 = 150;
    let mut fleet = Fleet::with_people(patient()).await;
    let ids = |base: u32| base..base + MESSAGES;
    for n in 0..MESSAGES {
        let text = if n % 2 == 0 { to_group("g", "x") } else { to_user("carol", "x") };
        let from_bob = SendMessage { client_message_id: format!("b{n}"), ..text.clone() };
        fleet.a.send_message(1, command::SEND_MESSAGE, 1_000 + n, &text).await;
        fleet.b.send_message(3, command::SEND_MESSAGE, 5_000 + n, &from_bob).await;
    }
    // The group, and alone with carol.
    for (session_id, own, ids) in [(1, "alice", ids(1_000)), (3, "bob", ids(5_000))] {
        let gateway = if session_id == 1 { &mut fleet.a } else { &mut fleet.b };
        let mut replies = 0;
        let mut seen = Vec::new();
        while replies < MESSAGES as usize || seen.len() < MESSAGES as usize / 2 {
            let frame = gateway.next_frame(session_id).await.expect("the stream lives");
            if frame.command == command::DELIVER {
                let messages = frame.decode::<Deliver>().messages;
                assert!(messages.iter().all(|message| message.sender_id != own));
                seen.extend(messages.iter().map(|message| message.sequence));
            } else if ids.contains(&frame.request_id) {
                assert_eq!(frame.error(), None);
                replies += 1;
            }
        }
        assert!(seen.is_sorted_by(|a, b| a < b), "{own}: {seen:?}");
        assert_eq!(seen.len(), MESSAGES as usize / 2);
    }
    let mut of: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for message in fleet.b.delivered(4, MESSAGES as usize * 2).await {
        of.entry(message.conversation_id).or_default().push(message.sequence);
    }
    for (conversation, sequences) in &of {
        let whole: Vec<u64> = (1..=sequences.len() as u64).collect();
        assert_eq!(sequences, &whole, "{conversation}");
    }
    assert_eq!(of.len(), 3);
    fleet.b.nothing_delivered(4).await;
}

#[tokio::test]
async fn an_event_that_is_late_delays_what_follows_it_and_nothing_else() {
    let mut fleet = Fleet::with_people(patient()).await;
    fleet.wire.hold("a");
    assert_eq!(fleet.a.say_to_group(1, "g", "first").await.sequence, 1);
    assert_eq!(fleet.b.say_to_group(3, "g", "second").await.sequence, 2);
    fleet.b.say(3, "carol", "beside it").await;
    assert_eq!(fleet.b.delivered(4, 1).await[0].body, "beside it");
    assert_eq!(sequences(&mut fleet.a, 1, 1).await, [2], "her own is not missing");
    assert_eq!(sequences(&mut fleet.a, 2, 2).await, [1, 2]);
    fleet.b.nothing_delivered(4).await;
    fleet.wire.release("a");
    assert_eq!(sequences(&mut fleet.b, 4, 2).await, [1, 2]);
    assert_eq!(sequences(&mut fleet.b, 3, 1).await, [1]);
}

#[tokio::test]
async fn an_event_that_never_comes_is_made_good_from_the_store() {
    let mut fleet = Fleet::with_people(impatient()).await;
    fleet.wire.hold("a");
    fleet.a.say_to_group(1, "g", "first").await;
    fleet.wire.lose("a", false);
    fleet.b.say_to_group(3, "g", "second").await;
    assert_eq!(sequences(&mut fleet.b, 4, 2).await, [1, 2]);
    // And on from there.
    fleet.a.say_to_group(1, "g", "third").await;
    assert_eq!(sequences(&mut fleet.b, 4, 1).await, [3]);
}

#[tokio::test]
async fn after_a_loss_that_was_noticed_everybody_is_caught_up() {
    let mut fleet = Fleet::with_people(patient()).await;
    fleet.wire.hold("a");
    fleet.a.say_to_group(1, "g", "first").await;
    fleet.a.say(1, "bob", "alone").await;
    while fleet.wire.held("a") < 2 {
        tokio::task::yield_now().await;
    }
    fleet.b.nothing_delivered(4).await;
    fleet.wire.lose("a", true);
    assert_eq!(sequences(&mut fleet.b, 4, 1).await, [1]);
    assert_eq!(fleet.b.delivered(3, 2).await.len(), 2);
    fleet.b.say_to_group(3, "g", "second").await;
    assert_eq!(sequences(&mut fleet.b, 4, 1).await, [2]);
}

#[tokio::test]
async fn a_message_to_more_than_fit_an_event_reaches_all_of_them() {
    let peers = PeerSettings { event_bytes_max: 300, ..patient() };
    let mut fleet = Fleet::start(peers).await;
    let members: Vec<String> = (0..100).map(|n| format!("member-{n}")).collect();
    let create = Write::CreateGroup {
        group_id: "large".into(),
        name: "large".into(),
        avatar: String::new(),
        members: members.clone(),
        members_max: 0,
        created_at_ms: 1,
    };
    fleet.store.commit(vec![create]).await.expect("stored");
    fleet.a.enter(1, "member-0").await;
    for n in 1..100 {
        fleet.b.enter(100 + n, &members[n as usize]).await;
    }
    fleet.a.say_to_group(1, "large", "x").await;
    for n in 1..100 {
        assert_eq!(sequences(&mut fleet.b, 100 + n, 1).await, [1]);
    }
}

#[tokio::test]
async fn what_is_not_stored_reaches_the_sessions_of_every_process_too() {
    let mut fleet = Fleet::with_people(patient()).await;
    let reply = fleet.a.say(1, "bob", "hello").await;
    let conversation_id = reply.conversation_id;
    fleet.b.delivered(3, 1).await;

    let typing = Typing { conversation_id: conversation_id.clone(), ..Typing::default() };
    fleet.b.request(3, command::TYPING, request_id(), &typing).await;
    assert_eq!(fleet.a.next_of(1, command::TYPING).await.decode::<Typing>().user_id, "bob");
    assert_eq!(fleet.a.next_of(2, command::TYPING).await.decode::<Typing>().user_id, "bob");

    let read = Read { conversation_id: conversation_id.clone(), sequence: 1 };
    fleet.b.request(3, command::READ, request_id(), &read).await;
    let receipt = fleet.a.next_of(1, command::RECEIPT).await.decode::<Receipt>();
    assert_eq!((&*receipt.user_id, receipt.read_sequence), ("bob", 1));

    // A setting goes to the user's own devices, here one at each process.
    fleet.b.enter(5, "alice").await;
    let update = UpdateConversation {
        conversation_id: conversation_id.clone(),
        pinned: Some(true),
        ..UpdateConversation::default()
    };
    fleet.a.request(1, command::UPDATE_CONVERSATION, request_id(), &update).await;
    let told = fleet.b.next_of(5, command::UPDATE_CONVERSATION).await;
    assert_eq!(told.decode::<UpdateConversation>().pinned, Some(true));

    let revoke = Revoke { conversation_id, sequence: 1 };
    fleet.a.request(1, command::REVOKE, request_id(), &revoke).await;
    let left = fleet.b.delivered(3, 1).await;
    assert_eq!((left[0].sequence, &*left[0].body), (1, ""));
    assert_ne!(left[0].state, 0);
}

#[tokio::test]
async fn logging_out_everywhere_ends_the_sessions_of_every_process() {
    let mut fleet = Fleet::with_people(patient()).await;
    fleet.b.enter(5, "alice").await;
    let wanted = LogoutEverywhere { keep_this_session: true };
    fleet.a.request(1, command::LOGOUT_EVERYWHERE, request_id(), &wanted).await;
    while fleet.b.closes() < 1 {
        fleet.b.read_for(Duration::from_millis(20)).await;
    }
    while fleet.a.closes() < 1 {
        fleet.a.read_for(Duration::from_millis(20)).await;
    }
    fleet.b.read_for(Duration::from_millis(100)).await;
    assert_eq!((fleet.a.closes(), fleet.b.closes()), (1, 1), "the second device, and the fifth");
    drop(fleet.processes);
}

/// As the messages of [`a_message_to_more_than_fit_an_event_reaches_all_of_them`], the other way round.
#[tokio::test]
async fn a_message_that_does_not_fit_an_event_is_read_from_the_store_in_its_turn() {
    let peers = PeerSettings { event_bytes_max: 300, ..patient() };
    let mut fleet = Fleet::with_people(peers).await;
    let long = "x".repeat(400);
    fleet.a.say_to_group(1, "g", "short").await;
    fleet.a.say_to_group(1, "g", &long).await;
    fleet.a.say_to_group(1, "g", "short again").await;
    let mut bodies = BTreeMap::new();
    while bodies.len() < 3 {
        // What was not acknowledged may come twice when a session is caught up.
        for message in fleet.b.delivered_next(3).await {
            bodies.insert(message.sequence, message.body);
        }
    }
    assert_eq!(bodies[&2], long);
    assert_eq!(bodies[&3], "short again");
}
