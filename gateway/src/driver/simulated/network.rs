//! The network in memory: listeners, connections, bytes under way, and the virtual clock.
//!
//! A connection is two pipes. What is written into one arrives after a delay, in pieces of another
//! size than it was written in, and in order. A pipe holds [`Faults::window_bytes_max`]; above
//! that its writer waits, as with TCP.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use super::super::Time;

/// What goes wrong, and how much. All of it follows from the seed.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Longest time a piece of bytes, or a new connection, is under way.
    pub delay_max: Duration,
    /// Bytes of one direction that may be under way or unread. Above: the writer waits.
    pub window_bytes_max: usize,
    /// Out of 100 writes and reads, how many move fewer bytes than they could.
    pub split_percent: u32,
    /// Out of 100 things the driver could do now, how many it does later.
    pub postpone_percent: u32,
    /// Out of 100 accepts, how many fail, so that the client stays in the backlog.
    pub accept_failure_percent: u32,
}

impl Faults {
    /// A network that does at once what it is asked for.
    #[must_use]
    pub fn none() -> Self {
        Self {
            delay_max: Duration::ZERO,
            window_bytes_max: 256 * 1024,
            split_percent: 0,
            postpone_percent: 0,
            accept_failure_percent: 0,
        }
    }

    /// A bad day.
    #[must_use]
    pub fn many() -> Self {
        Self {
            delay_max: Duration::from_millis(3),
            window_bytes_max: 16 * 1024,
            split_percent: 50,
            postpone_percent: 20,
            accept_failure_percent: 10,
        }
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    under_way: VecDeque<(Duration, Vec<u8>)>,
    pub(super) arrived: VecDeque<u8>,
    /// When the end of stream arrives.
    ended_at: Option<Duration>,
    /// When a reset arrives at the reader.
    reset_at: Option<Duration>,
    last_at: Duration,
    bytes: usize,
    /// Nobody will read any more.
    pub(super) is_abandoned: bool,
}

impl Pipe {
    fn settle(&mut self, now: Duration) {
        while self.under_way.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, piece)) = self.under_way.pop_front() {
                self.arrived.extend(piece);
            }
        }
    }

    pub(super) fn is_reset(&self, now: Duration) -> bool {
        self.reset_at.is_some_and(|at| at <= now)
    }

    /// Whether the end of stream has been reached: everything before it was read.
    pub(super) fn is_at_end(&self, now: Duration) -> bool {
        self.arrived.is_empty()
            && self.under_way.is_empty()
            && self.ended_at.is_some_and(|at| at <= now)
    }

    pub(super) fn has_unread(&self) -> bool {
        !self.arrived.is_empty() || !self.under_way.is_empty()
    }

    fn next_at(&self, now: Duration) -> Option<Duration> {
        let first = self.under_way.front().map(|(at, _)| *at);
        [first, self.ended_at, self.reset_at].into_iter().flatten().filter(|at| *at > now).min()
    }
}

/// A connection: `to_server` is written by the client.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) to_server: Pipe,
    pub(super) to_client: Pipe,
    pub(super) client: SocketAddr,
    /// One end for the client, one for the server; freed when both are gone.
    ends: u8,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) backlog: VecDeque<(Duration, usize)>,
    backlog_max: usize,
    pub(super) is_open: bool,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) random: fastrand::Rng,
    pub(super) faults: Faults,
    pub(super) connections: HashMap<usize, Connection>,
    next_connection: usize,
    pub(super) listeners: Vec<Listener>,
    next_port: u16,
}

impl World {
    fn delay(&mut self) -> Duration {
        let most = u64::try_from(self.faults.delay_max.as_micros()).unwrap_or(u64::MAX);
        self.now + Duration::from_micros(self.random.u64(0..=most))
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.random.u32(0..100) < percent
    }

    /// Some of `bytes`, at least one.
    pub(super) fn portion(&mut self, bytes: usize) -> usize {
        if bytes > 1 && self.chance(self.faults.split_percent) {
            self.random.usize(1..bytes)
        } else {
            bytes
        }
    }

