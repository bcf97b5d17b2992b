//! The glommio runtime. Its sockets poll for readiness through io_uring and then read and write with
//! system calls; each is a descriptor of the process. An executor takes three rings and
//! [`IO_MEMORY_BYTES`], and the process needs RLIMIT_MEMLOCK of at least 512 KiB.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use ::glommio::{
    GlommioError, LocalExecutor, LocalExecutorBuilder, Placement,
    net::{TcpListener, TcpStream},
};
use atomic_waker::AtomicWaker;
use futures_lite::{AsyncRead, AsyncWrite};

use super::{
    Wake,
    runtime::{self, RuntimeDriver},
};

/// glommio.
pub type Driver = RuntimeDriver<Glommio>;

/// Memory for files' buffers, which a gateway has no use for: the least that works.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// Entries of each of the three rings.
const RING_ENTRIES: usize = 256;

/// An executor.
#[derive(Debug)]
pub struct Glommio(LocalExecutor);

fn io_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(error) => error,
        error => io::Error::other(error.to_string()),
    }
}

impl runtime::Runtime for Glommio {
    type Socket = Socket;
    type Listener = TcpListener;
    type Bell = Bell;

    fn new(_sockets_max: u32) -> io::Result<Self> {
        LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(IO_MEMORY_BYTES)
            .ring_depth(RING_ENTRIES)
            .make()
            .map(Self)
            .map_err(io_error)
    }

    fn run<T>(&mut self, main: impl Future<Output = T>) -> T {
        self.0.run(main)
    }

    fn spawn(task: impl Future<Output = ()> + 'static) {
        ::glommio::spawn_local(task).detach();
    }

    async fn sleep(time: Duration) {
        ::glommio::timer::sleep(time).await;
    }

    fn listen(address: SocketAddr, backlog: u32) -> io::Result<(TcpListener, SocketAddr)> {
        // glommio chooses the backlog, 1,024, and keeps the descriptor to itself.
        let _unused = backlog;
        let listener = TcpListener::bind(address).map_err(io_error)?;
        let bound = listener.local_addr().map_err(io_error)?;
        Ok((listener, bound))
    }

    async fn accept(listener: &TcpListener) -> io::Result<(Socket, SocketAddr)> {
        let stream = listener.accept().await.map_err(io_error)?;
        let peer = stream.peer_addr().map_err(io_error)?;
        stream.set_nodelay(true).map_err(io_error)?;
        Ok((Socket(stream), peer))
    }
}

/// A connection.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl runtime::Socket for Socket {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        buffer.resize(buffer.capacity(), 0);
        let result = Pin::new(&mut self.0).poll_read(context, buffer);
        if let Poll::Ready(Ok(bytes)) = result {
            buffer.truncate(bytes);
        }
        result
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut Vec<u8>,
        offset: usize,
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, &bytes[offset..])
    }

    fn shutdown_write(&mut self) {
        // It is done at once, and fails only when the connection is gone already.
        let mut context = Context::from_waker(std::task::Waker::noop());
        let _done = Pin::new(&mut self.0).poll_close(&mut context);
    }
}

/// A flag and the waker of the task that watches it; glommio lets other threads wake tasks.
#[derive(Debug)]
pub struct Bell(Arc<Rung>);

#[derive(Debug, Default)]
struct Rung {
    is_rung: AtomicBool,
    task: AtomicWaker,
}

/// Rings a [`Bell`].
#[derive(Clone, Debug)]
pub struct Waker(Arc<Rung>);

impl Wake for Waker {
    fn wake(&self) {
        // The flag first, so that whoever is woken, or looks before it sleeps, finds it.
        if !self.0.is_rung.swap(true, Ordering::AcqRel) {
            self.0.task.wake();
        }
    }
}

impl runtime::Bell for Bell {
    type Waker = Waker;

    fn new() -> io::Result<Self> {
        Ok(Self(Arc::default()))
    }

    fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }

    fn fall_asleep(&self) -> bool {
        !self.0.is_rung.load(Ordering::Acquire)
    }

    fn look(&self) -> bool {
        self.0.is_rung.swap(false, Ordering::AcqRel)
    }

    fn watch(&self, rung: Rc<dyn Fn()>) -> io::Result<impl Future<Output = ()> + 'static> {
        let bell = Arc::clone(&self.0);
        Ok(poll_fn(move |context| {
            // Registers first: a ring between the two is seen by the look, a later one wakes.
            bell.task.register(context.waker());
            if bell.is_rung.load(Ordering::Acquire) {
                rung();
            }
            Poll::Pending
        }))
    }
}
