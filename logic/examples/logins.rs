//! How many logins a second the logic process takes, and what a session costs it in memory: two
//! gateway shards log a million users in over the link, as fast as logic answers, each with a
//! signed token. No gateway and no client is in the way; the store is empty.
//!
//! `cargo build --release -p millrace-logic && cargo run --release -p millrace-logic --example logins`
//!
//! Arguments: the number of sessions (default 1,000,000) and the logic binary (default
//! `target/release/millrace-logic`), which is started on a free port with a temporary directory.

use std::{
    error::Error,
    net::TcpListener,
    path::Path,
    process::{Child, Command},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use millrace_protocol::link::{
    ConnectRequest, Credit, GatewayEvent, Hello, LoginRequest, SessionsComplete, Transport,
    gateway_event::Kind, link_service_client::LinkServiceClient, logic_event,
};
use tonic::transport::Endpoint;

type Failure = Box<dyn Error + Send + Sync>;

const SECRET: &str = "a secret for measurements alone, of 32 bytes";
const SHARDS: u64 = 2;
/// Logins of a shard under way, below logic's `link.logins_max`.
const UNDER_WAY_MAX: u64 = 768;
const BATCH: u64 = 64;
/// How long the sessions stay before memory is read.
const REST: Duration = Duration::from_secs(3);

static DONE: AtomicU64 = AtomicU64::new(0);

/// Ends the child however this program ends.
struct Logic(Child);

impl Drop for Logic {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let sessions: u64 = arguments.next().map_or(Ok(1_000_000), |count| count.parse())?;
    let binary = arguments.next().unwrap_or("target/release/millrace-logic".into());
    let folder = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let logic = start(&binary, folder.path(), port)?;
    let pid = logic.0.id();
    std::thread::sleep(Duration::from_secs(1));
    let (empty, cpu_before, begun) = (resident_bytes(pid)?, cpu(pid)?, Instant::now());
    let shards: Vec<_> = (0..SHARDS)
        .map(|shard| {
            std::thread::spawn(move || -> Result<(), Failure> {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime.enable_all().build()?.block_on(log_in(port, shard, sessions))
            })
        })
        .collect();
    while DONE.load(Ordering::Relaxed) < sessions {
        if shards.iter().any(std::thread::JoinHandle::is_finished) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let (took, cpu) = (begun.elapsed(), cpu(pid)?.saturating_sub(cpu_before));
    let peak = resident_bytes(pid)?;
    std::thread::sleep(REST);
    let resident = resident_bytes(pid)?;
    let done = DONE.load(Ordering::Relaxed).max(1);
    let each = |bytes: u64| bytes.saturating_sub(empty) / done;
    eprintln!(
        "{done} logins in {:.1} s: {:.0} a second beside their client; {:.1} µs of logic's CPU each",
        took.as_secs_f64(),
        done as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / done as f64
    );
    eprintln!(
        "logic resident: {empty} B empty, {peak} B right after ({} B a session), {resident} B {REST:?} later ({} B)",
        each(peak),
        each(resident)
    );
    drop(logic);
    for shard in shards {
        // Their streams break with the process; before that they must not have failed.
        if done < sessions {
            shard.join().map_err(|_| "a shard panicked")??;
        }
    }
    Ok(())
}

fn start(binary: &str, folder: &Path, port: u16) -> Result<Logic, Failure> {
    let config = folder.join("logic.toml");
    let directory = folder.join("data");
    let text = format!(
        "[store]\ndirectory = {directory:?}\n[link]\nlisten = \"127.0.0.1:{port}\"\n[http]\nlisten = \"\"\n\
         [admin]\nlisten = \"\"\n[api]\ntoken = \"no door is open for it\"\n[login]\njwt_secret = {SECRET:?}\n"
    );
    std::fs::write(&config, text)?;
    Ok(Logic(Command::new(binary).args(["run", "--config"]).arg(&config).spawn()?))
}

/// Logs every [`SHARDS`]th user in, then keeps the stream alive.
async fn log_in(port: u16, shard: u64, sessions: u64) -> Result<(), Failure> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?;
    let channel = endpoint.tcp_nodelay(true).connect().await?;
    let (to_logic, outgoing) = tokio::sync::mpsc::channel::<ConnectRequest>(64);
    let hello = Kind::Hello(Hello {
        gateway_id: "measure".into(),
        gateway_epoch: 1,
        shard: shard as u32,
        shards: SHARDS as u32,
        window: Some(Credit { frames: 1 << 20, bytes: 1 << 28 }),
        ..Hello::default()
    });
    let complete = Kind::SessionsComplete(SessionsComplete::default());
    let events = [hello, complete].map(|kind| GatewayEvent { kind: Some(kind) });
    to_logic
        .send(ConnectRequest { sequence: 1, credit: None, events: events.into(), state: None })
        .await?;
    let outgoing = futures::stream::unfold(outgoing, |mut outgoing| async move {
        outgoing.recv().await.map(|batch| (batch, outgoing))
    });
    let mut from_logic = LinkServiceClient::new(channel).connect(outgoing).await?.into_inner();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let expires_at = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 3_600;
    let total = sessions / SHARDS + u64::from(shard < sessions % SHARDS);
    let (mut asked, mut answered, mut sequence) = (0, 0, 3);
    loop {
        while asked < total && asked - answered + BATCH <= UNDER_WAY_MAX && to_logic.capacity() > 0
        {
            let mut events = Vec::with_capacity(BATCH as usize);
            for number in asked..total.min(asked + BATCH) {
                let user_id = format!("user-{}", number * SHARDS + shard);
                let claims = serde_json::json!({ "sub": user_id, "exp": expires_at });
                let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)?;
                let login = LoginRequest {
                    session_id: 1 + number,
                    user_id,
                    token,
                    device_id: format!("device-{number}"),
                    platform: "android".into(),
                    client_version: "1.0.0".into(),
                    remote_address: "192.0.2.1:50000".into(),
                    transport: Transport::Websocket.into(),
                    ..LoginRequest::default()
                };
                events.push(GatewayEvent { kind: Some(Kind::Login(login)) });
            }
            let count = events.len() as u64;
            to_logic.send(ConnectRequest { sequence, credit: None, events, state: None }).await?;
            sequence += count;
            asked += count;
        }
        let waiting = tokio::time::timeout(Duration::from_secs(1), from_logic.message());
        let Ok(received) = waiting.await else {
            // An empty batch is a heartbeat.
            to_logic
                .send(ConnectRequest { sequence, credit: None, events: vec![], state: None })
                .await?;
            continue;
        };
        let Some(batch) = received? else { return Err("the stream ended".into()) };
        for event in batch.events {
            if let Some(logic_event::Kind::LoginResult(result)) = event.kind {
                if result.code != 0 {
                    return Err(format!("a login was refused: {}", result.reason).into());
                }
                answered += 1;
                DONE.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn cpu(pid: u32) -> Result<Duration, Failure> {
    Ok(millrace_service::cpu_time::of_process(Some(pid)).ok_or("the process is gone")?)
}

fn resident_bytes(pid: u32) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1_024)
}
