//! A logic tier in a few lines: accepts the token "good", echoes every frame, remembers what it
//! was told, dies and returns when asked.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use millrace_protocol::{
    Code, command,
    link::{
        ConnectRequest, ConnectResponse, Credit, HelloReply, LogicEvent, LoginResult,
        RefreshResult, SendFrame, gateway_event, link_service_server, logic_event,
    },
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// Everything the gateway said, in order of arrival over all streams.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Mutex<Vec<gateway_event::Kind>>>);

impl Heard {
    pub fn all(&self) -> Vec<gateway_event::Kind> {
        self.0.lock().expect("lock").clone()
    }

    pub fn count(&self, matches: impl Fn(&gateway_event::Kind) -> bool) -> usize {
        self.0.lock().expect("lock").iter().filter(|kind| matches(kind)).count()
    }

    pub fn ended(&self) -> Vec<(u64, u32)> {
        let kinds = self.all();
        kinds
            .iter()
            .filter_map(|kind| match kind {
                gateway_event::Kind::SessionEnded(ended) => Some((ended.session_id, ended.code)),
                _ => None,
            })
            .collect()
    }

    pub fn listed(&self) -> Vec<u64> {
        let kinds = self.all();
        kinds
            .iter()
            .filter_map(|kind| match kind {
                gateway_event::Kind::Session(session) => Some(session.session_id),
                _ => None,
            })
            .collect()
    }
}

/// A running logic process.
pub struct FakeLogic {
    pub address: SocketAddr,
    pub heard: Heard,
    /// While true, frames are taken but not answered.
    pub mute: Arc<AtomicBool>,
    /// While true, credit is kept back.
    pub starve: Arc<AtomicBool>,
    /// While true, not even heartbeats are sent.
    pub hang: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FakeLogic {
    /// Starts on any free port.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), 10_000)
    }

    /// Starts on a given address, with a given lease.
    pub fn start_at(address: SocketAddr, lease_ms: u32) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("bound");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("an address");
        let heard = Heard::default();
        let mute = Arc::new(AtomicBool::new(false));
        let hang = Arc::new(AtomicBool::new(false));
        let starve = Arc::new(AtomicBool::new(false));
        let (stop, mut stopped) = watch::channel(false);
        let service = Service {
            heard: heard.clone(),
            mute: mute.clone(),
            hang: hang.clone(),
            starve: starve.clone(),
            lease_ms,
            stop: stop.subscribe(),
        };
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let incoming = tonic::transport::server::TcpIncoming::from(listener);
                let server = tonic::transport::Server::builder()
                    .add_service(link_service_server::LinkServiceServer::new(service))
                    .serve_with_incoming(incoming);
                tokio::select! {
                    served = server => served.expect("served"),
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
            // Dropping the runtime cuts every connection, as a kill would.
        });
        Self { address, heard, mute, hang, starve, stop, thread: Some(thread) }
    }

    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Dies without a word.
    pub fn kill(mut self) -> SocketAddr {
        self.end();
        self.address
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the fake logic did not panic");
        }
    }
}

impl Drop for FakeLogic {
    fn drop(&mut self) {
        self.end();
    }
}

struct Service {
    heard: Heard,
    mute: Arc<AtomicBool>,
    hang: Arc<AtomicBool>,
    starve: Arc<AtomicBool>,
    lease_ms: u32,
    stop: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl link_service_server::LinkService for Service {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<ConnectResponse, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (out, answers) = mpsc::channel(64);
        let talk = Talk {
            heard: self.heard.clone(),
            mute: self.mute.clone(),
            hang: self.hang.clone(),
            starve: self.starve.clone(),
            lease_ms: self.lease_ms,
            sequence: 1,
            owed: Credit::default(),
        };
        tokio::spawn(talk.run(request.into_inner(), out, self.stop.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

struct Talk {
    heard: Heard,
    mute: Arc<AtomicBool>,
    hang: Arc<AtomicBool>,
    starve: Arc<AtomicBool>,
    lease_ms: u32,
    sequence: u64,
    /// Credit not given back yet.
    owed: Credit,
}

impl Talk {
    async fn run(
        mut self,
        mut requests: Streaming<ConnectRequest>,
        out: mpsc::Sender<Result<ConnectResponse, Status>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let beat = std::time::Duration::from_millis(u64::from(self.lease_ms) / 3);
        let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + beat, beat);
        loop {
            let request = tokio::select! {
                request = requests.next() => request,
                _ = beats.tick() => {
                    if !self.hang.load(Ordering::Relaxed) {
                        let heartbeat = self.batch(Vec::new());
                        if out.send(Ok(heartbeat)).await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
                _ = stop.changed() => return,
            };
            let Some(Ok(batch)) = request else { return };
            let mut answers = Vec::new();
            for event in batch.events {
                let Some(kind) = event.kind else { continue };
                self.heard.0.lock().expect("lock").push(kind.clone());
                answers.extend(self.answer(kind));
            }
            if self.hang.load(Ordering::Relaxed) || (answers.is_empty() && self.owed.frames == 0) {
                continue;
            }
            let response = self.batch(answers);
            if out.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }

    fn batch(&mut self, kinds: Vec<logic_event::Kind>) -> ConnectResponse {
        let credit = match self.starve.load(Ordering::Relaxed) {
            true => Credit::default(),
            false => std::mem::take(&mut self.owed),
        };
        let sequence = self.sequence;
        self.sequence += kinds.len() as u64;
        let events = kinds.into_iter().map(|kind| LogicEvent { kind: Some(kind) }).collect();
        ConnectResponse { sequence, credit: Some(credit), events }
    }

    fn answer(&mut self, kind: gateway_event::Kind) -> Option<logic_event::Kind> {
        use gateway_event::Kind;
        match kind {
            Kind::Hello(_) => Some(logic_event::Kind::HelloReply(HelloReply {
                logic_id: "fake".to_owned(),
                logic_epoch: 1,
                lease_ms: self.lease_ms,
                window: Some(Credit { frames: 1_000, bytes: 1 << 20 }),
                takes_moves: true,
            })),
            Kind::Login(login) => {
                let good = login.token == "good";
                let code = if good { Code::Ok } else { Code::BadToken };
                Some(logic_event::Kind::LoginResult(LoginResult {
                    session_id: login.session_id,
                    code: code.number(),
                    reason: if good { String::new() } else { "not good".to_owned() },
                    user_id: login.user_id,
                    ..Default::default()
                }))
            }
            Kind::Refresh(refresh) => Some(logic_event::Kind::RefreshResult(RefreshResult {
                session_id: refresh.session_id,
                request_id: refresh.request_id,
                ..Default::default()
            })),
            Kind::Frame(frame) => {
                self.owed.frames += 1;
                self.owed.bytes += frame.body.len() as u64;
                if self.mute.load(Ordering::Relaxed) {
                    return None;
                }
                Some(logic_event::Kind::SendFrame(SendFrame {
                    session_ids: vec![frame.session_id],
                    command: u32::from(command::reply(frame.command as u16)),
                    flags: frame.flags & 1,
                    request_id: frame.request_id,
                    body: frame.body,
                }))
            }
            Kind::Session(_)
            | Kind::RoomMembers(_)
            | Kind::SessionsComplete(_)
            | Kind::SessionEnded(_)
            | Kind::Drained(_) => None,
        }
    }
}
