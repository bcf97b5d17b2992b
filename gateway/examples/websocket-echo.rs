//! `websocket-echo ADDR [--threads N] [--driver NAME]`: sends every WebSocket message back, text as text and binary
//! as binary, up to 16 MiB each.
//!
//! It stands on the gateway's own codec, connection code and driver, and on nothing else of it, so
//! that public conformance suites and other people's load tools can be pointed at exactly that
//! code. It accepts every path and chooses no subprotocol. It is no model of a public server: a
//! connection that stays silent stays open.
//!
//! Memory of one connection is bounded by one message that arrives and [`BACKLOG_BYTES_MAX`] plus
//! one message that waits to be sent: above that backlog, nothing more is read from the peer.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use millrace_engine::transport::{Event, WebSocketSettings, WebSocketTransport};
use millrace_gateway::driver::{
    Driver, Handler, Kind, ListenerId, Options, SocketId, monoio, uring,
};
use millrace_protocol::websocket::Opcode;
use millrace_uring::raise_descriptor_limit;
use mimalloc::MiMalloc;
use slab::Slab;

/// The gateway's allocator: it gives the memory of large messages back to the system.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Bytes that wait for one peer, or are on their way to it, before its input is paused; at half of it, reading goes on.
const BACKLOG_BYTES_MAX: usize = 1024 * 1024;

/// Bytes handed to the kernel in one send, unless a single message is larger.
const SEND_BYTES_MAX: usize = 256 * 1024;

/// From the moment a connection is to close (both close frames, a violation, the peer's end) to
/// the moment it is cut off, however much still waits.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

const LISTEN_BACKLOG: u32 = 4096;

#[derive(Parser)]
struct Arguments {
    /// Where to listen, for example 127.0.0.1:9001; port 0 is any free one.
    address: SocketAddr,
    /// Threads, each with its own ring and listener.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// What carries the connections: io_uring, epoll, monoio_io_uring or glommio.
    #[arg(long, default_value = "io_uring", value_parser = driver)]
    driver: Kind,
}

fn driver(name: &str) -> Result<Kind, String> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    kind.ok_or_else(|| format!("there are {}", Kind::ALL.map(Kind::name).join(", ")))
}

/// One thread's life over a driver, by its name.
fn serve_over(
    kind: Kind,
    address: SocketAddr,
    sockets_max: u64,
    bound: impl FnOnce(SocketAddr),
) -> io::Result<()> {
    match kind {
        Kind::IoUring => serve::<uring::Driver>(address, sockets_max, bound),
        Kind::MonoioIoUring => serve::<monoio::RingDriver>(address, sockets_max, bound),
        Kind::Epoll => serve::<monoio::EpollDriver>(address, sockets_max, bound),
        #[cfg(feature = "glommio")]
        Kind::Glommio => {
            serve::<millrace_gateway::driver::glommio::Driver>(address, sockets_max, bound)
        }
        #[cfg(not(feature = "glommio"))]
        Kind::Glommio => Err(io::Error::other("this program was built without --features glommio")),
    }
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let limit = raise_descriptor_limit()?;
    let sockets_max = if arguments.driver.sockets_are_descriptors() {
        // The threads share the process's descriptors, and need some themselves.
        limit.saturating_sub(64) / u64::from(arguments.threads)
    } else {
        limit
    };
    let (bound, first_address) = mpsc::sync_channel(1);
    // The first thread binds; with port 0 the others need to know what it got.
    let first = std::thread::spawn({
        let bound = bound.clone();
        move || {
            serve_over(arguments.driver, arguments.address, sockets_max, |address| {
                bound.send(address).expect("main waits for the address");
            })
        }
    });
    drop(bound);
    let Ok(address) = first_address.recv() else {
        return first.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
    };
    let mut threads = vec![first];
    for _ in 1..arguments.threads {
        let driver = arguments.driver;
        threads.push(std::thread::spawn(move || serve_over(driver, address, sockets_max, |_| {})));
    }
    writeln!(io::stdout(), "listening on ws://{address}")?;
    for thread in threads {
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))?;
    }
    Ok(())
}

/// One thread's life: a driver, its connections, and a loop.
fn serve<D: Driver>(
    address: SocketAddr,
    sockets_max: u64,
    bound: impl FnOnce(SocketAddr),
) -> io::Result<()> {
    let options = Options {
        sockets_max: sockets_max.min(65_536) as u32,
        receive_buffers: 512,
        receive_buffer_bytes: 16 * 1024,
        ..Options::default()
    };
    let mut driver = D::new(options)?;
    let (_, address) = driver.listen(address, LISTEN_BACKLOG)?;
    bound(address);
    let mut echo = Echo::default();
    loop {
        let timeout = echo
            .closing
            .front()
            .map(|(deadline, _)| deadline.saturating_duration_since(Instant::now()));
        driver.poll(timeout, &mut echo)?;
        while let Some(key) = echo.touched.pop() {
            echo.advance(&mut driver, key);
        }
        let now = Instant::now();
        while echo.closing.front().is_some_and(|(deadline, _)| *deadline <= now) {
            if let Some((_, socket)) = echo.closing.pop_front() {
                // The id of a connection that is gone by now is ignored.
                driver.close(socket);
            }
        }
    }
}

