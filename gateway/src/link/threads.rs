//! The threads that links run on: a tokio current_thread runtime each, apart from the shards.
//!
//! Links are dealt out to the threads in turn when the gateway starts; none moves later. A thread
//! ends when the shards of all of its links have left.

use std::{io, sync::Arc, thread};

use tokio::{
    sync::watch,
    task::{JoinSet, LocalSet},
};

use super::client::{self, LinkSettings, LinkStatus};
use super::port::LinkPort;
use super::resolve::Resolver;
use super::target::Target;

/// One link to serve.
pub(crate) struct LinkWork {
    pub port: LinkPort,
    /// Where it leads to; nowhere, as long as there is no such address.
    pub targets: watch::Receiver<Option<Target>>,
    pub status: Arc<LinkStatus>,
}

/// The running threads.
#[derive(Debug)]
pub(crate) struct LinkThreads {
    threads: Vec<thread::JoinHandle<()>>,
}

impl LinkThreads {
    /// Starts up to `threads_max` threads, no more than there are links. The first of them runs the
    /// resolver, too.
    pub fn start(
        work: Vec<LinkWork>,
        mut resolver: Option<Resolver>,
        threads_max: usize,
        settings: &LinkSettings,
    ) -> io::Result<Self> {
        let count = threads_max.clamp(1, work.len().max(1));
        let links: Arc<[_]> = work.iter().map(|link| link.status.clone()).collect();
        let mut shares: Vec<Vec<LinkWork>> = (0..count).map(|_| Vec::new()).collect();
        for (index, link) in work.into_iter().enumerate() {
            shares[index % count].push(link);
        }
        let mut threads = Vec::with_capacity(count);
        for (index, share) in shares.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let settings = settings.clone();
            let links = links.clone();
            let resolver = resolver.take();
            let body = move || {
                // Link tasks stay on their thread, so they need not be Send.
                LocalSet::new().block_on(&runtime, async move {
                    let mut tasks = JoinSet::new();
                    for LinkWork { port, targets, status } in share {
                        let run =
                            client::run(port, targets, settings.clone(), status, links.clone());
                        tasks.spawn_local(run);
                    }
                    if let Some(resolver) = resolver {
                        // It never ends by itself; it goes with this thread.
                        tokio::task::spawn_local(resolver.run());
                    }
                    while let Some(ended) = tasks.join_next().await {
                        if let Err(error) = ended {
                            tracing::error!(%error, "a link task failed");
                        }
                    }
                });
                // A name server that does not answer must not hold the end up.
                runtime.shutdown_background();
            };
            threads.push(thread::Builder::new().name(format!("link-{index}")).spawn(body)?);
        }
        Ok(Self { threads })
    }

    /// Waits until the threads have ended, which they do after their shards.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a link thread panicked");
            }
        }
    }
}