    pub(super) fn settle(&mut self) {
        for connection in self.connections.values_mut() {
            connection.to_server.settle(self.now);
            connection.to_client.settle(self.now);
        }
    }

    /// When something next arrives by itself.
    pub(super) fn next_at(&self) -> Option<Duration> {
        let pipes = self.connections.values().flat_map(|c| [&c.to_server, &c.to_client]);
        let bytes = pipes.filter_map(|pipe| pipe.next_at(self.now));
        let waiting = self.listeners.iter().flat_map(|listener| &listener.backlog);
        let clients = waiting.map(|(at, _)| *at).filter(|at| *at > self.now);
        bytes.chain(clients).min()
    }

    pub(super) fn listen(&mut self, mut address: SocketAddr, backlog: u32) -> SocketAddr {
        if address.port() == 0 {
            self.next_port += 1;
            address.set_port(self.next_port);
        }
        self.listeners.push(Listener {
            address,
            backlog: VecDeque::new(),
            backlog_max: backlog as usize + 1,
            is_open: true,
        });
        address
    }

    /// Writes into a pipe; 0 when there is no room.
    pub(super) fn write(&mut self, id: usize, to_client: bool, bytes: &[u8]) -> io::Result<usize> {
        let window = self.faults.window_bytes_max;
        let at = self.delay();
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let (pipe, back) = if to_client {
            (&mut connection.to_client, &connection.to_server)
        } else {
            (&mut connection.to_server, &connection.to_client)
        };
        if pipe.is_abandoned || back.is_reset(now) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if pipe.ended_at.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = window.saturating_sub(pipe.bytes).min(bytes.len());
        if room == 0 {
            return Ok(0);
        }
        let written = self.portion(room);
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(0) };
        let pipe = if to_client { &mut connection.to_client } else { &mut connection.to_server };
        pipe.last_at = pipe.last_at.max(at);
        pipe.bytes += written;
        pipe.under_way.push_back((pipe.last_at, bytes[..written].to_vec()));
        Ok(written)
    }

    /// Reads what has arrived, `None` when nothing has, and an empty vector at the end of stream.
    pub(super) fn read(
        &mut self,
        id: usize,
        from_client: bool,
        bytes_max: usize,
    ) -> io::Result<Option<Vec<u8>>> {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let pipe = if from_client { &mut connection.to_server } else { &mut connection.to_client };
        pipe.settle(now);
        if pipe.is_reset(now) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if pipe.is_at_end(now) {
            return Ok(Some(Vec::new()));
        }
        let ready = pipe.arrived.len().min(bytes_max);
        if ready == 0 {
            return Ok(None);
        }
        let taken = self.portion(ready);
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(None) };
        let pipe = if from_client { &mut connection.to_server } else { &mut connection.to_client };
        pipe.bytes -= taken;
        Ok(Some(pipe.arrived.drain(..taken).collect()))
    }

    /// Ends one direction.
    pub(super) fn end(&mut self, id: usize, to_client: bool) {
        let at = self.delay();
        if let Some(connection) = self.connections.get_mut(&id) {
            let pipe =
                if to_client { &mut connection.to_client } else { &mut connection.to_server };
            if pipe.ended_at.is_none() {
                pipe.ended_at = Some(pipe.last_at.max(at));
            }
        }
    }

    /// One end is gone: with a reset if it left bytes unread, or if it wants one.
    pub(super) fn close(&mut self, id: usize, by_server: bool, wants_reset: bool) {
        let at = self.delay();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (incoming, outgoing) = if by_server {
            (&mut connection.to_server, &mut connection.to_client)
        } else {
            (&mut connection.to_client, &mut connection.to_server)
        };
        incoming.is_abandoned = true;
        if wants_reset || incoming.has_unread() {
            outgoing.reset_at = Some(outgoing.last_at.max(at));
        } else if outgoing.ended_at.is_none() {
            outgoing.ended_at = Some(outgoing.last_at.max(at));
        }
        connection.ends -= 1;
        if connection.ends == 0 {
            self.connections.remove(&id);
        }
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<usize> {
        let at = self.delay();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let port = address.port();
        self.next_port = self.next_port.wrapping_add(1).max(1_024);
        let client = match address.ip() {
            IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, self.next_port)),
            IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, self.next_port)),
        };
        let listener = self
            .listeners
            .iter_mut()
            .find(|listener| listener.is_open && listener.address.port() == port)
            .ok_or_else(refused)?;
        if listener.backlog.len() >= listener.backlog_max {
            // A real client would repeat its SYN; this one may try again.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let id = self.next_connection;
        self.next_connection += 1;
        listener.backlog.push_back((at, id));
        let (to_server, to_client) = (Pipe::default(), Pipe::default());
        self.connections.insert(id, Connection { to_server, to_client, client, ends: 2 });
        Ok(id)
    }
}