/// All connections of one thread.
#[derive(Default)]
struct Echo {
    connections: Slab<Connection>,
    /// Connections to look at after the poll, by their key; twice does no harm.
    touched: Vec<usize>,
    /// Connections on their way out, the oldest first; one entry each at most.
    closing: VecDeque<(Instant, SocketId)>,
}

struct Connection {
    socket: SocketId,
    transport: WebSocketTransport,
    /// It has an entry in `Echo::closing`.
    is_closing: bool,
    paused: bool,
    /// Bytes of the send in flight.
    sending_bytes: usize,
    write_ended: bool,
    receive_ended: bool,
    failed: bool,
}

impl Echo {
    /// Does what a connection's state asks for: send, pause, resume, shut down, close.
    fn advance(&mut self, driver: &mut impl Driver, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let socket = connection.socket;
        if connection.failed {
            return driver.close(socket);
        }
        let closed = connection.transport.is_closed() || connection.receive_ended;
        if closed && !connection.is_closing {
            connection.is_closing = true;
            self.closing.push_back((Instant::now() + CLOSE_TIMEOUT, socket));
        }
        if !driver.is_sending(socket) {
            connection.sending_bytes = 0;
            if connection.transport.outbound.is_empty() {
                if closed && !connection.write_ended {
                    connection.write_ended = true;
                    driver.shutdown_write(socket);
                }
                if connection.receive_ended {
                    return driver.close(socket);
                }
            } else {
                let mut buffer = driver.take_buffer();
                connection.transport.take(&mut buffer, SEND_BYTES_MAX);
                connection.sending_bytes = buffer.len();
                driver.send(socket, buffer);
            }
        }
        let backlog = connection.transport.outbound.queued_bytes() + connection.sending_bytes;
        if connection.paused {
            // Once closed, input is read to be discarded, so that the peer's end is noticed.
            if closed || backlog <= BACKLOG_BYTES_MAX / 2 {
                connection.paused = false;
                driver.resume_receive(socket);
            }
        } else if !closed && backlog > BACKLOG_BYTES_MAX {
            connection.paused = true;
            driver.pause_receive(socket);
        }
    }
}

impl Handler for Echo {
    fn accepted(&mut self, socket: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        self.connections.insert(Connection {
            socket,
            transport: WebSocketTransport::new(),
            is_closing: false,
            paused: false,
            sending_bytes: 0,
            write_ended: false,
            receive_ended: false,
            failed: false,
        }) as u64
    }

    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}

    fn received(&mut self, _: SocketId, context: u64, bytes: &mut [u8]) {
        // A ping is always answered: what bounds the queue here is that reading pauses.
        let settings = WebSocketSettings {
            message_bytes_max: 16 * 1024 * 1024,
            pong_queue_bytes_max: usize::MAX,
        };
        let key = context as usize;
        let Some(connection) = self.connections.get_mut(key) else { return };
        self.touched.push(key);
        let transport = &mut connection.transport;
        let mut used = 0;
        loop {
            let received = match transport.read(&settings, &mut bytes[used..]) {
                Ok(received) => received,
                Err(error) => return transport.fail(&error),
            };
            used += received.used;
            match received.event {
                None => return,
                Some(Event::Upgrade(upgrade)) => {
                    transport.input.accept(&mut transport.outbound, &upgrade, None);
                }
                Some(Event::Text(text)) => {
                    WebSocketTransport::send(received.outbound, Opcode::Text, text.as_bytes());
                }
                Some(Event::Binary(payload)) => {
                    WebSocketTransport::send(received.outbound, Opcode::Binary, payload);
                }
                Some(Event::Ping { .. } | Event::Pong) => {}
                Some(Event::Close(_)) => transport.input.closed(),
            }
        }
    }

    fn receive_ended(&mut self, _: SocketId, context: u64, result: io::Result<()>) {
        let key = context as usize;
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.receive_ended = true;
        connection.failed |= result.is_err();
        self.touched.push(key);
    }

    fn sent(&mut self, _: SocketId, context: u64, result: io::Result<()>) {
        let key = context as usize;
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.failed |= result.is_err();
        self.touched.push(key);
    }

    fn closed(&mut self, _: SocketId, context: u64) {
        self.connections.try_remove(context as usize);
    }

    fn woken(&mut self) {}
}
