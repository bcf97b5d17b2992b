//! A whole gateway in this process: shards, link threads and the administrative side.
//!
//! Starting blocks until every shard listens; leaving is asked for with [`Gateway::drain`] or
//! [`Gateway::stop`] and waited for with [`Gateway::join`]. There are no globals, no signals and
//! no exits of the process here, so several gateways can live in one process.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, mpsc::sync_channel},
    thread,
    time::{Duration, Instant},
};

use millrace_engine::GatewayIdentity;
use millrace_service::Invalid;
use tokio::sync::watch;

use crate::{
    admin::Admin,
    capacity::Capacity,
    config::Config,
    driver::Kind,
    link::{
        Endpoints, LinkPort, LinkSettings, LinkStatus, LinkThreads, LinkWork, NamesStatus,
        PlaceOfShards, Resolver, Target,
    },
    shard::{self, Command, Listening, Mailbox, NotSent, Run, ShardError, ShardPlan},
    status::{Phase, Status},
};

/// Wait between two looks at an address that is in use.
const BIND_INTERVAL: Duration = Duration::from_millis(50);

/// Where a gateway can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For WebSocket clients.
    pub websocket: Option<SocketAddr>,
    /// For clients of the binary protocol.
    pub tcp: Option<SocketAddr>,
    /// For administration.
    pub admin: Option<SocketAddr>,
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value of the configuration makes no sense.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Somebody else listens there.
    #[error("cannot listen on {address}: {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The rings that the configuration asks for cannot be had.
    #[error("{0}")]
    Capacity(String),
    /// The configuration names a driver that is not in this program.
    #[error("gateway.driver: this program was built without {0}; build it with --features {0}")]
    Driver(Kind),
    /// A shard could not set itself up.
    #[error("shard {shard}: {reason}")]
    Shard {
        /// Its number.
        shard: usize,
        /// What was wrong.
        reason: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// Why a gateway ended other than it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct RunError(Vec<String>);

/// A running gateway. Dropping it without [`Gateway::join`] stops it at once.
#[derive(Debug)]
pub struct Gateway {
    driver: Kind,
    addresses: Addresses,
    capacity: Capacity,
    status: Arc<Status>,
    mailboxes: Vec<Mailbox>,
    shards: Vec<thread::JoinHandle<Result<(), ShardError>>>,
    shards_running: watch::Receiver<usize>,
    links: Option<LinkThreads>,
    admin: Option<Admin>,
}

impl Gateway {
    /// Starts everything and returns when every shard listens. Links come up by themselves.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub fn start(config: Config) -> Result<Self, StartError> {
        config.check()?;
        let addresses = config.addresses()?;
        let (driver, fallback) = config.gateway.driver.decide();
        let Some(run) = shard::over(driver) else {
            return Err(StartError::Driver(driver));
        };
        if let Some(reason) = &fallback {
            tracing::warn!(
                "io_uring is not to be had, so the slower epoll carries the connections: {reason}"
            );
        }
        let capacity = Capacity::plan(&config, driver).map_err(StartError::Capacity)?;
        let link_settings = config.link_settings();
        let mut statuses = Vec::new();
        let endpoints = config.logic_endpoints()?;
        let places = endpoints.places(config.logic.endpoints_max);
        for shard in 0..capacity.shards {
            statuses.extend((0..places).map(|place| {
                let status = LinkStatus::new(shard as u8, place as u8);
                if let Some(fixed) = endpoints.fixed.get(place) {
                    status.leads_to(&fixed.uri);
                }
                Arc::new(status)
            }));
        }
        let names =
            Arc::new(NamesStatus::new(endpoints.fixed.len(), endpoints.names.iter().cloned()));
        let gateway_id = config.gateway_id();
        let status = Arc::new(Status::new(
            config.clone(),
            gateway_id.clone(),
            statuses.clone(),
            names.clone(),
            capacity.clone(),
        ));
        // From here on, whatever was started is stopped by the drop if something else fails.
        let (running, shards_running) = watch::channel(0);
        status.runs_over(driver, fallback.is_some());
        let mut gateway = Self {
            driver,
            addresses: Addresses { websocket: None, tcp: None, admin: None },
            capacity: capacity.clone(),
            status: status.clone(),
            mailboxes: Vec::new(),
            shards: Vec::new(),
            shards_running,
            links: None,
            admin: None,
        };
        if let Some(address) = addresses.admin {
            let admin = Admin::start(address, status.clone())
                .map_err(|source| StartError::Address { address, source })?;
            gateway.addresses.admin = Some(admin.address);
            gateway.admin = Some(admin);
        }
        for address in [addresses.websocket, addresses.tcp].into_iter().flatten() {
            wait_for_address(address, config.listen.bind_wait.as_std())?;
        }
        let identity = GatewayIdentity {
            gateway_id,
            gateway_epoch: (status.started_unix_seconds * 1_000.0) as u64,
            shards: capacity.shards as u32,
            lease_ms: config.logic.lease.as_millis_u32(),
            window: config.window(),
        };
        let cores = cores(&config);
        let (mut websocket, mut tcp) = (addresses.websocket, addresses.tcp);
        let mut ports = Vec::new();
        for shard in 0..capacity.shards {
            let plan = ShardPlan {
                shard: shard as u8,
                settings: config.engine_settings(capacity.connections_per_shard),
                identity: identity.clone(),
                driver: config.driver_options(capacity.rings_per_shard, capacity.sockets_per_ring),
                websocket,
                tcp,
                backlog_max: config.listen.backlog_max,
                core: cores.get(shard).copied(),
                links: places,
                ring_batches_max: config.logic.ring_batches_max,
                published: status.published(shard),
            };
            let listening = gateway.start_shard(shard, plan, run, running.clone())?;
            // With port 0 the first shard's port is the others'.
            (websocket, tcp) = (listening.websocket, listening.tcp);
            gateway.mailboxes.push(listening.mailbox);
            ports.extend(listening.ports);
        }
        gateway.addresses.websocket = websocket;
        gateway.addresses.tcp = tcp;
        let announced = config.announced(websocket, tcp, capacity.connections_per_shard);
        status.links().iter().for_each(|link| link.announce(announced.clone()));
        let links = start_links(&config, &endpoints, names, ports, statuses, &link_settings);
        gateway.links = Some(links.map_err(StartError::Thread)?);
        status.serving(gateway.mailboxes.clone());
        Ok(gateway)
    }

    fn start_shard(
        &mut self,
        shard: usize,
        plan: ShardPlan,
        run: Run,
        running: watch::Sender<usize>,
    ) -> Result<Listening, StartError> {
        let (sender, receiver) = sync_channel(1);
        let status = self.status.clone();
        running.send_modify(|count| *count += 1);
        let body = move || {
            // Counts also when the shard panics.
            let _left = Left(running);
            let result = run(plan, &sender);
            if result.is_err() {
                status.shard_failed();
            }
            result
        };
        let thread = thread::Builder::new()
            .name(format!("shard-{shard}"))
            .spawn(body)
            .map_err(StartError::Thread)?;
        self.shards.push(thread);
        let failed = |reason: String| StartError::Shard { shard, reason };
        match receiver.recv() {
            Ok(Ok(listening)) => Ok(listening),
            Ok(Err(ShardError::Listen(address, source))) => {
                Err(StartError::Address { address, source })
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("the thread panicked".to_owned())),
        }
    }

    /// Where it can be reached, with the ports that were chosen where the configuration said 0.
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What carries its connections.
    pub const fn driver(&self) -> Kind {
        self.driver
    }

    /// How many connections it can hold, and what binds first.
    pub const fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.status.phase()
    }

    /// Why no traffic should be sent here; empty when it should. What `/readyz` says.
    pub fn unready_reasons(&self) -> Vec<String> {
        self.status.unready_reasons()
    }

    /// Begins to leave within the window of `drain.shutdown`: accepting stops, `/readyz` says so,
    /// GOAWAY goes out over the window, and each shard ends when its last connection has, at the
    /// latest a grace after the window. A second call changes nothing.
    pub fn drain(&self) {
        self.status.draining();
        let config = &self.status.config;
        let drain = config.shutdown_drain();
        let window_ms = u64::from(drain.spread_ms) + u64::from(drain.reconnect_after_ms_max);
        let deadline_ms =
            window_ms + config.connections.linger.as_millis() + config.drain.grace.as_millis();
        for mailbox in &self.mailboxes {
            insist(mailbox, Command::Drain { drain: drain.clone(), deadline_ms });
        }
    }

    /// Leaves at once; the kernel resets the connections that are left.
    pub fn stop(&self) {
        self.status.draining();
        for mailbox in &self.mailboxes {
            insist(mailbox, Command::Stop);
        }
    }

    /// Completes when a shard has ended, asked or not: a gateway that was not asked to leave has
    /// failed then, and should be joined.
    pub fn shard_ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut running = self.shards_running.clone();
        let shards = self.shards.len();
        async move {
            // An error means that the last one has ended.
            let _last = running.wait_for(|count| *count < shards).await;
        }
    }

    /// Waits until every shard has left and its links have ended, then ends the administrative
    /// side. Blocks; to be called after [`Self::drain`] or [`Self::stop`], from a thread that may
    /// wait.
    ///
    /// # Errors
    /// When a shard failed.
    pub fn join(mut self) -> Result<(), RunError> {
        self.join_all()
    }

    fn join_all(&mut self) -> Result<(), RunError> {
        let mut failures = Vec::new();
        for (shard, thread) in self.shards.drain(..).enumerate() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failures.push(format!("shard {shard}: {error}")),
                Err(_) => failures.push(format!("shard {shard} panicked")),
            }
        }
        if let Some(links) = self.links.take() {
            links.join();
        }
        if let Some(admin) = self.admin.take() {
            admin.stop();
        }
        if failures.is_empty() { Ok(()) } else { Err(RunError(failures)) }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if !self.shards.is_empty() || self.admin.is_some() {
            self.stop();
            if let Err(error) = self.join_all() {
                tracing::error!(%error, "the gateway ended with an error");
            }
        }
    }
}

