//! WebSocket echo on tokio, with one library each.

use std::future::Future;
use std::net::SocketAddr;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::BACKLOG;

/// Accepts for ever on one thread, and runs `serve` for each connection. How a connection ends is
/// nobody's concern here.
fn on_tokio<F>(address: SocketAddr, serve: impl Fn(TcpStream) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(serve(stream));
        }
    })
}

/// `buffer_bytes`: read and write buffers other than the default.
pub fn tungstenite(address: SocketAddr, buffer_bytes: Option<usize>) -> Result<()> {
    use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
    on_tokio(address, move |stream| async move {
        let mut config = WebSocketConfig::default();
        if let Some(bytes) = buffer_bytes {
            config = config.read_buffer_size(bytes).write_buffer_size(0);
        }
        let mut socket = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await?;
        while let Some(message) = socket.next().await {
            let message = message?;
            if message.is_binary() || message.is_text() {
                socket.send(message).await?;
            }
        }
        Ok(())
    })
}

pub fn tokio_websockets(address: SocketAddr) -> Result<()> {
    on_tokio(address, |stream| async move {
        let (_, mut socket) = tokio_websockets::ServerBuilder::new().accept(stream).await?;
        while let Some(message) = socket.next().await {
            let message = message?;
            if message.is_binary() || message.is_text() {
                socket.send(message).await?;
            }
        }
        Ok(())
    })
}

pub fn fast(address: SocketAddr) -> Result<()> {
    use fastwebsockets::{FragmentCollector, OpCode, upgrade};
    use http_body_util::Empty;
    use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};

    async fn upgrade_request(
        mut request: Request<Incoming>,
    ) -> Result<Response<Empty<Bytes>>, fastwebsockets::WebSocketError> {
        let (response, upgraded) = upgrade::upgrade(&mut request)?;
        tokio::task::spawn_local(async move {
            let mut socket = FragmentCollector::new(upgraded.await?);
            loop {
                let frame = socket.read_frame().await?;
                match frame.opcode {
                    OpCode::Close => return Ok::<(), fastwebsockets::WebSocketError>(()),
                    OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
                    _ => {}
                }
            }
        });
        Ok(response)
    }

    on_tokio(address, |stream| async move {
        let io = hyper_util::rt::TokioIo::new(stream);
        http1::Builder::new()
            .serve_connection(io, service_fn(upgrade_request))
            .with_upgrades()
            .await?;
        Ok(())
    })
}

pub fn sockudo(address: SocketAddr) -> Result<()> {
    use sockudo_ws::handshake::{build_response, generate_accept_key, parse_request};
    use sockudo_ws::protocol::Message;
    use sockudo_ws::{Config, WebSocketStream};

    on_tokio(address, |mut stream| async move {
        let mut request = BytesMut::with_capacity(1024);
        loop {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
            if let Some((parsed, _)) = parse_request(&request)? {
                let accept = generate_accept_key(parsed.key);
                stream.write_all(&build_response(&accept, None, None)).await?;
                break;
            }
        }
        drop(request);
        let mut socket = WebSocketStream::server(stream, Config::default());
        while let Some(message) = socket.next().await {
            match message? {
                message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        Ok(())
    })
}
