//! A logic process: the parts, put together from a [`Config`], started and ended in order.
//!
//! It runs on the caller's runtime and owns no global, so that a whole Millrace can live in one
//! process, and a test can start several.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use axum::Router;
use millrace_logic_sdk::{Refused, Server, ServerError};
use millrace_protocol::api::LogoutEverywhereRequest;
use millrace_service::Invalid;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

mod bus;
mod peers;
mod push;
mod registry;
mod revocations;
mod search;
mod store;
mod verifier;

use self::{bus::OpenBus, revocations::forget_old, store::OpenStore, verifier::verifier};
use crate::{
    accounts::{
        Accounts, Friends, FriendsPolicy, FriendsPresence, LogoutEverywhere, NoticeSink,
        ProfileNames, TextScreen,
    },
    admin::{self, Admin},
    api::{
        Api, AttachmentsApi, CallerGuard, FriendsApi, Guard, UsersApi, sessions::SessionsApi as _,
    },
    attachments::{self, Attachments, BlobStore, DirectoryBlobs},
    audit::Audit,
    bus::Bus,
    chat::{self, Chat, Foundation, NoWords, OpenPresence, OpenRooms, WordFilter},
    config::{Config, FileStore, MaySee, Secrets},
    grpc,
    http::{self, HttpSettings},
    notices::{NoticeStore as _, NoticeTables},
    registry::Registry,
    rooms::{RoomDirectory, RoomTable},
    search::SearchIndex,
    storage::{
        StoreError,
        accounts::AccountStore,
        relations::RelationStore,
        side::{AccountTable, AttachmentTable, Follow, RelationTable, RevocationTable},
    },
    words::WordFile,
};

