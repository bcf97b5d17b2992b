//! A logic on the SDK that echoes, and the ledger that several of them keep together.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use millrace_logic_sdk::{
    Accepted, Backend, Ended, HandedOver, Inbound, Login, Refused, Server, ServerSettings, Session,
};

/// Answered with its own body.
pub const ECHO: u16 = 0x1000;

/// What all logics were told, by the gateway's number of the session.
#[derive(Default)]
pub struct Ledger {
    /// The number in each one's last frame.
    last: Mutex<HashMap<u64, u64>>,
    /// How often each one's connection was said to have ended.
    over: Mutex<HashMap<u64, u32>>,
    out_of_order: AtomicUsize,
}

impl Ledger {
    /// Sessions that have ended.
    pub fn ends(&self) -> usize {
        self.over.lock().expect("lock").len()
    }

    pub fn ended_twice(&self) -> usize {
        self.over.lock().expect("lock").values().filter(|times| **times > 1).count()
    }

    /// Frames that came after a later one of their client.
    pub fn out_of_order(&self) -> usize {
        self.out_of_order.load(Ordering::Relaxed)
    }
}

pub struct Logic {
    pub address: SocketAddr,
    server: Server,
    sessions: Arc<AtomicUsize>,
    /// Dropped after the server, which runs on it.
    runtime: tokio::runtime::Runtime,
}

impl Logic {
    pub fn start(name: &str, address: SocketAddr, ledger: &Arc<Ledger>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("logic")
            .enable_all()
            .build()
            .expect("a runtime");
        let settings = ServerSettings { logic_id: name.to_owned(), ..ServerSettings::default() };
        let sessions = Arc::new(AtomicUsize::new(0));
        let echo = Echo { ledger: ledger.clone(), sessions: sessions.clone() };
        let server = runtime
            .block_on(Server::bind(address, settings, |_| Arc::new(echo)))
            .expect("it listens");
        Self { address: server.address(), server, sessions, runtime }
    }

    /// Sessions that are at home here.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Ends without a word: its tasks stop where they are, and the kernel closes its sockets.
    pub fn kill(self) {
        self.runtime.shutdown_background();
    }

    /// Lets the gateway move its sessions, then leaves in good order.
    pub fn hand_over_in_background(self) -> JoinHandle<HandedOver> {
        std::thread::spawn(move || {
            self.runtime.block_on(async {
                let handed_over = self.server.hand_over().await;
                self.server.shutdown().await;
                handed_over
            })
        })
    }
}

struct Echo {
    ledger: Arc<Ledger>,
    sessions: Arc<AtomicUsize>,
}

impl Backend for Echo {
    async fn login(&self, login: Login) -> Result<Accepted, Refused> {
        Ok(Accepted { user_id: login.user_id, ..Accepted::default() })
    }

    fn session_started(&self, _: Arc<Session>) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    async fn refresh(&self, _: Arc<Session>, _: String) -> Result<i64, Refused> {
        Ok(0)
    }

    async fn frames(&self, frames: Vec<Inbound>) {
        let mut last = self.ledger.last.lock().expect("lock");
        for frame in frames {
            let number = frame.body.first_chunk().copied().map_or(0, u64::from_be_bytes);
            let before = last.insert(frame.session.address.session_id, number).unwrap_or(0);
            if number <= before {
                self.ledger.out_of_order.fetch_add(1, Ordering::Relaxed);
            }
            frame.reply(frame.body.clone());
        }
    }

    fn session_ended(&self, session: Arc<Session>, ended: Ended) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        if matches!(ended, Ended::Over(_)) {
            let mut over = self.ledger.over.lock().expect("lock");
            *over.entry(session.address.session_id).or_default() += 1;
        }
    }

    fn sessions_replayed(&self, started: Vec<Arc<Session>>, _: Vec<Arc<Session>>) {
        self.sessions.fetch_add(started.len(), Ordering::Relaxed);
    }
}
