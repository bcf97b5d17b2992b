//! monoio over epoll: sockets are read and written when they are ready, so that those that wait own
//! no buffer.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use ::monoio::{
    LegacyDriver, RuntimeBuilder,
    net::{TcpListener, tcp::stream_poll::TcpStreamPoll},
    time::TimeDriver,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::bell::Bell;
use crate::driver::runtime;

pub struct Epoll(::monoio::Runtime<TimeDriver<LegacyDriver>>);

impl runtime::Runtime for Epoll {
    type Socket = Socket;
    type Listener = TcpListener;
    type Bell = Bell;

    fn new(_sockets_max: u32) -> io::Result<Self> {
        RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().map(Self)
    }

    fn run<T>(&mut self, main: impl Future<Output = T>) -> T {
        self.0.block_on(main)
    }

    fn spawn(task: impl Future<Output = ()> + 'static) {
        drop(::monoio::spawn(task));
    }

    fn sleep(time: Duration) -> impl Future<Output = ()> {
        ::monoio::time::sleep(time)
    }

    fn listen(address: SocketAddr, backlog: u32) -> io::Result<(TcpListener, SocketAddr)> {
        super::listen(address, backlog)
    }

    async fn accept(listener: &TcpListener) -> io::Result<(Socket, SocketAddr)> {
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let stream = stream.try_into_poll_io().map_err(|(error, _)| error)?;
        Ok((Socket(stream), peer))
    }
}

pub struct Socket(TcpStreamPoll);

impl runtime::Socket for Socket {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        // Zeroed once in a buffer's life: it keeps its length from then on.
        buffer.resize(buffer.capacity(), 0);
        let mut room = ReadBuf::new(buffer);
        match Pin::new(&mut self.0).poll_read(context, &mut room) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                let bytes = room.filled().len();
                buffer.truncate(bytes);
                Poll::Ready(Ok(bytes))
            }
        }
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
        let _done = Pin::new(&mut self.0).poll_shutdown(&mut context);
    }
}