/// Why a logic process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value or a secret of the configuration.
    #[error(transparent)]
    Config(#[from] Invalid),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The link's address cannot be listened on.
    #[error(transparent)]
    Link(#[from] ServerError),
    /// The address of another door cannot be listened on.
    #[error("{door}: cannot listen on {address}: {source}")]
    Listen {
        /// `http`, `grpc` or `admin`.
        door: &'static str,
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// What went wrong on the way out.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// The store could not write its last; what was acknowledged is durable all the same.
    #[error("the store did not close well: {0}")]
    Store(#[from] StoreError),
    /// The chain was not empty in time; what was not answered was not acknowledged.
    #[error("requests were still under way after {0:?}")]
    Late(Duration),
}

/// Where a process listens, with the real ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For gateways.
    pub link: SocketAddr,
    /// For business services, HTTP.
    pub http: Option<SocketAddr>,
    /// For business services, gRPC.
    pub grpc: Option<SocketAddr>,
    /// For operators.
    pub admin: Option<SocketAddr>,
}

/// A running logic process. End it with [`Logic::shutdown`]; dropping it ends it at once, like a
/// crash, which loses nothing that was acknowledged.
pub struct Logic {
    addresses: Addresses,
    server: Server,
    chat: Arc<Chat>,
    registry: Arc<dyn Registry>,
    store: Arc<OpenStore>,
    bus: OpenBus,
    notices: NoticeTables,
    search: Option<Arc<dyn SearchIndex>>,
    leaving: watch::Sender<bool>,
    doors: Vec<JoinHandle<()>>,
    shutdown_timeout: Duration,
}

impl Logic {
    /// Starts everything: opens the store, listens, serves. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with_routes(config, Router::new()).await
    }

    /// The same, with further routes at the HTTP door, without authorization: a page for people,
    /// say.
    ///
    /// # Errors
    /// As [`Logic::start`].
    pub async fn start_with_routes(config: Config, extra: Router) -> Result<Self, StartError> {
        #[cfg(feature = "planted-faults")]
        crate::planted_faults::check().map_err(|reason| Invalid::new("planted-faults", reason))?;
        config.check()?;
        let secrets = config.secrets()?;
        let verifier = verifier(&config.login, &secrets)?;
        let audit = match config.audit.file.as_os_str().is_empty() {
            true => Audit::to_log(),
            false => Audit::to_file(&config.audit.file).map_err(|source| {
                Invalid::new("audit.file", format!("{}: {source}", config.audit.file.display()))
            })?,
        };
        // The doors first: an address in use is found before anything is opened.
        let http_door = listen("http", config.http.listen.0).await?;
        let grpc_door = listen("grpc", config.grpc.listen.0).await?;
        let admin_door = listen("admin", config.admin.listen.0).await?;
        let words = open_words(&config).await?;
        let peers = peers::open(&config).await?;
        let open = Arc::new(OpenStore::open(&config, &secrets).await?);
        let (store, sides) = (open.chat(), open.sides());
        let search = search::start(&config, &open)?;
        let bus = OpenBus::open(&config.bus, open.own()).await?;
        let notices = NoticeTables::open(sides, config.notices.limits()).await?;
        let revocations = Arc::new(RevocationTable::open(sides).await?);
        let relations: Arc<dyn RelationStore> = Arc::new(RelationTable::open(sides).await?);
        let policy = FriendsPolicy::new(relations.clone(), config.friends.policy()).await?;
        let files = open_attachments(&config, &secrets, &open)?;
        let rooms = Arc::new(RoomTable::open(sides).await?);
        let directory = Arc::new(RoomDirectory::open(rooms, config.rooms.limits()).await?);
        let accounts: Arc<dyn AccountStore> = Arc::new(AccountTable::open(sides).await?);
        let names = ProfileNames::new(accounts.clone(), config.users.names_remembered()).await?;
        let registry = registry::open(&config, &secrets)?;
        let mut matters: Vec<(&'static str, Arc<dyn Follow>)> = vec![
            ("notices", Arc::new(notices.clone())),
            ("revocations", revocations.clone()),
            ("relations", policy.clone()),
            ("rooms", directory.clone()),
            ("accounts", names.clone()),
        ];
        let push = push::offline_push(&config, &secrets, sides, &mut matters).await?;
        let foundation = Foundation {
            search: search.clone(),
            store: store.clone(),
            registry: registry.registry.clone(),
            bus: bus.shared(),
            notices: Arc::new(notices.clone()),
            verifier: verifier.clone(),
            rooms: Arc::new(OpenRooms),
            revocations: revocations.clone(),
            presence: match config.friends.presence_policy {
                MaySee::Everyone => Arc::new(OpenPresence),
                MaySee::Friends => Arc::new(FriendsPresence(policy.clone())),
            },
            gates: vec![policy.clone(), files.clone()],
            words,
            directory,
            push,
            profiles: names.clone(),
            peers,
        };
        let mut chat = None;
        let server = Server::bind(config.link.listen, config.server_settings(), |gateways| {
            registry.attach(&gateways);
            let started = Chat::start(foundation, config.chat_settings(), gateways);
            chat.insert(started).clone()
        })
        .await?;
        let chat = chat.expect("the server has made its backend");
        let addresses = Addresses {
            link: server.address(),
            http: http_door.as_ref().map(|door| door.address),
            grpc: grpc_door.as_ref().map(|door| door.address),
            admin: admin_door.as_ref().map(|door| door.address),
        };
        let leaving = watch::Sender::new(false);
        let api: Arc<dyn Api> = chat.clone();
        let guard = Guard::new(&secrets.api_token, config.api.calls_in_flight_max)
            .with_audit(Arc::new(audit));
        let callers = CallerGuard::new(
            guard.clone(),
            verifier,
            revocations.clone(),
            config.users.caller_limits(),
        );
        let friends: Arc<dyn FriendsApi> = Arc::new(Friends::new(
            relations,
            accounts.clone(),
            policy,
            Arc::new(LiveNotices(chat.clone())),
            Arc::new(SameWords(chat.clone())),
            config.friends.settings(),
        ));
        let users: Arc<dyn UsersApi> = Arc::new(
            Accounts::new(
                accounts,
                config.users.settings(&config.login),
                config.users.signing_key(&config.login, &secrets.jwt_secret)?,
                Arc::new(LogoutOnChange(chat.clone())),
                Arc::new(SameWords(chat.clone())),
                names,
            )
            .map_err(|reason| Invalid::new("users", reason))?,
        );
        let mut doors =
            vec![tokio::spawn(until_left(attachments::sweep(files.clone()), leaving.subscribe()))];
        if let Some(door) = http_door {
            let settings = HttpSettings {
                body_bytes_max: config.api.body_bytes_max.as_usize(),
                client_address_header: config.users.client_address_header.clone(),
                ..HttpSettings::default()
            };
            let routes = http::router(api.clone(), guard.clone(), settings.clone())
                .merge(http::groups::routes(chat.clone(), guard.clone(), settings.clone()))
                .merge(http::sessions::routes(chat.clone(), guard.clone(), settings.clone()))
                .merge(http::reports::routes(chat.clone(), guard.clone(), settings.clone()))
                .merge(http::push::routes(chat.clone(), guard.clone(), settings.clone()))
                .merge(http::push_tokens::routes(chat.clone(), guard.clone(), settings.clone()))
                .merge(http::rooms::routes(chat.clone(), guard.clone(), settings.clone()))
                .merge(http::gateways::routes(chat.clone(), guard.clone(), settings.clone()))
                .merge(http::search::routes(chat.clone(), guard.clone(), settings.clone()))
                .merge(http::users::router(users.clone(), callers.clone(), settings.clone()))
                .merge(http::friends::router(friends.clone(), callers.clone(), settings.clone()))
                .merge(http::attachments::router(files.clone(), callers.clone(), settings));
            let router = routes.into_router().merge(extra);
            doors.push(door.serve_http(router, leaving.subscribe()));
        }
        if let Some(door) = grpc_door {
            let routes = grpc::routes(api, guard.clone())
                .add_service(grpc::gateways::service(chat.clone(), guard.clone()))
                .add_service(grpc::rooms::service(chat.clone(), guard.clone()))
                .add_service(grpc::push::service(chat.clone(), guard.clone()))
                .add_service(grpc::push_tokens::service(chat.clone(), guard.clone()))
                .add_service(grpc::reports::service(chat.clone(), guard.clone()));
            let routes = grpc::sessions::add_to(routes, chat.clone(), guard.clone());
            let routes = grpc::groups::add_to(routes, chat.clone(), guard.clone());
            let routes = grpc::search::add_to(routes, chat.clone(), guard);
            let routes = grpc::with_users(routes, users, callers.clone());
            let routes = grpc::with_friends(routes, friends, callers.clone());
            let files: Arc<dyn AttachmentsApi> = files;
            let routes = grpc::with_attachments(routes, files, callers);
            let serving = grpc::serve(door.listener, routes, left(leaving.subscribe()));
            doors.push(tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "the gRPC door failed");
                }
            }));
        }
        if let Some(door) = admin_door {
            let admin = Admin { chat: chat.clone() };
            doors.push(door.serve_http(admin::router(admin), leaving.subscribe()));
        }
        let kept = config.login.revocations_kept.as_std();
        tokio::spawn(forget_old(revocations, kept, chat::unix_ms, left(leaving.subscribe())));
        tokio::spawn(expire(bus.clone(), notices.clone(), left(leaving.subscribe())));
        if open.embedded().is_none() {
            let interval = config.store.postgres.follow_interval.as_std();
            tokio::spawn(store::follow(matters, interval, left(leaving.subscribe())));
        }
        Ok(Self {
            addresses,
            search,
            server,
            chat,
            registry: registry.registry,
            store: open,
            bus,
            notices,
            leaving,
            doors,
            shutdown_timeout: config.shutdown_timeout.as_std(),
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Where gateways connect.
    pub fn link_address(&self) -> SocketAddr {
        self.addresses.link
    }

    /// Where business services call, if that door is open.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.addresses.http
    }

    /// The topics that clients' reports are put on, for a business service in this process.
    pub fn bus(&self) -> Arc<dyn Bus> {
        self.bus.shared()
    }

    /// Leaves in order: the gateways move the sessions to other logic processes where there are some,
    /// then nothing more is read from them, what was read is stored and answered, the streams and the
    /// doors close, the store is closed.
    ///
    /// # Errors
    /// [`ShutdownError`]; everything has ended nevertheless.
    pub async fn shutdown(self) -> Result<(), ShutdownError> {
        // It is logged, and what is left is listed to whoever comes.
        let _handed_over = self.server.hand_over().await;
        self.server.drain();
        let drained = self.chat.drain(self.shutdown_timeout).await;
        self.leaving.send_replace(true);
        self.server.shutdown().await;
        self.registry.close().await;
        for mut door in self.doors {
            // A caller that keeps its connection open must not hold us up.
            if timeout(DOOR_TIMEOUT, &mut door).await.is_err() {
                door.abort();
            }
        }
        self.notices.close().await?;
        self.bus.close().await?;
        if let Some(search) = self.search {
            search.close().await;
        }
        self.store.close().await?;
        if drained { Ok(()) } else { Err(ShutdownError::Late(self.shutdown_timeout)) }
    }
}