/// Counts a shard out when its thread ends, however it ends.
struct Left(watch::Sender<usize>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Sends a command that must arrive, unless the shard has left.
fn insist(mailbox: &Mailbox, mut command: Command) {
    while let Err(NotSent::Busy(back)) = mailbox.send(command) {
        command = back;
        thread::sleep(Duration::from_millis(1));
    }
}

/// The shards' listeners share an address by SO_REUSEPORT, which would also let a second gateway
/// slip in beside the first and take half of its clients. So we look first, without it. A process
/// that was killed may hold the address a little longer, while the kernel clears up its rings.
fn wait_for_address(address: SocketAddr, wait: Duration) -> Result<(), StartError> {
    if address.port() == 0 {
        return Ok(());
    }
    let started = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Ok(_closed_at_once) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < wait => {
                thread::sleep(BIND_INTERVAL);
            }
            Err(source) => return Err(StartError::Address { address, source }),
        }
    }
}

/// The cores for the shards' threads; empty when they are not pinned.
fn cores(config: &Config) -> Vec<usize> {
    if !config.gateway.pin_shards {
        return Vec::new();
    }
    // Those that this process may use: in a container, seldom all of the machine's.
    match rustix::thread::sched_getaffinity(None) {
        Ok(allowed) => {
            (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect()
        }
        Err(_) => Vec::new(),
    }
}

/// Starts the link threads with a link for each port; those beyond the configured endpoints lead to
/// the addresses of names.
fn start_links(
    config: &Config,
    endpoints: &Endpoints,
    names: Arc<NamesStatus>,
    ports: Vec<LinkPort>,
    statuses: Vec<Arc<LinkStatus>>,
    settings: &LinkSettings,
) -> io::Result<LinkThreads> {
    let places = endpoints.places(config.logic.endpoints_max);
    let fixed = &endpoints.fixed;
    let of_names = places - fixed.len();
    let mut of_names: Vec<PlaceOfShards> =
        (0..of_names).map(|_| PlaceOfShards::default()).collect();
    let mut work = Vec::new();
    for (port, status) in ports.into_iter().zip(statuses) {
        let place = usize::from(status.place);
        let (sender, targets) = watch::channel(fixed.get(place).cloned());
        if let Some(of_name) = place.checked_sub(fixed.len()) {
            of_names[of_name].targets.push(sender);
            of_names[of_name].statuses.push(status.clone());
        }
        work.push(LinkWork { port, targets, status });
    }
    let resolver = (!endpoints.names.is_empty()).then(|| {
        let interval = config.logic.resolve_interval.as_std();
        let addresses = fixed.iter().filter_map(Target::address).collect();
        Resolver::new(names, interval, addresses, settings.clone(), of_names)
    });
    LinkThreads::start(work, resolver, config.logic.link_threads, settings)
}
