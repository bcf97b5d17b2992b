//! The server: one HTTP/2 listener, one task per [`stream`].
//!
//! It runs on the caller's runtime. For the link alone a `current_thread` runtime is the fastest.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_protocol::limits;
use millrace_protocol::link::link_service_server::{LinkService, LinkServiceServer};
use millrace_protocol::link::{ConnectRequest, Draining, logic_event::Kind};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::backend::Backend;
use crate::gateways::Gateways;
use crate::hub::Hub;
use crate::outbox::{Batches, Entry, LinkStream};
use crate::settings::ServerSettings;
use crate::stream;

/// Largest batch read from a gateway: the largest body and room for the batch around it.
const BATCH_BYTES_MAX: usize = 2 * limits::BODY_BYTES_MAX_CEILING as usize;

/// HTTP/2 frames of 1 MiB: measured to carry a quarter more than the default of 16 KiB.
const HTTP2_FRAME_BYTES: u32 = 1 << 20;

/// HTTP/2 windows; the contract's own credit is the real bound, these must only not be in its way.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 2 << 20;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Connections and streams one gateway process can sensibly have; a flood of streams on one
/// connection is refused by HTTP/2 itself.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What became of the sessions when a process was about to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandedOver {
    /// Sessions that another logic process has now.
    pub sessions_moved: u64,
    /// Sessions that are still at home here; their gateways list them to whoever comes.
    pub sessions_left: usize,
    /// Every gateway has answered before the time was over.
    pub in_time: bool,
}

/// A running link server. Dropping it ends the streams at once; [`Server::shutdown`] says goodbye.
pub struct Server {
    address: SocketAddr,
    hub: Arc<Hub>,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Listens and serves from now on. `backend` gets the way out before the first stream comes.
    ///
    /// # Errors
    /// The address cannot be listened on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind<B: Backend>(
        address: SocketAddr,
        settings: ServerSettings,
        backend: impl FnOnce(Gateways) -> Arc<B>,
    ) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let hub = Arc::new(Hub::new(settings, new_epoch()));
        let backend = backend(Gateways { hub: Arc::clone(&hub) });
        let service = LinkServiceServer::new(Service { hub: Arc::clone(&hub), backend })
            .max_decoding_message_size(BATCH_BYTES_MAX)
            .max_encoding_message_size(BATCH_BYTES_MAX);
        let stopped = hub.stopped.clone();
        let serve = tonic::transport::Server::builder()
            .max_frame_size(HTTP2_FRAME_BYTES)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .add_service(service)
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                async move { stopped.cancelled().await },
            );
        let serving = tokio::spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(%error, "the link server failed");
            }
        });
        Ok(Self { address, hub, serving })
    }

    /// Where it listens; the port is the real one if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The way out.
    pub fn gateways(&self) -> Gateways {
        Gateways { hub: Arc::clone(&self.hub) }
    }

    /// Asks the gateways to move the sessions to other logic processes, and serves on meanwhile; no
    /// further stream is accepted. Returns when no stream has a session, when its gateway has nowhere
    /// to move them (it is the only logic process there), and in any case after
    /// [`hand_over_ms_max`](ServerSettings::hand_over_ms_max). Gateways that do not move sessions are
    /// not waited for.
    pub async fn hand_over(&self) -> HandedOver {
        let hub = &self.hub;
        hub.leaving.store(true, Ordering::Release);
        let moved_before = hub.counters.snapshot().sessions_moved_away;
        let within_ms = hub.settings.hand_over_ms_max;
        let streams: Vec<_> =
            hub.all_streams().into_iter().filter(|link| link.is_to_be_drained()).collect();
        for link in &streams {
            let draining = Draining { reconnect_after_ms: within_ms };
            link.push([Entry::new(Kind::Draining(draining))], &hub.counters);
        }
        let drained = async {
            loop {
                let news = hub.drained.notified();
                tokio::pin!(news);
                // From here on nothing is missed.
                news.as_mut().enable();
                if !streams.iter().any(|link| link.is_to_be_drained()) {
                    return;
                }
                news.await;
            }
        };
        let patience = Duration::from_millis(u64::from(within_ms));
        let in_time = tokio::time::timeout(patience, drained).await.is_ok();
        let sessions_left = hub.all_shards().iter().map(|shard| shard.sessions().len()).sum();
        let sessions_moved = hub.counters.snapshot().sessions_moved_away - moved_before;
        tracing::info!(sessions_moved, sessions_left, in_time, "handed over");
        HandedOver { sessions_moved, sessions_left, in_time }
    }

    /// Begins to leave: the gateways are told, and no further frame or login is read. What was read
    /// can still be answered. No lease runs out any more: the sessions live on at their gateways.
    pub fn drain(&self) {
        if self.hub.stopping.is_cancelled() {
            return;
        }
        self.hub.stopping.cancel();
        for link in self.hub.all_streams() {
            let draining = Draining { reconnect_after_ms: self.hub.settings.retry_after_ms };
            link.push([Entry::new(Kind::Draining(draining))], &self.hub.counters);
            link.stop_reading();
        }
    }

    /// Leaves: drains, sends what is queued (for `shutdown_ms_max` at most), ends the streams.
    pub async fn shutdown(mut self) {
        self.drain();
        let streams = self.hub.all_streams();
        for link in &streams {
            link.finish();
        }
        drop(streams);
        self.hub.tasks.close();
        let patience = Duration::from_millis(u64::from(self.hub.settings.shutdown_ms_max));
        if tokio::time::timeout(patience, self.hub.tasks.wait()).await.is_err() {
            for link in self.hub.all_streams() {
                link.end(None, &self.hub.counters);
            }
            // A backend that never returns from a frame must not hold us up either.
            let _ = tokio::time::timeout(patience, self.hub.tasks.wait()).await;
        }
        self.hub.stopped.cancel();
        // The HTTP/2 connections close once their last stream has; a gateway that keeps its end
        // open must not hold us up.
        if tokio::time::timeout(patience, &mut self.serving).await.is_err() {
            self.serving.abort();
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hub.stopping.cancel();
        self.hub.stopped.cancel();
        for link in self.hub.all_streams() {
            link.end(None, &self.hub.counters);
        }
        self.serving.abort();
    }
}

/// The life of a process: milliseconds since 1970, so that a later one has a larger number.
pub(crate) fn new_epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The contract's one call.
struct Service<B> {
    hub: Arc<Hub>,
    backend: Arc<B>,
}

#[tonic::async_trait]
impl<B: Backend> LinkService for Service<B> {
    type ConnectStream = Batches;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Batches>, Status> {
        if self.hub.stopping.is_cancelled() || self.hub.leaving.load(Ordering::Acquire) {
            return Err(Status::unavailable("this process is about to leave"));
        }
        let link = Arc::new(LinkStream::new(&self.hub.settings));
        self.hub.remember(&link);
        let (hub, backend) = (Arc::clone(&self.hub), Arc::clone(&self.backend));
        let inbound = request.into_inner();
        self.hub.tasks.spawn(stream::serve(hub, backend, Arc::clone(&link), inbound));
        Ok(Response::new(Batches::new(link, Arc::clone(&self.hub))))
    }
}