/// Ends a user's sessions, and what earlier tokens allow, when the password has changed.
struct LogoutOnChange(Arc<Chat>);

#[async_trait]
impl LogoutEverywhere for LogoutOnChange {
    async fn logout_everywhere(&self, user_id: &str) -> Result<i64, Refused> {
        let request = LogoutEverywhereRequest {
            user_id: user_id.to_owned(),
            reason: "The password was changed; log in with the new one.".to_owned(),
            ..LogoutEverywhereRequest::default()
        };
        self.0.logout_everywhere(request).await.map(|done| done.issued_before_ms)
    }
}

/// Tells a user's devices that are online; those that are not find the same by its version.
struct LiveNotices(Arc<Chat>);

#[async_trait]
impl NoticeSink for LiveNotices {
    async fn notify(&self, user_id: &str, kind: u32, body: String) {
        self.0.notify(user_id, kind, body);
    }
}

/// Words that are not let through in messages are not let through in names either.
struct SameWords(Arc<Chat>);

impl TextScreen for SameWords {
    fn screen(&self, user_id: &str, target: &str, text: &mut String) -> Result<(), Refused> {
        self.0.screen(user_id, target, text)
    }
}

/// How long a door waits for the requests it is answering.
const DOOR_TIMEOUT: Duration = Duration::from_secs(1);

