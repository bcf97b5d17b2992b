//! The server of `millrace-loadgen agent`: lets a coordinator in that knows the secret and is of the
//! same build, and makes one run at a time.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use subtle::ConstantTimeEq as _;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Server, server::TcpIncoming},
};

use super::{
    MESSAGES_MAX, ORDER_BYTES_MAX,
    arguments::{AgentArguments, read_token},
    build,
    lead::Shared,
    proto::{
        self, FromAgent, FromCoordinator, Hello, agent_server::AgentServer, from_coordinator::What,
    },
    session::{Outcome, Session},
};
use crate::{
    clock::Clock,
    exit::{Exit, RunError},
};

/// A coordinator says who it is within this time.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// Calls of one connection; a coordinator makes one.
const CALLS_MAX: u32 = 4;
/// After a signal a run gets so long to end.
const END_MAX: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A run that is about to end is waited for so long; a coordinator has more patience.
const TURN_MAX: Duration = Duration::from_secs(6);

/// See the module.
struct Service {
    token: Option<String>,
    build: String,
    source_addresses: Vec<IpAddr>,
    clock_ahead_ns: i64,
    present: Arc<Mutex<Present>>,
}

/// What goes on.
#[derive(Default)]
struct Present {
    /// The run, if there is one.
    run: Option<Arc<Shared>>,
    /// How the last one ended.
    last: Option<Outcome>,
}

fn lock(present: &Mutex<Present>) -> std::sync::MutexGuard<'_, Present> {
    // Both fields are whole whatever a thread was doing to them.
    present.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is said of a run, on standard error.
fn log(text: &str) {
    // A closed standard error is no reason to end a run.
    let _ = writeln!(std::io::stderr(), "millrace-loadgen agent: {text}");
}

/// Whether the caller knows the secret. It takes as long for a guess that is nearly right as for another
/// of the same length.
fn is_known(token: Option<&str>, metadata: &MetadataMap) -> bool {
    let Some(token) = token else { return true };
    let given = metadata.get("authorization").map(|value| value.as_encoded_bytes());
    let given = given.and_then(|value| value.strip_prefix(b"Bearer "));
    given.is_some_and(|given| given.ct_eq(token.as_bytes()).into())
}

#[tonic::async_trait]
impl proto::agent_server::Agent for Service {
    type RunStream = ReceiverStream<Result<FromAgent, Status>>;

