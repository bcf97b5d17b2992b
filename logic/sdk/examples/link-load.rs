//! How many frames a second one stream carries, and what one costs: a backend that echoes, and a
//! gateway shard that sends requests in batches of 1, 16, 64 and 256 frames of 100 bytes, both ends
//! in this process on one thread each.
//!
//! `cargo run --release -p millrace-logic-sdk --example link-load`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_logic_sdk::{
    Accepted, Backend, Gateways, Inbound, Login, Refused, Server, ServerSettings, Session,
};
use millrace_protocol::Code;
use millrace_protocol::link::link_service_client::LinkServiceClient;
use millrace_protocol::link::{
    ClientFrame, ConnectRequest, Credit, GatewayEvent, Hello, Session as ListedSession,
    SessionsComplete, gateway_event::Kind, logic_event,
};
use tokio::runtime::Builder;
use tonic::transport::Endpoint;

const SESSIONS: u64 = 1_000;
const BODY_BYTES: usize = 100;
const MEASURED: Duration = Duration::from_secs(3);
/// Requests under way; far below both windows.
const IN_FLIGHT: u64 = 16_384;

struct Echo {
    gateways: Gateways,
}

impl Backend for Echo {
    async fn login(&self, login: Login) -> Result<Accepted, Refused> {
        Ok(Accepted { user_id: login.user_id, ..Accepted::default() })
    }

    fn session_started(&self, _session: Arc<Session>) {}

    async fn refresh(&self, _session: Arc<Session>, _token: String) -> Result<i64, Refused> {
        Ok(0)
    }

    async fn frames(&self, frames: Vec<Inbound>) {
        let mut batch = self.gateways.batch();
        for inbound in &frames {
            batch.reply(inbound, inbound.body.clone());
        }
    }

    fn session_ended(&self, _session: Arc<Session>, _code: Code) {}

    fn sessions_replayed(&self, _started: Vec<Arc<Session>>, _kept: Vec<Arc<Session>>) {}
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || -> Result<(), Failure> {
        Builder::new_current_thread().enable_all().build()?.block_on(async {
            let address = "127.0.0.1:0".parse()?;
            let settings = ServerSettings::default();
            let backend = |gateways| Arc::new(Echo { gateways });
            let server = Server::bind(address, settings, backend).await?;
            tell.send(server.address())?;
            std::future::pending::<()>().await;
            Ok(())
        })
    });
    let address = told.recv()?;
    eprintln!("frames a batch | frames/s each way | CPU a frame, both ends and both ways");
    for frames_per_batch in [1, 16, 64, 256] {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (frames, took, cpu) = runtime.block_on(measure(address, frames_per_batch))?;
        let per_second = frames as f64 / took.as_secs_f64();
        let cpu_us = cpu.as_secs_f64() * 1e6 / frames as f64;
        eprintln!("{frames_per_batch:14} | {per_second:17.0} | {cpu_us:.2} µs");
    }
    Ok(())
}

async fn measure(
    address: std::net::SocketAddr,
    frames_per_batch: u64,
) -> Result<(u64, Duration, Duration), Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let channel = endpoint.tcp_nodelay(true).connect().await?;
    let (to_logic, outgoing) = tokio::sync::mpsc::channel::<ConnectRequest>(64);
    let hello = Kind::Hello(Hello {
        gateway_id: format!("load-{frames_per_batch}"),
        gateway_epoch: 1,
        window: Some(Credit { frames: 1 << 16, bytes: 1 << 26 }),
        ..Hello::default()
    });
    let session = |session_id| {
        let user_id = format!("user-{session_id}");
        Kind::Session(ListedSession { session_id, user_id, ..ListedSession::default() })
    };
    let complete = Kind::SessionsComplete(SessionsComplete { sessions: SESSIONS });
    let events = [hello].into_iter().chain((1..=SESSIONS).map(session)).chain([complete]);
    let events: Vec<_> = events.map(|kind| GatewayEvent { kind: Some(kind) }).collect();
    let mut sequence = 1 + events.len() as u64;
    to_logic.send(ConnectRequest { sequence: 1, credit: None, events }).await?;
    let outgoing = futures::stream::unfold(outgoing, |mut outgoing| async move {
        outgoing.recv().await.map(|batch| (batch, outgoing))
    });
    let mut from_logic = LinkServiceClient::new(channel).connect(outgoing).await?.into_inner();

    let body = Bytes::from(vec![7; BODY_BYTES]);
    let (mut sent, mut answered, mut owed) = (0_u64, 0_u64, Credit::default());
    let (begin, cpu_before) = (Instant::now(), cpu_time()?);
    while begin.elapsed() < MEASURED {
        while sent - answered + frames_per_batch <= IN_FLIGHT && to_logic.capacity() > 0 {
            let frame = |number: u64| {
                let frame = ClientFrame {
                    session_id: 1 + (sent + number) % SESSIONS,
                    command: 0x1000,
                    request_id: 1 + ((sent + number) as u32 >> 1),
                    body: body.clone(),
                    ..ClientFrame::default()
                };
                GatewayEvent { kind: Some(Kind::Frame(frame)) }
            };
            let events = (0..frames_per_batch).map(frame).collect();
            let credit = Some(std::mem::take(&mut owed));
            to_logic.send(ConnectRequest { sequence, credit, events }).await?;
            sequence += frames_per_batch;
            sent += frames_per_batch;
        }
        let Some(batch) = from_logic.message().await? else {
            return Err("the stream ended".into());
        };
        for event in batch.events {
            if let Some(logic_event::Kind::SendFrame(frame)) = event.kind {
                answered += 1;
                owed.frames += 1;
                owed.bytes += frame.body.len() as u64;
            }
        }
    }
    Ok((answered, begin.elapsed(), cpu_time()?.saturating_sub(cpu_before)))
}

fn cpu_time() -> Result<Duration, Failure> {
    Ok(millrace_service::cpu_time::of_process(None).ok_or("/proc/self/stat cannot be read")?)
}
