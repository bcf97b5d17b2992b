//! Bytes back as they come, without a protocol: what a runtime itself costs. Where the runtime
//! allows it, a connection that waits owns no buffer.

use std::net::SocketAddr;

use anyhow::Result;

use crate::BACKLOG;

/// Bytes read at once; the messages of the comparison are far smaller.
const BUFFER_BYTES: usize = 2048;

pub fn tokio(address: SocketAddr) -> Result<()> {
    use tokio::io::AsyncWriteExt;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(async move {
                loop {
                    stream.readable().await?;
                    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
                    match stream.try_read_buf(&mut buffer) {
                        Ok(0) => return Ok::<(), std::io::Error>(()),
                        Ok(_) => stream.write_all(&buffer).await?,
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
            });
        }
    })
}

async fn monoio_serve(address: SocketAddr) -> Result<()> {
    use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
    let options = monoio::net::ListenerOpts::new().backlog(BACKLOG.cast_signed());
    let listener = monoio::net::TcpListener::bind_with_config(address, &options)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        monoio::spawn(async move {
            loop {
                // A pending read would own its buffer.
                stream.readable(false).await?;
                let (result, buffer) = stream.read(Vec::with_capacity(BUFFER_BYTES)).await;
                if result? == 0 {
                    return Ok::<(), std::io::Error>(());
                }
                stream.write_all(buffer).await.0?;
            }
        });
    }
}

pub fn monoio_uring(address: SocketAddr) -> Result<()> {
    let builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new();
    builder.with_entries(4096).build()?.block_on(monoio_serve(address))
}

pub fn monoio_epoll(address: SocketAddr) -> Result<()> {
    let builder = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new();
    builder.with_entries(4096).build()?.block_on(monoio_serve(address))
}

pub fn glommio(address: SocketAddr) -> Result<()> {
    use futures::{AsyncReadExt, AsyncWriteExt};
    let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .make()
        .map_err(|error| anyhow::anyhow!("glommio: {error}"))?;
    executor.run(async {
        let bound = glommio::net::TcpListener::bind(address);
        let listener = bound.map_err(|error| anyhow::anyhow!("listen: {error}"))?;
        loop {
            let accepted = listener.accept().await;
            let mut stream = accepted.map_err(|error| anyhow::anyhow!("accept: {error}"))?;
            stream.set_nodelay(true).map_err(|error| anyhow::anyhow!("nodelay: {error}"))?;
            let task = glommio::spawn_local(async move {
                // There is no way to wait without a buffer, so it is a small one.
                let mut buffer = [0; 256];
                loop {
                    let count = stream.read(&mut buffer).await?;
                    if count == 0 {
                        return Ok::<(), std::io::Error>(());
                    }
                    stream.write_all(&buffer[..count]).await?;
                }
            });
            task.detach();
        }
    })
}