/// A network, shared by its driver and its clients.
#[derive(Clone, Debug)]
pub struct Network(pub(super) Rc<RefCell<World>>);

impl Network {
    /// A network of its own, whose chances follow from the seed.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self(Rc::new(RefCell::new(World {
            now: Duration::ZERO,
            random: fastrand::Rng::with_seed(seed),
            faults,
            connections: HashMap::new(),
            next_connection: 0,
            listeners: Vec::new(),
            next_port: 10_000,
        })))
    }

    /// How far the virtual clock has come.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.borrow().now
    }

    /// Connects a client.
    ///
    /// # Errors
    /// `ConnectionRefused` where nobody listens, `WouldBlock` while the backlog is full.
    pub fn connect(&self, address: SocketAddr) -> io::Result<Client> {
        let id = self.0.borrow_mut().connect(address)?;
        Ok(Client { network: self.clone(), id, wants_reset: false })
    }

    pub(super) fn time(&self) -> VirtualTime {
        VirtualTime { network: self.clone(), start: Instant::now() }
    }
}

/// The virtual clock. It moves only while a driver waits.
#[derive(Clone, Debug)]
pub struct VirtualTime {
    network: Network,
    /// A moment to count from; instants cannot be made otherwise.
    start: Instant,
}

impl Time for VirtualTime {
    fn now(&self) -> Instant {
        self.start + self.network.elapsed()
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + self.network.elapsed()
    }
}

/// A client of a simulated network. It never waits: what cannot be done now is `WouldBlock`. Dropping
/// it closes the connection, with a reset if it left bytes unread.
#[derive(Debug)]
pub struct Client {
    network: Network,
    id: usize,
    wants_reset: bool,
}

impl Client {
    /// The address the server sees.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        let world = self.network.0.borrow();
        world.connections.get(&self.id).map_or_else(
            || SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            |connection| connection.client,
        )
    }

    /// Writes some of the bytes.
    ///
    /// # Errors
    /// `WouldBlock` while the window is full; `ConnectionReset` or `BrokenPipe` at the end.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.network.0.borrow_mut().write(self.id, false, bytes)? {
            0 if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            written => Ok(written),
        }
    }

    /// Reads some bytes; 0 is the end of stream.
    ///
    /// # Errors
    /// `WouldBlock` while nothing is there; `ConnectionReset`.
    pub fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.network.0.borrow_mut().read(self.id, false, bytes.len())?;
        let read = read.ok_or(io::ErrorKind::WouldBlock)?;
        bytes[..read.len()].copy_from_slice(&read);
        Ok(read.len())
    }

    /// Ends the client's sending side.
    pub fn shutdown_write(&mut self) {
        self.network.0.borrow_mut().end(self.id, false);
    }

    /// Ends the connection with a reset.
    pub fn reset(mut self) {
        self.wants_reset = true;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.network.0.borrow_mut().close(self.id, false, self.wants_reset);
    }
}
