//! A backend behind the link contract without a socket: the streams are queues in this process.
//!
//! Everything of the SDK but HTTP/2 is at work. On a runtime of one thread nothing runs that the
//! test does not let run, so that a process can be "killed" between any two of its steps by
//! dropping its runtime.

use std::sync::Arc;

use millrace_protocol::link::ConnectRequest;
use tokio::sync::mpsc;
use tonic::Status;

use super::{FakeGateway, FakeGatewaySettings, hello};
use crate::backend::Backend;
use crate::gateways::Gateways;
use crate::hub::Hub;
use crate::outbox::{Batches, LinkStream};
use crate::server::new_epoch;
use crate::settings::ServerSettings;
use crate::stream;

/// Batches between a gateway and logic. More than any test sends to a logic that does not read.
const BATCHES_MAX: usize = 65_536;

/// A logic process that listens nowhere.
pub struct InProcess<B> {
    hub: Arc<Hub>,
    backend: Arc<B>,
}

impl<B: Backend> InProcess<B> {
    /// Starts a backend. Its tasks, and those of the streams, live on the caller's runtime.
    pub fn start(settings: ServerSettings, backend: impl FnOnce(Gateways) -> Arc<B>) -> Self {
        let hub = Arc::new(Hub::new(settings, new_epoch()));
        let backend = backend(Gateways { hub: Arc::clone(&hub) });
        Self { hub, backend }
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// What [`FakeGateway::connect`] does, without a socket.
    ///
    /// # Errors
    /// What logic answered instead.
    pub async fn connect(&self, settings: FakeGatewaySettings) -> Result<FakeGateway, Status> {
        let (to_logic, requests) = mpsc::channel::<ConnectRequest>(BATCHES_MAX);
        to_logic.send(hello(&settings)).await.map_err(|_| Status::internal("it is new"))?;
        let requests = futures::stream::unfold(requests, |mut requests| async move {
            requests.recv().await.map(|batch| (Ok(batch), requests))
        });
        let link = Arc::new(LinkStream::new(&self.hub.settings));
        self.hub.remember(&link);
        let serve = stream::serve(
            Arc::clone(&self.hub),
            Arc::clone(&self.backend),
            Arc::clone(&link),
            Box::pin(requests),
        );
        self.hub.tasks.spawn(serve);
        let responses = Batches::new(link, Arc::clone(&self.hub));
        let mut gateway = FakeGateway::open(to_logic, Box::pin(responses), settings).await?;
        gateway.list().await;
        Ok(gateway)
    }
}

impl<B> std::fmt::Debug for InProcess<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcess").finish_non_exhaustive()
    }
}