    async fn run(
        &self,
        request: Request<Streaming<FromCoordinator>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let caller = request.remote_addr().map_or("somebody".to_owned(), |at| at.to_string());
        if !is_known(self.token.as_deref(), request.metadata()) {
            log(&format!("{caller} does not know the token"));
            return Err(Status::unauthenticated(
                "it wants another token: give the file of its --token-file as --agents-token-file",
            ));
        }
        let mut inbound = request.into_inner();
        let hello = match timeout(HELLO_MAX, inbound.message()).await {
            Ok(Ok(Some(FromCoordinator { what: Some(What::Hello(hello)) }))) => hello,
            _ => return Err(Status::invalid_argument("no coordinator of this program")),
        };
        self.welcome(&hello)?;
        let shared = Arc::new(Shared::new());
        self.take_turn(&shared).await?;
        log(&format!("a coordinator at {caller}"));
        let (out, stream) = mpsc::channel(MESSAGES_MAX);
        let clock = Clock::start_wrong_by(self.clock_ahead_ns);
        let source_addresses = self.source_addresses.clone();
        let session = Session { out, clock, source_addresses, shared: shared.clone() };
        let present = self.present.clone();
        tokio::spawn(async move {
            let outcome = session.run(inbound).await;
            log(match outcome {
                Outcome::NoRun => "the coordinator left before a run",
                Outcome::Whole => "the run came to its end",
                Outcome::Broken => "the run was broken off",
            });
            let mut present = lock(&present);
            present.run = None;
            if outcome != Outcome::NoRun {
                present.last = Some(outcome);
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Service {
    /// Makes this the agent's run, if there is no other; one that is about to end is waited for.
    async fn take_turn(&self, shared: &Arc<Shared>) -> Result<(), Status> {
        let until = Instant::now() + TURN_MAX;
        loop {
            {
                let mut present = lock(&self.present);
                match &present.run {
                    None => {
                        present.run = Some(shared.clone());
                        return Ok(());
                    }
                    Some(run) if run.is_ending() && Instant::now() < until => {}
                    Some(_) => {
                        return Err(Status::resource_exhausted("it is busy with another run"));
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn welcome(&self, hello: &Hello) -> Result<(), Status> {
        if hello.build == self.build {
            return Ok(());
        }
        let theirs: String = hello.build.chars().take(100).collect();
        Err(Status::failed_precondition(format!(
            "it is build {} and the coordinator is build {theirs}: install the same millrace-loadgen \
             on all machines",
            self.build
        )))
    }
}

/// A running agent, for this process and for tests within one.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    present: Arc<Mutex<Present>>,
    stop: Arc<AtomicBool>,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Running {
    /// Listens, as a build of this name.
    ///
    /// # Errors
    /// The token cannot be read, or the address not be listened on.
    pub async fn start(arguments: &AgentArguments, build: &str) -> Result<Self, RunError> {
        let token = arguments.token_file.as_ref().map(|path| read_token("--token-file", path));
        let fail = |error: std::io::Error| {
            RunError::preflight(format!("--listen {}: {error}", arguments.listen))
        };
        let present = Arc::<Mutex<Present>>::default();
        let service = Service {
            token: token.transpose()?,
            build: build.to_owned(),
            source_addresses: arguments.source_addresses.clone().unwrap_or_default().0,
            clock_ahead_ns: arguments.clock_ahead_ms.saturating_mul(1_000_000),
            present: present.clone(),
        };
        let listener = TcpListener::bind(&arguments.listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let until = async move {
            while !stopped.load(Ordering::Acquire) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let service = AgentServer::new(service).max_decoding_message_size(ORDER_BYTES_MAX);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serve = Server::builder()
            .max_concurrent_streams(CALLS_MAX)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, until);
        Ok(Self { address, present, stop, server: tokio::spawn(serve) })
    }

    /// How the last run ended, if there was one and none is going on.
    pub fn last(&self) -> Option<Outcome> {
        let present = lock(&self.present);
        present.last.filter(|_| present.run.is_none())
    }

    /// Ends what goes on, and stops listening.
    pub async fn stop(self) {
        if let Some(run) = &lock(&self.present).run {
            run.stop("the agent was ended by a signal");
        }
        self.stop.store(true, Ordering::Release);
        let _ = timeout(END_MAX, self.server).await;
    }
}

/// Waits for runs until a signal comes, or for one.
///
/// # Errors
/// It could not begin.
pub fn serve(arguments: &AgentArguments, aborted: &Arc<AtomicBool>) -> Result<u8, RunError> {
    // The generator's threads are the run's own; this one only hears and sends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| RunError::preflight(format!("a runtime: {error}")))?;
    runtime.block_on(async {
        let agent = Running::start(arguments, build()).await?;
        let ready = format!("listening on {}, build {}\n", agent.address, build());
        let mut out = std::io::stdout();
        // Whoever started it may not care.
        let _ = out.write_all(ready.as_bytes()).and_then(|()| out.flush());
        if arguments.token_file.is_none() {
            log("without --token-file: anybody who reaches this port may use this machine");
        }
        let last = loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let last = agent.last();
            if aborted.load(Ordering::Relaxed) || (arguments.once && last.is_some()) {
                break last;
            }
        };
        agent.stop().await;
        let is_broken = arguments.once && last == Some(Outcome::Broken);
        Ok(if is_broken { Exit::Aborted } else { Exit::Ok } as u8)
    })
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataMap;

    use super::is_known;

    #[test]
    fn only_the_whole_token_opens_the_door() {
        let with = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", value.parse().expect("a value"));
            metadata
        };
        let token = Some("0123456789abcdef");
        assert!(is_known(token, &with("Bearer 0123456789abcdef")));
        assert!(is_known(None, &MetadataMap::new()), "an agent without a token");
        assert!(!is_known(token, &MetadataMap::new()));
        for wrong in [
            "",
            "0123456789abcdef",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdefg",
        ] {
            assert!(!is_known(token, &with(wrong)), "{wrong}");
        }
    }
}
