//! The shard's loop.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use millrace_engine::{Effect, Engine, GatewayIdentity, LinkId, Settings};

use super::{
    clock::Clock,
    events::Events,
    mailbox::{COMMANDS_MAX, Command, Mailbox},
    snapshot::{Published, Publisher},
};
use crate::{
    driver::{Driver, Kind, ListenerId, Options, SocketId, Wake, monoio, uring},
    link::{FromLink, LinkPort, Outbound, ShardPort, pair},
};

/// Items taken from one link in a turn, so that a busy logic does not starve the sockets.
const LINK_ITEMS_PER_TURN_MAX: usize = 64;

/// How often a leaving shard looks whether its links have taken the last events.
const LEAVING_INTERVAL: Duration = Duration::from_millis(5);

/// How long a leaving shard waits for its links to take the last events.
const FLUSH_MS_MAX: u64 = 1_000;

/// Everything a shard is made of.
pub(crate) struct ShardPlan {
    pub shard: u8,
    pub settings: Settings,
    pub identity: GatewayIdentity,
    pub driver: Options,
    pub websocket: Option<SocketAddr>,
    pub tcp: Option<SocketAddr>,
    pub backlog_max: u32,
    pub core: Option<usize>,
    pub links: usize,
    pub ring_batches_max: usize,
    pub published: Published,
}

/// What a shard reports when it listens.
pub(crate) struct Listening {
    pub websocket: Option<SocketAddr>,
    pub tcp: Option<SocketAddr>,
    pub mailbox: Mailbox,
    /// One for each link, in order.
    pub ports: Vec<LinkPort>,
}

/// Why a shard could not start, or ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShardError {
    #[error("cannot set up its driver: {0}")]
    Driver(#[source] io::Error),
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    #[error("its driver failed: {0}")]
    Poll(#[source] io::Error),
}

/// What runs a shard on the calling thread.
pub(crate) type Run =
    fn(ShardPlan, &SyncSender<Result<Listening, ShardError>>) -> Result<(), ShardError>;

/// What runs a shard over this driver; `None` if the program was built without it.
pub(crate) fn over(driver: Kind) -> Option<Run> {
    match driver {
        Kind::IoUring => Some(run::<uring::Driver>),
        Kind::MonoioIoUring => Some(run::<monoio::RingDriver>),
        Kind::Epoll => Some(run::<monoio::EpollDriver>),
        #[cfg(feature = "glommio")]
        Kind::Glommio => Some(run::<crate::driver::glommio::Driver>),
        #[cfg(not(feature = "glommio"))]
        Kind::Glommio => None,
    }
}

/// Runs a shard on this thread until it has left. `listening` gets exactly one answer.
fn run<D: Driver>(
    plan: ShardPlan,
    listening: &SyncSender<Result<Listening, ShardError>>,
) -> Result<(), ShardError> {
    if let Some(core) = plan.core {
        pin(plan.shard, core);
    }
    let driver = D::new(plan.driver.clone()).map_err(ShardError::Driver);
    let (mut shard, ready) = match driver.and_then(|driver| Shard::new(driver, plan)) {
        Ok(started) => started,
        Err(error) => {
            // Whoever started this thread waits for the answer.
            let _waits = listening.send(Err(error));
            return Ok(());
        }
    };
    if listening.send(Ok(ready)).is_err() {
        return Ok(());
    }
    let result = shard.turn_until_left();
    let now = shard.clock.now();
    shard.publisher.publish_now(now.monotonic_ms, &shard.engine, &shard.driver);
    result
}

fn pin(shard: u8, core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(shard, core, %error, "the shard's thread is not pinned");
    }
}

/// The shard's end of one link.
struct Link {
    id: LinkId,
    port: ShardPort,
    /// The stream that is open now.
    outbound: Option<Outbound>,
}

