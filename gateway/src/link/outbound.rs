//! The half of a stream that gRPC reads: the batches of a shard, until the shard lets go.
//!
//! Heartbeats are not made here. The engine makes them, so that they say that the shard lives and
//! not merely the thread beside it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use millrace_protocol::link::ConnectRequest;
use tokio_stream::Stream;

use super::{client::LinkStatus, port::OutboundBatches};

pub(super) struct OutboundStream {
    batches: OutboundBatches,
    status: Arc<LinkStatus>,
    /// Whether logic was told on this stream that the gateway drains; nothing else of it changes.
    told: Option<bool>,
}

impl OutboundStream {
    pub fn new(batches: OutboundBatches, status: Arc<LinkStatus>) -> Self {
        Self { batches, status, told: None }
    }
}

impl Stream for OutboundStream {
    type Item = ConnectRequest;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<ConnectRequest>> {
        let mut taken = self.batches.poll_take(context);
        if let Poll::Ready(Some(batch)) = &mut taken {
            self.status.sent(batch);
            // A heartbeat has room for it; a busy stream carries it when it has changed.
            let draining = self.status.is_draining();
            if batch.events.is_empty() || self.told != Some(draining) {
                self.told = Some(draining);
                batch.state = Some(self.status.state());
            }
        }
        taken
    }
}
