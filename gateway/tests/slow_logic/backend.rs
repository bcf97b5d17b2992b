//! A logic tier on the SDK that checks the order of every session's frames, and can stop.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use millrace_logic_sdk::{
    Accepted, Backend, Ended, Gateways, Inbound, Login, Refused, Server, ServerSettings, Session,
    SessionAddress,
};
use millrace_protocol::frame::Flags;
use tokio::sync::watch;

/// Small, so that a test can fill it.
pub const OUTBOX_BYTES_MAX: usize = 4 << 20;

/// What logic sends to clients.
const NEWS: u16 = 0x1001;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Work,
    /// The call for a batch does not return, so that the stream is not read.
    StopReading,
    /// Every frame is taken, and its credit kept.
    KeepCredit,
}

pub struct Logic {
    server: Server,
    ledger: Arc<Ledger>,
    behaviour: watch::Sender<Behaviour>,
    /// Dropped after the server, which runs on it.
    _runtime: tokio::runtime::Runtime,
}

impl Logic {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("logic")
            .enable_all()
            .build()
            .expect("a runtime");
        let ledger = Arc::new(Ledger::default());
        let (behaviour, behaves) = watch::channel(Behaviour::Work);
        let settings = ServerSettings { outbox_bytes_max: OUTBOX_BYTES_MAX, ..Default::default() };
        let recorder = Recorder { ledger: ledger.clone(), behaves };
        let backend = move |_| Arc::new(recorder);
        let address = "127.0.0.1:0".parse().expect("an address");
        let server =
            runtime.block_on(Server::bind(address, settings, backend)).expect("it listens");
        Self { server, ledger, behaviour, _runtime: runtime }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
        if behaviour == Behaviour::Work {
            // Under the lock that the backend looks under, so that nothing is kept afterwards.
            let kept = std::mem::take(&mut *self.ledger.kept.lock().expect("lock"));
            drop(kept);
        }
    }

    /// Frames taken so far.
    pub fn frames(&self) -> u64 {
        self.ledger.frames.load(Ordering::Relaxed)
    }

    /// Frames that carried the number of an earlier one, or of the same.
    pub fn backwards(&self) -> u64 {
        self.ledger.backwards.load(Ordering::Relaxed)
    }

    /// Frames that did not carry the number after their session's last one.
    pub fn out_of_order(&self) -> u64 {
        self.ledger.out_of_order.load(Ordering::Relaxed)
    }

    pub fn sessions(&self) -> usize {
        self.ledger.sessions.lock().expect("lock").len()
    }

    /// One frame to every session; returns the bytes of it.
    pub fn send_to_all(&self, body: &[u8]) -> u64 {
        let sessions: Vec<_> = self.ledger.sessions.lock().expect("lock").keys().copied().collect();
        let gateways: Gateways = self.server.gateways();
        let body = Bytes::copy_from_slice(body);
        for session in &sessions {
            gateways.send(&[*session], NEWS, Flags::NONE, body.clone());
        }
        (sessions.len() * body.len()) as u64
    }

    /// What waits for all gateways.
    pub fn outbox_bytes(&self) -> usize {
        self.server.gateways().gateways().iter().map(|gateway| gateway.outbox_bytes).sum()
    }

    pub fn frames_skipped(&self) -> u64 {
        self.server.gateways().counters().events_skipped
    }
}

#[derive(Default)]
struct Ledger {
    frames: AtomicU64,
    out_of_order: AtomicU64,
    backwards: AtomicU64,
    /// The number of the last frame of each session.
    sessions: Mutex<HashMap<SessionAddress, u64>>,
    /// Frames whose credit is kept.
    kept: Mutex<Vec<Inbound>>,
}

impl Ledger {
    fn take(&self, frames: &[Inbound]) {
        let mut sessions = self.sessions.lock().expect("lock");
        for frame in frames {
            let number = frame.body.first_chunk().copied().map_or(0, u64::from_be_bytes);
            let last = sessions.entry(frame.session.address).or_default();
            if number != *last + 1 {
                self.out_of_order.fetch_add(1, Ordering::Relaxed);
            }
            if number <= *last {
                self.backwards.fetch_add(1, Ordering::Relaxed);
            }
            *last = number;
        }
        self.frames.fetch_add(frames.len() as u64, Ordering::Relaxed);
    }
}

struct Recorder {
    ledger: Arc<Ledger>,
    behaves: watch::Receiver<Behaviour>,
}

impl Backend for Recorder {
    async fn login(&self, login: Login) -> Result<Accepted, Refused> {
        Ok(Accepted { user_id: login.user_id, ..Accepted::default() })
    }

    fn session_started(&self, session: Arc<Session>) {
        self.ledger.sessions.lock().expect("lock").insert(session.address, 0);
    }

    async fn refresh(&self, _: Arc<Session>, _: String) -> Result<i64, Refused> {
        Ok(0)
    }

    async fn frames(&self, frames: Vec<Inbound>) {
        let mut behaves = self.behaves.clone();
        let go_on = behaves.wait_for(|behaviour| *behaviour != Behaviour::StopReading).await;
        drop(go_on);
        self.ledger.take(&frames);
        let mut kept = self.ledger.kept.lock().expect("lock");
        if *self.behaves.borrow() == Behaviour::KeepCredit {
            kept.extend(frames);
        }
    }

    fn session_ended(&self, session: Arc<Session>, _: Ended) {
        self.ledger.sessions.lock().expect("lock").remove(&session.address);
    }

    fn sessions_replayed(&self, _: Vec<Arc<Session>>, _: Vec<Arc<Session>>) {}
}