pub(super) struct Shard<D: Driver> {
    pub(super) driver: D,
    pub(super) engine: Engine,
    clock: Clock<D::Time>,
    websocket: Option<ListenerId>,
    links: Vec<Link>,
    commands: Receiver<Command>,
    publisher: Publisher,
    leaving: Leaving,
    /// Something waits that no completion announces.
    has_more: bool,
}

/// How far a shard is on its way out.
enum Leaving {
    No,
    /// Until the last connection is gone, or this moment.
    Draining {
        deadline_ms: u64,
    },
    /// Until the links have taken the last events, or this moment.
    Flushing {
        deadline_ms: u64,
    },
    Left,
}

impl<D: Driver> Shard<D> {
    pub(super) fn new(mut driver: D, plan: ShardPlan) -> Result<(Self, Listening), ShardError> {
        let mut listen = |address: Option<SocketAddr>| match address {
            None => Ok((None, None)),
            Some(address) => driver
                .listen(address, plan.backlog_max)
                .map(|(listener, actual)| (Some(listener), Some(actual)))
                .map_err(|error| ShardError::Listen(address, error)),
        };
        let (websocket, websocket_address) = listen(plan.websocket)?;
        let (_, tcp_address) = listen(plan.tcp)?;
        let waker = driver.waker();
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || waker.wake());
        let mut ports = Vec::with_capacity(plan.links);
        let mut links = Vec::with_capacity(plan.links);
        for index in 0..plan.links {
            let (ours, theirs) = pair(plan.ring_batches_max, wake.clone());
            ports.push(ours);
            links.push(Link { id: LinkId(index as u8), port: theirs, outbound: None });
        }
        let (sender, commands) = sync_channel(COMMANDS_MAX);
        let mut clock = Clock::start(driver.time());
        let engine = Engine::new(plan.settings, plan.shard, plan.identity, clock.now());
        let listening = Listening {
            websocket: websocket_address,
            tcp: tcp_address,
            mailbox: Mailbox::new(sender, wake),
            ports,
        };
        let shard = Self {
            driver,
            engine,
            clock,
            websocket,
            links,
            commands,
            publisher: Publisher::new(plan.published),
            leaving: Leaving::No,
            has_more: false,
        };
        Ok((shard, listening))
    }

    fn turn_until_left(&mut self) -> Result<(), ShardError> {
        while !matches!(self.leaving, Leaving::Left) {
            self.turn()?;
        }
        Ok(())
    }

    /// One turn: wait, then deal with everything that came.
    pub(super) fn turn(&mut self) -> Result<(), ShardError> {
        let timeout = self.timeout();
        self.clock.expire();
        let mut events =
            Events { engine: &mut self.engine, clock: &mut self.clock, websocket: self.websocket };
        self.driver.poll(timeout, &mut events).map_err(ShardError::Poll)?;
        let now_ms = self.clock.now().monotonic_ms;
        self.engine.tick(self.clock.now());
        self.take_commands();
        self.take_from_links();
        self.perform_effects();
        let all_taken = self.give_to_links();
        // What a link took may have been acknowledged, and may have made room for more.
        self.perform_effects();
        self.publisher.publish(now_ms, &self.engine, &self.driver);
        self.leave(now_ms, all_taken);
        Ok(())
    }

    /// How long the driver may wait.
    fn timeout(&mut self) -> Option<Duration> {
        if self.has_more {
            return Some(Duration::ZERO);
        }
        let now_ms = self.clock.now().monotonic_ms;
        let leaving_ms = match self.leaving {
            Leaving::No | Leaving::Left => None,
            Leaving::Draining { deadline_ms } => Some(deadline_ms),
            Leaving::Flushing { .. } => return Some(LEAVING_INTERVAL),
        };
        let deadlines = [self.engine.next_deadline_ms(), self.publisher.deadline_ms(), leaving_ms];
        let next_ms = deadlines.into_iter().flatten().min()?;
        Some(Duration::from_millis(next_ms.saturating_sub(now_ms)))
    }

    fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Drain { drain, deadline_ms } => {
                    if matches!(self.leaving, Leaving::No) {
                        self.driver.stop_accepting();
                        let now = self.clock.now();
                        self.engine.drain(now, drain);
                        let deadline_ms = now.monotonic_ms + deadline_ms;
                        self.leaving = Leaving::Draining { deadline_ms };
                    }
                }
                Command::Stop => self.leaving = Leaving::Left,
                Command::Connections { connections_max, reply } => {
                    // Whoever asked may have given up.
                    let _gone = reply.send(self.engine.connections(connections_max));
                }
            }
        }
    }

    fn take_from_links(&mut self) {
        self.has_more = false;
        let now = self.clock.now();
        for link in &mut self.links {
            let mut taken = 0;
            while taken < LINK_ITEMS_PER_TURN_MAX {
                let Some(item) = link.port.take() else { break };
                taken += 1;
                match item {
                    FromLink::Up(outbound) => {
                        link.outbound = Some(outbound);
                        self.engine.link_up(now, link.id);
                    }
                    FromLink::Down => {
                        link.outbound = None;
                        self.engine.link_down(now, link.id);
                    }
                    FromLink::Batch(batch) => self.engine.from_logic(now, link.id, batch),
                }
            }
            if taken > 0 {
                link.port.released();
            }
            self.has_more |= !link.port.is_empty();
        }
    }

    /// Moves batches from the engine to the streams, as far as they have room. Returns whether
    /// nothing was left behind.
    fn give_to_links(&mut self) -> bool {
        let moved = self.engine.counters().sessions_moved;
        let all_taken = self.give_to_each_link();
        if self.engine.counters().sessions_moved == moved {
            return all_taken;
        }
        // A session's old home has been told, and its new one may have had its turn before.
        self.give_to_each_link()
    }

    fn give_to_each_link(&mut self) -> bool {
        let mut all_taken = true;
        for link in &mut self.links {
            let Some(outbound) = &mut link.outbound else { continue };
            let mut given = false;
            loop {
                if !outbound.has_room() {
                    self.engine.link_is_full(link.id);
                    all_taken = false;
                    break;
                }
                let Some(batch) = self.engine.take_link_batch(link.id) else { break };
                let pushed = outbound.push(batch);
                debug_assert!(pushed.is_ok(), "there was room a moment ago");
                given = true;
            }
            if given {
                outbound.flush();
            }
        }
        all_taken
    }

    fn perform_effects(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::Send { connection, socket } => {
                    let mut bytes = self.driver.take_buffer();
                    if self.engine.take_send(connection, &mut bytes) {
                        self.driver.send(SocketId::from_raw(socket), bytes);
                    }
                }
                Effect::ShutdownWrite { socket, .. } => {
                    self.driver.shutdown_write(SocketId::from_raw(socket));
                }
                Effect::Close { socket, .. } => self.driver.close(SocketId::from_raw(socket)),
                Effect::PauseReceive { socket, .. } => {
                    self.driver.pause_receive(SocketId::from_raw(socket));
                }
                Effect::ResumeReceive { socket, .. } => {
                    self.driver.resume_receive(SocketId::from_raw(socket));
                }
            }
        }
    }

    /// Takes the next step on the way out, if it is time.
    fn leave(&mut self, now_ms: u64, all_taken: bool) {
        match self.leaving {
            Leaving::No | Leaving::Left => {}
            Leaving::Draining { deadline_ms } => {
                if self.engine.is_empty() || now_ms >= deadline_ms {
                    let deadline_ms = now_ms + FLUSH_MS_MAX;
                    self.leaving = Leaving::Flushing { deadline_ms };
                }
            }
            Leaving::Flushing { deadline_ms } => {
                let streams = self.links.iter().filter_map(|link| link.outbound.as_ref());
                let is_flushed = all_taken && streams.into_iter().all(Outbound::is_flushed);
                if is_flushed || now_ms >= deadline_ms {
                    self.leaving = Leaving::Left;
                }
            }
        }
    }
}