/// Building the search takes a moment with a long list.
async fn open_words(config: &Config) -> Result<Arc<dyn WordFilter>, StartError> {
    let Some(settings) = config.words.settings() else { return Ok(Arc::new(NoWords)) };
    let opened = tokio::task::spawn_blocking(move || WordFile::open(settings)).await;
    let opened = opened.map_err(|error| Invalid::new("words.file", error.to_string()))?;
    let words = opened.map_err(|error| Invalid::new("words.file", error.to_string()))?;
    tokio::spawn(words.clone().watch());
    Ok(words)
}

/// The files that messages refer to.
fn open_attachments(
    config: &Config,
    secrets: &Secrets,
    open: &OpenStore,
) -> Result<Arc<Attachments>, StartError> {
    let section = &config.attachments;
    let directory = section.resolved_directory(&config.store.directory);
    let wrong = |error: io::Error| {
        Invalid::new("attachments.directory", format!("{}: {error}", directory.display()))
    };
    let blobs: Arc<dyn BlobStore> = match section.store {
        FileStore::Directory => {
            Arc::new(DirectoryBlobs::open(directory.join("files")).map_err(wrong)?)
        }
        #[cfg(feature = "s3")]
        FileStore::S3 => {
            let blobs = attachments::S3Blobs::new(&section.s3());
            Arc::new(blobs.map_err(|reason| Invalid::new("attachments.s3_bucket", reason))?)
        }
        #[cfg(not(feature = "s3"))]
        FileStore::S3 => {
            let reason = "this program was built without the feature `s3`";
            return Err(Invalid::new("attachments.store", reason).into());
        }
    };
    let rows = Arc::new(AttachmentTable::open(open.sides())?);
    // Both are secret, and one of them is there when a door is open.
    let secret = format!("{}\n{}", secrets.jwt_secret, secrets.api_token);
    let settings = section.settings(&directory);
    let opened = Attachments::new(rows, open.chat(), blobs, settings, secret.as_bytes());
    Ok(Arc::new(opened.map_err(wrong)?))
}

/// Runs something until the process leaves.
async fn until_left(work: impl Future<Output = ()>, leaving: watch::Receiver<bool>) {
    tokio::select! {
        () = work => {}
        () = left(leaving) => {}
    }
}

/// How often records and notices are looked at for their age.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);

/// Drops what the topics and the notices need not keep any longer, until the process leaves.
async fn expire(bus: OpenBus, notices: NoticeTables, leaving: impl Future<Output = ()>) {
    tokio::pin!(leaving);
    loop {
        tokio::select! {
            () = tokio::time::sleep(EXPIRE_INTERVAL) => {}
            () = &mut leaving => return,
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = now.as_millis() as i64;
        if let Err(error) = bus.expire(now_ms).await {
            tracing::warn!(%error, "old records were not dropped; this is tried again");
        }
        loop {
            match notices.expire(now_ms).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "old notices were not forgotten; this is tried again");
                    break;
                }
            }
        }
    }
}

/// A door that is listened at, and not served yet.
struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

async fn listen(
    door: &'static str,
    address: Option<SocketAddr>,
) -> Result<Option<Listening>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let failed = |source| StartError::Listen { door, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Some(Listening { listener, address }))
}

/// Waits until the process leaves.
async fn left(mut leaving: watch::Receiver<bool>) {
    // A sender that is gone has left, too.
    let _left = leaving.wait_for(|leaving| *leaving).await;
}

impl Listening {
    fn serve_http(self, router: Router, leaving: watch::Receiver<bool>) -> JoinHandle<()> {
        tokio::spawn(async move {
            // Where a call comes from is what attempts at passwords are counted by.
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            let serving = axum::serve(self.listener, service).with_graceful_shutdown(left(leaving));
            if let Err(error) = serving.await {
                tracing::error!(%error, "an HTTP door failed");
            }
        })
    }
}
