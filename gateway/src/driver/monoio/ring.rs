//! monoio over its own use of io_uring: receives and sends are operations of its ring.
//!
//! monoio's operations own their buffer while they wait, so a silent connection owns one here, too:
//! [`IDLE_BYTES`] of it, enough for a small frame. It grows while more comes and shrinks afterwards.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use ::monoio::{
    IoUringDriver, RuntimeBuilder,
    buf::IoBuf,
    io::{AsyncReadRent, AsyncWriteRent, Splitable},
    net::{
        TcpListener,
        tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf},
    },
    time::TimeDriver,
};

use super::bell::Bell;
use crate::driver::runtime;

/// What a silent connection owns.
const IDLE_BYTES: usize = 64;

/// How much more is asked for after a buffer was filled.
const GROWTH: usize = 8;

pub struct Ring(::monoio::Runtime<TimeDriver<IoUringDriver>>);

impl runtime::Runtime for Ring {
    type Socket = Socket;
    type Listener = TcpListener;
    type Bell = Bell;

    fn new(_sockets_max: u32) -> io::Result<Self> {
        RuntimeBuilder::<IoUringDriver>::new().enable_timer().build().map(Self)
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
        // An accept that is dropped may lose its client; waiting for one does not.
        listener.readable(false).await?;
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let reading = Reading::Idle(read, Vec::with_capacity(IDLE_BYTES));
        Ok((Socket { reading, writing: Writing::Idle(write) }, peer))
    }
}

/// An operation that gives back what it was made of.
type Operation<T> = Pin<Box<dyn Future<Output = (T, io::Result<usize>, Vec<u8>)>>>;

enum Reading {
    Idle(TcpOwnedReadHalf, Vec<u8>),
    Busy(Operation<TcpOwnedReadHalf>),
    /// Between two of the above, within one call.
    Moving,
}

enum Writing {
    Idle(TcpOwnedWriteHalf),
    Busy(Operation<TcpOwnedWriteHalf>),
    /// As above.
    Moving,
}

pub struct Socket {
    reading: Reading,
    writing: Writing,
}

impl runtime::Socket for Socket {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let mut operation: Operation<_> =
            match std::mem::replace(&mut self.reading, Reading::Moving) {
                Reading::Busy(operation) => operation,
                Reading::Idle(mut half, bytes) => Box::pin(async move {
                    let (result, bytes) = half.read(bytes).await;
                    (half, result, bytes)
                }),
                Reading::Moving => unreachable!("only within a call"),
            };
        let Poll::Ready((half, result, mut bytes)) = operation.as_mut().poll(context) else {
            self.reading = Reading::Busy(operation);
            return Poll::Pending;
        };
        if result.is_ok() {
            buffer.extend_from_slice(&bytes);
            let capacity = bytes.capacity();
            if bytes.len() == capacity && capacity < buffer.capacity() {
                bytes = Vec::with_capacity((capacity * GROWTH).min(buffer.capacity()));
            } else if capacity > IDLE_BYTES && bytes.len() < capacity / GROWTH {
                bytes = Vec::with_capacity(IDLE_BYTES);
            }
        }
        bytes.clear();
        self.reading = Reading::Idle(half, bytes);
        Poll::Ready(result)
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut Vec<u8>,
        offset: usize,
    ) -> Poll<io::Result<usize>> {
        if let Writing::Idle(_) = self.writing
            && let Writing::Idle(mut half) = std::mem::replace(&mut self.writing, Writing::Moving)
        {
            let rest = std::mem::take(bytes).slice(offset..);
            self.writing = Writing::Busy(Box::pin(async move {
                let (result, rest) = half.write(rest).await;
                (half, result, rest.into_inner())
            }));
        }
        let Writing::Busy(operation) = &mut self.writing else {
            unreachable!("only within a call")
        };
        let (half, result, whole) = ready!(operation.as_mut().poll(context));
        *bytes = whole;
        self.writing = Writing::Idle(half);
        Poll::Ready(result)
    }

    fn shutdown_write(&mut self) {
        if let Writing::Idle(half) = &mut self.writing {
            // It is done by the call, the future only says how it went; it fails only when the
            // connection is gone already.
            drop(half.shutdown());
        }
    }
}
