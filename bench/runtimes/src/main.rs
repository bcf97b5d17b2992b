//! `millrace-peers SERVER ADDRESS`: an echo server on somebody else's runtime and library, on one
//! thread, with the settings its authors would choose for many small messages: TCP_NODELAY, the
//! same allocator as Millrace, no compression, one write for each message.
//!
//! The WebSocket servers send every message back; the raw ones send every byte back and show what
//! a runtime costs without a protocol. It is here to be compared with and for nothing else.

mod raw;
mod websocket;

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

#[derive(Parser)]
struct Arguments {
    server: Server,
    /// Where to listen.
    address: SocketAddr,
}

#[derive(Clone, Copy, ValueEnum)]
enum Server {
    /// tokio-tungstenite as it comes: read buffers of 128 KiB.
    TokioTungstenite,
    /// tokio-tungstenite with buffers of 4 KiB.
    #[value(name = "tokio-tungstenite-4k")]
    TokioTungstenite4k,
    /// fastwebsockets on tokio and hyper.
    Fastwebsockets,
    /// tokio-websockets.
    TokioWebsockets,
    /// sockudo-ws on tokio.
    SockudoWs,
    /// tokio, bytes only.
    TokioRaw,
    /// monoio on io_uring, bytes only.
    MonoioUringRaw,
    /// monoio on epoll, bytes only.
    MonoioEpollRaw,
    /// glommio, bytes only.
    GlommioRaw,
}

fn main() -> anyhow::Result<()> {
    let Arguments { server, address } = Arguments::parse();
    match server {
        Server::TokioTungstenite => websocket::tungstenite(address, None),
        Server::TokioTungstenite4k => websocket::tungstenite(address, Some(4096)),
        Server::Fastwebsockets => websocket::fast(address),
        Server::TokioWebsockets => websocket::tokio_websockets(address),
        Server::SockudoWs => websocket::sockudo(address),
        Server::TokioRaw => raw::tokio(address),
        Server::MonoioUringRaw => raw::monoio_uring(address),
        Server::MonoioEpollRaw => raw::monoio_epoll(address),
        Server::GlommioRaw => raw::glommio(address),
    }
}
