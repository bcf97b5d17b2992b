//! A shard's end of a link without a shard, so that the link can be measured by itself: the real
//! link threads, rings and streams, driven by whoever holds a [`LinkEnd`]. No gateway uses it.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread::{self, Thread},
    time::Duration,
};

use millrace_protocol::link::{ConnectRequest, ConnectResponse};

use super::{
    FromLink, LinkSettings, LinkStatus, LinkThreads, LinkWork, Outbound, ShardPort, Target, pair,
};

/// Where a shard would be. To be used by one thread.
#[derive(Debug)]
pub struct LinkEnd {
    port: ShardPort,
    outbound: Option<Outbound>,
    /// The thread to wake, once it has waited.
    waiter: Arc<OnceLock<Thread>>,
}

/// Starts link threads for `links` links to one logic endpoint, with the defaults of a gateway and
/// rings of `batches_max` batches. They end when all of the ends are dropped.
///
/// # Errors
/// The URI cannot be used, or a thread cannot be started.
pub fn start(
    uri: &str,
    links: usize,
    threads_max: usize,
    batches_max: usize,
) -> io::Result<Vec<LinkEnd>> {
    let settings = LinkSettings {
        lease: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(5),
        reconnect_min: Duration::from_millis(100),
        reconnect_max: Duration::from_secs(1),
        batch_interval: Duration::from_millis(1),
        batches_max,
        message_bytes_max: 36 << 20,
    };
    let target = Target::of_uri(uri, &settings).map_err(io::Error::other)?;
    let (mut ends, mut work) = (Vec::new(), Vec::new());
    for link in 0..links {
        let waiter = Arc::new(OnceLock::<Thread>::new());
        let waiting = waiter.clone();
        let ring = Arc::new(move || waiting.get().into_iter().for_each(Thread::unpark));
        let (port, theirs) = pair(batches_max, ring);
        let status = Arc::new(LinkStatus::new(link as u8, 0));
        let (_, targets) = tokio::sync::watch::channel(Some(target.clone()));
        work.push(LinkWork { port, targets, status });
        ends.push(LinkEnd { port: theirs, outbound: None, waiter });
    }
    LinkThreads::start(work, None, threads_max, &settings)?;
    Ok(ends)
}

impl LinkEnd {
    /// Whether a stream is open.
    pub const fn is_up(&self) -> bool {
        self.outbound.is_some()
    }

    /// The next batch from logic, if one is here.
    pub fn take(&mut self) -> Option<ConnectResponse> {
        while let Some(item) = self.port.take() {
            self.port.released();
            match item {
                FromLink::Up(outbound) => self.outbound = Some(outbound),
                FromLink::Down => self.outbound = None,
                FromLink::Batch(batch) => return Some(batch),
            }
        }
        None
    }

    /// Whether the ring towards logic has room. If not, [`Self::wait`] ends when it has.
    pub fn has_room(&mut self) -> bool {
        self.outbound.as_mut().is_some_and(Outbound::has_room)
    }

    /// Puts a batch on its way and wakes the link's thread.
    ///
    /// # Errors
    /// Gives the batch back when the ring is full or no stream is open.
    pub fn send(&mut self, batch: ConnectRequest) -> Result<(), ConnectRequest> {
        let Some(outbound) = &mut self.outbound else { return Err(batch) };
        outbound.push(batch)?;
        outbound.flush();
        Ok(())
    }

    /// Sleeps until something came from logic or a full ring has room, at most so long.
    pub fn wait(&mut self, timeout: Duration) {
        // A ring before the first wait went to nobody: look once without sleeping.
        let is_known = self.waiter.set(thread::current()).is_err();
        if is_known && self.port.is_empty() {
            thread::park_timeout(timeout);
        }
    }
}
